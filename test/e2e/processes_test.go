package e2e

import (
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/levada-io/levada/internal/testnats"
	"github.com/levada-io/levada/internal/testredis"
)

// processesManifest has a vertex that several processes can run. The first %s are fields of the source's vertex, the second ones of its file.
const processesManifest = `
apiVersion: numaflow.numaproj.io/v1alpha1
kind: Pipeline
metadata: {name: several}
spec:
  limits: {readBatchSize: 50}
  vertices:
    - name: in
      %s
      source: {file: {path: in.txt%s}}
    - name: cat
      partitions: 4
      udf: {builtin: {name: cat}}
    - name: out
      sink: {file: {path: out.txt}}
  edges:
    - {from: in, to: cat}
    - {from: cat, to: out}
`

// several is a pipeline whose vertices levada run starts as processes.
type several struct{ *vertices }

func newSeveral(t *testing.T, ofSource, ofFile string, lines int) several {
	t.Helper()
	e := ends(t, "none", inputLines("line", lines))
	e.write(t, e.name, fmt.Sprintf(processesManifest, ofSource, ofFile))
	return several{&vertices{example: e}}
}

// run starts levada run with processes.
func (s several) run(t *testing.T, processes string, flags ...string) *running {
	t.Helper()
	return s.startCommand(t, append([]string{"run", s.name, "--data", "data", "--processes", processes, "--log-format", "json"}, flags...)...)
}

// pids are the processes of a vertex.
func (s several) pids(t *testing.T, vertex string) (pids []int) {
	t.Helper()
	var c struct{ Address, Token string }
	if json.Unmarshal([]byte(s.read(t, "data/control.json")), &c) != nil {
		return nil
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+c.Address+"/api/v1/status", http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+c.Token)
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil
	}
	defer res.Body.Close()
	var all []struct {
		Vertices []struct {
			Name string
			PIDs []int
		}
	}
	if err := json.NewDecoder(res.Body).Decode(&all); err != nil {
		t.Fatal(err)
	}
	for _, v := range all[0].Vertices {
		if v.Name == vertex {
			pids = v.PIDs
		}
	}
	return pids
}

// running reports whether a process exists and is no zombie.
func processRuns(pid int) bool {
	b, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	return err == nil && !strings.Contains(string(b), ") Z ")
}

// TestAPipelineInSeveralProcessesEndsByItself: its source has an end. Every line comes out once, with the exit code and the last line of a run in one process; a second run
// reads nothing, and a run in one process goes on with its data, and the other way around.
func TestAPipelineInSeveralProcessesEndsByItself(t *testing.T) {
	const n = 20000
	for _, c := range []struct {
		name, processes string
		flags           func(t *testing.T) []string
	}{
		{"embedded", "cat=3", func(*testing.T) []string { return nil }},
		{"NATS", "several/cat=2", func(t *testing.T) []string { return []string{"--nats", testnats.Server(t).DSN()} }},
		{"Redis", "cat=2", func(t *testing.T) []string { return []string{"--redis", testredis.Server(t).DSN()} }},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, flags := newSeveral(t, "", "", n), c.flags(t)
			r := s.run(t, c.processes, flags...)
			r.wait(t)
			r.says(t, "finished after", "read 20,000, delivered 20,000", "nothing is left in buffers")
			s.exactlyOnce(t, n)
			r = s.run(t, c.processes, flags...)
			r.wait(t)
			r.says(t, "read 0, delivered 0", "nothing is left in buffers")
			s.appendTo(t, "in.txt", inputLines("more", 10))
			r = s.startCommand(t, append([]string{"run", s.name, "--data", "data"}, flags...)...)
			r.wait(t)
			r.says(t, "read 10, delivered 10")
			s.appendTo(t, "in.txt", inputLines("again", 10))
			r = s.run(t, c.processes, flags...)
			r.wait(t)
			r.says(t, "read 10, delivered 10")
			s.exactlyOnce(t, n+20)
		})
	}
}

// TestAProcessThatIsKilledIsStartedAgain kills one of each vertex while lines are in flight. Every line comes out once, and the run ends by itself.
func TestAProcessThatIsKilledIsStartedAgain(t *testing.T) {
	const n = 9000
	s := newSeveral(t, "limits: {rateLimit: {max: 3000}}", "", n)
	r := s.run(t, "cat=2")
	for i, vertex := range []string{"cat", "out", "in"} {
		r.until(t, func() bool { return s.delivered() > 1000*(i+1) })
		pids := s.pids(t, vertex)
		if len(pids) == 0 {
			t.Fatalf("no process of %s", vertex)
		}
		if err := syscall.Kill(pids[0], syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		r.until(t, func() bool { return r.said("process ended unexpectedly, starting it again") == i+1 })
	}
	r.wait(t)
	r.says(t, "finished after", "nothing is left in buffers")
	s.exactlyOnce(t, n)
	if !strings.Contains(r.stderr.String(), "killed by signal 9") {
		t.Errorf("the log does not say how the process ended:\n%s", r.stderr.String())
	}
}

// TestLedgerOfProcesses kills processes of random vertices and the run itself, and changes the number of processes, until everything is delivered. Every line comes out once.
func TestLedgerOfProcesses(t *testing.T) {
	const n = 12000
	s := newSeveral(t, "limits: {rateLimit: {max: 2500}}", "", n)
	random := rand.New(rand.NewPCG(3, 17))
	r := s.run(t, "cat=2")
	var ended error
	for step := 0; ; step++ {
		before := s.delivered()
		select {
		case ended = <-r.ended:
			r.over = true
		default:
		}
		if r.over {
			break
		}
		if !s.progresses(r, before+200) {
			continue // the end is near
		}
		vertex := []string{"in", "cat", "out"}[random.IntN(3)]
		switch action := random.IntN(6); action {
		case 0:
			r.kill(t)
			r = s.run(t, "cat=2")
		case 1, 2:
			s.scaleQuietly(t, 1+random.IntN(4))
		default:
			if pids := s.pids(t, vertex); len(pids) > 0 {
				_ = syscall.Kill(pids[random.IntN(len(pids))], syscall.SIGKILL) // it may have ended
			}
		}
	}
	if ended != nil {
		t.Fatalf("the run ended with %v\n%s", ended, r.stderr.String())
	}
	r.says(t, "finished after", "nothing is left in buffers")
	s.exactlyOnce(t, n)
}

// progresses waits until so many lines are delivered. It returns false if the run ends before.
func (s several) progresses(r *running, lines int) bool {
	for s.delivered() < lines {
		select {
		case err := <-r.ended:
			r.ended <- err
			return false
		case <-time.After(10 * time.Millisecond):
		}
	}
	return true
}

// scaleQuietly changes the number of processes, unless the run is ending.
func (s several) scaleQuietly(t *testing.T, n int) {
	t.Helper()
	r := s.startCommand(t, "scale", "several/cat", strconv.Itoa(n), "--data", "data", "--no-wait")
	r.exits(t, 0, 1)
}

// TestSeveralPipelinesInProcesses: each process gets the flags of its pipeline only, log lines say which it is, and what is wrong with a manifest is said once.
func TestSeveralPipelinesInProcesses(t *testing.T) {
	s := newSeveral(t, "", "", 100)
	text := s.read(t, s.name)
	s.write(t, s.name, text+"---"+strings.NewReplacer("several", "other", "out.txt", "other.txt", "{builtin: {name: cat}}", "{container: {image: mine}}").Replace(text)+`---
apiVersion: numaflow.numaproj.io/v1alpha1
kind: MonoVertex
metadata: {name: mono}
spec:
  scale: {min: 3}
  source: {file: {path: in.txt}}
  sink: {file: {path: mono.txt}}
`)
	r := s.run(t, "several/cat=2", "--function", "other/cat=../bin/functions/cat")
	r.wait(t)
	for _, name := range []string{"out.txt", "other.txt", "mono.txt"} {
		if got := s.count(t, name); len(got) != 100 {
			t.Errorf("%s has %d lines, want 100", name, len(got))
		}
	}
	for _, want := range []string{`"process":"several/cat-1"`, `"process":"other/cat-0"`, `"process":"mono/mono-0"`} {
		if r.said(want) == 0 {
			t.Errorf("no line has %s:\n%s", want, r.stderr.String())
		}
	}
	if n := r.said("LV2201"); n != 1 {
		t.Errorf("a warning about the manifest is there %d times:\n%s", n, r.stderr.String())
	}
}

// TestScalingMovesPartitionsAndLosesNothing changes the number of processes while lines are in flight. The number survives a start of the same command line, and another
// number there replaces it.
func TestScalingMovesPartitionsAndLosesNothing(t *testing.T) {
	const n = 12000
	s := newSeveral(t, "limits: {rateLimit: {max: 3000}}", ", follow: true", n)
	r := s.run(t, "cat=1")
	r.until(t, func() bool { return s.delivered() > 500 })
	for _, c := range []struct{ n, was int }{{4, 1}, {2, 4}, {2, 2}, {3, 2}} {
		out := s.levada(t, "scale", "several/cat", strconv.Itoa(c.n), "--data", "data")
		if want := fmt.Sprintf("several/cat: %d processes, %d before", c.n, c.was); !strings.Contains(out, want) {
			t.Errorf("levada scale says %q, want %q", out, want)
		}
		if pids := s.pids(t, "cat"); len(pids) != c.n {
			t.Errorf("%d processes, want %d", len(pids), c.n)
		}
	}
	r.until(t, func() bool { return s.delivered() >= n })
	r.stop(t)
	s.exactlyOnce(t, n)
	for _, c := range []struct {
		flag string
		n    int
	}{{"cat=1", 3}, {"cat=2", 2}, {"in=1", 1}} {
		r = s.run(t, c.flag)
		r.until(t, func() bool { return r.said("run started") == 1 })
		if pids := s.pids(t, "cat"); len(pids) != c.n {
			t.Errorf("%s: %d processes, want %d", c.flag, len(pids), c.n)
		}
		r.stop(t)
	}
}

// TestNoProcessOutlivesARunThatIsKilled: SIGKILL of levada run ends the processes of its vertices, and the next start goes on.
func TestNoProcessOutlivesARunThatIsKilled(t *testing.T) {
	const n = 5000
	s := newSeveral(t, "limits: {rateLimit: {max: 2000}}", "", n)
	r := s.run(t, "cat=2")
	r.until(t, func() bool { return s.delivered() > 500 })
	pids := slices.Concat(s.pids(t, "in"), s.pids(t, "cat"), s.pids(t, "out"))
	if len(pids) != 4 {
		t.Fatalf("processes %v, want 4", pids)
	}
	r.kill(t)
	for deadline := time.Now().Add(10 * time.Second); slices.ContainsFunc(pids, processRuns); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("of the processes %v some still run", pids)
		}
	}
	r = s.run(t, "cat=2")
	r.wait(t)
	s.exactlyOnce(t, n)
}

// TestSignalsEndProcessesInOrder: sources first, sinks last. A second signal ends all of them at once.
func TestSignalsEndProcessesInOrder(t *testing.T) {
	s := newSeveral(t, "limits: {rateLimit: {max: 2000}}", "", 20000)
	r := s.run(t, "cat=2")
	r.until(t, func() bool { return s.delivered() > 500 })
	r.stop(t)
	var order []string
	for line := range strings.Lines(r.stderr.String()) {
		var l struct{ Message, Process string }
		if json.Unmarshal([]byte(line), &l) == nil && l.Message == "vertex stopped, nothing of it is unfinished" {
			order = append(order, l.Process)
		}
	}
	if len(order) == 4 && order[1] > order[2] {
		order[1], order[2] = order[2], order[1]
	}
	same(t, "order of the end", []string{"in-0", "cat-0", "cat-1", "out-0"}, order)
	r.says(t, "stopped after")
}

// TestProcessesRefuseWhatCannotBe: mistakes of the command line are errors before anything runs, and name what to do.
func TestProcessesRefuseWhatCannotBe(t *testing.T) {
	s := newSeveral(t, "", "", 10)
	for flag, want := range map[string]string{
		"cat":             "expected VERTEX=N, for instance cat=4",
		"cat=x":           "expected VERTEX=N",
		"cat=0":           "expected 1 to 100 processes",
		"cart=2":          "no vertex is called cart; the vertices are in, cat, out",
		"in=2":            "vertex in runs as one process",
		"out=2":           "vertex out runs as one process",
		"cat=2,cat=3":     "cat is named twice, with 2 and 3 processes",
		"elsewhere/cat=2": "no vertex is called elsewhere/cat",
	} {
		r := s.run(t, flag)
		r.exits(t, 2)
		if !strings.Contains(r.stderr.String(), want) {
			t.Errorf("--processes %s: it says\n%s\nwant %q", flag, r.stderr.String(), want)
		}
	}
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"several/cat", "2"}, "name the data directory"},
		{[]string{"cat", "2", "--data", "data"}, "expected PIPELINE/VERTEX"},
		{[]string{"several/cat", "none", "--data", "data"}, "expected a number of processes"},
		{[]string{"several/cat", "2", "--data", "data"}, "is not a data directory"},
	} {
		r := s.startCommand(t, append([]string{"scale"}, c.args...)...)
		r.exits(t, 1, 2)
		if !strings.Contains(r.stderr.String(), c.want) {
			t.Errorf("levada scale %v: it says\n%s\nwant %q", c.args, r.stderr.String(), c.want)
		}
	}
}

// TestASecondRunIsRefused: with the same data directory, and with another one at the same broker. The first goes on.
func TestASecondRunIsRefused(t *testing.T) {
	s := newSeveral(t, "limits: {rateLimit: {max: 2000}}", "", 6000)
	at := []string{"--nats", testnats.Server(t).DSN()}
	first := s.run(t, "cat=2", at...)
	first.until(t, func() bool { return s.delivered() > 500 })
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"--data", "data", "--processes", "cat=2"}, "data directory is in use"},
		{[]string{"--data", "other", "--processes", "cat=2"}, "is run by process"},
		{[]string{"--data", "other"}, "is run by process"},
	} {
		r := s.startCommand(t, slices.Concat([]string{"run", s.name}, at, c.args)...)
		r.exits(t, 1)
		if !strings.Contains(r.stderr.String(), c.want) {
			t.Errorf("levada run %v: it says\n%s\nwant %q", c.args, r.stderr.String(), c.want)
		}
	}
	first.wait(t)
	s.exactlyOnce(t, 6000)
	if n := first.said("process ended unexpectedly"); n > 0 {
		t.Errorf("%d processes of the first run ended:\n%s", n, first.stderr.String())
	}
}

// TestScalingSaysWhyItCannot: the errors of levada scale beside a run, and after it.
func TestScalingSaysWhyItCannot(t *testing.T) {
	s := newSeveral(t, "", ", follow: true", 10)
	r := s.run(t, "cat=1")
	r.until(t, func() bool { return s.delivered() == 10 })
	refused := func(want string, args ...string) {
		t.Helper()
		r := s.startCommand(t, append([]string{"scale", "--data", "data"}, args...)...)
		r.exits(t, 1)
		if !strings.Contains(r.stderr.String(), want) {
			t.Errorf("levada scale %v: it says\n%s\nwant %q", args, r.stderr.String(), want)
		}
	}
	refused("pipeline several has no vertex cart; its vertices are cat, in, out", "several/cart", "2")
	refused("no such pipeline nothing here; there are: default/several", "nothing/cat", "2")
	refused("vertex in runs as one process: it has a source", "several/in", "2")
	refused("vertex out runs as one process: it has a sink", "several/out", "2")
	r.stop(t)
	refused("no process runs the pipelines of data", "several/cat", "2")
	r = s.startCommand(t, "run", s.name, "--data", "data")
	r.until(t, func() bool { _, err := os.Stat(filepath.Join(s.dir, "data/control.json")); return err == nil })
	refused("runs all vertices in one process", "several/cat", "2")
	r.stop(t)
}

func fetch(t *testing.T, url string) (code int, text string) {
	t.Helper()
	res, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, string(b)
}

// TestMetricsOfAllProcessesAreAtOneAddress: each series says of which process it is, and the run is ready when all are.
func TestMetricsOfAllProcessesAreAtOneAddress(t *testing.T) {
	s := newSeveral(t, "", ", follow: true", 500)
	r := s.run(t, "cat=2")
	r.until(t, func() bool { return s.delivered() == 500 })
	var c struct{ Address string }
	if err := json.Unmarshal([]byte(s.read(t, "data/control.json")), &c); err != nil {
		t.Fatal(err)
	}
	r.until(t, func() bool {
		code, _ := fetch(t, "http://"+c.Address+"/readyz")
		return code == http.StatusNoContent
	})
	_, text := fetch(t, "http://"+c.Address+"/metrics")
	for _, want := range []string{
		`forwarder_read_total{namespace="default",partition_name="in",pipeline="several",process="in-0",replica="0",vertex="in",vertex_type="Source"} 500`,
		`replica="1",vertex="cat"`, `levada_processes_running{namespace="default",pipeline="several",process="run",vertex="cat"} 2`,
	} {
		if !strings.Contains(text, want) {
			t.Errorf("%s is missing from /metrics:\n%s", want, text)
		}
	}
	r.stop(t)
}
