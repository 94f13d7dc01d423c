package life

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"

	"github.com/levada-io/levada/internal/testserver"
)

func simple(target string, more ...string) string {
	return fmt.Sprintf("backends:\n- name: one\n  target: '%s'\n  %s\n", target, strings.Join(more, "\n  "))
}

// TestBehindALimit: 500 streams are open behind a backend that takes 100 on a connection: all of them live, and a new call is answered.
func TestBehindALimit(t *testing.T) {
	address := testserver.FreeAddress(t)
	backend(t, address, "LIFE_MAX_STREAMS=100", "LIFE_EVERY=200ms")
	p := startProxy(t, simple(address))
	c := dial(t, p.addr)
	const streams = 500
	all := make([]*watch, streams)
	var opening sync.WaitGroup
	for i := range all {
		opening.Go(func() {
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			t.Cleanup(cancel)
			var err error
			if all[i], err = open(ctx, c); err != nil {
				t.Errorf("stream %d: %v", i, err)
			}
		})
	}
	opening.Wait()
	if t.Failed() {
		return
	}
	began := time.Now()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if _, err := ask(ctx, c); err != nil {
		t.Errorf("a call beside %d streams: %v", streams, err)
	}
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("a call beside %d streams took %v", streams, took)
	}
	for i, w := range all {
		for range 3 {
			if _, err := w.next(); err != nil {
				t.Errorf("stream %d: %v", i, err)
				break
			}
		}
	}
	if got := p.metrics()["levada_proxy_open_streams"]; got != streams {
		t.Errorf("the proxy counts %v open streams", got)
	}
}

// fromEnv is a number that the environment may make larger.
func fromEnv[T any](t *testing.T, name string, otherwise T, parse func(string) (T, error)) T {
	t.Helper()
	text := os.Getenv(name)
	if text == "" {
		return otherwise
	}
	n, err := parse(text)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return n
}

// TestDrain ends a proxy with many open streams: each gets UNAVAILABLE with the reason, none is cut, they end evenly over the period, and open again at another proxy.
func TestDrain(t *testing.T) {
	streams := fromEnv(t, "LIFE_STREAMS", 2000, strconv.Atoi)
	period := fromEnv(t, "LIFE_DRAIN", 5*time.Second, time.ParseDuration)
	address := testserver.FreeAddress(t)
	backend(t, address)
	config := fmt.Sprintf("drain: {period: %v}\n%s", period, simple(address))
	first, second := startProxy(t, config), startProxy(t, config)
	const perConn = 500
	type end struct {
		at     time.Time
		err    error
		reason string
		again  error
	}
	ends := make([]end, streams)
	var opened, working sync.WaitGroup
	var conns, others []*grpc.ClientConn
	for range (streams + perConn - 1) / perConn {
		conns, others = append(conns, dial(t, first.addr)), append(others, dial(t, second.addr))
	}
	atOnce := make(chan struct{}, 100)
	for i := range ends {
		opened.Add(1)
		working.Go(func() {
			atOnce <- struct{}{}
			w, err := open(t.Context(), conns[i/perConn])
			<-atOnce
			opened.Done()
			if err != nil {
				ends[i].err = err
				t.Errorf("stream %d: %v", i, err)
				return
			}
			_, ends[i].err = w.next()
			ends[i].at, ends[i].reason = time.Now(), w.reason()
			w, ends[i].again = open(t.Context(), others[i/perConn])
			if w != nil {
				w.cancel()
			}
		})
	}
	opened.Wait()
	if t.Failed() {
		first.signal(syscall.SIGKILL)
		working.Wait()
		return
	}
	began := time.Now()
	first.signal(syscall.SIGTERM)
	working.Wait()
	if err := first.wait(); err != nil {
		t.Errorf("the proxy ended with %v:\n%s", err, first.log)
	}
	if took := time.Since(began); took > period+5*time.Second {
		t.Errorf("the drain took %v", took)
	}
	slices.SortFunc(ends, func(a, b end) int { return cmp.Compare(a.at.UnixNano(), b.at.UnixNano()) })
	bad := 0
	for _, e := range ends {
		if code(e.err) != codes.Unavailable || e.reason != "DRAINING" || e.again != nil {
			if bad++; bad < 10 {
				t.Errorf("a stream ended with %v (%s), and opened again with %v", e.err, e.reason, e.again)
			}
		}
	}
	if bad > 0 {
		t.Errorf("%d of %d streams did not end as they should", bad, streams)
	}
	for tenth := 1; tenth < 10; tenth++ {
		want := period * time.Duration(tenth) / 10
		got := ends[streams*tenth/10].at.Sub(began)
		t.Logf("%3d %% had ended after %v", tenth*10, got.Round(time.Millisecond))
		if d := got - want; d < -period/10 || d > period/10+500*time.Millisecond {
			t.Errorf("%d %% of the streams had ended after %v, want %v", tenth*10, got, want)
		}
	}
}

// endpointsFile is a file that the proxy takes its endpoints from.
type endpointsFile struct {
	t    testing.TB
	name string
}

func newEndpointsFile(t testing.TB, addresses ...string) *endpointsFile {
	f := &endpointsFile{t, filepath.Join(t.TempDir(), "endpoints")}
	f.write(addresses...)
	return f
}

func (f *endpointsFile) write(addresses ...string) {
	next := f.name + ".next"
	err := os.WriteFile(next, []byte(strings.Join(addresses, "\n")+"\n"), 0o600)
	if err == nil {
		err = os.Rename(next, f.name)
	}
	if err != nil {
		f.t.Error(err)
	}
}

// TestNewBackend: streams that are open stay where they are; of those that come, a new backend gets more than an equal share, until it has caught up.
func TestNewBackend(t *testing.T) {
	var addresses []string
	for range 5 {
		a := testserver.FreeAddress(t)
		backend(t, a)
		addresses = append(addresses, a)
	}
	f := newEndpointsFile(t, addresses[:4]...)
	p := startProxy(t, simple("file://"+f.name))
	c := dial(t, p.addr)
	count := map[string]int{}
	more := func(n int) {
		t.Helper()
		for range n {
			w, err := open(t.Context(), c)
			if err != nil {
				t.Fatal(err)
			}
			count[w.from]++
		}
	}
	more(400)
	for _, a := range addresses[:4] {
		if n := count[a]; n < 80 || n > 120 {
			t.Errorf("of 400 streams a backend of four has %d", n)
		}
	}
	f.write(addresses...)
	eventually(t, "the proxy knows the new endpoint", func() bool { return p.metrics()["levada_proxy_backend_endpoints"] == 5 })
	more(100)
	fifth := addresses[4]
	t.Logf("of 100 streams %d went to the new backend", count[fifth])
	if n := count[fifth]; n < 25 {
		t.Errorf("of 100 streams %d went to the new backend", n)
	}
	more(400)
	for _, a := range addresses {
		if n := count[a]; n < 140 || n > 220 {
			t.Errorf("of 900 streams a backend of five has %d", n)
		}
	}
}

// TestRollingRestart restarts three replicas one after the other, while 500 calls a second come: none of them fails.
func TestRollingRestart(t *testing.T) {
	var addresses []string
	var replicas []*process
	for range 3 {
		a := testserver.FreeAddress(t)
		addresses = append(addresses, a)
		replicas = append(replicas, backend(t, a))
	}
	p := startProxy(t, simple(strings.Join(addresses, ",")))
	conns := []*grpc.ClientConn{dial(t, p.addr), dial(t, p.addr), dial(t, p.addr)}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var calls, failed atomic.Int64
	var working sync.WaitGroup
	working.Go(func() {
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		for ctx.Err() == nil {
			<-tick.C
			for i := range 5 {
				working.Go(func() {
					ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
					defer cancel()
					calls.Add(1)
					if _, err := ask(ctx, conns[i%len(conns)]); err != nil {
						if failed.Add(1) < 10 {
							t.Errorf("a call failed: %v", err)
						}
					}
				})
			}
		}
	})
	for round := range 2 {
		for i, a := range addresses {
			before := calls.Load()
			eventually(t, "calls come", func() bool { return calls.Load() > before+250 })
			replicas[i].signal(syscall.SIGTERM)
			if err := replicas[i].wait(); err != nil {
				t.Errorf("round %d: replica %d: %v\n%s", round, i, err, replicas[i].log)
			}
			before = calls.Load()
			eventually(t, "calls come", func() bool { return calls.Load() > before+250 })
			replicas[i] = backend(t, a)
		}
	}
	cancel()
	working.Wait()
	t.Logf("%d calls, %d failed", calls.Load(), failed.Load())
	if failed.Load() > 0 {
		t.Errorf("%d of %d calls failed", failed.Load(), calls.Load())
	}
}
