package buffer

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"time"

	"github.com/cenkalti/backoff/v5"
)

// insistAfter is how long a wait for the broker may take before it is logged, insistEvery how often it is logged after that.
const (
	insistAfter = 3 * time.Second
	insistEvery = 30 * time.Second
)

// retrier repeats what a store refuses, and says what a partition waits for.
//
// Nothing of a partition gives up because the broker is unavailable: it waits, and logs one line. Only what does not pass by itself is an error.
type retrier struct {
	name   string // of the partition
	logger *slog.Logger
}

// insist calls do until it succeeds or ctx ends. Errors that do not go away by themselves end it.
func (r retrier) insist(ctx context.Context, what string, do func(context.Context) error) error {
	wait := pauses{retrier: r, what: what}
	for {
		err := do(ctx)
		switch {
		case err == nil, errors.Is(err, ErrMissing), errors.Is(err, ErrClosed), errors.Is(err, ErrGap):
			return err
		case ctx.Err() != nil:
			return context.Cause(ctx)
		}
		if err := wait.pause(ctx, err); err != nil {
			return err
		}
	}
}

// pauses are those between attempts at one operation. The zero value of its last two fields is the state before the first failure.
type pauses struct {
	retrier
	what  string
	delay *backoff.ExponentialBackOff // nil before the first failure
	tell  time.Time                   // when the wait is logged next; set with delay
}

// pause waits before the next attempt. The error is context.Cause(ctx) if that ends.
func (p *pauses) pause(ctx context.Context, why error) error {
	if p.delay == nil {
		p.delay, p.tell = retryDelay(), time.Now().Add(insistAfter)
	}
	p.logger.Debug("attempt failed", "buffer", p.name, "operation", p.what, "error", why)
	if time.Now().After(p.tell) {
		p.tell = time.Now().Add(insistEvery)
		p.logger.Warn("broker does not answer, retrying", "buffer", p.name, "operation", p.what, "error", why)
	}
	if !sleep(ctx, p.delay.NextBackOff()) {
		return context.Cause(ctx)
	}
	return nil
}

// succeeded ends a series of failures.
func (p *pauses) succeeded() { p.delay = nil }

// retryDelay is such that a broker that is available again is used within about 2 s.
func retryDelay() *backoff.ExponentialBackOff {
	return &backoff.ExponentialBackOff{InitialInterval: 20 * time.Millisecond, RandomizationFactor: 0.3, Multiplier: 2, MaxInterval: 2 * time.Second}
}

// sleep waits a little longer than d, so that what failed together does not try together. It reports whether ctx did not end.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d + time.Duration(rand.Int64N(int64(time.Millisecond))))
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
