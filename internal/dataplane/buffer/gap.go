package buffer

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/levada-io/levada/internal/flow"
)

// findAtOnce bounds how many entries are looked for in one call of Driver.Find: they are in memory together.
const findAtOnce = 64

// next gives the entry behind the last one, from the cursor or, where the cursor met nothing, from the store itself. When the store does not have it
// anywhere, that is damage; the entry after it comes if Options.OnCorrupt says so.
func (p *Partition) next(ctx context.Context) (Entry, error) {
	for {
		expected := p.expected()
		for len(p.ahead) > 0 && p.ahead[0].Seq < expected {
			p.ahead = p.ahead[1:]
		}
		if len(p.ahead) > 0 && p.ahead[0].Seq == expected {
			e := p.ahead[0]
			p.ahead = p.ahead[1:]
			return e, nil
		}
		var last uint64 // the entries up to here are stored, and the cursor gave none of them
		if len(p.ahead) > 0 {
			last = p.ahead[0].Seq - 1
		} else {
			e, err := p.await(ctx)
			var late *lateError
			switch {
			case errors.As(err, &late):
				last = late.last
			case err != nil:
				return Entry{}, err
			case e.Seq <= expected:
				p.ahead = append(p.ahead, e)
				continue
			default:
				p.ahead = append(p.ahead, e)
				last = e.Seq - 1
			}
		}
		if last < expected {
			continue
		}
		last = min(last, expected+findAtOnce-1)
		found, err := p.find(ctx, expected, last)
		if err != nil {
			return Entry{}, err
		}
		if len(found) > 0 && found[0].Seq == expected {
			p.ahead = append(found, p.ahead...)
			continue
		}
		if len(found) > 0 {
			last = found[0].Seq - 1
			p.ahead = append(found, p.ahead...)
		}
		if err := p.damaged(ctx, expected, last, nil, missing(expected, last)); err != nil {
			return Entry{}, err
		}
		p.mu.Lock()
		p.read = last
		p.mu.Unlock()
		p.skip(ctx, expected, last+1)
	}
}

func missing(first, last uint64) error {
	return fmt.Errorf("%w: %d to %d; the stream and every replica of it were asked", ErrGap, first, last)
}

// expected is the sequence that must come next.
func (p *Partition) expected() uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	if next := p.read + 1; next != p.lostEnd.Lo {
		return next
	}
	return p.lostEnd.Hi + 1
}

// lateError ends a wait for the cursor that gives nothing, although entries up to last are stored.
type lateError struct{ last uint64 }

func (*lateError) Error() string { return "the cursor gives nothing" }

// await waits for the cursor. Run ends the wait with a lateError.
func (p *Partition) await(ctx context.Context) (Entry, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	p.mu.Lock()
	p.waiting, p.waitingSince = cancel, time.Now()
	p.mu.Unlock()
	e, err := p.driver.Next(ctx)
	p.mu.Lock()
	p.waiting = nil
	if p.waited += time.Since(p.waitingSince); err == nil {
		p.waited = 0
	}
	p.mu.Unlock()
	if err != nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return e, err
}

// lateAfter is how long a cursor may give nothing although there is something, before the store itself is asked.
const lateAfter = 2 * time.Second

// checkLate ends the wait for a cursor that does not give what is stored: its server may have lost it, or the request.
func (p *Partition) checkLate(ctx context.Context) {
	p.mu.Lock()
	waiting, waited := p.waiting, p.waited+time.Since(p.waitingSince)
	p.mu.Unlock()
	if waiting == nil || waited < lateAfter {
		return
	}
	bounds, err := p.driver.Bounds(ctx)
	if err != nil || bounds.Last < p.expected() {
		return
	}
	waiting(&lateError{bounds.Last})
}

// find asks the store and its replicas, for as long as it takes to ask all.
func (p *Partition) find(ctx context.Context, lo, hi uint64) ([]Entry, error) {
	var found []Entry
	err := p.insist(ctx, fmt.Sprintf("reading stored blocks %d to %d", lo, hi), func(ctx context.Context) (err error) {
		found, err = p.driver.Find(ctx, lo, hi, func(e Entry) bool { return intact(e.Data) })
		return err
	})
	return found, err
}

// scan visits all that is stored, also what only some replica has. It returns the sequence after the last entry that is there.
func (p *Partition) scan(ctx context.Context, bounds Bounds, visit func(Entry)) (next uint64, err error) {
	next = bounds.First
	from := bounds.First // what is before it was visited, or looked for and is nowhere
	see := func(e Entry) {
		next, from = e.Seq+1, e.Seq+1
		visit(e)
	}
	fill := func(hi uint64) error {
		for from <= hi {
			to := min(hi, from+findAtOnce-1)
			found, err := p.find(ctx, from, to)
			if err != nil {
				return err
			}
			for _, e := range found {
				see(e)
			}
			from = to + 1
		}
		return nil
	}
	// A cursor that stalls is tried again once, behind what was looked for instead: that may have made a replica the leader that has the rest.
	for stalls := 0; from <= bounds.Last; stalls++ {
		var stalled error
		err := p.insist(ctx, fmt.Sprintf("reading stored blocks from %d", from), func(ctx context.Context) error {
			err := p.driver.Scan(ctx, from, func(e Entry) error {
				if e.Seq > bounds.Last {
					return nil
				}
				if err := fill(e.Seq - 1); err != nil {
					return err
				}
				see(e)
				return nil
			})
			if errors.Is(err, ErrStalled) {
				stalled, err = err, nil
			}
			return err
		})
		look := bounds.Last
		switch {
		case err != nil:
			return 0, err
		case stalled != nil && stalls == 0:
			look = min(look, from+findAtOnce-1)
		}
		if err := fill(look); err != nil {
			return 0, err
		}
	}
	return next, nil
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
