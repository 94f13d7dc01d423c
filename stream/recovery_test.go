package stream_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	streamv1 "github.com/levada-io/levada/proto/levada/stream/v1"
	"github.com/levada-io/levada/stream"
	"github.com/levada-io/levada/stream/memstore"
)

// Producer, sink and store are away for hours, one after the other, and while records are under way: no job fails, and all records are there.
func TestOutagesOfHoursFailNoJob(t *testing.T) {
	for _, what := range []string{"producer", "sink", "store", "commits only"} {
		t.Run(what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var way movable
				var away atomic.Bool
				source := &counted{n: 500, size: 10, at: func(ctx context.Context, seq int) error {
					sleep(ctx, 10*time.Millisecond)
					return ctx.Err()
				}}
				conns := stream.NewConnections("passthrough:///s", insecureTo(way.dial)...)
				t.Cleanup(func() { conns.Close() })
				p := startProducer(t, stream.ServerConfig{}, "s", source)
				way.set(p.listener)
				l := newLab(t, conns.Dial)
				gone := func(ctx context.Context, method string) error {
					if away.Load() {
						return errors.New("connection refused")
					}
					return nil
				}
				if what == "store" {
					l.config.Store = &interceptedStore{Store: l.store, before: gone}
				}
				sink := &interceptedSink{ReplaySink: l.store.Sink(l.table.handle)}
				if what == "sink" {
					sink.before = gone
				}
				if what == "commits only" { // a database that has become read only
					sink.before = func(ctx context.Context, method string) error {
						if method == "Commit" {
							return gone(ctx, method)
						}
						return nil
					}
				}
				l.start("s", sink)
				job := l.submit(stream.Job{Stream: "s"})
				l.await("at work", time.Minute, func() bool { return l.table.len() > 50 })
				away.Store(true)
				if what == "producer" {
					way.set(nil)
					p.grpc.Stop()
				}
				time.Sleep(9 * time.Hour)
				if l.get(job.ID).State.Final() {
					t.Fatalf("%+v", l.get(job.ID))
				}
				away.Store(false)
				if what == "producer" {
					way.set(startProducer(t, stream.ServerConfig{}, "s", source).listener)
				}
				job = l.end(job.ID, 3*time.Minute)
				l.is(job, stream.Completed, "")
				must(t, complete(l.table.seqs(), 500))
			})
		})
	}
}

// A producer that does not answer while a record of its own making is to be replayed fails the job no more than at any other time.
func TestOutageDuringReplay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var way movable
		var mended atomic.Bool
		records := numbers(300)
		source := opens(func(ctx context.Context, q stream.Query) (stream.Cursor, error) {
			inner, err := stream.Slice(records...).Open(ctx, q)
			var last string
			return cursor{
				next: func(ctx context.Context) ([]byte, error) {
					key, err := inner.Next(ctx)
					last = string(key)
					return key, err
				},
				value: func(dst []byte) ([]byte, error) {
					if last == "00000200" && !mended.Load() {
						panic("cannot be encoded")
					}
					return inner.Value(dst)
				},
			}, err
		})
		conns := stream.NewConnections("passthrough:///s", insecureTo(way.dial)...)
		t.Cleanup(func() { conns.Close() })
		p := startProducer(t, stream.ServerConfig{BatchBytes: 100}, "s", source)
		way.set(p.listener)
		l := newLab(t, conns.Dial)
		l.start("s", l.store.Sink(l.table.handle))
		job := l.end(l.submit(stream.Job{Stream: "s"}).ID, time.Minute)
		l.is(job, stream.Completed, "")
		if rows := l.aside(job.ID); len(rows) != 1 || rows[0].Class != stream.ClassProducer || rows[0].Seq != 200 || rows[0].Error != "panic: cannot be encoded" {
			t.Fatalf("quarantine: %+v", rows)
		}
		mark := func(want stream.QuarantineState) {
			t.Helper()
			if n, err := l.store.MarkQuarantined(t.Context(), job.ID, stream.Replay); err != nil || n != 1 {
				t.Fatal(n, err)
			}
			if _, err := l.store.Retry(t.Context(), job.ID); err != nil {
				t.Fatal(err)
			}
			l.is(l.end(job.ID, 3*time.Minute), stream.Completed, "")
			if rows := l.aside(job.ID); rows[0].State != want {
				t.Fatalf("quarantine: %+v", rows)
			}
		}
		mark(stream.Waiting) // it is as bad as before
		mended.Store(true)
		way.set(nil)
		p.grpc.Stop()
		if n, err := l.store.MarkQuarantined(t.Context(), job.ID, stream.Replay); err != nil || n != 1 {
			t.Fatal(n, err)
		}
		if _, err := l.store.Retry(t.Context(), job.ID); err != nil {
			t.Fatal(err)
		}
		time.Sleep(5 * time.Hour)
		if status := l.get(job.ID); status.State.Final() {
			t.Fatalf("without a producer the job is %s %s: %s", status.State, status.Reason, status.LastError)
		}
		way.set(startProducer(t, stream.ServerConfig{BatchBytes: 100}, "s", source).listener)
		l.is(l.end(job.ID, 3*time.Minute), stream.Completed, "")
		if rows := l.aside(job.ID); rows[0].State != stream.Replayed {
			t.Fatalf("quarantine: %+v", rows)
		}
		if l.table.len() != 300 || l.table.rows[299].Seq != 200 || string(l.table.rows[299].Value) != "value 200" || string(l.table.rows[299].Key) != "00000200" {
			t.Errorf("%d rows, the last is %+v", l.table.len(), l.table.rows[l.table.len()-1])
		}
	})
}

// A record that kills its process each time is marked for replay: one more process dies, and it waits again.
func TestReplayOfPoisonKillsOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := startProducer(t, stream.ServerConfig{}, "s", stream.Slice(numbers(20)...))
		l := newLab(t, p.connections(t).Dial)
		l.config.CommitRecords = 4
		job := l.submit(stream.Job{Stream: "s"})
		kills := func(_ string, seq uint64) bool { return seq == 7 || seq == 9 }
		l.die("s", []string{job.ID}, kills)
		if rows := l.aside(job.ID); len(rows) != 2 {
			t.Fatalf("quarantine: %+v", rows)
		}
		if n, err := l.store.MarkQuarantined(t.Context(), job.ID, stream.Replay); err != nil || n != 2 {
			t.Fatal(n, err)
		}
		if _, err := l.store.Retry(t.Context(), job.ID); err != nil {
			t.Fatal(err)
		}
		deaths := l.die("s", []string{job.ID}, func(job string, seq uint64) bool { return seq == 7 })
		if deaths != 1 {
			t.Errorf("%d processes died", deaths)
		}
		l.is(l.get(job.ID), stream.Completed, "")
		if rows := l.aside(job.ID); rows[0].State != stream.Waiting || rows[1].State != stream.Replayed {
			t.Errorf("quarantine: %+v", rows)
		}
		if j := l.get(job.ID).CrashState; j != (stream.CrashState{}) {
			t.Errorf("crash state: %+v", j)
		}
	})
}

// The producer says when to come back, and is not asked before; also when its answer is out of range.
func TestRetryInfoIsRespected(t *testing.T) {
	for after, least := range map[time.Duration]time.Duration{time.Second: time.Second, 25 * time.Second: 25 * time.Second, -time.Hour: 0, 0: 0} {
		synctest.Test(t, func(t *testing.T) {
			var mu sync.Mutex
			var asked []time.Time
			p := onWire(t, scripted{read: func(*streamv1.ReadRequest, grpc.ServerStreamingServer[streamv1.Frame]) error {
				mu.Lock()
				asked = append(asked, time.Now())
				mu.Unlock()
				s, err := status.New(codes.ResourceExhausted, "come back").WithDetails(&errdetails.RetryInfo{RetryDelay: durationpb.New(after)})
				if err != nil {
					return err
				}
				return s.Err()
			}})
			l := newLab(t, p.connections(t).Dial)
			l.config.ReleaseAfterFailures = 1000
			l.start("s", l.store.Sink(nil))
			l.submit(stream.Job{Stream: "s"})
			time.Sleep(10 * time.Minute)
			mu.Lock()
			defer mu.Unlock()
			for i := 1; i < len(asked); i++ {
				if pause := asked[i].Sub(asked[i-1]); pause < least {
					t.Errorf("told to wait for %v, and asked again after %v", after, pause)
				}
			}
			if most := 600; len(asked) < 3 || len(asked) > most {
				t.Errorf("asked %d times in 10 min, told %v", len(asked), after)
			}
		})
	}
}

// A handler that fails without a mark fails the job after NoProgress, which counts attempts and pauses of all owners, and one record of progress
// starts the time again.
func TestNoProgressIsATime(t *testing.T) {
	withProducer(t, stream.Slice(numbers(10)...), func(l *lab) {
		l.config.NoProgress, l.config.ReleaseAfterFailures, l.config.CommitRecords = time.Hour, 5, 1
		began := map[uint64]time.Time{}
		l.start("s", l.store.Sink(func(ctx context.Context, b *stream.Batch) (func(), error) {
			seq := b.Records[0].Seq
			if began[seq].IsZero() {
				began[seq] = time.Now()
			}
			if seq == 3 && time.Since(began[seq]) < 55*time.Minute || seq == 6 {
				return nil, errors.New("not now")
			}
			return l.table.handle(ctx, b)
		}))
		job := l.end(l.submit(stream.Job{Stream: "s"}).ID, 3*time.Hour)
		l.is(job, stream.Failed, stream.ReasonNoProgress)
		if took := time.Since(began[6]); took < 58*time.Minute || took > 75*time.Minute {
			t.Errorf("the job failed after %v", took)
		}
		if !strings.Contains(job.LastError, "not now") || !strings.Contains(job.LastError, string(stream.ReasonHandlerFailed)) || job.RetryState.Failures < 100 {
			t.Errorf("after %d failures: %s", job.RetryState.Failures, job.LastError)
		}
		if reopened, err := l.store.Retry(t.Context(), job.ID); err != nil || reopened.RetryState != (stream.RetryState{}) {
			t.Fatal(reopened, err)
		}
		must(t, l.table.holds(numbers(5)))
	})
}

// A handler's verdicts.
func TestVerdicts(t *testing.T) {
	withProducer(t, stream.Slice(numbers(10)...), func(l *lab) { // halt
		l.config.CommitRecords = 1
		calls := 0
		l.start("s", l.store.Sink(func(ctx context.Context, b *stream.Batch) (func(), error) {
			if b.Records[0].Seq == 5 {
				calls++
				return nil, fmt.Errorf("wrapped: %w", stream.Halt(errors.New("ask a person")))
			}
			return l.table.handle(ctx, b)
		}))
		job := l.end(l.submit(stream.Job{Stream: "s"}).ID, time.Hour)
		l.is(job, stream.Failed, stream.ReasonHalted)
		if calls != 1 {
			t.Errorf("%d calls", calls)
		}
		must(t, l.table.holds(numbers(4)))
	})
	withProducer(t, stream.Slice(numbers(10)...), func(l *lab) { // a refused record halts a job with that option
		l.start("s", l.store.Sink(func(ctx context.Context, b *stream.Batch) (func(), error) {
			b.Skip(b.Records[len(b.Records)-1], errors.New("no good"))
			return nil, nil
		}))
		l.is(l.end(l.submit(stream.Job{Stream: "s", OnBad: stream.HaltJob}).ID, time.Hour), stream.Failed, stream.ReasonHalted)
	})
	withProducer(t, stream.Slice(numbers(10)...), func(l *lab) { // a single panic was bad luck
		panics := 0
		l.config.CommitRecords = 1
		l.start("s", l.store.Sink(func(ctx context.Context, b *stream.Batch) (func(), error) {
			if b.Records[0].Seq == 5 && panics == 0 {
				panics++
				panic("once")
			}
			return l.table.handle(ctx, b)
		}))
		l.is(l.end(l.submit(stream.Job{Stream: "s"}).ID, time.Hour), stream.Completed, "")
		must(t, l.table.holds(numbers(10)))
	})
}

// A job goes to another worker when one has failed too often, since that one may have a way to the producer.
func TestHandOver(t *testing.T) {
	withProducer(t, stream.Slice(numbers(10)...), func(l *lab) {
		good := l.config.Dial
		l.config.ReleaseAfterFailures = 3
		l.config.Owner = stream.Owner{Incarnation: stream.NewID()}
		l.config.Dial = func(context.Context, stream.Job) (grpc.ClientConnInterface, error) {
			return nil, errors.New("no route")
		}
		l.start("s", l.store.Sink(nil))
		job := l.submit(stream.Job{Stream: "s"})
		time.Sleep(time.Minute)
		l.config.Dial = good
		l.config.Owner = stream.Owner{Incarnation: stream.NewID()}
		l.start("s", l.store.Sink(l.table.handle))
		job = l.end(job.ID, 10*time.Minute)
		l.is(job, stream.Completed, "")
		for _, e := range l.seen(stream.EventReleased) {
			if e.State == stream.Ready && e.Reason != stream.ReasonOutage {
				t.Errorf("released for %q", e.Reason)
			}
		}
	})
}

// A Dial that never returns is given up as a silent stream is.
func TestDialThatHangs(t *testing.T) {
	withProducer(t, stream.Slice(numbers(10)...), func(l *lab) {
		good, calls := l.config.Dial, 0
		l.config.Dial = func(ctx context.Context, job stream.Job) (grpc.ClientConnInterface, error) {
			if calls++; calls == 1 {
				<-ctx.Done()
				return nil, ctx.Err()
			}
			return good(ctx, job)
		}
		l.start("s", l.store.Sink(l.table.handle))
		l.is(l.end(l.submit(stream.Job{Stream: "s"}).ID, time.Minute), stream.Completed, "")
	})
}

// A commit whose outcome nobody told: whether it took effect or not, each record is there once.
func TestCommitOutcomeUnknown(t *testing.T) {
	for _, happened := range []bool{true, false} {
		withProducer(t, stream.Slice(numbers(100)...), func(l *lab) {
			l.config.CommitRecords = 7
			lost := 0
			fail := func(_ context.Context, method string) error {
				if method == "Commit" {
					if lost++; lost%3 == 0 {
						return errors.New("connection lost during commit")
					}
				}
				return nil
			}
			sink := &interceptedSink{ReplaySink: l.store.Sink(l.table.handle)}
			if happened {
				sink.after = fail
			} else {
				sink.before = fail
			}
			l.start("s", sink)
			l.is(l.end(l.submit(stream.Job{Stream: "s"}).ID, time.Hour), stream.Completed, "")
			must(t, l.table.holds(numbers(100)))
			if lost < 10 {
				t.Errorf("%d commits", lost)
			}
			if n := l.seen(stream.EventRetry); happened && len(n) != 0 {
				t.Errorf("%d attempts were repeated, though all had taken effect", len(n))
			}
		})
	}
}

// The handler ignores its context. The worker logs it, and leaves the job to another; what the handler does when it comes back after all has
// no effect.
func TestHandlerThatIgnoresItsContext(t *testing.T) {
	withProducer(t, stream.Slice(numbers(50)...), func(l *lab) {
		back := make(chan struct{})
		l.config.CommitRecords, l.config.HandlerTimeout = 10, 5*time.Second
		l.config.MaxJobs = 1 // its slot stays taken, or it might claim the job again itself
		l.config.Owner = stream.Owner{Incarnation: stream.NewID()}
		var once sync.Once
		stuck := l.start("s", l.store.Sink(func(ctx context.Context, b *stream.Batch) (func(), error) {
			if b.Records[0].Seq > 20 {
				once.Do(func() {})
				<-back
			}
			return l.table.handle(ctx, b)
		}))
		job := l.submit(stream.Job{Stream: "s"})
		l.await("stuck", time.Minute, func() bool { return stuck.Stuck() == 1 })
		if l.get(job.ID).State != stream.Running || l.table.len() != 20 {
			t.Fatalf("%+v", l.get(job.ID))
		}
		l.config.Owner = stream.Owner{Incarnation: stream.NewID()}
		second := l.start("s", l.store.Sink(l.table.handle))
		job = l.end(job.ID, 20*time.Second)
		l.is(job, stream.Completed, "")
		close(back)
		time.Sleep(time.Minute)
		must(t, l.table.holds(numbers(50)))
		if after := l.get(job.ID); after.UpdatedAt != job.UpdatedAt {
			t.Errorf("changed after its end: %+v", after)
		}
		must(t, stuck.stop())
		must(t, second.stop())
	})
}

// A suspect that hangs must not hold up the other jobs of its process indefinitely.
func TestASuspectThatHangsHoldsUpOthersForAWhileOnly(t *testing.T) {
	withProducer(t, stream.Slice(numbers(20)...), func(l *lab) {
		back := make(chan struct{})
		l.config.HandlerTimeout = 5 * time.Second
		job := l.submit(stream.Job{ID: "hangs", Stream: "s"})
		if _, err := l.store.Claim(t.Context(), stream.Claim{Owner: stream.Owner{Incarnation: "dead"}, TTL: time.Second, Max: 1}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Second) // it died, so its next owner suspects its records
		w := l.start("s", l.store.Sink(func(ctx context.Context, b *stream.Batch) (func(), error) {
			if b.Job.ID == "hangs" {
				<-back
			}
			return l.table.handle(ctx, b)
		}))
		time.Sleep(time.Second)
		other := l.submit(stream.Job{ID: "other", Stream: "s"})
		l.is(l.end(other.ID, time.Minute), stream.Completed, "")
		if l.get(job.ID).State != stream.Running || w.Stuck() != 1 {
			t.Errorf("%+v; %d stuck", l.get(job.ID), w.Stuck())
		}
		close(back)
	})
}

// The lease cannot be renewed: the worker stops before another starts, and nothing happens twice.
func TestLeaseThatCannotBeRenewed(t *testing.T) {
	withProducer(t, stream.Slice(numbers(200)...), func(l *lab) {
		l.config.CommitRecords, l.config.Lease = 1, 6*time.Second
		var away atomic.Bool
		var first, second []time.Time
		handler := func(when *[]time.Time) memstore.Handler {
			return func(ctx context.Context, b *stream.Batch) (func(), error) {
				*when = append(*when, time.Now())
				if !sleep(ctx, 100*time.Millisecond) {
					return nil, ctx.Err()
				}
				keep, err := l.table.handle(ctx, b)
				return keep, err
			}
		}
		l.config.Owner = stream.Owner{Incarnation: stream.NewID()}
		l.config.Store = &interceptedStore{Store: l.store, before: func(_ context.Context, method string) error {
			if away.Load() {
				return errors.New("no route")
			}
			return nil
		}}
		// Commits renew the lease, too: a worker loses it whose handler takes longer.
		quick := handler(&first)
		l.start("s", l.store.Sink(func(ctx context.Context, b *stream.Batch) (func(), error) {
			if away.Load() {
				first = append(first, time.Now())
				sleep(ctx, time.Hour)
				return nil, ctx.Err()
			}
			return quick(ctx, b)
		}))
		job := l.submit(stream.Job{Stream: "s"})
		l.await("at work", time.Minute, func() bool { return l.table.len() > 20 })
		l.config.Owner = stream.Owner{Incarnation: stream.NewID()}
		l.config.Store = l.store
		l.start("s", l.store.Sink(handler(&second)))
		away.Store(true)
		l.is(l.end(job.ID, 5*time.Minute), stream.Completed, "")
		if last := first[len(first)-1]; !last.Before(second[0]) {
			t.Errorf("the old owner's last call was at %v, the new one's first at %v", last, second[0])
		}
		if len(l.seen(stream.EventLost)) != 1 {
			t.Errorf("%d leases lost", len(l.seen(stream.EventLost)))
		}
		must(t, l.table.holds(numbers(200)))
	})
}

// Cancel and pause take effect in the middle of a stream, also when its handler waits for something, and pause can be undone.
func TestCancelAndPause(t *testing.T) {
	source := &counted{n: 1000, at: func(ctx context.Context, seq int) error { sleep(ctx, 50*time.Millisecond); return ctx.Err() }}
	withProducer(t, source, func(l *lab) {
		l.config.Lease = 6 * time.Second
		l.start("s", l.store.Sink(l.table.handle))
		job := l.submit(stream.Job{Stream: "s"})
		time.Sleep(10 * time.Second)
		if _, err := l.store.Pause(t.Context(), job.ID); err != nil {
			t.Fatal(err)
		}
		rows := l.table.len()
		time.Sleep(time.Minute)
		if l.table.len() != rows {
			t.Errorf("%d records were committed after the pause", l.table.len()-rows)
		}
		if _, err := l.store.Resume(t.Context(), job.ID); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Second)
		if l.table.len() <= rows {
			t.Error("it does not go on")
		}
		if _, err := l.store.Cancel(t.Context(), job.ID); err != nil {
			t.Fatal(err)
		}
		rows = l.table.len()
		time.Sleep(time.Minute)
		if status := l.get(job.ID); l.table.len() != rows || status.State != stream.Cancelled {
			t.Errorf("%s, and %d records after", status.State, l.table.len()-rows)
		}
		must(t, complete(l.table.seqs(), rows))
	})
}

// However large the stream and slow the sink, only so many bytes are received and not committed.
func TestMaxInFlight(t *testing.T) {
	const size, limit = 1000, 50_000
	source := &counted{n: 5000, size: size}
	synctest.Test(t, func(t *testing.T) {
		p := startProducer(t, stream.ServerConfig{BatchBytes: 4000}, "s", source)
		l := newLab(t, p.connections(t).Dial)
		l.config.MaxInFlight, l.config.CommitRecords = limit, 5
		var received, committed, most atomic.Int64
		observe := l.config.Observe
		l.config.Observe = func(e stream.Event) {
			if e.Kind == stream.EventReceived {
				received.Store(int64(e.To))
				most.Store(max(most.Load(), (received.Load()-committed.Load())*size))
			}
			observe(e)
		}
		l.start("s", l.store.Sink(func(ctx context.Context, b *stream.Batch) (func(), error) {
			sleep(ctx, 20*time.Millisecond)
			keep, err := l.table.handle(ctx, b)
			return func() { keep(); committed.Store(int64(b.Records[len(b.Records)-1].Seq)) }, err
		}))
		job := l.submit(stream.Job{Stream: "s"})
		l.is(l.end(job.ID, time.Hour), stream.Completed, "")
		// One batch may be let in beyond the limit; a group is given back as a whole.
		if most.Load() > limit+2*5000 {
			t.Errorf("%d bytes were in flight, and %d are allowed", most.Load(), limit)
		}
		if most.Load() < limit/2 {
			t.Errorf("only %d bytes were ever in flight", most.Load())
		}
		must(t, complete(l.table.seqs(), 5000))
	})
}

// A sink that takes as long for each commit as it may: the producer stops reading its source, and the stream is not cut, since nothing is
// wrong with it. A gRPC server closes a connection with too many pings while it sends nothing, so this takes more than a minute.
func TestSlowSinkHoldsTheProducer(t *testing.T) {
	patient := []grpc.ServerOption{grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 10 * time.Second})}
	for commit, options := range map[time.Duration][]grpc.ServerOption{58 * time.Second: nil, 5 * time.Minute: patient} {
		source := &counted{n: 60_000, size: 1000}
		synctest.Test(t, func(t *testing.T) {
			server := valid(stream.NewServer(stream.ServerConfig{MaxStreamAge: -1}))
			server.Handle("s", source)
			l := newLab(t, onWire(t, server, options...).connections(t).Dial)
			l.config.HandlerTimeout, l.config.MaxInFlight = max(time.Minute, commit+time.Second), 1<<20
			l.start("s", l.store.Sink(func(ctx context.Context, b *stream.Batch) (func(), error) {
				sleep(ctx, commit)
				return l.table.handle(ctx, b)
			}))
			l.submit(stream.Job{Stream: "s"})
			time.Sleep(commit / 2)
			asked := source.asked.Load()
			time.Sleep(commit / 3)
			if more := source.asked.Load() - asked; more != 0 {
				t.Errorf("the source was asked for %d records while nobody read", more)
			}
			// The window is 1 MiB, as much again may be in flight, and a batch or two at the producer.
			if asked > 6000 {
				t.Errorf("%d records of 1 KB were read from the source, and none was committed", asked)
			}
			time.Sleep(20 * commit)
			if cuts := l.seen(stream.EventDisconnected); len(cuts) != 0 {
				t.Errorf("commits of %v: %d times the stream was cut: %v", commit, len(cuts), cuts[0].Err)
			}
		})
	}
}

// A key's records are handled in their order, whatever happens in between.
func TestOrderAcrossSessions(t *testing.T) {
	n := 0
	broken := map[int]bool{}
	source := &counted{n: 300, at: func(_ context.Context, seq int) error {
		if seq%37 == 0 && !broken[seq] {
			broken[seq] = true
			return errors.New("a break")
		}
		return nil
	}}
	withProducer(t, source, func(l *lab) {
		l.config.CommitRecords, l.config.ReleaseAfterFailures = 7, 2
		var order []uint64
		l.start("s", l.store.Sink(func(ctx context.Context, b *stream.Batch) (func(), error) {
			if n++; n%5 == 0 {
				return nil, errors.New("a break")
			}
			for _, r := range b.Records {
				order = append(order, r.Seq)
			}
			return l.table.handle(ctx, b)
		}))
		l.is(l.end(l.submit(stream.Job{Stream: "s"}).ID, time.Hour), stream.Completed, "")
		must(t, complete(order, 300))
		if sessions := len(l.seen(stream.EventOpened)); sessions < 8 {
			t.Errorf("%d sessions", sessions)
		}
		if slices.Max(order) != 300 {
			t.Error(order)
		}
	})
}

// valid returns a server whose configuration is known to be valid.
func valid(s *stream.Server, err error) *stream.Server {
	if err != nil {
		panic(err)
	}
	return s
}
