package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/levada-io/levada/internal/dataplane/redislink"
	"github.com/levada-io/levada/internal/standalone"
	"github.com/levada-io/levada/internal/testnats"
	"github.com/levada-io/levada/internal/testredis"
)

// vertexManifest has three vertices. %d is how many lines a second the source reads.
const vertexManifest = `
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
metadata: {name: parts}
spec:
  limits: {readBatchSize: 50, bufferMaxLength: 1000, bufferUsageLimit: 80}
  vertices:
    - name: in
      limits: {rateLimit: {max: %d}}
      source: {file: {path: in.txt, follow: true}}
    - name: cat
      partitions: 2
      udf: {builtin: {name: cat}}
    - name: out
      sink: {file: {path: out.txt}}
  edges:
    - {from: in, to: cat}
    - {from: cat, to: out}
`

// vertices is a pipeline of which each vertex is run by a process.
type vertices struct {
	*example
	flags []string // that name the broker
	at    standalone.Broker
}

func newVertices(t *testing.T, rate, lines int) *vertices {
	t.Helper()
	e := ends(t, "none", inputLines("line", lines))
	e.write(t, e.name, fmt.Sprintf(vertexManifest, rate))
	return &vertices{example: e}
}

func overNATS(t *testing.T, rate, lines int) *vertices {
	t.Helper()
	v := newVertices(t, rate, lines)
	v.at.NATS = testnats.Server(t).DSN()
	v.flags = []string{"--nats", v.at.NATS}
	return v
}

// onEachBroker runs a test with each kind of broker.
func onEachBroker(t *testing.T, test func(t *testing.T, newVertices func(rate, lines int) *vertices)) {
	t.Run("NATS", func(t *testing.T) {
		test(t, func(rate, lines int) *vertices { return overNATS(t, rate, lines) })
	})
	t.Run("Redis", func(t *testing.T) {
		test(t, func(rate, lines int) *vertices {
			v := newVertices(t, rate, lines)
			url := testredis.Server(t).DSN()
			address, err := redislink.ParseAddress(url)
			if err != nil {
				t.Fatal(err)
			}
			v.at.Redis = &redislink.Config{Address: address}
			v.flags = []string{"--redis", url}
			return v
		})
	})
}

// vertex starts the process of a vertex.
func (v *vertices) vertex(t *testing.T, name string, flags ...string) *running {
	t.Helper()
	return v.startCommand(t, slices.Concat([]string{"vertex", v.name, "--vertex", name}, v.flags, flags)...)
}

// delivered is how many lines the sink has written.
func (v *vertices) delivered() int {
	b, _ := os.ReadFile(filepath.Join(v.dir, "out.txt"))
	return strings.Count(string(b), "\n")
}

// pending is how many messages the buffer of a vertex holds, as its reader has saved it.
func (v *vertices) pending(t *testing.T, name string) (n int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	buffers, err := standalone.OpenBuffers(ctx, "", v.at)
	if err != nil {
		t.Fatal(err)
	}
	defer buffers.Close()
	all, err := buffers.List(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range all {
		if b.Vertex == name {
			n += b.Pending
		}
	}
	return n
}

// exactlyOnce checks that each of n different lines was delivered once.
func (v *vertices) exactlyOnce(t *testing.T, n int) {
	t.Helper()
	got := v.count(t, "out.txt")
	if len(got) != n {
		t.Errorf("%d different lines in out.txt, want %d", len(got), n)
	}
	for line, times := range got {
		if times != 1 {
			t.Errorf("%q is there %d times", line, times)
		}
	}
}

// terminate ends a process that finishes what it has begun.
func (r *running) terminate(t *testing.T) {
	t.Helper()
	r.signal(t, syscall.SIGTERM)
	r.exits(t, 0)
	r.says(t, "nothing of it is unfinished")
}

// TestVerticesInProcessesOfTheirOwn moves numbered lines through three processes, each of which is killed while data flows, and one is stopped in good order. Each
// line comes out exactly once. A second process of a vertex waits, and takes over the moment the first one is killed.
func TestVerticesInProcessesOfTheirOwn(t *testing.T) { onEachBroker(t, verticesInProcessesOfTheirOwn) }

func verticesInProcessesOfTheirOwn(t *testing.T, newVertices func(rate, lines int) *vertices) {
	const n, more = 9000, 500
	v := newVertices(1500, n)
	in := v.vertex(t, "in") // before the buffers exist that it writes to
	cat, out := v.vertex(t, "cat"), v.vertex(t, "out")
	out.until(t, func() bool { return v.delivered() > n/12 })
	standby := v.vertex(t, "out", "--data", filepath.Join(v.dir, "standby"))
	standby.until(t, func() bool { return standby.said("vertex is run by another process, waiting") == 1 })
	out.kill(t)
	standby.until(t, func() bool { return standby.said("vertex started") > 0 })
	if lines := standby.said("waiting"); lines != 1 {
		t.Errorf("the wait is %d lines, want 1:\n%s", lines, standby.stderr.String())
	}
	out = standby
	after := func(lines int) { out.until(t, func() bool { return v.delivered() > lines }) }
	after(n * 3 / 12)
	in.kill(t)
	in = v.vertex(t, "in")
	after(n * 5 / 12)
	cat.kill(t)
	cat = v.vertex(t, "cat")
	after(n * 7 / 12)
	out.terminate(t)
	out = v.vertex(t, "out")
	v.appendTo(t, "in.txt", inputLines("last", more)) // all processes work after they have started, however slow this machine is
	after(n + more - 1)
	for _, r := range []*running{in, cat, out} {
		r.terminate(t)
	}
	v.exactlyOnce(t, n+more)
}

// TestProcessesOfAVertexShareItsPartitions: they divide them, one that is killed or stopped leaves its share to the others, and one of the same name replaces another. Each
// line comes out exactly once.
func TestProcessesOfAVertexShareItsPartitions(t *testing.T) {
	onEachBroker(t, processesOfAVertexShareItsPartitions)
}

func processesOfAVertexShareItsPartitions(t *testing.T, newVertices func(rate, lines int) *vertices) {
	const n, more = 6000, 500
	v := newVertices(1500, n)
	in, cat, out := v.vertex(t, "in"), v.vertex(t, "cat"), v.vertex(t, "out")
	after := func(lines int) { out.until(t, func() bool { return v.delivered() > lines }) }
	after(n / 12)
	shards := len(v.owners(t, "cat")) // two partitions, which a broker may divide
	second := v.vertex(t, "cat", "--name", "second")
	second.until(t, func() bool { return second.said("partition taken") == shards/2 })
	cat.until(t, func() bool { return cat.said("partition released") == shards/2 })
	ofSecond := 0
	for _, owner := range v.owners(t, "cat") {
		if strings.Contains(owner, "second, epoch ") {
			ofSecond++
		} else if owner == "" {
			t.Error("a shard has no owner")
		}
	}
	if ofSecond != shards/2 {
		t.Errorf("%d of %d shards are owned by the second process", ofSecond, shards)
	}
	after(n * 3 / 12)
	cat.kill(t)
	second.until(t, func() bool { return second.said("partition taken") == shards })
	third := v.vertex(t, "cat", "--name", "third")
	third.until(t, func() bool { return third.said("partition taken") > 0 })
	second.terminate(t)
	third.until(t, func() bool { return third.said("partition taken") == shards })
	v.appendTo(t, "in.txt", inputLines("stopped", more))
	after(n + more - 1)
	again := v.vertex(t, "cat", "--name", "third", "--data", filepath.Join(v.dir, "again"))
	third.exits(t, 1)
	third.says(t, "another process")
	again.until(t, func() bool { return again.said("partition taken") == shards })
	v.appendTo(t, "in.txt", inputLines("replaced", more))
	after(n + 2*more - 1)
	in.terminate(t)
	out.terminate(t)
	beside := v.start(t, v.flags...) // a process that shares a vertex excludes the whole pipeline like one that has it alone
	beside.exits(t, 1)
	beside.says(t, "vertex cat is run by process", "nothing was changed")
	again.terminate(t)
	v.exactlyOnce(t, n+2*more)
}

// owners are those of the partitions of a vertex, or of their shards, as levada buffers shows them.
func (v *vertices) owners(t *testing.T, name string) (owners []string) {
	t.Helper()
	d := json.NewDecoder(strings.NewReader(v.levada(t, append([]string{"buffers", "list", "-o", "json"}, v.flags...)...)))
	for d.More() {
		var b standalone.BufferView
		if err := d.Decode(&b); err != nil {
			t.Fatal(err)
		}
		switch {
		case b.Vertex != name:
		case len(b.Shards) == 0:
			owners = append(owners, b.Owner)
		}
		for _, s := range b.Shards {
			if b.Vertex == name {
				owners = append(owners, s.Owner)
			}
		}
	}
	return owners
}

// said counts what a process has logged.
func (r *running) said(what string) int { return strings.Count(r.stderr.String(), what) }

// TestAFullBufferBetweenProcessesBlocksAndGoesOn: nothing reads, and the writer, in another process, stops at the limit. When the reader comes, it goes on.
func TestAFullBufferBetweenProcessesBlocksAndGoesOn(t *testing.T) {
	onEachBroker(t, aFullBufferBetweenProcessesBlocksAndGoesOn)
}

func aFullBufferBetweenProcessesBlocksAndGoesOn(t *testing.T, newVertices func(rate, lines int) *vertices) {
	const n, limit, block = 8000, 800, 500
	v := newVertices(1000000, n)
	cat := v.vertex(t, "cat")
	out := v.vertex(t, "out") // cat starts once out has created its buffer
	cat.until(t, func() bool { return strings.Contains(cat.stderr.String(), "vertex started") })
	cat.terminate(t)
	in := v.vertex(t, "in")
	in.until(t, func() bool { return v.pending(t, "cat") >= limit })
	// It is blocked, and not slow: in ten more looks nothing is added, and far less than the input is stored. Two partitions have a limit each.
	last, same := -1, 0
	in.until(t, func() bool {
		now := v.pending(t, "cat")
		if same++; now != last {
			last, same = now, 0
		}
		return same == 10
	})
	if last > 2*(limit+2*block) {
		t.Errorf("%d messages are stored, and the limit is %d for each of two partitions", last, limit)
	}
	if got := v.delivered(); got != 0 {
		t.Errorf("%d lines are delivered, though nothing reads the first buffer", got)
	}
	cat = v.vertex(t, "cat")
	out.until(t, func() bool { return v.delivered() >= n })
	for _, r := range []*running{in, cat, out} {
		r.terminate(t)
	}
	v.exactlyOnce(t, n)
}

// TestAVertexAndAWholeRunExcludeEachOther: they would take each other's messages. A vertex with another manifest is refused, too, and each refusal says why.
func TestAVertexAndAWholeRunExcludeEachOther(t *testing.T) {
	onEachBroker(t, aVertexAndAWholeRunExcludeEachOther)
}

func aVertexAndAWholeRunExcludeEachOther(t *testing.T, newVertices func(rate, lines int) *vertices) {
	v := newVertices(100, 1)
	out := v.vertex(t, "out")
	out.until(t, func() bool { return strings.Contains(out.stderr.String(), "vertex started") })
	refused := func(r *running, why ...string) {
		t.Helper()
		r.exits(t, 1)
		r.says(t, why...)
	}
	refused(v.start(t, v.flags...), "vertex out is run by process", "nothing was changed")
	changed := strings.Replace(v.read(t, v.name), "partitions: 2", "partitions: 3", 1)
	v.write(t, "changed.yaml", changed)
	refused(v.startCommand(t, append([]string{"vertex", "changed.yaml", "--vertex", "cat"}, v.flags...)...), "vertex out is run by process", "need the same manifest")
	// The probes answer for the vertex.
	_, address, _ := strings.Cut(out.stderr.String(), "address=")
	address, _, _ = strings.Cut(address, " ")
	out.until(t, func() bool {
		res, err := http.Get("http://" + strings.TrimSpace(address) + "/readyz")
		if err != nil {
			return false
		}
		defer res.Body.Close()
		return res.StatusCode == http.StatusNoContent
	})
	out.terminate(t)
	run := v.start(t, v.flags...)
	run.until(t, func() bool { return v.delivered() == 1 })
	refused(v.vertex(t, "out"), "already run by process", "levada run", "nothing was changed")
	run.stop(t)
	out = v.vertex(t, "out") // the whole run has ended
	out.until(t, func() bool { return strings.Contains(out.stderr.String(), "vertex started") })
	out.terminate(t)
	if got := v.delivered(); got != 1 {
		t.Errorf("%d lines in out.txt, want 1", got)
	}
}
