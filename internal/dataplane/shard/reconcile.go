package shard

import (
	"maps"
	"slices"
	"strings"
)

// reconcile compares what should be with what is, and returns actions for the difference. It looks at the state alone, never at the event that woke it.
func (m *Member) reconcile() {
	m.guard()
	m.keepWatch()
	m.keepSession()
	m.share()
	m.expireOthers()
	for i := range m.shards {
		m.reconcileShard(i)
	}
	m.leave()
}

// guard stops everything before the session can have expired in the store.
func (m *Member) guard() {
	if m.session.revision == 0 || !m.due(m.ValidUntil()-m.timing.Abandon) {
		return
	}
	for i := range m.held {
		m.abandon(i, ReasonExpiring)
	}
}

// covered reports whether the session is valid for long enough to start something.
func (m *Member) covered() bool {
	return m.session.revision > 0 && m.now < m.ValidUntil()-m.timing.Abandon
}

// keepWatch replaces a watch that is behind. The member's own renewals, coming back through the watch, say how far it is: nothing else would tell a watch
// that is silent from one that has nothing to say.
func (m *Member) keepWatch() {
	s := &m.session
	patience := 3 * m.timing.Renew
	behind := !m.synced || s.revision > 0 && s.confirmed > s.echoed && m.due(s.echoed+patience)
	if behind && m.due(m.watched+patience) {
		m.rewatch()
	}
	if s.revision > 0 && s.confirmed-s.echoed > m.timing.TTL && !m.draining {
		// Without a view of the others this member would neither take what it should nor release what it should not have.
		m.removeOwn()
		m.lost(ReasonLost)
	}
}

func (m *Member) rewatch() {
	m.synced, m.watched = false, m.now
	m.watches++
	m.do(Rewatch{})
}

func (m *Member) removeOwn() {
	if m.pending[m.ownKey()] == nil {
		m.remove(m.ownKey(), m.session.revision)
	}
}

// keepSession announces the member and renews its session.
func (m *Member) keepSession() {
	s := &m.session
	key := m.ownKey()
	if m.ended != nil || !m.mayAsk(key) {
		return
	}
	expect := s.revision
	switch {
	case s.revision == 0:
		if !m.synced || m.draining {
			return
		}
		e := m.sessions[m.name]
		if s.serial > 0 && e != nil && e.present && !m.own(e.record.Incarnation) {
			m.ended = ErrSuperseded // by a process that started while this one had no session: two would take the name from each other without end
			return
		}
		expect = e.expect()
	case m.draining && !s.draining:
	case !m.due(s.lastSent + m.timing.Renew):
		return
	}
	s.renewal++
	s.lastSent = m.now
	s.sent[s.renewal] = m.now
	m.write(key, Record{Incarnation: s.incarnation, Renewal: s.renewal, Draining: m.draining}, expect, m.timing.TTL)
}

// own reports whether an incarnation is one of this process.
func (m *Member) own(incarnation string) bool {
	return incarnation == m.base || strings.HasPrefix(incarnation, m.base+".")
}

// expireOthers removes the sessions that were not renewed, in case that the store did not: it knows no TTL, or lost its timers.
func (m *Member) expireOthers() {
	if !m.covered() || !m.synced {
		return
	}
	for _, name := range slices.Sorted(maps.Keys(m.sessions)) {
		e, key := m.sessions[name], Key{Session, name}
		if e.present && name != m.name && (e.absent || m.due(e.changed+m.timing.Expiry)) && m.mayAsk(key) {
			m.remove(key, e.expect())
		}
	}
}

// life of the session that a lease depends on.
type life uint8

const (
	undecided life = iota
	alive
	dead
)

// ownerOf says whether the owner of a lease may still work. Revisions ascend over all keys: a session that is not there, or of another incarnation, in a state of the
// store after the lease was written has ended, since an incarnation announces itself before it claims and never twice.
func (m *Member) ownerOf(l *entry) life {
	s := m.sessions[l.record.Owner]
	switch {
	case s == nil:
		return undecided
	case s.present && s.record.Incarnation == l.record.Incarnation:
		return alive
	case s.revision > l.revision:
		return dead
	}
	return undecided
}

func (m *Member) mine(l *entry) bool {
	return m.session.revision > 0 && l.present && l.record.Owner == m.name && l.record.Incarnation == m.session.incarnation
}

func (m *Member) reconcileShard(i int) {
	l, h := &m.leases[i], &m.held[i]
	mine := m.mine(l)
	want := m.session.revision > 0 && !m.draining && m.targets != nil && m.members[m.targets[i]] == m.name
	if h.run != stopped {
		m.reconcileRunning(i, mine, want)
		return
	}
	key := Key{Lease, m.shards[i]}
	switch {
	case mine && !want:
		if m.mayAsk(key) {
			m.write(key, Record{Epoch: max(l.record.Epoch, h.seen)}, l.revision, 0)
		}
	case want && m.covered():
		m.take(i, key)
	}
}

func (m *Member) reconcileRunning(i int, mine, want bool) {
	l, h := &m.leases[i], &m.held[i]
	switch {
	case h.run == abandoning:
	case !mine || l.record.Epoch != h.epoch:
		m.abandon(i, ReasonTaken)
	case h.run == finishing:
		if m.due(h.deadline) {
			m.abandon(i, ReasonDeadline)
		}
	case !want:
		h.run, h.deadline = finishing, m.now+m.timing.Finish
		why := ReasonShare
		if m.draining {
			why = ReasonDrain
		}
		m.do(Stop{Shard: m.shards[i], Epoch: h.epoch, Finish: true, Deadline: h.deadline, Reason: why})
	}
}

// take starts a shard whose lease this member has, and claims one that nobody has.
func (m *Member) take(i int, key Key) {
	l, h := &m.leases[i], &m.held[i]
	if m.mine(l) {
		if l.record.Epoch > h.started && l.record.Epoch > h.seen {
			h.run, h.epoch, h.started = running, l.record.Epoch, l.record.Epoch
			m.do(Start{m.shards[i], h.epoch})
			return
		}
		m.claim(i, key) // under a higher epoch: this one was started before
		return
	}
	if l.present && l.record.Owner != "" {
		switch m.ownerOf(l) {
		case alive:
			return
		case undecided:
			// A member without a session has ended, and a compare-and-set says for certain that there is none; a read may be of a replica that lags. A session that
			// is there may be that of the owner's successor, which lives: its next renewal, or its end, decides.
			session, s := Key{Session, l.record.Owner}, m.sessions[l.record.Owner]
			if l.record.Owner != m.name && (s == nil || !s.present || s.absent) && m.mayAsk(session) {
				m.remove(session, s.expect())
			}
			return
		}
	}
	if l.record.Owner == m.name || m.due(m.session.gather) {
		m.claim(i, key)
	}
}

func (m *Member) claim(i int, key Key) {
	l, h := &m.leases[i], &m.held[i]
	if !m.mayAsk(key) {
		return
	}
	epoch := max(l.record.Epoch, h.started, h.seen) + 1
	m.write(key, Record{Owner: m.name, Incarnation: m.session.incarnation, Epoch: epoch}, l.expect(), 0)
}

// leave ends the member when it has nothing left that others wait for.
func (m *Member) leave() {
	if !m.draining && m.ended == nil {
		return
	}
	for i := range m.shards {
		if m.held[i].run != stopped {
			return
		}
	}
	s := &m.session
	switch {
	case s.revision == 0 && m.pending[m.ownKey()] != nil: // the announcement may have been applied, and would keep shards for TTL
		return
	case m.ended != nil || s.revision == 0 || m.due(m.ValidUntil()+m.timing.Guard):
		m.left = true
		m.do(Leave{m.ended})
		return
	case m.anyLease():
		return
	case m.mayAsk(m.ownKey()):
		m.remove(m.ownKey(), s.revision)
	}
}

// anyLease reports whether a lease is ours, or may become so by a request without an answer.
func (m *Member) anyLease() bool {
	for i := range m.leases {
		if m.mine(&m.leases[i]) || m.pending[Key{Lease, m.shards[i]}] != nil {
			return true
		}
	}
	return false
}
