package forward

import (
	"context"

	"github.com/levada-io/levada/internal/dataplane/function"
	"github.com/levada-io/levada/internal/flow"
)

// ordered writes what is done in the order of the messages: nothing leaves before all before it has left, or is a dead letter.
type ordered struct {
	*flight
	// out is what became of the messages, as far as have says that this is known. All three slices have one element for each message of the work.
	out  []function.Outcome
	have []bool
	dead []bool // dead letters
	// next is the first message that has not left. Invariant: those before it have left or are dead letters, and none behind it has left. It never falls.
	next int
}

// inOrder takes the messages of a work through the stages, and writes them in order. Works of an ordered loop come one at a time, so the lane is in order, too.
func (f *flight) inOrder(ctx context.Context, index []int, broken []Later) error {
	n := len(f.w.Messages)
	o := &ordered{flight: f, out: make([]function.Outcome, n), have: make([]bool, n), dead: make([]bool, n)}
	for i := range broken {
		o.out[broken[i].index], o.have[broken[i].index] = broken[i].Outcome, true
	}
	if len(index) == 0 {
		return o.advance(ctx)
	}
	return f.stream(ctx, 0, f.w.pick(index), f.queued, func(which []int, out []function.Outcome) error {
		refuseOversize(out)
		if which == nil {
			which = allOf(len(index))
		}
		for k, i := range which {
			o.have[index[i]] = true
			if out != nil {
				o.out[index[i]] = out[k]
			}
		}
		return o.advance(ctx)
	})
}

// advance writes what is done, up to the first message of which nothing is known yet.
func (o *ordered) advance(ctx context.Context) error {
	for {
		if err := o.leaveDone(ctx); err != nil {
			return err
		}
		switch {
		case o.next == len(o.have) || !o.have[o.next]:
			return nil
		case o.dead[o.next]:
			o.Finish(ctx, o.w, o.next, o.next+1)
			o.next++
		case o.out[o.next].Verdict == function.Unbegun:
			return errDraining
		default:
			// Nothing may overtake it. All that wait are tried again together.
			if err := o.resolve(ctx, o.blocked()); err != nil {
				return err
			}
		}
	}
}

// leaveDone writes the messages from next on that are done.
func (o *ordered) leaveDone(ctx context.Context) error {
	from := o.next
	for o.next < len(o.have) && o.have[o.next] && o.out[o.next].Verdict == function.Done && !o.dead[o.next] {
		o.next++
	}
	if o.next == from {
		return nil
	}
	var out []function.Outcome
	if len(o.Stages) > 0 {
		out = o.out[from:o.next]
	}
	later, err := o.settle(ctx, allOf(len(o.have))[from:o.next], o.w.Messages[from:o.next], out, nil, nil)
	if err != nil {
		return err
	}
	return o.retry(ctx, later)
}

// blocked are the messages from next on that are to be tried again. Those that are dropped instead are done.
func (o *ordered) blocked() (later []Later) {
	for i := o.next; i < len(o.have); i++ {
		if !o.have[i] || o.out[i].Verdict == function.Done || o.out[i].Verdict == function.Unbegun {
			continue
		}
		l := Later{Message: o.w.Messages[i], Outcome: o.out[i], Attempts: 1, index: i}
		o.again(&l, o.strategy())
		if o.out[i] = l.Outcome; l.Outcome.Verdict != function.Done {
			later = append(later, l)
		}
	}
	return later
}

// resolve tries messages again, in place, until each is done or a dead letter.
func (o *ordered) resolve(ctx context.Context, later []Later) error {
	for len(later) > 0 {
		o.nameAll(later)
		if broken := take(&later, isBroken); len(broken) > 0 {
			if err := o.deadLetter(ctx, broken); err != nil {
				return err
			}
			for i := range broken {
				o.out[broken[i].index], o.dead[broken[i].index] = function.Outcome{}, true
			}
			continue
		}
		if o.Reading.Err() != nil {
			return errDraining
		}
		tried, try, err := o.due(ctx, &later)
		if err != nil {
			return err
		}
		more, err := o.attempt(ctx, tried, try)
		if err != nil {
			return err
		}
		later = append(later, more...)
	}
	return nil
}

// apply is a way to make results of messages.
type apply func(ctx context.Context, in []flow.Message) ([]function.Outcome, error)

// due takes the messages that are tried next, and says how: suspects are isolated, at once.
func (o *ordered) due(ctx context.Context, later *[]Later) ([]Later, apply, error) {
	if suspects := take(later, isSuspect); len(suspects) > 0 {
		return suspects, o.isolate, nil
	}
	tried, err := o.awaitDue(ctx, later)
	again := func(ctx context.Context, in []flow.Message) ([]function.Outcome, error) {
		return o.applyStages(ctx, 0, in)
	}
	return tried, again, err
}

// attempt tries messages once more, and returns those that are not done by that.
func (o *ordered) attempt(ctx context.Context, tried []Later, try apply) (later []Later, err error) {
	index, in, attempts := ascending(tried)
	outcomes, err := try(ctx, in)
	if err != nil {
		return nil, err
	}
	refuseOversize(outcomes)
	for k := range outcomes {
		l := Later{Message: in[k], Outcome: outcomes[k], Attempts: attempts[k] + 1, index: index[k]}
		if l.Outcome.Verdict != function.Done {
			l.Outcome.Results = nil
			o.again(&l, o.strategy())
		}
		if l.Outcome.Verdict != function.Done {
			later = append(later, l)
			continue
		}
		o.out[index[k]] = l.Outcome
	}
	return later, nil
}
