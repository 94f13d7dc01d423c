// Package metrics are the Prometheus metrics of the data plane: Numaflow's names and labels, so that dashboards keep working, and ours, which begin with
// levada_.
package metrics

import (
	"runtime"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
)

// Set is all metrics of a process.
type Set struct {
	Registry *prometheus.Registry

	counters   map[string]*prometheus.CounterVec
	histograms map[string]*prometheus.HistogramVec
	gauges     map[string]*prometheus.GaugeVec

	mu sync.Mutex
	// usable and degraded are of the process, and have no namespace; nil before the first call of BufferService. Guarded by mu, as the next two are.
	usable, degraded prometheus.Gauge
	// moves is of the process, too; nil before the first call of LeaderMoved.
	moves      prometheus.Counter
	namespaces map[string]*Set
	pending    map[pendingKey]*average
}

// Labels of Numaflow's series.
var (
	pipelineLabels = []string{"pipeline", "vertex", "vertex_type", "replica"}
	withPartition  = append(pipelineLabels[:4:4], "partition_name")
	withReason     = append(withPartition[:5:5], "reason")
	monoLabels     = []string{"mvtx_name", "mvtx_replica"}
	bufferLabels   = []string{"buffer"}
	shardLabels    = []string{"buffer", "shard"}
)

// micros are the buckets of Numaflow's histograms, in microseconds.
var micros = prometheus.ExponentialBucketsRange(100, 60e6*15, 10)

// New returns a set with all metrics registered.
func New(version string) *Set {
	s := &Set{Registry: prometheus.NewRegistry()}
	s.Registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	build := prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "build_info", Help: "Always 1."}, []string{"component", "component_name", "version", "platform"})
	s.Registry.MustRegister(build)
	build.WithLabelValues("levada", "levada", version, runtime.GOOS+"/"+runtime.GOARCH).Set(1)
	return s
}

// BufferService sets what the process sees of its buffer service: whether messages can be stored and read now, and the number of things that are wrong although they can.
func (s *Set) BufferService(usable bool, degraded int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.usable == nil { // a series appears with its first value
		s.usable = prometheus.NewGauge(prometheus.GaugeOpts{Name: "levada_buffer_service_usable", Help: "1 if messages can be stored and read now."})
		s.degraded = prometheus.NewGauge(prometheus.GaugeOpts{Name: "levada_buffer_service_degraded_streams", Help: "Streams with replicas that are offline or behind, which still take messages."})
		s.Registry.MustRegister(s.usable, s.degraded)
	}
	value := 0.0
	if usable {
		value = 1
	}
	s.usable.Set(value)
	s.degraded.Set(float64(degraded))
}

// LeaderMoved counts a stream whose leader the process has moved to another server.
func (s *Set) LeaderMoved() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.moves == nil {
		s.moves = prometheus.NewCounter(prometheus.CounterOpts{Name: "levada_buffer_service_leader_moves_total", Help: "Leaders of streams that this process has moved to another server."})
		s.Registry.MustRegister(s.moves)
	}
	s.moves.Inc()
}

// Namespace returns the metrics of the pipelines of a namespace, which is a label of all of them. Numaflow's series get it when Prometheus scrapes their pods.
func (s *Set) Namespace(namespace string) *Set {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.namespaces == nil {
		s.namespaces = map[string]*Set{}
	}
	if s.namespaces[namespace] == nil {
		s.namespaces[namespace] = s.under(namespace)
	}
	return s.namespaces[namespace]
}

func (s *Set) under(namespace string) *Set {
	n := &Set{
		Registry: s.Registry, counters: map[string]*prometheus.CounterVec{}, histograms: map[string]*prometheus.HistogramVec{}, gauges: map[string]*prometheus.GaugeVec{},
	}
	registerer := prometheus.WrapRegistererWith(prometheus.Labels{"namespace": namespace}, s.Registry)
	for _, m := range catalogue {
		switch m.kind {
		case counter:
			v := prometheus.NewCounterVec(prometheus.CounterOpts{Name: m.name, Help: m.help}, m.labels)
			n.counters[m.name] = v
			registerer.MustRegister(v)
		case gauge:
			v := prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: m.name, Help: m.help}, m.labels)
			n.gauges[m.name] = v
			registerer.MustRegister(v)
		case histogram:
			buckets := m.buckets
			if buckets == nil {
				buckets = micros
			}
			v := prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: m.name, Help: m.help, Buckets: buckets}, m.labels)
			n.histograms[m.name] = v
			registerer.MustRegister(v)
		}
	}
	return n
}
