package buffer

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/levada-io/levada/internal/dataplane/identity"
	"github.com/levada-io/levada/internal/flow"
)

// Reader hands over the blocks of a partition. It owns the cursor, the saved state and what is removed: there is one for each partition, in one process.
// Read is for one goroutine; the rest may be called concurrently.
type Reader struct {
	retrier
	opt    Options
	driver ReaderDriver
	log    finder
	damage damages
	usage  *usage    // shared with the writer of the process, if there is one
	tail   *tail     // likewise
	follow *follower // of what others write; nil if nobody else does, or if nothing here waits for room

	duplicates atomic.Int64 // messages dropped because they were known

	mu sync.Mutex
	place
	writeBase uint64           // what this process adds to the sequences that it writes; 0 if it does not write
	blocks    assembler        // pieces of blocks; all of them are held, and not done
	held      map[uint64]*held // entries above the floor that were read
	foreign   []foreignRun     // likewise, of other shards; ascending
	failed    error            // what stops the reader for good; not nil once the store is known to have lost its end
	// shortSince is since when the store says that it ends before what is known, cursorSince since when the cursor says that it ends before what was read.
	// Nothing is removed while either is set.
	shortSince, cursorSince time.Time
	unsaved                 time.Time     // since when saving the state fails; zero while it succeeds
	progressed              bool          // more is done than was saved
	moved                   chan struct{} // closed when the floor moves; nil while nobody waits
	doneBytes               int           // of entries done since the last trim began
	// The reader waits for the cursor since waitingSince, and waiting ends that. waited is how long earlier calls waited in vain since the last entry.
	waiting      context.CancelCauseFunc
	waitingSince time.Time
	waited       time.Duration
	inFlight     int // deliveries of which some message is neither consumed nor done; at most Options.MaxInFlight
	consumed     int // messages that are consumed and not done

	ahead   []Entry       // for Read alone: entries that came before those that must come first; ascending
	landed  chan struct{} // has room for 1: inFlight fell
	trimNow chan struct{} // has room for 1: asks Run to trim

	// The shard that is read, of so many. raised is the highest base of an entry that took the place of a lost one, of those that were met; keepFrom is the first entry that must stay for
	// its ids, if byID, and savedKeep what of that is saved. See Trim; only with several shards.
	shard, shards       int
	raised              uint64
	keepFrom, savedKeep uint64

	saving   sync.Mutex // held while a state is saved or the log trimmed; taken before mu
	trimMark []trimMark // for blocks that are kept for their ids; see Trim
}

// place is how far a reader is.
type place struct {
	// All entries up to floor are done; read is the last one that was taken. Invariant: floor <= read, and entries between them are held.
	floor, read uint64
	// saved is the floor of the last saved state, and savedLast the last sequence stored that it knows of. A reader begins at saved: all after it is delivered
	// again. Invariant: trimmed <= saved+1 <= floor+1.
	saved, savedLast uint64
	trimmed          uint64 // entries before it are removed
	// Bases, see number.go: readBase is that of the last entry read, floorBase of the one at floor. Invariant: floorBase <= readBase.
	readBase, floorBase uint64
	top                 uint64    // no entry stored when the partition was opened, or lost before, has a higher number
	lostBase            uint64    // entries whose raised base is not above this were known when the partition was opened
	lostEnd             flow.Span // what was missing at the end of the store when it was opened, and given up; Lo is 0 for nothing
	// seen is what has been read up to read, forgotten the same up to floor: that is what a saved state holds. byID says that ids are among it, which are in
	// the blocks and not in the state.
	seen, forgotten *identity.Seen
	byID            bool
	// earlier is what an earlier reader has done of blocks above floor that have not been read again.
	earlier map[uint64]progress
}

// held is an entry between the floor and what was read.
type held struct {
	messages int         // that take room for it: neither consumed nor done
	bytes    int         // of the entry
	header   *flow.Block // of a block that was handed over, at its last entry; nil for other pieces, and for what was given up
	last     uint64      // the last entry of its block: the floor passes them together
	done     bool
	base     uint64 // of its number; see number.go
	stored   int64  // when the store took it, in nanoseconds
	// spans are the places of the block that are done, parts the number of messages done since it was read; see DonePart. repeated says that an earlier
	// reader had done all of them: the block was read again for its watermark alone.
	spans    []flow.Span
	parts    int
	repeated bool
	// taken are the indices of the messages that were consumed, done or not; see Consume. consumed is how many of those are not done. passed says that every
	// message is consumed or done. Invariant: consumed + parts is at most the number of messages handed over.
	taken    []flow.Span
	consumed int
	passed   bool
}

// Delivery is a block that the reader's caller has, until Done. A block without messages is delivered for its watermark, and must be done as any other.
type Delivery struct {
	// Seq is the sequence of the block in the store. One that lost its end gives it to another block.
	Seq uint64
	// Number is the position of the block in the lane of its reader: ascending, the same whenever the block is delivered, and never that of another block.
	Number uint64
	Block  *flow.Block
	seqs   []uint64 // of the entries that it was put together from; the last is Seq
	landed bool     // it is not in flight any more; Reader.mu guards it
}

// Place is the index that the i-th message of the block had when it was stored.
func (d *Delivery) Place(i int) int {
	if d.Block.Places == nil {
		return i
	}
	return int(d.Block.Places[i])
}

// OpenReader takes up a partition where its last reader left it: what was in flight then is delivered again, what was finished is known.
func OpenReader(ctx context.Context, driver ReaderDriver, opt Options) (*Reader, error) {
	return openReader(ctx, driver, opt, newRoom(opt.withDefaults().limit()), 0, 1)
}

// openReader opens the reader of a shard.
func openReader(ctx context.Context, driver ReaderDriver, opt Options, left *room, shard, shards int) (*Reader, error) {
	opt = opt.withDefaults()
	retry := retrier{opt.Name, opt.Logger}
	r := &Reader{
		retrier: retry, opt: opt, driver: driver, log: finder{driver, retry}, damage: damages{driver, retry, opt.OnCorrupt, opt.Metrics},
		usage: newUsage(left), tail: &tail{}, shard: shard, shards: shards, blocks: assembler{map[string]*openBlock{}}, held: map[uint64]*held{},
		trimNow: make(chan struct{}, 1), landed: make(chan struct{}, 1),
	}
	if err := r.begin(ctx); err != nil {
		return nil, fmt.Errorf("buffer %s: %w", opt.Name, err)
	}
	return r, nil
}

// begin works out where to begin, saves it if that is not where the saved state says, and takes over the cursor.
func (r *Reader) begin(ctx context.Context) error {
	found, err := r.recover(ctx)
	if err != nil {
		return err
	}
	r.place, r.raised = found.place, found.raisedBase
	r.read = r.floor
	r.passLostEnd()
	r.tail.open(found.bounds.Last)
	r.usage.pass(r.floor)
	if r.floor > r.saved || found.given {
		if err := r.save(ctx, found.given); err != nil {
			return err
		}
	}
	return r.driver.Resume(ctx, r.floor)
}

// Name is the name of the partition.
func (r *Reader) Name() string { return r.opt.Name }

// Shard is the number of the shard that is read, and how many the partition has; 0 and 1 for a partition that is not divided.
func (r *Reader) Shard() (n, of int) { return r.shard, r.shards }

// Pending is the number of messages that are stored or being stored and not done. What other processes have written is among it once it was read, or at once with
// Options.Shared.
func (r *Reader) Pending() int { return int(r.usage.pending.Load()) }

// Incarnation changes when the log is recreated and sequences begin again at 1.
func (r *Reader) Incarnation() string { return r.driver.Incarnation() }

// Duplicates is the number of messages so far that were known already, and dropped.
func (r *Reader) Duplicates() int64 { return r.duplicates.Load() }

// InFlight is the number of messages that were read and are not done.
func (r *Reader) InFlight() (n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, h := range r.held {
		if !h.done {
			n += h.messages + h.consumed
		}
	}
	return n
}

// Floor is the sequence up to which every block is done.
func (r *Reader) Floor() uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.floor
}

// FloorNumber is the highest Delivery.Number such that the blocks up to it are done, by this reader or by those before it.
func (r *Reader) FloorNumber() uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.floorBase + r.floor
}

// Read waits for the next block that holds something new: messages, or a watermark. A watermark is given with every block that is read, known or not: what
// it promises stays true, and a reader does not save it. Read returns context.Cause(ctx) when ctx ends, and an error
// that does not go away when blocks are missing or corrupt and Options.OnCorrupt said to stop.
func (r *Reader) Read(ctx context.Context) (*Delivery, error) {
	wait := pauses{retrier: r.retrier, what: "read"}
	for {
		if err := r.failure(); err != nil {
			return nil, err
		}
		if err := r.awaitTurn(ctx); err != nil {
			return nil, err
		}
		e, err := r.next(ctx)
		if err == nil {
			wait.succeeded()
			r.cursorGave()
			err = r.replaced(ctx, e)
		}
		if err != nil {
			if err := r.unread(ctx, err, &wait); err != nil {
				return nil, err
			}
			continue
		}
		d, err := r.accept(ctx, e)
		switch cause := context.Cause(ctx); {
		case err != nil && cause != nil && errors.Is(err, cause):
			// It was not decided: the entry comes again.
			r.ahead = append([]Entry{e}, r.ahead...)
			return nil, cause
		case err != nil:
			r.fail(err)
		case d != nil:
			return d, nil
		}
	}
}

// unread says what follows from an error of the cursor: nil to go on.
func (r *Reader) unread(ctx context.Context, err error, wait *pauses) error {
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case errors.Is(err, ErrMissing), errors.Is(err, ErrClosed):
		r.tail.gone.Store(r.tail.gone.Load() || errors.Is(err, ErrMissing))
		return fmt.Errorf("buffer %s: %w", r.opt.Name, err)
	case errors.Is(err, ErrLostEnd):
		if r.suspectEnd(ctx, err) == nil && !sleep(ctx, time.Second) {
			return context.Cause(ctx)
		}
		return nil
	case errors.Is(err, ErrGap):
		r.fail(err)
		return nil
	}
	return wait.pause(ctx, err)
}

// cursorGave ends what an earlier error of the cursor made doubtful.
func (r *Reader) cursorGave() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.cursorSince = time.Time{}
}

// awaitTurn waits while as many blocks are in flight as may be.
func (r *Reader) awaitTurn(ctx context.Context) error {
	for {
		r.mu.Lock()
		full := r.inFlight >= r.opt.MaxInFlight
		r.mu.Unlock()
		if !full {
			return nil
		}
		select {
		case <-r.landed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// failure is why nothing more is read, once that is so.
func (r *Reader) failure() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.failed
}

// fail stops the reader for good.
func (r *Reader) fail(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.failed = fmt.Errorf("buffer %s: %w", r.opt.Name, err)
}

// accept takes the next entry: it returns a block to hand over, or nil.
func (r *Reader) accept(ctx context.Context, e Entry) (*Delivery, error) {
	if e.Foreign {
		r.pass(e)
		return nil, nil
	}
	got, err := r.hold(e)
	if err != nil {
		// Another replica may have it as it was written.
		found, failed := r.log.find(ctx, e.Seq, e.Seq)
		if failed != nil {
			return nil, failed
		}
		if len(found) > 0 {
			e = found[0]
			got, err = r.hold(e)
		}
	}
	if err != nil {
		r.opt.Metrics.Corrupt()
		if err := r.damage.found(ctx, e.Seq, e.Seq, e.Data, fmt.Errorf("block %d: %w", e.Seq, err)); err != nil {
			return nil, err
		}
	}
	r.mu.Lock()
	r.read = e.Seq
	r.readBase = r.baseOf(e)
	r.raised = max(r.raised, raisedBase(e))
	r.mu.Unlock()
	r.tail.know(e.Seq)
	switch {
	case err != nil:
		r.skip(e.Seq, e.Seq)
		r.finishAll(got.seqs) // the other pieces of its block are worth nothing
		return nil, nil
	case got.block == nil:
		return nil, nil
	}
	return r.admit(ctx, got.block, got.seqs)
}

// foreignRun are entries of other shards that follow each other, with one base.
type foreignRun struct{ lo, hi, base uint64 }

// pass takes an entry of another shard: it is done as soon as it was read.
func (r *Reader) pass(e Entry) {
	r.tail.know(e.Seq)
	r.mu.Lock()
	defer r.mu.Unlock()
	base := r.baseOf(e)
	r.read, r.readBase = e.Seq, base
	r.raised = max(r.raised, raisedBase(e))
	if n := len(r.foreign); n > 0 && r.foreign[n-1].hi+1 == e.Seq && r.foreign[n-1].base == base {
		r.foreign[n-1].hi = e.Seq
	} else {
		r.foreign = append(r.foreign, foreignRun{e.Seq, e.Seq, base})
	}
	was := r.floor
	r.advance()
	r.tellMoved(was)
}

// hold makes of an entry what it is. From then on it is held, unless it is damaged.
func (r *Reader) hold(e Entry) (assembled, error) {
	r.mu.Lock()
	got, err := r.blocks.add(e)
	if err == nil {
		r.held[e.Seq] = &held{messages: got.messages, bytes: len(e.Data), stored: e.Stored.UnixNano(), base: r.baseOf(e)}
	}
	r.mu.Unlock()
	if err == nil {
		r.usage.read(e.Seq, got.messages)
	}
	return got, err
}

// skip gives up entries that cannot be had.
func (r *Reader) skip(first, last uint64) {
	r.mu.Lock()
	for seq := first; seq <= last; seq++ {
		r.held[seq] = &held{}
	}
	r.mu.Unlock()
	for seq := first; seq <= last; seq++ {
		r.usage.read(seq, 0)
		r.finish(seq)
	}
}

// admit takes out of a block what was seen before.
func (r *Reader) admit(ctx context.Context, b *flow.Block, seqs []uint64) (*Delivery, error) {
	header := *b
	header.Messages = nil
	seq := seqs[len(seqs)-1]
	r.mu.Lock()
	r.held[seq].header = &header
	number := r.held[seq].base + seq
	r.tie(seqs)
	r.byID = r.byID || b.ByID
	lost := r.seen.Admit(b, time.Now())
	stale := r.blocks.stale(b)
	freed := r.takeUp(b, seqs)
	r.inFlight++
	r.mu.Unlock()
	r.usage.done(freed)
	r.giveUp(stale)
	if b.Duplicated > 0 {
		r.duplicates.Add(int64(b.Duplicated))
		r.opt.Metrics.Duplicates(b.Duplicated)
	}
	if len(lost) > 0 {
		r.opt.Metrics.Gap(len(lost))
		err := fmt.Errorf("%w: lane %s wrote blocks up to positions %v, and they never came", ErrGap, b.Lane, lost)
		if err := r.opt.OnCorrupt(seq, nil, err); err != nil {
			return nil, err
		}
	}
	d := &Delivery{Seq: seq, Number: number, Block: b, seqs: seqs}
	if len(b.Messages) == 0 && b.Watermark == flow.NoWatermark {
		r.Done(ctx, d)
		return nil, nil
	}
	return d, nil
}

// tie makes the floor pass these entries together: it is where a reader begins, and with some pieces of a block the rest would never become a block again.
// mu is held.
func (r *Reader) tie(seqs []uint64) {
	last := slices.Max(seqs)
	for _, s := range seqs {
		r.held[s].last = last
	}
}

// giveUp passes the pieces of blocks that will never be whole.
func (r *Reader) giveUp(blocks [][]uint64) {
	if len(blocks) == 0 {
		return
	}
	r.mu.Lock()
	for _, seqs := range blocks {
		r.tie(seqs)
	}
	r.mu.Unlock()
	for _, seqs := range blocks {
		r.finishAll(seqs)
	}
}

// Done says that everything made of the block is durable elsewhere. Call it once. The block comes again only after a crash, if its floor was not saved yet.
func (r *Reader) Done(_ context.Context, d *Delivery) {
	begun := time.Now()
	r.finishAll(d.seqs)
	r.mu.Lock()
	r.land(d)
	r.mu.Unlock()
	r.opt.Metrics.Acked(time.Since(begun))
}

// land takes a delivery out of the count of those in flight, once. mu is held.
func (r *Reader) land(d *Delivery) {
	if d.landed {
		return
	}
	d.landed = true
	r.inFlight--
	select {
	case r.landed <- struct{}{}:
	default:
	}
}

// finishAll finishes the entries of a block.
func (r *Reader) finishAll(seqs []uint64) {
	for _, seq := range seqs {
		r.finish(seq)
	}
}

// trimBytes is how much may be done before it is removed, whatever the time: a broker keeps in memory what was written lately.
const trimBytes = 8 << 20

// finish marks an entry as done, once, and moves the floor as far as that allows.
func (r *Reader) finish(seq uint64) {
	r.mu.Lock()
	h := r.held[seq]
	if h == nil || h.done {
		r.mu.Unlock()
		return
	}
	h.done, r.progressed = true, true
	r.consumed -= h.consumed
	h.consumed = 0
	if r.doneBytes += h.bytes; r.doneBytes >= trimBytes {
		r.doneBytes = 0
		select {
		case r.trimNow <- struct{}{}:
		default:
		}
	}
	was := r.floor
	r.advance()
	r.tellMoved(was)
	messages := h.messages
	r.mu.Unlock()
	r.usage.done(messages)
}

// advance moves the floor over what is done, and over a block in pieces as a whole. mu is held.
func (r *Reader) advance() {
	for {
		r.passLostEnd()
		end, need := r.floor, r.floor+1
		for runs := r.foreign; end < need; {
			if len(runs) > 0 && runs[0].lo == end+1 {
				end, runs = runs[0].hi, runs[1:]
				continue
			}
			next := r.held[end+1]
			if next == nil || !next.done {
				return
			}
			end++
			need = max(need, next.last)
		}
		for r.floor < end {
			if len(r.foreign) > 0 && r.foreign[0].lo == r.floor+1 {
				r.floor, r.floorBase = r.foreign[0].hi, max(r.floorBase, r.foreign[0].base)
				r.foreign = r.foreign[1:]
				continue
			}
			r.floor++
			h := r.held[r.floor]
			r.floorBase = max(r.floorBase, h.base)
			delete(r.held, r.floor)
			if h.header != nil && !h.header.ByID {
				r.forgotten.Admit(h.header, time.Time{})
			}
		}
	}
}

// reach is how far entries above the floor are of other shards, or held and accepted by good. mu is held.
func (r *Reader) reach(good func(seq uint64, h *held) bool) uint64 {
	floor, runs := r.floor, r.foreign
	for {
		for len(runs) > 0 && runs[0].lo <= floor {
			runs = runs[1:]
		}
		if len(runs) > 0 && runs[0].lo == floor+1 {
			floor = runs[0].hi
			continue
		}
		h := r.held[floor+1]
		if h == nil || !good(floor+1, h) {
			return floor
		}
		floor++
	}
}

// passLostEnd takes the floor over what was missing at the end of the store when it was opened, once all before it is done. mu is held.
func (r *Reader) passLostEnd() {
	if r.lostEnd.Lo != 0 && r.floor+1 == r.lostEnd.Lo {
		r.floor = r.lostEnd.Hi
		r.read = max(r.read, r.floor)
	}
}
