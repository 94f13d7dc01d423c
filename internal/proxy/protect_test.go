package proxy

import (
	"context"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/http2"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	grpchealth "google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/levada-io/levada/internal/proxy/config"
	"github.com/levada-io/levada/internal/proxy/health"
)

// Pings of a route.

// A server that hangs under a stream which has been idle for long is found within the route's interval and timeout, although the backend's pings are gentle: those would
// be minutes apart by now.
func TestRoutePingFindsAServerThatHangsUnderAnIdleStream(t *testing.T) {
	back := listen(t)
	p := start(t, oneBackend(back.addr(), "backend: ping: {interval: 50ms, timeout: 10s, gentle: true}", "route: ping: {interval: 100ms, timeout: 300ms}"))
	c := dial(t, p.addr)
	id := c.begin(false)
	e := back.accept()
	e.respond(e.takeRequest().id)
	pings := func() int { return e.seen(func(e *event) bool { return e.kind == http2.FramePing && !e.ack }) }
	eventually(t, "more pings in a silence than a gentle proxy sends", func() bool { return pings() > 2*gentlePings })
	e.fallSilent()
	began := time.Now()
	if a := c.end(id); a.status() != "14" || a.reason() != reasonConnectionLost {
		t.Errorf("ended with %s (%s)", a.status(), a.reason())
	}
	if took := time.Since(began); took > 5*time.Second { // 400 ms on a machine with time
		t.Errorf("after %v", took)
	}
}

// Once the last stream of such a route has gone, the connection is pinged as the backend says.
func TestRoutePingEndsWithItsStreams(t *testing.T) {
	back := listen(t)
	p := start(t, oneBackend(back.addr(), "backend: ping: {interval: 0s}")+"- match: {service: often}\n  backend: one\n  ping: {interval: 50ms}\n")
	c := dial(t, p.addr)
	quiet := c.begin(false)
	e := back.accept()
	first := e.takeRequest()
	e.respond(first.id)
	pings := func() int { return e.seen(func(e *event) bool { return e.kind == http2.FramePing && !e.ack }) }
	if e.settle(); pings() > 0 {
		t.Errorf("%d pings before", pings())
	}
	id := c.next
	c.next += 2
	fields := request()
	fields[5] = "/often/Call"
	c.headers(id, true, fields...)
	r := e.takeRequest()
	eventually(t, "pings", func() bool { return pings() > 3 })
	e.only(r.id, "0")
	c.end(id)
	e.settle()
	was := pings()
	never(t, "it is still pinged", 400*time.Millisecond, func() bool { return pings() > was+1 })
	e.finish(first.id, "0")
	c.end(quiet)
}

// A grpc-go server with its default policy closes a connection that pings so often. That happens once: from then on the proxy is gentle, and streams live.
func TestTooManyPingsHappensOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		handler := func(_ any, s grpc.ServerStream) error {
			for {
				if err := s.RecvMsg(&emptypb.Empty{}); err != nil {
					if err == io.EOF {
						return nil
					}
					return err
				}
			}
		}
		c, b, stop := virtual(t, time.Millisecond, []string{"route: ping: {interval: 10s, timeout: 5s}", "listener: keepalive: {interval: 0s}"}, handler)
		defer stop()
		id := c.begin(false)
		if a, err := c.endFor(id, time.Hour); err != nil || a.status() != "14" {
			t.Fatalf("%v %v", a, err)
		}
		if !b.endpoint.calm.Load() {
			t.Fatal("the proxy has not noticed why")
		}
		b.mu.Lock()
		b.asked = map[config.RoutePing]int{{Interval: time.Second, Timeout: time.Second}: 1}
		ping := b.ping()
		b.mu.Unlock()
		if !ping.Gentle || ping.Interval != 5*time.Second {
			t.Errorf("then it pings with %+v", ping)
		}
	})
}

// Limits of open calls.

// No endpoint ever has more calls than the limit; what does not fit is refused at once, with a reason that says that nothing was done.
func TestCallsAboveTheLimitAreRefused(t *testing.T) {
	back := listen(t)
	p := start(t, oneBackend(back.addr(), "backend: limits: {callsPerEndpoint: 3}"))
	c := dial(t, p.addr)
	var open []uint32
	var requests []event
	for range 3 {
		open = append(open, c.begin(false))
	}
	e := back.accept()
	for range 3 {
		requests = append(requests, e.takeRequest())
	}
	for range 5 {
		a := c.end(c.begin(true))
		if a.status() != "14" || a.reason() != reasonOverloaded || !a.unprocessed(t) {
			t.Errorf("%s (%s)", a.status(), a.reason())
		}
		if d := a.details(t); d == nil || len(d.Details) != 2 {
			t.Errorf("no RetryInfo: %v", d)
		}
	}
	e.finishAll(requests[:1])
	c.end(open[0])
	again := c.begin(true)
	e.only(e.takeRequest().id, "0")
	if a := c.end(again); a.status() != "0" {
		t.Errorf("after a call has ended: %s (%s)", a.status(), a.reason())
	}
	if b := p.Stats().Backends[0]; b.Overloaded != 5 || b.Waiting != 0 {
		t.Errorf("%+v", b)
	}
	e.finishAll(requests[1:])
}

// finishAll answers requests.
func (p *wire) finishAll(requests []event) {
	for _, r := range requests {
		p.only(r.id, "0")
	}
}

// Calls that may wait are served in the order in which they came, each as soon as there is room; a call too many, and one that waited too long, are refused; one that
// its client cancelled takes no room.
func TestCallsWaitForRoom(t *testing.T) {
	back := listen(t)
	p := start(t, oneBackend(back.addr(), "backend: limits: {callsPerEndpoint: 1, waiting: 3, waitTimeout: 30s}"))
	c := dial(t, p.addr)
	begin := func(name string) uint32 { return c.begin(true, "call-id", name) }
	ids := []uint32{begin("running")}
	e := back.accept()
	running := e.takeRequest()
	waits := func(n int64) {
		t.Helper()
		eventually(t, fmt.Sprintf("%d wait", n), func() bool { return p.Stats().Backends[0].Waiting == n })
	}
	for i, name := range []string{"a", "cancelled", "b"} {
		ids = append(ids, begin(name))
		waits(int64(i + 1))
	}
	if a := c.end(begin("too many")); a.status() != "14" || a.reason() != reasonOverloaded {
		t.Errorf("one too many: %s (%s)", a.status(), a.reason())
	}
	c.rstStream(ids[2], http2.ErrCodeCancel)
	waits(2)
	e.only(running.id, "0")
	for _, want := range []string{"a", "b"} {
		r := e.takeRequest()
		if got := r.get("call-id"); got != want {
			t.Errorf("%s comes when %s should", got, want)
		}
		e.only(r.id, "0")
	}
	for i, id := range ids {
		if i == 2 {
			continue
		}
		if a := c.end(id); a.status() != "0" {
			t.Errorf("call %d: %s (%s)", i, a.status(), a.reason())
		}
	}
	waits(0)
}

func TestCallsWaitNoLongerThanTheyMay(t *testing.T) {
	back := listen(t)
	p := start(t, oneBackend(back.addr(), "backend: limits: {callsPerEndpoint: 1, waiting: 10, waitTimeout: 50ms}"))
	c := dial(t, p.addr)
	first := c.begin(true)
	e := back.accept()
	r := e.takeRequest()
	if a := c.end(c.begin(true)); a.status() != "14" || a.reason() != reasonOverloaded || !a.unprocessed(t) {
		t.Errorf("%s (%s)", a.status(), a.reason())
	}
	e.only(r.id, "0")
	c.end(first)
	if s := p.Stats().Backends[0]; s.Waiting != 0 || s.Overloaded != 1 {
		t.Errorf("%+v", s)
	}
}

// Under load from many connections no endpoint has more than its limit at any moment, none of the calls is lost, and all places are given back.
func TestLimitIsExactUnderLoad(t *testing.T) {
	const limit, clients, calls = 4, 6, 40
	var mu sync.Mutex
	most := map[string]int{}
	server := func() string {
		var open int
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		address := l.Addr().String()
		s := grpc.NewServer(grpc.UnknownServiceHandler(func(_ any, s grpc.ServerStream) error {
			mu.Lock()
			open++
			most[address] = max(most[address], open)
			mu.Unlock()
			time.Sleep(time.Millisecond)
			mu.Lock()
			open--
			mu.Unlock()
			return nil
		}))
		var serving sync.WaitGroup
		serving.Go(func() { _ = s.Serve(l) })
		t.Cleanup(func() { s.Stop(); serving.Wait() })
		return address
	}
	p := start(t, oneBackend(server()+","+server(), fmt.Sprintf("backend: limits: {callsPerEndpoint: %d, waiting: 1000, waitTimeout: 1m}", limit)))
	var calling sync.WaitGroup
	for range clients {
		c := dial(t, p.addr)
		calling.Go(func() {
			for range calls / 5 {
				var ids []uint32
				for range 5 {
					ids = append(ids, c.begin(true))
				}
				for _, id := range ids {
					if a, err := c.endFor(id, 4*patience); err != nil || a.status() != "0" {
						t.Errorf("%v, %v", a.status(), err)
						return
					}
				}
			}
		})
	}
	calling.Wait()
	mu.Lock()
	defer mu.Unlock()
	for address, n := range most {
		// The server may count a call that the proxy has given back as one that is still open: it sends the status before its handler's frame is gone.
		if n > limit+1 {
			t.Errorf("%s had %d calls at a time", address, n)
		}
	}
	for _, b := range p.state.Load().clusters["one"].set.Backends() {
		if n := b.Of.calls.n.Load(); n != 0 {
			t.Errorf("%d places were not given back", n)
		}
	}
}

// Health.

// healthServer is a server of grpc.health.v1 and of everything else, which it answers with OK and its name.
type healthServer struct {
	*grpchealth.Server
	address string
	mu      sync.Mutex
	hangs   bool
}

func (h *healthServer) Check(ctx context.Context, r *healthv1.HealthCheckRequest) (*healthv1.HealthCheckResponse, error) {
	h.mu.Lock()
	hangs := h.hangs
	h.mu.Unlock()
	if hangs {
		<-ctx.Done()
		return nil, status.FromContextError(ctx.Err()).Err()
	}
	return h.Server.Check(ctx, r)
}

func (h *healthServer) hang(yes bool) { h.mu.Lock(); h.hangs = yes; h.mu.Unlock() }

func newHealthServer(t *testing.T, withHealth bool) *healthServer {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	h := &healthServer{Server: grpchealth.NewServer(), address: l.Addr().String()}
	s := grpc.NewServer(grpc.UnknownServiceHandler(func(_ any, s grpc.ServerStream) error {
		if method, _ := grpc.MethodFromServerStream(s); strings.HasPrefix(method, "/grpc.health") {
			return status.Error(codes.Unimplemented, "unknown service")
		}
		s.SetTrailer(map[string][]string{"server": {h.address}})
		return nil
	}))
	if withHealth {
		healthv1.RegisterHealthServer(s, h)
	}
	var serving sync.WaitGroup
	serving.Go(func() { _ = s.Serve(l) })
	t.Cleanup(func() { s.Stop(); serving.Wait() })
	return h
}

// states are those of the endpoints by address.
func (p *running) states() map[string]EndpointView {
	all := map[string]EndpointView{}
	for _, e := range p.Backends()[0].Endpoints {
		all[e.Address] = e
	}
	return all
}

const quickChecks = "backend: healthCheck: {interval: 20ms, timeout: 500ms, unhealthyThreshold: 3, healthyThreshold: 2%s}"

// A server that says that it does not serve gets no new calls, at once and without one that had to fail; nor does one that does not answer. Both get calls again once
// they serve. When none is healthy, calls are tried: a check that is wrong must not be an outage.
func TestUnhealthyEndpointsGetNoCalls(t *testing.T) {
	a, b := newHealthServer(t, true), newHealthServer(t, true)
	p := start(t, oneBackend(a.address+","+b.address, fmt.Sprintf(quickChecks, "")))
	c := dial(t, p.addr)
	goTo := func(what string, want ...*healthServer) {
		t.Helper()
		got := map[string]int{}
		// One that answered slowly once gets fewer calls for a while.
		for end, n := time.Now().Add(patience), 0; time.Now().Before(end) && (len(got) < len(want) || n < 40); n++ {
			r := c.unary(nil)
			if r.status() != "0" {
				t.Fatalf("%s: %s (%s)", what, r.status(), r.reason())
			}
			got[r.trailers.get("server")]++
		}
		for _, h := range want {
			if got[h.address] == 0 {
				t.Errorf("%s: %s gets no calls: %v", what, h.address, got)
			}
		}
		if len(got) != len(want) {
			t.Errorf("%s: calls go to %v, want %d of them", what, got, len(want))
		}
	}
	unhealthy := func(h *healthServer, want bool) {
		t.Helper()
		eventually(t, "the checks are seen", func() bool { s := p.states()[h.address]; return s.Health != "" && (s.State == StateUnhealthy) == want })
	}
	unhealthy(a, false)
	unhealthy(b, false)
	goTo("both serve", a, b)
	a.SetServingStatus("", healthv1.HealthCheckResponse_NOT_SERVING)
	unhealthy(a, true)
	goTo("one says NOT_SERVING", b)
	if s := p.states()[a.address]; !strings.Contains(s.Health, "NOT_SERVING") {
		t.Errorf("%+v", s)
	}
	b.hang(true)
	unhealthy(b, true)
	goTo("none is healthy", a, b)
	a.SetServingStatus("", healthv1.HealthCheckResponse_SERVING)
	unhealthy(a, false)
	goTo("one serves again", a)
	b.hang(false)
	unhealthy(b, false)
	goTo("both serve again", a, b)
	if s := p.Stats().Backends[0]; s.Checks["serving"] == 0 || s.Checks["not_serving"] == 0 || s.Checks["failed"] < 3 || s.Checks["unimplemented"] != 0 {
		t.Errorf("%v", s.Checks)
	}
}

// A server without the service for checks is no server that does not work.
func TestEndpointWithoutHealthServiceIsHealthy(t *testing.T) {
	h := newHealthServer(t, false)
	p := start(t, oneBackend(h.address, fmt.Sprintf(quickChecks, "")))
	eventually(t, "some checks", func() bool { return p.Stats().Backends[0].Checks["unimplemented"] > 3 })
	if s := p.states()[h.address]; s.State == StateUnhealthy {
		t.Errorf("%+v", s)
	}
	if n := p.log.with("no grpc.health.v1.Health service"); n != 1 {
		t.Errorf("said %d times", n)
	}
	if a := dial(t, p.addr).unary(nil); a.status() != "0" {
		t.Errorf("%s (%s)", a.status(), a.reason())
	}
}

// The service that is asked for is the one that counts, and one that the server does not know is named.
func TestHealthOfAService(t *testing.T) {
	h := newHealthServer(t, true)
	p := start(t, oneBackend(h.address, fmt.Sprintf(quickChecks, ", service: shop.Orders")))
	is := func(state string, words string) {
		t.Helper()
		eventually(t, state+" "+words, func() bool {
			s := p.states()[h.address]
			return (s.State == StateUnhealthy) == (state == StateUnhealthy) && strings.Contains(s.Health, words)
		})
	}
	is(StateUnhealthy, `does not know the service "shop.Orders"`)
	h.SetServingStatus("shop.Orders", healthv1.HealthCheckResponse_SERVING)
	is("", "serving")
	h.SetServingStatus("shop.Orders", healthv1.HealthCheckResponse_NOT_SERVING)
	is(StateUnhealthy, "NOT_SERVING")
	h.SetServingStatus("shop.Orders", healthv1.HealthCheckResponse_SERVING)
	is("", "serving")
}

// A few checks that fail are no failure, and one that succeeds is no recovery: the thresholds count those in a row.
func TestHealthThresholds(t *testing.T) {
	p := start(t, oneBackend("127.0.0.1:1", "backend: healthCheck: {interval: 0s, unhealthyThreshold: 3, healthyThreshold: 2}"))
	x := p.state.Load().clusters["one"]
	eventually(t, "the endpoint", func() bool { return len(x.set.Backends()) == 1 })
	e := x.set.Backends()[0].Of
	for i, step := range []struct {
		result    health.Result
		unhealthy bool
	}{
		{health.Serving, false}, {health.Failed, false}, {health.Failed, false}, {health.Serving, false}, {health.Failed, false}, {health.Failed, false}, {health.Failed, true},
		{health.Serving, true}, {health.Failed, true}, {health.Serving, true}, {health.Unimplemented, false}, {health.NotServing, true}, {health.Serving, true}, {health.Serving, false},
	} {
		e.noteCheck(step.result, nil)
		if got := e.unhealthy.Load(); got != step.unhealthy {
			t.Errorf("step %d: unhealthy is %v", i, got)
		}
	}
	// The first check of an endpoint decides at once.
	fresh := newEndpoint(x, "127.0.0.1:2")
	if fresh.noteCheck(health.Failed, nil); !fresh.unhealthy.Load() {
		t.Error("a new endpoint that cannot be reached gets calls")
	}
}
