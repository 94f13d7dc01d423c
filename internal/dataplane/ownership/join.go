package ownership

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"slices"
	"time"
)

// A vertex can be run by several processes at once. Then nobody holds its lease: its record says "released", and names the processes. Each has a lease of its own, under
// its name. The record is changed by compare-and-set only, so a process that takes the lease for itself alone, or vacates it, learns of all that joined before; and a process
// that joins afterwards finds the lease taken, or the one that it vacates next.

// Join adds a process to the record of cfg.Store. The error is an *OwnedError while one process holds the lease for itself alone. gone, which may be nil, reports whether a
// process that is named there has left: its name is removed.
func Join(ctx context.Context, cfg Config, name string, gone func(name string) bool) error {
	cfg = cfg.withDefaults()
	c := claim{self: cfg.Self, alive: cfg.Alive}
	for waiting := false; ; {
		left, err := update(ctx, cfg, &c, func(o *Owner) {
			o.Released = true
			o.Processes = slices.DeleteFunc(slices.Clone(o.Processes), func(other string) bool { return other == name || gone != nil && gone(other) })
			o.Processes = append(o.Processes, name)
		})
		switch {
		case err == nil && left == 0:
			return nil
		case err == nil && !waiting:
			if waiting = true; cfg.Waiting != nil {
				cfg.Waiting(c.last, left)
			}
		case err == nil, errors.Is(err, ErrConflict):
		default:
			return err
		}
		select {
		case <-time.After(poll):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// VacateAll is Vacate for a lease, and for those of all processes that share what it is for. store returns the record of a process.
func VacateAll(ctx context.Context, cfg Config, store func(name string) Store) error {
	last, err := vacated(ctx, cfg)
	if err != nil {
		return err
	}
	for _, name := range last.Processes {
		one := cfg
		one.Store = store(name)
		if err := Vacate(ctx, one); err != nil {
			return err
		}
	}
	return nil
}

func (cfg Config) withDefaults() Config {
	if cfg.Alive == nil {
		cfg.Alive = alive
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	return cfg
}

// update changes the record of a lease that nobody holds, once. left is how long the record has to stay as it is until it counts as expired; nothing was changed then.
func update(ctx context.Context, cfg Config, c *claim, change func(*Owner)) (left time.Duration, err error) {
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
	next := c.last
	next.Renewals++
	change(&next)
	if value, err = json.Marshal(next); err != nil {
		return 0, err
	}
	_, err = cfg.Store.Put(ctx, value, revision)
	return 0, err
}
