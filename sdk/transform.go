package sdk

import (
	"context"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/emptypb"

	sourcetransformv1 "github.com/levada-io/levada/proto/numaflow/sourcetransform/v1"
)

// Event is an output of a source transformer: a result with an event time.
type Event struct {
	// EventTime is what watermarks are made of. The zero time stands for that of the input.
	EventTime time.Time
	Keys      []string
	Value     []byte
	Tags      []string
	// Metadata becomes the user metadata of the event; nil clears it.
	Metadata map[string]map[string][]byte
	// Nack goes with TagNack.
	Nack *NackOptions
}

// A Transformer changes messages as they leave a source, before a watermark is made of their event times.
type Transformer interface {
	// Transform may be called concurrently. No events: the message is dropped, and the watermark still sees its event time.
	Transform(ctx context.Context, m Message) ([]Event, error)
}

// TransformFunc is a Transformer.
type TransformFunc func(ctx context.Context, m Message) ([]Event, error)

// Transform calls f.
func (f TransformFunc) Transform(ctx context.Context, m Message) ([]Event, error) { return f(ctx, m) }

// ServeTransform serves a source transformer until the context ends, SIGTERM or SIGINT arrives, or user code fails.
func ServeTransform(ctx context.Context, transformer Transformer, opts ...Option) error {
	k := kind{
		endpoint:  endpoint{"sourcetransform.sock", "sourcetransformer-server-info"},
		container: "transformer",
	}
	return serve(ctx, k, opts, func(s *server) {
		sourcetransformv1.RegisterSourceTransformServer(s.grpc, &transformServer{server: s, transformer: transformer})
	})
}

type transformServer struct {
	sourcetransformv1.UnimplementedSourceTransformServer
	server      *server
	transformer Transformer
}

func (*transformServer) IsReady(context.Context, *emptypb.Empty) (*sourcetransformv1.ReadyResponse, error) {
	return &sourcetransformv1.ReadyResponse{Ready: true}, nil
}

func (t *transformServer) SourceTransformFn(
	stream grpc.BidiStreamingServer[sourcetransformv1.SourceTransformRequest, sourcetransformv1.SourceTransformResponse],
) error {
	greeting := appendFlag(nil, 3)
	return t.server.each(stream, transformEnvelope, greeting, func(ctx context.Context, out *sender, raw frame, seat seat) error {
		e, err := decodeEnvelope(raw, transformEnvelope)
		if err != nil {
			return errMalformed(err)
		}
		m, err := decodeMessage(e.message, transformLayout)
		if err != nil {
			return errMalformed(err)
		}
		seat.unary(m.ID)
		events, err := call(func() ([]Event, error) { return t.transformer.Transform(ctx, m) })
		if err != nil {
			return err
		}
		seat.clear()
		if len(events) == 0 {
			// The contract takes an empty answer for a lost one.
			events = []Event{{Tags: []string{TagDrop}}}
		}
		b := make([]byte, 0, len(raw)+64)
		for i := range events {
			if events[i].EventTime.IsZero() {
				events[i].EventTime = m.EventTime
			}
			var body int
			b, body = begin(b, 1)
			if b, err = appendEvent(b, &events[i]); err != nil {
				return userError(err)
			}
			b = end(b, body)
		}
		return out.send(appendString(b, 2, m.ID))
	})
}
