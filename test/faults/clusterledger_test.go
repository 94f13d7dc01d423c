package faults

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

const (
	// goOnWithin is how long levada may take to go on once the brokers are whole again. It includes a start of levada, if that was killed, too.
	goOnWithin = 10 * time.Second
	// stuckAfter ends a test that does not go on.
	stuckAfter = 90 * time.Second
)

// clusterManifest has a function that is slower than the source, so that there are always messages in the buffers.
const clusterManifest = shortMemory + `
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
      source: {file: {path: in.txt}}
    - name: slow
      partitions: 2
      udf: {container: {command: [%[2]s, %[3]s, 2ms, "%[4]d"]}}
    - name: out
      sink: {file: {path: out.txt}}
  edges:
    - {from: in, to: slow}
    - {from: slow, to: out}
`

// clusterRun is a pipeline on a cluster of three brokers with three replicas.
type clusterRun struct {
	killing
	*cluster
	perSecond int

	whole                          time.Duration // the longest that the brokers took to be whole again
	goOn                           []time.Duration
	brokerKills, cuts, damagedBits int
}

// fault is something that goes wrong, and its end.
type fault struct {
	name  string
	begin func(t *testing.T, r *clusterRun) (end func())
}

// TestClusterLedger moves numbered lines over a cluster of three brokers, with three replicas of everything, while brokers, connections, functions and levada itself
// fail, one sort of fault after the other and all of them together. Each line comes out once; levada never ends by itself before everything has come out; and
// once the cluster is whole it goes on within ten seconds.
func TestClusterLedger(t *testing.T) {
	for _, c := range []struct {
		name    string
		faults  []fault
		seconds int // of work in a round of faults
		long    bool
	}{
		{name: "brokers are killed and frozen", faults: []fault{killBrokers, freezeBrokers}, seconds: 3},
		{name: "brokers, levada and functions are killed", faults: []fault{killBrokers, killLevada, freezeLevada, killFunction}, seconds: 3},
		{name: "rolling restarts", faults: []fault{rollingRestart}, seconds: 14},
		{name: "connections are cut", faults: []fault{cutConnections, cutOften, stallConnections}, seconds: 6},
		{name: "a replica is damaged", faults: []fault{damageReplica}, seconds: 3},
		{name: "everything", faults: []fault{killBrokers, killLevada, killFunction, freezeLevada, freezeBrokers, rollingRestart, cutConnections, cutOften, stallConnections, damageReplica}, seconds: 7, long: true},
	} {
		if c.long && ledgerLines < longLedger {
			continue // each of these faults has a case of its own; together they take the machine of `make faults` to itself
		}
		t.Run(c.name, func(t *testing.T) {
			t.Parallel() // most of the time is spent waiting for elections
			runClusterLedger(t, c.faults, c.seconds)
		})
	}
}

// longLedger is the number of lines from which on a run is one of `make faults`.
const longLedger = 500_000

func runClusterLedger(t *testing.T, faults []fault, seconds int) {
	r := &clusterRun{cluster: startCluster(t), perSecond: 1000}
	rounds := max(3, ledgerKills*3/5)
	r.lines = max(ledgerLines/10, rounds*seconds*r.perSecond)
	r.random = rand.New(rand.NewPCG(seed, 3))
	t.Logf("LEDGER_SEED=%d", seed)
	r.startLevada(t, fmt.Sprintf(clusterManifest, 4*r.perSecond, self(t), slowProgram, r.perSecond*2/1000))
	begun := time.Now()
	r.awaitGoOn(t, 0, time.Minute)
	done := 0
	for ; done < rounds; done++ {
		select {
		case err := <-r.ended:
			r.ended <- err
		case <-time.After(time.Duration(100+r.random.IntN(1500)) * time.Millisecond):
			r.round(t, faults)
			continue
		}
		break
	}
	select {
	case err := <-r.ended:
		r.levada.checkExits(t)
		if err != nil {
			t.Fatalf("levada did not come to its end: %v", err)
		}
	case <-time.After(time.Duration(3*r.lines/r.perSecond)*time.Second + time.Minute):
		t.Fatalf("levada did not come to its end within %v:\n%s", time.Since(begun), r.levada.tail())
	}
	r.check(t, plain, nothing)
	slices.Sort(r.goOn)
	kills, exits := r.levada.counts()
	t.Logf("%d lines in %v; %d rounds; brokers killed %d, connections cut %d, levada killed %d, functions killed %d, bits flipped %d, ends by itself %d",
		r.lines, time.Since(begun).Round(time.Second), done, r.brokerKills, r.cuts, kills, r.functionKills, r.damagedBits, exits)
	if len(r.goOn) > 0 {
		t.Logf("time to go on once the brokers are whole: median %v, longest %v; brokers whole within %v", r.goOn[len(r.goOn)/2], r.goOn[len(r.goOn)-1], r.whole)
	}
	if done < (rounds+1)/2 {
		t.Errorf("levada came to its end after %d of %d rounds: the run was too short", done, rounds)
	}
}

// startLevada is start on the cluster.
func (r *clusterRun) startLevada(t *testing.T, text string) {
	t.Helper()
	r.dir = t.TempDir()
	r.ledger = newLedger(t, r.dir, r.lines, plain)
	r.data, r.file = filepath.Join(r.dir, "data"), filepath.Join(r.dir, "pipeline.yaml")
	r.write(t, text)
	args := []string{"run", r.file, "--data", r.data, "--quiet", "--log-format", "text", "--nats", r.url(), "--replicas", "3"}
	levada := program(t, "levada")
	r.levada = &supervisor{
		name:    "levada",
		command: func() *exec.Cmd { return exec.Command(levada, args...) },
		pause:   func() time.Duration { return 100 * time.Millisecond },
	}
	if os.Getenv("LEDGER_VERBOSE") != "" {
		r.levada.log = os.Stderr
	}
	r.ended = r.background(t, t.Context(), r.levada)
}

// round lets one to three faults happen at the same time for a while, ends them, waits until the brokers are whole and levada goes on.
func (r *clusterRun) round(t *testing.T, faults []fault) {
	t.Helper()
	n := 1 + r.random.IntN(min(3, len(faults)))
	var names []string
	var ends []func()
	for _, i := range r.random.Perm(len(faults))[:n] {
		names = append(names, faults[i].name)
		ends = append(ends, faults[i].begin(t, r))
	}
	time.Sleep(time.Duration(100+r.random.IntN(3000)) * time.Millisecond) // how long the faults last
	for _, end := range ends {
		end()
	}
	for _, n := range r.nodes { // one that another fault of this round has left as it found it
		if n.cmd == nil {
			n.start(t)
		}
	}
	restored := time.Now()
	r.awaitWhole(t)
	r.whole = max(r.whole, time.Since(restored).Round(time.Millisecond))
	before := r.size()
	took := r.awaitGoOn(t, before, stuckAfter)
	r.goOn = append(r.goOn, took)
	if took > goOnWithin {
		t.Errorf("%s: levada took %v to go on once the brokers were whole, which is more than %v", strings.Join(names, " and "), took, goOnWithin)
	}
	t.Logf("%-60s whole after %6v, goes on after %6v", strings.Join(names, " and "), time.Since(restored).Round(time.Millisecond)-took, took)
}

// awaitGoOn waits until more has come out than before, or levada has ended with 0. It returns how long that took.
func (r *clusterRun) awaitGoOn(t *testing.T, before int64, most time.Duration) time.Duration {
	t.Helper()
	begun := time.Now()
	for r.size() <= before {
		select {
		case err := <-r.ended:
			r.ended <- err
			if err != nil {
				r.levada.checkExits(t)
				t.Fatal(err)
			}
			return time.Since(begun).Round(time.Millisecond)
		case <-time.After(20 * time.Millisecond):
		}
		if time.Since(begun) > most {
			r.levada.checkExits(t)
			t.Fatalf("nothing came out for %v though the brokers are whole:\n%s", most, r.levada.tail())
		}
	}
	return time.Since(begun).Round(time.Millisecond)
}

// some returns one, two or all of the nodes that run, in random order.
func (r *clusterRun) some() []*node {
	n := 1 + r.random.IntN(len(r.nodes))
	var nodes []*node
	for _, i := range r.random.Perm(len(r.nodes))[:n] {
		if r.nodes[i].cmd != nil {
			nodes = append(nodes, r.nodes[i])
		}
	}
	return nodes
}

var (
	killBrokers = fault{"brokers killed", func(t *testing.T, r *clusterRun) func() {
		nodes := r.some()
		for _, n := range nodes {
			n.stop(syscall.SIGKILL)
			r.brokerKills++
		}
		return func() {
			for _, n := range nodes {
				if n.cmd == nil {
					n.start(t)
				}
			}
		}
	}}

	freezeBrokers = fault{"brokers frozen", func(_ *testing.T, r *clusterRun) func() {
		nodes := r.some()
		for _, n := range nodes {
			n.freeze()
		}
		return func() {
			if r.random.IntN(3) == 0 {
				time.Sleep(time.Duration(5+r.random.IntN(10)) * time.Second) // longer than elections
			}
			for _, n := range nodes {
				n.thaw()
			}
		}
	}}

	// rollingRestart restarts the brokers one after the other in good order, and waits for each as a StatefulSet does.
	rollingRestart = fault{"rolling restart", func(t *testing.T, r *clusterRun) func() {
		signal := []syscall.Signal{syscall.SIGTERM, syscall.SIGUSR2}[r.random.IntN(2)]
		return func() {
			for _, n := range r.nodes {
				n.thaw()
				n.stop(signal)
				n.start(t)
				r.awaitWhole(t)
			}
		}
	}}

	cutConnections = fault{"connections cut", func(_ *testing.T, r *clusterRun) func() {
		var shut []*relay
		for _, n := range r.some() {
			n.relay.shut(true)
			r.cuts++
			shut = append(shut, n.relay)
		}
		return func() {
			for _, relay := range shut {
				relay.shut(false)
			}
		}
	}}

	// cutOften cuts connections that can be made again at once, as a proxy or a firewall does.
	cutOften = fault{"connections cut again and again", func(_ *testing.T, r *clusterRun) func() {
		for range 3 + r.random.IntN(8) {
			for _, n := range r.nodes {
				n.relay.cut()
			}
			r.cuts++
			time.Sleep(time.Duration(50+r.random.IntN(400)) * time.Millisecond)
		}
		return func() {}
	}}

	stallConnections = fault{"connections stalled", func(_ *testing.T, r *clusterRun) func() {
		var stalled []*relay
		for _, n := range r.some() {
			n.relay.stall(true)
			r.cuts++
			stalled = append(stalled, n.relay)
		}
		return func() {
			for _, relay := range stalled {
				relay.stall(false)
			}
		}
	}}

	killLevada = fault{"levada killed", func(_ *testing.T, r *clusterRun) func() {
		r.levada.kill()
		return func() {
			if r.random.IntN(2) == 0 {
				r.levada.kill()
			}
		}
	}}

	killFunction = fault{"function killed", func(_ *testing.T, r *clusterRun) func() {
		r.functionKills += killFunctions(r.data)
		return func() { r.functionKills += killFunctions(r.data) }
	}}

	freezeLevada = fault{"levada frozen", func(_ *testing.T, r *clusterRun) func() {
		r.levada.signal(syscall.SIGSTOP)
		return func() { r.levada.signal(syscall.SIGCONT) }
	}}

	// damageReplica flips bits in what one broker has stored, and makes that broker the leader while levada does not run. The two others have everything.
	damageReplica = fault{"replica damaged", func(t *testing.T, r *clusterRun) func() {
		return func() {
			for _, n := range r.nodes {
				n.thaw()
				if n.cmd == nil {
					n.start(t)
				}
			}
			r.awaitWhole(t)
			release := r.levada.hold()
			defer release()
			// It is always the same one: damage to a second one, before the first was rebuilt, could be in the only copy that was left.
			victim := r.nodes[seed%uint64(len(r.nodes))]
			victim.stop([]syscall.Signal{syscall.SIGTERM, syscall.SIGKILL}[r.random.IntN(2)])
			r.damagedBits += victim.damage(t, r.random, 4096)
			victim.start(t)
			r.damaged = victim
			r.awaitWhole(t)
			r.lead(t, victim)
		}
	}}
)
