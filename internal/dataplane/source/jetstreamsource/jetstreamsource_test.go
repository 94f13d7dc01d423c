package jetstreamsource_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/goleak"

	"github.com/levada-io/levada/internal/broker"
	"github.com/levada-io/levada/internal/dataplane/source"
	"github.com/levada-io/levada/internal/dataplane/source/jetstreamsource"
	"github.com/levada-io/levada/internal/dataplane/source/sourcetest"
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

func start(t *testing.T) *server {
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
	_, err = s.js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "IN", Subjects: []string{"in.*"}})
	must(t, err)
	return s
}

// restart starts the server again at its address.
func (s *server) restart(t *testing.T) {
	t.Helper()
	var err error
	s.broker, err = broker.Start(broker.Config{Dir: s.dir, Listen: strings.TrimPrefix(s.url, "nats://"), SyncInterval: time.Minute})
	must(t, err)
}

func (s *server) publish(t *testing.T, subject string, from, to int) {
	t.Helper()
	for i := from; i < to; i++ {
		_, err := s.js.Publish(t.Context(), subject, []byte(sourcetest.Payload(i)))
		must(t, err)
	}
}

func open(t *testing.T, cfg jetstreamsource.Config) *jetstreamsource.Reader {
	t.Helper()
	if cfg.Stream == "" {
		cfg.Stream, cfg.Consumer = "IN", "c"
	}
	r, err := jetstreamsource.New(t.Context(), cfg)
	must(t, err)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_ = r.Close(ctx)
	})
	return r
}

func read(t *testing.T, r *jetstreamsource.Reader, limit int) *source.Batch {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	b, err := r.Read(ctx, limit)
	must(t, err)
	return b
}

// readAll reads and acknowledges n messages.
func readAll(t *testing.T, r *jetstreamsource.Reader, n int) (got []string) {
	t.Helper()
	for len(got) < n {
		b := read(t, r, n-len(got))
		for _, m := range b.Messages {
			got = append(got, string(m.Value))
		}
		must(t, r.Ack(t.Context(), b))
	}
	return got
}

func TestConformance(t *testing.T) {
	sourcetest.Run(t, func(t *testing.T) sourcetest.Harness {
		s := start(t)
		return sourcetest.Harness{
			Unordered: true, // once some come again
			Open: func(t *testing.T) source.Reader {
				return open(t, jetstreamsource.Config{Conn: s.conn, ReadAhead: 50})
			},
			Produce: func(t *testing.T, from, to int) { s.publish(t, "in.a", from, to) },
		}
	})
}

func TestMessage(t *testing.T) {
	s := start(t)
	before := time.Now()
	_, err := s.js.PublishMsg(t.Context(), &nats.Msg{Subject: "in.a", Data: []byte("x"), Header: nats.Header{"color": {"red"}}})
	must(t, err)
	m := read(t, open(t, jetstreamsource.Config{Conn: s.conn}), 1).Messages[0]
	if color, _ := m.Headers.Get("color"); !strings.HasPrefix(m.ID, "IN:1:") || string(m.Value) != "x" || color != "red" {
		t.Fatalf("%+v", m)
	}
	if at := time.Unix(0, m.EventTime); at.Before(before.Add(-time.Second)) || at.After(time.Now().Add(time.Second)) {
		t.Fatalf("event time %v, want when it was stored", at)
	}
}

func TestDeliverPolicies(t *testing.T) {
	s := start(t)
	s.publish(t, "in.a", 0, 3)
	s.publish(t, "in.b", 3, 5)
	for policy, want := range map[string]string{
		"": "0 1 2 3 4", "all": "0 1 2 3 4", "last": "4", "last_per_subject": "2 4", "by_start_sequence 3": "2 3 4", "by_start_time 0": "0 1 2 3 4",
	} {
		var wanted []string
		for i := range strings.FieldsSeq(want) {
			wanted = append(wanted, sourcetest.Payload(int(i[0]-'0')))
		}
		name := strings.ReplaceAll("p_"+policy, " ", "_")
		got := readAll(t, open(t, jetstreamsource.Config{Conn: s.conn, Stream: "IN", Consumer: name, DeliverPolicy: policy}), len(wanted))
		if fmt.Sprint(got) != fmt.Sprint(wanted) {
			t.Errorf("%q: %v, want %v", policy, got, wanted)
		}
	}
	got := readAll(t, open(t, jetstreamsource.Config{Conn: s.conn, Stream: "IN", Consumer: "f", FilterSubjects: []string{"in.b"}}), 2)
	if fmt.Sprint(got) != fmt.Sprint([]string{sourcetest.Payload(3), sourcetest.Payload(4)}) {
		t.Error(got)
	}
	r := open(t, jetstreamsource.Config{Conn: s.conn, Stream: "IN", Consumer: "n", DeliverPolicy: "new"})
	s.publish(t, "in.a", 9, 10)
	if got := readAll(t, r, 1); got[0] != sourcetest.Payload(9) {
		t.Error(got)
	}
}

func TestSlowProcessingIsReported(t *testing.T) {
	s := start(t)
	s.publish(t, "in.a", 0, 20)
	const ackWait = 300 * time.Millisecond
	slow := open(t, jetstreamsource.Config{Conn: s.conn, AckWait: ackWait, ReadAhead: 20})
	var batches []*source.Batch
	for n := 0; n < 10; { // the other ten wait inside
		b := read(t, slow, 10-n)
		n += len(b.Messages)
		batches = append(batches, b)
	}
	other := open(t, jetstreamsource.Config{Conn: s.conn, AckWait: ackWait})
	ctx, cancel := context.WithTimeout(t.Context(), 5*ackWait) // by the server's clock
	defer cancel()
	if b, err := other.Read(ctx, 10); err == nil {
		t.Fatalf("another reader got %d messages that are in hand", len(b.Messages))
	}
	for _, b := range batches {
		must(t, slow.Ack(t.Context(), b))
	}
	must(t, slow.Close(t.Context()))
	if got := readAll(t, other, 10); len(got) != 10 { // they go back at once
		t.Fatal(got)
	}
}

func TestServerRestart(t *testing.T) {
	s := start(t)
	s.publish(t, "in.a", 0, 100)
	r := open(t, jetstreamsource.Config{Conn: s.conn, ReadAhead: 30, AckWait: time.Second})
	got := map[string]bool{}
	take := func(b *source.Batch) {
		for _, m := range b.Messages {
			got[m.ID] = true
		}
	}
	held := read(t, r, 10)
	take(held)
	s.broker.Stop()
	s.restart(t)
	must(t, r.Ack(t.Context(), held)) // sent again until the new server confirms
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for len(got) < 100 {
		b, err := r.Read(ctx, 10)
		if ctx.Err() != nil {
			t.Fatalf("%d of 100 messages, %v", len(got), err)
		}
		if err != nil {
			continue // what may go away
		}
		take(b)
		must(t, r.Ack(ctx, b))
	}
	stream, err := s.js.Stream(ctx, "IN")
	must(t, err)
	consumer, err := stream.Consumer(ctx, "c")
	must(t, err)
	if info := consumer.CachedInfo(); info.AckFloor.Stream != 100 || info.NumAckPending != 0 {
		t.Fatalf("acknowledged up to %d, %d pending", info.AckFloor.Stream, info.NumAckPending)
	}
}

func TestErrors(t *testing.T) {
	s := start(t)
	open(t, jetstreamsource.Config{Conn: s.conn, Stream: "IN", Consumer: "mine", FilterSubjects: []string{"in.a"}})
	_, err := s.js.CreateConsumer(t.Context(), "IN", jetstream.ConsumerConfig{Durable: "none", AckPolicy: jetstream.AckNonePolicy})
	must(t, err)
	for words, cfg := range map[string]jetstreamsource.Config{
		"conn: required":         {Stream: "IN", Consumer: "c"},
		"stream: required":       {Conn: s.conn, Consumer: "c"},
		"consumer: required":     {Conn: s.conn, Stream: "IN"},
		"no stream":              {Conn: s.conn, Stream: "OTHER", Consumer: "c"},
		`deliver_policy: "some"`: {Conn: s.conn, Stream: "IN", Consumer: "c", DeliverPolicy: "some"},
		"by_start_sequence N":    {Conn: s.conn, Stream: "IN", Consumer: "c", DeliverPolicy: "by_start_sequence"},
		"filter_subjects: ":      {Conn: s.conn, Stream: "IN", Consumer: "mine", FilterSubjects: []string{"in.b"}},
		"only explicit":          {Conn: s.conn, Stream: "IN", Consumer: "none"},
		"must not be negative":   {Conn: s.conn, Stream: "IN", Consumer: "c", ReadAhead: -1},
	} {
		if _, err := jetstreamsource.New(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), words) {
			t.Errorf("%v does not say %q", err, words)
		}
	}
	r := open(t, jetstreamsource.Config{Conn: s.conn})
	must(t, s.js.DeleteConsumer(t.Context(), "IN", "c"))
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if _, err := r.Read(ctx, 1); err == nil || ctx.Err() != nil || !strings.Contains(err.Error(), "consumer c") {
		t.Fatalf("without its consumer: %v", err)
	}
	must(t, r.Close(t.Context()))
	if _, err := r.Read(t.Context(), 1); err == nil {
		t.Fatal("read after Close")
	}
}
