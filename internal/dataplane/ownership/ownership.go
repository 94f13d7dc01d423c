// Package ownership lets one process at a time run a pipeline, or one vertex of it. The owner holds a lease: a record in the pipeline's state bucket that it renews
// by compare-and-set on the record's revision. The lease of a pipeline and those of its vertices exclude each other (Vacate).
//
// No two clocks are compared. A claimant measures, by its own monotonic clock, how long it has seen the same revision, and takes the pipeline over
// after TTL. When the owner ran on the claimant's own host, the claimant looks at the process instead: it takes over at once when that has ended, and
// gives up at once when it has not.
//
// The lease does not fence: an owner that is stopped (SIGSTOP) for longer than TTL still has in its memory what it was writing. It finds out at its next
// renewal or Check, and stops.
package ownership

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"
)

// Owner says which process owns a pipeline or a vertex.
type Owner struct {
	// Instance is a random name of this run of the process.
	Instance string `json:"instance"`
	Host     string `json:"host"`
	// Boot and PIDNamespace say where PID has a meaning; empty where that is unknown.
	Boot         string `json:"boot,omitempty"`
	PIDNamespace string `json:"pidNamespace,omitempty"`
	PID          int    `json:"pid"`
	// ProcessStart is when the kernel started the process, in its own units: a PID is used again, the pair is not.
	ProcessStart string `json:"processStart,omitempty"`
	// Started is for people only.
	Started time.Time `json:"started"`
	Command string    `json:"command,omitempty"`
	Version string    `json:"version,omitempty"`
	// Released says that the owner stopped in an orderly way, or that its lease has expired.
	Released bool `json:"released,omitempty"`
	// Shape identifies the topology that a process of one vertex runs with; empty for a process that runs the whole pipeline.
	Shape string `json:"shape,omitempty"`
	// Processes are the names of those that share what the lease is for, each with a lease of its own; see Join. They are kept when the lease is taken or released.
	Processes []string `json:"processes,omitempty"`
	// Seats are the numbers of those processes: seat n has number n. They are kept, too, so that a number is never used twice in the same way; see Seat.
	Seats []Seat `json:"seats,omitempty"`
	// Renewals makes each record differ from the one before.
	Renewals int64 `json:"renewals"`
}

func (o Owner) String() string {
	s := fmt.Sprintf("process %d on host %s, started %s", o.PID, o.Host, o.Started.UTC().Format(time.RFC3339))
	if o.Command != "" {
		s += " (" + o.Command + ")"
	}
	return s
}

// ErrOwned means that another process runs the pipeline; the error is an *OwnedError.
var ErrOwned = errors.New("another process owns the pipeline")

// OwnedError names the owner.
type OwnedError struct{ Owner Owner }

func (e *OwnedError) Error() string { return "it is already run by " + e.Owner.String() }

// Is makes errors.Is(err, ErrOwned) true.
func (e *OwnedError) Is(target error) bool { return target == ErrOwned }

// ErrLost means that another process took the pipeline over while this one could not renew its lease.
var ErrLost = errors.New("ownership lost")

// Store keeps the record.
type Store interface {
	// Get returns the record and its revision; nil and 0 if there is none.
	Get(ctx context.Context) (value []byte, revision uint64, err error)
	// Put replaces the record if its revision is the given one, and returns the new revision. Otherwise the error is ErrConflict.
	Put(ctx context.Context, value []byte, revision uint64) (uint64, error)
}

// ErrConflict means that the record has another revision.
var ErrConflict = errors.New("the record was changed by another process")

// Times of a lease. A claimant on another host waits TTL; a renewal fails and is repeated several times before that.
const (
	TTL     = 10 * time.Second
	renew   = TTL / 4
	retry   = 500 * time.Millisecond
	poll    = 250 * time.Millisecond
	request = 2 * time.Second
)

// Config of a lease. The zero value of a field is its default.
type Config struct {
	// Store keeps the record. Required.
	Store Store
	// Self is the process that wants to own the pipeline, the same in each attempt: an attempt can be applied without an answer. Required. See Self.
	Self Owner
	// Sole says that nothing else can reach the store, as in a data directory that this process has locked. The lease is taken at once.
	Sole bool
	// Force takes the lease at once, also from a process that holds it: that one finds out at its next renewal, and stops. For a name that one process at a time may have.
	Force bool
	// Alive reports whether a process of this host still runs. Default: the kernel is asked.
	Alive func(Owner) Life
	// Waiting is called once when the claim has to wait for a lease to expire.
	Waiting func(last Owner, atMost time.Duration)
	Logger  *slog.Logger
}

// Life is what is known about a process.
type Life int

// A process runs, has ended, or cannot be examined from here.
const (
	Unknown Life = iota
	Running
	Ended
)

// Lease is the ownership of a pipeline. Run renews it. Its methods may be called concurrently.
type Lease struct {
	cfg  Config
	kick chan struct{}
	lost chan struct{}

	mu       sync.Mutex // held during a request: one renewal at a time
	self     Owner
	revision uint64
	renewed  time.Time // when the last renewal that succeeded was sent
	err      error     // why the lease is lost
}

// Acquire takes the lease. It returns an *OwnedError as soon as it is certain that another process holds it, at the latest after TTL.
func Acquire(ctx context.Context, cfg Config) (*Lease, error) {
	cfg = cfg.withDefaults()
	l := &Lease{cfg: cfg, self: cfg.Self, kick: make(chan struct{}, 1), lost: make(chan struct{})}
	c := claim{sole: cfg.Sole || cfg.Force, self: cfg.Self, alive: cfg.Alive}
	waiting := false
	for {
		err := l.try(ctx, &c, func(last Owner, left time.Duration) {
			if waiting = true; cfg.Waiting != nil {
				cfg.Waiting(last, left)
				cfg.Waiting = nil
			}
		})
		if err == nil {
			return l, nil
		}
		if errors.Is(err, ErrOwned) || ctx.Err() != nil {
			return nil, err
		}
		if !errors.Is(err, errWait) && !errors.Is(err, ErrConflict) {
			if !waiting { // the caller knows whether a first failure may go away
				return nil, err
			}
			cfg.Logger.Debug("ownership request failed, retrying", "error", err)
		}
		select {
		case <-time.After(poll):
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

var errWait = errors.New("the lease has not expired")

func (l *Lease) try(ctx context.Context, c *claim, wait func(Owner, time.Duration)) error {
	ctx, cancel := context.WithTimeout(ctx, request)
	defer cancel()
	value, revision, err := l.cfg.Store.Get(ctx)
	if err != nil {
		return fmt.Errorf("read the owner: %w", err)
	}
	last, now := decode(value), time.Now()
	switch decision, left := c.decide(last, revision, now); decision {
	case refuse:
		return &OwnedError{last}
	case hold:
		wait(last, left)
		return errWait
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.self.Processes, l.self.Seats = last.Processes, last.Seats
	return l.put(ctx, revision)
}

// Processes are those that shared what the lease is for before it was taken: they may still run.
func (l *Lease) Processes() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.self.Processes
}

// decode reads a record. One that cannot be read belongs to an unknown process of an unknown host, which is waited for.
func decode(value []byte) (o Owner) {
	if len(value) == 0 {
		return Owner{Released: true}
	}
	if err := json.Unmarshal(value, &o); err != nil {
		return Owner{Host: "unknown"}
	}
	return o
}

type decision int

const (
	take decision = iota
	hold
	refuse
)

// claim decides what to do about the record that is found. It is pure: the caller reads the store and the clock.
type claim struct {
	sole  bool
	self  Owner
	alive func(Owner) Life

	revision uint64 // the first one seen
	since    time.Time
	last     Owner // of the record read last
}

func (c *claim) decide(last Owner, revision uint64, now time.Time) (d decision, left time.Duration) {
	if last.Released || c.sole || last.Instance != "" && last.Instance == c.self.Instance { // its own: an answer was lost
		return take, 0
	}
	if samePlace(last, c.self) {
		switch c.alive(last) {
		case Running:
			return refuse, 0
		case Ended:
			return take, 0
		}
	}
	if c.since.IsZero() {
		c.revision, c.since = revision, now
	}
	if revision != c.revision {
		return refuse, 0 // renewed while we looked
	}
	if left = TTL - now.Sub(c.since); left <= 0 {
		return take, 0
	}
	return hold, left
}

// samePlace reports whether a PID means the same to both.
func samePlace(a, b Owner) bool {
	return a.Boot != "" && a.Boot == b.Boot && a.Host == b.Host && a.PIDNamespace == b.PIDNamespace
}

// put stores the record of this process. mu is held.
func (l *Lease) put(ctx context.Context, revision uint64) error {
	sent := time.Now()
	next := l.self
	next.Renewals++
	value, err := json.Marshal(next)
	if err != nil {
		return err
	}
	if revision, err = l.cfg.Store.Put(ctx, value, revision); err != nil {
		return err
	}
	l.self, l.revision, l.renewed = next, revision, sent
	return nil
}

// Run renews the lease until ctx ends, or the lease is lost. An unreachable store is no loss: the lease is kept unless another process took it meanwhile.
func (l *Lease) Run(ctx context.Context) error {
	wait := renew
	for {
		if l.cfg.Sole {
			<-ctx.Done()
			return nil
		}
		select {
		case <-ctx.Done():
			return nil
		case <-l.lost:
			return l.Err()
		case <-l.kick:
		case <-time.After(wait):
		}
		l.mu.Lock()
		err := l.renew(ctx)
		stale := time.Since(l.renewed)
		l.mu.Unlock()
		switch {
		case errors.Is(err, ErrLost):
			return err
		case err != nil && ctx.Err() == nil:
			wait = retry
			l.cfg.Logger.Debug("ownership renewal failed, retrying", "error", err, "last renewal", stale)
		default:
			wait = renew
		}
	}
}

// Recheck makes Run renew at once, as after a reconnect.
func (l *Lease) Recheck() {
	select {
	case l.kick <- struct{}{}:
	default:
	}
}

// Lost is closed when the lease is lost.
func (l *Lease) Lost() <-chan struct{} { return l.lost }

// Err says why the lease is lost; nil if it is not.
func (l *Lease) Err() error {
	select {
	case <-l.lost:
		return l.err // written before lost was closed
	default:
		return nil
	}
}

// Check returns nil if this process owns the pipeline. It asks the store only when the last renewal is so old that another process may have taken over.
func (l *Lease) Check(ctx context.Context) error {
	if l.cfg.Sole {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err != nil {
		return l.err
	}
	if time.Since(l.renewed) < TTL/2 {
		return nil
	}
	return l.renew(ctx)
}

// renew is called with mu held.
func (l *Lease) renew(ctx context.Context) error {
	if l.err != nil {
		return l.err
	}
	ctx, cancel := context.WithTimeout(ctx, request)
	defer cancel()
	err := l.put(ctx, l.revision)
	if !errors.Is(err, ErrConflict) {
		return err
	}
	value, revision, err := l.cfg.Store.Get(ctx)
	if err != nil {
		return err
	}
	last := decode(value)
	if last.Instance == l.self.Instance && !last.Released {
		l.self.Renewals = last.Renewals // our own write, whose answer was lost
		return l.put(ctx, revision)
	}
	switch {
	case len(value) == 0:
		l.err = fmt.Errorf("%w: the record of the owner was removed from the store", ErrLost)
	case last.Instance == l.self.Instance:
		l.err = fmt.Errorf("%w: it was not renewed for %v, and another process has declared it expired. This process stops", ErrLost, time.Since(l.renewed).Round(100*time.Millisecond))
	default:
		l.err = fmt.Errorf("%w: while the broker could not be reached from here for %v, the pipeline was taken over by %s. This process stops", ErrLost, time.Since(l.renewed).Round(100*time.Millisecond), last)
	}
	close(l.lost)
	return l.err
}

// Release gives the lease up, so that the next claim need not wait. A lease that is lost is left to its new owner.
func (l *Lease) Release(ctx context.Context) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err != nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, request)
	defer cancel()
	l.self.Released = true
	err := l.put(ctx, l.revision)
	if errors.Is(err, ErrConflict) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("release the pipeline: %w", err)
	}
	return nil
}

// Last returns the record of the store. ok is false if there is none, or its owner released it.
func Last(ctx context.Context, s Store) (o Owner, revision uint64, ok bool, err error) {
	value, revision, err := s.Get(ctx)
	if err != nil {
		return o, 0, false, err
	}
	o = decode(value)
	return o, revision, !o.Released, nil
}
