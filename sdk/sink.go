package sdk

import (
	"context"
	"fmt"
	"os"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/types/known/emptypb"

	sinkv1 "github.com/levada-io/levada/proto/numaflow/sink/v1"
)

// A Sink takes messages out of the pipeline.
type Sink interface {
	// Sink says what became of each message, in the order of the messages; nil says that all were written.
	// One stream calls it for one batch at a time. An error ends the process: use Failed for what may be tried again.
	Sink(ctx context.Context, batch []Message) ([]Written, error)
}

// SinkFunc is a Sink.
type SinkFunc func(ctx context.Context, batch []Message) ([]Written, error)

// Sink calls f.
func (f SinkFunc) Sink(ctx context.Context, batch []Message) ([]Written, error) { return f(ctx, batch) }

// Written says what became of a message. The zero value says that it was written.
type Written struct {
	status    sinkv1.Status
	err       string
	serve     []byte
	onSuccess *Result
	nack      *NackOptions
}

// Failed says that the message was not written. The platform tries again, as the vertex's retry strategy says.
func Failed(err error) Written { return Written{status: sinkv1.Status_FAILURE, err: err.Error()} }

// Fallback hands the message to the fallback sink.
func Fallback() Written { return Written{status: sinkv1.Status_FALLBACK} }

// Serve says that the message was written, and hands a payload to the serving store.
func Serve(payload []byte) Written { return Written{status: sinkv1.Status_SERVE, serve: payload} }

// OnSuccess says that the message was written, and hands a message to the on-success sink: the given one (its value,
// keys and metadata), or, if it is nil, the message itself.
func OnSuccess(message *Result) Written {
	return Written{status: sinkv1.Status_ON_SUCCESS, onSuccess: message}
}

// Nack gives the message back to the buffer, to be delivered again.
func Nack(options NackOptions) Written {
	return Written{status: sinkv1.Status_NACK, nack: &options}
}

// ServeSink serves a sink until the context ends, SIGTERM or SIGINT arrives, or user code fails.
// NUMAFLOW_UD_CONTAINER_TYPE makes it a primary sink (the default), a fallback sink or an on-success sink.
func ServeSink(ctx context.Context, sink Sink, opts ...Option) error {
	return serve(ctx, sinkKind(os.Getenv(envContainerType)), opts, func(s *server) {
		sinkv1.RegisterSinkServer(s.grpc, &sinkServer{server: s, sink: sink})
	})
}

func sinkKind(role string) kind {
	switch role {
	case "fb-udsink":
		return kind{endpoint: endpoint{"fb-sink.sock", "fb-sinker-server-info"}, container: role}
	case "ons-udsink":
		return kind{endpoint: endpoint{"ons-sink.sock", "ons-sinker-server-info"}, container: role}
	}
	return kind{endpoint: endpoint{"sink.sock", "sinker-server-info"}, container: "udsink"}
}

type sinkServer struct {
	sinkv1.UnimplementedSinkServer
	server *server
	sink   Sink
}

func (*sinkServer) IsReady(context.Context, *emptypb.Empty) (*sinkv1.ReadyResponse, error) {
	return &sinkv1.ReadyResponse{Ready: true}, nil
}

func (s *sinkServer) SinkFn(stream grpc.BidiStreamingServer[sinkv1.SinkRequest, sinkv1.SinkResponse]) error {
	return s.server.batches(stream, sinkEnvelope, appendFlag(nil, 2), sinkLayout, s.answer)
}

func (s *sinkServer) answer(ctx context.Context, stream grpc.ServerStream, batch []Message) error {
	if len(batch) > 0 {
		written, err := call(func() ([]Written, error) {
			written, err := s.sink.Sink(ctx, batch)
			if written == nil && err == nil {
				return make([]Written, len(batch)), nil
			}
			if err == nil && len(written) != len(batch) {
				err = fmt.Errorf("Sink said what became of %d messages of a batch of %d", len(written), len(batch))
			}
			return written, err
		})
		if err != nil {
			return err
		}
		if err := sendWritten(stream, batch, written); err != nil {
			return err
		}
	}
	last := appendFlag(nil, 3)
	return stream.SendMsg(reply{&last})
}

// sendWritten sends results in frames of about flushSize.
func sendWritten(stream grpc.ServerStream, batch []Message, written []Written) error {
	b := make([]byte, 0, 32*len(batch))
	for i := range batch {
		var body int
		var err error
		b, body = begin(b, 1)
		if b, err = appendWritten(b, batch[i].ID, &written[i]); err != nil {
			return userError(err)
		}
		b = end(b, body)
		if len(b) >= flushSize || i == len(batch)-1 {
			full := b
			if err := stream.SendMsg(reply{&full}); err != nil {
				return err
			}
			b = nil // the transport may still read it
		}
	}
	return nil
}

func appendWritten(b []byte, id string, w *Written) ([]byte, error) {
	b = appendString(b, 1, id)
	if w.status != sinkv1.Status_SUCCESS {
		b = appendVarint(b, 2, uint64(w.status))
	}
	b = appendString(b, 3, strings.ToValidUTF8(w.err, "�"))
	if w.serve != nil {
		b = protowire.AppendBytes(protowire.AppendTag(b, 4, protowire.BytesType), w.serve)
	}
	if r := w.onSuccess; r != nil {
		var body int
		var err error
		b, body = begin(b, 5)
		b = appendBytes(b, 1, r.Value)
		if b, err = appendStrings(b, 2, r.Keys); err != nil {
			return b, err
		}
		if b, err = appendMetadata(b, 3, r.Metadata); err != nil {
			return b, err
		}
		b = end(b, body)
	}
	return appendNack(b, 6, w.nack)
}
