package shard

import (
	"container/heap"
	"time"
)

// What must hold, whatever goes wrong.

func (s *sim) pop() simEvent { return heap.Pop(&s.queue).(simEvent) }

const (
	// unownedLimit is how long a shard may be without an owner when nothing goes wrong any more: the TTL of a session of which nobody knows how it ended, the time
	// until the others remove it themselves if the store does not, and the pause of a member that comes back.
	unownedLimit = 9 * time.Second
	// restTime is from the last fault until the last session of a process that is gone has ended.
	restTime = 10 * time.Second
)

// checkStart: of two processes that read a shard at the same time, no one may have a session that it counts as valid. A frozen process does nothing; when it wakes up,
// its clock has gone on.
func (s *sim) checkStart(r *reader) {
	for _, p := range s.procs {
		other := p.readers[r.shard]
		if p == r.p || p.gone || other == nil || other.ended {
			continue
		}
		if other.epoch >= r.epoch {
			s.fail("%s starts %s under epoch %d, and %s has it under epoch %d", r.p.name, r.shard, r.epoch, p.name, other.epoch)
		}
		// A process that takes the name of one which still runs takes its shards at once: it cannot know that it is not that process, restarted.
		if !p.usurped && p.clock() < p.validUntil && !other.abandoned {
			s.fail("two live owners of %s: %s (epoch %d) and %s (epoch %d, valid for another %v)", r.shard, r.p.name, r.epoch, p.name, other.epoch, p.validUntil-p.clock())
		}
	}
}

// checkSave: what a later owner has opened is never saved by an earlier one, and no save is made on top of something else than its writer knows.
func (s *sim) checkSave(r *reader, was *simSaved, saved Saved, counter int, raise bool) {
	switch {
	case saved.Epoch < was.saved.Epoch:
		s.fail("%s saves %s under epoch %d after epoch %d", r.p.name, r.shard, saved.Epoch, was.saved.Epoch)
	case raise && counter != was.counter, !raise && counter != was.counter+1 && counter != was.counter:
		s.fail("%s saves %s: %d on top of %d", r.p.name, r.shard, counter, was.counter)
	}
}

// healthy reports whether a process should have its share: it runs, reaches the store, and does not leave.
func (s *sim) healthy(p *proc) bool {
	return !p.gone && !p.draining && s.now >= p.frozen && s.now >= p.cut
}

// watchOwners: no shard is without an owner for longer than unownedLimit since the last fault.
func (s *sim) watchOwners() {
	any := false
	for _, p := range s.procs {
		any = any || s.healthy(p)
	}
	for i, shard := range s.shards {
		owned := !any
		for _, p := range s.procs {
			if r := p.readers[shard]; s.healthy(p) && r != nil && !r.ended && !r.abandoned {
				owned = true
			}
		}
		if owned {
			s.ownedAt[i] = s.now
			continue
		}
		d := s.now - max(s.ownedAt[i], s.calmSince)
		s.stats.unowned = max(s.stats.unowned, d)
		if d > unownedLimit {
			s.fail("%s is without an owner for %v", shard, d)
		}
	}
	s.after(100*ms, s.watchOwners)
}

// restUntil is until when the run goes on after the last fault.
func (s *sim) restUntil() time.Duration {
	return max(s.chaos, s.calmSince+restTime, s.store.down+restTime, s.lastChange+4*time.Second)
}

// checkRest: 2 s after the last change of the members all shards have one owner, the shares differ by one at most, and nothing moves any more.
func (s *sim) checkRest() {
	counts := map[*proc]int{}
	for _, p := range s.procs {
		if s.healthy(p) {
			counts[p] = 0
		}
	}
	if len(counts) == 0 {
		return
	}
	for _, shard := range s.shards {
		owners := 0
		for _, p := range s.procs {
			if r := p.readers[shard]; !p.gone && r != nil && !r.ended {
				owners++
				counts[p]++
			}
		}
		if owners != 1 {
			s.fail("at rest %s has %d owners", shard, owners)
		}
	}
	least, most := len(s.shards), 0
	for _, n := range counts {
		least, most = min(least, n), max(most, n)
	}
	if most-least > 1 {
		s.fail("at rest one member has %d shards and another one %d", least, most)
	}
	s.stats.converged = max(0, s.lastStart-max(s.lastChange, s.calmSince))
	if s.stats.converged > 3500*ms { // a watch that ended in silence is found by three renewals that did not come back
		s.fail("shards moved %v after the last change of the members", s.stats.converged)
	}
	if s.now-s.lastStart < 2*time.Second-400*ms {
		s.fail("shards move %v before the end of the rest", s.now-s.lastStart)
	}
	if limit := len(s.shards) * (s.stats.changes + s.stats.faults + 1); s.stats.starts > limit {
		s.fail("%d starts of %d shards after %d changes of the members and %d faults", s.stats.starts, len(s.shards), s.stats.changes, s.stats.faults)
	}
}
