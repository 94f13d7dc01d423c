package matrix

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/levada-io/levada/test/proxy/fakeh2"
)

// What the backend serves.
const (
	streamPath  = "/levada.test.Backend/Stream"  // a message each 100 ms, its number, without end
	pendingPath = "/levada.test.Backend/Pending" // one message, late
	quickPath   = "/levada.test.Backend/Quick"   // one message
)

// backendOptions are how a backend lives. No time means never.
type backendOptions struct {
	Age, Grace time.Duration // of connections, as grpc-go's keepalive has them
	StreamAge  time.Duration // then a stream ends with UNAVAILABLE
}

const (
	// pendingFor is longer than stopAfter, and shorter than the patience of who calls.
	pendingFor = 4 * time.Second
	// stopAfter a SIGTERM what has not ended is cut.
	stopAfter = time.Second
)

// startBackend runs a grpc-go server in a process of its own and returns its address.
func startBackend(t *testing.T, options backendOptions) (*process, string) {
	t.Helper()
	b, err := json.Marshal(options)
	if err != nil {
		t.Fatal(err)
	}
	p := startProcess(t, "backend", self("backend", "LEVADA_MATRIX_BACKEND="+string(b)))
	return p, p.await(t, "", "listening", 30*time.Second).Address
}

// backendMain is the backend.
func backendMain() error {
	var options backendOptions
	if err := json.Unmarshal([]byte(os.Getenv("LEVADA_MATRIX_BACKEND")), &options); err != nil {
		return err
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	server := grpc.NewServer(grpc.ForceServerCodec(raw{}), grpc.UnknownServiceHandler(options.handle),
		grpc.KeepaliveParams(keepalive.ServerParameters{MaxConnectionAge: options.Age, MaxConnectionAgeGrace: options.Grace}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: time.Millisecond, PermitWithoutStream: true}))
	term := make(chan os.Signal, 1)
	signal.Notify(term, syscall.SIGTERM)
	go func() {
		<-term
		go server.GracefulStop()
		time.Sleep(stopAfter)
		say(event{Event: "stop"})
		server.Stop()
	}()
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}()
	say(event{Event: "listening", Address: listener.Addr().String()})
	return server.Serve(listener)
}

func (o backendOptions) handle(_ any, stream grpc.ServerStream) error {
	ctx := stream.Context()
	md, _ := metadata.FromIncomingContext(ctx)
	id := ""
	if v := md.Get(fakeh2.IDHeader); len(v) > 0 {
		id = v[0]
	}
	var question []byte
	if err := stream.RecvMsg(&question); err != nil {
		return err
	}
	say(event{ID: id, Event: "call"})
	defer func() { say(event{ID: id, Event: "return"}) }()
	answer := []byte("1")
	switch method, _ := grpc.MethodFromServerStream(stream); method {
	case quickPath:
		return stream.SendMsg(&answer)
	case pendingPath:
		select {
		case <-ctx.Done():
			return status.FromContextError(ctx.Err()).Err()
		case <-time.After(pendingFor):
			return stream.SendMsg(&answer)
		}
	}
	if o.StreamAge > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, o.StreamAge, errAged)
		defer cancel()
	}
	for tick, n := time.NewTicker(100*time.Millisecond), 1; ; n++ {
		answer = strconv.AppendInt(nil, int64(n), 10)
		if err := stream.SendMsg(&answer); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
		}
	}
}

var errAged = status.Error(codes.Unavailable, "the stream is old enough")

// eofIsNil: a stream that ended well ends with io.EOF.
func eofIsNil(err error) error {
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}
