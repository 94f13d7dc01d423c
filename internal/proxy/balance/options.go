package balance

import (
	"cmp"
	"math"
	"math/rand/v2"
	"time"
)

// Options say how a Set chooses, and when it ejects. The zero value has all defaults.
type Options struct {
	// Decay is the time in which the measured latency of a backend without new samples falls to 37 %. It is also how long one slow
	// call is held against a backend. 0: 10 s.
	Decay time.Duration
	// SlowStart is the time in which the weight of a backend rises from 10 % to 100 % after it joined a set that has others, or came
	// back from an ejection. While it rises, the backend gets that share of the calls that it would get otherwise. 0: none.
	SlowStart time.Duration

	// ConsecutiveFailures ejects a backend after that many failures without a success between them. 0: 5; negative: never.
	ConsecutiveFailures int
	// FailureShare ejects a backend of whose results within Window at least this share are failures, if there are at least
	// MinResults, and if the share is at least twice that of the other backends: what fails everywhere is not the backend's fault.
	// 0: 0.4; negative: never.
	FailureShare float64
	// MinResults is how many results FailureShare needs. Fewer say nothing. 0: 20.
	MinResults int
	// Window is the time that FailureShare looks back, in ten steps. 0: 10 s.
	Window time.Duration

	// BaseEjection is how long the first ejection lasts; each further one lasts twice as long as the one before. 0: 10 s.
	BaseEjection time.Duration
	// MaxEjection limits the doubling. 0: 5 min.
	MaxEjection time.Duration
	// Forgive is the time without an ejection that takes one doubling back. 0: 1 min.
	Forgive time.Duration
	// ProbeTimeout is how long a probe may go without a result before the next one is sent. 0: 10 s.
	ProbeTimeout time.Duration
	// MaxEjected is the share of the set that may be ejected at the same time, rounded down: of one backend none, of two or three
	// one. What ought to be ejected above it is only chosen where the alternative is no better. 0: 0.5; negative: none ever.
	MaxEjected float64
	// Panic is the share of the set that must not be ejected: with less left, all are chosen from, so that the few that work are not
	// overrun. It matters only with a MaxEjected above 0.5. 0: 0.5; negative: no panic.
	Panic float64

	// OnEject, if not nil, is called after each ejection, also those that prolong one because a probe failed. OnReturn is called
	// after a backend has come back. Both may be called concurrently, by callers of Done, Observe and Update; they may use the set.
	OnEject  func(Ejection)
	OnReturn func(address string)

	// Rand returns random bits; it must be safe for concurrent use if the set is used so. Nil: rand.Uint64. Tests set it to repeat a run.
	Rand func() uint64
}

// Ejection describes one.
type Ejection struct {
	Address string
	Cause   Cause
	For     time.Duration // until the first probe
}

// Cause is why a backend was ejected.
type Cause uint8

const (
	// Consecutive: Options.ConsecutiveFailures was reached.
	Consecutive Cause = iota + 1
	// Share: Options.FailureShare was reached.
	Share
	// Probe: the call that was to show that the backend works again has failed.
	Probe
)

// String is the cause as a label of metrics.
func (c Cause) String() string {
	switch c {
	case Consecutive:
		return "consecutive_failures"
	case Share:
		return "failure_share"
	case Probe:
		return "probe"
	}
	return "unknown"
}

func (o Options) withDefaults() Options {
	o.Decay = cmp.Or(o.Decay, 10*time.Second)
	o.ConsecutiveFailures = cmp.Or(o.ConsecutiveFailures, 5)
	o.FailureShare = cmp.Or(o.FailureShare, 0.4)
	o.MinResults = cmp.Or(o.MinResults, 20)
	o.Window = cmp.Or(o.Window, 10*time.Second)
	o.BaseEjection = cmp.Or(o.BaseEjection, 10*time.Second)
	o.MaxEjection = max(cmp.Or(o.MaxEjection, 5*time.Minute), o.BaseEjection)
	o.Forgive = cmp.Or(o.Forgive, time.Minute)
	o.ProbeTimeout = cmp.Or(o.ProbeTimeout, 10*time.Second)
	o.MaxEjected = min(cmp.Or(o.MaxEjected, 0.5), 1)
	o.Panic = cmp.Or(o.Panic, 0.5)
	if o.Rand == nil {
		o.Rand = rand.Uint64
	}
	if o.ConsecutiveFailures < 0 {
		o.ConsecutiveFailures = math.MaxInt
	}
	if o.FailureShare < 0 {
		o.FailureShare = math.Inf(1)
	}
	return o
}

const (
	// lowest is the weight at the start of SlowStart.
	lowest = 0.1
	// shun is how long a backend that could not be ejected loses each comparison with one that works. A backend that fails at once
	// has nothing open and would otherwise win them all.
	shun = time.Second
	// hopeless is the share of failures of all the others from which an ejection does not help anybody: then all is down.
	hopeless = 0.9
)
