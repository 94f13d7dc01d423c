package buffer

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cenkalti/backoff/v5"

	"github.com/levada-io/levada/internal/dataplane/identity"
	"github.com/levada-io/levada/internal/flow"
)

// Options say how a partition behaves. The zero value of a field is its default.
type Options struct {
	// Name is the name of the partition in logs, metrics and errors: {namespace}-{pipeline}-{vertex}-{partition}.
	Name string
	// MaxLength and UsageLimit are limits.bufferMaxLength (messages) and limits.bufferUsageLimit (percent): writers wait above
	// MaxLength*UsageLimit/100 messages that are not acknowledged. Defaults 30000 and 80.
	MaxLength  int
	UsageLimit int
	// Compression of the blocks written.
	Compression flow.Compression
	// IDWindow is how long ids of lanes without positions are remembered; MaxIDs bounds their number. Defaults 5 minutes and 1,000,000.
	IDWindow time.Duration
	MaxIDs   int
	// TrimEvery is how often what nobody needs is removed. Default 2 s.
	TrimEvery time.Duration
	// SaveEvery is how often the state is saved while blocks are being done. What was done since comes again after a crash. Default 200 ms.
	SaveEvery time.Duration
	// MaxInFlight bounds the blocks between Read and Done. Default 1024.
	MaxInFlight int
	// OnCorrupt is asked what to do when stored data is not what was written, or missing (seq is the first one concerned, data what is there).
	// nil result: go on without it. Otherwise Read returns the error, again and again.
	OnCorrupt func(seq uint64, data []byte, err error) error
	// Metrics are told what happens; nil for none.
	Metrics Metrics
	Logger  *slog.Logger
}

// Metrics are what a partition tells about itself. Calls are quick and concurrent.
type Metrics interface {
	Wrote(messages int, took time.Duration)
	WriteFailed(err error)
	Full()
	Acked(took time.Duration)
	Corrupt()
	Gap(blocks int)
	Duplicates(messages int)
}

func (o Options) withDefaults() Options {
	if o.MaxLength <= 0 {
		o.MaxLength = 30000
	}
	if o.UsageLimit <= 0 {
		o.UsageLimit = 80
	}
	if o.IDWindow <= 0 {
		o.IDWindow = 5 * time.Minute
	}
	if o.MaxIDs <= 0 {
		o.MaxIDs = 1_000_000
	}
	if o.TrimEvery <= 0 {
		o.TrimEvery = 2 * time.Second
	}
	if o.SaveEvery <= 0 {
		o.SaveEvery = 200 * time.Millisecond
	}
	if o.MaxInFlight <= 0 {
		o.MaxInFlight = 1024
	}
	if o.OnCorrupt == nil {
		o.OnCorrupt = func(_ uint64, _ []byte, err error) error { return err }
	}
	if o.Metrics == nil {
		o.Metrics = noMetrics{}
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return o
}

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

type held struct {
	messages int
	bytes    int
	header   *flow.Block
	last     uint64 // of the pieces of its block
	done     bool
	base     uint64
	stored   int64 // when the store took it, in nanoseconds
	// spans are the places of the block that are done, parts the number of messages done since it was read; see DonePart
	spans []flow.Span
	parts int
}

type trimMark struct {
	floor uint64
	at    time.Time
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

// recover takes up the saved state, and nothing else: a broker's acknowledgements can step over what its replica could not read. All after the saved floor comes
// again, and what was made of it is dropped downstream by its position.
func (p *Partition) recover(ctx context.Context) error {
	state, err := p.driver.LoadState(ctx)
	if err != nil {
		return fmt.Errorf("load state: %w", err)
	}
	if len(state) > 0 {
		s, err := unmarshalState(state)
		if err != nil {
			return err
		}
		p.saved, p.savedLast, p.earlier = s.floor, s.last, s.progress
		p.readBase, p.floorBase, p.top = s.base, s.base, s.top
		if err := errors.Join(p.seen.Unmarshal(s.seen), p.forgotten.Unmarshal(s.seen)); err != nil {
			return err
		}
	}
	bounds, err := p.driver.Bounds(ctx)
	if err != nil {
		return err
	}
	given := false // something was given up: that is saved, or it would be told again
	lost := loss{floor: p.saved, base: p.floorBase}
	if bounds.Last < p.savedLast {
		lost.add(bounds.Last+1, p.savedLast, fmt.Errorf("%w: blocks up to %d were stored, but the last one there is %d", ErrLostEnd, p.savedLast, bounds.Last))
		p.saved, p.savedLast = min(p.saved, bounds.Last), bounds.Last
	}
	if bounds.First > p.saved+1 {
		lo, hi := p.saved+1, bounds.First-1
		found, err := p.find(ctx, lo, min(hi, lo+findAtOnce-1))
		if err != nil {
			return err
		}
		if len(found) == 0 || found[0].Seq != lo {
			if err := p.damaged(ctx, lo, hi, nil, missing(lo, hi)); err != nil {
				return err
			}
			p.saved, given = hi, true
		}
	}
	if err := p.recall(ctx, &lost); err != nil {
		return err
	}
	p.floor = p.saved
	p.trimmed = bounds.First
	p.opened.Store(bounds.Last)
	p.known.Store(bounds.Last)
	// What is retained before the saved floor matters only for its ids; the positions are in the state.
	now, pieces, base := time.Now(), pieces{}, p.floorBase
	next, err := p.scan(ctx, bounds, func(e Entry) {
		base = max(base, entryBase(e))
		if lost.see(e) {
			// The floor is of the entries that were here before.
			p.floor = min(p.floor, e.Seq-1)
		}
		b, n, err := headOf(e.Data)
		data := e.Data
		switch {
		case err != nil: // Read meets it again and says so
			return
		case e.Seq > p.floor:
			p.pending.Add(int64(n - p.doneEarlier(e, n)))
			return
		case isChunk(e.Data):
			if b, data = pieces.whole(e.Data); b == nil {
				return // there is more of it
			}
		}
		if b.ByID {
			p.byID = true
			if full, err := flow.Decode(data); err == nil {
				p.seen.Admit(full, now)
			}
		}
	})
	if err != nil {
		return fmt.Errorf("scan: %w", err)
	}
	if g, err := p.judge(ctx, &lost); err != nil {
		return err
	} else if g {
		given = true
	}
	p.saved = min(p.saved, p.floor)
	p.top = max(p.top, base+bounds.Last)
	p.writeBase = newBase(bounds.Last, p.top, now)
	p.driver.SetBase(p.writeBase)
	// Nothing comes after the end that would show that something is missing there.
	next = max(next, p.floor+1)
	if next <= bounds.Last {
		if err := p.damaged(ctx, next, bounds.Last, nil, missing(next, bounds.Last)); err != nil {
			return err
		}
		p.lostEnd = flow.Span{Lo: next, Hi: bounds.Last}
	}
	p.read = p.floor
	p.passLostEnd()
	if p.floor > p.saved || given {
		if err := p.save(ctx, given); err != nil {
			return err
		}
	}
	return p.driver.Resume(ctx, p.floor)
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

// MaxEntry is the largest piece that the broker takes, in bytes. Larger blocks are stored in several.
func (p *Partition) MaxEntry() int { return p.driver.MaxEntry() }

// WaitForRoom waits until the partition takes more.
func (p *Partition) WaitForRoom(ctx context.Context) error {
	full := false
	for {
		p.mu.Lock()
		room := p.room
		p.mu.Unlock()
		if p.Pending() < p.Limit() {
			return nil
		}
		if !full {
			full = true
			p.opt.Metrics.Full()
		}
		select {
		case <-room:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// Reserve takes room for a message that is about to be written, if there is any. Unreserve gives it back: once it is written it counts as pending.
func (p *Partition) Reserve() bool {
	if p.pending.Load()+p.reserved.Add(1) > int64(p.Limit()) {
		p.reserved.Add(-1)
		return false
	}
	return true
}

// Unreserve gives back room for n messages.
func (p *Partition) Unreserve(n int) { p.reserved.Add(-int64(n)) }

// Write begins to store a block of which e holds the messages and h the rest. It does not wait for room: see WaitForRoom.
// Blocks of a lane must be written in the order of their positions; h.Prev is filled in here. Wait for the Write that is returned.
func (p *Partition) Write(ctx context.Context, h *flow.Block, e *flow.Encoder) (*Write, error) {
	p.mu.Lock()
	h.Prev = p.prev[h.Lane]
	p.prev[h.Lane] = h.Last()
	p.mu.Unlock()
	data, err := e.Finish(h, p.opt.Compression)
	if err != nil {
		return nil, err
	}
	w := &Write{p: p, messages: e.Count(), begun: time.Now()}
	id := blockID(h)
	if len(data) <= p.driver.MaxEntry() {
		w.single[0] = part{id: id, data: data, memory: e.Detach(takeBytes())}
		w.parts = w.single[:]
	} else {
		w.parts = split(id, h, e.Count(), data, p.driver.MaxEntry())
		if w.parts == nil {
			return nil, fmt.Errorf("buffer %s: a block of %d bytes: %w, which is %d", p.opt.Name, len(data), ErrTooLarge, p.driver.MaxEntry())
		}
	}
	p.writing.Add(1)
	p.pending.Add(int64(w.messages))
	for i := range w.parts {
		w.parts[i].known = p.known.Load()
		w.parts[i].receipt = p.driver.Submit(ctx, w.parts[i].id, w.parts[i].data, w.parts[i].known)
	}
	return w, nil
}

// maxBlockID is the length from which an id is replaced by its hash.
const maxBlockID = 256

// blockID is the identity of a block for the broker. It holds both ends: a writer that groups its input anew after a crash makes another block,
// and the broker must not take it for the old one.
func blockID(h *flow.Block) string {
	b := make([]byte, 0, len(h.Lane)+32)
	b = append(b, h.Lane...)
	b = append(b, '/')
	b = strconv.AppendUint(b, h.Lo, 36)
	b = append(b, '-')
	b = strconv.AppendUint(b, h.Hi, 36)
	for _, c := range h.Cover {
		b = append(b, '~')
		b = strconv.AppendUint(b, c.Lo-h.Lo, 36)
		b = append(b, '-')
		b = strconv.AppendUint(b, c.Hi-c.Lo, 36)
	}
	if len(b) > maxBlockID {
		sum := sha256.Sum256(b)
		b = append(b[:len(h.Lane)+1], hex.EncodeToString(sum[:])...)
	}
	return string(b)
}

// Write is a block on its way into the partition.
type Write struct {
	p        *Partition
	parts    []part
	single   [1]part // of most
	messages int
	begun    time.Time
}

type part struct {
	id      string
	data    []byte
	memory  []byte // what data lies in, to be used again
	receipt Receipt
	known   uint64 // the highest sequence that was known to be stored when it was submitted
}

// Wait returns once the block is durable. It tries again with the same id for as long as ctx lives, whatever the broker does,
// but for errors that will not go away: ErrTooLarge and ErrMissing.
func (w *Write) Wait(ctx context.Context) error {
	defer w.p.writing.Add(-1)
	duplicate := true
	for i := range w.parts {
		dup, err := w.p.settle(ctx, &w.parts[i])
		if err != nil {
			if errors.Is(err, ErrTooLarge) || errors.Is(err, ErrMissing) {
				w.p.free(w.messages) // it will never be there
			}
			w.p.gone.Store(w.p.gone.Load() || errors.Is(err, ErrMissing))
			return fmt.Errorf("buffer %s: %w", w.p.opt.Name, err)
		}
		duplicate = duplicate && dup
	}
	if duplicate {
		w.p.free(w.messages) // it was counted when it was stored
	}
	w.p.opt.Metrics.Wrote(w.messages, time.Since(w.begun))
	return nil
}

// blockBytes is memory for encoded blocks, to be used again once they are stored.
var blockBytes = sync.Pool{New: func() any { return new([]byte) }}

func takeBytes() []byte { return (*blockBytes.Get().(*[]byte))[:0] }

func (p *Partition) settle(ctx context.Context, w *part) (duplicate bool, err error) {
	var wait *backoff.ExponentialBackOff
	for again := false; ; again = true {
		var seq uint64
		seq, duplicate, err = w.receipt.Wait(ctx)
		switch {
		case err == nil:
			p.refused.Store(nil)
			if !duplicate {
				if err := p.acknowledged(ctx, seq, w.known); err != nil {
					return false, err
				}
				p.stored.Add(1)
			}
			p.know(seq)
			if err := p.lostItsEnd(); err != nil {
				return false, err // what is stored now is read by the next run
			}
			if !again && w.memory != nil {
				// After a second attempt the first one may still be under way with this memory.
				blockBytes.Put(&w.memory)
			}
			return duplicate && !again, nil // the second time it may be our own first attempt
		case errors.Is(err, ErrTooLarge), errors.Is(err, ErrMissing), errors.Is(err, ErrClosed):
			return false, err
		case ctx.Err() != nil:
			return false, context.Cause(ctx)
		}
		if errors.Is(err, ErrFull) {
			p.refused.Store(&err)
		}
		p.opt.Metrics.WriteFailed(err)
		p.opt.Logger.Debug("write is tried again", "buffer", p.opt.Name, "block", w.id, "error", err)
		if wait == nil {
			wait = retryDelay()
		}
		if !sleep(ctx, wait.NextBackOff()) {
			return false, context.Cause(ctx)
		}
		w.known = p.known.Load()
		w.receipt = p.driver.Submit(ctx, w.id, w.data, w.known)
	}
}

func retryDelay() *backoff.ExponentialBackOff {
	return &backoff.ExponentialBackOff{InitialInterval: 20 * time.Millisecond, RandomizationFactor: 0.3, Multiplier: 2, MaxInterval: 2 * time.Second}
}

func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d + time.Duration(rand.Int64N(int64(time.Millisecond))))
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// free takes messages off the pending count and wakes writers that wait for room.
func (p *Partition) free(messages int) {
	if messages == 0 {
		return
	}
	before := p.pending.Add(-int64(messages)) + int64(messages)
	if before >= int64(p.Limit()) {
		p.mu.Lock()
		close(p.room)
		p.room = make(chan struct{})
		p.mu.Unlock()
	}
}

// Delivery is a block in the hands of the reader, until Done.
type Delivery struct {
	// Seq is the sequence of the block in the store. One that lost its end gives it to another block.
	Seq uint64
	// Number is the position of the block in the lane of its reader: ascending, the same whenever the block is delivered, and never that of another block.
	Number uint64
	Block  *flow.Block
	seqs   []uint64
}

// Place is the index that the i-th message of the block had when it was stored.
func (d *Delivery) Place(i int) int {
	if d.Block.Places == nil {
		return i
	}
	return int(d.Block.Places[i])
}

// Read waits for the next block that holds something new. It returns context.Cause(ctx) when ctx ends, and an error
// that does not go away when blocks are missing or corrupt and Options.OnCorrupt said to stop.
func (p *Partition) Read(ctx context.Context) (*Delivery, error) {
	var wait *backoff.ExponentialBackOff
	var tell time.Time
	for {
		p.mu.Lock()
		failed := p.failed
		p.mu.Unlock()
		if failed != nil {
			return nil, failed
		}
		if err := p.awaitTurn(ctx); err != nil {
			return nil, err
		}
		e, err := p.next(ctx)
		switch {
		case err == nil:
			wait = nil
			p.mu.Lock()
			p.cursorSince = time.Time{}
			p.mu.Unlock()
			err = p.replaced(ctx, e)
		}
		switch {
		case err == nil:
		case ctx.Err() != nil:
			return nil, context.Cause(ctx)
		case errors.Is(err, ErrMissing), errors.Is(err, ErrClosed):
			p.gone.Store(p.gone.Load() || errors.Is(err, ErrMissing))
			return nil, fmt.Errorf("buffer %s: %w", p.opt.Name, err)
		case errors.Is(err, ErrLostEnd):
			if p.suspectEnd(ctx, err) != nil {
				continue
			}
			if !sleep(ctx, time.Second) {
				return nil, context.Cause(ctx)
			}
			continue
		case errors.Is(err, ErrGap):
			p.fail(err)
			continue
		default:
			if wait == nil {
				wait, tell = retryDelay(), time.Now().Add(3*time.Second)
			}
			if time.Now().After(tell) {
				tell = time.Now().Add(insistEvery)
				p.opt.Logger.Warn("broker does not answer, retrying", "buffer", p.opt.Name, "operation", "read", "error", err)
			}
			if !sleep(ctx, wait.NextBackOff()) {
				return nil, context.Cause(ctx)
			}
			continue
		}
		d, err := p.accept(ctx, e)
		if err != nil {
			if cause := context.Cause(ctx); cause != nil && errors.Is(err, cause) {
				// It was not decided: the entry comes again.
				p.ahead = append([]Entry{e}, p.ahead...)
				return nil, context.Cause(ctx)
			}
			p.fail(err)
			continue
		}
		if d != nil {
			return d, nil
		}
	}
}

// awaitTurn waits while as many blocks are in flight as may be.
func (p *Partition) awaitTurn(ctx context.Context) error {
	for {
		p.mu.Lock()
		full := p.inFlight >= p.opt.MaxInFlight
		p.mu.Unlock()
		if !full {
			return nil
		}
		select {
		case <-p.landed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// fail stops the reading side for good.
func (p *Partition) fail(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.failed = fmt.Errorf("buffer %s: %w", p.opt.Name, err)
}

// accept takes the next entry: it returns a block to hand over, or nil.
func (p *Partition) accept(ctx context.Context, e Entry) (*Delivery, error) {
	block, seqs, err := p.assemble(e)
	if err != nil {
		// Another replica may have it as it was written.
		found, failed := p.find(ctx, e.Seq, e.Seq)
		if failed != nil {
			return nil, failed
		}
		if len(found) > 0 {
			e = found[0]
			block, seqs, err = p.assemble(e)
		}
	}
	if err != nil {
		p.opt.Metrics.Corrupt()
		if err := p.damaged(ctx, e.Seq, e.Seq, e.Data, fmt.Errorf("block %d: %w", e.Seq, err)); err != nil {
			return nil, err
		}
	}
	p.mu.Lock()
	p.read = e.Seq
	p.readBase = p.baseOf(e)
	p.mu.Unlock()
	p.know(e.Seq)
	switch {
	case err != nil:
		p.skip(ctx, e.Seq, e.Seq+1)
		return nil, nil
	case block == nil:
		return nil, nil
	}
	return p.admit(ctx, block, seqs)
}

// skip gives up entries that cannot be had.
func (p *Partition) skip(ctx context.Context, from, to uint64) {
	p.mu.Lock()
	for seq := from; seq < to; seq++ {
		p.held[seq] = &held{}
	}
	p.mu.Unlock()
	for seq := from; seq < to; seq++ {
		p.finish(ctx, seq)
	}
}

func (p *Partition) admit(ctx context.Context, b *flow.Block, seqs []uint64) (*Delivery, error) {
	header := *b
	header.Messages = nil
	seq := seqs[len(seqs)-1]
	p.mu.Lock()
	p.held[seq].header = &header
	number := p.held[seq].base + seq
	p.tie(seqs)
	p.byID = p.byID || b.ByID
	lost := p.seen.Admit(b, time.Now())
	stale := p.staleChunks(b)
	freed := p.takeUp(b, seqs)
	p.inFlight++
	p.mu.Unlock()
	p.free(freed)
	for _, s := range stale {
		p.finish(ctx, s)
	}
	if b.Duplicated > 0 {
		p.duplicates.Add(int64(b.Duplicated))
		p.opt.Metrics.Duplicates(b.Duplicated)
	}
	if len(lost) > 0 {
		p.opt.Metrics.Gap(len(lost))
		err := fmt.Errorf("%w: lane %s wrote blocks up to positions %v, and they never came", ErrGap, b.Lane, lost)
		if err := p.opt.OnCorrupt(seq, nil, err); err != nil {
			return nil, err
		}
	}
	d := &Delivery{Seq: seq, Number: number, Block: b, seqs: seqs}
	if len(b.Messages) == 0 {
		p.Done(ctx, d)
		return nil, nil
	}
	return d, nil
}

// Done says that everything made of the block is durable elsewhere. Call it once. The block comes again only after a crash, if its floor was not saved yet.
func (p *Partition) Done(ctx context.Context, d *Delivery) {
	begun := time.Now()
	for _, s := range d.seqs {
		p.finish(ctx, s)
	}
	p.mu.Lock()
	p.inFlight--
	p.mu.Unlock()
	select {
	case p.landed <- struct{}{}:
	default:
	}
	p.opt.Metrics.Acked(time.Since(begun))
}

func (p *Partition) finish(ctx context.Context, seq uint64) {
	p.mu.Lock()
	h := p.held[seq]
	if h == nil || h.done {
		p.mu.Unlock()
		return
	}
	h.done, p.progressed = true, true
	if p.doneBytes += h.bytes; p.doneBytes >= trimBytes {
		p.doneBytes = 0
		select {
		case p.trimNow <- struct{}{}:
		default:
		}
	}
	was := p.floor
	p.advance()
	p.tellMoved(was)
	p.mu.Unlock()
	p.free(h.messages)
}

// advance moves the floor over what is done. A block in pieces is passed as a whole: the floor is where a reader resumes, and with some of its pieces
// the rest would never become a block again. mu is held.
func (p *Partition) advance() {
	for {
		p.passLostEnd()
		end, need := p.floor, p.floor+1
		for end < need {
			next := p.held[end+1]
			if next == nil || !next.done {
				return
			}
			end++
			need = max(need, next.last)
		}
		for p.floor < end {
			p.floor++
			h := p.held[p.floor]
			p.floorBase = max(p.floorBase, h.base)
			delete(p.held, p.floor)
			if h.header != nil && !h.header.ByID {
				p.forgotten.Admit(h.header, time.Time{})
			}
		}
	}
}

// passLostEnd takes the floor over what was missing at the end of the store when it was opened, once all before it is done. mu is held.
func (p *Partition) passLostEnd() {
	if p.lostEnd.Lo != 0 && p.floor+1 == p.lostEnd.Lo {
		p.floor = p.lostEnd.Hi
		p.read = max(p.read, p.floor)
	}
}

// trimBytes is how much may be done before it is removed, whatever the time: a broker keeps in memory what was written lately.
const trimBytes = 8 << 20

// Floor is the sequence up to which every block is done.
func (p *Partition) Floor() uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.floor
}

// Run keeps the partition in order until ctx ends: it saves how far the reader is, removes what nobody needs any more, and watches the cursor.
func (p *Partition) Run(ctx context.Context) error {
	save := time.NewTicker(p.opt.SaveEvery)
	defer save.Stop()
	trim := time.NewTicker(p.opt.TrimEvery)
	defer trim.Stop()
	var tell time.Time
	said := func(what string, err error) {
		if err != nil && ctx.Err() == nil && time.Now().After(tell) {
			tell = time.Now().Add(insistEvery)
			p.opt.Logger.Warn(what+" failed, retrying", "buffer", p.opt.Name, "error", err)
		}
	}
	tidy := func() {
		p.recount(ctx)
		said("trim", p.Trim(ctx))
		p.checkLate(ctx)
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-p.trimNow:
			tidy()
		case <-save.C:
			said("save of the state", p.saveFloor(ctx))
		case <-trim.C:
			tidy()
		}
	}
}

// recount mends the pending count when it must be 0. It can be too high: when a write is tried again, a duplicate may be our own or an
// earlier process's, and it is taken for our own.
func (p *Partition) recount(ctx context.Context) {
	if p.Pending() == 0 || p.writing.Load() > 0 {
		return
	}
	before := p.pending.Load()
	bounds, err := p.driver.Bounds(ctx)
	p.mu.Lock()
	idle := err == nil && len(p.held) == 0 && bounds.Last == p.read && p.writing.Load() == 0
	p.mu.Unlock()
	if idle && p.pending.CompareAndSwap(before, 0) {
		p.mu.Lock()
		close(p.room)
		p.room = make(chan struct{})
		p.mu.Unlock()
	}
}

// Trim saves what was seen, and then removes the blocks that are done. The order matters: see recover. If the state cannot be saved, for want of room perhaps,
// what the last saved one covers is removed all the same.
func (p *Partition) Trim(ctx context.Context) error {
	saving := p.save(ctx, false)
	p.saving.Lock()
	defer p.saving.Unlock()
	keep := p.saved + 1
	p.mu.Lock()
	byID, doubted := p.byID, p.doubted()
	p.mu.Unlock()
	if doubted {
		return saving // the floor may be of entries that are not there any more
	}
	if byID {
		// Ids are read back from the blocks at the next start, so they stay for the window. It is a window of this process's time:
		// being dead does not make ids old.
		now := time.Now()
		p.trimMark = append(p.trimMark, trimMark{p.saved, now})
		i := 0
		for i+1 < len(p.trimMark) && now.Sub(p.trimMark[i+1].at) > p.opt.IDWindow {
			i++
		}
		p.trimMark = p.trimMark[i:]
		if now.Sub(p.trimMark[0].at) <= p.opt.IDWindow {
			return saving
		}
		keep = p.trimMark[0].floor + 1
	}
	if keep <= p.trimmed {
		return saving
	}
	if err := p.driver.Trim(ctx, keep); err != nil {
		return errors.Join(saving, err)
	}
	p.trimmed = keep
	return saving
}

// stateHead is what a saved state has before what was seen: the floor, and the last sequence stored.
const stateHead = 16

// save stores what was seen as of the floor, and how far the store reached: an end that is lost would not be missed otherwise.
func (p *Partition) save(ctx context.Context, always bool) error {
	known := p.known.Load() // before the store is asked: more is stored meanwhile
	bounds, err := p.driver.Bounds(ctx)
	if err != nil {
		return fmt.Errorf("save state: %w", err)
	}
	if err := p.saveUpTo(ctx, bounds.Last, always); err != nil {
		return err
	}
	if doubt := p.checkEnd(ctx, bounds.Last, known); doubt != nil {
		return fmt.Errorf("%w: %w", errDoubt, doubt)
	}
	return nil
}

// saveFloor saves what was done since it was saved last. It does not ask how far the store reaches: at least as far as was read.
func (p *Partition) saveFloor(ctx context.Context) error {
	p.mu.Lock()
	read, moved := p.read, p.floor != p.saved || p.progressed
	p.mu.Unlock()
	if !moved {
		return nil
	}
	return p.saveUpTo(ctx, read, false)
}

func (p *Partition) saveUpTo(ctx context.Context, stored uint64, always bool) error {
	p.saving.Lock()
	defer p.saving.Unlock()
	p.mu.Lock()
	floor, last := p.floor, max(stored, p.savedLast, p.read, p.known.Load())
	if floor == p.saved && last == p.savedLast && !p.progressed && !always {
		p.mu.Unlock()
		return nil
	}
	state := savedState{floor: floor, last: last, base: p.floorBase, top: max(p.top, max(p.writeBase, p.readBase)+last), seen: p.forgotten.Marshal(), progress: p.progressNow()}
	progressed := p.progressed
	p.progressed = false
	b := state.marshal()
	p.mu.Unlock()
	if err := p.driver.SaveState(ctx, b); err != nil {
		p.mu.Lock()
		p.progressed = p.progressed || progressed
		if p.unsaved.IsZero() {
			p.unsaved = time.Now()
		}
		p.mu.Unlock()
		return fmt.Errorf("save state: %w", err)
	}
	p.mu.Lock()
	p.saved, p.savedLast, p.unsaved = floor, last, time.Time{}
	p.mu.Unlock()
	return p.savePending(ctx)
}

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

// errDoubt means that the state is saved, and that the store does not have what it says is stored.
var errDoubt = errors.New("store ends early")

type noMetrics struct{}

func (noMetrics) Wrote(int, time.Duration) {}
func (noMetrics) WriteFailed(error)        {}
func (noMetrics) Full()                    {}
func (noMetrics) Acked(time.Duration)      {}
func (noMetrics) Corrupt()                 {}
func (noMetrics) Gap(int)                  {}
func (noMetrics) Duplicates(int)           {}
