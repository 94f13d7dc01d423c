package buffer

import (
	"context"
	"errors"
	"fmt"
	"time"
)

type trimMark struct {
	floor uint64
	at    time.Time
}

// trimBytes is how much may be done before it is removed, whatever the time: a broker keeps in memory what was written lately.
const trimBytes = 8 << 20

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

// errDoubt means that the state is saved, and that the store does not have what it says is stored.
var errDoubt = errors.New("store ends early")
