package stream

import (
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
)

// Connections holds one connection for each target that jobs name, with settings fit for long streams: streams are spread over
// all addresses of a name, a connection that was lost is tried again within 5 s, one that fell silent is given up after 25 s, and
// windows are fixed, so that memory is bounded.
//
// Above 64 targets, a new one closes those that carry no stream and were not asked for within the last minute.
//
// gRPC servers take pings amiss that come while they send nothing, which is so while a handler takes its time and the window is full: they
// close the connection, and its streams are opened anew. With the defaults of both sides that happens when a commit takes longer than
// 80 s. Where HandlerTimeout is larger, start the producer's gRPC server with grpc.KeepaliveEnforcementPolicy and a MinTime of 10 s.
type Connections struct {
	target  string
	options []grpc.DialOption

	mu    sync.Mutex
	conns map[string]*connection
}

// connection is one that is kept.
type connection struct {
	*grpc.ClientConn
	asked   time.Time // when Dial last returned it
	streams atomic.Int64
}

// count is the interceptor that knows how many streams are open.
func (c *connection) count(ctx context.Context, desc *grpc.StreamDesc, conn *grpc.ClientConn, method string, open grpc.Streamer,
	options ...grpc.CallOption) (grpc.ClientStream, error) {
	c.streams.Add(1)
	return open(ctx, desc, conn, method, append(slices.Clip(options), grpc.OnFinish(func(error) { c.streams.Add(-1) }))...)
}

const (
	keepTargets = 64          // that are kept, whether or not they are used
	keepFor     = time.Minute // longer than it takes anybody to open a stream on what Dial returned
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
		// Marks come each 5 s, so a ping is sent only when the connection has fallen silent. Without it, a connection that is open and
		// swallows everything would be used for ever, stream after stream. The fourth in a row makes a server close the connection,
		// so four of them must take longer than a commit may.
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 20 * time.Second, Timeout: 5 * time.Second}),
		// The connection has room for all of its streams, or one whose handler is slow would hold up the others.
		grpc.WithStaticStreamWindowSize(1 << 20), grpc.WithStaticConnWindowSize(64 << 20),
	}
	return &Connections{target: target, options: append(own, options...), conns: map[string]*connection{}}
}

// Dial is for WorkerConfig.Dial. Streams are to be opened on the connection soon, within a minute: ask again for later ones.
func (c *Connections) Dial(_ context.Context, job Job) (grpc.ClientConnInterface, error) {
	target := job.Target
	if target == "" {
		target = c.target
	}
	if target == "" {
		return nil, fmt.Errorf("job %s names no target, and the worker has none: give it one, such as dns:///producer:50051", job.ID)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	conn := c.conns[target]
	if conn == nil {
		c.trim()
		conn = &connection{}
		var err error
		// The last interceptor is the one next to the stream: it counts no stream that another one refuses.
		conn.ClientConn, err = grpc.NewClient(target, append(slices.Clip(c.options), grpc.WithChainStreamInterceptor(conn.count))...)
		if err != nil {
			return nil, fmt.Errorf("target %q: %w", target, err)
		}
		c.conns[target] = conn
	}
	conn.asked = time.Now()
	return conn.ClientConn, nil
}

// trim makes room for a new target if there are many: jobs may name ever new ones, such as the pods of producers.
func (c *Connections) trim() {
	if len(c.conns) < keepTargets {
		return
	}
	for target, conn := range c.conns {
		if conn.streams.Load() == 0 && time.Since(conn.asked) > keepFor {
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
	return errors.Join(errs...)
}
