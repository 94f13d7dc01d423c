package faults

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
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

	"github.com/nats-io/nats.go/jetstream"

	"github.com/levada-io/levada/internal/testserver"
)

// sourcesManifest has a source that several processes read.
const sourcesManifest = shortMemory + `
apiVersion: numaflow.numaproj.io/v1alpha1
kind: Pipeline
metadata:
  name: ledger
  annotations: {levada.io/processing-timeout: 20s}
spec:
  limits: {readBatchSize: 50}
  vertices:
    - name: in
      limits: {rateLimit: {max: %[3]d}}
      source: {%[1]s}
    - name: cat
      partitions: 4
      udf: {container: {command: [%[2]s]}}
    - name: out
      sink: {file: {path: out.txt}}
  edges:
    - {from: in, to: cat}
    - {from: cat, to: out}
`

// sharedMonoManifest reads a stream and writes another, whose window of duplicates is longer than the run.
const sharedMonoManifest = `
apiVersion: numaflow.numaproj.io/v1alpha1
kind: MonoVertex
metadata: {name: in}
spec:
  limits: {readBatchSize: 50, rateLimit: {max: %[2]d}}
  source: {jetstream: {url: %[1]s, stream: ORDERS}}
  sink: {jetstream: {url: %[1]s, stream: OUT, subject: out}}
`

// sourcesRun is a pipeline whose source is read by several processes.
type sourcesRun struct {
	killing
	url     string
	members map[string]*member // of the vertices in and cat, by name: VERTEX-LETTER
	logs    map[string]*logLines
	done    map[string]int // faults
	look    func()         // is called while something is waited for; nil for nothing
	came    func() int     // how many lines have come out; nil: those of the file
}

// logLines keeps what a process has logged since it was started last, or was killed.
type logLines struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *logLines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(b)
}

func (l *logLines) forget() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.text.Reset()
}

func (l *logLines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

func newSourcesRun(t *testing.T, source string, lines int) *sourcesRun {
	t.Helper()
	r := &sourcesRun{members: map[string]*member{}, logs: map[string]*logLines{}, done: map[string]int{}}
	r.lines = lines
	r.random = rand.New(rand.NewPCG(seed, 7))
	t.Logf("LEDGER_SEED=%d", seed)
	r.dir = t.TempDir()
	r.ledger = newLedger(t, r.dir, r.lines, plain)
	r.file = filepath.Join(r.dir, "pipeline.yaml")
	address := testserver.FreeAddress(t)
	r.url = "nats://" + address
	r.background(t, t.Context(), &supervisor{name: "broker", command: func() *exec.Cmd {
		return exec.Command(program(t, "levada"), "broker", "--data", filepath.Join(r.dir, "broker"), "--listen", address)
	}})
	waitFor(t, address)
	r.write(t, fmt.Sprintf(sourcesManifest, strings.ReplaceAll(source, "BROKER", r.url), program(t, "cat"), max(1000, lines/30)))
	return r
}

// start starts a process of a vertex under a supervisor. Its name begins with the vertex.
func (r *sourcesRun) start(t *testing.T, name string) *member {
	t.Helper()
	vertex, _, _ := strings.Cut(name, "-")
	args := []string{"vertex", r.file, "--vertex", vertex, "--name", name, "--nats", r.url, "--data", filepath.Join(r.dir, "data-"+name), "--log-format", "text"}
	log := &logLines{}
	s := &supervisor{name: name, command: func() *exec.Cmd { return exec.Command(program(t, "levada"), args...) }, log: log}
	if os.Getenv("LEDGER_VERBOSE") != "" {
		s.log = io.MultiWriter(log, os.Stderr)
	}
	m := &member{s, r.background(t, t.Context(), s)}
	r.members[name], r.logs[name] = m, log
	return m
}

func (r *sourcesRun) runs(name string) bool {
	return strings.Contains(r.logs[name].String(), "vertex started")
}

// leave ends a process in order.
func (r *sourcesRun) leave(t *testing.T, name string) {
	t.Helper()
	m := r.members[name]
	r.until(t, name+" runs", func() bool { return r.runs(name) })
	m.signal(syscall.SIGTERM)
	select {
	case err := <-m.ended:
		if err != nil {
			t.Errorf("%s does not end in order: %v\n%s", name, err, m.tail())
		}
	case <-time.After(40 * time.Second):
		t.Errorf("%s does not end:\n%s", name, m.tail())
	}
	m.checkExits(t)
	delete(r.members, name)
}

// fault lets something go wrong with a process of the source or of the next vertex. Each sort comes once, and then at random.
func (r *sourcesRun) fault(t *testing.T, n int) {
	t.Helper()
	var names []string
	for name := range r.members {
		if !strings.HasPrefix(name, "out") && (n%3 == 2 && r.came == nil) == strings.HasPrefix(name, "cat") {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	name := names[r.random.IntN(len(names))]
	m, log := r.members[name], r.logs[name]
	r.until(t, name+" runs", func() bool { return r.runs(name) })
	sort := n / 3
	if sort > 3 {
		sort = r.random.IntN(4)
	}
	vertex, _, _ := strings.Cut(name, "-")
	what := ""
	switch sort {
	case 0:
		what = "SIGKILL"
		log.forget()
		m.kill()
	case 1:
		what = "SIGTERM, and another joins"
		r.leave(t, name)
		r.start(t, fmt.Sprintf("%s-n%d", vertex, n))
	case 2:
		what = "SIGKILL for longer than its lease"
		log.forget()
		release := m.hold()
		time.Sleep(outOfLease) // the fault itself
		release()
	case 3:
		what = "SIGSTOP"
		m.signal(syscall.SIGSTOP)
		time.Sleep(frozenFor) // the fault itself
		m.signal(syscall.SIGCONT)
	}
	r.done[vertex+": "+what]++
	before := r.lineCount(t)
	r.until(t, "lines come out after "+what+" of "+name, func() bool { return r.lineCount(t) > min(before, r.lines-1) })
}

func (r *sourcesRun) until(t *testing.T, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(stuckAfter); !is(); time.Sleep(10 * time.Millisecond) {
		if r.look != nil {
			r.look()
		}
		if time.Now().After(deadline) {
			for _, name := range slices.Sorted(maps.Keys(r.members)) {
				t.Logf("%s:\n%s", name, r.members[name].tail())
			}
			t.Fatalf("within %v it did not happen that %s; %d of %d lines are out", stuckAfter, what, r.lineCount(t), r.lines)
		}
	}
}

func (r *sourcesRun) lineCount(t *testing.T) int {
	if r.came != nil {
		return r.came()
	}
	return (&sharedRun{killing: r.killing}).lineCount(t)
}

// toTheEnd lets faults happen until all lines are out, and ends all processes.
func (r *sourcesRun) toTheEnd(t *testing.T, faults int) {
	t.Helper()
	begun := time.Now()
	r.until(t, "lines come out", func() bool { return r.lineCount(t) > 0 })
	for n := 0; n < faults; n++ {
		r.fault(t, n)
	}
	r.until(t, "all lines are out", func() bool { return r.lineCount(t) >= r.lines })
	for name := range maps.Clone(r.members) {
		r.leave(t, name)
	}
	t.Logf("%d lines in %v; %v", r.lines, time.Since(begun).Round(time.Second), r.done)
}

// publish stores the lines as messages of a stream.
func (r *sourcesRun) publish(t *testing.T, js jetstream.JetStream) {
	t.Helper()
	if _, err := js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "ORDERS", Subjects: []string{"orders"}}); err != nil {
		t.Fatal(err)
	}
	for i := range r.lines {
		if _, err := js.PublishAsync("orders", []byte(strconv.Itoa(i)+" "+plain(i)), jetstream.WithStallWait(time.Minute)); err != nil {
			t.Fatal(err)
		}
	}
	select {
	case <-js.PublishAsyncComplete():
	case <-time.After(time.Minute):
		t.Fatal("the lines are not stored within a minute")
	}
}

const sourceFaults = 10

// TestJetStreamSourceLedger reads a stream with three processes, which are killed, stopped, frozen and replaced. What was in flight is redelivered to another one, and
// counts once.
func TestJetStreamSourceLedger(t *testing.T) {
	r := newSourcesRun(t, "jetstream: {url: BROKER, stream: ORDERS}", max(30_000, ledgerLines/2))
	r.publish(t, connect(t, r.url))
	for _, name := range []string{"out-a", "cat-a", "cat-b", "in-a", "in-b", "in-c"} {
		r.start(t, name)
	}
	r.toTheEnd(t, max(sourceFaults, ledgerKills))
	r.check(t, plain, nothing)
}

// TestSharedMonoVertexLedger moves a stream into another by three processes of a MonoVertex. What was in flight in one that died is written by another one under the same id,
// and the stream drops it.
func TestSharedMonoVertexLedger(t *testing.T) {
	r := newSourcesRun(t, "", max(10_000, ledgerLines/8)) // this sink writes one message at a time
	r.write(t, fmt.Sprintf(sharedMonoManifest, r.url, max(500, r.lines/30)))
	js := connect(t, r.url)
	r.publish(t, js)
	stream, err := js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "OUT", Subjects: []string{"out"}, Duplicates: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	r.came = func() int {
		info, err := stream.Info(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return int(info.State.Msgs)
	}
	for _, name := range []string{"in-a", "in-b", "in-c"} {
		r.start(t, name)
	}
	r.toTheEnd(t, max(sourceFaults, ledgerKills))
	if a := newAccount(r.lines, stored(t, js, "OUT", "out"), plain, nothing); !a.exact() {
		t.Errorf("of %d lines: %v", r.lines, a)
	}
}

var listensAt = regexp.MustCompile(`msg=listening.* for=http address=(\S+)`)

// TestHTTPSourceLedger sends each line, with its number as the id, to some process of a source until one of three answers 200. The processes are killed, stopped, frozen
// and replaced meanwhile, and each has a port of its own.
func TestHTTPSourceLedger(t *testing.T) {
	_, port, err := net.SplitHostPort(testserver.FreeAddress(t))
	if err != nil {
		t.Fatal(err)
	}
	r := newSourcesRun(t, "http: {ports: {http: "+port+"}}", max(30_000, ledgerLines/2))
	for _, name := range []string{"out-a", "cat-a", "cat-b", "in-a", "in-b", "in-c"} {
		r.start(t, name)
	}
	var mu sync.Mutex
	var addresses []string
	ctx, stop := context.WithCancel(t.Context())
	var sending sync.WaitGroup
	defer sending.Wait()
	defer stop()
	lines := make(chan int)
	sending.Go(func() {
		defer close(lines)
		for i := range r.lines {
			select {
			case lines <- i:
			case <-ctx.Done():
				return
			}
		}
	})
	look := func() {
		mu.Lock()
		defer mu.Unlock()
		addresses = nil
		for name, log := range r.logs {
			if found := listensAt.FindAllStringSubmatch(log.String(), -1); r.members[name] != nil && found != nil {
				addresses = append(addresses, found[len(found)-1][1])
			}
		}
	}
	r.until(t, "three processes listen", func() bool { look(); return len(addresses) == 3 })
	client := &http.Client{Timeout: 15 * time.Second, Transport: &http.Transport{MaxIdleConnsPerHost: 64}}
	for worker := range 64 {
		random := rand.New(rand.NewPCG(seed, uint64(worker)))
		sending.Go(func() {
			for i := range lines {
				for ctx.Err() == nil {
					mu.Lock()
					to := "127.0.0.1:0" // nobody listens
					if len(addresses) > 0 {
						to = addresses[random.IntN(len(addresses))]
					}
					mu.Unlock()
					if send(ctx, client, i, to) {
						break
					}
					time.Sleep(20 * time.Millisecond) // before it is sent again
				}
			}
		})
	}
	// Senders find a process that is new, or has another port.
	r.look = look
	r.toTheEnd(t, max(sourceFaults, ledgerKills))
	r.check(t, plain, nothing)
}

// send posts a line, and reports whether it was taken.
func send(ctx context.Context, client *http.Client, i int, address string) bool {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+address+"/vertices/in", strings.NewReader(strconv.Itoa(i)+" "+plain(i)))
	if err != nil {
		return false
	}
	req.Header.Set("X-Numaflow-Id", strconv.Itoa(i))
	answer, err := client.Do(req)
	if err != nil {
		return false
	}
	defer answer.Body.Close()
	_, _ = io.Copy(io.Discard, answer.Body)
	return answer.StatusCode == http.StatusOK
}
