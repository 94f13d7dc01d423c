package function

import (
	"context"
	"strconv"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/levada-io/levada/internal/dataplane/sink"
	"github.com/levada-io/levada/internal/flow"
)

// sinkPipe gives messages to a sink. Unlike functions, sinks know messages by their real ids, which they may use to tell a second delivery.
type sinkPipe struct{ *batchPipe }

func (s sinkPipe) Call(ctx context.Context, in []flow.Message, part *Part) ([]Outcome, []int, error) {
	c := newCall(in)
	results := make([]sinkResult, len(in))
	var index map[string]int
	next := 0 // most sinks answer in order
	find := func(id []byte) (int, bool) {
		if next < len(in) && in[next].ID == text(id) {
			next++
			return next - 1, true
		}
		if index == nil {
			index = make(map[string]int, len(in))
			for i := range in {
				index[in[i].ID] = i
			}
		}
		i, ok := index[text(id)]
		return i, ok
	}
	err := s.run(ctx, c, part, func(i int) string { return in[i].ID }, find, results)
	out, notSent := c.finish()
	for i := range results {
		if results[i].set {
			out[i].sink = &results[i]
		}
	}
	return out, notSent, err
}

// Sink is a user-defined sink as a sink.Writer.
type Sink struct{ Function *Function }

// Write implements sink.Writer.
func (s Sink) Write(ctx context.Context, b *flow.Block) ([]sink.Result, error) {
	out, err := s.Function.Map(ctx, b.Messages)
	if err != nil {
		return nil, &sink.PermanentError{Err: err}
	}
	var which []int
	var suspects []flow.Message
	for i := range out {
		if out[i].Verdict == Suspect {
			which, suspects = append(which, i), append(suspects, b.Messages[i])
		}
	}
	if len(suspects) > 0 {
		more, err := s.Function.Isolate(ctx, suspects)
		if err != nil {
			return nil, err
		}
		for k, i := range which {
			out[i] = more[k]
		}
	}
	results := make([]sink.Result, len(out))
	plain := true
	for i := range out {
		if results[i], err = out[i].sinkResult(); err != nil {
			return nil, err
		}
		plain = plain && results[i].Status == sink.Delivered
	}
	if plain {
		return nil, nil
	}
	return results, nil
}

// Close implements sink.Writer.
func (s Sink) Close(context.Context) error { return nil }

// The statuses of sink.v1.
var sinkStatus = []sink.Status{sink.Delivered, sink.Failed, sink.Fallback, sink.Serve, sink.OnSuccess, sink.Nacked}

func (o *Outcome) sinkResult() (sink.Result, error) {
	if o.Verdict == Broken {
		return sink.Result{Status: sink.Broken, Failure: o.Failure}, nil
	}
	r := o.sink
	if r == nil || r.status >= uint64(len(sinkStatus)) {
		status := "none"
		if r != nil {
			status = strconv.FormatUint(r.status, 10)
		}
		return sink.Result{Status: sink.Failed, Error: "the sink answered with a status that the contract does not have: " + status}, nil
	}
	result := sink.Result{Status: sinkStatus[r.status], Error: r.err}
	if r.nack != nil {
		var n Outcome
		if err := n.decodeNack(r.nack); err != nil {
			return result, err
		}
		result.Delay, result.MaxDeliveries = n.Delay, n.MaxDeliveries
		if result.Error == "" {
			result.Error = n.Reason
		}
	}
	if result.Status == sink.OnSuccess && r.onSuccess != nil {
		m := &flow.Message{}
		err := fields(r.onSuccess, func(f protowire.Number, v []byte, _ uint64) (err error) {
			switch f {
			case 1:
				m.Value = v
			case 2:
				m.Keys = append(m.Keys, text(v))
			case 3:
				m.Metadata, err = userMetadata(v)
			}
			return err
		})
		if err != nil {
			return result, err
		}
		result.OnSuccess = m
	}
	return result, nil
}
