// Package admin is the proxy's administrative address: metrics, probes, the state for people and programs, the tap, and the drain; and the client of these
// for the command line.
//
// Probes and metrics are for every client that reaches the address. What shows the state and what changes it is for the machine itself, or for who has the token.
package admin

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/http/pprof"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/levada-io/levada/internal/proxy"
	"github.com/levada-io/levada/internal/proxy/observe"
)

const (
	writeTime    = 30 * time.Second // that a client of the tap may take nothing before it is cut off
	drainTells   = time.Second      // how often a client that waits for the drain gets a line
	lastWords    = time.Second      // that answers may take once the server ends
	streamsLimit = 100              // of a page of /streams, unless it says more
	streamsMost  = 10000
)

// Server serves the administrative address of a proxy.
type Server struct {
	Proxy   *proxy.Proxy
	Tap     *observe.Tap
	Metrics prometheus.Gatherer
	Logger  *slog.Logger
	Version string
	// Pprof serves Go's profiles, to clients on this machine only.
	Pprof bool
	// Notes are lines for /readyz?verbose that do not decide whether the proxy is ready; nil for none.
	Notes func() []string

	access     atomic.Pointer[Access]
	background sync.WaitGroup
	mu         sync.Mutex
	drained    chan struct{} // closed once the last drain that was asked for here is over
}

// Access is who may ask what. The zero value serves everything, and all but probes and metrics to clients on this machine only.
type Access struct {
	// TokenFile holds the token without which only probes and metrics are served; empty is none.
	TokenFile string
	// Remote serves other machines that have the token, too.
	Remote bool
	// Elsewhere is the address of the server that has what this one does not serve; empty if this one serves all.
	Elsewhere string
}

// SetAccess changes who may ask what, for requests that come from now on.
func (s *Server) SetAccess(a Access) { s.access.Store(&a) }

func (s *Server) accessNow() Access {
	if a := s.access.Load(); a != nil {
		return *a
	}
	return Access{}
}

// Serve answers until ctx ends. When it returns, nothing it started still runs; a drain that somebody asked for has to be over, so ctx should be
// one that outlasts the proxy's Run.
func (s *Server) Serve(ctx context.Context, socket net.Listener) error {
	server := &http.Server{Handler: s.Handler(), ReadHeaderTimeout: 5 * time.Second, IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10,
		BaseContext: func(net.Listener) context.Context { return ctx }, ErrorLog: slog.NewLogLogger(cmp.Or(s.Logger, slog.New(slog.DiscardHandler)).Handler(), slog.LevelWarn)}
	closed := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(closed)
		// The last answers are waited for: a client that drains the proxy gets the end of the drain, also if SIGTERM comes meanwhile.
		ending, cancel := context.WithTimeout(context.WithoutCancel(ctx), lastWords)
		defer cancel()
		if server.Shutdown(ending) != nil {
			_ = server.Close()
		}
	})
	err := server.Serve(socket)
	if !stop() {
		<-closed
	}
	s.background.Wait()
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

const index = `levada proxy %s, up for %v

GET  /metrics    metrics for Prometheus
GET  /livez      200 as long as the process works
GET  /readyz     200 while clients should come: it listens, and does not drain; ?verbose says more

For clients on this machine, or with the token:

GET  /config     the configuration in force, as YAML
GET  /overview   methods and backends with their counters, as JSON (levada proxy top)
GET  /endpoints  backends with their endpoints and connections, as JSON
GET  /streams    open calls, as JSON: ?route= ?path= (may end with *) ?endpoint= ?limit= ?after=
GET  /tap        calls as they begin and end, a line of JSON each (levada proxy tap): ?route= ?path= ?endpoint= ?reason= ?code=
POST /drain      stop taking connections, and end the open calls one by one; the process goes on: ?wait=true answers until that is done, a line of JSON
                 each second (levada proxy drain)
POST /undrain    call the drain off, or serve again after it (levada proxy undrain)
`

// Handler is what Serve answers with.
func (s *Server) Handler() http.Handler {
	mux := http.NewServeMux()
	plain := func(pattern string, h http.HandlerFunc, parameters ...string) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			if _, ok := query(w, r, parameters...); ok {
				_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(writeTime))
				h(w, r)
			}
		})
	}
	control := func(pattern string, h http.HandlerFunc) { plain(pattern, s.control(h)) }
	plain("GET /{$}", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		_, _ = fmt.Fprintf(w, index, s.Version, time.Since(s.Proxy.StartedAt()).Round(time.Second))
	})
	plain("GET /livez", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok\n") })
	plain("GET /readyz", s.readyz, "verbose")
	metrics := promhttp.HandlerFor(s.Metrics, promhttp.HandlerOpts{ErrorHandling: promhttp.ContinueOnError, MaxRequestsInFlight: 4})
	plain("GET /metrics", metrics.ServeHTTP, "name[]")
	control("GET /config", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/yaml")
		_, _ = w.Write(s.Proxy.Config().YAML())
	})
	control("GET /overview", func(w http.ResponseWriter, _ *http.Request) { answer(w, http.StatusOK, s.overview()) })
	control("GET /endpoints", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, http.StatusOK, map[string]any{"backends": s.Proxy.Backends()})
	})
	mux.HandleFunc("GET /streams", s.control(s.streams))
	mux.HandleFunc("GET /tap", s.control(s.tap))
	mux.HandleFunc("POST /drain", s.control(s.drain))
	control("POST /undrain", s.undrain)
	if s.Pprof {
		mux.HandleFunc("GET /debug/pprof/", s.control(local(profiles)))
		mux.HandleFunc("GET /debug/pprof/profile", s.control(local(pprof.Profile)))
		mux.HandleFunc("GET /debug/pprof/trace", s.control(local(pprof.Trace)))
		mux.HandleFunc("GET /debug/pprof/symbol", s.control(local(pprof.Symbol)))
	}
	// A web page that somebody on this machine looks at shall not be able to start a drain.
	return checked(http.NewCrossOriginProtection().Handler(mux))
}

// profiles are Go's, without the process's arguments: they may hold credentials.
func profiles(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == "/debug/pprof/cmdline" {
		http.NotFound(w, r)
		return
	}
	pprof.Index(w, r)
}

// local refuses clients of other machines, also those with a token.
func local(h http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if !isLocal(r) {
			http.Error(w, "profiles are for clients on the proxy's own machine only", http.StatusForbidden)
			return
		}
		h(w, r)
	}
}

func (s *Server) readyz(w http.ResponseWriter, r *http.Request) {
	status, text := http.StatusOK, "ok"
	switch {
	case s.Proxy.Ready():
	case s.Proxy.Drained():
		status, text = http.StatusServiceUnavailable, "drained: it serves again after POST /undrain (levada proxy undrain)"
	case s.Proxy.Draining():
		status, text = http.StatusServiceUnavailable, "draining"
	default:
		status, text = http.StatusServiceUnavailable, "not listening yet"
	}
	if r.URL.Query().Has("verbose") && s.Notes != nil {
		for _, note := range s.Notes() {
			text += "\n" + note
		}
	}
	if status != http.StatusOK {
		http.Error(w, text, status)
		return
	}
	_, _ = io.WriteString(w, text+"\n")
}

// Overview is what /overview answers with.
type Overview struct {
	Version        string              `json:"version"`
	Now            time.Time           `json:"now"`
	StartedAt      time.Time           `json:"startedAt"`
	Ready          bool                `json:"ready"`
	Draining       bool                `json:"draining"`
	Connections    int64               `json:"connections"`
	BucketsSeconds []float64           `json:"bucketsSeconds"` // the upper bounds for Took of the methods; its last count is of all above
	Methods        []proxy.MethodView  `json:"methods"`
	Backends       []proxy.BackendView `json:"backends"`
}

func (s *Server) overview() Overview {
	o := Overview{Version: s.Version, Now: time.Now(), StartedAt: s.Proxy.StartedAt(), Ready: s.Proxy.Ready(), Draining: s.Proxy.Draining(),
		Connections: s.Proxy.Connections(), Methods: s.Proxy.Methods(), Backends: s.Proxy.Backends()}
	for _, b := range proxy.Buckets() {
		o.BucketsSeconds = append(o.BucketsSeconds, b.Seconds())
	}
	return o
}

// Streams is what /streams answers with.
type Streams struct {
	Streams []proxy.StreamView `json:"streams"`
	// Next is what to give as ?after= for those that follow; empty if there are none.
	Next string `json:"next,omitempty"`
	// Note says why there may be none: the filter names what the proxy has not seen.
	Note string `json:"note,omitempty"`
}

func (s *Server) streams(w http.ResponseWriter, r *http.Request) {
	q, ok := query(w, r, "route", "path", "endpoint", "limit", "after")
	if !ok {
		return
	}
	f := proxy.StreamFilter{Route: q.Get("route"), Endpoint: q.Get("endpoint"), Limit: streamsLimit}
	var err error
	if f.Path, err = observe.ParsePath(q.Get("path")); err != nil {
		http.Error(w, "path="+err.Error(), http.StatusBadRequest)
		return
	}
	if text := q.Get("limit"); text != "" {
		if f.Limit, err = strconv.Atoi(text); err != nil || f.Limit < 1 || f.Limit > streamsMost {
			http.Error(w, fmt.Sprintf("limit=%.40q: expected a number from 1 to %d", text, streamsMost), http.StatusBadRequest)
			return
		}
	}
	if text := q.Get("after"); text != "" {
		if f.After, err = proxy.ParseID(text); err != nil {
			http.Error(w, fmt.Sprintf("after=%.40q: expected the next of the page before, such as 12.345", text), http.StatusBadRequest)
			return
		}
	}
	note, err := s.checkFilter(f.Route, f.Path, f.Endpoint)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	page := Streams{Note: note}
	var more bool
	if page.Streams, more = s.Proxy.Streams(f); more {
		page.Next = page.Streams[len(page.Streams)-1].ID.String()
	}
	answer(w, http.StatusOK, page)
}

func (s *Server) tap(w http.ResponseWriter, r *http.Request) {
	q, ok := query(w, r, "route", "path", "endpoint", "reason", "code")
	if !ok {
		return
	}
	f := observe.Filter{Route: q.Get("route"), Endpoint: q.Get("endpoint")}
	for _, parameter := range []struct {
		name  string
		into  *string
		parse func(string) (string, error)
	}{{"path", &f.Path, observe.ParsePath}, {"reason", &f.Reason, observe.ParseReason}, {"code", &f.Status, observe.ParseStatus}} {
		var err error
		if *parameter.into, err = parameter.parse(q.Get(parameter.name)); err != nil {
			http.Error(w, parameter.name+"="+err.Error(), http.StatusBadRequest)
			return
		}
	}
	note, err := s.checkFilter(f.Route, f.Path, f.Endpoint)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	if note != "" {
		w.Header().Set(noteHeader, note)
	}
	out := http.NewResponseController(w)
	w.Header().Set("Content-Type", "application/x-ndjson")
	w.WriteHeader(http.StatusOK)
	if out.Flush() != nil {
		return
	}
	client := s.Tap.Open(f)
	defer client.Close()
	copyEvents(r.Context(), client, w, out)
}

// copyEvents writes events until ctx ends or the client of the tap takes nothing for writeTime.
func copyEvents(ctx context.Context, client *observe.TapClient, w io.Writer, out *http.ResponseController) {
	var spare []byte
	for {
		lines := client.Next(ctx, spare)
		if lines == nil {
			return
		}
		_ = out.SetWriteDeadline(time.Now().Add(writeTime))
		if _, err := w.Write(lines); err != nil || out.Flush() != nil {
			return
		}
		spare = lines
	}
}

// Drain is how far a drain has come.
type Drain struct {
	Draining      bool    `json:"draining"` // false once it was called off
	Drained       bool    `json:"drained"`  // it is over
	Streams       int     `json:"streams"`  // that are open
	NoticeSeconds float64 `json:"noticeSeconds"`
	PeriodSeconds float64 `json:"periodSeconds"`
}

func (s *Server) drain(w http.ResponseWriter, r *http.Request) {
	q, ok := query(w, r, "wait")
	if !ok {
		return
	}
	wait := false
	if text := q.Get("wait"); text != "" {
		var err error
		if wait, err = strconv.ParseBool(text); err != nil {
			http.Error(w, fmt.Sprintf("wait=%.40q: expected true or false", text), http.StatusBadRequest)
			return
		}
	}
	over := s.beginDrain(r.RemoteAddr)
	if !wait {
		answer(w, http.StatusAccepted, s.drainState())
		return
	}
	s.followDrain(w, over)
}

// followDrain writes a line each drainTells until the drain ends, and its last state.
func (s *Server) followDrain(w http.ResponseWriter, over <-chan struct{}) {
	out := http.NewResponseController(w)
	w.Header().Set("Content-Type", "application/x-ndjson")
	tick := time.NewTicker(drainTells)
	defer tick.Stop()
	for {
		// Read before the state, so that the last line says how the drain ended.
		ended := isClosed(over)
		state := s.drainState()
		_ = out.SetWriteDeadline(time.Now().Add(writeTime))
		// That the client is gone is an error here. Its context would say so too, but ends with the server, which waits for this.
		if json.NewEncoder(w).Encode(state) != nil || out.Flush() != nil || state.Drained || !state.Draining {
			return
		}
		if ended { // it is being called off, or another one has begun, which is looked at each second
			over = nil
		}
		select {
		case <-over:
		case <-tick.C:
		}
	}
}

// beginDrain starts a drain, unless one that was asked for here goes on, and returns what is closed when it is over or called off.
func (s *Server) beginDrain(from string) <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.drained == nil || isClosed(s.drained) || !s.Proxy.Draining() {
		if !s.Proxy.Draining() {
			s.Logger.Warn("a drain was asked for at the administrative address", "from", from)
		}
		over, finish := make(chan struct{}), s.Proxy.BeginDrain()
		s.drained = over
		s.background.Go(func() {
			defer close(over)
			if finish() && !s.Proxy.Ending() {
				s.Logger.Info("drained, waiting for SIGTERM or for levada proxy undrain")
			}
		})
	}
	return s.drained
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

func (s *Server) undrain(w http.ResponseWriter, r *http.Request) {
	s.Logger.Warn("the end of the drain was asked for at the administrative address", "from", r.RemoteAddr)
	switch err := s.Proxy.Undrain(); {
	case errors.Is(err, proxy.ErrEnding):
		http.Error(w, err.Error(), http.StatusConflict)
	case err != nil:
		s.Logger.Error("drain cannot be called off, not ready", "error", err)
		http.Error(w, err.Error(), http.StatusInternalServerError)
	default:
		answer(w, http.StatusOK, s.drainState())
	}
}

func (s *Server) drainState() Drain {
	d := s.Proxy.Config().Drain
	return Drain{Draining: s.Proxy.Draining(), Drained: s.Proxy.Drained(), Streams: s.Proxy.Open(), NoticeSeconds: d.Notice.Seconds(), PeriodSeconds: d.Period.Seconds()}
}

// query returns the parameters. One that is not known is refused: without a filter that was mistyped everything would be shown.
func query(w http.ResponseWriter, r *http.Request, known ...string) (url.Values, bool) {
	q, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		http.Error(w, "the query of the URL cannot be read", http.StatusBadRequest)
		return nil, false
	}
	for _, name := range slices.Sorted(maps.Keys(q)) {
		if !slices.Contains(known, name) {
			there := "there are none here"
			if len(known) > 0 {
				there = "there are: " + strings.Join(known, ", ")
			}
			http.Error(w, fmt.Sprintf("there is no parameter %.40q; %s", name, there), http.StatusBadRequest)
			return nil, false
		}
	}
	return q, true
}

func answer(w http.ResponseWriter, status int, v any) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetIndent("", "  ")
	if err := e.Encode(v); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(observe.ASCII(b.Bytes()))
}
