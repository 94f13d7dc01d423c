package proxy

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"math/rand/v2"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"
)

// TestLimitGrowsConnections: calls beyond what an endpoint allows on a connection get another one, and all of them live.
func TestLimitGrowsConnections(t *testing.T) {
	back := listen(t, http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: 10})
	p := start(t, oneBackend(back.addr()))
	c := dial(t, p.addr)
	const streams = 95
	var ids []uint32
	for range streams {
		ids = append(ids, c.begin(true))
	}
	perConn := map[*wire]int{}
	type open struct {
		e  *wire
		id uint32
	}
	var all []open
	var conns []*wire
	eventually(t, "all of the calls reach the endpoint", func() bool {
		for len(back.conns) > 0 {
			conns = append(conns, <-back.conns)
		}
		for _, e := range conns {
			for {
				r, err := e.awaitFor(time.Millisecond, func(e *event) bool { return e.get(":method") != "" })
				if err != nil {
					break
				}
				perConn[e]++
				all = append(all, open{e, r.id})
			}
		}
		return len(all) == streams
	})
	for e, n := range perConn {
		if n > 10 {
			t.Errorf("%d streams on a connection that allows 10 (%v)", n, e.nc.LocalAddr())
		}
	}
	if n := len(conns); n < 10 || n > 14 {
		t.Errorf("%d connections for %d streams, 10 on each", n, streams)
	}
	for _, x := range all {
		x.e.only(x.id, "0")
	}
	for _, id := range ids {
		if got := c.end(id).status(); got != "0" {
			t.Errorf("stream %d ended with %s", id, got)
		}
	}
}

// TestLimitShrinks: an endpoint that allows fewer streams than are open keeps those, and gets new ones only when it may.
func TestLimitShrinks(t *testing.T) {
	back := listen(t)
	p := start(t, oneBackend(back.addr(), "backend: maxConnections: 1"))
	c := dial(t, p.addr)
	first := c.begin(true)
	e := back.accept()
	one := e.takeRequest()
	second := c.begin(true)
	two := e.takeRequest()
	e.settings(http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: 1})
	third := c.begin(true)
	c.settle()
	e.settle()
	e.only(one.id, "0")
	c.end(first)
	e.settle()
	if n := e.seen(func(e *event) bool { return e.get(":method") != "" }); n > 0 {
		t.Fatal("a second stream came where one is allowed")
	}
	e.only(two.id, "0")
	c.end(second)
	e.only(e.takeRequest().id, "0")
	if got := c.end(third).status(); got != "0" {
		t.Errorf("ended with %s", got)
	}
}

// TestGoAwayLetsStreamsEnd: streams up to the last one that GOAWAY names go on, new ones get another connection.
func TestGoAwayLetsStreamsEnd(t *testing.T) {
	back := listen(t)
	p := start(t, oneBackend(back.addr()))
	c := dial(t, p.addr)
	old := c.begin(false)
	e := back.accept()
	r := e.takeRequest()
	e.respond(r.id)
	e.goAway(1<<31 - 1)
	e.goAway(r.id)
	e.settle()
	young := c.begin(true)
	other := back.accept()
	other.only(other.takeRequest().id, "0")
	if got := c.end(young).status(); got != "0" {
		t.Errorf("the new stream ended with %s", got)
	}
	c.data(old, prefixed([]byte("still")), true)
	e.dataOf(r.id, 10)
	e.data(r.id, prefixed([]byte("here")), false)
	e.finish(r.id, "0")
	if a := c.end(old); a.status() != "0" || len(a.data) != 9 {
		t.Errorf("the old stream ended with %s and %q", a.status(), a.data)
	}
	e.gone() // it has no streams any more
}

// files is a backend whose endpoints are in a file.
type files struct {
	t    testing.TB
	name string
}

func newFiles(t testing.TB, addresses ...string) *files {
	f := &files{t, filepath.Join(t.TempDir(), "endpoints")}
	if len(addresses) > 0 {
		f.write(addresses...)
	}
	return f
}

func (f *files) write(addresses ...string) {
	text := strings.Join(addresses, "\n")
	if len(addresses) == 0 {
		text = "[]"
	}
	next := f.name + ".next"
	if err := os.WriteFile(next, []byte(text), 0o600); err != nil {
		f.t.Fatal(err)
	}
	if err := os.Rename(next, f.name); err != nil {
		f.t.Fatal(err)
	}
}

func (f *files) target() string { return "file://" + f.name }

// TestEndpointRemoved: streams on an endpoint that is removed go on to their end, new ones go to the others.
func TestEndpointRemoved(t *testing.T) {
	first, second := listen(t), listenEcho(t)
	f := newFiles(t, first.addr())
	p := start(t, oneBackend(f.target(), "backend: waitForReady: 10s"))
	c := dial(t, p.addr)
	old := c.begin(false)
	e := first.accept()
	r := e.takeRequest()
	e.respond(r.id)
	c.headersOf(old)
	f.write(second.addr())
	eventually(t, "new calls go to the new endpoint", func() bool {
		id := c.begin(true, "call-id", "new")
		for {
			if a, err := c.endFor(id, 50*time.Millisecond); err == nil {
				return a.status() == "0" && second.count("new") > 0
			}
			if x, err := e.awaitFor(0, func(e *event) bool { return e.get(":method") != "" }); err == nil {
				e.only(x.id, "0")
			}
		}
	})
	for range 20 {
		if got := c.unary([]byte("x")).status(); got != "0" {
			t.Errorf("a new call ended with %s", got)
		}
	}
	c.data(old, prefixed([]byte("still")), true)
	e.dataOf(r.id, 10)
	e.finish(r.id, "0")
	if a := c.end(old); a.status() != "0" {
		t.Errorf("the old stream ended with %s (%s)", a.status(), a.reason())
	}
	e.gone()
}

// TestEjectedBeforeUnconnectable: when all other endpoints cannot be connected to, calls go to the one that is ejected.
func TestEjectedBeforeUnconnectable(t *testing.T) {
	var failing atomic.Bool
	failing.Store(true)
	bad := listenAt(t, "127.0.0.1:0", func(p *wire) {
		for {
			r, err := p.awaitFor(time.Hour, func(e *event) bool { return e.get(":method") != "" })
			if err != nil {
				return
			}
			if failing.Load() {
				p.only(r.id, "13")
			} else {
				p.only(r.id, "0")
			}
		}
	})
	first, second := listenEcho(t), listenEcho(t)
	p := start(t, oneBackend(bad.addr()+","+first.addr()+","+second.addr(), "backend: ejection: {consecutiveFailures: 2, baseTime: 1m, maxTime: 1m}"))
	c := dial(t, p.addr)
	x := p.state.Load().clusters["one"]
	eventually(t, "the endpoint that fails is ejected", func() bool { c.end(c.begin(true)); return x.stats.ejections.Load() > 0 })
	failing.Store(false)
	first.close()
	second.close()
	for i := range 50 {
		a := c.end(c.begin(true))
		if a.status() != "0" && (i > 5 || a.reason() != reasonConnectionLost) { // the connections to the others may be about to end
			t.Errorf("call %d ended with %s (%s) %s", i, a.status(), a.reason(), a.trailers.get("grpc-message"))
		}
	}
}

// TestWaitForReady: calls wait for the first endpoint for as long as they may.
func TestWaitForReady(t *testing.T) {
	t.Run("it comes", func(t *testing.T) {
		back := listenEcho(t)
		f := newFiles(t)
		p := start(t, oneBackend(f.target(), "backend: waitForReady: 1m"))
		c := dial(t, p.addr)
		var ids []uint32
		for range 50 {
			id := c.begin(false)
			c.data(id, prefixed([]byte("x")), true)
			ids = append(ids, id)
		}
		c.settle()
		f.write(back.addr())
		for _, id := range ids {
			if a := c.end(id); a.status() != "0" {
				t.Errorf("ended with %s (%s)", a.status(), a.reason())
			}
		}
	})
	t.Run("it does not", func(t *testing.T) {
		p := start(t, oneBackend(newFiles(t).target(), "backend: waitForReady: 200ms"))
		began := time.Now()
		a := dial(t, p.addr).unary([]byte("x"))
		if a.status() != "14" || a.reason() != reasonNoBackend || !a.unprocessed(t) {
			t.Errorf("ended with %s (%s)", a.status(), a.reason())
		}
		if took := time.Since(began); took < 200*time.Millisecond || took > 5*time.Second {
			t.Errorf("after %v", took)
		}
	})
	t.Run("comings and goings", func(t *testing.T) {
		back := listenEcho(t)
		f := newFiles(t)
		p := start(t, oneBackend(f.target(), "backend: waitForReady: 1m"))
		x := p.state.Load().clusters["one"]
		ctx, cancel := context.WithCancel(t.Context())
		var changing sync.WaitGroup
		defer changing.Wait()
		defer cancel()
		changing.Go(func() { // calls come at every moment of an update
			for ctx.Err() == nil {
				x.update([]string{back.addr()})
				time.Sleep(time.Duration(rand.IntN(3)) * time.Millisecond) // enough to connect, at times
				x.update(nil)
			}
			x.update([]string{back.addr()})
		})
		c := dial(t, p.addr)
		for range 500 {
			id := c.begin(true)
			a, err := c.endFor(id, patience)
			if err != nil || a.status() != "0" && a.reason() != reasonConnectFailed && a.reason() != reasonConnectionLost {
				t.Fatalf("ended with %s (%s), %v", a.status(), a.reason(), err)
			}
		}
	})
}

// TestWeights: the calls of a route are shared by the weights of its backends, also while one of them has no endpoint yet.
func TestWeights(t *testing.T) {
	first, second := listenEcho(t), listenEcho(t)
	p := start(t, fmt.Sprintf(`backends:
- {name: first, target: '%s'}
- {name: second, target: '%s'}
routes:
- backends: [{name: first, weight: 9}, {name: second, weight: 1}]
`, first.addr(), second.addr()))
	c := dial(t, p.addr)
	const calls = 1000
	for range calls {
		if got := c.end(c.begin(true)).status(); got != "0" {
			t.Fatalf("ended with %s", got)
		}
	}
	if n := second.sum(); n < 50 || n > 170 { // 100 and 9.5 of standard deviation
		t.Errorf("%d of %d calls went to the backend with a tenth of the weight", n, calls)
	}
}

// TestWeightsAndWaiting: a call that waits for an endpoint of one backend is not ended because another one has none.
func TestWeightsAndWaiting(t *testing.T) {
	back := listenEcho(t)
	f := newFiles(t)
	p := start(t, fmt.Sprintf(`backends:
- {name: first, target: '%s', waitForReady: 1m}
- {name: second, target: '%s', waitForReady: 1m}
routes:
- backends: [{name: first, weight: 1}, {name: second, weight: 1}]
`, f.target(), newFiles(t).target()))
	c := dial(t, p.addr)
	var ids []uint32
	for range 60 {
		ids = append(ids, c.begin(true))
	}
	c.settle()
	f.write(back.addr())
	var ok, waiting int
	eventually(t, "about half of the calls are answered", func() bool {
		ok, waiting = 0, 0
		for i, id := range ids {
			if id == 0 {
				ok++
				continue
			}
			a, err := c.endFor(id, 0)
			if err != nil {
				waiting++
				continue
			}
			if ids[i] = 0; a.status() != "0" {
				t.Fatalf("ended with %s (%s)", a.status(), a.reason())
			}
			ok++
		}
		return ok > 10
	})
	never(t, "more were answered than could be", 100*time.Millisecond, func() bool { return ok > 55 })
}

// TestReloadUnderLoad puts configurations in force as fast as possible, with other names, targets and routes, while calls come and a stream is open.
func TestReloadUnderLoad(t *testing.T) {
	first, second := listenEcho(t), listenEcho(t)
	text := func(i int) string {
		back := []*echo{first, second}[i%2]
		switch i % 4 {
		case 0, 1:
			return oneBackend(back.addr(), "route: streamAge: 1h")
		case 2:
			return fmt.Sprintf("backends:\n- {name: other%d, target: '%s'}\nroutes:\n- backend: other%d\n  timeout: 1h\n", i, back.addr(), i)
		}
		return oneBackend(back.addr(), "backend: connectTimeout: 2s")
	}
	p := start(t, text(0))
	c := dial(t, p.addr)
	stream := c.begin(false, "call-id", "stream")
	c.headersOf(stream)
	ctx, cancel := context.WithCancel(t.Context())
	var working sync.WaitGroup
	var reloads, calls atomic.Int64
	working.Go(func() {
		for i := 1; ctx.Err() == nil; i++ {
			if err := p.Reload(parse(t, text(i))); err != nil {
				t.Error(err)
				return
			}
			reloads.Add(1)
			time.Sleep(time.Millisecond) // or a single processor does nothing else
		}
	})
	for range 3 {
		working.Go(func() {
			c := dial(t, p.addr)
			for ctx.Err() == nil {
				a := c.unary([]byte("x"))
				if calls.Add(1); a.status() != "0" {
					t.Errorf("after %d reloads a call ended with %s (%s) %s", reloads.Load(), a.status(), a.reason(), a.trailers.get("grpc-message"))
					return
				}
			}
		})
	}
	eventually(t, "some reloads and calls", func() bool { return t.Failed() || reloads.Load() > 300 && calls.Load() > 1000 })
	cancel()
	working.Wait()
	c.data(stream, prefixed([]byte("still here")), true)
	if a := c.end(stream); a.status() != "0" || string(a.data) != string(prefixed([]byte("still here"))) {
		t.Errorf("the stream that was open all the time ended with %s (%s)", a.status(), a.reason())
	}
}

// TestDrain: at the end of the process each stream ends with UNAVAILABLE, spread over the period; a short call ends by itself.
func TestDrain(t *testing.T) {
	back := listen(t)
	p := start(t, oneBackend(back.addr(), "drain: {period: 1s}"))
	c := dial(t, p.addr)
	const streams = 100
	var e *wire
	for range streams {
		c.begin(false)
		if e == nil {
			e = back.accept()
		}
		r := e.takeRequest()
		e.respond(r.id)
		e.data(r.id, prefixed([]byte("x")), false)
	}
	e.settle()
	began := time.Now()
	var stopping sync.WaitGroup
	stopping.Go(p.stop)
	goAway := c.await("GOAWAY", func(e *event) bool { return e.kind == http2.FrameGoAway })
	if goAway.code != http2.ErrCodeNo {
		t.Errorf("GOAWAY with %v", goAway.code)
	}
	var times []time.Duration
	for len(times) < streams {
		x := c.await("trailers", func(e *event) bool { return e.kind == http2.FrameHeaders && e.end })
		times = append(times, time.Since(began))
		if x.get("grpc-status") != "14" || x.get("levada-stream-ended") != reasonDraining {
			t.Errorf("ended with %v", x)
		}
	}
	for i := 1; i < 10; i++ { // evenly: after a tenth of the time a tenth, give or take one
		want := time.Duration(i) * 100 * time.Millisecond
		if got := times[i*streams/10]; got < want-150*time.Millisecond || got > want+400*time.Millisecond {
			t.Errorf("%d of %d streams had ended after %v", i*streams/10, streams, got)
		}
	}
	c.gone()
	stopping.Wait()
}

// authority signs certificates.
type authority struct {
	t    testing.TB
	dir  string
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
	file string
	last int64
}

func newAuthority(t testing.TB) *authority {
	t.Helper()
	a := &authority{t: t, dir: t.TempDir(), last: 1}
	a.key = newKey(t)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "authority"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(nil, template, template, &a.key.PublicKey, a.key)
	if err == nil {
		a.cert, err = x509.ParseCertificate(der)
	}
	if err != nil {
		t.Fatal(err)
	}
	a.file = filepath.Join(a.dir, "ca.pem")
	a.write(a.file, "CERTIFICATE", der)
	return a
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	key, err := ecdsa.GenerateKey(elliptic.P256(), nil)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func (a *authority) write(name, kind string, der []byte) {
	next := name + ".next"
	if err := os.WriteFile(next, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		a.t.Fatal(err)
	}
	if err := os.Rename(next, name); err != nil {
		a.t.Fatal(err)
	}
}

// issue writes a certificate for 127.0.0.1 and its key, and returns its serial number.
func (a *authority) issue(certFile, keyFile string) *big.Int {
	a.t.Helper()
	a.last++
	key := newKey(a.t)
	template := &x509.Certificate{SerialNumber: big.NewInt(a.last), Subject: pkix.Name{CommonName: "leaf"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, DNSNames: []string{"backend.test"}, URIs: []*url.URL{{Scheme: "spiffe", Host: "test", Path: "/leaf"}}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}
	der, err := x509.CreateCertificate(nil, template, a.cert, &key.PublicKey, a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		a.t.Fatal(err)
	}
	a.write(certFile, "CERTIFICATE", der)
	a.write(keyFile, "PRIVATE KEY", keyDER)
	return template.SerialNumber
}

func (a *authority) pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(a.cert)
	return pool
}

// TestTLS: both sides speak TLS, ask for certificates, and take new ones while they run.
func TestTLS(t *testing.T) {
	ours, clients, stranger := newAuthority(t), newAuthority(t), newAuthority(t)
	dir := t.TempDir()
	file := func(name string) string { return filepath.Join(dir, name) }
	serial := ours.issue(file("cert.pem"), file("key.pem"))
	ours.issue(file("back.pem"), file("back-key.pem"))
	ours.issue(file("proxy.pem"), file("proxy-key.pem"))
	clients.issue(file("client.pem"), file("client-key.pem"))
	stranger.issue(file("stranger.pem"), file("stranger-key.pem"))

	backPair, err := tls.LoadX509KeyPair(file("back.pem"), file("back-key.pem"))
	if err != nil {
		t.Fatal(err)
	}
	raw, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	x := &echo{calls: map[string]int{}}
	x.endpoints = serveOn(t, tls.NewListener(raw, &tls.Config{Certificates: []tls.Certificate{backPair}, NextProtos: []string{"h2"}, ClientCAs: ours.pool(), ClientAuth: tls.RequireAndVerifyClientCert}), x.answer)

	p := start(t, fmt.Sprintf(`listeners:
- address: 127.0.0.1:0
  handshakeTimeout: 2s
  tls: {certificate: %s, key: %s, clientCA: %s}
backends:
- name: one
  target: '%s'
  tls: {ca: %s, certificate: %s, key: %s, serverName: backend.test}
`, file("cert.pem"), file("key.pem"), clients.file, x.addr(), ours.file, file("proxy.pem"), file("proxy-key.pem")))

	handshake := func(cert, key string, protocols ...string) (*tls.Conn, error) {
		c := &tls.Config{RootCAs: ours.pool(), NextProtos: protocols}
		if cert != "" {
			pair, err := tls.LoadX509KeyPair(file(cert), file(key))
			if err != nil {
				t.Fatal(err)
			}
			c.Certificates = []tls.Certificate{pair}
		}
		nc, err := tls.DialWithDialer(&net.Dialer{Timeout: patience}, "tcp", p.addr, c)
		if err != nil {
			return nil, err
		}
		t.Cleanup(func() { _ = nc.Close() })
		// With TLS 1.3 the server's refusal of our certificate shows when we read.
		_ = nc.SetReadDeadline(time.Now().Add(300 * time.Millisecond))
		_, err = nc.Read(make([]byte, 1))
		if err, ok := errors.AsType[net.Error](err); ok && err.Timeout() {
			_ = nc.SetReadDeadline(time.Time{})
			return nc, nil
		}
		return nil, fmt.Errorf("read: %w", err)
	}
	if _, err := handshake("", "", "h2"); err == nil {
		t.Error("a client without a certificate was let in")
	}
	if _, err := handshake("stranger.pem", "stranger-key.pem", "h2"); err == nil {
		t.Error("a client with another authority's certificate was let in")
	}
	nc, err := handshake("client.pem", "client-key.pem", "h2")
	if err != nil {
		t.Fatal(err)
	}
	// A deadline in the past has broken this connection's reading side for good in crypto/tls only if it hit a record, so a fresh one is used.
	_ = nc.Close()
	connect := func() (*tls.Conn, *wire) {
		pair, err := tls.LoadX509KeyPair(file("client.pem"), file("client-key.pem"))
		if err != nil {
			t.Fatal(err)
		}
		nc, err := tls.Dial("tcp", p.addr, &tls.Config{RootCAs: ours.pool(), NextProtos: []string{"h2"}, Certificates: []tls.Certificate{pair}})
		if err != nil {
			t.Fatal(err)
		}
		return nc, callOver(t, nc)
	}
	nc, c := connect()
	if got := nc.ConnectionState().PeerCertificates[0].SerialNumber; got.Cmp(serial) != 0 {
		t.Errorf("the certificate is %v", got)
	}
	large := noise(300 << 10)
	id := c.begin(false)
	c.pour(id, prefixed(large), true, patience)
	if a := c.end(id); a.status() != "0" || len(a.data) != len(large)+prefixLen {
		t.Errorf("ended with %s and %d bytes", a.status(), len(a.data))
	}
	// A new certificate is shown to new connections; those that are open go on.
	next := ours.issue(file("cert.pem"), file("key.pem"))
	eventually(t, "the new certificate is shown", func() bool {
		nc, _ := connect()
		return nc.ConnectionState().PeerCertificates[0].SerialNumber.Cmp(next) == 0
	})
	if got := c.unary([]byte("x")).status(); got != "0" {
		t.Errorf("on the old connection a call ended with %s", got)
	}
	if n := p.log.with("level=INFO", "changed TLS files", "listener=", file("cert.pem")); n != 1 {
		t.Errorf("%d lines of the log say that the new certificate is in use", n)
	}
	// What cannot be read changes nothing, and is said once.
	if err := os.WriteFile(file("cert.pem"), []byte("half of a certificate"), 0o600); err != nil {
		t.Fatal(err)
	}
	warned := func() int { return p.log.with("level=WARN", "cannot be used", file("cert.pem")) }
	for looks := 0; looks < 2; {
		nc, _ := connect()
		if nc.ConnectionState().PeerCertificates[0].SerialNumber.Cmp(next) != 0 {
			t.Fatal("another certificate is shown")
		}
		if warned() > 0 {
			looks++
			time.Sleep(checkFiles + 50*time.Millisecond) // until files are looked at again
		}
	}
	if n := warned(); n != 1 {
		t.Errorf("%d lines of the log say that the certificate cannot be read", n)
	}
}

// TestTLSToTheWrongEndpoint: an endpoint that is not who it should be gets no call.
func TestTLSToTheWrongEndpoint(t *testing.T) {
	ours, stranger := newAuthority(t), newAuthority(t)
	dir := t.TempDir()
	cert, key := filepath.Join(dir, "c.pem"), filepath.Join(dir, "k.pem")
	for name, from := range map[string]*authority{"authority": stranger, "name": ours} {
		t.Run(name, func(t *testing.T) {
			from.issue(cert, key)
			pair, err := tls.LoadX509KeyPair(cert, key)
			if err != nil {
				t.Fatal(err)
			}
			raw, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			back := serveOn(t, tls.NewListener(raw, &tls.Config{Certificates: []tls.Certificate{pair}, NextProtos: []string{"h2"}}), nil)
			server := map[string]string{"authority": "backend.test", "name": "other.test"}[name]
			p := start(t, oneBackend(back.addr(), fmt.Sprintf("backend: tls: {ca: %s, serverName: %s}", ours.file, server)))
			if a := dial(t, p.addr).unary([]byte("x")); a.status() != "14" || a.reason() != reasonConnectFailed {
				t.Errorf("ended with %s (%s)", a.status(), a.reason())
			}
		})
	}
}

// TestReloadThatFails changes nothing, not even what could be changed.
func TestReloadThatFails(t *testing.T) {
	back := listenEcho(t)
	p := start(t, fmt.Sprintf("backends: [{name: one, target: '%s'}]\nroutes: [{backend: one}]", back.addr()))
	state, backend := p.state.Load(), p.state.Load().clusters["one"].config()
	dir := t.TempDir()
	next := parse(t, fmt.Sprintf(`
backends:
- {name: one, target: '%s', waitForReady: 7s}
- {name: two, target: '%s', tls: {ca: %s}}
routes: [{backend: two}]`, back.addr(), back.addr(), filepath.Join(dir, "missing.pem")))
	if err := p.Reload(next); err == nil || !strings.Contains(err.Error(), "two") || !strings.Contains(err.Error(), "missing.pem") {
		t.Errorf("the error is %v", err)
	}
	if p.state.Load() != state || state.clusters["one"].config() != backend {
		t.Error("a part of the configuration is in force")
	}
	if got := dial(t, p.addr).unary([]byte("x")).status(); got != "0" {
		t.Errorf("a call ends with %s", got)
	}
	next.Backends[1].TLS = nil
	if err := p.Reload(next); err != nil || state.clusters["one"].config().WaitForReady != 7*time.Second {
		t.Errorf("the right one: %v, %v", err, state.clusters["one"].config().WaitForReady)
	}
}
