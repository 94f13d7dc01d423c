package v1alpha1

import (
	"time"
)

// Limits are what a vertex works with: no pointers, nothing left to look up.
//
// +kubebuilder:object:generate=false
type Limits struct {
	ReadBatchSize    uint64
	ReadTimeout      time.Duration
	BufferMaxLength  uint64
	BufferUsageLimit uint32 // percent of BufferMaxLength
	Concurrency      uint64
	// RateLimit has all its defaults; nil when there is no limit.
	RateLimit *RateLimit
}

// EffectiveLimits merges the limits of a vertex over those of its pipeline, key by key, and fills in the defaults. Both may be
// as they were written or with their defaults; neither is changed. A nil pipeline is one without limits.
func EffectiveLimits(p *PipelineSpec, v *AbstractVertex) Limits {
	var base PipelineLimits
	if p != nil && p.Limits != nil {
		base = *p.Limits
	}
	var own VertexLimits
	if v.Limits != nil {
		own = *v.Limits
	}
	l := Limits{
		ReadBatchSize:    firstOf(defaultReadBatchSize, own.ReadBatchSize, base.ReadBatchSize),
		BufferMaxLength:  firstOf(defaultBufferMaxLength, own.BufferMaxLength, base.BufferMaxLength),
		BufferUsageLimit: firstOf(defaultBufferUsageLimit, own.BufferUsageLimit, base.BufferUsageLimit),
		ReadTimeout:      defaultReadTimeout,
		RateLimit:        MergeRateLimit(base.RateLimit, own.RateLimit),
	}
	if d := firstSet(own.ReadTimeout, base.ReadTimeout); d != nil {
		l.ReadTimeout = d.Duration
	}
	l.Concurrency = firstOf(l.ReadBatchSize, own.Concurrency, base.Concurrency)
	if p != nil && p.IsOrdered(v) || p == nil && v.Ordered != nil && v.Ordered.Enabled {
		l.Concurrency = 1
	}
	defaultRateLimit(l.RateLimit)
	return l
}

// EffectiveMonoVertexLimits fills in the limits of a MonoVertex. It has no buffers, so that their limits stay 0.
func EffectiveMonoVertexLimits(m *MonoVertexSpec) Limits {
	var own MonoVertexLimits
	if m.Limits != nil {
		own = *m.Limits
	}
	l := Limits{ReadBatchSize: firstOf(defaultReadBatchSize, own.ReadBatchSize), ReadTimeout: defaultReadTimeout, RateLimit: MergeRateLimit(nil, own.RateLimit)}
	if own.ReadTimeout != nil {
		l.ReadTimeout = own.ReadTimeout.Duration
	}
	l.Concurrency = firstOf(l.ReadBatchSize, own.Concurrency)
	defaultRateLimit(l.RateLimit)
	return l
}

// MergeRateLimit lays one rate limit over another, key by key. Either may be nil. What is inside of store and modes is taken
// as a whole, because a key of one store means nothing to another. The result shares nothing that SetDefaults would change.
func MergeRateLimit(base, own *RateLimit) *RateLimit {
	if base == nil && own == nil {
		return nil
	}
	var b, o RateLimit
	if base != nil {
		b = *base.DeepCopy()
	}
	if own != nil {
		o = *own.DeepCopy()
	}
	return &RateLimit{
		Max: firstSet(o.Max, b.Max), Min: firstSet(o.Min, b.Min), RampUpDuration: firstSet(o.RampUpDuration, b.RampUpDuration),
		Store: firstSet(o.Store, b.Store), Modes: firstSet(o.Modes, b.Modes),
		ResumedRampUp: firstSet(o.ResumedRampUp, b.ResumedRampUp), TTL: firstSet(o.TTL, b.TTL),
	}
}

func firstSet[V any](pointers ...*V) *V {
	for _, p := range pointers {
		if p != nil {
			return p
		}
	}
	return nil
}

func firstOf[V any](otherwise V, pointers ...*V) V {
	if p := firstSet(pointers...); p != nil {
		return *p
	}
	return otherwise
}
