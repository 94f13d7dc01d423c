package pgstore_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/levada-io/levada/internal/testserver"
	"github.com/levada-io/levada/stream"
	"github.com/levada-io/levada/stream/pgstore"
)

// syncBuffer is a log that is written to and read concurrently.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// Sixteen jobs share a pool of two connections, which their transactions hold for longer than a lease lasts. They are slow, as they must be;
// no lease is lost, no job counts as one of a dead owner, and nothing is given to the handler a second time. The worker says at its start what is the matter.
func TestASmallPoolLosesNoLease(t *testing.T) {
	const jobs, connections, lease = 8, 2, time.Second
	config, err := pgxpool.ParseConfig(testserver.Postgres(t))
	if err != nil {
		t.Fatal(err)
	}
	config.MaxConns = connections
	pool, err := pgxpool.NewWithConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	store, err := pgstore.New(t.Context(), pool)
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	conns := produce(t, 3)
	var mu sync.Mutex
	handed := map[string]int{}
	var bad []string
	log := &syncBuffer{}
	worker, err := stream.NewWorker(stream.WorkerConfig{Store: store, Dial: conns.Dial, Lease: lease, PollInterval: 50 * time.Millisecond, MaxJobs: jobs,
		HandlerTimeout: 3 * time.Second, Logger: slog.New(slog.NewTextHandler(log, nil)), Observe: func(e stream.Event) {
			mu.Lock()
			defer mu.Unlock()
			if e.Kind == stream.EventLost || e.Reclaimed || e.Attempt > 1 {
				bad = append(bad, fmt.Sprintf("%+v", e))
			}
		}})
	if err != nil {
		t.Fatal(err)
	}
	worker.Handle("s", store.Sink(func(ctx context.Context, tx pgx.Tx, b *stream.Batch) error {
		mu.Lock()
		for _, r := range b.Records {
			handed[b.IdempotencyKey(r)]++
		}
		mu.Unlock()
		_, err := tx.Exec(ctx, `select pg_sleep($1::float8)`, (lease * 3 / 2).Seconds())
		return err
	}))
	var ids []string
	for range jobs {
		job, err := store.Submit(t.Context(), stream.Job{Stream: "s"})
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, job.ID)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- worker.Run(ctx) }()
	for end := time.Now().Add(3 * time.Minute); ; time.Sleep(50 * time.Millisecond) {
		complete := 0
		for _, id := range ids {
			if job, err := store.Get(t.Context(), id); err == nil && job.State == stream.Completed {
				complete++
			}
		}
		if complete == jobs {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("%d of %d jobs are complete\n%s", complete, jobs, log)
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	mu.Lock()
	defer mu.Unlock()
	for _, b := range bad {
		t.Error(b)
	}
	for key, n := range handed {
		if n > 1 {
			t.Errorf("record %s was handed over %d times", key, n)
		}
	}
	if said := log.String(); !strings.Contains(said, "MaxJobs is larger than the sink's connection pool") || !strings.Contains(said, "connections=2") {
		t.Errorf("the log does not say that the pool is too small:\n%s", said)
	}
}

// produce serves a stream "s" of n records.
func produce(t *testing.T, n int) *stream.Connections {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var records []stream.Record
	for i := range n {
		records = append(records, stream.Record{Key: fmt.Appendf(nil, "%08d", i), Value: []byte("value")})
	}
	server, err := stream.NewServer(stream.ServerConfig{})
	if err != nil {
		t.Fatal(err)
	}
	g := grpc.NewServer()
	server.Handle("s", stream.Slice(records...))
	server.Register(g)
	served := make(chan struct{})
	go func() { defer close(served); g.Serve(listener) }()
	conns := stream.NewConnections(listener.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	t.Cleanup(func() { conns.Close(); g.Stop(); <-served })
	return conns
}
