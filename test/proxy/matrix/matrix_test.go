// Package matrix holds the proxy to what clients see: real clients of several gRPC implementations, a real server whose life and network end in many ways
// (TestMatrix), and one that answers as no real server does on demand (TestScripts).
//
//	go test ./test/proxy/matrix                     levada, built from the tree: every cell must be right
//	LEVADA=bin/levada go test ...                   the same for a program that is there
//	PROXY=nginx go test -v ./test/proxy/matrix      what another path makes of the same: direct, nginx, haproxy, nghttpx
//
// -v prints the tables. Faults are struck when every client has what it waits for, and all clients are in each scenario at once. Times are those of one clock, the
// machine's monotonic one, read where the fault is struck and where the client's library reports.
package matrix

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// scratch is a folder that goes when the tests end.
var scratch string

func TestMain(m *testing.M) {
	if main, ok := roles[os.Getenv(role)]; ok {
		if err := main(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	flag.Parse()
	// Scenarios wait for most of their time, so they run all at once however few processors there are.
	if err := flag.Set("test.parallel", "64"); err != nil {
		panic(err)
	}
	var err error
	if scratch, err = os.MkdirTemp("", "levada-matrix-"); err != nil {
		panic(err)
	}
	code := m.Run()
	if err := os.RemoveAll(scratch); err != nil {
		panic(err)
	}
	os.Exit(code)
}

const (
	// soon is how long after a fault the client has its status.
	soon = 50 * time.Millisecond
	// slack is what a busy machine may add to a single call: tests run beside each other, and a process that has work may not have a processor. The
	// slowest proxy of those measured that do it in time needs 10 ms; those that do not need seconds. That half of the calls are below soon without
	// any slack is checked, too.
	slack = 700 * time.Millisecond
	// callsEach is how many calls each client has in a scenario, on one connection.
	callsEach = 4
	// timely bounds what is no fault: starting, connecting, the first message.
	timely = time.Minute
)

// by is who a status is from, as the trailer levada-stream-ended must tell.
type by int

const (
	either    by = iota // the client itself, or who was first; or a reading of what is no status, be it the client's or the proxy's
	byBackend           // so the proxy says nothing
	byProxy             // it ended the call, and says why
)

// wrong says what is, or is empty.
func (b by) wrong(path, ended string) string {
	switch {
	case b == byProxy && path == levada && ended == "":
		return "levada-stream-ended is not there, of a call that the proxy ended"
	case b == byBackend && ended != "":
		return fmt.Sprintf("levada-stream-ended is %q, of a status that is the backend's", ended)
	}
	return ""
}

// scenario is a fault, and what each path makes of it.
type scenario struct {
	name string
	// The codes of levada are those that must be. Those of others are what was measured: in the order of clientNames, or one for all.
	levada, direct, nginx, haproxy, nghttpx string
	by                                      by
	backend                                 backendOptions
	patience                                patience
	unary                                   bool          // a call that waits for its answer; else a stream that has its first message
	deadline                                time.Duration // 0: longer than the scenario
	nobody                                  string        // there is no backend but this
	// strike does it, and returns when; nil if it comes by itself.
	strike func(r *run, t *testing.T) int64
	// from is when the status of a call is due; nil for when strike did it.
	from func(r *run, c *call) int64
	// spread is how far the first and the last call must be apart, at least.
	spread time.Duration
	// early is how long before that it may come.
	early time.Duration
	// lasting: nothing answers any more when it is over. Else the next call must be as if nothing had been.
	lasting bool
	args    []string // of levada
	// calm: other scenarios need not wait while this one goes on, as it goes on for long.
	calm bool
}

// twice: the call is made a second time, which has an end of its own by the client and the moment. The backend's count shows it.
const twice = "?"

var scenarios = []scenario{
	{name: "age", levada: "14", direct: "14", nginx: "13", haproxy: "13/13/2/13/2", nghttpx: "13", by: byProxy,
		backend: backendOptions{Age: 3 * time.Second, Grace: 2 * time.Second}, from: gone, calm: true},
	{name: "streamage", levada: "14", direct: "14", nginx: "14", haproxy: "14", nghttpx: "14", by: byBackend,
		backend: backendOptions{StreamAge: 3 * time.Second}, from: returned, calm: true},
	{name: "kill", levada: "14", direct: "14", nginx: "13", haproxy: "13/13/2/13/2", nghttpx: "13", by: byProxy, strike: (*run).kill, lasting: true},
	{name: "term", levada: "14", direct: "14", nginx: "13", haproxy: "13/13/2/13/2", nghttpx: "13", by: byProxy, strike: (*run).term, from: gone, calm: true, lasting: true},
	{name: "rst", levada: "14", direct: "14", nginx: "13", haproxy: "13/13/2/13/2", nghttpx: "13", by: byProxy, strike: (*run).rst},
	{name: "fin", levada: "14", direct: "14", nginx: "13", haproxy: "13/13/2/13/2", nghttpx: "13", by: byProxy, strike: (*run).fin},
	{name: "blackhole", levada: "4", direct: "4", nginx: "4", haproxy: "4", nghttpx: "4", strike: (*run).freeze, lasting: true, from: due,
		patience: patient, deadline: 8 * time.Second, calm: true},
	{name: "blackhole_to", levada: "14", direct: "4", nginx: "13", haproxy: "13/13/2/13/2", nghttpx: "13", by: byProxy, strike: (*run).freeze, lasting: true, from: outOfPatience, early: impatient.pingEvery, // who asks may have asked before the fault
		patience: impatient, deadline: 12 * time.Second, calm: true},
	{name: "refuse", levada: "14", direct: "14", nginx: "14", haproxy: "14", nghttpx: "14", by: byProxy, nobody: "refuse", from: started},
	{name: "noth2", levada: "14", direct: "14/14/14/13/14", nginx: "14", haproxy: "14", nghttpx: "13", by: byProxy, nobody: "noth2", from: started},
	{name: "drop", levada: "14", direct: "14", nginx: "14", haproxy: "14", nghttpx: "13", by: byProxy, nobody: "drop", from: started},
	{name: "hold", levada: "4", direct: "4", nginx: "4", haproxy: "4", nghttpx: "4", nobody: "hold", from: due, deadline: 8 * time.Second, calm: true},
	{name: "u_kill", levada: "14", direct: "14", nginx: "14", haproxy: "14", nghttpx: "13", by: byProxy, unary: true, strike: (*run).kill, lasting: true},
	{name: "u_term", levada: "14", direct: "14", nginx: "14", haproxy: "14", nghttpx: "13", by: byProxy, unary: true, strike: (*run).term, from: gone, calm: true, lasting: true},
	{name: "u_rst", levada: "14", direct: "14", nginx: "14", haproxy: twice, nghttpx: "13", by: byProxy, unary: true, strike: (*run).rst},
	{name: "u_fin", levada: "14", direct: "14", nginx: "14", haproxy: twice, nghttpx: "13", by: byProxy, unary: true, strike: (*run).fin},
	{name: "cancel", levada: "1", direct: "1", nginx: "1", haproxy: "1", nghttpx: "1", strike: (*run).cancel},
	{name: "u_cancel", levada: "1", direct: "1", nginx: "1", haproxy: "1", nghttpx: "1", unary: true, strike: (*run).cancel},
	{name: "deadline", levada: "4", direct: "4", nginx: "4", haproxy: "4", nghttpx: "4", from: due, deadline: 2 * time.Second, calm: true},
	{name: "u_deadline", levada: "4", direct: "4", nginx: "4", haproxy: "4", nghttpx: "4", unary: true, from: due, deadline: 2 * time.Second, calm: true},
}

// Those that only levada has: it ends streams itself, one by one.
func init() {
	scenarios = append(scenarios,
		scenario{name: "own_age", levada: "14", by: byProxy, args: []string{"--stream-age", "2s"}, calm: true, early: 400 * time.Millisecond,
			from: func(r *run, c *call) int64 { return started(r, c) + 1.1*2e6 }}, // a tenth more, or less
		scenario{name: "own_drain", levada: "14", by: byProxy, args: []string{"--drain", "2s"}, calm: true, early: 2 * time.Second, spread: time.Second, lasting: true,
			strike: (*run).drain, from: func(r *run, _ *call) int64 { return r.struck + 2e6 }})
}

func (s *scenario) want(path string) string {
	return map[string]string{levada: s.levada, "direct": s.direct, "nginx": s.nginx, "haproxy": s.haproxy, "nghttpx": s.nghttpx}[path]
}

// run is a scenario as it goes on.
type run struct {
	*scenario
	channel string   // of the clients
	process *process // the backend's; nil if there is nobody
	relay   *relay
	proxy   opened
	calls   []*call
	struck  int64
}

type call struct {
	id, client string
	process    *process
	end        event
}

func (r *run) kill(t *testing.T) int64  { return hit(t, r.process.cmd, syscall.SIGKILL) }
func (r *run) term(t *testing.T) int64  { return hit(t, r.process.cmd, syscall.SIGTERM) }
func (r *run) drain(t *testing.T) int64 { return hit(t, r.proxy.cmd, syscall.SIGTERM) }

func hit(t *testing.T, to *exec.Cmd, s syscall.Signal) int64 {
	t.Helper()
	at := now()
	if err := to.Process.Signal(s); err != nil {
		t.Fatal(err)
	}
	return at
}

func (r *run) rst(*testing.T) int64    { return r.relay.reset() }
func (r *run) fin(*testing.T) int64    { return r.relay.fin() }
func (r *run) freeze(*testing.T) int64 { return r.relay.freeze() }

func (r *run) cancel(t *testing.T) int64 {
	at := now()
	for _, c := range r.calls {
		c.process.send(t, order{Op: "cancel", ID: c.id})
	}
	return at
}

// started: at once.
func started(_ *run, c *call) int64 { return c.process.first(c.id, "started") }

// due: at the deadline of the call.
func due(r *run, c *call) int64 { return started(r, c) + r.deadline.Microseconds() }

// returned: when the handler of the call did.
func returned(r *run, c *call) int64 { return r.process.first(c.id, "return") }

// gone: when the backend ended the connection.
func gone(r *run, c *call) int64 { return r.relay.goneBy(c.end.At) }

// outOfPatience: when the proxy has asked and not been answered.
func outOfPatience(r *run, _ *call) int64 {
	return r.struck + (r.patience.pingEvery + r.patience.pingFor).Microseconds()
}

// row is what came of a scenario.
type row struct {
	cells    string
	delays   []time.Duration // of the statuses, after they were due
	attempts string
	ended    string
}

// harness is what scenarios have in common.
type harness struct {
	path    string
	clients map[string]*process
	ready   sync.WaitGroup // until all have started what they need: starting is work, and would delay what is timed
	quiet   sync.Mutex     // held by the one that strikes
}

func TestMatrix(t *testing.T) {
	h := &harness{path: chosenPath(t), clients: startClients(t)}
	rows := make([]row, len(scenarios))
	t.Run("scenario", func(t *testing.T) {
		for i := range scenarios {
			s := &scenarios[i]
			if s.want(h.path) == "" {
				continue
			}
			t.Run(s.name, func(t *testing.T) {
				h.ready.Add(1)
				started := sync.OnceFunc(h.ready.Done)
				t.Cleanup(started)
				t.Parallel()
				rows[i] = h.run(t, s, started)
			})
		}
	})
	var all []time.Duration
	var table strings.Builder
	fmt.Fprintf(&table, "%s: %s, %d calls each\n%-13s%-16s%-12s%-24s%-10s%s\n", h.path, strings.Join(clientNames, "/"), callsEach,
		"scenario", "codes", "must be", "status after, ms", "attempts", "ended by the proxy")
	for i, r := range rows {
		if r.cells == "" {
			continue
		}
		slices.Sort(r.delays)
		fmt.Fprintf(&table, "%-13s%-16s%-12s%-24s%-10s%s\n", scenarios[i].name, r.cells, scenarios[i].levada,
			fmt.Sprintf("%.1f to %.1f", milliseconds(r.delays[0]), milliseconds(r.delays[len(r.delays)-1])), r.attempts, r.ended)
		all = append(all, r.delays...)
	}
	t.Log(table.String())
	if h.path != levada && h.path != "direct" || len(all) == 0 {
		return
	}
	slices.Sort(all)
	if median := all[len(all)/2]; median > soon {
		t.Errorf("half of the calls had their status later than %v after the fault, want %v", median, soon)
	}
}

// What goes wrong in other paths is seen here at each run: a status that is not the fault's, and a call that is made twice.
func TestPeers(t *testing.T) {
	clients := startClients(t)
	for path, name := range map[string]string{"direct": "rst", "nginx": "rst", "haproxy": "u_rst"} {
		t.Run(path+" "+name, func(t *testing.T) {
			t.Parallel()
			i := slices.IndexFunc(scenarios, func(s scenario) bool { return s.name == name })
			h := &harness{path: path, clients: clients}
			t.Log(h.run(t, &scenarios[i], func() {}).cells)
		})
	}
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

func (h *harness) run(t *testing.T, s *scenario, ready func()) row {
	r := &run{scenario: s, channel: h.path + " " + s.name}
	if r.patience == (patience{}) {
		r.patience = usual
	}
	var backend string
	if s.nobody != "" {
		backend = nobody[s.nobody](t)
	} else {
		r.process, backend = startBackend(t, s.backend)
		r.relay = startRelay(t, backend)
		backend = r.relay.addr()
	}
	r.proxy = open(t, h.path, backend, r.patience, s.args...)
	ready()
	h.ready.Wait()

	if !s.calm {
		h.quiet.Lock()
		defer h.quiet.Unlock()
	}
	r.begin(t, h)
	if s.strike != nil {
		r.struck = s.strike(r, t)
	}
	for _, c := range r.calls {
		c.end = c.process.await(t, c.id, "end", timely)
	}
	r.next(t, h)
	for _, p := range h.clients {
		p.send(t, order{Op: "close", Channel: r.channel})
	}
	return r.judge(t, h.path)
}

// begin makes the calls of all clients, and returns when all are where the fault is to meet them.
func (r *run) begin(t *testing.T, h *harness) {
	t.Helper()
	for _, name := range clientNames {
		p := h.clients[name]
		if p == nil {
			continue
		}
		if r.nobody == "" || h.path != "direct" { // the clients' connections are not what is timed
			p.send(t, order{Op: "connect", Channel: r.channel, Target: r.proxy.addr, Within: (timely / 4).Milliseconds()})
			p.await(t, r.channel, "connected", timely)
		}
		for i := range callsEach {
			r.calls = append(r.calls, &call{id: fmt.Sprintf("%s %s %d", r.channel, name, i), client: name, process: p})
		}
	}
	deadline, path := r.deadline, streamPath
	if deadline == 0 {
		deadline = timely
	}
	if r.unary {
		path = pendingPath
	}
	for _, c := range r.calls {
		c.process.send(t, order{Op: "call", ID: c.id, Channel: r.channel, Target: r.proxy.addr, Path: path, Unary: r.unary, Deadline: deadline.Milliseconds()})
	}
	for _, c := range r.calls {
		switch {
		case r.nobody != "":
		case r.unary:
			r.process.await(t, c.id, "call", timely)
		default:
			c.process.await(t, c.id, "message", timely)
		}
	}
}

// next makes one more call for each client: a fault that is over is over.
func (r *run) next(t *testing.T, h *harness) {
	t.Helper()
	if r.lasting || r.process == nil || h.path != levada && h.path != "direct" {
		return
	}
	for _, p := range h.clients {
		p.send(t, order{Op: "call", ID: r.channel + " next", Channel: r.channel, Target: r.proxy.addr, Path: quickPath, Unary: true, Deadline: timely.Milliseconds() / 2})
	}
	for name, p := range h.clients {
		if end := p.await(t, r.channel+" next", "end", timely); end.Code != 0 {
			t.Errorf("the next call of %s ended with %d (%s), want 0", name, end.Code, end.Text)
		}
	}
}

// judge compares what clients and backend saw with what they should have.
func (r *run) judge(t *testing.T, path string) row {
	var out row
	attempts := map[int]bool{}
	codes, ended := map[string][]string{}, []string{}
	for _, c := range r.calls {
		codes[c.client] = append(codes[c.client], fmt.Sprint(c.end.Code))
		ended = append(ended, c.end.Ended)
		from := r.struck
		if r.from != nil {
			from = r.from(r, c)
		}
		out.delays = append(out.delays, micros(c.end.At-from))
		if r.process != nil {
			attempts[r.process.count(c.id, "call")] = true
		}
		if c.end.Wrong != "" {
			t.Errorf("%s: %s", c.id, c.end.Wrong)
		}
		if path != levada && (path != "direct" || r.direct != r.levada) { // nobody can do better than direct, where that is right
			continue
		}
		if delay := micros(c.end.At - from); delay > soon+slack {
			t.Errorf("%s: the status came %v after it was due, want %v and at most %v more on a busy machine", c.id, delay, soon, slack)
		} else if delay < -soon-r.early {
			t.Errorf("%s: the status came %v before it was due", c.id, -delay)
		}
		if wrong := r.by.wrong(path, c.end.Ended); wrong != "" {
			t.Errorf("%s: %s (%d %s)", c.id, wrong, c.end.Code, c.end.Text)
		}
		if r.strike != nil && r.process != nil && c.end.Code == 1 { // cancelled: the backend gets the reset
			if at := r.process.await(t, c.id, "return", timely).At; micros(at-r.struck) > soon+slack {
				t.Errorf("%s: the backend heard of the cancellation after %v", c.id, micros(at-r.struck))
			}
		}
	}
	if first, last := slices.Min(out.delays), slices.Max(out.delays); path == levada && last-first < r.spread {
		t.Errorf("all calls ended within %v, want them apart by %v or more", last-first, r.spread)
	}
	out.cells, out.attempts, out.ended = cells(codes), fmt.Sprint(sorted(attempts)), strings.Join(slices.Compact(slices.Sorted(slices.Values(ended))), " ")
	want, once := expand(r.want(path), codes), true
	if r.want(path) == twice {
		want, once = out.cells, false
	}
	if out.cells != want {
		t.Errorf("codes %s, want %s: %s", out.cells, want, r.texts())
	}
	if r.process != nil && once != (out.attempts == "[1]") {
		t.Errorf("the backend was called %s times for each call, want once: %v", out.attempts, once)
	}
	return out
}

// texts are the different messages of the statuses.
func (r *run) texts() string {
	var all []string
	for _, c := range r.calls {
		all = append(all, fmt.Sprintf("%s %d %q", c.client, c.end.Code, c.end.Text))
	}
	slices.Sort(all)
	return strings.Join(slices.Compact(all), ", ")
}

// cells are the codes by client, as 14 if all are the same, or as 14/13/2.
func cells(codes map[string][]string) string {
	var all []string
	for _, name := range clientNames {
		each := slices.Compact(slices.Sorted(slices.Values(codes[name])))
		if len(each) == 0 {
			each = []string{"-"}
		}
		all = append(all, strings.Join(each, "+"))
	}
	if each := slices.Compact(slices.Clone(all)); len(each) == 1 {
		return each[0]
	}
	return strings.Join(all, "/")
}

// expand is a wanted cell as cells would write it, given that some clients may be left out.
func expand(want string, codes map[string][]string) string {
	each := strings.Split(want, "/")
	wanted := map[string][]string{}
	for i, name := range clientNames {
		if codes[name] != nil {
			wanted[name] = []string{each[min(i, len(each)-1)]}
		}
	}
	return cells(wanted)
}

func sorted(set map[int]bool) []int {
	var all []int
	for n := range set {
		all = append(all, n)
	}
	slices.Sort(all)
	return all
}
