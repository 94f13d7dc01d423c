package buffer

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"sync"
	"sync/atomic"
	"time"
)

// room is what is left of the limit of a partition. The usages of its shards add to it.
type room struct {
	limit    int          // writers wait at this many pending messages
	pending  atomic.Int64 // of all usages; written with mu held
	reserved atomic.Int64 // messages that are about to be written by those who do not wait for room

	mu   sync.Mutex
	free chan struct{} // closed and replaced when pending falls below limit
}

func newRoom(limit int) *room { return &room{limit: limit, free: make(chan struct{})} }

// add changes what is pending, and wakes writers if there is room now.
func (r *room) add(n int) {
	if n == 0 {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.pending.Add(int64(n))
	if before := now - int64(n); before >= int64(r.limit) && now < int64(r.limit) {
		close(r.free)
		r.free = make(chan struct{})
	}
}

// wait waits until there is room. full is called before it waits.
func (r *room) wait(ctx context.Context, full func()) error {
	for told := false; r.pending.Load() >= int64(r.limit); told = true {
		if !told {
			full()
		}
		r.mu.Lock()
		free, is := r.free, r.pending.Load() >= int64(r.limit)
		r.mu.Unlock()
		if !is {
			return nil
		}
		select {
		case <-free:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}

// reserve takes room for one message, if there is any.
func (r *room) reserve() bool {
	if r.pending.Load()+r.reserved.Add(1) > int64(r.limit) {
		r.reserved.Add(-1)
		return false
	}
	return true
}

// usage is how many messages of a shard are stored or being stored and neither consumed nor done. A block counts once however it becomes known: by
// the receipt of a write of this process, by following the log, or by reading it. So nothing is lost or counted twice when another process writes as well.
//
// Where the reader is in the same process, it says what it reads and what is done (read, done). Elsewhere a writer follows the log (stored) and the
// state that the reader saves (saved).
type usage struct {
	room    *room        // of the partition
	pending atomic.Int64 // unsettled + total; written with mu held

	mu        sync.Mutex
	unsettled int // messages of writes of this process whose receipts are out
	total     int // messages that are stored and not done; never below 0
	// passed is how far entries are accounted for: the last one that the reader of this process took, or the floor that a reader elsewhere saved.
	// Those up to here that are not done count in total, and are not in entries. It never falls.
	passed uint64
	// entries are the messages of stored entries above passed. Invariant: with partial done, they count in total.
	entries map[uint64]int
	partial map[uint64]progress // what a reader elsewhere has done of entries above passed
}

func newUsage(r *room) *usage { return &usage{room: r, entries: map[uint64]int{}} }

// update recounts pending after a change. mu is held.
func (u *usage) update() {
	now := int64(u.unsettled + u.total)
	u.room.add(int(now - u.pending.Swap(now)))
}

// submitted counts messages that are being stored.
func (u *usage) submitted(messages int) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.unsettled += messages
	u.update()
}

// settled ends what submitted began: the entry is stored as seq, or seq is 0 if it is not stored, or nobody knows where.
func (u *usage) settled(seq uint64, messages int) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.unsettled -= messages
	u.add(seq, messages)
	u.update()
}

// stored counts an entry that somebody has stored.
func (u *usage) stored(seq uint64, messages int) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.add(seq, messages)
	u.update()
}

// add counts an entry unless it is known. mu is held.
func (u *usage) add(seq uint64, messages int) {
	if _, known := u.entries[seq]; known || seq <= u.passed {
		return
	}
	u.entries[seq] = messages
	u.total += u.undone(seq, messages)
}

// undone is how many messages of an entry above passed count. mu is held.
func (u *usage) undone(seq uint64, messages int) int {
	if done, ok := u.partial[seq]; ok {
		return messages - done.count(messages)
	}
	return messages
}

// read takes over an entry for the reader of this process, who has so many messages of it to do.
func (u *usage) read(seq uint64, messages int) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if was, known := u.entries[seq]; known {
		messages -= was
		delete(u.entries, seq)
	}
	u.passed = max(u.passed, seq)
	u.total += messages
	u.update()
}

// done takes off messages of entries that were read: they are done, or consumed.
func (u *usage) done(messages int) {
	if messages == 0 {
		return
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	u.total = max(0, u.total-messages)
	u.update()
}

// saved takes up what a reader elsewhere has saved: all up to floor is done or consumed, and of some entries above it a part is done.
func (u *usage) saved(floor uint64, partial map[uint64]progress) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.passed, u.partial, u.total = max(u.passed, floor), partial, 0
	maps.DeleteFunc(u.entries, func(seq uint64, _ int) bool { return seq <= u.passed })
	for seq, messages := range u.entries {
		u.total += u.undone(seq, messages)
	}
	u.update()
}

// pass begins behind floor: entries up to there are done.
func (u *usage) pass(floor uint64) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.passed = max(u.passed, floor)
}

// floor is how far entries are accounted for.
func (u *usage) floor() uint64 {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.passed
}

// clear corrects the count when nothing is stored that is not done, if it still is what it was.
func (u *usage) clear(before int) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.unsettled == 0 && u.total == before && len(u.entries) == 0 {
		u.total = 0
		u.update()
	}
}

// idle reports whether nothing is being stored, and how many messages count all the same.
func (u *usage) idle() (count int, idle bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.total, u.unsettled == 0 && len(u.entries) == 0
}

// follower keeps a usage up to date with what other processes store.
type follower struct {
	driver Usage
	usage  *usage
	tail   *tail
	retry  retrier
}

// run follows the log after seq until ctx ends. It also learns how far the store reaches, for what this process writes; see lostend.go.
func (f *follower) run(ctx context.Context, seq uint64) error {
	return f.repeat(ctx, "following the log", func(ctx context.Context) error {
		return f.driver.Follow(ctx, seq, func(stored uint64, messages int) {
			seq = stored
			f.tail.know(stored)
			f.usage.stored(stored, messages)
		})
	})
}

// watch follows what the reader saves until ctx ends.
func (f *follower) watch(ctx context.Context) error {
	return f.repeat(ctx, "following the reader", func(ctx context.Context) error { return f.driver.WatchState(ctx, f.take) })
}

// ask asks for the saved state now and then while the partition is full: what the watch gives may not come.
func (f *follower) ask(ctx context.Context, every time.Duration) error {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
		if f.usage.room.pending.Load() < int64(f.usage.room.limit) {
			continue
		}
		if state, err := f.driver.LoadState(ctx); err == nil {
			f.take(state)
		}
	}
}

// take takes up a saved state.
func (f *follower) take(state []byte) {
	s, err := readState(state)
	if err != nil {
		f.retry.logger.Warn("saved state of the reader cannot be read, its buffer may seem full", "buffer", f.retry.name, "error", err)
	}
	if s == nil {
		return
	}
	f.tail.know(s.last)
	f.usage.saved(s.passed(), s.progress)
}

// repeat begins again what ends before ctx does. The error is one that does not go away.
func (f *follower) repeat(ctx context.Context, what string, do func(context.Context) error) error {
	wait := pauses{retrier: f.retry, what: what}
	for {
		begun := time.Now()
		err := do(ctx)
		if time.Since(begun) > insistAfter {
			wait.succeeded()
		}
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, ErrMissing), errors.Is(err, ErrClosed):
			return fmt.Errorf("buffer %s: %s: %w", f.retry.name, what, err)
		}
		if wait.pause(ctx, err) != nil {
			return nil
		}
	}
}
