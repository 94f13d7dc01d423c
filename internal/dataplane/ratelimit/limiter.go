package ratelimit

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"time"
)

// Store keeps the record.
type Store interface {
	// Get returns the record with its revision; nil and 0 if there is none. It may be an older one.
	Get(ctx context.Context) (value []byte, revision uint64, err error)
	// CompareAndSet replaces the record if its revision is the given one, and returns the new one. The error is ErrConflict if the revision is another one. After any other
	// error it may have been replaced or not.
	CompareAndSet(ctx context.Context, value []byte, revision uint64) (uint64, error)
}

// ErrConflict means that another process has replaced the record.
var ErrConflict = errors.New("the record was replaced by another process")

// Config of a Limiter.
type Config struct {
	Store Store
	// Name tells this start of this process apart from all others.
	Name string
	// Rate is how many messages all processes together may let pass in a second, at least 1.
	Rate   uint64
	Logger *slog.Logger
}

const (
	// grantTime is what a grant is worth, unless that is less than a message.
	grantTime = 50 * time.Millisecond
	// ahead is how many grants a process has taken that it does not use yet.
	ahead = 2
	// request bounds one request to the store; retry is the time between two that fail.
	request = 300 * time.Millisecond
	retry   = 100 * time.Millisecond
	// conflictPause is how long to wait before the record is read that another process has replaced: a replica may lag.
	conflictPause = 2 * time.Millisecond
	// closedFor is how long nothing passes while the store does not answer.
	closedFor = time.Second
	// askAgain is how often a store is asked that does not answer.
	askAgain = time.Second
)

// Limiter is the part of one process in the limit. It may be used concurrently.
type Limiter struct {
	cfg   Config
	size  int           // messages of a grant
	worth time.Duration // of a grant

	// using has room for 1. It is taken while what is below is used, also during a request: others wait for its outcome too.
	using chan struct{}
	left  int // messages of the grant that is in use
	// next are the dues of the grants that were taken and are not used yet, in order. Invariant: at most ahead.
	next []time.Duration

	// The clock was at least clock at the time seen; seen is zero before the first record.
	clock time.Duration
	seen  time.Time
	// last is the newest record that is known, of that revision.
	last     record
	revision uint64
	number   uint64        // of the grant that was attempted last
	unsure   bool          // the last attempt may have been applied
	attempt  time.Duration // its due

	// failing is since when the store does not answer; zero if it does. asked is when it was asked last, alone whether this process goes on without it.
	failing, asked time.Time
	alone          bool
	stopped        bool          // it was logged that nothing passes
	due            time.Duration // of the newest grant that this process gave itself
	share          int           // it has the rate divided by this
}

// New returns a limiter that has no grants yet.
func New(cfg Config) *Limiter {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	rate := max(1, cfg.Rate)
	size := max(1, int(min(rate*uint64(grantTime/time.Millisecond)/1000, 1<<20)))
	return &Limiter{cfg: cfg, size: size, worth: time.Duration(float64(size) / float64(rate) * float64(time.Second)), using: make(chan struct{}, 1)}
}

// Burst is how many messages a process should let pass at once.
func (l *Limiter) Burst() int { return l.size }

// Slice is how many messages of the limit a process may have that it has not let pass.
func (l *Limiter) Slice() int { return 4 * l.size }

// WaitN waits until n messages may pass. The error is the cause of the end of ctx. Some of the messages then count as passed.
func (l *Limiter) WaitN(ctx context.Context, n int) error {
	for n > 0 {
		select {
		case l.using <- struct{}{}:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		took, wait := l.use(ctx, n)
		<-l.using
		if n -= took; n == 0 {
			return nil
		}
		if wait > 0 {
			timer := time.NewTimer(wait)
			select {
			case <-timer.C:
			case <-ctx.Done():
				timer.Stop()
				return context.Cause(ctx)
			}
		} else if ctx.Err() != nil {
			return context.Cause(ctx)
		}
	}
	return nil
}

// use lets up to n messages pass. If they are less, wait is after what time there may be more. using is held.
func (l *Limiter) use(ctx context.Context, n int) (took int, wait time.Duration) {
	if l.left == 0 && len(l.next) > 0 && l.now() >= l.next[0] {
		l.left, l.next = l.size, l.next[1:]
	}
	if l.left > 0 {
		took = min(n, l.left)
		l.left -= took
		return took, 0
	}
	for len(l.next) < ahead && l.take(ctx) { // each request can be the last for a while
	}
	if len(l.next) == 0 {
		return 0, retry
	}
	return 0, l.next[0] - l.now()
}

// now is what the clock is at least.
func (l *Limiter) now() time.Duration {
	if l.seen.IsZero() {
		return 0
	}
	return l.clock + time.Since(l.seen)
}

// learn takes in a record.
func (l *Limiter) learn(r record, revision uint64) {
	if l.seen.IsZero() || r.Clock > l.now() {
		l.clock, l.seen = r.Clock, time.Now()
	}
	l.last, l.revision = r, revision
}

// take takes a grant, from the store or without it. It returns false if it has none now.
func (l *Limiter) take(ctx context.Context) bool {
	before := len(l.next)
	if l.failing.IsZero() || time.Since(l.asked) >= l.pause() {
		l.asked = time.Now()
		err := l.ask(ctx)
		switch {
		case err == nil:
			l.answered()
		case ctx.Err() == nil:
			l.failed(err)
		}
	}
	if l.alone && len(l.next) < ahead {
		l.grant()
	}
	slices.Sort(l.next) // what this process gives itself is not in the order of the store
	return len(l.next) > before
}

// pause is how long a store that does not answer is not asked.
func (l *Limiter) pause() time.Duration {
	if l.alone {
		return askAgain
	}
	return retry
}

// ask takes a grant from the store. It returns nil if the store answers, also if others were faster again and again.
func (l *Limiter) ask(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, request)
	defer cancel()
	read := l.seen.IsZero() || l.unsure
	for {
		if read {
			if err := l.read(ctx); err != nil {
				return err
			}
			if len(l.next) >= ahead {
				return nil // an attempt was applied whose answer was lost
			}
		}
		l.number++
		next := l.last.take(l.cfg.Name, l.number, l.now(), l.worth)
		revision, err := l.cfg.Store.CompareAndSet(ctx, next.encode(), l.revision)
		switch {
		case err == nil:
			l.learn(next, revision)
			l.next = append(l.next, next.Due)
			return nil
		case errors.Is(err, ErrConflict):
			read = true
			select {
			case <-time.After(conflictPause):
			case <-ctx.Done():
				return nil
			}
		default:
			l.unsure, l.attempt = true, next.Due
			return err
		}
	}
}

// read reads the record, and finds out about an attempt without an answer.
func (l *Limiter) read(ctx context.Context) error {
	value, revision, err := l.cfg.Store.Get(ctx)
	if err != nil {
		return err
	}
	r, err := decode(value)
	if err != nil {
		return err
	}
	if l.unsure && r.Takers[l.cfg.Name].Number == l.number {
		l.next = append(l.next, l.attempt)
	}
	l.unsure = false
	l.learn(r, revision)
	return nil
}

// failed notes that the store did not answer.
func (l *Limiter) failed(err error) {
	if l.failing.IsZero() {
		l.failing = time.Now()
	}
	if l.alone || time.Since(l.failing) < closedFor {
		return
	}
	if l.last.Takers == nil {
		if !l.stopped {
			l.stopped = true
			l.cfg.Logger.Warn("waiting for the store of the rate limit: this process has no share of the limit yet", "error", err)
		}
		return
	}
	l.alone, l.share, l.due = true, max(1, l.last.taking()), l.now()
	if len(l.next) > 0 {
		l.due = max(l.due, l.next[len(l.next)-1])
	}
	l.cfg.Logger.Warn("rate limit cannot be shared while its store does not answer, going on with the last share of it", "error", err,
		"rate", float64(l.cfg.Rate)/float64(l.share), "of", l.cfg.Rate)
}

// answered notes that the store has answered.
func (l *Limiter) answered() {
	if l.alone {
		l.cfg.Logger.Info("rate limit is shared again", "after", time.Since(l.failing).Round(time.Millisecond))
	}
	l.failing, l.alone, l.stopped = time.Time{}, false, false
}

// grant is a grant that this process gives itself. What it could not use while it asked the store is made up for.
func (l *Limiter) grant() {
	l.due = max(l.due, l.now()-request) + time.Duration(l.share)*l.worth
	l.next = append(l.next, l.due)
}
