package stream

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"time"
)

// The heartbeat keeps the lease while the run works, and is the watchdog of its handler. Two things must hold: the process stops working on a job before
// the lease can be over at the store, so it counts from before a renewal was sent; and a handler that hangs does not keep its job from others.

// renewLease renews the lease until ctx ends or the lease is lost. It counts from before the last renewal that worked, and gives up
// when two thirds of the lease are over, so that this process stops before another starts.
func (c *claim) renewLease(ctx context.Context) {
	r := c.run
	lease := r.config.Lease
	for pause := lease / 3; wait(ctx, pause); {
		if r.hung() {
			c.abandonHandler()
			return
		}
		start := time.Now()
		err := c.renew(ctx, min(lease/6, max(lease*2/3-start.Sub(r.sinceRenewal()), lease/30)))
		pause = lease / 3
		switch {
		case err == nil:
			r.renewed(start)
		case ctx.Err() != nil:
			return
		case errors.Is(err, ErrFenced):
			r.loseLease(err)
			return
		case time.Since(r.sinceRenewal()) >= lease*2/3-lease/30:
			r.loseLease(fmt.Errorf("%w: %w", errNotRenewed, err))
			return
		default:
			pause = lease / 30
			r.log.Warn("lease not renewed, retrying", "error", err)
		}
	}
}

// renew asks the store once.
func (c *claim) renew(ctx context.Context, timeout time.Duration) error {
	c.mu.Lock()
	progress := c.progress
	c.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	return c.w.config.Store.Renew(ctx, c.lease, progress, c.config.Lease)
}

// abandonHandler leaves the job to others, since its handler does not return. Its slots are free for other jobs.
func (c *claim) abandonHandler() {
	r := c.run
	buf := make([]byte, 1<<20)
	c.w.stuck.Add(1)
	r.log.Error("handler does not return, its job is left to other workers: end this process", "timeout", r.config.HandlerTimeout, "goroutines", string(buf[:runtime.Stack(buf, true)]))
	r.loseLease(errors.New("the handler does not return"))
	r.releaseHandler()
}

func (r *run) hung() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return !r.sinkCalledAt.IsZero() && time.Since(r.sinkCalledAt) > r.config.HandlerTimeout+r.config.Lease
}

// setSinkCall sets when the sink was called, for the watchdog; zero: it has returned.
func (r *run) setSinkCall(at time.Time) {
	r.mu.Lock()
	r.sinkCalledAt = at
	r.mu.Unlock()
}

// renewed records a renewal of the lease.
func (r *run) renewed(at time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if at.After(r.leased) {
		r.leased = at
	}
}

// sinceRenewal is when the lease was last renewed for certain.
func (r *run) sinceRenewal() time.Time {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.leased
}
