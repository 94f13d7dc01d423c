package stream

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"

	streamv1 "github.com/levada-io/levada/proto/levada/stream/v1"
)

// ServerConfig has a usable zero value.
type ServerConfig struct {
	// BatchBytes is the size at which a batch is sent, in bytes of encoded records. Default 256 KiB: larger ones gain nothing.
	BatchBytes int
	// MaxRecord is the largest record that is sent, in bytes, if the reader takes it; a larger one becomes a bad record.
	// Default 3.5 MiB, which fits the message limit that gRPC clients have by default.
	MaxRecord int
	// BatchDelay is how long the first record of a batch waits for others while the source is waiting too. Default 1 ms; [AtOnce]: it
	// does not wait.
	BatchDelay time.Duration
	// MarkEvery is the longest time without a frame: a mark is sent when there are no records. Default 5 s.
	MarkEvery time.Duration
	// MaxStreamAge is when a stream is ended on purpose, give or take a tenth, so that readers spread over new
	// producers. Default 30 min; [Never]: streams are not ended.
	MaxStreamAge time.Duration
	// MaxStreams is how many streams are served at once; further readers are refused with RESOURCE_EXHAUSTED. Default 1000.
	MaxStreams int
	// Logger gets what goes wrong in sources. Default slog.Default.
	Logger *slog.Logger
	// OnBad is called for each record that could not be made: its source's Value panicked or refused it, or it is too large.
	OnBad func(stream string, seq uint64, key []byte, err error)
}

func (c ServerConfig) withDefaults() ServerConfig {
	c.BatchBytes = cmp.Or(c.BatchBytes, 256<<10)
	c.MaxRecord = cmp.Or(c.MaxRecord, 3584<<10)
	c.BatchDelay = cmp.Or(c.BatchDelay, time.Millisecond)
	c.MarkEvery = cmp.Or(c.MarkEvery, 5*time.Second)
	c.MaxStreamAge = cmp.Or(c.MaxStreamAge, 30*time.Minute)
	c.MaxStreams = cmp.Or(c.MaxStreams, 1000)
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	return c
}

// Server hands out the records of sources, as levada.stream.v1.Stream. It keeps nothing about its readers, so any number of
// replicas may serve the same source.
type Server struct {
	streamv1.UnimplementedStreamServer
	config ServerConfig

	mu       sync.Mutex
	sources  map[string]Source
	open     int
	draining bool
	drain    chan struct{} // closed when Drain begins
	idle     chan struct{} // closed when draining and no stream is open
}

func (c ServerConfig) validate() error {
	if c.MaxStreamAge < 0 && c.MaxStreamAge != Never {
		return fmt.Errorf("ServerConfig.MaxStreamAge is %v, but must not be negative; stream.Never keeps streams open, 0 is the default", c.MaxStreamAge)
	}
	if c.BatchDelay < 0 {
		return fmt.Errorf("ServerConfig.BatchDelay is %v, but must not be negative; stream.AtOnce sends a record at once, 0 is the default", c.BatchDelay)
	}
	return checkLimits("ServerConfig", bound{"BatchBytes", c.BatchBytes}, bound{"MaxRecord", c.MaxRecord},
		bound{"MarkEvery", c.MarkEvery}, bound{"MaxStreams", c.MaxStreams})
}

// NewServer returns a server without streams: add them with Handle, then Register it. It returns an error that names the field when the
// configuration cannot be.
func NewServer(config ServerConfig) (*Server, error) {
	if err := config.validate(); err != nil {
		return nil, err
	}
	return &Server{config: config.withDefaults(), sources: map[string]Source{}, drain: make(chan struct{}), idle: make(chan struct{})}, nil
}

// Handle serves a source as the stream of that name. A second source of the same name takes the place of the first.
// An empty name or a nil source is an error, and readers of that stream get ErrUnknownStream.
func (s *Server) Handle(stream string, source Source) error {
	if err := checkHandle("Server", "source", stream, source); err != nil {
		s.config.Logger.Error("stream not served", "error", err)
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sources[stream] = source
	return nil
}

// Register adds the service to a gRPC server.
func (s *Server) Register(r grpc.ServiceRegistrar) { streamv1.RegisterStreamServer(r, s) }

// Drain ends each stream between two batches, with a frame that tells the reader to go on elsewhere, refuses new ones, and
// returns when none is left, or with ctx's error. Call it before GracefulStop, which would wait indefinitely for the streams;
// [Shutdown] does all of it.
func (s *Server) Drain(ctx context.Context) error {
	s.mu.Lock()
	if !s.draining {
		s.draining = true
		close(s.drain)
		if s.open == 0 {
			close(s.idle)
		}
	}
	s.mu.Unlock()
	select {
	case <-s.idle:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("%d streams did not end: %w", s.Open(), context.Cause(ctx))
	}
}

// Shutdown stops a gRPC server in the right order, until ctx ends: the streams first, then all other calls, then by force. It returns
// an error if force was needed.
func Shutdown(ctx context.Context, g *grpc.Server, s *Server) error {
	err := s.Drain(ctx)
	stopped := make(chan struct{})
	// GracefulStop waits for handlers also after Stop. So this outlives Shutdown when a source ignores its context.
	go func() { g.GracefulStop(); close(stopped) }()
	select {
	case <-stopped:
		return err
	case <-ctx.Done():
	}
	g.Stop()
	if err == nil {
		err = fmt.Errorf("calls beside the streams were cut: %w", context.Cause(ctx))
	}
	return err
}

// Open returns how many streams are being served.
func (s *Server) Open() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.open
}

func (s *Server) enter(stream string) (Source, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch source := s.sources[stream]; {
	case s.draining:
		return nil, newStatus(codes.Unavailable, ReasonDraining, "the producer is shutting down", 100*time.Millisecond)
	case source == nil:
		return nil, statusOf(fmt.Errorf("%w: %q", ErrUnknownStream, stream))
	case s.open >= s.config.MaxStreams:
		return nil, newStatus(codes.ResourceExhausted, ReasonTooManyStreams, fmt.Sprintf("%d streams are open, which is the limit", s.open), jitter(time.Second))
	default:
		s.open++
		return source, nil
	}
}

func (s *Server) leave() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.open--
	if s.draining && s.open == 0 {
		close(s.idle)
	}
}

// Read implements levada.stream.v1.Stream.
func (s *Server) Read(req *streamv1.ReadRequest, out grpc.ServerStreamingServer[streamv1.Frame]) error {
	source, err := s.enter(req.GetStream())
	if err != nil {
		return err
	}
	defer s.leave()
	return s.serve(req, source, out)
}

// serve reads the source in one goroutine and sends in another, so that marks and drains go out while the source waits, and the
// next batch is made while one is sent.
func (s *Server) serve(req *streamv1.ReadRequest, source Source, out grpc.ServerStreamingServer[streamv1.Frame]) error {
	ctx, cancel := context.WithCancel(out.Context())
	r := newReading(s.config, req, source)
	var reader sync.WaitGroup
	defer reader.Wait()
	defer cancel()
	at, err := r.start(ctx)
	if err != nil {
		return s.failed(req, err)
	}
	if err := out.Send(r.markNow()); err != nil {
		return err
	}
	reader.Go(func() { r.read(ctx, at) })
	if sizer, ok := source.(Sizer); ok {
		reader.Go(func() { r.askSize(ctx, sizer) })
	}
	return s.send(ctx, r, out)
}

func (s *Server) send(ctx context.Context, r *reading, out grpc.ServerStreamingServer[streamv1.Frame]) error {
	marks := time.NewTicker(max(s.config.MarkEvery/2, 1))
	defer marks.Stop()
	age := make(<-chan time.Time)
	if s.config.MaxStreamAge > 0 {
		timer := time.NewTimer(jitter(s.config.MaxStreamAge))
		defer timer.Stop()
		age = timer.C
	}
	delay := time.NewTimer(s.config.BatchDelay)
	delay.Stop()
	defer delay.Stop()
	waiting := false // delay runs
	silent := 0      // ticks since something was sent; the second comes at most MarkEvery after it
	for {
		flush := false
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-s.drain:
			return out.Send(drainFrame("shutdown", 100*time.Millisecond))
		case <-age:
			return out.Send(drainFrame("age", 0))
		case <-marks.C:
			if silent++; silent == 2 {
				silent = 0
				if err := out.Send(r.markNow()); err != nil {
					return err
				}
			}
			continue
		case <-delay.C:
			flush, waiting = true, false
		case <-r.changed:
			flush = s.config.BatchDelay == AtOnce
		}
		batch, size, end, err := r.take(flush)
		if batch != nil {
			silent, waiting = 0, false
			delay.Stop()
			// SendMsg returns once the message is encoded and has room in the window; the batch's memory is ours again then.
			if err := out.SendMsg(batch.frame(batch.position.appendTo(nil))); err != nil {
				return err
			}
			r.give(batch)
		}
		switch {
		case err != nil:
			return s.failed(r.req, err)
		case end != nil:
			return out.Send(&streamv1.Frame{Frame: &streamv1.Frame_End{End: &streamv1.End{
				Count: end.seq, Digest: end.digest[:], Token: end.appendTo(nil)}}})
		case size > 0:
			if err := out.Send(r.markNow()); err != nil {
				return err
			}
		}
		if !waiting && r.pending() {
			waiting = true
			delay.Reset(s.config.BatchDelay)
		}
	}
}

func (s *Server) failed(req *streamv1.ReadRequest, err error) error {
	s.config.Logger.Warn("a stream ends with an error of its source", "stream", req.GetStream(), "job", req.GetJob(), "error", err)
	if p, ok := errors.AsType[*PanicError](err); ok {
		s.config.Logger.Error("the source panicked", "stream", req.GetStream(), "panic", fmt.Sprint(p.Value), "stack", string(p.Stack))
	}
	return statusOf(err)
}
