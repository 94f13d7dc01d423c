package commandline

import (
	"context"
	"log/slog"
	"sync"
	"time"
)

// limitFirst is how many records of one site are passed on before the rest of limitEvery is only counted.
const (
	limitFirst = 5
	limitEvery = 10 * time.Second
)

// Limited returns a logger that passes on the first few records of each site, and then one in a while that says how many there were: the last of them, with
// their number as "suppressed". A site is a line of code with the attributes of its logger, such as the vertex. Records below slog.LevelInfo are not limited.
// Call flush at the end: it says what was counted and not said yet.
func Limited(log *slog.Logger) (limited *slog.Logger, flush func()) {
	l := &limits{sites: map[siteKey]*site{}}
	return slog.New(&limiter{next: log.Handler(), limits: l}), l.flush
}

type siteKey struct {
	pc    uintptr
	scope string
}

// site is one within the time of limitEvery. Invariant: timer reports suppressed records.
type site struct {
	passed, suppressed int
	last               slog.Record
	handler            slog.Handler // that of last
	timer              *time.Timer
}

type limits struct {
	mu    sync.Mutex
	sites map[siteKey]*site
}

type limiter struct {
	next   slog.Handler
	limits *limits
	scope  string
}

// Enabled implements slog.Handler.
func (l *limiter) Enabled(ctx context.Context, level slog.Level) bool {
	return l.next.Enabled(ctx, level)
}

// WithAttrs implements slog.Handler.
func (l *limiter) WithAttrs(attrs []slog.Attr) slog.Handler {
	scope := l.scope
	for _, a := range attrs {
		scope += a.String() + "\x00"
	}
	return &limiter{next: l.next.WithAttrs(attrs), limits: l.limits, scope: scope}
}

// WithGroup implements slog.Handler.
func (l *limiter) WithGroup(name string) slog.Handler {
	return &limiter{next: l.next.WithGroup(name), limits: l.limits, scope: l.scope + name + "\x00"}
}

// Handle implements slog.Handler.
func (l *limiter) Handle(ctx context.Context, r slog.Record) error {
	if r.Level < slog.LevelInfo || l.limits.take(siteKey{r.PC, l.scope}, r, l.next) {
		return l.next.Handle(ctx, r)
	}
	return nil
}

// take reports whether a record is passed on, and counts it otherwise.
func (l *limits) take(key siteKey, r slog.Record, h slog.Handler) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.sites[key]
	if s == nil {
		s = &site{}
		s.timer = time.AfterFunc(limitEvery, func() { l.tell(key) })
		l.sites[key] = s
	}
	if s.passed < limitFirst {
		s.passed++
		return true
	}
	s.suppressed++
	s.last, s.handler = r.Clone(), h
	return false
}

// tell says how many records of a site were suppressed. While they keep coming only that is said; a site that was quiet begins again.
func (l *limits) tell(key siteKey) {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.sites[key]
	if s == nil {
		return
	}
	if s.suppressed == 0 {
		delete(l.sites, key)
		return
	}
	s.say()
	s.timer.Reset(limitEvery)
}

// say is called with the lock, so that nothing is said after flush has returned.
func (s *site) say() {
	r := s.last
	r.Time = time.Now()
	r.AddAttrs(slog.Int("suppressed", s.suppressed))
	s.suppressed = 0
	_ = s.handler.Handle(context.Background(), r)
}

func (l *limits) flush() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for key, s := range l.sites {
		s.timer.Stop()
		if s.suppressed > 0 {
			s.say()
		}
		delete(l.sites, key)
	}
}
