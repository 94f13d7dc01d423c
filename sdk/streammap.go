package sdk

import (
	"context"
	"errors"

	"google.golang.org/grpc"

	mapv1 "github.com/levada-io/levada/proto/numaflow/map/v1"
)

// A StreamMapper turns a message into results that leave one by one, as soon as each is made.
type StreamMapper interface {
	// MapStream may be called concurrently. It calls emit, from its own goroutine, once for each result, and must not call it
	// after returning. An error of emit means that the platform is gone: return it.
	MapStream(ctx context.Context, m Message, emit func(Result) error) error
}

// StreamMapFunc is a StreamMapper.
type StreamMapFunc func(ctx context.Context, m Message, emit func(Result) error) error

// MapStream calls f.
func (f StreamMapFunc) MapStream(ctx context.Context, m Message, emit func(Result) error) error {
	return f(ctx, m, emit)
}

// ServeStreamMap serves a stream map until the context ends, SIGTERM or SIGINT arrives, or user code fails.
func ServeStreamMap(ctx context.Context, mapper StreamMapper, opts ...Option) error {
	k := kind{
		endpoint:  endpoint{"mapstream.sock", mapInfo},
		container: "udf",
		metadata:  map[string]string{metadataMapMode: "stream-map"},
	}
	return serve(ctx, k, opts, func(s *server) {
		mapv1.RegisterMapServer(s.grpc, &streamMapServer{mapServer: mapServer{server: s}, mapper: mapper})
	})
}

type streamMapServer struct {
	mapServer
	mapper StreamMapper
}

func (m *streamMapServer) MapFn(stream grpc.BidiStreamingServer[mapv1.MapRequest, mapv1.MapResponse]) error {
	return m.server.each(stream, mapEnvelope, mapHandshake(), func(ctx context.Context, out *sender, raw frame, seat seat) error {
		id, message, err := decodeMapRequest(raw)
		if err != nil {
			return err
		}
		seat.unary(id)
		if err := m.stream(ctx, message, out, id); err != nil {
			return err
		}
		seat.clear()
		return out.send(appendFlag(appendString(nil, 2, id), 4))
	})
}

// stream calls user code. An error of the transport is not one of user code, even if user code hands it on.
func (m *streamMapServer) stream(ctx context.Context, message Message, out *sender, id string) error {
	var transport error
	ended := false
	emit := func(r Result) error {
		if ended {
			return errors.New("sdk: emit was called after MapStream had returned")
		}
		b, err := appendResults(make([]byte, 0, len(r.Value)+128), []Result{r})
		if err != nil {
			return err
		}
		if transport == nil {
			transport = out.send(appendString(b, 2, id))
		}
		return transport
	}
	_, err := call(func() (struct{}, error) { return struct{}{}, m.mapper.MapStream(ctx, message, emit) })
	ended = true
	if transport != nil {
		return transport
	}
	return err
}
