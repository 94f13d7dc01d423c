package stream

import (
	"errors"
	"fmt"
)

// What can be wrong with a job, a position or a record. Errors of this package wrap one of these, so that callers can
// tell them apart with errors.Is; their text holds the values, and what to do.
var (
	// ErrFenced: the job has another owner by now, or it was cancelled or paused. The operation had no effect.
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
	// ErrBadToken: this producer did not issue the position.
	ErrBadToken = errors.New("unknown position")
	// ErrQueryChanged: the position belongs to another query, order or schema.
	ErrQueryChanged = errors.New("the query is not the one that the position belongs to")
	// ErrGeneration: the position belongs to another generation of the source, for example before a restore from a backup.
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
