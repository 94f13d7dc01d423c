package hostile

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"

	"github.com/levada-io/levada/test/proxy/hostile/target"
)

// The bounds. Memory is that of the acceptance table: an attack adds less than 256 MiB, and 30 s later what is left of it is 10 % and 20 MiB.
const (
	mostMemory = 256 << 20
	recovery   = 30 * time.Second
	// A victim's p99 is compared with that of another victim, whose calls go at the same time to the same backend through a proxy of its own that
	// nobody attacks: so what the machine is busy with otherwise, the attacker's own work included, makes no difference. A p99 below this is no
	// finding in any case: it is what a busy process waits for a processor on two cores that four others want (the scheduler's slice is 3
	// to 4 ms), and a fifth of the 250 ms that the acceptance table allows.
	smallP99 = 50 * time.Millisecond
	// tries are how often an attack may be repeated for the sake of the p99 alone, which is that of a few calls of some hundred: what is a property of
	// the proxy comes back.
	tries = 3
)

// attackVar has the test binary carry out an attack in a process of its own, so that it takes no time from the victim's goroutines, and nothing of it is
// counted as the victim's. Its value is an order.
const attackVar = "HOSTILE_ATTACK"

type order struct {
	Name        string
	Addr        string // of the proxy; "" for a backend, whose listener is file 3
	For         time.Duration
	Connections int
}

func TestMain(m *testing.M) {
	if text := os.Getenv(attackVar); text != "" {
		if err := carryOut(text); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	target.Run(m)
}

func carryOut(text string) error {
	var o order
	if err := json.Unmarshal([]byte(text), &o); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), o.For)
	defer cancel()
	var r Result
	if o.Addr != "" {
		if o.Name == together {
			r = all(ctx, o.Addr)
		} else {
			a := find(Front, o.Name)
			a.Connections = o.Connections
			r = a.Front(ctx, o.Addr)
		}
	} else {
		l, err := net.FileListener(os.NewFile(3, "listener"))
		if err != nil {
			return err
		}
		r = find(Back, o.Name).Back(ctx, l)
	}
	return json.NewEncoder(os.Stdout).Encode(r)
}

// together is the name of all attacks of clients at the same time.
const together = "all of them together"

func all(ctx context.Context, addr string) (sum Result) {
	results := make(chan Result)
	var n int
	for _, a := range Front {
		if a.TLS || a.Connections > 1000 { // there are descriptors for one of those, not for all
			continue
		}
		n++
		go func() { results <- a.Front(ctx, addr) }()
	}
	for range n {
		r := <-results
		sum.Frames, sum.Connections, sum.Closed = sum.Frames+r.Frames, sum.Connections+r.Connections, sum.Closed+r.Closed
	}
	return sum
}

func find(all []Attack, name string) Attack {
	return all[slices.IndexFunc(all, func(a Attack) bool { return a.Name == name })]
}

// attack carries out an attack in a process of its own, of low priority: a real attacker's work is not done on the proxy's machine.
func attack(o order, l *os.File) (Result, error) {
	text, err := json.Marshal(o)
	if err != nil {
		return Result{}, err
	}
	self, err := os.Executable()
	if err != nil {
		return Result{}, err
	}
	cmd := exec.Command("nice", "-n", "5", self)
	cmd.Env = append(os.Environ(), attackVar+"="+string(text))
	var said bytes.Buffer
	cmd.Stderr = &said
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if l != nil {
		cmd.ExtraFiles = []*os.File{l}
	}
	out, err := cmd.Output()
	var r Result
	if err == nil {
		err = json.Unmarshal(out, &r)
	}
	if err != nil {
		return r, fmt.Errorf("the attacker: %w\n%s", err, said.String())
	}
	return r, nil
}

// seconds is how long an attack lasts.
func seconds(t *testing.T) time.Duration {
	t.Helper()
	n, err := strconv.ParseFloat(cmp.Or(os.Getenv("HOSTILE_SECONDS"), "2"), 64)
	if err != nil || n <= 0 {
		t.Fatalf("HOSTILE_SECONDS is %q: want a number above 0", os.Getenv("HOSTILE_SECONDS"))
	}
	return time.Duration(n * float64(time.Second))
}

// row is what is said about an attack in the table.
type row struct {
	name            string
	want            Want
	mayTake         time.Duration // Attack.Slow
	result          Result
	attacked, peace time.Duration // p99 of the victim, and of the one whose proxy nobody attacked
	calls           int           // of the victim
	reached         int64         // calls of others that came to the honest backend
	memory, grown   int64
	cpu             time.Duration
	lured           map[string]int
	findings        []string
}

func TestFront(t *testing.T) {
	backend, calls := honest(t)
	var rows []row
	for _, a := range Front {
		t.Run(a.Name, func(t *testing.T) {
			rows = append(rows, hold(t, a, calls, target.Options{Backend: backend, TLS: a.TLS}))
		})
	}
	report(t, "front", rows)
}

// TestTogether has all attacks of clients at once. There is no processor time for the victim's p99 then, but its calls must not fail.
func TestTogether(t *testing.T) {
	backend, calls := honest(t)
	r := once(t, Attack{Name: together}, calls, target.Options{Backend: backend})
	for _, f := range r.findings {
		t.Error(f)
	}
	t.Log(r)
}

func TestBack(t *testing.T) {
	backend, calls := honest(t)
	var rows []row
	for _, a := range Back {
		t.Run(a.Name, func(t *testing.T) {
			l, err := net.Listen("tcp", target.EvilBackend())
			if err != nil {
				t.Fatal(err)
			}
			file, err := l.(*net.TCPListener).File()
			if err != nil {
				t.Fatal(err)
			}
			defer file.Close()
			evil := l.Addr().String()
			_ = l.Close() // the attacker's process listens
			rows = append(rows, hold(t, a, calls, target.Options{Backend: backend, Evil: evil}, file))
		})
	}
	report(t, "back", rows)
}

// hold holds the proxy against an attack: of clients, or of the backend that has the listener.
func hold(t *testing.T, a Attack, reached *atomic.Int64, o target.Options, listener ...*os.File) row {
	t.Helper()
	for try := 1; ; try++ {
		r := once(t, a, reached, o, listener...)
		if r.slow() && try < tries && len(r.findings) == 0 {
			t.Logf("again, the victim's p99 was %v, and %v in peace: %s", r.attacked, r.peace, r)
			continue
		}
		if r.slow() {
			r.finding("the victim's p99 was %.1f ms, and %.1f ms at a proxy in peace", ms(r.attacked), ms(r.peace))
		}
		for _, f := range r.findings {
			t.Error(f)
		}
		t.Log(r)
		return r
	}
}

func once(t *testing.T, a Attack, reached *atomic.Int64, o target.Options, listener ...*os.File) row {
	t.Helper()
	proxy, twin := target.Start(t, o), target.Start(t, o)
	defer proxy.Stop()
	defer twin.Stop()
	conn, peace := dial(t, proxy), dial(t, twin)
	for _, c := range []*grpc.ClientConn{conn, peace} {
		for range 20 { // warms up
			if err := call(c, 10*time.Second); err != nil {
				t.Fatalf("before the attack: %v\nproxy:\n%s", err, proxy.Log())
			}
		}
	}
	r := row{name: a.Name, want: a.Want, mayTake: a.Slow, memory: proxy.Memory()}
	cpu, files := proxy.CPU(), proxy.Files()
	reached.Store(0)
	v, w := startVictim(conn), startVictim(peace)
	peak := watchMemory(proxy)
	orders := order{Name: a.Name, Addr: proxy.Addr, For: max(seconds(t), a.Lasts), Connections: connections(t, a)}
	var err error
	if len(listener) > 0 {
		orders.Addr = ""
		ctx, stop := context.WithCancel(t.Context())
		lured := make(chan map[string]int, 1)
		others := conn
		if a.Apart {
			others = dial(t, proxy)
		}
		go func() { lured <- lure(ctx, conn, others) }()
		r.result, err = attack(orders, listener[0])
		stop()
		r.lured = <-lured
	} else {
		r.result, err = attack(orders, nil)
	}
	if err != nil {
		t.Fatal(err)
	}
	r.grown = peak() - r.memory
	var failed []error
	r.attacked, r.calls, failed = v.end()
	var inPeace int
	if r.peace, inPeace, _ = w.end(); twin.Addr == proxy.Addr {
		r.peace = 0 // somebody else's proxy, of which there is one
	}
	r.reached = reached.Load() - int64(r.calls) - int64(inPeace)
	r.cpu = proxy.CPU() - cpu
	r.judge(proxy, files, failed)
	return r
}

func (r *row) slow() bool { return r.attacked > max(2*r.peace, cmp.Or(r.mayTake, smallP99)) }

func (r *row) finding(format string, args ...any) {
	r.findings = append(r.findings, fmt.Sprintf(format, args...))
}

// judge finds what the proxy has not done, but for the p99.
func (r *row) judge(proxy *target.Proxy, files int, failed []error) {
	if !proxy.Alive() {
		r.finding("the proxy has ended:\n%s", proxy.Log())
		return
	}
	if r.result.Connections == 0 {
		r.finding("no connection was opened, so nothing was attacked: %s", r.result.Failed)
	}
	if len(failed) > 0 {
		r.finding("%d of the victim's %d calls failed, the first: %v", len(failed), r.calls, failed[0])
	}
	if r.grown > mostMemory {
		r.finding("memory grew by %d MiB, more than %d MiB", r.grown>>20, mostMemory>>20)
	}
	switch r.want {
	case Closed:
		if r.result.Closed == 0 {
			r.finding("none of the %d connections was closed; the oldest was %v", r.result.Connections, r.result.Oldest.Round(time.Millisecond))
		} else if late := max(r.result.ClosedAfter, r.result.Oldest); late > Patience {
			r.finding("a connection was open for %v, longer than %v", late.Round(time.Millisecond), Patience)
		}
	case Refused:
		if r.result.Refusals() == 0 {
			r.finding("nothing was refused: %v", r.result.Saw)
		}
	}
	enough, few := r.memory+r.memory/10+20<<20, files+20
	for end := time.Now().Add(recovery); ; time.Sleep(100 * time.Millisecond) {
		left, open := proxy.Memory(), proxy.Files()
		if left <= enough && open <= few {
			return
		}
		if time.Now().After(end) {
			r.finding("%v later memory is %d MiB, and was %d MiB before; descriptors are %d, and were %d", recovery, left>>20, r.memory>>20, open, files)
			return
		}
	}
}

// watchMemory returns a function that says how much memory the process had at most.
func watchMemory(proxy *target.Proxy) (peak func() int64) {
	stop, most := make(chan struct{}), make(chan int64)
	go func() {
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		var m int64
		for {
			m = max(m, proxy.Memory())
			select {
			case <-tick.C:
			case <-stop:
				most <- m
				return
			}
		}
	}()
	return func() int64 { close(stop); return <-most }
}

// connections is how many an attack has at the same time: at least HOSTILE_CONNECTIONS.
func connections(t *testing.T, a Attack) int {
	t.Helper()
	n, err := strconv.Atoi(cmp.Or(os.Getenv("HOSTILE_CONNECTIONS"), "1"))
	if err != nil || n < 1 {
		t.Fatalf("HOSTILE_CONNECTIONS is %q: want a number above 0", os.Getenv("HOSTILE_CONNECTIONS"))
	}
	return descriptors(t, max(n, a.Connections))
}

// descriptors is how many connections an attack can have: the attacker and the proxy need one for each.
func descriptors(t *testing.T, n int) int {
	t.Helper()
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	if room := int(min(limit.Cur, 1<<20)) - 500; n > room {
		t.Logf("%d connections instead of %d: there are %d descriptors", room, n, limit.Cur)
		return room
	}
	return n
}

func (r row) String() string {
	closed := "-"
	if r.result.Closed > 0 {
		closed = fmt.Sprint(r.result.ClosedAfter.Round(time.Millisecond))
	}
	said := maps.Clone(r.result.Saw)
	delete(said, "request")
	if r.lured != nil {
		said = r.lured
	}
	var answers []string
	for _, what := range slices.SortedFunc(maps.Keys(said), func(a, b string) int { return cmp.Compare(said[b], said[a]) }) {
		answers = append(answers, fmt.Sprintf("%s %d", what, said[what]))
	}
	return fmt.Sprintf("| %s | %d | %d | %d | %s | %s | %d | %.1f | %.1f | +%d | %.1f |", r.name, r.result.Frames, r.result.Connections, r.result.Closed, closed,
		strings.Join(answers[:min(len(answers), 3)], ", "), max(r.reached, 0), ms(r.peace), ms(r.attacked), max(r.grown, 0)>>20, r.cpu.Seconds())
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

const header = `| attack | frames | connections | closed | closed after, at most | answers | calls at the backend | p99 in peace, ms | victim's p99, ms | memory, MiB | CPU, s |
|---|---|---|---|---|---|---|---|---|---|---|
`

// report prints the table. HOSTILE_DOCS names a file into which it goes, between two comments that say which table it is; only that of our own proxy does.
func report(t *testing.T, side string, rows []row) {
	t.Helper()
	var b strings.Builder
	b.WriteString(header)
	for _, r := range rows {
		fmt.Fprintln(&b, r)
	}
	t.Logf("%s, %s:\n%s", target.Name(), side, b.String())
	file := os.Getenv("HOSTILE_DOCS")
	if file == "" || target.Name() != "levada" || t.Failed() {
		return
	}
	if all := map[string]int{"front": len(Front), "back": len(Back)}[side]; len(rows) != all {
		t.Logf("%s stays as it is: %d attacks of %d were made", file, len(rows), all)
		return
	}
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	begin, end := "<!-- attacks: "+side+" -->\n", "<!-- end of attacks: "+side+" -->"
	head, rest, ok := strings.Cut(string(text), begin)
	_, tail, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		t.Fatalf("%s has no place for the table: want %q, and %q below it", file, begin, end)
	}
	if err := os.WriteFile(file, []byte(head+begin+b.String()+end+tail), 0o644); err != nil {
		t.Fatal(err)
	}
}
