package stream_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"

	"github.com/levada-io/levada/stream"
)

// A program that keeps its own checkpoint reads a stream without a job store.
func ExampleReader() {
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
	defer g.Stop()
	connections := stream.NewConnections("passthrough:///producer", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return listener.DialContext(ctx) }))
	defer connections.Close()

	var kept stream.Checkpoint // load it from where the effects of the records are
	reader, err := stream.NewReader(stream.ReaderConfig{Dial: connections.Dial, Stream: "users"}, kept)
	if err != nil {
		log.Fatal(err)
	}
	defer reader.Close()
	for {
		delivery, err := reader.Next(context.Background())
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			log.Fatal(err) // a person has to look: what passes, the reader has waited for
		}
		for _, record := range delivery.Records {
			fmt.Println(record.Seq, string(record.Value))
		}
		kept = delivery.After // store it together with the effects
	}
	fmt.Println("complete:", kept.Done)
	// Output:
	// 1 Ada
	// 2 Grace
	// complete: true
}
