package stream

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
)

// process commits records that follow the checkpoint, in steps. token names the position after the last of them.
func (r *run) process(records []Record, token []byte) error {
	if sink, ok := r.sink.(*atLeastOnce); ok {
		return r.deliver(sink, records, token)
	}
	for len(records) > 0 {
		n := r.suspicion.limit(min(len(records), r.config.CommitRecords))
		if r.inTime > 0 {
			n = min(n, r.inTime)
		}
		at := r.checkpoint.Token // it may name an earlier position than the checkpoint's: the number counts
		if n == len(records) {
			at = token
		}
		if err := r.settleRecords(records[:n], at); err != nil {
			return err
		}
		records = records[n:]
	}
	return nil
}

// settleRecords commits or quarantines the records. It halves them to find a bad one.
func (r *run) settleRecords(records []Record, token []byte) error {
	if r.suspicion.poison == records[0].Seq {
		err := r.quarantinePoison(records, r.checkpoint.Token)
		if err != nil || len(records) == 1 {
			return err
		}
		records = records[1:]
	}
	var failed []Attempt // at this record alone
	for attempts := 1; ; attempts++ {
		begun := time.Now()
		err := r.commit(records, token, nil)
		switch {
		case err == nil:
			r.allowMore(time.Since(begun))
			return nil
		case tooSlow(err) && len(records) > 1 && r.stopCtx.Err() == nil && !isUnreached(err):
			return r.settleFewer(records, token, err)
		case !r.isBad(err, records[len(records)-1].Seq):
			if err := r.afterRefusal(err); err != nil {
				return err
			}
			continue
		case len(records) > 1:
			return r.settleHalves(records, token)
		}
		failed = append(failed, refusal(err))
		if r.certain(records[0], err, attempts) {
			return r.quarantine(records, token, attempts, failed...)
		}
	}
}

// allowMore doubles the handler's batches again, once it is fast.
func (r *run) allowMore(took time.Duration) {
	if r.inTime > 0 && took < r.config.HandlerTimeout/8 {
		r.inTime *= 2
		if r.inTime >= r.config.CommitRecords {
			r.inTime = 0
		}
	}
}

// settleFewer settles records for which the handler was too slow. Whether they or a temporary slowdown are to blame is unknown, so it only
// tries with fewer.
func (r *run) settleFewer(records []Record, token []byte, err error) error {
	r.inTime = (len(records) + 1) / 2
	r.log.Warn("handler too slow, it gets fewer records at once", "reason", ReasonTooSlow, "records", r.inTime, "timeout", r.config.HandlerTimeout, "error", err)
	if err := r.settleRecords(records[:r.inTime], r.checkpoint.Token); err != nil {
		return err
	}
	done := int(r.checkpoint.Seq + 1 - records[0].Seq)
	return r.process(records[done:], token)
}

// settleHalves settles records, one of which is bad.
func (r *run) settleHalves(records []Record, token []byte) error {
	half := len(records) / 2
	if err := r.settleRecords(records[:half], r.checkpoint.Token); err != nil {
		return err
	}
	return r.settleRecords(records[half:], token)
}

// isBad reports whether an error is permanent for one of the records up to last.
func (r *run) isBad(err error, last uint64) bool {
	if _, isPanic := errors.AsType[*PanicError](err); isPanic {
		return true
	}
	verdict := VerdictOf(err)
	return verdict == VerdictSkip || verdict == VerdictLater && !r.patient(last)
}

// refusal describes a failed attempt at a single record.
func refusal(err error) Attempt {
	if _, isPanic := errors.AsType[*PanicError](err); isPanic {
		return NewAttempt(ClassPanic, err)
	}
	return NewAttempt(ClassRefused, err)
}

// certain reports whether a record that failed alone is to blame. One panic may be a coincidence, two are not.
func (r *run) certain(record Record, err error, attempts int) bool {
	panicked, isPanic := errors.AsType[*PanicError](err)
	if isPanic && attempts > 1 {
		r.log.Error("handler panicked", "record", record.Seq, "key", fmt.Sprintf("%q", record.Key), "panic", fmt.Sprint(panicked.Value), "stack", string(panicked.Stack))
	}
	return !isPanic || attempts > 1
}

// quarantine stores the first record in quarantine without calling the handler.
func (r *run) quarantine(records []Record, token []byte, attempts int, failed ...Attempt) error {
	bad, last := records[0], failed[len(failed)-1]
	row := Quarantined{Job: r.job.ID, Seq: bad.Seq, Key: clone(bad.Key), Payload: clone(bad.Value), Error: last.Error, Class: last.Class, Attempts: attempts, History: failed, State: Waiting}
	for {
		err := r.commit(records, token, &row)
		if err == nil {
			return nil
		}
		if err := r.afterRefusal(err); err != nil {
			return err
		}
	}
}

// afterRefusal decides what to do when a commit has failed and no record is to blame: nil means to try it again.
func (r *run) afterRefusal(err error) error {
	if e, ok := errors.AsType[*unreachedError](err); ok {
		return r.fail(e.err, unreached(e.err))
	}
	if l, ok := errors.AsType[*releaseError](err); ok {
		return l
	}
	switch {
	case errors.Is(err, ErrFenced), errors.Is(err, errReopen), errors.Is(err, errStopping):
		return err
	case errors.Is(err, ErrTooManyBad):
		return &failure{ReasonTooManyBad, err}
	case VerdictOf(err) == VerdictHalt:
		return &failure{ReasonHalted, err}
	case r.leaseCtx.Err() != nil:
		return context.Cause(r.leaseCtx)
	}
	if _, ok := errors.AsType[*failure](err); ok {
		return err
	}
	if r.stopCtx.Err() != nil {
		return errStopping // at shutdown there is one attempt
	}
	return r.fail(err, causeOf(err))
}

// unreachedError says that a commit failed and the sink cannot be reached, so nothing is known about the records.
type unreachedError struct{ err error }

func (e *unreachedError) Error() string { return e.err.Error() }
func (e *unreachedError) Unwrap() error { return e.err }

func isUnreached(err error) bool {
	_, ok := errors.AsType[*unreachedError](err)
	return ok
}

// commit makes one step. put, if not nil, is the row of the only record, which goes into quarantine.
func (r *run) commit(records []Record, token []byte, put *Quarantined) error {
	next, good, aside := r.advanced(records, token)
	if put != nil {
		good, aside = nil, []Quarantined{*put}
	}
	batch := &Batch{Job: r.job, Epoch: r.lease.Epoch, Records: good}
	if len(good) == 0 {
		return r.step(next, batch, aside)
	}
	suspect, err := r.acquireHandlerFrom(records[0].Seq)
	if err != nil {
		return err
	}
	defer r.releaseHandler()
	between := r.suspicion.inFlight(0)
	err = r.step(next, batch, aside)
	if err != nil && suspect {
		if err := r.saveState(between); err != nil {
			return err
		}
	}
	return err
}

// advanced returns the checkpoint after the records, those of them that the producer could make, and rows of the quarantine for the others.
func (r *run) advanced(records []Record, token []byte) (next Checkpoint, good []Record, aside []Quarantined) {
	next, good = r.checkpoint, records
	next.Token = token
	for i, record := range records {
		next.Seq = record.Seq
		next.Bytes += uint64(record.size())
		next.Digest.add(record.Seq, len(record.Key), len(record.Value), record.sum)
		switch {
		case record.Bad != "":
			if aside == nil { // the first one
				good = append([]Record(nil), records[:i]...)
			}
			attempt := NewAttempt(ClassProducer, errors.New(record.Bad))
			aside = append(aside, Quarantined{Job: r.job.ID, Seq: record.Seq, Key: clone(record.Key), Error: record.Bad, Class: ClassProducer, Attempts: 1, History: []Attempt{attempt}, State: Waiting})
		case aside != nil:
			good = append(good, record)
		}
	}
	return next, good, aside
}

// step calls the sink, and resolves a commit whose outcome is unknown.
func (r *run) step(next Checkpoint, batch *Batch, aside []Quarantined) error {
	prev := r.checkpoint
	start := time.Now()
	r.tried = start
	commit := &Commit{Lease: r.lease, Prev: prev, Batch: batch, next: next, quarantine: aside}
	reserved, release, err := r.reserve(r.sinkContext())
	if err != nil {
		return err
	}
	err = r.call(reserved, func(ctx context.Context) error { return r.sink.Commit(ctx, commit) })
	release()
	took := time.Since(start)
	if err != nil {
		if next.Bad, err = r.resolve(prev, next, err); err != nil {
			return err
		}
	} else {
		next.Bad = prev.Bad + uint64(len(aside)+len(batch.skipped))
		r.renewed(commit.renewed)
		if commit.lost {
			r.loseLease(fmt.Errorf("%w: what was finished is committed", ErrFenced))
		}
	}
	r.logQuarantined(slices.Concat(aside, batch.skipped))
	return r.advance(next, took)
}

// resolve asks the sink whether a commit that failed with err was stored. No error: it was, with bad records in quarantine.
func (r *run) resolve(prev, next Checkpoint, err error) (bad uint64, _ error) {
	_, isPanic := errors.AsType[*PanicError](err)
	if isPanic || errors.Is(err, ErrFenced) || !retried(VerdictOf(err)) {
		return 0, err // certain: nothing was stored
	}
	stored, e := r.askSink()
	switch {
	case e != nil && errors.Is(e, ErrFenced):
		return 0, e
	case e != nil:
		return 0, &unreachedError{fmt.Errorf("%w; and then: %w", err, e)}
	case stored.Seq == prev.Seq && bytes.Equal(stored.Token, prev.Token) && stored.Done == prev.Done:
		return 0, err
	case stored.Seq != next.Seq || stored.Digest != next.Digest || stored.Done != next.Done:
		r.checkpoint = stored
		return 0, fmt.Errorf("%w: the sink's checkpoint is record %d, and %d or %d was expected: %w", errReopen, stored.Seq, prev.Seq, next.Seq, err)
	}
	return stored.Bad, nil
}

// advance moves the checkpoint to one that the sink has stored. Progress resets attempts and suspicions.
func (r *run) advance(next Checkpoint, took time.Duration) error {
	prev := r.checkpoint
	next.Token = clone(next.Token)
	r.checkpoint = next
	r.setProgress()
	if next.Seq <= prev.Seq {
		return nil
	}
	if r.retryState.Dependent > 0 && next.Seq > r.waited {
		r.setPatience(r.config.DependencyWait)
	}
	r.restart()
	r.event(Event{Kind: EventCommitted, From: prev.Seq + 1, To: next.Seq, Bytes: next.Bytes - prev.Bytes, Bad: int(next.Bad - prev.Bad), Took: took, Size: r.progress.Size})
	return r.recordCommit(next.Seq)
}

func (r *run) setProgress() {
	r.mu.Lock()
	r.progress.Records, r.progress.Bytes, r.progress.Bad = r.checkpoint.Seq, r.checkpoint.Bytes, r.checkpoint.Bad
	if r.checkpoint.Done {
		r.progress.Size = r.checkpoint.Seq
	}
	r.mu.Unlock()
}

// logQuarantined logs the first records that a commit has quarantined, and the number of others. A reader returns them
// instead.
func (r *run) logQuarantined(rows []Quarantined) {
	if _, ok := r.sink.(*readerSink); ok {
		return
	}
	for i, q := range rows {
		if i == maxLoggedBad {
			r.log.Warn("more records quarantined in the same commit", "records", len(rows)-i, "last", rows[len(rows)-1].Seq)
			return
		}
		r.log.Warn("record quarantined", "record", q.Seq, "key", fmt.Sprintf("%q", q.Key), "class", q.Class, "attempts", q.Attempts, "error", q.Error)
	}
}

// maxLoggedBad is how many quarantined records of one commit are logged one by one.
const maxLoggedBad = 10

// call calls the sink with the handler's timeout, watched by the watchdog, and turns a panic into an error.
func (r *run) call(ctx context.Context, sink func(ctx context.Context) error) (err error) {
	parent := ctx
	ctx, cancel := context.WithTimeout(ctx, r.config.HandlerTimeout)
	defer cancel()
	r.setSinkCall(time.Now())
	defer r.setSinkCall(time.Time{})
	defer recovered(&err)
	err = sink(ctx)
	if err != nil && errors.Is(ctx.Err(), context.DeadlineExceeded) && parent.Err() == nil {
		switch ReasonOf(err) {
		case ReasonPoolExhausted, ReasonLockWait:
			return err // the time was not spent in the handler
		}
		return &tooSlowError{fmt.Errorf("the handler needs more than its %v (HandlerTimeout): %w", r.config.HandlerTimeout, err)}
	}
	return err
}

// tooSlowError says that a commit exceeded its timeout.
type tooSlowError struct{ err error }

func (e *tooSlowError) Error() string { return e.err.Error() }
func (e *tooSlowError) Unwrap() error { return e.err }
