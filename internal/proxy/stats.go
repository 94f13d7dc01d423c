package proxy

import (
	"sync/atomic"
	"time"

	"google.golang.org/grpc/codes"
)

// What happens is counted here with atomic numbers that whoever counts already has a pointer to. Names and sums are made when somebody looks: see Stats.

// Calls are counted by how long they took; the last bucket is all above.
var buckets = [...]time.Duration{500 * time.Microsecond, time.Millisecond, 2500 * time.Microsecond, 5 * time.Millisecond, 10 * time.Millisecond, 25 * time.Millisecond,
	50 * time.Millisecond, 100 * time.Millisecond, 250 * time.Millisecond, 500 * time.Millisecond, time.Second, 2500 * time.Millisecond, 5 * time.Second, 10 * time.Second, time.Minute, 10 * time.Minute}

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
	accepted atomic.Int64 // connections of callers
	fronts   atomic.Int64 // of them, those that are open
	refused  atomic.Int64 // streams above a connection's limit
	full     atomic.Int64 // times that a connection had as many streams as it may

	overBudgetCalls       atomic.Int64 // calls that were refused because their connection's abuse budget was used up
	overBudgetConnections atomic.Int64 // connections that were closed because theirs was used up twice over
	shortOfMemory         atomic.Int64 // calls that were refused, or ended, because of limits.memory
}

// routeStats are those of a route's name: a reload does not set them back.
type routeStats struct {
	opened     atomic.Int64
	replays    atomic.Int64
	retries    atomic.Int64
	overBudget atomic.Int64

	refused  callStats             // of calls that were for no backend, because they were refused before one was chosen
	backends map[string]*callStats // of the others; Proxy.mu guards the map
}

// callStats are of the calls of a route that ended at one backend.
type callStats struct {
	ended         [statuses]atomic.Int64
	reasons       [len(reasons)]atomic.Int64
	took          [len(buckets) + 1]atomic.Int64
	tookSum       atomic.Int64 // nanoseconds
	resets        atomic.Int64 // of them, those that the backend ended with RST_STREAM
	requests      atomic.Int64 // messages from callers
	answers       atomic.Int64 // messages to callers
	requestBytes  atomic.Int64
	responseBytes atomic.Int64
}

// methodStats are of one method, for people: its name is the caller's, so it is no label of a metric.
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
}

var reasons = [...]string{endedByBackend, endedByCaller, callerGone, callerProtocol, reasonConnectionLost, reasonConnectFailed, reasonNoBackend, reasonRefused,
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

func (p *Proxy) routeStats(name string) *routeStats {
	p.mu.Lock()
	defer p.mu.Unlock()
	r := p.routes[name]
	if r == nil {
		r = &routeStats{backends: map[string]*callStats{}}
		p.routes[name] = r
	}
	return r
}

// forgetRoutes drops what was counted of routes that are not configured any more and have no open calls, so that reloads add nothing for ever.
func (p *Proxy) forgetRoutes(s *state) {
	configured := map[string]bool{s.nowhere.name: true}
	for _, r := range s.routes {
		configured[r.name] = true
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for name, r := range p.routes {
		if !configured[name] && r.open() == 0 {
			delete(p.routes, name)
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
func (r *route) callStats(c *cluster) *callStats {
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
	s.counted = s.call.route
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
	for _, n := range [...]struct {
		to *atomic.Int64
		n  int64
	}{{&c.requests, int64(s.inMessages.count)}, {&c.answers, int64(s.outMessages.count)}, {&c.requestBytes, s.inBytes}, {&c.responseBytes, s.outBytes}} {
		if n.n != 0 {
			n.to.Add(n.n)
		}
	}
	m := &s.call.method.stats
	m.ended[status].Add(1)
	m.took[bucket].Add(1)
	m.tookSum.Add(int64(took))
}

func (c *callStats) count() (n int64) {
	for i := range c.ended {
		n += c.ended[i].Load()
	}
	return n
}
