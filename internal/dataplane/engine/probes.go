package engine

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/levada-io/levada/internal/metrics"
)

// Broker is what a process asks about the broker that it uses.
//
// Both answer within a second: a probe that times out counts as one that failed.
type Broker interface {
	// Stuck returns an error only if a restart of this process may help the broker.
	Stuck() error
	// Usable returns why messages cannot be stored or read now; nil if they can.
	Usable(ctx context.Context) error
	// Degraded returns what is wrong with it although messages can be stored and read.
	Degraded() []error
}

// usableTimeout bounds what a scrape asks of the broker.
const usableTimeout = 2 * time.Second

// Routes adds the metrics and the probes of the process: /metrics, /livez and /readyz.
func (p *Process) Routes(mux *http.ServeMux, m *metrics.Set) {
	scrape := promhttp.HandlerFor(m.Registry, promhttp.HandlerOpts{})
	mux.HandleFunc("GET /metrics", func(w http.ResponseWriter, req *http.Request) {
		for _, pl := range p.Pipelines {
			pl.Stats(req.Context()) // gauges are as of now
		}
		ctx, cancel := context.WithTimeout(req.Context(), usableTimeout)
		defer cancel()
		m.BufferService(p.Broker.Usable(ctx) == nil, len(p.Broker.Degraded()))
		scrape.ServeHTTP(w, req)
	})
	mux.HandleFunc("GET /livez", probe(p.Live, nil))
	mux.HandleFunc("GET /readyz", probe(p.Ready, p.Broker.Degraded))
}

// probe answers 204, or 503 with the reason. With ?verbose it answers 200 instead of 204, and says in further lines what does not decide it.
func probe(check func(context.Context) error, notes func() []error) http.HandlerFunc {
	return func(w http.ResponseWriter, req *http.Request) {
		err, verbose := check(req.Context()), req.URL.Query().Has("verbose")
		if err == nil && !verbose {
			w.WriteHeader(http.StatusNoContent)
			return
		}
		code, text := http.StatusOK, "ok"
		if err != nil {
			code, text = http.StatusServiceUnavailable, err.Error()
		}
		if verbose && notes != nil {
			for _, note := range notes() {
				text += "\nnote: " + note.Error()
			}
		}
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		w.Header().Set("X-Content-Type-Options", "nosniff")
		w.WriteHeader(code)
		_, _ = fmt.Fprintln(w, text) // a prober that has gone needs no answer
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
