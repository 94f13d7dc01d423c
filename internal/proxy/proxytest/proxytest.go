// Package proxytest runs a proxy and a grpc-go server behind it in the process of a test.
package proxytest

import (
	"context"
	"log/slog"
	"net"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"

	"github.com/levada-io/levada/internal/proxy"
	"github.com/levada-io/levada/internal/proxy/config"
)

// Method and Stream are a unary and a server-streaming method of the backends.
const (
	Method = grpc_health_v1.Health_Check_FullMethodName
	Stream = grpc_health_v1.Health_Watch_FullMethodName
)

// Backend is a server of the health service.
type Backend struct {
	Address string
	Server  *grpc.Server
}

// NewBackend starts a server, which is stopped when the test ends.
func NewBackend(t testing.TB, options ...grpc.ServerOption) *Backend {
	t.Helper()
	socket, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer(options...)
	grpc_health_v1.RegisterHealthServer(server, health.NewServer())
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = server.Serve(socket)
	}()
	t.Cleanup(func() {
		server.Stop()
		<-served
	})
	return &Backend{Address: socket.Addr().String(), Server: server}
}

// Config is one listener on a free port, and one backend called backend. Change may be nil.
func Config(t testing.TB, target string, change func(*config.Config)) *config.Config {
	t.Helper()
	simple := config.DefaultSimple()
	simple.Listen, simple.Admin, simple.Backend, simple.Drain = "127.0.0.1:0", "", target, 0
	c, err := simple.Config()
	if err != nil {
		t.Fatal(err)
	}
	if change != nil {
		change(c)
		c.Complete()
		if err := c.Validate().Err(); err != nil {
			t.Fatal(err)
		}
	}
	return c
}

// Proxy is a proxy that runs.
type Proxy struct {
	*proxy.Proxy
	Address string
	stop    func()
	conn    *grpc.ClientConn
}

// Start runs a proxy until Stop is called or the test ends. It logs to the test's output.
func Start(t testing.TB, c *config.Config, o proxy.Options) *Proxy {
	t.Helper()
	if o.Logger == nil {
		o.Logger = slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	p, err := proxy.New(c, o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- p.Run(ctx) }()
	running := &Proxy{Proxy: p, stop: func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		ended <- nil
	}}
	t.Cleanup(running.Stop)
	for end := time.Now().Add(10 * time.Second); !p.Ready(); {
		if time.Now().After(end) {
			t.Fatal("the proxy does not listen")
		}
		time.Sleep(time.Millisecond)
	}
	running.Address = p.Addresses()[0].String()
	return running
}

// Stop ends the proxy, and returns when it has ended.
func (p *Proxy) Stop() { p.stop() }

// Client connects to the proxy, without retries of its own.
func (p *Proxy) Client(t testing.TB, options ...grpc.DialOption) grpc_health_v1.HealthClient {
	t.Helper()
	c, err := grpc.NewClient(p.Address, append([]grpc.DialOption{grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDisableRetry()}, options...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return grpc_health_v1.NewHealthClient(c)
}

// Invoke makes a unary call of any method, always on the same connection.
func (p *Proxy) Invoke(t testing.TB, path string) error {
	t.Helper()
	if p.conn == nil {
		c, err := grpc.NewClient(p.Address, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDisableRetry())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		p.conn = c
	}
	return p.conn.Invoke(t.Context(), path, &grpc_health_v1.HealthCheckRequest{}, &grpc_health_v1.HealthCheckResponse{})
}
