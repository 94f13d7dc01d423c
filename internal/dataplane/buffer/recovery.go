package buffer

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/levada-io/levada/internal/flow"
)

// recover takes up the saved state, and nothing else: a broker's acknowledgements can step over what its replica could not read. All after the saved floor comes
// again, and what was made of it is dropped downstream by its position.
func (p *Partition) recover(ctx context.Context) error {
	state, err := p.driver.LoadState(ctx)
	if err != nil {
		return fmt.Errorf("load state: %w", err)
	}
	if len(state) > 0 {
		s, err := unmarshalState(state)
		if err != nil {
			return err
		}
		p.saved, p.savedLast, p.earlier = s.floor, s.last, s.progress
		p.readBase, p.floorBase, p.top = s.base, s.base, s.top
		if err := errors.Join(p.seen.Unmarshal(s.seen), p.forgotten.Unmarshal(s.seen)); err != nil {
			return err
		}
	}
	bounds, err := p.driver.Bounds(ctx)
	if err != nil {
		return err
	}
	given := false // something was given up: that is saved, or it would be told again
	lost := loss{floor: p.saved, base: p.floorBase}
	if bounds.Last < p.savedLast {
		lost.add(bounds.Last+1, p.savedLast, fmt.Errorf("%w: blocks up to %d were stored, but the last one there is %d", ErrLostEnd, p.savedLast, bounds.Last))
		p.saved, p.savedLast = min(p.saved, bounds.Last), bounds.Last
	}
	if bounds.First > p.saved+1 {
		lo, hi := p.saved+1, bounds.First-1
		found, err := p.find(ctx, lo, min(hi, lo+findAtOnce-1))
		if err != nil {
			return err
		}
		if len(found) == 0 || found[0].Seq != lo {
			if err := p.damaged(ctx, lo, hi, nil, missing(lo, hi)); err != nil {
				return err
			}
			p.saved, given = hi, true
		}
	}
	if err := p.recall(ctx, &lost); err != nil {
		return err
	}
	p.floor = p.saved
	p.trimmed = bounds.First
	p.opened.Store(bounds.Last)
	p.known.Store(bounds.Last)
	// What is retained before the saved floor matters only for its ids; the positions are in the state.
	now, pieces, base := time.Now(), pieces{}, p.floorBase
	next, err := p.scan(ctx, bounds, func(e Entry) {
		base = max(base, entryBase(e))
		if lost.see(e) {
			// The floor is of the entries that were here before.
			p.floor = min(p.floor, e.Seq-1)
		}
		b, n, err := headOf(e.Data)
		data := e.Data
		switch {
		case err != nil: // Read meets it again and says so
			return
		case e.Seq > p.floor:
			p.pending.Add(int64(n - p.doneEarlier(e, n)))
			return
		case isChunk(e.Data):
			if b, data = pieces.whole(e.Data); b == nil {
				return // there is more of it
			}
		}
		if b.ByID {
			p.byID = true
			if full, err := flow.Decode(data); err == nil {
				p.seen.Admit(full, now)
			}
		}
	})
	if err != nil {
		return fmt.Errorf("scan: %w", err)
	}
	if g, err := p.judge(ctx, &lost); err != nil {
		return err
	} else if g {
		given = true
	}
	p.saved = min(p.saved, p.floor)
	p.top = max(p.top, base+bounds.Last)
	p.writeBase = newBase(bounds.Last, p.top, now)
	p.driver.SetBase(p.writeBase)
	// Nothing comes after the end that would show that something is missing there.
	next = max(next, p.floor+1)
	if next <= bounds.Last {
		if err := p.damaged(ctx, next, bounds.Last, nil, missing(next, bounds.Last)); err != nil {
			return err
		}
		p.lostEnd = flow.Span{Lo: next, Hi: bounds.Last}
	}
	p.read = p.floor
	p.passLostEnd()
	if p.floor > p.saved || given {
		if err := p.save(ctx, given); err != nil {
			return err
		}
	}
	return p.driver.Resume(ctx, p.floor)
}

// loss is what recover learns about an end that the store has lost.
type loss struct {
	floor uint64 // all up to here was done before
	base  uint64 // of the entry at floor
	// span are the sequences concerned, and why says how that shows; Hi is 0 if there is no loss, or none that was not accepted before.
	span flow.Span
	why  error
	// again is the first entry that took the place of another and was not read; 0 if there is none. raised is the highest base of such entries.
	again, raised uint64
	// recorded says that there is a record, accepted what it says of raised bases.
	recorded bool
	accepted uint64
}

func (l *loss) add(first, last uint64, why error) {
	if l.span.Hi == 0 {
		l.span, l.why = flow.Span{Lo: first, Hi: last}, why
		return
	}
	l.span.Lo, l.span.Hi = min(l.span.Lo, first), max(l.span.Hi, last)
}

// see looks at a stored entry. It returns true at the first one that took the place of another and has not been read: the floor must be before it. One that was
// read has raised the base of the floor.
func (l *loss) see(e Entry) bool {
	raised := raisedBase(e)
	if raised == 0 || raised <= l.base {
		return false
	}
	if l.raised = max(l.raised, raised); raised > l.accepted {
		l.add(e.Seq, e.After, fmt.Errorf("%w: block %d was stored after blocks up to %d had been", ErrLostEnd, e.Seq, e.After))
	}
	if l.again != 0 {
		return false
	}
	l.again = e.Seq
	return true
}

// judge asks what to do about an end that is lost, if anything that was not done is lost with it. changed says that the state must be saved.
func (p *Partition) judge(ctx context.Context, l *loss) (changed bool, err error) {
	p.lostBase = max(l.accepted, l.raised)
	if l.span.Hi == 0 {
		if l.recorded && l.again == 0 { // all is done that made the record necessary
			err = p.driver.SaveDamage(ctx, nil)
		}
		return false, err
	}
	if lo := max(l.floor+1, l.span.Lo); lo <= l.span.Hi {
		why := fmt.Errorf("%w; blocks %d to %d were not done, and are lost", l.why, lo, l.span.Hi)
		p.opt.Metrics.Gap(int(min(l.span.Hi-lo+1, math.MaxInt32)))
		p.record(ctx, Damage{First: l.span.Lo, Last: l.span.Hi, Found: time.Now().UTC(), Why: l.why.Error(), LostEnd: true})
		if err := p.opt.OnCorrupt(lo, nil, why); err != nil {
			return false, err
		}
	} else {
		p.opt.Logger.Warn("store lost its end, going on: all lost blocks were done", "buffer", p.opt.Name, "first", l.span.Lo, "last", l.span.Hi, "error", l.why)
	}
	if l.again == 0 {
		return true, p.driver.SaveDamage(ctx, nil)
	}
	// Until the entries that took the place of others are done, each start meets them again.
	p.record(ctx, Damage{First: l.span.Lo, Last: l.span.Hi, Found: time.Now().UTC(), Why: l.why.Error(), LostEnd: true, Accepted: p.lostBase})
	return true, nil
}
