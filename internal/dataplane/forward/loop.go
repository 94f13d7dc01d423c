package forward

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/levada-io/levada/internal/dataplane/deadletter"
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

// Output is where a loop writes.
type Output interface {
	// Begin prepares to write what became of messages of a work. It does not wait.
	Begin(e *Emission)
	// Submit starts the writing. The emissions of a lane are submitted one after the other, and as long as the stages are quick in the order of their works.
	Submit(ctx context.Context, e *Emission) error
	// Wait returns once all is durable, but for what is left in e.Later: messages that are to be tried again, or that are never taken.
	Wait(ctx context.Context, e *Emission) error
}

// Emission is a part of a work on its way out.
type Emission struct {
	Work *Work
	// In are the messages, Out what became of them: for each its results. All are Done.
	In  []flow.Message
	Out []function.Outcome
	// index are the places of In in Work.Messages, ascending.
	index []int
	// Stage made the results: their ids say so. Empty if there is none, and the messages themselves go on; Out is nil then.
	Stage string
	// Spans are the positions covered, where it is not all from Lo to Hi.
	Lo, Hi uint64
	Spans  []flow.Span
	// Floor is what may be promised about the lane; asked for when it is needed.
	Floor func() uint64
	// Until ends when nothing new shall be begun: an output that waits to try something again leaves it in Later.
	Until context.Context
	// InPlace: what can be tried again is tried until it is done, and nothing overtakes it.
	InPlace bool
	// Again: In are results that the output left in Later, for the sink To if that is not empty, and Again is how often each was tried, by id.
	Again map[string]int
	To    function.Role
	// Later are messages that the output could not deliver.
	Later []Later
	state any
}

// Later is a message to be tried again, or to be put aside.
type Later struct {
	Message flow.Message
	// Made says that the message is a result of the stages: it goes to the output again, and through no stage. To is the sink that it is for.
	Made    bool
	To      function.Role
	Outcome function.Outcome
	index   int
	// Attempts is how often it was tried, Due when it is tried next.
	Attempts int
	Due      time.Time
}

// DeadLetters takes messages that are put aside.
type DeadLetters interface {
	// Put returns once the message is durable there. Putting the same message again changes nothing.
	Put(ctx context.Context, m *flow.Message, f *deadletter.Failure) error
}

// Loop moves messages from one input to one output.
type Loop struct {
	Input  Input
	Stages []Stage
	Output Output
	// InFlight is how many works are in flight at a time, without those that only wait for a retry. Default 8.
	InFlight int
	// Ordered keeps the order of messages whatever happens: one work at a time, retries in place.
	Ordered bool
	// MaxLater bounds the messages that wait to be tried again. Default 10,000.
	MaxLater int
	// FlushAfter is how long a result may wait for others of its work before it leaves. Default 100 ms: everything of a quick function leaves together.
	FlushAfter  time.Duration
	DeadLetters DeadLetters
	Events      Observer
	Logger      *slog.Logger
}

// Run moves messages until reading ends or the input does, and then finishes what is in hand for as long as ctx lives. It returns nil after the end of the
// input or of reading; other errors mean that something is wrong that does not go away by itself.
func (l *Loop) Run(ctx, reading context.Context) error {
	if l.InFlight <= 0 {
		l.InFlight = 8
	}
	if l.Ordered {
		l.InFlight = 1
	}
	if l.MaxLater <= 0 {
		l.MaxLater = 10_000
	}
	if l.FlushAfter <= 0 {
		l.FlushAfter = flushAfter
	}
	reading, stop := context.WithCancel(reading)
	defer stop()
	r := &run{Loop: l, reading: reading, room: make(chan struct{}, l.InFlight), later: make(chan struct{}, 1)}
	var acks sync.WaitGroup
	lanes := map[*lane]bool{}
	enter := func(w *Work) (<-chan struct{}, chan struct{}) {
		if a, ok := l.Input.(Acknowledger); ok && !lanes[w.track] {
			lanes[w.track] = true
			w.track.wake = make(chan struct{}, 1)
			acks.Go(func() { w.track.acknowledge(ctx, a.Acknowledge) })
		}
		return w.track.enter(w)
	}
	works, working := errgroup.WithContext(ctx)
	// A work that fails ends the reading too: the input may have nothing more, and then nobody would learn of the failure.
	defer context.AfterFunc(working, stop)()
	// So does an input that has failed, at once: works that are tried again and again, or have taken all room, would keep that from everybody.
	watched := make(chan struct{})
	failure := func() error { return nil }
	if f, ok := l.Input.(failing); ok {
		failed, why := f.Failure()
		acks.Go(func() {
			select {
			case <-failed:
				stop()
			case <-watched:
			}
		})
		failure = func() error {
			select {
			case <-failed:
				return why()
			default:
				return nil
			}
		}
	}
	read := func() error {
		for {
			begun := time.Now()
			w, err := l.Input.Read(reading)
			if err != nil {
				if errors.Is(err, io.EOF) || reading.Err() != nil {
					return nil
				}
				return err
			}
			bytes := 0
			for i := range w.Messages {
				bytes += len(w.Messages[i].Value)
			}
			l.Events.Read(len(w.Messages), bytes, time.Since(begun))
			before, mine := enter(w)
			works.Go(func() error {
				err := r.process(working, w, before, mine)
				if errors.Is(err, errDraining) {
					return nil // what was not begun, or waits for a retry, is not acknowledged, and comes again at the next start
				}
				return err
			})
			if err := r.waitForRoom(working, w.Short); err != nil {
				return nil // the works say why
			}
		}
	}
	err := read()
	if err != nil {
		stop()
	}
	err = errors.Join(err, ignoreEnd(ctx, works.Wait()))
	if close(watched); err == nil {
		err = failure()
	}
	for lane := range lanes {
		close(lane.closing)
	}
	acks.Wait()
	return err
}

// failing is an input that reads ahead, and knows of a failure before it is read.
type failing interface {
	Failure() (failed <-chan struct{}, why func() error)
}

func ignoreEnd(ctx context.Context, err error) error {
	if err != nil && ctx.Err() != nil && (errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Cause(ctx))) {
		return nil
	}
	return err
}

// run is one Run of a loop.
type run struct {
	*Loop
	reading context.Context
	room    chan struct{}
	later   chan struct{}

	mu      sync.Mutex
	waiting int // messages to be tried again

	sites sites
}

// smallInFlight is how many works may be in hand before the next is read when the input had no more than it gave: meanwhile more arrives, and the next
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
		case <-r.later: // a work left the room
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}

func (r *run) leaveRoom(ctx context.Context) {
	select {
	case <-r.room:
	case <-ctx.Done(): // the reader may have gone without putting anything there
	}
	select {
	case r.later <- struct{}{}:
	default:
	}
}

// park takes messages that wait out of the count of works in hand, unless too many wait already.
func (r *run) park(n int) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.waiting+n > r.MaxLater {
		return false
	}
	r.waiting += n
	return true
}

func (r *run) unpark(n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.waiting -= n
}

// maxResults is how many messages may be made of one: the place of a message in its block has positionBits, and a block is not divided within the results of one.
const maxResults = 1<<positionBits - 1 - maxBlockMessages

// maxResultBytes is how large they may be together: a block that is much larger than others is not read.
const maxResultBytes = flow.MaxBlockBytes / 2

// refuseOversize puts messages aside of which more was made than a block takes.
func refuseOversize(out []function.Outcome) {
	for i := range out {
		size := 0
		for j := range out[i].Results {
			m := &out[i].Results[j]
			size += len(m.Value) + len(m.Headers) + len(m.Metadata) + 64
		}
		if n := len(out[i].Results); n > maxResults || size > maxResultBytes {
			out[i] = function.Outcome{Verdict: function.Broken, Failure: &deadletter.Failure{
				Reason: deadletter.Oversize, Attempts: 1, Error: fmt.Sprintf("it made %d results of %d bytes; at most %d results and %d bytes can be made of a message", n, size, maxResults, maxResultBytes),
			}}
		}
	}
}

// applyStages runs the stages one after the other. The outcome of a message is done when all results of all stages are.
func (r *run) applyStages(ctx context.Context, in []flow.Message) ([]function.Outcome, error) {
	out, err := r.applyStage(ctx, &r.Stages[0], in)
	if err != nil || len(r.Stages) == 1 {
		return out, err
	}
	for k := 1; k < len(r.Stages); k++ {
		var flat []flow.Message
		var parent []int
		for i := range out {
			for j := range out[i].Results {
				m := out[i].Results[j]
				m.ID = flow.ChildID(in[i].ID, r.Stages[k-1].Name, j)
				flat, parent = append(flat, m), append(parent, i)
			}
		}
		if len(flat) == 0 {
			return out, nil
		}
		next, err := r.applyStage(ctx, &r.Stages[k], flat)
		if err != nil {
			return nil, err
		}
		for i := range out {
			out[i].Results = nil
		}
		for j, i := range parent {
			o := &out[i]
			o.Dropped += next[j].Dropped
			o.Results = append(o.Results, next[j].Results...)
			if next[j].Verdict > o.Verdict {
				// The worst of its results decides; it starts again from the first stage.
				dropped, results := o.Dropped, o.Results
				*o = next[j]
				o.Dropped, o.Results = dropped, results
			}
		}
	}
	return out, nil
}

func (r *run) applyStage(ctx context.Context, s *Stage, in []flow.Message) ([]function.Outcome, error) {
	begun := time.Now()
	out, err := s.Apply(ctx, in)
	if err != nil {
		return nil, err
	}
	r.applied(s, out, time.Since(begun))
	return out, nil
}

// applied counts what a stage made of messages.
func (r *run) applied(s *Stage, out []function.Outcome, took time.Duration) {
	results, dropped, failed := 0, 0, 0
	for i := range out {
		results += len(out[i].Results)
		dropped += out[i].Dropped
		if out[i].Verdict == function.Unbegun {
			continue
		}
		if out[i].Verdict != function.Done {
			failed++
		} else if len(out[i].Results) == 0 && out[i].Dropped == 0 {
			dropped++
		}
	}
	r.Events.Applied(s.Name, len(out), results, dropped, failed, took)
}
