package standalone

import (
	"context"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/levada-io/levada/internal/dataplane/engine"
)

// HostRoutes are what a Host answers of the processes of its vertices.
type HostRoutes struct {
	Metrics, Live, Ready http.HandlerFunc
	Status               func() []Status
}

// Serve answers requests until ctx ends: metrics and probes for everybody on this machine, the rest for who can read the data directory.
func (h *Host) Serve(ctx context.Context, routes HostRoutes) error {
	err := engine.ServeHTTP(ctx, h.api.listener, h.routes(routes), h.r.log, func() time.Duration { return time.Second })
	_ = os.Remove(filepath.Join(h.r.cfg.DataDir, controlFile))
	return err
}

func (h *Host) routes(routes HostRoutes) http.Handler {
	mux, a := http.NewServeMux(), h.api
	letters := &localLetters{service: h.r.service}
	mux.HandleFunc("GET /metrics", routes.Metrics)
	mux.HandleFunc("GET /livez", routes.Live)
	mux.HandleFunc("GET /readyz", routes.Ready)
	mux.HandleFunc("GET /api/v1/status", a.private(func(w http.ResponseWriter, _ *http.Request) error { return answer(w, routes.Status()) }))
	mux.HandleFunc("GET /api/v1/buffers", a.private(a.buffers))
	mux.HandleFunc("GET /api/v1/deadletters", a.private(func(w http.ResponseWriter, req *http.Request) error {
		q, err := letterQuery(req)
		if err != nil {
			return err
		}
		page, err := letters.Page(req.Context(), q)
		if err != nil {
			return err
		}
		return answer(w, page)
	}))
	mux.HandleFunc("GET /api/v1/deadletters/{pipeline}/{name}", a.private(func(w http.ResponseWriter, req *http.Request) error {
		v, err := letters.Get(req.Context(), req.PathValue("pipeline"), req.PathValue("name"))
		if err != nil {
			return err
		}
		return answer(w, v)
	}))
	mux.HandleFunc("POST /api/v1/deadletters/{pipeline}/{name}/replay", a.private(func(_ http.ResponseWriter, req *http.Request) error {
		return h.replay(req.Context(), letters, req.PathValue("pipeline"), req.PathValue("name"))
	}))
	mux.HandleFunc("DELETE /api/v1/deadletters/{pipeline}/{name}", a.private(func(_ http.ResponseWriter, req *http.Request) error {
		return letters.Drop(req.Context(), req.PathValue("pipeline"), req.PathValue("name"))
	}))
	mux.HandleFunc("GET /api/v1/processes/{pipeline}/{vertex}", a.private(func(w http.ResponseWriter, req *http.Request) error {
		_, p, err := findProcesses(req.Context(), h.r.service, req.PathValue("pipeline"), req.PathValue("vertex"))
		if err != nil {
			return err
		}
		return answer(w, p)
	}))
	mux.HandleFunc("POST /api/v1/processes/{pipeline}/{vertex}", a.private(func(w http.ResponseWriter, req *http.Request) error {
		n, err := strconv.Atoi(req.FormValue("processes"))
		if err != nil {
			return refuse("processes is %q, expected a number", req.FormValue("processes"))
		}
		was, err := setProcesses(req.Context(), h.r.service, req.PathValue("pipeline"), req.PathValue("vertex"), n)
		if err != nil {
			return err
		}
		return answer(w, map[string]int{"was": was})
	}))
	return mux
}

// replay puts a dead letter back into the buffer of its vertex, unless that has been found empty for good.
func (h *Host) replay(ctx context.Context, letters *localLetters, pipeline, name string) error {
	h.replays.RLock()
	defer h.replays.RUnlock()
	l, of, err := letters.find(ctx, pipeline, name)
	if err != nil {
		return err
	}
	if h.sealed[of.Owner.Namespace+"/"+l.Pipeline+"/"+l.Vertex] {
		return engine.ErrEnding
	}
	return letters.Replay(ctx, pipeline, name)
}
