package proxy

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// of returns the counters of a route and method at a backend.
func (s Stats) of(method, backend string) CallStats {
	for _, r := range s.Routes {
		for _, c := range r.Calls {
			if r.Method == method && c.Backend == backend && r.Route != "none" {
				return c
			}
		}
	}
	return CallStats{}
}

// A stream may be open for days. Messages and bytes that are counted at its end only would show nothing all that time, and then a peak that never was.
func TestCountersMoveDuringAStream(t *testing.T) {
	back := listenEcho(t)
	p := start(t, oneBackend(back.addr()))
	c := dial(t, p.addr)
	id := c.begin(false)
	const size = 105 // with its prefix
	for n := int64(1); n <= 3; n++ {
		c.data(id, prefixed(make([]byte, 100)), false)
		eventually(t, "the message is counted both ways", func() bool {
			got := p.Stats().of("", "one")
			return got.Requests == n && got.Responses == n && got.RequestBytes == n*size && got.ResponseBytes == n*size
		})
	}
	if got := p.Stats().of("", "one"); got.ByStatus != [statuses]int64{} {
		t.Errorf("the call has not ended: %v", got.ByStatus)
	}
	c.data(id, nil, true)
	c.end(id)
	eventually(t, "the end is counted", func() bool { return p.Stats().of("", "one").ByStatus[0] == 1 })
	if got := p.Stats().of("", "one"); got.Requests != 3 || got.Responses != 3 || got.RequestBytes != 3*size || got.ResponseBytes != 3*size {
		t.Errorf("counted twice, or not at all: %+v", got)
	}
}

// Counters that go back look like a restart of the proxy, and make rates of millions. They never do, while calls begin, go on and end as others look; and at the end
// all is counted once.
func TestCountersNeverGoBack(t *testing.T) {
	back := listenEcho(t)
	p := start(t, oneBackend(back.addr()))
	const clients, calls, messages = 4, 30, 5
	var looking, calling sync.WaitGroup
	done := make(chan struct{})
	for range 2 {
		looking.Go(func() {
			var before CallStats
			for {
				now := p.Stats().of("", "one")
				if now.Requests < before.Requests || now.Responses < before.Responses || now.RequestBytes < before.RequestBytes || now.ResponseBytes < before.ResponseBytes {
					t.Errorf("%+v after %+v", now, before)
					return
				}
				before = now
				select {
				case <-done:
					return
				case <-time.After(time.Millisecond):
				}
			}
		})
	}
	for range clients {
		c := dial(t, p.addr)
		calling.Go(func() {
			for range calls {
				id := c.begin(false)
				for range messages {
					c.data(id, prefixed([]byte("abc")), false)
				}
				c.data(id, nil, true)
				c.end(id)
			}
		})
	}
	calling.Wait()
	const all = clients * calls * messages
	eventually(t, "all is counted", func() bool { return p.Stats().of("", "one").ByStatus[0] == clients*calls })
	close(done)
	looking.Wait()
	if got := p.Stats().of("", "one"); got.Requests != all || got.Responses != all || got.RequestBytes != all*8 || got.ResponseBytes != all*8 {
		t.Errorf("%+v, want %d messages", got, all)
	}
}

// Quick calls and streams of a day are distinguished from others of their kind.
func TestBucketsReachFromBelowAMillisecondToADay(t *testing.T) {
	if buckets[0] > 250*time.Microsecond || buckets[len(buckets)-1] < 24*time.Hour {
		t.Errorf("from %v to %v", buckets[0], buckets[len(buckets)-1])
	}
	for i := 1; i < len(buckets); i++ {
		if buckets[i] <= buckets[i-1] || buckets[i] > 5*buckets[i-1] {
			t.Errorf("%v follows %v: a quantile between them says nothing", buckets[i], buckets[i-1])
		}
	}
}

// A removed endpoint that still carries streams is what an operator looks for in a rollout. It stays until the last of them has ended, also when its address is there
// again, or its backend has been replaced.
func TestRemovedEndpointsAreShownWhileTheyCarryStreams(t *testing.T) {
	first, second := listenEcho(t), listenEcho(t)
	f := newFiles(t, first.addr())
	p := start(t, oneBackend(f.target()))
	c := dial(t, p.addr)
	open := func() uint32 {
		id := c.begin(false)
		c.headersOf(id)
		return id
	}
	end := func(id uint32) {
		c.data(id, nil, true)
		if a := c.end(id); a.status() != "0" {
			t.Errorf("status %s (%s)", a.status(), a.reason())
		}
	}
	// shows waits until the endpoints are these, as address, open calls and whether it was removed.
	shows := func(what string, want ...string) {
		t.Helper()
		var got []string
		defer func() {
			if t.Failed() {
				t.Logf("%s: %v, want %v", what, got, want)
			}
		}()
		eventually(t, what, func() bool {
			got = nil
			for _, b := range p.Stats().Backends {
				for _, e := range b.Endpoints {
					got = append(got, fmt.Sprintf("%s %d %v", strings.NewReplacer(first.addr(), "first", second.addr(), "second").Replace(e.Address), e.Open, e.Removed))
				}
			}
			slices.Sort(got)
			slices.Sort(want)
			return slices.Equal(got, want)
		})
	}
	a := open()
	shows("one", "first 1 false")
	f.write(second.addr())
	shows("removed", "second 0 false", "first 1 true")
	if v := p.Backends()[0].Endpoints; len(v) != 2 || v[1].State != StateRemoved || v[1].Streams+v[1].Unary != 1 {
		t.Errorf("%+v", v)
	}
	b := open()
	f.write(second.addr(), first.addr())
	shows("there again", "second 1 false", "first 1 false")
	end(a)
	shows("ended", "second 1 false", "first 0 false")
	replaced := parse(t, oneBackend(first.addr()))
	if err := p.Reload(replaced); err != nil {
		t.Fatal(err)
	}
	shows("replaced", "first 0 false", "second 1 true")
	end(b)
	shows("gone", "first 0 false")
}

// Methods that clients invent become no series; those that the configuration names always do, and those that match a pattern once they were served, up to a number.
func TestMethodsAreCountedByThemselves(t *testing.T) {
	back := listen(t)
	p := start(t, oneBackend(back.addr())+`- match: {service: shop.Orders, method: Watch}
  backend: one
metrics: {methods: [shop.Cart/Add, shop.Stock/*, 'shop.wide.*'], maxMethods: 3}
`)
	c := dial(t, p.addr)
	var e *wire
	call := func(path, status string) {
		t.Helper()
		id := c.next
		c.next += 2
		fields := request()
		for i := range fields {
			if fields[i] == testMethod {
				fields[i] = path
			}
		}
		c.headers(id, true, fields...)
		if e == nil {
			e = back.accept()
		}
		r := e.takeRequest()
		e.only(r.id, status)
		c.end(id)
	}
	call("/shop.Orders/Watch", "5") // a name in a route, also when it fails
	call("/shop.Cart/Add", "0")
	call("/shop.Cart/Other", "0") // not asked for
	call("/shop.Stock/Get", "0")  // the first is still among the others
	call("/shop.Stock/Get", "0")
	for i := range 5 { // invented
		call(fmt.Sprintf("/shop.Stock/Scan%d", i), "12")
		call(fmt.Sprintf("/shop.Stock/Scan%d", i), "12")
	}
	for i := range 5 { // more than there is room for
		call(fmt.Sprintf("/shop.wide.S%d/Do", i), "0")
		call(fmt.Sprintf("/shop.wide.S%d/Do", i), "0")
	}
	counts := func() string {
		var all []string
		for _, r := range p.Stats().Routes {
			if r.Opened > 0 {
				all = append(all, fmt.Sprintf("%s %s %d", r.Route, r.Method, r.Opened))
			}
		}
		return strings.Join(all, "\n")
	}
	const want = `*  20
* shop.Cart/Add 1
* shop.Stock/Get 1
* shop.wide.S0/Do 1
* shop.wide.S1/Do 1
shop.Orders/Watch shop.Orders/Watch 1`
	eventually(t, "all are counted", func() bool { return counts() == want || t.Context().Err() != nil })
	if err := p.Reload(parse(t, oneBackend(back.addr()))); err != nil {
		t.Fatal(err)
	}
	if got := counts(); got != "*  20" {
		t.Errorf("after a reload without them:\n%s", got)
	}
}
