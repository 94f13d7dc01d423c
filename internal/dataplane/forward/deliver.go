package forward

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"time"

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
	Events                                         DeliveryEvents
	Logger                                         *slog.Logger
}

// DeliveryEvents are told what a sink does.
type DeliveryEvents interface {
	// Delivered is called for messages that a sink took. role is one of the roles of package function; oldest is when the first of them was ingested.
	Delivered(role function.Role, m []flow.Message, took time.Duration)
	// Failed is called for messages that a sink did not take, or could not be asked to.
	Failed(role function.Role, messages int)
	// Dropped is called for messages that go nowhere.
	Dropped(messages, bytes int, reason string)
}

// Begin implements Output.
func (d *Delivery) Begin(*Emission) {}

// Wait implements Output. All is done in Submit, which keeps the order.
func (d *Delivery) Wait(context.Context, *Emission) error { return nil }

// Submit implements Output.
func (d *Delivery) Submit(ctx context.Context, e *Emission) error {
	messages := e.results()
	var primary, fallback, success []flow.Message
	if d.BypassPrimary == nil && d.BypassFallback == nil && d.BypassOnSuccess == nil {
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

// primary delivers to the primary sink. It returns what the other sinks are to get; what must come again is added to e.Later.
func (d *Delivery) primary(ctx context.Context, e *Emission, left []flow.Message) (fallback, success []flow.Message, err error) {
	whole := true
	for attempt := 1; len(left) > 0; attempt++ {
		begun := time.Now()
		results, err := d.write(ctx, function.UDSink, d.Primary, e.block(left, whole))
		if err != nil {
			return nil, nil, err
		}
		if results == nil {
			d.Events.Delivered(function.UDSink, left, time.Since(begun))
			return fallback, success, nil
		}
		whole = false
		var failed, delivered []flow.Message
		for i := range results {
			m, r := &left[i], &results[i]
			switch r.Status {
			case sink.Delivered, sink.Serve:
				delivered = append(delivered, *m)
			case sink.Fallback:
				if d.Fallback == nil {
					return nil, nil, errors.New("the sink sends a message to the fallback sink, and the manifest has none: add sink.fallback")
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
			case sink.Nacked:
				e.Later = append(e.Later, Later{Message: *m, Made: true, Attempts: 1, Due: time.Now().Add(max(r.Delay, 10*time.Millisecond)), Outcome: function.Outcome{Verdict: function.Nacked, Delay: r.Delay, Reason: r.Error}})
			case sink.Broken:
				e.Later = append(e.Later, Later{Message: *m, Made: true, Attempts: 1, Outcome: function.Outcome{Verdict: function.Broken, Failure: r.Failure}})
			default:
				failed = append(failed, *m)
			}
		}
		if len(delivered) > 0 {
			d.Events.Delivered(function.UDSink, delivered, time.Since(begun))
		}
		left = failed
		if len(left) == 0 {
			break
		}
		d.Events.Failed(function.UDSink, len(left))
		if d.Retry.Exhausted(attempt) {
			if d.Retry.OnFailure == OnFailureFallback && d.Fallback != nil {
				return append(fallback, left...), success, nil
			}
			d.Logger.Warn("Retries exhausted, dropping messages.", "messages", len(left), "error", firstError(results))
			d.Events.Dropped(len(left), payload(left), "Retries exhausted in the Sink")
			break
		}
		d.Logger.Warn("sink is tried again", "messages", len(left), "retry_attempt", attempt, "error", firstError(results))
		if err := pause(ctx, d.Retry.Delay(attempt)); err != nil {
			return nil, nil, err
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

// secondary delivers to one of the other sinks, which may not turn anything down for good.
func (d *Delivery) secondary(ctx context.Context, e *Emission, role function.Role, w sink.Writer, left []flow.Message) error {
	if w == nil {
		return nil
	}
	for attempt := 1; len(left) > 0; attempt++ {
		begun := time.Now()
		results, err := d.write(ctx, role, w, e.block(left, false))
		if err != nil {
			return err
		}
		var failed, delivered []flow.Message
		for i := range left {
			switch {
			case results == nil || results[i].Status == sink.Delivered || results[i].Status == sink.Serve || results[i].Status == sink.OnSuccess:
				delivered = append(delivered, left[i])
			case results[i].Status == sink.Fallback:
				// It has it, and there is nowhere further to go. Numaflow's own sample answers so in either place.
				delivered = append(delivered, left[i])
			case results[i].Status == sink.Broken:
				e.Later = append(e.Later, Later{Message: left[i], Made: true, Attempts: 1, Outcome: function.Outcome{Verdict: function.Broken, Failure: results[i].Failure}})
			default:
				failed = append(failed, left[i])
			}
		}
		if len(delivered) > 0 {
			d.Events.Delivered(role, delivered, time.Since(begun))
		}
		left = failed
		if len(left) > 0 {
			d.Events.Failed(role, len(left))
			if err := pause(ctx, RetryStrategy{}.Delay(attempt)); err != nil {
				return err
			}
		}
	}
	return nil
}

// write asks a sink until it answers.
func (d *Delivery) write(ctx context.Context, role function.Role, w sink.Writer, b *flow.Block) ([]sink.Result, error) {
	for attempt := 1; ; attempt++ {
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
		d.Events.Failed(role, len(b.Messages))
		d.Logger.Warn("sink is written again", "error", err, "attempt", attempt)
		if err := pause(ctx, RetryStrategy{}.Delay(attempt)); err != nil {
			return nil, err
		}
	}
}

func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
