package buffer

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"
)

// Damage is what a partition keeps about entries that its store has lost: a later start says it again before it reads anything.
type Damage struct {
	First uint64    `json:"first"`
	Last  uint64    `json:"last"`
	Found time.Time `json:"found"`
	Why   string    `json:"why"`
	// LostEnd says that the store gave the sequences again. If Accepted is not 0, that needs no decision any more for entries whose raised base is not above it.
	LostEnd  bool   `json:"lostEnd,omitempty"`
	Accepted uint64 `json:"accepted,omitempty"`
}

// damaged notes durably that entries are lost, and asks what to do. nil: go on without them.
func (p *Partition) damaged(ctx context.Context, first, last uint64, data []byte, why error) error {
	p.opt.Metrics.Gap(int(last - first + 1))
	short, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	p.record(short, Damage{First: first, Last: last, Found: time.Now().UTC(), Why: why.Error()})
	if err := p.opt.OnCorrupt(first, data, why); err != nil {
		return err
	}
	if err := p.driver.SaveDamage(ctx, nil); err != nil {
		p.opt.Logger.Warn("damage record not removed", "buffer", p.opt.Name, "error", err)
	}
	return nil
}

// recall looks whether damage that an earlier run found is still there. What it finds of a lost end goes into lost.
func (p *Partition) recall(ctx context.Context, lost *loss) error {
	note, err := p.driver.LoadDamage(ctx)
	if err != nil || len(note) == 0 {
		return err
	}
	var d Damage
	if err := json.Unmarshal(note, &d); err != nil {
		return fmt.Errorf("record of damage: %w", err)
	}
	if d.LostEnd {
		if lost.recorded, lost.accepted = true, d.Accepted; d.Accepted == 0 {
			lost.add(d.First, d.Last, fmt.Errorf("%w, found at %s: %s", ErrLostEnd, d.Found.Format(time.RFC3339), strings.TrimPrefix(d.Why, ErrLostEnd.Error()+": ")))
		}
		return nil
	}
	whole := d.First > p.saved
	for lo := d.First; whole && lo <= d.Last; {
		hi := min(d.Last, lo+findAtOnce-1)
		found, err := p.find(ctx, lo, hi)
		if err != nil {
			return err
		}
		whole = len(found) == int(hi-lo+1)
		lo = hi + 1
	}
	switch {
	case d.Last <= p.saved: // it was accepted, and passed
	case whole:
		p.opt.Logger.Info("damaged blocks are there again", "buffer", p.opt.Name, "first", d.First, "last", d.Last, "found", d.Found)
	default:
		why := fmt.Errorf("%w: %d to %d, since %s: %s", ErrGap, d.First, d.Last, d.Found.Format(time.RFC3339), d.Why)
		if err := p.opt.OnCorrupt(d.First, nil, why); err != nil {
			return err
		}
	}
	return p.driver.SaveDamage(ctx, nil)
}

// record saves a record of damage. Without it the next start finds the damage again, if it can.
func (p *Partition) record(ctx context.Context, d Damage) {
	note, err := json.Marshal(d)
	if err == nil {
		err = p.insist(ctx, "saving what is damaged", func(ctx context.Context) error { return p.driver.SaveDamage(ctx, note) })
	}
	if err != nil {
		p.opt.Logger.Warn("damage not recorded", "buffer", p.opt.Name, "error", err)
	}
}
