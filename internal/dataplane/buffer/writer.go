package buffer

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cenkalti/backoff/v5"
	"golang.org/x/sync/errgroup"

	"github.com/levada-io/levada/internal/flow"
)

// Writer adds blocks to a partition. It may live in any process, beside any number of others, and may be used concurrently: it leaves the reader's cursor,
// state and blocks alone. One that is opened without a reader in its process must be run (Run), or it does not learn that there is room again.
type Writer struct {
	opt    Options
	driver WriterDriver
	room   *room    // of the partition
	usages []*usage // by shard; each is shared with the reader of the shard, if that is in the same process
	tail   *tail    // shared with the reader of shard 0, likewise
	others []*tail  // of the readers of the other shards in this process
	base   uint64   // what this process adds to the sequences that it writes, see number.go
	// loseEnd is called when the store turns out to have lost its end: entries from first on are not those that were stored there. It returns the error that all get.
	loseEnd func(ctx context.Context, first uint64, why error) error
	refused atomic.Pointer[error] // why the last attempt to write was refused, if for want of room

	mu sync.Mutex
	// prev is, for each shard, the last position that was written of each lane. A block carries it, so that the reader sees that one is missing. What was written before this
	// process is 0: a reader makes nothing of that.
	prev []map[string]uint64
}

// OpenWriter opens the writing end of a partition whose reader is in another process, or not running. Nothing of the reader is touched. The error is ErrLostEnd
// while the store has less than its reader has saved: what is written then could be taken for what was lost.
func OpenWriter(ctx context.Context, driver WriterDriver, opt Options) (*Writer, error) {
	opt = opt.withDefaults()
	left := newRoom(opt.limit())
	usages := make([]*usage, ShardsOf(driver))
	for i := range usages {
		usages[i] = newUsage(left)
	}
	w := newWriter(driver, opt, usages, &tail{})
	w.loseEnd = w.stop
	if err := w.begin(ctx); err != nil {
		return nil, fmt.Errorf("buffer %s: %w", opt.Name, err)
	}
	return w, nil
}

// newWriter is given a usage for each shard, all of one room.
func newWriter(driver WriterDriver, opt Options, usages []*usage, t *tail) *Writer {
	w := &Writer{opt: opt, driver: driver, room: usages[0].room, usages: usages, tail: t, prev: make([]map[string]uint64, len(usages))}
	for i := range w.prev {
		w.prev[i] = map[string]uint64{}
	}
	return w
}

// Shards is the number of shards that the partition is divided into.
func (w *Writer) Shards() int { return len(w.usages) }

// usageOf is the driver of a shard for what its reader says.
func (w *Writer) usageOf(shard int) Usage {
	if s, ok := w.driver.(ShardedUsage); ok && len(w.usages) > 1 {
		return s.UsageOf(shard)
	}
	return w.driver
}

// begin reads how far readers and store are. The states are read first: what they know must be stored.
func (w *Writer) begin(ctx context.Context) error {
	states, last, top := make([]*savedState, len(w.usages)), uint64(0), uint64(0)
	for i := range states {
		data, err := w.usageOf(i).LoadState(ctx)
		if err != nil {
			return fmt.Errorf("load state: %w", err)
		}
		if states[i], err = readState(data); err != nil {
			return err
		}
		if states[i] == nil {
			states[i] = &savedState{}
		}
		last, top = max(last, states[i].last), max(top, states[i].top)
	}
	bounds, err := w.driver.Bounds(ctx)
	if err != nil {
		return err
	}
	if bounds.Last < last {
		return fmt.Errorf("%w: the reader knows of blocks up to %d, and the last one there is %d. Nothing is written until the reader has started and decided about it", ErrLostEnd, last, bounds.Last)
	}
	w.tail.open(bounds.Last)
	// The bases of other processes may be lower: the reader takes the highest that it met.
	w.base = newBase(bounds.Last, top, time.Now())
	for i, state := range states {
		w.usages[i].saved(state.passed(), state.progress)
	}
	return nil
}

// stop ends a writer that is alone in its process.
func (w *Writer) stop(_ context.Context, _ uint64, why error) error {
	return w.tail.lose(fmt.Errorf("%w. Nothing more is written. The process that reads the buffer says at its next start which blocks are lost, if any are", why))
}

// unheardAfter is how long a writer that waits for room may hear nothing before it asks.
const unheardAfter = 2 * time.Second

// Run follows what other processes store and what the reader has done, until ctx ends. It is for a writer without a reader in its process.
func (w *Writer) Run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	for i, u := range w.usages {
		f := &follower{driver: w.usageOf(i), usage: u, tail: w.tail, retry: retrier{w.opt.Name, w.opt.Logger}}
		group.Go(func() error { return f.run(ctx, u.floor()) })
		group.Go(func() error { return f.watch(ctx) })
		group.Go(func() error { return f.ask(ctx, unheardAfter) })
	}
	return group.Wait()
}

// Forget forgets what this process has written of a lane. Call it when another process may go on with the lane: what this one wrote last is then no predecessor of what it
// writes if the lane comes back. No Write of the lane may be under way.
func (w *Writer) Forget(lane string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, prev := range w.prev {
		delete(prev, lane)
	}
}

// Name is the name of the partition.
func (w *Writer) Name() string { return w.opt.Name }

// Pending is the number of messages that are stored or being stored and not done, as far as this process knows.
func (w *Writer) Pending() int { return int(w.room.pending.Load()) }

// Limit is the number of pending messages above which writers wait.
func (w *Writer) Limit() int { return w.room.limit }

// MaxLength is the nominal length, in messages.
func (w *Writer) MaxLength() int { return w.opt.MaxLength }

// MaxEntry is the largest piece that the broker takes, in bytes. Larger blocks are stored in several.
func (w *Writer) MaxEntry() int { return w.driver.MaxEntry() }

// Close lets go of the partition. What was written stays.
func (w *Writer) Close() error { return w.driver.Close() }

// WaitForRoom waits until the partition takes more.
func (w *Writer) WaitForRoom(ctx context.Context) error { return w.room.wait(ctx, w.opt.Metrics.Full) }

// Reserve takes room for a message that is about to be written, if there is any. Unreserve gives it back: once it is written it counts as pending.
func (w *Writer) Reserve() bool { return w.room.reserve() }

// Unreserve gives back room for n messages.
func (w *Writer) Unreserve(n int) { w.room.reserved.Add(-int64(n)) }

// Write begins to store a block of which e holds the messages and h the rest. It does not wait for room: see WaitForRoom.
// Blocks of a lane must be written in the order of their positions; h.Prev is filled in here. Wait for the Write that is returned.
func (w *Writer) Write(ctx context.Context, h *flow.Block, e *flow.Encoder) (*Write, error) {
	return w.WriteTo(ctx, 0, h, e)
}

// WriteTo is Write to a shard of the partition. A block that is written again must go to the same one: its readers do not know what others have seen.
func (w *Writer) WriteTo(ctx context.Context, shard int, h *flow.Block, e *flow.Encoder) (*Write, error) {
	w.mu.Lock()
	h.Prev = w.prev[shard][h.Lane]
	w.prev[shard][h.Lane] = h.Last()
	w.mu.Unlock()
	data, err := e.Finish(h, w.opt.Compression)
	if err != nil {
		return nil, err
	}
	out := &Write{w: w, shard: shard, messages: e.Count(), begun: time.Now()}
	id, largest := blockID(h, shard, out.messages), w.driver.MaxEntry()
	if len(data) <= largest {
		out.single[0] = part{id: id, data: data, messages: out.messages, memory: e.Detach(takeBytes())}
		out.parts = out.single[:]
	} else if out.parts = split(id, h, e.Count(), data, largest); out.parts == nil {
		return nil, fmt.Errorf("buffer %s: a block of %d bytes: %w, which is %d", w.opt.Name, len(data), ErrTooLarge, largest)
	}
	w.usages[shard].submitted(out.messages)
	for i := range out.parts {
		w.submit(ctx, shard, &out.parts[i])
	}
	return out, nil
}

func (w *Writer) submit(ctx context.Context, shard int, p *part) {
	p.known = w.tail.known.Load()
	p.receipt = w.driver.Submit(ctx, Record{ID: p.id, Data: p.data, Messages: p.messages, Shard: shard, Base: w.base, After: p.known})
}

// maxBlockID is the length from which an id is replaced by its hash.
const maxBlockID = 256

// blockID is the identity of a block for the broker. It holds both ends: a writer that groups its input otherwise after a crash makes another block,
// and the broker must not take it for the old one. Blocks for a watermark alone cover the same position again and again, so theirs is part of their ids.
// Shards of a partition are stored together, and get blocks of the same range.
func blockID(h *flow.Block, shard, messages int) string {
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
	if messages == 0 && h.Watermark != flow.NoWatermark {
		b = strconv.AppendInt(append(b, '^'), h.Watermark, 36)
	}
	if shard > 0 {
		b = strconv.AppendInt(append(b, '|'), int64(shard), 36)
	}
	if len(b) > maxBlockID {
		sum := sha256.Sum256(b)
		b = append(b[:len(h.Lane)+1], hex.EncodeToString(sum[:])...)
	}
	return string(b)
}

// Write is a block on its way into the partition.
type Write struct {
	w        *Writer
	shard    int
	parts    []part
	single   [1]part // of most
	messages int
	begun    time.Time
}

// part is one record of a Write.
type part struct {
	id       string
	data     []byte
	messages int    // those that it counts as
	memory   []byte // what data lies in, to be used again
	receipt  Receipt
	known    uint64 // the highest sequence that was known to be stored when it was submitted
}

// Wait returns once the block is durable. It tries again with the same id for as long as ctx lives, whatever the broker does,
// but for errors that will not go away: ErrTooLarge and ErrMissing.
func (out *Write) Wait(ctx context.Context) error {
	w := out.w
	for i := range out.parts {
		seq, err := w.settle(ctx, out.shard, &out.parts[i])
		w.usages[out.shard].settled(seq, out.parts[i].messages)
		if err == nil {
			continue
		}
		for _, rest := range out.parts[i+1:] {
			w.usages[out.shard].settled(0, rest.messages) // if it is stored all the same, it counts when it is read
		}
		if errors.Is(err, ErrMissing) {
			w.tail.gone.Store(true)
			for _, t := range w.others {
				t.gone.Store(true)
			}
		}
		return fmt.Errorf("buffer %s: %w", w.opt.Name, err)
	}
	w.opt.Metrics.Wrote(out.messages, time.Since(out.begun))
	return nil
}

// blockBytes is memory for encoded blocks, to be used again once they are stored.
var blockBytes = sync.Pool{New: func() any { return new([]byte) }}

func takeBytes() []byte { return (*blockBytes.Get().(*[]byte))[:0] }

// settle waits until a part is stored, and returns where; 0 if it is not, or if the store does not say.
func (w *Writer) settle(ctx context.Context, shard int, p *part) (seq uint64, err error) {
	var wait *backoff.ExponentialBackOff
	for again := false; ; again = true {
		seq, duplicate, err := p.receipt.Wait(ctx)
		if err == nil {
			if err := w.accepted(ctx, p, seq, duplicate); err != nil {
				return 0, err // what is stored now is read by the next run
			}
			if !again && p.memory != nil {
				// After a second attempt the first one may still be under way with this memory.
				blockBytes.Put(&p.memory)
			}
			return seq, nil
		}
		switch {
		case errors.Is(err, ErrTooLarge), errors.Is(err, ErrMissing), errors.Is(err, ErrClosed):
			return 0, err
		case ctx.Err() != nil:
			return 0, context.Cause(ctx)
		case errors.Is(err, ErrFull):
			w.refused.Store(&err)
		}
		w.opt.Metrics.WriteFailed(err)
		w.opt.Logger.Debug("write is tried again", "buffer", w.opt.Name, "block", p.id, "error", err)
		if wait == nil {
			wait = retryDelay()
		}
		if !sleep(ctx, wait.NextBackOff()) {
			return 0, context.Cause(ctx)
		}
		w.submit(ctx, shard, p)
	}
}

// accepted notes what the store says that it has stored. The error is ErrLostEnd if it has lost its end.
func (w *Writer) accepted(ctx context.Context, p *part, seq uint64, duplicate bool) error {
	w.refused.Store(nil)
	if !duplicate {
		if !w.tail.acknowledged(seq, p.known) {
			return w.loseEnd(ctx, seq, fmt.Errorf("%w: it stored a block as %d, and had stored blocks up to %d", ErrLostEnd, seq, w.tail.known.Load()))
		}
		w.tail.stored.Add(1)
		for _, t := range w.others {
			t.stored.Add(1)
		}
	}
	w.tail.know(seq)
	for _, t := range w.others {
		t.know(seq)
	}
	return w.tail.lostEnd()
}
