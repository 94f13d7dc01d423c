package engine

import (
	"context"
	"errors"
	"net/http"

	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/levada-io/levada/internal/metrics"
)

// Broker is what a process asks about the broker that it uses.
type Broker interface {
	// Stuck returns an error only if a restart of this process may help the broker.
	Stuck() error
	// Usable returns why messages cannot be stored or read now; nil if they can.
	Usable(ctx context.Context) error
}

// Routes adds the metrics and the probes of the process: /metrics, /livez and /readyz.
func (p *Process) Routes(mux *http.ServeMux, m *metrics.Set) {
	scrape := promhttp.HandlerFor(m.Registry, promhttp.HandlerOpts{})
	mux.HandleFunc("GET /metrics", func(w http.ResponseWriter, req *http.Request) {
		for _, pl := range p.Pipelines {
			pl.Stats(req.Context()) // gauges are as of now
		}
		scrape.ServeHTTP(w, req)
	})
	mux.HandleFunc("GET /livez", probe(p.Live))
	mux.HandleFunc("GET /readyz", probe(p.Ready))
}

// probe answers 204, or 503 with the reason.
func probe(check func(context.Context) error) http.HandlerFunc {
	return func(w http.ResponseWriter, req *http.Request) {
		if err := check(req.Context()); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		w.WriteHeader(http.StatusNoContent)
	}
}

// Live returns an error only if a restart of the process may help. A full disk or store of a broker is none, nor are stored blocks that are damaged: a process
// that is restarted meets the same, and repeats what it had in flight.
func (p *Process) Live(context.Context) error { return p.Broker.Stuck() }

// Ready returns what keeps messages from being taken or delivered; nil if nothing does.
func (p *Process) Ready(ctx context.Context) error {
	if !p.ready.Load() {
		return errors.New("starting or stopping")
	}
	if err := p.Broker.Usable(ctx); err != nil {
		return err
	}
	var errs []error
	for _, pl := range p.Pipelines {
		errs = append(errs, pl.health())
	}
	return errors.Join(errs...)
}
