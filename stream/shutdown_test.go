package stream_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"

	"github.com/levada-io/levada/stream"
)

// Whatever a worker does when it is stopped, it stops within its time, gives the job back at once, and sends a notification.
func TestShutdownOfTheWorker(t *testing.T) {
	hang := func(ctx context.Context, _ string) error { <-ctx.Done(); return ctx.Err() }
	for name, test := range map[string]struct {
		setup  func(l *lab, sink *interceptedSink)
		within time.Duration
		reason stream.Reason // of the job, which is ready; "-": nobody could give it back
		fails  bool
	}{
		"nothing to do": {func(l *lab, _ *interceptedSink) { l.store.Cancel(context.Background(), "j") }, 0, "", false},
		"the handler works": {func(l *lab, _ *interceptedSink) {
			l.table.slow = map[string]time.Duration{"j": 10 * time.Second}
		}, 10 * time.Second, stream.ReasonShutdown, false},
		"the handler works longer than allowed": {func(l *lab, _ *interceptedSink) {
			l.table.slow = map[string]time.Duration{"j": 50 * time.Second}
		}, 20 * time.Second, "-", false},
		"backing off": {func(l *lab, _ *interceptedSink) {
			l.config.Retry = stream.Backoff{Min: time.Second, Max: 2 * time.Second} // a longer one is not spent in the worker
			l.config.Dial = func(context.Context, stream.Job) (grpc.ClientConnInterface, error) {
				return nil, errors.New("no route")
			}
		}, 0, stream.ReasonShutdown, false},
		"dialling": {func(l *lab, _ *interceptedSink) {
			l.config.IdleTimeout = time.Hour
			l.config.Dial = func(ctx context.Context, _ stream.Job) (grpc.ClientConnInterface, error) { return nil, hang(ctx, "") }
		}, 0, stream.ReasonShutdown, false},
		"the sink refuses": {func(l *lab, k *interceptedSink) {
			l.config.Retry = stream.Backoff{Min: 100 * time.Millisecond, Max: time.Second}
			l.config.ReleaseAfterFailures = 1000 // the worker has the job when it is stopped: after enough attempts it would be given back until the next one
			k.before = func(context.Context, string) error { return errors.New("connection refused") }
		}, 0, stream.ReasonShutdown, false},
		"the sink is silent": {func(_ *lab, k *interceptedSink) { k.before = hang }, 20 * time.Second, "-", false},
		"the store is silent": {func(l *lab, _ *interceptedSink) {
			l.config.Store = &interceptedStore{Store: l.store, before: hang}
			l.config.Lease = 50 * time.Second // a claim may take a third of it
		}, 20 * time.Second, "", false},
		"the handler does not return": {func(l *lab, k *interceptedSink) {
			k.before = func(_ context.Context, method string) error {
				if method == "Commit" {
					time.Sleep(time.Hour)
				}
				return nil
			}
		}, 21 * time.Second, "-", true},
	} {
		t.Run(name, func(t *testing.T) {
			source := &counted{n: 1000, at: func(ctx context.Context, seq int) error {
				if seq > 10 {
					_, err := waiting(ctx)
					return err
				}
				return nil
			}}
			withProducer(t, source, func(l *lab) {
				bus := &recordingNotifier{}
				l.config.Notifier = bus
				dial := l.config.Dial
				l.submit(stream.Job{ID: "j", Stream: "s"})
				sink := &interceptedSink{ReplaySink: l.store.Sink(l.table.handle)}
				test.setup(l, sink)
				w := l.start("s", sink)
				time.Sleep(2 * time.Second)
				since := time.Now()
				err := w.stop()
				if took := time.Since(since); took > test.within+10*time.Millisecond || (err != nil) != test.fails {
					t.Errorf("it took %v, and %v is allowed: %v", took, test.within, err)
				}
				if test.fails && !strings.Contains(err.Error(), "1 jobs") {
					t.Error(err)
				}
				job := l.get("j")
				if test.fails {
					defer time.Sleep(time.Hour) // it comes back after all
				}
				if job.State.Final() {
					return
				}
				switch test.reason {
				case "-":
					if job.State != stream.Running {
						t.Errorf("%s %s", job.State, job.Reason)
					}
				default:
					if job.State != stream.Ready || job.Reason != test.reason {
						t.Errorf("%s %s", job.State, job.Reason)
					}
				}
				if released := test.reason == stream.ReasonShutdown; released != (len(bus.sent) == 1) {
					t.Errorf("%d notifications were sent", len(bus.sent))
				}
				// Another takes it over, at once, or when the lease is over.
				limit := 3 * time.Second
				if test.reason == "-" {
					limit += 15 * time.Second
				}
				l.table.hurry()
				l.config.Store, l.config.Notifier, l.config.Owner, l.config.Dial = l.store, nil, stream.Owner{Incarnation: stream.NewID()}, dial
				l.start("s", l.store.Sink(l.table.handle))
				l.await("taken over", limit, func() bool { return l.table.len() == 10 })
			})
		})
	}
}

type recordingNotifier struct{ sent []stream.Notification }

func (h *recordingNotifier) Send(_ context.Context, notification stream.Notification) error {
	h.sent = append(h.sent, notification)
	return nil
}
func (h *recordingNotifier) Listen(ctx context.Context, _ func(context.Context, stream.Notification)) error {
	<-ctx.Done()
	return ctx.Err()
}
func (h *recordingNotifier) Close() error { return nil }

// What is in flight when the worker is stopped is committed, so nothing is done twice.
func TestShutdownCommitsWhatIsInHand(t *testing.T) {
	withProducer(t, &counted{n: 100_000, size: 100}, func(l *lab) {
		l.config.CommitRecords = 50
		calls := map[uint64]int{}
		sink := l.store.Sink(func(ctx context.Context, b *stream.Batch) (func(), error) {
			for _, r := range b.Records {
				calls[r.Seq]++
			}
			sleep(ctx, 10*time.Millisecond)
			return l.table.handle(ctx, b)
		})
		job := l.submit(stream.Job{Stream: "s"})
		for range 20 {
			w := l.start("s", sink)
			time.Sleep(137 * time.Millisecond)
			must(t, w.stop())
			l.config.Owner = stream.Owner{Incarnation: stream.NewID()}
		}
		rows := l.table.len()
		must(t, complete(l.table.seqs(), rows))
		if len(calls) != rows || rows == 0 || int(l.get(job.ID).Progress.Records) != rows {
			t.Errorf("%d records were handed over, %d committed, %d noted", len(calls), rows, l.get(job.ID).Progress.Records)
		}
		for seq, n := range calls {
			if n != 1 {
				t.Errorf("record %d was handed over %d times", seq, n)
			}
		}
	})
}

// A worker that is stopped while it waits for its predecessor's leases to end, or was never started, returns at once.
func TestShutdownBeforeTheStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, func(context.Context, stream.Job) (grpc.ClientConnInterface, error) { return nil, errors.New("no") })
		l.config.Store = &interceptedStore{Store: l.store, before: func(context.Context, string) error { return errors.New("no store") }}
		l.config.Owner = stream.Owner{PodUID: "p", Incarnation: stream.NewID()}
		w := l.start("s", l.store.Sink(nil))
		time.Sleep(time.Hour)
		since := time.Now()
		must(t, w.stop())
		if took := time.Since(since); took > time.Millisecond {
			t.Errorf("it took %v", took)
		}
	})
}
