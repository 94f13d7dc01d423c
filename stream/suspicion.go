package stream

import (
	"context"
	"errors"
	"fmt"
)

// A record that kills its process cannot be caught, only found: by what the journal in the store says about the deaths of former owners. What must hold:
// a batch is noted before the handler gets it, nothing else of the process is in a handler meanwhile (see hands), and the note is gone before the next
// batch. Then a death while it is there is the batch's, and each one halves what the next owner dares at once.

// suspectAfter returns the journal after the death of an owner, with the checkpoint at record at. A batch is blamed for the death if it was noted to be
// in flight, which is the case from the first death on: one that nobody could have foreseen starts the search, and each that is blamed halves what may
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

// convict returns the record that has killed as many processes as are enough, or 0, and the journal of an owner that begins at the checkpoint.
func convict(j Journal, at uint64, deaths int) (condemned uint64, _ Journal) {
	if j.Probe == 1 && j.Deaths >= deaths && j.Hand == at+1 {
		condemned = j.Hand
	} else {
		if j.Hand != at+1 {
			j.Deaths = 0
		}
		j.Hand = 0
	}
	if j.Until <= at {
		j = Journal{}
	}
	return condemned, j
}

// withHand is the journal while records from seq on are in flight; 0: none are.
func withHand(j Journal, seq uint64) Journal {
	j.Hand = seq
	return j
}

// readJournal learns from the deaths of former owners.
func (r *run) readJournal(died bool) error {
	j := r.journal
	if died {
		if j.Hand <= r.checkpoint.Seq {
			r.replayed = j.Hand
		}
		j = suspectAfter(j, r.checkpoint.Seq, r.config.CommitRecords)
	}
	r.condemned, j = convict(j, r.checkpoint.Seq, r.config.Deaths)
	if j == r.journal {
		return nil
	}
	return r.note(j)
}

// note has the store remember the journal, for which it tries as long as the lease lasts.
func (r *run) note(j Journal) error {
	for {
		ctx, cancel := context.WithTimeout(r.own, r.w.config.Lease/3)
		err := r.w.config.Store.Note(ctx, r.lease, j, r.stall)
		cancel()
		switch {
		case err == nil:
			r.journal, r.noted = j, r.stall
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
	suspect = r.journal.Probe > 0
	if err := r.takeHand(suspect); err != nil || !suspect {
		return suspect, err
	}
	if err := r.note(withHand(r.journal, first)); err != nil {
		r.giveHand()
		return suspect, err
	}
	return suspect, nil
}

// exonerate takes the suspicion from records that were committed. The journal is cleared once the last suspect is.
func (r *run) exonerate(committed uint64) error {
	if r.journal.Probe > 0 {
		r.condemned, r.journal.Deaths = 0, 0
		if committed >= r.journal.Until {
			return r.note(Journal{})
		}
	}
	if r.noted != r.stall {
		return r.note(r.journal)
	}
	return nil
}

// quarantineCondemned has the first record accounted for without its handler. token names the position after it.
func (r *run) quarantineCondemned(records []Record, token []byte) error {
	why := fmt.Errorf("%d processes crashed with this record alone in flight", r.journal.Deaths)
	return r.quarantine(records[:1], token, r.journal.Deaths, NewAttempt(ClassDeath, why))
}
