package buffer

import (
	"context"
	"encoding/json"
	"time"
)

// Damage is what a partition keeps about entries that its store has lost: a later start says it again before it reads anything.
//
// It is JSON, stored beside the log and apart from the state: it must survive a state that cannot be read.
type Damage struct {
	// First to Last are the sequences that are lost.
	First uint64    `json:"first"`
	Last  uint64    `json:"last"`
	Found time.Time `json:"found"`
	Why   string    `json:"why"`
	// LostEnd says that the store gave the sequences again. If Accepted is not 0, that needs no decision any more for entries whose raised base is not above it.
	LostEnd  bool   `json:"lostEnd,omitempty"`
	Accepted uint64 `json:"accepted,omitempty"`
	// Before is what was accepted of earlier losses: their entries are there, and no part of this one.
	Before uint64 `json:"before,omitempty"`
}

// damages keeps the record of damage, and asks what to do about it.
type damages struct {
	store StateStore
	retrier
	decide  func(seq uint64, data []byte, err error) error // Options.OnCorrupt
	metrics Metrics
}

// found notes durably that entries are lost, and asks what to do. nil: go on without them.
func (d damages) found(ctx context.Context, first, last uint64, data []byte, why error) error {
	d.metrics.Gap(int(last - first + 1))
	short, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	d.record(short, Damage{First: first, Last: last, Found: time.Now().UTC(), Why: why.Error()})
	if err := d.decide(first, data, why); err != nil {
		return err
	}
	if err := d.store.SaveDamage(ctx, nil); err != nil {
		d.logger.Warn("damage record not removed", "buffer", d.name, "error", err)
	}
	return nil
}

// record saves a record of damage. Without it the next start finds the damage again, if it can.
func (d damages) record(ctx context.Context, what Damage) {
	note, err := json.Marshal(what)
	if err == nil {
		err = d.insist(ctx, "saving what is damaged", func(ctx context.Context) error { return d.store.SaveDamage(ctx, note) })
	}
	if err != nil {
		d.logger.Warn("damage not recorded", "buffer", d.name, "error", err)
	}
}
