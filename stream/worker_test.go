package stream_test

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"

	"github.com/levada-io/levada/stream"
	"github.com/levada-io/levada/stream/memstore"
)

// numbers is a source of records 1 to n.
func numbers(n int) []stream.Record {
	records := make([]stream.Record, n)
	for i := range records {
		records[i] = stream.Record{Key: fmt.Appendf(nil, "%08d", i+1), Value: fmt.Appendf(nil, "value %d", i+1)}
	}
	return records
}

// producer is a gRPC server on a pipe.
type producer struct {
	listener *bufconn.Listener
	grpc     *grpc.Server
	server   *stream.Server
}

func startProducer(t *testing.T, config stream.ServerConfig, name string, source stream.Source) *producer {
	t.Helper()
	config.Logger = slog.New(slog.DiscardHandler)
	p := &producer{listener: bufconn.Listen(1 << 20), grpc: grpc.NewServer(), server: valid(stream.NewServer(config))}
	p.server.Handle(name, source)
	p.server.Register(p.grpc)
	done := make(chan struct{})
	go func() { defer close(done); p.grpc.Serve(p.listener) }()
	t.Cleanup(func() { p.grpc.Stop(); <-done })
	return p
}

func (p *producer) connections(t *testing.T) *stream.Connections {
	c := stream.NewConnections("passthrough:///bufconn", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return p.listener.DialContext(ctx) }))
	t.Cleanup(func() { c.Close() })
	return c
}

// collected is a sink's table.
type collected struct {
	rows []stream.Record
}

func (c *collected) handle(_ context.Context, b *stream.Batch) (func(), error) {
	var rows []stream.Record
	for _, r := range b.Records {
		rows = append(rows, stream.Record{Seq: r.Seq, Key: []byte(string(r.Key)), Value: []byte(string(r.Value))})
	}
	return func() { c.rows = append(c.rows, rows...) }, nil
}

func TestAJobIsReadToItsEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := startProducer(t, stream.ServerConfig{}, "numbers", stream.Slice(numbers(2500)...))
		store, table := memstore.New(), &collected{}
		conns := p.connections(t)
		worker, err := stream.NewWorker(stream.WorkerConfig{Store: store, Dial: conns.Dial, Logger: slog.Default()})
		if err != nil {
			t.Fatal(err)
		}
		worker.Handle("numbers", store.Sink(table.handle))
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- worker.Run(ctx) }()
		job, err := store.Submit(ctx, stream.Job{Stream: "numbers"})
		if err != nil {
			t.Fatal(err)
		}
		for {
			time.Sleep(time.Second)
			if job, err = store.Get(ctx, job.ID); err != nil || job.State.Final() {
				break
			}
		}
		if job.State != stream.Completed || job.Progress.Records != 2500 || len(table.rows) != 2500 {
			t.Errorf("job: %+v; %d rows", job, len(table.rows))
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}
