package stream

import (
	"errors"
	"fmt"
)

// What can be wrong with a job, a position or a record. Errors of this package wrap one of these, so that callers can
// tell them apart with errors.Is; their text holds the values, and what to do.
var (
	// ErrFenced: somebody else owns the job by now, or it was cancelled or paused. What was being done is void.
	ErrFenced = errors.New("the job has a newer owner or was stopped")
	// ErrNotFound: there is no such job.
	ErrNotFound = errors.New("no such job")
	// ErrExists: another job has the ID or the DedupeKey, one for other records.
	ErrExists = errors.New("another job exists")
	// ErrState: the job is in a state in which this cannot be done.
	ErrState = errors.New("not possible in the job's state")
	// ErrConflict: the stored checkpoint is not the one that the commit goes on from.
	ErrConflict = errors.New("the stored checkpoint is another")
	// ErrNewer: the job or its checkpoint was written by a newer version of this package.
	ErrNewer = errors.New("written by a newer version")
	// ErrOlder: the store's tables are missing, or older than this version of the package needs, and must not be changed.
	ErrOlder = errors.New("tables to be migrated")
	// ErrLocked: another worker has this SQLite file.
	ErrLocked = errors.New("in use by another worker")

	// ErrUnknownStream: the producer has no stream of that name.
	ErrUnknownStream = errors.New("unknown stream")
	// ErrBadToken: the position is none that this producer gave out.
	ErrBadToken = errors.New("unknown position")
	// ErrQueryChanged: the position belongs to another query, order or schema.
	ErrQueryChanged = errors.New("the query is not the one that the position belongs to")
	// ErrGeneration: the position belongs to another life of the source, for example before a restore from a backup.
	ErrGeneration = errors.New("the source is not the one that the position belongs to")
	// ErrGone: the source does not hold the records after the position any more.
	ErrGone = errors.New("the position is gone from the source")
	// ErrOrder: the source returned a key that is not greater than the one before.
	ErrOrder = errors.New("the source's keys do not grow")
	// ErrTooLarge: a record is larger than the limit.
	ErrTooLarge = errors.New("record too large")
	// ErrCorrupt: a frame contradicts itself or the frames before it.
	ErrCorrupt = errors.New("corrupt frame")
	// ErrIncomplete: the stream ended with another number of records, or others, than were committed.
	ErrIncomplete = errors.New("the records committed are not those of the stream")
	// ErrNoProgress: for too long no attempt came any further.
	ErrNoProgress = errors.New("no progress")
	// ErrTooManyBad: more records went into quarantine than the job allows.
	ErrTooManyBad = errors.New("too many bad records")
)

// PositionGoneError is what a Source returns from Open when it does not hold the records after the position any more.
// It is an ErrGone.
type PositionGoneError struct {
	Oldest []byte // the key of the oldest record still held; nil when there is none
}

func (e *PositionGoneError) Error() string {
	return fmt.Sprintf("%v: the oldest record still held has key %q", ErrGone, e.Oldest)
}

func (e *PositionGoneError) Unwrap() error { return ErrGone }

// A verdict is what a handler says of a record or a batch beyond "done".
type verdict int

const (
	verdictRetry verdict = iota // the default for errors that say nothing: a fault that passes must never become a skip
	verdictSkip
	verdictHalt
	verdictLater
)

type verdictError struct {
	verdict verdict
	err     error
}

func (e *verdictError) Error() string { return e.err.Error() }
func (e *verdictError) Unwrap() error { return e.err }

// Skip marks an error as the record's own fault: trying again would not help. The record goes into quarantine, or
// the job halts, as its policy says. From a handler that was given several records it means that one of them is bad:
// the batch is halved until it is found; [Batch.Skip] names it at once.
func Skip(err error) error { return marked(verdictSkip, err) }

// Later marks an error that depends on something else that may still come, such as a row of another stream that this one refers to. The
// records are tried again, with pauses, for WorkerConfig.DependencyWait; then the error is as if marked with Skip.
func Later(err error) error { return marked(verdictLater, err) }

// Retry marks an error as one that passes, however long it takes: the job waits and never fails for it. Errors without a mark are tried
// again too, and fail the job after WorkerConfig.NoProgress.
func Retry(err error) error { return marked(verdictRetry, err) }

// Halt marks an error that needs a person: the job fails, and nothing after the last commit is processed.
func Halt(err error) error { return marked(verdictHalt, err) }

func verdictOf(err error) verdict {
	if v, ok := errors.AsType[*verdictError](err); ok {
		return v.verdict
	}
	return verdictRetry
}

// MarkOf returns what an error is marked with: "skip", "later", "retry" or "halt", or "" if it has no mark. Sinks that know their
// database's errors mark only those that their handler has not.
func MarkOf(err error) string {
	v, ok := errors.AsType[*verdictError](err)
	if !ok {
		return ""
	}
	return map[verdict]string{verdictSkip: "skip", verdictRetry: "retry", verdictHalt: "halt", verdictLater: "later"}[v.verdict]
}

// marked leaves nil as it is, so that a handler may mark the result of a call without looking at it.
func marked(v verdict, err error) error {
	if err == nil {
		return nil
	}
	return &verdictError{v, err}
}
