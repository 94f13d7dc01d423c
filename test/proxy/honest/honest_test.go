package honest

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/levada-io/levada/test/proxy/hostile"
	"github.com/levada-io/levada/test/proxy/hostile/target"
)

func TestMain(m *testing.M) { target.Run(m) }

// patient is how long a call may take that must not fail: the machine may be busy.
const patient = 20 * time.Second

// lasts is how long a scenario without an end of its own lasts.
func lasts(t *testing.T) time.Duration {
	t.Helper()
	n, err := strconv.ParseFloat(cmp.Or(os.Getenv("HONEST_SECONDS"), "3"), 64)
	if err != nil || n <= 0 {
		t.Fatalf("HONEST_SECONDS is %q: want a number above 0", os.Getenv("HONEST_SECONDS"))
	}
	return time.Duration(n * float64(time.Second))
}

// run is a scenario at one path.
type run struct {
	t       *testing.T
	backend *backend
	addr    string
	lasts   time.Duration

	calls atomic.Int64 // of those that must not fail

	mu     sync.Mutex
	failed int
	why    map[string]int
}

// must counts a call that must not fail.
func (r *run) must(what string, err error) {
	r.calls.Add(1)
	if err == nil {
		return
	}
	text := fmt.Sprintf("%s: %v", what, err)
	if s, ok := status.FromError(err); ok {
		text = fmt.Sprintf("%s: %v %.200s", what, s.Code(), s.Message())
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.failed++
	r.why[text]++
}

func (r *run) String() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return fmt.Sprintf("%d of %d", r.failed, r.calls.Load())
}

// reasons are the failures that came most.
func (r *run) reasons() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	all := slices.SortedFunc(maps.Keys(r.why), func(a, b string) int { return cmp.Compare(r.why[b], r.why[a]) })
	return strings.Join(all[:min(len(all), 3)], "; ")
}

func (r *run) dial() *grpc.ClientConn {
	c, err := grpc.NewClient(r.addr, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDisableRetry())
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { _ = c.Close() })
	return c
}

// unary makes a call and returns its error.
func unary(ctx context.Context, c *grpc.ClientConn, method, message string) error {
	return c.Invoke(ctx, service+method, wrapperspb.Bytes([]byte(message)), new(wrapperspb.BytesValue))
}

// well makes a call that must not fail.
func (r *run) well(ctx context.Context, c *grpc.ClientConn, what, method, message string) {
	ctx, cancel := context.WithTimeout(ctx, patient)
	defer cancel()
	r.must(what, unary(ctx, c, method, message))
}

var anyStream = &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}

// open opens a stream and sends the first message.
func open(ctx context.Context, c *grpc.ClientConn, method string) (grpc.ClientStream, error) {
	s, err := c.NewStream(ctx, anyStream, service+method)
	if err == nil {
		err = s.SendMsg(wrapperspb.Bytes([]byte("x")))
	}
	return s, err
}

// exchange sends a message on a stream of Echo, and waits for it to come back. The first one was sent by open.
func exchange(s grpc.ClientStream, first bool) error {
	if !first {
		if err := s.SendMsg(wrapperspb.Bytes([]byte("x"))); err != nil && !errors.Is(err, io.EOF) {
			return err
		}
	}
	return s.RecvMsg(new(wrapperspb.BytesValue))
}

// long is a stream that lives beside what a scenario does on the same connection, until stop is called. It is open when long returns, and must not end.
func (r *run) long(c *grpc.ClientConn) (stop func()) {
	ctx, cancel := context.WithCancel(r.t.Context())
	s, err := open(ctx, c, "Echo")
	if err == nil {
		err = exchange(s, true)
	}
	done := make(chan struct{})
	end := make(chan struct{})
	go func() {
		defer close(done)
		for ; err == nil; err = exchange(s, false) {
			select {
			case <-end:
				r.must("the long stream", nil)
				return
			case <-time.After(50 * time.Millisecond):
			}
		}
		r.must("the long stream", err)
	}()
	return func() {
		close(end)
		select {
		case <-done:
		case <-time.After(patient):
		}
		cancel()
		<-done
	}
}

// every calls do, each in a goroutine of its own, at a rate for a time, and waits for all of them.
func every(perSecond int, d time.Duration, do func(i int)) {
	var all sync.WaitGroup
	begin := time.Now()
	for i := 0; ; i++ {
		due := time.Duration(i) * time.Second / time.Duration(perSecond)
		if due >= d {
			break
		}
		time.Sleep(time.Until(begin.Add(due)))
		all.Go(func() { do(i) })
	}
	all.Wait()
}

// scenarios do not judge: they count the calls that must not fail, and those that did.
var scenarios = []struct {
	name   string
	memory string // GOMEMLIMIT of ours
	do     func(r *run)
}{
	{"500 calls a second that are cancelled after 20 ms, beside a long stream", "", func(r *run) {
		c := r.dial()
		stop := r.long(c)
		every(500, r.lasts, func(i int) {
			ctx, cancel := context.WithCancel(r.t.Context())
			defer time.AfterFunc(20*time.Millisecond, cancel).Stop()
			if err := unary(ctx, c, "Hang", ""); status.Code(err) != codes.Canceled {
				r.must("a cancelled call", err)
			}
			if i%20 == 0 {
				r.well(r.t.Context(), c, "a call beside", "Echo", "x")
			}
		})
		stop()
	}},
	{"500 calls a second with deadlines of 40 ms at a method that hangs", "", func(r *run) {
		c := r.dial()
		stop := r.long(c)
		every(500, r.lasts, func(i int) {
			ctx, cancel := context.WithTimeout(r.t.Context(), 40*time.Millisecond)
			defer cancel()
			var err error
			if code := status.Code(unary(ctx, c, "Hang", "")); code != codes.DeadlineExceeded {
				err = fmt.Errorf("it ends with %v", code)
			}
			r.must("a call at its deadline", err)
			if i%20 == 0 {
				r.well(r.t.Context(), c, "a call beside", "Echo", "x")
			}
		})
		stop()
	}},
	{"hedged calls: the first answer wins, and the other call is cancelled", "", func(r *run) {
		c := r.dial()
		stop := r.long(c)
		every(150, r.lasts, func(int) {
			ctx, cancel := context.WithTimeout(r.t.Context(), patient)
			defer cancel()
			answers := make(chan error, 3)
			for range 3 {
				go func() { answers <- unary(ctx, c, "Late", strconv.Itoa(rand.IntN(30))) }()
			}
			r.must("a hedged call", <-answers)
		})
		stop()
	}},
	{"60 KB of metadata in each of 40 calls a second", "", func(r *run) {
		c := r.dial()
		stop := r.long(c)
		large := strings.Repeat("m", 59_000)
		every(40, r.lasts, func(i int) {
			r.well(metadata.AppendToOutgoingContext(r.t.Context(), "baggage", fmt.Sprint(i, large)), c, "a call with 60 KB", "Echo", "x")
		})
		stop()
	}},
	{"calls with 300 KB of metadata, which may fail, beside others", "", func(r *run) {
		c := r.dial()
		stop := r.long(c)
		large := strings.Repeat("m", 300_000)
		every(20, r.lasts, func(i int) {
			ctx, cancel := context.WithTimeout(metadata.AppendToOutgoingContext(r.t.Context(), "baggage", fmt.Sprint(i, large)), patient)
			defer cancel()
			_ = unary(ctx, c, "Echo", "x")
			r.well(r.t.Context(), c, "a call beside", "Echo", "x")
		})
		stop()
	}},
	{"a status with 64 KB and 300 KB of trailers, beside others", "", func(r *run) {
		c := r.dial()
		stop := r.long(c)
		every(20, r.lasts, func(i int) {
			ctx, cancel := context.WithTimeout(r.t.Context(), patient)
			defer cancel()
			size := []string{"64000", "300000"}[i%2]
			var err error
			if s := status.Convert(unary(ctx, c, "Status", size)); s.Code() != codes.InvalidArgument {
				err = fmt.Errorf("INVALID_ARGUMENT came as %v %q", s.Code(), s.Message())
			}
			r.must("a status with "+size+" bytes", err)
			r.well(r.t.Context(), c, "a call beside", "Echo", "x")
		})
		stop()
	}},
	{"a consumer that takes nothing for a while", "", func(r *run) {
		c := r.dial()
		stop := r.long(c)
		ctx, cancel := context.WithCancel(r.t.Context())
		defer cancel()
		s, err := open(ctx, c, "Pour")
		r.must("the slow stream opens", err)
		if err != nil {
			return
		}
		time.Sleep(r.lasts) // HONEST_SECONDS=70 is longer than any timeout of the four
		for range 100 {
			r.must("a message", s.RecvMsg(new(wrapperspb.BytesValue)))
		}
		stop()
	}},
	{"a backend that hangs for a while, and calls with deadlines of 300 ms", "", func(r *run) {
		c := r.dial()
		call := func() error {
			ctx, cancel := context.WithTimeout(r.t.Context(), 300*time.Millisecond)
			defer cancel()
			return unary(ctx, c, "Echo", "x")
		}
		stop := r.long(c)
		r.backend.brown.Store(true)
		every(200, r.lasts*2/3, func(int) {
			var err error
			if code := status.Code(call()); code != codes.DeadlineExceeded {
				err = fmt.Errorf("it ends with %v", code)
			}
			r.must("a call while the backend hangs", err)
		})
		r.backend.brown.Store(false)
		every(100, r.lasts/3, func(int) { r.well(r.t.Context(), c, "a call after it", "Echo", "x") })
		stop()
	}},
	{"3,000 streams on one connection, and then a call", "", func(r *run) {
		c := r.dial()
		ctx, cancel := context.WithCancel(r.t.Context())
		defer cancel()
		var streams []grpc.ClientStream
		for len(streams) < 3000 {
			stuck := time.AfterFunc(5*time.Second, cancel) // where there is no room for the 101st, there is none for the others
			s, err := open(ctx, c, "Echo")
			if err == nil {
				err = exchange(s, true)
			}
			stuck.Stop()
			if r.must("a stream opens", err); err != nil {
				r.calls.Add(int64(2999 - len(streams)))
				r.mu.Lock()
				r.failed += 2999 - len(streams)
				r.mu.Unlock()
				break
			}
			streams = append(streams, s)
		}
		r.well(ctx, c, "a call beside them", "Echo", "x")
	}},
	{"40 clients behind one address, one of which floods", "", func(r *run) {
		ctx, cancel := context.WithTimeout(r.t.Context(), r.lasts)
		defer cancel()
		var all sync.WaitGroup
		all.Go(func() {
			i := slices.IndexFunc(hostile.Front, func(a hostile.Attack) bool { return a.Name == "rapid reset" })
			for ctx.Err() == nil { // with pauses, so that there is time for the others on a small machine
				some, stop := context.WithTimeout(ctx, 20*time.Millisecond)
				hostile.Front[i].Front(some, r.addr)
				stop()
				select {
				case <-time.After(100 * time.Millisecond):
				case <-ctx.Done():
				}
			}
		})
		for range 40 {
			all.Go(func() {
				c := r.dial()
				for ctx.Err() == nil {
					r.well(r.t.Context(), c, "a call of a neighbour", "Echo", "x")
					time.Sleep(50 * time.Millisecond)
				}
			})
		}
		all.Wait()
	}},
	{"600 streams of 128 KB, each taking 16 KB a second for a while and then the rest, with 64 MiB for the proxy", "64MiB", func(r *run) {
		const blocks = 16
		ctx, cancel := context.WithTimeout(r.t.Context(), r.lasts+2*time.Second+6*patient)
		defer cancel()
		var all sync.WaitGroup
		for range 8 {
			c := r.dial()
			for range 75 { // of 100 that nghttpx and HAProxy allow
				all.Go(func() {
					s, err := c.NewStream(ctx, anyStream, service+"Count")
					if err == nil {
						err = s.SendMsg(wrapperspb.Bytes([]byte(strconv.Itoa(blocks))))
					}
					slowly := time.Now().Add(r.lasts + 2*time.Second)
					for n := 0; err == nil; n++ {
						m := new(wrapperspb.BytesValue)
						if err = s.RecvMsg(m); errors.Is(err, io.EOF) && n == blocks {
							err = nil
							break
						}
						if err == nil && !bytes.Equal(m.Value, numbered(n)) {
							err = fmt.Errorf("block %d has other bytes", n)
						}
						if time.Now().Before(slowly) {
							time.Sleep(500 * time.Millisecond)
						}
					}
					r.must("a slow stream, to its end", err)
				})
			}
		}
		all.Wait()
	}},
}

// paths are the ways to the backend. Ours is the last column of the table.
var paths = []string{"direct", "nghttpx", "haproxy", "levada"}

func TestHonest(t *testing.T) {
	var mu sync.Mutex
	rows := map[string][]string{}
	for _, s := range scenarios {
		t.Run(s.name, func(t *testing.T) {
			results := map[string]*run{}
			var all sync.WaitGroup
			for _, path := range paths {
				b := startBackend(t)
				r := &run{t: t, backend: b, addr: b.addr, lasts: lasts(t), why: map[string]int{}}
				var proxy *target.Proxy
				if path != "direct" {
					proxy = target.Start(t, target.Options{Name: path, Backend: b.addr, Defaults: true, Memory: s.memory})
					r.addr = proxy.Addr
				}
				results[path] = r
				all.Go(func() {
					begin := time.Now()
					s.do(r)
					t.Logf("%s took %v", path, time.Since(begin).Round(time.Millisecond))
					if path == "levada" && r.failed > 0 {
						t.Logf("levada's log:\n%s", proxy.Log())
					}
				})
			}
			all.Wait()
			var row []string
			for _, path := range paths {
				r := results[path]
				row = append(row, r.String())
				if r.failed > 0 {
					t.Logf("%s: %s failed: %s", path, r, r.reasons())
				}
			}
			ours, least := results["levada"], results["direct"].failed
			for _, path := range []string{"nghttpx", "haproxy"} {
				least = min(least, results[path].failed)
			}
			if ours.calls.Load() == 0 || ours.failed > least {
				t.Errorf("through levada proxy %s failed, and elsewhere only %d: %s", ours, least, ours.reasons())
			}
			mu.Lock()
			rows[s.name] = row
			mu.Unlock()
		})
	}
	report(t, rows)
}

// report prints the table. HONEST_DOCS names a file into which it goes.
func report(t *testing.T, rows map[string][]string) {
	t.Helper()
	var b strings.Builder
	b.WriteString("| what clients do | direct | nghttpx | HAProxy | levada proxy |\n|---|---|---|---|---|\n")
	for _, s := range scenarios {
		if row := rows[s.name]; row != nil {
			fmt.Fprintf(&b, "| %s | %s |\n", s.name, strings.Join(row, " | "))
		}
	}
	t.Logf("calls that failed and must not:\n%s", b.String())
	file := os.Getenv("HONEST_DOCS")
	if file == "" || t.Failed() || len(rows) < len(scenarios) {
		return
	}
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	const begin, end = "<!-- honest clients -->\n", "<!-- end of honest clients -->"
	head, rest, ok := strings.Cut(string(text), begin)
	_, tail, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		t.Fatalf("%s has no place for the table: want %q, and %q below it", file, begin, end)
	}
	if err := os.WriteFile(file, []byte(head+begin+b.String()+end+tail), 0o644); err != nil {
		t.Fatal(err)
	}
}
