package ownership

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"time"
)

// Vacate returns nil once it is certain that no process holds the lease of cfg.Store, and that none which held it can go on: its record says "released", and
// its holder can no longer renew it. The error is an *OwnedError if a process holds the lease. The lease is not taken.
//
// It is for leases that exclude each other, as those of a pipeline and of its vertices. Each process takes its own lease first and then vacates the others, so that
// of two that begin at the same time at least one sees the other. Vacate always writes: a read can be answered by a replica that lags, a compare-and-set cannot.
func Vacate(ctx context.Context, cfg Config) error {
	if cfg.Alive == nil {
		cfg.Alive = alive
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	c := claim{self: cfg.Self, alive: cfg.Alive}
	waiting := false
	for {
		left, err := vacate(ctx, cfg, &c)
		switch {
		case err == nil && left == 0:
			return nil
		case err == nil && cfg.Waiting != nil:
			waiting = true
			cfg.Waiting(c.last, left)
			cfg.Waiting = nil
		case err == nil, errors.Is(err, ErrConflict):
		case errors.Is(err, ErrOwned), ctx.Err() != nil, !waiting: // the caller knows whether a first failure may go away
			return err
		}
		select {
		case <-time.After(poll):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// vacate tries once. left is how long a record has to stay as it is until it counts as expired.
func vacate(ctx context.Context, cfg Config, c *claim) (left time.Duration, err error) {
	ctx, cancel := context.WithTimeout(ctx, request)
	defer cancel()
	value, revision, err := cfg.Store.Get(ctx)
	if err != nil {
		return 0, err
	}
	c.last = decode(value)
	switch decision, left := c.decide(c.last, revision, time.Now()); decision {
	case refuse:
		return 0, &OwnedError{c.last}
	case hold:
		return left, nil
	}
	gone := c.last
	gone.Released = true
	gone.Renewals++
	if value, err = json.Marshal(gone); err != nil {
		return 0, err
	}
	_, err = cfg.Store.Put(ctx, value, revision)
	return 0, err
}
