package natssource_test

import (
	"context"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"go.uber.org/goleak"

	"github.com/levada-io/levada/internal/broker"
	"github.com/levada-io/levada/internal/dataplane/source"
	"github.com/levada-io/levada/internal/dataplane/source/natssource"
	"github.com/levada-io/levada/internal/dataplane/source/sourcetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func start(t *testing.T) (reader, publisher *nats.Conn) {
	t.Helper()
	b, err := broker.Start(broker.Config{Dir: t.TempDir(), Listen: "127.0.0.1:0"})
	must(t, err)
	t.Cleanup(b.Stop)
	var conns [2]*nats.Conn
	for i := range conns {
		conns[i], err = nats.Connect(b.URL(), nats.MaxReconnects(-1), nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}))
		must(t, err)
		t.Cleanup(conns[i].Close)
	}
	return conns[0], conns[1]
}

func open(t *testing.T, cfg natssource.Config) *natssource.Reader {
	t.Helper()
	r, err := natssource.New(t.Context(), cfg)
	must(t, err)
	t.Cleanup(func() { _ = r.Close(context.Background()) })
	return r
}

func TestConformance(t *testing.T) {
	sourcetest.Run(t, func(t *testing.T) sourcetest.Harness {
		conn, publisher := start(t)
		return sourcetest.Harness{
			Forgets: true,
			Open: func(t *testing.T) source.Reader {
				return open(t, natssource.Config{Conn: conn, Subject: "in.>", Queue: "q"})
			},
			Produce: func(t *testing.T, from, to int) {
				for i := from; i < to; i++ {
					must(t, publisher.Publish("in.a", []byte(sourcetest.Payload(i))))
				}
				must(t, publisher.Flush())
			},
		}
	})
}

func TestHeadersAndIDs(t *testing.T) {
	conn, publisher := start(t)
	r := open(t, natssource.Config{Conn: conn, Subject: "in"})
	must(t, publisher.PublishMsg(&nats.Msg{Subject: "in", Header: nats.Header{"X-Numaflow-Id": {"a"}, "color": {"red", "blue"}}}))
	must(t, publisher.Publish("in", nil))
	must(t, publisher.Flush())
	ids := map[string]bool{}
	for len(ids) < 2 {
		b, err := r.Read(t.Context(), 10)
		must(t, err)
		for _, m := range b.Messages {
			ids[m.ID] = true
			if color, _ := m.Headers.Get("color"); m.ID == "a" && color != "red" {
				t.Fatalf("%+v", m)
			}
		}
	}
	if !ids["a"] {
		t.Fatal(ids)
	}
}

func TestAQueueGroupSharesMessages(t *testing.T) {
	conn, publisher := start(t)
	const n = 200
	got := make(chan string, n)
	ctx, cancel := context.WithCancel(t.Context())
	var readers sync.WaitGroup
	for range 2 {
		r := open(t, natssource.Config{Conn: conn, Subject: "in", Queue: "q"})
		readers.Go(func() {
			for {
				b, err := r.Read(ctx, 10)
				if err != nil {
					return
				}
				for _, m := range b.Messages {
					got <- string(m.Value)
				}
			}
		})
	}
	for i := range n {
		must(t, publisher.Publish("in", []byte(sourcetest.Payload(i))))
	}
	seen := map[string]bool{}
	for range n {
		seen[<-got] = true
	}
	cancel()
	readers.Wait()
	if len(seen) != n || len(got) > 0 {
		t.Fatalf("%d different messages and %d more, want %d", len(seen), len(got), n)
	}
}

func TestTheQueueIsBounded(t *testing.T) {
	conn, publisher := start(t)
	r := open(t, natssource.Config{Conn: conn, Subject: "in", QueueMessages: 5})
	end, err := conn.SubscribeSync("end")
	must(t, err)
	must(t, conn.Flush())
	for i := range 20 {
		must(t, publisher.Publish("in", []byte(sourcetest.Payload(i))))
	}
	must(t, publisher.Publish("end", nil))
	_, err = end.NextMsg(10 * time.Second) // so the others came before it
	must(t, err)
	n := 0
	for n < 5 {
		b, err := r.Read(t.Context(), 2)
		must(t, err)
		n += len(b.Messages)
	}
	if dropped, err := r.Dropped(); err != nil || dropped != 15 {
		t.Fatalf("%d dropped, %v", dropped, err)
	}
	must(t, publisher.Publish("in", []byte("more"))) // it goes on
	if b, err := r.Read(t.Context(), 2); err != nil || string(b.Messages[0].Value) != "more" {
		t.Fatalf("%v, %v", b, err)
	}
}

func TestErrors(t *testing.T) {
	conn, _ := start(t)
	for words, cfg := range map[string]natssource.Config{
		"conn: required": {Subject: "in"},
		`subject ""`:     {Conn: conn},
		"negative":       {Conn: conn, Subject: "in", QueueBytes: -1},
	} {
		if _, err := natssource.New(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), words) {
			t.Fatalf("%v does not say %q", err, words)
		}
	}
	r := open(t, natssource.Config{Conn: conn, Subject: "in"})
	must(t, r.Close(t.Context()))
	if _, err := r.Read(t.Context(), 1); err == nil {
		t.Fatal("read after Close")
	}
}
