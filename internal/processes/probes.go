package processes

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/levada-io/levada/internal/standalone"
)

// askTimeout bounds what is asked of a process for a probe or a scrape.
const askTimeout = 2 * time.Second

func (r *run) routes() standalone.HostRoutes {
	return standalone.HostRoutes{Metrics: r.serveMetrics, Live: probe(func(context.Context) error { return r.host.Stuck() }), Ready: probe(r.ready), Status: r.status}
}

// probe answers 204, or 503 with the reason; with ?verbose it answers 200 with a text instead of 204.
func probe(check func(context.Context) error) http.HandlerFunc {
	return func(w http.ResponseWriter, req *http.Request) {
		err := check(req.Context())
		w.Header().Set("X-Content-Type-Options", "nosniff")
		switch {
		case err != nil:
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
		case req.URL.Query().Has("verbose"):
			_, _ = io.WriteString(w, "ok\n") // a prober that has gone needs no answer
		default:
			w.WriteHeader(http.StatusNoContent)
		}
	}
}

// instance is a process that runs, for those who ask it something.
type instance struct{ name, address string }

// instances are the processes that run. The error names those that should and do not.
func (r *run) instances() (all []instance, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	var errs []error
	for _, p := range r.pipelines {
		for _, g := range p.groups {
			for _, m := range append(g.members[:len(g.members):len(g.members)], g.leaving...) {
				switch {
				case m.child != nil && m.child.address != "":
					all = append(all, instance{m.label, m.child.address})
				case !m.stopping && !m.finished:
					errs = append(errs, fmt.Errorf("%s: starting", m.label))
				}
			}
		}
	}
	return all, errors.Join(errs...)
}

// ready returns what keeps messages from being taken or delivered; nil if nothing does.
func (r *run) ready(ctx context.Context) error {
	if !r.started.Load() {
		return errors.New("starting or stopping")
	}
	if err := r.host.Usable(ctx); err != nil {
		return err
	}
	all, err := r.instances()
	errs := make([]error, len(all), len(all)+1)
	r.ask(ctx, all, "/readyz", func(n int, res *http.Response, err error) {
		switch {
		case err != nil:
			errs[n] = fmt.Errorf("%s: %w", all[n].name, err)
		case res.StatusCode >= http.StatusMultipleChoices:
			text, _ := io.ReadAll(io.LimitReader(res.Body, 4<<10)) // what came is the reason
			errs[n] = fmt.Errorf("%s: %s", all[n].name, strings.TrimSpace(string(text)))
		}
	})
	return errors.Join(append(errs, err)...)
}

// ask asks all processes at once. answered is called concurrently.
func (r *run) ask(ctx context.Context, all []instance, path string, answered func(n int, res *http.Response, err error)) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	var asking sync.WaitGroup
	for n, at := range all {
		asking.Go(func() {
			req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+at.address+path, http.NoBody)
			if err != nil {
				answered(n, nil, err)
				return
			}
			res, err := http.DefaultClient.Do(req)
			if err != nil {
				answered(n, nil, err)
				return
			}
			defer res.Body.Close()
			answered(n, res, nil)
		})
	}
	asking.Wait()
}
