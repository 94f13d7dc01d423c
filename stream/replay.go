package stream

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
)

// maxReplayRead is how many marked records are read at a time.
const maxReplayRead = 100

// replay passes the quarantined records that are marked for it to the handler again, in their order, after all that was
// committed since.
func (r *run) replay() error {
	sink, ok := r.sink.(ReplaySink)
	if !ok {
		return nil
	}
	for {
		ctx, cancel := context.WithTimeout(r.leaseCtx, r.config.HandlerTimeout)
		rows, err := sink.Quarantined(ctx, r.job.ID, maxReplayRead, Replay)
		cancel()
		if err != nil {
			if err := r.fail(fmt.Errorf("the quarantine cannot be read: %w", err), unreached(err)); err != nil {
				return err
			}
			continue
		}
		if seq := r.suspicion.replaying; seq > 0 {
			r.suspicion.replaying = 0
			// The record is not marked if it was one of a batch: that was committed, and the process crashed before it stored the next state.
			marked := slices.ContainsFunc(rows, func(q Quarantined) bool { return q.Seq == seq })
			if marked || len(rows) == maxReplayRead {
				// One crash is enough: the record was suspected before, and can be marked again for another attempt.
				if err := r.refuseReplay(sink, seq, ClassCrash, errors.New("a process crashed while it was replayed")); err != nil {
					return err
				}
				continue
			}
		}
		if len(rows) == 0 && r.suspicion.InFlightSeq > 0 && r.suspicion.InFlightSeq <= r.checkpoint.Seq {
			return r.saveState(r.suspicion.inFlight(0))
		}
		if len(rows) == 0 {
			return nil
		}
		for _, row := range rows {
			if err := r.replayOne(sink, row); err != nil {
				return err
			}
			if r.stopCtx.Err() != nil {
				return errStopping
			}
		}
	}
}

func (r *run) replayOne(sink ReplaySink, row Quarantined) error {
	record := Record{Seq: row.Seq, Key: row.Key, Value: row.Payload}
	batch := &Batch{}
	defer func() { r.sinkCtx = nil }()
	for {
		err := error(nil)
		if !batch.outside {
			if row.Class == ClassProducer {
				record, err = r.fetch(row.Seq, row.Key)
			}
			batch = &Batch{Job: r.job, Epoch: r.lease.Epoch, Records: []Record{record}}
		}
		if err == nil {
			err = r.callReplay(sink, batch)
		}
		_, isPanic := errors.AsType[*PanicError](err)
		switch {
		case err == nil:
			r.restart()
			r.log.Info("quarantined record replayed", "record", row.Seq)
			return nil
		case errors.Is(err, ErrFenced):
			return err
		case isPanic:
			return r.refuseReplay(sink, row.Seq, ClassPanic, err)
		case VerdictOf(err) == VerdictSkip && row.Class == ClassProducer:
			return r.refuseReplay(sink, row.Seq, ClassProducer, err)
		case VerdictOf(err) == VerdictSkip, VerdictOf(err) == VerdictLater && r.patience >= 0 && r.retryState.Dependent >= r.patience:
			return r.refuseReplay(sink, row.Seq, ClassRefused, err)
		}
		if _, isCut := errors.AsType[*disconnectError](err); batch.outside {
			err = r.retryCommit(err) // the handler is not called again, only the mark is missing
		} else if isCut {
			err = r.afterDisconnect(err, false)
		} else {
			err = r.afterRefusal(err)
		}
		if err != nil {
			return err
		}
	}
}

// refuseReplay makes a record wait again, unless CommitReplay has done so.
func (r *run) refuseReplay(sink ReplaySink, seq uint64, class Class, why error) error {
	attempt := NewAttempt(class, why)
	r.log.Warn("quarantined record is still bad", "record", seq, "class", class, "error", why, "stack", attempt.Stack)
	for {
		ctx, cancel := context.WithTimeout(r.leaseCtx, r.config.HandlerTimeout)
		err := sink.RefuseReplay(ctx, r.lease, seq, attempt)
		cancel()
		if err == nil || errors.Is(err, ErrFenced) {
			return err
		}
		if err := r.afterRefusal(&unreachedError{fmt.Errorf("the quarantine cannot be written: %w", err)}); err != nil {
			return err
		}
	}
}

// callReplay passes a record to the handler again, unless the handler of AtLeastOnce has processed it already: then only its state is missing.
func (r *run) callReplay(sink ReplaySink, batch *Batch) error {
	if batch.outside {
		return r.commitReplay(sink, batch)
	}
	if err := r.acquireHandler(true); err != nil {
		return err
	}
	defer r.releaseHandler()
	// Its number is not after the checkpoint, which distinguishes it from a batch.
	if err := r.saveState(r.suspicion.inFlight(batch.Records[0].Seq)); err != nil {
		return err
	}
	if sink, ok := sink.(*atLeastOnce); ok {
		if err := r.callHandler(func(ctx context.Context) error { return sink.replay(ctx, batch) }); err != nil {
			return err
		}
		r.sinkCtx = r.drainCtx
	}
	return r.commitReplay(sink, batch)
}

func (r *run) commitReplay(sink ReplaySink, batch *Batch) error {
	reserved, release, err := r.reserve(r.sinkContext())
	if err != nil {
		return err
	}
	defer release()
	return r.call(reserved, func(ctx context.Context) error { return sink.CommitReplay(ctx, r.lease, batch) })
}

// fetch asks the producer once more for a record that it could not make.
func (r *run) fetch(seq uint64, key []byte) (Record, error) {
	ctx, cancel := context.WithCancelCause(r.leaseCtx)
	defer cancel(nil)
	defer context.AfterFunc(r.stopCtx, func() { cancel(errStopping) })()
	s := &session{r: r, cancel: cancel, probing: true, next: seq}
	// From the start, since only the positions between batches have names; the producer passes over what comes before.
	in, err := s.open(ctx, nil, 1)
	if err != nil {
		return Record{}, s.endReason(ctx, err)
	}
	idle := time.AfterFunc(r.config.IdleTimeout, func() { cancel(errIdle) })
	defer idle.Stop()
	for {
		idle.Reset(r.config.IdleTimeout) // reaching the record may take long, but marks arrive meanwhile
		f := new(frame)
		if err := in.RecvMsg(f); err != nil {
			return Record{}, s.endReason(ctx, err)
		}
		if f.err == nil && f.kind == fieldFrameBatch && len(f.records) > 0 && f.firstSeq == seq {
			record := f.records[0]
			record.Key, record.Value = clone(record.Key), clone(record.Value)
			f.free()
			switch {
			case !bytes.Equal(record.Key, key):
				return Record{}, Skip(fmt.Errorf("%w: record %d has key %q there by now", ErrGeneration, seq, record.Key))
			case record.Bad != "":
				return Record{}, Skip(fmt.Errorf("the producer still cannot make it: %s", record.Bad))
			}
			return record, nil
		}
		kind, broken, after := f.kind, f.err, f.other.GetDrain().GetRetryAfter().AsDuration()
		f.free()
		switch {
		case broken != nil:
			return Record{}, &disconnectError{Classify(broken)}
		case kind == fieldFrameDrain:
			return Record{}, &disconnectError{Disconnect{Transport: true, Reason: ReasonDraining, After: max(after, 0), Err: errDrained}}
		case kind == fieldFrameEnd:
			return Record{}, Skip(fmt.Errorf("%w: the stream ends before record %d by now", ErrGone, seq))
		}
	}
}
