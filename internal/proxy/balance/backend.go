package balance

import (
	"math"
	"sync"
	"sync/atomic"
	"time"
)

// Kind of a call.
type Kind uint8

const (
	// Unary calls are answered soon: their latency is measured.
	Unary Kind = iota
	// Streaming calls may stay open for long.
	Streaming
)

// Outcome of a call, as far as it tells something of the backend.
type Outcome uint8

const (
	// Success: the backend works. A status that is the caller's fault, such as NOT_FOUND, is a success.
	Success Outcome = iota
	// Failure: the backend, or the way to it, does not work.
	Failure
	// Ignored says nothing, such as a call that its caller cancelled.
	Ignored
)

// Backend is one endpoint of a Set, and what is known of it. All methods may be called concurrently, also after it left the set.
type Backend[T any] struct {
	Address string
	// Of belongs to the caller, such as the backend's connections.
	Of T

	set *Set[T]

	// Calls that were started and are not done, by kind.
	open [2]atomic.Int64
	// The peak EWMA of latencies of unary calls in nanoseconds (float64 bits), as it was at sampled; 0 before the first sample.
	latency atomic.Uint64
	sampled atomic.Int64
	// Until then the weight rises; 0: it has risen.
	rising atomic.Int64
	// Until then it loses to each that works; math.MaxInt64 while it is ejected.
	shunned atomic.Int64
	// When the next probe may be sent to it, while it is ejected.
	probe atomic.Int64
	// End of the ejection, where probation begins; 0: not ejected. Written with set.mu held.
	until atomic.Int64

	mu          sync.Mutex // never held while set.mu is taken: set.mu comes first
	results     window
	consecutive int   // failures
	judged      int64 // the step in which the share of failures was looked at last

	// With set.mu held:
	removed  bool
	doubled  int   // how many doublings the next ejection has
	returned int64 // when the last ejection ended
	ejected  int   // how often
}

// Start counts a call that was given to this backend. Each Start must be followed by one Done of the same kind.
func (b *Backend[T]) Start(kind Kind, _ int64) { b.open[kind&1].Add(1) }

// Done counts a call as ended and notes its outcome. Latency is the time in which a unary call was answered; it is not used of
// streaming calls. That of a call which failed or was cancelled only counts if it is longer than what is known: to fail fast is not to be fast.
func (b *Backend[T]) Done(kind Kind, outcome Outcome, latency time.Duration, now int64) {
	b.open[kind&1].Add(-1)
	b.note(kind, outcome, latency, now)
}

// Observe notes an outcome without the end of a call: the first message of a stream, or a connection that could not be opened.
func (b *Backend[T]) Observe(outcome Outcome, now int64) { b.note(Streaming, outcome, 0, now) }

func (b *Backend[T]) note(kind Kind, outcome Outcome, latency time.Duration, now int64) {
	var cause Cause
	b.mu.Lock()
	if kind == Unary {
		b.sample(outcome, latency, now)
	}
	switch outcome {
	case Success:
		b.consecutive = 0
		b.results.add(1, 0, now, b.set.step)
		if shunned := b.shunned.Load(); shunned != 0 && shunned != math.MaxInt64 {
			b.shunned.CompareAndSwap(shunned, 0)
		}
	case Failure:
		b.consecutive++
		b.results.add(0, 1, now, b.set.step)
		cause = b.suspicion(now)
	}
	b.mu.Unlock()

	if until := b.until.Load(); until != 0 {
		if now >= until {
			b.set.probed(b, outcome, now)
		}
	} else if cause != 0 && now >= b.shunned.Load() {
		b.set.eject(b, cause, now)
	}
}

// sample moves the latency. b.mu is held.
func (b *Backend[T]) sample(outcome Outcome, latency time.Duration, now int64) {
	sample := max(float64(latency), 1)
	known := math.Float64frombits(b.latency.Load())
	kept := b.set.kept(now - b.sampled.Load())
	switch {
	case sample > known*kept: // also the first one
		if known == 0 && outcome != Success {
			return // a first sample that failed fast would make it look fast
		}
		known = sample
	case outcome == Success:
		known = known*kept + sample*(1-kept)
	default:
		return
	}
	b.latency.Store(math.Float64bits(known))
	b.sampled.Store(max(now, b.sampled.Load()))
}

// suspicion is why the backend should be ejected, as far as it alone can tell; 0 if not. b.mu is held.
func (b *Backend[T]) suspicion(now int64) Cause {
	o := &b.set.options
	if b.consecutive >= o.ConsecutiveFailures {
		return Consecutive
	}
	if step := now / b.set.step; step != b.judged { // once in each step: it is a sum here, and one over all others in eject
		if good, bad := b.results.sum(now, b.set.step); good+bad >= o.MinResults && float64(bad) >= o.FailureShare*float64(good+bad) {
			b.judged = step
			return Share
		}
	}
	return 0
}

// expected is the latency of the next unary call in nanoseconds, and whether there is a sample to tell from. Without calls it
// decays, so that a backend that was slow once is tried again.
func (b *Backend[T]) expected(now int64) (latency float64, ok bool) {
	known := math.Float64frombits(b.latency.Load())
	if known == 0 {
		return 0, false
	}
	return known * b.set.kept(now-b.sampled.Load()), true
}

// weight is what slow start leaves of the backend, from lowest to 1.
func (b *Backend[T]) weight(now int64) float64 {
	left := b.rising.Load() - now
	if left <= 0 || b.set.options.SlowStart <= 0 {
		return 1
	}
	return 1 - (1-lowest)*min(float64(left)/float64(b.set.options.SlowStart), 1)
}

// Open is how many streams and calls are open.
func (b *Backend[T]) Open() int { return int(b.open[Unary].Load() + b.open[Streaming].Load()) }

// Info is the state of a backend, for people.
type Info struct {
	Address string
	// Streams and calls that are open.
	Streams, Unary int
	// Latency that is expected of a unary call; 0: no call was measured yet.
	Latency time.Duration
	// Weight is below 1 during slow start.
	Weight float64
	// EjectedUntil is when the ejection ends, or has ended and probation began, as nanoseconds of the caller's clock. 0: not ejected.
	EjectedUntil int64
	// Probation: the time of the ejection is over, and no probe has succeeded yet.
	Probation bool
	// Ejections counts them, also those that prolonged one.
	Ejections int
	// ConsecutiveFailures since the last success.
	ConsecutiveFailures int
	// Results and Failures (which are among them) within Options.Window.
	Results, Failures int
}

// Info returns the state. The parts may be of slightly different moments.
func (b *Backend[T]) Info(now int64) Info {
	latency, _ := b.expected(now)
	info := Info{
		Address: b.Address, Streams: int(b.open[Streaming].Load()), Unary: int(b.open[Unary].Load()), Latency: time.Duration(latency),
		Weight: b.weight(now), EjectedUntil: b.until.Load(),
	}
	info.Probation = info.EjectedUntil != 0 && now >= info.EjectedUntil
	b.set.mu.Lock()
	info.Ejections = b.ejected
	b.set.mu.Unlock()
	b.mu.Lock()
	good, bad := b.results.sum(now, b.set.step)
	info.ConsecutiveFailures, info.Results, info.Failures = b.consecutive, good+bad, bad
	b.mu.Unlock()
	return info
}

// window counts results of the last ten steps of time.
type window [10]struct {
	step      int64
	good, bad uint32
}

func (w *window) add(good, bad uint32, now, step int64) {
	number := now / step
	slot := &w[uint64(number)%uint64(len(w))]
	if slot.step < number { // what is left of an older time; a caller whose clock was read a little earlier counts for the newer one
		slot.step, slot.good, slot.bad = number, 0, 0
	}
	slot.good += good
	slot.bad += bad
}

func (w *window) sum(now, step int64) (good, bad int) {
	oldest := now/step - int64(len(w)) + 1
	for i := range w {
		if w[i].step >= oldest {
			good += int(w[i].good)
			bad += int(w[i].bad)
		}
	}
	return good, bad
}
