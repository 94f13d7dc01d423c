package stream_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"math/rand/v2"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"

	"github.com/levada-io/levada/stream"
)

func openReader(t *testing.T, p *producer, config stream.ReaderConfig, after stream.Checkpoint) *stream.Reader {
	t.Helper()
	conns := p.connections(t)
	config.Dial, config.Stream, config.Logger = conns.Dial, "numbers", slog.New(slog.DiscardHandler)
	r, err := stream.NewReader(config, after)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r
}

// A program that keeps records and checkpoint together, and is killed again and again, has each record once.
func TestReaderGoesOnFromTheCheckpoint(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const total = 10_000
		p := startProducer(t, stream.ServerConfig{BatchBytes: 2000, MaxStreamAge: 3 * time.Millisecond}, "numbers", stream.Slice(numbers(total)...))
		random := rand.New(rand.NewPCG(1, 2))
		var kept []stream.Record
		var at stream.Checkpoint
		for life := 0; ; life++ {
			r := openReader(t, p, stream.ReaderConfig{Name: "test", MaxRecords: 1 + random.IntN(90)}, at)
			for range 1 + random.IntN(20) {
				d, err := r.Next(t.Context())
				if errors.Is(err, io.EOF) {
					break
				}
				if err != nil {
					t.Fatalf("after record %d: %v", at.Seq, err)
				}
				for _, record := range d.Records {
					kept = append(kept, stream.Record{Seq: record.Seq, Key: []byte(string(record.Key)), Value: []byte(string(record.Value))})
				}
				at = d.After
				at.Token = append([]byte(nil), at.Token...)
			}
			if err := r.Close(); err != nil {
				t.Fatal(err)
			}
			if at.Done {
				if life < 10 {
					t.Fatalf("only %d lives", life)
				}
				break
			}
		}
		if len(kept) != total || at.Seq != total {
			t.Fatalf("%d records were kept, and the checkpoint says %d", len(kept), at.Seq)
		}
		var digest stream.Digest
		for i, record := range kept {
			if want := fmt.Sprintf("value %d", i+1); string(record.Value) != want || record.Seq != uint64(i+1) {
				t.Fatalf("record %d is number %d, %q", i+1, record.Seq, record.Value)
			}
			digest.Add(record)
		}
		if digest != at.Digest {
			t.Errorf("digest %v, and the checkpoint has %v", digest, at.Digest)
		}
		done := openReader(t, p, stream.ReaderConfig{}, at)
		if d, err := done.Next(t.Context()); err != io.EOF {
			t.Errorf("after the end: %v, %v", d, err)
		}
	})
}

// Records that the producer cannot make come in their place.
func TestReaderGivesBadRecords(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		records := numbers(100)
		for _, i := range []int{0, 41, 42, 99} {
			records[i].Bad, records[i].Value = "broken", nil
		}
		p := startProducer(t, stream.ServerConfig{}, "numbers", stream.Slice(records...))
		r := openReader(t, p, stream.ReaderConfig{}, stream.Checkpoint{})
		next := uint64(1)
		for {
			d, err := r.Next(t.Context())
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			for _, record := range d.Records {
				want := records[next-1]
				if record.Seq != next || string(record.Key) != string(want.Key) || record.Bad != want.Bad || string(record.Value) != string(want.Value) {
					t.Fatalf("record %d: %+v", next, record)
				}
				next++
			}
			if d.After.Done && d.After.Bad != 4 {
				t.Errorf("%d bad records", d.After.Bad)
			}
		}
		if next != 101 {
			t.Errorf("%d records came", next-1)
		}
		if p := r.Progress(); p.Records != 100 || p.Size != 100 || p.Bad != 4 {
			t.Errorf("progress: %+v", p)
		}
	})
}

// What Next returns lies in the memory of the stream until Next is called again, and nothing is lost when a call is given up.
func TestReaderWaitsForItsCaller(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		live := make(chan string)
		p := startProducer(t, stream.ServerConfig{}, "numbers", stream.Func(func(ctx context.Context, q stream.Query) iter.Seq2[stream.Record, error] {
			return func(yield func(stream.Record, error) bool) {
				for {
					select {
					case key := <-live:
						if !yield(stream.Record{Key: []byte(key), Value: []byte(key)}, nil) {
							return
						}
					case <-ctx.Done():
						return
					}
				}
			}
		}))
		r := openReader(t, p, stream.ReaderConfig{}, stream.Checkpoint{})
		for i := range 5 {
			short, cancel := context.WithTimeout(t.Context(), 50*time.Second)
			for { // the first position of a stream without records comes
				d, err := r.Next(short)
				if errors.Is(err, context.DeadlineExceeded) {
					break
				}
				if err != nil || len(d.Records) > 0 {
					t.Fatalf("nothing was there: %v, %v", d, err)
				}
			}
			cancel()
			key := fmt.Sprintf("key %d", i)
			live <- key
			d, err := r.Next(t.Context())
			if err != nil || len(d.Records) != 1 || string(d.Records[0].Value) != key || d.After.Seq != uint64(i+1) {
				t.Fatalf("%d: %+v, %v", i, d, err)
			}
			time.Sleep(5 * time.Minute) // longer than anything that could break the stream
			if string(d.Records[0].Value) != key {
				t.Fatalf("the record became %q", d.Records[0].Value)
			}
		}
		r.Close()
		if _, err := r.Next(t.Context()); !errors.Is(err, net.ErrClosed) {
			t.Errorf("after Close: %v", err)
		}
	})
}

func TestReaderGivesUp(t *testing.T) {
	for name, c := range map[string]struct {
		source stream.Source
		after  stream.Checkpoint
		want   error
	}{
		"gone":                 {failing{&stream.PositionGoneError{Oldest: []byte("9")}}, stream.Checkpoint{}, stream.ErrGone},
		"a token that is none": {stream.Slice(numbers(1)...), stream.Checkpoint{Seq: 1, Token: []byte("x")}, stream.ErrBadToken},
		"refused":              {failing{nil}, stream.Checkpoint{}, stream.ErrNoProgress},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := startProducer(t, stream.ServerConfig{}, "numbers", c.source)
				refused := 0
				r := openReader(t, p, stream.ReaderConfig{NoProgress: time.Minute, Observe: func(e stream.Event) {
					if e.Kind == stream.EventRetry {
						refused++
					}
				}}, c.after)
				if d, err := r.Next(t.Context()); !errors.Is(err, c.want) {
					t.Fatalf("%v, %v", d, err)
				}
				if c.want == stream.ErrNoProgress && refused < 4 {
					t.Errorf("%d attempts", refused)
				}
			})
		})
	}
	for name, config := range map[string]stream.ReaderConfig{
		"Dial":     {Stream: "x"},
		"Stream":   {Dial: func(context.Context, stream.Job) (grpc.ClientConnInterface, error) { return nil, nil }},
		"negative": {Dial: func(context.Context, stream.Job) (grpc.ClientConnInterface, error) { return nil, nil }, Stream: "x", MaxInFlight: -1},
	} {
		if _, err := stream.NewReader(config, stream.Checkpoint{}); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

// failing cannot be opened; without an error it panics.
type failing struct{ err error }

func (f failing) Open(context.Context, stream.Query) (stream.Cursor, error) {
	if f.err == nil {
		panic("no disk")
	}
	return nil, f.err
}
