package buffer

import (
	"context"
	"fmt"
)

// ReadFloor returns the sequence up to which nothing is left to be done: entries are done, or are pieces of a block of which the rest has not come. Once the
// partition's writers have ended, such pieces are what a writer left that crashed and has written the block otherwise since: GiveUpPieces discards them.
//
// It never falls below what it was, unless a piece is stored that completes a block: that lies above it. So it is a floor in the sense of package termination.
func (r *Reader) ReadFloor() uint64 { return r.readFloor(false) }

// ConsumedFloor is ReadFloor, with entries that are consumed taken for done. Those are given to a processor that keeps them until its input ends: what it makes of them
// is written after that.
func (r *Reader) ConsumedFloor() uint64 { return r.readFloor(true) }

func (r *Reader) readFloor(consumed bool) uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	pieces := r.blocks.waiting()
	return r.reach(func(seq uint64, h *held) bool { return h.done || consumed && h.passed || pieces[seq] })
}

// KnownEnd is a sequence up to which entries are known to be stored, without asking the store. There may be more.
func (r *Reader) KnownEnd() uint64 { return r.tail.opened.Load() + r.tail.stored.Load() }

// ReadEnd asks the store for the last sequence stored. One below what this process has seen being stored is an error: the store has lost blocks that it had
// acknowledged.
func (r *Reader) ReadEnd(ctx context.Context) (uint64, error) {
	least := r.KnownEnd()
	bounds, err := r.driver.Bounds(ctx)
	if err != nil {
		return 0, err
	}
	if bounds.Last < least {
		return 0, fmt.Errorf("buffer %s: %w: at least %d blocks were stored, and the store ends at %d: it lost blocks that it had acknowledged", r.opt.Name, ErrGap, least, bounds.Last)
	}
	return bounds.Last, nil
}

// GiveUpPieces discards pieces of blocks that will never be whole. It may be called only when every writer has ended.
func (r *Reader) GiveUpPieces(context.Context) {
	r.mu.Lock()
	groups := r.blocks.rest()
	r.mu.Unlock()
	r.giveUp(groups)
}

// FloorMoved returns a channel that is closed when ReadFloor or ConsumedFloor moves next.
func (r *Reader) FloorMoved() <-chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.moved == nil {
		r.moved = make(chan struct{})
	}
	return r.moved
}

// tellMoved wakes those who wait for the floor to move from where it was. mu is held.
func (r *Reader) tellMoved(was uint64) {
	if r.floor != was {
		r.wakeMoved()
	}
}

// wakeMoved wakes those who wait for a floor to move. mu is held.
func (r *Reader) wakeMoved() {
	if r.moved != nil {
		close(r.moved)
		r.moved = nil
	}
}
