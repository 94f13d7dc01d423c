package client

import (
	"context"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/levada-io/levada/internal/flow"
)

// SinkResult is a result of sink.v1 for one message.
type SinkResult struct {
	set       bool
	Status    uint64
	Err       string
	serve     []byte
	OnSuccess []byte // SinkResponse.Result.Message
	Nack      []byte
}

var sinkBatch = batchCodec{
	method: "/sink.v1.Sink/SinkFn", handshake: mark(3), end: mark(2),
	request: func(b []byte, m *flow.Message, id string) []byte { return appendInnerRequest(b, &sinkLayout, m, id) },
	answer: func(msg []byte, g *group) (end bool, err error) {
		err = fields(msg, func(f protowire.Number, v []byte, _ uint64) error {
			switch f {
			case 1:
				return g.sinkResult(v)
			case 3:
				return fields(v, func(f protowire.Number, _ []byte, n uint64) error {
					end = end || f == 1 && n != 0
					return nil
				})
			}
			return nil
		})
		return end, err
	},
}

func (g *group) sinkResult(b []byte) error {
	var id []byte
	r := SinkResult{set: true}
	err := fields(b, func(f protowire.Number, v []byte, n uint64) error {
		switch f {
		case 1:
			id = v
		case 2:
			r.Status = n
		case 3:
			r.Err = text(v)
		case 4:
			r.serve = v
		case 5:
			r.OnSuccess = v
		case 6:
			r.Nack = v
		}
		return nil
	})
	if err != nil {
		return err
	}
	i, ok := g.byID(id)
	if !ok {
		g.strays.Add(1)
		return nil
	}
	if g.answered(i) {
		g.results[i] = r
	}
	return nil
}

// sinkPipe gives messages to a sink. Unlike functions, sinks know messages by their real ids, which they may use to tell a second delivery.
type sinkPipe struct{ *batchPipe }

func (s sinkPipe) Call(ctx context.Context, in []flow.Message, part *Part) ([]Outcome, []int, error) {
	c := newCall(in)
	results := make([]SinkResult, len(in))
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
			out[i].Sink = &results[i]
		}
	}
	return out, notSent, err
}

// Message decodes the message for the on-success sink; nil if there is none.
func (r *SinkResult) Message() (*flow.Message, error) {
	if r.OnSuccess == nil {
		return nil, nil
	}
	m := &flow.Message{}
	err := fields(r.OnSuccess, func(f protowire.Number, v []byte, _ uint64) (err error) {
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
	return m, err
}

// Redelivery decodes the options of a nack: Delay, MaxDeliveries and Reason of the outcome are set.
func (r *SinkResult) Redelivery() (o Outcome, err error) {
	if r.Nack != nil {
		err = o.decodeNack(r.Nack)
	}
	return o, err
}
