package stream

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
)

// sliceTime is how long a handler of AtLeastOnce is to work between two commits. It bounds what a shutdown waits for, and what a crash repeats.
const sliceTime = time.Second

// commitPause is the longest pause between two attempts to commit what a handler has finished, once the lease is lost or the worker shuts down.
const commitPause = 500 * time.Millisecond

// finished is what a handler has done, and no sink knows. The next run of the job in this process commits it before anything else.
type finished struct {
	created    time.Time // of the job, since another may have its ID later
	prev, next Checkpoint
	aside      []Quarantined
}

// maxFinished bounds Worker.finished. Jobs that others went on with stay in it.
const maxFinished = 1000

// deliver is process for sinks of AtLeastOnce. It hands over slices of the records, and commits what is finished: a failure has only what is
// not finished handed over again.
func (r *run) deliver(sink *atLeastOnce, records []Record, token []byte) error {
	var single struct { // the record that failed alone
		seq      uint64
		attempts int
		failed   []Attempt
	}
	for len(records) > 0 {
		if r.own.Err() != nil || r.stop.Err() != nil {
			return r.ended()
		}
		n := r.sliceOf(len(records))
		if r.condemned == records[0].Seq {
			n = 1
		}
		at := r.checkpoint.Token // it may name an earlier position than the checkpoint's: the number counts
		if n == len(records) {
			at = token
		}
		if r.condemned == records[0].Seq {
			why := fmt.Errorf("%d processes crashed with this record alone in flight", r.journal.Deaths)
			if err := r.quarantine(records[:1], at, r.journal.Deaths, NewAttempt(ClassDeath, why)); err != nil {
				return err
			}
			records = records[1:]
			continue
		}
		done, failed, err := r.handOver(sink, records[:n], at)
		if err != nil {
			return err
		}
		records = records[done:]
		if failed == nil {
			continue
		}
		if done == n { // the error is about no record: all are finished and committed
			if verdictOf(failed) == verdictHalt {
				return r.afterRefusal(failed)
			}
			r.log.Warn("handler failed after it had finished all its records, they are committed", "to", r.checkpoint.Seq, "error", failed)
			continue
		}
		alone := n == 1
		rest := records[:n-done] // they were handed over, or would have been, and are not finished
		fewer := (len(rest) + 1) / 2
		if sink.each {
			fewer = 1 // the first one is to blame
		}
		if tooSlow(failed) && !alone && r.stop.Err() == nil {
			r.slice = fewer
			r.log.Warn("handler is too slow, it gets fewer records at once", "reason", ReasonTooSlow, "records", r.slice, "timeout", r.config.HandlerTimeout, "error", failed)
			continue
		}
		panicked, isPanic := errors.AsType[*PanicError](failed)
		bad := isPanic || verdictOf(failed) == verdictSkip || verdictOf(failed) == verdictLater && !r.patient(rest[len(rest)-1].Seq)
		switch {
		case !bad:
			if err := r.afterRefusal(failed); err != nil {
				return err
			}
			if alone && single.seq == rest[0].Seq {
				single.attempts++
			}
			continue
		case !alone:
			r.slice = fewer
			r.search = rest[len(rest)-1].Seq
			if sink.each {
				r.search = rest[0].Seq
			}
			continue
		}
		if single.seq != rest[0].Seq {
			single.seq, single.attempts, single.failed = rest[0].Seq, 0, nil
		}
		single.attempts++
		class := ClassRefused
		if isPanic {
			class = ClassPanic
		}
		single.failed = append(single.failed, NewAttempt(class, failed))
		if isPanic && single.attempts == 1 { // a panic may have been bad luck: twice is the record
			continue
		}
		if isPanic {
			r.log.Error("the handler panicked", "record", rest[0].Seq, "key", fmt.Sprintf("%q", rest[0].Key), "panic", fmt.Sprint(panicked.Value), "stack", string(panicked.Stack))
		}
		if err := r.quarantine(rest, at, single.attempts, single.failed...); err != nil {
			return err
		}
		records = records[1:]
	}
	return nil
}

// sliceOf returns how many of the records are handed over at once.
func (r *run) sliceOf(records int) int {
	r.slice = min(max(r.slice, 1), r.config.CommitRecords)
	n := min(records, r.slice)
	if r.journal.Probe > 0 {
		n = min(n, r.journal.Probe)
	}
	return n
}

// handOver calls the handler with the records that could be made, and commits what it has finished: done records. failed is the handler's error,
// which is about those that follow; err ends the run.
func (r *run) handOver(sink *atLeastOnce, records []Record, token []byte) (done int, failed, err error) {
	good, place := make([]Record, 0, len(records)), make([]int, 0, len(records))
	for i, record := range records {
		if record.Bad == "" {
			good, place = append(good, record), append(place, i)
		}
	}
	if len(good) == 0 {
		return len(records), nil, r.account(records, token, nil)
	}
	suspect := r.journal.Probe > 0
	if err := r.takeHand(suspect); err != nil {
		return 0, nil, err
	}
	if suspect {
		// From here until the commit a death is blamed on these records.
		j := r.journal
		j.Hand = records[0].Seq
		if err := r.note(j); err != nil {
			r.giveHand()
			return 0, nil, err
		}
	}
	begun := time.Now()
	aim := min(sliceTime, r.config.HandlerTimeout/4)
	batch := &Batch{Job: r.job, Epoch: r.lease.Epoch, Records: good}
	allowed := r.allowedBad()
	if sink.each { // a function that calls a handler of Each must get all of its batch done: it cannot say how far it came
		batch.pace = &pace{more: func(b *Batch) bool {
			return time.Since(begun) < aim && r.own.Err() == nil && r.stop.Err() == nil && (allowed < 0 || len(b.skipped) <= allowed)
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
	took := time.Since(begun)
	r.giveHand()

	finished := 0
	switch {
	case sink.each && batch.pace.begun:
		finished = batch.pace.finished
	case failed == nil: // of a function that was converted to EachHandler and calls none, too
		finished = len(place)
	}
	if failed == nil {
		r.adjust(len(records), finished == len(place), finished, took, aim)
	}
	if finished == 0 {
		if suspect {
			j := r.journal
			j.Hand = 0
			return 0, failed, r.note(j)
		}
		return 0, failed, nil
	}
	done = len(records)
	if finished < len(place) {
		done = place[finished]
		token = r.checkpoint.Token
	}
	last := records[done-1].Seq
	skipped := slices.DeleteFunc(batch.skipped, func(q Quarantined) bool { return q.Seq > last })
	return done, failed, r.account(records[:done], token, skipped)
}

// adjust makes the next slice one of about the time that is aimed at.
func (r *run) adjust(records int, all bool, finished int, took, aim time.Duration) {
	switch {
	case took > aim:
		r.slice = max(1, int(float64(finished)*float64(aim)/float64(took)))
	case all && records == r.slice && took < aim/2 && r.checkpoint.Seq >= r.search:
		r.slice = min(2*r.slice, r.config.CommitRecords)
	}
}

// callHandler calls the handler of AtLeastOnce. A lease that is lost does not interrupt a record, whose effect may have happened: the handler
// has until the lease is over, when another worker may start, and at shutdown as long as leaves time for the commit.
func (r *run) callHandler(handle func(ctx context.Context) error) error {
	ctx, cancel := context.WithCancelCause(r.drain)
	defer cancel(nil)
	defer context.AfterFunc(r.own, func() {
		wait(ctx, time.Until(r.sinceRenewal().Add(r.w.config.Lease)))
		cancel(context.Cause(r.own))
	})()
	defer context.AfterFunc(r.term, func() {
		wait(ctx, r.w.config.DrainTimeout*3/4)
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

// account commits records that the handler has finished, or that could not be made.
func (r *run) account(records []Record, token []byte, skipped []Quarantined) error {
	next := r.checkpoint
	next.Token = token
	aside := slices.Clone(skipped)
	for _, record := range records {
		next.Seq = record.Seq
		next.Bytes += uint64(record.size())
		next.Digest.add(record.Seq, len(record.Key), len(record.Value), record.sum)
		if record.Bad != "" {
			attempt := NewAttempt(ClassProducer, errors.New(record.Bad))
			aside = append(aside, Quarantined{Job: r.job.ID, Seq: record.Seq, Key: clone(record.Key), Error: record.Bad, Class: ClassProducer, Attempts: 1, History: []Attempt{attempt}, State: Waiting})
		}
	}
	slices.SortFunc(aside, func(a, b Quarantined) int { return cmp.Compare(a.Seq, b.Seq) })
	if allowed := r.allowedBad(); allowed >= 0 && len(aside) > allowed && aside[allowed].Seq > records[0].Seq {
		// The job will halt there. What is before it is finished, and must not be handed over again when a person has the job retried.
		n := int(aside[allowed].Seq - records[0].Seq)
		before := slices.IndexFunc(skipped, func(q Quarantined) bool { return q.Seq >= aside[allowed].Seq })
		if before < 0 {
			before = len(skipped)
		}
		if err := r.account(records[:n], r.checkpoint.Token, skipped[:before]); err != nil {
			return err
		}
		return r.account(records[n:], token, skipped[before:])
	}
	next.Token = clone(token)
	return r.commitFinished(finished{r.created, r.checkpoint, next, aside})
}

// commitFinished repeats the commit until the sink has it, or has another owner's. The job is not given back meanwhile, since its next owner
// would hand the records over again.
func (r *run) commitFinished(f finished) error {
	r.under = r.drain
	defer func() { r.under = nil }()
	for {
		err := r.step(f.next, &Batch{Job: r.job, Epoch: r.lease.Epoch}, f.aside)
		if err == nil || r.checkpoint.Seq == f.next.Seq { // stored, whatever failed after that
			return err
		}
		refused := errors.Is(err, errReopen) || errors.Is(err, ErrTooManyBad) || verdictOf(err) == verdictHalt // by what was found, which a person may change
		if err := r.insist(err); err != nil {
			if !refused {
				r.w.keepFinished(r.job.ID, f)
			}
			return err
		}
	}
}

// insist waits before another attempt to store effects that have happened. An error says that there will be none.
func (r *run) insist(err error) error {
	if errors.Is(err, ErrFenced) || errors.Is(err, errReopen) || errors.Is(err, ErrTooManyBad) || verdictOf(err) == verdictHalt {
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
	// The lease is lost, or the worker shuts down. The fence keeps a commit from being one too many.
	if !wait(r.drain, min(r.config.Retry.after(r.stall.Failures), commitPause)) {
		return end
	}
	return nil
}

// sinkContext is what ends calls of the sink: the end of the lease, unless they store effects that have happened.
func (r *run) sinkContext() context.Context {
	if r.under != nil {
		return r.under
	}
	return r.own
}

func (w *Worker) keepFinished(job string, f finished) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.finished) >= maxFinished {
		clear(w.finished)
	}
	w.finished[job] = f
}

// resume commits what an earlier run of this process has finished and could not commit, unless another owner went on from there.
func (r *run) resume() error {
	r.w.mu.Lock()
	f, ok := r.w.finished[r.job.ID]
	delete(r.w.finished, r.job.ID)
	r.w.mu.Unlock()
	at := r.checkpoint
	if !ok || !f.created.Equal(r.created) || at.Seq != f.prev.Seq || at.Digest != f.prev.Digest || at.Bad != f.prev.Bad || !bytes.Equal(at.Token, f.prev.Token) || at.Done {
		return nil
	}
	r.log.Info("records that this process has finished under an earlier lease are committed", "from", at.Seq+1, "to", f.next.Seq)
	return r.commitFinished(f)
}
