package streamsink

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/levada-io/levada/internal/dataplane/sink"
	"github.com/levada-io/levada/internal/dataplane/sink/sinktest"
	"github.com/levada-io/levada/internal/flow"
	"github.com/levada-io/levada/stream"
)

func TestMain(m *testing.M) {
	if path := os.Getenv(childPath); path != "" {
		child(path)
		return
	}
	goleak.VerifyTestMain(m)
}

func open(t testing.TB, cfg Config) *Writer {
	t.Helper()
	if cfg.Listen == "" {
		cfg.Listen = "127.0.0.1:0"
	}
	cfg.Name = "out"
	w, err := New(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = w.Close(context.WithoutCancel(t.Context())) })
	return w
}

func write(t testing.TB, w *Writer, b *flow.Block) {
	t.Helper()
	if results, err := w.Write(t.Context(), b); err != nil || results != nil {
		t.Fatalf("write %s %d-%d: %v, %v", b.Lane, b.Lo, b.Hi, results, err)
	}
}

func closed(t testing.TB, w *Writer) {
	t.Helper()
	if err := w.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// reader reads the stream of a sink at an address.
func reader(t testing.TB, address string, after stream.Checkpoint, config stream.ReaderConfig) *stream.Reader {
	t.Helper()
	conns := stream.NewConnections(address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	config.Dial, config.Stream, config.Logger = conns.Dial, "out", slog.New(slog.DiscardHandler)
	config.Retry = stream.Backoff{Min: time.Millisecond, Max: 10 * time.Millisecond}
	r, err := stream.NewReader(config, after)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close(); conns.Close() })
	return r
}

// take reads n records; the checkpoint is after the last delivery.
func take(t testing.TB, r *stream.Reader, n int) (records []stream.Record, at stream.Checkpoint) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for len(records) < n {
		d, err := r.Next(ctx)
		if err != nil {
			t.Fatalf("after %d of %d records: %v", len(records), n, err)
		}
		for _, record := range d.Records {
			record.Key, record.Value = []byte(string(record.Key)), []byte(string(record.Value))
			records = append(records, record)
		}
		at = d.After
	}
	return records, at
}

// values are all that the log holds, read over the network.
func values(t testing.TB, path string) (all []string) {
	t.Helper()
	w := open(t, Config{Path: path})
	defer closed(t, w)
	_, last, _, _ := w.log.held()
	r := reader(t, w.Addr().String(), stream.Checkpoint{}, stream.ReaderConfig{})
	defer r.Close()
	records, _ := take(t, r, int(last))
	for i, record := range records {
		if record.Seq != uint64(i+1) || string(record.Key) != fmt.Sprintf("%020d", i+1) {
			t.Fatalf("record %d has number %d and key %q", i+1, record.Seq, record.Key)
		}
		all = append(all, string(record.Value))
	}
	return all
}

func TestConformance(t *testing.T) {
	sinktest.Run(t, func(t *testing.T) sinktest.Harness {
		path := filepath.Join(t.TempDir(), "deep", "er", "log.sqlite")
		return sinktest.Harness{
			Open:        func(t *testing.T) sink.Writer { return open(t, Config{Path: path}) },
			Delivered:   func(t *testing.T) []string { return values(t, path) },
			ExactlyOnce: true,
		}
	})
}

// Readers get what is written while they wait, and go on when the sink is started again.
func TestLiveTail(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log.sqlite")
	w := open(t, Config{Path: path})
	address := w.Addr().String()
	r := reader(t, address, stream.Checkpoint{}, stream.ReaderConfig{})
	next := uint64(1)
	for life := range 3 {
		for range 5 {
			write(t, w, sinktest.Block("in/0", next, next+6, next-1))
			records, at := take(t, r, 7)
			for i, record := range records {
				if want := fmt.Sprintf("in/0/%d", next+uint64(i)); string(record.Value) != want || len(records) != 7 {
					t.Fatalf("life %d: got %q for %q", life, record.Value, want)
				}
			}
			next += 7
			if at.Seq != next-1 {
				t.Fatalf("the checkpoint is %d, want %d", at.Seq, next-1)
			}
		}
		closed(t, w)
		w = open(t, Config{Path: path, Listen: address})
	}
}

func TestPayloadMessage(t *testing.T) {
	w := open(t, Config{Path: filepath.Join(t.TempDir(), "log.sqlite"), Payload: Message})
	write(t, w, &flow.Block{Lane: "in/0", Lo: 1, Hi: 2, Messages: []flow.Message{
		{ID: "in/0/1", Pos: 1, Keys: []string{"k"}, EventTime: 1e18, Headers: flow.AppendHeader(nil, "x", "1"), Value: []byte("hello")},
		{ID: "in/0/2", Pos: 2, EventTime: 1e18, Value: []byte{0xff}},
	}})
	records, _ := take(t, reader(t, w.Addr().String(), stream.Checkpoint{}, stream.ReaderConfig{}), 2)
	var got []string
	for _, record := range records {
		got = append(got, string(record.Value))
	}
	want := []string{
		`{"id":"in/0/1","keys":["k"],"eventTime":"2001-09-09T01:46:40Z","headers":{"x":"1"},"value":"hello"}`,
		`{"id":"in/0/2","keys":[],"eventTime":"2001-09-09T01:46:40Z","headers":{},"valueBase64":"/w=="}`,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func until(t testing.TB, what string, happened func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !happened(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s did not happen", what)
		}
	}
}

// What is above the limits is forgotten, the oldest first. A reader from the start begins with what is there; one that was away for too long gets an error.
func TestRetention(t *testing.T) {
	for name, c := range map[string]struct {
		cfg  Config
		left func(first, last uint64) bool
	}{
		"by size": {Config{MaxBytes: 100 * (overhead + 6)}, func(first, last uint64) bool { return last-first < 100 && last >= first }},
		"by age":  {Config{MaxAge: 50 * time.Millisecond}, func(first, last uint64) bool { return first == last+1 }},
		"one message that is larger than the limit": {Config{MaxBytes: 1}, func(first, last uint64) bool { return first == last }},
	} {
		t.Run(name, func(t *testing.T) {
			c.cfg.Path = filepath.Join(t.TempDir(), "log.sqlite")
			unlimited := Config{Path: c.cfg.Path}
			w := open(t, unlimited)
			write(t, w, sinktest.Block("in/0", 1, 2*trimChunk+10, 0))
			early := reader(t, w.Addr().String(), stream.Checkpoint{}, stream.ReaderConfig{MaxRecords: 10})
			_, before := take(t, early, 10)
			early.Close()
			closed(t, w)

			w = open(t, c.cfg)
			until(t, "forgetting", func() bool { first, last, _, _ := w.log.held(); return c.left(first, last) })
			first, last, size, _ := w.log.held()
			var rows, sum int64
			if err := w.log.read.QueryRow("select count(*), coalesce(sum(length(value)), 0) from log").Scan(&rows, &sum); err != nil {
				t.Fatal(err)
			}
			if uint64(rows) != last+1-first || size != sum+rows*overhead {
				t.Errorf("%d to %d are held, in %d bytes; the table has %d rows of %d bytes", first, last, size, rows, sum)
			}
			late := reader(t, w.Addr().String(), before, stream.ReaderConfig{})
			if d, err := late.Next(t.Context()); !errors.Is(err, stream.ErrGone) || first <= last && !strings.Contains(err.Error(), string(appendKey(nil, first))) {
				t.Errorf("a reader that was away: %v, %v", d, err)
			}
			fresh := reader(t, w.Addr().String(), stream.Checkpoint{}, stream.ReaderConfig{})
			if first > last {
				write(t, w, sinktest.Block("in/0", last+1, last+1, last))
				first = last + 1
			}
			records, _ := take(t, fresh, 1)
			if want := fmt.Sprintf("in/0/%d", first); string(records[0].Value) != want || records[0].Seq != 1 {
				t.Errorf("a new reader begins with %d, %q, and %q is the oldest", records[0].Seq, records[0].Value, want)
			}
			closed(t, w)
			w = open(t, unlimited) // it is remembered
			if again, _, _, _ := w.log.held(); again < first {
				t.Errorf("after a restart %d is the first, and was %d", again, first)
			}
		})
	}
}

// A cursor that stands where something is forgotten under it returns an error, and skips nothing.
func TestForgottenUnderAReader(t *testing.T) {
	l, err := openLog(t.Context(), Config{Path: filepath.Join(t.TempDir(), "log.sqlite"), MaxBytes: 20 * overhead}.withDefaults())
	if err != nil {
		t.Fatal(err)
	}
	defer l.close()
	if err := l.append(t.Context(), []*flow.Block{sinktest.Block("in/0", 1, pieceRows+100, 0)}); err != nil {
		t.Fatal(err)
	}
	c, err := l.Open(t.Context(), stream.Query{Stream: "out"})
	if err != nil {
		t.Fatal(err)
	}
	for range pieceRows {
		if _, err := c.Next(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	for more := true; more; {
		if more, err = l.trim(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if key, err := c.Next(t.Context()); !errors.Is(err, stream.ErrGone) {
		t.Errorf("%q, %v", key, err)
	}
}

// Positions of another log, or of a later state of this one, are refused.
func TestAnotherLog(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "log.sqlite")
	w := open(t, Config{Path: path})
	address := w.Addr().String()
	write(t, w, sinktest.Block("in/0", 1, 10, 0))
	closed(t, w)
	older, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	w = open(t, Config{Path: path, Listen: address})
	write(t, w, sinktest.Block("in/0", 11, 20, 10))
	r := reader(t, address, stream.Checkpoint{}, stream.ReaderConfig{})
	_, at := take(t, r, 20)
	r.Close()
	closed(t, w)
	for name, file := range map[string]string{"another log": filepath.Join(dir, "other.sqlite"), "an older copy": filepath.Join(dir, "copy.sqlite")} {
		if name == "an older copy" {
			if err := os.WriteFile(file, older, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		w := open(t, Config{Path: file, Listen: address})
		write(t, w, sinktest.Block("in/0", 11, 12, 10))
		r := reader(t, address, at, stream.ReaderConfig{})
		if d, err := r.Next(t.Context()); !errors.Is(err, stream.ErrGeneration) {
			t.Errorf("%s: %v, %v", name, d, err)
		}
		r.Close()
		closed(t, w)
	}
}

// When a commit fails nothing of it counts, and the next one is as if it had not been.
func TestFailedCommit(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log.sqlite")
	w := open(t, Config{Path: path})
	write(t, w, sinktest.Block("in/0", 1, 10, 0))
	if _, err := w.log.write.Exec("create trigger full before insert on log when new.pos = 15 begin select raise(abort, 'no disk'); end"); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if _, err := w.Write(t.Context(), sinktest.Block("in/0", 11, 20, 10)); err == nil || !strings.Contains(err.Error(), "no disk") {
			t.Fatalf("the write did not fail: %v", err)
		}
	}
	if _, err := w.Write(t.Context(), sinktest.Block("byid/0", 1, 9, 0)); err == nil {
		t.Fatal("the write did not fail")
	}
	if _, err := w.log.write.Exec("drop trigger full"); err != nil {
		t.Fatal(err)
	}
	write(t, w, sinktest.Block("byid/0", 1, 9, 0))
	write(t, w, sinktest.Block("in/0", 9, 20, 8))
	write(t, w, sinktest.Block("byid/0", 5, 9, 0))
	closed(t, w)
	var want []string
	for i := range 10 {
		want = append(want, fmt.Sprintf("in/0/%d", i+1))
	}
	for i := range 9 {
		want = append(want, fmt.Sprintf("byid/0/%d", i+1))
	}
	for i := range 10 {
		want = append(want, fmt.Sprintf("in/0/%d", i+11))
	}
	if diff := cmp.Diff(want, values(t, path)); diff != "" {
		t.Error(diff)
	}
}

func TestErrors(t *testing.T) {
	dir := t.TempDir()
	busy, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer busy.Close()
	text, newer := filepath.Join(dir, "text"), filepath.Join(dir, "newer.sqlite")
	if err := os.WriteFile(text, []byte(strings.Repeat("these are not pages of a database\n", 100)), 0o644); err != nil {
		t.Fatal(err)
	}
	w := open(t, Config{Path: newer})
	if _, err := w.log.write.Exec("pragma user_version = 99"); err != nil {
		t.Fatal(err)
	}
	closed(t, w)
	if _, err := w.Write(t.Context(), sinktest.Block("in/0", 1, 1, 0)); !errors.Is(err, ErrClosed) {
		t.Errorf("a write after Close: %v", err)
	}
	good := Config{Path: filepath.Join(dir, "good.sqlite"), Name: "out", Listen: "127.0.0.1:0"}
	for words, change := range map[string]func(*Config){
		"path: required":             func(c *Config) { c.Path = "" },
		"name: required":             func(c *Config) { c.Name = "" },
		"listen: required":           func(c *Config) { c.Listen = "" },
		"not be negative":            func(c *Config) { c.MaxAge = -1 },
		"use value or message":       func(c *Config) { c.Payload = "json" },
		"an address of its own":      func(c *Config) { c.Listen = busy.Addr().String() },
		"not a log of a stream sink": func(c *Config) { c.Path = text },
		"newer version":              func(c *Config) { c.Path = newer },
	} {
		cfg := good
		change(&cfg)
		if _, err := New(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), words) {
			t.Errorf("%s: %v", words, err)
		}
	}
	w = open(t, good)
	r := reader(t, w.Addr().String(), stream.Checkpoint{}, stream.ReaderConfig{Query: []byte("where=1")})
	if _, err := r.Next(t.Context()); err == nil || errors.Is(err, io.EOF) || !strings.Contains(err.Error(), "takes no query") {
		t.Errorf("with a query: %v", err)
	}
}
