package streamtest

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/proto"

	streamv1 "github.com/levada-io/levada/proto/levada/stream/v1"
	"github.com/levada-io/levada/stream"
)

// waiting is a source that waits for more after its last record.
type waiting struct{ stream.Source }

func (s waiting) Open(ctx context.Context, q stream.Query) (stream.Cursor, error) {
	c, err := s.Source.Open(ctx, q)
	if err != nil {
		return nil, err
	}
	return wrongCursor{Cursor: c, next: func(ctx context.Context) ([]byte, error) {
		key, err := c.Next(ctx)
		if err == io.EOF {
			<-ctx.Done()
			return nil, context.Cause(ctx)
		}
		return key, err
	}}, nil
}

// faults are what a producer does wrong.
type producerFaults struct {
	request func(*streamv1.ReadRequest)
	frame   func(*streamv1.Frame) *streamv1.Frame // nil: it is not sent
	status  func(error) error
	drain   func(*stream.Server)
}

// startProducer starts our own producer, with faults, on a network in memory.
func startProducer(t *testing.T, faults producerFaults) ProducerUnderTest {
	records := tenRecords()
	records[3].Bad = "no value"
	server := valid(stream.NewServer(stream.ServerConfig{MarkEvery: 50 * time.Millisecond, Logger: slog.New(slog.DiscardHandler)}))
	server.Handle("ten", stream.Slice(records...))
	server.Handle("live", waiting{stream.Slice(records...)})
	g := grpc.NewServer(grpc.StreamInterceptor(func(srv any, s grpc.ServerStream, _ *grpc.StreamServerInfo, next grpc.StreamHandler) error {
		err := next(srv, faultyStream{s, faults})
		if faults.status != nil {
			err = faults.status(err)
		}
		return err
	}))
	server.Register(g)
	listener := bufconn.Listen(1 << 20)
	done := make(chan struct{})
	go func() { defer close(done); g.Serve(listener) }()
	conn, err := grpc.NewClient("passthrough:///producer", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return listener.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close(); g.Stop(); <-done })
	drain := func() { go server.Drain(context.Background()) }
	if faults.drain != nil {
		drain = func() { faults.drain(server) }
	}
	return ProducerUnderTest{Conn: conn, Stream: "ten", Count: 10, Waiting: "live", Drain: drain}
}

type faultyStream struct {
	grpc.ServerStream
	faults producerFaults
}

func (s faultyStream) RecvMsg(m any) error {
	err := s.ServerStream.RecvMsg(m)
	if req, ok := m.(*streamv1.ReadRequest); ok && err == nil && s.faults.request != nil {
		s.faults.request(req)
	}
	return err
}

func (s faultyStream) SendMsg(m any) error {
	if s.faults.frame != nil {
		// Our server's records are unknown fields of the message: they are parsed as a reader would.
		b, err := proto.Marshal(m.(proto.Message))
		if err != nil {
			return err
		}
		f := new(streamv1.Frame)
		if err := proto.Unmarshal(b, f); err != nil {
			return err
		}
		if f = s.faults.frame(f); f == nil {
			return nil
		}
		m = f
	}
	return s.ServerStream.SendMsg(m)
}

func TestRunProducer(t *testing.T) {
	RunProducer(t, func(t *testing.T) ProducerUnderTest { return startProducer(t, producerFaults{}) })
}

// TestRunProducerFindsFaults: a suite that finds nothing would say of each producer that it is right.
func TestRunProducerFindsFaults(t *testing.T) {
	batch := func(change func(*streamv1.Batch)) func(*streamv1.Frame) *streamv1.Frame {
		return func(f *streamv1.Frame) *streamv1.Frame {
			if b := f.GetBatch(); b != nil {
				change(b)
			}
			return f
		}
	}
	for _, test := range []struct {
		name, check string
		faults      producerFaults
	}{
		{"no first mark", "WholeStream", producerFaults{frame: func(f *streamv1.Frame) *streamv1.Frame {
			if f.GetMark() != nil {
				return nil
			}
			return f
		}}},
		{"no End", "WholeStream", producerFaults{frame: func(f *streamv1.Frame) *streamv1.Frame {
			if f.GetEnd() != nil {
				return nil
			}
			return f
		}}},
		{"End with the digest of nothing", "WholeStream", producerFaults{frame: func(f *streamv1.Frame) *streamv1.Frame {
			if e := f.GetEnd(); e != nil {
				e.Digest = make([]byte, 16)
			}
			return f
		}}},
		{"a record is left out", "WholeStream", producerFaults{frame: batch(func(b *streamv1.Batch) {
			b.Records, b.Count = b.Records[1:], b.Count-1
		})}},
		{"a value is changed", "WholeStream", producerFaults{frame: batch(func(b *streamv1.Batch) { b.Records[0].Value = []byte("x") })}},
		{"a count is wrong", "WholeStream", producerFaults{frame: batch(func(b *streamv1.Batch) { b.Count++ })}},
		{"the number is wrong", "WholeStream", producerFaults{frame: batch(func(b *streamv1.Batch) { b.FirstSeq++ })}},
		{"the token is not looked at", "ResumeAfterEachToken", producerFaults{request: func(r *streamv1.ReadRequest) { r.After, r.NextSeq = nil, 0 }}},
		{"the number is not looked at", "ResumeInsideBatches", producerFaults{request: func(r *streamv1.ReadRequest) { r.NextSeq = 0 }}},
		{"the limit of records is not looked at", "BatchLimits", producerFaults{request: func(r *streamv1.ReadRequest) { r.MaxBatchRecords = 0 }}},
		{"the limit of bytes is not looked at", "BatchLimits", producerFaults{request: func(r *streamv1.ReadRequest) { r.MaxBatchBytes = 0 }}},
		{"the query is not looked at", "ForeignQueryIsRefused", producerFaults{request: func(r *streamv1.ReadRequest) { r.Query = nil }}},
		{"damaged tokens are the start", "DamagedTokensAreRefused", producerFaults{request: func(r *streamv1.ReadRequest) { r.After = nil }}},
		{"refusals have no reason", "UnknownStreamIsRefused", producerFaults{status: func(err error) error {
			if err != nil {
				return errors.New("no")
			}
			return nil
		}}},
		{"an older number is taken for 0", "NumberBeforeTokenIsRefused", producerFaults{request: func(r *streamv1.ReadRequest) { r.NextSeq = 0 }}},
		{"a drain with another reason", "Drain", producerFaults{frame: func(f *streamv1.Frame) *streamv1.Frame {
			if d := f.GetDrain(); d != nil {
				d.Reason = "age"
			}
			return f
		}}},
	} {
		t.Run(test.name, func(t *testing.T) {
			p := startProducer(t, test.faults)
			for _, check := range producerChecks {
				if check.name == test.check {
					if err := check.run(p); err == nil {
						t.Fatalf("%s has found nothing", check.name)
					} else {
						t.Log(err)
					}
					return
				}
			}
			t.Fatalf("there is no check %q", test.check)
		})
	}
}

// valid returns a server whose configuration is known to be valid.
func valid(s *stream.Server, err error) *stream.Server {
	if err != nil {
		panic(err)
	}
	return s
}
