package proxy

import (
	"fmt"
	"io"
	"net"
	"strconv"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"google.golang.org/grpc/codes"

	"github.com/levada-io/levada/internal/h2/header"
)

// TestDeadlineIsPassedOn: X-10. An endpoint sees what is left of the time, and the client gets DEADLINE_EXCEEDED when it is over.
func TestDeadlineIsPassedOn(t *testing.T) {
	read := func(t *testing.T, r event) time.Duration {
		t.Helper()
		if r.get("grpc-timeout") == "" {
			return -1
		}
		req := (&header.Set{Fields: r.fields}).Request()
		if req.BadTimeout {
			t.Fatalf("the endpoint got %q", r.get("grpc-timeout"))
		}
		return req.Timeout
	}
	for _, test := range []struct {
		name, route, timeout string
		least, most          time.Duration
	}{
		{"none", "0s", "", -1, -1},
		{"the client's", "0s", "10S", 5 * time.Second, 10 * time.Second},
		{"the route's", "20s", "", 15 * time.Second, 20 * time.Second},
		{"the client's is earlier", "20s", "10S", 5 * time.Second, 10 * time.Second},
		{"the route's is earlier", "20s", "1H", 15 * time.Second, 20 * time.Second},
		{"8 digits", "0s", "99999999m", 99990 * time.Second, 99999999 * time.Millisecond},
	} {
		t.Run(test.name, func(t *testing.T) {
			back := listen(t)
			p := start(t, oneBackend(back.addr(), "route: timeout: "+test.route))
			c := dial(t, p.addr)
			var more []string
			if test.timeout != "" {
				more = []string{"grpc-timeout", test.timeout}
			}
			c.begin(true, more...)
			r := back.accept().takeRequest()
			if got := read(t, r); got < test.least || got > test.most {
				t.Errorf("the endpoint got %v", got)
			}
		})
	}
	t.Run("time that a retry has taken", func(t *testing.T) {
		back := listen(t)
		p := start(t, oneBackend(back.addr(), "route: retry: {attempts: 2}"))
		c := dial(t, p.addr)
		c.begin(true, "grpc-timeout", "10S")
		e := back.accept()
		r := e.takeRequest()
		e.only(r.id, "14", "grpc-retry-pushback-ms", "500")
		if got := read(t, e.takeRequest()); got > 9500*time.Millisecond || got < 5*time.Second {
			t.Errorf("the second attempt has %v of 10 s", got)
		}
	})
	t.Run("over", func(t *testing.T) {
		back := listen(t)
		p := start(t, oneBackend(back.addr()))
		c := dial(t, p.addr)
		began := time.Now()
		id := c.begin(true, "grpc-timeout", "200m")
		e := back.accept()
		r := e.takeRequest()
		a := c.end(id)
		took := time.Since(began)
		if a.status() != "4" || a.reason() != reasonDeadline {
			t.Errorf("ended with %s (%s)", a.status(), a.reason())
		}
		if took < 200*time.Millisecond || took > time.Second {
			t.Errorf("after %v", took)
		}
		if got := e.resetOf(r.id); got != http2.ErrCodeCancel {
			t.Errorf("the endpoint was told %v", got)
		}
	})
	t.Run("the client knows it, too", func(t *testing.T) {
		back := listen(t)
		p := start(t, oneBackend(back.addr()))
		c := dial(t, p.addr)
		id := c.begin(true, "grpc-timeout", "10S")
		e := back.accept()
		e.takeRequest()
		early := c.begin(true, "grpc-timeout", "10S")
		e.takeRequest()
		c.rstStream(early, http2.ErrCodeCancel) // for another reason
		c.settle()
		almostOver(p.Proxy, id)
		c.rstStream(id, http2.ErrCodeCancel)
		c.settle()
		calls := p.Stats().Routes[0].Calls
		if got := calls[1].ByReason; got[reasonDeadline] != 1 || got[clientCancelled] != 1 || calls[1].ByStatus[codes.DeadlineExceeded] != 1 {
			t.Errorf("counted as %v", got)
		}
	})
	t.Run("the endpoint knows it first", func(t *testing.T) {
		back := listen(t)
		p := start(t, oneBackend(back.addr()))
		c := dial(t, p.addr)
		id := c.begin(true, "grpc-timeout", "10S")
		e := back.accept()
		r := e.takeRequest()
		almostOver(p.Proxy, id)
		e.rstStream(r.id, http2.ErrCodeCancel)
		if a := c.end(id); a.status() != "4" || a.reason() != reasonDeadline {
			t.Errorf("ended with %s (%s)", a.status(), a.reason())
		}
	})
	t.Run("refused at once", func(t *testing.T) {
		back := listenEcho(t)
		p := start(t, oneBackend(back.addr()))
		c := dial(t, p.addr)
		for timeout, status := range map[string]string{"0S": "4", "0n": "4", "00000000H": "4", "-1S": "13", "": "13", "1": "13", "S": "13", "123456789S": "13", "1s": "13", "1.5S": "13", "+1S": "13", "1 S": "13"} {
			id := c.begin(true, "grpc-timeout", timeout)
			if a := c.end(id); a.status() != status {
				t.Errorf("%q: ended with %s", timeout, a.status())
			}
		}
		if n := back.sum(); n > 0 {
			t.Errorf("%d of them reached the endpoint", n)
		}
	})
}

// almostOver brings the deadline of a client's stream near, without our own timer.
func almostOver(p *Proxy, id uint32) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for f := range p.fronts {
		f.mu.Lock()
		if s := f.streams[id]; s != nil {
			s.deadline = p.wheel.Now() + int64(deadlineSlack)/2
		}
		f.mu.Unlock()
	}
}

// TestStreamAge: streams end with UNAVAILABLE between two messages, at ages that differ by chance.
func TestStreamAge(t *testing.T) {
	back := listen(t)
	p := start(t, oneBackend(back.addr(), "route: streamAge: 500ms", "route: streamAgeJitter: 0.4"))
	c := dial(t, p.addr)
	const streams = 40
	began := time.Now()
	var ids []uint32
	var e *wire
	for range streams {
		ids = append(ids, c.begin(false))
		if e == nil {
			e = back.accept()
		}
		r := e.takeRequest()
		e.respond(r.id)
		e.data(r.id, prefixed([]byte("whole")), false)
		e.data(r.id, prefixed([]byte("part"))[:7], false)
	}
	opened := time.Since(began)
	var ends []time.Duration
	var mu sync.Mutex
	var waiting sync.WaitGroup
	for _, id := range ids {
		waiting.Go(func() {
			a := c.end(id)
			mu.Lock()
			defer mu.Unlock()
			ends = append(ends, time.Since(began))
			if a.status() != "14" || a.reason() != reasonAge || string(a.data) != string(prefixed([]byte("whole"))) {
				t.Errorf("ended with %s (%s) and %q", a.status(), a.reason(), a.data)
			}
		})
	}
	waiting.Wait()
	first, last := ends[0], ends[len(ends)-1]
	if first < 300*time.Millisecond || last > 700*time.Millisecond+opened+2*time.Second {
		t.Errorf("they ended after %v to %v", first, last)
	}
	if spread := last - first; spread < 150*time.Millisecond {
		t.Errorf("all ended within %v", spread)
	}
}

// TestIdleTimeout: a stream on which nothing goes either way ends; one that has something from time to time does not.
func TestIdleTimeout(t *testing.T) {
	back := listen(t)
	p := start(t, oneBackend(back.addr(), "route: idleTimeout: 1s"))
	c := dial(t, p.addr)
	idle := c.begin(false)
	e := back.accept()
	e.takeRequest() // before there is another one: streams have no order
	busy := c.begin(false)
	r := e.takeRequest()
	e.respond(r.id)
	for range 16 { // longer than the timeout, and each far from it, also on a machine that is busy
		time.Sleep(100 * time.Millisecond)
		e.data(r.id, prefixed(nil), false)
	}
	if a := c.end(idle); a.status() != "14" || a.reason() != reasonIdle {
		t.Errorf("ended with %s (%s)", a.status(), a.reason())
	}
	e.finish(r.id, "0")
	if a := c.end(busy); a.status() != "0" {
		t.Errorf("the busy one ended with %s (%s)", a.status(), a.reason())
	}
}

// TestStall: a client that takes nothing although something is there loses the stream, or the connection if it does not even read.
func TestStall(t *testing.T) {
	t.Run("window", func(t *testing.T) {
		back := listen(t)
		p := start(t, oneBackend(back.addr(), "listener: stallTimeout: 200ms"))
		c := dial(t, p.addr, http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0})
		id := c.begin(true)
		e := back.accept()
		r := e.takeRequest()
		e.respond(r.id)
		e.data(r.id, prefixed([]byte("x")), false)
		if a := c.end(id); a.status() != "14" || a.reason() != reasonStalled {
			t.Errorf("ended with %s, %s", a.status(), a.reason())
		}
		if got := e.resetOf(r.id); got != http2.ErrCodeCancel {
			t.Errorf("the endpoint was told %v", got)
		}
		eventually(t, "it is counted", func() bool { return p.Open() == 0 })
	})
	t.Run("window, the end waits", func(t *testing.T) {
		back := listen(t)
		p := start(t, oneBackend(back.addr(), "listener: stallTimeout: 200ms"))
		c := dial(t, p.addr, http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0})
		id := c.begin(true)
		e := back.accept()
		r := e.takeRequest()
		e.respond(r.id)
		e.data(r.id, prefixed([]byte("x")), false)
		e.finish(r.id, "0")
		if a := c.end(id); a.status() != "14" || a.reason() != reasonStalled {
			t.Errorf("ended with %s, %s", a.status(), a.reason())
		}
	})
	t.Run("window, in the middle of a message", func(t *testing.T) {
		back := listen(t)
		p := start(t, oneBackend(back.addr(), "listener: stallTimeout: 200ms"))
		c := dial(t, p.addr, http2.Setting{ID: http2.SettingInitialWindowSize, Val: 8})
		c.keep()
		id := c.begin(true)
		e := back.accept()
		r := e.takeRequest()
		e.respond(r.id)
		e.data(r.id, append(prefixed([]byte("x")), prefixed([]byte("yz"))...), false)
		if got := c.end(id).status(); got != "REFUSED_STREAM" { // which clients call UNAVAILABLE; trailers would make some of them say INTERNAL
			t.Errorf("ended with %s", got)
		}
	})
	t.Run("socket", func(t *testing.T) {
		back := listen(t)
		p := start(t, oneBackend(back.addr(), "listener: stallTimeout: 300ms"))
		nc, err := net.Dial("tcp", p.addr)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = nc.Close() }()
		_ = nc.(*net.TCPConn).SetReadBuffer(4096)
		x := newWire(t, nc, nil)
		_, _ = io.WriteString(nc, http2.ClientPreface)
		x.send(func(f *http2.Framer) error {
			_ = f.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 30})
			return f.WriteWindowUpdate(0, 1<<30)
		})
		x.begin(true)
		e := back.accept()
		r := e.takeRequest()
		e.respond(r.id)
		e.pour(r.id, make([]byte, 64<<20), false, 2*time.Second)
		if got := e.resetOf(r.id); got != http2.ErrCodeCancel {
			t.Errorf("the endpoint was told %v", got)
		}
		eventually(t, "the stream is gone", func() bool { return p.Open() == 0 })
	})
	t.Run("slow is not stalled", func(t *testing.T) {
		back := listen(t)
		p := start(t, oneBackend(back.addr(), "listener: stallTimeout: 300ms"))
		c := dial(t, p.addr, http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0})
		id := c.begin(true)
		e := back.accept()
		r := e.takeRequest()
		e.respond(r.id)
		e.data(r.id, prefixed(make([]byte, 7)), false)
		e.finish(r.id, "0")
		for range 12 {
			time.Sleep(60 * time.Millisecond)
			c.grant(id, 1)
		}
		if got := c.end(id).status(); got != "0" {
			t.Errorf("ended with %s", got)
		}
	})
}

// TestSilentEndpoint: one that disappears silently is found by PING, as long as streams are open.
func TestSilentEndpoint(t *testing.T) {
	back := listen(t)
	p := start(t, oneBackend(back.addr(), "backend: ping: {interval: 200ms, timeout: 200ms}"))
	c := dial(t, p.addr)
	first := c.begin(false)
	e := back.accept()
	r := e.takeRequest()
	e.respond(r.id)
	e.data(r.id, prefixed([]byte("x")), false)
	e.await("a PING", func(e *event) bool { return e.kind == http2.FramePing && !e.ack })
	e.fallSilent()
	began := time.Now()
	a := c.end(first)
	if a.status() != "14" || a.reason() != reasonConnectionLost || string(a.data) != string(prefixed([]byte("x"))) {
		t.Errorf("ended with %s (%s) and %q", a.status(), a.reason(), a.data)
	}
	if took := time.Since(began); took > 2*time.Second {
		t.Errorf("after %v", took)
	}
	second := c.begin(true)
	e = back.accept()
	e.only(e.takeRequest().id, "0")
	if got := c.end(second).status(); got != "0" {
		t.Errorf("the next call ended with %s", got)
	}
}

// TestPingsOnlyWithStreams: connections without streams are not pinged.
func TestPingsOnlyWithStreams(t *testing.T) {
	back := listen(t)
	p := start(t, oneBackend(back.addr(), "backend: ping: {interval: 50ms, timeout: 1s}"))
	c := dial(t, p.addr)
	id := c.begin(true)
	e := back.accept()
	e.only(e.takeRequest().id, "0")
	c.end(id)
	e.settle()
	was := e.seen(func(e *event) bool { return e.kind == http2.FramePing && !e.ack })
	never(t, "there was a PING without a stream", 300*time.Millisecond, func() bool {
		return e.seen(func(e *event) bool { return e.kind == http2.FramePing && !e.ack }) > was+1
	})
}

// TestBusyCallerIsNotGone: a client whose program answers no PING for a while, since it works, keeps its streams as long as its host acknowledges what it is sent.
func TestBusyCallerIsNotGone(t *testing.T) {
	back := listen(t)
	p := start(t, oneBackend(back.addr(), "listener: keepalive: {interval: 50ms, timeout: 50ms}"))
	c := dial(t, p.addr)
	c.fallSilent()
	id := c.begin(true)
	e := back.accept()
	r := e.takeRequest()
	c.await("a PING", func(e *event) bool { return e.kind == http2.FramePing && !e.ack })
	never(t, "the client's stream ended", time.Second, func() bool { return p.Open() == 0 })
	e.only(r.id, "0")
	if a := c.end(id); a.status() != "0" {
		t.Errorf("ended with %s", a.status())
	}
}

// TestSilentCaller: a client whose host disappears silently is found by PING, and its streams are cancelled.
func TestSilentCaller(t *testing.T) {
	back := listen(t)
	p := startConfig(t, parse(t, oneBackend(back.addr(), "listener: keepalive: {interval: 200ms, timeout: 200ms}")),
		func(p *Proxy) { p.silent = func(net.Conn, time.Duration) bool { return true } })
	c := dial(t, p.addr)
	c.fallSilent()
	c.begin(false)
	e := back.accept()
	r := e.takeRequest()
	if got := e.resetOf(r.id); got != http2.ErrCodeCancel {
		t.Errorf("the endpoint was told %v", got)
	}
	c.gone()
}

// TestIdleCaller: a connection without streams is closed after its time, with GOAWAY.
func TestIdleCaller(t *testing.T) {
	back := listen(t)
	p := start(t, oneBackend(back.addr(), "listener: idleTimeout: 1s"))
	c := dial(t, p.addr)
	id := c.begin(false)
	e := back.accept()
	r := e.takeRequest()
	time.Sleep(1500 * time.Millisecond)
	if !c.open() {
		t.Fatal("it was closed with an open stream")
	}
	e.only(r.id, "0")
	c.end(id)
	c.await("GOAWAY", func(e *event) bool { return e.kind == http2.FrameGoAway && e.code == http2.ErrCodeNo && e.n == id })
	c.gone()
}

// TestRestoreUnavailableUndoesWhatOtherProxiesMakeOfALostConnection: behind another proxy that hides lost connections the route can make them UNAVAILABLE again.
func TestRestoreUnavailableUndoesWhatOtherProxiesMakeOfALostConnection(t *testing.T) {
	for _, test := range []struct {
		name            string
		play            func(e *wire, id uint32)
		plain, restored string
	}{
		{"RST INTERNAL_ERROR", func(e *wire, id uint32) { e.respond(id); e.rstStream(id, http2.ErrCodeInternal) }, "INTERNAL_ERROR", "14"},
		{"RST NO_ERROR", func(e *wire, id uint32) { e.respond(id); e.rstStream(id, http2.ErrCodeNo) }, "NO_ERROR", "14"},
		{"RST CANCEL", func(e *wire, id uint32) { e.respond(id); e.rstStream(id, http2.ErrCodeCancel) }, "CANCEL", "CANCEL"},
		{"END_STREAM", func(e *wire, id uint32) { e.respond(id); e.data(id, nil, true) }, "13", "14"},
		{"a status", func(e *wire, id uint32) { e.respond(id); e.finish(id, "13") }, "13", "13"},
	} {
		for _, restoreUnavailable := range []bool{false, true} {
			t.Run(fmt.Sprint(test.name, restoreUnavailable), func(t *testing.T) {
				back := listen(t)
				p := start(t, oneBackend(back.addr(), "route: restoreUnavailable: "+strconv.FormatBool(restoreUnavailable)))
				c := dial(t, p.addr)
				id := c.begin(true)
				e := back.accept()
				test.play(e, e.takeRequest().id)
				want := test.plain
				if restoreUnavailable {
					want = test.restored
				}
				if a := c.end(id); a.status() != want {
					t.Errorf("ended with %s (%s), want %s", a.status(), a.reason(), want)
				}
			})
		}
	}
}
