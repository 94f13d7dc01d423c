package proxy

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"github.com/levada-io/levada/internal/proxy/balance"
	"github.com/levada-io/levada/internal/proxy/config"
	"github.com/levada-io/levada/internal/proxy/discovery"
	"github.com/levada-io/levada/internal/proxy/wheel"
)

// Options of a proxy.
type Options struct {
	// Logger; nil for slog.Default().
	Logger *slog.Logger
	// Kubernetes makes the sources of kubernetes:/// targets; nil refuses them.
	Kubernetes func(discovery.Service, discovery.Options) (discovery.Source, error)
	// Tracer makes spans of calls; nil for none.
	Tracer Tracer
	// TuneCollector has GOGC follow what the proxy does, while Run runs: for a process that is a proxy and nothing else.
	TuneCollector bool
}

// Proxy is a running proxy.
type Proxy struct {
	log      *slog.Logger
	options  Options
	wheel    *wheel.Wheel
	methods  methods
	warnings warnings
	silent   func(net.Conn, time.Duration) bool // hostSilent, but in tests
	stats    proxyStats
	begun    time.Time

	state    atomic.Pointer[state]
	draining atomic.Bool
	drained  atomic.Bool
	ready    atomic.Bool
	clock    atomic.Int64               // see now
	held     atomic.Int64               // bytes that wait in streams
	calls    atomic.Int64               // that are open
	memory   atomic.Int64               // that held may be: limits.memory
	window   atomic.Int32               // of a new stream: see adjustWindows
	crowded  chan struct{}              // there are many more calls than window was made for
	watchers atomic.Pointer[[]*Watcher] // nil for none

	working     context.Context // until Run ends
	dialing     context.Context // until which connections are made
	stopDialing context.CancelFunc
	stopWorking context.CancelFunc
	background  sync.WaitGroup

	heavy  chan struct{} // has a place for each goroutine that may work on large headers at the same time; the other processors are for those without
	drains drains

	clusters   uint64     // that were made; reloading guards it
	callCounts callCounts // of endpoints, by backend and address
	reloading  sync.Mutex // held while a configuration is put in force, and while listeners are opened again; above mu

	mu        sync.Mutex
	closed    bool                  // no new connections of clients
	leaving   bool                  // new connections get a GOAWAY
	over      bool                  // nor to endpoints
	greeting  map[net.Conn]struct{} // of clients, in their handshake
	accepting int                   // see accepts
	backs     map[*back]struct{}
	listeners []*listener
	fronts    map[*front]struct{}
	routes    map[routeKey]*routeStats
	retired   []*cluster // that a reload has replaced or removed, for as long as they carry streams
}

// state is a configuration in force.
type state struct {
	config   *config.Config
	table    *config.Table
	tables   map[string]*config.Table // of listeners with routes of their own, by name
	routes   map[*config.Route]*route
	nowhere  *route // for calls that no route matches
	clusters map[string]*cluster
	kept     map[string]change // of those that were there before, by name
}

// change is what a backend that is kept takes over from a new configuration.
type change struct {
	config *config.Backend
	tls    *backendTLS
}

func (s *state) route(listener, authority, path string) *route {
	table := s.table
	if t := s.tables[listener]; t != nil {
		table = t
	}
	if r := table.Route(authority, path); r != nil {
		return s.routes[r]
	}
	return s.nowhere
}

// New makes a proxy of a configuration that was validated. Nothing is opened before Run.
func New(c *config.Config, o Options) (*Proxy, error) {
	p := &Proxy{log: cmp.Or(o.Logger, slog.Default()), options: o, wheel: wheel.New(), fronts: map[*front]struct{}{}, backs: map[*back]struct{}{}, greeting: map[net.Conn]struct{}{}, routes: map[routeKey]*routeStats{}, begun: time.Now()}
	p.heavy = make(chan struct{}, max(1, runtime.GOMAXPROCS(0)/2))
	p.window.Store(firstWindow)
	p.silent = hostSilent
	p.crowded = make(chan struct{}, 1)
	p.methods.known = map[string]*method{}
	p.methods.configure(c)
	p.limitMemory(int64(c.Limits.Memory))
	p.working, p.stopWorking = context.WithCancel(context.Background())
	p.dialing, p.stopDialing = context.WithCancel(p.working)
	next, err := p.build(c, nil)
	if err != nil {
		return nil, err
	}
	p.state.Store(next)
	for i := range c.Listeners {
		l, err := newListener(p, &c.Listeners[i])
		if err != nil {
			return nil, err
		}
		p.listeners = append(p.listeners, l)
	}
	return p, nil
}

// build makes the state of a configuration. Backends that stay the same keep their connections.
func (p *Proxy) build(c *config.Config, old *state) (*state, error) {
	s := &state{config: c, routes: map[*config.Route]*route{}, clusters: map[string]*cluster{}, kept: map[string]change{}}
	s.table, s.tables = c.CompileAll()
	for i := range c.Backends {
		b := &c.Backends[i]
		tls, err := newBackendTLS(p.log, b)
		if err != nil {
			return nil, fmt.Errorf("backend %s: %w", b.Name, err)
		}
		if old != nil {
			if kept := old.clusters[b.Name]; kept != nil && kept.config().Target == b.Target && kept.config().Ejection == b.Ejection && kept.config().Balance == b.Balance && kept.config().HealthCheck == b.HealthCheck {
				s.clusters[b.Name], s.kept[b.Name] = kept, change{b, tls}
				continue
			}
		}
		p.clusters++
		x := &cluster{proxy: p, name: b.Name, number: p.clusters}
		x.current.Store(b)
		x.tls.Store(tls)
		x.set = balance.New[*endpoint](options(x, *b))
		x.source, err = discovery.New(b.Target, discovery.Options{Logger: p.log.With("backend", b.Name), Kubernetes: p.options.Kubernetes})
		if err != nil {
			return nil, fmt.Errorf("backend %s: %w", b.Name, err)
		}
		s.clusters[b.Name] = x
	}
	for i := range c.Routes {
		r := &c.Routes[i]
		s.routes[r] = p.route(r, s.clusters)
	}
	s.nowhere = &route{name: "none", stats: p.routeStats(routeKey{route: "none"})}
	s.nowhere.all = counters{stats: s.nowhere.stats}
	return s, nil
}

func (p *Proxy) route(r *config.Route, clusters map[string]*cluster) *route {
	x := &route{
		name: r.Match.String(), timeout: r.Timeout, idleTimeout: r.IdleTimeout, ping: r.Ping, streamAge: r.StreamAge, ageJitter: r.StreamAgeJitter,
		retry: r.Retry, replayBytes: int(r.Retry.BufferBytes), maxRequest: r.MaxMessageBytes.Request, maxResponse: r.MaxMessageBytes.Response,
		holdBytes: int(r.HoldBytes), restoreUnavailable: r.RestoreUnavailable, forwarded: newForwarding(r.Forwarded),
		request: newEdits(r.Headers.Authority, &r.Headers.Request), response: newEdits("", &r.Headers.Response),
	}
	sum := 0
	for _, share := range r.Shares() {
		sum += share.Weight
		x.clusters, x.weights = append(x.clusters, clusters[share.Name]), append(x.weights, sum)
	}
	x.retryPolicy.attempts = r.Retry.Attempts
	for _, code := range r.Retry.On {
		x.retryPolicy.on |= 1 << (uint32(code) & 31)
	}
	if r.RateLimit.PerSecond > 0 {
		x.limiter = rate.NewLimiter(rate.Limit(r.RateLimit.PerSecond), r.RateLimit.Burst)
	}
	if r.Retry.Attempts > 1 {
		x.budget = &budget{ratio: r.RetryBudget.Ratio, perSecond: r.RetryBudget.MinPerSecond, at: p.wheel.Now()}
		x.budget.tokens = x.budget.most()
	}
	x.stats = p.routeStats(routeKey{route: x.name})
	x.all = counters{x.stats, x.clusters, p.callStats(x.stats, x.clusters)}
	return x
}

// Run listens and serves until ctx ends, then drains. When it returns, nothing it started still runs.
func (p *Proxy) Run(ctx context.Context) error {
	defer func() {
		p.stopDialing()
		p.stopWorking()
		p.cut()
		p.background.Wait()
	}()
	p.background.Go(func() { p.wheel.Run(p.working) })
	p.background.Go(func() {
		returnMemory(p.working, func() int64 { return p.held.Load() + p.stats.fronts.Load()*perFront })
	})
	p.background.Go(func() { p.adjustWindows(p.working) })
	if p.options.TuneCollector {
		p.background.Go(func() { tuneCollector(p.working, processMemory()) })
	}
	for _, l := range p.listeners {
		if err := l.listen(); err != nil {
			p.closeListeners()
			return err
		}
	}
	for _, x := range p.state.Load().clusters {
		p.follow(p.working, x)
	}
	for _, l := range p.listeners {
		l.start()
	}
	p.ready.Store(true)
	<-ctx.Done()
	p.end()
	return nil
}

// follow starts to follow a backend's endpoints.
func (p *Proxy) follow(ctx context.Context, x *cluster) {
	ctx, x.stop = context.WithCancel(ctx)
	p.background.Go(func() {
		if err := x.source.Run(ctx, x.update); err != nil {
			p.log.Error("a backend's endpoints cannot be found", "backend", x.name, "error", err)
		}
	})
}

// Addresses are those that the proxy listens on.
func (p *Proxy) Addresses() []net.Addr {
	p.mu.Lock()
	defer p.mu.Unlock()
	var all []net.Addr
	for _, l := range p.listeners {
		if l.socket != nil {
			all = append(all, l.socket.Addr())
		}
	}
	return all
}

// Ready reports whether clients should come.
func (p *Proxy) Ready() bool { return p.ready.Load() && !p.draining.Load() }

func (p *Proxy) closeListeners() {
	p.mu.Lock()
	all := slices.Clone(p.listeners)
	p.mu.Unlock()
	for _, l := range all {
		l.close()
	}
}

func (p *Proxy) allFronts() []*front {
	p.mu.Lock()
	defer p.mu.Unlock()
	all := make([]*front, 0, len(p.fronts))
	for f := range p.fronts {
		all = append(all, f)
	}
	return all
}

// waitForFronts waits for clients to close their connections, up to a limit, and reports whether the drain goes on.
func (p *Proxy) waitForFronts(limit time.Duration, run *drainRun) bool {
	end := time.Now().Add(limit)
	for time.Now().Before(end) {
		if len(p.allFronts()) == 0 {
			return true
		}
		if !run.wait(5 * time.Millisecond) {
			return false
		}
	}
	for _, f := range p.allFronts() {
		f.kill(errors.New("the drain is over"))
	}
	return true
}

// Open is the number of open streams.
func (p *Proxy) Open() int {
	n := 0
	for _, f := range p.allFronts() {
		f.mu.Lock()
		n += len(f.streams)
		f.mu.Unlock()
	}
	return n
}

// tick reads the clock, which readers do once for all that came together, and others that begin to work on streams.
func (p *Proxy) tick() int64 {
	now := p.wheel.Now()
	p.clock.Store(now)
	return now
}

// now is what was read last. To read the clock for each frame would cost more than its locks.
func (p *Proxy) now() int64 { return p.clock.Load() }

// cut ends what is left of connections: those that are in their handshake, and those to endpoints that take nothing.
func (p *Proxy) cut() {
	p.mu.Lock()
	p.closed, p.over = true, true
	var backs []*back
	for b := range p.backs {
		backs = append(backs, b)
	}
	for nc := range p.greeting {
		_ = nc.Close()
	}
	p.mu.Unlock()
	for _, b := range backs {
		b.kill(errClosed)
	}
}

// hold notes a connection to an endpoint, unless the proxy has ended.
func (p *Proxy) hold(b *back) bool {
	p.mu.Lock()
	over := p.over
	if !over {
		p.backs[b] = struct{}{}
	}
	p.mu.Unlock()
	// adjustWindows stores window before it lists the connections. So this one is in its list, or finds the new value here.
	b.setWindow(p.window.Load()) // which may have changed before it was noted
	return !over
}

func (p *Proxy) release(b *back) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.backs, b)
}

// Reload puts another configuration in force. Streams that are open go on as they were opened; those of a listener that was removed are drained. With an error, everything
// is as it was before.
func (p *Proxy) Reload(c *config.Config) error {
	p.reloading.Lock()
	defer p.reloading.Unlock()
	old := p.state.Load()
	next, err := p.build(c, old)
	if err != nil {
		return err
	}
	change, err := p.prepare(c)
	if err != nil {
		return err
	}
	for name, x := range next.clusters {
		if old.clusters[name] != x {
			p.follow(p.working, x)
			continue
		}
		changed := next.kept[name]
		x.tls.Store(changed.tls)
		x.current.Store(changed.config)
		var w wakeups
		x.serveQueue(&w) // there may be more room
		w.flush()
	}
	p.methods.configure(c)
	p.state.Store(next)
	p.limitMemory(int64(c.Limits.Memory))
	change.commit(c.Drain.Period)
	p.forgetRoutes(next)
	for name, x := range old.clusters {
		// After the new state is stored: calls that waited for this cluster look for their route there.
		if next.clusters[name] != x {
			p.mu.Lock()
			p.retired = append(p.retired, x)
			p.mu.Unlock()
			x.retire()
		}
	}
	p.log.Info("a new configuration is in force")
	return nil
}
