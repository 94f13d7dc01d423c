package proxy

import (
	"sync/atomic"
	"time"

	"github.com/levada-io/levada/internal/h2/frame"
)

// frameBudget bounds the frames that carry nothing. A peer may send burst of them at once, rate each second after that, and controlEarn for each frame with content that it
// was sent: a peer that is sent much acknowledges, measures and grants much.
//
// It belongs to the reading goroutine, except earned. Invariant: -burst < left <= burst, or the connection is being closed. With a burst of 0 there is no limit.
type frameBudget struct {
	left        float64
	refilled    int64 // when rate was added last
	burst, rate float64
	earned      atomic.Int32 // frames with content that were sent since the reader looked; their senders add to it
}

func (b *frameBudget) set(burst, rate int, now int64) {
	b.burst, b.rate = float64(burst), float64(rate)
	b.left, b.refilled = b.burst, now
}

// spend takes n, and reports whether the connection may go on: it may until it has used up twice the burst. Between once and twice it gets no new calls, see exceeded.
func (b *frameBudget) spend(n int, now int64) bool {
	if b.burst == 0 {
		return true
	}
	b.left -= float64(n)
	return !b.exceeded(now) || b.left > -b.burst
}

// exceeded reports whether the budget is used up.
func (b *frameBudget) exceeded(now int64) bool {
	if b.left >= 0 || b.burst == 0 {
		return false
	}
	b.refill(now)
	b.left = min(b.left+float64(b.earned.Swap(0))*controlEarn, b.burst)
	return b.left < 0
}

func (b *frameBudget) refill(now int64) {
	if passed := now - b.refilled; passed > int64(100*time.Millisecond) {
		b.left = min(b.burst, b.left+b.rate*time.Duration(passed).Seconds())
		b.refilled = now
	}
}

// spend takes n from the budget. The error ends the connection. It may be called with and without the lock.
func (c *conn) spend(n int, what string) error {
	if c.budget.spend(n, c.now) {
		return nil
	}
	return frame.Error{Code: frame.EnhanceYourCalm, Reason: "too many " + what}
}

// settingsCost is what SETTINGS take from the budget. Calls that are answered fill it, so a peer that changes its settings with each call would never use it up
// if they cost no more than a PING: the answer of a unary call gives back 3*controlEarn.
func (c *conn) settingsCost() int {
	if !c.peer.known {
		return 1
	}
	return min(settingsCost, 1+int(c.budget.burst)/20) // of a small burst not so much that a handful would use it up
}
