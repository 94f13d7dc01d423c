package stream

import (
	"context"
	"time"
)

// Store keeps jobs. It is authoritative about ownership: notifications and watchers only make things faster. All methods may be
// called concurrently and from many processes (unless the store says otherwise), judge time by the store's own clock, and
// are atomic. [github.com/levada-io/levada/stream/streamtest.RunStore] is the suite that every store passes.
type Store interface {
	// Submit adds a job. Stream and ID have no white space and at most 1024 bytes, since notifications carry them. When its ID is
	// there already, or its DedupeKey at a job of the same stream that is not cancelled, it changes nothing and returns that job, with Existed set; ErrExists if that job has another Stream, Target or Query, or was found by its ID and has another
	// DedupeKey. OnBad, MaxBad, Priority and NotBefore may differ: those of the first stay.
	Submit(ctx context.Context, job Job) (Status, error)

	// Claim gives leases on up to c.Max due jobs: those that are ready and whose NotBefore has passed, and those that are
	// running and whose lease has run out. Jobs with a greater Priority come first, then those that have been due longest. Each
	// claimed job is running, with Epoch and Attempts one greater, the owner's name, a lease of c.TTL from now, and ClaimedAt
	// now; the Status returned also has Reclaimed set if it was running before, and its owner was another process (or did not name its incarnation):
	// one that claims its own job again has lost the lease, and lives. No job is ever given to two claims in the same epoch.
	Claim(ctx context.Context, c Claim) ([]Status, error)

	// Renew makes the lease last ttl from now, and stores the progress. ErrFenced if the lease is not the job's current one, or
	// there is no such job; a lease that has run out is renewed if the job was not claimed since.
	Renew(ctx context.Context, l Lease, p Progress, ttl time.Duration) error

	// SaveState stores crash and retry state. A zero retry state also clears Reason and LastError, since the job makes progress. ErrFenced as in
	// Renew.
	SaveState(ctx context.Context, l Lease, crash CrashState, retry RetryState) error

	// Release ends the lease. ErrFenced as in Renew. Releasing with the same epoch and the same final state twice is not an error.
	Release(ctx context.Context, l Lease, r Release) error

	// Expire ends, now, the leases of running jobs whose owner matches, so that they can be claimed, and returns how many
	// there were: leases that have run out already are not counted. The next claim of the jobs has Reclaimed set.
	Expire(ctx context.Context, f ExpireFilter) (int, error)

	// Get returns a job, or ErrNotFound.
	Get(ctx context.Context, id string) (Status, error)

	// List returns jobs, the newest first.
	List(ctx context.Context, f Filter) ([]Status, error)

	// Cancel ends a job that is not final; Pause stops it until Resume. Both make Epoch one greater, so that the owner is
	// fenced at its next commit or renewal. ErrState if the job is final (Pause also: if it is paused).
	Cancel(ctx context.Context, id string) (Status, error)
	Pause(ctx context.Context, id string) (Status, error)
	// Resume makes a paused job ready, not before the time that it had.
	Resume(ctx context.Context, id string) (Status, error)
	// Retry makes a job of a final state ready, from its checkpoint, with RetryState, CrashState, Reason, LastError and
	// FinishedAt cleared, and Epoch one greater. ErrState also if the job was cancelled and another has its DedupeKey by now. A completed job has nothing left but records that were marked for replay.
	Retry(ctx context.Context, id string) (Status, error)

	// Owners returns each owner of a running job, once.
	Owners(ctx context.Context) ([]Owner, error)

	// Close frees what the store holds.
	Close() error
}

// Claim says which jobs to claim, and for which owner.
type Claim struct {
	Owner Owner
	// Streams are the names of the streams that the owner has handlers for. Nil: all.
	Streams []string
	// TTL is how long the leases last.
	TTL time.Duration
	// Max is how many jobs to claim at most.
	Max int
}

// Release says how a lease ended.
type Release struct {
	// State is Ready, Completed or Failed.
	State State
	// After is how long a Ready job has to wait before it can be claimed again.
	After time.Duration
	// RetryState, Progress, Reason and LastError are stored as they are; times to the microsecond.
	RetryState RetryState
	Progress   Progress
	Reason     Reason
	LastError  string
	// CrashState is stored as it is: a release is not a crash.
	CrashState CrashState
}

// ExpireFilter says which owners' leases to end: those that match all fields that are set.
type ExpireFilter struct {
	// PodUID is the pod of the owners. It must be set, or Incarnation or All.
	PodUID string
	// Incarnation is the process itself.
	Incarnation string
	// Container limits it to owners in the container of that name, and to those that did not say their container's name.
	Container string
	// ExceptIncarnation leaves one process out: the successor of the one that ended.
	ExceptIncarnation string
	// ClaimedBefore leaves out leases that began later.
	ClaimedBefore time.Time
	// All matches every owner but ExceptIncarnation.
	All bool
}

// Filter says what to list.
type Filter struct {
	States  []State
	Streams []string
	// Limit is how many at most; 0: 1000.
	Limit int
}
