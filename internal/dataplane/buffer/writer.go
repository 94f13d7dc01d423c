package buffer

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v5"

	"github.com/levada-io/levada/internal/flow"
)

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
