package shard

import (
	"math"
	"slices"
	"strconv"
	"time"
)

// never is a time that does not come.
const never = time.Duration(math.MaxInt64)

// Member decides for one process. It does no I/O and has no clock: Step takes an event with the time by the process's monotonic clock, and returns what to do.
// Its methods must not be called concurrently.
type Member struct {
	name   string
	base   string // incarnation of the process; incarnation adds a number to it
	shards []string
	index  map[string]int
	timing Timing

	now     time.Duration
	wake    time.Duration // earliest time at which reconcile decides otherwise without an event
	actions []Action

	// Requests without an answer. Invariant: at most one for each key, so that a member never competes with itself.
	pending map[Key]*request
	lastID  uint64
	// When a key may be written again after a request that was refused or failed.
	retry map[Key]time.Duration

	sessions map[string]*entry
	leases   []entry
	synced   bool
	watched  time.Duration // when the watch was begun
	watches  int           // how many were begun

	session ownSession
	held    []holding // by shard
	members []string  // who shares the shards
	targets []int     // by shard: index of members; nil without members
	// shareOut is share; another one in tests.
	shareOut func(members, shards []string) []int

	draining bool
	left     bool  // Leave was returned
	ended    error // why the member leaves without Drain
}

// entry is what is known of a key. Invariant: revision never decreases, except that the absence of a key without a revision sets absent.
type entry struct {
	record   Record
	present  bool
	revision uint64
	absent   bool          // a read found nothing: the next compare-and-set expects no record
	changed  time.Duration // when this revision was first seen
	since    time.Duration // of a session: from when on it has been present, in any incarnation
	watch    int           // the last watch that delivered it
}

func (e *entry) expect() uint64 {
	if e == nil || e.absent {
		return 0
	}
	return e.revision
}

// ownSession is what a member knows of its own session.
//
// Invariant: validUntil is at least Guard before the store can expire the session, by the process's monotonic clock. It is computed from the time at which the newest
// renewal that is known to be applied was sent, never from that of its answer.
type ownSession struct {
	incarnation string
	serial      int
	// revision of the session in the store; 0 if the member is not announced. An incarnation whose session has ended never gets one again.
	revision uint64
	renewal  uint64
	sent     map[uint64]time.Duration // when each renewal was sent that is not yet seen in the watch
	lastSent time.Duration
	// confirmed and echoed: when the newest renewal was sent that is known to be applied, and that the watch has delivered. Invariant: echoed <= confirmed <= lastSent.
	confirmed, echoed time.Duration
	draining          bool          // the record in the store has Draining
	gather            time.Duration // from when on shards without an owner may be taken
}

// holding is what this process does with a shard.
type holding struct {
	run      run
	epoch    uint64 // of the start that runs
	started  uint64 // highest epoch that was started. Invariant: epoch <= started, and no epoch is started twice
	seen     uint64 // epoch of the saved state, if it was higher than that of the lease
	deadline time.Duration
}

type run uint8

const (
	stopped run = iota
	running
	finishing
	abandoning
)

// request is one without an answer.
type request struct {
	id      uint64
	key     Key
	record  Record
	present bool // it is a Write
	read    bool
}

// NewMember returns a member that is not announced yet. Names are unique among the processes of a group at a time, and stay the same when a process is restarted, as
// those of pods in a StatefulSet do; the incarnation is unique for each start of a process.
func NewMember(name, incarnation string, shards []string, timing Timing, now time.Duration) *Member {
	m := &Member{
		name: name, base: incarnation, shards: shards, index: make(map[string]int, len(shards)), timing: timing.withDefaults(), now: now, watched: now,
		pending: map[Key]*request{}, retry: map[Key]time.Duration{}, sessions: map[string]*entry{},
		leases: make([]entry, len(shards)), held: make([]holding, len(shards)), shareOut: share,
	}
	m.session = ownSession{incarnation: incarnation, sent: map[uint64]time.Duration{}}
	for i, s := range shards {
		m.index[s] = i
	}
	return m
}

// Next is when Step wants a Tick at the latest.
func (m *Member) Next() time.Duration { return m.wake }

// ValidUntil is the time until which the leases of this member cannot have expired; 0 if it has none.
func (m *Member) ValidUntil() time.Duration {
	if m.session.revision == 0 {
		return 0
	}
	return m.session.confirmed + m.timing.TTL - m.timing.Guard
}

// Step takes an event and returns what to do, in this order.
func (m *Member) Step(now time.Duration, e Event) []Action {
	m.now, m.wake, m.actions = max(now, m.now), never, nil
	if m.left {
		return nil
	}
	switch e := e.(type) {
	case Observed:
		m.observe(e.Key, e.Record, e.Present, e.Revision, true)
	case Synced:
		m.synced = true
		for _, e := range m.sessions {
			if e.present && e.watch != m.watches { // it ended while no watch looked; a compare-and-set finds out
				e.absent = true
			}
		}
	case Written:
		m.applied(e)
	case Refused:
		if r := m.answered(e.ID); r != nil {
			m.retry[r.key] = m.now + m.timing.Retry
			m.entry(r.key).absent = false // if it was what this request relied on
			m.read(r.key)
		}
	case Unknown:
		if r := m.answered(e.ID); r != nil {
			m.retry[r.key] = m.now + m.timing.Retry
		}
	case Got:
		m.got(e)
	case Stopped:
		if h := m.holding(e.Shard); h != nil && h.epoch == e.Epoch {
			h.run = stopped
		}
	case Fenced:
		if h := m.holding(e.Shard); h != nil {
			h.seen = max(h.seen, e.Seen)
		}
	case Drain:
		m.draining = true
	}
	for decided := -1; decided < len(m.actions) && !m.left; { // until nothing is left to do: what was decided has deadlines too
		decided = len(m.actions)
		m.reconcile()
	}
	return m.actions
}

func (m *Member) holding(shard string) *holding {
	if i, ok := m.index[shard]; ok {
		return &m.held[i]
	}
	return nil
}

// due reports whether a time has come; if not, the member wakes up then.
func (m *Member) due(t time.Duration) bool {
	if m.now >= t {
		return true
	}
	m.wake = min(m.wake, t)
	return false
}

func (m *Member) do(a Action) { m.actions = append(m.actions, a) }

// mayAsk reports whether a key has no request without an answer and is not in a pause.
func (m *Member) mayAsk(key Key) bool { return m.pending[key] == nil && m.due(m.retry[key]) }

func (m *Member) request(r request) uint64 {
	m.lastID++
	r.id = m.lastID
	m.pending[r.key] = &r
	return r.id
}

func (m *Member) write(key Key, record Record, expect uint64, ttl time.Duration) {
	m.do(Write{m.request(request{key: key, record: record, present: true}), key, record, expect, ttl})
}

func (m *Member) remove(key Key, expect uint64) {
	m.do(Remove{m.request(request{key: key}), key, expect})
}

func (m *Member) read(key Key) { m.do(Read{m.request(request{key: key, read: true}), key}) }

func (m *Member) answered(id uint64) *request {
	for key, r := range m.pending {
		if r.id == id {
			delete(m.pending, key)
			return r
		}
	}
	return nil
}

func (m *Member) applied(e Written) {
	if r := m.answered(e.ID); r != nil {
		m.observe(r.key, r.record, r.present, e.Revision, false)
	}
}

func (m *Member) got(e Got) {
	r := m.answered(e.ID)
	switch {
	case r == nil:
	case e.Revision > 0:
		m.observe(r.key, e.Record, e.Present, e.Revision, false)
	case r.key == m.ownKey():
		// The read may be older than our own write. Once the session would have expired anyway, it is gone.
		if m.session.revision > 0 && m.now >= m.ValidUntil() {
			m.lost(ReasonLost)
		}
	default:
		m.entry(r.key).absent = true // the next compare-and-set decides
	}
}

func (m *Member) ownKey() Key { return Key{Session, m.name} }

func (m *Member) entry(key Key) *entry {
	if key.Kind == Lease {
		if i, ok := m.index[key.Name]; ok {
			return &m.leases[i]
		}
		return &entry{} // a shard of another version of the group: not ours
	}
	if m.sessions[key.Name] == nil {
		m.sessions[key.Name] = &entry{}
	}
	return m.sessions[key.Name]
}

// observe takes in what a key holds, from wherever it is known. Older knowledge than what is known already is ignored, so that the order in which answers and the
// watch arrive does not matter, nor whether a replica lags.
func (m *Member) observe(key Key, record Record, present bool, revision uint64, echo bool) {
	e := m.entry(key)
	if echo {
		e.watch = m.watches
	}
	if revision > e.revision {
		if present && !e.present {
			if e.since = m.now; !m.synced {
				e.since = -2 * m.timing.Settle // it was there before us
			}
		}
		e.record, e.present, e.revision, e.absent, e.changed = record, present, revision, false, m.now
		delete(m.retry, key)
	}
	if key == m.ownKey() {
		m.observeSelf(record, present, revision, echo)
	}
}

// observeSelf finds out whether a renewal was applied, and whether the session has ended.
func (m *Member) observeSelf(record Record, present bool, revision uint64, echo bool) {
	s := &m.session
	if present && record.Incarnation == s.incarnation {
		sent, known := s.sent[record.Renewal]
		if revision >= s.revision && known {
			if s.revision == 0 {
				m.announced()
			}
			s.revision, s.draining = revision, record.Draining
			s.confirmed = max(s.confirmed, sent)
		}
		if echo && known {
			s.echoed = max(s.echoed, sent)
			for n := range s.sent {
				if n < record.Renewal {
					delete(s.sent, n)
				}
			}
		}
		return
	}
	if s.revision == 0 || revision <= s.revision {
		return
	}
	if present {
		m.ended = ErrSuperseded
		m.lost(ReasonSuperseded)
		return
	}
	m.lost(ReasonLost)
}

// announced begins the life of a session.
func (m *Member) announced() {
	s := &m.session
	s.echoed = s.lastSent
	s.gather = m.now + m.timing.Gather
	if s.serial > 0 {
		s.gather = m.now + 3*m.timing.Settle/2
	}
}

// lost gives up everything that the session covered. Its incarnation is never used again.
func (m *Member) lost(why Reason) {
	for i := range m.held {
		m.abandon(i, why)
	}
	s := &m.session
	s.serial++
	*s = ownSession{incarnation: m.base + "." + strconv.Itoa(s.serial), serial: s.serial, sent: map[uint64]time.Duration{}}
	if m.ended == nil && !m.draining {
		m.rewatch() // what kept the renewals from the store may have ended the watch too
	}
}

func (m *Member) abandon(i int, why Reason) {
	h := &m.held[i]
	if h.run == stopped || h.run == abandoning {
		return
	}
	h.run = abandoning
	m.do(Stop{Shard: m.shards[i], Epoch: h.epoch, Deadline: m.now + m.timing.Abandon, Reason: why})
}

// share finds out who shares the shards, and how. A member counts Settle after it has joined; those that join within Settle of the first one count at once, so that a
// group that starts does not move everything again when the first has settled.
func (m *Member) share() {
	var all []string
	first := never
	for name, e := range m.sessions {
		if !e.present || e.record.Draining || name == m.name && (m.session.revision == 0 || m.draining) {
			continue
		}
		all = append(all, name)
		first = min(first, e.since)
	}
	all = slices.DeleteFunc(all, func(name string) bool {
		since := m.sessions[name].since
		return since > first+m.timing.Settle && !m.due(since+m.timing.Settle)
	})
	slices.Sort(all)
	if !slices.Equal(all, m.members) {
		m.members, m.targets = all, m.shareOut(all, m.shards)
	}
}
