package stream_test

import (
	"context"
	"fmt"
	"log"
	"net"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"

	"github.com/levada-io/levada/stream"
	"github.com/levada-io/levada/stream/memstore"
)

// serveUsers serves two records in this process, and returns how to reach them. Programs listen on a port instead.
func serveUsers() (connections *stream.Connections, stop func()) {
	producer, err := stream.NewServer(stream.ServerConfig{})
	if err != nil {
		log.Fatal(err)
	}
	producer.Handle("users", stream.Slice(
		stream.Record{Key: []byte("1"), Value: []byte("Ada")},
		stream.Record{Key: []byte("2"), Value: []byte("Grace")},
	))
	g, listener := grpc.NewServer(), bufconn.Listen(1<<20)
	producer.Register(g)
	go func() { _ = g.Serve(listener) }()
	connections = stream.NewConnections("passthrough:///producer", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return listener.DialContext(ctx) }))
	return connections, func() {
		connections.Close()
		ending, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		_ = stream.Shutdown(ending, g, producer) // streams first, then all other calls
	}
}

// A worker takes jobs from a store and has their records committed. Programs use pgstore or sqlitestore, whose handlers get a transaction.
func ExampleWorker() {
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	connections, stopProducer := serveUsers()
	defer stopProducer()

	store := memstore.New()
	worker, err := stream.NewWorker(stream.WorkerConfig{Store: store, Dial: connections.Dial})
	if err != nil {
		log.Fatal(err)
	}
	worker.Handle("users", store.Sink(func(_ context.Context, b *stream.Batch) (func(), error) {
		names := make([]string, 0, len(b.Records))
		for _, r := range b.Records {
			names = append(names, string(r.Value)) // copied: a record is valid until the handler returns
		}
		return func() { // called when the offset is stored
			for _, name := range names {
				fmt.Println(name)
			}
		}, nil
	}))
	job, err := stream.Submit(ctx, store, nil, stream.Job{ID: "copy-users", Stream: "users"})
	if err != nil {
		log.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- worker.Run(ctx) }()

	job, err = stream.Wait(ctx, store, job.ID)
	fmt.Println(job.State, job.Progress.Records, err)
	stop() // the worker gives its leases back, and Run returns
	fmt.Println(<-ended)
	// Output:
	// Ada
	// Grace
	// completed 2 <nil>
	// <nil>
}

// A server hands out the records of sources. It keeps nothing about its readers, so any number of replicas may serve the same ones.
func ExampleServer() {
	producer, err := stream.NewServer(stream.ServerConfig{MaxStreams: 200})
	if err != nil {
		log.Fatal(err)
	}
	type city struct{ Code, Name string }
	cities := []city{{"AMS", "Amsterdam"}, {"RTM", "Rotterdam"}} // in the order of their keys
	err = producer.Handle("cities", stream.SliceOf(cities,
		func(c city) []byte { return []byte(c.Code) },
		func(dst []byte, c city) ([]byte, error) { return append(dst, c.Name...), nil }))
	if err != nil {
		log.Fatal(err)
	}
	g, listener := grpc.NewServer(), bufconn.Listen(1<<20) // programs: net.Listen, and grpc.Creds
	producer.Register(g)
	served := make(chan error, 1)
	go func() { served <- g.Serve(listener) }()

	// On SIGTERM: streams end between two batches, then all other calls, then the server.
	ending, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	fmt.Println(stream.Shutdown(ending, g, producer), producer.Open())
	// Output: <nil> 0
}
