package standalone

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/levada-io/levada/internal/dataplane/engine"
)

// front answers metrics and probes of a process of one vertex from its very start: one that waits is alive and not ready.
type front struct {
	r       *runner
	address string
	reason  atomic.Pointer[string]        // why it is not ready, while there is no process
	handler atomic.Pointer[http.ServeMux] // of the process; nil before
}

// openFront listens until the runner is closed.
func (r *runner) openFront(reason string) (*front, error) {
	listener, err := net.Listen("tcp", r.cfg.Listen)
	if err != nil {
		return nil, fmt.Errorf("listen for metrics and probes (--listen): %w", err)
	}
	f := &front{r: r, address: listener.Addr().String()}
	f.wait(reason)
	serving, stop := context.WithCancel(context.Background())
	var server sync.WaitGroup
	server.Go(func() {
		if err := engine.ServeHTTP(serving, listener, f, r.log, func() time.Duration { return min(2*time.Second, r.budget.Close()/2) }); err != nil {
			r.log.Warn("metrics and probes are not served any more", "error", err)
		}
	})
	r.close = append(r.close, func() {
		stop()
		server.Wait()
	})
	return f, nil
}

// wait says why the process is not ready.
func (f *front) wait(reason string) { f.reason.Store(&reason) }

// serve hands requests to a process.
func (f *front) serve(p *engine.Process) {
	mux := http.NewServeMux()
	p.Routes(mux, f.r.metrics)
	f.handler.Store(mux)
}

// ServeHTTP implements http.Handler.
func (f *front) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	switch mux := f.handler.Load(); {
	case mux != nil:
		mux.ServeHTTP(w, req)
	case req.URL.Path == "/livez":
		w.WriteHeader(http.StatusNoContent)
	default:
		http.Error(w, *f.reason.Load(), http.StatusServiceUnavailable)
	}
}
