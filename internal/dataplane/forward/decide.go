package forward

import (
	"math"
	"math/rand/v2"
	"strconv"
	"time"

	"github.com/levada-io/levada/internal/dataplane/deadletter"
	"github.com/levada-io/levada/internal/dataplane/function"
)

// What follows decides about attempts. It is pure, but for the jitter: no clock and no I/O. testdata/retry.txt shows what it decides.

// RetryStrategy is retryStrategy of the manifest. The zero value retries indefinitely, with defaults that spare a broken service.
type RetryStrategy struct {
	// Interval is the wait before the first further attempt. Each wait is Factor times the one before, at most Cap; 0 for no cap, and never above an hour.
	Interval time.Duration
	// Steps is how often to try again; 0 for any number.
	Steps int
	// Factor below 1 counts as 1.
	Factor float64
	Cap    time.Duration
	// Jitter is how much of a wait is added to it at random, at most: 0.1 for a tenth.
	Jitter float64
	// OnFailure counts once Steps are used up. Empty is OnFailureRetry: no message is given up by default.
	OnFailure OnFailure
}

// OnFailure is what to do with a message once all steps are used up.
type OnFailure string

// What can be done.
const (
	OnFailureRetry    OnFailure = "retry"    // go on, as if there were no limit
	OnFailureFallback OnFailure = "fallback" // give it to the fallback sink; without one it is a dead letter
	OnFailureDrop     OnFailure = "drop"     // count it, and forget it
)

// Delay is how long to wait before the attempt-th further attempt, from 1.
func (s RetryStrategy) Delay(attempt int) time.Duration {
	interval, factor, limit := s.Interval, s.Factor, s.Cap
	if interval <= 0 {
		interval = time.Millisecond
	}
	if factor < 1 {
		factor = 1
	}
	if s == (RetryStrategy{}) {
		interval, factor, limit = 10*time.Millisecond, 2, 5*time.Second
	}
	d := float64(interval) * math.Pow(factor, float64(attempt-1))
	if limit > 0 {
		d = min(d, float64(limit))
	}
	d = min(d, float64(time.Hour)) // also what math.Pow made infinite
	if s.Jitter > 0 {
		d *= 1 + s.Jitter*rand.Float64()
	}
	return time.Duration(d)
}

// Exhausted reports whether no further attempt is left after so many.
func (s RetryStrategy) Exhausted(attempts int) bool {
	return s.Steps > 0 && attempts > s.Steps && s.OnFailure != OnFailureRetry && s.OnFailure != ""
}

// A nack that names no delay backs off from nackDelay to maxNackDelay; one that names a shorter one than minNackDelay gets that.
const (
	nackDelay    = 100 * time.Millisecond
	maxNackDelay = 10 * time.Second
	minNackDelay = 10 * time.Millisecond
)

// decide is what becomes of a message that is not done after so many attempts. The outcome is the same if it is tried again, after the wait; otherwise it is
// Broken, a dead letter, or Done, which is a drop.
func decide(o function.Outcome, s RetryStrategy, attempts int) (becomes function.Outcome, wait time.Duration) {
	switch o.Verdict {
	case function.Nacked:
		if o.MaxDeliveries > 0 && attempts >= o.MaxDeliveries {
			text := "nacked " + strconv.Itoa(attempts) + " times, which is as often as its max_deliveries allows: " + o.Reason
			return brokenOutcome(&deadletter.Failure{Reason: deadletter.Nack, Error: text, Attempts: attempts}), 0
		}
		if o.Delay > 0 {
			return o, max(o.Delay, minNackDelay)
		}
		return o, min(nackDelay<<min(attempts-1, 10), maxNackDelay)
	case function.Retry:
		switch {
		case !s.Exhausted(attempts):
			return o, s.Delay(attempts)
		case s.OnFailure == OnFailureDrop:
			return function.Outcome{Dropped: 1}, 0
		}
		return brokenOutcome(&deadletter.Failure{Reason: deadletter.Retries, Error: "the function failed it in every attempt that its retry strategy allows", Attempts: attempts}), 0
	}
	return o, 0
}

// brokenOutcome makes a message a dead letter.
func brokenOutcome(f *deadletter.Failure) function.Outcome {
	return function.Outcome{Verdict: function.Broken, Failure: f}
}

// sinkFailure is what becomes of a message that a sink failed.
type sinkFailure int

const (
	sinkRetry     sinkFailure = iota // another attempt
	sinkFallback                     // the fallback sink gets it
	sinkDrop                         // counted, and gone
	sinkRefused                      // a dead letter: the sink never takes it
	sinkExhausted                    // a dead letter: no attempt is left, and there is no fallback sink
)

// afterFailure decides about a message that the primary sink failed after so many attempts. permanent says that the sink never takes it.
func (s RetryStrategy) afterFailure(attempts int, permanent, hasFallback bool) sinkFailure {
	switch {
	case !permanent && !s.Exhausted(attempts):
		return sinkRetry
	case s.OnFailure == OnFailureFallback && hasFallback:
		return sinkFallback
	case s.OnFailure == OnFailureDrop:
		return sinkDrop
	case permanent:
		return sinkRefused
	}
	return sinkExhausted
}
