package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/levada-io/levada/internal/standalone"
	"github.com/levada-io/levada/internal/testnats"
)

// generatorManifest has a source that makes more than its limit lets pass.
const generatorManifest = `
apiVersion: numaflow.numaproj.io/v1alpha1
kind: Pipeline
metadata: {name: parts}
spec:
  vertices:
    - name: in
      limits: {rateLimit: {max: 400}}
      source: {generator: {rpu: 1000, duration: 1s}}
    - name: cat
      partitions: 2
      udf: {builtin: {name: cat}}
    - name: out
      sink: {file: {path: out.txt}}
  edges:
    - {from: in, to: cat}
    - {from: cat, to: out}
`

func ofManifest(t *testing.T, text string) *vertices {
	t.Helper()
	v := &vertices{example: ends(t, "none", "")}
	v.write(t, v.name, text)
	v.at.NATS = testnats.Server(t).DSN()
	v.flags = []string{"--nats", v.at.NATS}
	return v
}

// TestProcessesOfASourceShareItsRateLimit: three generators, of which one is killed and comes back and one leaves its number to another, make at most as much as one may.
// Each message comes out once, and none is left out.
func TestProcessesOfASourceShareItsRateLimit(t *testing.T) {
	onEachBroker(t, processesOfASourceShareItsRateLimit)
}

func processesOfASourceShareItsRateLimit(t *testing.T, newVertices func(rate, lines int) *vertices) {
	const perSecond = 400
	v := newVertices(1, 0)
	v.write(t, v.name, generatorManifest)
	out := v.vertex(t, "out")
	cat := v.vertex(t, "cat")
	join := func(name string) *running { // one after the other, so that they have the numbers 0, 1 and 2
		r := v.vertex(t, "in", "--name", name)
		r.until(t, func() bool { return r.said("vertex started") > 0 })
		return r
	}
	a, b, c := join("a"), join("b"), join("c")
	grows := func(by int) (took time.Duration) {
		begun, before := time.Now(), v.delivered()
		out.until(t, func() bool { return v.delivered() >= before+by })
		return time.Since(begun)
	}
	grows(1)
	// Three times as much would pass if each counted for itself.
	const measured = 10 * perSecond
	took := grows(measured)
	t.Logf("%d messages of three processes in %v, with a limit of %d a second", measured, took.Round(time.Millisecond), perSecond)
	if most := 1.3 * perSecond; measured/took.Seconds() > most {
		t.Errorf("%.0f messages a second came out, and the limit of all processes together is %d", measured/took.Seconds(), perSecond)
	}
	a.kill(t)
	grows(perSecond)
	a = join("a")
	b.terminate(t)
	d := join("d")
	d.until(t, func() bool { return d.said("number=1") > 0 || strings.Contains(d.stderr.String(), `"number":1`) })
	grows(2 * perSecond)
	for _, r := range []*running{a, c, d} {
		r.terminate(t)
	}
	last := -1
	out.until(t, func() bool { // what was written is delivered
		before := last
		last = v.pending(t, "cat") + v.pending(t, "out")
		return last == 0 && before == 0
	})
	cat.terminate(t)
	out.terminate(t)
	b2, err := os.ReadFile(filepath.Join(v.dir, "out.txt"))
	if err != nil {
		t.Fatal(err)
	}
	seen, highest := map[string]int{}, map[string]int{}
	for line := range strings.Lines(string(b2)) {
		var m struct{ ID string }
		if err := json.Unmarshal([]byte(line), &m); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		seen[m.ID]++
		partition, number, _ := strings.Cut(m.ID, "-")
		var n int
		if _, err := fmt.Sscan(number, &n); err != nil {
			t.Fatal(err)
		}
		highest[partition] = max(highest[partition], n)
	}
	if len(highest) != 3 {
		t.Errorf("there are messages of %d processes, want those of the numbers 0, 1 and 2: %v", len(highest), highest)
	}
	all := 0
	for _, n := range highest {
		all += n
	}
	if all != len(seen) {
		t.Errorf("%d different messages came out, and %d were made: %v", len(seen), all, highest)
	}
	for id, n := range seen {
		if n != 1 {
			t.Errorf("%s came out %d times", id, n)
		}
	}
}

// poisonManifest has a function that some messages make fail.
const poisonManifest = `
apiVersion: numaflow.numaproj.io/v1alpha1
kind: Pipeline
metadata: {name: parts}
spec:
  limits: {readBatchSize: 50}
  vertices:
    - name: in
      source: {file: {path: in.txt, follow: true}}
    - name: cat
      partitions: 2
      udf:
        container: {command: [../bin/functions/poison]}
        retryStrategy: {backoff: {steps: 1}, onFailure: retry}
    - name: out
      partitions: 2
      sink: {file: {path: out.txt}}
  edges:
    - {from: in, to: cat}
    - {from: cat, to: out}
`

// TestDeadLettersAndBuffersOfSharedVertices: while two processes run a vertex, a command that reaches the broker lists dead letters of both, replays and drops them, and
// shows the buffers.
func TestDeadLettersAndBuffersOfSharedVertices(t *testing.T) {
	v := ofManifest(t, poisonManifest)
	const bad = 20
	padding := strings.Repeat("x", 1000) // 64 KiB in a row go to one partition
	var input strings.Builder
	for i := range 200 {
		if i%10 == 0 {
			fmt.Fprintf(&input, "%d panic %s\n", i, padding)
		} else {
			fmt.Fprintf(&input, "%d good %s\n", i, padding)
		}
	}
	all := []*running{v.vertex(t, "in"), v.vertex(t, "cat", "--name", "one"), v.vertex(t, "cat", "--name", "two"), v.vertex(t, "out")}
	for _, r := range all[1:3] {
		r.until(t, func() bool { return r.said("partition taken") > 0 })
	}
	v.appendTo(t, "in.txt", input.String())
	all[3].until(t, func() bool { return v.delivered() == 200-bad })
	type letter struct {
		Pipeline, Name, Vertex string
		Failure                struct{ Reason string }
	}
	letters := func() (found []letter) {
		for line := range strings.Lines(v.levada(t, append([]string{"deadletters", "list", "-o", "json"}, v.flags...)...)) {
			var l letter
			if err := json.Unmarshal([]byte(line), &l); err != nil {
				t.Fatal(err)
			}
			found = append(found, l)
		}
		return found
	}
	all[1].until(t, func() bool { return len(letters()) == bad })
	found := letters()
	for _, l := range found {
		if l.Vertex != "cat" || l.Failure.Reason != "panic" {
			t.Errorf("a dead letter of vertex %s, with the reason %s", l.Vertex, l.Failure.Reason)
		}
	}
	for name, said := range map[string]int{"one": all[1].said("dead-lettered"), "two": all[2].said("dead-lettered")} {
		if said == 0 {
			t.Errorf("process %s has dead-lettered nothing", name)
		}
	}
	// The process that has the partition dead-letters it again.
	v.levada(t, append([]string{"deadletters", "replay", found[0].Pipeline + "/" + found[0].Name}, v.flags...)...)
	all[1].until(t, func() bool { return len(letters()) == bad })
	v.levada(t, append([]string{"deadletters", "drop", found[1].Pipeline + "/" + found[1].Name}, v.flags...)...)
	all[1].until(t, func() bool { return len(letters()) == bad-1 })
	owners := strings.Join(v.owners(t, "cat"), "\n")
	for _, name := range []string{"one, epoch ", "two, epoch "} {
		if !strings.Contains(owners, name) {
			t.Errorf("the owners of the shards are\n%s\nand %q is not among them", owners, name)
		}
	}
	ctx := t.Context()
	buffers, err := standalone.OpenBuffers(ctx, "", v.at)
	if err != nil {
		t.Fatal(err)
	}
	defer buffers.Close()
	views, err := buffers.List(ctx)
	if err != nil || len(views) < 4 { // shards of two partitions of two vertices
		t.Fatalf("%d buffers: %v", len(views), err)
	}
	for i := range views {
		if _, err := buffers.Drop(ctx, views[i]); err == nil || !strings.Contains(err.Error(), "run by") {
			t.Errorf("the buffer %s is dropped although processes run its vertex: %v", views[i].Name(), err)
		}
	}
	for _, r := range all {
		r.terminate(t)
	}
}
