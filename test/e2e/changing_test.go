package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/levada-io/levada/internal/testnats"
)

// slow makes a vertex leave messages in its buffer: the first 300 pass at once, and then 300 a second.
const slow = "limits: {rateLimit: {max: 300}}"

const (
	vIn      = "{name: in, source: {file: {path: in.txt}}}"
	vCat     = "{name: cat, udf: {builtin: {name: cat}}}"
	vSlowCat = "{name: cat, udf: {builtin: {name: cat}}, " + slow + "}"
	vOut     = "{name: out, sink: {file: {path: out.txt}}}"
	vSlowOut = "{name: out, sink: {file: {path: out.txt}}, " + slow + "}"
	inCatOut = "in cat; cat out"
)

// pipeline writes a manifest. edges are pairs of names, the second perhaps with more of the edge.
func pipeline(name, edges string, vertices ...string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "apiVersion: numaflow.numaproj.io/v1alpha1\nkind: Pipeline\nmetadata: {name: %s}\nspec:\n  vertices:\n", name)
	for _, v := range vertices {
		fmt.Fprintf(&b, "    - %s\n", v)
	}
	b.WriteString("  edges:\n")
	for e := range strings.SplitSeq(edges, "; ") {
		from, rest, _ := strings.Cut(e, " ")
		fmt.Fprintf(&b, "    - {from: %s, to: %s}\n", from, rest)
	}
	return b.String()
}

func words(edges string, vertices ...string) string { return pipeline("words", edges, vertices...) }

// change is a row of docs/changing-a-pipeline.md: a pipeline is stopped with messages in flight, its manifest is changed, and it is started again.
type change struct {
	row           string // its first cell in the table
	before, after string
	killed        bool // stopped with SIGKILL instead of SIGTERM
	// refused is what the refusal says; empty if the change is accepted as it is. with are the flags that make it possible then; none if the old manifest must be used.
	refused string
	with    []string
	// files hold every line of in.txt, all together once each, if it is not said otherwise. All is how often each line must be there then; 0 for once.
	files []string
	each  bool // in each file, not in all together
	extra int  // lines of other.txt
}

var changes = []change{
	{
		row: "Rename a vertex", before: words(inCatOut, vIn, vSlowCat, vOut), after: words("in kitty; kitty out", vIn, "{name: kitty, udf: {builtin: {name: cat}}}", vOut),
		refused: "vertex cat, partition 0, ", with: []string{"--drain-old"},
	},
	{
		row: "Rename a sink vertex", before: words(inCatOut, vIn, vCat, vSlowOut), after: words("in cat; cat end", vIn, vCat, "{name: end, sink: {file: {path: end.txt}}}"),
		refused: "vertex out, partition 0, ", with: []string{"--drain-old"}, files: []string{"out.txt", "end.txt"},
	},
	{
		row: "Remove a vertex", before: words(inCatOut, vIn, vSlowCat, vOut), after: words("in out", vIn, vOut),
		refused: "vertex cat, partition 0, ", with: []string{"--drain-old"},
	},
	{
		row: "Add a vertex or an edge", before: words(inCatOut, vIn, vSlowCat, vOut), after: words("in cat; cat out; cat copy", vIn, vCat, vOut, "{name: copy, sink: {blackhole: {}}}"),
	},
	{
		row: "Remove an edge", before: words("in cat; cat out; cat copy", vIn, vSlowCat, vOut, "{name: copy, sink: {file: {path: copy.txt}}}"),
		after:   words(inCatOut, vIn, vCat, vOut),
		refused: "edge cat -> copy", with: []string{"--drain-old"}, files: []string{"out.txt", "copy.txt"}, each: true,
	},
	{
		row: "Change the condition of an edge", before: words("in cat; cat out, conditions: {tags: {operator: not, values: [x]}}", vIn, vSlowCat, vOut), after: words(inCatOut, vIn, vCat, vOut),
		refused: "the condition of edge cat -> out", with: []string{"--drain-old"},
	},
	{
		row: "Fewer partitions", before: words(inCatOut, vIn, strings.Replace(vSlowCat, "udf", "partitions: 4, udf", 1), vOut), after: words(inCatOut, vIn, vCat, vOut),
		refused: "vertex cat has 1 partition instead of 4", with: []string{"--drain-old"},
	},
	{
		row: "More partitions", before: words(inCatOut, vIn, vSlowCat, vOut), after: words(inCatOut, vIn, strings.Replace(vCat, "udf", "partitions: 4, udf", 1), vOut),
	},
	{
		row: "More partitions, after a crash", before: words(inCatOut, vIn, vSlowCat, vOut), after: words(inCatOut, vIn, strings.Replace(vCat, "udf", "partitions: 4, udf", 1), strings.Replace(vOut, "sink", "partitions: 3, sink", 1)),
		killed: true, refused: "was not stopped in an orderly way", with: []string{"--drain-old"},
	},
	{
		row: "Turn `ordered` on, or change the partitions of an ordered vertex", before: words(inCatOut, vIn, strings.Replace(vSlowCat, "udf", "partitions: 2, udf", 1), vOut),
		after:   words(inCatOut, vIn, strings.Replace(vCat, "udf", "partitions: 2, ordered: {enabled: true}, udf", 1), vOut),
		refused: "overtake", with: []string{"--drain-old"},
	},
	{
		row: "Functions, images, environment, limits, retries, compression, `onFull`", before: words(inCatOut, vIn, vSlowCat, vOut),
		after: words("in cat, onFull: retryUntilSuccess; cat out", vIn, "{name: cat, udf: {builtin: {name: cat}}, limits: {readBatchSize: 7, bufferMaxLength: 1000}}", vOut) + "  interStepBuffer: {compression: {type: zstd}}\n",
	},
	{
		row: "Read another file", before: words(inCatOut, vIn, vSlowCat, vOut), after: words(inCatOut, strings.Replace(vIn, "in.txt", "other.txt", 1), vCat, vOut), extra: 10,
	},
	{
		row: "Read another file, after a crash", before: words(inCatOut, vIn, vSlowCat, vOut), after: words(inCatOut, strings.Replace(vIn, "in.txt", "other.txt", 1), vCat, vOut),
		killed: true, refused: "source in reads file", with: []string{"--drain-old"}, extra: 10,
	},
	{
		row: "Rename a source", before: words(inCatOut, vIn, vSlowCat, vOut), after: words("ear cat; cat out", strings.Replace(vIn, "name: in", "name: ear", 1), vCat, vOut),
		refused: "call the vertex in again",
	},
	{
		row: "Write to another file", before: words(inCatOut, vIn, vCat, vSlowOut), after: words(inCatOut, vIn, vCat, strings.Replace(vOut, "out.txt", "out2.txt", 1)),
		files: []string{"out.txt", "out2.txt"},
	},
	{
		row: "Write to another file, after a crash", before: words(inCatOut, vIn, vCat, vSlowOut), after: words(inCatOut, vIn, vCat, strings.Replace(vOut, "out.txt", "out2.txt", 1)),
		killed: true, refused: "the sink of out is file", with: []string{"--drain-old"}, files: []string{"out.txt", "out2.txt"},
	},
	{
		row: "Rename the pipeline, in the same data directory", before: words(inCatOut, vIn, vSlowCat, vOut), after: pipeline("phrases", inCatOut, vIn, vCat, vOut),
		refused: "Call it words again",
	},
	{
		row: "Nothing, after a crash", before: words(inCatOut, vIn, vSlowCat, vOut), after: words(inCatOut, vIn, vCat, vOut), killed: true,
	},
}

const linesIn = 900

// newChange makes a directory with input files.
func newChange(t *testing.T) *example {
	t.Helper()
	bin, err := programs()
	if err != nil {
		t.Fatal(err)
	}
	root := t.TempDir()
	if err := os.Symlink(bin, filepath.Join(root, "bin")); err != nil {
		t.Fatal(err)
	}
	e := &example{dir: filepath.Join(root, "work"), name: "p.yaml"}
	if err := os.Mkdir(e.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	e.write(t, "in.txt", inputLines("line", linesIn))
	e.write(t, "other.txt", inputLines("other", 10))
	return e
}

// inputLines are long enough to be spread over partitions, which take 64 KiB of a file in turn.
func inputLines(name string, n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "%s %d %s\n", name, i, strings.Repeat(".", 500))
	}
	return b.String()
}

func (e *example) write(t *testing.T, name, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(e.dir, name), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// count counts the lines of files by their beginning.
func (e *example) count(t *testing.T, files ...string) map[string]int {
	t.Helper()
	all := map[string]int{}
	for _, f := range files {
		b, err := os.ReadFile(filepath.Join(e.dir, f))
		if err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(b)) {
			all[strings.SplitN(line, " .", 2)[0]]++
		}
	}
	return all
}

// exact checks that each line is there times times.
func exact(t *testing.T, what string, got map[string]int, times, extra int) {
	t.Helper()
	lost, more := 0, 0
	check := func(key string) {
		if got[key] < times {
			lost++
		}
		if got[key] > times {
			more++
		}
		delete(got, key)
	}
	for i := range linesIn {
		check(fmt.Sprintf("line %d", i))
	}
	for i := range extra {
		check(fmt.Sprintf("other %d", i))
	}
	if lost > 0 || more > 0 || len(got) > 0 {
		t.Errorf("%s: %d lines lost, %d too often, others: %d", what, lost, more, len(got))
	}
}

// inFlight starts the pipeline and stops it when some of its messages have come through.
func (e *example) inFlight(t *testing.T, kill bool, flags ...string) {
	t.Helper()
	r := e.start(t, flags...)
	r.until(t, func() bool { n := len(e.count(t, "out.txt", "out2.txt")); return n > 0 && n < linesIn })
	if !kill {
		r.stop(t)
		return
	}
	if err := r.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	<-r.ended
	r.over = true
}

// refused runs the pipeline, which must end with exit code 1 and say why.
func (e *example) refused(t *testing.T, why string, flags ...string) string {
	t.Helper()
	r := e.start(t, flags...)
	<-r.ended
	r.over = true
	said := r.stderr.String()
	if code := r.cmd.ProcessState.ExitCode(); code != 1 || !strings.Contains(said, why) {
		t.Fatalf("exit code %d, wanted 1 with %q:\n%s", code, why, said)
	}
	return said
}

// Each row of docs/changing-a-pipeline.md is a case here: what is in flight comes out once, whatever is changed meanwhile.
func TestChangesWhileMessagesAreInFlight(t *testing.T) {
	page, err := os.ReadFile("../../docs/changing-a-pipeline.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range changes {
		if !strings.Contains(string(page), "| "+c.row+" |") {
			t.Errorf("docs/changing-a-pipeline.md has no row %q", c.row)
		}
		t.Run(c.row, func(t *testing.T) {
			t.Parallel()
			e := newChange(t)
			e.write(t, "p.yaml", c.before)
			e.inFlight(t, c.killed)
			e.write(t, "p.yaml", c.after)
			switch {
			case c.refused == "":
				e.run(t)
			case len(c.with) > 0:
				e.refused(t, c.refused)
				e.run(t, c.with...)
			default:
				e.refused(t, c.refused)
				e.refused(t, c.refused, "--drain-old")
				e.write(t, "p.yaml", c.before)
				e.run(t)
			}
			files := c.files
			if files == nil {
				files = []string{"out.txt"}
			}
			if !c.each {
				exact(t, strings.Join(files, " and "), e.count(t, files...), 1, c.extra)
				return
			}
			for _, f := range files {
				exact(t, f, e.count(t, f), 1, c.extra)
			}
		})
	}
}

// A file that was renamed together with the path in the manifest would be read again from its start.
func TestRenamedInputFileIsNotReadTwice(t *testing.T) {
	if page, err := os.ReadFile("../../docs/changing-a-pipeline.md"); err != nil || !strings.Contains(string(page), "| Rename the file that a source reads |") {
		t.Error("the page has no such row", err)
	}
	e := newChange(t)
	e.write(t, "p.yaml", words(inCatOut, vIn, vSlowCat, vOut))
	e.inFlight(t, false)
	move := func(from, to string) {
		if err := os.Rename(filepath.Join(e.dir, from), filepath.Join(e.dir, to)); err != nil {
			t.Fatal(err)
		}
	}
	move("in.txt", "moved.txt")
	e.write(t, "p.yaml", words(inCatOut, strings.Replace(vIn, "in.txt", "moved.txt", 1), vCat, vOut))
	e.refused(t, "give the file its old name again")
	move("moved.txt", "in.txt")
	e.write(t, "p.yaml", words(inCatOut, vIn, vCat, vOut))
	e.run(t)
	exact(t, "out.txt", e.count(t, "out.txt"), 1, 0)
}

func TestDiscardedMessagesAreCounted(t *testing.T) {
	e := newChange(t)
	e.write(t, "p.yaml", words(inCatOut, vIn, vSlowCat, vOut))
	e.inFlight(t, false)
	e.write(t, "p.yaml", words("in kitty; kitty out", vIn, "{name: kitty, udf: {builtin: {name: cat}}}", vOut))
	e.refused(t, "those that do are of: cat", "--discard", "out")
	r := e.run(t, "--discard", "cat", "--log-format", "json")
	dropped := 0
	for line := range strings.Lines(r.stderr.String()) {
		var l struct {
			Message  string
			Messages int
		}
		if json.Unmarshal([]byte(line), &l) == nil && l.Message == "messages discarded" {
			dropped += l.Messages
		}
	}
	got := e.count(t, "out.txt")
	for line, n := range got {
		if n != 1 {
			t.Errorf("%s came %d times", line, n)
		}
	}
	if dropped == 0 || len(got)+dropped != linesIn {
		t.Errorf("%d lines came out and %d were discarded, of %d", len(got), dropped, linesIn)
	}
}

// --discard drops nothing for a manifest that is refused for another reason as well.
func TestDiscardIsAllOrNothing(t *testing.T) {
	e := newChange(t)
	e.write(t, "p.yaml", words(inCatOut, vIn, vSlowCat, vOut))
	e.inFlight(t, true)
	e.write(t, "p.yaml", words("in kitty; kitty out", strings.Replace(vIn, "in.txt", "other.txt", 1), "{name: kitty, udf: {builtin: {name: cat}}}", vOut))
	said := e.refused(t, "Nothing was dropped", "--discard", "cat")
	if strings.Contains(said, "messages discarded") || strings.Contains(said, "for good: levada run --discard") {
		t.Error(said)
	}
	e.write(t, "p.yaml", words(inCatOut, vIn, vCat, vOut))
	e.run(t)
	exact(t, "out.txt", e.count(t, "out.txt"), 1, 0)
}

// A drain that is killed again and again goes on where it was, and the change is made only after it.
func TestDrainOldSurvivesKills(t *testing.T) {
	e := newChange(t)
	e.write(t, "p.yaml", words(inCatOut, vIn, vSlowCat, vOut))
	e.inFlight(t, true)
	e.write(t, "p.yaml", words("in kitty; kitty out", vIn, "{name: kitty, udf: {builtin: {name: cat}}}", vOut))
	for kills := range 3 {
		r := e.start(t, "--drain-old")
		before := len(e.count(t, "out.txt"))
		deadline := time.Now().Add(3 * time.Second)
		for len(e.count(t, "out.txt")) <= before && time.Now().Before(deadline) {
			time.Sleep(time.Duration(kills+1) * 5 * time.Millisecond) // another moment each time
		}
		_ = r.cmd.Process.Kill()
		<-r.ended
		r.over = true
	}
	e.run(t, "--drain-old")
	exact(t, "out.txt", e.count(t, "out.txt"), 1, 0)
}

func TestBuffersCommands(t *testing.T) {
	e := newChange(t)
	e.write(t, "p.yaml", words(inCatOut, vIn, vSlowCat, vOut))
	r := e.start(t)
	r.until(t, func() bool { return len(e.count(t, "out.txt")) > 0 })
	type view struct {
		Namespace, Pipeline, Vertex, Owner string
		Partition, Pending                 int
		Recorded                           bool
	}
	list := func() map[string]view {
		all := map[string]view{}
		for line := range strings.Lines(e.levada(t, "buffers", "list", "--data", ".levada/p", "-o", "json")) {
			var v view
			if err := json.Unmarshal([]byte(line), &v); err != nil {
				t.Fatal(err)
			}
			all[fmt.Sprintf("%s/%s/%s/%d", v.Namespace, v.Pipeline, v.Vertex, v.Partition)] = v
		}
		return all
	}
	if v := list()["default/words/cat/0"]; !strings.Contains(v.Owner, strconv.Itoa(r.cmd.Process.Pid)) || !v.Recorded {
		t.Errorf("while it runs: %+v", v)
	}
	r.stop(t)
	held := list()["default/words/cat/0"]
	if held.Pending == 0 || held.Owner != "" {
		t.Errorf("after it was stopped: %+v", held)
	}
	if out := e.levada(t, "buffers", "show", "words/cat", "--data", ".levada/p"); !strings.Contains(out, fmt.Sprintf("%d messages", held.Pending)) {
		t.Error(out)
	}
	c := e.startCommand(t, "buffers", "drop", "words/cat", "--data", ".levada/p")
	<-c.ended
	if c.over = true; c.cmd.ProcessState.ExitCode() != 2 || !strings.Contains(c.stderr.String(), "--yes") {
		t.Errorf("a drop that nobody confirmed: %s", c.stderr.String())
	}
	came := len(e.count(t, "out.txt"))
	e.levada(t, "buffers", "drain", "words", "--data", ".levada/p")
	if got := len(e.count(t, "out.txt")); got != came+held.Pending {
		t.Errorf("%d lines after the drain, wanted %d", got, came+held.Pending)
	}
	exact(t, "out.txt", e.count(t, "out.txt"), 1, 0)

	e.appendTo(t, "in.txt", inputLines("more", 600))
	e.inFlightMore(t)
	held = list()["default/words/cat/0"]
	out := e.levada(t, "buffers", "drop", "words/cat/0", "--yes", "--data", ".levada/p")
	if want := fmt.Sprintf("%d messages dropped", held.Pending); held.Pending == 0 || !strings.Contains(out, want) {
		t.Errorf("%q, wanted %q", out, want)
	}
	e.run(t)
	if got := len(e.count(t, "out.txt")); got != linesIn+600-held.Pending {
		t.Errorf("%d lines, wanted %d", got, linesIn+600-held.Pending)
	}
}

// inFlightMore is inFlight for lines that were appended.
// The default data directory is named after the first manifest. Under another name the pipeline would read all input again and lose what is in flight.
func TestRenamedManifestDoesNotBeginAnew(t *testing.T) {
	e := newChange(t)
	e.write(t, "p.yaml", words(inCatOut, vIn, vSlowCat, vOut))
	e.inFlight(t, false)
	e.write(t, "p.yaml", words(inCatOut, vIn, vCat, vOut))
	if err := os.Rename(filepath.Join(e.dir, "p.yaml"), filepath.Join(e.dir, "prod.yaml")); err != nil {
		t.Fatal(err)
	}
	e.name = "prod.yaml"
	said := e.refused(t, "That file is gone")
	data := regexp.MustCompile(`--data (\S+) to go on`).FindStringSubmatch(said)
	if data == nil {
		t.Fatalf("the refusal names no way forward:\n%s", said)
	}
	e.run(t, "--data", data[1])
	exact(t, "out.txt", e.count(t, "out.txt"), 1, 0)
}

// The same two files in another order are the same run.
func TestManifestsInAnotherOrderDoNotBeginAnew(t *testing.T) {
	e := newChange(t)
	e.write(t, "a.yaml", words(inCatOut, vIn, vCat, vOut))
	e.write(t, "b.yaml", pipeline("more", inCatOut, strings.Replace(vIn, "in.txt", "other.txt", 1), vCat, strings.Replace(vOut, "out.txt", "out2.txt", 1)))
	run := func(files ...string) (int, string) {
		r := e.startCommand(t, append([]string{"run"}, files...)...)
		<-r.ended
		r.over = true
		return r.cmd.ProcessState.ExitCode(), r.stderr.String()
	}
	if code, said := run("a.yaml", "b.yaml"); code != 0 {
		t.Fatalf("exit code %d:\n%s", code, said)
	}
	if code, said := run("b.yaml", "a.yaml"); code != 1 || !strings.Contains(said, "another command line") {
		t.Fatalf("exit code %d:\n%s", code, said)
	}
	// A copy beside the original is a run of its own.
	e.write(t, "copy.yaml", e.read(t, "a.yaml"))
	if code, said := run("copy.yaml"); code != 0 || !strings.Contains(said, "another data directory holds the same pipeline") {
		t.Fatalf("exit code %d:\n%s", code, said)
	}
	exact(t, "out.txt", e.count(t, "out.txt"), 2, 0)
}

func (e *example) inFlightMore(t *testing.T) {
	t.Helper()
	r := e.start(t)
	r.until(t, func() bool { n := len(e.count(t, "out.txt")); return n > linesIn && n < linesIn+600 })
	r.stop(t)
}

func TestDataDirectoryRemovedReadsAllAgain(t *testing.T) {
	e := newChange(t)
	e.write(t, "p.yaml", words(inCatOut, vIn, vCat, vOut))
	e.run(t)
	if err := os.RemoveAll(filepath.Join(e.dir, ".levada")); err != nil {
		t.Fatal(err)
	}
	e.run(t)
	exact(t, "out.txt", e.count(t, "out.txt"), 2, 0)
}

// Two runs of one pipeline at one broker: the second is refused and names the first, which is not harmed. After kill -9 the next one goes on at once.
func TestSecondRunIsRefusedAndTheFirstGoesOn(t *testing.T) {
	broker := testnats.Server(t)
	e := newChange(t)
	e.write(t, "p.yaml", words(inCatOut, vIn, vSlowCat, vOut))
	at := func(data string) []string { return []string{"--nats", broker.DSN(), "--data", data} }
	r := e.start(t, at("one")...)
	r.until(t, func() bool { return len(e.count(t, "out.txt")) > 0 })
	for range 2 {
		said := e.refused(t, "process "+strconv.Itoa(r.cmd.Process.Pid), at("two")...)
		host, _ := os.Hostname()
		if !strings.Contains(said, "host "+host) || !strings.Contains(said, "started ") {
			t.Error(said)
		}
	}
	if err := r.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	<-r.ended
	r.over = true
	came, began := len(e.count(t, "out.txt")), time.Now()
	r = e.start(t, at("two")...)
	r.until(t, func() bool { return len(e.count(t, "out.txt")) > came })
	t.Logf("went on %v after the restart", time.Since(began).Round(time.Millisecond))
	if took := time.Since(began); took > 8*time.Second {
		t.Errorf("it went on after %v", took)
	}
	r.wait(t)
	exact(t, "out.txt", e.count(t, "out.txt"), 1, 0)
}

func TestStoreOfANewerLevadaIsRefusedWithOneLine(t *testing.T) {
	broker := testnats.Server(t)
	e := newChange(t)
	e.write(t, "p.yaml", words(inCatOut, vIn, vCat, vOut))
	e.run(t, "--nats", broker.DSN(), "--data", "one")
	js := testnats.Connect(t, broker.DSN())
	names := js.KeyValueStoreNames(t.Context())
	var state jetstream.KeyValue
	for name := range names.Name() {
		var err error
		if state, err = js.KeyValue(t.Context(), name); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := state.Put(t.Context(), "topology", []byte(`{"format":99,"levada":"v7.0.0"}`)); err != nil {
		t.Fatal(err)
	}
	said := e.refused(t, "levada v7.0.0", "--nats", broker.DSN(), "--data", "one")
	if got := regexp.MustCompile(`(?m)^levada: .*$`).FindAllString(said, -1); len(got) != 1 || strings.Count(strings.TrimSpace(said), "\nlevada:") > 1 {
		t.Error(said)
	}
}
