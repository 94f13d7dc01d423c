package buffer_test

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/levada-io/levada/internal/dataplane/buffer"
	"github.com/levada-io/levada/internal/dataplane/buffer/membuffer"
	"github.com/levada-io/levada/internal/flow"
)

// A store that lost its end gives the sequences of the lost blocks to new ones. Their messages would come under positions that the next vertex and the sinks
// have seen, and be dropped there.

// accept opens a store whatever it has lost.
func accept(t *rapid.T, s *membuffer.Store) *buffer.Partition {
	p, err := buffer.Open(context.Background(), s.Open(), buffer.Options{Name: "test", OnCorrupt: func(uint64, []byte, error) error { return nil }})
	if err != nil {
		t.Fatalf("open: %v", err)
	}
	return p
}

// numberUnit is the unit of the clock that numbers are compared with.
const numberUnit = 100 * time.Microsecond

// passed waits until the clock is past the numbers that a process may have given: that began with its clock, or behind what its store had lost, and is one for each entry. A partition
// in memory takes more than one entry in a unit of the clock, which a process that begins after a loss could not know.
type passed struct {
	began       time.Time
	first, lost uint64
}

// begins is called before a store is opened.
func begins(s *membuffer.Store) passed {
	d := s.Open()
	b, _ := d.Bounds(context.Background())
	state, _ := d.LoadState(context.Background())
	_, saved, _ := buffer.SavedBounds(state)
	return passed{time.Now(), b.Last, max(saved, b.Last) - b.Last}
}

func (p passed) wait(s *membuffer.Store) {
	b, _ := s.Open().Bounds(context.Background())
	for end := p.began.Add(time.Duration(b.Last-p.first+p.lost+2) * numberUnit); time.Now().Before(end); {
		time.Sleep(time.Until(end))
	}
}

// TestNumberIsNeverThatOfAnotherBlock writes, reads, restarts, and goes back to older copies of the store, with and without the state of the copy's time.
func TestNumberIsNeverThatOfAnotherBlock(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := membuffer.NewStore(rapid.SampledFrom([]int{1 << 20, 700}).Draw(t, "largest entry"))
		clock := begins(s)
		p := accept(t, s)
		numbers := map[uint64]string{} // what came under a number
		ids := map[string]uint64{}
		written, highest, unfinished := uint64(0), uint64(0), 0
		var copies []*membuffer.Store
		restart := func() {
			clock = begins(s)
			p = accept(t, s)
			highest, unfinished = 0, 0
		}
		t.Repeat(map[string]func(*rapid.T){
			"write": func(t *rapid.T) {
				written++
				if err := write(p, "in/0@x", written, written, 0, rapid.SampledFrom([]int{10, 2000}).Draw(t, "size")); err != nil {
					t.Fatal(err)
				}
			},
			"read": func(t *rapid.T) {
				if p.Pending() <= unfinished {
					t.Skip("nothing to read")
				}
				d := next(t, p)
				id := fmt.Sprint(d.Block.Messages[0].ID)
				if was, ok := numbers[d.Number]; ok && was != id {
					t.Fatalf("number %d of message %s is given to message %s", d.Number, was, id)
				}
				if was, ok := ids[id]; ok && was != d.Number {
					t.Fatalf("message %s has number %d, and had %d", id, d.Number, was)
				}
				if d.Number <= highest {
					t.Fatalf("number %d comes after %d", d.Number, highest)
				}
				numbers[d.Number], ids[id], highest = id, d.Number, d.Number
				if rapid.Bool().Draw(t, "done") {
					p.Done(context.Background(), d)
				} else {
					unfinished++
				}
			},
			"save": func(t *rapid.T) {
				if err := p.Trim(context.Background()); err != nil {
					t.Fatal(err)
				}
			},
			"restart": func(*rapid.T) { clock.wait(s); restart() },
			"copy":    func(*rapid.T) { copies = append(copies, s.Copy()) },
			"lose": func(t *rapid.T) {
				if len(copies) == 0 {
					t.Skip("no copy")
				}
				older := copies[len(copies)-1].Copy()
				if rapid.Bool().Draw(t, "the state is newer") {
					older.TakeState(s)
				}
				clock.wait(s)
				s = older
				restart()
			},
		})
	})
}

// TestMessagesAfterALostEndReachTheNextBuffer loses the end of a store after it was read, and writes other messages there: all come through, whether the loss
// shows or not.
func TestMessagesAfterALostEndReachTheNextBuffer(t *testing.T) {
	for _, shows := range []bool{true, false} {
		t.Run(fmt.Sprint("the loss shows: ", shows), func(t *testing.T) {
			s, downstream := membuffer.NewStore(1<<20), membuffer.NewStore(1<<20)
			open := func(s *membuffer.Store) *buffer.Partition {
				p, err := buffer.Open(t.Context(), s.Open(), buffer.Options{Name: "test", OnCorrupt: func(uint64, []byte, error) error { return nil }})
				if err != nil {
					t.Fatal(err)
				}
				return p
			}
			to := open(downstream)
			// forward hands on what is pending, under the positions of the reader's lane.
			forward := func(p *buffer.Partition) {
				for p.Pending() > 0 {
					d, err := p.Read(t.Context())
					if err != nil {
						t.Fatal(err)
					}
					var e flow.Encoder
					lo := d.Number << 20
					e.Reset(lo)
					for i := range d.Block.Messages {
						d.Block.Messages[i].Pos = lo + uint64(i)
						e.Append(&d.Block.Messages[i])
					}
					w, err := to.Write(t.Context(), &flow.Block{Lane: "mid/0@m", Lo: lo, Hi: lo + 1<<20 - 1, Floor: lo - 1, Watermark: flow.NoWatermark}, &e)
					if err != nil {
						t.Fatal(err)
					}
					if err := w.Wait(t.Context()); err != nil {
						t.Fatal(err)
					}
					p.Done(t.Context(), d)
				}
			}
			clock := begins(s)
			p := open(s)
			if err := write(p, "in/0@x", 1, 1, 0, 10); err != nil {
				t.Fatal(err)
			}
			forward(p)
			if err := p.Trim(t.Context()); err != nil {
				t.Fatal(err)
			}
			older := s.Copy()
			if err := write(p, "in/0@x", 2, 2, 0, 10); err != nil {
				t.Fatal(err)
			}
			forward(p)
			if err := p.Trim(t.Context()); err != nil {
				t.Fatal(err)
			}
			if shows {
				older.TakeState(s)
				if _, err := buffer.Open(t.Context(), older.Copy().Open(), buffer.Options{Name: "test"}); err != nil {
					t.Fatalf("what is lost was done, and the store is refused: %v", err)
				}
			}
			clock.wait(s)
			p = open(older)
			if err := write(p, "in/0@x", 3, 3, 0, 10); err != nil {
				t.Fatal(err)
			}
			forward(p)
			var came []string
			for to.Pending() > 0 {
				d, err := to.Read(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				for _, m := range d.Block.Messages {
					came = append(came, m.ID)
				}
				to.Done(t.Context(), d)
				if len(came) == 3 {
					break
				}
			}
			if want := []string{"in/0@x/1", "in/0@x/2", "in/0@x/3"}; !slices.Equal(came, want) {
				t.Errorf("got %v, want %v", came, want)
			}
		})
	}
}
