package engine

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/levada-io/levada/internal/dataplane/drain"
	"github.com/levada-io/levada/internal/metrics"
)

// Process runs pipelines, or single vertices of them, and ends them in order. The exported fields are set before Run and not changed from then on.
type Process struct {
	// Pipelines must be built. Their builder closes them.
	Pipelines []*Pipeline
	// Budget bounds the end, once it has begun.
	Budget *Budget
	// Owned ends, with its cause, when another process has taken over one of the pipelines. Everything here is cut short then: it would be done twice.
	Owned  context.Context // a lifetime that ends beside that of Run
	Broker Broker
	// Services run beside the vertices and end after them. An error of one ends the process.
	Services []func(context.Context) error
	// Started is called once every vertex runs; nil for nothing.
	Started func()
	Logger  *slog.Logger

	// ready is true between Started and the begin of the end. Traffic is sent only then.
	ready    atomic.Bool
	started  atomic.Bool // set before ready; stays true
	cutShort atomic.Bool // messages in flight were not finished in time; set at most once, in the third stage
}

// stages are the lifetimes of a process. They end in the order of the fields; see the package comment.
//
// Invariant: none ends before the one in front of it, but for working, which the budget of time or the loss of ownership may cut short.
type stages struct {
	sourcing, reading, working, serving context.Context // four lifetimes, which end one after the other
	endSourcing, endReading, endServing context.CancelFunc
	endWork                             context.CancelCauseFunc

	// sources and others wait for Run of the vertices, ends for the pipelines to end by themselves, services for what ends last.
	sources, others, ends sync.WaitGroup
	services              errgroup.Group // their errors go to failed, so that the first one ends the process
	// failed has the first error that ends the process, until it is taken. Errors that follow from it are dropped.
	failed chan error
}

// fail ends the process with an error, unless another has come first.
func (s *stages) fail(err error) {
	if err != nil {
		select {
		case s.failed <- err:
		default:
		}
	}
}

// newStages begins all lifetimes.
func newStages(ctx context.Context) *stages {
	s := &stages{failed: make(chan error, 1)}
	after := context.WithoutCancel(ctx) // the end of ctx begins the end, and does not cut it short
	s.sourcing, s.endSourcing = context.WithCancel(ctx)
	s.reading, s.endReading = context.WithCancel(after)
	s.working, s.endWork = context.WithCancelCause(after)
	s.serving, s.endServing = context.WithCancel(after)
	return s
}

// HasStarted reports whether every vertex has run.
func (p *Process) HasStarted() bool { return p.started.Load() }

// CutShort reports whether messages in flight were not finished in time: they are processed again by the next process.
func (p *Process) CutShort() bool { return p.cutShort.Load() }

// Run runs the pipelines until ctx ends, all of them have ended by themselves, or something fails that cannot go away by itself; only then it returns an error.
func (p *Process) Run(ctx context.Context) error {
	s := newStages(ctx)
	defer s.endAll()
	defer context.AfterFunc(p.Owned, func() {
		s.endWork(context.Cause(p.Owned))
		s.endSourcing()
	})()
	p.serve(s)
	err := p.start(s)
	switch {
	case err == nil:
		err = p.wait(ctx, s)
	case ctx.Err() != nil:
		err = nil
	default:
		select { // a function that cannot be started says more of itself
		case err = <-s.failed:
		default:
		}
	}
	p.ready.Store(false) // before anything stops, so that nothing new is sent here
	if e := p.drain(ctx, s); err == nil {
		err = e
	}
	if e := s.services.Wait(); e != nil && err == nil {
		err = e
	}
	if p.Owned.Err() != nil {
		return context.Cause(p.Owned)
	}
	return err
}

// endAll releases what drain has not ended.
func (s *stages) endAll() {
	s.endSourcing()
	s.endReading()
	s.endWork(nil)
	s.endServing()
}

// serve starts what ends last.
func (p *Process) serve(s *stages) {
	for _, pl := range p.Pipelines {
		for _, v := range pl.vertices {
			s.services.Go(func() error { s.fail(v.Serve(s.serving)); return nil })
		}
	}
	for _, service := range p.Services {
		s.services.Go(func() error { s.fail(service(s.serving)); return nil })
	}
	s.services.Go(func() error { p.sample(s.serving); return nil })
	s.services.Go(func() error { p.warnOfDuplicates(s.serving); return nil })
}

// start runs the vertices once all are ready: a source that reads before the vertices behind it can work would only fill their buffers.
func (p *Process) start(s *stages) error {
	for _, pl := range p.Pipelines {
		for _, v := range pl.vertices {
			if err := v.Ready(s.sourcing, p.Logger.With("pipeline", pl.Name)); err != nil {
				return err
			}
		}
	}
	for _, pl := range p.Pipelines {
		for _, v := range pl.vertices {
			d, of := drain.Context{Work: s.working, Intake: s.reading}, &s.others
			if v.IsSource() {
				d.Intake, of = s.sourcing, &s.sources
			}
			of.Go(func() {
				s.fail(v.Run(d))
				pl.vertexEnded(v)
			})
		}
		s.ends.Go(func() {
			// The end of sourcing is not an error here: the process ends then, and not because everything is delivered.
			if err := pl.end(s.sourcing, p.Logger); err != nil && s.sourcing.Err() == nil {
				s.fail(fmt.Errorf("%s %s: %w", pl.Kind, pl.Name, err))
				<-s.sourcing.Done()
			}
		})
	}
	p.started.Store(true)
	p.ready.Store(true)
	if p.Started != nil {
		p.Started()
	}
	return nil
}

// wait returns when it is time to end, with the error that is the reason.
func (p *Process) wait(ctx context.Context, s *stages) error {
	done := make(chan struct{})
	go func() { // ends with the pipelines, at the latest with sourcing
		s.ends.Wait()
		for _, pl := range p.Pipelines {
			if !pl.Finished() {
				return
			}
		}
		close(done)
	}()
	select {
	case <-done:
	case <-ctx.Done():
		p.Logger.Info("process is stopping, finishing messages in flight", "reason", context.Cause(ctx), "at_most", p.Budget.Total())
	case err := <-s.failed:
		return err
	case <-p.Owned.Done():
	}
	return nil
}

// drain goes through the stages of the end. It returns the error of a vertex that failed meanwhile.
func (p *Process) drain(ctx context.Context, s *stages) (err error) {
	deadline := time.AfterFunc(p.Budget.Work(), func() {
		p.Logger.Warn("messages in flight are not finished in time and are left for the next start")
		p.cutShort.Store(true)
		s.endWork(errors.New("the time to drain is over"))
	})
	defer deadline.Stop()
	s.endSourcing()
	s.ends.Wait() // they look at partitions, which close after this
	s.sources.Wait()
	s.endReading()
	s.others.Wait()
	s.endWork(nil)
	select {
	case err = <-s.failed: // all vertices have ended, and services have not been asked to
	default:
	}
	p.recount(ctx)
	patience := p.Budget.Functions()
	for _, pl := range p.Pipelines {
		for _, v := range pl.vertices {
			v.StopWithin(patience)
		}
	}
	s.endServing()
	return err
}

// recount makes the counts of the result exact. It takes no longer than functions may take to end.
func (p *Process) recount(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), min(time.Second, p.Budget.Functions()))
	defer cancel()
	for _, pl := range p.Pipelines {
		for _, v := range pl.vertices {
			v.recount(ctx)
		}
	}
}

// Abandon ends the processes of user code, which would outlive this one. Everything else ends with the process, as after a kill, which loses nothing.
func (p *Process) Abandon() {
	for _, pl := range p.Pipelines {
		for _, v := range pl.vertices {
			for _, f := range v.Functions() {
				if pid := f.PID(); pid > 0 {
					_ = syscall.Kill(-pid, syscall.SIGKILL)
				}
			}
		}
	}
}

// sample takes what is pending into the averages of the metrics, until ctx ends.
func (p *Process) sample(ctx context.Context) {
	tick := time.NewTicker(metrics.SampleEvery)
	defer tick.Stop()
	for {
		for _, pl := range p.Pipelines {
			pl.Stats(ctx)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}
