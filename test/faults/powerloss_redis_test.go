//go:build linux

package faults

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/levada-io/levada/internal/testserver"
)

// everysecManifest has a source that cannot give a message again, and a function that is slower than it: messages wait in the buffer of the function, as many as it takes. A block
// has one message.
const everysecManifest = `
apiVersion: numaflow.numaproj.io/v1alpha1
kind: Pipeline
metadata: {name: ledger}
spec:
  limits: {readBatchSize: 1, bufferMaxLength: 1500}
  vertices:
    - name: in
      source: {http: {ports: {http: %[1]s}}}
    - name: cat
      udf: {container: {command: [%[2]q, %[3]q, 4ms, "1"]}}
    - name: out
      sink: {file: {path: %[4]s}}
  edges:
    - {from: in, to: cat}
    - {from: cat, to: out}
`

// everysecRun is a pipeline over a Redis whose file is synced each second, and whose disk loses its power.
type everysecRun struct {
	ledger
	disk    *disk
	address string
	server  *exec.Cmd
	levada  *supervisor
	log     string // file of what levada has logged
	source  string // URL

	mu       sync.Mutex
	sent     int
	accepted map[int]bool
}

// startRedis starts it in this goroutine, whose thread alone sees the disk.
func (r *everysecRun) startRedis(t *testing.T) {
	t.Helper()
	_, port, err := net.SplitHostPort(r.address)
	if err != nil {
		t.Fatal(err)
	}
	r.server = exec.Command(testserver.Program(t, "redis-server", "redis-server"), "--bind", "127.0.0.1", "--port", port, "--dir", r.disk.dir, "--save", "", "--appendonly", "yes", "--appendfsync", "everysec")
	r.server.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := r.server.Start(); err != nil {
		t.Fatal(err)
	}
	waitFor(t, r.address)
}

// losePower takes from the machine of Redis what its disk has not been asked to keep, and starts it again.
func (r *everysecRun) losePower(t *testing.T) {
	t.Helper()
	if err := r.disk.cut(); err != nil {
		t.Fatal(err)
	}
	_ = r.server.Process.Kill()
	_ = r.server.Wait() // killed
	if err := r.disk.powerOn(); err != nil {
		t.Fatal(err)
	}
	r.startRedis(t)
}

// send posts numbered lines until ctx ends. A line that is not accepted is not sent again: whether it was stored is not known.
func (r *everysecRun) send(ctx context.Context) {
	for ctx.Err() == nil {
		r.mu.Lock()
		i := r.sent
		r.sent++
		r.mu.Unlock()
		res, err := http.Post(r.source, "text/plain", strings.NewReader(fmt.Sprintf("%d %s", i, plain(i))))
		if err != nil {
			time.Sleep(20 * time.Millisecond) // levada is being started
			continue
		}
		_ = res.Body.Close()
		if res.StatusCode < 300 {
			r.mu.Lock()
			r.accepted[i] = true
			r.mu.Unlock()
		}
	}
}

func (r *everysecRun) acceptedLines() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.accepted)
}

func (r *everysecRun) until(t *testing.T, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(stuckAfter); !is(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("within %v it did not happen that %s:\n%s", stuckAfter, what, r.levada.tail())
		}
	}
}

var (
	blocksLost = regexp.MustCompile(`buffer=\S*-cat-0 .*blocks (\d+) to (\d+) were not done, and are lost`)
	gapMetric  = regexp.MustCompile(`(?m)^levada_buffer_gap_total\{[^}]*-cat-0[^}]*\} (\d+)`)
)

// reported is how many blocks of the function's buffer the log says are lost, in all.
func (r *everysecRun) reported() (blocks int) {
	b, _ := os.ReadFile(r.log)
	for line := range strings.Lines(string(b)) {
		if !strings.Contains(line, "stored data is damaged and skipped") {
			continue
		}
		if found := blocksLost.FindStringSubmatch(line); found != nil {
			first, _ := strconv.Atoi(found[1])
			last, _ := strconv.Atoi(found[2])
			blocks += last - first + 1
		}
	}
	return blocks
}

// TestRedisEverysecReportsWhatAPowerLossTook: a Redis that syncs its file each second loses what it acknowledged last with its power. Levada stops, says how many blocks are lost, goes
// on when the user gives them up, and doubles nothing: the source gives nothing again.
func TestRedisEverysecReportsWhatAPowerLossTook(t *testing.T) {
	r := &everysecRun{disk: newDisk(t, 512), address: testserver.FreeAddress(t), accepted: map[int]bool{}}
	dir := t.TempDir()
	r.out = filepath.Join(dir, "out.txt")
	source, admin := testserver.FreeAddress(t), testserver.FreeAddress(t)
	_, port, _ := net.SplitHostPort(source)
	r.source = "http://" + source + "/vertices/in"
	file := filepath.Join(dir, "pipeline.yaml")
	if err := os.WriteFile(file, fmt.Appendf(nil, everysecManifest, port, self(t), slowProgram, r.out), 0o644); err != nil {
		t.Fatal(err)
	}
	r.startRedis(t)
	defer func() { _ = r.server.Process.Kill(); _ = r.server.Wait() }()
	args := []string{
		"run", file, "--data", filepath.Join(dir, "data"), "--quiet", "--log-format", "text", "--redis", "redis://" + r.address, "--listen", admin, "--skip-corrupt",
	}
	program := program(t, "levada")
	r.log = filepath.Join(dir, "log.txt")
	log, err := os.Create(r.log)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	r.levada = &supervisor{name: "levada", command: func() *exec.Cmd { return exec.Command(program, args...) }, log: log}
	ended := (&killing{}).background(t, t.Context(), r.levada)
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var senders sync.WaitGroup
	for range 4 {
		senders.Go(func() { r.send(ctx) })
	}
	delivered := func() int {
		b, _ := os.ReadFile(r.out)
		return bytes.Count(b, []byte{'\n'})
	}
	// The first sync comes after a second: what a server without any data loses is not noticed.
	synced := time.Now().Add(3 * time.Second)
	r.until(t, "the file was synced", func() bool { return time.Now().After(synced) })
	for cut := range min(powerCuts, 3) {
		accepted, out := r.acceptedLines(), delivered()
		r.until(t, "lines wait in the buffer", func() bool { return r.acceptedLines() > accepted+300 && delivered() > out+100 })
		was := r.reported()
		r.losePower(t)
		accepted, out = r.acceptedLines(), delivered()
		r.until(t, "it goes on", func() bool { return r.acceptedLines() > accepted+100 && delivered() > out+100 })
		lost := r.reported() - was
		t.Logf("cut %d: %d blocks are reported as lost", cut+1, lost)
		if counted := gaps(t, admin); counted != lost {
			t.Errorf("cut %d: the log says that %d blocks are lost, the metric %d", cut+1, lost, counted)
		}
	}
	stop()
	senders.Wait()
	last := 0
	r.until(t, "all is delivered", func() bool {
		now := delivered()
		same := now == last
		last = now
		return same && idle(admin)
	})
	r.levada.signal(syscall.SIGTERM)
	if err := <-ended; err != nil {
		t.Errorf("levada ends with %v", err)
	}
	r.account(t)
}

// account compares what was accepted and not delivered with what was reported.
func (r *everysecRun) account(t *testing.T) {
	t.Helper()
	b, err := os.ReadFile(r.out)
	if err != nil {
		t.Fatal(err)
	}
	times := map[int]int{}
	for line := range strings.Lines(string(b)) {
		number, _, _ := strings.Cut(line, " ")
		i, err := strconv.Atoi(number)
		if err != nil {
			t.Fatalf("line %q was never sent", line)
		}
		if times[i]++; times[i] == 2 {
			t.Errorf("line %d is there twice", i)
		}
	}
	lost, reported, unknown := 0, r.reported(), r.sent-len(r.accepted)
	for i := range r.accepted {
		if times[i] == 0 {
			lost++
		}
	}
	t.Logf("%d lines were accepted, %d of them are lost, and %d blocks of a message each are reported; of %d lines it is not known whether they were stored", len(r.accepted), lost, reported, unknown)
	if lost > reported || reported > lost+unknown {
		t.Errorf("%d lines are lost, and %d are reported", lost, reported)
	}
	if lost == 0 {
		t.Error("the power failed while lines were waiting that were not synced, and none is lost: the test would not see a loss")
	}
}

// gaps is what the metric says about lost blocks of the function's buffer.
func gaps(t *testing.T, admin string) int {
	t.Helper()
	found := gapMetric.FindStringSubmatch(get(admin, "/metrics"))
	if found == nil {
		return 0
	}
	n, err := strconv.Atoi(found[1])
	if err != nil {
		t.Fatal(err)
	}
	return n
}

var pendingMetric = regexp.MustCompile(`(?m)^isb_jetstream_buffer_pending\{[^}]*\} (\d+)`)

// idle reports whether no buffer has a message.
func idle(admin string) bool {
	found := pendingMetric.FindAllStringSubmatch(get(admin, "/metrics"), -1)
	for _, f := range found {
		if f[1] != "0" {
			return false
		}
	}
	return len(found) > 0
}

func get(admin, path string) string {
	res, err := http.Get("http://" + admin + path)
	if err != nil {
		return ""
	}
	defer res.Body.Close()
	b, _ := io.ReadAll(res.Body)
	return string(b)
}
