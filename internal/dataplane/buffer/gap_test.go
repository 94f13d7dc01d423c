package buffer_test

import (
	"context"
	"errors"
	"fmt"
	"testing"

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
