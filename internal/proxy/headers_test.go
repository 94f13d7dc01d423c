package proxy

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"net/netip"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/net/http2/hpack"

	"github.com/levada-io/levada/internal/h2/header"
	"github.com/levada-io/levada/internal/proxy/config"
)

// all are the values of a header, in their order.
func (e event) all(name string) (values []string) {
	for _, f := range e.fields {
		if f.Name == name {
			values = append(values, f.Value)
		}
	}
	return values
}

// TestCallersAreKnownToBackends: without these headers a backend takes the proxy for the client, and with those of clients that nobody has checked it takes anybody for
// anybody. Each call is made twice, since what was found out about headers that come again is kept.
func TestCallersAreKnownToBackends(t *testing.T) {
	spoofed := []string{"x-forwarded-for", "203.0.113.9", "x-forwarded-for", "203.0.113.10", "x-forwarded-proto", "https", "x-forwarded-host", "bank.example", "x-forwarded-port", "1",
		"x-real-ip", "203.0.113.9", "forwarded", "for=203.0.113.9", "x-forwarded-client-cert", "Subject=\"CN=root\""}
	const own = "x-forwarded-for: 127.0.0.1; x-forwarded-proto: http; x-forwarded-host: test"
	for _, c := range []struct{ name, listener, route, plain, want string }{
		{name: "the default", plain: own, want: "x-forwarded-for: 203.0.113.9, 203.0.113.10, 127.0.0.1; x-forwarded-proto: http; x-forwarded-host: test"},
		{name: "append, the client is trusted", listener: "{trusted: [10.0.0.0/8, 127.0.0.1]}", plain: own,
			want: "x-forwarded-for: 203.0.113.9, 203.0.113.10, 127.0.0.1; x-forwarded-proto: https; x-forwarded-host: bank.example; x-forwarded-port: 1; x-real-ip: 203.0.113.9; " +
				"forwarded: for=203.0.113.9; x-forwarded-client-cert: Subject=\"CN=root\""},
		{name: "append, others are trusted", listener: "{trusted: [10.0.0.0/8]}", plain: own, want: own},
		{name: "replace", listener: "{policy: replace}", plain: own, want: own},
		{name: "replace, standard", listener: "{policy: replace, standard: true}", plain: own + "; forwarded: for=127.0.0.1;proto=http;host=\"test\"",
			want: own + "; forwarded: for=127.0.0.1;proto=http;host=\"test\""},
		{name: "append, standard", listener: "{standard: true}", plain: own + "; forwarded: for=127.0.0.1;proto=http;host=\"test\"",
			want: "x-forwarded-for: 203.0.113.9, 203.0.113.10, 127.0.0.1; x-forwarded-proto: http; x-forwarded-host: test; forwarded: for=203.0.113.9, for=127.0.0.1;proto=http;host=\"test\""},
		{name: "strip", listener: "{policy: strip}"},
		{name: "the route wins", listener: "{policy: strip}", route: "{policy: replace}", plain: own, want: own},
		{name: "keep", route: "{policy: keep}", want: "x-forwarded-for: 203.0.113.9; x-forwarded-for: 203.0.113.10; x-forwarded-proto: https; x-forwarded-host: bank.example; x-forwarded-port: 1; " +
			"x-real-ip: 203.0.113.9; forwarded: for=203.0.113.9; x-forwarded-client-cert: Subject=\"CN=root\""},
	} {
		t.Run(c.name, func(t *testing.T) {
			back := listen(t)
			options := []string{}
			if c.listener != "" {
				options = append(options, "listener: forwarded: "+c.listener)
			}
			if c.route != "" {
				options = append(options, "route: forwarded: "+c.route)
			}
			p := start(t, oneBackend(back.addr(), options...))
			client := dial(t, p.addr)
			var endpoint *wire
			for i := range 6 {
				fields, want := []string{"x-other", "kept"}, c.plain
				if i%2 == 1 {
					fields, want = append(fields, spoofed...), c.want
				}
				id := client.begin(true, fields...)
				if endpoint == nil {
					endpoint = back.accept()
				}
				r := endpoint.takeRequest()
				var got []string
				for _, f := range r.fields {
					if identity[f.Name] {
						got = append(got, f.Name+": "+f.Value)
					}
				}
				wanted := strings.Split(want, "; ")
				if want == "" {
					wanted = nil
				}
				slices.Sort(got)
				slices.Sort(wanted)
				if !slices.Equal(got, wanted) {
					t.Errorf("call %d: the backend got\n%s\nwant\n%s", i, strings.Join(got, "\n"), strings.Join(wanted, "\n"))
				}
				if r.get("x-other") != "kept" || r.get(":authority") != "test" {
					t.Errorf("call %d: the backend got %v", i, r)
				}
				endpoint.only(r.id, "0")
				client.end(id)
			}
		})
	}
}

// TestForwardedTrailers: a header that says who the client is must not come in by the back door, as a trailer of a request that is not gRPC.
func TestForwardedTrailers(t *testing.T) {
	back := listen(t)
	p := start(t, oneBackend(back.addr(), "route: headers: {request: {remove: [x-secret]}}"))
	client := dial(t, p.addr)
	client.headers(1, false, ":method", "POST", ":scheme", "http", ":path", "/upload", ":authority", "test")
	client.headers(1, true, "x-forwarded-for", "203.0.113.9", "x-secret", "s", "x-sum", "1")
	endpoint := back.accept()
	r := endpoint.takeRequest()
	trailers := endpoint.await("trailers", func(e *event) bool { return e.id == r.id && e.end })
	if len(trailers.fields) != 1 || trailers.get("x-sum") != "1" {
		t.Errorf("the backend got the trailers %v", trailers)
	}
	endpoint.headers(r.id, true, ":status", "200")
	client.end(1)
}

// TestClientCertificateIsPassedOn: a backend that authorises by certificate sees the one that the client has shown, in Envoy's format, and none that a client wrote itself.
func TestClientCertificateIsPassedOn(t *testing.T) {
	ours, dir := newAuthority(t), t.TempDir()
	cert, key := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	ours.issue(cert, key)
	pair, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	for _, detail := range []string{"none", "details", "full"} {
		back := listen(t)
		p := start(t, oneBackend(back.addr(), "listener: tls: {certificate: '"+cert+"', key: '"+key+"', clientCA: '"+ours.file+"'}", "listener: forwarded: {clientCertificate: "+detail+"}"))
		nc, err := tls.Dial("tcp", p.addr, &tls.Config{RootCAs: ours.pool(), NextProtos: []string{"h2"}, Certificates: []tls.Certificate{pair}})
		if err != nil {
			t.Fatal(err)
		}
		client := callOver(t, nc)
		id := client.begin(true, "x-forwarded-client-cert", `Subject="CN=root"`)
		endpoint := back.accept()
		r := endpoint.takeRequest()
		got := r.get("x-forwarded-client-cert")
		switch {
		case detail == "none" && got != "":
			t.Errorf("the backend got %s", got)
		case detail != "none" && (!strings.HasPrefix(got, "By=spiffe://test/leaf;Hash=") || !strings.Contains(got, `;Subject="CN=leaf";URI=spiffe://test/leaf;`) || !strings.HasSuffix(got, ";DNS=backend.test") || strings.Contains(got, "root")):
			t.Errorf("%s: the backend got %s", detail, got)
		case (detail == "full") != strings.Contains(got, `;Cert="-----BEGIN%20CERTIFICATE-----%0A`):
			t.Errorf("%s: the backend got %s", detail, got)
		}
		if r.get("x-forwarded-proto") != "https" {
			t.Errorf("the backend got %v", r)
		}
		endpoint.only(r.id, "0")
		client.end(id)
	}
}

// TestCertificateNamesCannotPretend: the names in a certificate may have any character, and must not look like another element of the header.
func TestCertificateNamesCannotPretend(t *testing.T) {
	leaf := &x509.Certificate{Raw: []byte("raw"), Subject: pkix.Name{CommonName: "a\";By=evil\r\n\xfc\\"}, DNSNames: []string{"plain.example", `x,Subject="CN=root"`},
		URIs: []*url.URL{{Scheme: "spiffe", Host: "td", Path: "/ns/a;b"}}}
	o := origin{tls: &tls.ConnectionState{PeerCertificates: []*x509.Certificate{leaf}, VerifiedChains: [][]*x509.Certificate{{leaf}}}, by: []*url.URL{{Scheme: "spiffe", Host: "td", Path: "/proxy"}}}
	got := o.certificate(config.CertificateDetails)
	_, rest, _ := strings.Cut(got, ";Subject=")
	const want = `"CN=a\\\"\\;By=evil\0D\0A\EF\BF\BD\\\\";URI="spiffe://td/ns/a;b";DNS=plain.example;DNS="x,Subject=\"CN=root\""`
	if !strings.HasPrefix(got, "By=spiffe://td/proxy;Hash=") || rest != want {
		t.Errorf("got  %s\nwant ...%s", got, want)
	}
	o.tls.VerifiedChains = nil
	if got := o.certificate(config.CertificateDetails); got != "" {
		t.Errorf("a certificate that nobody has verified is passed on: %s", got)
	}
}

// TestStandardForwarded: addresses of IPv6 are quoted, and a client at a Unix socket has none.
func TestStandardForwarded(t *testing.T) {
	for want, ip := range map[string]netip.Addr{`for="[2001:db8::1]";proto=https;host="a:1"`: netip.MustParseAddr("2001:db8::1"), `for=unknown;proto=https;host="a:1"`: {}} {
		if got := standardElement(ip, "https", "a:1"); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
}

// TestHeaderRules: what a route sets, adds and removes reaches the other side, in both directions, however often the same headers come, and nothing else is touched.
func TestHeaderRules(t *testing.T) {
	back := listen(t)
	p := start(t, oneBackend(back.addr(), `route: headers:
    authority: orders.internal:50051
    request:
      set: [{name: X-Env, value: prod}]
      add: [{name: x-tag, value: a}, {name: x-tag, value: b}]
      remove: [x-debug, user-agent]
    response:
      set: [{name: x-served-by, value: levada}]
      add: [{name: x-hint, value: h}]
      remove: [x-internal]`))
	client := dial(t, p.addr)
	var endpoint *wire
	for i := range 4 {
		id := client.begin(true, "x-env", "test", "x-tag", "own", "x-debug", "1", "x-debug", "2", "user-agent", "ua", "x-kept", "k", "host", "test")
		if endpoint == nil {
			endpoint = back.accept()
		}
		r := endpoint.takeRequest()
		for name, want := range map[string][]string{":authority": {"orders.internal:50051"}, "host": {"orders.internal:50051"}, "x-env": {"prod"}, "x-tag": {"own", "a", "b"}, "x-debug": nil,
			"user-agent": nil, "x-kept": {"k"}, "te": {"trailers"}, ":path": {testMethod}, "x-forwarded-host": {"test"}} {
			if got := r.all(name); !slices.Equal(got, want) {
				t.Errorf("call %d: the backend got %s %q, want %q", i, name, got, want)
			}
		}
		only := i%2 == 1
		if only {
			endpoint.only(r.id, "5", "x-internal", "i", "x-served-by", "me", "x-hint", "own")
		} else {
			endpoint.respond(r.id, "x-internal", "i", "x-served-by", "me", "x-hint", "own")
			endpoint.finish(r.id, "5", "x-internal", "i", "x-rest", "r")
		}
		a := client.end(id)
		for name, want := range map[string][]string{"x-internal": nil, "x-served-by": {"levada"}, "x-hint": {"own", "h"}, "content-type": {"application/grpc"}} {
			if got := a.head.all(name); !slices.Equal(got, want) {
				t.Errorf("call %d: the client got %s %q, want %q", i, name, got, want)
			}
		}
		if a.status() != "5" || a.trailers.get("x-internal") != "" || !only && (a.trailers.get("x-rest") != "r" || a.trailers.get("x-served-by") != "") {
			t.Errorf("call %d: the client got the trailers %v", i, a.trailers)
		}
	}
	// What the proxy itself answers is a response, too.
	endpoint.rstStream(1, 0)
	id := client.begin(true, "grpc-timeout", "1n")
	a := client.end(id)
	if a.status() != "4" || a.head.get("x-served-by") != "levada" {
		t.Errorf("the proxy's own answer is %v", a.head)
	}
}

// TestNoRulesNoCopy: routes without rules must cost nothing: what the client sent is what goes on, without a copy.
func TestNoRulesNoCopy(t *testing.T) {
	r := &route{clusters: []*cluster{{}}, forwarded: &forwarding{policy: config.ForwardedKeep}}
	f := &front{}
	set := setOf(t, request()...)
	if f.sent(r, set) != set || r.response.response(set) != set || r.response.trailers(set) != set || f.sentTrailers(r, set) != set {
		t.Error("headers are copied although nothing changes them")
	}
	if n := testing.AllocsPerRun(100, func() { f.sent(r, set); r.response.response(set); r.response.trailers(set) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func setOf(t *testing.T, pairs ...string) *header.Set {
	t.Helper()
	var block bytes.Buffer
	enc := hpack.NewEncoder(&block)
	for _, f := range fieldsOf(pairs...) {
		_ = enc.WriteField(f)
	}
	set, err := header.NewReader(4096, 1<<16).Read(block.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	return set
}
