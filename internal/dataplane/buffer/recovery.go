package buffer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strings"
	"time"

	"github.com/levada-io/levada/internal/dataplane/identity"
	"github.com/levada-io/levada/internal/flow"
)

// recovery works out where a reader begins: at the saved floor, and at nothing else. A broker's acknowledgements can step over what its replica could not read.
// All after the saved floor is delivered again, and what was made of it is dropped downstream by its position.
//
// Its steps, in order: the saved state; what of it the store does not have any more (its end, or the entries behind the floor); damage that an earlier run found;
// the entries that are stored, for their ids, their bases and how many messages wait; what to do about an end that is lost.
type recovery struct {
	*Reader // what the steps use of it: driver, log, damage, usage, options. Its place is not set before they have ended.
	place
	bounds Bounds
	lost   loss
	given  bool // something was given up: that is saved, or it would be reported again
	// raisedBase is the highest base of an entry that took the place of a lost one.
	raisedBase uint64
	next       uint64 // the sequence after the last entry that is there
}

func (r *Reader) recover(ctx context.Context) (*recovery, error) {
	c := &recovery{Reader: r, place: place{seen: identity.New(r.opt.IDWindow, r.opt.MaxIDs), forgotten: identity.New(r.opt.IDWindow, r.opt.MaxIDs)}}
	for _, step := range []func(context.Context) error{c.load, c.compare, c.recall, c.scan, c.judge, c.passEnd} {
		if err := step(ctx); err != nil {
			return nil, err
		}
	}
	return c, nil
}

// load takes up the saved state.
func (c *recovery) load(ctx context.Context) error {
	state, err := c.driver.LoadState(ctx)
	if err != nil {
		return fmt.Errorf("load state: %w", err)
	}
	s, err := readState(state)
	if err != nil || s == nil {
		return err
	}
	c.place.saved, c.place.savedLast, c.place.earlier = s.floor, s.last, s.progress
	c.place.readBase, c.place.floorBase, c.place.top = s.base, s.base, s.top
	return errors.Join(c.place.seen.Unmarshal(s.seen), c.place.forgotten.Unmarshal(s.seen))
}

// compare holds the saved state against what is stored.
func (c *recovery) compare(ctx context.Context) (err error) {
	p := &c.place
	if c.bounds, err = c.driver.Bounds(ctx); err != nil {
		return err
	}
	p.trimmed = c.bounds.First
	c.lost = loss{floor: p.saved, base: p.floorBase}
	if c.bounds.Last < p.savedLast {
		c.lost.add(c.bounds.Last+1, p.savedLast, fmt.Errorf("%w: blocks up to %d were stored, but the last one there is %d", ErrLostEnd, p.savedLast, c.bounds.Last))
		p.saved, p.savedLast = min(p.saved, c.bounds.Last), c.bounds.Last
	}
	if c.bounds.First <= p.saved+1 {
		return nil
	}
	lo, hi := p.saved+1, c.bounds.First-1
	found, err := c.log.find(ctx, lo, min(hi, lo+findAtOnce-1))
	if err != nil || len(found) > 0 && found[0].Seq == lo {
		return err
	}
	if err := c.damage.found(ctx, lo, hi, nil, missing(lo, hi)); err != nil {
		return err
	}
	p.saved, c.given = hi, true
	return nil
}

// recall looks whether damage that an earlier run found is still there.
func (c *recovery) recall(ctx context.Context) error {
	note, err := c.driver.LoadDamage(ctx)
	if err != nil || len(note) == 0 {
		return err
	}
	var d Damage
	if err := json.Unmarshal(note, &d); err != nil {
		return fmt.Errorf("record of damage: %w", err)
	}
	if d.LostEnd {
		if c.lost.recorded, c.lost.accepted = true, max(d.Accepted, d.Before); d.Accepted == 0 {
			c.lost.add(d.First, d.Last, fmt.Errorf("%w, found at %s: %s", ErrLostEnd, d.Found.Format(time.RFC3339), strings.TrimPrefix(d.Why, ErrLostEnd.Error()+": ")))
		}
		return nil
	}
	if d.Last > c.place.saved { // otherwise it was accepted, and passed
		whole, err := c.whole(ctx, d)
		if err != nil {
			return err
		}
		if whole {
			c.logger.Info("damaged blocks are there again", "buffer", c.name, "first", d.First, "last", d.Last, "found", d.Found)
		} else if err := c.opt.OnCorrupt(d.First, nil, fmt.Errorf("%w: %d to %d, since %s: %s", ErrGap, d.First, d.Last, d.Found.Format(time.RFC3339), d.Why)); err != nil {
			return err
		}
	}
	return c.driver.SaveDamage(ctx, nil)
}

// whole reports whether all is there again that was damaged.
func (c *recovery) whole(ctx context.Context, d Damage) (bool, error) {
	whole := d.First > c.place.saved
	for lo := d.First; whole && lo <= d.Last; {
		hi := min(d.Last, lo+findAtOnce-1)
		found, err := c.log.find(ctx, lo, hi)
		if err != nil {
			return false, err
		}
		whole = len(found) == int(hi-lo+1)
		lo = hi + 1
	}
	return whole, nil
}

// scan visits all that is stored.
func (c *recovery) scan(ctx context.Context) (err error) {
	p := &c.place
	p.floor = p.saved
	now, parts, base := time.Now(), pieces{}, p.floorBase
	c.next, err = c.log.scan(ctx, c.bounds, func(e Entry) {
		base = max(base, entryBase(e))
		c.raisedBase = max(c.raisedBase, raisedBase(e))
		if c.lost.see(e) {
			// The floor is of the entries that were here before.
			p.floor = min(p.floor, e.Seq-1)
		}
		if e.Foreign {
			return
		}
		if b, n, err := headOf(e.Data); err == nil { // otherwise Read meets it again and reports it
			c.see(e, b, n, parts, now)
		}
	})
	if err != nil {
		return fmt.Errorf("scan: %w", err)
	}
	p.top = max(p.top, base+c.bounds.Last)
	return nil
}

// see looks at a stored entry: what is above the floor counts as pending, and what is retained below it matters only for its ids; the positions are in the state.
func (c *recovery) see(e Entry, b *flow.Block, n int, parts pieces, now time.Time) {
	data := e.Data
	if e.Seq > c.place.floor {
		c.usage.stored(e.Seq, n-c.place.doneEarlier(e, n))
		return
	}
	if isChunk(data) {
		if b, data = parts.whole(data); b == nil {
			return // there is more of it
		}
	}
	if !b.ByID {
		return
	}
	c.place.byID = true
	if full, err := flow.Decode(data); err == nil {
		c.place.seen.Admit(full, now)
	}
}

// judge asks what to do about an end that is lost, if anything that was not done is lost with it.
func (c *recovery) judge(ctx context.Context) error {
	l := &c.lost
	c.place.lostBase = max(l.accepted, l.raised)
	if l.span.Hi == 0 {
		if l.recorded && l.again == 0 { // all is done that made the record necessary
			return c.driver.SaveDamage(ctx, nil)
		}
		return nil
	}
	note := Damage{First: l.span.Lo, Last: l.span.Hi, Found: time.Now().UTC(), Why: l.why.Error(), LostEnd: true, Before: l.accepted}
	if lo := max(l.floor+1, l.span.Lo); lo <= l.span.Hi {
		why := fmt.Errorf("%w; blocks %d to %d were not done, and are lost", l.why, lo, l.span.Hi)
		c.opt.Metrics.Gap(int(min(l.span.Hi-lo+1, math.MaxInt32)))
		c.damage.record(ctx, note)
		if err := c.opt.OnCorrupt(lo, nil, why); err != nil {
			return err
		}
	} else {
		c.logger.Warn("store lost its end, going on: all lost blocks were done", "buffer", c.name, "first", l.span.Lo, "last", l.span.Hi, "error", l.why)
	}
	c.given = true
	if l.again == 0 {
		return c.driver.SaveDamage(ctx, nil)
	}
	// Until the entries that took the place of others are done, each start meets them again.
	note.Accepted = c.place.lostBase
	c.damage.record(ctx, note)
	return nil
}

// passEnd asks what to do about entries that are missing at the end: nothing comes after them that would show it.
func (c *recovery) passEnd(ctx context.Context) error {
	c.place.saved = min(c.place.saved, c.place.floor)
	lo, hi := max(c.next, c.place.floor+1), c.bounds.Last
	if lo > hi {
		return nil
	}
	if err := c.damage.found(ctx, lo, hi, nil, missing(lo, hi)); err != nil {
		return err
	}
	c.place.lostEnd = flow.Span{Lo: lo, Hi: hi}
	return nil
}

// loss is what a recovery learns about an end that the store has lost.
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
