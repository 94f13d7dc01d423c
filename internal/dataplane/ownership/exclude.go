package ownership

import (
	"context"
	"errors"
	"time"
)

// Vacate returns nil once it is certain that no process holds the lease of cfg.Store, and that none which held it can go on: its record says "released", and
// its holder can no longer renew it. The error is an *OwnedError if a process holds the lease. The lease is not taken.
//
// It is for leases that exclude each other, as those of a pipeline and of its vertices. Each process takes its own lease first and then vacates the others, so that
// of two that begin at the same time at least one sees the other. Vacate always writes: a read can be answered by a replica that lags, a compare-and-set cannot.
func Vacate(ctx context.Context, cfg Config) error {
	_, err := vacated(ctx, cfg)
	return err
}

// vacated is Vacate. It returns the record as it was.
func vacated(ctx context.Context, cfg Config) (Owner, error) {
	cfg = cfg.withDefaults()
	c := claim{self: cfg.Self, alive: cfg.Alive}
	waiting := false
	for {
		left, err := update(ctx, cfg, &c, func(o *Owner) { o.Released = true })
		switch {
		case err == nil && left == 0:
			return c.last, nil
		case err == nil && cfg.Waiting != nil:
			waiting = true
			cfg.Waiting(c.last, left)
			cfg.Waiting = nil
		case err == nil, errors.Is(err, ErrConflict):
		case errors.Is(err, ErrOwned), ctx.Err() != nil, !waiting: // the caller knows whether a first failure may go away
			return c.last, err
		}
		select {
		case <-time.After(poll):
		case <-ctx.Done():
			return c.last, context.Cause(ctx)
		}
	}
}
