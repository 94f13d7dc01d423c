package stream_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	streamv1 "github.com/levada-io/levada/proto/levada/stream/v1"
	"github.com/levada-io/levada/stream"
)

// serving runs a test in a bubble, against a server of one stream "s" that is asked without a worker.
func serving(t *testing.T, config stream.ServerConfig, source stream.Source, test func(t *testing.T, p *producer, client streamv1.StreamClient)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		p := startProducer(t, config, "s", source)
		conn, err := p.connections(t).Dial(t.Context(), stream.Job{})
		must(t, err)
		test(t, p, streamv1.NewStreamClient(conn))
	})
}

// read opens stream "s" and returns it behind its first mark.
func read(t *testing.T, client streamv1.StreamClient, req *streamv1.ReadRequest) grpc.ServerStreamingClient[streamv1.Frame] {
	t.Helper()
	req.Stream = "s"
	in, err := client.Read(t.Context(), req)
	must(t, err)
	if f, err := in.Recv(); err != nil || f.GetMark() == nil {
		t.Fatalf("the first frame is %v, %v", f, err)
	}
	return in
}

// waiting is a cursor's Next that waits for nothing.
func waiting(ctx context.Context) ([]byte, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

// A panic anywhere in the source ends that stream, with a status that names it, and nothing else; the server goes on.
func TestSourcesThatPanic(t *testing.T) {
	after := func(n int, do func() ([]byte, error)) func(context.Context) ([]byte, error) {
		i := 0
		return func(context.Context) ([]byte, error) {
			if i++; i > n {
				return do()
			}
			return fmt.Appendf(nil, "%04d", i), nil
		}
	}
	eof := func() ([]byte, error) { return nil, io.EOF }
	for name, test := range map[string]struct {
		source  stream.Source
		records int
	}{
		"Open": {opens(func(context.Context, stream.Query) (stream.Cursor, error) { panic("open") }), 0},
		"Next": {opens(func(context.Context, stream.Query) (stream.Cursor, error) {
			return cursor{next: after(3, func() ([]byte, error) { panic("next") })}, nil
		}), 3},
		"Next with io.EOF": {opens(func(context.Context, stream.Query) (stream.Cursor, error) {
			return cursor{next: after(3, func() ([]byte, error) { panic(io.EOF) })}, nil
		}), 3},
		"Close": {opens(func(context.Context, stream.Query) (stream.Cursor, error) {
			return cursor{next: after(3, eof), close: func() error { panic("close") }}, nil
		}), 3},
		"Generation": {panicking{"Generation"}, 0},
		"Schema":     {panicking{"Schema"}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			serving(t, stream.ServerConfig{}, test.source, func(t *testing.T, p *producer, client streamv1.StreamClient) {
				frames, err := readFrames(t, client, &streamv1.ReadRequest{Stream: "s"})
				cut := stream.Classify(err)
				if status.Code(err) != codes.Internal || cut.Reason != stream.ReasonSourcePanicked || cut.Fatal || cut.Transport || cut.After <= 0 || !strings.Contains(err.Error(), "panic") {
					t.Errorf("%v, %+v", err, cut)
				}
				n := 0
				for _, f := range frames {
					n += int(f.GetBatch().GetCount())
				}
				if n != test.records {
					t.Errorf("%d records came before the panic, of %d", n, test.records)
				}
				if p.server.Open() != 0 {
					t.Error("the stream is still open")
				}
			})
		})
	}
	// Size is only asked for what people want to see.
	serving(t, stream.ServerConfig{}, panicking{"Size"}, func(t *testing.T, _ *producer, client streamv1.StreamClient) {
		if frames, err := readFrames(t, client, &streamv1.ReadRequest{Stream: "s"}); err != nil || frames[len(frames)-1].GetEnd().GetCount() != 3 {
			t.Errorf("%v, %v", frames, err)
		}
	})
}

// panicking is a source of three records, one method of which panics.
type panicking struct{ method string }

func (s panicking) at(method string) {
	if s.method == method {
		panic(method)
	}
}
func (s panicking) Open(ctx context.Context, q stream.Query) (stream.Cursor, error) {
	return stream.Slice(numbers(3)...).Open(ctx, q)
}
func (s panicking) Generation(context.Context, stream.Query) (string, error) {
	s.at("Generation")
	return "", nil
}
func (s panicking) Schema(stream.Query) string { s.at("Schema"); return "" }
func (s panicking) Size(context.Context, stream.Query) (uint64, error) {
	s.at("Size")
	return 3, nil
}

// A value that panics or is refused becomes a bad record in its place; an error of a value ends the stream before it.
func TestValuesThatFail(t *testing.T) {
	source := func(fail func(seq int, dst []byte) ([]byte, error)) stream.Source {
		return opens(func(context.Context, stream.Query) (stream.Cursor, error) {
			seq := 0
			return cursor{
				next: func(context.Context) ([]byte, error) {
					if seq++; seq > 5 {
						return nil, io.EOF
					}
					return fmt.Appendf(nil, "%04d", seq), nil
				},
				value: func(dst []byte) ([]byte, error) {
					if seq == 3 {
						return fail(seq, dst)
					}
					return append(dst, 'v'), nil
				},
			}, nil
		})
	}
	for name, test := range map[string]struct {
		fail   func(seq int, dst []byte) ([]byte, error)
		bad    string
		reason stream.Reason
	}{
		"panic":                  {func(int, []byte) ([]byte, error) { panic("no") }, "panic: no", ""},
		"panic, no text":         {func(int, []byte) ([]byte, error) { panic("\xff\xfe\x00") }, "panic: \uFFFD\x00", ""},
		"skip":                   {func(int, []byte) ([]byte, error) { return nil, stream.Skip(errors.New("not this")) }, "not this", ""},
		"a long text":            {func(int, []byte) ([]byte, error) { return nil, stream.Skip(errors.New(strings.Repeat("x", 1<<20))) }, strings.Repeat("x", 1<<10), ""},
		"error":                  {func(int, []byte) ([]byte, error) { return nil, errors.New("not now") }, "", stream.ReasonSourceFailed},
		"io.EOF":                 {func(int, []byte) ([]byte, error) { return nil, io.EOF }, "", stream.ReasonSourceFailed},
		"halt":                   {func(int, []byte) ([]byte, error) { return nil, stream.Halt(errors.New("never")) }, "", stream.ReasonSourceHalted},
		"less than it was given": {func(_ int, dst []byte) ([]byte, error) { return dst[:len(dst)-1], nil }, "", stream.ReasonSourceHalted},
	} {
		t.Run(name, func(t *testing.T) {
			var told atomic.Int64
			config := stream.ServerConfig{OnBad: func(string, uint64, []byte, error) { told.Add(1) }}
			serving(t, config, source(test.fail), func(t *testing.T, _ *producer, client streamv1.StreamClient) {
				frames, err := readFrames(t, client, &streamv1.ReadRequest{Stream: "s"})
				var all []*streamv1.Record
				for _, f := range frames {
					all = append(all, f.GetBatch().GetRecords()...)
				}
				if test.reason != "" {
					if stream.Classify(err).Reason != test.reason || len(all) != 2 || told.Load() != 0 {
						t.Errorf("%d records, %d told: %v", len(all), told.Load(), err)
					}
					return
				}
				if err != nil || len(all) != 5 || all[2].GetBad() != test.bad || len(all[2].GetValue()) != 0 || string(all[3].GetValue()) != "v" || told.Load() != 1 {
					t.Errorf("%d told, %v, %v", told.Load(), err, all)
				}
			})
		})
	}
}

// What a source returns otherwise than it should.
func TestSourcesThatBreakTheContract(t *testing.T) {
	keys := func(keys ...string) stream.Source {
		return opens(func(context.Context, stream.Query) (stream.Cursor, error) {
			i := 0
			return cursor{next: func(context.Context) ([]byte, error) {
				if i++; i > len(keys) {
					return nil, io.EOF
				}
				return []byte(keys[i-1]), nil
			}}, nil
		})
	}
	for name, test := range map[string]struct {
		source stream.Source
		reason stream.Reason
		fatal  bool
	}{
		"the same key twice": {keys("a", "b", "b"), stream.ReasonOutOfOrder, true},
		"an empty key":       {keys("a", ""), stream.ReasonOutOfOrder, true},
		"a giant key":        {keys("a", strings.Repeat("b", 17<<10)), stream.ReasonSourceHalted, true},
		"neither":            {opens(func(context.Context, stream.Query) (stream.Cursor, error) { return nil, nil }), stream.ReasonSourceHalted, true},
		"cancelled":          {opens(func(context.Context, stream.Query) (stream.Cursor, error) { return nil, context.Canceled }), stream.ReasonSourceFailed, false},
		"a wrapped EOF":      {opens(func(context.Context, stream.Query) (stream.Cursor, error) { return nil, fmt.Errorf("read: %w", io.EOF) }), stream.ReasonSourceFailed, false},
		"close fails": {opens(func(context.Context, stream.Query) (stream.Cursor, error) {
			return cursor{next: func(context.Context) ([]byte, error) { return nil, io.EOF }, close: func() error { return errors.New("not flushed") }}, nil
		}), stream.ReasonSourceFailed, false},
	} {
		t.Run(name, func(t *testing.T) {
			serving(t, stream.ServerConfig{}, test.source, func(t *testing.T, _ *producer, client streamv1.StreamClient) {
				frames, err := readFrames(t, client, &streamv1.ReadRequest{Stream: "s"})
				if cut := stream.Classify(err); cut.Reason != test.reason || cut.Fatal != test.fatal {
					t.Errorf("%+v", cut)
				}
				for _, f := range frames {
					if f.GetEnd() != nil {
						t.Error("an end came")
					}
				}
			})
		})
	}
}

// A source that waits, or takes long for one value, does not keep marks, drains and the client's end from being heard.
func TestStreamsOfSlowSources(t *testing.T) {
	slowValue := func() stream.Source { // of the second record
		return opens(func(ctx context.Context, _ stream.Query) (stream.Cursor, error) {
			seq := 0
			return cursor{
				next: func(context.Context) ([]byte, error) { seq++; return fmt.Appendf(nil, "%04d", seq), nil },
				value: func(dst []byte) ([]byte, error) {
					if seq == 2 {
						sleep(ctx, time.Hour)
					}
					return append(dst, 'v'), ctx.Err()
				},
			}, nil
		})
	}
	slowNext := func() stream.Source {
		return opens(func(context.Context, stream.Query) (stream.Cursor, error) {
			seq := 0
			return cursor{next: func(ctx context.Context) ([]byte, error) {
				if seq++; seq == 2 {
					return waiting(ctx)
				}
				return []byte("0001"), nil
			}}, nil
		})
	}
	for name, source := range map[string]func() stream.Source{"Value": slowValue, "Next": slowNext} {
		t.Run(name, func(t *testing.T) {
			config := stream.ServerConfig{MaxStreamAge: -1}
			serving(t, config, source(), func(t *testing.T, _ *producer, client streamv1.StreamClient) { // marks
				in := read(t, client, &streamv1.ReadRequest{})
				last := time.Now()
				for range 20 {
					f, err := in.Recv()
					if err != nil || f.GetMark() == nil && f.GetBatch() == nil {
						t.Fatal(f, err)
					}
					if silent := time.Since(last); silent > 5*time.Second {
						t.Errorf("silent for %v", silent)
					}
					last = time.Now()
				}
			})
			serving(t, config, source(), func(t *testing.T, p *producer, client streamv1.StreamClient) { // drain
				in := read(t, client, &streamv1.ReadRequest{})
				time.Sleep(time.Second)
				since := time.Now()
				must(t, p.server.Drain(t.Context()))
				if took := time.Since(since); took > 10*time.Millisecond {
					t.Errorf("drained after %v", took)
				}
				var last *streamv1.Frame
				for {
					f, err := in.Recv()
					if errors.Is(err, io.EOF) {
						break
					}
					must(t, err)
					last = f
				}
				if last.GetDrain().GetReason() != "shutdown" {
					t.Errorf("the last frame is %v", last)
				}
				_, err := readFrames(t, client, &streamv1.ReadRequest{Stream: "s"})
				if cut := stream.Classify(err); cut.Reason != stream.ReasonDraining || !cut.Transport || cut.After <= 0 {
					t.Errorf("a new stream: %v", err)
				}
			})
			serving(t, stream.ServerConfig{MaxStreamAge: time.Minute}, source(), func(t *testing.T, p *producer, client streamv1.StreamClient) { // age
				in := read(t, client, &streamv1.ReadRequest{})
				since := time.Now()
				for {
					f, err := in.Recv()
					must(t, err)
					if f.GetDrain() != nil {
						break
					}
				}
				if age := time.Since(since); age < 54*time.Second || age > 66*time.Second {
					t.Errorf("ended at the age of %v", age)
				}
			})
			serving(t, config, source(), func(t *testing.T, p *producer, client streamv1.StreamClient) { // the client goes
				ctx, cancel := context.WithCancel(t.Context())
				in, err := client.Read(ctx, &streamv1.ReadRequest{Stream: "s"})
				must(t, err)
				_, err = in.Recv()
				must(t, err)
				time.Sleep(time.Second)
				cancel()
				time.Sleep(time.Second)
				if p.server.Open() != 0 {
					t.Error("the stream is still open")
				}
			})
		})
	}
}

// A record goes out within BatchDelay while the source waits for the next one, and not one by one while it does not.
func TestLiveTailLatency(t *testing.T) {
	feed := make(chan int)
	source := opens(func(context.Context, stream.Query) (stream.Cursor, error) {
		seq := 0
		return cursor{next: func(ctx context.Context) ([]byte, error) {
			select {
			case <-feed:
				seq++
				return fmt.Appendf(nil, "%08d", seq), nil
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		}}, nil
	})
	synctest.Test(t, func(t *testing.T) {
		feed = make(chan int)
		p := startProducer(t, stream.ServerConfig{}, "s", source)
		conn, err := p.connections(t).Dial(t.Context(), stream.Job{})
		must(t, err)
		in := read(t, streamv1.NewStreamClient(conn), &streamv1.ReadRequest{})
		came := make(chan int, 100)
		go func() {
			for {
				f, err := in.Recv()
				if err != nil {
					return
				}
				if n := f.GetBatch().GetCount(); n > 0 {
					came <- int(n)
				}
			}
		}()
		for range 50 {
			since := time.Now()
			feed <- 1
			n := <-came
			if took := time.Since(since); took > 2*time.Millisecond || n != 1 {
				t.Fatalf("%d records after %v", n, took)
			}
			time.Sleep(137 * time.Millisecond)
		}
		for range 1000 { // at once
			feed <- 1
		}
		if n := <-came; n < 500 {
			t.Errorf("a batch of %d of 1000 records that were there at once", n)
		}
	})
}

// A source that passes over records that are not the stream's moves the reader's position without any.
func TestBookmarksMoveTheCheckpoint(t *testing.T) {
	var mu sync.Mutex
	var opened [][]byte
	source := opens(func(_ context.Context, q stream.Query) (stream.Cursor, error) {
		mu.Lock()
		defer mu.Unlock()
		opened = append(opened, slices.Clone(q.After))
		return &passing{}, nil
	})
	withProducer(t, source, func(l *lab) {
		w := l.start("s", l.store.Sink(l.table.handle))
		l.submit(stream.Job{ID: "j", Stream: "s"})
		time.Sleep(time.Minute)
		must(t, w.stop())
		l.start("s", l.store.Sink(l.table.handle))
		time.Sleep(time.Second)
		mu.Lock()
		defer mu.Unlock()
		if len(opened) != 2 || len(opened[0]) != 0 || string(opened[1]) < "00000050" {
			t.Errorf("opened after %q", opened)
		}
		if status := l.get("j"); status.Progress.Records != 0 || status.RetryState != (stream.RetryState{}) {
			t.Errorf("%+v", status)
		}
	})
}

// passing looks at one record each second, none of which is the stream's.
type passing struct{ seen int }

func (c *passing) Next(ctx context.Context) ([]byte, error) {
	if !sleep(ctx, time.Second) {
		return nil, ctx.Err()
	}
	c.seen++
	return nil, nil
}
func (c *passing) Value(dst []byte) ([]byte, error) { return dst, nil }
func (c *passing) Close() error                     { return nil }
func (c *passing) ProgressKey() []byte              { return fmt.Appendf(nil, "%08d", c.seen) }

// A nil key of a source that has no bookmarks is an empty key.
func TestNilKeyWithoutBookmarks(t *testing.T) {
	source := opens(func(context.Context, stream.Query) (stream.Cursor, error) {
		return cursor{next: func(context.Context) ([]byte, error) { return nil, nil }}, nil
	})
	serving(t, stream.ServerConfig{}, source, func(t *testing.T, _ *producer, client streamv1.StreamClient) {
		_, err := readFrames(t, client, &streamv1.ReadRequest{Stream: "s"})
		if stream.Classify(err).Reason != stream.ReasonOutOfOrder {
			t.Error(err)
		}
	})
}

// A reader that goes on behind a position it was given gets the right numbers, also when the producer is slow to come there, and says how
// long the stream is meanwhile.
func TestGoingOnBehindAPosition(t *testing.T) {
	source := &slowSized{counted{n: 30, at: func(ctx context.Context, _ int) error { sleep(ctx, 3*time.Second); return ctx.Err() }}}
	serving(t, stream.ServerConfig{MaxStreamAge: -1}, source, func(t *testing.T, _ *producer, client streamv1.StreamClient) {
		in := read(t, client, &streamv1.ReadRequest{NextSeq: 21})
		marks := 0
		for {
			f, err := in.Recv()
			must(t, err)
			if m := f.GetMark(); m != nil {
				marks++
				if m.GetNextSeq() != 21 {
					t.Fatalf("a mark names record %d", m.GetNextSeq())
				}
				if m.GetSize() != 30 && marks > 1 {
					t.Errorf("size %d", m.GetSize())
				}
				continue
			}
			if seq := f.GetBatch().GetFirstSeq(); seq != 21 || marks < 5 {
				t.Errorf("record %d came after %d marks", seq, marks)
			}
			return
		}
	})
}

type slowSized struct{ counted }

func (s *slowSized) Size(context.Context, stream.Query) (uint64, error) { return uint64(s.n), nil }

// More streams than are allowed get a status to come back with, and how many are open is counted right.
func TestAdmission(t *testing.T) {
	source := opens(func(context.Context, stream.Query) (stream.Cursor, error) { return cursor{next: waiting}, nil })
	serving(t, stream.ServerConfig{MaxStreams: 3}, source, func(t *testing.T, p *producer, client streamv1.StreamClient) {
		ctx, cancel := context.WithCancel(t.Context())
		for range 3 {
			in, err := client.Read(ctx, &streamv1.ReadRequest{Stream: "s"})
			must(t, err)
			_, err = in.Recv()
			must(t, err)
		}
		_, err := readFrames(t, client, &streamv1.ReadRequest{Stream: "s"})
		cut := stream.Classify(err)
		if status.Code(err) != codes.ResourceExhausted || cut.Fatal || cut.Reason != stream.ReasonTooManyStreams || cut.After <= 0 || p.server.Open() != 3 {
			t.Errorf("%d open: %+v", p.server.Open(), cut)
		}
		cancel()
		time.Sleep(time.Second)
		if p.server.Open() != 0 {
			t.Errorf("%d open", p.server.Open())
		}
		read(t, client, &streamv1.ReadRequest{})
	})
}

// Shutdown drains the streams, then waits for other calls, and is over at its deadline whatever they do.
func TestShutdownOfTheProducer(t *testing.T) {
	source := opens(func(context.Context, stream.Query) (stream.Cursor, error) { return cursor{next: waiting}, nil })
	serving(t, stream.ServerConfig{}, source, func(t *testing.T, p *producer, client streamv1.StreamClient) {
		in := read(t, client, &streamv1.ReadRequest{})
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		since := time.Now()
		must(t, stream.Shutdown(ctx, p.grpc, p.server))
		if took := time.Since(since); took > time.Second {
			t.Errorf("it took %v", took)
		}
		if f, err := in.Recv(); err != nil || f.GetDrain() == nil {
			t.Errorf("%v, %v", f, err)
		}
		must(t, p.server.Drain(ctx)) // again
	})
	deaf := make(chan struct{}) // ignores its context
	source = opens(func(context.Context, stream.Query) (stream.Cursor, error) {
		return cursor{next: func(context.Context) ([]byte, error) { <-deaf; return nil, io.EOF }}, nil
	})
	synctest.Test(t, func(t *testing.T) {
		deaf = make(chan struct{})
		p := startProducer(t, stream.ServerConfig{}, "s", source)
		conn, err := p.connections(t).Dial(t.Context(), stream.Job{})
		must(t, err)
		read(t, streamv1.NewStreamClient(conn), &streamv1.ReadRequest{})
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		since := time.Now()
		err = stream.Shutdown(ctx, p.grpc, p.server)
		if took := time.Since(since); err == nil || took != 10*time.Second || !strings.Contains(err.Error(), "1 streams") || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("after %v: %v", took, err)
		}
		close(deaf)
	})
}

// A worker goes from a producer that drains to another without a failure, and without a pause longer than the producer asked for.
func TestDrainIsNoFailure(t *testing.T) {
	source := &counted{n: 300, at: func(ctx context.Context, _ int) error { sleep(ctx, 50*time.Millisecond); return ctx.Err() }}
	synctest.Test(t, func(t *testing.T) {
		var way movable
		conns := stream.NewConnections("passthrough:///s", insecureTo(way.dial)...)
		t.Cleanup(func() { conns.Close() })
		p := startProducer(t, stream.ServerConfig{MaxStreamAge: time.Second}, "s", source)
		way.set(p.listener)
		l := newLab(t, conns.Dial)
		l.start("s", l.store.Sink(l.table.handle))
		since := time.Now()
		job := l.end(l.submit(stream.Job{Stream: "s"}).ID, time.Minute)
		l.is(job, stream.Completed, "")
		if took := time.Since(since); took > 20*time.Second || job.Attempts != 1 {
			t.Errorf("%v, %d claims", took, job.Attempts)
		}
		if n := len(l.seen(stream.EventDisconnected)); n < 10 {
			t.Errorf("%d streams ended by age", n)
		}
		if n := len(l.seen(stream.EventRetry)); n != 0 {
			t.Errorf("%d failures", n)
		}
		must(t, complete(l.table.seqs(), 300))
	})
}

// Many streams at once, some of which break, some are left, some drained.
func TestManyStreamsAtOnce(t *testing.T) {
	serving(t, stream.ServerConfig{BatchBytes: 500, MarkEvery: 10 * time.Millisecond, MaxStreamAge: 500 * time.Millisecond}, &counted{n: 2000, size: 20}, func(t *testing.T, p *producer, client streamv1.StreamClient) {
		var all sync.WaitGroup
		var whole, left atomic.Int64
		for i := range 200 {
			all.Go(func() {
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				in, err := client.Read(ctx, &streamv1.ReadRequest{Stream: "s", MaxBatchRecords: uint32(i % 50)})
				if err != nil {
					t.Error(err)
					return
				}
				next := uint64(1)
				for {
					f, err := in.Recv()
					if err != nil {
						t.Error(err)
						return
					}
					if b := f.GetBatch(); b != nil {
						if b.GetFirstSeq() != next || i%50 > 0 && int(b.GetCount()) > i%50 {
							t.Errorf("records %d, %d of them, after %d", b.GetFirstSeq(), b.GetCount(), next)
						}
						next += uint64(b.GetCount())
					}
					if f.GetEnd() != nil {
						if next != 2001 {
							t.Errorf("the end came before record %d", next)
						}
						whole.Add(1)
						return
					}
					if f.GetDrain() != nil || i%7 == 0 && next > 700 {
						left.Add(1)
						return
					}
				}
			})
		}
		all.Wait()
		time.Sleep(time.Second)
		if p.server.Open() != 0 || whole.Load() == 0 || left.Load() == 0 {
			t.Errorf("%d open, %d read to the end, %d left", p.server.Open(), whole.Load(), left.Load())
		}
	})
}

// A batch that is full goes out at once, however the reader and the sender of a stream meet.
func TestFullBatchesDoNotWait(t *testing.T) {
	for range 20 {
		serving(t, stream.ServerConfig{BatchBytes: 60, BatchDelay: time.Hour, MaxStreamAge: -1}, stream.Slice(numbers(3000)...), func(t *testing.T, _ *producer, client streamv1.StreamClient) {
			since := time.Now()
			frames, err := readFrames(t, client, &streamv1.ReadRequest{Stream: "s"})
			if took := time.Since(since); err != nil || took > 0 || frames[len(frames)-1].GetEnd().GetCount() != 3000 {
				t.Fatalf("%d frames after %v: %v", len(frames), took, err)
			}
		})
	}
}
