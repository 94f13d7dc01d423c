package streamsource_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
	"google.golang.org/grpc"

	"github.com/levada-io/levada/internal/dataplane/deadletter"
	"github.com/levada-io/levada/internal/dataplane/source"
	"github.com/levada-io/levada/internal/dataplane/source/sourcetest"
	"github.com/levada-io/levada/internal/dataplane/source/streamsource"
	"github.com/levada-io/levada/stream"
	"github.com/levada-io/levada/stream/streamtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// tape is a stream that grows: a message a record, with keys that sort.
type tape struct {
	mu      sync.Mutex
	records []stream.Record
	name    string // the generation
	gone    int    // so many are forgotten
	over    bool   // no more will come
	changed chan struct{}
}

func newTape() *tape { return &tape{name: "1", changed: make(chan struct{})} }

func (s *tape) add(records ...stream.Record) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range records {
		r.Key = fmt.Appendf(nil, "%08d", len(s.records)+1)
		s.records = append(s.records, r)
	}
	close(s.changed)
	s.changed = make(chan struct{})
}

func (s *tape) end() {
	s.mu.Lock()
	s.over = true
	s.mu.Unlock()
	s.add()
}

func (s *tape) Generation(context.Context, stream.Query) (string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.name, nil
}

func (s *tape) Open(_ context.Context, q stream.Query) (stream.Cursor, error) {
	c := &head{tape: s}
	if len(q.After) > 0 {
		if _, err := fmt.Sscan(strings.TrimLeft(string(q.After), "0"), &c.next); err != nil {
			return nil, err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if c.next < s.gone {
		return nil, &stream.PositionGoneError{Oldest: s.records[s.gone].Key}
	}
	return c, nil
}

type head struct {
	*tape
	next int
	at   stream.Record
}

func (h *head) Next(ctx context.Context) ([]byte, error) {
	for {
		h.mu.Lock()
		more, over, changed := h.next < len(h.records), h.over, h.changed
		if more {
			h.at = h.records[h.next]
			h.next++
		}
		h.mu.Unlock()
		switch {
		case more:
			return h.at.Key, nil
		case over:
			return nil, io.EOF
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

func (h *head) Value(dst []byte) ([]byte, error) {
	if h.at.Bad != "" {
		return dst, stream.Skip(errors.New(h.at.Bad))
	}
	return append(dst, h.at.Value...), nil
}

func (h *head) Close() error { return nil }

// serve serves a stream until the test ends, or stop is called.
func serve(t testing.TB, s stream.Source, config stream.ServerConfig, address string) (at string, stop func()) {
	t.Helper()
	listener, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	g := grpc.NewServer()
	server := valid(stream.NewServer(config))
	server.Handle("tape", s)
	server.Register(g)
	done := make(chan error, 1)
	go func() { done <- g.Serve(listener) }()
	stop = sync.OnceFunc(func() { g.Stop(); <-done })
	t.Cleanup(stop)
	return listener.Addr().String(), stop
}

func open(t testing.TB, cfg streamsource.Config) *streamsource.Reader {
	t.Helper()
	if cfg.Positions == nil {
		cfg.Positions = &sourcetest.Positions{}
	}
	cfg.Stream, cfg.Name = "tape", "test"
	cfg.Retry = stream.Backoff{Min: time.Millisecond, Max: 5 * time.Millisecond}
	r, err := streamsource.New(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close(context.WithoutCancel(t.Context())) })
	return r
}

func messages(from, to int) (all []stream.Record) {
	for i := from; i < to; i++ {
		all = append(all, stream.Record{Value: []byte(sourcetest.Payload(i))})
	}
	return all
}

func TestConformance(t *testing.T) {
	for name, c := range map[string]struct {
		config stream.ServerConfig
		batch  int
		finite bool
		cuts   bool
	}{
		"live":                 {},
		"finite":               {finite: true},
		"in small batches":     {config: stream.ServerConfig{BatchBytes: 100}, batch: 5},
		"cut again and again":  {config: stream.ServerConfig{BatchBytes: 300}, cuts: true},
		"ended for its age":    {config: stream.ServerConfig{BatchBytes: 100, MaxStreamAge: time.Millisecond}},
		"finite and often cut": {config: stream.ServerConfig{BatchBytes: 300}, finite: true, cuts: true},
	} {
		t.Run(name, func(t *testing.T) {
			sourcetest.Run(t, func(t *testing.T) sourcetest.Harness {
				positions, s := &sourcetest.Positions{}, newTape()
				target, _ := serve(t, s, c.config, "127.0.0.1:0")
				if c.cuts {
					badnet := streamtest.NewBadNet(t, target)
					badnet.New().CutAfter(streamtest.ToClient, 2500)
					target = badnet.Addr()
				}
				return sourcetest.Harness{
					Open: func(t *testing.T) source.Reader {
						r := open(t, streamsource.Config{Target: target, Positions: positions, Batch: c.batch, SaveEvery: time.Nanosecond})
						return patient{r}
					},
					Produce: func(t *testing.T, from, to int) {
						s.add(messages(from, to)...)
						if c.finite {
							s.end()
						}
					},
					Finite: c.finite,
				}
			})
		})
	}
}

// patient reads again, as a vertex does, when a fault passes.
type patient struct{ *streamsource.Reader }

func (p patient) Read(ctx context.Context, limit int) (*source.Batch, error) {
	for {
		b, err := p.Reader.Read(ctx, limit)
		var permanent *source.PermanentError
		if err == nil || errors.Is(err, io.EOF) || ctx.Err() != nil || errors.As(err, &permanent) {
			return b, err
		}
	}
}

func read(t *testing.T, r source.Reader, n int) (all []*source.Batch) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for got := 0; got < n; {
		b, err := r.Read(ctx, 100)
		if err != nil {
			t.Fatalf("after %d: %v", got, err)
		}
		got += len(b.Messages)
		all = append(all, b)
	}
	return all
}

// Records that the producer cannot make are in their place, and are to be dead-lettered.
func TestBadRecords(t *testing.T) {
	s := newTape()
	target, _ := serve(t, s, stream.ServerConfig{}, "127.0.0.1:0")
	all := messages(0, 5)
	all[1] = stream.Record{Bad: "the row is damaged"}
	s.add(all...)
	s.end()
	r := patient{open(t, streamsource.Config{Target: target})}
	broken := map[uint64]*deadletter.Failure{}
	for _, b := range read(t, r, 5) {
		for i, failure := range b.Broken {
			broken[b.Messages[i].Pos] = failure
			if diff := cmp.Diff([]string{"00000002"}, b.Messages[i].Keys); diff != "" || len(b.Messages[i].Value) > 0 {
				t.Errorf("the broken message: %+v", b.Messages[i])
			}
		}
	}
	want := map[uint64]*deadletter.Failure{2: {Reason: deadletter.Source, Attempts: 1, Error: `record 2 of stream tape, key "00000002": the producer could not make it: the row is damaged`}}
	if diff := cmp.Diff(want, broken); diff != "" {
		t.Error(diff)
	}
}

func TestPayloads(t *testing.T) {
	s := newTape()
	target, _ := serve(t, s, stream.ServerConfig{}, "127.0.0.1:0")
	for _, text := range []string{
		`{"id":"in/1","keys":["a","b"],"eventTime":"2026-11-21T10:00:00Z","headers":{"y":"2","x":"1"},"value":"hello"}`,
		`{"keys":[],"headers":{},"valueBase64":"/w=="}`,
		`no JSON`,
		`{"keys":["a"]}`,
	} {
		s.add(stream.Record{Value: []byte(text)})
	}
	s.end()
	var got []string
	for _, b := range read(t, patient{open(t, streamsource.Config{Target: target, Payload: streamsource.Message})}, 4) {
		for i, m := range b.Messages {
			text := fmt.Sprintf("%d %v %q", m.Pos, m.Keys, m.Value)
			for name, value := range m.Headers.All {
				text += " " + name + "=" + value
			}
			if at := time.Unix(0, m.EventTime).UTC(); at.Before(time.Now().Add(-time.Hour)) || at.After(time.Now().Add(time.Hour)) {
				text += " " + at.Format(time.RFC3339)
			}
			if f := b.Broken[i]; f != nil {
				_, why, _ := strings.Cut(f.Error, "it is")
				text += " broken: " + why
			}
			got = append(got, text)
		}
	}
	want := []string{
		`1 [a b] "hello" x=1 y=2 2026-11-21T10:00:00Z`,
		`2 [] "\xff"`,
		`3 [00000003] "no JSON" broken:  not a message as JSON, which payload: message asks for: invalid character 'o' in literal null (expecting 'u')`,
		`4 [00000004] "{\"keys\":[\"a\"]}" broken:  not a message as JSON, which payload: message asks for: there is neither value nor valueBase64`,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// The producer may be gone for any time, at the start too. Each Read returns an error.
func TestProducerIsAway(t *testing.T) {
	s := newTape()
	s.add(messages(0, 10)...)
	target, stop := serve(t, s, stream.ServerConfig{}, "127.0.0.1:0")
	stop()
	r := open(t, streamsource.Config{Target: target})
	for range 3 {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		_, err := r.Read(ctx, 10)
		cancel()
		var permanent *source.PermanentError
		if err == nil || errors.As(err, &permanent) || !strings.Contains(err.Error(), "stream tape at "+target) {
			t.Fatalf("while the producer is away: %v", err)
		}
	}
	_, stop = serve(t, s, stream.ServerConfig{}, target)
	read(t, patient{r}, 10)
	stop()
	s.add(messages(10, 20)...)
	serve(t, s, stream.ServerConfig{}, target)
	read(t, patient{r}, 10)
}

// What would give a position to another message stops the source, with what to do about it.
func TestAnotherStream(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*tape, *streamsource.Config)
		want   error
		says   string
	}{
		"restored":           {func(s *tape, _ *streamsource.Config) { s.name = "2" }, stream.ErrGeneration, "give source.stream.partition a new name"},
		"forgotten":          {func(s *tape, _ *streamsource.Config) { s.gone = 15 }, stream.ErrGone, "give source.stream.partition a new name"},
		"another query":      {func(_ *tape, c *streamsource.Config) { c.Query = []byte("region=eu") }, stream.ErrQueryChanged, "up to record 10"},
		"a changed record":   {func(s *tape, _ *streamsource.Config) { s.records[10].Key = s.records[5].Key }, stream.ErrOrder, "resumes where it was"},
		"under another name": {func(s *tape, c *streamsource.Config) { s.name, c.Partition = "2", "tape-2" }, nil, ""},
	} {
		t.Run(name, func(t *testing.T) {
			s, positions := newTape(), &sourcetest.Positions{}
			target, _ := serve(t, s, stream.ServerConfig{}, "127.0.0.1:0")
			s.add(messages(0, 10)...)
			cfg := streamsource.Config{Target: target, Positions: positions}
			r := open(t, cfg)
			for _, b := range read(t, patient{r}, 10) {
				if err := r.Ack(t.Context(), b); err != nil {
					t.Fatal(err)
				}
			}
			if err := r.Close(t.Context()); err != nil {
				t.Fatal(err)
			}
			s.add(messages(10, 20)...)
			s.mu.Lock()
			c.change(s, &cfg)
			s.mu.Unlock()
			cfg.Stream, cfg.Name = "tape", "test"
			again, err := streamsource.New(t.Context(), cfg)
			if err == nil {
				t.Cleanup(func() { _ = again.Close(context.WithoutCancel(t.Context())) })
				if c.want == nil {
					read(t, patient{again}, 20)
					return
				}
				ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
				defer cancel()
				_, err = patient{again}.Read(ctx, 100)
				var permanent *source.PermanentError
				if !errors.As(err, &permanent) {
					t.Fatalf("it goes on: %v", err)
				}
			}
			if !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.says) {
				t.Errorf("%v", err)
			}
		})
	}
}

// The end of a stream is remembered: its producer may be gone afterwards.
func TestEndIsRemembered(t *testing.T) {
	s, positions := newTape(), &sourcetest.Positions{}
	target, stop := serve(t, s, stream.ServerConfig{}, "127.0.0.1:0")
	s.add(messages(0, 3)...)
	s.end()
	r := open(t, streamsource.Config{Target: target, Positions: positions})
	batches := read(t, patient{r}, 3)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if _, err := (patient{r}).Read(ctx, 10); !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
	if b, err := positions.Load(ctx, "tape"); bytes.Contains(b, []byte("done")) {
		t.Fatalf("before anything is acknowledged: %s, %v", b, err)
	}
	for _, b := range batches {
		if err := r.Ack(ctx, b); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.Close(ctx); err != nil {
		t.Fatal(err)
	}
	stop()
	if _, err := open(t, streamsource.Config{Target: target, Positions: positions}).Read(ctx, 10); !errors.Is(err, io.EOF) {
		t.Errorf("after the end: %v", err)
	}
}

func TestErrors(t *testing.T) {
	good := streamsource.Config{Target: "dns:///p:1", Stream: "s", Name: "n", Positions: &sourcetest.Positions{}}
	for words, change := range map[string]func(*streamsource.Config){
		"target: required":     func(c *streamsource.Config) { c.Target = "" },
		"stream: required":     func(c *streamsource.Config) { c.Stream = "" },
		"name: required":       func(c *streamsource.Config) { c.Name = "" },
		"positions: required":  func(c *streamsource.Config) { c.Positions = nil },
		"not be negative":      func(c *streamsource.Config) { c.Batch = -1 },
		"use value or message": func(c *streamsource.Config) { c.Payload = "raw" },
		"is none of this source": func(c *streamsource.Config) {
			c.Positions = &sourcetest.Positions{}
			if err := c.Positions.Save(t.Context(), "s", []byte("17")); err != nil {
				t.Fatal(err)
			}
		},
		"newer version": func(c *streamsource.Config) {
			c.Positions = &sourcetest.Positions{}
			if err := c.Positions.Save(t.Context(), "s", []byte(`{"version":99,"stream":"s"}`)); err != nil {
				t.Fatal(err)
			}
		},
		"no disk": func(c *streamsource.Config) {
			p := &sourcetest.Positions{}
			p.Fail(errors.New("no disk"))
			c.Positions = p
		},
	} {
		cfg := good
		change(&cfg)
		if _, err := streamsource.New(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), words) {
			t.Errorf("%s: %v", words, err)
		}
	}
}

// valid returns a server whose configuration is known to be valid.
func valid(s *stream.Server, err error) *stream.Server {
	if err != nil {
		panic(err)
	}
	return s
}
