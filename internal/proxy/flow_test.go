package proxy

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"
)

func noise(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(rand.Uint32())
	}
	return b
}

// TestTinyWindows sends messages both ways through windows of a few bytes, with every DATA frame acknowledged by itself, as wires do by default.
func TestTinyWindows(t *testing.T) {
	for _, size := range []uint32{1, 7, 100} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			s := http2.Setting{ID: http2.SettingInitialWindowSize, Val: size}
			back := listenEcho(t, s)
			p := start(t, oneBackend(back.addr()))
			c := dial(t, p.addr, s)
			message := noise(400 * int(size))
			id := c.begin(false)
			c.pour(id, prefixed(message), true, patience)
			a := c.end(id)
			if a.status() != "0" || !bytes.Equal(a.data, prefixed(message)) {
				t.Errorf("status %s, %d bytes of %d", a.status(), len(a.data), len(message)+5)
			}
		})
	}
}

// TestWindowBelowZero makes the initial window smaller while a stream has used more than that, then larger, on both sides: nothing is sent too early, nothing
// is forgotten.
func TestWindowBelowZero(t *testing.T) {
	set := func(n uint32) http2.Setting { return http2.Setting{ID: http2.SettingInitialWindowSize, Val: n} }
	// play lets from send to a side that takes slowly.
	play := func(t *testing.T, from *wire, fromID uint32, to *wire, toID uint32) {
		to.keep()
		to.settings(set(1000))
		all := noise(200 << 10)
		var sending sync.WaitGroup
		defer sending.Wait()
		sending.Go(func() { from.pour(fromID, all, false, patience) })
		var got []byte
		take := func(n int) {
			t.Helper()
			got = append(got, to.dataOf(toID, n)...)
		}
		take(1000)
		to.settings(set(0)) // the window is -1000
		to.grant(toID, 600) // -400
		from.settle()
		to.settle()
		if n := to.bytesOf(toID); n > 0 {
			t.Fatalf("%d bytes came into a window of -400", n)
		}
		to.settings(set(401)) // 1
		take(1)
		to.settings(set(201))
		to.settings(set(10201)) // 9800 more than it was last
		take(9800)
		to.settings(set(0))
		to.grant(0, 1<<20)
		to.grant(toID, 1<<20)
		take(len(all) - len(got))
		if !bytes.Equal(got, all) {
			t.Fatal("the bytes differ")
		}
	}
	t.Run("client", func(t *testing.T) {
		back := listen(t)
		p := start(t, oneBackend(back.addr(), "route: holdBytes: 0"))
		c := dial(t, p.addr)
		id := c.begin(true)
		e := back.accept()
		r := e.takeRequest()
		e.respond(r.id)
		play(t, e, r.id, c, id)
	})
	t.Run("endpoint", func(t *testing.T) {
		back := listen(t)
		p := start(t, oneBackend(back.addr()))
		c := dial(t, p.addr)
		id := c.begin(false)
		e := back.accept()
		play(t, c, id, e, e.takeRequest().id)
	})
}

// TestConnectionWindowIsShared exhausts the window of a connection with many streams, and gives it back in small pieces: each stream gets about its share.
func TestConnectionWindowIsShared(t *testing.T) {
	const streams, size = 40, 30000
	play := func(t *testing.T, to *wire, ids []uint32, all map[uint32][]byte) {
		taken := func() (least, sum int) {
			least = 1 << 30
			for _, id := range ids {
				n := to.bytesOf(id)
				least, sum = min(least, n), sum+n
			}
			return least, sum
		}
		eventually(t, "the connection's window is used up", func() bool { _, sum := taken(); return sum == 65535 })
		for granted := 65535; granted < streams*size; granted += 20000 {
			to.grant(0, 20000)
			want := min(granted+20000, streams*size)
			eventually(t, "what was granted comes", func() bool { _, sum := taken(); return sum == want })
		}
		for _, id := range ids {
			if got := to.dataOf(id, size); !bytes.Equal(got, all[id]) {
				t.Errorf("stream %d got other bytes", id)
			}
		}
	}
	t.Run("client", func(t *testing.T) {
		back := listen(t)
		p := start(t, oneBackend(back.addr(), "route: holdBytes: 0"))
		c := dial(t, p.addr)
		c.keep()
		var ids []uint32
		all := map[uint32][]byte{}
		var e *wire
		for range streams {
			id := c.begin(true)
			if e == nil {
				e = back.accept()
			}
			r := e.takeRequest()
			e.respond(r.id)
			ids, all[id] = append(ids, id), noise(size)
			e.pour(r.id, all[id], false, patience)
		}
		play(t, c, ids, all)
	})
	t.Run("endpoint", func(t *testing.T) {
		back := listen(t)
		p := start(t, oneBackend(back.addr()))
		c := dial(t, p.addr)
		var ids []uint32
		all := map[uint32][]byte{}
		var e *wire
		for range streams {
			id := c.begin(false)
			if e == nil {
				e = back.accept()
				e.keep()
			}
			r := e.takeRequest()
			ids, all[r.id] = append(ids, r.id), noise(size)
			c.pour(id, all[r.id], false, patience)
		}
		play(t, e, ids, all)
	})
}

// TestFairnessWhileTheSocketIsSlow: streams that could fill the connection by themselves leave room for one that has a single message to send.
func TestFairnessWhileTheSocketIsSlow(t *testing.T) {
	wide := http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 20}
	back := listenAt(t, "127.0.0.1:0", nil, wide)
	p := start(t, oneBackend(back.addr(), "route: holdBytes: 0"))
	c := dial(t, p.addr, wide)
	c.grant(0, 1<<30)
	const hogs = 4
	var e *wire
	var sending sync.WaitGroup
	defer sending.Wait()
	for range hogs {
		c.begin(true)
		if e == nil {
			e = back.accept()
		}
		r := e.takeRequest()
		e.respond(r.id)
		sending.Go(func() {
			for e.pour(r.id, make([]byte, 1<<20), false, patience) == 1<<20 {
			}
		})
	}
	time.Sleep(200 * time.Millisecond) // they are in full swing
	for range 5 {
		id := c.begin(true)
		r := e.takeRequest()
		e.respond(r.id)
		began := time.Now()
		message := noise(100 << 10)
		e.pour(r.id, message, false, patience)
		c.dataOf(id, len(message))
		if took := time.Since(began); took > 5*time.Second {
			t.Errorf("a message of 100 KiB took %v beside streams that send all the time", took)
		}
	}
	c.close()
	e.close()
}

// TestTrailersBehindData: many streams end while their data waits for windows: each gets all of its data and then its own trailers, and the connection's header
// compression survives that they are sent later than they came.
func TestTrailersBehindData(t *testing.T) {
	const streams = 30
	back := listen(t)
	p := start(t, oneBackend(back.addr()))
	c := dial(t, p.addr, http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0})
	type one struct {
		id   uint32
		data []byte
	}
	var all []one
	var e *wire
	for i := range streams {
		id := c.begin(true)
		if e == nil {
			e = back.accept()
		}
		r := e.takeRequest()
		x := one{id, prefixed(noise(100 * i))}
		e.respond(r.id, "number", fmt.Sprint(i))
		e.pour(r.id, x.data, false, patience)
		e.finish(r.id, "0", "number", fmt.Sprint(i), fmt.Sprintf("only-%d", i), "x")
		all = append(all, x)
	}
	e.settle()
	rand.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	for _, x := range all {
		c.grant(x.id, uint32(len(x.data)))
	}
	for _, x := range all {
		a := c.end(x.id)
		if a.status() != "0" || !bytes.Equal(a.data, x.data) || a.head.get("number") == "" || a.head.get("number") != a.trailers.get("number") || a.trailers.get("only-"+a.trailers.get("number")) != "x" {
			t.Errorf("stream %d: status %s, %d of %d bytes, header %v, trailers %v", x.id, a.status(), len(a.data), len(x.data), a.head, a.trailers)
		}
	}
}

// blockedOn is how many streams wait for room on connections to endpoints, and on connections of clients. A call that an endpoint has seen has been sent as far as it goes by then:
// that happens with the lock of its front held.
func blockedOn(p *Proxy) (backs, fronts int) {
	for _, f := range p.allFronts() {
		f.mu.Lock()
		fronts += len(f.blocked)
		f.mu.Unlock()
	}
	for _, b := range p.allBacks() {
		b.mu.Lock()
		backs += len(b.blocked)
		b.mu.Unlock()
	}
	return backs, fronts
}

// TestBlockedStreamHasOneTurn: a call that waits for room on a connection, and is tried again on the same one, must not wait there twice: it would get more than its share.
func TestBlockedStreamHasOneTurn(t *testing.T) {
	back := listen(t)
	back.keep()
	p := start(t, oneBackend(back.addr(), "route: retry: {attempts: 5, backoff: {base: 1ms, max: 2ms}}", "route: retryBudget: {minPerSecond: 100}", "backend: ejection: {disabled: true}"))
	c := dial(t, p.addr)
	var e *wire
	for range 2 { // which use up the connection's window
		id := c.begin(false)
		if e == nil {
			e = back.accept()
		}
		r := e.takeRequest()
		e.respond(r.id)
		c.headersOf(id)
		c.pour(id, make([]byte, 40000), false, patience)
	}
	body := prefixed(noise(1000))
	id := c.begin(false)
	c.data(id, body, true)
	r := e.takeRequest()
	for range 3 {
		e.only(r.id, "14")
		r = e.takeRequest()
	}
	if n, _ := blockedOn(p.Proxy); n != 2 { // this one, and one of the first two
		t.Errorf("%d streams wait in the fourth attempt of a call, want 2", n)
	}
	e.grant(0, 1<<20)
	if a := e.end(r.id); !bytes.Equal(a.data, body) {
		t.Errorf("%d bytes came, or others", len(a.data))
	}
	e.only(r.id, "0")
	if got := c.end(id).status(); got != "0" {
		t.Errorf("ended with %s", got)
	}
}

// TestCancelledCallsWaitForNoRoom: where a connection has no room for long, what waits for it is no more than the calls that are open.
func TestCancelledCallsWaitForNoRoom(t *testing.T) {
	const calls = 50
	t.Run("endpoint", func(t *testing.T) {
		back := listen(t)
		back.keep()
		p := start(t, oneBackend(back.addr()))
		c := dial(t, p.addr)
		hog := c.begin(false)
		e := back.accept()
		e.takeRequest()
		e.grant(1, 1<<20)
		c.pour(hog, make([]byte, 70000), false, patience)
		for range calls {
			id := c.begin(false)
			c.data(id, make([]byte, 100), false)
			e.takeRequest()
			c.rstStream(id, http2.ErrCodeCancel)
		}
		c.settle()
		if n, _ := blockedOn(p.Proxy); n > 1 {
			t.Errorf("%d streams wait for the endpoint, and one call is open", n)
		}
	})
	t.Run("client", func(t *testing.T) {
		back := listen(t)
		p := start(t, oneBackend(back.addr(), "route: holdBytes: 0"))
		c := dial(t, p.addr)
		c.keep()
		var e *wire
		for n := range calls {
			id := c.begin(true)
			if e == nil {
				e = back.accept()
			}
			r := e.takeRequest()
			e.respond(r.id)
			e.pour(r.id, make([]byte, 60000), false, patience)
			c.headersOf(id)
			if n < 2 { // which use up the connection's window
				continue
			}
			eventually(t, "the response waits", func() bool { _, n := blockedOn(p.Proxy); return n >= 2 })
			c.rstStream(id, http2.ErrCodeCancel)
			e.resetOf(r.id)
		}
		c.settle()
		if _, n := blockedOn(p.Proxy); n > 2 {
			t.Errorf("%d streams wait for the client, and two calls are open", n)
		}
	})
}
