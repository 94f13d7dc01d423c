package stream_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/levada-io/levada/stream"
)

// service is what an at-least-once handler calls: it counts the effects that each record has had.
type service struct {
	mu    sync.Mutex
	calls map[uint64]int
	order []uint64
	slow  time.Duration // a record
}

func (s *service) call(_ context.Context, _ *stream.Batch, r stream.Record) error {
	s.mu.Lock()
	slow := s.slow
	s.mu.Unlock()
	time.Sleep(slow) // it does not look at its context: the effect happens in any case
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.calls == nil {
		s.calls = map[uint64]int{}
	}
	s.calls[r.Seq]++
	s.order = append(s.order, r.Seq)
	return nil
}

func (s *service) batch(ctx context.Context, b *stream.Batch) error {
	for _, r := range b.Records {
		s.call(ctx, b, r)
	}
	return nil
}

func (s *service) done() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.order)
}

// once checks that records 1 to n were handed over, in order, none of them twice.
func (s *service) once(n int) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for seq, calls := range s.calls {
		if calls > 1 {
			return fmt.Errorf("record %d was handed over %d times", seq, calls)
		}
	}
	if len(s.order) != n || !slices.IsSorted(s.order) {
		return fmt.Errorf("%d records were handed over, not %d, or in the wrong order", len(s.order), n)
	}
	return nil
}

// kinds makes a sink of each kind of handler.
func (s *service) kinds() map[string]func(stream.ReplaySink) stream.ReplaySink {
	return map[string]func(stream.ReplaySink) stream.ReplaySink{
		"each": func(offsets stream.ReplaySink) stream.ReplaySink {
			return stream.AtLeastOnce(offsets, stream.Each(s.call))
		},
		"batch": func(offsets stream.ReplaySink) stream.ReplaySink { return stream.AtLeastOnce(offsets, s.batch) },
	}
}

func withService(t *testing.T, n int, test func(l *lab, s *service, sink func(stream.ReplaySink) stream.ReplaySink)) {
	for kind := range new(service).kinds() {
		t.Run(kind, func(t *testing.T) {
			withProducer(t, stream.Slice(numbers(n)...), func(l *lab) {
				s := &service{slow: 100 * time.Millisecond}
				test(l, s, s.kinds()[kind])
			})
		})
	}
}

// A handler of 100 ms a record ran out of its time with 1000 records, and had them again, in halves: 596 of 3,000 were handed over four times, and it
// took 484 s. What is finished is committed about once a second.
func TestASlowAtLeastOnceHandlerGetsNothingTwice(t *testing.T) {
	withService(t, 3000, func(l *lab, s *service, sink func(stream.ReplaySink) stream.ReplaySink) {
		l.config.HandlerTimeout, l.config.CommitRecords, l.config.IdleTimeout = 10*time.Second, 1000, time.Hour
		l.start("s", sink(l.store.Sink(nil)))
		begun := time.Now()
		l.submit(stream.Job{ID: "j", Stream: "s"})
		l.is(l.end("j", time.Hour), stream.Completed, "")
		if took := time.Since(begun); took > 310*time.Second {
			t.Errorf("it took %v, and the handler alone needs 300 s", took)
		}
		must(t, s.once(3000))
		for _, e := range l.seen(stream.EventCommitted) {
			if n := e.To + 1 - e.From; n > 20 {
				t.Errorf("a commit of %d records: that many are repeated after a crash", n)
			}
		}
		if n := len(l.seen(stream.EventCommitted)); n > 700 {
			t.Errorf("%d commits", n)
		}
		if n := len(l.seen(stream.EventRetry)); n > 0 {
			t.Errorf("%d attempts failed", n)
		}
	})
}

// A quick handler gets large batches soon, and no commit for each record.
func TestAQuickAtLeastOnceHandlerGetsLargeBatches(t *testing.T) {
	withService(t, 20_000, func(l *lab, s *service, sink func(stream.ReplaySink) stream.ReplaySink) {
		l.config.CommitRecords = 1000
		s.slow = 0
		l.start("s", sink(l.store.Sink(nil)))
		l.submit(stream.Job{ID: "j", Stream: "s"})
		l.is(l.end("j", time.Hour), stream.Completed, "")
		must(t, s.once(20_000))
		if n := len(l.seen(stream.EventCommitted)); n > 100 {
			t.Errorf("%d commits", n)
		}
	})
}

// A record takes one second and then one takes half of the handler's time: the ones before it are committed before, and it is not interrupted.
func TestRecordsThatSuddenlyTakeLong(t *testing.T) {
	withProducer(t, stream.Slice(numbers(300)...), func(l *lab) {
		l.config.HandlerTimeout, l.config.IdleTimeout = 10*time.Second, time.Hour
		s := &service{}
		l.start("s", stream.AtLeastOnce(l.store.Sink(nil), stream.Each(func(ctx context.Context, b *stream.Batch, r stream.Record) error {
			if r.Seq > 100 && r.Seq < 110 && !sleep(ctx, 7*time.Second) {
				return context.Cause(ctx)
			}
			return s.call(ctx, b, r)
		})))
		l.submit(stream.Job{ID: "j", Stream: "s"})
		l.is(l.end("j", time.Hour), stream.Completed, "")
		must(t, s.once(300))
		if n := len(l.seen(stream.EventRetry)); n > 0 {
			t.Errorf("%d attempts failed", n)
		}
	})
}

// Workers stop, again and again, at any moment: the current record is finished and committed, no other is begun.
func TestShutdownHandsNothingOverTwice(t *testing.T) {
	withService(t, 200, func(l *lab, s *service, sink func(stream.ReplaySink) stream.ReplaySink) {
		l.submit(stream.Job{ID: "j", Stream: "s"})
		for i := 0; !l.get("j").State.Final(); i++ {
			l.config.Owner = stream.Owner{Incarnation: stream.NewID()}
			w := l.start("s", sink(l.store.Sink(nil)))
			time.Sleep(time.Duration(237+i*13) * time.Millisecond)
			since := time.Now()
			must(t, w.stop())
			if took := time.Since(since); took > 2*time.Second {
				t.Errorf("it took %v to stop", took)
			}
			if n := s.done(); int(l.get("j").Progress.Records) != n {
				t.Errorf("%d records were handed over, and %d are noted", n, l.get("j").Progress.Records)
			}
			if i > 1000 {
				t.Fatal("the job does not end")
			}
		}
		must(t, s.once(200))
	})
}

// A shutdown in the middle of a record that takes longer than DrainTimeout: those before it are committed in time.
func TestShutdownCommitsWhatIsBeforeALongRecord(t *testing.T) {
	withProducer(t, stream.Slice(numbers(20)...), func(l *lab) {
		s := &service{}
		long := true
		sink := stream.AtLeastOnce(l.store.Sink(nil), stream.Each(func(ctx context.Context, b *stream.Batch, r stream.Record) error {
			if r.Seq == 10 && long && !sleep(ctx, 55*time.Second) {
				return context.Cause(ctx)
			}
			return s.call(ctx, b, r)
		}))
		l.submit(stream.Job{ID: "j", Stream: "s"})
		w := l.start("s", sink)
		time.Sleep(2 * time.Second)
		must(t, w.stop())
		if job := l.get("j"); job.State != stream.Ready || job.Progress.Records != 9 {
			t.Errorf("the job is %s with %d records", job.State, job.Progress.Records)
		}
		long = false
		l.config.Owner = stream.Owner{Incarnation: stream.NewID()}
		l.start("s", sink)
		l.is(l.end("j", time.Minute), stream.Completed, "")
		must(t, s.once(20))
	})
}

// The sink does not answer when the handler has finished: only the commit is repeated, for as long as it takes, also when its answer was lost.
func TestOutageAtTheCommitHandsNothingOverTwice(t *testing.T) {
	for name, outage := range map[string]time.Duration{"short": 3 * time.Second, "long": 2 * time.Hour} {
		t.Run(name, func(t *testing.T) {
			withService(t, 300, func(l *lab, s *service, sink func(stream.ReplaySink) stream.ReplaySink) {
				var until atomic.Int64
				away := func(context.Context, string) error {
					if time.Now().UnixNano() < until.Load() {
						return errors.New("connection refused")
					}
					return nil
				}
				l.start("s", sink(&interceptedSink{ReplaySink: l.store.Sink(nil), before: away, after: away}))
				// Another worker is there, which would take the job if it were given back.
				other := l.config
				other.Owner = stream.Owner{Incarnation: stream.NewID()}
				l.submit(stream.Job{ID: "j", Stream: "s"})
				l.await("at work", time.Minute, func() bool { return s.done() > 3 })
				l.config = other
				l.start("s", sink(&interceptedSink{ReplaySink: l.store.Sink(nil), before: away, after: away}))
				for i := range 5 {
					until.Store(time.Now().Add(outage).UnixNano())
					time.Sleep(outage + time.Duration(3000+177*i)*time.Millisecond)
				}
				l.is(l.end("j", 24*time.Hour), stream.Completed, "")
				must(t, s.once(300))
			})
		})
	}
}

// The job store and the sink cannot be reached for longer than the lease lasts, by the only worker: it loses the lease, claims the job again, and commits what it
// had finished before.
func TestALostLeaseHandsNothingOverTwice(t *testing.T) {
	withService(t, 300, func(l *lab, s *service, sink func(stream.ReplaySink) stream.ReplaySink) {
		l.config.Lease, l.config.Owner = 6*time.Second, stream.Owner{Incarnation: stream.NewID()}
		var away, sinkToo atomic.Bool
		l.config.Store = &interceptedStore{Store: l.store, before: func(context.Context, string) error {
			if away.Load() {
				return errors.New("no route")
			}
			return nil
		}}
		l.start("s", sink(&interceptedSink{ReplaySink: l.store.Sink(nil), before: func(context.Context, string) error {
			if away.Load() && sinkToo.Load() {
				return errors.New("no route")
			}
			return nil
		}}))
		l.submit(stream.Job{ID: "j", Stream: "s"})
		for n := 10; n < 200; n += 40 {
			l.await("at work", 10*time.Minute, func() bool { return s.done() > n })
			sinkToo.Store(true)
			away.Store(true)
			time.Sleep(time.Minute)
			away.Store(false)
		}
		l.is(l.end("j", time.Hour), stream.Completed, "")
		if len(l.seen(stream.EventLost)) == 0 {
			t.Error("no lease was lost")
		}
		must(t, s.once(300))
	})
}

// A paused job keeps what was finished, although its epoch is another by then, and another worker goes on after it.
func TestAPauseHandsNothingOverTwice(t *testing.T) {
	withService(t, 300, func(l *lab, s *service, sink func(stream.ReplaySink) stream.ReplaySink) {
		l.config.Owner = stream.Owner{Incarnation: stream.NewID()}
		l.submit(stream.Job{ID: "j", Stream: "s"})
		for i := range 12 {
			w := l.start("s", sink(l.store.Sink(nil)))
			at := s.done()
			l.await("at work", time.Minute, func() bool { return s.done() > at+5+i })
			if _, err := l.store.Pause(t.Context(), "j"); err != nil {
				t.Fatal(err)
			}
			time.Sleep(10 * time.Second)
			if n := s.done(); int(l.get("j").Progress.Records) != n {
				t.Errorf("%d records were handed over, and %d are noted", n, l.get("j").Progress.Records)
			}
			must(t, w.stop())
			if _, err := l.store.Resume(t.Context(), "j"); err != nil {
				t.Fatal(err)
			}
			l.config.Owner = stream.Owner{Incarnation: stream.NewID()}
		}
		l.start("s", sink(l.store.Sink(nil)))
		l.is(l.end("j", time.Hour), stream.Completed, "")
		must(t, s.once(300))
	})
}

// An error of one record has that one handed over again, and those after it, and none before it.
func TestAnErrorRepeatsOnlyWhatIsNotFinished(t *testing.T) {
	withProducer(t, stream.Slice(numbers(500)...), func(l *lab) {
		s, n := &service{}, 0
		tries := map[uint64]int{}
		l.start("s", stream.AtLeastOnce(l.store.Sink(nil), stream.Each(func(ctx context.Context, b *stream.Batch, r stream.Record) error {
			n++
			tries[r.Seq]++
			switch {
			case r.Seq == 77:
				panic("no")
			case r.Seq%50 == 0 && tries[r.Seq] < 4:
				return errors.New("503")
			case r.Seq == 333:
				return stream.Skip(errors.New("bad"))
			}
			return s.call(ctx, b, r)
		})))
		l.submit(stream.Job{ID: "j", Stream: "s"})
		l.is(l.end("j", time.Hour), stream.Completed, "")
		must(t, s.once(498))
		if rows := l.aside("j"); len(rows) != 2 || rows[0].Class != stream.ClassPanic || rows[1].Class != stream.ClassRefused {
			t.Errorf("%+v", rows)
		}
		if want := 500 + 10*3 + 2; n > want {
			t.Errorf("%d calls, and %d were needed", n, want)
		}
	})
}

// A job that halts at a bad record has committed what was finished before it, so that a retry does not hand that over again.
func TestAHaltKeepsWhatIsFinished(t *testing.T) {
	for name, job := range map[string]stream.Job{
		"halt":        {ID: "j", Stream: "s", OnBad: stream.HaltJob},
		"none is bad": {ID: "j", Stream: "s", MaxBad: stream.None},
	} {
		t.Run(name, func(t *testing.T) { haltsAndKeeps(t, job) })
	}
}

func haltsAndKeeps(t *testing.T, job stream.Job) {
	withProducer(t, stream.Slice(numbers(200)...), func(l *lab) {
		s := &service{}
		var fixed atomic.Bool
		l.start("s", stream.AtLeastOnce(l.store.Sink(nil), stream.Each(func(ctx context.Context, b *stream.Batch, r stream.Record) error {
			if r.Seq == 150 && !fixed.Load() {
				return stream.Skip(errors.New("bad"))
			}
			return s.call(ctx, b, r)
		})))
		l.submit(job)
		if job := l.end("j", time.Hour); job.State != stream.Failed || job.Progress.Records != 149 {
			t.Errorf("the job is %s with %d records", job.State, job.Progress.Records)
		}
		fixed.Store(true)
		if _, err := l.store.Retry(t.Context(), "j"); err != nil {
			t.Fatal(err)
		}
		l.is(l.end("j", time.Hour), stream.Completed, "")
		must(t, s.once(200))
	})
}

// What a function does around a handler of Each is not finished when the records are: an error after them has all of them handed over again. And it gets all
// of its batch done, also if that takes long: records that a handler of Each left for later would count as finished, and be lost.
func TestAWrappedEachIsAHandlerForBatches(t *testing.T) {
	withProducer(t, stream.Slice(numbers(100)...), func(l *lab) {
		var buffer, sent []uint64
		failed := false
		each := stream.Each(func(_ context.Context, _ *stream.Batch, r stream.Record) error {
			if r.Seq == 60 && !failed {
				failed = true
				return errors.New("503")
			}
			if r.Seq > 70 {
				time.Sleep(300 * time.Millisecond)
			}
			buffer = append(buffer, r.Seq)
			return nil
		})
		l.start("s", stream.AtLeastOnce(l.store.Sink(nil), func(ctx context.Context, b *stream.Batch) error {
			buffer = nil
			if err := each(ctx, b); err != nil {
				return err
			}
			sent = append(sent, buffer...)
			return nil
		}))
		l.submit(stream.Job{ID: "j", Stream: "s"})
		l.is(l.end("j", time.Hour), stream.Completed, "")
		must(t, complete(sent, 100))
	})
}

// A function that somebody has converted to EachHandler, and that is none, finishes its batches: it got the same records again and again.
func TestAFunctionThatIsNoEachHandlerFinishesItsBatches(t *testing.T) {
	withProducer(t, stream.Slice(numbers(100)...), func(l *lab) {
		s := &service{}
		l.start("s", stream.AtLeastOnce(l.store.Sink(nil), stream.EachHandler(s.batch)))
		l.submit(stream.Job{ID: "j", Stream: "s"})
		l.is(l.end("j", time.Hour), stream.Completed, "")
		must(t, s.once(100))
	})
}

// A function that is converted to EachHandler and fails after a handler of Each has finished everything: the records are finished, and the error ends no worker.
func TestAnErrorAfterAllIsFinishedRepeatsNothing(t *testing.T) {
	withProducer(t, stream.Slice(numbers(100)...), func(l *lab) {
		s := &service{}
		each := stream.Each(s.call)
		l.start("s", stream.AtLeastOnce(l.store.Sink(nil), stream.EachHandler(func(ctx context.Context, b *stream.Batch) error {
			if err := each(ctx, b); err != nil {
				return err
			}
			return errors.New("after the last record")
		})))
		l.submit(stream.Job{ID: "j", Stream: "s"})
		l.is(l.end("j", time.Hour), stream.Completed, "")
		must(t, s.once(100))
	})
}

// A crash repeats at most CommitRecords records.
func TestACrashRepeatsAtMostCommitRecords(t *testing.T) {
	withService(t, 3000, func(l *lab, s *service, sink func(stream.ReplaySink) stream.ReplaySink) {
		s.slow = 3 * time.Millisecond
		l.config.CommitRecords, l.config.Lease = 30, 3*time.Second
		l.submit(stream.Job{ID: "j", Stream: "s"})
		store := l.config.Store
		crashes := 0
		for range 8 {
			m := &mortal{}
			l.config.Owner, l.config.Store = stream.Owner{Incarnation: stream.NewID()}, m.store(store)
			w := l.start("s", sink(&interceptedSink{ReplaySink: l.store.Sink(nil), before: func(context.Context, string) error { return m.alive() }}))
			at := s.done()
			l.await("at work", time.Minute, func() bool { return s.done() > at+200+crashes })
			noted, handed := int(l.get("j").Progress.Records), map[uint64]int{}
			m.dead.Store(true)
			w.stop()
			s.mu.Lock()
			for _, seq := range s.order {
				handed[seq]++
			}
			beyond := len(handed) - noted
			s.mu.Unlock()
			if beyond > 30 {
				t.Errorf("%d records were handed over and not committed", beyond)
			}
			crashes++
		}
		l.config.Owner, l.config.Store = stream.Owner{Incarnation: stream.NewID()}, store
		l.start("s", sink(l.store.Sink(nil)))
		l.is(l.end("j", time.Hour), stream.Completed, "")
		least := math.MaxInt
		for seq := uint64(1); seq <= 3000; seq++ {
			least = min(least, s.calls[seq])
		}
		if twice := s.done() - 3000; least < 1 || twice > 8*30 || twice == 0 {
			t.Errorf("%d records were repeated by %d crashes; each at least %d times", twice, crashes, least)
		}
	})
}

// The replay of a quarantined record calls the handler once, however often the mark that it was replayed cannot be stored.
func TestAReplayHandsNothingOverTwice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, startProducer(t, stream.ServerConfig{}, "s", stream.Slice(numbers(9)...)).connections(t).Dial)
		calls, refuse, failures := 0, true, 0
		sink := &interceptedSink{ReplaySink: l.store.Sink(nil)}
		sink.before = func(_ context.Context, method string) error {
			if method == "CommitReplay" && failures < 5 {
				failures++
				return errors.New("connection refused")
			}
			return nil
		}
		sink.after = func(_ context.Context, method string) error {
			if method == "CommitReplay" && failures < 6 {
				failures++
				return errors.New("connection lost")
			}
			return nil
		}
		l.start("s", stream.AtLeastOnce(sink, stream.Each(func(_ context.Context, _ *stream.Batch, r stream.Record) error {
			if r.Seq != 5 {
				return nil
			}
			if refuse {
				return stream.Skip(errors.New("no"))
			}
			calls++
			return nil
		})))
		l.submit(stream.Job{ID: "j", Stream: "s"})
		l.is(l.end("j", time.Hour), stream.Completed, "")
		refuse = false
		if n, err := l.store.MarkQuarantined(t.Context(), "j", stream.Replay); err != nil || n != 1 {
			t.Fatal(n, err)
		}
		if _, err := l.store.Retry(t.Context(), "j"); err != nil {
			t.Fatal(err)
		}
		l.is(l.end("j", time.Hour), stream.Completed, "")
		if rows := l.aside("j"); calls != 1 || failures != 6 || rows[0].State != stream.Replayed {
			t.Errorf("%d calls, %d failures, %+v", calls, failures, rows)
		}
	})
}

// A pause or a cancel while a quarantined record is in the handler again: it was not marked as replayed then, and handed over once more.
func TestAReplayThatIsPausedHandsNothingOverTwice(t *testing.T) {
	for name, stop := range map[string]func(l *lab) error{
		"pause": func(l *lab) error {
			_, err := l.store.Pause(context.Background(), "j")
			time.Sleep(10 * time.Second)
			return errors.Join(err, second(l.store.Resume(context.Background(), "j")))
		},
		"cancel": func(l *lab) error {
			_, err := l.store.Cancel(context.Background(), "j")
			time.Sleep(10 * time.Second)
			return errors.Join(err, second(l.store.Retry(context.Background(), "j")))
		},
	} {
		t.Run(name, func(t *testing.T) {
			withProducer(t, stream.Slice(numbers(9)...), func(l *lab) {
				var refuse, working atomic.Bool
				var calls atomic.Int32
				refuse.Store(true)
				l.start("s", stream.AtLeastOnce(l.store.Sink(nil), func(_ context.Context, b *stream.Batch) error {
					for _, r := range b.Records {
						switch {
						case r.Seq != 5:
						case refuse.Load():
							b.Skip(r, errors.New("no"))
						default:
							working.Store(true)
							time.Sleep(4 * time.Second)
							calls.Add(1)
						}
					}
					b.Records = b.Records[len(b.Records):] // a handler may consume them
					return nil
				}))
				l.submit(stream.Job{ID: "j", Stream: "s"})
				l.is(l.end("j", time.Hour), stream.Completed, "")
				refuse.Store(false)
				must(t, second(l.store.MarkQuarantined(t.Context(), "j", stream.Replay)))
				must(t, second(l.store.Retry(t.Context(), "j")))
				l.await("replaying", time.Minute, working.Load)
				must(t, stop(l))
				l.is(l.end("j", time.Hour), stream.Completed, "")
				if rows := l.aside("j"); calls.Load() != 1 || rows[0].State != stream.Replayed {
					t.Errorf("%d calls, %+v", calls.Load(), rows)
				}
			})
		})
	}
}

func second[T any](_ T, err error) error { return err }

// A handler of Each that misuses Skip halts the job, and keeps the records before that one.
func TestAMisuseOfSkipKeepsWhatIsFinished(t *testing.T) {
	withProducer(t, stream.Slice(numbers(50)...), func(l *lab) {
		s := &service{}
		l.start("s", stream.AtLeastOnce(l.store.Sink(nil), stream.Each(func(ctx context.Context, b *stream.Batch, r stream.Record) error {
			if r.Seq == 20 {
				b.Skip(stream.Record{Seq: 99}, errors.New("no"))
				return nil
			}
			return s.call(ctx, b, r)
		})))
		l.submit(stream.Job{ID: "j", Stream: "s"})
		job := l.end("j", time.Hour)
		if job.State != stream.Failed || job.Reason != stream.ReasonHalted || job.Progress.Records != 19 || job.Progress.Bad != 0 {
			t.Errorf("the job is %s (%s: %s) with %+v", job.State, job.Reason, job.LastError, job.Progress)
		}
		must(t, s.once(19))
	})
}
