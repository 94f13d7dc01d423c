package streammetrics

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/levada-io/levada/stream"
)

const (
	// storeTimeout is within the 10 s that Prometheus gives a scrape by default.
	storeTimeout = 5 * time.Second
	// storeLimit bounds what a scrape reads.
	storeLimit = 10000
)

var (
	storeUp      = prometheus.NewDesc("levada_stream_store_up", "1 if the job store has answered this scrape within 5 s, else 0; the store's other metrics are missing then.", nil, nil)
	storeJobs    = prometheus.NewDesc("levada_stream_jobs", "Jobs in the store that are not completed or cancelled, by state; counted up to 10000 of each.", []string{"stream", "state"}, nil)
	storeOrphans = prometheus.NewDesc("levada_stream_orphans", "Jobs that no worker would ever claim again. Must be 0.", nil, nil)
)

// Store collects the metrics of a job store. It asks the store at each scrape, for 5 s at most. Make it with [NewStore].
type Store struct {
	store stream.Store

	mu   sync.Mutex
	down bool
}

// NewStore returns a collector of a job store. Each worker of the store may have one: they export the same numbers.
func NewStore(store stream.Store) *Store { return &Store{store: store} }

// Describe implements [prometheus.Collector].
func (s *Store) Describe(out chan<- *prometheus.Desc) {
	out <- storeUp
	out <- storeJobs
	out <- storeOrphans
}

// Collect implements [prometheus.Collector]. A store that does not answer is a value, not an error: an error would cost the whole scrape, and so
// the worker's own metrics during each outage of its database.
func (s *Store) Collect(out chan<- prometheus.Metric) {
	metrics, err := s.ask()
	up := 1.0
	if err != nil {
		up, metrics = 0, nil
	}
	s.mu.Lock()
	changed := s.down != (err != nil)
	s.down = err != nil
	s.mu.Unlock()
	if changed && err != nil {
		slog.Warn("metrics of the job store are missing until it answers", "error", err)
	}
	out <- prometheus.MustNewConstMetric(storeUp, prometheus.GaugeValue, up)
	for _, m := range metrics {
		out <- m
	}
}

func (s *Store) ask() (metrics []prometheus.Metric, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), storeTimeout)
	defer cancel()
	type series struct {
		stream string
		state  stream.State
	}
	counts := map[series]int{}
	for _, state := range []stream.State{stream.Ready, stream.Running, stream.Paused, stream.Failed} {
		all, err := s.store.List(ctx, stream.Filter{States: []stream.State{state}, Limit: storeLimit})
		if err != nil {
			return nil, err
		}
		for i := range all {
			counts[series{label(all[i].Stream), state}]++
		}
	}
	for series, n := range counts {
		metrics = append(metrics, prometheus.MustNewConstMetric(storeJobs, prometheus.GaugeValue, float64(n), series.stream, string(series.state)))
	}
	if o, ok := s.store.(interface {
		Orphans(context.Context) (int, error)
	}); ok {
		n, err := o.Orphans(ctx)
		if err != nil {
			return nil, err
		}
		metrics = append(metrics, prometheus.MustNewConstMetric(storeOrphans, prometheus.GaugeValue, float64(n)))
	}
	return metrics, nil
}
