package buffertest

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/levada-io/levada/internal/dataplane/buffer"
)

// Cases in which writers and the reader of a partition are in different processes: all that they know of each other is in the store.

// elsewhere opens a Writer as another process would, and runs it.
func elsewhere(t *testing.T, h Harness, opt buffer.Options) *buffer.Writer {
	t.Helper()
	opt.Name = "test"
	w, err := buffer.OpenWriter(ctx(t), h.Open(t), opt)
	if err != nil {
		t.Fatalf("open a writer: %v", err)
	}
	run(t, w.Run)
	return w
}

// run runs one end of a partition until the test ends.
func run(t *testing.T, do func(context.Context) error) {
	c, stop := context.WithCancel(ctx(t))
	ended := make(chan error, 1)
	go func() { ended <- do(c) }()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Errorf("run: %v", err)
		}
	})
}

// eventually waits until what another process did is seen.
func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for c := ctx(t); !is(); {
		select {
		case <-time.After(5 * time.Millisecond):
		case <-c.Done():
			t.Fatalf("never: %s", what)
		}
	}
}

// isFull fails unless a writer waits for room.
func isFull(t *testing.T, w *buffer.Writer) {
	t.Helper()
	short, cancel := context.WithTimeout(ctx(t), 50*time.Millisecond)
	defer cancel()
	if err := w.WaitForRoom(short); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("room in a full buffer, with %d of %d pending: %v", w.Pending(), w.Limit(), err)
	}
	if w.Reserve() {
		t.Fatalf("room was reserved in a full buffer, with %d of %d pending", w.Pending(), w.Limit())
	}
}

// writerLeavesReaderAlone would fail with a writer that resumes a cursor, as opening a partition does: the reader would be given its blocks again, or none.
func writerLeavesReaderAlone(t *testing.T, h Harness) {
	p := open(t, h, buffer.Options{})
	write(t, p, "a/0", 1, 10, 0)
	write(t, p, "a/0", 11, 20, 0)
	_, held := read(t, p, 10, false)
	if err := p.Trim(ctx(t)); err != nil {
		t.Fatal(err)
	}
	beside := h.Open(t)
	state := func() []byte {
		s, err := beside.LoadState(ctx(t))
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	before, cursors := state(), h.cursors(t)
	w, err := buffer.OpenWriter(ctx(t), h.Open(t), buffer.Options{Name: "test"})
	if err != nil {
		t.Fatal(err)
	}
	write(t, w, "b/0", 1, 10, 0)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if now := h.cursors(t); !slices.Equal(now, cursors) {
		t.Errorf("the store has the cursors %v, and had %v before a writer was opened and closed", now, cursors)
	}
	if !bytes.Equal(state(), before) {
		t.Error("the saved state of the reader changed")
	}
	ids, _ := read(t, p, 10, true)
	want(t, ids, "a/0", 11, 20)
	ids, _ = read(t, p, 10, true)
	want(t, ids, "b/0", 1, 10)
	p.Done(ctx(t), held)
	nothingMore(t, p)
	if p.Pending() != 0 {
		t.Errorf("%d pending when all is done", p.Pending())
	}
}

func (h Harness) cursors(t *testing.T) []string {
	if h.Cursors == nil {
		return nil
	}
	return h.Cursors(t)
}

// writerElsewhereSeesRoom would wait without end with a count of one process: nothing of its own ever becomes done.
func writerElsewhereSeesRoom(t *testing.T, h Harness) {
	opt := buffer.Options{MaxLength: 100, UsageLimit: 50, SaveEvery: 20 * time.Millisecond}
	p := open(t, h, opt)
	run(t, p.Run)
	w := elsewhere(t, h, opt)
	write(t, w, "a/0", 1, 30, 0)
	write(t, w, "a/0", 31, 50, 0)
	isFull(t, w)
	waiting := make(chan error, 1)
	go func() { waiting <- w.WaitForRoom(ctx(t)) }()
	ids, _ := read(t, p, 30, true)
	want(t, ids, "a/0", 1, 30)
	if err := <-waiting; err != nil {
		t.Fatal(err)
	}
	eventually(t, "20 are pending for the writer", func() bool { return w.Pending() == 20 })
	// A part of a block counts as well.
	_, last := read(t, p, 20, false)
	p.DonePart(ctx(t), last, 0, 5)
	eventually(t, "15 are pending for the writer", func() bool { return w.Pending() == 15 })
	p.DonePart(ctx(t), last, 5, 20)
	eventually(t, "nothing is pending for the writer", func() bool { return w.Pending() == 0 })
	if p.Pending() != 0 {
		t.Errorf("%d are pending for the reader", p.Pending())
	}
}

// fullForAll would let each process fill the buffer for itself with counts of their own.
func fullForAll(t *testing.T, h Harness) {
	opt := buffer.Options{MaxLength: 100, UsageLimit: 50, SaveEvery: 20 * time.Millisecond}
	shared := opt
	shared.Shared = true
	p := open(t, h, shared) // the reader's process writes as well
	run(t, p.Run)
	writers := []*buffer.Writer{elsewhere(t, h, opt), elsewhere(t, h, opt), p.Writer}
	write(t, writers[0], "a/0", 1, 25, 0)
	write(t, writers[2], "b/0", 1, 25, 0)
	late := elsewhere(t, h, opt) // one that begins now knows of it, too
	writers = append(writers, late)
	for _, w := range writers {
		eventually(t, "all processes see 50 messages", func() bool { return w.Pending() == 50 })
		isFull(t, w)
	}
	woken := make(chan error, len(writers))
	for _, w := range writers {
		go func() { woken <- w.WaitForRoom(ctx(t)) }()
	}
	read(t, p, 25, true)
	for range writers {
		if err := <-woken; err != nil {
			t.Fatal(err)
		}
	}
	read(t, p, 25, true)
	for _, w := range writers {
		eventually(t, "nothing is pending for any process", func() bool { return w.Pending() == 0 })
	}
}

// killedWhileFollowed kills the store under a writer and a reader in different processes.
func killedWhileFollowed(t *testing.T, h Harness) {
	if h.Restart == nil {
		t.Skip("this store cannot be killed")
	}
	opt := buffer.Options{MaxLength: 100, UsageLimit: 50, SaveEvery: 20 * time.Millisecond}
	p := open(t, h, opt)
	run(t, p.Run)
	w, other := elsewhere(t, h, opt), elsewhere(t, h, opt)
	write(t, w, "a/0", 1, 50, 0)
	eventually(t, "the other writer sees 50 messages", func() bool { return other.Pending() == 50 })
	h.Restart(t)
	read(t, p, 50, true)
	if err := w.WaitForRoom(ctx(t)); err != nil {
		t.Fatal(err)
	}
	write(t, w, "a/0", 51, 100, 50)
	eventually(t, "the other writer sees the next 50 messages, and those alone", func() bool { return other.Pending() == 50 })
	ids, _ := read(t, p, 50, true)
	want(t, ids, "a/0", 51, 100)
	eventually(t, "nothing is pending for the writers", func() bool { return w.Pending() == 0 && other.Pending() == 0 })
}
