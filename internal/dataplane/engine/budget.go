package engine

import (
	"sync"
	"time"
)

// Budget is the time from the moment at which a process is asked to end until it has ended: for messages in flight, for the end of functions and for closing
// everything. It is the whole time, so that a supervisor that kills after a grace period never has to. Its methods may be called concurrently.
type Budget struct {
	total time.Duration // does not change
	over  chan struct{} // closed when the time is over

	mu sync.Mutex
	// Invariant: deadline is zero as long as timer is nil, and total after the first call of Begin from then on.
	deadline time.Time
	timer    *time.Timer
}

// NewBudget returns a budget that has not begun.
func NewBudget(total time.Duration) *Budget {
	return &Budget{total: total, over: make(chan struct{})}
}

// Begin starts the clock, once.
func (b *Budget) Begin() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.timer == nil {
		b.deadline = time.Now().Add(b.total)
		b.timer = time.AfterFunc(b.total, func() { close(b.over) })
	}
}

// Stop releases the timer. Over is not closed any more.
func (b *Budget) Stop() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.timer != nil {
		b.timer.Stop()
	}
}

// Total is the whole time.
func (b *Budget) Total() time.Duration { return b.total }

// Over is closed when the time is over.
func (b *Budget) Over() <-chan struct{} { return b.over }

// left is what is left of the time but for a share of it that is kept for what comes later, which is share of the total and at most limit.
func (b *Budget) left(share float64, limit time.Duration) time.Duration {
	b.Begin()
	b.mu.Lock()
	defer b.mu.Unlock()
	return max(0, time.Until(b.deadline)-min(limit, time.Duration(share*float64(b.total))))
}

// Work is how long messages in flight may still take.
func (b *Budget) Work() time.Duration { return b.left(0.33, 6*time.Second) }

// Functions is how long functions may take to end before they are killed.
func (b *Budget) Functions() time.Duration { return min(b.left(0.16, time.Second), 5*time.Second) }

// Close is how long closing everything may take.
func (b *Budget) Close() time.Duration { return b.left(0.05, 100*time.Millisecond) }
