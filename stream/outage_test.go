package stream_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	streamv1 "github.com/levada-io/levada/proto/levada/stream/v1"
	"github.com/levada-io/levada/stream"
)

// sqlError is an error as drivers for Postgres have it.
type sqlError string

func (e sqlError) Error() string    { return "ERROR: refused (SQLSTATE " + string(e) + ")" }
func (e sqlError) SQLState() string { return string(e) }

// What is behind the handler does not answer for hours. The job waits with growing pauses, names what it waits for, and goes on by itself. It failed after a
// few attempts, because each claim began with short pauses and a number of attempts was the limit.
func TestAnOutageBehindTheHandlerFailsNoJob(t *testing.T) {
	for name, test := range map[string]struct {
		err    error
		hours  int
		reason stream.Reason
	}{
		"HTTP 503":                   {errors.New("503 Service Unavailable"), 3, stream.ReasonHandlerFailed},
		"marked":                     {stream.Retry(errors.New("the other side is away")), 2, stream.ReasonHandlerFailed},
		"connection refused":         {&net.OpError{Op: "dial", Err: syscall.ECONNREFUSED}, 2, stream.ReasonOutage},
		"a deadline of its own":      {fmt.Errorf("call: %w", context.DeadlineExceeded), 2, stream.ReasonOutage},
		"another service, away":      {status.Error(codes.Unavailable, "no endpoints"), 2, stream.ReasonOutage},
		"another service, busy":      {status.Error(codes.ResourceExhausted, "quota"), 2, stream.ReasonBusy},
		"the disk of the database":   {fmt.Errorf("insert: %w", sqlError("53100")), 2, stream.ReasonStorageFull},
		"connections of the server":  {sqlError("53300"), 2, stream.ReasonOverloaded},
		"a lock":                     {sqlError("55P03"), 2, stream.ReasonLockWait},
		"a deadlock, again":          {sqlError("40P01"), 2, stream.ReasonLockWait},
		"a standby":                  {sqlError("25006"), 2, stream.ReasonOutage},
		"a pool that is too small":   {stream.WithReason(stream.ReasonPoolExhausted, errors.New("none is free")), 2, stream.ReasonPoolExhausted},
		"a table that is not there":  {sqlError("42P01"), 3, stream.ReasonSchema},
		"no space left on this disk": {fmt.Errorf("write: %w", syscall.ENOSPC), 2, stream.ReasonStorageFull},
	} {
		t.Run(name, func(t *testing.T) {
			withProducer(t, stream.Slice(numbers(100)...), func(l *lab) {
				var away atomic.Bool
				l.config.CommitRecords = 10
				if test.hours == 2 { // these do not count, however long they last
					l.config.NoProgress = time.Hour
				}
				var calls atomic.Int64
				l.start("s", l.store.Sink(func(ctx context.Context, b *stream.Batch) (func(), error) {
					if b.Records[0].Seq > 50 && away.Load() {
						calls.Add(1)
						return nil, test.err
					}
					return l.table.handle(ctx, b)
				}))
				away.Store(true)
				job := l.submit(stream.Job{Stream: "s"})
				for range test.hours {
					time.Sleep(time.Hour)
					if status := l.get(job.ID); status.State.Final() {
						t.Fatalf("the job is %s %s: %s", status.State, status.Reason, status.LastError)
					}
				}
				l.await("waiting", time.Minute, func() bool { return l.get(job.ID).State == stream.Ready })
				waiting := l.get(job.ID)
				if waiting.Reason != test.reason || waiting.NotBefore.IsZero() || time.Until(waiting.NotBefore) > time.Minute || !strings.Contains(waiting.LastError, test.err.Error()) {
					t.Errorf("it waits with %s until %v, %s", waiting.Reason, waiting.NotBefore, waiting.LastError)
				}
				// 30 s are the longest pause, of which a half is usual.
				if n := calls.Load(); n > int64(test.hours)*400 || n < int64(test.hours)*80 {
					t.Errorf("%d attempts in %d hours", n, test.hours)
				}
				away.Store(false)
				l.is(l.end(job.ID, 2*time.Minute), stream.Completed, "")
				must(t, l.table.holds(numbers(100)))
				if got := l.get(job.ID); got.RetryState != (stream.RetryState{}) {
					t.Errorf("after progress it still has %+v", got.RetryState)
				}
			})
		})
	}
}

// The pauses of a job grow on though its workers are restarted all the time, since the store keeps them; progress starts them again.
func TestPausesSurviveClaimsAndRestarts(t *testing.T) {
	withProducer(t, stream.Slice(numbers(2)...), func(l *lab) {
		l.config.CommitRecords = 1
		var fails atomic.Bool
		fails.Store(true)
		var mu sync.Mutex
		var calls []time.Time
		handler := func(ctx context.Context, b *stream.Batch) (func(), error) {
			if fails.Load() {
				mu.Lock()
				calls = append(calls, time.Now())
				mu.Unlock()
				return nil, errors.New("not now")
			}
			return l.table.handle(ctx, b)
		}
		job := l.submit(stream.Job{Stream: "s"})
		since := time.Now()
		for time.Since(since) < time.Hour {
			w := l.start("s", l.store.Sink(handler))
			time.Sleep(20 * time.Second)
			must(t, w.stop())
		}
		if len(calls) > 60*10 {
			t.Errorf("%d attempts in an hour of restarts", len(calls))
		}
		if got := l.get(job.ID); got.State.Final() || got.RetryState.Failures < 20 || got.RetryState.NoProgress < 30*time.Minute || got.RetryState.NoProgress > 61*time.Minute {
			t.Errorf("%+v", got)
		}
		fails.Store(false)
		w := l.start("s", l.store.Sink(handler))
		l.is(l.end(job.ID, time.Minute), stream.Completed, "")
		must(t, w.stop())
	})
}

// Time in which no worker ran does not count: a job that could not go on before a long weekend is tried again after it.
func TestTimeWithoutWorkersIsNoTimeWithoutProgress(t *testing.T) {
	withProducer(t, stream.Slice(numbers(2)...), func(l *lab) {
		handler := func(context.Context, *stream.Batch) (func(), error) { return nil, errors.New("not now") }
		job := l.submit(stream.Job{Stream: "s"})
		w := l.start("s", l.store.Sink(handler))
		time.Sleep(time.Minute)
		must(t, w.stop())
		time.Sleep(100 * time.Hour)
		l.start("s", l.store.Sink(handler))
		time.Sleep(time.Minute)
		if got := l.get(job.ID); got.State.Final() || got.RetryState.NoProgress > 5*time.Minute {
			t.Errorf("the job is %s %s after %v: %s", got.State, got.Reason, got.RetryState.NoProgress, got.LastError)
		}
	})
}

// A limit can be off, and can be nothing at all.
func TestNoProgressCanBeOff(t *testing.T) {
	for limit, state := range map[time.Duration]stream.State{stream.Never: "", 0: stream.Failed, stream.AtOnce: stream.Failed} {
		withProducer(t, stream.Slice(numbers(2)...), func(l *lab) {
			l.config.NoProgress = limit
			calls := 0
			l.start("s", l.store.Sink(func(context.Context, *stream.Batch) (func(), error) { calls++; return nil, errors.New("not now") }))
			job := l.submit(stream.Job{Stream: "s"})
			time.Sleep(30 * time.Hour)
			if got := l.get(job.ID); got.State.Final() != (state != "") || got.State.Final() && got.Reason != stream.ReasonNoProgress {
				t.Errorf("limit %v: the job is %s %s", limit, got.State, got.Reason)
			}
			if limit == stream.AtOnce && calls > 2 {
				t.Errorf("no failure is allowed, and %d were made", calls)
			}
		})
	}
}

// A stream without records is cut by its producer once a day, for a reason that counts. It does not add up to a failure.
func TestRareFailuresDoNotAddUp(t *testing.T) {
	source := opens(func(_ context.Context, q stream.Query) (stream.Cursor, error) {
		return cursor{next: func(ctx context.Context) ([]byte, error) {
			if !sleep(ctx, 23*time.Hour) {
				return nil, ctx.Err()
			}
			panic("once a day")
		}}, nil
	})
	synctest.Test(t, func(t *testing.T) {
		p := startProducer(t, stream.ServerConfig{MaxStreamAge: -1, Logger: quiet}, "s", source)
		l := newLab(t, p.connections(t).Dial)
		l.start("s", l.store.Sink(l.table.handle))
		job := l.submit(stream.Job{Stream: "s"})
		time.Sleep(4 * 24 * time.Hour)
		if got := l.get(job.ID); got.State.Final() || len(l.seen(stream.EventRetry)) < 4 {
			t.Errorf("the job is %s %s after %d failures: %s", got.State, got.Reason, len(l.seen(stream.EventRetry)), got.LastError)
		}
	})
}

// A producer with room for two streams, and four jobs of a minute: two of them wait, for hours if need be, and say for what. They failed
// after half a minute.
func TestJobsWaitForRoomAtTheProducer(t *testing.T) {
	for _, minutes := range []int{1, 30} {
		synctest.Test(t, func(t *testing.T) {
			const n = 60
			source := &counted{n: n, at: func(ctx context.Context, _ int) error {
				if !sleep(ctx, time.Duration(minutes)*time.Second) {
					return ctx.Err()
				}
				return nil
			}}
			p := startProducer(t, stream.ServerConfig{MaxStreams: 2, MaxStreamAge: -1}, "s", source)
			l := newLab(t, p.connections(t).Dial)
			l.start("s", l.store.Sink(l.table.handle))
			var jobs []stream.Status
			for range 4 {
				jobs = append(jobs, l.submit(stream.Job{Stream: "s"}))
			}
			since := time.Now()
			l.await("waiting for room", time.Minute, func() bool {
				return slices.ContainsFunc(jobs, func(j stream.Status) bool {
					got := l.get(j.ID)
					return got.State == stream.Ready && got.Reason == stream.ReasonTooManyStreams && !got.NotBefore.IsZero()
				})
			})
			for _, job := range jobs {
				l.is(l.end(job.ID, time.Duration(3*minutes)*time.Minute), stream.Completed, "")
			}
			if took := time.Since(since); took > time.Duration(2*minutes)*time.Minute+20*time.Second {
				t.Errorf("two after two of %d min took %v", minutes, took)
			}
		})
	}
}

// deniesFor refuses streams for some time, and serves them then.
func deniesFor(d *atomic.Int64, real *stream.Server, refusal error, asked *atomic.Int64) scripted {
	return scripted{read: func(req *streamv1.ReadRequest, out grpc.ServerStreamingServer[streamv1.Frame]) error {
		if time.Now().UnixNano() < d.Load() {
			asked.Add(1)
			return refusal
		}
		return real.Read(req, out)
	}}
}

// A policy is being rolled out, or a replica does not know the stream yet: the job is denied for a while and goes on. It failed at its first
// attempt. What stays denied fails after the grace, with the reason of the denial; credentials are refreshed once in a row of denials.
func TestDenialsHaveAGrace(t *testing.T) {
	unknown := status.Error(codes.NotFound, "unknown stream")
	for name, test := range map[string]struct {
		refusal error
		reason  stream.Reason
	}{
		"PERMISSION_DENIED": {status.Error(codes.PermissionDenied, "not yours"), stream.ReasonPermissionDenied},
		"UNAUTHENTICATED":   {status.Error(codes.Unauthenticated, "who are you"), stream.ReasonUnauthenticated},
		"NOT_FOUND":         {unknown, stream.ReasonUnknownStream},
		"UNIMPLEMENTED":     {status.Error(codes.Unimplemented, "unknown service"), stream.ReasonUnimplemented},
	} {
		for _, denied := range []time.Duration{3 * time.Second, 4 * time.Minute, time.Hour} {
			synctest.Test(t, func(t *testing.T) {
				real := valid(stream.NewServer(stream.ServerConfig{Logger: quiet}))
				real.Handle("s", stream.Slice(numbers(10)...))
				var until, asked, refreshed atomic.Int64
				until.Store(time.Now().Add(denied).UnixNano())
				p := onWire(t, deniesFor(&until, real, test.refusal, &asked))
				l := newLab(t, p.connections(t).Dial)
				l.config.Refresh = func(_ context.Context, job stream.Job, err error) error {
					refreshed.Add(1)
					if job.Stream != "s" || status.Code(err) != status.Code(test.refusal) {
						t.Errorf("refresh for %+v: %v", job, err)
					}
					return nil
				}
				l.start("s", l.store.Sink(l.table.handle))
				since := time.Now()
				job := l.end(l.submit(stream.Job{Stream: "s"}).ID, time.Hour)
				took := time.Since(since)
				if refreshed.Load() != 1 {
					t.Errorf("%s for %v: credentials were refreshed %d times", name, denied, refreshed.Load())
				}
				if asked.Load() > 40 {
					t.Errorf("%s for %v: asked %d times", name, denied, asked.Load())
				}
				if denied < 5*time.Minute {
					l.is(job, stream.Completed, "")
					if took > denied+time.Minute {
						t.Errorf("%s for %v: completed after %v", name, denied, took)
					}
					return
				}
				l.is(job, stream.Failed, test.reason)
				if took < 4*time.Minute || took > 8*time.Minute || !strings.Contains(job.LastError, "DeniedGrace") {
					t.Errorf("%s: failed after %v: %s", name, took, job.LastError)
				}
			})
		}
	}
}

// One of two replicas is of an old release and does not know the stream: jobs complete, also when the producers end streams by age all the time.
func TestAnOldReplicaFailsNoJob(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		real := valid(stream.NewServer(stream.ServerConfig{MaxStreamAge: 5 * time.Second, Logger: quiet}))
		real.Handle("s", slowly(numbers(3000)))
		var n atomic.Int64
		p := onWire(t, scripted{read: func(req *streamv1.ReadRequest, out grpc.ServerStreamingServer[streamv1.Frame]) error {
			if n.Add(1)%2 == 1 {
				return status.Error(codes.NotFound, "no such stream here")
			}
			return real.Read(req, out)
		}})
		l := newLab(t, p.connections(t).Dial)
		l.config.DeniedGrace = time.Minute
		l.start("s", l.store.Sink(l.table.handle))
		l.is(l.end(l.submit(stream.Job{Stream: "s"}).ID, time.Hour), stream.Completed, "")
		must(t, l.table.holds(numbers(3000)))
	})
}

// Records that refer to rows of another stream, which come later: they are tried again for a while, and none of them is bad.
func TestRecordsWaitForTheRowsTheyReferTo(t *testing.T) {
	for _, late := range []time.Duration{2 * time.Second, 100 * time.Second} {
		withProducer(t, stream.Slice(numbers(300)...), func(l *lab) {
			parents := time.Now().Add(late)
			l.start("s", l.store.Sink(func(ctx context.Context, b *stream.Batch) (func(), error) {
				if time.Now().Before(parents) {
					return nil, stream.Later(sqlError("23503"))
				}
				return l.table.handle(ctx, b)
			}))
			job := l.submit(stream.Job{Stream: "s"})
			if late > time.Minute {
				time.Sleep(30 * time.Second)
				l.await("waiting", time.Minute, func() bool { return l.get(job.ID).State == stream.Ready })
				if got := l.get(job.ID); got.Reason != stream.ReasonDependentRows || got.RetryState.Dependent == 0 {
					t.Errorf("%s %+v", got.Reason, got.RetryState)
				}
			}
			l.is(l.end(job.ID, 5*time.Minute), stream.Completed, "")
			must(t, l.table.holds(numbers(300)))
			if rows := l.aside(job.ID); len(rows) != 0 {
				t.Errorf("%d records are in quarantine", len(rows))
			}
		})
	}
}

// Rows that never come: their records go into quarantine, all others are committed, and the wait is for all of them together, not for each.
func TestRecordsWhoseRowsNeverComeAreBadAfterAWhile(t *testing.T) {
	orphan := func(seq uint64) bool { return seq%40 == 7 }
	withProducer(t, stream.Slice(numbers(1000)...), func(l *lab) {
		l.config.CommitRecords = 100
		l.start("s", l.store.Sink(func(ctx context.Context, b *stream.Batch) (func(), error) {
			for _, r := range b.Records {
				if orphan(r.Seq) {
					return nil, stream.Later(fmt.Errorf("record %d: %w", r.Seq, sqlError("23503")))
				}
			}
			return l.table.handle(ctx, b)
		}))
		since := time.Now()
		job := l.end(l.submit(stream.Job{Stream: "s"}).ID, time.Hour)
		l.is(job, stream.Completed, "")
		if took := time.Since(since); took < 2*time.Minute || took > 10*time.Minute {
			t.Errorf("it took %v", took)
		}
		rows := l.aside(job.ID)
		for _, row := range rows {
			if !orphan(row.Seq) || row.Class != stream.ClassRefused || !strings.Contains(row.Error, "23503") {
				t.Errorf("%+v", row)
			}
		}
		if len(rows) != 25 || l.table.len() != 975 {
			t.Errorf("%d rows in quarantine, %d stored", len(rows), l.table.len())
		}
	})
}

// One record takes longer than the handler may: the job reports it, names the limit, and goes on when that is raised.
func TestOneRecordThatIsTooSlowIsNamed(t *testing.T) {
	withProducer(t, stream.Slice(numbers(64)...), func(l *lab) {
		l.config.HandlerTimeout = 5 * time.Second
		slow := func(ctx context.Context, b *stream.Batch) (func(), error) {
			for _, r := range b.Records {
				if r.Seq == 20 && !sleep(ctx, 7*time.Second) {
					return nil, ctx.Err()
				}
			}
			return l.table.handle(ctx, b)
		}
		w := l.start("s", l.store.Sink(slow))
		job := l.submit(stream.Job{Stream: "s"})
		l.await("waiting", 10*time.Minute, func() bool { return l.get(job.ID).State == stream.Ready && l.get(job.ID).RetryState.Failures > 5 })
		got := l.get(job.ID)
		if got.Reason != stream.ReasonTooSlow || !strings.Contains(got.LastError, "HandlerTimeout") || !strings.Contains(got.LastError, "5s") || l.table.len() != 19 {
			t.Errorf("after %d records: %s %s", l.table.len(), got.Reason, got.LastError)
		}
		must(t, w.stop())
		l.config.HandlerTimeout = 10 * time.Second
		l.start("s", l.store.Sink(slow))
		l.is(l.end(job.ID, 10*time.Minute), stream.Completed, "")
		must(t, l.table.holds(numbers(64)))
	})
}

// The jobs of a stream whose handler is down do not keep the slots that other streams need.
func TestWaitingJobsLeaveTheirSlotsToOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := valid(stream.NewServer(stream.ServerConfig{Logger: quiet}))
		server.Handle("down", stream.Slice(numbers(10)...))
		server.Handle("up", stream.Slice(numbers(10)...))
		l := newLab(t, onWire(t, server).connections(t).Dial)
		l.config.MaxJobs = 2
		worker, err := stream.NewWorker(l.config)
		must(t, err)
		worker.Handle("down", l.store.Sink(func(context.Context, *stream.Batch) (func(), error) { return nil, errors.New("503") }))
		worker.Handle("up", l.store.Sink(l.table.handle))
		for range 10 {
			l.submit(stream.Job{Stream: "down"})
		}
		l.run(worker)
		time.Sleep(10 * time.Minute)
		for i := range 20 {
			since := time.Now()
			job := l.end(l.submit(stream.Job{Stream: "up"}).ID, time.Minute)
			if took := time.Since(since); took > 30*time.Second {
				t.Errorf("job %d waited for %v", i, took)
			}
			l.is(job, stream.Completed, "")
		}
	})
}

// A job that fails for hours is logged when it begins to, and now and then, not at each attempt.
func TestARepeatedFailureIsLoggedSeldom(t *testing.T) {
	withProducer(t, stream.Slice(numbers(2)...), func(l *lab) {
		var log strings.Builder
		var mu sync.Mutex
		l.config.Logger = slog.New(slog.NewTextHandler(writer(func(p []byte) (int, error) {
			mu.Lock()
			defer mu.Unlock()
			return log.Write(p)
		}), nil))
		l.start("s", l.store.Sink(func(context.Context, *stream.Batch) (func(), error) { return nil, sqlError("53100") }))
		l.submit(stream.Job{Stream: "s"})
		time.Sleep(5 * time.Hour)
		mu.Lock()
		defer mu.Unlock()
		lines := strings.Count(log.String(), "\n")
		named := strings.Count(log.String(), "reason="+string(stream.ReasonStorageFull))
		if lines < 10 || lines > 200 || named < 10 {
			t.Errorf("%d lines, %d of which name the reason:\n%.2000s", lines, named, log.String())
		}
	})
}

type writer func([]byte) (int, error)

func (w writer) Write(p []byte) (int, error) { return w(p) }
