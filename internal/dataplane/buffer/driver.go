// Package buffer joins two vertices: blocks go in on one side, durably and counted once, and come out on the other until they are
// acknowledged.
//
// Drivers (jetstreambuffer, membuffer) store bytes. Partition, above them, does what every driver would repeat: fullness in messages,
// retries, identity, checksums and gaps, trimming, blocks larger than the broker's largest message.
package buffer

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Driver stores the blocks of one partition in a log. Sequences are dense and ascending. A log that lost its end uses sequences
// again; see number.go.
// All methods may be called concurrently, but Next by one caller at a time.
type Driver interface {
	// Submit begins to store data under id and returns without waiting. Blocks are stored in the order of calls, unless one fails.
	// The result says what became of it. data is the caller's again then. Submit does not retry. after is stored with it: see Entry.After.
	Submit(ctx context.Context, id string, data []byte, after uint64) Receipt

	// SetBase makes what is submitted from now on carry base: see Entry.Base.
	SetBase(base uint64)

	// Resume puts the driver's cursor behind seq: Next gives what is stored after it.
	Resume(ctx context.Context, after uint64) error
	// Next waits for the next stored entry. Sequences ascend. A jump says that the cursor did not meet what lies between, and not that the log has
	// lost it: Find knows. The error is ErrLostEnd when the log ends before what Next gave earlier.
	Next(ctx context.Context) (Entry, error)
	// Find reads entries from lo to hi, both included, from the log itself and from every replica of it, and returns those that good accepts, ascending.
	// What is missing from the result is nowhere. The error says that not everybody could be asked, and that it is worth trying again.
	Find(ctx context.Context, lo, hi uint64, good func(Entry) bool) ([]Entry, error)

	// Bounds returns the first and last sequence stored (first = last+1 when empty).
	Bounds(ctx context.Context) (Bounds, error)
	// Scan visits the entries from seq up to the last one stored when it began, in order, as the cursor meets them. Data is only valid during the visit.
	// The error is ErrStalled when the cursor gives no more, and has not reached that last one: Find knows what is there.
	Scan(ctx context.Context, seq uint64, visit func(Entry) error) error
	// Trim removes all before seq.
	Trim(ctx context.Context, seq uint64) error

	// SaveState keeps a small value beside the log, durably; LoadState returns the last one, or nil.
	SaveState(ctx context.Context, state []byte) error
	LoadState(ctx context.Context) ([]byte, error)
	// SaveDamage keeps what is known to be damaged, or nothing for nil, durably; LoadDamage returns it.
	SaveDamage(ctx context.Context, damage []byte) error
	LoadDamage(ctx context.Context) ([]byte, error)

	// Incarnation tells one log from another that was made later under the same name.
	Incarnation() string
	// MaxEntry is the largest data that Submit takes, in bytes.
	MaxEntry() int
	// Close lets go of the log, which stays as it is.
	Close() error
}

// Volatile is implemented by drivers whose log may be in the memory of a store, and is lost when that restarts. The saved state is not.
type Volatile interface {
	// Volatile reports whether the log is in memory.
	Volatile() bool
	// SavePending keeps durably how many messages are stored and not done, for a later start to say what was lost.
	SavePending(ctx context.Context, messages int) error
}

// A Receipt is what became of a Submit.
type Receipt interface {
	// Wait returns nil once the data is durable. seq is where it was stored. duplicate says that it had been stored before under the same id.
	// Errors: ErrFull, ErrTooLarge, ErrMissing, or another that may go away.
	Wait(ctx context.Context) (seq uint64, duplicate bool, err error)
}

// Entry is one stored piece of data.
type Entry struct {
	Seq    uint64
	Data   []byte
	Stored time.Time
	// Base is what the writer added to the sequences of its process, 0 if it did not say; see number.go.
	Base uint64
	// After is the highest sequence that the writer knew to be stored when it submitted the entry, 0 if it did not say. Invariant: After < Seq, unless the
	// store lost its end in between; see lostend.go.
	After uint64
}

// Bounds are sequences; see Driver.
type Bounds struct{ First, Last uint64 }

// Errors that callers match with errors.Is.
var (
	// ErrFull means that the store holds as much as it may.
	ErrFull = errors.New("buffer is full")
	// ErrTooLarge means that the broker does not take data of that size.
	ErrTooLarge = errors.New("larger than the broker's max_payload")
	// ErrMissing means that the stream, which was there before, is gone. It is never made anew by itself: that would hide a loss.
	ErrMissing = errors.New("stream is missing")
	// ErrGap means that entries which were stored are not there any more.
	ErrGap = errors.New("stored blocks are missing")
	// ErrLostEnd means that the log ends before entries that were read from it.
	ErrLostEnd = fmt.Errorf("%w: the store lost its end, or was restored from an older copy", ErrGap)
	// ErrStalled means that a cursor gives no more although the log says that there is more.
	ErrStalled = errors.New("no entry came")
	// ErrClosed means that the partition was closed.
	ErrClosed = errors.New("buffer is closed")
)
