package admin_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"github.com/levada-io/levada/grpclife"
	"github.com/levada-io/levada/internal/proxy"
	"github.com/levada-io/levada/internal/proxy/admin"
	"github.com/levada-io/levada/internal/proxy/config"
	"github.com/levada-io/levada/internal/proxy/observe"
	"github.com/levada-io/levada/internal/proxy/proxytest"
)

// place is a proxy with its administrative address.
type place struct {
	*proxytest.Proxy
	backend *proxytest.Backend
	url     string
}

func start(t *testing.T, change func(*config.Config)) *place {
	t.Helper()
	backend := proxytest.NewBackend(t)
	logger := slog.New(slog.DiscardHandler)
	p := proxytest.Start(t, proxytest.Config(t, backend.Address, change), proxy.Options{Logger: logger})
	tap := observe.NewTap(p.Proxy)
	registry := prometheus.NewRegistry()
	registry.MustRegister(&observe.Metrics{Proxy: p.Proxy, Tap: tap})
	s := &admin.Server{Proxy: p.Proxy, Tap: tap, Metrics: registry, Logger: logger, Version: "test", Pprof: true}
	socket, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var group sync.WaitGroup
	group.Go(func() {
		if err := s.Serve(ctx, socket); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() { cancel(); group.Wait(); http.DefaultClient.CloseIdleConnections() })
	return &place{p, backend, "http://" + socket.Addr().String()}
}

func (p *place) ask(t *testing.T, method, path string, header ...string) (int, string) {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), method, p.url+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		request.Header.Set(header[i], header[i+1])
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = response.Body.Close() }()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response.StatusCode, string(text)
}

func (p *place) get(t *testing.T, path string, v any) {
	t.Helper()
	code, text := p.ask(t, http.MethodGet, path)
	if code != http.StatusOK {
		t.Fatal(path, code, text)
	}
	if err := json.Unmarshal([]byte(text), v); err != nil {
		t.Fatal(err)
	}
}

func (p *place) watch(t *testing.T, ctx context.Context) grpc_health_v1.Health_WatchClient {
	t.Helper()
	w, err := p.Client(t).Watch(ctx, &grpc_health_v1.HealthCheckRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Recv(); err != nil {
		t.Fatal(err)
	}
	return w
}

func TestAnswers(t *testing.T) {
	p := start(t, nil)
	for _, c := range []struct {
		method, path string
		code         int
		text         string
		header       []string
	}{
		{"GET", "/", 200, "levada proxy test, up for", nil},
		{"HEAD", "/", 200, "", nil},
		{"GET", "/none", 404, "not found", nil},
		{"GET", "/livez", 200, "ok", nil},
		{"GET", "/readyz", 200, "ok", nil},
		{"GET", "/metrics", 200, "levada_proxy_connections 0", nil},
		{"GET", "/config", 200, "target: " + p.backend.Address, nil},
		{"GET", "/overview", 200, `"methods": null`, nil},
		{"GET", "/endpoints", 200, `"state": "idle"`, nil},
		{"GET", "/streams", 200, `"streams": []`, nil},
		{"GET", "/streams?limit=0", 400, "a number from 1 to", nil},
		{"GET", "/streams?after=3", 400, "such as 12.345", nil},
		{"GET", "/streams?rout=x", 400, `there is no parameter "rout"; there are: route, path`, nil},
		{"GET", "/streams?limit=%zz", 400, "cannot be read", nil},
		{"GET", "/streams?path=shop.Orders/Get", 400, "path=\"shop.Orders/Get\": expected /service/method", nil},
		{"GET", "/streams?path=/shop*Get", 400, "such as /shop.*", nil},
		{"GET", "/tap?code=BROKEN", 400, "such as UNAVAILABLE or 14", nil},
		{"GET", "/tap?reason=BROKEN", 400, "is not a reason; expected one of: BACKEND, BACKEND_PROTOCOL_ERROR, ", nil},
		{"GET", "/tap?path=/*/Get", 400, "such as /shop.*", nil},
		{"GET", "/tap?pat=x", 400, "there is no parameter", nil},
		{"GET", "/debug/pprof/cmdline", 404, "", nil},
		{"GET", "/?x=1", 400, "there is no parameter", nil},
		{"GET", "/livez?x=1", 400, `there is no parameter "x"; there are none here`, nil},
		{"GET", "/readyz?x=1", 400, "there is no parameter", nil},
		{"GET", "/metrics?x=1", 400, "there is no parameter", nil},
		{"GET", "/metrics?name[]=levada_proxy_connections", 200, "levada_proxy_connections 0", nil},
		{"GET", "/config?x=1", 400, "there is no parameter", nil},
		{"GET", "/overview?x=1", 400, "there is no parameter", nil},
		{"GET", "/endpoints?x=1", 400, "there is no parameter", nil},
		{"GET", "/drain", 405, "Method Not Allowed", nil},
		{"GET", "/undrain", 405, "Method Not Allowed", nil},
		{"POST", "/undrain?now=1", 400, "no parameter", nil},
		{"POST", "/undrain", 403, "cross-origin", []string{"Sec-Fetch-Site", "cross-site"}},
		{"POST", "/undrain", 200, `"draining": false`, nil}, // it does not drain
		{"POST", "/config", 405, "Method Not Allowed", nil},
		{"DELETE", "/streams", 405, "Method Not Allowed", nil},
		{"POST", "/drain?now=1", 400, "no parameter", nil},
		{"POST", "/drain", 403, "cross-origin", []string{"Sec-Fetch-Site", "cross-site"}},
		{"POST", "/drain", 403, "cross-origin", []string{"Origin", "https://example.com"}},
		{"GET", "/readyz", 200, "ok", nil}, // still
	} {
		code, text := p.ask(t, c.method, c.path, c.header...)
		if code != c.code || !strings.Contains(text, c.text) {
			t.Errorf("%s %s answers with %d and %s, want %d and %q", c.method, c.path, code, text, c.code, c.text)
		}
	}
}

func TestEndpoints(t *testing.T) {
	p := start(t, func(c *config.Config) {
		gone := c.Backends[0]
		gone.Name, gone.Target = "gone", "127.0.0.1:1"
		lost := c.Routes[0]
		lost.Match, lost.Backend = config.Match{Service: "shop.Orders"}, "gone"
		c.Routes, c.Backends = append(c.Routes, lost), append(c.Backends, gone)
	})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	p.watch(t, ctx)
	if err := p.Invoke(t, "/shop.Orders/Get"); status.Code(err) != codes.Unavailable {
		t.Fatal(err)
	}
	var got struct{ Backends []proxy.BackendView }
	p.get(t, "/endpoints", &got)
	b := got.Backends
	if len(b) != 2 || b[0].Name != "backend" || b[0].Target != p.backend.Address || !b[0].Discovery.Known || b[0].Discovery.Updated == nil || len(b[0].Endpoints) != 1 {
		t.Fatalf("%+v", b)
	}
	e := b[0].Endpoints[0]
	if e.Address != p.backend.Address || e.State != proxy.StateReady || e.Streams != 1 || e.Unary != 0 || e.LastError != "" || len(e.Connections) != 1 {
		t.Errorf("%+v", e)
	}
	if c := e.Connections[0]; c.Streams != 1 || c.Draining || c.GoAway != "" || !strings.HasPrefix(c.Local, "127.0.0.1:") || time.Since(c.Since) > time.Minute {
		t.Errorf("%+v", c)
	}
	if e := b[1].Endpoints[0]; e.State != proxy.StateFailing || !strings.Contains(e.LastError, "refused") || e.ConsecutiveFailures != 0 {
		t.Errorf("%+v", e)
	}
	// A GOAWAY is seen, while the stream goes on.
	var stopping sync.WaitGroup
	stopping.Go(p.backend.Server.GracefulStop)
	defer stopping.Wait()
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		p.get(t, "/endpoints", &got)
		if c := got.Backends[0].Endpoints[0].Connections; len(c) == 1 && c[0].Draining && c[0].GoAway == "NO_ERROR" && c[0].Streams == 1 {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("no GOAWAY: %+v", got.Backends[0].Endpoints)
		}
	}
	cancel() // lets the backend stop
}

func TestStreams(t *testing.T) {
	p := start(t, nil)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	const streams = 25
	for i := range streams {
		if i == 10 { // on another connection
			p.Client(t)
		}
		p.watch(t, ctx)
	}
	var seen []string
	after := ""
	for pages := 0; ; pages++ {
		var page admin.Streams
		p.get(t, "/streams?limit=10"+after, &page)
		for _, s := range page.Streams {
			seen = append(seen, s.ID.String())
			if s.Path != proxytest.Stream || s.Route != "*" || s.Endpoint != p.backend.Address || s.Backend != "backend" || s.Kind != "streaming" || s.Requests != 1 || s.Responses != 1 ||
				s.RequestBytes != 5 || s.ResponseBytes != 7 || s.AgeSeconds <= 0 || s.Client == "" || s.Waits != "" || s.RequestsWait+s.ResponsesWait != 0 {
				t.Errorf("%+v", s)
			}
		}
		if page.Next == "" {
			if pages != 2 {
				t.Errorf("%d pages", pages)
			}
			break
		}
		after = "&after=" + page.Next
	}
	if slices.Sort(seen); len(slices.Compact(seen)) != streams {
		t.Errorf("%d streams: %v", len(seen), seen)
	}
	for filter, want := range map[string]int{"path=" + proxytest.Stream: streams, "path=/grpc.*": streams, "path=/other": 0, "route=*": streams, "route=none": 0,
		"endpoint=" + p.backend.Address: streams} {
		var page admin.Streams
		if p.get(t, "/streams?"+filter, &page); len(page.Streams) != want {
			t.Errorf("%s: %d streams, want %d", filter, len(page.Streams), want)
		}
	}
}

func TestOverview(t *testing.T) {
	p := start(t, nil)
	client, err := admin.NewClient(strings.TrimPrefix(p.url, "http://"), "")
	if err != nil {
		t.Fatal(err)
	}
	for i := range 10 {
		if _, err := p.Client(t).Check(t.Context(), &grpc_health_v1.HealthCheckRequest{Service: []string{"", "none"}[i%2]}); (err == nil) != (i%2 == 0) {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	p.watch(t, ctx)
	o, err := client.Overview(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if o.Version != "test" || !o.Ready || o.Draining || o.Connections == 0 || len(o.Methods) != 2 || len(o.Backends) != 1 || len(o.BucketsSeconds) != len(o.Methods[0].Took)-1 {
		t.Fatalf("%+v", o)
	}
	if m := o.Methods[0]; m.Path != proxytest.Method || m.Kind != "unary" || m.Opened != 10 || m.Open != 0 || m.Statuses["OK"] != 5 || m.Statuses["NOT_FOUND"] != 5 || m.Seconds <= 0 {
		t.Errorf("%+v", m)
	}
	if m := o.Methods[1]; m.Path != proxytest.Stream || m.Kind != "streaming" || m.Opened != 1 || m.Open != 1 {
		t.Errorf("%+v", m)
	}
}

// A drain ends the streams as SIGTERM does, and the process goes on and reports it.
// A client that waits for the drain gets lines until it is over, and somebody who asks later that it is.
func TestDrainWaits(t *testing.T) {
	p := start(t, func(c *config.Config) { c.Drain.Period = 100 * time.Millisecond })
	w := p.watch(t, t.Context())
	for _, bad := range []string{"/drain?wait=maybe", "/drain?await=true"} {
		if code, text := p.ask(t, http.MethodPost, bad); code != http.StatusBadRequest || !p.Ready() {
			t.Errorf("%s is answered with %d %s", bad, code, text)
		}
	}
	code, text := p.ask(t, http.MethodPost, "/drain?wait=true")
	lines := strings.Split(strings.TrimSpace(text), "\n")
	first, last := lines[0], lines[len(lines)-1]
	if want := `{"draining":true,"drained":false,"streams":1,"noticeSeconds":0,"periodSeconds":0.1}`; code != http.StatusOK || first != want {
		t.Errorf("%d, and first %s, want %s", code, first, want)
	}
	const over = `{"draining":true,"drained":true,"streams":0,"noticeSeconds":0,"periodSeconds":0.1}`
	if last != over {
		t.Errorf("the last line is %s, want %s", last, over)
	}
	if _, err := w.Recv(); grpclife.Classify(err).Reason != grpclife.ReasonDraining {
		t.Error(err)
	}
	if _, text := p.ask(t, http.MethodPost, "/drain?wait=true"); text != over+"\n" {
		t.Errorf("later it says %s", text)
	}
}

func TestDrain(t *testing.T) {
	p := start(t, func(c *config.Config) { c.Drain.Period = 100 * time.Millisecond })
	w := p.watch(t, t.Context())
	code, text := p.ask(t, http.MethodPost, "/drain")
	if code != http.StatusAccepted || !strings.Contains(text, `"streams": 1`) {
		t.Error(code, text)
	}
	_, err := w.Recv()
	if class := grpclife.Classify(err); status.Code(err) != codes.Unavailable || class.Reason != grpclife.ReasonDraining {
		t.Errorf("%v, %+v", err, class)
	}
	if code, text := p.ask(t, http.MethodGet, "/readyz"); code != http.StatusServiceUnavailable || !strings.Contains(text, "drain") {
		t.Error(code, text)
	}
	if code, _ := p.ask(t, http.MethodGet, "/livez"); code != http.StatusOK {
		t.Error(code)
	}
	if code, _ := p.ask(t, http.MethodPost, "/drain"); code != http.StatusAccepted {
		t.Error(code)
	}
	if err := p.Invoke(t, proxytest.Method); status.Code(err) != codes.Unavailable {
		t.Error(err)
	}
}

func TestTap(t *testing.T) {
	p := start(t, nil)
	client, err := admin.NewClient(p.url, "")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var events []observe.Event
	ended := make(chan error, 1)
	go func() {
		ended <- client.Tap(ctx, observe.Filter{Path: "/grpc.*"}, func(_ []byte, e *observe.Event) error {
			if events = append(events, *e); len(events) == 2 {
				cancel()
			}
			return nil
		})
	}()
	p.awaitTap(t, 1)
	if err := p.Invoke(t, "/a.B/c"); status.Code(err) != codes.Unimplemented {
		t.Fatal(err)
	}
	if err := p.Invoke(t, proxytest.Method); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	if len(events) != 2 || events[0].Kind != observe.EventStarted || events[1].Kind != observe.EventEnded || events[0].ID != events[1].ID || events[1].Status != "OK" ||
		events[1].Reason != "BACKEND" || events[1].Endpoint != p.backend.Address {
		t.Errorf("%+v", events)
	}
	p.awaitTap(t, 0)
}

func (p *place) awaitTap(t *testing.T, n int) {
	t.Helper()
	want := fmt.Sprintf("levada_proxy_tap_clients %d\n", n)
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		if _, text := p.ask(t, http.MethodGet, "/metrics"); strings.Contains(text, want) {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("there are not %d clients of the tap", n)
		}
	}
}

// A client of the tap that does not read holds up no call, and reads later what there was room for and how much it has missed.
func TestTapClientThatDoesNotRead(t *testing.T) {
	p := start(t, nil)
	c, err := net.Dial("tcp", strings.TrimPrefix(p.url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	_ = c.(*net.TCPConn).SetReadBuffer(128 << 10)
	if _, err := io.WriteString(c, "GET /tap HTTP/1.1\r\nHost: localhost\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	p.awaitTap(t, 1)
	client := p.Client(t)
	calls := 0
	for dropped := false; !dropped; {
		for range 1000 {
			if _, err := client.Check(t.Context(), &grpc_health_v1.HealthCheckRequest{}); err != nil {
				t.Fatal(err)
			}
			calls++
		}
		_, text := p.ask(t, http.MethodGet, "/metrics")
		dropped = !strings.Contains(text, "levada_proxy_tap_dropped_total 0\n")
		if calls > 200000 {
			t.Fatal("nothing is ever dropped")
		}
	}
	response, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = c.Close() // first: Close of the body reads it to its end, and a tap has none
		_ = response.Body.Close()
	}()
	events := 0
	for d := json.NewDecoder(response.Body); events < 2*calls; {
		var e observe.Event
		if err := d.Decode(&e); err != nil {
			t.Fatal(err)
		}
		if e.Kind == observe.EventDropped {
			events += int(e.Dropped)
			if e.Dropped == 0 {
				t.Errorf("%+v", e)
			}
			continue
		}
		events++
	}
	if events != 2*calls {
		t.Errorf("%d events and dropped ones, of %d calls", events, calls)
	}
}

func TestClientErrors(t *testing.T) {
	for _, address := range []string{"", "ftp://x", "http://x/path", "http://x?y", "a b"} {
		if _, err := admin.NewClient(address, ""); err == nil || !strings.Contains(err.Error(), "such as 127.0.0.1:9901") {
			t.Errorf("%q: %v", address, err)
		}
	}
	p := start(t, nil)
	c, err := admin.NewClient(p.url, "")
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Tap(t.Context(), observe.Filter{Status: "BROKEN"}, nil); err == nil || !strings.Contains(err.Error(), "400 Bad Request: code=\"BROKEN\"") {
		t.Error(err)
	}
	nobody, err := admin.NewClient("127.0.0.1:1", "")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := nobody.Overview(t.Context()); err == nil || !strings.Contains(err.Error(), "--admin") || !strings.Contains(err.Error(), "refused") {
		t.Error(err)
	}
}

// Profiles are not for other machines.
func TestProfilesAreLocal(t *testing.T) {
	for from, want := range map[string]int{"127.0.0.1:1": 200, "[::1]:1": 200, "[::ffff:127.0.0.1]:1": 200, "10.0.0.1:1": 403, "[2001:db8::1]:1": 403, "": 403} {
		s := &admin.Server{Proxy: nil, Metrics: prometheus.NewRegistry(), Pprof: true}
		w, r := httptest.NewRecorder(), httptest.NewRequest(http.MethodGet, "/debug/pprof/heap", nil)
		r.RemoteAddr = from
		r.Host = "localhost"
		r = r.WithContext(context.WithValue(r.Context(), http.LocalAddrContextKey, &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 9901}))
		if s.Handler().ServeHTTP(w, r); w.Code != want {
			t.Errorf("from %q: %d, want %d", from, w.Code, want)
		}
	}
}

// Who looks does not get in the way of calls, and sees nothing that is being changed.
func TestLookingUnderLoad(t *testing.T) {
	p := start(t, nil)
	ctx, cancel := context.WithCancel(t.Context())
	var calling, looking sync.WaitGroup
	for range 4 {
		client := p.Client(t)
		calling.Go(func() {
			for range 300 {
				watching, stop := context.WithCancel(ctx)
				w, err := client.Watch(watching, &grpc_health_v1.HealthCheckRequest{})
				if err == nil {
					_, err = w.Recv()
				}
				if err != nil {
					t.Error(err)
				}
				stop()
				if _, err := client.Check(ctx, &grpc_health_v1.HealthCheckRequest{}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for _, path := range []string{"/metrics", "/overview", "/endpoints", "/streams?limit=3", "/tap?code=OK"} {
		looking.Go(func() {
			for ctx.Err() == nil {
				request, err := http.NewRequestWithContext(ctx, http.MethodGet, p.url+path, nil)
				if err != nil {
					t.Error(err)
					return
				}
				response, err := http.DefaultClient.Do(request)
				if err != nil {
					continue
				}
				if response.StatusCode != http.StatusOK {
					t.Errorf("%s: %s", path, response.Status)
				}
				_, _ = io.Copy(io.Discard, response.Body)
				_ = response.Body.Close()
			}
		})
	}
	calling.Wait()
	cancel()
	looking.Wait()
	waitForNone(t, p)
	s := p.Stats().Routes[0]
	ended, began := int64(0), s.Opened
	for _, c := range s.Calls {
		for _, n := range c.ByStatus {
			ended += n
		}
	}
	if began != 2400 || ended != began {
		t.Errorf("%d calls began, %d ended", began, ended)
	}
}

func waitForNone(t *testing.T, p *place) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); p.Open() > 0; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d calls are open", p.Open())
		}
	}
}
