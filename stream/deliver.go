package stream

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"slices"
	"time"
)

// sliceTime is how long a handler of AtLeastOnce is to work between two commits. It bounds what a shutdown waits for, and what a crash repeats.
const sliceTime = time.Second

// commitPause is the longest pause between two attempts to commit what a handler has finished, once the lease is lost or the worker shuts down.
const commitPause = 500 * time.Millisecond

// finishedRecords are records that a handler has finished and no sink has stored. The next run of the job in this process commits them first.
type finishedRecords struct {
	created    time.Time // of the job, since another may have its ID later
	prev, next Checkpoint
	aside      []Quarantined
}

// delivery passes records to a handler of AtLeastOnce, in slices.
type delivery struct {
	r       *run
	sink    *atLeastOnce
	records []Record // not finished: the first one follows the checkpoint
	token   []byte   // names the position after the last of them
	alone   loneFailure
}

// loneFailure is the record that last failed alone. One failure may have been a coincidence.
type loneFailure struct {
	seq      uint64 // 0: none has
	attempts int    // at least len(failed)
	failed   []Attempt
}

// deliver is process for sinks of AtLeastOnce. It passes slices of the records to the handler and commits what is finished: after a failure only what is
// not finished is passed again.
func (r *run) deliver(sink *atLeastOnce, records []Record, token []byte) error {
	d := &delivery{r: r, sink: sink, records: records, token: token}
	for len(d.records) > 0 {
		if r.leaseCtx.Err() != nil || r.stopCtx.Err() != nil {
			return r.ended()
		}
		if err := d.next(); err != nil {
			return err
		}
	}
	return nil
}

// next passes one slice to the handler.
func (d *delivery) next() error {
	r := d.r
	n := r.sliceOf(len(d.records))
	if r.suspicion.poison == d.records[0].Seq {
		if err := r.quarantinePoison(d.records, d.position(1)); err != nil {
			return err
		}
		d.records = d.records[1:]
		return nil
	}
	at := d.position(n)
	rest := d.records[:n]
	done, failed, err := r.callBatch(d.sink, rest, at)
	if err != nil {
		return err
	}
	d.records = d.records[done:]
	switch {
	case failed == nil:
		return nil
	case done < n:
	case VerdictOf(failed) == VerdictHalt:
		return r.afterRefusal(failed)
	default: // the error is about no record: all are finished and committed
		r.log.Warn("handler failed after it had finished all its records, committing them", "to", r.checkpoint.Seq, "error", failed)
		return nil
	}
	return d.refused(rest[done:], at, n == 1, failed) // passed to the handler, or not reached, and not finished
}

// position returns the token for the first n records. It may name an earlier position than theirs: the number counts.
func (d *delivery) position(n int) []byte {
	if n == len(d.records) {
		return d.token
	}
	return d.r.checkpoint.Token
}

// refused decides what to do with records that the handler has not finished, because of failed. alone: it had one record.
func (d *delivery) refused(rest []Record, at []byte, alone bool, failed error) error {
	r, last := d.r, rest[len(rest)-1].Seq
	fewer := (len(rest) + 1) / 2
	if d.sink.each {
		fewer = 1 // the first one is to blame
	}
	switch {
	case tooSlow(failed) && !alone && r.stopCtx.Err() == nil:
		r.slice = fewer
		r.log.Warn("handler too slow, it gets fewer records at once", "reason", ReasonTooSlow, "records", r.slice, "timeout", r.config.HandlerTimeout, "error", failed)
	case !r.isBad(failed, last):
		if err := r.afterRefusal(failed); err != nil {
			return err
		}
		if alone && d.alone.seq == rest[0].Seq {
			d.alone.attempts++
		}
	case !alone:
		r.slice, r.search = fewer, last
		if d.sink.each {
			r.search = rest[0].Seq
		}
	default:
		return d.blame(rest, at, failed)
	}
	return nil
}

// blame quarantines the one record that failed alone, once it is certain that it is bad.
func (d *delivery) blame(rest []Record, at []byte, failed error) error {
	if d.alone.seq != rest[0].Seq {
		d.alone = loneFailure{seq: rest[0].Seq}
	}
	d.alone.attempts++
	d.alone.failed = append(d.alone.failed, refusal(failed))
	if !d.r.certain(rest[0], failed, d.alone.attempts) {
		return nil
	}
	if err := d.r.quarantine(rest, at, d.alone.attempts, d.alone.failed...); err != nil {
		return err
	}
	d.records = d.records[1:]
	return nil
}

// sliceOf returns how many of the records the handler gets at once.
func (r *run) sliceOf(records int) int {
	r.slice = min(max(r.slice, 1), r.config.CommitRecords)
	return r.suspicion.limit(min(records, r.slice))
}

// callBatch calls the handler with the records that could be made, and commits what it has finished: done records. failed is the handler's error,
// which is about those that follow; err ends the run.
func (r *run) callBatch(sink *atLeastOnce, records []Record, token []byte) (done int, failed, err error) {
	good, place := makeable(records)
	if len(good) == 0 {
		return len(records), nil, r.commitFinishedRecords(records, token, nil)
	}
	suspect, err := r.acquireHandlerFrom(records[0].Seq)
	if err != nil {
		return 0, nil, err
	}
	begun := time.Now()
	batch := &Batch{Job: r.job, Epoch: r.lease.Epoch, Records: good}
	finished, failed := r.handle(sink, batch, begun)
	took := time.Since(begun)
	r.releaseHandler()
	if failed == nil {
		r.adjust(len(records), finished == len(place), finished, took)
	}
	if finished == 0 {
		if suspect {
			return 0, failed, r.saveState(r.suspicion.inFlight(0))
		}
		return 0, failed, nil
	}
	done = len(records)
	if finished < len(place) {
		done, token = place[finished], r.checkpoint.Token
	}
	last := records[done-1].Seq
	skipped := slices.DeleteFunc(batch.skipped, func(q Quarantined) bool { return q.Seq > last })
	return done, failed, r.commitFinishedRecords(records[:done], token, skipped)
}

// makeable returns the records that the producer could make, and the place of each among all.
func makeable(records []Record) (good []Record, place []int) {
	good, place = make([]Record, 0, len(records)), make([]int, 0, len(records))
	for i, record := range records {
		if record.Bad == "" {
			good, place = append(good, record), append(place, i)
		}
	}
	return good, place
}

// handle calls the handler with the batch, and returns how many of its records are finished.
func (r *run) handle(sink *atLeastOnce, batch *Batch, begun time.Time) (finished int, failed error) {
	all := len(batch.Records)
	if sink.each { // not for a function around a handler of Each: it cannot report partial progress, so it must finish its batch
		aim, allowed := r.sliceAim(), r.allowedBad()
		batch.pace = &pace{more: func(b *Batch) bool {
			return time.Since(begun) < aim && r.leaseCtx.Err() == nil && r.stopCtx.Err() == nil && (allowed < 0 || len(b.skipped) <= allowed)
		}}
	}
	failed = r.callHandler(func(ctx context.Context) error {
		batch.Reset()
		err := sink.handle(ctx, batch)
		if err == nil && batch.misused != nil {
			err = Halt(batch.misused)
		}
		return err
	})
	switch {
	case sink.each && batch.pace.begun:
		finished = batch.pace.finished
	case failed == nil: // of a function that was converted to EachHandler and calls none, too
		finished = all
	}
	return finished, failed
}

// sliceAim is the target duration of a slice.
func (r *run) sliceAim() time.Duration { return min(sliceTime, r.config.HandlerTimeout/4) }

// adjust sizes the next slice for the target duration.
func (r *run) adjust(records int, all bool, finished int, took time.Duration) {
	aim := r.sliceAim()
	switch {
	case took > aim:
		r.slice = max(1, int(float64(finished)*float64(aim)/float64(took)))
	case all && records == r.slice && took < aim/2 && r.checkpoint.Seq >= r.search:
		r.slice = min(2*r.slice, r.config.CommitRecords)
	}
}

// callHandler calls the handler of AtLeastOnce. A lease that is lost does not interrupt a record, whose effect may have happened: the handler
// has until the lease ends, when another worker may start, and at shutdown until the commit needs the rest of the time.
func (r *run) callHandler(handle func(ctx context.Context) error) error {
	ctx, cancel := context.WithCancelCause(r.drainCtx)
	defer cancel(nil)
	defer context.AfterFunc(r.leaseCtx, func() {
		wait(ctx, time.Until(r.sinceRenewal().Add(r.config.Lease)))
		cancel(context.Cause(r.leaseCtx))
	})()
	defer context.AfterFunc(r.shutdownCtx, func() {
		wait(ctx, r.config.DrainTimeout*3/4)
		cancel(errStopping)
	})()
	return r.call(ctx, handle)
}

// allowedBad is how many more records may go into quarantine; negative: any number.
func (r *run) allowedBad() int {
	switch {
	case r.job.OnBad == HaltJob:
		return 0
	case r.job.MaxBad != 0:
		return max(0, max(r.job.MaxBad, 0)-int(r.checkpoint.Bad))
	}
	return -1
}

// commitFinishedRecords commits records that the handler has finished, or that could not be made.
func (r *run) commitFinishedRecords(records []Record, token []byte, skipped []Quarantined) error {
	next, _, bad := r.advanced(records, token)
	aside := slices.Concat(skipped, bad)
	slices.SortFunc(aside, func(a, b Quarantined) int { return cmp.Compare(a.Seq, b.Seq) })
	if allowed := r.allowedBad(); allowed >= 0 && len(aside) > allowed && aside[allowed].Seq > records[0].Seq {
		return r.accountApart(records, token, skipped, aside[allowed].Seq)
	}
	next.Token = clone(token)
	return r.commitFinished(finishedRecords{r.created, r.checkpoint, next, aside})
}

// accountApart accounts for records up to the one at which the job will halt, and then for the others. What is before it is finished, and must not be
// handled again when the job is retried.
func (r *run) accountApart(records []Record, token []byte, skipped []Quarantined, halts uint64) error {
	n := int(halts - records[0].Seq)
	before := slices.IndexFunc(skipped, func(q Quarantined) bool { return q.Seq >= halts })
	if before < 0 {
		before = len(skipped)
	}
	if err := r.commitFinishedRecords(records[:n], r.checkpoint.Token, skipped[:before]); err != nil {
		return err
	}
	return r.commitFinishedRecords(records[n:], token, skipped[before:])
}

// commitFinished repeats the commit until the sink has stored it, or another owner's. The job is not released meanwhile, since its next owner
// would handle the records again.
func (r *run) commitFinished(f finishedRecords) error {
	r.sinkCtx = r.drainCtx
	defer func() { r.sinkCtx = nil }()
	for {
		err := r.step(f.next, &Batch{Job: r.job, Epoch: r.lease.Epoch}, f.aside)
		if err == nil || r.checkpoint.Seq == f.next.Seq { // stored, although something failed after that
			return err
		}
		refused := errors.Is(err, errReopen) || errors.Is(err, ErrTooManyBad) || VerdictOf(err) == VerdictHalt // by a decision that an operator may change
		if err := r.retryCommit(err); err != nil {
			if !refused {
				r.host.keepFinished(r.job.ID, f)
			}
			return err
		}
	}
}

// retryCommit waits before another attempt to store effects that have happened. An error means that there is no further attempt.
func (r *run) retryCommit(err error) error {
	if errors.Is(err, ErrFenced) || errors.Is(err, errReopen) || errors.Is(err, ErrTooManyBad) || VerdictOf(err) == VerdictHalt {
		return r.afterRefusal(err)
	}
	c := causeOf(err)
	if e, ok := errors.AsType[*unreachedError](err); ok {
		err, c = e.err, unreached(e.err)
	}
	pinned := r.pinned
	r.pinned = true
	end := r.fail(err, c)
	r.pinned = pinned
	if _, ok := errors.AsType[*failure](end); end == nil || ok {
		return end
	}
	// The lease is lost, or the worker shuts down. The fence rejects a commit that comes too late.
	if !wait(r.drainCtx, min(r.config.Retry.after(r.retryState.Failures), commitPause)) {
		return end
	}
	return nil
}

// sinkContext bounds calls of the sink by the lease, unless they store effects that have happened.
func (r *run) sinkContext() context.Context {
	if r.sinkCtx != nil {
		return r.sinkCtx
	}
	return r.leaseCtx
}

// resume commits what an earlier run of this process has finished and could not commit, unless another owner has advanced the checkpoint.
func (r *run) resume() error {
	f, ok := r.host.takeFinished(r.job.ID)
	at := r.checkpoint
	if !ok || !f.created.Equal(r.created) || at.Seq != f.prev.Seq || at.Digest != f.prev.Digest || at.Bad != f.prev.Bad || !bytes.Equal(at.Token, f.prev.Token) || at.Done {
		return nil
	}
	r.log.Info("committing records that were finished under an earlier lease", "from", at.Seq+1, "to", f.next.Seq)
	return r.commitFinished(f)
}
