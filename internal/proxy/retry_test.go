package proxy

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"
	spb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/levada-io/levada/internal/testserver"
)

// details are what an answer of the proxy's own says beside its status.
func (a answer) details(t testing.TB) *spb.Status {
	t.Helper()
	b, err := base64.RawStdEncoding.DecodeString(a.trailers.get("grpc-status-details-bin"))
	if err != nil {
		t.Fatal(err)
	}
	s := &spb.Status{}
	if err := proto.Unmarshal(b, s); err != nil {
		t.Fatal(err)
	}
	return s
}

func (a answer) unprocessed(t testing.TB) bool {
	t.Helper()
	return strings.Contains(a.details(t).String(), "unprocessed")
}

// TestReplay: what an endpoint provably did not process is sent again, once, with all of its body, if that was kept.
func TestReplay(t *testing.T) {
	refuse := map[string]func(e *wire, id uint32){
		"REFUSED_STREAM": func(e *wire, id uint32) { e.rstStream(id, http2.ErrCodeRefusedStream) },
		"GOAWAY":         func(e *wire, id uint32) { e.goAway(0) },
		"GOAWAY and close": func(e *wire, id uint32) {
			e.goAway(0)
			e.close()
		},
	}
	for name, refuse := range refuse {
		for _, size := range []int{-1, 0, 1000, 40000, 60000, 65531, 65532, 100000} {
			for _, times := range []int{1, 2} {
				t.Run(fmt.Sprintf("%s %d bytes %d times", name, size, times), func(t *testing.T) {
					back := listen(t)
					p := start(t, oneBackend(back.addr()))
					c := dial(t, p.addr)
					id := c.begin(size < 0, "call", "mine")
					var body []byte
					if size >= 0 {
						body = prefixed(noise(size))
						c.pour(id, body, true, patience)
					}
					var e *wire
					attempt := func() (*wire, event) {
						t.Helper()
						var r event
						for {
							if e == nil {
								e = back.accept()
							}
							var err error
							if r, err = e.awaitFor(50*time.Millisecond, func(e *event) bool { return e.get(":method") != "" }); err == nil {
								return e, r
							}
							select {
							case e = <-back.conns:
							default:
							}
						}
					}
					for n := range times {
						on, r := attempt()
						if n == 0 && size >= 0 { // all of it was there already
							on.dataOf(r.id, len(body))
						}
						refuse(on, r.id)
					}
					if times == 1 && len(body) <= 65536 {
						on, r := attempt()
						if r.get("call") != "mine" || r.end != (size < 0) {
							t.Errorf("the second attempt is %v", r)
						}
						if size >= 0 {
							if a := on.end(r.id); !bytes.Equal(a.data, body) {
								t.Errorf("the second attempt has %d bytes of %d, or others", len(a.data), len(body))
							}
						}
						on.only(r.id, "0")
						if got := c.end(id).status(); got != "0" {
							t.Errorf("ended with %s", got)
						}
						return
					}
					if times == 2 && len(body) > 65536 {
						t.Skip("it is not sent again at all")
					}
					a := c.end(id)
					if a.status() != "14" || !a.unprocessed(t) {
						t.Errorf("ended with %s %v", a.status(), a.details(t))
					}
				})
				if size > 65531 {
					break
				}
			}
		}
	}
}

// TestReplayWhileTheBodyComes: the second attempt gets the rest of a request whose first one had only a part of it.
func TestReplayWhileTheBodyComes(t *testing.T) {
	back := listen(t)
	p := start(t, oneBackend(back.addr()))
	c := dial(t, p.addr)
	id := c.begin(false)
	body := noise(150 << 10)
	c.pour(id, body[:30<<10], false, patience)
	e := back.accept()
	r := e.takeRequest()
	e.dataOf(r.id, 30<<10)
	e.rstStream(r.id, http2.ErrCodeRefusedStream)
	r = e.takeRequest()
	c.pour(id, body[30<<10:], true, patience)
	if a := e.end(r.id); !bytes.Equal(a.data, body) {
		t.Errorf("%d bytes, or others", len(a.data))
	}
	e.only(r.id, "0")
	if got := c.end(id).status(); got != "0" {
		t.Errorf("ended with %s", got)
	}
}

// TestNeverTwice: what an endpoint may have processed is not sent again, whatever happens to it.
func TestNeverTwice(t *testing.T) {
	for name, fail := range map[string]func(e *wire, id uint32){
		"RST of TCP":                 func(e *wire, _ uint32) { e.rst() },
		"FIN":                        func(e *wire, _ uint32) { e.close() },
		"GOAWAY above it, and close": func(e *wire, id uint32) { e.goAway(id); e.settle(); e.close() },
		"GOAWAY later":               func(e *wire, id uint32) { e.goAway(1<<31 - 1); e.settle(); e.rst() },
		"half a header": func(e *wire, id uint32) {
			e.send(func(f *http2.Framer) error {
				return f.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: []byte{0x88}})
			})
			e.close()
		},
		"garbage": func(e *wire, _ uint32) {
			e.send(func(f *http2.Framer) error { return f.WriteRawFrame(http2.FramePing, 0, 0, []byte("short")) })
		},
		"refused after the header": func(e *wire, id uint32) {
			e.respond(id)
			e.rstStream(id, http2.ErrCodeRefusedStream)
		},
	} {
		t.Run(name, func(t *testing.T) {
			first, second := listen(t), listen(t)
			p := start(t, oneBackend(first.addr()+","+second.addr()))
			c := dial(t, p.addr)
			id := c.begin(false)
			c.data(id, prefixed([]byte("x")), true)
			var e *wire
			select {
			case e = <-first.conns:
			case e = <-second.conns:
			case <-time.After(patience):
				t.Fatal("no connection")
			}
			r := e.takeRequest()
			e.dataOf(r.id, 6)
			fail(e, r.id)
			a := c.end(id)
			if a.status() != "14" {
				t.Errorf("ended with %s", a.status())
			}
			if a.unprocessed(t) {
				t.Error("the client gets the status of a call that no backend has processed")
			}
			for _, back := range []*endpoints{first, second} {
				for len(back.conns) > 0 {
					other := <-back.conns
					if _, err := other.awaitFor(50*time.Millisecond, func(e *event) bool { return e.get(":method") != "" }); err == nil {
						t.Error("it was sent again")
					}
				}
			}
		})
	}
}

// TestConnectFails: an endpoint that cannot be connected to costs the call nothing while there is another; when there is none, the client learns it at once.
func TestConnectFails(t *testing.T) {
	dead := nobody(t)
	t.Run("another", func(t *testing.T) {
		back := listenEcho(t)
		p := start(t, oneBackend(dead+","+back.addr()))
		c := dial(t, p.addr)
		for i := range 20 {
			if got := c.unary([]byte("x"), "call-id", fmt.Sprint(i)).status(); got != "0" || back.count(fmt.Sprint(i)) != 1 {
				t.Fatalf("ended with %s after %d executions", got, back.count(fmt.Sprint(i)))
			}
		}
	})
	t.Run("none", func(t *testing.T) {
		p := start(t, oneBackend(dead))
		c := dial(t, p.addr)
		for range 5 {
			began := time.Now()
			a := c.unary([]byte("x"))
			if a.status() != "14" || a.reason() != reasonConnectFailed || !a.unprocessed(t) {
				t.Errorf("ended with %s (%s)", a.status(), a.reason())
			}
			if took := time.Since(began); took > 2*time.Second {
				t.Errorf("after %v", took)
			}
		}
	})
	t.Run("no HTTP/2", func(t *testing.T) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		var serving sync.WaitGroup
		serving.Go(func() {
			for {
				nc, err := l.Accept()
				if err != nil {
					return
				}
				_, _ = nc.Write([]byte("HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n"))
				_ = nc.Close()
			}
		})
		defer serving.Wait()
		defer func() { _ = l.Close() }()
		p := start(t, oneBackend(l.Addr().String()))
		a := dial(t, p.addr).unary([]byte("x"))
		if a.status() != "14" || a.reason() != reasonConnectFailed {
			t.Errorf("ended with %s (%s)", a.status(), a.reason())
		}
	})
	t.Run("back again", func(t *testing.T) {
		addr := testserver.FreeAddress(t)
		p := start(t, oneBackend(addr))
		c := dial(t, p.addr)
		c.unary([]byte("x"))
		back := echoAt(t, addr)
		eventually(t, "calls succeed", func() bool { return c.unary([]byte("x")).status() == "0" })
		_ = back
	})
}

// policy is an endpoint that answers the attempts of a call one by one.
func policy(t *testing.T, options ...string) (*wire, *endpoints, *running) {
	t.Helper()
	back := listen(t)
	p := start(t, oneBackend(back.addr(), append(options, "backend: ejection: {disabled: true}")...))
	return dial(t, p.addr), back, p
}

const quickRetry = "route: retry: {attempts: 3, backoff: {base: 1ms, max: 2ms}}"

// TestPolicyRetry: a route may have failed calls tried again, before any response, within bounds.
func TestPolicyRetry(t *testing.T) {
	again := func(e *wire, what string) event {
		e.t.Helper()
		return e.await(what, func(e *event) bool { return e.get(":method") != "" })
	}
	t.Run("until it works", func(t *testing.T) {
		c, back, _ := policy(t, quickRetry)
		id := c.begin(true)
		e := back.accept()
		e.only(e.takeRequest().id, "14")
		e.only(again(e, "the second attempt").id, "8")
		e.only(again(e, "the third attempt").id, "0")
		if got := c.end(id).status(); got != "0" {
			t.Errorf("ended with %s", got)
		}
	})
	t.Run("attempts are counted", func(t *testing.T) {
		c, back, _ := policy(t, quickRetry)
		id := c.begin(true)
		e := back.accept()
		for range 3 {
			e.only(again(e, "an attempt").id, "14", "grpc-message", "mine")
		}
		if a := c.end(id); a.status() != "14" || a.trailers.get("grpc-message") != "mine" {
			t.Errorf("ended with %v", a.trailers)
		}
		e.settle()
		if n := e.seen(func(e *event) bool { return e.get(":method") != "" }); n > 0 {
			t.Error("there was a fourth attempt")
		}
	})
	t.Run("connecting", func(t *testing.T) {
		address := testserver.FreeAddress(t)
		p := start(t, oneBackend(address, "route: retry: {attempts: 5, backoff: {base: 300ms, max: 2s}}"))
		c := dial(t, p.addr)
		id := c.begin(false)
		c.data(id, prefixed([]byte("x")), true)
		eventually(t, "a retry", func() bool { return p.Stats().Routes[0].Retries > 0 })
		echoAt(t, address)
		if a := c.end(id); a.status() != "0" || string(a.data) != string(prefixed([]byte("x"))) {
			t.Errorf("ended with %s (%s) and %q", a.status(), a.reason(), a.data)
		}
	})
	t.Run("connecting is hopeless", func(t *testing.T) {
		p := start(t, oneBackend(nobody(t), quickRetry))
		c := dial(t, p.addr)
		if a := c.unary([]byte("x")); a.status() != "14" || a.reason() != reasonConnectFailed {
			t.Errorf("ended with %s (%s)", a.status(), a.reason())
		}
		if n := p.Stats().Routes[0].Retries; n != 2 {
			t.Errorf("%d retries", n)
		}
	})
	t.Run("another backend", func(t *testing.T) {
		back := listenEcho(t)
		p := start(t, fmt.Sprintf(`backends:
- {name: dead, target: '%s'}
- {name: alive, target: '%s'}
routes:
- backends: [{name: dead, weight: 1}, {name: alive, weight: 1}]
  retry: {attempts: 5, backoff: {base: 1ms, max: 2ms}}
  retryBudget: {minPerSecond: 100}
`, nobody(t), back.addr()))
		c := dial(t, p.addr)
		good := 0
		for range 40 {
			if c.unary([]byte("x")).status() == "0" {
				good++
			}
		}
		if good < 32 { // of which one in 32 fails five times, mostly
			t.Errorf("%d of 40 calls came to the backend that is there", good)
		}
	})
	t.Run("other statuses", func(t *testing.T) {
		c, back, _ := policy(t, quickRetry)
		id := c.begin(true)
		e := back.accept()
		e.only(e.takeRequest().id, "13")
		if got := c.end(id).status(); got != "13" {
			t.Errorf("ended with %s", got)
		}
	})
	t.Run("not after a response began", func(t *testing.T) {
		c, back, _ := policy(t, quickRetry)
		id := c.begin(true)
		e := back.accept()
		r := e.takeRequest()
		e.respond(r.id)
		e.finish(r.id, "14")
		if got := c.end(id).status(); got != "14" {
			t.Errorf("ended with %s", got)
		}
	})
	t.Run("not with a body that was not kept", func(t *testing.T) {
		c, back, _ := policy(t, "route: retry: {attempts: 3, bufferBytes: 1000, backoff: {base: 1ms, max: 2ms}}")
		id := c.begin(false)
		c.data(id, prefixed(make([]byte, 2000)), true)
		e := back.accept()
		r := e.takeRequest()
		e.dataOf(r.id, 2005)
		e.only(r.id, "14")
		if got := c.end(id).status(); got != "14" {
			t.Errorf("ended with %s", got)
		}
	})
	t.Run("the endpoint says no", func(t *testing.T) {
		c, back, _ := policy(t, quickRetry)
		for _, pushback := range []string{"-1", "never"} {
			id := c.begin(true)
			var e *wire
			if len(back.conns) > 0 || c.next == 3 {
				e = back.accept()
				back.conns <- e
			}
			e = <-back.conns
			back.conns <- e
			e.only(e.takeRequest().id, "14", "grpc-retry-pushback-ms", pushback)
			if got := c.end(id).status(); got != "14" {
				t.Errorf("ended with %s", got)
			}
			e.settle()
			if n := e.seen(func(e *event) bool { return e.get(":method") != "" }); n > 0 {
				t.Error("it was tried again")
			}
		}
	})
	t.Run("the endpoint says when", func(t *testing.T) {
		c, back, _ := policy(t, quickRetry)
		id := c.begin(true)
		e := back.accept()
		r := e.takeRequest()
		began := time.Now()
		e.only(r.id, "14", "grpc-retry-pushback-ms", "300")
		e.only(again(e, "the second attempt").id, "0")
		if took := time.Since(began); took < 300*time.Millisecond {
			t.Errorf("tried again after %v", took)
		}
		c.end(id)
	})
	t.Run("time for an attempt", func(t *testing.T) {
		c, back, _ := policy(t, "route: retry: {attempts: 2, perTryTimeout: 100ms, backoff: {base: 1ms, max: 2ms}}")
		id := c.begin(true)
		e := back.accept()
		r := e.takeRequest()
		if got := e.resetOf(r.id); got != http2.ErrCodeCancel {
			t.Errorf("the first attempt was ended with %v", got)
		}
		second := again(e, "the second attempt")
		time.Sleep(200 * time.Millisecond) // the last attempt has all the time that the call has
		e.only(second.id, "0")
		if got := c.end(id).status(); got != "0" {
			t.Errorf("ended with %s", got)
		}
	})
	t.Run("a connection is lost", func(t *testing.T) {
		c, back, _ := policy(t, quickRetry)
		id := c.begin(true)
		e := back.accept()
		e.takeRequest()
		e.rst()
		e = back.accept()
		e.only(e.takeRequest().id, "0")
		if got := c.end(id).status(); got != "0" {
			t.Errorf("ended with %s", got)
		}
	})
	t.Run("the deadline counts for all", func(t *testing.T) {
		c, back, _ := policy(t, "route: retry: {attempts: 5, backoff: {base: 10s, max: 10s}}")
		began := time.Now()
		id := c.begin(true, "grpc-timeout", "300m")
		e := back.accept()
		e.only(e.takeRequest().id, "14")
		if got := c.end(id).status(); got != "4" && got != "0" {
			t.Errorf("ended with %s", got)
		}
		if took := time.Since(began); took > 3*time.Second {
			t.Errorf("after %v", took)
		}
	})
}

// TestRetryBudget: X-14. While everything fails, retries are a share of the calls.
func TestRetryBudget(t *testing.T) {
	back := listenAt(t, "127.0.0.1:0", func(p *wire) {
		for {
			e, err := p.awaitFor(time.Hour, func(e *event) bool { return e.kind == http2.FrameHeaders })
			if err != nil {
				return
			}
			p.only(e.id, "14")
		}
	})
	p := start(t, oneBackend(back.addr(), quickRetry, "route: retryBudget: {ratio: 0.1, minPerSecond: 0}", "backend: ejection: {disabled: true}"))
	c := dial(t, p.addr)
	const calls = 300
	for range calls {
		if got := c.end(c.begin(true)).status(); got != "14" {
			t.Fatalf("ended with %s", got)
		}
	}
	retries := p.routeStats(routeKey{route: "*"}).retries.Load()
	if least, most := int64(calls/10), int64(calls/10+15); retries < least || retries > most {
		t.Errorf("%d retries of %d calls, want %d to %d", retries, calls, least, most)
	}
}

// TestRateLimit: calls above the limit are refused with the time to come back.
func TestRateLimit(t *testing.T) {
	back := listenEcho(t)
	p := start(t, oneBackend(back.addr(), "route: rateLimit: {perSecond: 1, burst: 5}"))
	c := dial(t, p.addr)
	ok, refused := 0, 0
	for range 20 {
		switch a := c.unary([]byte("x")); a.status() {
		case "0":
			ok++
		case "8":
			if refused++; a.reason() != reasonRateLimit || !strings.Contains(a.details(t).String(), "RetryInfo") {
				t.Errorf("refused with %v %v", a.trailers, a.details(t))
			}
		default:
			t.Errorf("ended with %s", a.status())
		}
	}
	if ok < 5 || ok > 10 || back.sum() != ok {
		t.Errorf("%d calls passed and %d were refused; the backend saw %d", ok, refused, back.sum())
	}
}

// TestMessageSize: limits hold both ways, at any cut of the prefix; what is as large as allowed passes.
func TestMessageSize(t *testing.T) {
	back := listenEcho(t)
	p := start(t, oneBackend(back.addr(), "route: maxMessageBytes: {request: 1000, response: 500}"))
	c := dial(t, p.addr)
	for _, test := range []struct {
		size   int
		status string
	}{{500, "0"}, {501, "8"}, {1000, "8"}, {1001, "8"}, {100, "0"}} {
		for cut := range prefixLen {
			id := c.begin(false)
			b := prefixed(make([]byte, test.size))
			c.data(id, b[:cut], false)
			c.data(id, b[cut:], true)
			a := c.end(id)
			if a.status() != test.status || test.status == "8" && (a.reason() != reasonMessageSize || len(a.data) > 0) {
				t.Errorf("%d bytes, cut after %d: %s (%s) and %d bytes", test.size, cut, a.status(), a.reason(), len(a.data))
			}
		}
	}
	id := c.begin(false)
	c.data(id, []byte{0, 0xff, 0xff, 0xff, 0xff}, false) // 4 GiB
	if a := c.end(id); a.status() != "8" {
		t.Errorf("4 GiB: ended with %s", a.status())
	}
}

// TestBlockedStreamIsReplayed: streams that wait for the window of one connection and are then sent on another one wait for that one's.
func TestBlockedStreamIsReplayed(t *testing.T) {
	back := listen(t)
	back.keep()
	p := start(t, oneBackend(back.addr()))
	c := dial(t, p.addr)
	var first *wire
	var last uint32
	for range 2 { // which use up the first connection's window
		id := c.begin(false)
		if first == nil {
			first = back.accept()
		}
		r := first.takeRequest()
		last = r.id
		first.respond(r.id)
		c.headersOf(id)
		c.pour(id, make([]byte, 40000), false, patience)
	}
	body := prefixed(noise(50000)) // of which the second connection's window takes one and a part of another
	ids := []uint32{c.begin(false), c.begin(false)}
	for _, id := range ids {
		c.pour(id, body, true, patience)
		first.takeRequest()
	}
	c.settle()
	first.settle()
	first.goAway(last)
	second := back.accept()
	requests := []uint32{second.takeRequest().id, second.takeRequest().id}
	eventually(t, "the second connection's window is used up", func() bool { return second.bytesOf(requests[0])+second.bytesOf(requests[1]) == 65535 })
	second.grant(0, 1<<20)
	for _, id := range requests {
		if a := second.end(id); !bytes.Equal(a.data, body) {
			t.Errorf("%d bytes came, or others", len(a.data))
		}
		second.only(id, "0")
	}
	for _, id := range ids {
		if got := c.end(id).status(); got != "0" {
			t.Errorf("ended with %s", got)
		}
	}
}
