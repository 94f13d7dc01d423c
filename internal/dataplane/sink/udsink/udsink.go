// Package udsink is a user-defined sink as a sink.Writer.
package udsink

import (
	"context"
	"strconv"

	"github.com/levada-io/levada/internal/dataplane/function"
	"github.com/levada-io/levada/internal/dataplane/sink"
	"github.com/levada-io/levada/internal/flow"
)

// Sink is a user-defined sink as a sink.Writer.
type Sink struct{ Function *function.Function }

// Write implements sink.Writer.
func (s Sink) Write(ctx context.Context, b *flow.Block) ([]sink.Result, error) {
	out, err := s.Function.Map(ctx, b.Messages)
	if err != nil {
		return nil, &sink.PermanentError{Err: err}
	}
	if err := s.isolate(ctx, b.Messages, out); err != nil {
		return nil, err
	}
	results := make([]sink.Result, len(out))
	plain := true
	for i := range out {
		if results[i], err = result(&out[i]); err != nil {
			return nil, err
		}
		plain = plain && results[i].Status == sink.Delivered
	}
	if plain {
		return nil, nil
	}
	return results, nil
}

// isolate replaces the outcomes of messages that were in user code when it ended.
func (s Sink) isolate(ctx context.Context, in []flow.Message, out []function.Outcome) error {
	var which []int
	var suspects []flow.Message
	for i := range out {
		if out[i].Verdict == function.Suspect {
			which, suspects = append(which, i), append(suspects, in[i])
		}
	}
	if len(suspects) == 0 {
		return nil
	}
	more, err := s.Function.Isolate(ctx, suspects)
	if err != nil {
		return err
	}
	for k, i := range which {
		out[i] = more[k]
	}
	return nil
}

// Close implements sink.Writer.
func (s Sink) Close(context.Context) error { return nil }

// The statuses of sink.v1.
var sinkStatus = []sink.Status{sink.Delivered, sink.Failed, sink.Fallback, sink.Serve, sink.OnSuccess, sink.Nacked}

func result(o *function.Outcome) (sink.Result, error) {
	if o.Verdict == function.Broken {
		return sink.Result{Status: sink.Broken, Failure: o.Failure}, nil
	}
	r := o.Sink
	if r == nil || r.Status >= uint64(len(sinkStatus)) {
		status := "none"
		if r != nil {
			status = strconv.FormatUint(r.Status, 10)
		}
		return sink.Result{Status: sink.Failed, Error: "the sink answered with a status that the contract does not have: " + status}, nil
	}
	result := sink.Result{Status: sinkStatus[r.Status], Error: r.Err}
	n, err := r.Redelivery()
	if err != nil {
		return result, err
	}
	result.Delay, result.MaxDeliveries = n.Delay, n.MaxDeliveries
	if result.Error == "" {
		result.Error = n.Reason
	}
	if result.Status == sink.OnSuccess {
		result.OnSuccess, err = r.Message()
	}
	return result, err
}
