package buffer_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/levada-io/levada/internal/dataplane/buffer"
	"github.com/levada-io/levada/internal/dataplane/buffer/membuffer"
	"github.com/levada-io/levada/internal/flow"
)

// A store that loses its end under a running process gives sequences again that the process has read and done. Its cursor is behind them: what is written there is
// never read, and is removed by the next trim, silently.

// TestStoreThatLosesItsEndWhileRunningLosesNothingSilently writes, reads, does, loses ends and restarts at random. In the end each message whose write succeeded has
// come under a number of its own, unless it was lost with the end of the store before it was done, and the user was asked about that.
func TestStoreThatLosesItsEndWhileRunningLosesNothingSilently(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		ctx := context.Background()
		s := membuffer.NewStore(1 << 20)
		asked := 0
		lost := map[string]bool{} // stored, removed before they were done, and nobody was asked about it yet
		open := func() *buffer.Partition {
			p, err := buffer.Open(ctx, s.Open(), buffer.Options{Name: "test", OnCorrupt: func(_ uint64, _ []byte, err error) error {
				if errors.Is(err, buffer.ErrLostEnd) {
					asked++
				}
				return nil
			}})
			if err != nil {
				t.Fatal(err)
			}
			return p
		}
		p := open()
		numbers := map[uint64]string{}
		delivered, acked := map[string]bool{}, map[string]bool{}
		id := func(pos uint64) string { return fmt.Sprintf("in/0@x/%d", pos) }
		next, again := uint64(0), []uint64(nil) // positions that the source gives next, and those whose write failed
		read := func() error {
			short, cancel := context.WithTimeout(ctx, 2*time.Millisecond)
			defer cancel()
			d, err := p.Read(short)
			if err != nil {
				return err
			}
			name := d.Block.Messages[0].ID
			if was, ok := numbers[d.Number]; ok && was != name {
				t.Fatalf("number %d of message %s is given to message %s, which is dropped downstream", d.Number, was, name)
			}
			numbers[d.Number], delivered[name] = name, true
			p.Done(ctx, d)
			return nil
		}
		submit := func(pos uint64) *buffer.Write {
			var e flow.Encoder
			e.Reset(pos)
			e.Append(&flow.Message{ID: id(pos), Pos: pos})
			w, err := p.Write(ctx, &flow.Block{Lane: "in/0@x", Lo: pos, Hi: pos, Watermark: flow.NoWatermark}, &e)
			if err != nil {
				t.Fatal(err)
			}
			return w
		}
		write := func(positions ...uint64) {
			var writes []*buffer.Write
			for _, pos := range positions {
				writes = append(writes, submit(pos))
			}
			for i, w := range writes {
				switch err := w.Wait(ctx); {
				case err == nil:
					acked[id(positions[i])] = true
				case errors.Is(err, buffer.ErrLostEnd):
					again = append(again, positions[i])
				default:
					t.Fatal(err)
				}
			}
		}
		restart := func() {
			if err := p.Close(ctx); err != nil {
				t.Fatal(err)
			}
			before := asked
			p = open()
			if len(lost) > 0 && asked == before {
				t.Fatalf("messages %v are lost, and nobody was asked", lost)
			}
			clear(lost)
			todo := again
			again = nil
			write(todo...)
		}
		t.Repeat(map[string]func(*rapid.T){
			"write": func(t *rapid.T) {
				n := rapid.IntRange(1, 4).Draw(t, "blocks at once")
				var positions []uint64
				for range n {
					next++
					positions = append(positions, next)
				}
				write(positions...)
			},
			"read": func(*rapid.T) { _ = read() },
			"save": func(*rapid.T) { _ = p.Trim(ctx) },
			"lose the end": func(t *rapid.T) {
				end, first := uint64(0), uint64(0)
				s.Edit(func(es []buffer.Entry) []buffer.Entry {
					if len(es) > 0 {
						first, end = es[0].Seq, es[len(es)-1].Seq
					}
					return es
				})
				if end == 0 {
					t.Skip("nothing to lose")
				}
				keep := rapid.Uint64Range(first-1, end-1).Draw(t, "what is left")
				s.Edit(func(es []buffer.Entry) []buffer.Entry {
					for _, e := range es {
						if b, err := flow.Decode(e.Data); err == nil && e.Seq > keep && !delivered[b.Messages[0].ID] {
							if acked[b.Messages[0].ID] {
								lost[b.Messages[0].ID] = true
							}
							delete(acked, b.Messages[0].ID)
						}
					}
					return es
				})
				s.LoseEnd(keep)
			},
			"restart": func(*rapid.T) { restart() },
		})
		restart()
		restart() // a write that succeeded after the first one may have shown a loss
		for read() == nil {
		}
		for name := range acked {
			if !delivered[name] {
				t.Fatalf("message %s was stored and never came; asked %d times", name, asked)
			}
		}
	})
}

// TestLossOfUndoneBlocksIsSaidAtEachStart loses blocks that were stored and not done, under a running process.
func TestLossOfUndoneBlocksIsSaidAtEachStart(t *testing.T) {
	s := membuffer.NewStore(1 << 20)
	p := open(t, s, -1)
	for pos := uint64(1); pos <= 6; pos++ {
		if err := write(p, "in/0@x", pos, pos, 0, 10); err != nil {
			t.Fatal(err)
		}
	}
	for range 3 {
		p.Done(t.Context(), must(p.Read(t.Context())))
	}
	if err := p.Trim(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.LoseEnd(4) // 5 and 6 are not done
	if err := write(p, "in/0@x", 7, 7, 0, 10); !errors.Is(err, buffer.ErrLostEnd) {
		t.Fatalf("a block that took the place of a lost one was stored: %v", err)
	}
	if _, err := p.Read(t.Context()); !errors.Is(err, buffer.ErrLostEnd) {
		t.Fatalf("reading goes on: %v", err)
	}
	if err := p.Health(); !errors.Is(err, buffer.ErrDamaged) {
		t.Errorf("a buffer whose store lost its end is well: %v", err)
	}
	_ = p.Close(t.Context())
	for range 2 {
		if _, err := buffer.Open(t.Context(), s.Open(), buffer.Options{Name: "test"}); !errors.Is(err, buffer.ErrLostEnd) {
			t.Fatalf("opened without a word: %v", err)
		}
	}
	asked := 0
	accepting := func() *buffer.Partition {
		return must(buffer.Open(t.Context(), s.Open(), buffer.Options{Name: "test", OnCorrupt: func(uint64, []byte, error) error { asked++; return nil }}))
	}
	accepting()
	p = accepting() // a decision is asked for once
	if asked != 1 {
		t.Errorf("asked %d times", asked)
	}
	if got := fmt.Sprint(rest(t, p)); got != "[in/0@x/4 in/0@x/7]" {
		t.Errorf("got %v", got)
	}
}

// TestLossOfWhatIsDoneNeedsNobody loses only blocks that are done: the process ends, since its cursor is wrong, and the next one goes on by itself.
func TestLossOfWhatIsDoneNeedsNobody(t *testing.T) {
	s := membuffer.NewStore(1 << 20)
	p := open(t, s, -1)
	for pos := uint64(1); pos <= 6; pos++ {
		if err := write(p, "in/0@x", pos, pos, 0, 10); err != nil {
			t.Fatal(err)
		}
		p.Done(t.Context(), must(p.Read(t.Context())))
	}
	s.LoseEnd(2)
	var failed []uint64
	for pos := uint64(7); pos <= 14; pos++ { // more than were lost
		if err := write(p, "in/0@x", pos, pos, 0, 10); errors.Is(err, buffer.ErrLostEnd) {
			failed = append(failed, pos)
		} else if err != nil {
			t.Fatal(err)
		}
	}
	if len(failed) == 0 {
		t.Error("writes go on into a store that lost its end")
	}
	_ = p.Close(t.Context())
	p = open(t, s, -1)
	for _, pos := range failed {
		if err := write(p, "in/0@x", pos, pos, 0, 10); err != nil {
			t.Fatal(err)
		}
	}
	came := map[string]bool{}
	for _, id := range rest(t, p) {
		if came[id] {
			t.Errorf("%s came twice", id)
		}
		came[id] = true
	}
	for pos := 7; pos <= 14; pos++ {
		if !came[fmt.Sprint("in/0@x/", pos)] {
			t.Errorf("%d never came: %v", pos, came)
		}
	}
}

// TestLostEndIsFoundWithoutWrites loses blocks under a process that only reads. One look at the store is not enough: a leader that was deposed may answer.
func TestLostEndIsFoundWithoutWrites(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := membuffer.NewStore(1 << 20)
		p := open(t, s, -1)
		for pos := uint64(1); pos <= 3; pos++ {
			if err := write(p, "in/0@x", pos, pos, 0, 10); err != nil {
				t.Fatal(err)
			}
		}
		for range 3 {
			p.Done(t.Context(), must(p.Read(t.Context())))
		}
		s.LoseEnd(1)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		ended := make(chan error, 1)
		go func() { ended <- p.Run(ctx) }()
		defer func() {
			cancel()
			if err := <-ended; err != nil {
				t.Errorf("the upkeep ended with %v", err)
			}
		}()
		begun := time.Now()
		if _, err := p.Read(t.Context()); !errors.Is(err, buffer.ErrLostEnd) {
			t.Fatal(err)
		}
		if took := time.Since(begun); took < 5*time.Second || took > 20*time.Second {
			t.Errorf("found after %v", took)
		}
		if s.Len() != 1 {
			t.Error("blocks were removed from a store that lost its end")
		}
	})
}

// busy is a store into which others write while it is asked for its end.
type busy struct {
	buffer.Driver
	write func()
}

func (b *busy) Bounds(ctx context.Context) (buffer.Bounds, error) {
	bounds, err := b.Driver.Bounds(ctx)
	b.write()
	return bounds, err
}

// TestWritesDuringACheckAreNoLostEnd: an end that was asked for before the last write was compared with what was known after it.
func TestWritesDuringACheckAreNoLostEnd(t *testing.T) {
	s := membuffer.NewStore(1 << 20)
	d := &busy{Driver: s.Open(), write: func() {}}
	p := must(buffer.Open(t.Context(), d, buffer.Options{Name: "test"}))
	pos := uint64(0)
	d.write = func() {
		pos++
		if err := write(p, "in/0@x", pos, pos, 0, 10); err != nil {
			t.Error(err)
		}
	}
	for range 3 {
		if err := p.Trim(t.Context()); err != nil {
			t.Error(err)
		}
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}
