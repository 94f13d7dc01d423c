package stream

import (
	"context"
	"math/rand/v2"
	"time"
)

// Backoff says how long to wait before another attempt: a random time up to Min, doubled at each failure in a row, up to Max
// ("full jitter": Brooker, Exponential Backoff And Jitter, 2015). A committed record resets it.
type Backoff struct {
	Min, Max time.Duration
}

func (b Backoff) after(failures int) time.Duration {
	limit := b.Max
	if shift := min(max(failures, 1)-1, 30); b.Min<<shift < b.Max && b.Min<<shift > 0 {
		limit = b.Min << shift
	}
	// Never nothing at all, so that a fault that comes back at once cannot spin.
	return limit/8 + rand.N(limit-limit/8+1)
}

// jitter returns d, give or take a tenth.
func jitter(d time.Duration) time.Duration {
	if d < 10 {
		return d
	}
	return d - d/10 + rand.N(d/5)
}

// wait waits for d, or until ctx ends.
func wait(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
