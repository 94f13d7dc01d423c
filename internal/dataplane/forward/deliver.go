package forward

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"time"

	"github.com/levada-io/levada/internal/dataplane/deadletter"
	"github.com/levada-io/levada/internal/dataplane/function"
	"github.com/levada-io/levada/internal/dataplane/sink"
	"github.com/levada-io/levada/internal/flow"
)

// Delivery is the output of a vertex that is a sink: the primary one, and where there are such, one for messages that it turns down, and one for what it did well.
type Delivery struct {
	Primary, Fallback, OnSuccess sink.Writer
	// Retry is for messages that the primary failed.
	Retry RetryStrategy
	// Bypass sends results straight to one of the sinks, by their tags; nil for none. The first that matches counts.
	BypassPrimary, BypassFallback, BypassOnSuccess *Condition
	Events                                         Observer
	Logger                                         *slog.Logger

	sites sites
}

// With returns another output to the same sinks, with events of its own.
func (d *Delivery) With(events Observer) *Delivery {
	return &Delivery{
		Primary: d.Primary, Fallback: d.Fallback, OnSuccess: d.OnSuccess, Retry: d.Retry,
		BypassPrimary: d.BypassPrimary, BypassFallback: d.BypassFallback, BypassOnSuccess: d.BypassOnSuccess, Events: events, Logger: d.Logger,
	}
}

// Begin implements Output.
func (d *Delivery) Begin(*Emission) {}

// Wait implements Output. All is done in Submit, which keeps the order.
func (d *Delivery) Wait(context.Context, *Emission) error { return nil }

// Submit implements Output.
func (d *Delivery) Submit(ctx context.Context, e *Emission) error {
	messages := e.results()
	var primary, fallback, success []flow.Message
	switch {
	case e.To == function.FallbackSink:
		return d.secondary(ctx, e, function.FallbackSink, d.Fallback, messages)
	case e.To == function.OnSuccessSink:
		return d.secondary(ctx, e, function.OnSuccessSink, d.OnSuccess, messages)
	}
	if e.Again != nil || d.BypassPrimary == nil && d.BypassFallback == nil && d.BypassOnSuccess == nil {
		primary = messages
	} else {
		for _, m := range messages {
			switch {
			case d.BypassPrimary != nil && d.BypassPrimary.Match(m.Tags):
				primary = append(primary, m)
			case d.BypassFallback != nil && d.BypassFallback.Match(m.Tags):
				fallback = append(fallback, m)
			case d.BypassOnSuccess != nil && d.BypassOnSuccess.Match(m.Tags):
				success = append(success, m)
			default:
				primary = append(primary, m)
			}
		}
	}
	toFallback, toSuccess, err := d.primary(ctx, e, primary)
	if err != nil {
		return err
	}
	if err := d.secondary(ctx, e, function.FallbackSink, d.Fallback, append(fallback, toFallback...)); err != nil {
		return err
	}
	return d.secondary(ctx, e, function.OnSuccessSink, d.OnSuccess, append(success, toSuccess...))
}

// results are the messages that go out, with their ids.
func (e *Emission) results() []flow.Message {
	e.Work.names()
	if e.Out == nil {
		for i := range e.In {
			if e.In[i].ID == "" {
				e.In[i].ID = e.Work.name(e.In[i].Pos)
			}
		}
		return e.In
	}
	var messages []flow.Message
	for i := range e.Out {
		for j := range e.Out[i].Results {
			m := e.Out[i].Results[j]
			m.Pos = e.In[i].Pos
			m.ID = flow.ChildID(e.In[i].ID, e.Stage, j)
			messages = append(messages, m)
		}
	}
	return messages
}

// block is what a sink gets: messages of the emission, under the positions of its input.
func (e *Emission) block(messages []flow.Message, whole bool) *flow.Block {
	b := e.head(e.Lo, e.Hi)
	b.Floor, b.Messages = e.Floor(), messages
	if whole {
		return &b
	}
	// A part of the emission covers just what it holds.
	b.Cover = nil
	for i := range messages {
		if p := messages[i].Pos; len(b.Cover) == 0 || b.Cover[len(b.Cover)-1].Hi != p {
			b.Cover = append(b.Cover, flow.Span{Lo: p, Hi: p})
		}
	}
	b.Lo, b.Hi = messages[0].Pos, messages[len(messages)-1].Pos
	return &b
}

// patience is how long messages that a sink failed are tried again in place. After that they wait beside what goes on, unless the loop is ordered.
const patience = time.Second

// attempts of one Submit.
type attempts struct {
	e    *Emission
	role function.Role
	// n is the number of the attempt, of this Submit; waited is how long this Submit waited between attempts.
	n      int
	waited time.Duration
}

// of is how often a message was tried, over all of its Submits.
func (a *attempts) of(m *flow.Message) int { return a.n + a.e.Again[m.ID] }

// later leaves a message to be tried again, or to be dead-lettered. The count is that of this Submit: the loop adds those before.
func (a *attempts) later(m *flow.Message, o function.Outcome, due time.Time) {
	a.e.Later = append(a.e.Later, Later{Message: *m, Made: true, To: a.role, Attempts: a.n, Outcome: o, Due: due})
}

// refuse dead-letters a message.
func (a *attempts) refuse(m *flow.Message, reason deadletter.Reason, text string) {
	a.later(m, function.Outcome{Verdict: function.Broken, Failure: &deadletter.Failure{Reason: reason, Error: text, Attempts: a.of(m)}}, time.Time{})
}

// common handles the results that mean the same for each sink. It reports whether the result was one of them.
func (d *Delivery) common(a *attempts, m *flow.Message, r *sink.Result) bool {
	switch r.Status {
	case sink.Nacked:
		d.Events.Failed(a.role, 1)
		a.later(m, function.Outcome{Verdict: function.Nacked, Delay: r.Delay, MaxDeliveries: r.MaxDeliveries, Reason: r.Error}, time.Time{})
	case sink.Broken:
		d.Events.Failed(a.role, 1)
		a.later(m, function.Outcome{Verdict: function.Broken, Failure: r.Failure}, time.Time{})
	default:
		return false
	}
	return true
}

// again waits before the next attempt at messages that failed. It returns false if they are left for later instead: because the process is stopping, or because they
// would hold up the others for too long.
func (d *Delivery) again(ctx context.Context, a *attempts, left []flow.Message, s RetryStrategy, text string) (bool, error) {
	d.sites.report(d.Logger, string(a.role)+" failed, retrying", len(left), "error", text, "attempt", a.of(&left[0]))
	wait := s.Delay(a.of(&left[0]))
	if a.e.Until == nil || a.e.Until.Err() == nil {
		if a.e.InPlace || a.e.Until == nil || a.waited+wait <= patience {
			a.waited += wait
			ok, err := pause(ctx, a.e.Until, wait)
			if ok || err != nil {
				return ok, err
			}
		}
	}
	for i := range left {
		a.later(&left[i], function.Outcome{Verdict: function.Retry, Reason: text}, time.Now().Add(wait))
	}
	return false, nil
}

// primary delivers to the primary sink. It returns what the other sinks are to get; what must come again is added to e.Later.
func (d *Delivery) primary(ctx context.Context, e *Emission, left []flow.Message) (fallback, success []flow.Message, err error) {
	whole := e.Again == nil
	for a := (&attempts{e: e, role: function.UDSink, n: 1}); len(left) > 0; a.n++ {
		begun := time.Now()
		results, err := d.write(ctx, a, d.Primary, e.block(left, whole))
		if err != nil {
			return nil, nil, err
		}
		if results == nil {
			d.Events.Delivered(function.UDSink, left, time.Since(begun))
			return fallback, success, nil
		}
		whole = false
		var failed, delivered, dropped []flow.Message
		for i := range results {
			m, r := &left[i], &results[i]
			if d.common(a, m, r) {
				continue
			}
			switch r.Status {
			case sink.Delivered, sink.Serve:
				delivered = append(delivered, *m)
			case sink.Fallback:
				if d.Fallback == nil {
					d.Events.Failed(a.role, 1)
					a.refuse(m, deadletter.Refused, "the sink sent it to the fallback sink, and the manifest has none: add sink.fallback")
					continue
				}
				fallback = append(fallback, *m)
			case sink.OnSuccess:
				delivered = append(delivered, *m)
				if r.OnSuccess != nil {
					r.OnSuccess.ID, r.OnSuccess.Pos, r.OnSuccess.EventTime, r.OnSuccess.Ingested = m.ID, m.Pos, m.EventTime, m.Ingested
					success = append(success, *r.OnSuccess)
				} else {
					success = append(success, *m)
				}
			default:
				d.Events.Failed(a.role, 1)
				if !r.Permanent && !d.Retry.Exhausted(a.of(m)) {
					failed = append(failed, *m)
					continue
				}
				switch {
				case d.Retry.OnFailure == OnFailureFallback && d.Fallback != nil:
					fallback = append(fallback, *m)
				case d.Retry.OnFailure == OnFailureDrop || !r.Permanent && d.Retry.OnFailure != OnFailureFallback:
					dropped = append(dropped, *m)
				case r.Permanent:
					a.refuse(m, deadletter.Refused, "the sink never takes it: "+strings.ToValidUTF8(r.Error, "?"))
				default:
					a.refuse(m, deadletter.Retries, "the sink failed it in every attempt that its retry strategy allows, and the manifest has no fallback sink: "+strings.ToValidUTF8(r.Error, "?"))
				}
			}
		}
		if len(delivered) > 0 {
			d.Events.Delivered(function.UDSink, delivered, time.Since(begun))
		}
		if len(dropped) > 0 {
			d.sites.report(d.Logger, "Retries exhausted, dropping messages.", len(dropped), "error", firstError(results))
			d.Events.Dropped("", len(dropped), payload(dropped), SinkRetriesExhausted)
		}
		if left = failed; len(left) == 0 {
			break
		}
		if ok, err := d.again(ctx, a, left, d.Retry, firstError(results)); !ok {
			return fallback, success, err
		}
	}
	return fallback, success, nil
}

func firstError(results []sink.Result) string {
	for i := range results {
		if results[i].Status == sink.Failed {
			return strings.ToValidUTF8(results[i].Error, "?")
		}
	}
	return ""
}

func payload(messages []flow.Message) (n int) {
	for i := range messages {
		n += len(messages[i].Value)
	}
	return n
}

// secondary delivers to one of the other sinks, from which there is nowhere further to go.
func (d *Delivery) secondary(ctx context.Context, e *Emission, role function.Role, w sink.Writer, left []flow.Message) error {
	if w == nil {
		return nil
	}
	for a := (&attempts{e: e, role: role, n: 1}); len(left) > 0; a.n++ {
		begun := time.Now()
		results, err := d.write(ctx, a, w, e.block(left, false))
		if err != nil {
			return err
		}
		var failed, delivered []flow.Message
		for i := range left {
			m := &left[i]
			if results == nil {
				delivered = append(delivered, *m)
				continue
			}
			r := &results[i]
			if d.common(a, m, r) {
				continue
			}
			switch {
			case r.Status == sink.Delivered, r.Status == sink.Serve, r.Status == sink.OnSuccess:
				delivered = append(delivered, *m)
			case r.Status == sink.Fallback:
				// It has it, and there is nowhere further to go. Numaflow's own sample answers so in either place.
				delivered = append(delivered, *m)
			case r.Permanent:
				d.Events.Failed(role, 1)
				a.refuse(m, deadletter.Refused, "the "+string(role)+" sink never takes it: "+strings.ToValidUTF8(r.Error, "?"))
			default:
				d.Events.Failed(role, 1)
				failed = append(failed, *m)
			}
		}
		if len(delivered) > 0 {
			d.Events.Delivered(role, delivered, time.Since(begun))
		}
		if left = failed; len(left) == 0 {
			return nil
		}
		if ok, err := d.again(ctx, a, left, RetryStrategy{}, firstError(results)); !ok {
			return err
		}
	}
	return nil
}

// write asks a sink until it answers, or until the process stops: then nobody knows what the sink has, and all comes again at the next start.
func (d *Delivery) write(ctx context.Context, a *attempts, w sink.Writer, b *flow.Block) ([]sink.Result, error) {
	for attempt := 1; ; attempt++ {
		if a.e.Until != nil && a.e.Until.Err() != nil && (attempt > 1 || len(a.e.Out) == 0 && a.e.Again == nil) {
			return nil, errDraining
		}
		results, err := w.Write(ctx, b)
		if err == nil {
			return results, nil
		}
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		var p *sink.PermanentError
		if errors.As(err, &p) {
			return nil, err
		}
		d.Events.Failed(a.role, len(b.Messages))
		d.sites.report(d.Logger, string(a.role)+" write failed, retrying", len(b.Messages), "error", err, "attempt", attempt)
		if _, err := pause(ctx, a.e.Until, RetryStrategy{}.Delay(attempt)); err != nil {
			return nil, err
		}
	}
}

// pause waits. It returns false if until ended first, which may be nil.
func pause(ctx, until context.Context, d time.Duration) (bool, error) {
	t := time.NewTimer(d)
	defer t.Stop()
	var stop <-chan struct{}
	if until != nil {
		stop = until.Done()
	}
	select {
	case <-t.C:
		return true, nil
	case <-stop:
		return false, nil
	case <-ctx.Done():
		return false, context.Cause(ctx)
	}
}
