package buffer_test

import (
	"errors"
	"fmt"
	"testing"

	"github.com/levada-io/levada/internal/dataplane/buffer"
	"github.com/levada-io/levada/internal/dataplane/buffer/membuffer"
)

// TestAWriterElsewhereStopsWhenTheStoreLostItsEnd loses blocks under a writer whose reader is in another process. What it is given then has the place of a block
// that the reader has behind it: acknowledged to a source, it would never be read. It leaves the decision to the reader, and another writer does not begin before it.
func TestAWriterElsewhereStopsWhenTheStoreLostItsEnd(t *testing.T) {
	s := membuffer.NewStore(1 << 20)
	w, err := buffer.OpenWriter(t.Context(), s.Open(), buffer.Options{Name: "test"})
	if err != nil {
		t.Fatal(err)
	}
	p := open(t, s, -1)
	for pos := uint64(1); pos <= 6; pos++ {
		if err := write(w, "in/0@x", pos, pos, 0, 10); err != nil {
			t.Fatal(err)
		}
		p.Done(t.Context(), must(p.Read(t.Context())))
	}
	if err := p.Trim(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.LoseEnd(4)
	if _, err := buffer.OpenWriter(t.Context(), s.Open(), buffer.Options{Name: "test"}); !errors.Is(err, buffer.ErrLostEnd) {
		t.Errorf("a writer begins in a store that lost its end: %v", err)
	}
	for range 2 {
		if err := write(w, "in/0@x", 7, 7, 0, 10); !errors.Is(err, buffer.ErrLostEnd) {
			t.Fatalf("a block that took the place of a lost one was acknowledged: %v", err)
		}
	}
	if err := w.Health(); !errors.Is(err, buffer.ErrDamaged) {
		t.Errorf("healthy: %v", err)
	}
	p = open(t, s, -1) // the reader starts again: all that was lost was done
	w, err = buffer.OpenWriter(t.Context(), s.Open(), buffer.Options{Name: "test"})
	if err != nil {
		t.Fatal(err)
	}
	for pos := uint64(7); pos <= 9; pos++ {
		if err := write(w, "in/0@x", pos, pos, 0, 10); err != nil {
			t.Fatal(err)
		}
	}
	if got := fmt.Sprint(rest(t, p)); got != "[in/0@x/7 in/0@x/8 in/0@x/9]" {
		t.Errorf("got %v", got)
	}
}

// TestWhatAnotherProcessWroteIsTakenOffOnce does it while this process writes as well. The count fell below what was there: a buffer was over its limit by that.
func TestWhatAnotherProcessWroteIsTakenOffOnce(t *testing.T) {
	s := membuffer.NewStore(1 << 20)
	p := open(t, s, -1)
	w, err := buffer.OpenWriter(t.Context(), s.Open(), buffer.Options{Name: "test"})
	if err != nil {
		t.Fatal(err)
	}
	if err := write(w, "b/0", 1, 5, 0, 10); err != nil {
		t.Fatal(err)
	}
	if err := write(p, "a/0", 1, 7, 0, 10); err != nil {
		t.Fatal(err)
	}
	p.Done(t.Context(), must(p.Read(t.Context())))
	if p.Pending() != 7 {
		t.Errorf("%d pending, want 7", p.Pending())
	}
}
