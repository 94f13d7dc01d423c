package proxy

import (
	"net/http"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"
	"weak"

	"github.com/levada-io/levada/internal/proxy/balance"
)

// Limits of the calls that an endpoint has at the same time, and the queue of those for which there is no room.

// overloadedAfter is when a client is asked to come back.
const overloadedAfter = time.Second

// openCalls are the calls that one backend has at one address. Every endpoint with this backend's name and address shares them: one that discovery has removed and found
// again, and one of a backend that a reload has replaced. Calls that are open at the former endpoint count, so that the server behind it never has more than it may.
type openCalls struct {
	n atomic.Int32
	// serves has the queue for room that becomes free: the backend that was configured last of those with an endpoint here.
	serves atomic.Pointer[cluster]
}

// callCounts finds openCalls again for as long as an endpoint, or a call at one, refers to them.
type callCounts struct {
	mu  sync.Mutex
	all map[callsKey]weak.Pointer[openCalls]
}

type callsKey struct{ backend, address string }

// of returns those for an endpoint of the backend that is being made.
func (c *callCounts) of(x *cluster, address string) *openCalls {
	key := callsKey{x.name, address}
	c.mu.Lock()
	defer c.mu.Unlock()
	calls := c.all[key].Value()
	if calls == nil {
		calls = &openCalls{}
		if c.all == nil {
			c.all = map[callsKey]weak.Pointer[openCalls]{}
		}
		c.all[key] = weak.Make(calls)
		runtime.AddCleanup(calls, c.forget, key)
	}
	if now := calls.serves.Load(); now == nil || now.number <= x.number { // one that is about to be replaced may still find endpoints
		calls.serves.Store(x)
	}
	return calls
}

// forget drops what nobody refers to any more.
func (c *callCounts) forget(key callsKey) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.all[key].Value() == nil {
		delete(c.all, key)
	}
}

// reserve takes a place for a call at the endpoint; limit 0 is none.
// It counts first and looks then, so two calls cannot both get the last place. The counter may be above the limit for a moment, the number of calls never is. A call that
// fails because of the other's moment is tried again by pick.
func (e *endpoint) reserve(limit int) bool {
	if e.calls.n.Add(1) <= int32(limit) || limit == 0 {
		return true
	}
	e.calls.n.Add(-1)
	return false
}

// below reports whether the endpoint has room for a call.
func (e *endpoint) below(limit int) bool { return limit == 0 || e.calls.n.Load() < int32(limit) }

// pick chooses an endpoint, at which it takes a place for the call; nil if there is none. Full: there are some, and no room at any of them.
func (c *cluster) pick(kind balance.Kind, avoid *chosen) (b *chosen, full bool) {
	limit := c.config().Limits.CallsPerEndpoint
	for {
		b := c.choose(kind, avoid, limit)
		if b == nil {
			return nil, limit > 0 && len(c.set.Backends()) > 0
		}
		// The place that choose saw may be gone. Then another endpoint is looked for.
		if b.Of.reserve(limit) {
			return b, false
		}
	}
}

func (c *cluster) choose(kind balance.Kind, avoid *chosen, limit int) *chosen {
	now := c.proxy.now()
	if limit == 0 { // without closures, which would be memory for each call
		if b := c.set.Pick(kind, now, avoid, healthy); b != nil {
			return b
		}
	}
	room := func(b *chosen) bool { return b.Of.below(limit) }
	if b := c.set.Pick(kind, now, avoid, func(b *chosen) bool { return healthy(b) && room(b) }); b != nil {
		return b
	}
	for _, b := range c.set.Backends() { // an ejected one that can be connected to is better than one that cannot
		if b != avoid && healthy(b) && room(b) {
			return b
		}
	}
	if limit > 0 && slices.ContainsFunc(c.set.Backends(), healthy) {
		return nil // those that work are full, and what they cannot take must not go to those that do not work
	}
	// Checks that fail for all endpoints say more of the checks than of the endpoints.
	if b := c.set.Pick(kind, now, avoid, func(b *chosen) bool { return b.Of.usable() && room(b) }); b != nil {
		return b
	}
	return c.set.Pick(kind, now, avoid, room)
}

// healthy reports whether calls may be given to an endpoint, as far as is known.
func healthy(b *chosen) bool { return !b.Of.unhealthy.Load() && b.Of.usable() }

// hasRoom reports whether choose would find an endpoint for a call that waits. It must not say so where choose finds none, or a call would be tried again and again.
func (c *cluster) hasRoom() bool {
	limit := c.config().Limits.CallsPerEndpoint
	working, room := false, false
	for _, b := range c.set.Backends() {
		below := b.Of.below(limit)
		if healthy(b) {
			if below {
				return true
			}
			working = true
		}
		room = room || below
	}
	return room && !working
}

// enqueue makes a call wait for room at an endpoint, unless as many do as may. One that waits keeps its place.
func (c *cluster) enqueue(s *stream) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	r := ref{s, s.id}
	if slices.Contains(c.queue, r) {
		return true
	}
	if len(c.queue) >= c.config().Limits.Waiting {
		return false
	}
	c.queue = append(c.queue, r)
	c.queued.Store(int32(len(c.queue)))
	return true
}

// dequeue takes the call from the queue that has waited longest.
func (c *cluster) dequeue() (ref, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.queue) == 0 {
		return ref{}, false
	}
	r := c.queue[0]
	c.queue = c.queue[1:]
	c.queued.Store(int32(len(c.queue)))
	return r, true
}

// leaveQueue takes a call from the queue. c.mu is held.
func (c *cluster) leaveQueue(s *stream) {
	if i := slices.Index(c.queue, ref{s, s.id}); i >= 0 {
		c.queue = slices.Delete(c.queue, i, i+1)
		c.queued.Store(int32(len(c.queue)))
	}
}

// serveQueue places calls that wait, while there is room. No lock is held.
func (c *cluster) serveQueue(w *wakeups) {
	for n := c.queued.Load(); n > 0 && c.hasRoom(); n-- {
		r, ok := c.dequeue()
		if !ok {
			return
		}
		r.s.front.mu.Lock()
		if r.current() && r.s.cluster == c && r.s.chosen == nil && r.s.waitEnd != 0 && !r.s.outEnd {
			r.s.dispatch(w)
		}
		r.s.front.mu.Unlock()
	}
}

// overloaded ends a call for which no endpoint has room.
func (s *stream) overloaded(w *wakeups) {
	limits := s.cluster.config().Limits
	s.cluster.stats.overloaded.Add(1)
	why := "as many wait as may"
	switch {
	case limits.Waiting == 0:
		why = "calls do not wait"
	case s.waitEnd != 0:
		why = "there was no room within " + limits.WaitTimeout.String()
	}
	e := unavailable(reasonOverloaded, "each endpoint of %s has %d calls, which is its limit, and %s", s.cluster.name, limits.CallsPerEndpoint, why)
	e.unprocessed, e.http, e.retry = true, http.StatusServiceUnavailable, overloadedAfter
	s.end(e, w)
}
