// Package streamsink keeps messages in an ordered log on the disk, each exactly once, and serves the log as a resumable gRPC stream of
// package stream.
//
// A block is stored together with what says that it was: its lane and positions (or ids). One transaction of SQLite commits both, so what is
// written again after a crash is recognised and left out. Writes of several lanes share one commit. Readers get what is committed, and then wait
// for more; the stream never ends. The position of a message in the log is its number, from 1 on and without a hole, and is the order key.
//
// The log has a random name, made together with it, which is the stream's generation: a reader of another log, such as the one before the
// directory was lost, gets an error and does not take the one for the other.
package streamsink

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"

	"github.com/levada-io/levada/internal/dataplane/sink"
	"github.com/levada-io/levada/internal/dataplane/sink/groupcommit"
	"github.com/levada-io/levada/internal/flow"
	"github.com/levada-io/levada/stream"
)

// Config of a sink. The zero value of a field is its default.
type Config struct {
	// Path of the log, a file of SQLite. Required. It is made, with its directory, if it is not there.
	Path string
	// Name of the stream. Required.
	Name string
	// Listen is the address of the gRPC server, HOST:PORT or :PORT. Required.
	Listen string
	// TLS is how the stream is served. Default: without TLS.
	TLS *tls.Config
	// Payload says what of a message a record holds. Default Value.
	Payload Payload
	// MaxBytes and MaxAge bound the log: what is above or older is forgotten, the oldest first. The newest message is not forgotten for MaxBytes. Readers
	// are not waited for: one that comes back too late gets the error that its position is gone. Default 0: all is kept.
	MaxBytes int64
	MaxAge   time.Duration
	// IDWindow and MaxIDs bound the memory of ids of sources without positions, 10 minutes and 100000 by default. They must cover the time from
	// which something may be written again: the longest outage of the sink, and how long senders repeat a request.
	IDWindow time.Duration
	MaxIDs   int
	// Server has further settings of the stream's server.
	Server stream.ServerConfig
	// Logger gets what goes wrong in the background.
	Logger *slog.Logger
}

func (c Config) withDefaults() Config {
	c.Payload = cmp.Or(c.Payload, Value)
	c.IDWindow = cmp.Or(c.IDWindow, 10*time.Minute)
	c.MaxIDs = cmp.Or(c.MaxIDs, 100_000)
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	c.Server.Logger = c.Logger
	c.Server.MaxRecord = cmp.Or(c.Server.MaxRecord, maxRecord)
	return c
}

// maxRecord is the largest record that is sent to readers that take it. It is the largest message that a pipeline makes by itself.
const maxRecord = 64 << 20

func (c Config) validate() error {
	switch {
	case c.Path == "":
		return errors.New("path: required, the file of the log")
	case c.Name == "":
		return errors.New("name: required, the name of the stream")
	case c.Listen == "":
		return errors.New("listen: required, the address to serve the stream on, for instance :50051")
	case c.MaxBytes < 0 || c.MaxAge < 0:
		return fmt.Errorf("maxBytes %d and maxAge %v must not be negative", c.MaxBytes, c.MaxAge)
	case c.Payload != Value && c.Payload != Message:
		return fmt.Errorf("payload: %q is not known: use value or message", c.Payload)
	}
	return nil
}

// ErrClosed means that the sink was closed.
var ErrClosed = errors.New("stream sink is closed")

// Writer is the sink.
type Writer struct {
	cfg      Config
	log      *log
	listener net.Listener
	grpc     *grpc.Server
	server   *stream.Server

	queue *groupcommit.Queue // Writes of several lanes share a commit

	// stop and running belong to the goroutines of serve. Close stops the server before the log, since readers use the log.
	stop    context.CancelFunc
	running sync.WaitGroup
	closing sync.Once
	closed  error // of the first Close; the others return the same
}

// Duplicates is the number of messages so far that the stream held already, and that were not stored.
func (w *Writer) Duplicates() int64 { return w.log.duplicates.Load() }

// New opens the log, after a crash too, and serves it. Errors name the field and what to do.
func New(ctx context.Context, cfg Config) (*Writer, error) {
	cfg = cfg.withDefaults()
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	l, err := openLog(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("log %s: %w", cfg.Path, err)
	}
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", cfg.Listen)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("listen: %w; each stream sink needs an address of its own", err), l.close())
	}
	server, err := stream.NewServer(cfg.Server)
	if err != nil {
		return nil, errors.Join(err, listener.Close(), l.close())
	}
	w := &Writer{cfg: cfg, log: l, listener: listener, grpc: grpc.NewServer(grpcOptions(cfg.TLS)...), server: server}
	w.queue = groupcommit.New(w.append)
	w.server.Handle(cfg.Name, l)
	w.server.Register(w.grpc)
	w.serve()
	return w, nil
}

// grpcOptions allow readers to ping every 5 s, also while nothing is written, and find dead ones within 40 s.
func grpcOptions(tls *tls.Config) []grpc.ServerOption {
	options := []grpc.ServerOption{
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second, PermitWithoutStream: true}),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: 30 * time.Second, Timeout: 10 * time.Second}),
	}
	if tls != nil {
		options = append(options, grpc.Creds(credentials.NewTLS(tls)))
	}
	return options
}

// serve starts what runs until Close.
func (w *Writer) serve() {
	background, stop := context.WithCancel(context.Background())
	w.stop = stop
	w.running.Go(func() {
		if err := w.grpc.Serve(w.listener); err != nil {
			w.cfg.Logger.Error("the stream is not served any more; messages are still stored: start again", "stream", w.cfg.Name, "error", err)
		}
	})
	w.running.Go(func() { w.log.retain(background) })
}

// Addr is where the stream is served.
func (w *Writer) Addr() net.Addr { return w.listener.Addr() }

// Write implements sink.Writer.
func (w *Writer) Write(ctx context.Context, b *flow.Block) ([]sink.Result, error) {
	return nil, w.queue.Do(ctx, b)
}

func (w *Writer) append(group []*flow.Block) error {
	// Not under a Write's context: it commits for others too.
	err := w.log.append(context.Background(), group)
	if err != nil && !errors.Is(err, ErrClosed) {
		return fmt.Errorf("log %s: %w", w.cfg.Path, err)
	}
	return err
}

// drainFor is how long readers get to take what is being sent to them, at the end. Whatever they do not get they ask for again.
const drainFor = 2 * time.Second

// Close implements sink.Writer. Readers get a status that they retry.
func (w *Writer) Close(ctx context.Context) error {
	w.closing.Do(func() {
		drain, cancel := context.WithTimeout(ctx, drainFor)
		defer cancel()
		if err := stream.Shutdown(drain, w.grpc, w.server); err != nil {
			w.cfg.Logger.Warn("some streams were cut; their readers come back", "stream", w.cfg.Name, "error", err)
			w.grpc.Stop()
		}
		w.stop()
		w.running.Wait()
		w.closed = w.log.close()
	})
	return w.closed
}

var _ sink.Writer = (*Writer)(nil)
