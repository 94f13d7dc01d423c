package jetstreamsink_test

import (
	"context"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/goleak"

	"github.com/levada-io/levada/internal/broker"
	"github.com/levada-io/levada/internal/dataplane/sink"
	"github.com/levada-io/levada/internal/dataplane/sink/jetstreamsink"
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

type server struct {
	dir, url string
	broker   *broker.Broker
	conn     *nats.Conn
	js       jetstream.JetStream
}

func start(t *testing.T, cfg jetstream.StreamConfig) *server {
	t.Helper()
	s := &server{dir: t.TempDir()}
	var err error
	s.broker, err = broker.Start(broker.Config{Dir: s.dir, Listen: "127.0.0.1:0", SyncInterval: time.Minute})
	must(t, err)
	t.Cleanup(func() { s.broker.Stop() })
	s.url = s.broker.URL()
	s.conn, err = nats.Connect(s.url, nats.MaxReconnects(-1), nats.ReconnectWait(10*time.Millisecond))
	must(t, err)
	t.Cleanup(s.conn.Close)
	s.js, err = jetstream.New(s.conn)
	must(t, err)
	_, err = s.js.CreateStream(t.Context(), cfg)
	must(t, err)
	return s
}

func (s *server) restart(t *testing.T) {
	t.Helper()
	s.broker.Stop()
	var err error
	s.broker, err = broker.Start(broker.Config{Dir: s.dir, Listen: strings.TrimPrefix(s.url, "nats://"), SyncInterval: time.Minute})
	must(t, err)
}

// stored returns all messages of the stream.
func (s *server) stored(t *testing.T) (all []*jetstream.RawStreamMsg) {
	t.Helper()
	stream, err := s.js.Stream(t.Context(), "OUT")
	must(t, err)
	info, err := stream.Info(t.Context())
	must(t, err)
	for seq := info.State.FirstSeq; seq <= info.State.LastSeq; seq++ {
		m, err := stream.GetMsg(t.Context(), seq)
		must(t, err)
		all = append(all, m)
	}
	return all
}

func open(t *testing.T, cfg jetstreamsink.Config) *jetstreamsink.Writer {
	t.Helper()
	w, err := jetstreamsink.New(t.Context(), cfg)
	must(t, err)
	return w
}

func TestConformance(t *testing.T) {
	sinktest.Run(t, func(t *testing.T) sinktest.Harness {
		s := start(t, jetstream.StreamConfig{Name: "OUT", Subjects: []string{"out.>"}})
		return sinktest.Harness{
			ExactlyOnce: true, // all of it happens within the window
			Open: func(t *testing.T) sink.Writer {
				return open(t, jetstreamsink.Config{Conn: s.conn, Subject: "out.a", MaxPending: 700})
			},
			Delivered: func(t *testing.T) (got []string) {
				for _, m := range s.stored(t) {
					got = append(got, string(m.Data))
				}
				return got
			},
		}
	})
}

func TestHeaders(t *testing.T) {
	s := start(t, jetstream.StreamConfig{Name: "OUT", Subjects: []string{"out.>"}})
	w := open(t, jetstreamsink.Config{Conn: s.conn, Subject: "out.a", Stream: "OUT"})
	var h flow.Headers
	for _, kv := range []string{"color=red", "color=blue", "nats-rollup=all", "Nats-Expected-Last-Sequence=7"} {
		name, value, _ := strings.Cut(kv, "=")
		h = flow.AppendHeader(h, name, value)
	}
	results, err := w.Write(t.Context(), &flow.Block{Messages: []flow.Message{{ID: "in/0/1", Value: []byte("x"), Headers: h}}})
	if err != nil || results != nil {
		t.Fatal(results, err)
	}
	got := s.stored(t)[0].Header
	if got.Get("color") != "red" || got.Get(jetstream.MsgIDHeader) != "in/0/1" || len(got) != 3 {
		t.Fatalf("%v", got)
	}
}

func TestMessagesThatAreNeverTaken(t *testing.T) {
	s := start(t, jetstream.StreamConfig{Name: "OUT", Subjects: []string{"out.>"}, MaxMsgSize: 1000})
	w := open(t, jetstreamsink.Config{Conn: s.conn, Subject: "out.a"})
	b := sinktest.Block("in/0", 1, 5, 0)
	b.Messages[1].Value = make([]byte, 2000)                             // larger than the stream takes
	b.Messages[2].Value = make([]byte, 2<<20)                            // larger than the server takes
	b.Messages[3].Headers = flow.AppendHeader(nil, "no\r\nheader", "va") // no header of the protocol
	results, err := w.Write(t.Context(), b)
	must(t, err)
	for i, want := range []sink.Status{sink.Delivered, sink.Failed, sink.Failed, sink.Failed, sink.Delivered} {
		if results[i].Status != want || (want == sink.Failed) != (results[i].Error != "") || results[i].Permanent != (want == sink.Failed) {
			t.Fatalf("message %d: %+v", i, results[i])
		}
	}
	if n := len(s.stored(t)); n != 2 {
		t.Fatalf("%d messages stored", n)
	}
}

func TestAServerThatIsAwayIsAnErrorAndNothingIsStoredTwice(t *testing.T) {
	s := start(t, jetstream.StreamConfig{Name: "OUT", Subjects: []string{"out.>"}})
	w := open(t, jetstreamsink.Config{Conn: s.conn, Subject: "out.a", AckTimeout: 300 * time.Millisecond})
	_, err := w.Write(t.Context(), sinktest.Block("in/0", 1, 50, 0))
	must(t, err)
	s.broker.Stop()
	if _, err := w.Write(t.Context(), sinktest.Block("in/0", 26, 100, 0)); err == nil {
		t.Fatal("written to a server that is not there")
	}
	s.restart(t)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for {
		results, err := w.Write(ctx, sinktest.Block("in/0", 26, 100, 0))
		if err == nil && results == nil {
			break
		}
		if ctx.Err() != nil {
			t.Fatalf("still failing: %v, %v", results, err)
		}
	}
	if n := len(s.stored(t)); n != 100 {
		t.Fatalf("%d messages stored, want 100", n)
	}
}

func TestConfigErrors(t *testing.T) {
	s := start(t, jetstream.StreamConfig{Name: "OUT", Subjects: []string{"out.>"}})
	for words, cfg := range map[string]jetstreamsink.Config{
		"conn: required":         {Subject: "out.a"},
		"without wildcards":      {Conn: s.conn, Subject: "out.*"},
		"no stream holds":        {Conn: s.conn, Subject: "else"},
		`which belongs to "OUT"`: {Conn: s.conn, Subject: "out.a", Stream: "IN"},
	} {
		if _, err := jetstreamsink.New(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), words) {
			t.Fatalf("%v does not say %q", err, words)
		}
	}
}

// Two sinks may get the same message, and publish it to the same stream: that is two messages there.
func TestSinksOfOneStreamKeepEachOthersMessages(t *testing.T) {
	s := start(t, jetstream.StreamConfig{Name: "OUT", Subjects: []string{"out.>"}})
	for _, name := range []string{"default/p/a", "default/p/b", "default/q/a", "other/p/a", "default/p/a:fb-udsink"} {
		w := open(t, jetstreamsink.Config{Conn: s.conn, Subject: "out.a", Writer: name, Duplicates: func(n int) { t.Errorf("%s: %d duplicates", name, n) }})
		_, err := w.Write(t.Context(), sinktest.Block("in/0", 1, 20, 0))
		must(t, err)
	}
	if n := len(s.stored(t)); n != 100 {
		t.Fatalf("%d messages stored, want 100", n)
	}
}

// A message that the stream knows though this process never published it is counted and logged. It was published before a crash, or something is wrong.
func TestDuplicateOnTheFirstAttemptIsTold(t *testing.T) {
	s := start(t, jetstream.StreamConfig{Name: "OUT", Subjects: []string{"out.>"}})
	var log strings.Builder
	counted := 0
	cfg := jetstreamsink.Config{
		Conn: s.conn, Subject: "out.a", AckTimeout: 300 * time.Millisecond, Writer: "default/p/out",
		Duplicates: func(n int) { counted += n }, Logger: slog.New(slog.NewTextHandler(&log, nil)),
	}
	before := open(t, cfg)
	_, err := before.Write(t.Context(), sinktest.Block("in/0", 1, 50, 0))
	must(t, err)
	if counted != 0 || log.Len() > 0 {
		t.Fatalf("%d counted: %s", counted, &log)
	}
	again := open(t, cfg) // as after a crash
	_, err = again.Write(t.Context(), sinktest.Block("in/0", 41, 60, 0))
	must(t, err)
	if counted != 10 || !strings.Contains(log.String(), "messages=10") || !strings.Contains(log.String(), "stream=OUT") {
		t.Fatalf("%d counted: %s", counted, &log)
	}
	// The next ones are counted at once, and logged within a minute or at the end.
	_, err = again.Write(t.Context(), sinktest.Block("in/0", 31, 40, 0))
	must(t, err)
	if counted != 20 || strings.Count(log.String(), "\n") != 1 {
		t.Fatalf("%d counted: %s", counted, &log)
	}
	must(t, again.Close(t.Context()))
	if strings.Count(log.String(), "messages=10") != 2 {
		t.Fatalf("%s", &log)
	}
}

// What was published in a write that failed is published again by the same process: that is the ordinary case, and no duplicate is counted.
func TestDuplicateOfAFailedWriteIsNotCounted(t *testing.T) {
	s := start(t, jetstream.StreamConfig{Name: "OUT", Subjects: []string{"out.>"}})
	w := open(t, jetstreamsink.Config{Conn: s.conn, Subject: "out.a", Duplicates: func(n int) { t.Errorf("%d duplicates", n) }})
	const size = 4000
	for try := range uint64(50) { // until the write is cut short while some messages are stored and not confirmed
		ctx, cancel := context.WithCancel(t.Context())
		published := make(chan struct{})
		go func() {
			defer close(published)
			defer cancel()
			for ctx.Err() == nil {
				if stream, err := s.js.Stream(t.Context(), "OUT"); err == nil && stream.CachedInfo().State.Msgs > try*size {
					return
				}
			}
		}()
		b := sinktest.Block("in/0", try*size+1, (try+1)*size, 0)
		_, err := w.Write(ctx, b)
		cancel()
		<-published
		if err == nil {
			continue
		}
		_, err = w.Write(t.Context(), b)
		must(t, err)
		return
	}
	t.Fatal("all was confirmed each time before the write could be cut short")
}
