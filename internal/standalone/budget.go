package standalone

import (
	"sync"
	"time"
)

// budget is the time from the moment at which a run is told to end until Run returns: for messages in flight, for the end of functions and for closing
// everything. It is the whole time, so that a supervisor that kills after a grace period never has to.
type budget struct {
	total time.Duration
	over  chan struct{} // closed when the time is over

	mu       sync.Mutex
	deadline time.Time // zero before begin
	timer    *time.Timer
}

func newBudget(total time.Duration) *budget { return &budget{total: total, over: make(chan struct{})} }

// begin starts the clock, once.
func (b *budget) begin() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.timer == nil {
		b.deadline = time.Now().Add(b.total)
		b.timer = time.AfterFunc(b.total, func() { close(b.over) })
	}
}

func (b *budget) stop() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.timer != nil {
		b.timer.Stop()
	}
}

// left is what is left of the time but for a share of it that is kept for what comes later, which is share of the total and at most limit.
func (b *budget) left(share float64, limit time.Duration) time.Duration {
	b.begin()
	b.mu.Lock()
	defer b.mu.Unlock()
	return max(0, time.Until(b.deadline)-min(limit, time.Duration(share*float64(b.total))))
}

// work is how long messages in flight may still take.
func (b *budget) work() time.Duration { return b.left(0.33, 6*time.Second) }

// functions is how long functions may take to end before they are killed.
func (b *budget) functions() time.Duration { return min(b.left(0.16, time.Second), 5*time.Second) }

// close is how long closing everything may take.
func (b *budget) close() time.Duration { return b.left(0.05, 100*time.Millisecond) }
