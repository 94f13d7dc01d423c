package stream_test

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/levada-io/levada/stream"
)

// history is what happened to the jobs of a run, as their store and sink saw it, in that order. The validators below say what
// must be true of every history.
type history struct {
	mu     sync.Mutex
	events []happened
}

// happened is one thing that took effect.
type happened struct {
	what     string // claim, fence, commit, move, release, steer, death, look
	at       time.Time
	job      string
	epoch    uint64
	owner    string
	from, to uint64 // commit: records; fence: to is the checkpoint
	seqs     []uint64
	aside    []stream.Quarantined
	state    stream.State
	digest   stream.Digest
	done     bool
	stall    stream.RetryState // release
	reason   stream.Reason     // release
	due      time.Time         // release, look: when the job is looked at next
	hand     []uint64          // death: the records that the owner had noted to be in flight, which did not return
}

func (h *history) add(e happened) {
	h.mu.Lock()
	defer h.mu.Unlock()
	e.at = time.Now()
	h.events = append(h.events, e)
}

// A validator checks one invariant of a job. The numbers are those of docs/streams.md.
type validator struct {
	name  string
	check func(events []happened, expect expectation) error
}

// expectation is what a job's stream holds.
type expectation struct {
	records    []stream.Record // as the producer has them; those it cannot make have Bad set
	bad        map[uint64]bool // records that cannot be processed
	deaths     int
	noProgress time.Duration
	final      stream.Status
	pause      time.Duration // the longest pause between attempts
	lease      time.Duration // how long a lease lasts
	orphans    int
	outside    bool // the effects are outside the sink: AtLeastOnce
	ended      bool // the run went on until every job was final
}

var validators = []validator{
	{"I1 monotone: the committed number never decreases", func(events []happened, _ expectation) error {
		last := uint64(0)
		for _, e := range events {
			if e.what == "commit" {
				if e.to < last {
					return fmt.Errorf("record %d was committed after %d", e.to, last)
				}
				last = e.to
			}
		}
		return nil
	}},
	{"I2 contiguous: each commit starts after the one before", func(events []happened, _ expectation) error {
		last := uint64(0)
		for _, e := range events {
			if e.what == "commit" {
				if e.from != last+1 {
					return fmt.Errorf("a commit of %d to %d follows %d", e.from, e.to, last)
				}
				last = e.to
			}
		}
		return nil
	}},
	{"I3 unique: a position is committed at most once", func(events []happened, _ expectation) error {
		seen := map[uint64]bool{}
		for _, e := range events {
			if e.what != "commit" {
				continue
			}
			for _, seq := range e.seqs {
				if seen[seq] {
					return fmt.Errorf("record %d was committed twice", seq)
				}
				seen[seq] = true
			}
			for _, row := range e.aside {
				if seen[row.Seq] {
					return fmt.Errorf("record %d was committed, and quarantined", row.Seq)
				}
				seen[row.Seq] = true
			}
		}
		return nil
	}},
	{"I4 complete: a completed job has all records, and the producer's digest", func(events []happened, x expectation) error {
		if x.final.State != stream.Completed {
			return nil
		}
		var want, got stream.Digest
		for i, r := range x.records {
			r.Seq = uint64(i + 1)
			want.Add(r)
		}
		n := uint64(0)
		for _, e := range events {
			if e.what == "commit" {
				n += uint64(len(e.seqs) + len(e.aside))
			}
			if e.done {
				got = e.digest
			}
		}
		if n != uint64(len(x.records)) || got != want {
			return fmt.Errorf("%d records with digest %v were accounted for, of %d with %v", n, got, len(x.records), want)
		}
		return nil
	}},
	{"I5 fenced: nothing is committed by an epoch after a greater one was fenced", func(events []happened, _ expectation) error {
		fence := uint64(0)
		for _, e := range events {
			switch e.what {
			case "fence":
				fence = max(fence, e.epoch)
			case "commit":
				if e.epoch != fence {
					return fmt.Errorf("epoch %d committed, and the fence is at %d", e.epoch, fence)
				}
			}
		}
		return nil
	}},
	{"I6 one owner per epoch", func(events []happened, _ expectation) error {
		owners := map[uint64]string{}
		for _, e := range events {
			if e.what == "claim" {
				if owner, ok := owners[e.epoch]; ok {
					return fmt.Errorf("epoch %d was given to %s and %s", e.epoch, owner, e.owner)
				}
				owners[e.epoch] = e.owner
			}
		}
		return nil
	}},
	{"I7 no orphan: a job that is not final will be due", func(_ []happened, x expectation) error {
		if x.orphans > 0 {
			return fmt.Errorf("%d jobs have no time at which they are due", x.orphans)
		}
		if x.ended && !x.final.State.Final() {
			return fmt.Errorf("the job is %s long after all faults ended: %+v", x.final.State, x.final)
		}
		return nil
	}},
	{"I8 terminal is final", func(events []happened, x expectation) error {
		ended := false
		for _, e := range events {
			switch {
			case e.what == "release" && e.state.Final(), e.what == "steer" && e.state == stream.Cancelled:
				ended = true
			case e.what == "steer" && e.state == stream.Ready:
				ended = false
			case ended && (e.what == "claim" || e.what == "commit" && !x.outside): // a job that is cancelled keeps effects that have happened
				return fmt.Errorf("a %s follows the job's end", e.what)
			}
		}
		return nil
	}},
	{"I10 no silent skip: each record has its effect or its row", func(events []happened, x expectation) error {
		for _, e := range events {
			if e.what != "commit" {
				continue
			}
			accounted := slices.Clone(e.seqs)
			for _, row := range e.aside {
				accounted = append(accounted, row.Seq)
			}
			slices.Sort(accounted)
			for i, seq := range accounted {
				if seq != e.from+uint64(i) {
					return fmt.Errorf("the commit of %d to %d has no effect of record %d", e.from, e.to, e.from+uint64(i))
				}
			}
			if n := e.to + 1 - e.from; uint64(len(accounted)) != n {
				return fmt.Errorf("the commit of %d to %d accounts for %d records", e.from, e.to, len(accounted))
			}
			for _, seq := range e.seqs {
				if x.bad[seq] {
					return fmt.Errorf("record %d cannot be processed, and was", seq)
				}
			}
		}
		return nil
	}},
	{"I10 evidence: only bad records are quarantined, for a death only after enough of them", func(events []happened, x expectation) error {
		deaths := map[uint64]int{}
		for _, e := range events {
			if e.what == "death" && len(e.hand) == 1 {
				deaths[e.hand[0]]++
			}
			for _, row := range e.aside {
				switch {
				case row.Class == stream.ClassCrash && deaths[row.Seq] < x.deaths:
					return fmt.Errorf("record %d was quarantined for %d deaths, and %d owners did not return that had it alone in flight", row.Seq, x.deaths, deaths[row.Seq])
				case row.Class != stream.ClassCrash && !x.bad[row.Seq]:
					return fmt.Errorf("record %d was quarantined (%s: %s), and is good", row.Seq, row.Class, row.Error)
				}
			}
		}
		return nil
	}},
	{"I15 at least once: nothing is handed over twice without a crash, and nothing is committed that was not", func(events []happened, x expectation) error {
		if !x.outside {
			return nil
		}
		handed := map[uint64]string{} // record: the owner that finished it last
		taken := map[string]bool{}    // owners from whom the job was taken before they gave it back, by another
		owner := ""
		for _, e := range events {
			switch e.what {
			case "claim":
				if owner != "" && owner != e.owner {
					taken[owner] = true
				}
				owner = e.owner
			case "release":
				owner = ""
			case "handed":
				for _, seq := range e.seqs {
					// One that was frozen for longer than its lease goes on with what it had begun, as one that crashed would not have finished it.
					frozen := taken[e.owner] && owner != e.owner
					if before, ok := handed[seq]; ok && !taken[before] && !frozen {
						return fmt.Errorf("record %d was handed over again by %s, and %s had finished it and did not crash", seq, e.owner, before)
					}
					handed[seq] = e.owner
				}
			case "commit":
				for _, seq := range e.seqs {
					if _, ok := handed[seq]; !ok {
						return fmt.Errorf("record %d was committed and never handed over", seq)
					}
				}
			}
		}
		return nil
	}},
	{"I13 outages: no job fails while everything that is wrong passes", func(events []happened, _ expectation) error {
		for _, e := range events {
			if e.what == "release" && e.state == stream.Failed {
				return fmt.Errorf("the job failed: %s", e.reason)
			}
		}
		return nil
	}},
	{"I14 due: a job that waits has a time at which it is tried again, soon, and says why it waits", func(events []happened, x expectation) error {
		for _, e := range events {
			if e.what != "release" && e.what != "look" {
				continue
			}
			switch {
			case e.state == stream.Ready && (e.due.IsZero() || e.due.After(e.at.Add(x.pause))), e.state == stream.Running && (e.due.IsZero() || e.due.After(e.at.Add(x.lease))):
				return fmt.Errorf("at %v the job is %s and due at %v", e.at, e.state, e.due)
			case e.what == "release" && e.state == stream.Ready && e.reason == "":
				return errors.New("the job waits without a reason")
			}
		}
		return nil
	}},
	{"I11 progress budget: the time without progress is bounded", func(events []happened, x expectation) error {
		for _, e := range events {
			if e.what == "release" && !e.state.Final() && e.stall.NoProgress > x.noProgress+x.pause {
				return fmt.Errorf("for %v no attempt came further, and %v is allowed", e.stall.NoProgress, x.noProgress)
			}
		}
		return nil
	}},
}

// validate checks all of a job's history.
func (h *history) validate(x expectation) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	var events []happened
	for _, e := range h.events {
		if e.job == x.final.ID {
			events = append(events, e)
		}
	}
	var errs []error
	for _, v := range validators {
		if err := v.check(events, x); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", v.name, err))
		}
	}
	return errors.Join(errs...)
}
