package proxy

import (
	"sync/atomic"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/levada-io/levada/internal/proxy/health"
)

// Events are counted here with atomic numbers, to which the counting code already has a pointer. Names and sums are made on request: see Stats.

// Calls are counted by how long they took; the last bucket is all above.
var buckets = [...]time.Duration{100 * time.Microsecond, 250 * time.Microsecond, 500 * time.Microsecond, time.Millisecond, 2500 * time.Microsecond, 5 * time.Millisecond, 10 * time.Millisecond,
	25 * time.Millisecond, 50 * time.Millisecond, 100 * time.Millisecond, 250 * time.Millisecond, 500 * time.Millisecond, time.Second, 2500 * time.Millisecond, 5 * time.Second, 10 * time.Second,
	30 * time.Second, time.Minute, 5 * time.Minute, 15 * time.Minute, time.Hour, 4 * time.Hour, 12 * time.Hour, 24 * time.Hour}

func bucketOf(took time.Duration) int {
	i := 0
	for i < len(buckets) && took > buckets[i] {
		i++
	}
	return i
}

// statuses are those of gRPC. What a backend sends beyond them counts as UNKNOWN.
const statuses = 17

func statusOf(code codes.Code) codes.Code {
	if code >= statuses {
		return codes.Unknown
	}
	return code
}

// proxyStats are of the whole process.
type proxyStats struct {
	accepted atomic.Int64 // connections of clients
	fronts   atomic.Int64 // of them, those that are open
	refused  atomic.Int64 // streams above a connection's limit
	full     atomic.Int64 // times that a connection had as many streams as it may

	overBudgetCalls       atomic.Int64 // calls that were refused because their connection's abuse budget was used up
	overBudgetConnections atomic.Int64 // connections that were closed because theirs was used up twice over
	shortOfMemory         atomic.Int64 // calls that were refused, or ended, because of limits.memory
}

// routeKey is what calls are counted by: the route's name, and the method if it is counted by itself.
type routeKey struct{ route, method string }

// routeStats are those of a route's name, or of one of its methods: a reload does not set them back.
type routeStats struct {
	opened             atomic.Int64
	transparentRetries atomic.Int64
	retries            atomic.Int64
	overBudget         atomic.Int64

	refused  callStats             // of calls that were for no backend, because they were refused before one was chosen
	backends map[string]*callStats // of the others; Proxy.mu guards the map
}

// counters are where a route's calls are counted, or those of one of its methods.
type counters struct {
	stats    *routeStats
	clusters []*cluster
	calls    []*callStats // for each of clusters
}

// counters are those for calls of the method.
func (r *route) counters(p *Proxy, m *method) *counters {
	if !m.counted.Load() {
		return &r.all
	}
	if c, ok := r.byMethod.Load(m); ok {
		return c.(*counters)
	}
	stats := p.routeStats(routeKey{r.name, m.name})
	c, _ := r.byMethod.LoadOrStore(m, &counters{stats, r.clusters, p.callStats(stats, r.clusters)})
	return c.(*counters)
}

// traffic is how much of a call has been counted: what open calls have carried is added to the counters when somebody looks, and at their end.
type traffic struct {
	requests, answers           int
	requestBytes, responseBytes int64
}

// callStats are of the calls of a route that ended at one backend, but for messages and bytes, which are of the open ones, too.
type callStats struct {
	ended         [statuses]atomic.Int64
	reasons       [len(reasons)]atomic.Int64
	took          [len(buckets) + 1]atomic.Int64
	tookSum       atomic.Int64 // nanoseconds
	resets        atomic.Int64 // of them, those that the backend ended with RST_STREAM
	requests      atomic.Int64 // messages from clients
	answers       atomic.Int64 // messages to clients
	requestBytes  atomic.Int64
	responseBytes atomic.Int64
}

// methodStats are of one method, for people: its name is the client's, so it is no label of a metric.
type methodStats struct {
	opened  atomic.Int64
	ended   [statuses]atomic.Int64
	took    [len(buckets) + 1]atomic.Int64
	tookSum atomic.Int64 // nanoseconds
}

// clusterStats are those of a backend.
type clusterStats struct {
	connections   atomic.Int64 // open
	connected     atomic.Int64 // ever
	connectFailed atomic.Int64
	ejections     atomic.Int64
	goAways       atomic.Int64
	overloaded    atomic.Int64 // calls that were refused because each endpoint had as many as it may
	checks        [len(health.Results)]atomic.Int64
}

var reasons = [...]string{endedByBackend, clientCancelled, clientDisconnected, clientProtocolError, reasonConnectionLost, reasonConnectFailed, reasonNoBackend, reasonOverloaded, reasonRefused,
	reasonProtocol, reasonNoStatus, reasonCutMessage, reasonNotGRPC, reasonDeadline, reasonIdle, reasonNoRoute, reasonRateLimit, reasonMessageSize,
	reasonHeaderSize, reasonBadRequest, reasonStalled, reasonMemory, reasonOverBudget, reasonHidden, reasonDraining, reasonAge}

func reasonIndex(reason string) int {
	for i := range reasons {
		if reasons[i] == reason {
			return i
		}
	}
	panic("proxy: the reason " + reason + " is not counted")
}

func (p *Proxy) routeStats(key routeKey) *routeStats {
	p.mu.Lock()
	defer p.mu.Unlock()
	r := p.routes[key]
	if r == nil {
		r = &routeStats{backends: map[string]*callStats{}}
		p.routes[key] = r
	}
	return r
}

// forgetRoutes drops what was counted of routes and methods that are not configured any more and have no open calls, so that reloads do not accumulate series.
func (p *Proxy) forgetRoutes(s *state) {
	methods := p.methods.names()
	methods[""] = true
	configured := map[string]bool{s.nowhere.name: true}
	for _, r := range s.routes {
		configured[r.name] = true
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for key, r := range p.routes {
		if !(configured[key.route] && methods[key.method]) && r.open() == 0 {
			delete(p.routes, key)
		}
	}
}

// open is the number of open calls. Proxy.mu is held.
func (r *routeStats) open() int64 {
	ended := r.refused.count()
	for _, c := range r.backends {
		ended += c.count()
	}
	return r.opened.Load() - ended // read in this order it is never negative
}

// callStats are the counters of a route's calls to each of its clusters.
func (p *Proxy) callStats(r *routeStats, clusters []*cluster) []*callStats {
	p.mu.Lock()
	defer p.mu.Unlock()
	all := make([]*callStats, len(clusters))
	for i, x := range clusters {
		c := r.backends[x.name]
		if c == nil {
			c = &callStats{}
			r.backends[x.name] = c
		}
		all[i] = c
	}
	return all
}

// callStats are those for a call that was for c; nil for none.
func (r *counters) callStats(c *cluster) *callStats {
	if c != nil {
		for i, x := range r.clusters {
			if x.name == c.name { // a reload may have made another one of the name
				return r.calls[i]
			}
		}
	}
	return &r.stats.refused
}

// countBegun counts a call.
func (s *stream) countBegun() {
	s.counted = s.call.route.counters(s.front.proxy, s.call.method)
	s.counted.stats.opened.Add(1)
	s.call.method.stats.opened.Add(1)
}

// countEnded counts the end of a call. The lock of its front is held.
func (s *stream) countEnded(took time.Duration) {
	status, bucket := statusOf(s.code), bucketOf(took)
	c := s.counted.callStats(s.cluster)
	c.ended[status].Add(1)
	c.reasons[reasonIndex(s.reason)].Add(1)
	c.took[bucket].Add(1)
	c.tookSum.Add(int64(took))
	if s.resets && s.reason == endedByBackend {
		c.resets.Add(1)
	}
	s.countTraffic(c)
	m := s.call.method
	m.stats.ended[status].Add(1)
	m.stats.took[bucket].Add(1)
	m.stats.tookSum.Add(int64(took))
	if status == codes.OK && s.grpc && s.reason == endedByBackend && m.wanted.Load() {
		s.front.proxy.methods.admit(m)
	}
}

// countTraffic adds what the call has carried since it was counted last. The lock of its front is held, so nothing is counted twice.
func (s *stream) countTraffic(c *callStats) {
	now := traffic{s.inMessages.count, s.outMessages.count, s.inBytes, s.outBytes}
	if now == s.traffic {
		return
	}
	for _, n := range [...]struct {
		to *atomic.Int64
		n  int64
	}{{&c.requests, int64(now.requests - s.traffic.requests)}, {&c.answers, int64(now.answers - s.traffic.answers)},
		{&c.requestBytes, now.requestBytes - s.traffic.requestBytes}, {&c.responseBytes, now.responseBytes - s.traffic.responseBytes}} {
		if n.n != 0 {
			n.to.Add(n.n)
		}
	}
	s.traffic = now
}

// countOpen adds what open calls have carried to the counters. To do so when somebody looks, and not with each frame, costs calls nothing.
func (p *Proxy) countOpen() {
	for _, f := range p.allFronts() {
		f.mu.Lock()
		for _, s := range f.streams {
			if s.cluster != nil && s.counted != nil {
				s.countTraffic(s.counted.callStats(s.cluster))
			}
		}
		f.mu.Unlock()
	}
}

func (c *callStats) count() (n int64) {
	for i := range c.ended {
		n += c.ended[i].Load()
	}
	return n
}
