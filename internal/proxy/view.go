package proxy

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/levada-io/levada/internal/proxy/balance"
	"github.com/levada-io/levada/internal/proxy/config"
	"github.com/levada-io/levada/internal/proxy/health"
)

// What the outside sees: copies, made when somebody asks. Locks are taken one connection at a time.

// ID of a call in this process, written as connection.stream.
type ID struct {
	Connection uint64
	Stream     uint32
}

// String is the ID as ParseID reads it.
func (id ID) String() string { return string(id.append(nil)) }

func (id ID) append(b []byte) []byte {
	b = append(strconv.AppendUint(b, id.Connection, 10), '.')
	return strconv.AppendUint(b, uint64(id.Stream), 10)
}

// AppendText is String for encoders.
func (id ID) AppendText(b []byte) ([]byte, error) { return id.append(b), nil }

// MarshalText is String for encoders.
func (id ID) MarshalText() ([]byte, error) { return id.append(nil), nil }

// UnmarshalText is ParseID for decoders.
func (id *ID) UnmarshalText(text []byte) (err error) {
	*id, err = ParseID(string(text))
	return err
}

// ParseID reads what String wrote.
func ParseID(text string) (ID, error) {
	connection, stream, ok := strings.Cut(text, ".")
	c, err := strconv.ParseUint(connection, 10, 64)
	s, err2 := strconv.ParseUint(stream, 10, 32)
	if !ok || err != nil || err2 != nil {
		return ID{}, fmt.Errorf("%q is not a call id; expected two numbers such as 12.345", text)
	}
	return ID{c, uint32(s)}, nil
}

func (id ID) compare(other ID) int {
	return cmp.Or(cmp.Compare(id.Connection, other.Connection), cmp.Compare(id.Stream, other.Stream))
}

// Stats are all counters. Those of one moment fit together as well as counters do that go on counting.
type Stats struct {
	Connections    int64 // of clients, open
	Accepted       int64 // connections of clients, ever
	RefusedStreams int64 // above the limit of a connection
	// Full is how often a connection had as many streams as it may.
	Full int64
	// OverBudgetCalls were refused because their connection's abuse budget was used up, and OverBudgetConnections closed because it was so twice over.
	OverBudgetCalls, OverBudgetConnections int64
	// ShortOfMemory are the calls that were refused or ended because of limits.memory.
	ShortOfMemory int64
	Draining      bool
	Routes        []RouteStats   // sorted by name and method
	Backends      []BackendStats // sorted by name
}

// RouteStats are those of a route.
type RouteStats struct {
	Route                                   string
	Method                                  string // empty for all calls whose method is not counted by itself
	Opened, Open                            int64
	TransparentRetries, Retries, OverBudget int64
	Calls                                   []CallStats // by backend, that of no backend first
}

// CallStats are of the calls of a route that have ended at one backend.
type CallStats struct {
	Backend                     string           // empty for calls that were refused before one was chosen
	ByStatus                    [statuses]int64  // by gRPC's number
	ByReason                    map[string]int64 // without zeros
	Took                        Durations
	Resets                      int64
	Requests, Responses         int64 // messages
	RequestBytes, ResponseBytes int64
}

// Durations are counted in buckets; Buckets gives their upper bounds, and the last count is of all above.
type Durations struct {
	Counts [len(buckets) + 1]int64
	Sum    time.Duration
}

// Buckets are the upper bounds of Durations.
func Buckets() []time.Duration { return slices.Clone(buckets[:]) }

// BackendStats are those of a backend, since its target was configured.
type BackendStats struct {
	Backend                                        string
	Connections, Connected, ConnectFailed, GoAways int64
	Ejections                                      int64
	Waiting, Overloaded                            int64            // calls that wait for room at an endpoint, and those that were refused for lack of it
	Checks                                         map[string]int64 // of health, by result; nil if the backend has none
	DiscoveryFailing                               bool
	Endpoints                                      []EndpointStats
}

// EndpointStats are what is true of an endpoint now.
type EndpointStats struct {
	Address     string
	Open        int
	Connections int
	Ejected     bool
	Unhealthy   bool          // by active checks
	Removed     bool          // it is no endpoint of the backend any more, and has calls that go on
	Latency     time.Duration // expected of a unary call; 0 if none was measured
}

// Stats returns all counters.
func (p *Proxy) Stats() Stats {
	p.countOpen()
	s := Stats{Connections: p.stats.fronts.Load(), Accepted: p.stats.accepted.Load(), RefusedStreams: p.stats.refused.Load(), Full: p.stats.full.Load(),
		OverBudgetCalls: p.stats.overBudgetCalls.Load(), OverBudgetConnections: p.stats.overBudgetConnections.Load(), ShortOfMemory: p.stats.shortOfMemory.Load(), Draining: p.draining.Load()}
	p.mu.Lock()
	keys := slices.SortedFunc(maps.Keys(p.routes), func(a, b routeKey) int {
		return cmp.Or(strings.Compare(a.route, b.route), strings.Compare(a.method, b.method))
	})
	for _, key := range keys {
		r := p.routes[key]
		one := RouteStats{Route: key.route, Method: key.method, Open: r.open(), TransparentRetries: r.transparentRetries.Load(), Retries: r.retries.Load(), OverBudget: r.overBudget.Load(),
			Calls: []CallStats{r.refused.view("")}}
		one.Opened = r.opened.Load()
		for _, backend := range slices.Sorted(maps.Keys(r.backends)) {
			one.Calls = append(one.Calls, r.backends[backend].view(backend))
		}
		s.Routes = append(s.Routes, one)
	}
	p.mu.Unlock()
	now := p.wheel.Now()
	for _, x := range p.sortedClusters() {
		b := BackendStats{Backend: x.name, Connections: x.stats.connections.Load(), Connected: x.stats.connected.Load(), ConnectFailed: x.stats.connectFailed.Load(),
			GoAways: x.stats.goAways.Load(), Ejections: x.stats.ejections.Load(),
			Waiting: int64(x.queued.Load()), Overloaded: x.stats.overloaded.Load(), DiscoveryFailing: x.source.Status().Failing}
		if x.config().HealthCheck.Interval > 0 {
			b.Checks = map[string]int64{}
			for _, r := range health.Results {
				b.Checks[r.String()] = x.stats.checks[r].Load()
			}
		}
		for _, c := range x.set.Backends() {
			b.add(c, now, false)
		}
		for _, c := range x.left() {
			b.add(c, now, true)
		}
		s.Backends = append(s.Backends, b)
	}
	for _, x := range p.retiredClusters() {
		i := slices.IndexFunc(s.Backends, func(b BackendStats) bool { return b.Backend == x.name })
		if i < 0 {
			s.Backends = append(s.Backends, BackendStats{Backend: x.name})
			i = len(s.Backends) - 1
		}
		s.Backends[i].Connections += x.stats.connections.Load()
		for _, c := range x.left() {
			s.Backends[i].add(c, now, true)
		}
	}
	slices.SortFunc(s.Backends, func(a, b BackendStats) int { return strings.Compare(a.Backend, b.Backend) })
	return s
}

// add adds an endpoint. One that was removed may be there again under the same address: they are one for those who look.
func (b *BackendStats) add(c *chosen, now int64, removed bool) {
	info := c.Info(now)
	c.Of.mu.Lock()
	connections := c.Of.open() + len(c.Of.retired)
	c.Of.mu.Unlock()
	if i := slices.IndexFunc(b.Endpoints, func(e EndpointStats) bool { return e.Address == c.Address }); i >= 0 {
		b.Endpoints[i].Open += info.Streams + info.Unary
		b.Endpoints[i].Connections += connections
		return
	}
	b.Endpoints = append(b.Endpoints, EndpointStats{Address: c.Address, Open: info.Streams + info.Unary, Connections: connections, Ejected: info.EjectedUntil != 0 && !removed, Unhealthy: c.Of.unhealthy.Load() && !removed,
		Removed: removed, Latency: info.Latency})
}

// retiredClusters are those that still carry streams.
func (p *Proxy) retiredClusters() []*cluster {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.retired = slices.DeleteFunc(p.retired, func(x *cluster) bool { return len(x.left()) == 0 })
	return slices.Clone(p.retired)
}

func (p *Proxy) sortedClusters() []*cluster {
	clusters := p.state.Load().clusters
	return slices.SortedFunc(maps.Values(clusters), func(a, b *cluster) int { return strings.Compare(a.name, b.name) })
}

func (c *callStats) view(backend string) CallStats {
	v := CallStats{Backend: backend, ByReason: map[string]int64{}, Took: durations(&c.took, &c.tookSum), Resets: c.resets.Load(), Requests: c.requests.Load(),
		Responses: c.answers.Load(), RequestBytes: c.requestBytes.Load(), ResponseBytes: c.responseBytes.Load()}
	for i := range c.ended {
		v.ByStatus[i] = c.ended[i].Load()
	}
	for i := range reasons {
		if n := c.reasons[i].Load(); n > 0 {
			v.ByReason[reasons[i]] = n
		}
	}
	return v
}

func durations(counts *[len(buckets) + 1]atomic.Int64, sum *atomic.Int64) (d Durations) {
	d.Sum = time.Duration(sum.Load())
	for i := range counts {
		d.Counts[i] = counts[i].Load()
	}
	return d
}

// Reasons are all words that a call's end can have.
func Reasons() []string { return slices.Clone(reasons[:]) }

// MethodView is what was counted of a method.
type MethodView struct {
	Path string `json:"path"`
	// Kind is unary or streaming, as far as calls have shown it.
	Kind string `json:"kind"`
	// Opened calls, and of them those that are open.
	Opened int64 `json:"opened"`
	Open   int64 `json:"open"`
	// Statuses of the calls that have ended, by name, without zeros.
	Statuses map[string]int64 `json:"statuses"`
	// Took counts the durations in the buckets of Buckets; Seconds is their sum.
	Took    []int64 `json:"durationCounts"`
	Seconds float64 `json:"seconds"`
}

// Methods returns the methods that were called, sorted by path. Those above the number that is remembered are together under "(others)".
func (p *Proxy) Methods() []MethodView {
	p.methods.mu.Lock()
	known := maps.Clone(p.methods.known)
	p.methods.mu.Unlock()
	known["(others)"] = &p.methods.rest
	var all []MethodView
	for _, path := range slices.Sorted(maps.Keys(known)) {
		m := known[path]
		v := MethodView{Path: path, Kind: "streaming", Statuses: map[string]int64{}}
		if m.unary.Load() > 0 {
			v.Kind = "unary"
		}
		ended := int64(0)
		for code := range m.stats.ended {
			if n := m.stats.ended[code].Load(); n > 0 {
				v.Statuses[config.Code(code).String()] = n
				ended += n
			}
		}
		if v.Opened = m.stats.opened.Load(); v.Opened == 0 {
			continue
		}
		v.Open = max(v.Opened-ended, 0)
		took := durations(&m.stats.took, &m.stats.tookSum)
		v.Took, v.Seconds = took.Counts[:], took.Sum.Seconds()
		all = append(all, v)
	}
	return all
}

// BackendView is the state of a backend.
type BackendView struct {
	Name      string         `json:"name"`
	Target    string         `json:"target"`
	Discovery DiscoveryView  `json:"discovery"`
	Endpoints []EndpointView `json:"endpoints"`
}

// DiscoveryView is how finding a backend's endpoints does.
type DiscoveryView struct {
	// Known: there was a list of endpoints, even if it was empty.
	Known       bool       `json:"known"`
	Updated     *time.Time `json:"updated,omitempty"`
	LastSuccess *time.Time `json:"lastSuccess,omitempty"`
	// Failing: it has not been right since LastError.
	Failing     bool       `json:"failing"`
	LastError   string     `json:"lastError,omitempty"`
	LastErrorAt *time.Time `json:"lastErrorAt,omitempty"`
}

// The states of an endpoint.
const (
	StateIdle       = "idle"       // nothing has needed a connection yet
	StateConnecting = "connecting" //
	StateReady      = "ready"      // connected
	StateFailing    = "failing"    // connecting failed
	StateEjected    = "ejected"    // it gets no calls for a while
	StateProbation  = "probation"  // its ejection is over, and a call shall show whether it works again
	StateUnhealthy  = "unhealthy"  // the last checks of its health have failed
	StateRemoved    = "removed"    // it is no endpoint of the backend any more, and has calls that go on
)

// EndpointView is the state of an endpoint.
type EndpointView struct {
	Address string `json:"address"`
	State   string `json:"state"`
	// Calls that are open: those of methods whose calls are short, and the others.
	Unary   int `json:"unary"`
	Streams int `json:"streams"`
	// Waiting calls have no connection yet.
	Waiting int `json:"waiting"`
	// LatencySeconds that are expected of a unary call (peak EWMA); 0 if none was measured.
	LatencySeconds float64 `json:"latencySeconds"`
	// Weight is below 1 during slow start.
	Weight              float64    `json:"weight"`
	EjectedUntil        *time.Time `json:"ejectedUntil,omitempty"`
	Ejections           int        `json:"ejections"`
	ConsecutiveFailures int        `json:"consecutiveFailures"`
	// Health is what the last active check found: serving, or what was wrong. Empty without checks.
	Health string `json:"health,omitempty"`
	// Results of calls within the window of the ejection's configuration, and of them the failures.
	Results  int `json:"results"`
	Failures int `json:"failures"`
	// LastError of connecting, unless a connection has been made since, and when it is tried again.
	LastError   string           `json:"lastError,omitempty"`
	RetryAt     *time.Time       `json:"retryAt,omitempty"`
	Connections []ConnectionView `json:"connections"`
}

// ConnectionView is a connection to an endpoint.
type ConnectionView struct {
	Local   string    `json:"local"`
	Since   time.Time `json:"since"`
	Streams int       `json:"streams"`
	// MaxStreams that the endpoint allows; 0 is no limit.
	MaxStreams int `json:"maxStreams"`
	// Draining: it gets no new streams. GoAway is the code, if the endpoint has said GOAWAY.
	Draining bool   `json:"draining"`
	GoAway   string `json:"goAway,omitempty"`
	// Unsent bytes of output.
	Unsent int `json:"unsent"`
}

// Backends returns the state of all backends, sorted by name.
func (p *Proxy) Backends() []BackendView {
	all := []BackendView{}
	now, at := p.wheel.Now(), time.Now()
	when := func(t int64) *time.Time { w := at.Add(time.Duration(t - now)); return &w }
	for _, x := range p.sortedClusters() {
		status := x.source.Status()
		v := BackendView{Name: x.name, Target: x.config().Target, Endpoints: []EndpointView{}, Discovery: DiscoveryView{Known: status.Known,
			Updated: orNone(status.Updated), LastSuccess: orNone(status.LastSuccess), Failing: status.Failing, LastErrorAt: orNone(status.LastErrorAt)}}
		if status.LastError != nil {
			v.Discovery.LastError = status.LastError.Error()
		}
		for _, c := range x.set.Backends() {
			v.Endpoints = append(v.Endpoints, c.Of.view(c.Info(now), now, when))
		}
		for _, c := range x.left() {
			e := c.Of.view(c.Info(now), now, when)
			e.State = StateRemoved
			v.Endpoints = append(v.Endpoints, e)
		}
		all = append(all, v)
	}
	return all
}

func orNone(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return &t
}

func (e *endpoint) view(info balance.Info, now int64, when func(int64) *time.Time) EndpointView {
	v := EndpointView{Address: info.Address, State: StateIdle, Unary: info.Unary, Streams: info.Streams, LatencySeconds: info.Latency.Seconds(), Weight: info.Weight,
		Ejections: info.Ejections, ConsecutiveFailures: info.ConsecutiveFailures, Results: info.Results, Failures: info.Failures, Connections: []ConnectionView{}}
	e.mu.Lock()
	defer e.mu.Unlock()
	v.Waiting = len(e.main.waiting) + len(e.large.waiting)
	switch {
	case e.open() > 0:
		v.State = StateReady
	case e.dialing() > 0:
		v.State = StateConnecting
	case e.last != nil:
		v.State = StateFailing
	}
	if e.last != nil {
		v.LastError = e.last.Error()
		if e.retryAt > now {
			v.RetryAt = when(e.retryAt)
		}
	}
	if info.EjectedUntil != 0 {
		v.State, v.EjectedUntil = StateEjected, when(info.EjectedUntil)
		if info.Probation {
			v.State = StateProbation
		}
	}
	if k := e.checked; k.known {
		v.Health = cmp.Or(k.reason, "serving")
		if e.unhealthy.Load() {
			v.State = StateUnhealthy
		}
	}
	for _, some := range [][]*back{e.main.conns, e.large.conns, e.retired} {
		for _, b := range some {
			v.Connections = append(v.Connections, b.view())
		}
	}
	return v
}

func (b *back) view() ConnectionView {
	b.mu.Lock()
	defer b.mu.Unlock()
	v := ConnectionView{Local: b.nc.LocalAddr().String(), Since: b.since, Streams: len(b.streams), Draining: b.draining || b.closing, GoAway: b.goAwayCode,
		Unsent: len(b.out) + b.writing}
	if b.peer.streams != 1<<32-1 {
		v.MaxStreams = int(b.peer.streams)
	}
	return v
}

// StreamView is an open call.
type StreamView struct {
	ID                 ID        `json:"id"`
	Started            time.Time `json:"startedAt"`
	AgeSeconds         float64   `json:"ageSeconds"`
	Client             string    `json:"client"`
	TLSPeer            string    `json:"tlsPeer,omitempty"`
	Route              string    `json:"route"`
	Authority          string    `json:"authority"`
	Path               string    `json:"path"`
	Backend            string    `json:"backend,omitempty"`
	Endpoint           string    `json:"endpoint,omitempty"`
	Kind               string    `json:"kind"`
	Requests           int       `json:"requests"` // messages
	Responses          int       `json:"responses"`
	RequestBytes       int64     `json:"requestBytes"`
	ResponseBytes      int64     `json:"responseBytes"`
	RequestsWait       int       `json:"requestBytesWaiting"` // bytes that the endpoint has not taken
	ResponsesWait      int       `json:"responseBytesWaiting"`
	Attempts           int       `json:"attempts"`
	TransparentRetries int       `json:"transparentRetries"`
	DeadlineInSecs     *float64  `json:"deadlineSeconds,omitempty"` // that are left
	Trace              string    `json:"trace,omitempty"`
	// Waits says what the call waits for: an endpoint, a connection, or the client, which has not taken all that was sent before the end.
	Waits string `json:"waits,omitempty"`
}

// StreamFilter says which calls Streams returns. What is empty matches all.
type StreamFilter struct {
	Route, Endpoint string
	// Path, or the beginning of one with a star behind it.
	Path string
	// After the call with this ID, by connection and stream.
	After ID
	// Limit of their number.
	Limit int
}

// MatchPath reports whether a path is the pattern, which may end with a star for everything.
func MatchPath(pattern, path string) bool {
	if start, ok := strings.CutSuffix(pattern, "*"); ok {
		return strings.HasPrefix(path, start)
	}
	return pattern == "" || pattern == path
}

// Streams returns open calls in the order of their IDs, and whether there are more of them.
func (p *Proxy) Streams(filter StreamFilter) (all []StreamView, more bool) {
	fronts := p.allFronts()
	slices.SortFunc(fronts, func(a, b *front) int { return cmp.Compare(a.number, b.number) })
	all = []StreamView{}
	for _, f := range fronts {
		if f.number < filter.After.Connection {
			continue
		}
		if len(all) > filter.Limit {
			break
		}
		begin := len(all)
		all = f.view(all, &filter)
		slices.SortFunc(all[begin:], func(a, b StreamView) int { return a.ID.compare(b.ID) })
	}
	if len(all) > filter.Limit {
		return all[:filter.Limit], true
	}
	return all, false
}

func (f *front) view(all []StreamView, filter *StreamFilter) []StreamView {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := f.proxy.wheel.Now()
	for _, s := range f.streams {
		id := ID{f.number, s.id}
		if id.compare(filter.After) <= 0 || filter.Route != "" && filter.Route != s.call.route.name || !MatchPath(filter.Path, s.call.path) {
			continue
		}
		at := cmp.Or(s.chosen, s.avoid)
		if filter.Endpoint != "" && (at == nil || at.Address != filter.Endpoint) {
			continue
		}
		all = append(all, s.view(at, now))
	}
	return all
}

func (s *stream) view(at *chosen, now int64) StreamView {
	age := time.Duration(now - s.started)
	c := s.describe(age)
	v := StreamView{
		ID: c.ID, Started: c.Started, AgeSeconds: age.Seconds(), Client: c.Client, TLSPeer: c.TLSPeer, Route: c.Route, Authority: c.Authority, Path: c.Path, Kind: "streaming",
		Requests: int(s.inMessages.count), Responses: int(s.outMessages.count), RequestBytes: s.inBytes, ResponseBytes: s.outBytes, RequestsWait: s.in.size,
		ResponsesWait: s.out.size + s.hold.size, Attempts: int(s.attempts) + 1, TransparentRetries: int(s.transparentRetries),
	}
	if s.kind == balance.Unary {
		v.Kind = "unary"
	}
	if s.cluster != nil {
		v.Backend = s.cluster.name
	}
	if at != nil {
		v.Endpoint = at.Address
	}
	if s.deadline != 0 {
		left := time.Duration(s.deadline - now).Seconds()
		v.DeadlineInSecs = &left
	}
	if s.span != nil {
		v.Trace = s.span.TraceID()
	}
	switch {
	case s.outEnd:
		v.Waits = "client"
	case s.waiting != nil:
		v.Waits = "connection"
	case s.back == nil:
		v.Waits = "endpoint" // to appear, or to have room
	}
	return v
}

// Config is the configuration in force. It must not be changed.
func (p *Proxy) Config() *config.Config { return p.state.Load().config }

// Connections is the number of open connections of clients.
func (p *Proxy) Connections() int64 { return p.stats.fronts.Load() }

// StartedAt is when the proxy was made.
func (p *Proxy) StartedAt() time.Time { return p.begun }

// Draining reports whether the proxy drains, or has drained.
func (p *Proxy) Draining() bool { return p.draining.Load() }
