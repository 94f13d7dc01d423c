package shard

import (
	"cmp"
	"container/heap"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"
)

// The simulation runs whole groups of processes in virtual time, as events of one goroutine: members, their readers, and a store with a watch. Everything random comes
// from the seed. What may go wrong is in simFaults, what must hold in simChecks.

const ms = time.Millisecond

// sim is one run.
type sim struct {
	rng    *rand.Rand
	now    time.Duration
	queue  simQueue
	serial int
	bug    bug

	shards []string
	procs  []*proc // all that ever were
	store  simStore

	chaos      time.Duration // how long faults begin
	calmSince  time.Duration // when the last fault ended
	ownedAt    []time.Duration
	lastStart  time.Duration
	lastChange time.Duration // of who is a member, as the store has it

	stats   simStats
	failure error
	log     func(format string, args ...any)
}

// simStats says what a run was about, so that the test can tell whether the faults happen.
type simStats struct {
	starts, changes, faults, refused, fenced, superseded, abandoned, late int
	unowned, converged                                                    time.Duration
}

// bug is a mistake in the protocol that the simulation must find.
type bug int

const (
	noBug          bug = iota
	noFence            // saves without a compare-and-set
	clockOfAnswer      // a session counts from when its renewal was answered
	clockOfWall        // a session counts by a clock that steps
	unboundedShare     // each shard to the member with its highest score
	earlyRelease       // a lease is released before the work in flight is finished
	blindClaim         // a claim does not compare the revision
	stalePresence      // a session that is not seen counts as ended
	reusedEpoch        // a claim does not raise the epoch
)

type simEvent struct {
	at  time.Duration
	seq int
	do  func()
}

type simQueue []simEvent

func (q simQueue) Len() int { return len(q) }
func (q simQueue) Less(a, b int) bool {
	return q[a].at < q[b].at || q[a].at == q[b].at && q[a].seq < q[b].seq
}
func (q simQueue) Swap(a, b int) { q[a], q[b] = q[b], q[a] }
func (q *simQueue) Push(e any)   { *q = append(*q, e.(simEvent)) }
func (q *simQueue) Pop() any {
	last := (*q)[len(*q)-1]
	*q = (*q)[:len(*q)-1]
	return last
}

func (s *sim) after(d time.Duration, do func()) {
	s.serial++
	heap.Push(&s.queue, simEvent{s.now + d, s.serial, do})
}

func (s *sim) between(a, b time.Duration) time.Duration {
	return a + time.Duration(s.rng.Int64N(int64(b-a)+1))
}

func (s *sim) chance(p float64) bool { return s.rng.Float64() < p }

func (s *sim) fail(format string, args ...any) {
	if s.failure == nil {
		s.failure = fmt.Errorf("at %v: %s", s.now, fmt.Sprintf(format, args...))
	}
}

// trace prints what happens; SHARD_SEED=n asks for it.
func (s *sim) trace(format string, args ...any) {
	if s.log != nil {
		s.log("%v %s", s.now, fmt.Sprintf(format, args...))
	}
}

// A version is a write in the store's log; its revision is its index + 1.
type version struct {
	key     Key
	record  Record
	present bool
	at      time.Duration
}

type simStore struct {
	s    *sim
	log  []version
	last map[Key]uint64 // revision
	// saved states, by shard; they have no watch
	saved map[string]*simSaved

	down      time.Duration // until when nothing is answered
	loseReply float64       // share of answers that are lost
	ttl       bool          // the store expires records
	lag       time.Duration // by which reads and new watches may lag
	slow      time.Duration // added to each request
}

type simSaved struct {
	saved    Saved
	counter  int // what Value stands for
	revision uint64
}

func (st *simStore) at(key Key) (version, uint64) {
	rev := st.last[key]
	if rev == 0 {
		return version{}, 0
	}
	return st.log[rev-1], rev
}

// set is a compare-and-set.
func (st *simStore) set(key Key, record Record, present bool, expect uint64, ttl time.Duration) (uint64, bool) {
	was, rev := st.at(key)
	if expect != rev && !(expect == 0 && !was.present) && !(st.s.bug == blindClaim && key.Kind == Lease) {
		return 0, false
	}
	rev = st.append(key, record, present)
	if ttl > 0 && st.ttl {
		st.expireAfter(key, rev, ttl)
	}
	return rev, true
}

func (st *simStore) expireAfter(key Key, rev uint64, d time.Duration) {
	st.s.after(d+st.s.between(0, 50*ms), func() {
		switch {
		case st.last[key] != rev:
		case st.s.now < st.down:
			st.expireAfter(key, rev, st.down-st.s.now)
		default:
			st.append(key, Record{}, false)
		}
	})
}

func (st *simStore) append(key Key, record Record, present bool) uint64 {
	was, _ := st.at(key)
	if key.Kind == Session && (was.present != present || was.record.Draining != record.Draining) {
		st.s.stats.changes++
		st.s.lastChange = st.s.now
	}
	st.log = append(st.log, version{key, record, present, st.s.now})
	rev := uint64(len(st.log))
	st.last[key] = rev
	for _, p := range st.s.procs {
		if key == (Key{Session, p.name}) && present && !strings.HasPrefix(record.Incarnation, p.incarnation()) {
			p.usurped = true
		}
		p.notify(rev)
	}
	return rev
}

// asOf is how much of the log a read that may lag sees.
func (st *simStore) asOf() int {
	n := len(st.log)
	if st.lag == 0 {
		return n
	}
	limit := st.s.now - st.s.between(0, st.lag)
	for n > 0 && st.log[n-1].at > limit {
		n--
	}
	return n
}

func (st *simStore) readAt(key Key, n int) (version, uint64) {
	for rev := st.last[key]; rev > 0; rev-- {
		if int(rev) <= n && st.log[rev-1].key == key {
			return st.log[rev-1], rev
		}
	}
	return version{}, 0
}

// proc is a process: a member, and a reader for each shard that it was started for.
type proc struct {
	s          *sim
	name       string
	id         int
	member     *Member
	rate       float64 // of its clock
	born       time.Duration
	gone       bool // killed, or left
	draining   bool
	frozen     time.Duration // until when
	waiting    []func()      // what happens when it wakes up
	cut        time.Duration // until when it does not reach the store
	slow       time.Duration // at most added to its requests and their answers, while slowUntil has not come
	answers    time.Duration // added to answers then
	slowUntil  time.Duration
	watch      int           // which watch; the answers of earlier ones are ignored
	position   int           // how much of the log the watch has delivered
	silent     bool          // this watch delivers nothing any more
	stalled    time.Duration // until when the watch delivers nothing
	wakeAt     time.Duration
	readers    map[string]*reader
	wall       time.Duration // steps of its wall clock
	validUntil time.Duration // as the process believes, by its own clock
	usurped    bool          // another process has taken its name
}

// clock is the monotonic clock of a process. It goes on while the process is frozen.
func (p *proc) clock() time.Duration {
	return time.Duration(float64(p.s.now-p.born) * p.rate)
}

// later does something in the process after d; if that is frozen then, when it wakes up.
func (p *proc) later(d time.Duration, do func()) {
	p.s.after(d, func() { p.run(do) })
}

func (p *proc) run(do func()) {
	switch {
	case p.gone:
	case p.s.now < p.frozen:
		p.waiting = append(p.waiting, do)
	default:
		do()
	}
}

func (p *proc) freeze(d time.Duration) {
	p.frozen = max(p.frozen, p.s.now+d)
	p.s.after(p.frozen-p.s.now, func() {
		waiting := p.waiting
		p.waiting = nil
		for _, do := range waiting { // in any order, as threads wake up
			p.later(p.s.between(0, 3*ms), do)
		}
	})
}

func (p *proc) step(e Event) {
	if p.gone {
		return
	}
	p.s.trace("%s/%d <- %T%+v", p.name, p.id, e, e)
	actions := p.member.Step(p.clock(), e)
	p.mutate(e)
	p.validUntil = p.member.ValidUntil()
	for _, a := range actions {
		p.act(a)
	}
	if next := p.member.Next(); next < never && !p.gone {
		at := p.born + time.Duration(float64(next)/p.rate) + 1
		if at < p.wakeAt || p.wakeAt <= p.s.now {
			p.wakeAt = at
			p.later(max(0, at-p.s.now), func() {
				p.wakeAt = 0
				p.step(Tick{})
			})
		}
	}
}

// mutate puts the mistakes into the member that are not in its surroundings.
func (p *proc) mutate(e Event) {
	m := p.member
	switch p.s.bug {
	case clockOfAnswer:
		if _, written := e.(Written); written && m.session.revision > 0 {
			m.session.confirmed = m.now
		}
	case clockOfWall:
		if m.session.revision > 0 {
			m.session.confirmed += p.wall
			p.wall = 0
		}
	case stalePresence:
		for _, l := range m.leases {
			if l.record.Owner != "" && m.sessions[l.record.Owner] == nil {
				m.sessions[l.record.Owner] = &entry{revision: 1 << 40}
			}
		}
	case reusedEpoch:
		for i := range m.leases {
			m.held[i].started = 0
			if m.leases[i].record.Epoch > 0 {
				m.leases[i].record.Epoch = 1
			}
		}
	}
}

func (p *proc) act(a Action) {
	p.s.trace("%s/%d %T%+v", p.name, p.id, a, a)
	switch a := a.(type) {
	case Write:
		p.request(a.ID, func() Event {
			if rev, ok := p.s.store.set(a.Key, a.Record, true, a.Expect, a.TTL); ok {
				return Written{a.ID, rev}
			}
			p.s.stats.refused++
			return Refused{a.ID}
		})
	case Remove:
		p.request(a.ID, func() Event {
			if rev, ok := p.s.store.set(a.Key, Record{}, false, a.Expect, 0); ok {
				return Written{a.ID, rev}
			}
			return Refused{a.ID}
		})
	case Read:
		p.request(a.ID, func() Event {
			v, rev := p.s.store.readAt(a.Key, p.s.store.asOf())
			if !v.present && p.s.chance(0.5) { // the mark of a removed record does not last
				rev = 0
			}
			return Got{a.ID, v.record, v.present, rev}
		})
	case Rewatch:
		p.rewatch()
	case Start:
		p.start(a)
	case Stop:
		p.readers[a.Shard].stop(a)
	case Leave:
		if a.Err != nil {
			p.s.stats.superseded++
		}
		p.gone = true
	}
}

// latency of one direction between the process and the store.
func (p *proc) latency() time.Duration {
	d := p.s.between(200*time.Microsecond, 5*ms) + p.s.store.slow
	if p.s.now < p.slowUntil {
		d += p.s.between(0, p.slow)
	}
	return d
}

// request carries a request to the store and its answer back, or neither, or only the one.
func (p *proc) request(id uint64, do func() Event) {
	p.exchange(do, func(e Event) { p.step(e) }, func() { p.step(Unknown{id}) })
}

func (p *proc) exchange(do func() Event, answer func(Event), timeout func()) {
	s, answered := p.s, false
	p.later(time.Second, func() {
		if !answered {
			answered = true
			timeout()
		}
	})
	if s.now < p.cut {
		return
	}
	s.after(p.latency(), func() {
		if s.now < s.store.down && !s.chance(0.1) { // what is sent to a leader that goes away may still be applied
			return
		}
		e := do()
		if s.now < s.store.down || s.chance(s.store.loseReply) || s.now < p.cut {
			return
		}
		back := p.latency()
		if s.now < p.slowUntil {
			back += p.answers
		}
		p.later(back, func() {
			if !answered {
				answered = true
				answer(e)
			}
		})
	})
}

func (p *proc) rewatch() {
	p.watch++
	watch := p.watch
	p.silent, p.position = false, -1
	p.exchange(func() Event { return nil }, func(Event) {
		if p.watch == watch {
			p.snapshot()
		}
	}, func() {})
}

func (p *proc) snapshot() {
	st := &p.s.store
	n := st.asOf()
	revisions := make([]uint64, 0, len(st.last))
	for key := range st.last {
		if v, rev := st.readAt(key, n); rev > 0 && (v.present || p.s.now-v.at < 5*time.Second) {
			revisions = append(revisions, rev)
		}
	}
	slices.Sort(revisions)
	for _, rev := range revisions {
		v := st.log[rev-1]
		p.step(Observed{v.key, v.record, v.present, rev})
	}
	p.position = n
	p.step(Synced{})
	p.deliver(p.watch)
}

// notify makes the watch deliver a new entry after a while.
func (p *proc) notify(uint64) {
	if p.gone || p.silent || p.position < 0 {
		return
	}
	watch := p.watch
	p.later(p.latency(), func() { p.deliver(watch) })
}

func (p *proc) deliver(watch int) {
	s := p.s
	switch {
	case p.watch != watch || p.silent || p.position < 0:
		return
	case s.now < p.cut, s.now < s.store.down, s.now < p.stalled:
		p.later(max(p.cut, s.store.down, p.stalled)-s.now, func() { p.deliver(watch) })
		return
	}
	for p.position < len(s.store.log) && p.watch == watch && !p.gone {
		v := s.store.log[p.position]
		p.position++
		p.step(Observed{v.key, v.record, v.present, uint64(p.position)})
	}
}

// reader works on a shard: it reads for a while what is in flight, and saves.
type reader struct {
	p         *proc
	shard     string
	index     int
	epoch     uint64
	fence     *Fence
	counter   int
	opened    bool
	busy      bool // something is in flight
	stopping  bool
	abandoned bool
	reported  bool // Stopped was sent
	ended     bool
}

func (p *proc) start(a Start) {
	s := p.s
	if r := p.readers[a.Shard]; r != nil && !r.ended && s.bug != earlyRelease {
		s.fail("%s starts %s again before it has stopped", p.name, a.Shard)
	}
	r := &reader{p: p, shard: a.Shard, index: p.member.index[a.Shard], epoch: a.Epoch, fence: NewFence(a.Shard, a.Epoch, fmt.Sprint(p.name, "/", p.id))}
	s.checkStart(r)
	p.readers[a.Shard] = r
	s.stats.starts++
	s.lastStart = s.now
	r.open()
}

func (r *reader) stop(a Stop) {
	if !a.Finish {
		r.abandoned = true
		r.p.s.stats.abandoned++
		r.p.later(r.p.s.between(0, r.p.member.timing.Abandon*9/10), r.end)
		return
	}
	r.stopping = true
	if r.p.s.bug == earlyRelease {
		r.report()
	}
	if r.opened && !r.busy {
		r.end()
	}
}

func (r *reader) report() {
	if !r.reported {
		r.reported = true
		r.p.step(Stopped{r.shard, r.epoch})
	}
}

func (r *reader) end() {
	if r.ended {
		return
	}
	r.ended = true
	r.report()
}

func (r *reader) fencedBy(err error) {
	fenced, _ := errors.AsType[*FencedError](err)
	r.p.s.stats.fenced++
	r.p.step(Fenced{r.shard, r.epoch, fenced.Seen})
	r.end()
}

func (r *reader) open() {
	r.exchange(r.read, func(e stateEvent) {
		raised, opened, err := r.fence.Open(e.saved, e.revision)
		switch {
		case err != nil:
			r.fencedBy(err)
		case opened:
			r.begin(e.counter)
		default:
			r.write(raised, e.counter, true, func() { r.begin(e.counter) }, r.open)
		}
	}, r.open)
}

func (r *reader) begin(counter int) {
	r.opened, r.counter = true, counter
	r.next()
}

func (r *reader) next() {
	if r.ended || r.abandoned {
		return
	}
	if r.stopping {
		r.end()
		return
	}
	r.p.later(r.p.s.between(50*ms, 2*time.Second), r.work)
}

func (r *reader) work() {
	if r.ended || r.abandoned || r.stopping {
		return
	}
	r.busy = true
	r.p.later(r.p.s.between(10*ms, 400*ms), func() {
		r.busy = false
		if !r.ended && !r.abandoned {
			r.counter++
			r.save()
		}
	})
}

func (r *reader) save() {
	r.busy = true
	done := func() { r.busy = false; r.next() }
	r.write(r.fence.Next(nil), r.counter, false, done, func() {
		r.exchange(r.read, func(e stateEvent) {
			switch err := r.fence.Refresh(e.saved, e.revision); {
			case err != nil:
				r.fencedBy(err)
			case e.counter == r.counter && r.fence.own(e.saved):
				done()
			default:
				r.save()
			}
		}, r.save)
	})
}

type stateEvent struct {
	saved    Saved
	counter  int
	revision uint64
	ok       bool
}

func (stateEvent) event() {}

func (r *reader) exchange(do func() stateEvent, answer func(stateEvent), timeout func()) {
	if r.ended {
		return
	}
	r.p.exchange(func() Event { return do() }, func(e Event) {
		if !r.ended {
			answer(e.(stateEvent))
		}
	}, func() {
		if !r.ended {
			timeout()
		}
	})
}

func (r *reader) read() stateEvent {
	if st := r.p.s.store.saved[r.shard]; st != nil {
		return stateEvent{st.saved, st.counter, st.revision, true}
	}
	return stateEvent{}
}

func (r *reader) write(saved Saved, counter int, raise bool, done, again func()) {
	s, expect := r.p.s, r.fence.Expect()
	r.exchange(func() stateEvent {
		st := s.store.saved[r.shard]
		if st == nil {
			st = &simSaved{}
			s.store.saved[r.shard] = st
		}
		if st.revision != expect && s.bug != noFence {
			s.stats.refused++
			return stateEvent{}
		}
		s.checkSave(r, st, saved, counter, raise)
		*st = simSaved{saved, counter, st.revision + 1}
		return stateEvent{saved, counter, st.revision, true}
	}, func(e stateEvent) {
		if !e.ok {
			r.p.later(20*ms, again)
			return
		}
		r.fence.Wrote(e.revision)
		done()
	}, again)
}

func (p *proc) incarnation() string { return fmt.Sprintf("i%d-", p.id) }

// newProc starts a process.
func (s *sim) newProc(name string) *proc {
	p := &proc{s: s, name: name, id: len(s.procs), rate: 1 + (s.rng.Float64()-0.5)*0.02, born: s.now, readers: map[string]*reader{}, position: -1}
	p.member = NewMember(name, p.incarnation(), s.shards, Timing{Finish: 5 * time.Second}, 0)
	if s.bug == unboundedShare {
		p.member.shareOut = func(members, shards []string) []int {
			owners := make([]int, len(shards))
			for i, sh := range shards {
				for m := range members {
					if cmp.Compare(mix(hash(hash(offset64, members[m]), sh)), mix(hash(hash(offset64, members[owners[i]]), sh))) > 0 {
						owners[i] = m
					}
				}
			}
			return owners
		}
	}
	s.procs = append(s.procs, p)
	p.rewatch()
	p.step(Tick{})
	return p
}
