package streamtest

import (
	"context"
	"log/slog"
	"net"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"

	"github.com/levada-io/levada/stream"
	"github.com/levada-io/levada/stream/memstore"
)

// Outcome is what became of a job.
type Outcome struct {
	Status stream.Status
	// Err is nil if the job is completed, and otherwise says why not; see [stream.Wait].
	Err error
	// Quarantine has the records that went into quarantine, with every attempt at them.
	Quarantine []stream.Quarantined
}

// Handle runs a handler without a transaction over the records of a source, in memory, as a worker does: with retries, the search for bad
// records, and quarantine. It needs no database and no network. It returns when the job is final; a test that takes too long fails.
//
// The logic of a handler with a transaction is best kept in a function of the decoded records, and tested with this; the handler itself
// with [Work], over a store that is real, such as sqlitestore in t.TempDir().
func Handle[H ~func(ctx context.Context, b *stream.Batch) error](t testing.TB, handle H, source stream.Source) Outcome {
	t.Helper()
	store := memstore.New()
	return Work(t, source, store, stream.AtLeastOnce(store.Sink(nil), handle))
}

// Work submits a job to a store, works on it with a sink, and returns when it is final. The producer is in the same process.
func Work(t testing.TB, source stream.Source, store stream.Store, sink stream.ReplaySink, config ...func(*stream.WorkerConfig)) Outcome {
	t.Helper()
	const name = "streamtest"
	conns, stopProducer := serve(t, name, source)
	defer stopProducer()
	c := stream.WorkerConfig{Store: store, Dial: conns.Dial, Logger: slog.New(slog.DiscardHandler), PollInterval: 10 * time.Millisecond}
	for _, change := range config {
		change(&c)
	}
	worker, err := stream.NewWorker(c)
	if err != nil {
		t.Fatal(err)
	}
	worker.Handle(name, sink)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	job, err := store.Submit(ctx, stream.Job{Stream: name})
	if err != nil {
		t.Fatal(err)
	}
	running, stop := context.WithCancel(ctx)
	defer stop()
	done := make(chan error, 1)
	go func() { done <- worker.Run(running) }()
	var out Outcome
	out.Status, out.Err = stream.Wait(ctx, store, job.ID)
	stop()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if !out.Status.State.Final() {
		t.Fatalf("the job did not end: %v", out.Err)
	}
	if out.Quarantine, err = sink.Quarantined(context.WithoutCancel(ctx), job.ID, 0); err != nil {
		t.Error(err)
	}
	return out
}

// serve runs a producer in this process, and returns connections that reach it. stop must be called.
func serve(t testing.TB, name string, source stream.Source) (conns *stream.Connections, stop func()) {
	t.Helper()
	server := newServer(t, stream.ServerConfig{Logger: slog.New(slog.DiscardHandler)})
	server.Handle(name, source)
	listener, g := bufconn.Listen(1<<20), grpc.NewServer()
	server.Register(g)
	served := make(chan error, 1)
	go func() { served <- g.Serve(listener) }()
	conns = stream.NewConnections("passthrough:///"+name, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return listener.DialContext(ctx) }))
	return conns, func() {
		_ = conns.Close()
		g.Stop()
		<-served
	}
}

func newServer(t testing.TB, config stream.ServerConfig) *stream.Server {
	t.Helper()
	server, err := stream.NewServer(config)
	if err != nil {
		t.Fatal(err)
	}
	return server
}
