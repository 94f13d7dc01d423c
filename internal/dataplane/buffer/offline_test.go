package buffer_test

import (
	"errors"
	"slices"
	"testing"

	"github.com/levada-io/levada/internal/dataplane/buffer"
	"github.com/levada-io/levada/internal/dataplane/buffer/membuffer"
)

// What is pending is counted without becoming the reader, and what is discarded is known: written again it stays dropped.
func TestDiscardDropsWhatIsPendingAndCountsIt(t *testing.T) {
	s := membuffer.NewStore(small)
	p := open(t, s, -1)
	if err := errors.Join(write(p, "a/0", 1, 4, 0, 600), write(p, "b/0", 1, 2, 0, 10)); err != nil {
		t.Fatal(err)
	}
	if got := rest(t, p); len(got) != 6 {
		t.Fatal(got)
	}
	if err := errors.Join(write(p, "a/0", 5, 8, 0, 600), write(p, "b/0", 3, 5, 0, 10), p.Close(t.Context())); err != nil {
		t.Fatal(err)
	}
	c, err := buffer.Inspect(t.Context(), s.Open())
	if err != nil || c.Messages != 7 || !c.Written || c.Oldest.IsZero() || c.Reached["a/0"] != 8 || c.Reached["b/0"] != 5 {
		t.Fatalf("%+v, %v", c, err)
	}
	// Cut short before the state is stored, all is still there.
	if n, err := buffer.Discard(t.Context(), &dying{Driver: s.Open(), left: 0}); !errors.Is(err, errDead) || n != 0 {
		t.Fatal(n, err)
	}
	if c, err := buffer.Inspect(t.Context(), s.Open()); err != nil || c.Messages != 7 {
		t.Fatalf("%+v, %v", c, err)
	}
	// Cut short after it, they are dropped, and what they took is trimmed later.
	if n, err := buffer.Discard(t.Context(), &dying{Driver: s.Open(), left: 1}); !errors.Is(err, errDead) || n != 7 {
		t.Fatal(n, err)
	}
	if n, err := buffer.Discard(t.Context(), s.Open()); err != nil || n != 0 {
		t.Fatal(n, err)
	}
	s.ForgetIDs()
	p = open(t, s, -1)
	if p.Pending() != 0 {
		t.Errorf("%d pending", p.Pending())
	}
	if err := errors.Join(write(p, "a/0", 5, 8, 0, 600), write(p, "b/0", 3, 6, 0, 10)); err != nil {
		t.Fatal(err)
	}
	if got := rest(t, p); !slices.Equal(got, []string{"b/0/6"}) {
		t.Errorf("%v came", got)
	}
}

// A message that another process writes reaches the reader, which keeps its place.
func TestAWriterElsewhereDoesNotDisturbTheReader(t *testing.T) {
	s := membuffer.NewStore(1 << 20)
	p := open(t, s, -1)
	if err := write(p, "a/0", 1, 4, 0, 10); err != nil {
		t.Fatal(err)
	}
	held, err := p.Read(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	w, err := buffer.OpenWriter(t.Context(), s.Open(), buffer.Options{Name: "test"})
	if err != nil {
		t.Fatal(err)
	}
	if err := write(w, "byid/0", 1, 1, 0, 10); err != nil {
		t.Fatal(err)
	}
	if got := rest(t, p); !slices.Equal(got, []string{"byid/0/1"}) {
		t.Errorf("%v came", got)
	}
	p.Done(t.Context(), held)
	if got := p.Floor(); got != 2 {
		t.Errorf("floor %d", got)
	}
}
