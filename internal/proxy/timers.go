package proxy

import (
	"net/http"
	"time"

	"github.com/levada-io/levada/internal/h2/frame"
	"github.com/levada-io/levada/internal/proxy/balance"
	"google.golang.org/grpc/codes"
)

// later is now + d in nanoseconds of the wheel, or the end of time if that overflows. d has to be positive: with 0 it is the end of time, too.
func later(now int64, d time.Duration) int64 {
	if at := now + int64(d); at > now {
		return at
	}
	return 1<<63 - 1
}

// arm sets the timer to the next thing that may be due. Timers that would go off too early are left: expire sets them again.
func (s *stream) arm() {
	at := s.stallEnd
	if !s.outEnd { // else all that is left is that the client takes it
		for _, t := range [...]int64{s.deadline, s.ageEnd, s.retryAt, s.tryEnd, s.waitEnd, s.idleEnd()} {
			if t != 0 && (at == 0 || t < at) {
				at = t
			}
		}
	}
	if at != 0 && (s.armed == 0 || at < s.armed) {
		s.armed = at
		s.front.proxy.wheel.Set(&s.timer, at)
	}
}

// idleEnd is when the route's idle timeout is over, and 0 for a route without one. It follows lastNews. touch does not set the timer, which goes off at the former time, finds
// nothing due and is set again. So a message costs no operation on the wheel.
func (s *stream) idleEnd() int64 {
	if idle := s.call.route.idleTimeout; idle > 0 {
		return later(s.lastNews, idle)
	}
	return 0
}

// expire is called by the wheel. The stream may have ended, or be another one, meanwhile.
func (s *stream) expire(now int64) {
	var w wakeups
	f := s.front
	f.proxy.clock.Store(now)
	f.mu.Lock()
	// The front's lock does not stop the wheel: the call may have ended, or its memory have been used again, between the timer and the lock.
	if s.armed = 0; s.open {
		s.onTimer(now, &w)
		// onTimer may have ended the call.
		if s.open {
			s.arm()
		}
	}
	f.mu.Unlock()
	w.flush()
}

// onTimer does the first of the things that are due. Each may end the call or send it elsewhere, so the others are looked at the next time: arm sets the timer for them.
// The stall comes first, since it is all that can be due after outEnd.
func (s *stream) onTimer(now int64, w *wakeups) {
	passed := func(at int64) bool { return at != 0 && at <= now }
	switch {
	case passed(s.stallEnd):
		s.stallEnd = 0
		s.drop(unavailable(reasonStalled, "the client has taken nothing for the listener's stallTimeout of %v", s.front.stallTimeout), w)
	case s.outEnd:
	case passed(s.deadline):
		s.deadline = 0
		s.end(s.deadlineEnd(), w)
	case passed(s.ageEnd):
		s.ageEnd = 0
		e := unavailable(reasonAge, "the stream has reached its age of %v: open it again", time.Duration(now-s.started).Round(time.Millisecond))
		e.retry = 0
		s.end(e, w)
	case passed(s.idleEnd()):
		s.end(unavailable(reasonIdle, "no message for %v", s.call.route.idleTimeout), w)
	case passed(s.waitEnd):
		s.dispatch(w)
	case passed(s.tryEnd):
		s.tryEnd = 0
		e := unavailable(reasonDeadline, "no response within the route's perTryTimeout of %v", s.call.route.retry.PerTryTimeout)
		if !s.retry(attemptFailure{code: codes.Unavailable}, balance.Failure, frame.Cancel, w) {
			s.end(e, w)
		}
	case passed(s.retryAt):
		s.retryAt = 0
		s.cluster, s.tried, s.waitEnd, s.lastError = nil, 0, 0, nil // another backend of the route's may do better
		s.dispatch(w)
	}
}

// deadlineEnd has to be called before the call leaves its endpoint, which its text names.
func (s *stream) deadlineEnd() *ending {
	return failure(codes.DeadlineExceeded, reasonDeadline, http.StatusGatewayTimeout, "the deadline has passed; %s", s.whereabouts())
}

// whereabouts tells people where a call is.
func (s *stream) whereabouts() string {
	switch {
	case s.back != nil && s.headed:
		return "it was being answered by " + s.back.endpoint.address
	case s.back != nil:
		return s.back.endpoint.address + " had not answered"
	case s.waiting != nil:
		return "it was waiting for a connection to " + s.waiting.address
	}
	return "it was waiting for an endpoint"
}

// touch notes that a message went by.
func (s *stream) touch() {
	if s.call.route.idleTimeout > 0 {
		s.lastNews = s.front.proxy.now()
	}
}

// stall gives the client time to take something.
func (s *stream) stall() {
	s.stuck = s.front.proxy.now()
	if d := s.front.stallTimeout; d > 0 {
		s.stallEnd = later(s.stuck, d)
		s.arm()
	}
}

// deadlineSlack is how long before ours the clocks of others may say that the call's deadline has passed.
const deadlineSlack = 25 * time.Millisecond

// late reports whether a cancellation is due to the deadline: clients and endpoints know it, too.
func (s *stream) late(code frame.Code) bool {
	return code == frame.Cancel && s.deadline != 0 && s.front.proxy.now() >= s.deadline-int64(deadlineSlack)
}
