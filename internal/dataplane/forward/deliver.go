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
//
// It is one output for all loops of a vertex, with the events of each: see With. All is done in Submit, in the order in which the loop submits, since a sink has nothing that
// could be waited for later.
type Delivery struct {
	// Primary gets every message first, unless it bypasses. Fallback and OnSuccess are nil where the manifest has none.
	Primary, Fallback, OnSuccess sink.Writer
	// Retry is for messages that the primary failed.
	Retry RetryStrategy
	// Bypass sends results straight to one of the sinks, by their tags; nil for none. The first that matches counts.
	BypassPrimary, BypassFallback, BypassOnSuccess *Condition
	Events                                         Observer
	Logger                                         *slog.Logger

	sites sites // so that a sink that is down is a line of log every 10 s, and not one for each message
}

// With returns another output to the same sinks, with events of its own.
func (d *Delivery) With(events Observer) *Delivery {
	return &Delivery{
		Primary: d.Primary, Fallback: d.Fallback, OnSuccess: d.OnSuccess, Retry: d.Retry,
		BypassPrimary: d.BypassPrimary, BypassFallback: d.BypassFallback, BypassOnSuccess: d.BypassOnSuccess, Events: events, Logger: d.Logger,
	}
}

// Begin implements Output.
func (d *Delivery) Begin(e *Emission) PendingWrite { return &sinkWrite{d, e} }

// sinkWrite is an emission on its way into sinks. It implements PendingWrite.
type sinkWrite struct {
	*Delivery
	e *Emission
}

// Wait implements PendingWrite. All is done in Submit, which keeps the order.
func (*sinkWrite) Wait(context.Context) error { return nil }

// Submit implements PendingWrite.
func (d *sinkWrite) Submit(ctx context.Context) error {
	e, messages := d.e, d.e.results()
	switch e.To {
	case function.FallbackSink:
		return d.secondary(ctx, e, e.To, d.Fallback, messages)
	case function.OnSuccessSink:
		return d.secondary(ctx, e, e.To, d.OnSuccess, messages)
	}
	primary, fallback, success := d.bypass(e, messages)
	toFallback, toSuccess, err := d.primary(ctx, e, primary)
	if err != nil {
		return err
	}
	if err := d.secondary(ctx, e, function.FallbackSink, d.Fallback, append(fallback, toFallback...)); err != nil {
		return err
	}
	return d.secondary(ctx, e, function.OnSuccessSink, d.OnSuccess, append(success, toSuccess...))
}

// bypass decides by their tags which sink messages go to.
func (d *Delivery) bypass(e *Emission, messages []flow.Message) (primary, fallback, success []flow.Message) {
	if e.Again != nil || d.BypassPrimary == nil && d.BypassFallback == nil && d.BypassOnSuccess == nil {
		return messages, nil, nil
	}
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
	return primary, fallback, success
}

// patience is how long messages that a sink failed are tried again in place. After that they wait beside what goes on, unless the loop is ordered.
const patience = time.Second

// attempts are those of one Submit at one sink.
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

// answered are the messages of one answer of a sink, by what becomes of them.
// Invariant: no message is in two of them, but for one that is delivered and goes to the on-success sink as well.
type answered struct{ delivered, failed, dropped, fallback, success []flow.Message }

// primary delivers to the primary sink. It returns what the other sinks are to get; what must come again is added to e.Later.
func (d *Delivery) primary(ctx context.Context, e *Emission, left []flow.Message) (fallback, success []flow.Message, err error) {
	whole := e.Again == nil // the block covers all of the emission, also positions without a result; not once something of it was left out
	for a := (&attempts{e: e, role: function.UDSink, n: 1}); len(left) > 0; a.n++ {
		begun := time.Now()
		results, err := d.write(ctx, a, d.Primary, e.block(left, whole))
		if err != nil {
			return nil, nil, err
		}
		if results == nil {
			d.Events.Delivered(function.UDSink, left, time.Since(begun))
			break
		}
		whole = false
		by := d.sort(a, left, results)
		fallback, success, left = append(fallback, by.fallback...), append(success, by.success...), by.failed
		if len(by.delivered) > 0 {
			d.Events.Delivered(function.UDSink, by.delivered, time.Since(begun))
		}
		if len(by.dropped) > 0 {
			d.sites.report(d.Logger, "Retries exhausted, dropping messages.", len(by.dropped), "error", firstError(results))
			d.Events.Dropped("", len(by.dropped), payload(by.dropped), SinkRetriesExhausted)
		}
		if len(left) == 0 {
			break
		}
		if ok, err := d.again(ctx, a, left, d.Retry, firstError(results)); !ok {
			return fallback, success, err
		}
	}
	return fallback, success, nil
}

// sort says what becomes of the messages that the primary sink was given.
func (d *Delivery) sort(a *attempts, messages []flow.Message, results []sink.Result) (by answered) {
	for i := range results {
		m, r := &messages[i], &results[i]
		if d.common(a, m, r) {
			continue
		}
		switch r.Status {
		case sink.Delivered, sink.Serve:
			by.delivered = append(by.delivered, *m)
		case sink.Fallback:
			if d.Fallback == nil {
				d.Events.Failed(a.role, 1)
				a.refuse(m, deadletter.Refused, "the sink sent it to the fallback sink, and the manifest has none: add sink.fallback")
				continue
			}
			by.fallback = append(by.fallback, *m)
		case sink.OnSuccess:
			by.delivered = append(by.delivered, *m)
			by.success = append(by.success, receipt(m, r))
		default:
			d.failed(a, m, r, &by)
		}
	}
	return by
}

// receipt is what the on-success sink gets.
func receipt(m *flow.Message, r *sink.Result) flow.Message {
	if r.OnSuccess == nil {
		return *m
	}
	r.OnSuccess.ID, r.OnSuccess.Pos, r.OnSuccess.EventTime, r.OnSuccess.Ingested = m.ID, m.Pos, m.EventTime, m.Ingested
	return *r.OnSuccess
}

// failed says what becomes of a message that the primary sink failed.
func (d *Delivery) failed(a *attempts, m *flow.Message, r *sink.Result, by *answered) {
	d.Events.Failed(a.role, 1)
	switch d.Retry.afterFailure(a.of(m), r.Permanent, d.Fallback != nil) {
	case sinkRetry:
		by.failed = append(by.failed, *m)
	case sinkFallback:
		by.fallback = append(by.fallback, *m)
	case sinkDrop:
		by.dropped = append(by.dropped, *m)
	case sinkRefused:
		a.refuse(m, deadletter.Refused, "the sink never takes it: "+strings.ToValidUTF8(r.Error, "?"))
	case sinkExhausted:
		a.refuse(m, deadletter.Retries, "the sink failed it in every attempt that its retry strategy allows, and the manifest has no fallback sink: "+strings.ToValidUTF8(r.Error, "?"))
	}
}

// firstError is the first reason that a sink gave, for the log.
func firstError(results []sink.Result) string {
	for i := range results {
		if results[i].Status == sink.Failed {
			return strings.ToValidUTF8(results[i].Error, "?")
		}
	}
	return ""
}

// payload is the size of the messages in bytes, as metrics count it.
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
		by := d.sortSecondary(a, left, results)
		if len(by.delivered) > 0 {
			d.Events.Delivered(role, by.delivered, time.Since(begun))
		}
		if left = by.failed; len(left) == 0 {
			return nil
		}
		if ok, err := d.again(ctx, a, left, RetryStrategy{}, firstError(results)); !ok {
			return err
		}
	}
	return nil
}

// sortSecondary says what becomes of the messages that one of the other sinks was given.
func (d *Delivery) sortSecondary(a *attempts, messages []flow.Message, results []sink.Result) (by answered) {
	if results == nil {
		by.delivered = messages
		return by
	}
	for i := range messages {
		m, r := &messages[i], &results[i]
		if d.common(a, m, r) {
			continue
		}
		switch {
		case r.Status == sink.Delivered, r.Status == sink.Serve, r.Status == sink.OnSuccess:
			by.delivered = append(by.delivered, *m)
		case r.Status == sink.Fallback:
			// It has it, and there is nowhere further to go. Numaflow's own sample answers so in either place.
			by.delivered = append(by.delivered, *m)
		case r.Permanent:
			d.Events.Failed(a.role, 1)
			a.refuse(m, deadletter.Refused, "the "+string(a.role)+" sink never takes it: "+strings.ToValidUTF8(r.Error, "?"))
		default:
			d.Events.Failed(a.role, 1)
			by.failed = append(by.failed, *m)
		}
	}
	return by
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
