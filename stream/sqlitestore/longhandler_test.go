package sqlitestore_test

import (
	"context"
	"database/sql"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/levada-io/levada/stream"
	"github.com/levada-io/levada/stream/sqlitestore"
)

// SQLite has one writer: while a handler has that right for longer than a lease lasts, no other job's lease can be renewed in the file. No lease is
// lost for that, and the time that commits wait for each other is not the handler's.
func TestALongHandlerCostsNoOtherJobItsLease(t *testing.T) {
	const jobs, long, lease = 5, 2, 3 * time.Second // long enough for a slow disk
	store, err := sqlitestore.Open(t.Context(), filepath.Join(t.TempDir(), "jobs.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server, err := stream.NewServer(stream.ServerConfig{})
	if err != nil {
		t.Fatal(err)
	}
	g := grpc.NewServer()
	server.Handle("s", stream.Slice(stream.Record{Key: []byte("1")}, stream.Record{Key: []byte("2")}))
	server.Register(g)
	served := make(chan struct{})
	go func() { defer close(served); g.Serve(listener) }()
	defer func() { g.Stop(); <-served }()
	conns := stream.NewConnections(listener.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	defer conns.Close()

	var mu sync.Mutex
	handed, calls := map[string]int{}, 0
	var bad []string
	worker, err := stream.NewWorker(stream.WorkerConfig{Store: store, Dial: conns.Dial, Lease: lease, PollInterval: 50 * time.Millisecond, MaxJobs: jobs,
		HandlerTimeout: lease * 2, Logger: slog.New(slog.NewTextHandler(t.Output(), nil)), Observe: func(e stream.Event) {
			mu.Lock()
			defer mu.Unlock()
			if e.Kind == stream.EventLost || e.Reclaimed || e.Attempt > 1 {
				bad = append(bad, fmt.Sprintf("%+v", e))
			}
		}})
	if err != nil {
		t.Fatal(err)
	}
	worker.Handle("s", store.Sink(func(ctx context.Context, _ *sql.Tx, b *stream.Batch) error {
		mu.Lock()
		for _, r := range b.Records {
			handed[b.IdempotencyKey(r)]++
		}
		calls++
		quick := calls > long
		mu.Unlock()
		if quick {
			return nil
		}
		select {
		case <-time.After(lease * 5 / 4):
		case <-ctx.Done():
		}
		return ctx.Err()
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
	for end := time.Now().Add(2 * time.Minute); ; time.Sleep(50 * time.Millisecond) {
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
			t.Fatalf("%d of %d jobs are complete", complete, jobs)
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
}
