package stream

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/keepalive"

	streamv1 "github.com/levada-io/levada/proto/levada/stream/v1"
)

// Connections holds one connection for each target that jobs name, with settings fit for long streams: streams are spread over
// all addresses of a name, a connection that was lost is tried again within 5 s, and windows are fixed, so that memory is bounded.
//
// New streams are opened on a new connection, for which the name is resolved again, once the producer has ended a stream on purpose (because
// of its age, or to shut down), once a stream has fallen silent, and at the latest when the connection is 5 minutes old. So readers find
// replicas that were added, also behind a virtual address that spreads connections and not streams, and do not go on with a connection that
// swallows everything. Streams that are open stay where they are; a connection that is not used for new ones is closed after its last.
//
// Above 64 targets, a new one closes those that carry no stream and were not asked for within the last minute.
//
// Pings are sent 6 minutes after the last frame of the server, since gRPC servers close connections on which more than two come within
// 5 minutes while they send nothing, which is so while a handler takes its time and the window is full. That a stream has fallen silent
// is found by its marks, see IdleTimeout; that what was sent is not acknowledged, by the operating system after 20 s.
type Connections struct {
	target  string
	options []grpc.DialOption

	mu      sync.Mutex
	conns   map[string]*connection
	retired map[*connection]struct{} // that get no new streams, and are closed after their last
}

// connection is one that is kept.
type connection struct {
	*grpc.ClientConn
	made    time.Time
	asked   time.Time // when Dial last returned it
	streams atomic.Int64
	stale   atomic.Bool // new streams shall go elsewhere: a stream was ended on purpose or fell silent, or a job was denied
}

// stream is the interceptor that knows how many streams are open, and why they end.
func (c *connection) stream(ctx context.Context, desc *grpc.StreamDesc, conn *grpc.ClientConn, method string, open grpc.Streamer,
	options ...grpc.CallOption) (grpc.ClientStream, error) {
	c.streams.Add(1)
	in, err := open(ctx, desc, conn, method, append(slices.Clip(options), grpc.OnFinish(func(error) {
		if errors.Is(context.Cause(ctx), errIdle) {
			c.stale.Store(true)
		}
		c.streams.Add(-1)
	}))...)
	if err != nil {
		return nil, err
	}
	return &watchedStream{in, c}, nil
}

// watchedStream notices that the producer ends the stream on purpose.
type watchedStream struct {
	grpc.ClientStream
	conn *connection
}

func (s *watchedStream) RecvMsg(m any) error {
	err := s.ClientStream.RecvMsg(m)
	if err != nil {
		return err
	}
	switch m := m.(type) {
	case *frame:
		if m.kind == fieldFrameDrain {
			s.conn.stale.Store(true)
		}
	case *streamv1.Frame:
		if m.GetDrain() != nil {
			s.conn.stale.Store(true)
		}
	}
	return nil
}

const (
	keepTargets = 64          // that are kept, whether or not they are used
	keepFor     = time.Minute // longer than a caller needs to open a stream on what Dial returned

	replaceAfter = 5 * time.Minute // for streams that end before the producer ends them: those never drain
	replaceEvery = time.Second     // at most: a producer that ends every stream at once must not cost a connection for each
)

// NewConnections makes connections with the given options, which must say what credentials to use. target is for jobs that name
// none.
func NewConnections(target string, options ...grpc.DialOption) *Connections {
	own := []grpc.DialOption{
		grpc.WithDefaultServiceConfig(`{"loadBalancingConfig":[{"round_robin":{}}]}`),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 5 * time.Second},
			MinConnectTimeout: 5 * time.Second,
		}),
		// The timeout is also TCP_USER_TIMEOUT, where there is one.
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 6 * time.Minute, Timeout: 20 * time.Second}),
		// The connection has room for all of its streams, or one whose handler is slow would hold up the others.
		grpc.WithStaticStreamWindowSize(1 << 20), grpc.WithStaticConnWindowSize(64 << 20),
	}
	return &Connections{target: target, options: append(own, options...), conns: map[string]*connection{}, retired: map[*connection]struct{}{}}
}

// Dial is for WorkerConfig.Dial. Streams are to be opened on the connection soon, within a minute: ask again for later ones.
func (c *Connections) Dial(_ context.Context, job Job) (grpc.ClientConnInterface, error) {
	target := cmp.Or(job.Target, c.target)
	if target == "" {
		return nil, fmt.Errorf("job %s names no target, and the worker has none: give it one, such as dns:///producer:50051", job.ID)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	c.closeRetired(now)
	conn := c.conns[target]
	if conn != nil {
		if age := now.Sub(conn.made); age >= replaceAfter || conn.stale.Load() && age >= replaceEvery {
			delete(c.conns, target)
			c.retired[conn] = struct{}{}
			conn = nil
		}
	}
	if conn == nil {
		c.trim()
		conn = &connection{made: now}
		var err error
		// The last interceptor is the one next to the stream: it counts no stream that another one refuses.
		conn.ClientConn, err = grpc.NewClient(target, append(slices.Clip(c.options), grpc.WithChainStreamInterceptor(conn.stream))...)
		if err != nil {
			return nil, fmt.Errorf("target %q: %w", target, err)
		}
		c.conns[target] = conn
	}
	conn.asked = now
	return conn.ClientConn, nil
}

// Refresh is for WorkerConfig.Refresh and ReaderConfig.Refresh: the next Dial of the job's target makes a new connection, with a handshake
// of its own, so certificates and tokens that the credentials read for a connection are read again. Streams on the old connection are
// not touched; it is closed once it has none. A connection of less than a second stays: the jobs of a worker are denied together, and one new connection is
// for all of them.
func (c *Connections) Refresh(_ context.Context, job Job, _ error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if conn := c.conns[cmp.Or(job.Target, c.target)]; conn != nil && time.Since(conn.made) >= replaceEvery {
		conn.stale.Store(true)
	}
	return nil
}

// unused reports whether the connection carries no stream, and will get none.
func (c *connection) unused(now time.Time) bool {
	return c.streams.Load() == 0 && now.Sub(c.asked) > keepFor
}

// closeRetired closes the connections whose last stream has ended. What it leaves, gRPC disconnects by itself after half an hour without
// streams.
func (c *Connections) closeRetired(now time.Time) {
	for conn := range c.retired {
		if conn.unused(now) {
			_ = conn.Close() // it fails only if it was closed before
			delete(c.retired, conn)
		}
	}
}

// trim makes room for a new target if there are many: jobs may name ever new ones, such as the pods of producers.
func (c *Connections) trim() {
	if len(c.conns) < keepTargets {
		return
	}
	for target, conn := range c.conns {
		if conn.unused(time.Now()) {
			_ = conn.Close() // it fails only if it was closed before
			delete(c.conns, target)
		}
	}
}

// Close closes the connections.
func (c *Connections) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	var errs []error
	for target, conn := range c.conns {
		errs = append(errs, conn.Close())
		delete(c.conns, target)
	}
	for conn := range c.retired {
		errs = append(errs, conn.Close())
		delete(c.retired, conn)
	}
	return errors.Join(errs...)
}
