package buffer

import (
	"context"
	"fmt"
	"time"

	"github.com/levada-io/levada/internal/flow"
)

// A store that loses its end (writes that were not synced, an older copy) gives the sequences of the lost entries to others. If that happens under a running
// process, its cursor is already behind them, its floor may cover them, and a trim would remove them, unread. Three facts give it away:
//
//   - Each entry carries the highest sequence that its writer knew to be stored when it submitted the entry (Entry.After). One whose own sequence is
//     not above that took the place of another. It says so to every reader, at any time, and its number is raised above all that were lost; see number.go.
//   - A writer that is given such a sequence stops before it returns success. So nothing that was written after the loss is acknowledged to its source and
//     then overlooked: it has a sequence that nobody has read, or is written again.
//   - A store that keeps saying that it ends before what is known to be stored has lost its end, also when nothing is written. Once is not enough: a
//     deposed leader may answer for a moment.
//
// A partition that has seen any of these neither reads nor trims any more, and keeps a record of it. The next start takes up what was written since, at the first
// entry that took another's place. It asks the user only if entries are lost that were not done.

// lostEndAfter is how long a store must say that it ends too early before it is believed.
const lostEndAfter = 10 * time.Second

// know notes that the store has an entry of that sequence.
func (p *Partition) know(seq uint64) {
	for {
		known := p.known.Load()
		if seq <= known || p.known.CompareAndSwap(known, seq) {
			return
		}
	}
}

// acknowledged notes that the store gave seq to what was submitted when known was the highest sequence known. The error is ErrLostEnd if it can only have done so
// after losing its end: each sequence is given once, and a higher one than those given before.
func (p *Partition) acknowledged(ctx context.Context, seq, known uint64) error {
	if seq == 0 {
		return nil // the driver does not know
	}
	p.mu.Lock()
	twice := p.given.add(seq)
	p.mu.Unlock()
	if seq > known && !twice {
		p.know(seq)
		return nil
	}
	return p.loseEnd(ctx, seq, fmt.Errorf("%w: it stored a block as %d, and had stored blocks up to %d", ErrLostEnd, seq, p.known.Load()))
}

// checkEnd compares the last sequence that the store says it has with what was known to be stored before it was asked. The error is ErrLostEnd once it has said
// too little for long.
func (p *Partition) checkEnd(ctx context.Context, last, known uint64) error {
	p.mu.Lock()
	if last >= known {
		p.shortSince = time.Time{}
		p.mu.Unlock()
		return nil
	}
	if p.shortSince.IsZero() {
		p.shortSince = time.Now()
	}
	since := p.shortSince
	p.mu.Unlock()
	err := fmt.Errorf("%w: blocks up to %d were stored, and the last one there is %d", ErrLostEnd, known, last)
	if time.Since(since) < lostEndAfter {
		return fmt.Errorf("the broker may not be up to date: %v", err) //nolint:errorlint // it is not certain yet
	}
	return p.loseEnd(ctx, last+1, err)
}

// suspectEnd takes what the cursor says of a lost end. It returns nil as long as that may pass.
func (p *Partition) suspectEnd(ctx context.Context, why error) error {
	p.mu.Lock()
	if p.lost != nil {
		defer p.mu.Unlock()
		return p.lost
	}
	if p.cursorSince.IsZero() {
		p.cursorSince = time.Now()
	}
	since := p.cursorSince
	p.mu.Unlock()
	if time.Since(since) < lostEndAfter {
		return nil
	}
	bounds, err := p.driver.Bounds(ctx)
	if err != nil {
		return nil //nolint:nilerr // it is asked again
	}
	return p.loseEnd(ctx, min(bounds.Last+1, p.known.Load()), why)
}

// replaced returns ErrLostEnd if the next entry took the place of one that was lost, and that is news.
func (p *Partition) replaced(ctx context.Context, e Entry) error {
	raised := raisedBase(e)
	if raised == 0 {
		return nil
	}
	p.mu.Lock()
	news := raised > p.readBase && raised > p.lostBase
	p.mu.Unlock()
	if !news {
		return nil
	}
	p.know(e.After)
	return p.loseEnd(ctx, e.Seq, fmt.Errorf("%w: block %d was stored after blocks up to %d had been", ErrLostEnd, e.Seq, e.After))
}

// doubted reports whether the store may have lost its end: nothing is removed then. mu is held.
func (p *Partition) doubted() bool {
	return p.lost != nil || !p.shortSince.IsZero() || !p.cursorSince.IsZero()
}

// loseEnd stops the partition for good, and records why: entries from first on are not those that were stored there. It returns the error that all get from now on.
func (p *Partition) loseEnd(ctx context.Context, first uint64, why error) error {
	p.mu.Lock()
	if p.lost != nil {
		defer p.mu.Unlock()
		return p.lost
	}
	last, floor := max(p.known.Load(), first), p.floor
	undone := "all of them are done"
	if floor < last {
		undone = fmt.Sprintf("blocks after %d are not done yet", floor)
	}
	p.lost = fmt.Errorf("%w; %s. Nothing was removed. The next start takes up what was stored since, and says which blocks are lost, if any are", why, undone)
	if p.failed == nil {
		p.failed = fmt.Errorf("buffer %s: %w", p.opt.Name, p.lost)
	}
	lost, waiting := p.lost, p.waiting
	p.mu.Unlock()
	if waiting != nil {
		waiting(lost)
	}
	if last > floor {
		p.opt.Metrics.Gap(int(last - max(floor, first-1)))
	}
	short, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	p.record(short, Damage{First: first, Last: last, Found: time.Now().UTC(), Why: why.Error(), LostEnd: true})
	return lost
}

// lostItsEnd returns why the partition stopped for good, or nil.
func (p *Partition) lostItsEnd() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.lost
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
