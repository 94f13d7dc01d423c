package stream_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	streamv1 "github.com/levada-io/levada/proto/levada/stream/v1"
	"github.com/levada-io/levada/stream"
)

// versioned is a source that can become another.
type versioned struct {
	stream.Source
	generation, schema string
	open               error
}

func (s *versioned) Generation(context.Context, stream.Query) (string, error) {
	return s.generation, nil
}
func (s *versioned) Schema(stream.Query) string { return s.schema }
func (s *versioned) Open(ctx context.Context, q stream.Query) (stream.Cursor, error) {
	if s.open != nil && len(q.After) > 0 {
		return nil, s.open
	}
	return s.Source.Open(ctx, q)
}

// Whatever has become of the position that a job goes on from: the job fails at once, with the reason, keeps what it has, and says what to
// do; the error that the worker reports is the sentinel.
func TestPositionsThatAreNone(t *testing.T) {
	const n, half = 40, 20
	for _, test := range []struct {
		name   string
		spoil  func(s *versioned, k *spoiledSink)
		reason stream.Reason
		is     error
		says   string
	}{
		{"garbage", func(_ *versioned, k *spoiledSink) { k.token = []byte("garbage") }, stream.ReasonBadToken, stream.ErrBadToken, "at least"},
		{"long garbage", func(_ *versioned, k *spoiledSink) { k.token = bytes.Repeat([]byte{1}, 100) }, stream.ReasonBadToken, stream.ErrBadToken, "damaged"},
		{"of a newer version", func(_ *versioned, k *spoiledSink) { k.token = bytes.Repeat([]byte{9}, 100) }, stream.ReasonBadToken, stream.ErrBadToken, "version is 9"},
		{"a bit of the key", func(_ *versioned, k *spoiledSink) { k.flip = true }, stream.ReasonBadToken, stream.ErrBadToken, "damaged"},
		{"the number is behind it", func(_ *versioned, k *spoiledSink) { k.seq = half - 5 }, stream.ReasonBadToken, stream.ErrBadToken, "follows record 20"},
		{"the number is beyond the end", func(_ *versioned, k *spoiledSink) { k.seq = n + 5 }, stream.ReasonPositionGone, stream.ErrGone, "5 records before"},
		{"another schema", func(s *versioned, _ *spoiledSink) { s.schema = "select 2" }, stream.ReasonQueryChanged, stream.ErrQueryChanged, "new job"},
		{"a restored source", func(s *versioned, _ *spoiledSink) { s.generation = "b" }, stream.ReasonGenerationChanged, stream.ErrGeneration, "new job"},
		{"compacted away", func(s *versioned, _ *spoiledSink) { s.open = &stream.PositionGoneError{Oldest: []byte("00000033")} }, stream.ReasonPositionGone, stream.ErrGone, "00000033"},
		{"gone, wrapped", func(s *versioned, _ *spoiledSink) {
			s.open = fmt.Errorf("the log: %w", &stream.PositionGoneError{})
		}, stream.ReasonPositionGone, stream.ErrGone, "the log"},
	} {
		t.Run(test.name, func(t *testing.T) {
			source := &versioned{Source: stream.Slice(numbers(n)...), generation: "a", schema: "select 1"}
			withProducer(t, source, func(l *lab) {
				l.config.CommitRecords = 10
				sink := &spoiledSink{ReplaySink: l.store.Sink(func(ctx context.Context, b *stream.Batch) (func(), error) {
					if b.Records[0].Seq > half {
						return nil, errors.New("stop here")
					}
					return l.table.handle(ctx, b)
				})}
				w := l.start("s", sink)
				job := l.submit(stream.Job{Stream: "s"})
				l.await("half", time.Minute, func() bool { return l.table.len() == half })
				must(t, w.stop())
				test.spoil(source, sink)
				l.events = nil
				sink.spoil = true
				l.start("s", sink)
				job = l.end(job.ID, 5*time.Minute)
				l.is(job, stream.Failed, test.reason)
				if !strings.Contains(job.LastError, test.says) || !strings.Contains(job.LastError, test.is.Error()) {
					t.Errorf("it says: %s", job.LastError)
				}
				cuts := l.seen(stream.EventDisconnected)
				if len(cuts) != 1 || !errors.Is(cuts[0].Err, test.is) || cuts[0].Reason != test.reason {
					t.Errorf("events: %+v", cuts)
				}
				must(t, l.table.holds(numbers(half)))
			})
		})
	}
}

// spoiledSink gives out another checkpoint than it has.
type spoiledSink struct {
	stream.ReplaySink
	spoil bool
	token []byte
	seq   uint64
	flip  bool
}

func (s *spoiledSink) Fence(ctx context.Context, l stream.Lease) (stream.Checkpoint, error) {
	c, err := s.ReplaySink.Fence(ctx, l)
	if !s.spoil {
		return c, err
	}
	if s.token != nil {
		c.Token = s.token
	}
	if s.flip {
		c.Token = bytes.Clone(c.Token)
		c.Token[len(c.Token)-1] ^= 1
	}
	if s.seq > 0 {
		c.Seq = s.seq
	}
	return c, err
}

// A position is that of a stream and a query: another's is refused.
func TestForeignPositions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := valid(stream.NewServer(stream.ServerConfig{}))
		server.Handle("a", stream.Slice(numbers(5)...))
		server.Handle("b", stream.Slice(numbers(5)...))
		conn, err := onWire(t, server).connections(t).Dial(t.Context(), stream.Job{})
		must(t, err)
		client := streamv1.NewStreamClient(conn)
		token := func(name, query string) []byte {
			frames, err := readFrames(t, client, &streamv1.ReadRequest{Stream: name, Query: []byte(query)})
			must(t, err)
			return frames[len(frames)-1].GetEnd().GetToken()
		}
		for _, other := range [][2]string{{"b", ""}, {"a", "x"}} {
			_, err := readFrames(t, client, &streamv1.ReadRequest{Stream: "a", After: token(other[0], other[1])})
			if cut := stream.Classify(err); !cut.Fatal || !errors.Is(cut.Err, stream.ErrQueryChanged) || status.Code(err) != codes.FailedPrecondition {
				t.Errorf("the position of %q: %v", other, err)
			}
		}
		if frames, err := readFrames(t, client, &streamv1.ReadRequest{Stream: "a", After: token("a", "")}); err != nil || len(frames) < 2 {
			t.Errorf("its own: %v, %v", frames, err)
		}
		_, err = readFrames(t, client, &streamv1.ReadRequest{Stream: "c"})
		if cut := stream.Classify(err); !cut.Fatal || !errors.Is(cut.Err, stream.ErrUnknownStream) {
			t.Errorf("an unknown stream: %v", err)
		}
	})
}

// readFrames reads a stream until it ends.
func readFrames(t *testing.T, client streamv1.StreamClient, req *streamv1.ReadRequest) (frames []*streamv1.Frame, err error) {
	t.Helper()
	in, err := client.Read(t.Context(), req)
	if err != nil {
		return nil, err
	}
	for {
		f, err := in.Recv()
		if errors.Is(err, io.EOF) {
			return frames, nil
		}
		if err != nil {
			return frames, err
		}
		frames = append(frames, f)
	}
}

// Records above a limit go into quarantine, of the producer or of the worker, and those at the limit do not.
func TestRecordsAboveTheLimit(t *testing.T) {
	const limit = 10_000
	records := numbers(9)
	for i, size := range []int{10, limit - 50, limit, limit + 200, 3 * limit, 0, limit - 8, 100 * limit, 5} {
		records[i].Value = bytes.Repeat([]byte{'x'}, size)
	}
	for name, config := range map[string][2]int{"producer's": {limit + 40, 1 << 20}, "reader's": {1 << 20, limit + 8}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var told []uint64
				p := startProducer(t, stream.ServerConfig{MaxRecord: config[0], OnBad: func(_ string, seq uint64, key []byte, err error) {
					if !errors.Is(err, stream.ErrTooLarge) {
						t.Errorf("record %d: %v", seq, err)
					}
					told = append(told, seq)
				}}, "s", stream.Slice(records...))
				l := newLab(t, p.connections(t).Dial)
				l.config.MaxRecord = config[1]
				l.start("s", l.store.Sink(l.table.handle))
				job := l.end(l.submit(stream.Job{Stream: "s"}).ID, time.Minute)
				l.is(job, stream.Completed, "")
				must(t, l.table.holds(records, 4, 5, 8))
				rows := l.aside(job.ID)
				if len(rows) != 3 || !slices.Equal(told, []uint64{4, 5, 8}) {
					t.Fatalf("%d rows, told of %v", len(rows), told)
				}
				for _, row := range rows {
					if row.Class != stream.ClassProducer || !strings.Contains(row.Error, stream.ErrTooLarge.Error()) || !strings.Contains(row.Error, fmt.Sprint(len(records[row.Seq-1].Value))) {
						t.Errorf("%+v", row)
					}
				}
			})
		})
	}
}

// hostile runs a job against a server that tampers with the frames of a real one, and returns it with its lab. The table never holds
// anything but records of the stream, in order.
func hostile(t *testing.T, records []stream.Record, config stream.ServerConfig, change func(*streamv1.Frame) *streamv1.Frame, check func(l *lab, job stream.Status)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		config.Logger = quiet
		real := valid(stream.NewServer(config))
		real.Handle("s", stream.Slice(records...))
		p := onWire(t, scripted{read: func(req *streamv1.ReadRequest, out grpc.ServerStreamingServer[streamv1.Frame]) error {
			return real.Read(req, tampered{out, change})
		}})
		l := newLab(t, p.connections(t).Dial)
		l.config.NoProgress, l.config.IdleTimeout = 10*time.Minute, 5*time.Second
		l.start("s", l.store.Sink(l.table.handle))
		job := l.submit(stream.Job{Stream: "s"})
		l.await("final", time.Hour, func() bool { return l.get(job.ID).State.Final() })
		job = l.get(job.ID)
		if err := l.table.holds(records[:l.table.len()]); err != nil {
			t.Error(err)
		}
		if job.State == stream.Completed && l.table.len() != len(records) {
			t.Errorf("completed with %d of %d records", l.table.len(), len(records))
		}
		check(l, job)
	})
}

// Frames that contradict themselves or those before them.
func TestCorruptFrames(t *testing.T) {
	records := numbers(10)
	plain := func(f *streamv1.Frame) *streamv1.Frame { // as the generated code reads it, so that its records can be changed
		raw, err := proto.Marshal(f)
		if err != nil {
			t.Error(err)
		}
		f = new(streamv1.Frame)
		if err := proto.Unmarshal(raw, f); err != nil {
			t.Error(err)
		}
		return f
	}
	batch := func(change func(*streamv1.Batch)) func(*streamv1.Frame) *streamv1.Frame {
		return func(f *streamv1.Frame) *streamv1.Frame {
			if f = plain(f); f.GetBatch().GetFirstSeq() == 1 {
				change(f.GetBatch())
			}
			return f
		}
	}
	end := func(change func(*streamv1.End)) func(*streamv1.Frame) *streamv1.Frame {
		return func(f *streamv1.Frame) *streamv1.Frame {
			if f.GetEnd() != nil {
				change(f.GetEnd())
			}
			return f
		}
	}
	raw := func(b []byte) *streamv1.Frame {
		f := new(streamv1.Frame)
		f.ProtoReflect().SetUnknown(b)
		return f
	}
	for _, test := range []struct {
		name   string
		change func(*streamv1.Frame) *streamv1.Frame
		reason stream.Reason
		is     error
		rows   int
	}{
		{"first_seq too large", batch(func(b *streamv1.Batch) { b.FirstSeq++ }), stream.ReasonNoProgress, stream.ErrCorrupt, 0},
		{"first_seq 0", batch(func(b *streamv1.Batch) { b.FirstSeq = 0 }), stream.ReasonNoProgress, stream.ErrCorrupt, 0},
		{"count", batch(func(b *streamv1.Batch) { b.Count++ }), stream.ReasonNoProgress, stream.ErrCorrupt, 0},
		{"a record less", batch(func(b *streamv1.Batch) { b.Records = b.Records[1:]; b.Count-- }), stream.ReasonNoProgress, stream.ErrCorrupt, 0},
		{"a record twice", batch(func(b *streamv1.Batch) { b.Records[1] = b.Records[0] }), stream.ReasonNoProgress, stream.ErrCorrupt, 0},
		{"a record twice, and the digest of that", batch(func(b *streamv1.Batch) {
			b.Records[1] = b.Records[0]
			b.Digest = digestOf(b)
		}), stream.ReasonOutOfOrder, stream.ErrOrder, 0},
		{"digest", batch(func(b *streamv1.Batch) { b.Digest[3]++ }), stream.ReasonNoProgress, stream.ErrCorrupt, 0},
		{"no digest", batch(func(b *streamv1.Batch) { b.Digest = nil }), stream.ReasonNoProgress, stream.ErrCorrupt, 0},
		{"no token", batch(func(b *streamv1.Batch) { b.Token = nil }), stream.ReasonNoProgress, stream.ErrCorrupt, 0},
		{"empty key", batch(func(b *streamv1.Batch) { b.Records[0].Key = nil }), stream.ReasonNoProgress, stream.ErrCorrupt, 0},
		{"two records exchanged", batch(func(b *streamv1.Batch) { b.Records[0], b.Records[1] = b.Records[1], b.Records[0] }), stream.ReasonNoProgress, stream.ErrCorrupt, 0},
		{"two values exchanged", batch(func(b *streamv1.Batch) {
			b.Records[0].Value, b.Records[1].Value = b.Records[1].Value, b.Records[0].Value
		}), stream.ReasonNoProgress, stream.ErrCorrupt, 0},
		{"bad, with a value", batch(func(b *streamv1.Batch) { b.Records[0].Bad = "x" }), stream.ReasonNoProgress, stream.ErrCorrupt, 0},
		{"two kinds in one frame", func(f *streamv1.Frame) *streamv1.Frame {
			b, _ := proto.Marshal(f)
			mark, _ := proto.Marshal(&streamv1.Frame{Frame: &streamv1.Frame_Mark{Mark: &streamv1.Mark{NextSeq: 1}}})
			return raw(append(mark, b...))
		}, stream.ReasonNoProgress, stream.ErrCorrupt, 0},
		{"no protobuf", func(*streamv1.Frame) *streamv1.Frame { return raw([]byte{0xff, 0xff, 0xff}) }, stream.ReasonNoProgress, stream.ErrCorrupt, 0},
		{"a batch is lost", func(f *streamv1.Frame) *streamv1.Frame {
			if f.GetBatch().GetFirstSeq() == 1 {
				return nil
			}
			return f
		}, stream.ReasonNoProgress, stream.ErrCorrupt, 0},
		{"mark of another position", func(f *streamv1.Frame) *streamv1.Frame {
			if f.GetMark() != nil {
				f.GetMark().NextSeq += 3
			}
			return f
		}, stream.ReasonNoProgress, stream.ErrCorrupt, 0},
		{"end with another count", end(func(e *streamv1.End) { e.Count++ }), stream.ReasonIncomplete, stream.ErrIncomplete, 10},
		{"end with another digest", end(func(e *streamv1.End) { e.Digest[0]++ }), stream.ReasonIncomplete, stream.ErrIncomplete, 10},
		{"end too early", func(f *streamv1.Frame) *streamv1.Frame {
			if f.GetBatch().GetFirstSeq() > 3 {
				return &streamv1.Frame{Frame: &streamv1.Frame_End{End: &streamv1.End{Count: 10}}}
			}
			return f
		}, stream.ReasonIncomplete, stream.ErrIncomplete, -1},
		{"a frame above the limit", func(f *streamv1.Frame) *streamv1.Frame {
			if f.GetBatch() == nil {
				return f
			}
			return raw(append([]byte{15<<3 | 2, 0x80, 0x80, 0x80, 4}, make([]byte, 8<<20)...))
		}, stream.ReasonRefused, nil, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			config := stream.ServerConfig{BatchBytes: 60, BatchDelay: time.Hour, MaxStreamAge: -1} // three records in a batch
			hostile(t, records, config, test.change, func(l *lab, job stream.Status) {
				l.is(job, stream.Failed, test.reason)
				if test.is != nil && !strings.Contains(job.LastError, test.is.Error()) {
					t.Errorf("it says: %s", job.LastError)
				}
				if test.rows >= 0 && l.table.len() != test.rows {
					t.Errorf("%d rows", l.table.len())
				}
				// A cut may also come of the frame after, or of what the producer then does not send; most are of the frame itself.
				cuts := l.seen(stream.EventDisconnected)
				if test.is != nil && len(cuts) > 0 && test.reason != stream.ReasonIncomplete && !slices.ContainsFunc(cuts, func(e stream.Event) bool { return errors.Is(e.Err, test.is) }) {
					t.Errorf("cuts with %v", cuts[0].Err)
				}
			})
		})
	}
}

func digestOf(b *streamv1.Batch) []byte {
	var d stream.Digest
	for i, r := range b.GetRecords() {
		d.Add(stream.Record{Seq: b.GetFirstSeq() + uint64(i), Key: r.GetKey(), Value: r.GetValue()})
	}
	return d[:]
}

// Each bit of a stream is flipped, one at a time, in one frame of the first attempt: the job completes with the right records, or fails with
// a reason; it never takes a wrong one, nor stays where it is.
func TestEachBitOfTheWire(t *testing.T) {
	records := numbers(3)
	var sizes []int
	hostile(t, records, stream.ServerConfig{}, func(f *streamv1.Frame) *streamv1.Frame {
		b, err := proto.Marshal(f)
		if err != nil {
			t.Error(err)
		}
		sizes = append(sizes, len(b))
		return f
	}, func(l *lab, job stream.Status) { l.is(job, stream.Completed, "") })
	known := []stream.Reason{"", stream.ReasonNoProgress, stream.ReasonIncomplete, stream.ReasonBadToken}
	reasons := map[stream.Reason]int{}
	for frame, size := range sizes {
		for bit := range size * 8 {
			n := -1
			hostile(t, records, stream.ServerConfig{}, func(f *streamv1.Frame) *streamv1.Frame {
				if n++; n != frame {
					return f
				}
				b, err := proto.Marshal(f)
				if err != nil {
					t.Error(err)
				}
				if bit/8 >= len(b) { // of another attempt, which is shorter
					return f
				}
				b[bit/8] ^= 1 << (bit % 8)
				f = new(streamv1.Frame)
				f.ProtoReflect().SetUnknown(b)
				return f
			}, func(l *lab, job stream.Status) {
				reasons[stream.Reason(job.State)+" "+job.Reason]++
				if !slices.Contains(known, job.Reason) {
					t.Errorf("frame %d, bit %d: the job is %s %s: %s", frame, bit, job.State, job.Reason, job.LastError)
				}
				if rows := l.aside(job.ID); len(rows) != 0 {
					t.Errorf("frame %d, bit %d: quarantine %+v", frame, bit, rows)
				}
			})
		}
	}
	t.Logf("frames of %v bytes: %v", sizes, reasons)
	if reasons["completed "] == 0 || len(reasons) < 2 {
		t.Error("flipping bits has no effect, or only one")
	}
}

// Servers that are none: each ends the job with a reason, or is tried again indefinitely without a spin.
func TestServersThatAreNone(t *testing.T) {
	for name, read := range map[string]func(out grpc.ServerStreamingServer[streamv1.Frame]) error{
		"ends at once": func(grpc.ServerStreamingServer[streamv1.Frame]) error { return nil },
		"says nothing": func(out grpc.ServerStreamingServer[streamv1.Frame]) error {
			<-out.Context().Done()
			return out.Context().Err()
		},
		"drains at once": func(out grpc.ServerStreamingServer[streamv1.Frame]) error {
			return out.Send(&streamv1.Frame{Frame: &streamv1.Frame_Drain{Drain: &streamv1.Drain{Reason: "age"}}})
		},
		"is cancelled": func(grpc.ServerStreamingServer[streamv1.Frame]) error { return context.Canceled },
		"an empty frame, and the end": func(out grpc.ServerStreamingServer[streamv1.Frame]) error {
			return out.Send(&streamv1.Frame{})
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var calls atomic.Int64
				p := onWire(t, scripted{read: func(_ *streamv1.ReadRequest, out grpc.ServerStreamingServer[streamv1.Frame]) error {
					calls.Add(1)
					return read(out)
				}})
				l := newLab(t, p.connections(t).Dial)
				w := l.start("s", l.store.Sink(l.table.handle))
				job := l.submit(stream.Job{Stream: "s"})
				time.Sleep(time.Hour)
				if job = l.get(job.ID); job.State.Final() || calls.Load() < 10 || calls.Load() > 3600 {
					t.Errorf("after an hour and %d calls the job is %s %s %s", calls.Load(), job.State, job.Reason, job.LastError)
				}
				since := time.Now()
				if err := w.stop(); err != nil || time.Since(since) > time.Second {
					t.Errorf("the shutdown took %v: %v", time.Since(since), err)
				}
			})
		})
	}
	t.Run("no such service", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			p := onWire(t, streamv1.UnimplementedStreamServer{})
			l := newLab(t, p.connections(t).Dial)
			l.start("s", l.store.Sink(l.table.handle))
			l.is(l.end(l.submit(stream.Job{Stream: "s"}).ID, 10*time.Minute), stream.Failed, stream.ReasonUnimplemented)
		})
	})
}

// Configurations that cannot be are refused before anything happens.
func TestConfigurationsThatCannotBe(t *testing.T) {
	l := newLab(t, func(context.Context, stream.Job) (grpc.ClientConnInterface, error) { return nil, nil })
	for name, spoil := range map[string]func(*stream.WorkerConfig){
		"Store":                            func(c *stream.WorkerConfig) { c.Store = nil },
		"Dial":                             func(c *stream.WorkerConfig) { c.Dial = nil },
		"WorkerConfig.Lease is -1ns":       func(c *stream.WorkerConfig) { c.Lease = -1 },
		"WorkerConfig.CommitRecords is -5": func(c *stream.WorkerConfig) { c.CommitRecords = -5 },
		"Retry.Max":                        func(c *stream.WorkerConfig) { c.Retry = stream.Backoff{Min: time.Minute, Max: time.Second} },
	} {
		config := l.config
		spoil(&config)
		if _, err := stream.NewWorker(config); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, config := range map[string]stream.ServerConfig{
		"ServerConfig.MaxStreams is -1":      {MaxStreams: -1},
		"ServerConfig.BatchBytes is -1":      {BatchBytes: -1},
		"ServerConfig.MarkEvery is -1s":      {MarkEvery: -time.Second},
		"ServerConfig.MaxStreamAge is -5ns":  {MaxStreamAge: -5},
		"ServerConfig.MaxRecord is -1, but ": {MaxRecord: -1},
	} {
		if _, err := stream.NewServer(config); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
	worker, err := stream.NewWorker(l.config)
	must(t, err)
	// nil handlers and sources, and names that no job has, panicked when the first job came.
	var none *interceptedSink
	for _, err := range []error{worker.Handle("s", nil), worker.Handle("s", none), worker.Handle("", l.store.Sink(nil)),
		valid(stream.NewServer(stream.ServerConfig{Logger: quiet})).Handle("s", nil), valid(stream.NewServer(stream.ServerConfig{Logger: quiet})).Handle("", stream.Slice())} {
		if err == nil || !strings.Contains(err.Error(), "Handle") {
			t.Errorf("a nil sink or source, or no name: %v", err)
		}
	}
	if err := worker.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "sink is nil") {
		t.Errorf("a worker with a nil sink runs: %v", err)
	}
	for _, mark := range []func(error) error{stream.Skip, stream.Later, stream.Retry, stream.Halt} {
		if err := mark(nil); err != nil {
			t.Errorf("nil became %v", err)
		}
	}
	batch := &stream.Batch{Records: []stream.Record{{Seq: 1, Key: []byte("k")}}}
	batch.Skip(batch.Records[0], nil)
	if got := batch.Skipped(); len(got) != 1 || got[0].Error == "" {
		t.Errorf("skipped for no reason: %+v", got)
	}
	worker, err = stream.NewWorker(l.config)
	must(t, err)
	if err := worker.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "Handle") {
		t.Errorf("a worker without handlers: %v", err)
	}
	conns := stream.NewConnections("")
	if _, err := conns.Dial(t.Context(), stream.Job{ID: "j"}); err == nil || !strings.Contains(err.Error(), "j names no target") {
		t.Errorf("no target: %v", err)
	}
	if _, err := conns.Dial(t.Context(), stream.Job{Target: "dns:///x"}); err == nil || !strings.Contains(err.Error(), "credentials") {
		t.Errorf("no credentials: %v", err)
	}
	must(t, conns.Close())
}
