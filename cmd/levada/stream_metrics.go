package main

import (
	"cmp"
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/levada-io/levada/stream"
)

func newStreamRegistry() *prometheus.Registry {
	registry := prometheus.NewRegistry()
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "levada_build_info", Help: "1, with the version as a label.", ConstLabels: prometheus.Labels{"version": version}}, func() float64 { return 1 }))
	return registry
}

// workerMetrics counts the events of a worker.
type workerMetrics struct {
	records, bytes, commits, quarantined, retries, cuts, claims, released, lost *prometheus.CounterVec
	commitSeconds                                                               *prometheus.HistogramVec
}

func newWorkerMetrics(registry *prometheus.Registry, store *database, inHand func() int, stuck func() int) *workerMetrics {
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: "levada_stream_" + name, Help: help}, append([]string{"stream"}, labels...))
	}
	m := &workerMetrics{
		records:     counter("records_total", "Records that this worker has committed, those in quarantine included."),
		bytes:       counter("bytes_total", "Bytes of keys and values of the records that were committed."),
		commits:     counter("commits_total", "Commits that moved an offset."),
		quarantined: counter("quarantined_total", "Records that went into quarantine."),
		retries:     counter("retries_total", "Attempts that failed and are made again, by reason.", "reason"),
		cuts:        counter("cuts_total", "Streams that ended before their end, by the producer's reason.", "reason"),
		claims:      counter("claims_total", "Jobs that were claimed; orphaned says that their owner had died.", "orphaned"),
		released:    counter("released_total", "Jobs that were given back, by the state they were left in.", "state"),
		lost:        counter("lost_leases_total", "Leases that were lost to another owner, to a person, or to a database that did not answer."),
		commitSeconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "levada_stream_commit_seconds", Help: "Time of a commit, with the handler's part in it.",
			Buckets: []float64{.001, .002, .005, .01, .02, .05, .1, .2, .5, 1, 2, 5, 10, 30}}, []string{"stream"}),
	}
	registry.MustRegister(m.records, m.bytes, m.commits, m.quarantined, m.retries, m.cuts, m.claims, m.released, m.lost, m.commitSeconds, &storeCollector{store},
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "levada_stream_jobs_in_hand", Help: "Jobs that this worker works on."}, func() float64 { return float64(inHand()) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "levada_stream_stuck_handlers", Help: "Handlers that did not come back; the liveness probe fails when there are any."}, func() float64 { return float64(stuck()) }))
	return m
}

// observe is for WorkerConfig.Observe.
func (m *workerMetrics) observe(e stream.Event) {
	name := e.Job.Stream
	switch e.Kind {
	case stream.EventClaimed:
		died := "false"
		if e.Died {
			died = "true"
		}
		m.claims.WithLabelValues(name, died).Inc()
	case stream.EventCommitted:
		m.records.WithLabelValues(name).Add(float64(e.To - e.From + 1))
		m.bytes.WithLabelValues(name).Add(float64(e.Bytes))
		m.commits.WithLabelValues(name).Inc()
		m.commitSeconds.WithLabelValues(name).Observe(e.Took.Seconds())
		if e.Bad > 0 {
			m.quarantined.WithLabelValues(name).Add(float64(e.Bad))
		}
	case stream.EventRetry:
		m.retries.WithLabelValues(name, string(e.Reason)).Inc()
	case stream.EventCut:
		m.cuts.WithLabelValues(name, string(cmp.Or(e.Reason, "CUT"))).Inc()
	case stream.EventLost:
		m.lost.WithLabelValues(name).Inc()
	case stream.EventReleased:
		m.released.WithLabelValues(name, string(e.State)).Inc()
	}
}

// storeCollector asks the store when it is asked itself.
type storeCollector struct{ store *database }

var (
	jobsDesc    = prometheus.NewDesc("levada_stream_jobs", "Jobs in the store that are not completed or cancelled, by state; counted up to 10000 of each.", []string{"stream", "state"}, nil)
	orphansDesc = prometheus.NewDesc("levada_stream_orphans", "Jobs that nobody would ever look at again. Must be 0.", nil, nil)
)

func (c *storeCollector) Describe(out chan<- *prometheus.Desc) { out <- jobsDesc; out <- orphansDesc }

func (c *storeCollector) Collect(out chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	type series struct {
		stream string
		state  stream.State
	}
	counts := map[series]int{}
	for _, state := range []stream.State{stream.Ready, stream.Running, stream.Paused, stream.Failed} {
		all, err := c.store.List(ctx, stream.Filter{States: []stream.State{state}, Limit: 10000})
		if err != nil {
			out <- prometheus.NewInvalidMetric(jobsDesc, err)
			return
		}
		for i := range all {
			counts[series{all[i].Stream, state}]++
		}
	}
	for s, n := range counts {
		out <- prometheus.MustNewConstMetric(jobsDesc, prometheus.GaugeValue, float64(n), s.stream, string(s.state))
	}
	orphans, err := c.store.orphans(ctx)
	if err != nil {
		out <- prometheus.NewInvalidMetric(orphansDesc, err)
		return
	}
	out <- prometheus.MustNewConstMetric(orphansDesc, prometheus.GaugeValue, float64(orphans))
}
