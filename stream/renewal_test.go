package stream_test

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"github.com/levada-io/levada/stream"
)

// The job store cannot be reached except by the commits, which are in its database: they renew the lease, and the job goes on where it is.
func TestACommitRenewsTheLease(t *testing.T) {
	withProducer(t, stream.Slice(numbers(200)...), func(l *lab) {
		l.config.CommitRecords, l.config.Lease = 1, 6*time.Second
		var away atomic.Bool
		l.config.Store = &interceptedStore{Store: l.store, before: func(_ context.Context, method string) error {
			if away.Load() {
				return errors.New("no route")
			}
			return nil
		}}
		l.table.slow = map[string]time.Duration{"j": time.Second}
		l.start("s", l.store.Sink(l.table.handle))
		l.submit(stream.Job{ID: "j", Stream: "s"})
		l.await("at work", time.Minute, func() bool { return l.table.len() > 2 })
		away.Store(true)
		l.await("most of it", 5*time.Minute, func() bool { return l.table.len() > 190 })
		away.Store(false)
		job := l.end("j", time.Minute)
		l.is(job, stream.Completed, "")
		if lost := l.seen(stream.EventLost); len(lost) > 0 || job.Attempts != 1 {
			t.Errorf("%d leases lost, %d attempts", len(lost), job.Attempts)
		}
	})
}

// A worker that cannot reach the store for longer than the lease lasts, while its handler is at work, loses its jobs. It has not died: it gives them back when it can, or
// claims them again, and no record becomes a suspect.
func TestALostLeaseIsNoDeath(t *testing.T) {
	withProducer(t, stream.Slice(numbers(100)...), func(l *lab) {
		l.config.CommitRecords, l.config.Lease = 1, 6*time.Second
		l.config.Owner = stream.Owner{Incarnation: stream.NewID()}
		var away atomic.Bool
		route := func(context.Context, string) error {
			if away.Load() {
				return errors.New("no route")
			}
			return nil
		}
		l.config.Store = &interceptedStore{Store: l.store, before: route}
		l.table.slow = map[string]time.Duration{"j": 200 * time.Millisecond}
		l.start("s", l.store.Sink(func(ctx context.Context, b *stream.Batch) (func(), error) {
			if away.Load() {
				sleep(ctx, time.Hour)
				return nil, ctx.Err()
			}
			return l.table.handle(ctx, b)
		}))
		l.submit(stream.Job{ID: "j", Stream: "s"})
		for rows := 5; rows <= 65; rows += 30 {
			l.await("at work", 5*time.Minute, func() bool { return l.table.len() > rows })
			away.Store(true)
			time.Sleep(time.Minute)
			away.Store(false)
		}
		l.is(l.end("j", 10*time.Minute), stream.Completed, "")
		for _, e := range l.seen(stream.EventClaimed) {
			if e.Reclaimed {
				t.Errorf("attempt %d counts as one after a death", e.Attempt)
			}
		}
		if lost := l.seen(stream.EventLost); len(lost) == 0 {
			t.Error("no lease was lost")
		}
		must(t, l.table.holds(numbers(100)))
	})
}
