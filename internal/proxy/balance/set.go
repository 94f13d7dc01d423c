package balance

import (
	"math"
	"sync"
	"sync/atomic"
	"time"
)

// Set is the backends of one target. All methods may be called concurrently.
type Set[T any] struct {
	options Options
	step    int64   // of the window, in nanoseconds
	decay   float64 // 1/Options.Decay, in 1/ns
	current atomic.Pointer[list[T]]

	mu  sync.Mutex // for what changes the list
	out int        // ejected backends
}

// list is a set at a moment. Only due changes.
type list[T any] struct {
	all []*Backend[T]
	in  []*Backend[T] // those that are chosen from: without the ejected ones, unless too few would be left
	out []*Backend[T] // the ejected ones
	due atomic.Int64  // when a probe may be due
}

// New returns an empty set.
func New[T any](o Options) *Set[T] {
	s := &Set[T]{options: o.withDefaults()}
	s.step = max(int64(s.options.Window)/int64(len(window{})), 1)
	s.decay = 1 / float64(s.options.Decay)
	s.publish(nil)
	return s
}

// Update makes the set consist of these endpoints; one that is named twice counts once, and none at all is allowed. Backends that
// stay keep their state. New ones get what make returns as their Of; make must not use the set. Backends that are removed are
// not chosen any more, but those who have them may go on using them: to end their calls is up to the caller.
func (s *Set[T]) Update(endpoints []string, now int64, make func(address string) T) (added, removed []*Backend[T]) {
	s.mu.Lock()
	old := map[string]*Backend[T]{}
	for _, b := range s.current.Load().all {
		old[b.Address] = b
	}
	var all []*Backend[T]
	seen := map[string]bool{}
	for _, address := range endpoints {
		if seen[address] {
			continue
		}
		seen[address] = true
		b, stays := old[address]
		if stays {
			delete(old, address)
		} else {
			b = &Backend[T]{Address: address, Of: make(address), set: s}
			added = append(added, b)
		}
		all = append(all, b)
	}
	if len(all) > len(added) { // there are others to take the load meanwhile
		for _, b := range added {
			b.rise(now)
		}
	}
	for _, b := range s.current.Load().all {
		if old[b.Address] == nil {
			continue
		}
		b.removed = true
		removed = append(removed, b)
		if b.until.Load() != 0 {
			s.out--
		}
	}
	// In a smaller set fewer may be ejected: those return first that would have first.
	var returned []string
	for s.out > s.mayEject(len(all)) {
		var first *Backend[T]
		for _, b := range all {
			if until := b.until.Load(); until != 0 && (first == nil || until < first.until.Load()) {
				first = b
			}
		}
		s.readmit(first, now)
		returned = append(returned, first.Address)
	}
	s.publish(all)
	s.mu.Unlock()
	for _, address := range returned {
		s.tellReturn(address)
	}
	return added, removed
}

// Backends returns the set, in the order of the last Update. The slice must not be changed.
func (s *Set[T]) Backends() []*Backend[T] { return s.current.Load().all }

// Ejected is how many backends are ejected, or on probation.
func (s *Set[T]) Ejected() int { return len(s.current.Load().out) }

// Pick returns the backend for a call, or nil if there is none. Usable, if not nil, says which backends may be chosen, such as those that can
// be connected to; as a rule it is called for two. Avoid, if not nil, is the backend that was tried just now: it is
// chosen only if there is no other. The caller calls Start next.
func (s *Set[T]) Pick(kind Kind, now int64, avoid *Backend[T], usable func(*Backend[T]) bool) *Backend[T] {
	l := s.current.Load()
	if avoid == nil && now >= l.due.Load() { // a call that has failed once is not risked again
		if b := s.probe(l, now, usable); b != nil {
			return b
		}
	}
	if b := s.choose(l.in, kind, now, avoid, usable); b != nil {
		return b
	}
	if len(l.in) < len(l.all) {
		if b := s.choose(l.out, kind, now, avoid, usable); b != nil {
			return b
		}
	}
	if avoid != nil && (usable == nil || usable(avoid)) {
		for _, b := range l.all {
			if b == avoid { // it is still one of the set
				return b
			}
		}
	}
	return nil
}

// choose takes the better of two that may be used.
func (s *Set[T]) choose(from []*Backend[T], kind Kind, now int64, avoid *Backend[T], usable func(*Backend[T]) bool) *Backend[T] {
	may := func(b *Backend[T]) bool { return b != avoid && (usable == nil || usable(b)) }
	switch n := uint64(len(from)); n {
	case 0:
		return nil
	case 1:
		if may(from[0]) {
			return from[0]
		}
		return nil
	default:
		random := s.options.Rand()
		i := (random & math.MaxUint32) * n >> 32
		j := (random >> 32) * (n - 1) >> 32
		if j >= i {
			j++
		}
		a, b := from[i], from[j]
		if may(a) && may(b) {
			return s.better(a, b, kind, now)
		}
	}
	// Draw two of those that may be used, each pair with the same chance.
	var a, b *Backend[T]
	count := uint64(0)
	for _, c := range from {
		if !may(c) {
			continue
		}
		count++
		switch s.options.Rand() >> 32 * count >> 32 {
		case 0:
			a, b = c, a
		case 1:
			b = c
		}
	}
	if a == nil || b == nil {
		return a
	}
	return s.better(a, b, kind, now)
}

// better is the one of two on which the call costs less. On a tie it is a, which was drawn first.
func (s *Set[T]) better(a, b *Backend[T], kind Kind, now int64) *Backend[T] {
	if bad := a.shunned.Load() > now; bad != (b.shunned.Load() > now) {
		if bad {
			return b
		}
		return a
	}
	if yields := s.yields(a, now); yields != s.yields(b, now) {
		if yields {
			return b
		}
		return a
	}
	costA, costB := float64(a.Open()+1), float64(b.Open()+1)
	if kind == Unary {
		costA, costB = float64(a.open[Unary].Load()+1), float64(b.open[Unary].Load()+1)
		latencyA, okA := a.expected(now)
		latencyB, okB := b.expected(now)
		if okA && okB { // with one unknown they count as equally fast
			costA *= latencyA + 1
			costB *= latencyB + 1
		}
	}
	if costB < costA {
		return b
	}
	return a
}

// yields says whether a backend leaves this call to the other because of its slow start. That is decided by chance and not by a
// higher cost: against backends with thousands of open streams no factor would hold an empty one back, and against idle ones a factor
// of two would keep all calls from it.
func (s *Set[T]) yields(b *Backend[T], now int64) bool {
	w := b.weight(now)
	return w < 1 && float64(s.options.Rand()>>11)*0x1p-53 >= w
}

// probe returns an ejected backend whose time is over and that has no probe, if there is one.
func (s *Set[T]) probe(l *list[T], now int64, usable func(*Backend[T]) bool) *Backend[T] {
	due := int64(math.MaxInt64)
	var found *Backend[T]
	for _, b := range l.out {
		at := b.probe.Load()
		if found == nil && now >= at && (usable == nil || usable(b)) {
			if next := now + int64(s.options.ProbeTimeout); b.probe.CompareAndSwap(at, next) {
				found, at = b, next
			}
		}
		due = min(due, at)
	}
	// Should this overwrite an earlier time that another goroutine has just set, that probe comes late by less than ProbeTimeout.
	l.due.Store(due)
	return found
}

// eject takes a backend out, if that is allowed and helps.
func (s *Set[T]) eject(b *Backend[T], cause Cause, now int64) {
	s.mu.Lock()
	if b.removed || b.until.Load() != 0 {
		s.mu.Unlock()
		return
	}
	others := s.othersFail(b, now)
	refused := s.out+1 > s.mayEject(len(s.current.Load().all)) || others >= hopeless
	if cause == Share && !refused {
		b.mu.Lock()
		good, bad := b.results.sum(now, s.step)
		b.mu.Unlock()
		refused = float64(bad) < 2*others*float64(good+bad)
		if refused { // it fails no more than the others do: nothing is held against it
			s.mu.Unlock()
			return
		}
	}
	if refused {
		b.shunned.Store(now + int64(shun))
		s.mu.Unlock()
		return
	}
	forgiven := (now - b.returned) / int64(s.options.Forgive)
	b.doubled = max(0, b.doubled-int(min(forgiven, int64(b.doubled))))
	s.out++
	length := s.sentence(b, now)
	b.doubled++
	s.publish(s.current.Load().all)
	s.mu.Unlock()
	s.tellEject(b.Address, cause, length)
}

// probed notes what came of a backend on probation.
func (s *Set[T]) probed(b *Backend[T], outcome Outcome, now int64) {
	s.mu.Lock()
	if until := b.until.Load(); b.removed || until == 0 || now < until {
		s.mu.Unlock()
		return
	}
	switch outcome {
	case Success:
		s.readmit(b, now)
		s.publish(s.current.Load().all)
		s.mu.Unlock()
		s.tellReturn(b.Address)
	case Failure:
		helps := s.othersFail(b, now) < hopeless
		length := s.sentence(b, now)
		if helps { // while all is down nobody is to blame, and the return should not take minutes
			b.doubled++
		}
		s.publish(s.current.Load().all)
		s.mu.Unlock()
		s.tellEject(b.Address, Probe, length)
	default: // another probe may go
		b.probe.Store(now)
		s.current.Load().due.Store(now)
		s.mu.Unlock()
	}
}

// sentence ejects a backend from now on, as long as its past asks for, and returns how long. s.mu is held.
func (s *Set[T]) sentence(b *Backend[T], now int64) time.Duration {
	length := s.options.BaseEjection
	for range b.doubled {
		if length = min(2*length, s.options.MaxEjection); length == s.options.MaxEjection {
			break
		}
	}
	b.ejected++
	b.shunned.Store(math.MaxInt64)
	b.probe.Store(now + int64(length))
	b.until.Store(now + int64(length))
	return length
}

// readmit ends an ejection. s.mu is held, and the list must be published.
func (s *Set[T]) readmit(b *Backend[T], now int64) {
	s.out--
	b.until.Store(0)
	b.shunned.Store(0)
	b.returned = now
	b.rise(now)
	b.mu.Lock()
	b.consecutive, b.results = 0, window{} // it starts over, or what it was ejected for would eject it again
	b.mu.Unlock()
}

// rise starts the slow start.
func (b *Backend[T]) rise(now int64) {
	if b.set.options.SlowStart > 0 {
		b.rising.Store(now + int64(b.set.options.SlowStart))
	}
}

// othersFail is the share of failures of all others that are not ejected; 0 if they have no results. s.mu is held.
func (s *Set[T]) othersFail(b *Backend[T], now int64) float64 {
	var good, bad int
	for _, other := range s.current.Load().all {
		if other == b || other.until.Load() != 0 {
			continue
		}
		other.mu.Lock()
		g, f := other.results.sum(now, s.step)
		other.mu.Unlock()
		good, bad = good+g, bad+f
	}
	return float64(bad) / math.Max(float64(good+bad), 1)
}

// mayEject is how many of so many backends may be ejected.
func (s *Set[T]) mayEject(backends int) int {
	return max(0, int(s.options.MaxEjected*float64(backends)))
}

// publish makes a list the current one. s.mu is held.
func (s *Set[T]) publish(all []*Backend[T]) {
	l := &list[T]{all: all}
	due := int64(math.MaxInt64)
	for _, b := range all {
		if b.until.Load() == 0 {
			l.in = append(l.in, b)
		} else {
			l.out = append(l.out, b)
			due = min(due, b.probe.Load())
		}
	}
	l.due.Store(due)
	if float64(len(l.in)) < s.options.Panic*float64(len(all)) {
		l.in = all
	}
	s.current.Store(l)
}

// kept is what is left of a latency after a time in nanoseconds.
func (s *Set[T]) kept(elapsed int64) float64 {
	if elapsed <= 0 {
		return 1
	}
	return math.Exp(-float64(elapsed) * s.decay)
}

func (s *Set[T]) tellEject(address string, cause Cause, length time.Duration) {
	if s.options.OnEject != nil {
		s.options.OnEject(Ejection{Address: address, Cause: cause, For: length})
	}
}

func (s *Set[T]) tellReturn(address string) {
	if s.options.OnReturn != nil {
		s.options.OnReturn(address)
	}
}
