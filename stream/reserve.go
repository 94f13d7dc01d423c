package stream

import (
	"context"
	"fmt"
	"time"
)

// ReservingSink is a Sink whose commits need a scarce resource, such as a connection of a pool. The worker waits for it before
// the handler's time begins, and for as long as it takes: a pool that is too small only makes jobs slow.
type ReservingSink interface {
	Sink
	// Reserve waits for what a commit needs, and returns a context that gives it to the one commit that follows. The caller calls release
	// after that.
	Reserve(ctx context.Context) (reserved context.Context, release func(), err error)
	// Capacity is how many commits can be under way at once; 0: it is not configurable, as the one writer of a SQLite file.
	Capacity() int
}

// warnAfter is how long a wait lasts before it is logged.
const warnAfter = 5 * time.Second

// reserve waits for what a commit needs.
func (r *run) reserve(ctx context.Context) (context.Context, func(), error) {
	sink, ok := r.sink.(ReservingSink)
	if !ok {
		return ctx, func() {}, nil
	}
	say := time.AfterFunc(warnAfter, func() {
		if sink.Capacity() == 0 {
			r.log.Warn("commit is waiting, the handler of another job holds the right to write: have it work in smaller steps, or set CommitRecords lower", "commit_records", r.config.CommitRecords)
			return
		}
		r.log.Warn("commit is waiting for a connection, other commits or the handlers themselves hold all of the pool's", "connections", sink.Capacity(), "max_jobs", r.config.MaxJobs)
	})
	defer say.Stop()
	reserved, release, err := sink.Reserve(ctx)
	if err != nil {
		return nil, nil, &unreachedError{fmt.Errorf("reserve a connection for the commit: %w", err)}
	}
	return reserved, release, nil
}

// warnOfSmallPools warns of sinks that cannot serve as many jobs at once as the worker takes.
func (w *Worker) warnOfSmallPools() {
	for _, name := range w.streams() {
		if sink, ok := w.sinks[name].(ReservingSink); ok && sink.Capacity() > 0 && sink.Capacity() < w.config.MaxJobs {
			w.config.Logger.Warn("MaxJobs is larger than the sink's connection pool, jobs will wait for each other: raise the pool's size (pool_max_conns in the connection string) or lower MaxJobs",
				"stream", name, "max_jobs", w.config.MaxJobs, "connections", sink.Capacity())
		}
	}
}

// LeaseRenewed says that the commit has also renewed the lease in the job store, at a time not before at. Sinks in the job store's own database
// call it: a job that commits keeps its lease then, also when nothing else reaches the store.
func (c *Commit) LeaseRenewed(at time.Time) { c.renewed = at }
