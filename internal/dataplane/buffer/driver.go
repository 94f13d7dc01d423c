// Package buffer joins two vertices: blocks go in on one side, durably and counted once, and come out on the other until they are
// acknowledged.
//
// A partition has two ends. A Writer adds blocks; it may live in any process, and any number of them write at once. A Reader hands blocks over and owns all that
// is saved and removed; there is one, in one process. Partition is both ends in one process. What they know of each other goes through the store: the reader
// saves how far it is, and a writer elsewhere follows the log and that saved state, so that it sees room and is woken without a message between the two.
//
// Drivers (jetstreambuffer, redisbuffer, membuffer) store bytes. They are seen through interfaces by role, so that what a Writer is given cannot move, save or remove what is
// the reader's. What every driver would repeat is here: fullness in messages, retries, identity, checksums and gaps, trimming, blocks larger than the
// broker's largest message.
//
// # Files
//
// One folder, because Writer and Reader share the formats and what they know of each other. writer.go and usage.go (how full it is), reader.go with assembler.go (pieces), gap.go (what a cursor does not give), progress.go (what is done of a
// block) and retention.go (saving and removing), recovery.go (where a reader begins), lostend.go and number.go (stores that lose their end), state.go and
// chunk.go (formats).
package buffer

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// The roles of a driver. Sequences are dense and ascending. A log that lost its end uses sequences again; see number.go.
// All methods may be called concurrently, but Next by one caller at a time.

// Appender adds entries to a log.
type Appender interface {
	// Submit begins to store a record and returns without waiting. Records are stored in the order of calls, unless one fails.
	// The receipt says what became of it. r.Data is the caller's again then. Submit does not retry.
	Submit(ctx context.Context, r Record) Receipt
	// MaxEntry is the largest data that Submit takes, in bytes.
	MaxEntry() int
}

// Ends says how far a log reaches.
type Ends interface {
	// Bounds returns the first and last sequence stored (first = last+1 when empty).
	Bounds(ctx context.Context) (Bounds, error)
}

// Log is what is stored. Looking at it changes nothing.
type Log interface {
	Ends
	// Scan visits the entries from seq up to the last one stored when it began, in order, as the cursor meets them. Data is only valid during the visit.
	// The error is ErrStalled when the cursor gives no more, and has not reached that last one: Find knows what is there.
	Scan(ctx context.Context, seq uint64, visit func(Entry) error) error
	// Find reads entries from lo to hi, both included, from the log itself and from every replica of it, and returns those that good accepts, ascending.
	// What is missing from the result is nowhere. The error says that not everybody could be asked, and that it is worth trying again.
	Find(ctx context.Context, lo, hi uint64, good func(Entry) bool) ([]Entry, error)
	// Incarnation tells one log from another that was made later under the same name.
	Incarnation() string
}

// Cursor is the place of the reader in a log. There is one for each partition.
type Cursor interface {
	// Resume puts the cursor behind seq: Next gives what is stored after it. It takes the place over from an earlier reader.
	Resume(ctx context.Context, after uint64) error
	// Next waits for the next stored entry. Sequences ascend. A jump says that the cursor did not meet what lies between, and not that the log has
	// lost it: Find knows. The error is ErrLostEnd when the log ends before what Next gave earlier.
	Next(ctx context.Context) (Entry, error)
	// Reset replaces the cursor by one behind the last entry that Next gave. The reader calls it when entries are stored that Next does not give: a cursor can be lost with the
	// server that had it, and nothing on this connection shows it. Next is not being called meanwhile.
	Reset()
}

// Retention removes what nobody needs.
type Retention interface {
	// Trim removes all before seq.
	Trim(ctx context.Context, seq uint64) error
}

// StateStore keeps small values beside the log, durably. Only the reader saves.
type StateStore interface {
	// SaveState replaces the state of the reader; LoadState returns the last one, or nil.
	SaveState(ctx context.Context, state []byte) error
	LoadState(ctx context.Context) ([]byte, error)
	// SaveDamage keeps what is known to be damaged, or nothing for nil; LoadDamage returns it.
	SaveDamage(ctx context.Context, damage []byte) error
	LoadDamage(ctx context.Context) ([]byte, error)
}

// Usage is how a process that does not read a partition learns how full it is.
type Usage interface {
	Ends
	// LoadState returns what the reader saved last, or nil.
	LoadState(ctx context.Context) ([]byte, error)
	// WatchState calls changed with the saved state, and again whenever the reader saves another one, until ctx ends. The state is only valid during the call.
	// States may be left out when others follow soon. The error says why it ended before ctx did.
	WatchState(ctx context.Context, changed func(state []byte)) error
	// Follow calls stored for each entry after seq, in order, and then for each that is added by anybody, until ctx ends. It touches no cursor.
	// The error says why it ended before ctx did.
	Follow(ctx context.Context, seq uint64, stored func(seq uint64, messages int)) error
}

// WriterDriver is what a Writer needs. Nothing of it changes what is the reader's.
type WriterDriver interface {
	Appender
	Usage
	// Close lets go of the log, which stays as it is.
	Close() error
}

// ReaderDriver is what a Reader needs.
type ReaderDriver interface {
	Log
	Cursor
	Retention
	StateStore
	// Close lets go of the log, which stays as it is.
	Close() error
}

// Driver has all roles, for a process that has both ends of a partition.
type Driver interface {
	WriterDriver
	ReaderDriver
}

// Sharded is implemented by drivers whose partitions can be divided into shards, each of which one process at a time reads. Their number is fixed when the log is created. Without it,
// and with one shard, the whole partition is what a reader reads.
//
// The sequences of a shard are those of the log: a Cursor of a shard and Scan give every entry, the entries of other shards as Foreign, so that what is missing shows.
type Sharded interface {
	// Shards is their number.
	Shards() int
	// Shard returns the log as the reader of one shard sees it, with a cursor and a saved state of its own. It implements Siblings, and StateRegister if the driver does. Its Close does not
	// close the driver.
	Shard(n int) Driver
}

// ShardedUsage is the part of Sharded for writers.
type ShardedUsage interface {
	Shards() int
	// UsageOf is the Usage of one shard: Follow gives its entries alone, and the state is that of its reader.
	UsageOf(shard int) Usage
}

// Siblings is implemented by the drivers of shards: entries are removed once no shard needs them.
type Siblings interface {
	// Needs are what the readers of all shards of the partition have saved, by shard. They may be older than what is saved. ok is false as long as they are not known.
	Needs() (needs []Need, ok bool)
}

// ShardsOf is the number of shards of the partition that a driver is of.
func ShardsOf(driver any) int {
	if s, ok := driver.(interface{ Shards() int }); ok {
		return max(1, s.Shards())
	}
	return 1
}

// Volatile is implemented by drivers whose log may be in the memory of a store, and is lost when that restarts. The saved state is not.
type Volatile interface {
	// Volatile reports whether the log is in memory.
	Volatile() bool
	// SavePending keeps durably how many messages are stored and not done, for a later start to say what was lost.
	SavePending(ctx context.Context, messages int) error
}

// Record is what a Writer adds to a log.
type Record struct {
	// ID tells the record from others: while the store remembers it, another with the same id is a duplicate.
	ID   string
	Data []byte
	// Messages is how many messages the entry counts as. Follow gives it back.
	Messages int
	// Shard is the shard that the entry is for.
	Shard int
	// Base and After are stored with it: see Entry.
	Base, After uint64
}

// A Receipt is what became of a Submit.
type Receipt interface {
	// Wait returns nil once the data is durable. seq is where it was stored. duplicate says that it had been stored before under the same id; seq is where, or 0
	// if the store does not say.
	// Errors: ErrFull, ErrTooLarge, ErrMissing, or another that may go away.
	Wait(ctx context.Context) (seq uint64, duplicate bool, err error)
}

// Entry is one stored piece of data.
type Entry struct {
	Seq uint64
	// Foreign says that the entry is one of another shard: it has neither Data nor Stored.
	Foreign bool
	Data    []byte
	Stored  time.Time
	// Base is what the writer added to the sequences of its process, 0 if it did not say; see number.go.
	Base uint64
	// After is the highest sequence that the writer knew to be stored when it submitted the entry, 0 if it did not say. Invariant: After < Seq, unless the
	// store lost its end in between; see lostend.go.
	After uint64
}

// Bounds are sequences; see Ends.
type Bounds struct{ First, Last uint64 }

// Errors that callers match with errors.Is.
var (
	// ErrFull means that the store holds as much as it may.
	ErrFull = errors.New("buffer is full")
	// ErrTooLarge means that the broker does not take data of that size.
	ErrTooLarge = errors.New("larger than the broker's max_payload")
	// ErrMissing means that the stream, which was there before, is gone. It is never recreated by itself: that would hide a loss.
	ErrMissing = errors.New("stream is missing")
	// ErrNotCreated means that a log does not exist yet: the process that reads it creates it.
	ErrNotCreated = errors.New("the stream does not exist yet")
	// ErrGap means that entries which were stored are not there any more.
	ErrGap = errors.New("stored blocks are missing")
	// ErrLostEnd means that the log ends before entries that were read from it.
	ErrLostEnd = fmt.Errorf("%w: the store lost its end, or was restored from an older copy", ErrGap)
	// ErrStalled means that a cursor gives no more although the log says that there is more.
	ErrStalled = errors.New("no entry came")
	// ErrClosed means that the partition was closed.
	ErrClosed = errors.New("buffer is closed")
)
