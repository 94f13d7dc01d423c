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
	made   atomic.Pointer[prometheus.Counter]
}

func (c *lazyCounter) get() prometheus.Counter {
	if made := c.made.Load(); made != nil {
		return *made
	}
	made := c.vec.WithLabelValues(c.labels...) // the same one for all who ask
	c.made.Store(&made)
	return made
}

// Add counts n.
func (c *lazyCounter) Add(n float64) { c.get().Add(n) }

// Inc counts one.
func (c *lazyCounter) Inc() { c.get().Inc() }

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

func (s *Set) c(name string, labels ...string) *lazyCounter {
	return &lazyCounter{vec: s.counters[name], labels: labels}
}

func (s *Set) h(name string, labels ...string) *lazyObserver {
	return &lazyObserver{vec: s.histograms[name], labels: labels}
}

// add counts n; a nil counter is one that this kind of vertex does not have.
func add(c *lazyCounter, n int) {
	if c != nil && n != 0 {
		c.get().Add(float64(n))
	}
}

func observe(o *lazyObserver, d time.Duration) {
	if o != nil {
		o.get().Observe(float64(d.Microseconds()))
	}
}
