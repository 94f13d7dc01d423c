package buffer

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	"golang.org/x/sync/errgroup"
)

// What is done is saved before it is removed, so that a reader that begins at the saved floor finds everything after it; see recovery.

// trimMark is a floor that was saved at some time.
type trimMark struct {
	floor uint64
	at    time.Time
}

// Run keeps the partition in order until ctx ends: it saves how far the reader is, removes what nobody needs any more, and watches the cursor.
func (r *Reader) Run(ctx context.Context) error {
	if r.follow == nil {
		return r.keep(ctx)
	}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return r.keep(ctx) })
	group.Go(func() error { return r.follow.run(ctx, r.usage.floor()) })
	return group.Wait()
}

func (r *Reader) keep(ctx context.Context) error {
	every := r.saveEvery()
	save := time.NewTicker(every)
	defer save.Stop()
	trim := time.NewTicker(r.opt.TrimEvery)
	defer trim.Stop()
	var tell time.Time
	said := func(what string, err error) {
		if err != nil && ctx.Err() == nil && time.Now().After(tell) {
			tell = time.Now().Add(insistEvery)
			r.opt.Logger.Warn(what+" failed, retrying", "buffer", r.opt.Name, "error", err)
		}
	}
	tidy := func() {
		r.Recount(ctx)
		said("trim", r.Trim(ctx))
		r.checkLate(ctx)
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-r.trimNow:
			tidy()
		case <-save.C:
			said("save of the state", r.saveFloor(ctx))
			if now := r.saveEvery(); now != every {
				every = now
				save.Reset(every)
			}
		case <-trim.C:
			tidy()
		}
	}
}

// Shards that a process reads beside each other save less often the more there are, so that they cost the store about as much as a few: up to savesFew as often as one, from
// savesMany on at most every saveAtMost.
const (
	savesFew   = 4
	savesMany  = 20
	saveAtMost = time.Second
)

// saveEvery is how often the state is saved.
func (r *Reader) saveEvery() time.Duration {
	if r.opt.Beside == nil {
		return r.opt.SaveEvery
	}
	return spacedBy(r.opt.SaveEvery, r.opt.Beside())
}

// spacedBy is how often each of n shards saves its state.
func spacedBy(every time.Duration, n int) time.Duration {
	if n <= savesFew || every >= saveAtMost {
		return every
	}
	return every + (saveAtMost-every)*time.Duration(min(n, savesMany)-savesFew)/(savesMany-savesFew)
}

// Recount corrects the count of pending messages if it must be 0: everything that is stored was read and is done.
func (r *Reader) Recount(ctx context.Context) {
	count, idle := r.usage.idle()
	if count == 0 || !idle {
		return
	}
	bounds, err := r.driver.Bounds(ctx)
	r.mu.Lock()
	idle = err == nil && len(r.held) == 0 && len(r.foreign) == 0 && bounds.Last == r.read
	r.mu.Unlock()
	if idle {
		r.usage.clear(count)
	}
}

// Trim saves what was seen, and then removes the blocks that are done. The order matters: see recovery. If the state cannot be saved, for want of room perhaps,
// what the last saved one covers is removed all the same.
func (r *Reader) Trim(ctx context.Context) error {
	saving := r.save(ctx, false)
	r.saving.Lock()
	defer r.saving.Unlock()
	r.mu.Lock()
	keep, byID, doubted := r.saved+1, r.byID, r.doubted()
	r.mu.Unlock()
	if doubted {
		return saving // the floor may be of entries that are not there any more
	}
	if byID {
		keep = r.keepIDs(time.Now())
		r.mu.Lock()
		r.keepFrom = max(1, keep)
		r.mu.Unlock()
	}
	keep = min(keep, r.neededBySiblings())
	if keep <= r.trimmed {
		return saving
	}
	if err := r.driver.Trim(ctx, keep); err != nil {
		return errors.Join(saving, err)
	}
	r.trimmed = keep
	return saving
}

// neededBySiblings is the first entry that another shard may still read; nothing before it is removed. What another shard has saved counts only if it has passed every entry that took the
// place of a lost one: its floor is of the lost ones otherwise.
func (r *Reader) neededBySiblings() uint64 {
	if r.shards == 1 {
		return math.MaxUint64
	}
	var needs []Need
	s, known := r.driver.(Siblings)
	if known {
		needs, known = s.Needs()
	}
	if !known || len(needs) != r.shards {
		return 0
	}
	r.mu.Lock()
	raised := r.raised
	r.mu.Unlock()
	first := uint64(math.MaxUint64)
	for i, n := range needs {
		switch {
		case i == r.shard:
		case n.Base < raised:
			return 0
		default:
			first = min(first, n.From)
		}
	}
	return first
}

// keepIDs returns the first entry that must stay for its ids: they are read back from the blocks at the next start. The window is of this process's time:
// being dead does not make ids old. saving is held.
func (r *Reader) keepIDs(now time.Time) uint64 {
	r.trimMark = append(r.trimMark, trimMark{r.saved, now})
	i := 0
	for i+1 < len(r.trimMark) && now.Sub(r.trimMark[i+1].at) > r.opt.IDWindow {
		i++
	}
	r.trimMark = r.trimMark[i:]
	if now.Sub(r.trimMark[0].at) <= r.opt.IDWindow {
		return 0
	}
	return r.trimMark[0].floor + 1
}

// save stores what was seen as of the floor, and how far the store reached: an end that is lost would not be missed otherwise.
func (r *Reader) save(ctx context.Context, always bool) error {
	known := r.tail.known.Load() // before the store is asked: more is stored meanwhile
	bounds, err := r.driver.Bounds(ctx)
	if err != nil {
		return fmt.Errorf("save state: %w", err)
	}
	if err := r.saveUpTo(ctx, bounds.Last, always); err != nil {
		return err
	}
	if doubt := r.checkEnd(ctx, bounds.Last, known); doubt != nil {
		return fmt.Errorf("%w: %w", errDoubt, doubt)
	}
	return nil
}

// saveFloor saves what was done since it was saved last. It does not ask how far the store reaches: at least as far as was read.
func (r *Reader) saveFloor(ctx context.Context) error {
	r.mu.Lock()
	read, moved := r.read, r.floor != r.saved || r.progressed
	if r.shards > 1 {
		moved = r.progressed // what passes of others is saved with the next trim
	}
	r.mu.Unlock()
	if !moved {
		return nil
	}
	return r.saveUpTo(ctx, read, false)
}

func (r *Reader) saveUpTo(ctx context.Context, stored uint64, always bool) error {
	r.saving.Lock()
	defer r.saving.Unlock()
	r.mu.Lock()
	floor, last := r.floor, max(stored, r.savedLast, r.read, r.tail.known.Load())
	keep := uint64(0)
	if r.shards > 1 && r.byID {
		keep = max(1, r.keepFrom)
	}
	if floor == r.saved && last == r.savedLast && keep == r.savedKeep && !r.progressed && !always {
		r.mu.Unlock()
		return nil
	}
	state := savedState{
		floor: floor, last: last, base: r.floorBase, top: max(r.top, max(r.writeBase, r.readBase)+last),
		consumed: r.consumedFloor(), keep: keep, seen: r.forgotten.Marshal(), progress: r.progressNow(),
	}
	progressed := r.progressed
	r.progressed = false
	b := state.marshal()
	r.mu.Unlock()
	if err := r.driver.SaveState(ctx, b); err != nil {
		r.mu.Lock()
		r.progressed = r.progressed || progressed
		if r.unsaved.IsZero() {
			r.unsaved = time.Now()
		}
		r.mu.Unlock()
		return fmt.Errorf("save state: %w", err)
	}
	r.mu.Lock()
	r.saved, r.savedLast, r.savedKeep, r.unsaved = floor, last, keep, time.Time{}
	r.mu.Unlock()
	return r.savePending(ctx)
}

// errDoubt means that the state is saved, and that the store does not have what it says is stored.
var errDoubt = errors.New("store ends early")

// closePause is between attempts to save at the end.
const closePause = 50 * time.Millisecond

// Close saves how far the reader came, so that the next one need not look, and closes the driver.
func (r *Reader) Close(ctx context.Context) error {
	err := r.save(ctx, false)
	for errors.Is(err, context.DeadlineExceeded) && sleep(ctx, closePause) {
		err = r.save(ctx, false) // the request went with a broker that was killed
	}
	if errors.Is(err, ErrMissing) {
		r.tail.gone.Store(true)
		if r.InMemory() { // the number of messages that are lost with it is known exactly now
			err = errors.Join(err, r.savePending(ctx))
		}
	}
	if errors.Is(err, errDoubt) {
		r.opt.Logger.Warn("store may have lost its end, the next start finds out", "buffer", r.opt.Name, "error", err)
		err = nil
	}
	if err == nil {
		// What is done takes room until the next run, and no more than that.
		short, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		if err := r.Trim(short); err != nil {
			r.opt.Logger.Warn("trim failed at the end, the next run removes what is done", "buffer", r.opt.Name, "error", err)
		}
	}
	return errors.Join(err, r.driver.Close())
}
