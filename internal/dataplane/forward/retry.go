package forward

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/levada-io/levada/internal/dataplane/deadletter"
	"github.com/levada-io/levada/internal/dataplane/function"
	"github.com/levada-io/levada/internal/flow"
)

// retry tries messages again until each is done or a dead letter, and writes what becomes of them.
func (f *flight) retry(ctx context.Context, later []Later) error {
	for len(later) > 0 {
		f.nameAll(later)
		if broken := take(&later, isBroken); len(broken) > 0 {
			if err := f.finishBroken(ctx, broken); err != nil {
				return err
			}
			continue
		}
		if f.Reading.Err() != nil {
			return errDraining
		}
		var more []Later
		var err error
		if suspects := take(&later, isSuspect); len(suspects) > 0 {
			more, err = f.retrySuspects(ctx, suspects)
		} else {
			more, err = f.retryDue(ctx, &later)
		}
		if err != nil {
			return err
		}
		later = append(later, more...)
	}
	return nil
}

// finishBroken dead-letters messages, and finishes them.
func (f *flight) finishBroken(ctx context.Context, broken []Later) error {
	if err := f.deadLetter(ctx, broken); err != nil {
		return err
	}
	for i := range broken {
		if l := &broken[i]; !l.Made || f.paid(l.index, 1) {
			f.Finish(ctx, f.w, l.index, l.index+1)
		}
	}
	return nil
}

// retrySuspects finds out which of the messages end the process of the function, with nothing else in flight. Those that do are Broken; the others go on as if they
// had never been suspected.
func (f *flight) retrySuspects(ctx context.Context, suspects []Later) ([]Later, error) {
	index, in, attempts := ascending(suspects)
	out, err := f.isolate(ctx, in)
	if err != nil {
		return nil, err
	}
	return f.settle(ctx, index, in, out, attempts, nil)
}

// retryDue waits until some of the messages are due, takes those, and tries them. It returns the ones of them that must be tried once more.
func (f *flight) retryDue(ctx context.Context, later *[]Later) (all []Later, err error) {
	due, err := f.awaitDue(ctx, later)
	if err != nil {
		return nil, err
	}
	for made := take(&due, func(l *Later) bool { return l.Made }); len(made) > 0; {
		to := made[0].To
		more, err := f.deliverAgain(ctx, take(&made, func(l *Later) bool { return l.To == to }))
		if err != nil {
			return nil, err
		}
		all = append(all, more...)
	}
	if len(due) == 0 {
		return all, nil
	}
	index, in, attempts := ascending(due)
	err = f.stream(ctx, 0, in, nil, func(which []int, out []function.Outcome) error {
		if which == nil {
			which = allOf(len(in))
		}
		more, err := f.settle(ctx, choose(index, which), choose(in, which), out, choose(attempts, which), nil)
		all = append(all, more...)
		return err
	})
	return all, err
}

// deliverAgain gives results to the output again, all for the same sink.
func (f *flight) deliverAgain(ctx context.Context, made []Later) ([]Later, error) {
	index, in, attempts := ascending(made)
	e := &Emission{Origin: f.w.Origin, work: f.w, In: in, Floor: f.w.track.Floor, Until: f.Reading, InPlace: f.Ordered, Again: map[string]int{}, To: made[0].To}
	open := map[int]int{} // results of each message that are given to the output now; what comes back in e.Later is taken off
	for k, i := range index {
		e.Again[in[k].ID] = attempts[k]
		open[i]++
	}
	e.index = slices.Compact(index)
	e.cover()
	if err := f.write(ctx, e, nil); err != nil {
		return nil, err
	}
	for i := range e.Later {
		open[e.Later[i].index]--
	}
	for _, i := range e.index {
		if open[i] > 0 && f.paid(i, open[i]) {
			f.Finish(ctx, f.w, i, i+1)
		}
	}
	return e.Later, nil
}

// again decides when a message is tried again, or what becomes of it instead.
func (r *run) again(l *Later, s RetryStrategy) {
	switch l.Outcome.Verdict {
	case function.Nacked:
		r.Events.Nacked(1)
		r.sites.report(r.Logger, "message nacked, redelivering", 1, "reason", l.Outcome.Reason, "attempt", l.Attempts, "delay", l.Outcome.Delay)
	case function.Retry:
		if l.Made {
			return // the output knows when
		}
	}
	was := l.Outcome.Verdict
	becomes, wait := decide(l.Outcome, s, l.Attempts)
	if l.Outcome = becomes; becomes.Verdict == was {
		l.Due = time.Now().Add(wait)
	} else if becomes.Verdict == function.Done {
		r.Events.Dropped("", 1, len(l.Message.Value), "retries-exhausted")
	}
}

// isBroken: no attempt helps. The message is a dead letter, at once.
func isBroken(l *Later) bool { return l.Outcome.Verdict == function.Broken }

// isSuspect: the function died, and the message may be why.
func isSuspect(l *Later) bool { return l.Outcome.Verdict == function.Suspect }

// nameAll gives ids to messages that wait: logs, dead letters and the counts of attempts go by id.
func (f *flight) nameAll(later []Later) {
	f.w.names()
	for i := range later {
		if m := &later[i].Message; m.ID == "" {
			m.ID = f.w.name(m.Pos)
		}
	}
}

// ascending takes messages apart, in the order of their indices.
func ascending(later []Later) (index []int, in []flow.Message, attempts []int) {
	slices.SortStableFunc(later, func(a, b Later) int { return a.index - b.index })
	for i := range later {
		index, in, attempts = append(index, later[i].index), append(in, later[i].Message), append(attempts, later[i].Attempts)
	}
	return index, in, attempts
}

// awaitDue waits until some of the messages are due, and takes them.
func (r *run) awaitDue(ctx context.Context, later *[]Later) ([]Later, error) {
	first := slices.MinFunc(*later, func(a, b Later) int { return a.Due.Compare(b.Due) })
	if err := r.sleepUntil(ctx, first.Due); err != nil {
		return nil, err
	}
	now := time.Now()
	return take(later, func(l *Later) bool { return !l.Due.After(now) }), nil
}

// errDraining ends work that was not begun, and the wait for a retry, when the process is about to stop: the message is not acknowledged, and comes again at
// the next start.
var errDraining = errors.New("stopping")

// sleepUntil waits until a message is due, unless the process is about to stop.
func (r *run) sleepUntil(ctx context.Context, due time.Time) error {
	t := time.NewTimer(time.Until(due))
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-r.Reading.Done():
		return errDraining
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// take takes the messages that match out of a list.
func take(from *[]Later, match func(*Later) bool) (taken []Later) {
	kept := (*from)[:0:0]
	for i := range *from {
		if l := &(*from)[i]; match(l) {
			taken = append(taken, *l)
		} else {
			kept = append(kept, *l)
		}
	}
	*from = kept
	return taken
}

// isolate finds out which of the messages end the process of a function. With several stages, each message goes through them alone.
func (r *run) isolate(ctx context.Context, in []flow.Message) ([]function.Outcome, error) {
	if len(r.Stages) == 1 {
		return r.Stages[0].Isolate(ctx, in)
	}
	alone := &run{Map: r.Map, Pipe: r.Pipe}
	alone.Stages = slices.Clone(r.Stages)
	for i := range alone.Stages {
		s := &alone.Stages[i]
		if s.ApplyPart = nil; s.Isolate != nil {
			s.Apply = s.Isolate
		}
	}
	return alone.applyStages(ctx, 0, in)
}

// deadLetter stores messages as dead letters.
func (r *run) deadLetter(ctx context.Context, broken []Later) error {
	for i := range broken {
		l := &broken[i]
		failure := l.Outcome.Failure
		if failure == nil {
			failure = &deadletter.Failure{Reason: deadletter.Error, Error: l.Outcome.Reason, Attempts: l.Attempts}
		}
		if err := r.DeadLetters.Put(ctx, &l.Message, failure); err != nil {
			return err
		}
		r.Events.DeadLettered(1, failure.Reason)
		r.sites.report(r.Logger, "message dead-lettered", 1, "id", l.Message.ID, "reason", failure.Reason, "error", failure.Error)
	}
	return nil
}
