package driver

import "github.com/levada-io/levada/stream"

// What a job store implements, and what it is called with.
type (
	Store        = stream.Store
	Claim        = stream.Claim
	Release      = stream.Release
	ExpireFilter = stream.ExpireFilter
	Filter       = stream.Filter
	Lease        = stream.Lease
	CrashState   = stream.CrashState
	RetryState   = stream.RetryState
)

// What a sink implements, and what it is called with. A [Sink] alone is enough for a worker; a [ReplaySink] can also hand quarantined records over again,
// and a [ReservingSink] has commits wait for a connection outside the handler's time.
type (
	Sink            = stream.Sink
	ReplaySink      = stream.ReplaySink
	ReservingSink   = stream.ReservingSink
	QuarantineStore = stream.QuarantineStore
	Commit          = stream.Commit
	Attempt         = stream.Attempt
	PanicError      = stream.PanicError
)

// What a notifier driver implements.
type (
	Notifier     = stream.Notifier
	Notification = stream.Notification
)

// CheckpointVersion is the version of the checkpoints that a sink stores. It refuses a newer one with [ErrNewer].
const CheckpointVersion = stream.CheckpointVersion

// Errors that drivers return, wrapped with the job and the values. [stream.ErrNotFound] and [stream.ErrState] are for drivers as well as for users.
var (
	ErrFenced   = stream.ErrFenced
	ErrConflict = stream.ErrConflict
	ErrNewer    = stream.ErrNewer
	ErrOlder    = stream.ErrOlder
	ErrLocked   = stream.ErrLocked
)

// NewCommit makes a commit for a test of a sink. Workers make their own.
func NewCommit(l Lease, prev, next stream.Checkpoint, batch *stream.Batch, quarantine ...stream.Quarantined) *Commit {
	return stream.NewCommit(l, prev, next, batch, quarantine...)
}

// NewAttempt describes an attempt at a record that failed now. A [PanicError] gives it its stack.
func NewAttempt(class stream.Class, why error) Attempt { return stream.NewAttempt(class, why) }

// A Verdict is what a handler's error is marked with. A sink that knows its database's errors marks only those with [NoVerdict].
type Verdict = stream.Verdict

// The verdicts. Constructors are [stream.Retry], [stream.Skip], [stream.Later] and [stream.Halt].
const (
	NoVerdict    = stream.NoVerdict
	VerdictRetry = stream.VerdictRetry
	VerdictSkip  = stream.VerdictSkip
	VerdictLater = stream.VerdictLater
	VerdictHalt  = stream.VerdictHalt
)

// VerdictOf returns what a handler's error is marked with.
func VerdictOf(err error) Verdict { return stream.VerdictOf(err) }
