package buffer

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/levada-io/levada/internal/dataplane/identity"
	"github.com/levada-io/levada/internal/flow"
)

// Partition is one partition of a vertex's input: written by any number of lanes, read by one loop.
// Its writing side may be used concurrently; its reading side by one goroutine, and Done by any.
type Partition struct {
	opt    Options
	driver Driver

	pending    atomic.Int64          // messages stored or being stored, and not done
	gone       atomic.Bool           // the log is missing
	refused    atomic.Pointer[error] // why the last attempt to write was refused, if for want of room
	writing    atomic.Int64          // writes that are not settled
	duplicates atomic.Int64          // messages dropped because they were known
	reserved   atomic.Int64          // messages that are about to be written by those who do not wait for room
	// opened is the last sequence that was stored when the partition was opened, stored the number of entries that this process has seen being stored since.
	// Invariant: opened + stored is at most the last sequence stored. It is less while an entry is stored whose acknowledgement was lost.
	opened, stored atomic.Uint64
	// known is the highest sequence that this process knows to be stored, or to have been. It never falls.
	known atomic.Uint64

	mu     sync.Mutex
	room   chan struct{} // closed and replaced when pending falls
	prev   map[string]uint64
	held   map[uint64]*held // entries between Next and done
	read   uint64           // the last sequence that Next gave
	floor  uint64           // all up to here are done
	failed error            // what stops the reading side for good
	lost   error            // not nil once the store is known to have lost its end, see lostend.go; then failed is not nil either
	given  sequences        // what the store gave to this process's entries
	// shortSince is since when the store says that it ends before known, cursorSince since when the cursor says that it ends before what was read.
	shortSince, cursorSince time.Time
	unsaved                 time.Time // since when saving the state fails; zero while it succeeds
	lostBase                uint64    // entries whose raised base is not above this were known when the partition was opened
	// Bases, see number.go: readBase is that of the last entry read, floorBase of the last one done, writeBase of what this process writes.
	// Invariant: floorBase <= readBase, and readBase <= writeBase unless another process has added a block.
	readBase, floorBase, writeBase uint64
	top                            uint64 // no entry stored when the partition was opened, or lost before, has a higher number
	// lostEnd is what was missing at the end of the store when it was opened, and given up
	lostEnd flow.Span

	seen      *identity.Seen // as of read
	forgotten *identity.Seen // as of floor: what a saved state holds
	byID      bool
	chunks    map[string]*chunked
	// earlier is what an earlier reader has done of blocks that have not been read again; progressed says that there is more than was saved.
	earlier    map[uint64]progress
	progressed bool

	moved chan struct{} // closed when the floor moves; nil while nobody waits

	doneBytes int           // of entries done since the last trim began
	trimNow   chan struct{} // asks Run to trim

	// Of the reading side alone: entries that came before those that must come first. Ascending.
	ahead []Entry
	// The reader waits for the cursor since waitingSince, and waiting ends that. waited is how long earlier calls waited in vain since the last entry.
	waiting      context.CancelCauseFunc
	waitingSince time.Time
	waited       time.Duration
	inFlight     int           // deliveries between Read and Done
	landed       chan struct{} // has room for 1: inFlight fell

	saving    sync.Mutex // held while a state is saved or the log trimmed
	saved     uint64     // the floor of the last saved state
	savedLast uint64     // the last sequence stored, of the last saved state
	trimmed   uint64
	trimMark  []trimMark
}

// Open takes up a partition where its last reader left it: what was in hand then comes again, what was finished is known.
func Open(ctx context.Context, driver Driver, opt Options) (*Partition, error) {
	opt = opt.withDefaults()
	p := &Partition{
		opt: opt, driver: driver, room: make(chan struct{}), prev: map[string]uint64{},
		held: map[uint64]*held{}, trimNow: make(chan struct{}, 1), landed: make(chan struct{}, 1), chunks: map[string]*chunked{},
		seen:      identity.New(opt.IDWindow, opt.MaxIDs),
		forgotten: identity.New(opt.IDWindow, opt.MaxIDs),
	}
	if err := p.recover(ctx); err != nil {
		return nil, fmt.Errorf("buffer %s: %w", opt.Name, err)
	}
	return p, nil
}

// Pending is the number of messages that are stored or being stored and not done.
func (p *Partition) Pending() int { return int(p.pending.Load()) }

// Limit is the number of pending messages above which writers wait.
func (p *Partition) Limit() int { return max(1, p.opt.MaxLength*p.opt.UsageLimit/100) }

// MaxLength is the nominal length, in messages.
func (p *Partition) MaxLength() int { return p.opt.MaxLength }

// Incarnation changes when the log is made anew and sequences begin again at 1.
func (p *Partition) Incarnation() string { return p.driver.Incarnation() }

// Name is the name of the partition.
func (p *Partition) Name() string { return p.opt.Name }

// Close saves how far the reader came, so that the next one need not look, and closes the driver.
func (p *Partition) Close(ctx context.Context) error {
	err := p.save(ctx, false)
	for errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil {
		err = p.save(ctx, false) // the request went with a broker that was killed
	}
	if errors.Is(err, ErrMissing) {
		p.gone.Store(true)
		if p.InMemory() { // the number of messages that are lost with it is known exactly now
			err = errors.Join(err, p.savePending(ctx))
		}
	}
	if errors.Is(err, errDoubt) {
		p.opt.Logger.Warn("store may have lost its end, the next start finds out", "buffer", p.opt.Name, "error", err)
		err = nil
	}
	if err == nil {
		// What is done takes room until the next run, and no more than that.
		short, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		if err := p.Trim(short); err != nil {
			p.opt.Logger.Warn("trim failed at the end, the next run removes what is done", "buffer", p.opt.Name, "error", err)
		}
	}
	return errors.Join(err, p.driver.Close())
}
