package stream

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/keepalive"
)

// Connections holds one connection for each target that jobs name, with settings fit for long streams: streams are spread over
// all addresses of a name, a connection that was lost is tried again within 5 s, one that fell silent is given up after 25 s, and
// windows are fixed, so that memory is bounded.
//
// gRPC servers take pings amiss that come while they send nothing, which is so while a handler takes its time and the window is full: they
// close the connection, and its streams are opened anew. With the defaults of both sides that happens when a commit takes longer than
// 80 s. Where HandlerTimeout is larger, start the producer's gRPC server with grpc.KeepaliveEnforcementPolicy and a MinTime of 10 s.
type Connections struct {
	target  string
	options []grpc.DialOption

	mu    sync.Mutex
	conns map[string]*grpc.ClientConn
}

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
	return &Connections{target: target, options: append(own, options...), conns: map[string]*grpc.ClientConn{}}
}

// Dial is for WorkerConfig.Dial.
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
	if conn := c.conns[target]; conn != nil {
		return conn, nil
	}
	conn, err := grpc.NewClient(target, c.options...)
	if err != nil {
		return nil, fmt.Errorf("target %q: %w", target, err)
	}
	c.conns[target] = conn
	return conn, nil
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
