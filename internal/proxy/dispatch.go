package proxy

import (
	"net/http"
	"time"

	"github.com/levada-io/levada/internal/h2/frame"
	"github.com/levada-io/levada/internal/proxy/balance"
	"google.golang.org/grpc/codes"
)

// Dispatch: which endpoint of which backend a call goes to, and what it waits for until it is there. See doc.go for the way of a call.

// dispatch gives the call to an endpoint, or makes it wait for one.
func (s *stream) dispatch(w *wakeups) {
	if s.cluster == nil {
		s.cluster = s.call.route.cluster()
	}
	c, full := s.cluster.pick(s.kind, s.avoid)
	for c == nil {
		over := s.waitEnd != 0 && s.waitEnd <= s.front.proxy.now()
		switch {
		case s.reroute():
			// The configuration has changed since the call came.
		case full && (over || !s.cluster.enqueue(s)):
			s.overloaded(w)
			return
		case full:
			s.wait(s.cluster.config().Limits.WaitTimeout)
			if s.cluster.hasRoom() { // that came before the call was in the queue
				w.clusters = append(w.clusters, s.cluster)
			}
			return
		case s.cluster.config().WaitForReady == 0 || over:
			s.noEndpoint(w)
			return
		case s.cluster.await(s):
			s.wait(s.cluster.config().WaitForReady)
			return
		}
		c, full = s.cluster.pick(s.kind, s.avoid)
	}
	if s.waitEnd != 0 {
		s.cluster.forget(s)
		s.waitEnd = 0 // the time in which an endpoint had to appear, which a connection to it need not keep
	}
	s.chosen = c
	s.sentAt = s.front.proxy.now()
	// Before assign, which may fail at once: forget calls Done, which has to follow Start.
	c.Start(s.kind, s.sentAt)
	c.Of.assign(s, w)
}

// wait sets how long the call waits for an endpoint, unless it waits already: what appeared has gone again.
func (s *stream) wait(d time.Duration) {
	if s.waitEnd == 0 {
		s.waitEnd = later(s.front.proxy.now(), d)
	}
	s.arm()
}

// reroute finds the route of the configuration that is in force now, if that is another one.
func (s *stream) reroute() bool {
	req := s.request.Request()
	r := s.front.proxy.state.Load().route(s.front.listener.config.Name, req.Authority, req.Path)
	if r == s.call.route || r.clusters == nil {
		return false
	}
	s.call = &call{route: r, method: s.call.method, path: s.call.path, sent: s.front.sent(r, s.request)}
	if s.waitEnd != 0 { // it may wait for the new one's endpoints as long as any call
		s.cluster.forget(s)
		s.waitEnd = 0
	}
	// avoid is an endpoint of the former cluster, which says nothing of the new one's.
	s.cluster, s.avoid = r.cluster(), nil
	return true
}

// noEndpoint ends a call that no endpoint could be found for in time, unless the route's policy says that it is tried again.
func (s *stream) noEndpoint(w *wakeups) {
	if s.lastError != nil && s.retry(attemptFailure{code: codes.Unavailable}, balance.Failure, frame.NoError, w) {
		return
	}
	e := unavailable(reasonNoBackend, "no endpoint of %s is known", s.cluster.source)
	if found := s.cluster.source.Status(); found.Failing {
		e = unavailable(reasonNoBackend, "no endpoint of %s is known: %v", s.cluster.source, found.LastError)
	}
	if s.lastError != nil {
		e = unavailable(reasonConnectFailed, "no connection to the backend: %v", s.lastError)
	}
	e.unprocessed, e.http = true, http.StatusServiceUnavailable
	s.end(e, w)
}

// dispatched: a connection has taken the call. What the client has sent goes out.
func (s *stream) dispatched(w *wakeups) {
	w.add(&s.back.conn)
	s.waiting = nil
	// What was counted for the connection of an attempt before does not hold for this one.
	s.inEndSent, s.backWindow = s.back.headEnded(s), 0
	s.outWindow, s.outSize, s.outOwed = s.outFirst, s.outFirst, 0
	if t := s.call.route.retry.PerTryTimeout; t > 0 && s.attempt().attemptsLeft(s.call.route.retryPolicy) {
		s.tryEnd = later(s.front.proxy.now(), t)
		s.arm()
	}
	s.pushIn(w)
	if large(s.request) && s.front.proxy.pressed() {
		s.disableReplay()
	}
	s.releaseHeader(w)
}

// notConnected: no connection to the chosen endpoint could be made, so nobody has seen the call.
func (s *stream) notConnected(err error, w *wakeups) {
	s.lastError = err
	s.forget(balance.Ignored, w) // usable tells it already, and an ejection would outlast the reason
	if s.tried++; s.tried < maxTries && (s.reroute() || s.cluster.others(s.avoid)) {
		s.dispatch(w)
		return
	}
	s.noEndpoint(w)
}

// forget takes the call from the endpoint that was chosen, and sends it nothing.
func (s *stream) forget(outcome balance.Outcome, w *wakeups) {
	if c := s.chosen; c != nil {
		c.Of.calls.n.Add(-1)
		// Noted and not done here: a call of the queue may belong to another front, whose lock cannot be taken while this one's is held.
		if x := c.Of.calls.serves.Load(); x.queued.Load() > 0 {
			w.clusters = append(w.clusters, x)
		}
		now := s.front.proxy.now()
		c.Done(s.kind, outcome, time.Duration(now-s.sentAt), now)
		if s.waiting != nil {
			s.waiting.forget(s)
		}
		s.avoid, s.chosen, s.waiting = c, nil, nil
	}
}

// leave is forget, and takes the stream from its connection. With a code it is reset there.
func (s *stream) leave(outcome balance.Outcome, reset bool, code frame.Code, w *wakeups) {
	if s.back != nil {
		s.back.remove(s.backID, reset, code, w)
		s.back = nil
	}
	s.tryEnd = 0
	s.forget(outcome, w)
}
