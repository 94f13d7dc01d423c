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

// Seat is a number that one of the processes has at a time. Numbers are used again, so that there are never more than processes ran at once.
type Seat struct {
	// Name is the process that has the seat, or had it last.
	Name string `json:"name"`
	// First is where the process begins to count what it does. It is above what all those before it have counted, also where their clocks were ahead.
	First uint64 `json:"first"`
}

// seatRange is what a process can count at least before it reaches the next First.
const seatRange = 1 << 40

// sit gives a process the seat that it had, or else the first that is free, or a new one. Its First is the time in Unix nanoseconds: nothing counts faster. A clock that was
// set back cannot give one twice.
func sit(seats []Seat, name string, now time.Time, free func(Seat) bool) (all []Seat, number int) {
	all = slices.Clone(seats)
	number = slices.IndexFunc(all, func(s Seat) bool { return s.Name == name })
	if number < 0 {
		number = slices.IndexFunc(all, free)
	}
	if number < 0 {
		number, all = len(all), append(all, Seat{})
	}
	all[number] = Seat{Name: name, First: max(all[number].First+seatRange, uint64(max(0, now.UnixNano())))}
	return all, number
}

// Joined is what a process is among those that share something.
type Joined struct {
	// Number is that of its seat.
	Number int
	Seat   Seat
	// Others are the names of the others. Those that were killed and have not come back are among them.
	Others []string
}

// Join adds a process to the record of cfg.Store. The error is an *OwnedError while one process holds the lease for itself alone. gone,
// which may be nil, reports whether a process that is named there has left: its name is removed, and its number is free.
func Join(ctx context.Context, cfg Config, name string, gone func(name string) bool) (j Joined, err error) {
	cfg = cfg.withDefaults()
	c := claim{self: cfg.Self, alive: cfg.Alive}
	for waiting := false; ; {
		left, err := update(ctx, cfg, &c, func(o *Owner) {
			o.Released = true
			o.Processes = slices.DeleteFunc(slices.Clone(o.Processes), func(other string) bool { return other == name || gone != nil && gone(other) })
			o.Seats, j.Number = sit(o.Seats, name, time.Now(), func(s Seat) bool { return !slices.Contains(o.Processes, s.Name) })
			j.Seat, j.Others = o.Seats[j.Number], slices.Clone(o.Processes)
			o.Processes = append(o.Processes, name)
		})
		switch {
		case err == nil && left == 0:
			return j, nil
		case err == nil && !waiting:
			if waiting = true; cfg.Waiting != nil {
				cfg.Waiting(c.last, left)
			}
		case err == nil, errors.Is(err, ErrConflict):
		default:
			return Joined{}, err
		}
		select {
		case <-time.After(poll):
		case <-ctx.Done():
			return Joined{}, context.Cause(ctx)
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
