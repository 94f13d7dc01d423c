package metrics

import (
	"sync"
	"time"
)

// SampleEvery is how often Pending should be called for the averages of vertex_pending_messages and monovtx_pending. It is the interval at which Numaflow's
// daemon looks.
const SampleEvery = 5 * time.Second

// periods are those of Numaflow's daemon. default is the look-back of its autoscaler, 2 minutes.
var periods = []struct {
	label   string
	samples int
}{{"1m", 12}, {"default", 24}, {"5m", 60}, {"15m", 180}}

// average keeps the samples of the longest period.
type average struct {
	mu sync.Mutex
	// samples is a ring: sample i is at i modulo its length, which is the number of samples in 15 minutes.
	samples [180]int64
	n       int       // samples taken
	last    time.Time // of the last one. Samples are 5 s apart, so that a number of them is a period
}

// take adds a sample, unless the last one was taken just now.
func (a *average) take(now time.Time, n int64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.last.IsZero() && now.Sub(a.last) < SampleEvery-SampleEvery/10 {
		return
	}
	a.last = now
	a.samples[a.n%len(a.samples)] = n
	a.n++
}

// over returns the mean of the last samples, or of as many as there are.
func (a *average) over(samples int) float64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	samples = min(samples, a.n)
	if samples == 0 {
		return 0
	}
	sum := int64(0)
	for i := range samples {
		sum += a.samples[(a.n-1-i)%len(a.samples)]
	}
	return float64(sum) / float64(samples)
}

// Pending sets how many messages wait at a partition, or outside a source. A negative number means that it is unknown, and changes nothing.
func (v *Vertex) Pending(partition string, n int64) {
	if n < 0 {
		return
	}
	raw, averaged := "vertex_pending_messages_raw", "vertex_pending_messages"
	of := []string{v.labels.Pipeline, v.labels.Vertex, v.labels.Type, partition} // an average has no replica
	if v.labels.Mono {
		raw, averaged, of = "monovtx_pending_raw", "monovtx_pending", []string{v.labels.Vertex}
	}
	a := v.set.pendingOf(v.labels, partition)
	a.take(time.Now(), n)
	v.set.gauges[raw].WithLabelValues(v.labels.at(partition)...).Set(float64(n))
	for _, p := range periods {
		v.set.gauges[averaged].WithLabelValues(append(of, p.label)...).Set(a.over(p.samples))
	}
}

type pendingKey struct {
	labels    VertexLabels
	partition string
}

func (s *Set) pendingOf(l VertexLabels, partition string) *average {
	s.mu.Lock()
	defer s.mu.Unlock()
	key := pendingKey{l, partition}
	if s.pending == nil {
		s.pending = map[pendingKey]*average{}
	}
	if s.pending[key] == nil {
		s.pending[key] = &average{}
	}
	return s.pending[key]
}
