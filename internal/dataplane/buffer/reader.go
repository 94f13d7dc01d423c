package buffer

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/cenkalti/backoff/v5"

	"github.com/levada-io/levada/internal/flow"
)

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

// Floor is the sequence up to which every block is done.
func (p *Partition) Floor() uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.floor
}
