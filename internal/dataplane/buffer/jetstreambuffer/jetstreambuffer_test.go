package jetstreambuffer_test

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/levada-io/levada/internal/broker"
	"github.com/levada-io/levada/internal/dataplane/buffer"
	"github.com/levada-io/levada/internal/dataplane/buffer/buffertest"
	"github.com/levada-io/levada/internal/dataplane/buffer/jetstreambuffer"
)

func TestConformance(t *testing.T) {
	buffertest.Run(t, func(t *testing.T) buffertest.Harness {
		dir := t.TempDir()
		b, err := broker.Start(broker.Config{Dir: dir, Listen: "127.0.0.1:0"})
		if err != nil {
			t.Fatal(err)
		}
		url := b.URL()
		t.Cleanup(func() { b.Stop() })
		conn, err := nats.Connect(url, nats.MaxReconnects(-1), nats.ReconnectWait(20*time.Millisecond))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(conn.Close)
		js, err := jetstream.New(conn)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		t.Cleanup(cancel)
		state, err := jetstreambuffer.Bucket(ctx, js, "test_STATE", 1)
		if err != nil {
			t.Fatal(err)
		}
		return buffertest.Harness{
			Open: func(t *testing.T) buffer.Driver {
				d, err := jetstreambuffer.Open(ctx, js, jetstreambuffer.Config{Stream: "ns-pl-vertex-0", State: state, Duplicates: 200 * time.Millisecond})
				if err != nil {
					t.Fatal(err)
				}
				return d
			},
			Restart: func(t *testing.T) {
				b.Stop()
				if b, err = broker.Start(broker.Config{Dir: dir, Listen: url[len("nats://"):]}); err != nil {
					t.Fatal(err)
				}
			},
			Cursors: func(t *testing.T) (names []string) {
				stream, err := js.Stream(ctx, "ns-pl-vertex-0")
				if err != nil {
					t.Fatal(err)
				}
				list := stream.ConsumerNames(ctx)
				for name := range list.Name() {
					names = append(names, name)
				}
				slices.Sort(names)
				return names
			},
			ForgetIDs: func(t *testing.T) { <-time.After(600 * time.Millisecond) }, // the server's window has passed, by its own clock
		}
	})
}
