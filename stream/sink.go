package stream

import (
	"context"
	"fmt"
	"time"
)

// CheckpointVersion is the version of the checkpoints that this package writes. Sinks store it beside them, and refuse newer
// ones with ErrNewer.
const CheckpointVersion = 1

// Checkpoint is how far a job has come. The sink's is authoritative.
type Checkpoint struct {
	// Seq is the number of the last record accounted for. 0 at the start.
	Seq uint64
	// Token is the producer's name for the position after it.
	Token []byte
	// Digest is that of records 1 to Seq, those in quarantine included.
	Digest Digest
	// Bytes is the size of their keys and values.
	Bytes uint64
	// Bad is how many of them went into quarantine.
	Bad uint64
	// Done is set in the last commit of a stream, when number and digest were those that the producer named.
	Done bool
}

// Sink keeps the effects of records together with the checkpoint. All methods may be called concurrently, for different jobs.
// [github.com/levada-io/levada/stream/streamtest.RunSink] is the suite that every sink passes.
type Sink interface {
	// Fence makes the lease's epoch the only one that may commit for its job, and returns the job's checkpoint, zero if there is
	// none. Once it has returned, no commit of a smaller epoch can succeed, also one that was under way. ErrFenced if a
	// greater epoch was there. Fencing again with the same epoch is how a worker finds out whether a commit took effect.
	Fence(ctx context.Context, l Lease) (Checkpoint, error)

	// Commit calls the handler, unless the batch is empty, and stores its effects, the quarantined records and the next checkpoint,
	// all or nothing. A panic of the handler undoes all, and goes on to the caller.
	// It returns ErrFenced if the lease's epoch is not the one that was fenced last, ErrConflict if the stored checkpoint is not
	// c.Prev, all of it (then nothing is changed), and the handler's error, wrapped, if that is why. After any other error it is unknown
	// whether the commit took effect.
	Commit(ctx context.Context, c *Commit) error
}

// Commit is one step of a job.
type Commit struct {
	Lease Lease
	// Prev is the stored checkpoint, from which this commit goes on.
	Prev Checkpoint
	// Batch holds the records to process; it may be empty.
	Batch *Batch

	next       Checkpoint
	quarantine []Quarantined
	lost       bool      // the lease was lost when the sink took the commit
	renewed    time.Time // when the lease was renewed with it; zero: it was not
}

// LeaseLost says that the sink has taken the commit although the lease is lost, see [Batch.EffectsOutside].
func (c *Commit) LeaseLost() { c.lost = true }

// NewCommit is for tests of sinks; workers make their commits themselves. The records between prev and next are those of the
// batch and the quarantined ones.
func NewCommit(l Lease, prev, next Checkpoint, batch *Batch, quarantine ...Quarantined) *Commit {
	return &Commit{Lease: l, Prev: prev, Batch: batch, next: next, quarantine: quarantine}
}

// Result returns what to store. A sink calls it once the handler has returned nil, since the handler may have quarantined records
// with Batch.Skip. It fails with ErrTooManyBad, or halts, when the job's policy does not allow that, and halts when
// Skip was called with a record that is not in the batch.
func (c *Commit) Result() (Checkpoint, []Quarantined, error) {
	if err := c.Batch.misused; err != nil {
		return c.next, nil, Halt(err)
	}
	next, rows := c.next, append(c.quarantine[:len(c.quarantine):len(c.quarantine)], c.Batch.skipped...)
	next.Bad = c.Prev.Bad + uint64(len(rows))
	if len(rows) == 0 {
		return next, nil, nil
	}
	if c.Batch.Job.OnBad == HaltJob {
		return next, nil, Halt(fmt.Errorf("record %d (key %q) cannot be processed, and the job halts at such records: %s", rows[0].Seq, rows[0].Key, rows[0].Error))
	}
	if limit := c.Batch.Job.MaxBad; limit != 0 && next.Bad > uint64(max(limit, 0)) {
		return next, nil, Halt(fmt.Errorf("%w: with record %d (key %q) %d would be in quarantine, MaxBad allows %d: %s", ErrTooManyBad, rows[0].Seq, rows[0].Key, next.Bad, max(limit, 0), rows[0].Error))
	}
	for i := range rows {
		rows[i].Job = c.Lease.Job
	}
	return next, rows, nil
}

// Batch is what a handler is given: records of one job that follow each other (but for those in quarantine).
type Batch struct {
	Job   Job
	Epoch uint64
	// Records are only valid until the handler returns.
	Records []Record

	all     []Record // Records as the sink got them, where Reset was called
	skipped []Quarantined
	last    uint64 // greatest Seq in skipped
	misused error  // the first call of Skip that cannot be
	pace    *pace  // between a handler of Each and the worker; nil: no worker called it
	outside bool   // a handler of AtLeastOnce has processed the records
}

// EffectsOutside is for sinks. It reports that the effects which Commit or CommitReplay is to account for have happened already, outside the sink
// (see [AtLeastOnce]): a call that is refused has them happen again. A sink refuses it only if a greater epoch was fenced, or the checkpoint is
// another one. A sink in the job store's own database takes it also if the job was paused or cancelled, or its lease was lost: it
// stores the progress, leaves state, epoch and lease as they are, and calls [Commit.LeaseLost].
func (b *Batch) EffectsOutside() bool { return b.outside }

// IdempotencyKey names the record for effects outside the sink's transaction: it stays the same however often, and by
// which worker, the record is handled.
func (b *Batch) IdempotencyKey(r Record) string { return fmt.Sprintf("%s/%d", b.Job.ID, r.Seq) }

func clone(b []byte) []byte { return append([]byte(nil), b...) }

// Class says how a record came into quarantine.
type Class string

const (
	ClassRefused  Class = "refused"  // the handler said Skip
	ClassPanic    Class = "panic"    // the handler panicked
	ClassCrash    Class = "death"    // MaxCrashes processes crashed with this record alone in flight. The value is stored
	ClassProducer Class = "producer" // the producer could not make it
)

// Quarantined is a record in quarantine, with the errors that led there.
type Quarantined struct {
	Job     string `json:"job"`
	Seq     uint64 `json:"seq"`
	Key     []byte `json:"key"`
	Payload []byte `json:"payload,omitempty"`
	Error   string `json:"error"`
	Class   Class  `json:"class"`
	// Attempts is how often it was tried.
	Attempts int `json:"attempts"`
	// History has each attempt that failed, with the value and the stack of a panic: the first one, and the latest up to [MaxAttempts]. Error
	// and Class are those of the latest.
	History []Attempt `json:"history,omitempty"`
	// State is Waiting until the record is marked; a worker that claims the job replays a record marked Replay, and
	// leaves Dropped ones alone.
	State     QuarantineState `json:"state"`
	FirstSeen time.Time       `json:"firstSeen"`
}

// QuarantineState is the state of a quarantined record.
type QuarantineState string

const (
	Waiting  QuarantineState = "waiting"
	Replay   QuarantineState = "replay"   // to be handed to the handler again
	Replayed QuarantineState = "replayed" // it was, with success
	Dropped  QuarantineState = "dropped"
)

// QuarantineStore is a sink whose quarantine can be read and replayed.
type QuarantineStore interface {
	// Quarantined returns the quarantined records of a job in the given states (none: all), in their order, up to limit (0: 1000).
	Quarantined(ctx context.Context, job string, limit int, states ...QuarantineState) ([]Quarantined, error)
	// MarkQuarantined sets the state of records that are Waiting or marked for Replay, to one of these or to Dropped. No seqs
	// means all of them. It returns how many it changed.
	MarkQuarantined(ctx context.Context, job string, to QuarantineState, seqs ...uint64) (int, error)
}

// ReplaySink is a Sink that can hand quarantined records to its handler again.
type ReplaySink interface {
	Sink
	QuarantineStore
	// CommitReplay calls the handler with the one record of the batch and marks it Replayed, in one transaction that has the
	// same fence as Commit and leaves the checkpoint as it is. A record that is refused again, or that the handler panics at, is
	// Waiting again, with the new reason; what is known of earlier attempts stays ([Quarantined.Refused]). ErrConflict if the record is not
	// marked for Replay.
	CommitReplay(ctx context.Context, l Lease, b *Batch) error
	// RefuseReplay has a record that is marked for Replay wait again, as Refused says, because an attempt failed outside of
	// CommitReplay: its process died, or the producer cannot make the record. A record that is not marked for Replay stays as it is.
	RefuseReplay(ctx context.Context, l Lease, seq uint64, a Attempt) error
}
