package buffer_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/levada-io/levada/internal/dataplane/buffer"
	"github.com/levada-io/levada/internal/dataplane/buffer/membuffer"
	"github.com/levada-io/levada/internal/flow"
)

// dying is a driver whose process dies after so many calls that change something: what it does later has no effect.
type dying struct {
	buffer.Driver
	mu   sync.Mutex
	left int // -1: never
}

var errDead = errors.New("the process is dead")

func (d *dying) alive() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.left > 0 {
		d.left--
		return true
	}
	return d.left < 0
}

type dead struct{}

func (dead) Wait(context.Context) (uint64, bool, error) { return 0, false, buffer.ErrClosed }

func (d *dying) Submit(ctx context.Context, r buffer.Record) buffer.Receipt {
	if !d.alive() {
		return dead{}
	}
	return d.Driver.Submit(ctx, r)
}

func (d *dying) Trim(ctx context.Context, seq uint64) error {
	if !d.alive() {
		return errDead
	}
	return d.Driver.Trim(ctx, seq)
}

func (d *dying) SaveState(ctx context.Context, state []byte) error {
	if !d.alive() {
		return errDead
	}
	return d.Driver.SaveState(ctx, state)
}

func open(t interface {
	Helper()
	Fatalf(string, ...any)
}, s *membuffer.Store, left int) *buffer.Partition {
	t.Helper()
	p, err := buffer.Open(context.Background(), &dying{Driver: s.Open(), left: left}, buffer.Options{Name: "test"})
	if err != nil {
		t.Fatalf("open: %v", err)
	}
	return p
}

// writing is a Writer, or a Partition.
type writing interface {
	Write(ctx context.Context, h *flow.Block, e *flow.Encoder) (*buffer.Write, error)
}

// write writes positions lo to hi of a lane, of size bytes each.
func write(p writing, lane string, lo, hi, floor uint64, size int) error {
	var e flow.Encoder
	e.Reset(lo)
	for pos := lo; pos <= hi; pos++ {
		e.Append(&flow.Message{ID: fmt.Sprintf("%s/%d", lane, pos), Pos: pos, Value: []byte(strings.Repeat("x", size))})
	}
	w, err := p.Write(context.Background(), &flow.Block{Lane: lane, Lo: lo, Hi: hi, Floor: floor, ByID: strings.HasPrefix(lane, "byid"), Watermark: flow.NoWatermark}, &e)
	if err != nil {
		return err
	}
	return w.Wait(context.Background())
}

// rest reads what is there and not done, and does it.
func rest(t *testing.T, p *buffer.Partition) (ids []string) {
	t.Helper()
	for {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		d, err := p.Read(ctx)
		cancel()
		if err != nil {
			if !errors.Is(err, context.DeadlineExceeded) {
				t.Fatal(err)
			}
			return ids
		}
		for _, m := range d.Block.Messages {
			ids = append(ids, m.ID)
		}
		p.Done(t.Context(), d)
	}
}

const small = 1000 // bytes of an entry: blocks of a few messages are stored in pieces

// TestPiecesAreDoneTogether kills a reader between the acknowledgements of the pieces of one block.
func TestPiecesAreDoneTogether(t *testing.T) {
	for left := range 8 {
		s := membuffer.NewStore(small)
		p := open(t, s, -1)
		for _, lane := range []string{"a/0", "b/0"} {
			if err := write(p, lane, 1, 4, 0, 600); err != nil {
				t.Fatal(err)
			}
		}
		p = open(t, s, left) // dies after so many acknowledgements
		d, err := p.Read(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		p.Done(t.Context(), d)
		_ = p.Trim(t.Context())

		s.ForgetIDs()
		p = open(t, s, -1)
		if err := write(p, "a/0", 1, 4, 0, 600); err != nil { // its writer did not know
			t.Fatal(err)
		}
		ids := rest(t, p)
		slices.Sort(ids)
		if slices.Equal(ids, []string{"a/0/1", "a/0/2", "a/0/3", "a/0/4", "b/0/1", "b/0/2", "b/0/3", "b/0/4"}) {
			ids = ids[4:] // the reader died before its work was known; its outputs have the same positions again
		}
		if want := []string{"b/0/1", "b/0/2", "b/0/3", "b/0/4"}; !slices.Equal(ids, want) {
			t.Errorf("dead after %d steps: %v came, want %v", left, ids, want)
		}
		if p.Pending() != 0 {
			t.Errorf("dead after %d steps: %d pending when all is done", left, p.Pending())
		}
		if err := p.Trim(t.Context()); err != nil || s.Len() != 0 {
			t.Errorf("dead after %d steps: %d entries left: %v", left, s.Len(), err)
		}
	}
}

// TestPiecesOfAnotherLife kills a writer among the pieces of a block. The next one promises another floor, so its pieces are others.
func TestPiecesOfAnotherLife(t *testing.T) {
	for left := range 5 {
		for _, forget := range []bool{false, true} {
			s := membuffer.NewStore(small)
			p := open(t, s, left)
			_ = write(p, "a/0", 1, 4, 0, 600)
			if forget {
				s.ForgetIDs()
			}
			p = open(t, s, -1)
			if err := errors.Join(write(p, "a/0", 1, 4, 1<<40, 600)); err != nil {
				t.Fatal(err)
			}
			if ids := rest(t, p); !slices.Equal(ids, []string{"a/0/1", "a/0/2", "a/0/3", "a/0/4"}) {
				t.Errorf("dead after %d steps, ids forgotten %v: %v came", left, forget, ids)
			}
			if p.Pending() != 0 {
				t.Errorf("%d pending when all is done", p.Pending())
			}
		}
	}
}

// TestIDsOfPieces reads back the ids of large blocks after a restart.
func TestIDsOfPieces(t *testing.T) {
	s := membuffer.NewStore(small)
	p := open(t, s, -1)
	if err := write(p, "byid/0", 1, 4, 0, 600); err != nil {
		t.Fatal(err)
	}
	rest(t, p)
	if err := p.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.ForgetIDs()
	p = open(t, s, -1)
	if err := write(p, "byid/0", 3, 6, 0, 600); err != nil {
		t.Fatal(err)
	}
	if ids := rest(t, p); !slices.Equal(ids, []string{"byid/0/5", "byid/0/6"}) {
		t.Errorf("%v came", ids)
	}
}

// TestLossIsTold takes entries out of the store: in the middle, at the end, and right behind what was done. Opening or reading returns an error, again and
// again, until somebody decides to go on; then everything else comes, and it is not told again.
func TestLossIsTold(t *testing.T) {
	for name, c := range map[string]struct {
		lost       []uint64
		done, want int // blocks done before; messages that come when going on
	}{
		"in the middle":                       {[]uint64{5}, 2, 7},
		"at the end":                          {[]uint64{9, 10}, 2, 6},
		"all that is not done":                {[]uint64{3, 4, 5, 6, 7, 8, 9, 10}, 2, 0},
		"right behind the floor":              {[]uint64{3}, 2, 7},
		"in the middle, below and at the end": {[]uint64{3, 6, 10}, 2, 5},
	} {
		t.Run(name, func(t *testing.T) {
			s := membuffer.NewStore(1 << 20)
			p := open(t, s, -1)
			for pos := uint64(1); pos <= 10; pos++ {
				if err := write(p, "a/0", pos, pos, 0, 10); err != nil {
					t.Fatal(err)
				}
			}
			for range c.done {
				d, err := p.Read(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				p.Done(t.Context(), d)
			}
			if err := p.Trim(t.Context()); err != nil {
				t.Fatal(err)
			}
			s.Edit(func(entries []buffer.Entry) []buffer.Entry {
				return slices.DeleteFunc(entries, func(e buffer.Entry) bool { return slices.Contains(c.lost, e.Seq) })
			})
			told := func(onCorrupt func(uint64, []byte, error) error) (ids int, err error) {
				d := s.Open()
				p, err := buffer.Open(t.Context(), d, buffer.Options{Name: "test", OnCorrupt: onCorrupt})
				if err != nil {
					return 0, err
				}
				defer func() { err = errors.Join(err, p.Close(context.Background())) }()
				for {
					ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
					d, err := p.Read(ctx)
					cancel()
					if errors.Is(err, context.DeadlineExceeded) {
						if p.Pending() != 0 {
							t.Errorf("%d pending when all is done", p.Pending())
						}
						return ids, nil
					}
					if err != nil {
						return ids, err
					}
					if onCorrupt != nil {
						ids += len(d.Block.Messages)
						p.Done(t.Context(), d)
					}
				}
			}
			for range 3 {
				if _, err := told(nil); !errors.Is(err, buffer.ErrGap) {
					t.Fatalf("%v lost, and it says %v", c.lost, err)
				}
			}
			var seen []string
			ids, err := told(func(seq uint64, _ []byte, err error) error {
				seen = append(seen, fmt.Sprint(seq, ": ", err))
				return nil
			})
			if err != nil || ids != c.want || len(seen) == 0 {
				t.Errorf("going on, %d messages came, want %d: %v (%v)", ids, c.want, err, seen)
			}
			if _, err := told(nil); err != nil {
				t.Errorf("it is reported again: %v", err)
			}
		})
	}
}

// TestInterleaved writes blocks of several lanes, reads them, and dies at any step, again and again. What was done never comes again at another place, every message is
// done, and in the end nothing is pending and nothing stored.
func TestInterleaved(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := membuffer.NewStore(rapid.SampledFrom([]int{small, 1 << 20}).Draw(t, "entry"))
		lanes := []string{"a/0", "b/0", "byid/0"}[:rapid.IntRange(1, 3).Draw(t, "lanes")]
		total := rapid.Uint64Range(1, 30).Draw(t, "messages")
		size := rapid.SampledFrom([]int{1, 300}).Draw(t, "size")
		durable := map[string]uint64{} // how far the writers know that it is stored
		place := map[string]string{}   // of each message that was delivered: where, which never changes
		done := map[string]bool{}      // by the reader, durably
		floors := map[string]uint64{}  // what a writer may promise
		ctx := context.Background()
		for life := 0; ; life++ {
			last := life >= 6
			left := rapid.IntRange(1, 40).Draw(t, "dies at")
			if last {
				left = -1
			}
			d := &dying{Driver: s.Open(), left: left}
			p, err := buffer.Open(ctx, d, buffer.Options{Name: "test"})
			if err != nil {
				if last || !errors.Is(err, errDead) {
					t.Fatalf("open: %v", err)
				}
				continue
			}
			next := map[string]uint64{}
			for _, l := range lanes {
				next[l] = durable[l] + 1 - min(durable[l], rapid.Uint64Range(0, 3).Draw(t, "again")) // some are written again
				next[l] = max(next[l], floors[l]+1)
			}
			var hand []*buffer.Delivery
			finish := func(i int) {
				dl := hand[i]
				hand = slices.Delete(hand, i, i+1)
				for _, m := range dl.Block.Messages {
					done[m.ID] = true
				}
				p.Done(ctx, dl)
			}
			read := func() bool {
				short, cancel := context.WithTimeout(ctx, time.Millisecond)
				defer cancel()
				dl, err := p.Read(short)
				if errors.Is(err, context.DeadlineExceeded) {
					return false
				}
				if err != nil {
					t.Fatalf("read: %v", err)
				}
				for i, m := range dl.Block.Messages {
					at := fmt.Sprint(dl.Seq, ".", dl.Place(i))
					if before, ok := place[m.ID]; ok && before != at {
						t.Fatalf("%s came at %s, and before at %s", m.ID, at, before)
					}
					place[m.ID] = at
				}
				hand = append(hand, dl)
				return true
			}
			steps := rapid.IntRange(1, 25).Draw(t, "steps")
			for range steps {
				switch rapid.IntRange(0, 5).Draw(t, "what") {
				case 0, 1:
					l := rapid.SampledFrom(lanes).Draw(t, "lane")
					if next[l] > total {
						continue
					}
					hi := min(total, next[l]+rapid.Uint64Range(0, 5).Draw(t, "count"))
					if err := write(p, l, next[l], hi, floors[l], size); err == nil {
						durable[l] = max(durable[l], hi)
						next[l] = hi + 1
						if rapid.Bool().Draw(t, "promise") && !strings.HasPrefix(l, "byid") {
							floors[l] = hi
						}
					}
				case 2, 3:
					read()
				case 4:
					if len(hand) > 0 {
						finish(rapid.IntRange(0, len(hand)-1).Draw(t, "which"))
					}
				case 5:
					_ = p.Trim(ctx)
				}
			}
			if !last {
				if rapid.Bool().Draw(t, "forget ids") {
					s.ForgetIDs()
				}
				if rapid.Bool().Draw(t, "hide") { // from the cursor, as a damaged replica does; the store still has it
					s.Hide(rapid.Uint64Range(1, 60).Draw(t, "hidden"))
				}
				continue
			}
			s.Reveal() // what is behind the cursor is looked for, what is before it comes by itself
			for _, l := range lanes {
				for next[l] <= total {
					if err := write(p, l, next[l], next[l], floors[l], size); err != nil {
						t.Fatalf("write: %v", err)
					}
					floors[l] = next[l]
					next[l]++
				}
			}
			for read() || len(hand) > 0 {
				for len(hand) > 0 {
					finish(0)
				}
			}
			for _, l := range lanes {
				for pos := uint64(1); pos <= total; pos++ {
					if id := fmt.Sprintf("%s/%d", l, pos); !done[id] {
						t.Errorf("%s was never done", id)
					}
				}
			}
			if p.Pending() != 0 {
				t.Errorf("%d pending when all is done", p.Pending())
			}
			return
		}
	})
}
