package sdk

import (
	"context"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/emptypb"

	functionv1 "github.com/levada-io/levada/proto/levada/function/v1"
	mapv1 "github.com/levada-io/levada/proto/numaflow/map/v1"
)

// A Mapper turns a message into any number of results. None: the message is filtered out.
type Mapper interface {
	// Map may be called concurrently. See the package's words about lifetimes and failures.
	Map(ctx context.Context, m Message) ([]Result, error)
}

// MapFunc is a Mapper.
type MapFunc func(ctx context.Context, m Message) ([]Result, error)

// Map calls f.
func (f MapFunc) Map(ctx context.Context, m Message) ([]Result, error) { return f(ctx, m) }

const mapInfo = "mapper-server-info"

// ServeMap serves a map until the context ends, SIGTERM or SIGINT arrives, or user code fails outside of block mode.
func ServeMap(ctx context.Context, mapper Mapper, opts ...Option) error {
	o, err := newOptions(opts)
	if err != nil {
		return err
	}
	k := kind{
		endpoint:  endpoint{"map.sock", mapInfo},
		container: "udf",
		metadata:  map[string]string{metadataMapMode: "unary-map"},
	}
	if !o.noBlocks {
		k.metadata[metadataBlocks] = "1"
	}
	return serve(ctx, k, opts, func(s *server) {
		mapv1.RegisterMapServer(s.grpc, &mapServer{server: s, mapper: mapper})
		if !o.noBlocks {
			functionv1.RegisterBlockMapServer(s.grpc, &blockServer{server: s, mapper: mapper})
		}
	})
}

type blockServer struct {
	functionv1.UnimplementedBlockMapServer
	server *server
	mapper Mapper
}

func (b *blockServer) MapFn(stream grpc.BidiStreamingServer[functionv1.MapBlock, functionv1.MapBlockResult]) error {
	return b.server.run(func() error { return b.server.serveBlocks(stream, b.mapper) })
}

// mapHandshake is MapResponse{handshake{sot}}.
func mapHandshake() []byte { return appendFlag(nil, 3) }

type mapServer struct {
	mapv1.UnimplementedMapServer
	server *server
	mapper Mapper
}

func (*mapServer) IsReady(context.Context, *emptypb.Empty) (*mapv1.ReadyResponse, error) {
	return &mapv1.ReadyResponse{Ready: true}, nil
}

func (m *mapServer) MapFn(stream grpc.BidiStreamingServer[mapv1.MapRequest, mapv1.MapResponse]) error {
	return m.server.each(stream, mapEnvelope, mapHandshake(), func(ctx context.Context, out *sender, raw frame, seat seat) error {
		id, message, err := decodeMapRequest(raw)
		if err != nil {
			return err
		}
		seat.unary(id)
		results, failed := callMap(ctx, m.mapper, message)
		if failed != nil {
			return failed // the process ends: what is announced stays, to say whose failure it was
		}
		seat.clear()
		b, err := appendResults(make([]byte, 0, len(raw)+64), results)
		if err != nil {
			return userError(err)
		}
		return out.send(appendString(b, 2, id))
	})
}

func decodeMapRequest(raw frame) (id string, m Message, err error) {
	e, err := decodeEnvelope(raw, mapEnvelope)
	if err != nil {
		return "", m, errMalformed(err)
	}
	m, err = decodeMessage(e.message, mapLayout)
	if err != nil {
		return "", m, errMalformed(err)
	}
	m.ID = e.id
	return e.id, m, nil
}

// each serves a stream on which every message is answered by itself.
func (s *server) each(stream grpc.ServerStream, wire envelopeLayout, greeting []byte,
	answer func(context.Context, *sender, frame, seat) error) error {
	ctx, out := stream.Context(), &sender{stream: stream}
	return s.run(func() error {
		if err := handshake(stream, wire, greeting); err != nil {
			return err
		}
		first, err := s.seats.take(ctx)
		if err != nil {
			return err
		}
		c := &crew{
			server: s,
			recv:   func() (raw frame, err error) { return raw, stream.RecvMsg(&raw) },
			answer: func(raw frame, seat seat) error { return answer(ctx, out, raw, seat) },
		}
		return c.run(first)
	})
}
