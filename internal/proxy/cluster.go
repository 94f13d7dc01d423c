package proxy

import (
	"context"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"
	"google.golang.org/grpc/codes"

	"github.com/levada-io/levada/internal/proxy/balance"
	"github.com/levada-io/levada/internal/proxy/config"
	"github.com/levada-io/levada/internal/proxy/discovery"
)

// cluster is a backend: a target, and the endpoints that it has at the moment.
type cluster struct {
	proxy  *Proxy
	name   string
	number uint64 // grows with each cluster that is made
	set    *balance.Set[*endpoint]
	source discovery.Source
	stop   context.CancelFunc
	tls    atomic.Pointer[backendTLS]
	stats  clusterStats

	current atomic.Pointer[config.Backend]
	known   atomic.Bool // the endpoints, if only that there are none

	queued atomic.Int32 // calls in queue, to be read without the lock

	mu       sync.Mutex
	awaiting []ref     // calls that wait for an endpoint
	queue    []ref     // calls that wait for room at an endpoint
	leaving  []*chosen // endpoints that were removed, for as long as they carry streams
}

// left are the endpoints that were removed and still carry streams.
func (c *cluster) left() []*chosen {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.leaving = slices.DeleteFunc(c.leaving, func(b *chosen) bool { return b.Open() == 0 })
	return slices.Clone(c.leaving)
}

func (c *cluster) config() *config.Backend { return c.current.Load() }

func options(c *cluster, b config.Backend) balance.Options {
	e := b.Ejection
	o := balance.Options{
		Decay: b.Balance.Decay, SlowStart: b.Balance.SlowStart,
		ConsecutiveFailures: orNever(e.ConsecutiveFailures), FailureShare: orNever(e.FailureShare), MinResults: e.MinRequests, Window: e.Window,
		BaseEjection: e.BaseTime, MaxEjection: e.MaxTime, MaxEjected: orNever(e.MaxEjected), Panic: orNever(e.PanicThreshold),
		OnEject: func(x balance.Ejection) {
			c.stats.ejections.Add(1)
			c.proxy.log.Warn("an endpoint is ejected", "backend", c.name, "endpoint", x.Address, "cause", x.Cause.String(), "for", x.For)
		},
		OnReturn: func(address string) {
			c.proxy.log.Info("an endpoint is back", "backend", c.name, "endpoint", address)
		},
	}
	if e.Disabled {
		o.MaxEjected = -1
	}
	return o
}

// orNever makes the 0 of a configuration, which means never, the balancer's.
func orNever[T int | float64](n T) T {
	if n == 0 {
		return -1
	}
	return n
}

// update takes the endpoints that there are from now on.
func (c *cluster) update(addresses []string) {
	// Before awaiting is taken: await looks at the set under mu, so a call either sees the endpoints or is in awaiting when it is taken below.
	added, removed := c.set.Update(addresses, c.proxy.tick(), func(address string) *endpoint { return newEndpoint(c, address) })
	c.known.Store(true)
	// Before the new ones are added, so that the list does not grow with each change of the endpoints.
	c.left() // forgets those that carry nothing any more
	c.mu.Lock()
	c.leaving = append(c.leaving, removed...)
	c.mu.Unlock()
	for _, b := range added {
		c.watchHealth(b.Of)
	}
	for _, b := range removed {
		b.Of.drain()
	}
	if len(added)+len(removed) > 0 && c.proxy.working.Err() == nil {
		c.proxy.log.Info("endpoints", "backend", c.name, "endpoints", addresses)
	}
	c.mu.Lock()
	awaiting := c.awaiting
	if len(added) > 0 {
		c.awaiting = nil
	}
	c.mu.Unlock()
	if len(added) == 0 {
		return
	}
	var w wakeups
	for _, r := range awaiting {
		s := r.s
		s.front.mu.Lock()
		if r.current() && s.cluster == c && s.chosen == nil && s.waitEnd != 0 && !s.outEnd {
			s.dispatch(&w)
		}
		s.front.mu.Unlock()
		w.flush()
	}
	c.serveQueue(&w)
	w.flush()
}

// doubt: an endpoint may not be there any more.
func (c *cluster) doubt() {
	if d, ok := c.source.(discovery.Doubter); ok {
		d.Doubt()
	}
}

// retire ends a backend that the configuration has no more. Calls that wait for its endpoints go by the new one.
func (c *cluster) retire() {
	c.stop()
	c.update(nil)
	c.mu.Lock()
	awaiting := append(c.awaiting, c.queue...)
	c.awaiting, c.queue = nil, nil
	c.queued.Store(0)
	c.mu.Unlock()
	var w wakeups
	for _, r := range awaiting {
		s := r.s
		s.front.mu.Lock()
		if r.current() && s.cluster == c && s.chosen == nil && s.waitEnd != 0 && !s.outEnd {
			// It was for this cluster. The call may wait as long as any other for the new one.
			s.waitEnd = 0
			s.dispatch(&w)
		}
		s.front.mu.Unlock()
		w.flush()
	}
}

// await makes a call wait for the first endpoint, unless there is one by now.
func (c *cluster) await(s *stream) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	// Under mu: update changes the set before it takes awaiting under mu, so no call is left behind.
	if len(c.set.Backends()) > 0 {
		return false
	}
	c.awaiting = append(c.awaiting, ref{s, s.id})
	return true
}

// forget takes a call from those that wait.
func (c *cluster) forget(s *stream) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if i := slices.Index(c.awaiting, ref{s, s.id}); i >= 0 {
		c.awaiting = slices.Delete(c.awaiting, i, i+1)
	}
	c.leaveQueue(s)
}

// others reports whether there is an endpoint beside this one that may be connected to.
func (c *cluster) others(than *chosen) bool {
	for _, b := range c.set.Backends() {
		if b != than && b.Of.usable() {
			return true
		}
	}
	return false
}

// anotherThan is others, for the endpoint itself.
func (c *cluster) anotherThan(e *endpoint) bool {
	for _, b := range c.set.Backends() {
		if b.Of != e && b.Of.usable() {
			return true
		}
	}
	return false
}

// route is what a configured route does.
type route struct {
	name               string
	clusters           []*cluster
	weights            []int // running sums
	timeout            time.Duration
	idleTimeout        time.Duration
	ping               config.RoutePing
	streamAge          time.Duration
	ageJitter          float64
	retry              config.Retry
	retryPolicy        retryPolicy
	replayBytes        int
	maxRequest         config.Bytes
	maxResponse        config.Bytes
	holdBytes          int
	restoreUnavailable bool
	limiter            *rate.Limiter
	budget             *budget
	stats              *routeStats
	all                counters    // of the calls whose methods are not counted by themselves
	byMethod           sync.Map    // *method to *counters of the others
	forwarded          *forwarding // nil for the listener's
	request            edits
	response           edits
}

// cluster chooses where a call goes, by the weights.
func (r *route) cluster() *cluster {
	if len(r.clusters) == 1 {
		return r.clusters[0]
	}
	n := rand.IntN(r.weights[len(r.weights)-1])
	for i, sum := range r.weights {
		if n < sum {
			return r.clusters[i]
		}
	}
	return r.clusters[0]
}

// limit reports whether a call passes, and if not, when to come back.
func (r *route) limit() (time.Duration, bool) {
	if r.budget != nil {
		r.budget.deposit()
	}
	if r.limiter == nil || r.limiter.Allow() {
		return 0, true
	}
	return time.Duration(float64(time.Second) / float64(r.limiter.Limit())), false
}

// budget bounds retries to a share of the calls, so that they cannot multiply the load of a backend in trouble.
type budget struct {
	ratio, perSecond float64

	mu     sync.Mutex
	tokens float64
	at     int64
}

const budgetSeconds = 10 // of what it may save up

// deposit adds what one call earns. Retries deposit nothing: limit is called at most once for each call.
func (b *budget) deposit() {
	b.mu.Lock()
	b.tokens = min(b.tokens+b.ratio, b.most())
	b.mu.Unlock()
}

// most is how many retries can be saved up, at least 10: a route with few calls could retry none otherwise.
func (b *budget) most() float64 { return max(b.perSecond*budgetSeconds, 10) }

func (b *budget) take(now int64) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	// Time adds tokens as well, for routes with too few calls to earn one.
	b.tokens = min(b.tokens+b.perSecond*time.Duration(now-b.at).Seconds(), b.most())
	b.at = now
	if b.tokens < 1 {
		return false
	}
	b.tokens--
	return true
}

// methods remembers of each method whether its calls are short, since what a long stream costs is another thing than what a call does.
type methods struct {
	mu    sync.Mutex
	known map[string]*method
	rest  method // of those above the number that is remembered

	// Which methods are metrics: see configure.
	named    map[string]bool
	patterns []string
	most     int
	admitted int // by a pattern
}

const keptMethods = 4096

type method struct {
	name    string       // as metrics have it: service/method
	unary   atomic.Int32 // positive: short calls with one answer
	counted atomic.Bool  // it is a label of metrics
	wanted  atomic.Bool  // it shall be one once a call of it has succeeded
	stats   methodStats
}

func (m *methods) of(path string) *method {
	m.mu.Lock()
	defer m.mu.Unlock()
	x := m.known[path]
	if x == nil {
		if len(m.known) >= keptMethods && !m.forgetOne() {
			return &m.rest
		}
		x = &method{name: strings.TrimPrefix(path, "/")}
		m.classify(x)
		m.known[path] = x
	}
	return x
}

// forgetOne makes room by a path under which no call has succeeded, since clients can think of any number of paths, and reports whether it found one among a few
// that it looked at. mu is held.
func (m *methods) forgetOne() bool {
	tries := 8
	for path, x := range m.known { // which begins anywhere
		if x.stats.ended[codes.OK].Load() == 0 && !x.counted.Load() {
			delete(m.known, path)
			return true
		}
		if tries--; tries == 0 {
			break
		}
	}
	return false
}

// configure says which methods are labels of metrics: those that a route or the configuration names, and up to a number of those that match a pattern of the
// configuration. The latter become one with the first call that succeeds, since clients can think of any number of names.
func (m *methods) configure(c *config.Config) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.named, m.patterns, m.most, m.admitted = map[string]bool{}, nil, c.Metrics.MaxMethods, 0
	for _, r := range c.Routes {
		if r.Match.Method != "" {
			m.named[r.Match.Service+"/"+r.Match.Method] = true
		}
	}
	for _, text := range c.Metrics.Methods {
		if strings.HasSuffix(text, "*") {
			m.patterns = append(m.patterns, strings.TrimSuffix(text, "*"))
		} else {
			m.named[text] = true
		}
	}
	for _, x := range m.known {
		m.classify(x)
	}
}

// classify decides whether a method is a label of metrics. mu is held.
func (m *methods) classify(x *method) {
	was := x.counted.Load()
	matches := slices.ContainsFunc(m.patterns, func(start string) bool { return strings.HasPrefix(x.name, start) }) && isText(x.name)
	switch {
	case m.named[x.name]:
		x.counted.Store(true)
		x.wanted.Store(false)
	case matches && was && m.admitted < m.most:
		m.admitted++
	default:
		x.counted.Store(false)
		x.wanted.Store(matches && m.admitted < m.most)
	}
}

// admit makes a method a label of metrics, if there is room for one more.
func (m *methods) admit(x *method) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !x.wanted.Load() {
		return
	}
	x.wanted.Store(false)
	if m.admitted < m.most {
		m.admitted++
		x.counted.Store(true)
	}
}

// names are those of the methods that are labels.
func (m *methods) names() map[string]bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	all := map[string]bool{}
	for _, x := range m.known {
		if x.counted.Load() {
			all[x.name] = true
		}
	}
	return all
}

// isText reports whether a name can be a label as it is: printable ASCII, and of a length that gRPC's names have.
func isText(s string) bool {
	return len(s) <= 200 && strings.IndexFunc(s, func(r rune) bool { return r <= ' ' || r > '~' }) < 0
}

const shortCall = 500 * time.Millisecond

// saw learns from a call that has ended.
func (m *method) saw(requests, answers int, took time.Duration) {
	n := m.unary.Load()
	switch {
	case requests > 1 || answers > 1:
		if n > -8 {
			m.unary.Store(-8)
		}
	case took < shortCall && n < 8:
		m.unary.Add(1)
	case took >= shortCall && n > -8:
		m.unary.Add(-1)
	}
}
