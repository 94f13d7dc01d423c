package streamcmd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// probes is the HTTP side of a long-running command: metrics and probes.
type probes struct {
	registry *prometheus.Registry
	// live and ready return why the process should be restarted, or should get no work; nil means it is well.
	live, ready func(context.Context) error
	// log gets the server's errors.
	log *slog.Logger
}

// serve listens on the address, if there is one, until stop is called. It returns the address that it got.
func (p *probes) serve(listen string) (address string, stop func(), err error) {
	if listen == "" {
		return "", func() {}, nil
	}
	listener, err := net.Listen("tcp", listen)
	if err != nil {
		return "", nil, fmt.Errorf("listen for metrics and probes (--metrics-listen): %w", err)
	}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(p.registry, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /livez", probe(p.live))
	mux.HandleFunc("GET /readyz", probe(p.ready))
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second, ErrorLog: slog.NewLogLogger(p.log.Handler(), slog.LevelWarn)}
	ended := make(chan struct{})
	go func() { // ends with stop, which waits for it
		defer close(ended)
		if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			_ = listener.Close()
		}
	}()
	return listener.Addr().String(), func() { _ = server.Close(); <-ended }, nil
}

// probe answers 204, or 503 with the reason.
func probe(check func(context.Context) error) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), 5*time.Second)
		defer cancel()
		if check != nil {
			if err := check(ctx); err != nil {
				http.Error(w, err.Error(), http.StatusServiceUnavailable)
				return
			}
		}
		w.WriteHeader(http.StatusNoContent)
	}
}
