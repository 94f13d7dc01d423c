package forward

import (
	"context"
	"errors"
	"math"
	"math/rand/v2"
	"slices"
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

// nackDelay is the delay of a nack that names none.
const nackDelay = time.Second

func (r *run) delay(o *function.Outcome, attempts int) time.Duration {
	switch o.Verdict {
	case function.Nacked:
		if o.Delay > 0 {
			return o.Delay
		}
		return nackDelay
	case function.Retry:
		return r.retry().Delay(attempts)
	}
	return 0
}

// retry is the strategy of the stage that has one.
func (r *run) retry() (s RetryStrategy) {
	for i := range r.Stages {
		if r.Stages[i].Retry != (RetryStrategy{}) {
			s = r.Stages[i].Retry
		}
	}
	return s
}

// tryLater tries messages of a work again until each is done or put aside.
func (r *run) tryLater(ctx context.Context, w *Work, later []Later) error {
	for len(later) > 0 {
		due, rest, err := r.resolve(ctx, w, later)
		if err != nil {
			return err
		}
		later = rest
		if due == nil {
			continue
		}
		r.Output.Begin(due)
		if err := r.Output.Submit(ctx, due); err != nil {
			return err
		}
		if err := r.Output.Wait(ctx, due); err != nil {
			return err
		}
		later = append(later, due.Later...)
	}
	return nil
}

// settleInPlace does the same for an ordered loop: the outcomes go into the work's own emission.
func (r *run) settleInPlace(ctx context.Context, w *Work, e *Emission, later []Later) error {
	place := map[uint64]int{}
	for i := range e.In {
		place[e.In[i].Pos] = i
	}
	for len(later) > 0 {
		due, rest, err := r.resolve(ctx, w, later)
		if err != nil {
			return err
		}
		later = rest
		if due == nil {
			continue
		}
		for i := range due.In {
			e.Out[place[due.In[i].Pos]] = due.Out[i]
		}
	}
	e.Spans = nil
	return nil
}

// resolve waits until something can be done about some of the messages, and does it. It returns what is to be written, if anything, and what remains.
func (r *run) resolve(ctx context.Context, w *Work, later []Later) (*Emission, []Later, error) {
	w.names()
	for i := range later {
		if m := &later[i].Message; m.ID == "" {
			m.ID = w.name(m.Pos)
		}
	}
	if broken := take(&later, func(l *Later) bool { return l.Outcome.Verdict == function.Broken }); len(broken) > 0 {
		return nil, later, r.bury(ctx, broken)
	}
	if suspects := take(&later, func(l *Later) bool { return l.Outcome.Verdict == function.Suspect }); len(suspects) > 0 {
		return r.again(ctx, w, suspects, later, r.isolate)
	}
	slices.SortStableFunc(later, func(a, b Later) int { return a.Due.Compare(b.Due) })
	nacked := 0
	for i := range later {
		if later[i].Outcome.Verdict == function.Nacked {
			nacked++
		}
	}
	r.Events.Nacked(nacked)
	if err := r.sleepUntil(ctx, later[0].Due); err != nil {
		return nil, nil, err
	}
	now := time.Now()
	due := take(&later, func(l *Later) bool { return !l.Due.After(now) })
	if made := take(&due, func(l *Later) bool { return l.Made }); len(made) > 0 {
		return r.again(ctx, w, made, append(later, due...), func(context.Context, []flow.Message) ([]function.Outcome, error) { return nil, nil })
	}
	return r.again(ctx, w, due, later, func(ctx context.Context, in []flow.Message) ([]function.Outcome, error) {
		if len(r.Stages) == 0 {
			return nil, nil
		}
		return r.applyStages(ctx, in)
	})
}

// errDraining ends the wait for a retry when the process is about to stop: the message is not acknowledged and comes again at the next start.
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

// again tries messages once more. What is done is returned as an emission that covers exactly those.
func (r *run) again(ctx context.Context, w *Work, tried, rest []Later, try func(context.Context, []flow.Message) ([]function.Outcome, error)) (*Emission, []Later, error) {
	slices.SortFunc(tried, func(a, b Later) int {
		if a.Message.Pos < b.Message.Pos {
			return -1
		}
		return 1
	})
	in := make([]flow.Message, len(tried))
	for i := range tried {
		in[i] = tried[i].Message
	}
	out, err := try(ctx, in)
	if err != nil {
		return nil, nil, err
	}
	refuseOversize(out)
	e := &Emission{Work: w, Lo: in[0].Pos, Hi: in[len(in)-1].Pos, Floor: w.track.Floor}
	if len(r.Stages) > 0 {
		e.Stage = r.Stages[len(r.Stages)-1].Name
	}
	for i := range in {
		l := &tried[i]
		if out != nil && out[i].Verdict != function.Done {
			l.Attempts++
			if !r.giveUp(l, &out[i]) {
				l.Due = time.Now().Add(r.delay(&out[i], l.Attempts))
			}
			l.Outcome = out[i]
			l.Outcome.Results = nil
			if l.Outcome.Verdict != function.Done {
				rest = append(rest, *l)
				continue
			}
			out[i] = l.Outcome
		}
		e.In = append(e.In, in[i])
		if out != nil {
			e.Out = append(e.Out, out[i])
		}
		e.Spans = append(e.Spans, flow.Span{Lo: in[i].Pos, Hi: in[i].Pos})
	}
	if len(e.In) == 0 {
		return nil, rest, nil
	}
	e.Lo, e.Hi = e.In[0].Pos, e.In[len(e.In)-1].Pos
	return e, rest, nil
}

// giveUp decides whether a message was tried often enough, and changes the outcome to what becomes of it.
func (r *run) giveUp(l *Later, o *function.Outcome) bool {
	switch o.Verdict {
	case function.Nacked:
		if o.MaxDeliveries > 0 && l.Attempts >= o.MaxDeliveries {
			*o = function.Outcome{Verdict: function.Broken, Failure: &deadletter.Failure{Reason: deadletter.Nack, Error: "nacked more often than the function allows: " + o.Reason, Attempts: l.Attempts}}
			return true
		}
	case function.Retry:
		s := r.retry()
		if !s.Exhausted(l.Attempts) {
			return false
		}
		if s.OnFailure == OnFailureDrop {
			r.Events.Dropped(1, len(l.Message.Value), "retries-exhausted")
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
		r.Events.Dead(1, failure.Reason)
		r.Logger.Warn("message is put aside", "id", l.Message.ID, "reason", failure.Reason, "error", failure.Error)
	}
	return nil
}
