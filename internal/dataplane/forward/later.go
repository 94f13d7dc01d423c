package forward

import (
	"context"
	"errors"
	"math"
	"math/rand/v2"
	"slices"
	"strconv"
	"time"

	"github.com/levada-io/levada/internal/dataplane/deadletter"
	"github.com/levada-io/levada/internal/dataplane/function"
	"github.com/levada-io/levada/internal/flow"
)

// RetryStrategy is retryStrategy of the manifest. The zero value tries for ever, with defaults that spare a broken service.
type RetryStrategy struct {
	Interval time.Duration
	// Steps is how often to try again; 0 for ever.
	Steps     int
	Factor    float64
	Cap       time.Duration
	Jitter    float64
	OnFailure OnFailure
}

// OnFailure is what to do with a message once all steps are used up.
type OnFailure string

// What can be done.
const (
	OnFailureRetry    OnFailure = "retry"
	OnFailureFallback OnFailure = "fallback"
	OnFailureDrop     OnFailure = "drop"
)

// Delay is how long to wait before the attempt-th further attempt, from 1.
func (s RetryStrategy) Delay(attempt int) time.Duration {
	interval, factor, limit := s.Interval, s.Factor, s.Cap
	if interval <= 0 {
		interval = time.Millisecond
	}
	if factor < 1 {
		factor = 1
	}
	if s == (RetryStrategy{}) {
		interval, factor, limit = 10*time.Millisecond, 2, 5*time.Second
	}
	d := float64(interval) * math.Pow(factor, float64(attempt-1))
	if limit > 0 {
		d = min(d, float64(limit))
	}
	d = min(d, float64(time.Hour))
	if s.Jitter > 0 {
		d *= 1 + s.Jitter*rand.Float64()
	}
	return time.Duration(d)
}

// Exhausted reports whether no further attempt is left after so many.
func (s RetryStrategy) Exhausted(attempts int) bool {
	return s.Steps > 0 && attempts > s.Steps && s.OnFailure != OnFailureRetry && s.OnFailure != ""
}

// A nack that names no delay backs off from nackDelay to maxNackDelay; one that names a shorter one than minNackDelay gets that.
const (
	nackDelay    = 100 * time.Millisecond
	maxNackDelay = 10 * time.Second
	minNackDelay = 10 * time.Millisecond
)

// delay is how long to wait before the next attempt, after so many.
func delay(o *function.Outcome, s RetryStrategy, attempts int) time.Duration {
	switch o.Verdict {
	case function.Nacked:
		if o.Delay > 0 {
			return max(o.Delay, minNackDelay)
		}
		return min(nackDelay<<min(attempts-1, 10), maxNackDelay)
	case function.Retry:
		return s.Delay(attempts)
	}
	return 0
}

// strategy is that of the stage that has one.
func (r *run) strategy() (s RetryStrategy) {
	for i := range r.Stages {
		if r.Stages[i].Retry != (RetryStrategy{}) {
			s = r.Stages[i].Retry
		}
	}
	return s
}

// retry tries messages again until each is done or a dead letter, and writes what becomes of them.
func (f *flight) retry(ctx context.Context, later []Later) error {
	for len(later) > 0 {
		f.nameAll(later)
		if broken := take(&later, func(l *Later) bool { return l.Outcome.Verdict == function.Broken }); len(broken) > 0 {
			if err := f.bury(ctx, broken); err != nil {
				return err
			}
			for i := range broken {
				if l := &broken[i]; !l.Made || f.paid(l.index, 1) {
					f.finish(ctx, l.index, l.index+1)
				}
			}
			continue
		}
		if f.reading.Err() != nil {
			return errDraining
		}
		var more []Later
		if suspects := take(&later, func(l *Later) bool { return l.Outcome.Verdict == function.Suspect }); len(suspects) > 0 {
			index, in, attempts := ascending(suspects)
			out, err := f.isolate(ctx, in)
			if err == nil {
				more, err = f.settle(ctx, index, in, out, attempts, nil)
			}
			if err != nil {
				return err
			}
			later = append(later, more...)
			continue
		}
		due, err := f.awaitDue(ctx, &later)
		if err != nil {
			return err
		}
		for made := take(&due, func(l *Later) bool { return l.Made }); len(made) > 0; {
			to := made[0].To
			more, err := f.deliverAgain(ctx, take(&made, func(l *Later) bool { return l.To == to }))
			if err != nil {
				return err
			}
			later = append(later, more...)
		}
		if len(due) == 0 {
			continue
		}
		index, in, attempts := ascending(due)
		err = f.stream(ctx, 0, in, nil, func(which []int, out []function.Outcome) error {
			if which == nil {
				which = allOf(len(in))
			}
			at, messages, tries := make([]int, len(which)), make([]flow.Message, len(which)), make([]int, len(which))
			for k, i := range which {
				at[k], messages[k], tries[k] = index[i], in[i], attempts[i]
			}
			more, err := f.settle(ctx, at, messages, out, tries, nil)
			later = append(later, more...)
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// deliverAgain gives results to the output again, all for the same sink.
func (f *flight) deliverAgain(ctx context.Context, made []Later) ([]Later, error) {
	index, in, attempts := ascending(made)
	e := &Emission{Work: f.w, In: in, Floor: f.w.track.Floor, Until: f.reading, InPlace: f.Ordered, Again: map[string]int{}, To: made[0].To}
	open := map[int]int{}
	for k, i := range index {
		e.Again[in[k].ID] = attempts[k]
		open[i]++
	}
	e.index = slices.Compact(index)
	e.cover(e.index)
	if err := f.write(ctx, e, nil); err != nil {
		return nil, err
	}
	for i := range e.Later {
		open[e.Later[i].index]--
	}
	for _, i := range e.index {
		if open[i] > 0 && f.paid(i, open[i]) {
			f.finish(ctx, i, i+1)
		}
	}
	return e.Later, nil
}

// resolve tries messages of an ordered loop again, in place, and puts into out what becomes of them, and into dead which are dead letters.
func (f *flight) resolve(ctx context.Context, later []Later, out []function.Outcome, dead map[int]bool) error {
	for len(later) > 0 {
		f.nameAll(later)
		if broken := take(&later, func(l *Later) bool { return l.Outcome.Verdict == function.Broken }); len(broken) > 0 {
			if err := f.bury(ctx, broken); err != nil {
				return err
			}
			for i := range broken {
				out[broken[i].index], dead[broken[i].index] = function.Outcome{}, true
			}
			continue
		}
		if f.reading.Err() != nil {
			return errDraining
		}
		try := f.applyStages
		tried := take(&later, func(l *Later) bool { return l.Outcome.Verdict == function.Suspect })
		if len(tried) > 0 {
			try = f.isolate
		} else {
			var err error
			if tried, err = f.awaitDue(ctx, &later); err != nil {
				return err
			}
		}
		index, in, attempts := ascending(tried)
		outcomes, err := try(ctx, in)
		if err != nil {
			return err
		}
		refuseOversize(outcomes)
		for k := range outcomes {
			l := Later{Message: in[k], Outcome: outcomes[k], Attempts: attempts[k] + 1, index: index[k]}
			if l.Outcome.Verdict != function.Done {
				l.Outcome.Results = nil
				f.again(&l, f.strategy())
			}
			if l.Outcome.Verdict != function.Done {
				later = append(later, l)
				continue
			}
			out[index[k]] = l.Outcome
		}
	}
	return nil
}

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

// awaitDue waits until some of the messages are due, and returns them.
func (f *flight) awaitDue(ctx context.Context, later *[]Later) ([]Later, error) {
	first := slices.MinFunc(*later, func(a, b Later) int { return a.Due.Compare(b.Due) })
	if err := f.sleepUntil(ctx, first.Due); err != nil {
		return nil, err
	}
	now := time.Now()
	return take(later, func(l *Later) bool { return !l.Due.After(now) }), nil
}

// errDraining ends work that was not begun, and the wait for a retry, when the process is about to stop: the message is not acknowledged, and comes again at
// the next start.
var errDraining = errors.New("stopping")

func (r *run) sleepUntil(ctx context.Context, due time.Time) error {
	t := time.NewTimer(time.Until(due))
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-r.reading.Done():
		return errDraining
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

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

// giveUp decides whether a message was tried often enough, and changes the outcome to what becomes of it.
func (r *run) giveUp(l *Later, o *function.Outcome) bool {
	switch o.Verdict {
	case function.Nacked:
		if o.MaxDeliveries > 0 && l.Attempts >= o.MaxDeliveries {
			*o = function.Outcome{Verdict: function.Broken, Failure: &deadletter.Failure{Reason: deadletter.Nack, Error: "nacked " + strconv.Itoa(l.Attempts) + " times, which is as often as its max_deliveries allows: " + o.Reason, Attempts: l.Attempts}}
			return true
		}
	case function.Retry:
		s := r.strategy()
		if !s.Exhausted(l.Attempts) {
			return false
		}
		if s.OnFailure == OnFailureDrop {
			r.Events.Dropped("", 1, len(l.Message.Value), "retries-exhausted")
			*o = function.Outcome{Dropped: 1}
			return true
		}
		*o = function.Outcome{Verdict: function.Broken, Failure: &deadletter.Failure{Reason: deadletter.Retries, Error: "the function failed it in every attempt that its retry strategy allows", Attempts: l.Attempts}}
		return true
	}
	return false
}

// isolate asks the stages who is to blame. With several stages, each message goes through them alone.
func (r *run) isolate(ctx context.Context, in []flow.Message) ([]function.Outcome, error) {
	if len(r.Stages) == 1 {
		return r.Stages[0].Isolate(ctx, in)
	}
	loop := *r.Loop
	loop.Stages = slices.Clone(r.Stages)
	for i := range loop.Stages {
		loop.Stages[i].ApplyPart = nil
		if s := &loop.Stages[i]; s.Isolate != nil {
			s.Apply = s.Isolate
		}
	}
	alone := &run{Loop: &loop, reading: r.reading}
	return alone.applyStages(ctx, in)
}

// bury puts messages aside.
func (r *run) bury(ctx context.Context, broken []Later) error {
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
