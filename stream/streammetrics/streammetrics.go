// Package streammetrics exports workers, servers and job stores of package stream to Prometheus. Its collectors have the metrics that
// `levada stream work` and `levada stream serve` export, so the same dashboards and alerts fit programs of your own.
//
// Register a collector with a [prometheus.Registerer]; labels of your own come from [prometheus.WrapRegistererWith].
package streammetrics

import (
	"cmp"
	"strings"
	"sync"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/levada-io/levada/stream"
)

// Worker collects the metrics of one or more workers. Make it with [NewWorker].
type Worker struct {
	records, bytes, commits, quarantined, retries, cuts, claims, released, lost *prometheus.CounterVec
	commitSeconds                                                               *prometheus.HistogramVec
	reasons                                                                     labels

	mu      sync.Mutex
	workers []*stream.Worker
}

var (
	workerJobs  = prometheus.NewDesc("levada_stream_jobs_running", "Jobs that this worker works on.", nil, nil)
	workerStuck = prometheus.NewDesc("levada_stream_stuck_handlers", "Handlers that did not return after their time was over; a liveness probe should fail when there are any.", nil, nil)
)

// NewWorker returns a collector. Set [Worker.Observe] as the worker's WorkerConfig.Observe, and give the worker to [Worker.Watch].
func NewWorker() *Worker {
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: "levada_stream_" + name, Help: help}, append([]string{"stream"}, labels...))
	}
	return &Worker{
		records:     counter("records_total", "Records that this worker has committed, those in quarantine included."),
		bytes:       counter("bytes_total", "Bytes of keys and values of the records that were committed."),
		commits:     counter("commits_total", "Commits that moved an offset."),
		quarantined: counter("quarantined_total", "Records that went into quarantine."),
		retries:     counter("retries_total", "Attempts that failed and are made again, by reason.", "reason"),
		cuts:        counter("disconnects_total", "Streams that ended before their end, by the producer's reason.", "reason"),
		claims:      counter("claims_total", "Jobs that were claimed; reclaimed says that their owner had not released them.", "reclaimed"),
		released:    counter("released_total", "Jobs that were released, by the state they were left in.", "state"),
		lost:        counter("lost_leases_total", "Leases that were lost to another owner, to a person, or to a database that did not answer."),
		commitSeconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "levada_stream_commit_seconds", Help: "Time of a commit, with the handler's part in it.",
			Buckets: []float64{.001, .002, .005, .01, .02, .05, .1, .2, .5, 1, 2, 5, 10, 30}}, []string{"stream"}),
	}
}

// Watch adds gauges of a worker: how many jobs it works on, and how many handlers are stuck. Those of several workers are summed up. Without
// Watch these two are not exported.
func (m *Worker) Watch(w *stream.Worker) {
	if w == nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.workers = append(m.workers, w)
}

// Observe counts an event. It is for WorkerConfig.Observe, and may be called from there by a function of your own.
func (m *Worker) Observe(e stream.Event) {
	name := label(e.Job.Stream)
	switch e.Kind {
	case stream.EventClaimed:
		died := "false"
		if e.Reclaimed {
			died = "true"
		}
		m.claims.WithLabelValues(name, died).Inc()
		// A counter that begins with 1 has no increase at its first sample: the ones that alerts are for begin with 0.
		for _, c := range []*prometheus.CounterVec{m.records, m.bytes, m.commits, m.quarantined, m.lost} {
			c.WithLabelValues(name)
		}
	case stream.EventCommitted:
		m.records.WithLabelValues(name).Add(float64(e.To - e.From + 1))
		m.bytes.WithLabelValues(name).Add(float64(e.Bytes))
		m.commits.WithLabelValues(name).Inc()
		m.commitSeconds.WithLabelValues(name).Observe(e.Took.Seconds())
		if e.Bad > 0 {
			m.quarantined.WithLabelValues(name).Add(float64(e.Bad))
		}
	case stream.EventRetry:
		m.retries.WithLabelValues(name, m.reasons.bounded(string(e.Reason))).Inc()
	case stream.EventDisconnected:
		m.cuts.WithLabelValues(name, m.reasons.bounded(string(cmp.Or(e.Reason, "CUT")))).Inc()
	case stream.EventLost:
		m.lost.WithLabelValues(name).Inc()
	case stream.EventReleased:
		m.released.WithLabelValues(name, string(e.State)).Inc()
	}
}

func (m *Worker) collectors() []prometheus.Collector {
	return []prometheus.Collector{m.records, m.bytes, m.commits, m.quarantined, m.retries, m.cuts, m.claims, m.released, m.lost, m.commitSeconds}
}

// Describe implements [prometheus.Collector].
func (m *Worker) Describe(out chan<- *prometheus.Desc) {
	for _, c := range m.collectors() {
		c.Describe(out)
	}
	out <- workerJobs
	out <- workerStuck
}

// Collect implements [prometheus.Collector].
func (m *Worker) Collect(out chan<- prometheus.Metric) {
	for _, c := range m.collectors() {
		c.Collect(out)
	}
	m.mu.Lock()
	workers := m.workers
	m.mu.Unlock()
	if len(workers) == 0 {
		return
	}
	jobs, stuck := 0, 0
	for _, w := range workers {
		jobs += w.Running()
		stuck += w.Stuck()
	}
	out <- prometheus.MustNewConstMetric(workerJobs, prometheus.GaugeValue, float64(jobs))
	out <- prometheus.MustNewConstMetric(workerStuck, prometheus.GaugeValue, float64(stuck))
}

// Server collects the metrics of one or more servers. Make it with [NewServer].
type Server struct {
	bad *prometheus.CounterVec

	mu      sync.Mutex
	servers []*stream.Server
}

var openStreams = prometheus.NewDesc("levada_stream_open_streams", "Streams that are being served.", nil, nil)

// NewServer returns a collector. Set [Server.OnBad] as the server's ServerConfig.OnBad, and give the server to [Server.Watch].
func NewServer() *Server {
	return &Server{bad: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "levada_stream_bad_records_total", Help: "Records that could not be encoded, and were reported to their readers."}, []string{"stream"})}
}

// Watch adds the number of open streams of a server. Those of several servers are summed up. Without Watch it is not exported.
func (m *Server) Watch(s *stream.Server) {
	if s == nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.servers = append(m.servers, s)
}

// OnBad counts a record that could not be made. It is for ServerConfig.OnBad, and may be called from there by a function of your own.
func (m *Server) OnBad(name string, _ uint64, _ []byte, _ error) {
	m.bad.WithLabelValues(label(name)).Inc()
}

// Describe implements [prometheus.Collector].
func (m *Server) Describe(out chan<- *prometheus.Desc) {
	m.bad.Describe(out)
	out <- openStreams
}

// Collect implements [prometheus.Collector].
func (m *Server) Collect(out chan<- prometheus.Metric) {
	m.bad.Collect(out)
	m.mu.Lock()
	servers := m.servers
	m.mu.Unlock()
	if len(servers) == 0 {
		return
	}
	n := 0
	for _, s := range servers {
		n += s.Open()
	}
	out <- prometheus.MustNewConstMetric(openStreams, prometheus.GaugeValue, float64(n))
}

// label makes a string a label's value: the client library panics at one that is not UTF-8.
func label(s string) string { return strings.ToValidUTF8(s, "\uFFFD") }

// maxReasons is far above the number of reasons that package stream has. Others come from producers and handlers.
const maxReasons = 100

// labels bounds how many values a label gets, since each is a time series.
type labels struct {
	mu   sync.Mutex
	seen map[string]struct{}
}

// bounded returns s, or OTHER if maxReasons other values were there before.
func (l *labels) bounded(s string) string {
	s = label(s)
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, ok := l.seen[s]; ok {
		return s
	}
	if len(l.seen) >= maxReasons {
		return "OTHER"
	}
	if l.seen == nil {
		l.seen = map[string]struct{}{}
	}
	l.seen[s] = struct{}{}
	return s
}
