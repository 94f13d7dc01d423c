// Producer serves a Postgres table as a stream: each job gets the users of one country, in the order of their keys. It keeps nothing about
// its readers, so run as many replicas as you like. Copy it together with its other half, examples/streams/worker.
//
//	DATABASE_URL=postgres://localhost/shop LISTEN=:50051 ADMIN_LISTEN=:8080 go run ./examples/streams/producer
package main

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/levada-io/levada/stream"
	"github.com/levada-io/levada/stream/pgsource"
	"github.com/levada-io/levada/stream/streammetrics"
)

// The table. xid is what makes reading by key safe while others write: rows of transactions that commit late wait for their turn.
const schema = `
create table if not exists users (
	id bigint primary key, country text not null, name text not null,
	xid xid8 not null default pg_current_xact_id());
create index if not exists users_in_order on users (country, xid, id);`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := run(ctx); err != nil {
		slog.Error("producer failed", "error", err)
		os.Exit(1)
	}
	slog.Info("producer stopped")
}

func run(ctx context.Context) error {
	pool, err := pgsource.Connect(ctx, os.Getenv("DATABASE_URL")) // a pgxpool.Pool, which may lead through PgBouncer
	if err != nil {
		return fmt.Errorf("DATABASE_URL: %w", err)
	}
	defer pool.Close() // last: streams that are drained still read
	if _, err := pool.Exec(ctx, schema); err != nil {
		return fmt.Errorf("create the table users: %w", err)
	}
	// Sorted keys: the position in the stream is the key of the last record, and the same in each replica.
	users, err := pgsource.Keyset(pool, pgsource.Query{
		SQL:     "select xid, id, name from users where country = $1",
		Params:  []string{"country"}, // of a job's query, such as {"country": "NL"}
		Horizon: "xid",
		Key:     []string{"id"},
	})
	if err != nil {
		return err
	}
	metrics := streammetrics.NewServer()
	producer, err := stream.NewServer(stream.ServerConfig{OnBad: metrics.OnBad})
	if err != nil {
		return err
	}
	producer.Handle("users", users)
	metrics.Watch(producer)

	server := grpc.NewServer() // in earnest: with grpc.Creds
	producer.Register(server)
	healthy := health.NewServer()
	healthv1.RegisterHealthServer(server, healthy)
	listener, err := net.Listen("tcp", os.Getenv("LISTEN"))
	if err != nil {
		return fmt.Errorf("LISTEN: %w", err)
	}

	var draining atomic.Bool
	registry := prometheus.NewRegistry()
	registry.MustRegister(metrics, collectors.NewGoCollector())
	admin := http.NewServeMux()
	admin.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))
	admin.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) })
	admin.HandleFunc("GET /readyz", func(w http.ResponseWriter, r *http.Request) {
		if draining.Load() || pool.Ping(r.Context()) != nil {
			http.Error(w, "shutting down, or the database does not answer", http.StatusServiceUnavailable)
		}
	})
	adminListener, err := net.Listen("tcp", os.Getenv("ADMIN_LISTEN"))
	if err != nil {
		return fmt.Errorf("ADMIN_LISTEN: %w", err)
	}
	web := &http.Server{Handler: admin, ReadHeaderTimeout: 10 * time.Second}
	defer web.Close() // metrics and probes answer until the streams have ended

	failed := make(chan error, 2)
	go func() { failed <- server.Serve(listener) }()
	go func() { failed <- web.Serve(adminListener) }()
	slog.Info("serving", "address", listener.Addr(), "admin", adminListener.Addr())
	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
	}
	// Graceful shutdown: not ready any more, then streams end between two batches and tell their readers to go on elsewhere, then the rest.
	draining.Store(true)
	healthy.Shutdown()
	deadline, cancel := context.WithTimeout(context.Background(), 20*time.Second) // within Kubernetes' grace of 30 s
	defer cancel()
	return stream.Shutdown(deadline, server, producer)
}
