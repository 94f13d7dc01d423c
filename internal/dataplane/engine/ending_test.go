package engine

import (
	"errors"
	"testing"
)

// TestNothingIsInjectedIntoAnEndedVertex: a dead letter that is replayed while the run ends is refused, or processed before the end.
func TestNothingIsInjectedIntoAnEndedVertex(t *testing.T) {
	p := &Pipeline{ending: &ending{closed: map[string]bool{"out": true}}}
	if err := p.Inject("out", func() error { t.Error("it was written"); return nil }); !errors.Is(err, ErrEnding) {
		t.Errorf("error %v, want %v", err, ErrEnding)
	}
	wrote := false
	if err := p.Inject("in", func() error { wrote = true; return nil }); err != nil || !wrote {
		t.Errorf("error %v, written %t", err, wrote)
	}
}
