package buffer

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/levada-io/levada/internal/flow"
)

// findAtOnce bounds how many entries are looked for in one call of Log.Find: they are in memory together.
const findAtOnce = 64

// next gives the entry behind the last one, from the cursor or, where the cursor met nothing, from the store itself. When the store does not have it
// anywhere, that is damage; the entry after it comes if Options.OnCorrupt returns nil.
func (r *Reader) next(ctx context.Context) (Entry, error) {
	for {
		expected := r.expected()
		for len(r.ahead) > 0 && r.ahead[0].Seq < expected {
			r.ahead = r.ahead[1:]
		}
		if len(r.ahead) > 0 && r.ahead[0].Seq == expected {
			e := r.ahead[0]
			r.ahead = r.ahead[1:]
			return e, nil
		}
		last, err := r.gapUpTo(ctx)
		if err != nil {
			return Entry{}, err
		}
		if last < expected {
			continue
		}
		if err := r.fill(ctx, expected, min(last, expected+findAtOnce-1)); err != nil {
			return Entry{}, err
		}
	}
}

// gapUpTo waits until something is known to be stored, and returns up to where the cursor gave none of it. What it gave instead is in ahead then.
func (r *Reader) gapUpTo(ctx context.Context) (last uint64, err error) {
	if len(r.ahead) > 0 {
		return r.ahead[0].Seq - 1, nil
	}
	e, err := r.await(ctx)
	if late, ok := errors.AsType[*lateError](err); ok {
		r.driver.Reset()
		return late.last, nil
	}
	if err != nil {
		return 0, err
	}
	r.ahead = append(r.ahead, e)
	return e.Seq - 1, nil
}

// fill looks in the store for entries that the cursor did not give, and passes those that are nowhere if it may.
func (r *Reader) fill(ctx context.Context, first, last uint64) error {
	found, err := r.log.find(ctx, first, last)
	if err != nil {
		return err
	}
	r.ahead = append(found, r.ahead...)
	if len(found) > 0 {
		if last = found[0].Seq - 1; last < first {
			return nil
		}
	}
	if err := r.damage.found(ctx, first, last, nil, missing(first, last)); err != nil {
		return err
	}
	r.mu.Lock()
	r.read = last
	r.mu.Unlock()
	r.skip(first, last)
	return nil
}

func missing(first, last uint64) error {
	return fmt.Errorf("%w: %d to %d; the stream and every replica of it were asked", ErrGap, first, last)
}

// expected is the sequence that must come next.
func (r *Reader) expected() uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	if next := r.read + 1; next != r.lostEnd.Lo {
		return next
	}
	return r.lostEnd.Hi + 1
}

// lateError ends a wait for the cursor that gives nothing, although entries up to last are stored.
type lateError struct{ last uint64 }

func (*lateError) Error() string { return "the cursor gives nothing" }

// await waits for the cursor. Run ends the wait with a lateError.
func (r *Reader) await(ctx context.Context) (Entry, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	r.mu.Lock()
	r.waiting, r.waitingSince = cancel, time.Now()
	r.mu.Unlock()
	e, err := r.driver.Next(ctx)
	r.mu.Lock()
	r.waiting = nil
	if r.waited += time.Since(r.waitingSince); err == nil {
		r.waited = 0
	}
	r.mu.Unlock()
	if err != nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return e, err
}

// lateAfter is how long a cursor may give nothing although there is something, before the store itself is asked.
const lateAfter = 2 * time.Second

// checkLate ends the wait for a cursor that does not give what is stored: its server may have lost it, or the request.
func (r *Reader) checkLate(ctx context.Context) {
	r.mu.Lock()
	waiting, waited := r.waiting, r.waited+time.Since(r.waitingSince)
	r.mu.Unlock()
	if waiting == nil || waited < lateAfter {
		return
	}
	bounds, err := r.driver.Bounds(ctx)
	if err != nil {
		r.opt.Logger.Debug("what is stored is unknown, the cursor gives nothing", "buffer", r.opt.Name, "waited", waited, "error", err)
		return
	}
	if bounds.Last < r.expected() {
		return
	}
	r.opt.Logger.Debug("cursor does not give what is stored, asking the store", "buffer", r.opt.Name, "next", r.expected(), "last", bounds.Last, "waited", waited)
	waiting(&lateError{bounds.Last})
}

// finder looks for what is stored, in the log and in every replica of it, for as long as it takes to ask all.
type finder struct {
	log Log
	retrier
}

// find returns the entries from lo to hi that are there as they were written.
func (f finder) find(ctx context.Context, lo, hi uint64) ([]Entry, error) {
	var found []Entry
	err := f.insist(ctx, fmt.Sprintf("reading stored blocks %d to %d", lo, hi), func(ctx context.Context) (err error) {
		found, err = f.log.Find(ctx, lo, hi, func(e Entry) bool { return e.Foreign || intact(e.Data) })
		return err
	})
	return found, err
}

// scan visits all that is stored, also what only some replica has. It returns the sequence after the last entry that is there.
func (f finder) scan(ctx context.Context, bounds Bounds, visit func(Entry)) (next uint64, err error) {
	s := scan{finder: f, last: bounds.Last, from: bounds.First, next: bounds.First, visit: visit}
	// A cursor that stalls is tried again once, behind what was looked for instead: that may have made a replica the leader that has the rest.
	for stalls := 0; s.from <= s.last; stalls++ {
		stalled, err := s.pass(ctx)
		if err != nil {
			return 0, err
		}
		look := s.last
		if stalled && stalls == 0 {
			look = min(look, s.from+findAtOnce-1)
		}
		if err := s.fill(ctx, look); err != nil {
			return 0, err
		}
	}
	return s.next, nil
}

// scan is one visit of all that is stored.
type scan struct {
	finder
	last  uint64 // the last entry to visit
	from  uint64 // what is before it was visited, or looked for and is nowhere
	next  uint64 // the sequence after the last entry that is there; next <= from
	visit func(Entry)
}

func (s *scan) see(e Entry) {
	s.next, s.from = e.Seq+1, e.Seq+1
	s.visit(e)
}

// pass visits what a cursor meets, and looks for what it jumps over. stalled says that it gave no more before the end.
func (s *scan) pass(ctx context.Context) (stalled bool, err error) {
	err = s.insist(ctx, fmt.Sprintf("reading stored blocks from %d", s.from), func(ctx context.Context) error {
		err := s.log.Scan(ctx, s.from, func(e Entry) error {
			if e.Seq > s.last {
				return nil
			}
			if err := s.fill(ctx, e.Seq-1); err != nil {
				return err
			}
			s.see(e)
			return nil
		})
		if stalled = errors.Is(err, ErrStalled); stalled {
			return nil
		}
		return err
	})
	return stalled, err
}

// fill looks for all from where the visit is up to hi.
func (s *scan) fill(ctx context.Context, hi uint64) error {
	for s.from <= hi {
		to := min(hi, s.from+findAtOnce-1)
		found, err := s.find(ctx, s.from, to)
		if err != nil {
			return err
		}
		for _, e := range found {
			s.see(e)
		}
		s.from = to + 1
	}
	return nil
}

// intact reports whether data is what was written.
func intact(data []byte) bool {
	if isChunk(data) {
		_, err := decodeChunk(data)
		return err == nil
	}
	_, err := flow.Decode(data)
	return err == nil
}
