package sdk

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"sync"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Flow-control windows wide enough for several blocks: the peer is one trusted process on the same host,
// and what it may send is bounded anyway.
const window = 16 << 20

// haltGrace is how long streams and user code have to notice that they were cancelled.
const haltGrace = 2 * time.Second

// kind is what distinguishes one kind of function from another before the first message.
type kind struct {
	endpoint
	container string // unless the environment says
	metadata  map[string]string
}

// server runs one function. Everything that outlives a call is owned by serve, which waits for it.
type server struct {
	options
	container string
	seats     *seats
	grpc      *grpc.Server

	failed chan *failure // the first failure of user code
	halt   chan struct{} // closed when streams must end now
	work   sync.WaitGroup
}

// serve runs a function until the context, a signal or a failure ends it. When it returns, nothing it started still runs,
// except user code that ignored its context; then it returns an error, and the process should end.
func serve(ctx context.Context, k kind, given []Option, register func(*server)) error {
	o, err := newOptions(given)
	if err != nil {
		return err
	}
	seats, err := newSeats(o.concurrency, os.Getenv(envAnnounceFile))
	if err != nil {
		return err
	}
	s := &server{
		options:   o,
		container: k.container,
		seats:     seats,
		failed:    make(chan *failure, 1),
		halt:      make(chan struct{}),
		grpc: grpc.NewServer(
			grpc.ForceServerCodecV2(codec{}),
			grpc.MaxRecvMsgSize(o.maxMessageSize),
			grpc.MaxSendMsgSize(o.maxMessageSize),
			grpc.InitialWindowSize(window),
			grpc.InitialConnWindowSize(window),
			grpc.ReadBufferSize(128<<10),
			grpc.WriteBufferSize(128<<10),
		),
	}
	if role := os.Getenv(envContainerType); role != "" {
		s.container = role
	}
	register(s)

	ballast := newBallast()
	defer runtime.KeepAlive(ballast)
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	listener, err := listen(o.dir, k.endpoint, k.metadata)
	if err != nil {
		return errors.Join(err, seats.close())
	}
	serving := make(chan error, 1)
	go func() { serving <- s.grpc.Serve(listener) }()

	var failed *failure
	select {
	case <-ctx.Done():
	case failed = <-s.failed:
	case err = <-serving:
		serving <- err
	}
	// A platform that looks from now on must wait for the next process.
	os.Remove(filepath.Join(o.dir, k.info))
	idle := s.shutdown(failed != nil)
	if serveErr := <-serving; serveErr != nil {
		err = fmt.Errorf("sdk: serve: %w", serveErr)
	}
	if failed != nil {
		err = fmt.Errorf("sdk: user code failed: %w", failed)
	}
	if !idle {
		// The announce file stays mapped: user code that is still running will store to it.
		return errors.Join(err, errors.New("sdk: user code is still running, and has ignored its context"))
	}
	return errors.Join(err, seats.close())
}

// shutdown ends all streams and says whether all user code has returned. A platform that drains closes its streams by
// itself; after a failure of user code there is nothing to wait for.
func (s *server) shutdown(now bool) (idle bool) {
	ended := make(chan struct{})
	go func() {
		s.grpc.GracefulStop()
		close(ended)
	}()
	if !now {
		within(s.grace, ended)
	}
	close(s.halt)
	if !within(haltGrace, ended) {
		s.grpc.Stop()
		<-ended
	}
	returned := make(chan struct{})
	go func() {
		s.work.Wait()
		close(returned)
	}()
	return within(haltGrace, returned)
}

func within(d time.Duration, done <-chan struct{}) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-done:
		return true
	case <-timer.C:
		return false
	}
}

// run serves one stream. It returns early when the server halts: grpc then cancels the stream's context, and with it user code.
func (s *server) run(serve func() error) error {
	done := make(chan error, 1)
	s.work.Go(func() { done <- serve() })
	select {
	case err := <-done:
		return s.report(err)
	case <-s.halt:
		return status.Error(codes.Unavailable, "the function is stopping")
	}
}

// report turns the end of a call into its gRPC status. A failure of user code ends the process as well: the contract has no
// other way to be rid of state that a panic may have left broken.
func (s *server) report(err error) error {
	var f *failure
	if !errors.As(err, &f) {
		return err
	}
	slog.Error("user code failed", "container", s.container, "error", f.text, "stack", f.stack)
	select {
	case s.failed <- f:
	default:
	}
	return f.status(s.container)
}
