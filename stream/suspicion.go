package stream

import (
	"context"
	"errors"
	"fmt"
)

// A record that kills its process cannot be caught, only found: by what the store's crash state says about the crashes of former owners. What must hold:
// a batch is stored as being in flight before the handler gets it, nothing else of the process is in a handler meanwhile (see handlerSlots), and that is cleared or overwritten before the next
// batch. Then a crash while it is there is blamed on the batch, and each one halves the next owner's batches.

// suspicion says which records may have killed owners of a job. It is a value: events make another one of it, and the run stores what is to outlive it.
// The files in testdata/suspicion show how it finds a record.
type suspicion struct {
	CrashState        // as the store has it, but for Crashes, which a commit resets here first
	poison     uint64 // the record that has killed enough processes; it is the one after the checkpoint. 0: none, as after each commit
	replaying  uint64 // the record that was being replayed when the last owner died, at or before the checkpoint; 0: none
}

// limit returns how many of n records may be handed to the handler at once.
func (s suspicion) limit(n int) int {
	if s.BatchLimit > 0 {
		return min(n, s.BatchLimit)
	}
	return n
}

// claimed is the suspicion of an owner that begins at the checkpoint, record at. crashed: the owner before did not release the job. A batch has
// commitRecords records unless something is suspected, and a record that was alone in flight in maxCrashes crashes is poison.
func (s suspicion) claimed(at uint64, crashed bool, commitRecords, maxCrashes int) suspicion {
	j := s.CrashState
	s = suspicion{}
	if crashed {
		if j.InFlightSeq <= at {
			s.replaying = j.InFlightSeq
		}
		j = suspectAfter(j, at, commitRecords)
	}
	s.poison, s.CrashState = findPoison(j, at, maxCrashes)
	return s
}

// suspectAfter returns the crash state after the crash of an owner, with the checkpoint at record at. A batch is blamed for the crash if it was stored as being
// in flight, which is the case from the first crash on: the first, which nothing could foresee, starts the search, and each that is blamed halves what may
// be in flight, down to one record. Processes that were killed from outside do so between batches, or are forgotten with the next batch that is committed.
func suspectAfter(j CrashState, at uint64, records int) CrashState {
	switch {
	case j.BatchLimit == 0:
		return CrashState{BatchLimit: max(records/2, 1), SuspectUntil: at + uint64(records)}
	case j.InFlightSeq == 0 || j.InFlightSeq != at+1: // between batches, or after a commit
	case j.BatchLimit == 1:
		j.Crashes++
	default:
		j.SuspectUntil = j.InFlightSeq + uint64(j.BatchLimit) - 1
		j.BatchLimit = (j.BatchLimit + 1) / 2
	}
	return j
}

// findPoison returns the record that has killed maxCrashes processes, or 0, and the crash state of an owner that begins at the checkpoint.
func findPoison(j CrashState, at uint64, maxCrashes int) (poison uint64, _ CrashState) {
	if j.BatchLimit == 1 && j.Crashes >= maxCrashes && j.InFlightSeq == at+1 {
		poison = j.InFlightSeq
	} else {
		if j.InFlightSeq != at+1 {
			j.Crashes = 0
		}
		j.InFlightSeq = 0
	}
	if j.SuspectUntil <= at {
		j = CrashState{}
	}
	return poison, j
}

// inFlight is the suspicion while records from seq on are in a handler; 0: none are.
func (s suspicion) inFlight(seq uint64) suspicion {
	s.InFlightSeq = seq
	return s
}

// committed is the suspicion once the records up to seq are committed. over: that was the last suspect.
func (s suspicion) committed(seq uint64) (_ suspicion, over bool) {
	if s.BatchLimit == 0 {
		return s, false
	}
	s.poison, s.Crashes = 0, 0
	if seq >= s.SuspectUntil {
		s.CrashState = CrashState{}
		return s, true
	}
	return s, false
}

// readCrashState updates the suspicion for crashes of former owners.
func (r *run) readCrashState(died bool) error {
	stored := r.suspicion.CrashState
	s := r.suspicion.claimed(r.checkpoint.Seq, died, r.config.CommitRecords, r.config.MaxCrashes)
	if s.CrashState == stored {
		r.suspicion = s
		return nil
	}
	return r.saveState(s)
}

// saveState stores the suspicion and the retry state, and retries for as long as the lease lasts.
func (r *run) saveState(s suspicion) error {
	for {
		err := r.host.saveState(r.leaseCtx, r.lease, s.CrashState, r.retryState)
		switch {
		case err == nil:
			r.suspicion, r.savedRetry = s, r.retryState
			return nil
		case errors.Is(err, ErrFenced):
			return err
		case r.leaseCtx.Err() != nil:
			return context.Cause(r.leaseCtx)
		}
		if err := r.fail(fmt.Errorf("%s: %w", unavailable("the job store", err), err), unreached(err)); err != nil {
			return err
		}
	}
}

// acquireHandlerFrom waits until records from first on may be in a handler. If they are suspects, it stores that: from here until the commit a crash is blamed
// on them, also if the handler does not get the first one, since that is what follows the checkpoint. releaseHandler ends it.
func (r *run) acquireHandlerFrom(first uint64) (suspect bool, err error) {
	suspect = r.suspicion.BatchLimit > 0
	if err := r.acquireHandler(suspect); err != nil || !suspect {
		return suspect, err
	}
	if err := r.saveState(r.suspicion.inFlight(first)); err != nil {
		r.releaseHandler()
		return suspect, err
	}
	return suspect, nil
}

// recordCommit takes the suspicion from records that were committed. The crash state is cleared once the last suspect is committed.
func (r *run) recordCommit(committed uint64) error {
	s, over := r.suspicion.committed(committed)
	if over || r.savedRetry != r.retryState {
		return r.saveState(s)
	}
	r.suspicion = s
	return nil
}

// quarantinePoison has the first record accounted for without its handler. token names the position after it.
func (r *run) quarantinePoison(records []Record, token []byte) error {
	why := fmt.Errorf("%d processes crashed with this record alone in flight", r.suspicion.Crashes)
	return r.quarantine(records[:1], token, r.suspicion.Crashes, NewAttempt(ClassCrash, why))
}
