package proxy

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/levada-io/levada/internal/h2/frame"
	"github.com/levada-io/levada/internal/testserver"
)

// TestLastDataIsFlushed sends the last DATA of a request that cannot be sent again any more when nothing else moves: it has to get through by itself.
func TestLastDataIsFlushed(t *testing.T) {
	back := listen(t)
	p := start(t, oneBackend(back.addr()))
	c := dial(t, p.addr)
	id := c.begin(false)
	e := back.accept()
	r := e.takeRequest()
	e.respond(r.id)
	c.headersOf(id)
	c.data(id, prefixed([]byte("first")), false)
	e.dataOf(r.id, 10)
	for range 20 { // each time the connection's writer sleeps
		c.settle()
		c.data(id, prefixed([]byte("more")), false)
		e.dataOf(r.id, 9)
	}
	c.settle()
	c.data(id, prefixed([]byte("last")), true)
	last := e.await("the end of the request", func(e *event) bool { return e.kind == http2.FrameData && e.end })
	if string(last.data) != string(prefixed([]byte("last"))) {
		t.Fatalf("the last DATA has %q", last.data)
	}
}

// TestRetryKeepsTheBeginning sends more of a request than is kept while the next attempt is awaited: whatever becomes of the call, no endpoint may see a
// request without its beginning.
func TestRetryKeepsTheBeginning(t *testing.T) {
	back := listen(t)
	p := start(t, oneBackend(back.addr(), "route: retry: {attempts: 3, backoff: {base: 300ms, max: 300ms}}"))
	var e *wire
	for range 5 { // the backoff is by chance
		c := dial(t, p.addr)
		id := c.begin(false)
		if e == nil {
			e = back.accept()
		}
		r := e.takeRequest()
		begin := bytes.Repeat([]byte("b"), 30<<10)
		c.pour(id, begin, false, patience)
		e.dataOf(r.id, len(begin))
		e.only(r.id, "14")
		e.resetOf(r.id)
		c.settle()
		rest := bytes.Repeat([]byte("r"), 40<<10)
		c.pour(id, rest, true, patience)
		second, err := e.awaitFor(2*time.Second, func(e *event) bool { return e.kind == http2.FrameHeaders && e.get(":method") != "" })
		if err != nil { // it was not tried again: right, too
			continue
		}
		if got := e.dataOf(second.id, len(begin)+len(rest)); got[0] != 'b' || len(got) != len(begin)+len(rest) {
			t.Fatalf("the second attempt has %d bytes that begin with %q, want %d that begin with b", len(got), got[:1], len(begin)+len(rest))
		}
		e.only(second.id, "0")
		c.end(id)
	}
}

// TestCreditOnceOverReplay: what is sent again in a second attempt was credited to the client in the first one, and is not a second time.
func TestCreditOnceOverReplay(t *testing.T) {
	back := listen(t)
	p := start(t, oneBackend(back.addr()))
	c := dial(t, p.addr)
	id := c.begin(false)
	const body = 50000
	c.pour(id, make([]byte, body), false, patience)
	e := back.accept()
	e.keep()
	r := e.takeRequest()
	e.dataOf(r.id, body)
	e.settings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 40000})
	e.grant(0, 1<<20)
	e.rstStream(r.id, http2.ErrCodeRefusedStream)
	r = e.takeRequest()
	e.dataOf(r.id, 40000)
	e.settle()
	s := oneStream(t, p.Proxy)
	s.front.mu.Lock()
	defer s.front.mu.Unlock()
	if may := int(s.inWindow) + int(s.inOwed); may != int(s.inSize) {
		t.Errorf("all that came was taken once: the client may send, or will be allowed to, %d bytes, and its window is %d", may, s.inSize)
	}
}

func oneStream(t testing.TB, p *Proxy) *stream {
	t.Helper()
	for _, f := range p.allFronts() {
		f.mu.Lock()
		for _, s := range f.streams {
			f.mu.Unlock()
			return s
		}
		f.mu.Unlock()
	}
	t.Fatal("there is no open stream")
	return nil
}

// TestSteadyBacklogIsBounded lets something wait for a slow side at any time, without ever becoming empty: it must not grow with what goes through.
func TestSteadyBacklogIsBounded(t *testing.T) {
	const piece, all = 16384, 8 << 20
	t.Run("client", func(t *testing.T) {
		back := listen(t)
		p := start(t, oneBackend(back.addr(), "route: holdBytes: 0"))
		c := dial(t, p.addr)
		c.keep()
		id := c.begin(true)
		e := back.accept()
		r := e.takeRequest()
		e.respond(r.id)
		var sending sync.WaitGroup
		defer sending.Wait()
		sending.Go(func() { e.pour(r.id, make([]byte, all), false, patience) })
		s := oneStream(t, p.Proxy)
		for taken := 0; taken < all-1<<20; taken += piece {
			c.dataOf(id, piece-1)
			c.grant(0, piece)
			c.grant(id, piece)
			s.front.mu.Lock()
			if n := s.out.size; n > 2*firstWindow+largeWindow {
				t.Errorf("%d bytes are kept for a client that has taken %d", n, taken)
				s.front.mu.Unlock()
				break
			}
			s.front.mu.Unlock()
		}
		c.close()
		e.close()
	})
	t.Run("endpoint", func(t *testing.T) {
		back := listen(t)
		p := start(t, oneBackend(back.addr()))
		c := dial(t, p.addr)
		id := c.begin(false)
		e := back.accept()
		e.keep()
		r := e.takeRequest()
		e.respond(r.id)
		c.headersOf(id)
		var sending sync.WaitGroup
		defer sending.Wait()
		sending.Go(func() { c.pour(id, make([]byte, all), false, patience) })
		s := oneStream(t, p.Proxy)
		for taken := 0; taken < all-3<<20; taken += piece {
			e.dataOf(r.id, piece-1)
			e.grant(0, piece)
			e.grant(r.id, piece)
			s.front.mu.Lock()
			if n := s.in.size; n > 2*firstWindow+largeWindow {
				t.Errorf("%d bytes are kept for an endpoint that has taken %d", n, taken)
				s.front.mu.Unlock()
				break
			}
			s.front.mu.Unlock()
		}
		c.close()
		e.close()
	})
}

// TestSlowReaderMemory: X-09. A client takes nothing; the proxy keeps a window and a message for it, however the endpoint cuts its messages.
func TestSlowReaderMemory(t *testing.T) {
	for _, test := range []struct{ message, frame int }{{60 << 10, 1 << 10}, {60 << 10, 16 << 10}, {1 << 10, 100}, {1 << 20, 16 << 10}, {1000 << 10, 1 << 10}} {
		t.Run(fmt.Sprintf("messages of %d in frames of %d", test.message, test.frame), func(t *testing.T) {
			back := listen(t)
			p := start(t, oneBackend(back.addr()))
			c := dial(t, p.addr, http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0})
			id := c.begin(true)
			e := back.accept()
			r := e.takeRequest()
			e.respond(r.id)
			c.headersOf(id)
			message := prefixed(make([]byte, test.message))
			for sent := 0; sent < 16<<20; sent += len(message) {
				stuck := false
				for b := message; len(b) > 0 && !stuck; {
					n := min(len(b), test.frame)
					stuck = e.pour(r.id, b[:n], false, 200*time.Millisecond) < n
					b = b[n:]
				}
				if stuck {
					break
				}
			}
			s := oneStream(t, p.Proxy)
			s.front.mu.Lock()
			defer s.front.mu.Unlock()
			if held, limit := s.out.size+s.hold.size, firstWindow+len(message)+prefixLen; held > limit {
				t.Errorf("%d bytes are kept, want at most a window and a message: %d", held, limit)
			}
		})
	}
}

// TestCreditAfterBacklog: messages that were held while something waited for the client are credited once, not again when nothing waits any more.
func TestCreditAfterBacklog(t *testing.T) {
	back := listen(t)
	p := start(t, oneBackend(back.addr()))
	c := dial(t, p.addr)
	c.keep()
	id := c.begin(true)
	e := back.accept()
	r := e.takeRequest()
	e.respond(r.id)
	const messages, size = 500, 10000
	all := bytes.Repeat(prefixed(make([]byte, size)), messages)
	var sending sync.WaitGroup
	sending.Go(func() {
		for b := all; len(b) > 0; {
			n := min(len(b), 3000)
			if e.pour(r.id, b[:n], false, patience) < n {
				return
			}
			b = b[n:]
		}
	})
	for taken := 0; taken < len(all); {
		got := len(c.dataOf(id, 1))
		taken += got
		c.grant(0, uint32(got))
		c.grant(id, uint32(got))
	}
	sending.Wait()
	c.settle()
	e.settle()
	e.mu.Lock()
	window := e.initial + e.windows[r.id]
	e.mu.Unlock()
	s := oneStream(t, p.Proxy)
	s.front.mu.Lock()
	defer s.front.mu.Unlock()
	if window > largeWindow || int64(s.outWindow) != window || s.outWindow+s.outOwed != s.outSize {
		t.Errorf("nothing is kept, and the endpoint has a window of %d; the proxy counts %d, owes %d, and keeps it at %d", window, s.outWindow, s.outOwed, s.outSize)
	}
}

// TestMoreStreamsAllowed: an endpoint that allows more streams than before gets the calls that wait for it.
func TestMoreStreamsAllowed(t *testing.T) {
	for _, first := range []uint32{0, 1} {
		t.Run(fmt.Sprint(first), func(t *testing.T) {
			back := listen(t, http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: first})
			p := start(t, oneBackend(back.addr(), "backend: maxConnections: 1"))
			c := dial(t, p.addr)
			ids := []uint32{c.begin(true)}
			e := back.accept()
			for range first {
				e.takeRequest() // else one of the others could have come first
			}
			ids = append(ids, c.begin(true), c.begin(true))
			c.settle()
			e.settings(http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: 10})
			for range ids[first:] {
				e.only(e.takeRequest().id, "0")
			}
			for _, id := range ids[first:] {
				if got := c.end(id).status(); got != "0" {
					t.Errorf("stream %d ended with %s", id, got)
				}
			}
		})
	}
}

// TestNoStreamsAllowed: an endpoint that allows no streams at all is not connected to over and over.
func TestNoStreamsAllowed(t *testing.T) {
	back := listen(t, http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: 0})
	p := start(t, oneBackend(back.addr()))
	c := dial(t, p.addr)
	c.begin(true)
	back.accept()
	never(t, "more than 10 connections within half a second to an endpoint that allows no streams", 500*time.Millisecond, func() bool { return len(back.conns) > 9 })
}

// TestLimitOneStress has many clients share the one stream that the only connection may have: none of them may be forgotten.
func TestLimitOneStress(t *testing.T) {
	back := listenEcho(t, http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: 1})
	p := start(t, oneBackend(back.addr(), "backend: maxConnections: 1"))
	var clients sync.WaitGroup
	for range 8 {
		clients.Go(func() {
			c := dial(t, p.addr)
			for range 300 {
				id := c.begin(false)
				c.data(id, prefixed([]byte("x")), true)
				a, err := c.endFor(id, patience)
				if err != nil || a.status() != "0" {
					t.Errorf("ended with %v %v", a.status(), err)
					return
				}
			}
		})
	}
	clients.Wait()
}

// TestRedialForThoseWhoWait: the only connection ends while connecting fails; when it works again, calls that wait go there although no new call comes.
func TestRedialForThoseWhoWait(t *testing.T) {
	back := listen(t, http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: 1})
	addr := back.addr()
	p := start(t, oneBackend(addr, "backend: maxConnections: 2"))
	c := dial(t, p.addr)
	first := c.begin(true)
	e := back.accept()
	e.takeRequest()
	_ = back.listener.Close() // the second connection is refused
	second := c.begin(true)
	time.Sleep(50 * time.Millisecond) // it fails to connect, and waits for the first connection
	e.goAway(1)
	e.only(1, "0")
	c.end(first)
	e.gone()
	echoAt(t, addr)
	a, err := c.endFor(second, patience)
	if err != nil {
		t.Fatalf("the call that waited was forgotten: %v", err)
	}
	if s := a.status(); s != "0" && s != "14" {
		t.Fatalf("the call that waited ended with %v", s)
	}
}

func (p *wire) goAway(last uint32) {
	p.t.Helper()
	p.send(func(f *http2.Framer) error { return f.WriteGoAway(last, http2.ErrCodeNo, nil) })
}

// TestPrefaceIsChecked: what is not the preface is refused, in whatever pieces it comes, and HTTP/1.1 is answered in its own language.
func TestPrefaceIsChecked(t *testing.T) {
	back := listenEcho(t)
	p := start(t, oneBackend(back.addr()))
	for _, test := range []struct {
		name   string
		pieces []string
		want   string
	}{
		{"letters", []string{"XXXXXXXXXXXXXXXXXXXXXXXXXXXX\x00\x00\x00\x04\x00\x00\x00\x00\x00"}, ""},
		{"almost", []string{"PRI * HTTP/2.0\r\n\r\nSM\r\n\r!\x00\x00\x00\x04\x00\x00\x00\x00\x00"}, ""},
		{"HTTP/1.1", []string{"GET / HTTP/1.1\r\nHost: x\r\n\r\n"}, "HTTP/1.1 505"},
		{"HTTP/1.1 in pieces", []string{"POST /a/path/that/is/longer/than/the/preface", " HTTP/1.1\r\nHost: x\r\n\r\n"}, "HTTP/1.1 505"},
		{"HTTP/1.1 byte by byte", []string{"G", "E", "T", " / HTTP/1.1\r\n"}, "HTTP/1.1 505"},
		{"TLS", []string{"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03aaaaaaaaaaaaaaaaaaaaaaa\n"}, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			nc, err := net.Dial("tcp", p.addr)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = nc.Close() }()
			for _, piece := range test.pieces {
				_, _ = io.WriteString(nc, piece)
				time.Sleep(20 * time.Millisecond) // the pieces are read one by one
			}
			_ = nc.SetReadDeadline(time.Now().Add(patience))
			if test.want == "" {
				// It must end, without SETTINGS_MAX_CONCURRENT_STREAMS as a working connection has it.
				b, err := io.ReadAll(nc)
				if err, ok := errors.AsType[net.Error](err); ok && err.Timeout() {
					t.Fatal("the connection stays open")
				}
				if bytes.Contains(b, []byte{0, 3, 0, 0, 3, 0xe8}) {
					t.Fatal("the connection was greeted as one of HTTP/2")
				}
				return
			}
			got := make([]byte, len(test.want))
			if _, err := io.ReadFull(nc, got); err != nil || string(got) != test.want {
				t.Fatalf("answered %q, %v", got, err)
			}
		})
	}
}

// TestResponseTooLargeSplitPrefix: of a message that is refused for its size nothing reaches the client, also if its prefix came in pieces.
func TestResponseTooLargeSplitPrefix(t *testing.T) {
	back := listen(t)
	p := start(t, oneBackend(back.addr(), "route: maxMessageBytes: {response: 100}"))
	c := dial(t, p.addr)
	var e *wire
	for at := range prefixLen {
		id := c.begin(true)
		if e == nil {
			e = back.accept()
		}
		r := e.takeRequest()
		e.respond(r.id)
		whole := prefixed([]byte("ok"))
		b := append(bytes.Clone(whole), prefixed(make([]byte, 200))...)
		e.data(r.id, b[:len(whole)+at], false)
		e.data(r.id, b[len(whole)+at:], false)
		a := c.end(id)
		if a.status() != "8" || a.reason() != reasonMessageSize || !bytes.Equal(a.data, whole) {
			t.Errorf("split after %d bytes: status %s, reason %s, data %q", at, a.status(), a.reason(), a.data)
		}
	}
}

// TestEndlessDeadline: a deadline that no clock reaches costs nothing.
func TestEndlessDeadline(t *testing.T) {
	back := listen(t)
	p := start(t, oneBackend(back.addr()))
	c := dial(t, p.addr)
	first := c.begin(true)
	e := back.accept()
	e.only(e.takeRequest().id, "0")
	c.end(first)
	for _, timeout := range []string{"99999999H", "99999999M", "200000H"} { // which do not wait for a connection
		c.begin(true, "grpc-timeout", timeout)
	}
	for range 3 {
		e.takeRequest()
	}
	s := oneStream(t, p.Proxy)
	s.front.mu.Lock()
	for _, s := range s.front.streams {
		at := s.armed
		if at < int64(time.Hour) {
			t.Errorf("the timer goes off at %v", time.Duration(at))
		}
	}
	s.front.mu.Unlock()
	time.Sleep(50 * time.Millisecond)
	s.front.mu.Lock()
	defer s.front.mu.Unlock()
	if n := p.wheel.Len(); n < 3 {
		t.Errorf("%d timers are set", n)
	}
}

// TestAnswersThatAreNotRead: a client that reads nothing cannot make the proxy keep more than a bounded amount of answers to its calls.
func TestAnswersThatAreNotRead(t *testing.T) {
	back := listenEcho(t)
	p := start(t, oneBackend(back.addr(), "route: match: {service: other.Service}"))
	nc, err := net.Dial("tcp", p.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = nc.Close() }()
	_ = nc.(*net.TCPConn).SetReadBuffer(4096)
	x := newWire(t, nc, nil)
	_, _ = io.WriteString(nc, http2.ClientPreface)
	x.send(func(f *http2.Framer) error { return f.WriteSettings() })
	block := x.encode(request())
	most := 0
	for range 300 {
		ok := false
		x.send(func(f *http2.Framer) error {
			_ = nc.SetWriteDeadline(time.Now().Add(200 * time.Millisecond))
			for range 200 {
				if err := f.WriteHeaders(http2.HeadersFrameParam{StreamID: x.next, BlockFragment: block, EndHeaders: true, EndStream: true}); err != nil {
					return nil
				}
				block = []byte{0x83, 0x86, 0xc0, 0xbf, 0xbe}[:0]
				block = append(block, x.encode(request())...)
				x.next += 2
			}
			ok = true
			return nil
		})
		for _, f := range p.allFronts() {
			f.mu.Lock()
			most = max(most, len(f.out)+f.writing)
			f.mu.Unlock()
		}
		if !ok {
			break
		}
	}
	if most > 2<<20 {
		t.Errorf("%d bytes of answers wait for a client that reads nothing, after %d calls", most, x.next/2)
	}
}

// TestLateDataIsNoFlood: what was on its way when the proxy ended a stream is no attack, however small the frames.
func TestLateDataIsNoFlood(t *testing.T) {
	back := listen(t)
	p := start(t, oneBackend(back.addr(), "route: maxMessageBytes: {request: 100}"))
	c := dial(t, p.addr)
	other := c.begin(false)
	e := back.accept()
	e.takeRequest()
	id := c.begin(false)
	e.takeRequest()
	// One batch: the message that ends the stream, and what the client sends before it knows of the end.
	c.send(func(f *http2.Framer) error {
		if err := f.WriteData(id, false, prefixed(make([]byte, 101))); err != nil {
			return err
		}
		for range 20000 {
			if err := f.WriteData(id, false, []byte("x")); err != nil {
				return err
			}
		}
		return nil
	})
	if got := c.end(id).status(); got != "8" {
		t.Errorf("ended with %s", got)
	}
	c.settle()
	c.data(other, prefixed([]byte("alive")), true)
	e.await("the other stream's data", func(e *event) bool { return e.kind == http2.FrameData && e.end })
}

// TestManyEndedAtOnce: late frames of more streams than any small memory holds are no error of the client.
func TestManyEndedAtOnce(t *testing.T) {
	const n = 500
	back := listen(t)
	p := start(t, oneBackend(back.addr()))
	c := dial(t, p.addr)
	ids := []uint32{c.begin(false)}
	e := back.accept()
	e.takeRequest()
	for len(ids) < n {
		ids = append(ids, c.begin(false))
		e.takeRequest()
	}
	e.rst()
	for _, id := range ids {
		if got := c.end(id).status(); got != "14" {
			t.Fatalf("ended with %s", got)
		}
	}
	for _, id := range ids {
		c.data(id, prefixed([]byte("late")), false)
	}
	for _, id := range ids {
		c.headers(id, true, "late", "trailers")
	}
	c.settle()
}

// TestDrainNotice: as long as the notice lasts, clients may still come.
func TestDrainNotice(t *testing.T) {
	back := listenEcho(t)
	p := start(t, oneBackend(back.addr(), "drain: {period: 0s, notice: 1s}"))
	var stopping sync.WaitGroup
	stopping.Go(p.stop)
	defer stopping.Wait()
	eventually(t, "the proxy is not ready any more", func() bool { return !p.Ready() })
	c := dial(t, p.addr)
	if got := c.unary([]byte("x")).status(); got != "0" {
		t.Errorf("a call during the notice ended with %s", got)
	}
}

// TestShutdown: what does not move does not hold it up.
func TestShutdown(t *testing.T) {
	quick := func(t *testing.T, p *running) {
		t.Helper()
		began := time.Now()
		p.stop()
		if took := time.Since(began); took > 5*time.Second {
			t.Errorf("it took %v", took)
		}
	}
	t.Run("a client that says nothing", func(t *testing.T) {
		p := start(t, oneBackend(listen(t).addr()))
		nc, err := net.Dial("tcp", p.addr)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = nc.Close() }()
		dial(t, p.addr)
		quick(t, p)
	})
	t.Run("an endpoint that reads nothing", func(t *testing.T) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = l.Close() }()
		p := start(t, oneBackend(l.Addr().String()))
		c := dial(t, p.addr)
		for range 20 {
			id := c.begin(false)
			c.pour(id, make([]byte, 60000), false, patience)
		}
		nc, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = nc.Close() }()
		_ = nc.(*net.TCPConn).SetReadBuffer(1024)
		x := http2.NewFramer(nc, nil)
		_ = x.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 30})
		_ = x.WriteWindowUpdate(0, 1<<30)
		for range 100 {
			id := c.begin(false)
			c.pour(id, make([]byte, 60000), false, patience)
		}
		time.Sleep(100 * time.Millisecond)
		quick(t, p)
	})
	t.Run("an endpoint that says no SETTINGS", func(t *testing.T) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = l.Close() }()
		p := start(t, oneBackend(l.Addr().String()))
		c := dial(t, p.addr)
		c.begin(true)
		c.settle()
		quick(t, p)
	})
}

// TestWaitingForgetsTheEnded: calls that end while they wait for a connection or an endpoint leave nothing behind.
func TestWaitingForgetsTheEnded(t *testing.T) {
	t.Run("connection", func(t *testing.T) {
		back := listen(t, http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: 1})
		p := start(t, oneBackend(back.addr(), "backend: maxConnections: 1"))
		c := dial(t, p.addr)
		c.begin(true)
		back.accept().takeRequest()
		for range 300 {
			c.rstStream(c.begin(true), http2.ErrCodeCancel)
		}
		c.settle()
		e := p.state.Load().clusters["one"].set.Backends()[0].Of
		e.mu.Lock()
		defer e.mu.Unlock()
		if len(e.main.waiting) > 0 {
			t.Errorf("%d calls wait that have ended", len(e.main.waiting))
		}
	})
	t.Run("endpoint", func(t *testing.T) {
		p := start(t, oneBackend("file:///"+t.TempDir()+"/missing", "backend: waitForReady: 30s"))
		c := dial(t, p.addr)
		for range 300 {
			c.rstStream(c.begin(true), http2.ErrCodeCancel)
		}
		c.settle()
		x := p.state.Load().clusters["one"]
		x.mu.Lock()
		defer x.mu.Unlock()
		if len(x.awaiting) > 0 {
			t.Errorf("%d calls wait that have ended", len(x.awaiting))
		}
	})
}

// TestSlowToConnect: a call waits for a connection no longer than connectTimeout if it can go elsewhere; one that waits for room waits on.
func TestSlowToConnect(t *testing.T) {
	mute, err := net.Listen("tcp", "127.0.0.1:0") // takes connections and says nothing
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = mute.Close() }()
	t.Run("one of two", func(t *testing.T) {
		back := listenEcho(t)
		p := start(t, oneBackend(mute.Addr().String()+","+back.addr(), "backend: connectTimeout: 200ms"))
		c := dial(t, p.addr)
		for range 10 {
			if a := c.unary([]byte("x")); a.status() != "0" {
				t.Errorf("ended with %s (%s): %s", a.status(), a.reason(), a.trailers.get("grpc-message"))
			}
		}
	})
	t.Run("room", func(t *testing.T) {
		back := listen(t, http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: 1})
		p := start(t, oneBackend(back.addr(), "backend: waitForReady: 100ms", "backend: maxConnections: 1"))
		c := dial(t, p.addr)
		first := c.begin(true)
		e := back.accept()
		r := e.takeRequest()
		second := c.begin(true)
		if a, err := c.endFor(second, 500*time.Millisecond); err == nil {
			t.Fatalf("ended with %s (%s)", a.status(), a.reason())
		}
		e.only(r.id, "0")
		c.end(first)
		e.only(e.takeRequest().id, "0")
		if a := c.end(second); a.status() != "0" {
			t.Errorf("ended with %s (%s)", a.status(), a.reason())
		}
	})
}

// TestFailingToConnectIsSaid once, and so is that it is over.
func TestFailingToConnectIsSaid(t *testing.T) {
	address := testserver.FreeAddress(t)
	p := start(t, oneBackend(address))
	c := dial(t, p.addr)
	for range 5 {
		c.unary([]byte("x"))
	}
	warnings := func() int { return p.log.with("level=WARN", "no connection to a backend", address, "refused") }
	eventually(t, "a warning", func() bool { return warnings() > 0 }) // calls are answered before it is logged
	if n := warnings(); n != 1 {
		t.Errorf("%d warnings", n)
	}
	echoAt(t, address)
	eventually(t, "calls pass again", func() bool { return c.unary([]byte("x")).status() == "0" })
	if n := p.log.with("level=INFO", "connected to a backend again", address); n != 1 {
		t.Errorf("%d lines say that it is over", n)
	}
}

// TestConnectsAgainForThoseWhoWait: a call waits for room, and another connection could not be made at first.
func TestConnectsAgainForThoseWhoWait(t *testing.T) {
	one := http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: 1}
	back := listen(t, one)
	p := start(t, oneBackend(back.addr(), "backend: ping: {interval: 0s}"))
	c := dial(t, p.addr)
	c.begin(true)
	e := back.accept()
	e.takeRequest()
	_ = back.listener.Close()
	second := c.begin(true)
	x := p.state.Load().clusters["one"].set.Backends()[0].Of
	eventually(t, "connecting has failed", x.fails.Load)
	again := listenAt(t, back.addr(), nil, one).accept()
	again.only(again.takeRequest().id, "0")
	if a := c.end(second); a.status() != "0" {
		t.Errorf("ended with %s (%s)", a.status(), a.reason())
	}
}

// TestWaitingIsForOneCall: a call is cancelled after it was taken from those that wait and before it got its connection, and its memory is the next call's, which waits too.
func TestWaitingIsForOneCall(t *testing.T) {
	back := listen(t, http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: 1})
	p := start(t, oneBackend(back.addr(), "backend: maxConnections: 1"))
	other, c := dial(t, p.addr), dial(t, p.addr)
	other.begin(true)
	e := back.accept()
	r := e.takeRequest()
	second := c.begin(true)
	x := p.state.Load().clusters["one"].set.Backends()[0].Of
	eventually(t, "it waits", func() bool { return x.waits.Load() == 1 })
	x.mu.Lock()
	s := x.main.waiting[0].s
	x.mu.Unlock()
	f := s.front
	f.mu.Lock()
	e.only(r.id, "0") // there is room: the back's reader takes the call from those that wait, and waits for its front's lock
	eventually(t, "it was taken", func() bool { return x.waits.Load() == 0 })
	other.begin(true) // and there is none
	e.takeRequest()
	var w wakeups
	set := s.request
	s.cancelled(frame.Cancel, clientCancelled, &w)
	next := f.take()
	if next != s {
		t.Fatal("it is other memory")
	}
	next.id, next.request, next.call = second+2, set, f.callOf(set)
	f.last = next.id
	f.streams[next.id], next.open, next.inEnd = next, true, true
	next.begin(f.now)
	p.began(next)
	next.dispatch(&w)
	f.mu.Unlock()
	w.flush()
	never(t, "one call waits twice", 50*time.Millisecond, func() bool { return x.waits.Load() > 1 })
	f.mu.Lock()
	next.cancelled(frame.Cancel, clientCancelled, &w)
	f.mu.Unlock()
	w.flush()
	if n := x.waits.Load(); n != 0 {
		t.Errorf("no call waits, and %d do", n)
	}
}

// TestTimersGoOn while a TLS client that reads nothing gets a GOAWAY for a protocol error.
func TestTimersGoOn(t *testing.T) {
	ours := newAuthority(t)
	dir := t.TempDir()
	cert, key := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	ours.issue(cert, key)
	back := listenAt(t, "127.0.0.1:0", func(e *wire) {
		for {
			r, err := e.awaitFor(patience, func(e *event) bool { return e.get(":method") != "" })
			if err != nil {
				return
			}
			if r.get("silent") == "" {
				e.respond(r.id)
				e.later(func() error { return e.framer.WriteData(r.id, false, make([]byte, 16000)) })
			}
		}
	})
	p := start(t, fmt.Sprintf(`listeners:
- address: 127.0.0.1:0
  tls: {certificate: %s, key: %s}
- address: 127.0.0.1:0
backends: [{name: one, target: '%s'}]
routes: [{backend: one, holdBytes: 0}]
`, cert, key, back.addr()))
	victim := dial(t, p.Addresses()[1].String())
	nc, err := tls.Dial("tcp", p.Addresses()[0].String(), &tls.Config{RootCAs: ours.pool(), NextProtos: []string{"h2"}})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = nc.Close() }()
	_, _ = io.WriteString(nc, http2.ClientPreface)
	x := http2.NewFramer(nc, nil)
	_ = x.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 30})
	_ = x.WriteWindowUpdate(0, 1<<30)
	var block bytes.Buffer
	encoder := hpack.NewEncoder(&block)
	var stuck *front
	for id := uint32(1); stuck == nil; id += 2 { // until the proxy cannot write any more
		block.Reset()
		for _, f := range fieldsOf(request()...) {
			_ = encoder.WriteField(f)
		}
		if err := x.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: block.Bytes(), EndHeaders: true}); err != nil {
			t.Fatal(err)
		}
		p.mu.Lock()
		for f := range p.fronts {
			f.mu.Lock()
			if f.writing > 0 && p.wheel.Now()-f.writeFrom > int64(200*time.Millisecond) {
				stuck = f
			}
			f.mu.Unlock()
		}
		p.mu.Unlock()
		time.Sleep(time.Millisecond)
	}
	_ = x.WriteRawFrame(http2.FrameData, 0, 0, []byte("x")) // DATA on stream 0
	held := func() error { stuck.mu.Lock(); defer stuck.mu.Unlock(); return stuck.err }
	for end := time.Now().Add(4 * time.Second); time.Now().Before(end); {
		began := time.Now()
		victim.end(victim.begin(true, "grpc-timeout", "50m", "silent", "1"))
		held() // by which the goroutine of the timers is kept waiting, too
		if took := time.Since(began); took > time.Second {
			t.Fatalf("a call with a deadline of 50 ms ended after %v", took)
		}
	}
}

// TestPlacedOnce: a call that has waited for an endpoint to appear, and waits for its connection then, is not placed again when the first time is over.
func TestPlacedOnce(t *testing.T) {
	mute, err := net.Listen("tcp", "127.0.0.1:0") // takes connections and says nothing
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = mute.Close() }()
	list := filepath.Join(t.TempDir(), "endpoints")
	p := start(t, oneBackend("file://"+list, "backend: waitForReady: 2s"))
	c := dial(t, p.addr)
	began := time.Now()
	id := c.begin(true)
	c.settle()
	if err := os.WriteFile(list, []byte(mute.Addr().String()+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	x := p.state.Load().clusters["one"]
	calls := func() (open int, waits int32) {
		for _, b := range x.set.Backends() {
			info := b.Info(p.tick())
			open, waits = open+info.Streams+info.Unary, waits+b.Of.waits.Load()
		}
		return open, waits
	}
	eventually(t, "the call waits for a connection", func() bool { open, waits := calls(); return open == 1 && waits == 1 })
	if took := time.Since(began); took > 1900*time.Millisecond {
		t.Fatalf("the file was read after %v: too late to see anything", took)
	}
	never(t, "the call is counted twice", 2500*time.Millisecond-time.Since(began), func() bool { open, waits := calls(); return open > 1 || waits > 1 })
	c.rstStream(id, http2.ErrCodeCancel)
	eventually(t, "nothing is left of it", func() bool { open, waits := calls(); return open == 0 && waits == 0 })
}
