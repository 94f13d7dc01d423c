package stream

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
)

// Skip puts a record of this batch into quarantine, with the reason why. The handler must leave no effect of it. The handler's other effects
// and the quarantine become durable together.
//
// A record is skipped once: later calls for it change nothing. A record that is not in the batch (another number, or another key under its
// number) halts the job when the handler returns, with nothing committed: which record the handler has left out is unknown then.
func (b *Batch) Skip(r Record, why error) {
	own, ok := b.find(r)
	if !ok {
		if b.misused == nil {
			b.misused = b.foreign(r, why)
		}
		return
	}
	if own.Seq <= b.last && slices.ContainsFunc(b.skipped, func(q Quarantined) bool { return q.Seq == own.Seq }) {
		return
	}
	b.last = max(b.last, own.Seq)
	if why == nil {
		why = errNoReason
	}
	attempt := NewAttempt(ClassRefused, why)
	b.skipped = append(b.skipped, Quarantined{Seq: own.Seq, Key: clone(own.Key), Payload: clone(own.Value), Error: attempt.Error, Class: ClassRefused, Attempts: 1, History: []Attempt{attempt}})
}

// errNoReason stands for the error that a handler did not give.
var errNoReason = errors.New("the handler gave no reason")

// records returns what the handler was given: it may consume b.Records.
func (b *Batch) records() []Record {
	if b.all != nil {
		return b.all
	}
	return b.Records
}

// find returns the batch's own record: its value is what came, also if the handler has changed its copy.
func (b *Batch) find(r Record) (Record, bool) {
	all := b.records()
	i := 0
	if len(all) > 0 && r.Seq >= all[0].Seq {
		i = int(min(r.Seq-all[0].Seq, uint64(len(all)))) // its place, unless records of the batch were in quarantine before, or the handler has sorted it
	}
	if i >= len(all) || all[i].Seq != r.Seq {
		i = slices.IndexFunc(all, func(own Record) bool { return own.Seq == r.Seq })
	}
	if i < 0 || !bytes.Equal(all[i].Key, r.Key) {
		return Record{}, false
	}
	return all[i], true
}

// foreign says what is wrong with a record that is not in the batch.
func (b *Batch) foreign(r Record, why error) error {
	all, there := b.records(), "which is empty"
	if n := len(all); n > 0 {
		there = fmt.Sprintf("which has %d records, from %d (key %q) to %d (key %q)", n, all[0].Seq, all[0].Key, all[n-1].Seq, all[n-1].Key)
	}
	err := fmt.Errorf("the handler called Batch.Skip with record %d (key %q), which is not in this batch of job %s, %s: pass a record of Batch.Records", r.Seq, r.Key, b.Job.ID, there)
	if why != nil {
		err = fmt.Errorf("%w (the reason given was: %v)", err, why)
	}
	return err
}

// Skipped returns the records that the handler has skipped so far. If it has called Skip with a record that is not in the batch, each of
// its records counts as skipped for that reason, so that a sink which replays a record does not take it as processed.
func (b *Batch) Skipped() []Quarantined {
	if b.misused == nil {
		return b.skipped
	}
	rows := make([]Quarantined, 0, len(b.records()))
	for _, r := range b.records() {
		attempt := NewAttempt(ClassRefused, b.misused)
		rows = append(rows, Quarantined{Seq: r.Seq, Key: clone(r.Key), Payload: clone(r.Value), Error: attempt.Error, Class: ClassRefused, Attempts: 1, History: []Attempt{attempt}})
	}
	return rows
}

// Reset forgets what was skipped. A sink calls it before each call of the handler.
func (b *Batch) Reset() {
	if b.all == nil {
		b.all = b.Records
	}
	b.skipped, b.last, b.misused = nil, 0, nil
}
