package grpclife_test

import (
	"context"
	"net"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/levada-io/levada/grpclife"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

type text = wrapperspb.StringValue

// handlers are those of the service test.Life.
type handlers struct {
	call func(context.Context, *text) (*text, error)
	down func(*text, grpc.ServerStream) error // the server streams
	both func(grpc.ServerStream) error        // both do
}

const (
	callMethod = "/test.Life/Call"
	downMethod = "/test.Life/Down"
	bothMethod = "/test.Life/Both"
)

var (
	downDesc = &grpc.StreamDesc{StreamName: "Down", ServerStreams: true}
	bothDesc = &grpc.StreamDesc{StreamName: "Both", ServerStreams: true, ClientStreams: true}
)

func register(s *grpc.Server, h handlers) {
	s.RegisterService(&grpc.ServiceDesc{
		ServiceName: "test.Life",
		HandlerType: (*any)(nil),
		Methods: []grpc.MethodDesc{{MethodName: "Call", Handler: func(_ any, ctx context.Context, decode func(any) error, in grpc.UnaryServerInterceptor) (any, error) {
			req := new(text)
			if err := decode(req); err != nil {
				return nil, err
			}
			handler := func(ctx context.Context, req any) (any, error) { return h.call(ctx, req.(*text)) }
			if in == nil {
				return handler(ctx, req)
			}
			return in(ctx, req, &grpc.UnaryServerInfo{FullMethod: callMethod}, handler)
		}}},
		Streams: []grpc.StreamDesc{
			{StreamName: "Down", ServerStreams: true, Handler: func(_ any, ss grpc.ServerStream) error {
				req := new(text)
				if err := ss.RecvMsg(req); err != nil {
					return err
				}
				return h.down(req, ss)
			}},
			{StreamName: "Both", ServerStreams: true, ClientStreams: true, Handler: func(_ any, ss grpc.ServerStream) error { return h.both(ss) }},
		},
	}, struct{}{})
}

// lab is a server and a client of it. Inside a synctest bubble all of it runs in virtual time.
type lab struct {
	server *grpc.Server
	conn   *grpc.ClientConn
}

func newLab(t *testing.T, h handlers, server []grpc.ServerOption, client ...grpc.DialOption) *lab {
	t.Helper()
	listener := bufconn.Listen(1 << 20)
	s := grpc.NewServer(server...)
	register(s, h)
	serving := make(chan error, 1)
	go func() { serving <- s.Serve(listener) }()
	conn := dial(t, func() (net.Conn, error) { return listener.Dial() }, client...)
	t.Cleanup(func() {
		conn.Close()
		s.Stop()
		<-serving
		listener.Close()
	})
	return &lab{s, conn}
}

func dial(t *testing.T, connect func() (net.Conn, error), client ...grpc.DialOption) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient("passthrough:///lab", append([]grpc.DialOption{
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(context.Context, string) (net.Conn, error) { return connect() }),
	}, client...)...)
	if err != nil {
		t.Fatal(err)
	}
	return conn
}

func (l *lab) down(t *testing.T, ctx context.Context) grpc.ClientStream {
	t.Helper()
	s, err := l.conn.NewStream(ctx, downDesc, downMethod)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.SendMsg(wrapperspb.String("go")); err != nil {
		t.Fatal(err)
	}
	if err := s.CloseSend(); err != nil {
		t.Fatal(err)
	}
	return s
}

func (l *lab) both(t *testing.T, ctx context.Context) grpc.ClientStream {
	t.Helper()
	s, err := l.conn.NewStream(ctx, bothDesc, bothMethod)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// readAll reads to the end, and returns how many messages came and the error.
func readAll(s grpc.ClientStream) (int, error) {
	for n := 0; ; n++ {
		if err := s.RecvMsg(new(text)); err != nil {
			return n, err
		}
	}
}

// wantEnd checks the status of a stream that was ended, and returns its RetryInfo.
func wantEnd(t *testing.T, err error, reason string) time.Duration {
	t.Helper()
	if status.Code(err) != codes.Unavailable {
		t.Fatalf("the stream ended with %v, want UNAVAILABLE", err)
	}
	retry, domain, got := time.Duration(-1), "", ""
	for _, d := range status.Convert(err).Details() {
		switch d := d.(type) {
		case *errdetails.RetryInfo:
			retry = d.GetRetryDelay().AsDuration()
		case *errdetails.ErrorInfo:
			domain, got = d.GetDomain(), d.GetReason()
		}
	}
	if domain != grpclife.Domain || got != reason || retry < 0 {
		t.Fatalf("the status says domain %q, reason %q, retry after %v; want %q, %q and a RetryInfo", domain, got, retry, grpclife.Domain, reason)
	}
	return retry
}

// journal is an Observer that remembers.
type journal struct {
	mu     sync.Mutex
	events []grpclife.Event
}

func (j *journal) see(e grpclife.Event) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.events = append(j.events, e)
}

func (j *journal) of(kind grpclife.EventKind) (found []grpclife.Event) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, e := range j.events {
		if e.Kind == kind {
			found = append(found, e)
		}
	}
	return found
}

// stubStream is a server's stream without a network.
type stubStream struct {
	grpc.ServerStream
	ctx context.Context
}

func (s stubStream) Context() context.Context     { return s.ctx }
func (s stubStream) SetHeader(metadata.MD) error  { return nil }
func (s stubStream) SendHeader(metadata.MD) error { return nil }
func (s stubStream) SetTrailer(metadata.MD)       {}

// witness classifies calls with all that can be known.
func witness(got *grpclife.Class) grpc.UnaryClientInterceptor {
	return func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoker grpc.UnaryInvoker, opts ...grpc.CallOption) error {
		var (
			header, trailer metadata.MD
			p               peer.Peer
		)
		err := invoker(ctx, method, req, reply, cc, append(opts, grpc.Header(&header), grpc.Trailer(&trailer), grpc.Peer(&p))...)
		*got = grpclife.ClassifyCall(err, grpclife.Evidence{Context: ctx, Header: header, Trailer: trailer, Sent: p.Addr != nil})
		return err
	}
}
