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
	// AckWait is after what time the driver gives an entry again. The partition says that it is working three times as often. Default 30 s.
	AckWait time.Duration
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
	if o.AckWait <= 0 {
		o.AckWait = 30 * time.Second
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

	pending    atomic.Int64 // messages stored or being stored, and not done
	writing    atomic.Int64 // writes that are not settled
	duplicates atomic.Int64 // messages dropped because they were known
	reserved   atomic.Int64 // messages that are about to be written by those who do not wait for room
	// opened is the last sequence that was stored when the partition was opened, stored the number of entries that this process has seen being stored since.
	// Invariant: opened + stored is at most the last sequence stored. It is less while an entry is stored whose acknowledgement was lost.
	opened, stored atomic.Uint64

	mu     sync.Mutex
	room   chan struct{} // closed and replaced when pending falls
	prev   map[string]uint64
	held   map[uint64]*held // entries between Next and done
	read   uint64           // the last sequence that Next gave
	readAt time.Time        // when it was stored
	floor  uint64           // all up to here are done
	failed error            // what stops the reading side for good
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

	saved     uint64 // the floor of the last saved state
	savedLast uint64 // the last sequence stored, of the last saved state
	trimmed   uint64
	trimMark  []trimMark
}

type held struct {
	messages int
	bytes    int
	header   *flow.Block
	last     uint64 // of the pieces of its block
	done     bool
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
		held: map[uint64]*held{}, trimNow: make(chan struct{}, 1), chunks: map[string]*chunked{},
		seen:      identity.New(opt.IDWindow, opt.MaxIDs),
		forgotten: identity.New(opt.IDWindow, opt.MaxIDs),
	}
	if err := p.recover(ctx); err != nil {
		return nil, fmt.Errorf("buffer %s: %w", opt.Name, err)
	}
	return p, nil
}

// recover rebuilds what was seen: from the saved state up to its floor, from the headers of the blocks after it, up to the broker's acknowledged floor.
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
		if err := errors.Join(p.seen.Unmarshal(s.seen), p.forgotten.Unmarshal(s.seen)); err != nil {
			return err
		}
	}
	bounds, err := p.driver.Bounds(ctx)
	if err != nil {
		return err
	}
	given := false // something was given up: that is saved, or it would be told again
	if bounds.Last < p.savedLast {
		err := fmt.Errorf("%w: blocks up to %d were stored, but the last one there is %d: the store was restored from an older copy or lost its end", ErrGap, p.savedLast, bounds.Last)
		if err := p.opt.OnCorrupt(bounds.Last+1, nil, err); err != nil {
			return err
		}
		p.saved, p.savedLast, given = min(p.saved, bounds.Last), bounds.Last, true
	}
	if bounds.First > p.saved+1 {
		err := fmt.Errorf("%w: %d to %d", ErrGap, p.saved+1, bounds.First-1)
		p.opt.Metrics.Gap(int(bounds.First - p.saved - 1))
		if err := p.opt.OnCorrupt(p.saved+1, nil, err); err != nil {
			return err
		}
		p.saved, given = bounds.First-1, true
	}
	if p.floor, err = p.wholeFloor(ctx, min(max(p.saved, bounds.Acked), bounds.Last)); err != nil {
		return fmt.Errorf("scan: %w", err)
	}
	p.trimmed = bounds.First
	p.opened.Store(bounds.Last)
	// What is retained before the saved floor matters only for its ids; the positions are in the state.
	now := time.Now()
	next, lost, pieces := p.saved+1, []flow.Span(nil), pieces{}
	err = p.driver.Scan(ctx, bounds.First, func(e Entry) error {
		if e.Seq > next {
			lost = append(lost, flow.Span{Lo: next, Hi: e.Seq - 1})
		}
		next = max(next, e.Seq+1)
		b, n, err := headOf(e.Data)
		data := e.Data
		if err != nil {
			return nil // Read meets it again and says so
		}
		if e.Seq > p.floor {
			p.pending.Add(int64(n - p.doneEarlier(e, n)))
			return nil
		}
		if isChunk(e.Data) {
			if b, data = pieces.whole(e.Data); b == nil {
				return nil // there is more of it
			}
		}
		if b.ByID {
			p.byID = true
			if full, err := flow.Decode(data); err == nil {
				p.seen.Admit(full, now)
			}
			return nil
		}
		if e.Seq > p.saved {
			p.seen.Admit(b, now)
			p.forgotten.Admit(b, now)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("scan: %w", err)
	}
	if next <= bounds.Last {
		lost = append(lost, flow.Span{Lo: next, Hi: bounds.Last})
	}
	for _, l := range lost {
		if l.Lo > p.floor && l.Hi < bounds.Last {
			continue // Read meets it, and says so
		}
		// Nobody would: a broker's acknowledged floor steps over what it has lost, and after the end nothing comes.
		p.opt.Metrics.Gap(int(l.Hi - l.Lo + 1))
		if err := p.opt.OnCorrupt(l.Lo, nil, fmt.Errorf("%w: %d to %d", ErrGap, l.Lo, l.Hi)); err != nil {
			return err
		}
		if l.Hi == bounds.Last {
			p.lostEnd = l
		}
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
	}
	p.writing.Add(1)
	p.pending.Add(int64(w.messages))
	for i := range w.parts {
		w.parts[i].receipt = p.driver.Submit(ctx, w.parts[i].id, w.parts[i].data)
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
}

// Wait returns once the block is durable. It tries again with the same id for as long as ctx lives, whatever the broker does,
// but for errors that will not go away: ErrTooLarge and ErrMissing.
func (w *Write) Wait(ctx context.Context) error {
	defer w.p.writing.Add(-1)
	duplicate := true
	for i := range w.parts {
		dup, err := w.p.settle(ctx, &w.parts[i])
		if err != nil {
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
		duplicate, err = w.receipt.Wait(ctx)
		switch {
		case err == nil:
			if !duplicate {
				p.stored.Add(1)
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
		p.opt.Metrics.WriteFailed(err)
		p.opt.Logger.Debug("write is tried again", "buffer", p.opt.Name, "block", w.id, "error", err)
		if wait == nil {
			wait = retryDelay()
		}
		if !sleep(ctx, wait.NextBackOff()) {
			return false, context.Cause(ctx)
		}
		w.receipt = p.driver.Submit(ctx, w.id, w.data)
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
	// Seq is the position of the block in the partition: ascending, and the same whenever the block is delivered.
	Seq   uint64
	Block *flow.Block
	seqs  []uint64
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
	for {
		p.mu.Lock()
		failed := p.failed
		p.mu.Unlock()
		if failed != nil {
			return nil, failed
		}
		e, err := p.driver.Next(ctx)
		switch {
		case err == nil:
			wait = nil
		case ctx.Err() != nil:
			return nil, context.Cause(ctx)
		case errors.Is(err, ErrMissing), errors.Is(err, ErrClosed):
			return nil, fmt.Errorf("buffer %s: %w", p.opt.Name, err)
		default:
			p.opt.Logger.Debug("read is tried again", "buffer", p.opt.Name, "error", err)
			if wait == nil {
				wait = retryDelay()
			}
			if !sleep(ctx, wait.NextBackOff()) {
				return nil, context.Cause(ctx)
			}
			continue
		}
		d, err := p.accept(ctx, e)
		if err != nil {
			p.mu.Lock()
			p.failed = fmt.Errorf("buffer %s: %w", p.opt.Name, err)
			p.mu.Unlock()
			continue
		}
		if d != nil {
			return d, nil
		}
	}
}

// accept decides what to do with an entry: nothing more (nil), or hand it over.
func (p *Partition) accept(ctx context.Context, e Entry) (*Delivery, error) {
	p.mu.Lock()
	switch {
	case p.held[e.Seq] != nil && !p.held[e.Seq].done:
		p.mu.Unlock()
		return nil, p.driver.Working(ctx, e.Seq) // it came again while it is in hand
	case e.Seq <= p.read && e.Stored.After(p.readAt):
		p.mu.Unlock()
		p.opt.Metrics.Gap(1)
		err := fmt.Errorf("%w: the store gives %d, which was read before, to another block: it lost its end", ErrGap, e.Seq)
		return nil, p.opt.OnCorrupt(e.Seq, e.Data, err)
	case e.Seq <= p.read:
		p.mu.Unlock()
		_ = p.driver.Ack(ctx, e.Seq) // it is done, and the acknowledgement was lost
		return nil, nil
	}
	expected := p.read + 1
	if expected == p.lostEnd.Lo {
		expected = p.lostEnd.Hi + 1
	}
	p.read, p.readAt = e.Seq, e.Stored
	p.mu.Unlock()
	if e.Seq != expected {
		missing := int(e.Seq - expected)
		p.opt.Metrics.Gap(missing)
		if err := p.opt.OnCorrupt(expected, nil, fmt.Errorf("%w: %d to %d", ErrGap, expected, e.Seq-1)); err != nil {
			return nil, err
		}
		p.skip(ctx, expected, e.Seq)
	}
	block, seqs, err := p.assemble(e)
	if err != nil {
		p.opt.Metrics.Corrupt()
		if err := p.opt.OnCorrupt(e.Seq, e.Data, fmt.Errorf("block %d: %w", e.Seq, err)); err != nil {
			return nil, err
		}
		p.skip(ctx, e.Seq, e.Seq+1)
		return nil, nil
	}
	if block == nil {
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
	p.tie(seqs)
	p.byID = p.byID || b.ByID
	lost := p.seen.Admit(b, time.Now())
	stale := p.staleChunks(b)
	freed := p.takeUp(b, seqs)
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
	d := &Delivery{Seq: seq, Block: b, seqs: seqs}
	if len(b.Messages) == 0 {
		p.Done(ctx, d)
		return nil, nil
	}
	return d, nil
}

// Done says that everything made of the block is durable elsewhere. The block will not come again but after a crash of the broker.
func (p *Partition) Done(ctx context.Context, d *Delivery) {
	begun := time.Now()
	for _, s := range d.seqs {
		p.finish(ctx, s)
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
	if err := p.driver.Ack(ctx, seq); err != nil {
		p.opt.Logger.Debug("acknowledge", "buffer", p.opt.Name, "seq", seq, "error", err)
	}
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

// Run keeps the partition in order until ctx ends: it tells the broker what is in hand, and removes what nobody needs any more.
func (p *Partition) Run(ctx context.Context) error {
	working := time.NewTicker(p.opt.AckWait / 3)
	defer working.Stop()
	trim := time.NewTicker(p.opt.TrimEvery)
	defer trim.Stop()
	tidy := func() {
		p.recount(ctx)
		if err := p.Trim(ctx); err != nil && ctx.Err() == nil {
			p.opt.Logger.Warn("trim is tried again later", "buffer", p.opt.Name, "error", err)
		}
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-p.trimNow:
			tidy()
		case <-working.C:
			for _, seq := range p.inHand() {
				_ = p.driver.Working(ctx, seq)
			}
		case <-trim.C:
			tidy()
		}
	}
}

func (p *Partition) inHand() []uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	var seqs []uint64
	for seq, h := range p.held {
		if !h.done {
			seqs = append(seqs, seq)
		}
	}
	return seqs
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

// Trim saves what was seen, and then removes the blocks that are done. The order matters: see recover.
func (p *Partition) Trim(ctx context.Context) error {
	if err := p.save(ctx, false); err != nil {
		return err
	}
	keep := p.saved + 1
	p.mu.Lock()
	byID := p.byID
	p.mu.Unlock()
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
			return nil
		}
		keep = p.trimMark[0].floor + 1
	}
	if keep <= p.trimmed {
		return nil
	}
	if err := p.driver.Trim(ctx, keep); err != nil {
		return err
	}
	p.trimmed = keep
	return nil
}

// stateHead is what a saved state has before what was seen: the floor, and the last sequence stored.
const stateHead = 16

// save stores what was seen as of the floor, and how far the store reached: an end that is lost would not be missed otherwise.
func (p *Partition) save(ctx context.Context, always bool) error {
	bounds, err := p.driver.Bounds(ctx)
	p.mu.Lock()
	if err != nil && p.floor != p.saved {
		p.mu.Unlock()
		return fmt.Errorf("save state: %w", err)
	}
	floor, last := p.floor, max(bounds.Last, p.savedLast)
	if floor == p.saved && last == p.savedLast && !p.progressed && !always {
		p.mu.Unlock()
		return nil
	}
	state := savedState{floor: floor, last: last, seen: p.forgotten.Marshal(), progress: p.progressNow()}
	progressed := p.progressed
	p.progressed = false
	b := state.marshal()
	p.mu.Unlock()
	if err := p.driver.SaveState(ctx, b); err != nil {
		p.mu.Lock()
		p.progressed = p.progressed || progressed
		p.mu.Unlock()
		return fmt.Errorf("save state: %w", err)
	}
	p.saved, p.savedLast = floor, last
	return nil
}

// Close saves how far the reader came, so that the next one need not look, and closes the driver.
func (p *Partition) Close(ctx context.Context) error {
	return errors.Join(p.Trim(ctx), p.driver.Close())
}

type noMetrics struct{}

func (noMetrics) Wrote(int, time.Duration) {}
func (noMetrics) WriteFailed(error)        {}
func (noMetrics) Full()                    {}
func (noMetrics) Acked(time.Duration)      {}
func (noMetrics) Corrupt()                 {}
func (noMetrics) Gap(int)                  {}
func (noMetrics) Duplicates(int)           {}
