package standalone

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/levada-io/levada/internal/dataplane/buffer"
	"github.com/levada-io/levada/internal/dataplane/deadletter"
	"github.com/levada-io/levada/internal/dataplane/engine"
	"github.com/levada-io/levada/internal/flow"
)

// api is the HTTP side of a run: metrics and probes for everybody on this machine, the rest for who can read the data directory.
type api struct {
	r         *runner
	pipelines []*Pipeline
	process   *engine.Process
	listener  net.Listener
	address   string
	token     string
}

// Control is the file in the data directory that tells other commands how to reach a run.
type Control struct {
	Address string `json:"address"`
	Token   string `json:"token"`
	PID     int    `json:"pid"`
}

const controlFile = "control.json"

// listen opens the address of metrics, probes and the API, and writes the control file.
func (r *runner) listen(p *engine.Process, pipelines []*Pipeline) (*api, error) {
	listener, err := net.Listen("tcp", r.cfg.Listen)
	if err != nil {
		return nil, fmt.Errorf("listen for metrics and the API (--listen): %w", err)
	}
	a := &api{r: r, process: p, pipelines: pipelines, listener: listener, address: listener.Addr().String(), token: rand.Text()}
	control, err := json.Marshal(Control{Address: a.address, Token: a.token, PID: os.Getpid()})
	if err == nil {
		err = os.WriteFile(filepath.Join(r.cfg.DataDir, controlFile), control, 0o600)
	}
	if err != nil {
		return nil, errors.Join(err, listener.Close())
	}
	r.mu.Lock()
	r.serving = true
	r.mu.Unlock()
	return a, nil
}

// serve answers requests until ctx ends.
func (a *api) serve(ctx context.Context) error {
	err := engine.ServeHTTP(ctx, a.listener, a.routes(), a.r.log, func() time.Duration { return min(2*time.Second, a.r.budget.Close()/2) })
	_ = os.Remove(filepath.Join(a.r.cfg.DataDir, controlFile))
	return err
}

func (a *api) routes() http.Handler {
	mux := http.NewServeMux()
	a.process.Routes(mux, a.r.metrics)
	mux.HandleFunc("GET /api/v1/status", a.private(a.status))
	mux.HandleFunc("GET /api/v1/buffers", a.private(a.buffers))
	mux.HandleFunc("GET /api/v1/deadletters", a.private(a.list))
	mux.HandleFunc("GET /api/v1/deadletters/{pipeline}/{name}", a.private(a.get))
	mux.HandleFunc("POST /api/v1/deadletters/{pipeline}/{name}/replay", a.private(a.replay))
	mux.HandleFunc("DELETE /api/v1/deadletters/{pipeline}/{name}", a.private(a.drop))
	return mux
}

func (a *api) private(h func(http.ResponseWriter, *http.Request) error) http.HandlerFunc {
	return func(w http.ResponseWriter, req *http.Request) {
		token := strings.TrimPrefix(req.Header.Get("Authorization"), "Bearer ")
		if subtle.ConstantTimeCompare([]byte(token), []byte(a.token)) != 1 {
			http.Error(w, "the token of "+controlFile+" in the data directory is needed", http.StatusUnauthorized)
			return
		}
		if err := h(w, req); err != nil {
			status := http.StatusInternalServerError
			if errors.Is(err, deadletter.ErrNotFound) || errors.Is(err, errNoPipeline) {
				status = http.StatusNotFound
			}
			if _, refused := errors.AsType[*refusal](err); refused || errors.Is(err, errBadCursor) {
				status = http.StatusBadRequest
			}
			if errors.Is(err, engine.ErrEnding) {
				status = http.StatusConflict
			}
			http.Error(w, err.Error(), status)
		}
	}
}

func answer(w http.ResponseWriter, v any) error {
	w.Header().Set("Content-Type", "application/json")
	return json.NewEncoder(w).Encode(v)
}

// Status is what a run says of a pipeline.
type Status struct {
	Namespace string         `json:"namespace"`
	Name      string         `json:"name"`
	Kind      string         `json:"kind"`
	Finished  bool           `json:"finished"`
	Vertices  []VertexStatus `json:"vertices"`
}

// VertexStatus is what a run says of a vertex. Counters begin at its start.
type VertexStatus struct {
	Name        string `json:"name"`
	Kind        string `json:"kind"`
	Runs        string `json:"runs"`
	PIDs        []int  `json:"pids,omitempty"`
	Read        int64  `json:"read"`
	Written     int64  `json:"written"`
	Pending     int64  `json:"pending"`
	Errors      int64  `json:"errors"`
	Dropped     int64  `json:"dropped"`
	DeadLetters int64  `json:"deadLetters"`
}

func (a *api) buffers(w http.ResponseWriter, req *http.Request) error {
	all, err := listBuffers(req.Context(), a.r.service)
	if err != nil {
		return err
	}
	return answer(w, all)
}

func (a *api) status(w http.ResponseWriter, req *http.Request) error {
	return answer(w, statusOf(req.Context(), a.pipelines))
}

func statusOf(ctx context.Context, pipelines []*Pipeline) []Status {
	var all []Status
	for _, p := range pipelines {
		s := Status{Namespace: p.Namespace, Name: p.Name, Kind: p.Kind, Finished: p.Finished()}
		for i, v := range p.Stats(ctx) {
			vs := VertexStatus{Name: v.Name, Kind: v.Kind, Runs: v.Runs, Read: v.In, Written: v.Out, Pending: v.Pending, Errors: v.Errors, Dropped: v.Dropped, DeadLetters: v.DeadLetters}
			for _, f := range p.Vertices()[i].Functions() {
				if pid := f.PID(); pid != 0 {
					vs.PIDs = append(vs.PIDs, pid)
				}
			}
			s.Vertices = append(s.Vertices, vs)
		}
		all = append(all, s)
	}
	return all
}

var (
	errNoPipeline = errors.New("no such pipeline")
	errBadCursor  = errors.New("bad request")
)

func (a *api) pipeline(name string) (*Pipeline, error) {
	var found []*Pipeline
	for _, p := range a.pipelines {
		if named(name, p.Namespace, p.Name) {
			found = append(found, p)
		}
	}
	switch len(found) {
	case 0:
		return nil, fmt.Errorf("%w: %s", errNoPipeline, name)
	case 1:
		return found[0], nil
	}
	return nil, fmt.Errorf("%w: %d are named %s; use NAMESPACE/NAME", errBadCursor, len(found), name)
}

// LetterView is a dead letter as people see it.
type LetterView struct {
	deadletter.Letter
	Keys      []string          `json:"keys,omitempty"`
	Headers   map[string]string `json:"headers,omitempty"`
	EventTime time.Time         `json:"eventTime,omitzero"`
	Value     []byte            `json:"value,omitempty"`
}

func viewOf(l *deadletter.Letter) LetterView {
	v := LetterView{Letter: *l, Keys: l.Message.Keys, Value: l.Message.Value, EventTime: time.Unix(0, l.Message.EventTime).UTC()}
	for name, value := range l.Message.Headers.All {
		if v.Headers == nil {
			v.Headers = map[string]string{}
		}
		v.Headers[name] = value
	}
	return v
}

func (a *api) get(w http.ResponseWriter, req *http.Request) error {
	p, err := a.pipeline(req.PathValue("pipeline"))
	if err != nil {
		return err
	}
	l, err := p.letters.Get(req.Context(), req.PathValue("name"))
	if err != nil {
		return err
	}
	return answer(w, viewOf(l))
}

func (a *api) drop(w http.ResponseWriter, req *http.Request) error {
	p, err := a.pipeline(req.PathValue("pipeline"))
	if err != nil {
		return err
	}
	return p.letters.Drop(req.Context(), req.PathValue("name"))
}

func (a *api) replay(w http.ResponseWriter, req *http.Request) error {
	p, err := a.pipeline(req.PathValue("pipeline"))
	if err != nil {
		return err
	}
	l, err := p.letters.Get(req.Context(), req.PathValue("name"))
	if err != nil {
		return err
	}
	return p.Inject(l.Vertex, func() error { return replay(req.Context(), p.letters, l, into(p.writers(l.Vertex))) })
}

// replay gives a letter to its vertex once more, as a new message, and drops it once that is durable. The message is recognized by its id, so that a replay that
// is cut short and done again adds nothing.
func replay(ctx context.Context, store *deadletter.Store, l *deadletter.Letter, write func(context.Context, *flow.Block, *flow.Encoder) error) error {
	if write == nil {
		return fmt.Errorf("%s is a source or a MonoVertex, which has no buffer that the message could be put into again: show it, send its value again at the source, and drop it", l.Vertex)
	}
	m := l.Message
	m.Pos = uint64(time.Now().UnixNano())
	m.ID = flow.ChildID(m.ID, "replay", 0) // if it fails again, that is another letter
	var e flow.Encoder
	e.Reset(m.Pos)
	e.Append(&m)
	if err := write(ctx, &flow.Block{Lane: "deadletters", ByID: true, Lo: m.Pos, Hi: m.Pos, Watermark: flow.NoWatermark}, &e); err != nil {
		return err
	}
	return store.Drop(ctx, l.Name)
}

// into writes to the first of the partitions that this process reads; nil if there is none.
func into(parts []*buffer.Writer) func(context.Context, *flow.Block, *flow.Encoder) error {
	if len(parts) == 0 {
		return nil
	}
	return func(ctx context.Context, h *flow.Block, e *flow.Encoder) error {
		w, err := parts[0].Write(ctx, h, e)
		if err != nil {
			return err
		}
		return w.Wait(ctx)
	}
}
