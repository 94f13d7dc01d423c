package catalogue

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/levada-io/levada/internal/dataplane/sink"
	"github.com/levada-io/levada/internal/dataplane/source"
	"github.com/levada-io/levada/internal/dataplane/source/builtinsource"
	"github.com/levada-io/levada/internal/dataplane/source/sourcetest"
	"github.com/levada-io/levada/internal/flow"
	"github.com/levada-io/levada/internal/flow/metadata"
)

// memory is source.Positions that a test may keep over a restart.
type memory map[string][]byte

func (m memory) Load(_ context.Context, partition string) ([]byte, error) { return m[partition], nil }
func (m memory) Save(_ context.Context, partition string, position []byte) error {
	m[partition] = position
	return nil
}

func open(t *testing.T, name string, opt Options) source.Reader {
	t.Helper()
	p, err := Named(name, nil, nil, opt)
	if err != nil {
		t.Fatal(err)
	}
	return p.Source
}

func TestSourceConformance(t *testing.T) {
	sourcetest.Run(t, func(*testing.T) sourcetest.Harness {
		at := memory{}
		return sourcetest.Harness{
			Open: func(t *testing.T) source.Reader { return open(t, "source-metadata", Options{Positions: at}) },
			Made: builtinsource.Counted, Finite: true,
		}
	})
}

func TestSimpleSource(t *testing.T) {
	at := memory{}
	first := open(t, "simple-source", Options{Positions: at, Env: map[string]string{"NUMAFLOW_REPLICA": "3"}})
	b, err := first.Read(t.Context(), 10)
	if err != nil || len(b.Messages) != 10 || b.Lo != 1 || b.Hi != 10 || b.Partition != "3" || b.ByID || string(b.Messages[9].Value) != "9" {
		t.Fatalf("%+v, %v", b, err)
	}
	id, _ := b.Messages[9].Headers.Get("x-txn-id")
	if len(id) != 36 || id[14] != '8' {
		t.Errorf("transaction %q", id)
	}
	if err := errors.Join(first.Ack(t.Context(), b), first.Close(t.Context())); err != nil {
		t.Fatal(err)
	}
	second := open(t, "simple-source", Options{Positions: at, Env: map[string]string{"NUMAFLOW_REPLICA": "3"}})
	if b, err = second.Read(t.Context(), 1); err != nil || b.Lo != 11 || string(b.Messages[0].Value) != "10" {
		t.Fatalf("%+v, %v", b, err)
	}
	again := open(t, "simple-source", Options{Env: map[string]string{"NUMAFLOW_REPLICA": "3"}})
	if b, err = again.Read(t.Context(), 10); err != nil || b.Lo != 1 {
		t.Fatalf("%+v, %v", b, err)
	}
	if same, _ := b.Messages[9].Headers.Get("x-txn-id"); same != id {
		t.Errorf("the same message has the transaction %s and then %s", id, same)
	}
}

func TestMetadataSource(t *testing.T) {
	r := open(t, "source-metadata", Options{})
	n := 0
	for {
		b, err := r.Read(t.Context(), 30)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		for i := range b.Messages {
			user, err := metadata.User(b.Messages[i].Metadata)
			if err != nil || len(user.Get("simple-source", "txn-id")) != 36 {
				t.Fatalf("%v, %v", user, err)
			}
			n++
		}
	}
	if n != builtinsource.Counted {
		t.Errorf("%d messages", n)
	}
}

func TestSinks(t *testing.T) {
	for _, c := range []struct {
		name    string
		env     map[string]string
		in      []string
		status  sink.Status
		printed string
	}{
		{"sink-log", nil, []string{"a", "b\x1b[2J\n"}, sink.Delivered, "User Defined Sink: a\nUser Defined Sink: b\\x1b[2J\\n\n"},
		{"fb-sink-log", nil, []string{"a"}, sink.Fallback, "Primary sink under maintenance, to the fallback: a\n"},
		{"on-success-log", nil, []string{"a"}, sink.OnSuccess, "Delivered, and to the on-success sink: a\n"},
		{"sink-failure", nil, []string{"a"}, sink.Failed, ""},
		{"sink-retry-e2e", nil, []string{"a"}, sink.Failed, ""},
		{"sink-panic", nil, []string{"a"}, sink.Broken, ""},
		{"redis-sink", nil, []string{"a", "b", "a"}, sink.Delivered, "out: a = 1\nout: b = 1\nout: a = 2\n"},
		{"redis-sink", map[string]string{"SINK_HASH_KEY": "hash", "CHECK_ORDER": "true", "MESSAGE_COUNT": "2"}, []string{"a", "b", "c", "d"}, sink.Delivered,
			"hash: a = 1\nhash: ordered = 1\nhash: b = 1\nhash: c = 1\nhash: not ordered = 1\nhash: d = 1\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var printed bytes.Buffer
			p, err := ForImage("numaflow-go/"+c.name, Options{Env: c.env, Vertex: "out", Stdout: &printed})
			if err != nil {
				t.Fatal(err)
			}
			m := in(c.in...)
			if len(m) == 4 {
				m[1].EventTime++
				m[2].EventTime++
			}
			results, err := p.Sink.Write(t.Context(), &flow.Block{Messages: m})
			if err != nil {
				t.Fatal(err)
			}
			if results == nil != (c.status == sink.Delivered) {
				t.Errorf("results %+v", results)
			}
			for _, r := range results {
				if r.Status != c.status || (r.Status == sink.Broken) != (r.Failure != nil) || c.name == "on-success-log" && string(r.OnSuccess.Value) != "on-success-message" {
					t.Errorf("result %+v", r)
				}
			}
			if printed.String() != c.printed {
				t.Errorf("got %q\nwant %q", printed.String(), c.printed)
			}
			if err := p.Sink.Close(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestAllSinks: a message that is written again goes the same way, and about half go each way.
func TestAllSinks(t *testing.T) {
	p, err := ForImage("numaflow-rs/all-sinks", Options{})
	if err != nil {
		t.Fatal(err)
	}
	m := in(make([]string, 1000)...)
	first, err := p.Sink.Write(t.Context(), &flow.Block{Messages: m})
	if err != nil {
		t.Fatal(err)
	}
	second, _ := p.Sink.Write(t.Context(), &flow.Block{Messages: m})
	n := 0
	for i := range first {
		if first[i].Status != second[i].Status {
			t.Fatalf("message %d goes elsewhere the second time", i)
		}
		if first[i].Status == sink.Fallback {
			n++
		}
	}
	if n < 400 || n > 600 {
		t.Errorf("%d of 1000 to the fallback", n)
	}
}

func TestOptions(t *testing.T) {
	p, err := ForImage("numaflow-go/map-filter-id", Options{Args: []string{`payload == "x"`}})
	if err != nil {
		t.Fatal(err)
	}
	if out, err := p.Map(t.Context(), in("x", "y")); err != nil || show(out) != "x[k] -" {
		t.Errorf("%s, %v", show(out), err)
	}
	if _, err := ForImage("numaflow-go/map-cat", Options{Args: []string{"--verbose"}}); err != nil {
		t.Error("a container's arguments are of no concern to a sample without any:", err)
	}
	if _, err := ForImage("numaflow-go/map-slow-cat", Options{Env: map[string]string{"SLEEP_SECONDS": "soon"}}); err == nil || !strings.Contains(err.Error(), "SLEEP_SECONDS") {
		t.Error(err)
	}
	if _, err := ForImage("numaflow-go/redis-sink", Options{Env: map[string]string{"CHECK_ORDER": "true"}}); err == nil || !strings.Contains(err.Error(), "MESSAGE_COUNT") {
		t.Error(err)
	}
}

func TestContextEnds(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	p, err := ForImage("numaflow-go/map-slow-cat", Options{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.Map(ctx, in("a")); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	for _, d := range List() {
		p, err := Named(d.Name, []string{"true", "true", "true"}[:len(d.Takes)], nil, Options{})
		if err != nil {
			t.Fatal(err)
		}
		switch {
		case p.Map != nil:
			_, err = p.Map(ctx, in("1"))
		case p.Source != nil:
			_, err = p.Source.Read(ctx, 1)
		case p.Sink != nil:
			_, err = p.Sink.Write(ctx, &flow.Block{Messages: in("1")})
		}
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%s: %v", d.Name, err)
		}
	}
}

func BenchmarkCat(b *testing.B)     { bench(b, "cat", "payload") }
func BenchmarkEvenOdd(b *testing.B) { bench(b, "even-odd", "12345") }
func BenchmarkFilter(b *testing.B) {
	bench(b, "map-filter", `{"id":5,"msg":"hello","desc":"a good one"}`)
}

// bench gives blocks of 500 messages; ns/op are per message.
func bench(b *testing.B, name, payload string) {
	p, err := Named(name, nil, nil, Options{})
	if err != nil {
		b.Fatal(err)
	}
	block := make([]string, 500)
	for i := range block {
		block[i] = payload
	}
	messages := in(block...)
	b.ReportAllocs()
	for n := 0; n < b.N; n += len(messages) {
		if _, err := p.Map(b.Context(), messages); err != nil {
			b.Fatal(err)
		}
	}
}
