package proxy

import (
	"math/rand/v2"
	"time"

	"github.com/levada-io/levada/internal/h2/frame"
	"github.com/levada-io/levada/internal/proxy/balance"
)

// Retries: a call is sent again if an endpoint provably has not processed it, once and always, and after that as the policy of its route says. Both need all of the
// request, which requestSide.replay has for as long as replayable is true.

// rewind makes all of the request wait to be sent again.
// inCredited stays as it is: the client has got credit for those bytes, and must not get it a second time.
func (s *stream) rewind() {
	s.in.clear()
	s.in.append(s.replay)
	s.inSent, s.inEndSent = 0, false
}

// attempt is what the retry decision needs to know of the call.
func (s *stream) attempt() attempt {
	return attempt{responseStarted: s.headed, ended: s.outEnd, replayable: s.replayable, transparent: s.transparentRetries > 0, retries: int(s.attempts)}
}

// retry starts another attempt if one is allowed, and reports whether it did: see attempt.decide. The call leaves its endpoint with the outcome, and with a RST_STREAM of the code
// unless that is NO_ERROR and the request has been sent.
func (s *stream) retry(f attemptFailure, outcome balance.Outcome, reset frame.Code, w *wakeups) bool {
	switch s.attempt().decide(f, s.call.route.retryPolicy) {
	case transparentRetry:
		// Before dispatch, which may fail at once and lead back here: a count that came later would not end that recursion.
		s.transparentRetries++
		s.leave(outcome, false, 0, w)
		s.rewind()
		s.call.route.stats.transparentRetries.Add(1)
		s.dispatch(w)
		return true
	case retryByPolicy:
		return s.retryByPolicy(f, reset, w)
	}
	return false
}

// retryByPolicy makes the call wait for its next attempt, if the route's budget allows one.
func (s *stream) retryByPolicy(f attemptFailure, reset frame.Code, w *wakeups) bool {
	r := s.call.route
	now := s.front.proxy.now()
	if !r.budget.take(now) {
		r.stats.overBudget.Add(1)
		return false
	}
	s.attempts++
	if s.waitEnd != 0 {
		s.cluster.forget(s)
		s.waitEnd = 0
	}
	r.stats.retries.Add(1)
	s.leave(balance.Failure, !s.inEndSent || reset != frame.NoError, reset, w)
	s.rewind()
	wait := f.pushback
	// gRFC A6: a random wait below the limit, so that clients of an endpoint that failed do not come back together. An endpoint's pushback replaces it.
	if !f.hasPushback {
		wait = time.Duration(rand.Float64() * float64(backoffLimit(r.retry.Backoff.Base, r.retry.Backoff.Max, int(s.attempts))))
	}
	// later takes a wait of 0 for one that overflows, and the retry would never come.
	s.retryAt = later(now, max(wait, 1))
	s.arm()
	return true
}

// disableReplay means that the call cannot be sent again from now on.
func (s *stream) disableReplay() {
	if !s.replayable {
		return
	}
	s.replayable = false
	if cap(s.replay) > keptReplay {
		s.replay = nil
	}
	// A small buffer stays for the next call that uses this stream's memory.
	s.replay = s.replay[:0]
}

// releaseHeader frees a large header that was sent and cannot be sent again. What describes the call stays.
func (s *stream) releaseHeader(w *wakeups) {
	if s.replayable || s.back == nil || !large(s.request) {
		return
	}
	s.request = s.request.Summary()
	s.call = &call{route: s.call.route, method: s.call.method, path: s.request.Request().Path, sent: s.request}
	s.account(w)
}

// keepForReplay keeps DATA of the client for another attempt of a call that is replayable, until it is too much.
func (s *stream) keepForReplay(p []byte) {
	if n := len(s.replay) + len(p); n > s.call.route.replayBytes || n > keptReplay && s.front.proxy.pressed() {
		s.disableReplay()
		return
	}
	s.replay = append(s.replay, p...)
}
