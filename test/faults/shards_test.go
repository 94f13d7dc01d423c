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
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/levada-io/levada/internal/testserver"
)

// sharedManifest has a vertex that several processes share, and a file sink, which one has at a time.
const sharedManifest = shortMemory + `
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
      partitions: %[3]d
      udf: {container: {command: [%[2]s]}}
    - name: out
      partitions: 2
      sink: {file: {path: out.txt}}
  edges:
    - {from: in, to: cat}
    - {from: cat, to: out}
`

const (
	// The vertex that is shared has one partition, which is divided into sharedShards for at most mostMembers processes.
	sharedPartitions = 1
	sharedShards     = 8
	mostMembers      = 6
	// isolatedFor is longer than an election, and than processes keep their shards without the broker.
	isolatedFor = 8 * time.Second
	// frozenFor is longer than the lease of a process, with the time that others wait for a store which does not expire it.
	frozenFor = 7500 * time.Millisecond
	// outOfLease is longer than that without a process of a name.
	outOfLease = 7 * time.Second
)

// sharedRun is a pipeline whose vertices are run by several processes each.
type sharedRun struct {
	killing
	url            string
	brokers        *cluster                   // nil for a single one
	sources, sinks []*member                  // of the source and of the sink
	members        map[string]*member         // of the vertex cat, by name
	resumed        map[string][]time.Duration // from a fault of the brokers until lines come out again, by the fault
	moves          moves
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
	// in is how many messages each process has read that has ended in order; nil if nobody asks.
	in map[string]int
}

// owners are the processes that were the last to take a shard, in the order of their names.
func (m *moves) owners() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Compact(slices.Sorted(maps.Values(m.owner)))
}

// read is how many messages a process has read.
func (m *moves) read(name string) int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.in[name]
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

// lost notes that a process gave a shard up that was not taken from it: it has not reached the broker.
func (m *moves) lost(name, shard string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, left := m.left[shard]; m.owner[shard] == name && !left {
		m.left[shard] = departure{"broker away", time.Now()}
	}
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
	if end := sharedIn.FindStringSubmatch(text); end != nil && m.in != nil {
		n, _ := strconv.Atoi(end[1]) // digits
		m.mu.Lock()
		m.in[name] += n
		m.mu.Unlock()
	}
	found := shardOf.FindStringSubmatch(text)
	switch {
	case found == nil:
	case strings.Contains(text, "partition taken"):
		m.taken(name, found[1])
	case strings.Contains(text, "partition released"):
		m.released(name, found[1])
	case strings.Contains(text, "partition lost"):
		m.lost(name, found[1])
	}
}

// TestSharedVertexLedger moves numbered lines through a vertex that two to six processes share, while these are killed, stopped in order, frozen for longer than their lease
// and go on, join and leave; source and sink have a second process that takes over. With three brokers one that leads is killed, one is cut off from the others and from
// clients, and all are killed at once. Each line comes out once.
func TestSharedVertexLedger(t *testing.T) {
	for _, c := range []struct {
		name  string
		three bool // brokers, with three replicas
	}{
		{"one broker", false},
		{"three brokers", true},
	} {
		t.Run(c.name, func(t *testing.T) { runShared(t, c.three) })
	}
}

func newSharedRun() *sharedRun {
	return &sharedRun{
		members: map[string]*member{}, resumed: map[string][]time.Duration{},
		moves: moves{left: map[string]departure{}, owner: map[string]string{}, took: map[string][]time.Duration{}, ready: map[string]bool{}},
	}
}

func runShared(t *testing.T, three bool) {
	r := newSharedRun()
	faults := memberFaults
	if three {
		faults = append(slices.Clone(brokerFaults), faults...)
	}
	rounds, seconds := max(len(faults), ledgerKills), 5 // of work in a round
	r.lines = max(ledgerLines/2, rounds*seconds*1000)
	if three {
		r.lines = rounds * seconds * 500 // the brokers alone take half of what CI has
		if ledgerLines >= longLedger {
			r.lines, seconds = ledgerLines, 10
		}
	}
	r.random = rand.New(rand.NewPCG(seed, 5))
	t.Logf("LEDGER_SEED=%d", seed)
	r.dir = t.TempDir()
	r.ledger = newLedger(t, r.dir, r.lines, plain)
	r.file = filepath.Join(r.dir, "pipeline.yaml")
	r.write(t, fmt.Sprintf(sharedManifest, max(500, r.lines/(rounds*seconds)), program(t, "cat"), sharedPartitions))
	if three {
		r.brokers = startDivisibleCluster(t)
		r.url = r.brokers.url()
	} else {
		address := testserver.FreeAddress(t)
		r.url = "nats://" + address
		r.background(t, t.Context(), &supervisor{name: "broker", command: func() *exec.Cmd {
			return exec.Command(program(t, "levada"), "broker", "--data", filepath.Join(r.dir, "broker"), "--listen", address)
		}})
		waitFor(t, address)
	}
	r.begin(t)
	if three {
		r.checkReplicas(t)
	}
	r.breakUntilDone(t, faults, rounds)
}

// begin starts the processes, and returns once all shards are read.
func (r *sharedRun) begin(t *testing.T) {
	t.Helper()
	r.sources = []*member{r.start(t, "in", "in-a"), r.start(t, "in", "in-b")}
	r.sinks = []*member{r.start(t, "out", "out-a"), r.start(t, "out", "out-b")}
	r.join(t, "a")
	r.join(t, "b")
	r.working(t)
	r.until(t, "all shards are read", r.allRead)
}

// breakUntilDone causes one fault after the other, all of them first and then at random, until all lines are out. It ends the processes then, and checks that each line came out once.
func (r *sharedRun) breakUntilDone(t *testing.T, faults []sharedFault, rounds int) {
	t.Helper()
	begun, done := time.Now(), map[string]int{}
	for n := 0; n < rounds || r.lineCount(t) < r.lines; n++ {
		f := faults[n%len(faults)]
		if n >= len(faults) {
			f = faults[r.random.IntN(len(faults))]
		}
		how := f(t, r)
		done[how]++
		before, ended := r.size(), time.Now()
		r.until(t, "lines come out after: "+how, func() bool { return r.size() > before || r.lineCount(t) >= r.lines })
		r.resumed[how] = append(r.resumed[how], time.Since(ended))
		if r.brokers != nil {
			r.brokers.awaitWhole(t)
		}
		r.until(t, "all shards are read after: "+how, r.allRead)
		if time.Since(begun) > 30*time.Minute*time.Duration(1+r.lines/longLedger) {
			t.Fatal("the run does not come to its end")
		}
	}
	r.until(t, "all lines are out", func() bool { return r.lineCount(t) >= r.lines })
	for name := range r.members {
		r.leave(t, name)
	}
	for _, m := range append(slices.Clone(r.sources), r.sinks...) {
		r.terminate(t, m)
	}
	if r.broker != nil {
		r.broker.checkExits(t)
	}
	r.check(t, plain, nothing)
	t.Logf("%d lines in %v; %v", r.lines, time.Since(begun).Round(time.Second), done)
	logTimes(t, "a shard is read again after", r.moves.took)
	logTimes(t, "lines come out again after", r.resumed)
}

// logTimes logs how long something took, by its cause.
func logTimes(t *testing.T, what string, took map[string][]time.Duration) {
	t.Helper()
	for _, how := range slices.Sorted(maps.Keys(took)) {
		all := took[how]
		slices.Sort(all)
		t.Logf("%s: %-28s %4d times, median %8v, longest %8v", what, how, len(all), all[len(all)/2].Round(time.Millisecond), all[len(all)-1].Round(time.Millisecond))
	}
}

// allRead reports whether each shard has a process that reads it.
func (r *sharedRun) allRead() bool { return r.moves.owned() == sharedShards }

// checkReplicas: everything has three replicas, without a flag.
func (r *sharedRun) checkReplicas(t *testing.T) {
	t.Helper()
	conn, js := r.brokers.client(t)
	defer conn.Close()
	streams := js.ListStreams(t.Context())
	for info := range streams.Info() {
		if info.Config.Replicas != 3 {
			t.Errorf("stream %s has %d replicas", info.Config.Name, info.Config.Replicas)
		}
	}
	if err := streams.Err(); err != nil {
		t.Error(err)
	}
}

// start starts a process of a vertex under a supervisor.
func (r *sharedRun) start(t *testing.T, vertex, name string) *member {
	t.Helper()
	args := []string{"vertex", r.file, "--vertex", vertex, "--name", name, "--nats", r.url, "--data", filepath.Join(r.dir, "data-"+name), "--log-format", "text"}
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

// sharedFault lets something go wrong, and returns what. Each comes once, and then at random.
type sharedFault func(t *testing.T, r *sharedRun) string

var memberFaults = []sharedFault{
	func(t *testing.T, r *sharedRun) string {
		if len(r.members) == mostMembers {
			r.leave(t, r.member(t).name)
			return "SIGTERM"
		}
		return r.joinAnother(t)
	},
	func(t *testing.T, r *sharedRun) string {
		m := r.member(t)
		r.moves.stopped(m.name, "SIGKILL, again at once")
		m.kill()
		return "SIGKILL"
	},
	func(t *testing.T, r *sharedRun) string {
		m := r.member(t)
		r.moves.stopped(m.name, "SIGSTOP")
		m.signal(syscall.SIGSTOP)
		time.Sleep(frozenFor) // the fault itself
		m.signal(syscall.SIGCONT)
		return "SIGSTOP"
	},
	func(t *testing.T, r *sharedRun) string {
		if len(r.members) < 3 {
			return r.joinAnother(t)
		}
		r.leave(t, r.member(t).name)
		return "SIGTERM"
	},
	func(t *testing.T, r *sharedRun) string {
		m := r.member(t)
		r.moves.stopped(m.name, "SIGKILL, for longer")
		release := m.hold()
		time.Sleep(outOfLease) // the fault itself
		release()
		return "SIGKILL for longer"
	},
	func(t *testing.T, r *sharedRun) string {
		others := append(slices.Clone(r.sources), r.sinks...)
		m := others[r.random.IntN(len(others))]
		r.awaitReady(t, m)
		r.moves.stopped(m.name, "SIGKILL")
		m.kill()
		return "source or sink killed"
	},
}

// brokerFaults end before they return: the brokers that were stopped run again, and need not be whole.
var brokerFaults = []sharedFault{
	func(t *testing.T, r *sharedRun) string {
		n := r.brokers.leader(t)
		n.stop(syscall.SIGKILL)
		r.pause(3 * time.Second)
		n.start(t)
		return "leader killed"
	},
	func(t *testing.T, r *sharedRun) string {
		n := r.brokers.nodes[r.random.IntN(3)]
		how := "a follower or no leader cut off"
		if n == r.brokers.leader(t) {
			how = "a leader cut off"
		}
		n.isolate(true)
		time.Sleep(isolatedFor) // the fault itself
		n.isolate(false)
		return how
	},
	func(t *testing.T, r *sharedRun) string {
		for _, n := range r.brokers.nodes {
			n.stop(syscall.SIGKILL)
		}
		r.pause(time.Second)
		for _, n := range r.brokers.nodes {
			n.start(t)
		}
		return "all brokers killed"
	},
}

// pause is a part of a fault: how long something is down.
func (r *sharedRun) pause(most time.Duration) {
	time.Sleep(time.Duration(r.random.Int64N(int64(most))))
}

// member is a random process of the shared vertex, which runs.
func (r *sharedRun) member(t *testing.T) *member {
	t.Helper()
	names := slices.Sorted(maps.Keys(r.members))
	m := r.members[names[r.random.IntN(len(names))]]
	r.awaitReady(t, m)
	return m
}

func (r *sharedRun) joinAnother(t *testing.T) string {
	t.Helper()
	for i := 0; ; i++ {
		if name := string(rune('a' + i)); r.members[name] == nil {
			r.join(t, name)
			r.until(t, "the new member runs", func() bool { return r.moves.isReady(name) })
			return "a process joined"
		}
	}
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

// sharedIn is what the last line of a process says of the messages that it has read.
var sharedIn = regexp.MustCompile(`nothing of it is unfinished.* in=(\d+)`)

// TestOnePartitionIsReadByFourProcesses: a vertex has one partition, which its four processes share. All of them work, also after one is killed, one is stopped in order, and one joins.
// Each line comes out once.
func TestOnePartitionIsReadByFourProcesses(t *testing.T) {
	r := newSharedRun()
	r.moves.in = map[string]int{}
	r.lines, r.dir = 30000, t.TempDir()
	r.ledger = newLedger(t, r.dir, r.lines, plain)
	r.file = filepath.Join(r.dir, "pipeline.yaml")
	r.write(t, fmt.Sprintf(sharedManifest, r.lines/20, program(t, "cat"), sharedPartitions))
	address := testserver.FreeAddress(t)
	r.url = "nats://" + address
	r.background(t, t.Context(), &supervisor{name: "broker", command: func() *exec.Cmd {
		return exec.Command(program(t, "levada"), "broker", "--data", filepath.Join(r.dir, "broker"), "--listen", address)
	}})
	waitFor(t, address)
	in, out := r.start(t, "in", "in"), r.start(t, "out", "out")
	for _, name := range []string{"a", "b", "c", "d"} {
		r.join(t, name)
	}
	even := func(names ...string) func() bool {
		return func() bool { return r.allRead() && slices.Equal(r.moves.owners(), names) }
	}
	r.until(t, "all four read", even("a", "b", "c", "d"))
	before := r.lineCount(t)
	r.until(t, "lines come out", func() bool { return r.lineCount(t) > before+2000 })
	r.moves.stopped("a", "SIGKILL, for longer")
	release := r.members["a"].hold()
	r.until(t, "the others read all", even("b", "c", "d"))
	release()
	r.leave(t, "b")
	r.join(t, "e")
	r.until(t, "the four that run read", even("a", "c", "d", "e"))
	r.until(t, "all lines are out", func() bool { return r.lineCount(t) >= r.lines })
	for _, name := range []string{"a", "c", "d", "e"} {
		r.leave(t, name)
	}
	r.terminate(t, in)
	r.terminate(t, out)
	r.check(t, plain, nothing)
	for _, name := range []string{"a", "b", "c", "d", "e"} {
		if r.moves.read(name) == 0 {
			t.Errorf("process %s has read nothing", name)
		}
	}
	t.Logf("messages read by each process that ended in order: %v", r.moves.in)
}
