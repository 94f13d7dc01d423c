package forward

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/levada-io/levada/internal/dataplane/function"
	"github.com/levada-io/levada/internal/flow"
)

// Stage applies user code to messages; a chain of them is what a vertex does between its input and its output.
type Stage struct {
	// Name is the vertex or role for ids: the results of a message m are m/{Name}.
	Name string
	// Apply returns an outcome for each message, or that ctx ended.
	Apply func(ctx context.Context, in []flow.Message) ([]function.Outcome, error)
	// ApplyPart is Apply with a Part, for user code that may be slow; nil if there is none.
	ApplyPart func(ctx context.Context, in []flow.Message, part *function.Part) ([]function.Outcome, error)
	// Isolate finds out about suspects; nil where there cannot be any.
	Isolate func(ctx context.Context, in []flow.Message) ([]function.Outcome, error)
	// Retry is what to do with messages for which user code asks to be tried again.
	Retry RetryStrategy
	// NeedsIDs says that Apply looks at ids.
	NeedsIDs bool
}

// Map is the processor that makes results of each message by itself, under the position of the message.
type Map struct {
	// Stages are applied one after the other. Without any, messages go on as they are.
	Stages []Stage
	// InFlight is how many works are in flight at a time, without those that only wait for a retry. Default 8.
	InFlight int
	// Ordered keeps the order of messages whatever happens: one work at a time, retries in place.
	Ordered bool
	// MaxLater bounds the messages that wait to be tried again. Default 10,000.
	MaxLater int
	// FlushAfter is how long a result may wait for others of its work before it leaves. Default 100 ms: everything of a quick function leaves together.
	FlushAfter time.Duration
}

// flushAfter is the default of Map.FlushAfter.
const flushAfter = 100 * time.Millisecond

// Start implements Processor.
func (m *Map) Start(p *Pipe) Process {
	own := *m
	if own.InFlight <= 0 {
		own.InFlight = 8
	}
	if own.Ordered {
		own.InFlight = 1
	}
	if own.MaxLater <= 0 {
		own.MaxLater = 10_000
	}
	if own.FlushAfter <= 0 {
		own.FlushAfter = flushAfter
	}
	return &run{Map: own, Pipe: p, room: make(chan struct{}, own.InFlight), left: make(chan struct{}, 1)}
}

// run is one run of a Map.
type run struct {
	Map
	*Pipe
	// room holds one for each work in flight that does not only wait for a retry. Invariant: len(room) <= InFlight.
	room chan struct{}
	left chan struct{} // has room for 1: a work left the room

	mu      sync.Mutex
	waiting int // messages to be tried again whose works have left the room. Invariant: waiting <= MaxLater

	sites sites
}

// Take implements Process.
func (r *run) Take(ctx context.Context, w *Work) error {
	r.Go(func(ctx context.Context) error { return r.process(ctx, w) })
	return r.waitForRoom(ctx, w.Short)
}

// smallInFlight is how many works may be in flight before the next is read when the input had no more than it gave: meanwhile more arrives, and the next
// work is larger. At low rates that costs no latency, and at higher ones it saves most of the work.
const smallInFlight = 2

func (r *run) waitForRoom(ctx context.Context, short bool) error {
	select {
	case r.room <- struct{}{}:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	limit := r.InFlight - 1
	if short {
		limit = min(limit, smallInFlight)
	}
	for len(r.room) > limit {
		select {
		case <-r.left:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}

// leaveRoom makes room for another work, once for each that has come in.
func (r *run) leaveRoom(ctx context.Context) {
	select {
	case <-r.room:
	case <-ctx.Done(): // the reader may have gone without putting anything there
	}
	select {
	case r.left <- struct{}{}:
	default:
	}
}

// park takes messages that wait out of the count of works in flight, unless too many wait already.
func (r *run) park(n int) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.waiting+n > r.MaxLater {
		return false
	}
	r.waiting += n
	return true
}

// unpark ends what park began.
func (r *run) unpark(n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.waiting -= n
}

// needsIDs reports whether a stage looks at ids. They are made only then, and for what is tried again.
func (m *Map) needsIDs() bool {
	return slices.ContainsFunc(m.Stages, func(s Stage) bool { return s.NeedsIDs })
}

// strategy is that of the stage that has one.
func (m *Map) strategy() (s RetryStrategy) {
	for i := range m.Stages {
		if m.Stages[i].Retry != (RetryStrategy{}) {
			s = m.Stages[i].Retry
		}
	}
	return s
}
