package jetstreambuffer_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/levada-io/levada/internal/dataplane/buffer"
	"github.com/levada-io/levada/internal/testnats"
	"github.com/levada-io/levada/internal/testserver"
)

// TestBrokerThatLosesItsEndWhileRunningIsNoticed puts an older copy of the broker's store in place under a running process, whose blocks then get sequences that it has
// read already. Its cursor was recreated behind them, they were never read, and the next trim removed them: the messages were gone silently.
func TestBrokerThatLosesItsEndWhileRunningIsNoticed(t *testing.T) {
	store := t.TempDir()
	s := testnats.Server(t, testnats.Store(store))
	p, js, err := openAt(t, s.DSN(), 1, buffer.Options{TrimEvery: 100 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	step := func(lo, hi uint64) {
		t.Helper()
		if err := put(within(t), p, lo, hi); err != nil {
			t.Fatal(err)
		}
		if ids, err := take(within(t), p, int(hi-lo+1)); err != nil {
			t.Fatal(err)
		} else {
			ascending(t, ids, int(lo))
		}
	}
	step(1, 10)
	s.Stop(testserver.Fast)
	older := t.TempDir()
	if err := os.CopyFS(older, os.DirFS(store)); err != nil {
		t.Fatal(err)
	}
	s.Start()
	step(11, 30)
	s.Stop(testserver.Fast)
	if err := os.RemoveAll(store); err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(store, os.DirFS(older)); err != nil {
		t.Fatal(err)
	}
	s.Start()
	// Others write as well, and do not know what was lost: the reader must find it by itself.
	var failed []uint64
	other := testnats.Connect(t, s.DSN())
	if _, err := other.Publish(within(t), stream, []byte("not ours")); err != nil {
		t.Fatal(err)
	}
	for pos := uint64(31); pos <= 60; pos++ {
		if err := put(within(t), p, pos, pos); errors.Is(err, buffer.ErrLostEnd) {
			failed = append(failed, pos)
		} else if err != nil {
			t.Fatal(err)
		}
	}
	if len(failed) == 0 {
		t.Error("writes into a store that lost its end succeed, and are not read")
	}
	if _, err := take(within(t), p, 31); !errors.Is(err, buffer.ErrLostEnd) {
		t.Errorf("reading goes on: %v", err)
	}
	if err := p.Close(within(t)); err != nil {
		t.Error(err)
	}
	// All that was lost was done, so the next start goes on by itself, with what was written since. The block of somebody else is no block.
	js.Conn().Close()
	p, _, err = openAt(t, s.DSN(), 1, buffer.Options{OnCorrupt: func(_ uint64, _ []byte, err error) error {
		if errors.Is(err, buffer.ErrGap) {
			return err
		}
		return nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	for _, pos := range failed {
		if err := put(within(t), p, pos, pos); err != nil {
			t.Fatal(err)
		}
	}
	came := map[string]int{}
	for len(came) < 30 {
		ctx, cancel := context.WithTimeout(within(t), 20*time.Second)
		ids, err := take(ctx, p, 1)
		cancel()
		if err != nil {
			t.Fatalf("after %v: %v", came, err)
		}
		came[ids[0]]++
	}
	for pos := 31; pos <= 60; pos++ {
		if came[fmt.Sprint(pos)] != 1 {
			t.Errorf("message %d came %d times", pos, came[fmt.Sprint(pos)])
		}
	}
}

// TestCursorFindsBlocksReplacedByOthers loses the end of the store under a process that only reads, and whose store was filled beyond the lost end before its cursor
// was recreated.
func TestCursorFindsBlocksReplacedByOthers(t *testing.T) {
	store := t.TempDir()
	s := testnats.Server(t, testnats.Store(store))
	p, _, err := openAt(t, s.DSN(), 1, buffer.Options{TrimEvery: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	if err := put(within(t), p, 1, 5); err != nil {
		t.Fatal(err)
	}
	s.Stop(testserver.Fast)
	older := t.TempDir()
	if err := os.CopyFS(older, os.DirFS(store)); err != nil {
		t.Fatal(err)
	}
	s.Start()
	if err := put(within(t), p, 6, 10); err != nil {
		t.Fatal(err)
	}
	if _, err := take(within(t), p, 10); err != nil {
		t.Fatal(err)
	}
	s.Stop(testserver.Fast)
	if err := os.RemoveAll(store); err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(store, os.DirFS(older)); err != nil {
		t.Fatal(err)
	}
	// The process is cut off until somebody else has written.
	s.Start()
	q, _, err := openAt(t, s.DSN(), 1, buffer.Options{TrimEvery: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	if err := put(within(t), q, 11, 40); err != nil {
		t.Fatal(err)
	}
	if ids, err := take(within(t), p, 30); !errors.Is(err, buffer.ErrLostEnd) {
		t.Errorf("%v came, and %v", ids, err)
	}
}
