package natssink_test

import (
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"go.uber.org/goleak"

	"github.com/levada-io/levada/internal/broker"
	"github.com/levada-io/levada/internal/dataplane/sink"
	"github.com/levada-io/levada/internal/dataplane/sink/natssink"
	"github.com/levada-io/levada/internal/dataplane/sink/sinktest"
	"github.com/levada-io/levada/internal/flow"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// start returns a server's broker, a connection to publish with, and what is heard on the subject "out".
func start(t *testing.T) (*broker.Broker, *nats.Conn, *nats.Subscription) {
	t.Helper()
	b, err := broker.Start(broker.Config{Dir: t.TempDir(), Listen: "127.0.0.1:0"})
	must(t, err)
	t.Cleanup(b.Stop)
	conn := connect(t, b)
	listener := connect(t, b)
	sub, err := listener.SubscribeSync("out")
	must(t, err)
	must(t, listener.Flush())
	return b, conn, sub
}

func connect(t *testing.T, b *broker.Broker) *nats.Conn {
	t.Helper()
	conn, err := nats.Connect(b.URL(), nats.MaxReconnects(-1), nats.ReconnectWait(10*time.Millisecond))
	must(t, err)
	t.Cleanup(conn.Close)
	return conn
}

// heard returns all that was published before now.
func heard(t *testing.T, conn *nats.Conn, sub *nats.Subscription) (all []*nats.Msg) {
	t.Helper()
	must(t, conn.Publish("out", []byte("the end")))
	for {
		m, err := sub.NextMsg(10 * time.Second)
		must(t, err)
		if string(m.Data) == "the end" {
			return all
		}
		all = append(all, m)
	}
}

func TestConformance(t *testing.T) {
	sinktest.Run(t, func(t *testing.T) sinktest.Harness {
		_, conn, sub := start(t)
		var got []string
		return sinktest.Harness{
			Open: func(t *testing.T) sink.Writer {
				w, err := natssink.New(natssink.Config{Conn: conn, Subject: "out"})
				must(t, err)
				return w
			},
			Delivered: func(t *testing.T) []string {
				for _, m := range heard(t, conn, sub) {
					got = append(got, string(m.Data))
				}
				return got
			},
		}
	})
}

func TestHeadersAndMessagesThatAreNeverTaken(t *testing.T) {
	_, conn, sub := start(t)
	w, err := natssink.New(natssink.Config{Conn: conn, Subject: "out"})
	must(t, err)
	b := sinktest.Block("in/0", 1, 3, 0)
	b.Messages[0].Headers = flow.AppendHeader(flow.AppendHeader(nil, "color", "red"), "color", "blue")
	b.Messages[1].Value = make([]byte, 2<<20)
	results, err := w.Write(t.Context(), b)
	must(t, err)
	if results[0].Status != sink.Delivered || results[1].Status != sink.Failed || !results[1].Permanent || results[2].Status != sink.Delivered {
		t.Fatalf("%+v", results)
	}
	got := heard(t, conn, sub)
	if len(got) != 2 || got[0].Header.Get("color") != "red" || got[0].Header.Get(natssink.IDHeader) != "in/0/1" {
		t.Fatalf("%d messages, the first with %v", len(got), got[0].Header)
	}
}

func TestAServerThatIsAwayIsAnError(t *testing.T) {
	b, conn, _ := start(t)
	w, err := natssink.New(natssink.Config{Conn: conn, Subject: "out", Timeout: 200 * time.Millisecond})
	must(t, err)
	b.Stop()
	if _, err := w.Write(t.Context(), sinktest.Block("in/0", 1, 3, 0)); err == nil {
		t.Fatal("written to a server that is not there")
	}
}

func TestConfigErrors(t *testing.T) {
	for words, cfg := range map[string]natssink.Config{
		"conn: required":    {Subject: "out"},
		"without wildcards": {Conn: &nats.Conn{}, Subject: "out.>"},
		`subject: ""`:       {Conn: &nats.Conn{}},
	} {
		if _, err := natssink.New(cfg); err == nil || !strings.Contains(err.Error(), words) {
			t.Fatalf("%v does not say %q", err, words)
		}
	}
}
