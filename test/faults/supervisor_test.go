package faults

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/levada-io/levada/internal/testserver"
)

// The size of a run: small in CI, `make faults` sets LEDGER_LINES=1000000 LEDGER_KILLS=50.
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

// TestMain runs the tests, or, in a process that a test has started, one of the programs that the tests need.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case nodeProgram:
			nodeMain(os.Args[2])
		case slowProgram:
			slowMain(os.Args[2], os.Args[3])
		}
	}
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

// self is this test binary, which is also some of the programs that the tests run.
func self(t *testing.T) string {
	t.Helper()
	path, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// maxExits is how often a process may end by itself before its supervisor gives up.
const maxExits = 20

// supervisor runs a program, and runs the same command again whenever it ends, until it ends with 0: what systemd or a kubelet does.
type supervisor struct {
	name    string
	command func() *exec.Cmd
	log     io.Writer            // of all runs; nil for none
	pause   func() time.Duration // between a kill and the next start; nil for 20 ms

	mu     sync.Mutex
	cmd    *exec.Cmd
	killed bool // the process that runs now
	held   chan struct{}
	kills  int
	exits  []string         // ends that nobody asked for
	output *testserver.Tail // of the process that runs now, or ran last
}

// keep runs the process until it ends with 0, gives up, or ctx ends. It returns nil after an end with 0.
func (s *supervisor) keep(ctx context.Context) error {
	for ctx.Err() == nil {
		s.mu.Lock()
		held := s.held
		s.mu.Unlock()
		if held != nil {
			select {
			case <-held:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		tail := &testserver.Tail{}
		cmd := s.command()
		cmd.Stdout = tail
		if s.log != nil {
			cmd.Stdout = io.MultiWriter(tail, s.log)
		}
		cmd.Stderr = cmd.Stdout
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		cmd.WaitDelay = time.Second // functions that outlive a killed levada hold its stderr
		begun := time.Now()
		s.mu.Lock()
		if err := cmd.Start(); err != nil {
			s.mu.Unlock()
			return err
		}
		s.cmd, s.killed, s.output = cmd, false, tail
		s.mu.Unlock()
		stop := context.AfterFunc(ctx, func() { _ = cmd.Process.Kill() })
		err := cmd.Wait()
		stop()
		s.mu.Lock()
		killed := s.killed
		s.cmd = nil
		s.mu.Unlock()
		pause := 20 * time.Millisecond
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case killed:
			if s.pause != nil {
				pause = s.pause()
			}
		case err == nil || errors.Is(err, exec.ErrWaitDelay):
			return nil
		default:
			s.mu.Lock()
			s.exits = append(s.exits, fmt.Sprintf("%s ended with %v after %v:\n%s", s.name, err, time.Since(begun).Round(time.Millisecond), last([]byte(tail.String()), 1500)))
			n := len(s.exits)
			s.mu.Unlock()
			if n == maxExits {
				return fmt.Errorf("%s ended by itself %d times", s.name, n)
			}
			pause = 500 * time.Millisecond
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
		}
	}
	return ctx.Err()
}

// kill sends SIGKILL, and reports whether there was a process to kill.
func (s *supervisor) kill() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cmd == nil || s.killed || s.cmd.Process.Kill() != nil {
		return false
	}
	s.killed = true
	s.kills++
	return true
}

// signal sends a signal that the process outlives, SIGSTOP or SIGCONT.
func (s *supervisor) signal(signal os.Signal) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.cmd != nil && s.cmd.Process.Signal(signal) == nil
}

// hold kills the process and keeps it from being started until release is called.
func (s *supervisor) hold() (release func()) {
	held := make(chan struct{})
	s.mu.Lock()
	s.held = held
	s.mu.Unlock()
	s.kill()
	return func() {
		s.mu.Lock()
		s.held = nil
		s.mu.Unlock()
		close(held)
	}
}

func (s *supervisor) counts() (kills, exits int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.kills, len(s.exits)
}

// tail is the end of what the process has written.
func (s *supervisor) tail() []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.output == nil {
		return nil
	}
	return last([]byte(s.output.String()), 3000)
}

// checkExits fails the test for each end that nobody asked for; of many it shows the first three.
func (s *supervisor) checkExits(t *testing.T) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if n := len(s.exits); n > 0 {
		t.Errorf("%s ended by itself %d times, and should have gone on", s.name, n)
		for _, e := range s.exits[:min(n, 3)] {
			t.Log(e)
		}
	}
}

// functionPIDs asks a run for the processes of its functions.
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

// killFunctions sends SIGKILL to all functions of a run, and returns how many there were.
func killFunctions(dataDir string) (n int) {
	for _, pid := range functionPIDs(dataDir) {
		if syscall.Kill(pid, syscall.SIGKILL) == nil {
			n++
		}
	}
	return n
}

func last(b []byte, n int) []byte {
	if len(b) > n {
		return b[len(b)-n:]
	}
	return b
}

// waitFor waits until something listens at the address.
func waitFor(t *testing.T, address string) {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for {
		conn, err := net.Dial("tcp", address)
		if err == nil {
			_ = conn.Close()
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("nothing listens at %s: %v", address, err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}
