package forward

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/levada-io/levada/internal/dataplane/deadletter"
	"github.com/levada-io/levada/internal/flow"
)

// Processor is the middle of a Loop: it makes results of works and writes them. The package comment says what it must keep.
type Processor interface {
	// Start begins a run, which ends with Loop.Run. Several loops may run one processor at the same time.
	Start(p *Pipe) Process
}

// Process is one run of a Processor.
type Process interface {
	// Take begins with the next work, and returns once it takes another one: what it began goes on. It is called by one goroutine, in the order of reading,
	// also for works without messages. It returns an error only if ctx ended, or what ends the loop.
	Take(ctx context.Context, w *Work) error
}

// Pipe is what a Loop gives to its processor. Its methods may be called concurrently.
type Pipe struct {
	Output      Output      // where results are written
	DeadLetters DeadLetters // where messages go that no attempt helps
	Events      Observer
	Logger      *slog.Logger
	// Reading ends when nothing new shall be begun: the vertex drains, or the loop failed. What is held then is not finished, and is read again at the next start.
	Reading context.Context
	// InputEnded is closed when the input has come to its end. Everything that is held can be finished then.
	InputEnded <-chan struct{}

	works *errgroup.Group
	// ctx ends with the first error of the processor, or with that of Loop.Run.
	ctx context.Context
}

// Go runs f beside the reading. Loop.Run waits for it, and its first error ends the loop. A goroutine that waits for more to do must end with Reading,
// or after InputEnded. Go may be called by Start, by Take, and by what runs in a goroutine of Go.
func (p *Pipe) Go(f func(ctx context.Context) error) {
	p.works.Go(func() error {
		err := f(p.ctx)
		if errors.Is(err, errDraining) {
			return nil // what was not begun, or waits for a retry, is not acknowledged, and comes again at the next start
		}
		return err
	})
}

// Finish says that everything made of the messages from..to-1 of a work is durable in every output. Each message is finished once, in any order, and a work
// without messages with from and to 0. It waits for nothing outside.
func (p *Pipe) Finish(ctx context.Context, w *Work, from, to int) {
	begun := time.Now()
	w.track.finish(ctx, w, from, to)
	p.Events.Acked(to-from, time.Since(begun))
}

// Consume says that the processor keeps the messages from..to-1 of a work, and finishes them later: in minutes perhaps. They take no room in the buffer from then
// on, and the input counts as read to its end without them: the processor finishes what it keeps when InputEnded is closed. They are not done: after a crash they
// are read again. Each message is consumed once at most, and before it is finished. Messages that are finished soon need not be.
func (p *Pipe) Consume(w *Work, from, to int) {
	if w.Consume != nil {
		w.Consume(from, to)
	}
}

// DeadLetters takes messages that are not processed.
type DeadLetters interface {
	// Put returns once the message is durable there. Putting the same message again changes nothing.
	Put(ctx context.Context, m *flow.Message, f *deadletter.Failure) error
}
