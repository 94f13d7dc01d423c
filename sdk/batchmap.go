package sdk

import (
	"context"
	"errors"
	"fmt"
	"io"

	"google.golang.org/grpc"

	mapv1 "github.com/levada-io/levada/proto/numaflow/map/v1"
)

// A BatchMapper turns a batch of messages into their results.
type BatchMapper interface {
	// MapBatch returns the results of each message, in the order of the messages: none for one that is filtered out.
	// One stream calls it for one batch at a time.
	MapBatch(ctx context.Context, batch []Message) ([][]Result, error)
}

// BatchMapFunc is a BatchMapper.
type BatchMapFunc func(ctx context.Context, batch []Message) ([][]Result, error)

// MapBatch calls f.
func (f BatchMapFunc) MapBatch(ctx context.Context, batch []Message) ([][]Result, error) {
	return f(ctx, batch)
}

// ServeBatchMap serves a batch map until the context ends, SIGTERM or SIGINT arrives, or user code fails.
func ServeBatchMap(ctx context.Context, mapper BatchMapper, opts ...Option) error {
	k := kind{
		endpoint:  endpoint{"batchmap.sock", mapInfo},
		container: "udf",
		metadata:  map[string]string{metadataMapMode: "batch-map"},
	}
	return serve(ctx, k, opts, func(s *server) {
		mapv1.RegisterMapServer(s.grpc, &batchMapServer{mapServer: mapServer{server: s}, mapper: mapper})
	})
}

type batchMapServer struct {
	mapServer
	mapper BatchMapper
}

func (m *batchMapServer) MapFn(stream grpc.BidiStreamingServer[mapv1.MapRequest, mapv1.MapResponse]) error {
	return m.server.batches(stream, mapEnvelope, mapHandshake(), mapLayout, m.answer)
}

func (m *batchMapServer) answer(ctx context.Context, stream grpc.ServerStream, batch []Message) error {
	results, err := call(func() ([][]Result, error) {
		results, err := m.mapper.MapBatch(ctx, batch)
		if err == nil && len(results) != len(batch) {
			err = fmt.Errorf("MapBatch returned the results of %d messages for a batch of %d", len(results), len(batch))
		}
		return results, err
	})
	if err != nil {
		return err
	}
	for i, message := range batch {
		b, err := appendResults(make([]byte, 0, len(message.Value)+128), results[i])
		if err != nil {
			return userError(err)
		}
		b = appendString(b, 2, message.ID)
		if err := stream.SendMsg(reply{&b}); err != nil {
			return err
		}
	}
	last := appendFlag(nil, 4)
	return stream.SendMsg(reply{&last})
}

// batches serves a stream of messages in batches, each closed by the client with status.eot. A batch that the client's
// half-close leaves open is not answered: the platform does not want it any more.
func (s *server) batches(stream grpc.ServerStream, wire envelopeLayout, greeting []byte, layout layout,
	answer func(context.Context, grpc.ServerStream, []Message) error) error {
	return s.run(func() error {
		if err := handshake(stream, wire, greeting); err != nil {
			return err
		}
		for {
			batch, err := readBatch(stream, wire, layout)
			if errors.Is(err, io.EOF) {
				return nil
			} else if err != nil {
				return err
			}
			if err := answer(stream.Context(), stream, batch); err != nil {
				return err
			}
		}
	})
}

func readBatch(stream grpc.ServerStream, wire envelopeLayout, layout layout) ([]Message, error) {
	var batch []Message
	for {
		var raw frame
		if err := stream.RecvMsg(&raw); err != nil {
			return nil, err
		}
		e, err := decodeEnvelope(raw, wire)
		if err != nil {
			return nil, errMalformed(err)
		}
		if e.end {
			return batch, nil
		}
		m, err := decodeMessage(e.message, layout)
		if err != nil {
			return nil, errMalformed(err)
		}
		if wire.id != 0 {
			m.ID = e.id
		}
		batch = append(batch, m)
	}
}
