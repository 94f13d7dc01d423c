package buffer_test

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/levada-io/levada/internal/dataplane/buffer"
	"github.com/levada-io/levada/internal/dataplane/buffer/membuffer"
)

// stalling is a log whose cursor gives nothing from a sequence on, as that of a damaged replica. What is stored can be found all the same.
type stalling struct {
	buffer.Driver
	from     uint64
	failures int // of scans, before that
}

func (s *stalling) Scan(ctx context.Context, seq uint64, visit func(buffer.Entry) error) error {
	if s.failures > 0 {
		s.failures--
		return errors.New("the broker does not answer")
	}
	stalled := fmt.Errorf("%w for 2s", buffer.ErrStalled)
	err := s.Driver.Scan(ctx, seq, func(e buffer.Entry) error {
		if e.Seq >= s.from {
			return stalled
		}
		return visit(e)
	})
	return err
}

// A cursor that stalls, as at a replica that is damaged at its end, hides nothing from a start or a count.
func TestStalledScanCountsEverything(t *testing.T) {
	s := membuffer.NewStore(1 << 20)
	p := open(t, s, -1)
	const messages = 300 // a block each, and more than are looked for at once
	for i := uint64(1); i <= messages; i++ {
		if err := write(p, "a/0", i, i, 0, 10); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, from := range []uint64{1, 2, messages / 2, messages} {
		c, err := buffer.Inspect(t.Context(), &stalling{Driver: s.Open(), from: from, failures: 1})
		if err != nil || c.Messages != messages || c.Reached["a/0"] != messages {
			t.Errorf("stalled at %d: %+v, %v", from, c, err)
		}
		p, err := buffer.Open(t.Context(), &stalling{Driver: s.Open(), from: from, failures: 1}, buffer.Options{Name: "test", MaxLength: 1 << 20})
		if err != nil {
			t.Fatalf("stalled at %d: %v", from, err)
		}
		if p.Pending() != messages {
			t.Errorf("stalled at %d: %d pending, want %d", from, p.Pending(), messages)
		}
	}
}

// losing is a log whose cursor was lost with its server: Next gives nothing, however long it waits, until the cursor is replaced.
type losing struct {
	buffer.Driver
	lost  atomic.Bool
	finds atomic.Int64
}

func (l *losing) Next(ctx context.Context) (buffer.Entry, error) {
	if l.lost.Load() {
		<-ctx.Done()
		return buffer.Entry{}, ctx.Err()
	}
	return l.Driver.Next(ctx)
}

func (l *losing) Reset() {
	l.lost.Store(false)
	l.Driver.Reset()
}

func (l *losing) Find(ctx context.Context, lo, hi uint64, accept func(buffer.Entry) bool) ([]buffer.Entry, error) {
	l.finds.Add(1)
	return l.Driver.Find(ctx, lo, hi, accept)
}

// A cursor that is lost is replaced. Searches in the store are for what a cursor does not meet: each is for a few blocks, and asks every replica.
func TestLostCursorIsReplaced(t *testing.T) {
	for name, patience := range map[string]time.Duration{"long reads": time.Minute, "short reads": time.Second} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				const blocks = 1000
				log := &losing{Driver: membuffer.NewStore(1 << 20).Open()}
				p, err := buffer.Open(t.Context(), log, buffer.Options{Name: "test"})
				if err != nil {
					t.Fatal(err)
				}
				ctx, cancel := context.WithCancel(t.Context())
				ended := make(chan error, 1)
				go func() { ended <- p.Run(ctx) }()
				log.lost.Store(true)
				for i := uint64(1); i <= blocks; i++ {
					if err := write(p, "a/0", i, i, 0, 10); err != nil {
						t.Fatal(err)
					}
				}
				began := time.Now()
				for read := uint64(0); read < blocks; {
					short, cancel := context.WithTimeout(ctx, patience)
					d, err := p.Read(short)
					cancel()
					switch {
					case err == nil:
						read++
						p.Done(ctx, d)
					case !errors.Is(err, context.DeadlineExceeded) || time.Since(began) > time.Minute:
						t.Fatalf("after %d of %d blocks and %v: %v", read, blocks, time.Since(began), err)
					}
				}
				if n := log.finds.Load(); n > 1 {
					t.Errorf("the store was searched %d times for %d blocks", n, blocks)
				}
				cancel()
				if err := <-ended; err != nil {
					t.Error(err)
				}
			})
		})
	}
}
