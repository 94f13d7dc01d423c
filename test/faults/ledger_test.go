// Package faults breaks running pipelines and counts what comes out. These tests start real processes and kill them.
package faults

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/levada-io/levada/internal/testserver"
)

// The size of a ledger run: small in CI, `make faults` sets LEDGER_LINES=1000000 LEDGER_KILLS=50.
var (
	ledgerLines = fromEnv("LEDGER_LINES", 60_000)
	ledgerKills = fromEnv("LEDGER_KILLS", 5)
	seed        = uint64(fromEnv("LEDGER_SEED", int(time.Now().UnixNano()%1_000_000)))
)

func fromEnv(name string, otherwise int) int {
	if n, err := strconv.Atoi(os.Getenv(name)); err == nil {
		return n
	}
	return otherwise
}

var programs = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "levada-faults")
	if err != nil {
		return "", err
	}
	args := []string{"build", "-o", dir + "/"}
	if os.Getenv("LEDGER_RACE") != "" {
		args = append(args, "-race")
	}
	out, err := exec.Command("go", append(args, "github.com/levada-io/levada/cmd/levada", "github.com/levada-io/levada/examples/functions/cat", "github.com/levada-io/levada/examples/functions/poison")...).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%w: %s", err, out)
	}
	return dir, nil
})

func TestMain(m *testing.M) {
	code := m.Run()
	if dir, err := programs(); err == nil {
		_ = os.RemoveAll(dir)
	}
	os.Exit(code)
}

func program(t *testing.T, name string) string {
	t.Helper()
	dir, err := programs()
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Join(dir, name)
}

// ledger writes numbered lines and later finds each of them exactly once.
type ledger struct {
	in, out string
	lines   int
}

func newLedger(t *testing.T, dir string, lines int, text func(i int) string) ledger {
	t.Helper()
	l := ledger{in: filepath.Join(dir, "in.txt"), out: filepath.Join(dir, "out.txt"), lines: lines}
	f, err := os.Create(l.in)
	if err != nil {
		t.Fatal(err)
	}
	w := bufio.NewWriter(f)
	for i := range lines {
		fmt.Fprintf(w, "%d %s\n", i, text(i))
	}
	if err := errors.Join(w.Flush(), f.Close()); err != nil {
		t.Fatal(err)
	}
	return l
}

// check reports what is lost, doubled or was never there. Lines for which skip is true must be missing.
func (l ledger) check(t *testing.T, text func(i int) string, skip func(i int) bool) {
	t.Helper()
	f, err := os.Open(l.out)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	seen := make([]int, l.lines)
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		number, rest, _ := strings.Cut(lines.Text(), " ")
		i, err := strconv.Atoi(number)
		if err != nil || i < 0 || i >= l.lines || rest != text(i) {
			t.Fatalf("a line that was never written: %q", lines.Text())
		}
		seen[i]++
	}
	lost, doubled, unwanted := 0, 0, 0
	for i, n := range seen {
		switch want := !skip(i); {
		case want && n == 0:
			lost++
		case n > 1:
			doubled++
		case !want && n > 0:
			unwanted++
		}
	}
	if lost+doubled+unwanted > 0 {
		t.Errorf("of %d lines %d are lost, %d doubled, %d should not be there", l.lines, lost, doubled, unwanted)
	}
}

func plain(i int) string { return strings.Repeat("x", i%50) }

func nothing(int) bool { return false }

// process is a program that is started again whenever it is killed.
type process struct {
	name    string
	command func() *exec.Cmd
	log     *os.File

	mu    sync.Mutex
	cmd   *exec.Cmd
	kills int
}

// keep runs the process until it ends by itself, with pause between its deaths. It returns how it ended.
func (p *process) keep(ctx context.Context, pause func() time.Duration) error {
	for {
		cmd := p.command()
		cmd.Stdout, cmd.Stderr = p.log, p.log
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		if err := cmd.Start(); err != nil {
			return err
		}
		p.mu.Lock()
		p.cmd = cmd
		p.mu.Unlock()
		stop := context.AfterFunc(ctx, func() { _ = cmd.Process.Kill() })
		err := cmd.Wait()
		stop()
		p.mu.Lock()
		p.cmd = nil
		p.mu.Unlock()
		if status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); ctx.Err() == nil && ok && status.Signaled() && status.Signal() == syscall.SIGKILL {
			select {
			case <-time.After(pause()):
				continue
			case <-ctx.Done():
			}
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return err
	}
}

func (p *process) kill() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cmd != nil && p.cmd.Process.Kill() == nil {
		p.kills++
	}
}

// pids asks a run for the processes of its functions.
func functionPIDs(dataDir string) (pids []int) {
	b, err := os.ReadFile(filepath.Join(dataDir, "control.json"))
	if err != nil {
		return nil
	}
	var c struct{ Address, Token string }
	if json.Unmarshal(b, &c) != nil {
		return nil
	}
	conn, err := net.DialTimeout("tcp", c.Address, 200*time.Millisecond)
	if err != nil {
		return nil
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(500 * time.Millisecond))
	fmt.Fprintf(conn, "GET /api/v1/status HTTP/1.0\r\nAuthorization: Bearer %s\r\n\r\n", c.Token)
	answer, _ := io.ReadAll(conn)
	_, body, _ := bytes.Cut(answer, []byte("\r\n\r\n"))
	var status []struct{ Vertices []struct{ PIDs []int } }
	if json.Unmarshal(body, &status) != nil {
		return nil
	}
	for _, p := range status {
		for _, v := range p.Vertices {
			pids = append(pids, v.PIDs...)
		}
	}
	return pids
}

const manifest = `
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
  limits: {readBatchSize: %[1]d}
  vertices:
    - name: in
      limits: {rateLimit: {max: %[4]d}} # so that the run lasts as long as the killing
      source: {file: {path: in.txt}}
    - name: cat
      partitions: %[2]d
      udf: {container: {command: [%[3]s]}}
    - name: out
      partitions: %[2]d
      sink: {file: {path: out.txt}}
  edges:
    - {from: in, to: cat}
    - {from: cat, to: out}
`

// TestLedger moves numbered lines through a source, a function and a sink, with two durable hops, while everything is killed again and again, and finds each
// line exactly once. The broker's own deduplication lasts a second; some of the deaths last longer.
func TestLedger(t *testing.T) {
	for _, c := range []struct {
		name              string
		batch, partitions int
		external          bool
	}{
		{"embedded broker", 100, 1, false},
		{"embedded broker, 4 partitions", 37, 4, false},
		{"broker of its own, 4 partitions", 100, 4, true},
	} {
		t.Run(c.name, func(t *testing.T) { runLedger(t, c.batch, c.partitions, c.external) })
	}
}

func runLedger(t *testing.T, batch, partitions int, external bool) {
	dir := t.TempDir()
	l := newLedger(t, dir, ledgerLines, plain)
	random := rand.New(rand.NewPCG(seed, 1))
	t.Logf("LEDGER_SEED=%d", seed)
	file := filepath.Join(dir, "pipeline.yaml")
	if err := os.WriteFile(file, fmt.Appendf(nil, manifest, batch, partitions, program(t, "cat"), max(1000, ledgerLines/(2*ledgerKills))), 0o644); err != nil {
		t.Fatal(err)
	}
	log, err := os.Create(filepath.Join(dir, "log.txt"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Minute)
	defer cancel()
	data := filepath.Join(dir, "data")
	args := []string{"run", file, "--data", data, "--quiet", "--log-format", "text"}
	var all sync.WaitGroup
	var broker *process
	if external {
		address := testserver.FreeAddress(t)
		broker = &process{name: "broker", log: log, command: func() *exec.Cmd {
			return exec.Command(program(t, "levada"), "broker", "--data", filepath.Join(dir, "broker"), "--listen", address)
		}}
		args = append(args, "--nats", "nats://"+address)
		brokerCtx, stop := context.WithCancel(ctx)
		defer all.Wait()
		defer stop()
		all.Go(func() { _ = broker.keep(brokerCtx, func() time.Duration { return 50 * time.Millisecond }) })
		waitFor(t, address)
	}
	levada := &process{name: "levada", log: log, command: func() *exec.Cmd { return exec.Command(program(t, "levada"), args...) }}
	deaths := 0
	ended := make(chan error, 1)
	go func() {
		ended <- levada.keep(ctx, func() time.Duration {
			if deaths++; deaths%3 == 0 {
				return 1500 * time.Millisecond // longer than the broker's deduplication window
			}
			return 20 * time.Millisecond
		})
	}()
	functionKills := 0
	begun := time.Now()
	for {
		select {
		case err := <-ended:
			if err != nil {
				text, _ := os.ReadFile(log.Name())
				t.Fatalf("levada ended with %v:\n%s", err, last(text, 4000))
			}
			l.check(t, plain, nothing)
			brokerKills := 0
			if broker != nil {
				brokerKills = broker.kills
			}
			t.Logf("%d lines in %v; kills: levada %d, function %d, broker %d", ledgerLines, time.Since(begun).Round(time.Millisecond), levada.kills, functionKills, brokerKills)
			if levada.kills < ledgerKills || functionKills < ledgerKills || external && brokerKills < ledgerKills {
				t.Errorf("not everything was killed %d times: the run was too short", ledgerKills)
			}
			return
		case <-time.After(time.Duration(20+random.IntN(400)) * time.Millisecond):
		}
		// Whoever has been killed least is next.
		switch {
		case external && broker.kills <= min(levada.kills, functionKills) && broker.kills < ledgerKills:
			broker.kill()
		case levada.kills <= functionKills && levada.kills < ledgerKills:
			levada.kill()
		default:
			for _, pid := range functionPIDs(data) {
				if syscall.Kill(pid, syscall.SIGKILL) == nil {
					functionKills++
				}
			}
		}
	}
}

func last(b []byte, n int) []byte {
	if len(b) > n {
		return b[len(b)-n:]
	}
	return b
}

// waitFor waits until somebody listens.
func waitFor(t *testing.T, address string) {
	t.Helper()
	for {
		conn, err := net.Dial("tcp", address)
		if err == nil {
			_ = conn.Close()
			return
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-t.Context().Done():
			t.Fatal("nobody listens at " + address)
		}
	}
}
