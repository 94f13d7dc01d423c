package metrics

import (
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// lazyCounter is a series that is exported from the first time that it counts something: a vertex without a fallback sink has no series of one.
type lazyCounter struct {
	vec    *prometheus.CounterVec
	labels []string
	// made is the series, once there is one. Several goroutines may make it at the same time: the vector gives all of them the same series.
	made atomic.Pointer[prometheus.Counter]
}

func (c *lazyCounter) get() prometheus.Counter {
	if made := c.made.Load(); made != nil {
		return *made
	}
	made := c.vec.WithLabelValues(c.labels...) // the same one for all who ask
	c.made.Store(&made)
	return made
}

// add counts n. A nil counter is one that this kind of vertex does not have.
func (c *lazyCounter) add(n int) {
	if c != nil && n != 0 {
		c.get().Add(float64(n))
	}
}

// lazyObserver is the same for histograms.
type lazyObserver struct {
	vec    *prometheus.HistogramVec
	labels []string
	made   atomic.Pointer[prometheus.Observer]
}

func (o *lazyObserver) get() prometheus.Observer {
	if made := o.made.Load(); made != nil {
		return *made
	}
	made := o.vec.WithLabelValues(o.labels...)
	o.made.Store(&made)
	return made
}

// observe records a duration in microseconds.
func (o *lazyObserver) observe(d time.Duration) {
	if o != nil {
		o.get().Observe(float64(d.Microseconds()))
	}
}

// c returns a counter of the catalogue, and h a histogram; nil for an empty name.
func (s *Set) c(name string, labels ...string) *lazyCounter {
	if name == "" {
		return nil
	}
	return &lazyCounter{vec: s.counters[name], labels: labels}
}

func (s *Set) h(name string, labels ...string) *lazyObserver {
	if name == "" {
		return nil
	}
	return &lazyObserver{vec: s.histograms[name], labels: labels}
}
