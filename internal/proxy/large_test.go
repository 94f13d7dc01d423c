package proxy

import (
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"

	"github.com/levada-io/levada/internal/h2/frame"
)

// unique returns a header value that no other call has, as far as anybody remembers it.
func unique(size int) string {
	return fmt.Sprintf("%016x", rand.Uint64()) + strings.Repeat("l", size)
}

// TestLargeHeadersApart: calls with large headers have a connection of their own, so that others do not wait behind them.
func TestLargeHeadersApart(t *testing.T) {
	back := listen(t)
	p := start(t, oneBackend(back.addr()))
	c := dial(t, p.addr)
	first := c.begin(true, "large", unique(20_000))
	large := back.accept()
	large.takeRequest()
	ordinary := c.begin(true)
	main := back.accept()
	main.only(main.takeRequest().id, "0")
	c.end(ordinary)
	for range 3 {
		c.begin(true, "large", unique(20_000))
		large.takeRequest()
		id := c.begin(true, "small", unique(100))
		main.only(main.takeRequest().id, "0")
		c.end(id)
	}
	large.only(1, "0")
	if a := c.end(first); a.status() != "0" {
		t.Errorf("the first one ends with %v", a.status())
	}
}

// TestLargeHeadersShare: where there is one connection only, calls with large headers use it, too.
func TestLargeHeadersShare(t *testing.T) {
	t.Run("by the configuration", func(t *testing.T) {
		back := listen(t)
		p := start(t, oneBackend(back.addr(), "backend: maxConnections: 1"))
		c := dial(t, p.addr)
		c.begin(true)
		e := back.accept()
		e.takeRequest()
		id := c.begin(true, "large", unique(20_000))
		e.only(e.takeRequest().id, "0")
		if a := c.end(id); a.status() != "0" {
			t.Errorf("it ends with %v", a.status())
		}
	})
	t.Run("by the endpoint", func(t *testing.T) {
		back := listen(t)
		p := start(t, oneBackend(back.addr(), "backend: connectTimeout: 200ms"))
		c := dial(t, p.addr)
		c.begin(true)
		e := back.accept()
		e.takeRequest()
		_ = back.listener.Close() // no more of them
		ids := []uint32{c.begin(true, "large", unique(20_000)), c.begin(true, "large", unique(20_000))}
		for range ids {
			e.only(e.takeRequest().id, "0")
		}
		for _, id := range append(ids, c.begin(true)) {
			if id != ids[0] && id != ids[1] {
				e.only(e.takeRequest().id, "0")
			}
			if a := c.end(id); a.status() != "0" {
				t.Errorf("%d ends with %v, %v", id, a.status(), a.reason())
			}
		}
	})
	t.Run("by the endpoint, with the others", func(t *testing.T) {
		back := listen(t)
		p := start(t, oneBackend(back.addr()))
		c := dial(t, p.addr)
		c.begin(true, "large", unique(20_000))
		e := back.accept()
		e.takeRequest()
		_ = back.listener.Close() // no more of them
		for range 4 {
			id := c.begin(true)
			e.only(e.takeRequest().id, "0")
			if a := c.end(id); a.status() != "0" {
				t.Errorf("it ends with %v, %v", a.status(), a.reason())
			}
		}
	})
	t.Run("by an endpoint that allows no streams on another, with the others", func(t *testing.T) {
		back := listen(t)
		p := start(t, oneBackend(back.addr()))
		c := dial(t, p.addr)
		c.begin(true, "large", unique(20_000))
		e := back.accept()
		e.takeRequest()
		back.mu.Lock()
		back.settings = []http2.Setting{{ID: http2.SettingMaxConcurrentStreams, Val: 0}}
		back.mu.Unlock()
		id := c.begin(true)
		e.only(e.takeRequest().id, "0")
		if a := c.end(id); a.status() != "0" {
			t.Errorf("it ends with %v, %v", a.status(), a.reason())
		}
	})
	t.Run("by the endpoint, which is being connected to", func(t *testing.T) {
		back := listen(t)
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = l.Close() }()
		came, refused := make(chan net.Conn, 1), make(chan struct{}, 100)
		go func() {
			for n := 0; ; n++ {
				nc, err := l.Accept()
				switch {
				case err != nil:
					return
				case n == 0:
					came <- nc
				default:
					_ = nc.Close()
					refused <- struct{}{}
				}
			}
		}()
		p := start(t, oneBackend(l.Addr().String(), "backend: connectTimeout: 10s"))
		c := dial(t, p.addr)
		small := c.begin(true)
		first := <-came
		large := c.begin(true, "large", unique(20_000))
		<-refused
		back.serving.Go(func() { back.greet(first) })
		e := back.accept()
		for range 2 {
			e.only(e.takeRequest().id, "0")
		}
		for _, id := range []uint32{small, large} {
			if a := c.end(id); a.status() != "0" {
				t.Errorf("%d ends with %v, %v", id, a.status(), a.reason())
			}
		}
	})
	t.Run("by the endpoint, for a while", func(t *testing.T) {
		back := listen(t)
		p := start(t, oneBackend(back.addr()))
		c := dial(t, p.addr)
		c.begin(true)
		e := back.accept()
		e.takeRequest()
		_ = back.listener.Close()
		c.begin(true, "large", unique(20_000))
		e.takeRequest()
		again := listenAt(t, back.addr(), nil)
		x := p.state.Load().clusters["one"].set.Backends()[0].Of
		x.mu.Lock()
		if left := time.Duration(x.share - p.wheel.Now()); left <= 0 || left > shareTime {
			t.Errorf("they share for %v", left)
		}
		x.share = 0 // that time is over
		x.mu.Unlock()
		c.begin(true, "large", unique(20_000))
		again.accept().takeRequest()
	})
	t.Run("by an endpoint that allows no streams on another", func(t *testing.T) {
		all := make(chan *wire, 10)
		back := listenAt(t, "127.0.0.1:0", func(e *wire) { all <- e })
		p := start(t, oneBackend(back.addr()))
		c := dial(t, p.addr)
		c.begin(true)
		e := <-all
		e.takeRequest()
		back.mu.Lock()
		back.settings = []http2.Setting{{ID: http2.SettingMaxConcurrentStreams, Val: 0}}
		back.mu.Unlock()
		for _, size := range []int{20_000, 100, 20_000} {
			id := c.begin(true, "field", unique(size))
			e.only(e.takeRequest().id, "0")
			if a := c.end(id); a.status() != "0" {
				t.Errorf("%d bytes: it ends with %v, %v", size, a.status(), a.reason())
			}
		}
	})
}

// TestLargeHeadersByReference: a block of a few bytes that stands for large headers, since it refers to the table again and again, is large each time it comes.
func TestLargeHeadersByReference(t *testing.T) {
	all := make(chan *wire, 10)
	back := listenAt(t, "127.0.0.1:0", func(e *wire) { all <- e })
	p := start(t, oneBackend(back.addr()))
	c := dial(t, p.addr)
	var fields []string
	for range 15 {
		fields = append(fields, "authorization", strings.Repeat("A~", 1850))
	}
	for range 10 {
		c.begin(true, fields...)
	}
	large := <-all
	for range 10 {
		large.takeRequest()
	}
	if n := c.block.Len(); n > 100 {
		t.Fatalf("the block has %d bytes", n)
	}
	for range 100 {
		c.begin(true, fields...)
	}
	for range 100 { // they are within the limit, and so are calls like any other
		large.takeRequest()
	}
	ordinary := dial(t, p.addr)
	ordinary.begin(true)
	main := <-all
	if got := main.takeRequest(); len(got.get("authorization")) > 0 {
		t.Error("a call with large headers came with the others")
	}
}

// TestLargeHeadersOfAnswers: who works on large headers of clients does not keep the answers of all waiting.
func TestLargeHeadersOfAnswers(t *testing.T) {
	back := listen(t)
	p := start(t, oneBackend(back.addr()))
	c := dial(t, p.addr)
	one, two := c.begin(true), c.begin(true)
	e := back.accept()
	first, second := e.takeRequest().id, e.takeRequest().id
	for range cap(p.heavy) {
		p.heavy <- struct{}{}
	}
	e.headers(first, true, ":status", "200", "content-type", "application/grpc", "grpc-status", "3", "large", unique(9000))
	e.only(second, "0")
	for _, id := range []uint32{one, two} {
		if _, err := c.endFor(id, patience); err != nil {
			t.Errorf("stream %d: %v", id, err)
		}
	}
	for range cap(p.heavy) {
		<-p.heavy
	}
}

// stalledBackend listens at an address, and reads nothing from the connections that it sends.
func stalledBackend(t *testing.T) (addr string, conns <-chan net.Conn) {
	t.Helper()
	stalled := make(chan net.Conn, 10)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			nc, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = nc.Write(frame.AppendSettings(nil))
			stalled <- nc
		}
	}()
	return l.Addr().String(), stalled
}

// TestHeadersWait: headers are under no window, so what a backend does not read has to wait with its calls, and not for other connections.
func TestHeadersWait(t *testing.T) {
	addr, stalled := stalledBackend(t)
	p := start(t, oneBackend(addr, "backend: ping: {interval: 0s}")) // it answers none, however slow this machine is
	eventually(t, "the endpoint is known", func() bool { return len(p.state.Load().clusters["one"].set.Backends()) == 1 })
	e := p.state.Load().clusters["one"].set.Backends()[0].Of
	c := dial(t, p.addr)
	const most = 5000 // calls of 16 KB: more than any kernel takes
	for n := 0; e.waits.Load() == 0; n++ {
		if n == most {
			t.Fatal("no call waits")
		}
		c.begin(false, "large", unique(16_000))
		if n%20 == 19 {
			c.settle()
		}
	}
	c.settle()
	e.mu.Lock()
	conns := slices.Concat(e.main.conns, e.large.conns)
	e.mu.Unlock()
	for _, b := range conns {
		if unsent := b.view().Unsent; unsent > 2*maxHeads+firstWindow {
			t.Errorf("%d bytes wait for the backend, and all of its calls behind them", unsent)
		}
	}
	nc := <-stalled
	go func() { _, _ = io.Copy(io.Discard, nc) }()
	eventually(t, "no calls wait", func() bool { return e.waits.Load() == 0 })
	if len(stalled) > 0 {
		t.Errorf("%d more connections were made", len(stalled))
	}
	_ = nc.Close()
}

// TestLargeHeadersAreFreedWithTheAnswer: a stream that lives for days does not keep a header that is never sent again, and is described as before.
func TestLargeHeadersAreFreedWithTheAnswer(t *testing.T) {
	back := listen(t)
	p := start(t, oneBackend(back.addr()))
	ended := make(chan Ended, 1)
	p.Watch(Watcher{Ended: func(e *Ended) { ended <- *e }})
	c := dial(t, p.addr)
	id := c.begin(false, "large", unique(20_000), "user-agent", "lark/1.0")
	e := back.accept()
	at := e.takeRequest().id
	if held := p.held.Load(); held < 20_000 {
		t.Fatalf("%d bytes are counted before the answer", held)
	}
	e.respond(at)
	eventually(t, "the header is freed", func() bool { return p.held.Load() == 0 })
	c.data(id, prefixed([]byte("last")), true)
	e.finish(at, "0")
	if a := c.end(id); a.status() != "0" {
		t.Errorf("it ends with %v, %v", a.status(), a.reason())
	}
	if got := <-ended; got.Path != testMethod || got.UserAgent != "lark/1.0" || got.Authority == "" || !got.GRPC {
		t.Errorf("the call is described as %q at %q, by %q, gRPC: %v", got.Path, got.Authority, got.UserAgent, got.GRPC)
	}
}

// TestLargeHeadersAreNotKeptUnderPressure: above half of the limit, calls with large headers go on, and their headers are not kept to be sent again.
func TestLargeHeadersAreNotKeptUnderPressure(t *testing.T) {
	const calls, size = 300, 20_000 // more than all of the limit
	back := listen(t)
	p := start(t, oneBackend(back.addr(), "limits: {memory: 4MiB}"))
	c := dial(t, p.addr)
	ids := map[uint32]uint32{}
	var e *wire
	for range calls {
		id := c.begin(true, "large", unique(size))
		if e == nil {
			e = back.accept()
		}
		ids[id] = e.takeRequest().id
	}
	if held, most := p.held.Load(), p.memory.Load()/2+2*size; held > most {
		t.Errorf("%d bytes are kept, more than %d", held, most)
	}
	for id, at := range ids {
		e.only(at, "0")
		if a := c.end(id); a.status() != "0" {
			t.Fatalf("it ends with %v, %v", a.status(), a.reason())
		}
	}
	if n := p.held.Load(); n != 0 {
		t.Errorf("%d bytes are counted without a call", n)
	}
}

// TestLargeHeadersTakeHalfOfTheMemory: headers that wait for an endpoint take half of the limit. The other half is for ordinary calls, also of the same client.
func TestLargeHeadersTakeHalfOfTheMemory(t *testing.T) {
	addr, _ := stalledBackend(t)
	p := start(t, oneBackend(addr, "limits: {memory: 4MiB}", "backend: ping: {interval: 0s}"))
	c := dial(t, p.addr)
	const size, most = 16_000, 5000
	for n := 0; p.Stats().ShortOfMemory == 0; n++ {
		if n == most {
			t.Fatal("no call is refused")
		}
		c.begin(false, "large", unique(size))
		c.settle()
	}
	if held, half := p.held.Load(), p.memory.Load()/2; held <= half || held > half+2*size {
		t.Errorf("%d bytes are kept, and half of the limit is %d", held, half)
	}
	open := p.Open()
	c.begin(false)
	c.settle()
	if n := p.Open(); n != open+1 || p.Stats().ShortOfMemory != 1 {
		t.Errorf("of an ordinary call and %d open ones, %d are open; %d were refused", open, n, p.Stats().ShortOfMemory)
	}
}
