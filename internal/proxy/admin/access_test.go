package admin_test

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/levada-io/levada/grpclife"
	"github.com/levada-io/levada/internal/proxy"
	"github.com/levada-io/levada/internal/proxy/admin"
	"github.com/levada-io/levada/internal/proxy/config"
	"github.com/levada-io/levada/internal/proxy/observe"
	"github.com/levada-io/levada/internal/proxy/proxytest"
)

var probesAndMetrics = []string{"/", "/livez", "/readyz", "/metrics"}

// What shows payload or the configuration, or changes what the proxy does.
var controls = []struct{ method, path string }{{"GET", "/config"}, {"GET", "/overview"}, {"GET", "/endpoints"}, {"GET", "/streams"}, {"GET", "/tap"}, {"POST", "/drain"},
	{"POST", "/drain?wait=true"}, {"POST", "/undrain"}, {"GET", "/debug/pprof/"}, {"GET", "/debug/pprof/heap"}}

// serve serves s on the socket until the test ends.
func serve(t *testing.T, s *admin.Server, socket net.Listener) {
	t.Helper()
	p := s.Proxy
	registry := prometheus.NewRegistry()
	s.Tap, s.Logger, s.Version, s.Pprof = observe.NewTap(p), slog.New(slog.DiscardHandler), "test", true
	registry.MustRegister(&observe.Metrics{Proxy: p, Tap: s.Tap})
	s.Metrics = registry
	ctx, cancel := context.WithCancel(context.Background())
	var group sync.WaitGroup
	group.Go(func() {
		if err := s.Serve(ctx, socket); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() { cancel(); group.Wait() })
}

// ask sends a request with the client, and returns the status and the beginning of the answer.
func ask(t *testing.T, client *http.Client, method, url string, header ...string) (int, string) {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), method, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		if header[i] == "Host" {
			request.Host = header[i+1]
		}
		request.Header.Set(header[i], header[i+1])
	}
	response, err := client.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = response.Body.Close() }()
	if response.Header.Get("Content-Type") == "application/x-ndjson" { // it goes on
		return response.StatusCode, ""
	}
	text, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response.StatusCode, string(text)
}

// outward is an address of this machine beside loopback, or the test is about nothing: connections to it are those of other machines for the server.
func outward(t *testing.T) string {
	t.Helper()
	all, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range all {
		if n, ok := a.(*net.IPNet); ok && !n.IP.IsLoopback() && n.IP.To4() != nil {
			return n.IP.String()
		}
	}
	return ""
}

// remote makes a server see connections as if they came from another machine.
type remote struct{ net.Listener }

type remoteConn struct{ net.Conn }

func (l remote) Accept() (net.Conn, error) {
	nc, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return remoteConn{nc}, nil
}

func (remoteConn) LocalAddr() net.Addr  { return &net.TCPAddr{IP: net.IPv4(10, 0, 0, 7), Port: 9901} }
func (remoteConn) RemoteAddr() net.Addr { return &net.TCPAddr{IP: net.IPv4(10, 0, 0, 8), Port: 4711} }

func listen(t *testing.T, address string) net.Listener {
	t.Helper()
	socket, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	return socket
}

// Any client that reaches a public administrative address could otherwise close the listeners of the proxy, read its configuration and watch its clients.
func TestOtherMachinesGetProbesAndMetricsOnly(t *testing.T) {
	p := proxytest.Start(t, proxytest.Config(t, proxytest.NewBackend(t).Address, nil), proxy.Options{Logger: slog.New(slog.DiscardHandler)})
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	sockets := map[string]net.Listener{"another machine": remote{listen(t, "127.0.0.1:0")}}
	if host := outward(t); host != "" {
		sockets["an address of the machine"] = listen(t, net.JoinHostPort(host, "0"))
	}
	for name, socket := range sockets {
		t.Run(name, func(t *testing.T) {
			serve(t, &admin.Server{Proxy: p.Proxy}, socket)
			url := "http://" + socket.Addr().String()
			for _, path := range probesAndMetrics {
				if code, text := ask(t, client, "GET", url+path, "Host", "orders.shop.svc:9901"); code != http.StatusOK {
					t.Errorf("GET %s: %d %s", path, code, text)
				}
			}
			for _, c := range controls {
				if code, text := ask(t, client, c.method, url+c.path); code != http.StatusForbidden || !strings.Contains(text, "other machines") {
					t.Errorf("%s %s: %d %s", c.method, c.path, code, text)
				}
			}
			if !p.Ready() {
				t.Error("the proxy drains")
			}
		})
	}
}

// A web page in a browser on this machine reaches the loopback interface by a name of its own that resolves to 127.0.0.1, and is of the same origin then.
func TestForeignHostsAreRefusedOnLoopback(t *testing.T) {
	p := start(t, nil)
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	name, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	_, port, _ := net.SplitHostPort(strings.TrimPrefix(p.url, "http://"))
	for _, host := range []string{"evil.example", "evil.example:" + port, "127.0.0.1.evil.example", "localhost.evil.example", "evil-localhost", name + ".evil.example", "0x7f.1.evil"} {
		for _, c := range append(controls, struct{ method, path string }{"GET", "/metrics"}) {
			if code, text := ask(t, client, c.method, p.url+c.path, "Host", host); code != http.StatusMisdirectedRequest {
				t.Errorf("%s %s with the Host %s: %d %s", c.method, c.path, host, code, text)
			}
		}
	}
	if !p.Ready() {
		t.Error("the proxy drains")
	}
	for _, host := range []string{"127.0.0.1", "127.0.0.1:" + port, "localhost", "LocalHost.:1", "[::1]:9901", "::1", "10.0.0.7:9901", "orders.localhost", name, name + ":9901"} {
		if code, text := ask(t, client, "GET", p.url+"/config", "Host", host); code != http.StatusOK {
			t.Errorf("the Host %s: %d %s", host, code, text)
		}
	}
}

// A token makes control safe to serve to other machines, and is asked for on this one, too. A file that was replaced is in force at once.
func TestControlWithAToken(t *testing.T) {
	p := proxytest.Start(t, proxytest.Config(t, proxytest.NewBackend(t).Address, nil), proxy.Options{Logger: slog.New(slog.DiscardHandler)})
	file := filepath.Join(t.TempDir(), "token")
	write := func(token string) {
		if err := os.WriteFile(file, []byte(token), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	const token, next = "0123456789abcdef0123", "another-token-of-some-length"
	write(token + "\n")
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	far, near := listen(t, "127.0.0.1:0"), listen(t, "127.0.0.1:0")
	serve(t, withAccess(&admin.Server{Proxy: p.Proxy}, admin.Access{TokenFile: file, Remote: true}), remote{far})
	serve(t, withAccess(&admin.Server{Proxy: p.Proxy}, admin.Access{TokenFile: file}), near)
	for _, socket := range []net.Listener{far, near} {
		url := "http://" + socket.Addr().String()
		for _, path := range probesAndMetrics {
			if code, text := ask(t, client, "GET", url+path); code != http.StatusOK {
				t.Errorf("GET %s: %d %s", path, code, text)
			}
		}
		for _, given := range []string{"", "Bearer", "Bearer ", "Bearer " + token[1:], "Bearer " + token + "x", "Basic " + token, token} {
			for _, c := range controls {
				code, text := ask(t, client, c.method, url+c.path, "Authorization", given)
				if code != http.StatusUnauthorized || strings.Contains(text, token) {
					t.Errorf("%s %s with %q: %d %s", c.method, c.path, given, code, text)
				}
			}
		}
		if code, text := ask(t, client, "GET", url+"/config", "Authorization", "Bearer "+token); code != http.StatusOK {
			t.Errorf("with the token: %d %s", code, text)
		}
	}
	if code, _ := ask(t, client, "GET", "http://"+far.Addr().String()+"/debug/pprof/", "Authorization", "Bearer "+token); code != http.StatusForbidden {
		t.Errorf("profiles for another machine: %d", code)
	}
	if !p.Ready() {
		t.Error("the proxy drains")
	}
	url := "http://" + near.Addr().String() + "/config"
	write(next)
	if code, _ := ask(t, client, "GET", url, "Authorization", "Bearer "+token); code != http.StatusUnauthorized {
		t.Errorf("the token that was replaced: %d", code)
	}
	if code, _ := ask(t, client, "GET", url, "Authorization", "Bearer "+next); code != http.StatusOK {
		t.Errorf("the new token: %d", code)
	}
	for _, bad := range []string{"", "short", "with spaces in the middle of it", strings.Repeat("x", 5000)} {
		write(bad)
		if code, text := ask(t, client, "GET", url, "Authorization", "Bearer "+strings.TrimSpace(bad)); code != http.StatusInternalServerError {
			t.Errorf("a file of %d bytes: %d %s", len(bad), code, text)
		}
	}
}

// With another address for control, the public one serves probes and metrics only, on this machine too, and says where the rest is.
func TestControlAtAUnixSocket(t *testing.T) {
	p := proxytest.Start(t, proxytest.Config(t, proxytest.NewBackend(t).Address, nil), proxy.Options{Logger: slog.New(slog.DiscardHandler)})
	path := filepath.Join(t.TempDir(), "admin.sock")
	// What a process that was killed has left is replaced.
	left, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	left.SetUnlinkOnClose(false)
	_ = left.Close()
	socket, err := admin.Listen("unix:" + path)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("%v %v", info, err)
	}
	if _, err := admin.Listen("unix:" + path); err == nil || !strings.Contains(err.Error(), "is in use") {
		t.Errorf("a second listener: %v", err)
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := admin.Listen("unix:" + file); err == nil || !strings.Contains(err.Error(), "is not a socket") {
		t.Errorf("at a file: %v", err)
	}
	public := listen(t, "127.0.0.1:0")
	serve(t, withAccess(&admin.Server{Proxy: p.Proxy}, admin.Access{Remote: true}), socket)
	serve(t, withAccess(&admin.Server{Proxy: p.Proxy}, admin.Access{Elsewhere: "unix:" + path}), public)
	plain := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	for _, c := range controls {
		if code, text := ask(t, plain, c.method, "http://"+public.Addr().String()+c.path); code != http.StatusForbidden || !strings.Contains(text, path) {
			t.Errorf("%s %s: %d %s", c.method, c.path, code, text)
		}
	}
	c, err := admin.NewClient("unix:"+path, "")
	if err != nil {
		t.Fatal(err)
	}
	if o, err := c.Overview(t.Context()); err != nil || !o.Ready {
		t.Errorf("%+v %v", o, err)
	}
}

// A drained proxy is not lost: its listeners open again at the same address, it is ready, and serves; as often as it is asked for.
func TestUndrain(t *testing.T) {
	p := start(t, func(c *config.Config) { c.Listeners[0].MaxConnections = 3 })
	c, err := admin.NewClient(p.url, "")
	if err != nil {
		t.Fatal(err)
	}
	probe := func(code int, want string) {
		t.Helper()
		if got, text := p.ask(t, http.MethodGet, "/readyz"); got != code || !strings.Contains(text, want) {
			t.Errorf("readyz: %d %s, want %d %s", got, text, code, want)
		}
		if got, _ := p.ask(t, http.MethodGet, "/livez"); got != http.StatusOK {
			t.Errorf("livez: %d", got)
		}
	}
	for range 5 { // more than the listener has room for, were a place lost each time
		w := p.watch(t, t.Context())
		if err := c.Drain(t.Context(), func(admin.Drain) {}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Recv(); grpclife.Classify(err).Reason != grpclife.ReasonDraining {
			t.Error(err)
		}
		probe(http.StatusServiceUnavailable, "drained")
		if nc, err := net.DialTimeout("tcp", p.Address, time.Second); err == nil {
			_ = nc.Close()
			t.Error("a drained proxy takes connections")
		}
		if err := c.Undrain(t.Context()); err != nil {
			t.Fatal(err)
		}
		probe(http.StatusOK, "ok")
		if _, text := p.ask(t, http.MethodGet, "/metrics"); !strings.Contains(text, "levada_proxy_draining 0\n") {
			t.Error("the metric says that it drains")
		}
		if err := p.Invoke(t, proxytest.Method); err != nil {
			// The client's connection was closed by the drain, which it may not have seen yet.
			if status.Code(err) != codes.Unavailable {
				t.Error(err)
			}
		}
	}
}

// A drain that is called off half way ends no more streams, and those who wait for it hear of that.
func TestUndrainCallsTheDrainOff(t *testing.T) {
	for _, d := range []config.Drain{{Notice: time.Hour}, {Period: 10 * time.Hour}} {
		t.Run(fmt.Sprint(d), func(t *testing.T) {
			p := start(t, func(c *config.Config) { c.Drain = d })
			w := p.watch(t, t.Context())
			t.Cleanup(func() {
				quick := *p.Config() // or the end of the test would take as long
				quick.Drain = config.Drain{}
				if err := p.Reload(&quick); err != nil {
					t.Error(err)
				}
			})
			c, err := admin.NewClient(p.url, "")
			if err != nil {
				t.Fatal(err)
			}
			waits := make(chan error, 1)
			begun := make(chan struct{})
			var once sync.Once
			go func() { waits <- c.Drain(t.Context(), func(admin.Drain) { once.Do(func() { close(begun) }) }) }()
			<-begun
			if d.Notice == 0 { // the listeners close soon
				for end := time.Now().Add(15 * time.Second); ; time.Sleep(time.Millisecond) {
					nc, err := net.DialTimeout("tcp", p.Address, time.Second)
					if err != nil {
						break
					}
					_ = nc.Close()
					if time.Now().After(end) {
						t.Fatal("the listener stays open")
					}
				}
			}
			if err := c.Undrain(t.Context()); err != nil {
				t.Fatal(err)
			}
			if err := <-waits; err != admin.ErrUndrained {
				t.Errorf("the drain ends with %v", err)
			}
			if !p.Ready() {
				t.Error("not ready")
			}
			if _, err := p.Client(t).Check(t.Context(), nil); err != nil {
				t.Error(err)
			}
			if err := w.CloseSend(); err != nil {
				t.Error(err)
			}
			if p.Open() != 1 {
				t.Errorf("%d streams", p.Open())
			}
		})
	}
}

// When something else listens at the address meanwhile, the proxy logs it, stays as not ready as it was, and serves once the address is free.
func TestUndrainWithoutTheAddress(t *testing.T) {
	p := start(t, nil)
	c, err := admin.NewClient(p.url, "")
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Drain(t.Context(), func(admin.Drain) {}); err != nil {
		t.Fatal(err)
	}
	other := listen(t, p.Address)
	if err := c.Undrain(t.Context()); err == nil || !strings.Contains(err.Error(), "address already in use") {
		t.Error(err)
	}
	if p.Ready() {
		t.Error("ready without a listener")
	}
	if err := c.Drain(t.Context(), func(admin.Drain) {}); err != nil {
		t.Error(err)
	}
	_ = other.Close()
	if err := c.Undrain(t.Context()); err != nil || !p.Ready() {
		t.Error(err)
	}
	if _, err := p.Client(t).Check(t.Context(), nil); err != nil {
		t.Error(err)
	}
}

func withAccess(s *admin.Server, a admin.Access) *admin.Server {
	s.SetAccess(a)
	return s
}
