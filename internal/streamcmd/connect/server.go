package connect

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"

	"github.com/levada-io/levada/stream"
)

// NewServer lets readers ping a silent connection.
func NewServer(options ...grpc.ServerOption) *grpc.Server {
	return grpc.NewServer(append(options, grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second, PermitWithoutStream: true}),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: 30 * time.Second, Timeout: 10 * time.Second}))...)
}

// Serve serves until ctx ends, and then shuts down in the right order.
func Serve(ctx context.Context, g *grpc.Server, server *stream.Server, listener net.Listener, drain time.Duration, log *slog.Logger, notReady func()) error {
	served := make(chan error, 1)
	go func() { served <- g.Serve(listener) }() // ends with Shutdown
	select {
	case err := <-served:
		return fmt.Errorf("serve: %w", err)
	case <-ctx.Done():
	}
	notReady()
	log.Info("shutting down: streams are ended between two batches", "streams", server.Open())
	ending, cancel := context.WithTimeout(context.WithoutCancel(ctx), drain)
	defer cancel()
	if err := stream.Shutdown(ending, g, server); err != nil {
		log.Warn("some streams were cut; their readers go on elsewhere", "error", err)
	}
	<-served
	return nil
}
