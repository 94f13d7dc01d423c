package buffer

import (
	"context"
	"fmt"
)

// ReadFloor returns the sequence up to which nothing is left to be done: entries are done, or are pieces of a block of which the rest has not come. Once the
// partition's writers have ended, such pieces are what a writer left that crashed and has written the block otherwise since: GiveUpPieces discards them.
//
// It never falls below what it was, unless a piece is stored that completes a block: that lies above it. So it is a floor in the sense of package termination.
func (p *Partition) ReadFloor() uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	floor := p.floor
	if len(p.chunks) == 0 {
		return floor
	}
	pieces := map[uint64]bool{}
	for _, k := range p.chunks {
		for _, seq := range k.seqs {
			pieces[seq] = true
		}
	}
	for h := p.held[floor+1]; h != nil && (h.done || pieces[floor+1]); h = p.held[floor+1] {
		floor++
	}
	return floor
}

// KnownEnd is a sequence up to which entries are known to be stored, without asking the store. There may be more.
func (p *Partition) KnownEnd() uint64 { return p.opened.Load() + p.stored.Load() }

// ReadEnd asks the store for the last sequence stored. One below what this process has seen being stored is an error: the store has lost blocks that it had
// acknowledged.
func (p *Partition) ReadEnd(ctx context.Context) (uint64, error) {
	least := p.KnownEnd()
	bounds, err := p.driver.Bounds(ctx)
	if err != nil {
		return 0, err
	}
	if bounds.Last < least {
		return 0, fmt.Errorf("buffer %s: %w: at least %d blocks were stored, and the store ends at %d: it lost blocks that it had acknowledged", p.opt.Name, ErrGap, least, bounds.Last)
	}
	return bounds.Last, nil
}

// GiveUpPieces discards pieces of blocks that will never be whole. It may be called only when every writer has ended.
func (p *Partition) GiveUpPieces(ctx context.Context) {
	p.mu.Lock()
	var seqs []uint64
	for id, k := range p.chunks {
		p.tie(k.seqs)
		seqs = append(seqs, k.seqs...)
		delete(p.chunks, id)
	}
	p.mu.Unlock()
	for _, seq := range seqs {
		p.finish(ctx, seq)
	}
}

// FloorMoved returns a channel that is closed when the floor moves next.
func (p *Partition) FloorMoved() <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.moved == nil {
		p.moved = make(chan struct{})
	}
	return p.moved
}

// tellMoved wakes those who wait for the floor to move from where it was. mu is held.
func (p *Partition) tellMoved(was uint64) {
	if p.moved != nil && p.floor != was {
		close(p.moved)
		p.moved = nil
	}
}

// Recount corrects the count of pending messages if it must be 0: see recount.
func (p *Partition) Recount(ctx context.Context) { p.recount(ctx) }

// Duplicates is the number of messages so far that were known already, and dropped.
func (p *Partition) Duplicates() int64 { return p.duplicates.Load() }
