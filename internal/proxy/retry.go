package proxy

import (
	"math/rand/v2"
	"time"

	"github.com/levada-io/levada/internal/h2/frame"
	"github.com/levada-io/levada/internal/proxy/balance"
	"google.golang.org/grpc/codes"
)

// Retries: a call is sent again if an endpoint provably has not processed it, once and always, and after that as the policy of its route says. Both need all of the
// request, which requestSide.replay has for as long as replayable is true.

// rewind makes all of the request wait to be sent again.
func (s *stream) rewind() {
	s.in.clear()
	s.in.append(s.replay)
	s.inSent, s.inEndSent = 0, false
}

// retryUnprocessed sends a call again that an endpoint has not processed, provably, if that is still possible.
func (s *stream) retryUnprocessed(outcome balance.Outcome, w *wakes) bool {
	if s.headed || !s.replayable || s.replays > 0 || s.outEnd {
		return false
	}
	s.replays++
	s.leave(outcome, false, 0, w)
	s.rewind()
	s.call.route.stats.replays.Add(1)
	s.place(w)
	return true
}

func (s *stream) attemptsLeft() bool {
	return !s.headed && s.replayable && int(s.attempts)+1 < s.call.route.retry.Attempts
}

// policyRetry tries a failed call again later, if the route's policy says so.
func (s *stream) policyRetry(code codes.Code, pushback time.Duration, reset frame.Code, w *wakes) bool {
	r := s.call.route
	if !s.attemptsLeft() || s.outEnd || !r.retries(code) {
		return false
	}
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
	if pushback < 0 {
		b := r.retry.Backoff
		pushback = time.Duration(rand.Float64() * float64(min(b.Base<<min(s.attempts-1, 20), b.Max)))
	}
	s.retryAt = later(now, max(pushback, 1))
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
	s.replay = s.replay[:0]
}

// keepForReplay keeps DATA of the caller for another attempt, as long as there may be one and it is not too much.
func (s *stream) keepForReplay(p []byte) {
	if !s.replayable {
		return
	}
	if n := len(s.replay) + len(p); n > s.call.route.replayBytes || n > keptReplay && s.front.proxy.pressed() {
		s.disableReplay()
		return
	}
	s.replay = append(s.replay, p...)
}
