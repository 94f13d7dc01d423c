package proxy

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"
)

// outside stands for the testing.T of what serves many runs of a fuzz function. A failure there is a fault of the test.
type outside struct {
	testing.TB
	f *testing.F
}

func (o outside) Helper()                      {}
func (o outside) Cleanup(c func())             { o.f.Cleanup(c) }
func (o outside) Logf(string, ...any)          {}
func (o outside) Error(args ...any)            { panic(fmt.Sprint(args...)) }
func (o outside) Errorf(s string, args ...any) { panic(fmt.Sprintf(s, args...)) }
func (o outside) Fatal(args ...any)            { panic(fmt.Sprint(args...)) }
func (o outside) Fatalf(s string, args ...any) { panic(fmt.Sprintf(s, args...)) }

// FuzzFront sends any bytes after the preface. Whatever they are, the connection ends when the client ends it, nothing is left of it, and other clients are served.
func FuzzFront(f *testing.F) {
	settings := "\x00\x00\x00\x04\x00\x00\x00\x00\x00"
	block := func(w *wire, pairs ...string) string {
		b := w.encode(pairs)
		return fmt.Sprintf("\x00%c%c\x01\x05\x00\x00\x00\x01%s", len(b)>>8, byte(len(b)), b)
	}
	enc := newWire(outside{f: f}, nil, nil)
	f.Add([]byte(settings))
	f.Add([]byte(settings + block(enc, request()...)))
	f.Add([]byte(settings + block(enc, request()...) + "\x00\x00\x04\x03\x00\x00\x00\x00\x01\x00\x00\x00\x08"))
	f.Add([]byte(settings + "\x00\x00\x06\x04\x00\x00\x00\x00\x00\x00\x04\x7f\xff\xff\xff\x00\x00\x04\x08\x00\x00\x00\x00\x00\x7f\xff\xff\xff"))
	back := listenEcho(outside{f: f})
	p := start(outside{f: f}, oneBackend(back.addr(), "listener: handshakeTimeout: 1s"))
	victim := dial(outside{f: f}, p.addr)
	f.Fuzz(func(t *testing.T, b []byte) {
		nc, err := net.Dial("tcp", p.addr)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = nc.Close() }()
		_ = nc.SetDeadline(time.Now().Add(patience))
		var writing sync.WaitGroup
		defer writing.Wait()
		writing.Go(func() {
			_, _ = io.WriteString(nc, http2.ClientPreface)
			_, _ = nc.Write(b)
			_ = nc.(*net.TCPConn).CloseWrite()
		})
		if _, err := io.Copy(io.Discard, nc); err != nil {
			if err, ok := errors.AsType[net.Error](err); ok && err.Timeout() {
				t.Fatal("the connection does not end")
			}
		}
		if a := victim.unary([]byte("x")); a.status() != "0" {
			t.Fatalf("another client's call ended with %s (%s)", a.status(), a.reason())
		}
		eventually(t, "nothing is left", func() bool { return p.Open() == 0 })
	})
}

// script decides what a client or an endpoint does: one operation for each few bytes.
type script struct {
	b []byte
	// dubious: it does what a client need not take as an error, and the proxy may, or the other way round; or that a proxy answers by itself.
	dubious bool
}

func (s *script) next() int {
	if len(s.b) == 0 {
		return 0
	}
	b := s.b[0]
	s.b = s.b[1:]
	return int(b)
}

func (s *script) some() []byte {
	n := min(s.next()%40, len(s.b))
	b := s.b[:n]
	s.b = s.b[n:]
	return b
}

// common does what both sides may do, and reports whether it was one of these operations.
func (s *script) common(w *wire, id uint32, op int) bool {
	switch op {
	case 0:
		w.send(func(f *http2.Framer) error { return f.WritePing(false, [8]byte{byte(s.next())}) })
	case 1:
		n, on := uint32(s.next()), id*uint32(s.next()%2)
		if n == 0 {
			s.dubious = true
		}
		w.grant(on, n)
	case 2:
		setting := http2.Setting{ID: http2.SettingID(s.next() % 8), Val: uint32(s.next()) << (s.next() % 32)}
		s.dubious = true // it may be invalid, or leave no window
		w.send(func(f *http2.Framer) error { return f.WriteSettings(setting) })
	case 3:
		p := s.some()
		w.send(func(f *http2.Framer) error { return f.WriteRawFrame(http2.FrameType(0x20+s.next()%10), 0, id, p) })
	case 4:
		w.send(func(f *http2.Framer) error { return f.WritePriority(id, http2.PriorityParam{StreamDep: id + 2}) })
	case 5:
		s.dubious = true
		kind, flags, on, p := http2.FrameType(s.next()%11), http2.Flags(s.next()), uint32(s.next()%8), s.some()
		w.send(func(f *http2.Framer) error { return f.WriteRawFrame(kind, flags, on, p) })
	default:
		return false
	}
	return true
}

// call makes a call as the script says, and returns its stream.
func (s *script) call(w *wire, pairs ...string) uint32 {
	ops := s.next() % 12
	if ops == 0 {
		return w.begin(true, pairs...)
	}
	id := w.begin(false, pairs...)
	for range ops {
		switch op := s.next() % 14; {
		case s.common(w, id, op):
		case op < 8:
			w.data(id, prefixed(s.some()), false)
		case op == 8:
			w.data(id, s.some(), false)
		case op == 9:
			p := s.some()
			pad := make([]byte, s.next())
			w.send(func(f *http2.Framer) error { return f.WriteDataPadded(id, false, p, pad) })
		case op == 10:
			w.data(id, prefixed(s.some()), true)
			return id
		case op == 11:
			w.headers(id, true, "after", "all")
			return id
		case op == 12:
			s.dubious = true
			w.rstStream(id, http2.ErrCode(s.next()%14))
			return id
		case op == 13:
			w.data(id, nil, false)
		}
	}
	w.data(id, nil, true)
	return id
}

// respond answers a call as the script says. Then the connection ends, whatever was said.
func (s *script) answer(w *wire, id uint32) {
	for range 30 {
		if len(s.b) == 0 {
			break
		}
		switch op := s.next() % 26; {
		case s.common(w, id, op):
		case op < 9:
			w.respond(id, "some", "value")
		case op < 13:
			w.data(id, prefixed(s.some()), false)
		case op == 13:
			w.data(id, s.some(), false)
		case op == 14:
			p := s.some()
			pad := make([]byte, s.next())
			w.send(func(f *http2.Framer) error { return f.WriteDataPadded(id, false, p, pad) })
		case op < 18:
			w.finish(id, fmt.Sprint(s.next()%17), "more", "trailers")
		case op == 18:
			w.only(id, fmt.Sprint(s.next()%17))
		case op == 19:
			w.rstStream(id, http2.ErrCode(s.next()%14))
		case op == 20:
			last := uint32(s.next() % 4)
			s.dubious = s.dubious || last < id // an answer that comes all the same may be one to nobody
			w.goAway(last)
		case op == 21:
			w.headers(id, false, ":status", "103")
		case op == 22:
			s.dubious = true
			w.respond(id, []string{"Upper", "connection", "te", "content-length", "x y"}[s.next()%5], "1")
		case op == 23:
			w.respond(id, "long", strings.Repeat("l", 100*s.next()))
		case op == 24:
			w.headers(id, s.next()%2 == 0, ":status", fmt.Sprint(200+s.next()*2), "content-type", []string{"application/grpc+proto", "text/html"}[s.next()%2])
		case op == 25:
			w.data(id, s.some(), true)
		}
	}
}

// seen is what an endpoint saw of a request.
type seen struct {
	attempts int
	fields   []string
	data     []byte
	trailers string
}

// FuzzExchange has a client and an endpoint do what the bytes say, directly and through the proxy. What is right arrives as it was sent; what is wrong ends
// with a status or a reset, after nothing but whole messages of what was sent; and it ends in time.
func FuzzExchange(f *testing.F) {
	f.Add([]byte{0}, []byte{6, 9, 3, 1, 2, 3, 15, 0})
	f.Add([]byte{1, 10, 5, 1, 2, 3, 4, 5}, []byte{18, 14})
	f.Add([]byte{3, 6, 2, 1, 1, 9, 1, 7, 100, 11}, []byte{6, 14, 0, 50, 13, 3, 0, 0, 0, 13, 2, 0, 0, 15, 7})
	f.Add([]byte{2, 2, 4, 0, 0, 1, 10}, []byte{21, 23, 250, 12, 30, 19, 8})
	f.Add([]byte{1, 12, 8}, []byte{6, 25, 1, 1})
	f.Add([]byte{1, 5, 1, 5, 1, 3, 1, 2, 3}, []byte{5, 1, 5, 1, 3, 1, 2, 3, 6, 15, 0})
	f.Add([]byte{0}, []byte{20, 0})
	f.Add([]byte{0}, []byte{24, 1, 75, 1})
	var mu sync.Mutex
	requests := map[string]*seen{}
	back := listenAt(outside{f: f}, "127.0.0.1:0", func(w *wire) {
		defer func() { _ = w.nc.Close() }()
		w.mu.Lock()
		w.lawless = true
		w.mu.Unlock()
		r, err := w.awaitFor(time.Hour, func(e *event) bool { return e.get(":method") != "" })
		if err != nil {
			return
		}
		var a answer
		if !r.end {
			a, _ = w.endFor(r.id, 300*time.Millisecond)
		}
		mu.Lock()
		x := requests[r.get("run")]
		if x == nil {
			x = &seen{}
			requests[r.get("run")] = x
		}
		x.attempts++
		x.data, x.trailers, x.fields = a.data, a.trailers.get("after"), nil
		for _, f := range r.fields {
			if f.Name != "run" {
				x.fields = append(x.fields, f.Name+": "+f.Value)
			}
		}
		slices.Sort(x.fields)
		mu.Unlock()
		b, _ := hex.DecodeString(r.get("script"))
		(&script{b: b}).answer(w, r.id)
		w.settleFor(time.Second)
	})
	p := start(outside{f: f}, oneBackend(back.addr(), "listener: forwarded: {policy: keep}", "backend: ejection: {disabled: true}"))
	runs := 0
	f.Fuzz(func(t *testing.T, client, endpoint []byte) {
		if len(client) > 300 || len(endpoint) > 300 {
			return
		}
		runs++
		text := hex.EncodeToString(endpoint)
		var answers [2]answer
		var what [2]*seen
		dubious := false
		for i, addr := range []string{back.addr(), p.addr} {
			nc, err := net.Dial("tcp", addr)
			if err != nil {
				t.Fatal(err)
			}
			w := callOver(t, nc)
			s := &script{b: client}
			run := fmt.Sprint(runs, "-", i)
			id := s.call(w, "run", run, "script", text)
			dubious = dubious || s.dubious
			wait := patience
			if s.dubious { // it may have broken its own connection
				wait = 300 * time.Millisecond
			}
			a, err := w.endFor(id, wait)
			if err != nil && !s.dubious {
				t.Fatalf("by way %d the call does not end: %v", i, err)
			}
			w.lawless = true
			_ = nc.Close()
			answers[i] = a
			mu.Lock()
			if what[i] = requests[run]; what[i] == nil {
				what[i] = &seen{}
			}
			delete(requests, run)
			mu.Unlock()
		}
		back.drop()
		eventually(t, "nothing is left", func() bool {
			p.mu.Lock()
			backs := len(p.backs) // or the next call might get one that the endpoint is about to close
			p.mu.Unlock()
			return p.Open() == 0 && backs == 0
		})
		direct, through := answers[0], answers[1]
		s := &script{b: endpoint}
		probe := newWire(t, nowhere{}, nil)
		s.answer(probe, 1)
		if dubious || s.dubious {
			return
		}
		if !bytes.Equal(what[0].data, what[1].data) || what[1].trailers != "" || !slices.Equal(what[0].fields, what[1].fields) {
			t.Errorf("the endpoint saw %+v, and by way of the proxy %+v", what[0], what[1])
		}
		_, rest := split(direct.data)
		good := direct.lost == nil && direct.reset == nil && direct.extra == 0 && direct.head.get(":status") == "200" && strings.HasPrefix(direct.head.get("content-type"), "application/grpc") &&
			direct.trailers.get("grpc-status") != "" && len(rest) == 0 && len(direct.early) == 0
		if good {
			if what[1].attempts != 1 || through.status() != direct.status() || !bytes.Equal(through.data, direct.data) || through.head.String() != direct.head.String() || through.trailers.String() != direct.trailers.String() {
				t.Errorf("directly: %v %x %v\nby the proxy (%d attempts): %v %x %v %v", direct.head, direct.data, direct.trailers, what[1].attempts, through.head, through.data, through.trailers, through.status())
			}
			return
		}
		if through.lost != nil {
			t.Errorf("the proxy closes the client's connection: %v", through.lost)
		}
		if !bytes.HasPrefix(direct.data, through.data) {
			t.Errorf("the proxy sends other data than it got")
		}
		if _, rest := split(through.data); len(rest) > 0 && !(len(rest) >= prefixLen && binary.BigEndian.Uint32(rest[1:]) > 4<<20) && through.trailers.get("grpc-status") != "" && through.reason() != "" {
			t.Errorf("the proxy has ended the call in the middle of a message: %x, %v; directly %x, %v", through.data, through.trailers, direct.data, direct.trailers)
		}
		if what[1].attempts > 2 || what[1].attempts > 1 && direct.reset == nil && direct.trailers.get("grpc-status") != "" {
			t.Errorf("the call was sent %d times", what[1].attempts)
		}
	})
}

// nowhere takes everything.
type nowhere struct{ net.Conn }

func (nowhere) Write(p []byte) (int, error)      { return len(p), nil }
func (nowhere) SetWriteDeadline(time.Time) error { return nil }

// settleFor is settle for a peer that may be gone.
func (w *wire) settleFor(d time.Duration) {
	data := [8]byte{'s', 'e', 't', 't', 'l', 'e'}
	w.send(func(f *http2.Framer) error { return f.WritePing(false, data) })
	_, err := w.awaitFor(d, func(e *event) bool { return e.kind == http2.FramePing && e.ack && bytes.Equal(e.data, data[:]) })
	if errors.Is(err, errNotInTime) {
		return
	}
}
