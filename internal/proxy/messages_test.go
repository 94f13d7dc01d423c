package proxy

import (
	"bytes"
	"fmt"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// TestMessagesFollow compares messages with a plain reading of the whole, for any cut of the bytes.
func TestMessagesFollow(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		var all []byte
		sizes := rapid.SliceOfN(rapid.OneOf(rapid.IntRange(0, 3), rapid.IntRange(0, 300)), 0, 10).Draw(r, "sizes")
		for _, n := range sizes {
			all = append(all, prefixed(make([]byte, n))...)
		}
		all = all[:rapid.IntRange(0, len(all)).Draw(r, "kept")]
		limit := rapid.SampledFrom([]int{0, 0, 100, 200}).Draw(r, "limit")
		var m messages
		at, passed := 0, 0
		for at < len(all) {
			n := rapid.IntRange(0, len(all)-at).Draw(r, "n")
			whole, over := m.feed(all[at:at+n], limit)
			if whole > 0 {
				passed = at + whole
			}
			at += n
			found, rest := split(all[:at])
			first := len(found)
			for i := range found {
				if limit > 0 && len(found[i]) > limit {
					first = i
					break
				}
			}
			tooLarge := first < len(found) || limit > 0 && len(rest) >= prefixLen && int(rest[1])<<24|int(rest[2])<<16|int(rest[3])<<8|int(rest[4]) > limit
			if over != tooLarge {
				r.Fatalf("after %d bytes: too large %v, want %v", at, over, tooLarge)
			}
			if over {
				if m.count != first {
					r.Fatalf("%d messages before the one that is too large, want %d", m.count, first)
				}
				return
			}
			if m.count != len(found) || passed != at-len(rest) || m.between() != (len(rest) == 0) {
				r.Fatalf("after %d bytes: %d messages in %d bytes, between %v; want %d, and %d bytes behind them", at, m.count, passed, m.between(), len(found), len(rest))
			}
		}
	})
}

// lose has an endpoint answer with the pieces and vanish. The client must get the messages that were whole, and UNAVAILABLE.
func lose(t testing.TB, p *running, back *endpoints, pieces [][]byte) error {
	t.Helper()
	c := dial(t, p.addr)
	defer c.close()
	id := c.begin(true)
	e := back.accept()
	defer e.close()
	r := e.takeRequest()
	e.respond(r.id)
	for _, piece := range pieces {
		if n := e.pour(r.id, piece, false, patience); n < len(piece) {
			return fmt.Errorf("the proxy does not take all: %d of %d", n, len(piece))
		}
	}
	e.settle() // it has been read, or a TCP RST might overtake it
	e.rst()
	a := c.end(id)
	all := bytes.Join(pieces, nil)
	_, rest := split(all)
	want := all[:len(all)-len(rest)]
	switch {
	case a.status() != "14" || a.reason() != reasonConnectionLost:
		return fmt.Errorf("ended with %s (%s)", a.status(), a.reason())
	case !bytes.Equal(a.data, want):
		return fmt.Errorf("the client got %d bytes, want %d of %d", len(a.data), len(want), len(all))
	}
	return nil
}

// TestLostAtEachByte loses the endpoint after each byte of a few messages.
func TestLostAtEachByte(t *testing.T) {
	back := listen(t)
	p := start(t, oneBackend(back.addr()))
	var all []byte
	for _, size := range []int{0, 1, 7, 0, 20, 3} {
		all = append(all, prefixed(noise(size))...)
	}
	for k := range len(all) + 1 {
		if err := lose(t, p, back, [][]byte{all[:k/2], all[k/2 : k]}); err != nil {
			t.Errorf("lost after %d bytes: %v", k, err)
		}
	}
}

// TestLostAnywhere does the same with any messages in any frames.
func TestLostAnywhere(t *testing.T) {
	back := listen(t)
	p := start(t, oneBackend(back.addr()))
	rapid.Check(t, func(r *rapid.T) {
		var all []byte
		for _, n := range rapid.SliceOfN(rapid.OneOf(rapid.IntRange(0, 10), rapid.IntRange(0, 20000), rapid.IntRange(0, 200<<10)), 0, 5).Draw(r, "sizes") {
			all = append(all, prefixed(noise(n))...)
		}
		all = all[:len(all)-min(len(all), rapid.IntRange(0, 10000).Draw(r, "missing"))]
		var pieces [][]byte
		for at := 0; at < len(all); {
			n := min(len(all)-at, rapid.OneOf(rapid.IntRange(1, 10), rapid.IntRange(1, 16384), rapid.Just(1<<20)).Draw(r, "frame"))
			if len(pieces) > 200 {
				n = len(all) - at
			}
			pieces = append(pieces, all[at:at+n])
			at += n
		}
		if err := lose(t, p, back, pieces); err != nil {
			r.Fatal(err)
		}
	})
}

// TestTornMessage: of a message that is too large to be held the beginning is passed on. When the endpoint is lost then, the client learns it from what no
// client takes for a reason to send the call again.
func TestTornMessage(t *testing.T) {
	back := listen(t)
	p := start(t, oneBackend(back.addr(), "route: holdBytes: 1000"))
	for _, test := range []struct {
		name   string
		before int
		want   string
	}{{"first", 0, "14"}, {"after a message", 1, "REFUSED_STREAM"}} {
		t.Run(test.name, func(t *testing.T) {
			c := dial(t, p.addr)
			id := c.begin(true)
			e := back.accept()
			r := e.takeRequest()
			e.respond(r.id)
			for range test.before {
				e.data(r.id, prefixed([]byte("small")), false)
			}
			e.data(r.id, prefixed(make([]byte, 2000))[:1500], false)
			e.settle()
			c.dataOf(id, 1500)
			e.rst()
			if a := c.end(id); a.status() != test.want {
				t.Errorf("ended with %s", a.status())
			}
		})
	}
}

// TestHoldingUnderPressure: while much memory is taken, large messages are passed on as they come instead of being held until calls have to be ended.
func TestHoldingUnderPressure(t *testing.T) {
	back := listen(t)
	p := start(t, oneBackend(back.addr())+"limits: {memory: 1MiB}\n")
	c := dial(t, p.addr)
	message := prefixed(noise(400_000))
	var e *wire
	begin := func() (id, at uint32) {
		id = c.begin(true)
		if e == nil {
			e = back.accept()
		}
		at = e.takeRequest().id
		e.respond(at)
		c.headersOf(id)
		return id, at
	}
	type half struct{ id, at uint32 }
	var halves []half
	for range 2 {
		id, at := begin()
		e.pour(at, message[:250_000], false, patience)
		halves = append(halves, half{id, at})
	}
	eventually(t, "much memory is taken", func() bool { return p.held.Load() > 450_000 })
	for _, h := range halves {
		if n := c.bytesOf(h.id); n > 0 {
			t.Errorf("%d bytes came of a message that is not whole", n)
		}
	}
	id, at := begin()
	e.pour(at, message[:200_000], false, patience)
	if got := c.dataOf(id, 200_000); !bytes.Equal(got, message[:200_000]) {
		t.Error("another message came")
	}
	// What was begun goes on as it came, although there is room again.
	for _, h := range halves {
		e.pour(h.at, message[250_000:], false, patience)
		if got := c.dataOf(h.id, len(message)); !bytes.Equal(got, message) {
			t.Error("another message came")
		}
	}
	e.pour(at, message[200_000:300_000], false, patience)
	c.dataOf(id, 100_000)
	e.pour(at, append(bytes.Clone(message[300_000:]), message...), false, patience)
	rest := len(message) - 300_000
	if got := c.dataOf(id, rest+len(message)); !bytes.Equal(got[rest:], message) {
		t.Error("the message after it is another one")
	}
	// And the next is held again.
	e.pour(at, message[:250_000], false, patience)
	e.settle()
	e.rst()
	if a := c.end(id); a.status() != "14" || len(a.data) != 0 {
		t.Errorf("ended with %s (%s), and %d bytes of half a message", a.status(), a.reason(), len(a.data))
	}
}

// TestHoldingForOneCaller: what is held for one client is bounded, whatever there is for all.
func TestHoldingForOneCaller(t *testing.T) {
	back := listen(t)
	p := start(t, oneBackend(back.addr()))
	one, other := dial(t, p.addr), dial(t, p.addr)
	message := prefixed(noise(4_000_000))
	var e *wire
	begin := func(c *wire, size int) (id uint32) {
		id = c.begin(true)
		if e == nil {
			e = back.accept()
		}
		at := e.takeRequest().id
		e.respond(at)
		c.headersOf(id)
		e.pour(at, message[:size], false, patience)
		return id
	}
	const held = 4 * 3_900_000
	for range 4 {
		begin(one, 3_900_000)
	}
	eventually(t, "much is held for the client", func() bool { return p.held.Load() == held })
	if got := one.dataOf(begin(one, 2_000_000), 2_000_000); !bytes.Equal(got, message[:2_000_000]) {
		t.Error("another message came")
	}
	id := begin(other, 2_000_000)
	eventually(t, "the other client's is held, too", func() bool { return p.held.Load() == held+2_000_000 })
	if n := other.bytesOf(id); n > 0 {
		t.Errorf("%d bytes came of a message that is not whole", n)
	}
}

// TestHoldingCostsNoTime: a message is passed on as soon as it is whole, not with the next one.
func TestHoldingCostsNoTime(t *testing.T) {
	back := listen(t)
	p := start(t, oneBackend(back.addr()))
	c := dial(t, p.addr)
	id := c.begin(true)
	e := back.accept()
	r := e.takeRequest()
	e.respond(r.id)
	for size := 1; size < 300000; size *= 3 {
		message := prefixed(noise(size))
		for b := message; len(b) > 0; {
			n := min(len(b), 10000)
			e.pour(r.id, b[:n], false, patience)
			b = b[n:]
		}
		if got := c.dataOf(id, len(message)); !bytes.Equal(got, message) {
			t.Fatal("another message came")
		}
	}
	never(t, "DATA came that was not sent", 20*time.Millisecond, func() bool { return c.bytesOf(id) > 0 })
}
