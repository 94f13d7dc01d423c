package faults

import (
	"bytes"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/levada-io/levada/internal/testserver"
)

// sharedManifest has a vertex that several processes share, and a file sink, which one has at a time.
const sharedManifest = `
apiVersion: numaflow.numaproj.io/v1alpha1
kind: InterStepBufferService
metadata: {name: default}
spec:
  jetstream:
    version: latest
    bufferConfig: |
      stream: {duplicates: 1s}
---
apiVersion: numaflow.numaproj.io/v1alpha1
kind: Pipeline
metadata:
  name: ledger
  annotations: {levada.io/processing-timeout: 20s}
spec:
  limits: {readBatchSize: 50}
  vertices:
    - name: in
      limits: {rateLimit: {max: %[1]d}}
      source: {file: {path: in.txt, follow: true}}
    - name: cat
      partitions: 4
      udf: {container: {command: [%[2]s]}}
    - name: out
      partitions: 2
      sink: {file: {path: out.txt}}
  edges:
    - {from: in, to: cat}
    - {from: cat, to: out}
`

const (
	// frozenFor is longer than the lease of a process, with the time that others wait for a store which does not expire it.
	frozenFor = 7500 * time.Millisecond
	// outOfLease is longer than that without a process of a name.
	outOfLease = 7 * time.Second
)

// sharedRun is a pipeline whose vertices are run by several processes each.
type sharedRun struct {
	killing
	url      string
	replicas string
	members  map[string]*member // of the vertex cat, by name
	moves    moves
}

// member is a process of a vertex.
type member struct {
	*supervisor
	ended chan error
}

// moves notes when shards were taken and left, as the processes log it.
type moves struct {
	mu sync.Mutex
	// left is when, and how, the owner of a shard was stopped; owner is the last one that took it.
	left  map[string]departure
	owner map[string]string
	took  map[string][]time.Duration // by how
	// ready are the processes that run, or wait for another one, since they were killed last.
	ready map[string]bool
}

type departure struct {
	how string
	at  time.Time
}

// stopped notes that something was done to a process: what it owns, if anything, is left.
func (m *moves) stopped(name, how string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if how != "SIGSTOP" {
		m.ready[name] = false
	}
	for shard, owner := range m.owner {
		if owner == name {
			m.left[shard] = departure{how, time.Now()}
		}
	}
}

func (m *moves) released(name, shard string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.owner[shard] != name {
		return
	}
	if d := m.left[shard]; d.how == "SIGTERM" { // from the signal, too: that includes finishing what is in flight
		m.left[shard] = departure{"SIGTERM, finished", time.Now()}
		m.took["SIGTERM, to finish"] = append(m.took["SIGTERM, to finish"], time.Since(d.at))
		return
	}
	m.left[shard] = departure{"another joined or left", time.Now()}
}

func (m *moves) taken(name, shard string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if d, ok := m.left[shard]; ok {
		m.took[d.how] = append(m.took[d.how], time.Since(d.at))
		delete(m.left, shard)
	}
	m.owner[shard] = name
}

// owned are the shards that processes have which nothing has been done to.
func (m *moves) owned() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.owner) - len(m.left)
}

var shardOf = regexp.MustCompile(`shard=(\S+)`)

// follower passes the log of a process on, line by line.
func (m *moves) follower(name string) io.Writer {
	r, w := io.Pipe()
	go func() { // ends with the test binary: the process writes to it until it ends
		var line []byte
		for b := make([]byte, 4096); ; {
			n, err := r.Read(b)
			line = append(line, b[:n]...)
			for {
				at := bytes.IndexByte(line, '\n')
				if at < 0 {
					break
				}
				m.line(name, string(line[:at]))
				line = line[at+1:]
			}
			if err != nil {
				return
			}
		}
	}()
	return w
}

func (m *moves) isReady(name string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.ready[name]
}

func (m *moves) line(name, text string) {
	if strings.Contains(text, "vertex started") || strings.Contains(text, "waiting until that ends") {
		m.mu.Lock()
		m.ready[name] = true
		m.mu.Unlock()
	}
	found := shardOf.FindStringSubmatch(text)
	switch {
	case found == nil:
	case strings.Contains(text, "partition taken"):
		m.taken(name, found[1])
	case strings.Contains(text, "partition released"):
		m.released(name, found[1])
	}
}

// TestSharedVertexLedger moves numbered lines through a vertex that two to four processes share, while these are killed, stopped in order, frozen for longer than their lease
// and go on, join and leave; source and sink have a second process that takes over. Each line comes out once.
func TestSharedVertexLedger(t *testing.T) {
	for _, c := range []struct {
		name   string
		three  bool // brokers, with three replicas
		rounds int
	}{
		{"one broker", false, max(6, ledgerKills)},
		{"three brokers", true, ledgerKills},
	} {
		if c.three && ledgerLines < longLedger {
			continue // the brokers alone take what CI has
		}
		t.Run(c.name, func(t *testing.T) { runShared(t, c.three, c.rounds) })
	}
}

func runShared(t *testing.T, three bool, rounds int) {
	r := &sharedRun{members: map[string]*member{}, moves: moves{left: map[string]departure{}, owner: map[string]string{}, took: map[string][]time.Duration{}, ready: map[string]bool{}}}
	r.lines = max(ledgerLines/2, rounds*5*1000)
	r.random = rand.New(rand.NewPCG(seed, 5))
	t.Logf("LEDGER_SEED=%d", seed)
	r.dir = t.TempDir()
	r.ledger = newLedger(t, r.dir, r.lines, plain)
	r.file = filepath.Join(r.dir, "pipeline.yaml")
	r.write(t, fmt.Sprintf(sharedManifest, max(1000, r.lines/(rounds*5)), program(t, "cat")))
	if r.replicas = "1"; three {
		r.url, r.replicas = startCluster(t).url(), "3"
	} else {
		address := testserver.FreeAddress(t)
		r.url = "nats://" + address
		r.background(t, t.Context(), &supervisor{name: "broker", command: func() *exec.Cmd {
			return exec.Command(program(t, "levada"), "broker", "--data", filepath.Join(r.dir, "broker"), "--listen", address)
		}})
		waitFor(t, address)
	}
	in := []*member{r.start(t, "in", "in-a"), r.start(t, "in", "in-b")}
	out := []*member{r.start(t, "out", "out-a"), r.start(t, "out", "out-b")}
	r.join(t, "a")
	r.join(t, "b")
	r.working(t)
	r.until(t, "all shards are read", func() bool { return r.moves.owned() == 4 })
	begun, done := time.Now(), map[string]int{}
	for n := 0; n < rounds || r.lineCount(t) < r.lines; n++ {
		how := r.fault(t, n, append(slices.Clone(in), out...))
		done[how]++
		before := r.size()
		r.until(t, "all shards are read after: "+how, func() bool { return r.moves.owned() == 4 })
		r.until(t, "lines come out after: "+how, func() bool { return r.size() > before || r.lineCount(t) >= r.lines })
		if time.Since(begun) > 30*time.Minute*time.Duration(1+r.lines/longLedger) {
			t.Fatal("the run does not come to its end")
		}
	}
	r.until(t, "all lines are out", func() bool { return r.lineCount(t) >= r.lines })
	for name := range r.members {
		r.leave(t, name)
	}
	for _, m := range append(in, out...) {
		r.terminate(t, m)
	}
	r.check(t, plain, nothing)
	t.Logf("%d lines in %v; %v", r.lines, time.Since(begun).Round(time.Second), done)
	for _, how := range slices.Sorted(maps.Keys(r.moves.took)) {
		all := r.moves.took[how]
		slices.Sort(all)
		t.Logf("%-24s %3d moves, median %8v, longest %8v", how, len(all), all[len(all)/2].Round(time.Millisecond), all[len(all)-1].Round(time.Millisecond))
	}
}

// start starts a process of a vertex under a supervisor.
func (r *sharedRun) start(t *testing.T, vertex, name string) *member {
	t.Helper()
	args := []string{"vertex", r.file, "--vertex", vertex, "--name", name, "--nats", r.url, "--replicas", r.replicas, "--data", filepath.Join(r.dir, "data-"+name), "--log-format", "text"}
	s := &supervisor{name: name, command: func() *exec.Cmd { return exec.Command(program(t, "levada"), args...) }, log: r.moves.follower(name)}
	if os.Getenv("LEDGER_VERBOSE") != "" {
		s.log = io.MultiWriter(s.log, os.Stderr)
	}
	if r.redis {
		args = overRedis(args)
	}
	return &member{s, r.background(t, t.Context(), s)}
}

func (r *sharedRun) join(t *testing.T, name string) { r.members[name] = r.start(t, "cat", name) }

// leave ends a member in order.
func (r *sharedRun) leave(t *testing.T, name string) {
	t.Helper()
	m := r.members[name]
	delete(r.members, name)
	r.terminate(t, m)
}

// awaitReady waits until a process runs, or waits for another one: it takes signals then.
func (r *sharedRun) awaitReady(t *testing.T, m *member) {
	t.Helper()
	r.until(t, m.name+" runs, or waits for another process", func() bool { return r.moves.isReady(m.name) })
}

func (r *sharedRun) terminate(t *testing.T, m *member) {
	t.Helper()
	r.awaitReady(t, m)
	r.moves.stopped(m.name, "SIGTERM")
	m.signal(syscall.SIGTERM)
	select {
	case err := <-m.ended:
		if err != nil {
			t.Errorf("%s does not end in order: %v\n%s", m.name, err, m.tail())
		}
	case <-time.After(40 * time.Second):
		t.Errorf("%s does not end:\n%s", m.name, m.tail())
	}
	m.checkExits(t)
}

// fault lets something go wrong. Each sort comes once, and then at random.
func (r *sharedRun) fault(t *testing.T, n int, others []*member) string {
	t.Helper()
	var names []string
	for name := range r.members {
		names = append(names, name)
	}
	slices.Sort(names)
	name := names[r.random.IntN(len(names))]
	m := r.members[name]
	r.awaitReady(t, m)
	sort := n
	if n >= 6 {
		sort = r.random.IntN(6)
	}
	switch {
	case sort == 0 && len(names) < 4, len(names) < 2:
		for i := 0; ; i++ {
			if name := string(rune('a' + i)); r.members[name] == nil {
				r.join(t, name)
				r.until(t, "the new member runs", func() bool { return r.moves.isReady(name) })
				return "a process joined"
			}
		}
	case sort == 1 || sort == 0:
		r.moves.stopped(name, "SIGKILL, again at once")
		m.kill()
		return "SIGKILL"
	case sort == 2:
		r.moves.stopped(name, "SIGSTOP")
		m.signal(syscall.SIGSTOP)
		time.Sleep(frozenFor) // the fault itself
		m.signal(syscall.SIGCONT)
		return "SIGSTOP"
	case sort == 3:
		r.leave(t, name)
		return "SIGTERM"
	case sort == 4:
		r.moves.stopped(name, "SIGKILL, for longer")
		release := m.hold()
		time.Sleep(outOfLease) // the fault itself
		release()
		return "SIGKILL for longer"
	}
	m = others[r.random.IntN(len(others))]
	r.awaitReady(t, m)
	r.moves.stopped(m.name, "SIGKILL")
	m.kill()
	return "source or sink killed"
}

func (r *sharedRun) until(t *testing.T, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(stuckAfter); !is(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			for _, m := range r.members {
				t.Logf("%s:\n%s", m.name, m.tail())
			}
			t.Fatalf("within %v it did not happen that %s; shards: %v, left: %v", stuckAfter, what, r.moves.owner, r.moves.left)
		}
	}
}

// lineCount is how many lines have come out.
func (r *sharedRun) lineCount(t *testing.T) (n int) {
	t.Helper()
	f, err := os.Open(r.out)
	if err != nil {
		return 0
	}
	defer f.Close()
	b := make([]byte, 1<<16)
	for {
		k, err := f.Read(b)
		n += bytes.Count(b[:k], []byte{'\n'})
		if err != nil {
			return n
		}
	}
}
