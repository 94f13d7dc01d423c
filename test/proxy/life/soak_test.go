package life

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"

	"github.com/levada-io/levada/internal/testserver"
)

// relay stands between the proxy and a backend, and does to their connections what networks do.
type relay struct {
	to       string
	listener net.Listener
	relaying sync.WaitGroup

	mu    sync.Mutex
	conns map[net.Conn]struct{}
	black bool // nothing passes, and no connection is closed
}

func newRelay(t testing.TB, to string) *relay {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := &relay{to: to, listener: l, conns: map[net.Conn]struct{}{}}
	r.relaying.Go(func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			r.relaying.Go(func() { r.relay(in) })
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		r.cut(false)
		r.relaying.Wait()
	})
	return r
}

func (r *relay) addr() string { return r.listener.Addr().String() }

func (r *relay) relay(in net.Conn) {
	out, err := net.Dial("tcp", r.to)
	if err != nil {
		_ = in.(*net.TCPConn).SetLinger(0)
		_ = in.Close()
		return
	}
	r.mu.Lock()
	r.conns[in], r.conns[out] = struct{}{}, struct{}{}
	r.mu.Unlock()
	var both sync.WaitGroup
	both.Go(func() { r.pass(in, out) })
	both.Go(func() { r.pass(out, in) })
	both.Wait()
	r.mu.Lock()
	delete(r.conns, in)
	delete(r.conns, out)
	r.mu.Unlock()
}

func (r *relay) pass(from, to net.Conn) {
	defer func() { _, _ = from.Close(), to.Close() }()
	b := make([]byte, 16<<10)
	for {
		n, err := from.Read(b)
		if n > 0 && !r.isBlack() {
			if _, err := to.Write(b[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

func (r *relay) isBlack() bool { r.mu.Lock(); defer r.mu.Unlock(); return r.black }

func (r *relay) blacken(black bool) { r.mu.Lock(); r.black = black; r.mu.Unlock() }

// cut ends all connections, by RST or by FIN.
func (r *relay) cut(rst bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for nc := range r.conns {
		if rst {
			_ = nc.(*net.TCPConn).SetLinger(0)
		}
		_ = nc.Close()
	}
}

// site is a backend behind a relay.
type site struct {
	*relay
	address string
	process *process
}

// TestSoak runs streams and calls through the proxy while backends are killed, stopped, cut off and silenced, endpoints come and go, and callers cancel and go
// away. Callers get statuses that are true; in the end each call is accounted for, and nothing is left of any of them.
func TestSoak(t *testing.T) {
	length := fromEnv(t, "SOAK", 20*time.Second, time.ParseDuration)
	var sites []*site
	for range 4 {
		a := testserver.FreeAddress(t)
		sites = append(sites, &site{newRelay(t, a), a, backend(t, a, "LIFE_EVERY=20ms")})
	}
	addresses := func() (all []string) {
		for _, s := range sites {
			all = append(all, s.addr())
		}
		return all
	}
	f := newEndpointsFile(t, addresses()...)
	p := startProxy(t, simple("file://"+f.name, "ping: {interval: 500ms, timeout: 500ms, gentle: false}", "ejection: {baseTime: 1s, maxTime: 2s}")+
		"routes:\n- {backend: one, streamAge: 5s}\n")

	var wrong atomic.Int64
	var mu sync.Mutex
	codesSeen := map[string]int{}
	saw := func(what string, err error) {
		c := code(err)
		mu.Lock()
		codesSeen[fmt.Sprintf("%s %v", what, c)]++
		mu.Unlock()
		if !slices.Contains([]codes.Code{codes.OK, codes.Unavailable, codes.Canceled, codes.DeadlineExceeded}, c) && wrong.Add(1) < 10 {
			t.Errorf("%s: %v", what, err)
		}
	}
	// load runs callers until ctx ends.
	load := func(ctx context.Context) {
		var working sync.WaitGroup
		defer working.Wait()
		for range 4 {
			working.Go(func() {
				for ctx.Err() == nil {
					caller(ctx, p.addr, saw)
				}
			})
		}
	}
	faults := func(ctx context.Context) {
		var down sync.WaitGroup // restarts that are going on
		defer down.Wait()
		for ctx.Err() == nil {
			time.Sleep(time.Duration(100+rand.IntN(400)) * time.Millisecond)
			s := sites[rand.IntN(len(sites))]
			switch rand.IntN(7) {
			case 0:
				s.process.signal(syscall.SIGKILL)
				_ = s.process.wait()
				s.process = backend(t, s.address, "LIFE_EVERY=20ms")
			case 1:
				s.process.signal(syscall.SIGTERM)
				_ = s.process.wait()
				s.process = backend(t, s.address, "LIFE_EVERY=20ms")
			case 2:
				s.cut(true)
			case 3:
				s.cut(false)
			case 4:
				s.blacken(true)
				down.Go(func() {
					time.Sleep(2 * time.Second)
					s.blacken(false)
					s.cut(true) // what was lost in between is lost for good
				})
			case 5:
				all := addresses()
				rand.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
				f.write(all[:1+rand.IntN(len(all))]...)
			case 6:
				for range 20 { // every 100 ms
					all := addresses()
					i := rand.IntN(len(all))
					f.write(slices.Delete(all, i, i+1)...)
					time.Sleep(100 * time.Millisecond)
				}
			}
		}
		for _, s := range sites {
			s.blacken(false)
		}
		f.write(addresses()...)
	}
	storm := func(d time.Duration) {
		ctx, cancel := context.WithTimeout(t.Context(), d)
		defer cancel()
		var all sync.WaitGroup
		all.Go(func() { load(ctx) })
		all.Go(func() { faults(ctx) })
		all.Wait()
	}
	type state struct {
		goroutines  float64
		descriptors int
		memory      int64
	}
	// calm waits until nothing is open, and says what is left.
	calm := func() (s state) {
		t.Helper()
		eventually(t, "all calls have ended, and all callers are gone", func() bool {
			m := p.metrics()
			return m["levada_proxy_open_streams"] == 0 && m["levada_proxy_connections"] == 0
		})
		for range 200 { // the connections to the backends end when they are noticed to be surplus or gone; their number is bounded below
			s = state{p.metrics()["go_goroutines"], p.descriptors(), p.memory()}
			if s.descriptors < 60 {
				break
			}
			time.Sleep(50 * time.Millisecond)
		}
		return s
	}
	storm(length / 4)
	before := calm()
	storm(length * 3 / 4)
	after := calm()
	m := p.metrics()
	t.Logf("after a quarter %+v, at the end %+v", before, after)
	t.Logf("callers saw %v", codesSeen)
	began, ended, reasons := m["levada_proxy_calls_total"], m["levada_proxy_calls_ended_total"], m["levada_proxy_ends_total"]
	t.Logf("%v calls", began)
	if began == 0 || began != ended || began != reasons {
		t.Errorf("%v calls began, %v ended with a status, %v for a reason", began, ended, reasons)
	}
	if n := after.goroutines; n > before.goroutines+20 {
		t.Errorf("%v goroutines, were %v", n, before.goroutines)
	}
	if n := after.descriptors; n > before.descriptors+20 {
		t.Errorf("%d descriptors, were %d", n, before.descriptors)
	}
	if n := after.memory; n > before.memory+32<<20 {
		t.Errorf("%d MiB of memory, were %d", n>>20, before.memory>>20)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	c := dial(t, p.addr)
	eventually(t, "calls succeed again", func() bool { _, err := ask(ctx, c); return err == nil })
}

// caller is one who connects, makes calls and opens streams for some time, and disconnects, at times silently.
func caller(ctx context.Context, addr string, saw func(string, error)) {
	ctx, cancel := context.WithTimeout(ctx, time.Duration(500+rand.IntN(3000))*time.Millisecond)
	defer cancel()
	c, err := connect(addr)
	if err != nil {
		saw("connect", err)
		return
	}
	defer func() { _ = c.Close() }()
	var working sync.WaitGroup
	defer working.Wait()
	for range 20 {
		working.Go(func() {
			for ctx.Err() == nil {
				streamOnce(ctx, c, saw)
			}
		})
	}
	for range 5 {
		working.Go(func() {
			for ctx.Err() == nil {
				ctx, cancel := context.WithTimeout(ctx, time.Duration(1+rand.IntN(3000))*time.Millisecond)
				_, err := ask(ctx, c)
				saw("call", err)
				cancel()
				time.Sleep(time.Duration(rand.IntN(20)) * time.Millisecond)
			}
		})
	}
}

func streamOnce(ctx context.Context, c *grpc.ClientConn, saw func(string, error)) {
	ctx, cancel := context.WithTimeout(ctx, time.Duration(1+rand.IntN(5000))*time.Millisecond)
	defer cancel()
	w, err := open(ctx, c)
	if err != nil {
		saw("stream", err)
		time.Sleep(time.Duration(rand.IntN(50)) * time.Millisecond)
		return
	}
	defer w.cancel()
	for range rand.IntN(100) {
		if _, err := w.next(); err != nil {
			if err != io.EOF {
				saw("stream", err)
			}
			return
		}
	}
	saw("stream", nil) // it goes away in the middle
}
