package stream

import (
	"context"
	"time"
)

// Retention says which jobs a store's Purge deletes, together with their offsets and quarantined records.
type Retention struct {
	// OlderThan is how long ago a job must have ended. It must be at least a minute.
	OlderThan time.Duration
	// States are the final states of the jobs to delete. Nil: Completed and Cancelled. A failed job is deleted only if Failed is named: it
	// could be retried.
	States []State
	// WithQuarantine deletes also jobs that have quarantined records which are neither replayed nor dropped. Those records are lost then.
	WithQuarantine bool
	// Max is how many jobs are deleted at most. 0: 10000. Purge again until it returns less.
	Max int
}

// SinkRetention says what PurgeSink of a store's package deletes of a sink that is in another database than the job store: offsets and
// quarantined records, never rows that a handler wrote.
//
// Purge the job store first. A job that is still there and is retried without its offset begins again at the first record.
type SinkRetention struct {
	// OlderThan is how long ago a job must have committed, or been claimed, for the last time. It must be at least a minute.
	OlderThan time.Duration
	// Jobs is the job store. What belongs to a job that it still has is kept. Nil: no store is asked, and only what belongs to streams that were
	// read to their end is deleted; OlderThan must then be longer than the job store keeps jobs.
	Jobs interface {
		Get(ctx context.Context, id string) (Status, error)
	}
	// WithQuarantine deletes also what belongs to jobs that have quarantined records which are neither replayed nor dropped. Those records are lost
	// then.
	WithQuarantine bool
	// Max is of how many jobs something is deleted at most. 0: 10000. Purge again until it returns less.
	Max int
}
