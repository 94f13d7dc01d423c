package buffer

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"

	"github.com/cenkalti/backoff/v5"
)

func retryDelay() *backoff.ExponentialBackOff {
	return &backoff.ExponentialBackOff{InitialInterval: 20 * time.Millisecond, RandomizationFactor: 0.3, Multiplier: 2, MaxInterval: 2 * time.Second}
}

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

// insistEvery is how often a wait for the broker is logged, after the first time.
const insistEvery = 30 * time.Second

// insist calls do until it succeeds or ctx ends, and says once in a while what it waits for. Errors that do not go away by themselves end it.
func (p *Partition) insist(ctx context.Context, what string, do func(context.Context) error) error {
	wait, tell := retryDelay(), time.Now().Add(3*time.Second)
	for {
		err := do(ctx)
		switch {
		case err == nil, errors.Is(err, ErrMissing), errors.Is(err, ErrClosed), errors.Is(err, ErrGap):
			return err
		case ctx.Err() != nil:
			return context.Cause(ctx)
		}
		if time.Now().After(tell) {
			tell = time.Now().Add(insistEvery)
			p.opt.Logger.Warn("broker does not answer, retrying", "buffer", p.opt.Name, "operation", what, "error", err)
		}
		if !sleep(ctx, wait.NextBackOff()) {
			return context.Cause(ctx)
		}
	}
}
