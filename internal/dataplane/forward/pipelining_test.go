package forward_test

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/levada-io/levada/internal/dataplane/forward"
	"github.com/levada-io/levada/internal/dataplane/function"
	"github.com/levada-io/levada/internal/flow"
)

// storing is an output of which nothing is durable before as many works are submitted as it waits for.
type storing struct {
	wanted int

	mu        sync.Mutex
	submitted []uint64
	enough    chan struct{}
}

func (s *storing) Begin(e *forward.Emission) forward.PendingWrite { return &storingWrite{s, e} }

type storingWrite struct {
	*storing
	e *forward.Emission
}

func (s *storingWrite) Submit(context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.submitted = append(s.submitted, s.e.Lo); len(s.submitted) == s.wanted {
		close(s.enough)
	}
	return nil
}

func (s *storingWrite) Wait(ctx context.Context) error {
	select {
	case <-s.enough:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// TestWorksAreSubmittedBeforeThoseBeforeThemAreDurable: a work is submitted right after the one before it. It waited until that was durable, which cost a round
// trip to the broker for each work.
func TestWorksAreSubmittedBeforeThoseBeforeThemAreDurable(t *testing.T) {
	for name, stages := range map[string][]forward.Stage{
		"without a function": nil,
		"with a function":    {(&slowly{outcome: func(_ context.Context, m *flow.Message) function.Outcome { return echo(m) }}).stage()},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				out := &storing{wanted: 5, enough: make(chan struct{})}
				in := sourceOf(&list{messages: values(50), batch: 10})
				in.Limit = 10 // so that no batch is short, after which fewer are in flight
				begun := time.Now()
				if err := runLoop(t, &forward.Loop{Input: in, Output: out, Processor: &forward.Map{Stages: stages, FlushAfter: time.Minute}}); err != nil {
					t.Fatal(err)
				}
				if took := time.Since(begun); took > 0 {
					t.Errorf("5 works were durable after %v: one waited for another", took)
				}
				for i, lo := range out.submitted {
					if want := uint64(10*i + 1); lo != want {
						t.Errorf("submitted in the order %v", out.submitted)
						break
					}
				}
			})
		})
	}
}
