package shard

import (
	"fmt"
	"math/rand/v2"
	"time"
)

// simulate runs one seed. The returned error says what did not hold.
func simulate(seed uint64, b bug, log func(string, ...any)) (simStats, error) {
	s := &sim{log: log, rng: rand.New(rand.NewPCG(seed, 0)), bug: b}
	s.store = simStore{s: s, last: map[Key]uint64{}, saved: map[string]*simSaved{}, ttl: s.chance(0.8)}
	if s.chance(0.3) {
		s.store.lag = time.Second
	}
	s.shards = names("p0.s", []int{1, 3, 4, 8, 8, 12}[s.rng.IntN(6)])
	s.ownedAt = make([]time.Duration, len(s.shards))
	s.chaos = s.between(10*time.Second, 40*time.Second)
	for i := range 1 + s.rng.IntN(5) {
		s.after(s.between(0, 2*time.Second), func() { s.newProc(fmt.Sprintf("pod-%d", i)) })
	}
	for range 1 + s.rng.IntN(8) {
		s.after(s.between(time.Second, s.chaos), s.fault)
	}
	s.after(3*time.Second, s.watchOwners)
	end := s.chaos
	for s.failure == nil && len(s.queue) > 0 {
		e := s.pop()
		s.now = e.at
		e.do()
		if s.now > end && s.now > s.chaos {
			if rest := s.restUntil(); s.now < rest {
				end = rest
				continue
			}
			break
		}
	}
	if s.failure == nil {
		s.checkRest()
	}
	return s.stats, s.failure
}

// alive are the processes that run, and may get shards.
func (s *sim) alive() []*proc {
	var all []*proc
	for _, p := range s.procs {
		if !p.gone {
			all = append(all, p)
		}
	}
	return all
}

func (s *sim) disturb(until time.Duration) { s.calmSince = max(s.calmSince, s.now+until) }

// fault does one of the things that go wrong.
func (s *sim) fault() {
	all := s.alive()
	s.disturb(0)
	s.stats.faults++
	if len(all) == 0 {
		s.newProc("pod-0")
		return
	}
	p := all[s.rng.IntN(len(all))]
	kind := s.rng.IntN(15)
	s.trace("fault %d at %s/%d", kind, p.name, p.id)
	switch kind {
	case 0, 1: // SIGKILL; restarted soon, late, or never
		p.gone = true
		s.restart(p.name)
	case 2, 3: // SIGTERM
		p.draining = true
		p.run(func() { p.step(Drain{}) })
		s.restart(p.name)
	case 4, 5: // SIGSTOP, or a garbage collection, or a machine that is moved
		d := s.between(100*ms, 12*time.Second)
		s.disturb(d)
		p.freeze(d)
	case 6: // scaled up
		for range 1 + s.rng.IntN(3) {
			s.newProc(fmt.Sprintf("pod-%d", 10+len(s.procs)))
		}
	case 7: // another process with the name of one that runs
		s.newProc(p.name)
	case 8: // the store has lost its quorum
		s.outage(s.between(500*ms, 9*time.Second))
	case 9: // its leader changes
		s.outage(s.between(50*ms, 800*ms))
	case 10: // answers are lost
		s.store.loseReply = s.rng.Float64() * 0.5
		d := s.between(time.Second, 5*time.Second)
		s.disturb(d)
		s.after(d, func() { s.store.loseReply = 0 })
	case 11: // a process is cut off
		d := s.between(500*ms, 9*time.Second)
		p.cut = s.now + d
		s.disturb(d)
	case 12: // its requests are slow
		d := s.between(time.Second, 6*time.Second)
		p.slow, p.answers, p.slowUntil = s.between(100*ms, 1500*ms), 0, s.now+d
		if s.chance(0.5) { // only the answers
			p.slow, p.answers = 50*ms, s.between(400*ms, 900*ms)
		}
		s.disturb(d + 2*time.Second)
		if s.chance(0.5) { // and then nothing arrives any more
			s.disturb(d + 9*time.Second)
			s.after(d, func() { p.cut = s.now + s.between(0, 9*time.Second) })
		}
	case 13: // its watch is late
		d := s.between(500*ms, 4*time.Second)
		p.stalled = s.now + d
		s.disturb(d)
	case 14: // its watch has ended, and nobody has noticed
		p.silent = true
		s.disturb(5 * time.Second)
	}
	p.wall += s.between(-2*time.Second, 2*time.Second)
}

func (s *sim) restart(name string) {
	if s.chance(0.7) {
		d := s.between(0, 8*time.Second)
		s.disturb(d)
		s.after(d, func() { s.newProc(name) })
	}
}

func (s *sim) outage(d time.Duration) {
	s.store.down = max(s.store.down, s.now+d)
	s.disturb(d)
}
