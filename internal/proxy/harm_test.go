package proxy

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
)

// What protects the proxy must harm no client that means well. The suite in test/proxy/honest shows it with real clients; here are the rules it rests on.

// TestCancelsCostNothing: calls that were given to an endpoint, or wait for one, cost nothing of the abuse budget when their clients lose interest, however many there
// are. They were taken for a rapid reset, and the connection with all of its streams was closed.
func TestCancelsCostNothing(t *testing.T) {
	for name, target := range map[string]string{"at a backend": "", "without a backend": "file:///does-not-exist"} {
		t.Run(name, func(t *testing.T) {
			back := listen(t)
			if target == "" {
				target = back.addr()
			}
			p := start(t, oneBackend(target, "listener: abuse: {burst: 10, perSecond: 1}", "backend: waitForReady: 1m"))
			c := dial(t, p.addr)
			long := c.begin(false)
			for range 100 {
				id := c.begin(true)
				eventually(t, "the call is open", func() bool { return p.Open() == 2 })
				eventually(t, "the call has a place", func() bool {
					f := p.allFronts()[0]
					f.mu.Lock()
					defer f.mu.Unlock()
					return f.streams[id] != nil && f.streams[id].cluster != nil
				})
				c.rstStream(id, http2.ErrCodeCancel)
				eventually(t, "it has ended", func() bool { return p.Open() == 1 })
			}
			if p.Stats().OverBudgetCalls > 0 {
				t.Error("calls were refused")
			}
			c.rstStream(long, http2.ErrCodeCancel)
			eventually(t, "all have ended", func() bool { return p.Open() == 0 })
			if !c.open() {
				t.Error("the connection was closed")
			}
		})
	}
}

// TestNewCallsAreRefusedFirst: a connection that has used up its budget gets no new calls for a while, with a status, a line in the log and a counter. Its open streams
// go on, and so does everybody else at the same address.
func TestNewCallsAreRefusedFirst(t *testing.T) {
	x := listenEcho(t)
	p := start(t, oneBackend(x.addr(), "listener: abuse: {burst: 100, perSecond: 20}"))
	c := dial(t, p.addr)
	long := c.begin(false)
	c.data(long, prefixed([]byte("one")), false)
	c.dataOf(long, len(prefixed([]byte("one"))))
	for range 160 {
		c.send(func(f *http2.Framer) error { return f.WritePriority(long, http2.PriorityParam{Weight: 1}) })
	}
	a := c.unary([]byte("x"))
	if a.status() != "8" || a.reason() != reasonOverBudget || !a.unprocessed(t) {
		t.Errorf("a new call ended with %s, %s", a.status(), a.reason())
	}
	if p.log.with("abuse budget used up") != 1 || p.Stats().OverBudgetCalls != 1 {
		t.Errorf("it was said %d times, and counted %d times", p.log.with("abuse budget used up"), p.Stats().OverBudgetCalls)
	}
	other := dial(t, p.addr)
	if a := other.unary([]byte("x")); a.status() != "0" {
		t.Errorf("another connection from the same address got %s", a.status())
	}
	c.data(long, prefixed([]byte("two")), true)
	if a := c.end(long); a.status() != "0" {
		t.Errorf("the open stream ended with %s", a.status())
	}
	eventually(t, "the budget is filled again", func() bool { return c.unary([]byte("x")).status() == "0" })
}

// TestTwiceTheBudgetCloses: who goes on is disconnected, which is said, too.
func TestTwiceTheBudgetCloses(t *testing.T) {
	back := listen(t)
	p := start(t, oneBackend(back.addr(), "listener: abuse: {burst: 100, perSecond: 1}"))
	c := dial(t, p.addr)
	c.begin(false)
	for range 400 {
		c.later(func() error { return c.framer.WritePriority(1, http2.PriorityParam{Weight: 1}) })
	}
	c.await("GOAWAY", func(e *event) bool { return e.kind == http2.FrameGoAway && e.code == http2.ErrCodeEnhanceYourCalm })
	eventually(t, "it is said", func() bool { return p.log.with("connection closed", "openStreams=1") == 1 })
	if p.Stats().OverBudgetConnections != 1 {
		t.Error("it is not counted")
	}
	if a := dial(t, p.addr); !a.open() {
		t.Error("the next connection from there was closed")
	}
}

// TestSettingsWithEachCall: a client that changes its settings with each call is disconnected, although its calls are answered, which fills its budget.
func TestSettingsWithEachCall(t *testing.T) {
	x := listenEcho(t)
	p := start(t, oneBackend(x.addr(), "listener: abuse: {burst: 5000, perSecond: 1}"))
	c := dial(t, p.addr)
	for i := 0; c.open(); i++ {
		if i == 5000 { // 1,200 are enough
			t.Fatal("the connection is open")
		}
		id := c.begin(false)
		c.later(func() error {
			return c.framer.WriteSettings(http2.Setting{ID: http2.SettingHeaderTableSize, Val: uint32(i%2) * 4096})
		})
		c.data(id, prefixed([]byte("x")), true)
		if _, err := c.endFor(id, 10*time.Second); err != nil {
			break
		}
	}
	c.await("GOAWAY", func(e *event) bool { return e.kind == http2.FrameGoAway && e.code == http2.ErrCodeEnhanceYourCalm })
}

// TestAbuseBudgetOff: a burst of 0 is no limit.
func TestAbuseBudgetOff(t *testing.T) {
	x := listenEcho(t)
	p := start(t, oneBackend(x.addr(), "listener: abuse: {burst: 0}"))
	c := dial(t, p.addr)
	id := c.begin(false)
	for range 25_000 {
		c.later(func() error { return c.framer.WritePriority(id, http2.PriorityParam{Weight: 1}) })
	}
	c.data(id, prefixed([]byte("x")), true)
	if a := c.end(id); a.status() != "0" {
		t.Errorf("ended with %s", a.status())
	}
}

// TestHeadersWithinTheLimit: calls with headers as large as the listener allows are calls like any other, however many come. Their cost grew by the square, and
// 75 of 60 KB closed the connection.
func TestHeadersWithinTheLimit(t *testing.T) {
	x := listenEcho(t)
	p := start(t, oneBackend(x.addr(), "listener: abuse: {burst: 10, perSecond: 1}"))
	c := dial(t, p.addr)
	for range 200 {
		if a := c.unary([]byte("x"), "large", unique(60_000)); a.status() != "0" {
			t.Fatalf("ended with %s, %s", a.status(), a.reason())
		}
	}
	var many []string
	for i := range 1500 { // more fields than fit into one frame, of few bytes each
		many = append(many, fmt.Sprint("m-", i), "")
	}
	if a := c.unary([]byte("x"), many...); a.status() != "0" {
		t.Errorf("1,500 fields: ended with %s, %s", a.status(), a.reason())
	}
}

// TestHeadersAboveTheLimit: a call with more is refused by itself, be it a hundred times too much.
func TestHeadersAboveTheLimit(t *testing.T) {
	x := listenEcho(t)
	p := start(t, oneBackend(x.addr()))
	c := dial(t, p.addr)
	long := c.begin(false)
	for _, size := range []int{66_000, 300_000, 6 << 20} {
		if a := c.unary([]byte("x"), "large", unique(size)); a.status() != "8" || a.reason() != reasonHeaderSize {
			t.Errorf("%d bytes: ended with %s, %s", size, a.status(), a.reason())
		}
		if a := c.unary([]byte("x"), "some", "thing"); a.status() != "0" {
			t.Errorf("the call after it ended with %s", a.status())
		}
	}
	c.data(long, prefixed(nil), true)
	if a := c.end(long); a.status() != "0" {
		t.Errorf("the open stream ended with %s", a.status())
	}
}

// TestStatusSurvivesItsTrailers: a status with large trailers comes through whole if the client takes them, and cut if not; the code is right in any case, and the
// backend's connection, which others share, goes on.
func TestStatusSurvivesItsTrailers(t *testing.T) {
	for _, test := range []struct {
		size, client int // of the trailers, and of what the client says it takes; 0 is nothing
		limit        string
		whole        bool
	}{
		{70_000, 0, "16MiB", true}, {300_000, 0, "16MiB", true}, {3 << 20, 0, "16MiB", true}, {3 << 20, 0, "1MiB", false}, {30_000, 8192, "16MiB", false},
		{300_000, 16384, "64KiB", false}, {100_000, 16384, "64KiB", false},
	} {
		for _, only := range []bool{false, true} {
			t.Run(fmt.Sprint(test.size, test.client, test.limit, only), func(t *testing.T) {
				back := listen(t)
				p := start(t, oneBackend(back.addr(), "backend: maxResponseHeaderBytes: "+test.limit))
				var s []http2.Setting
				if test.client > 0 {
					s = append(s, http2.Setting{ID: http2.SettingMaxHeaderListSize, Val: uint32(test.client)})
				}
				c := dial(t, p.addr, s...)
				c.framer.MaxHeaderListSize = 64 << 20
				other := c.begin(true)
				e := back.accept()
				o := e.takeRequest()
				id := c.begin(true)
				r := e.takeRequest()
				message, large := strings.Repeat("m", test.size/2), unique(test.size/2)
				trailers := []string{"grpc-message", message, "large", large}
				if only {
					e.only(r.id, "3", trailers...)
				} else {
					e.respond(r.id)
					e.data(r.id, prefixed([]byte("x")), false)
					e.finish(r.id, "3", trailers...)
				}
				a := c.end(id)
				if a.status() != "3" {
					t.Fatalf("the client got %s, %s", a.status(), a.reason())
				}
				got := a.trailers.get("grpc-message")
				if whole := got == message && a.trailers.get("large") == large; whole != test.whole {
					t.Errorf("a message of %d bytes came, and trailers %.300v", len(got), a.trailers.fields)
				}
				if !test.whole && test.client > 0 && (len(got) == 0 && test.size < 200_000 || !strings.HasPrefix(message, got) || a.trailers.get("levada-trailers-cut") == "") {
					t.Errorf("a message of %d bytes came", len(got))
				}
				e.only(o.id, "0")
				if a := c.end(other); a.status() != "0" {
					t.Errorf("another stream of the backend's connection ended with %s", a.status())
				}
			})
		}
	}
}

// TestWindowsShrink: with many calls and little memory, what each of them may keep gets less, and none of them is ended: a client that is slow but steady gets all of its
// answer, byte for byte.
func TestWindowsShrink(t *testing.T) {
	const calls, poured, large, small = 600, 60, 100 << 10, 6 << 10
	back := listen(t)
	p := start(t, oneBackend(back.addr(), "limits: {memory: 4MiB}", "backend: maxConnections: 1")) // the test takes the requests of one connection
	c := dial(t, p.addr, http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1024})
	c.keep()
	answers := map[string][]byte{}
	ids := map[string]uint32{}
	for i := range calls {
		name, size := fmt.Sprint("call-", i), small
		if i < poured { // these have more than they may keep; the others need not be tried to see it
			size = large
		}
		ids[name], answers[name] = c.begin(true, "call-id", name), numbered(i, size)
	}
	e := back.accept()
	eventually(t, "windows are small", func() bool { return p.window.Load() == leastWindow })
	at := map[string]uint32{}
	for range calls {
		r := e.takeRequest()
		at[r.get("call-id")] = r.id
	}
	e.settle()
	for _, id := range at {
		e.respond(id)
	}
	sent := map[string]int{}
	for i := range poured {
		name := fmt.Sprint("call-", i)
		if sent[name] = e.pour(at[name], answers[name], false, 50*time.Millisecond); sent[name] > firstWindow {
			t.Errorf("%s has taken %d bytes", name, sent[name])
		}
	}
	if held := p.held.Load(); held > 2*p.memory.Load() {
		t.Errorf("%d bytes are kept, and the limit is %d", held, p.memory.Load())
	}
	if n := p.Open(); n != calls {
		t.Errorf("%d calls are left of %d", n, calls)
	}
	c.giveBack()
	for i := range calls {
		name := fmt.Sprint("call-", i)
		rest := answers[name][sent[name]:]
		if n := e.pour(at[name], rest, false, patience); n < len(rest) {
			t.Fatalf("%s takes only %d more of %d bytes", name, n, len(rest))
		}
		e.finish(at[name], "0")
		if a := c.end(ids[name]); a.status() != "0" || !bytes.Equal(a.data, answers[name]) {
			t.Fatalf("%s ended with %s, %s after %d of %d bytes, or with other ones", name, a.status(), a.reason(), len(a.data), len(answers[name]))
		}
	}
	if p.Stats().ShortOfMemory > 0 {
		t.Error("calls were refused, or ended")
	}
	if !c.open() || !e.open() {
		t.Error("a connection was closed")
	}
}

// numbered is messages of 1 KiB that tell which of which call they are.
func numbered(call, size int) (all []byte) {
	for n := 0; len(all) < size; n++ {
		message := bytes.Repeat(fmt.Appendf(nil, "%d/%d,", call, n), 300)
		all = append(all, prefixed(message[:1024-5])...)
	}
	return all
}
