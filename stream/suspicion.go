package stream

import (
	"context"
	"errors"
	"fmt"
)

// A record that kills its process cannot be caught, only found: by what the journal in the store says about the deaths of former owners. What must hold:
// a batch is noted before the handler gets it, nothing else of the process is in a handler meanwhile (see hands), and the note is gone before the next
// batch. Then a death while it is there is the batch's, and each one halves what the next owner dares at once.

// suspicion says which records may have killed owners of a job. It is a value: events make another one of it, and the run stores what is to outlive it.
// The files in testdata/suspicion show how it finds a record.
type suspicion struct {
	Journal         // as the store has it, but for Deaths, which a commit resets here first
	poison   uint64 // the record that has killed enough processes; it is the one after the checkpoint. 0: none, as after each commit
	replayed uint64 // the record that was being replayed when the last owner died, at or before the checkpoint; 0: none
}

// limit returns how many of n records may be handed to the handler at once.
func (s suspicion) limit(n int) int {
	if s.Probe > 0 {
		return min(n, s.Probe)
	}
	return n
}

// claimed is the suspicion of an owner that begins at the checkpoint, record at. crashed: the owner before did not release the job. A batch has
// commitRecords records unless something is suspected, and a record that was alone in flight in maxCrashes crashes is poison.
func (s suspicion) claimed(at uint64, crashed bool, commitRecords, maxCrashes int) suspicion {
	j := s.Journal
	s = suspicion{}
	if crashed {
		if j.Hand <= at {
			s.replayed = j.Hand
		}
		j = suspectAfter(j, at, commitRecords)
	}
	s.poison, s.Journal = findPoison(j, at, maxCrashes)
	return s
}

// suspectAfter returns the journal after the crash of an owner, with the checkpoint at record at. A batch is blamed for the crash if it was stored as being
// in flight, which is the case from the first crash on: one that nobody could have foreseen starts the search, and each that is blamed halves what may
// be in flight, down to one record. Processes that were killed from outside do so between batches, or are forgotten with the next batch that is committed.
func suspectAfter(j Journal, at uint64, records int) Journal {
	switch {
	case j.Probe == 0:
		return Journal{Probe: max(records/2, 1), Until: at + uint64(records)}
	case j.Hand == 0 || j.Hand != at+1: // between batches, or after a commit
	case j.Probe == 1:
		j.Deaths++
	default:
		j.Until = j.Hand + uint64(j.Probe) - 1
		j.Probe = (j.Probe + 1) / 2
	}
	return j
}

// findPoison returns the record that has killed maxCrashes processes, or 0, and the journal of an owner that begins at the checkpoint.
func findPoison(j Journal, at uint64, maxCrashes int) (poison uint64, _ Journal) {
	if j.Probe == 1 && j.Deaths >= maxCrashes && j.Hand == at+1 {
		poison = j.Hand
	} else {
		if j.Hand != at+1 {
			j.Deaths = 0
		}
		j.Hand = 0
	}
	if j.Until <= at {
		j = Journal{}
	}
	return poison, j
}

// inFlight is the suspicion while records from seq on are in a handler; 0: none are.
func (s suspicion) inFlight(seq uint64) suspicion {
	s.Hand = seq
	return s
}

// committed is the suspicion once the records up to seq are committed. over: that was the last suspect.
func (s suspicion) committed(seq uint64) (_ suspicion, over bool) {
	if s.Probe == 0 {
		return s, false
	}
	s.poison, s.Deaths = 0, 0
	if seq >= s.Until {
		s.Journal = Journal{}
		return s, true
	}
	return s, false
}

// readJournal learns from the deaths of former owners.
func (r *run) readJournal(died bool) error {
	stored := r.suspicion.Journal
	s := r.suspicion.claimed(r.checkpoint.Seq, died, r.config.CommitRecords, r.config.Deaths)
	if s.Journal == stored {
		r.suspicion = s
		return nil
	}
	return r.note(s)
}

// note stores the suspicion and the stall, and retries for as long as the lease lasts.
func (r *run) note(s suspicion) error {
	for {
		err := r.host.saveState(r.own, r.lease, s.Journal, r.stall)
		switch {
		case err == nil:
			r.suspicion, r.noted = s, r.stall
			return nil
		case errors.Is(err, ErrFenced):
			return err
		case r.own.Err() != nil:
			return context.Cause(r.own)
		}
		if err := r.fail(fmt.Errorf("%s: %w", unanswered("the job store", err), err), unreached(err)); err != nil {
			return err
		}
	}
}

// takeHandFrom waits until records from first on may be in a handler. If they are suspects, it notes them: from here until the commit a death is blamed
// on them, also if the first one is not handed over, since that is what follows the checkpoint. giveHand ends it.
func (r *run) takeHandFrom(first uint64) (suspect bool, err error) {
	suspect = r.suspicion.Probe > 0
	if err := r.takeHand(suspect); err != nil || !suspect {
		return suspect, err
	}
	if err := r.note(r.suspicion.inFlight(first)); err != nil {
		r.giveHand()
		return suspect, err
	}
	return suspect, nil
}

// exonerate takes the suspicion from records that were committed. The journal is cleared once the last suspect is.
func (r *run) exonerate(committed uint64) error {
	s, over := r.suspicion.committed(committed)
	if over || r.noted != r.stall {
		return r.note(s)
	}
	r.suspicion = s
	return nil
}

// quarantinePoison has the first record accounted for without its handler. token names the position after it.
func (r *run) quarantinePoison(records []Record, token []byte) error {
	why := fmt.Errorf("%d processes crashed with this record alone in flight", r.suspicion.Deaths)
	return r.quarantine(records[:1], token, r.suspicion.Deaths, NewAttempt(ClassDeath, why))
}
