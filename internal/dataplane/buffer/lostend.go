package buffer

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/levada-io/levada/internal/flow"
)

// A store that loses its end (writes that were not synced, an older copy) gives the sequences of the lost entries to others. If that happens under a running
// process, its cursor is already behind them, its floor may cover them, and a trim would remove them, unread. Three facts give it away:
//
//   - Each entry carries the highest sequence that its writer knew to be stored when it submitted the entry (Entry.After). One whose own sequence is
//     not above that took the place of another. It marks itself as such for every reader, at any time, and its number is raised above all that were lost; see number.go.
//   - A writer that is given such a sequence stops before it returns success. So nothing that was written after the loss is acknowledged to its source and
//     then overlooked: it has a sequence that nobody has read, or is written again.
//   - A store that keeps saying that it ends before what is known to be stored has lost its end, also when nothing is written. Once is not enough: a
//     deposed leader may answer for a moment.
//
// A partition that has seen any of these neither reads nor trims any more, and keeps a record of it. The next start takes up what was written since, at the first
// entry that took another's place. It asks the user only if entries are lost that were not done.

// lostEndAfter is how long a store must say that it ends too early before it is believed.
const lostEndAfter = 10 * time.Second

// tail is what a process knows about the end of a log. The writer and the reader of a partition share it if they are in one process.
type tail struct {
	// known is the highest sequence that this process knows to be stored, or to have been. It never falls.
	known atomic.Uint64
	// opened is the last sequence that was stored when the partition was opened, stored the number of entries that this process has seen being stored since.
	// Invariant: opened + stored is at most the last sequence stored. It is less while an entry is stored whose acknowledgement was lost.
	opened, stored atomic.Uint64
	gone           atomic.Bool // the log is missing

	mu    sync.Mutex
	given sequences // what the store gave to this process's entries
	lost  error     // not nil once the store is known to have lost its end
}

// open notes what is stored before this process writes anything.
func (t *tail) open(last uint64) {
	t.opened.Store(last)
	t.know(last)
}

// know notes that the store has an entry of that sequence.
func (t *tail) know(seq uint64) {
	for {
		known := t.known.Load()
		if seq <= known || t.known.CompareAndSwap(known, seq) {
			return
		}
	}
}

// acknowledged notes that the store gave seq to what was submitted when known was the highest sequence known. It returns false if the store can only have done so
// after losing its end: each sequence is given once, and a higher one than those given before. seq is 0 if the driver does not know.
func (t *tail) acknowledged(seq, known uint64) bool {
	if seq == 0 {
		return true
	}
	t.mu.Lock()
	twice := t.given.add(seq)
	t.mu.Unlock()
	return seq > known && !twice
}

// lose notes that the store has lost its end. It returns the error that all get from now on: that of the first call.
func (t *tail) lose(why error) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.lost == nil {
		t.lost = why
	}
	return t.lost
}

// lostEnd returns why the partition stopped for good, or nil.
func (t *tail) lostEnd() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.lost
}

// checkEnd compares the last sequence that the store says it has with what was known to be stored before it was asked. The error is ErrLostEnd once it has said
// too little for long.
func (r *Reader) checkEnd(ctx context.Context, last, known uint64) error {
	r.mu.Lock()
	if last >= known {
		r.shortSince = time.Time{}
		r.mu.Unlock()
		return nil
	}
	if r.shortSince.IsZero() {
		r.shortSince = time.Now()
	}
	since := r.shortSince
	r.mu.Unlock()
	err := fmt.Errorf("%w: blocks up to %d were stored, and the last one there is %d", ErrLostEnd, known, last)
	if time.Since(since) < lostEndAfter {
		return fmt.Errorf("the broker may not be up to date: %v", err) // it is not certain yet
	}
	return r.loseEnd(ctx, last+1, err)
}

// suspectEnd takes what the cursor says of a lost end. It returns nil as long as that may pass.
func (r *Reader) suspectEnd(ctx context.Context, why error) error {
	r.mu.Lock()
	if lost := r.tail.lostEnd(); lost != nil {
		r.mu.Unlock()
		return lost
	}
	if r.cursorSince.IsZero() {
		r.cursorSince = time.Now()
	}
	since := r.cursorSince
	r.mu.Unlock()
	if time.Since(since) < lostEndAfter {
		return nil
	}
	bounds, err := r.driver.Bounds(ctx)
	if err != nil {
		return nil // it is asked again
	}
	return r.loseEnd(ctx, min(bounds.Last+1, r.tail.known.Load()), why)
}

// replaced returns ErrLostEnd if the next entry took the place of one that was lost, and that is news.
func (r *Reader) replaced(ctx context.Context, e Entry) error {
	raised := raisedBase(e)
	if raised == 0 {
		return nil
	}
	r.mu.Lock()
	news := raised > r.readBase && raised > r.lostBase
	r.mu.Unlock()
	if !news {
		return nil
	}
	r.tail.know(e.After)
	return r.loseEnd(ctx, e.Seq, fmt.Errorf("%w: block %d was stored after blocks up to %d had been", ErrLostEnd, e.Seq, e.After))
}

// doubted reports whether the store may have lost its end: nothing is removed then. mu is held.
func (r *Reader) doubted() bool {
	return r.tail.lostEnd() != nil || !r.shortSince.IsZero() || !r.cursorSince.IsZero()
}

// loseEnd stops the partition for good, and records why: entries from first on are not those that were stored there. It returns the error that all get from now on.
func (r *Reader) loseEnd(ctx context.Context, first uint64, why error) error {
	r.mu.Lock()
	if lost := r.tail.lostEnd(); lost != nil {
		r.mu.Unlock()
		return lost
	}
	last, floor := max(r.tail.known.Load(), first), r.floor
	undone := "all of them are done"
	if floor < last {
		undone = fmt.Sprintf("blocks after %d are not done yet", floor)
	}
	lost := r.tail.lose(fmt.Errorf("%w; %s. Nothing was removed. The next start takes up what was stored since, and says which blocks are lost, if any are", why, undone))
	if r.failed == nil {
		r.failed = fmt.Errorf("buffer %s: %w", r.opt.Name, lost)
	}
	waiting, before := r.waiting, r.lostBase
	r.mu.Unlock()
	if waiting != nil {
		waiting(lost)
	}
	if last > floor {
		r.opt.Metrics.Gap(int(last - max(floor, first-1)))
	}
	short, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	r.damage.record(short, Damage{First: first, Last: last, Found: time.Now().UTC(), Why: why.Error(), LostEnd: true, Before: before})
	return lost
}

// sequences is a set of numbers most of which come in order.
type sequences []flow.Span

// maxSequences bounds the parts of the set. Beyond it the holes between the lowest ones are filled: they belong to other writers, and are long past.
const maxSequences = 256

// add adds a number, and reports whether it was there.
func (s *sequences) add(seq uint64) (there bool) {
	if n := len(*s); n > 0 && (*s)[n-1].Hi+1 == seq {
		(*s)[n-1].Hi = seq
		return false
	}
	if inSpans(*s, seq) {
		return true
	}
	*s = addSpan(*s, flow.Span{Lo: seq, Hi: seq})
	if len(*s) > maxSequences {
		(*s)[1].Lo = (*s)[0].Lo
		*s = (*s)[1:]
	}
	return false
}
