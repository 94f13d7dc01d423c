package forward

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

// Input is where a loop reads. Read is called by one goroutine.
type Input interface {
	// Read waits for the next work. It returns io.EOF when there will be none, and otherwise only errors that do not go away, or context.Cause(ctx).
	Read(ctx context.Context) (*Work, error)
}

// failing is an input that reads ahead, and knows of a failure before it is read.
type failing interface {
	// Failure returns a channel that is closed at the failure, and what it was. It may be called before Read.
	Failure() (failed <-chan struct{}, why func() error)
}

// Loop moves messages from one input through a processor to one output.
//
// The fields are set before Run and not changed from then on. Run is called once.
type Loop struct {
	Input Input
	// Processor is the middle. nil: messages go on as they are.
	Processor   Processor
	Output      Output
	DeadLetters DeadLetters
	Events      Observer
	Logger      *slog.Logger
}

// Run moves messages until reading ends or the input does, and then finishes what is in flight for as long as ctx lives. It returns nil after the end of the
// input or of reading; other errors mean that something is wrong that does not go away by itself.
func (l *Loop) Run(ctx, reading context.Context) error {
	reading, stop := context.WithCancel(reading)
	defer stop()
	works, working := errgroup.WithContext(ctx)
	// A work that fails ends the reading too: the input may have nothing more, and then nobody would learn of the failure.
	defer context.AfterFunc(working, stop)()
	ended := make(chan struct{}) // Pipe.InputEnded
	p := &Pipe{
		Output: l.Output, DeadLetters: l.DeadLetters, Events: l.Events, Logger: l.Logger,
		Reading: reading, InputEnded: ended, works: works, ctx: working,
	}
	acks, failure := lanes{ctx: ctx, open: map[*lane]bool{}}, l.watch(reading, stop)
	err := l.read(p, &acks)
	switch {
	case errors.Is(err, io.EOF):
		close(ended)
		err = nil
	default:
		stop()
	}
	err = errors.Join(err, ignoreEnd(ctx, works.Wait()))
	// The input is asked last: works that it starved may have failed because of it.
	if why := failure(); err == nil {
		err = why
	}
	// All works have ended, so nothing more becomes due. What is due is acknowledged before Run returns.
	acks.close()
	return err
}

// read gives works to the processor until the input ends (io.EOF), reading does, or something fails.
func (l *Loop) read(p *Pipe, acks *lanes) error {
	var processor Processor = &Map{}
	if l.Processor != nil {
		processor = l.Processor
	}
	process := processor.Start(p)
	for {
		begun := time.Now()
		w, err := l.Input.Read(p.Reading)
		if err != nil {
			if !errors.Is(err, io.EOF) && p.Reading.Err() != nil {
				return nil
			}
			return err
		}
		bytes := 0
		for i := range w.Messages {
			bytes += len(w.Messages[i].Value)
		}
		l.Events.Read(len(w.Messages), bytes, time.Since(begun))
		acks.enter(w)
		if err := process.Take(p.ctx, w); err != nil {
			if p.ctx.Err() != nil {
				return nil // the works say why
			}
			return err
		}
	}
}

// watch ends the reading when the input fails, at once: works that are tried again and again, or have taken all room, would keep that from everybody. The
// function that it returns says why.
func (l *Loop) watch(reading context.Context, stop func()) (failure func() error) {
	f, ok := l.Input.(failing)
	if !ok {
		return func() error { return nil }
	}
	failed, why := f.Failure()
	var wait sync.WaitGroup
	wait.Go(func() {
		select {
		case <-failed:
			stop()
		case <-reading.Done():
		}
	})
	return func() error {
		stop()
		wait.Wait()
		select {
		case <-failed:
			return why()
		default:
			return nil
		}
	}
}

// ignoreEnd is nil for an error that only says that ctx ended: what was in flight is not acknowledged, and that is no failure.
func ignoreEnd(ctx context.Context, err error) error {
	if err != nil && ctx.Err() != nil && (errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Cause(ctx))) {
		return nil
	}
	return err
}

// lanes are those of the works that a Run has read, with the goroutines that acknowledge.
type lanes struct {
	ctx  context.Context // of the acknowledgements; it outlives the reading
	open map[*lane]bool  // each is closed once, by close
	acks sync.WaitGroup
}

// enter gives a work its place in its lane.
func (l *lanes) enter(w *Work) {
	if !l.open[w.track] {
		l.open[w.track] = true
		if w.track.acking != ackAtOnce {
			l.acks.Go(func() { w.track.acknowledge(l.ctx) })
		}
	}
	w.track.enter(w)
}

// close returns once all that is done is acknowledged, or ctx has ended.
func (l *lanes) close() {
	for lane := range l.open {
		close(lane.closing)
	}
	l.acks.Wait()
}
