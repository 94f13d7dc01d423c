//go:build unix

package testserver

import (
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"
)

// victim makes this binary one that starts servers and is then killed.
const victim = "LEVADA_TESTSERVER_VICTIM"

// TestServersEndWithTheBinary kills a test binary, and with it the process group, while its servers run.
func TestServersEndWithTheBinary(t *testing.T) {
	if os.Getenv(victim) != "" {
		t.Skip("this is the victim")
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestVictim$", "-test.timeout=5m")
	cmd.Env = append(os.Environ(), victim+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var said strings.Builder
	buf := make([]byte, 4096)
	for !strings.Contains(said.String(), "ready\n") {
		n, err := out.Read(buf)
		said.Write(buf[:n])
		if err != nil {
			t.Fatalf("the victim ended too early: %v\n%s", err, said.String())
		}
	}
	var dirs []string
	for line := range strings.Lines(said.String()) {
		if dir, ok := strings.CutPrefix(strings.TrimSpace(line), "dir "); ok {
			dirs = append(dirs, dir)
		}
	}
	if len(dirs) != 3 {
		t.Fatalf("the victim named %d directories of 3:\n%s", len(dirs), said.String())
	}
	for _, dir := range dirs {
		if len(processesIn(dir)) == 0 {
			t.Errorf("no process works in %s, so nothing is tested", dir)
		}
	}
	if err := syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // it was killed
	deadline := time.Now().Add(30 * time.Second)
	for _, dir := range dirs {
		for {
			_, err := os.Stat(dir)
			left := processesIn(dir)
			if os.IsNotExist(err) && len(left) == 0 {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("30 s after the binary was killed, %s is there (%v) with processes %v", dir, err, left)
			}
			time.Sleep(50 * time.Millisecond)
		}
	}
}

// processesIn returns the processes whose working directory, or that of the one that started them, is in dir.
func processesIn(dir string) (found []string) {
	list, _ := os.ReadDir("/proc")
	for _, e := range list {
		if cwd, err := os.Readlink("/proc/" + e.Name() + "/cwd"); err == nil && strings.HasPrefix(cwd, dir) {
			found = append(found, e.Name())
		}
	}
	return found
}

// TestVictim is run by TestServersEndWithTheBinary only.
func TestVictim(t *testing.T) {
	if os.Getenv(victim) == "" {
		t.Skip("only as a process of its own")
	}
	Postgres(t)
	RabbitMQ(t)
	s := PostgresServer(t)
	s.Freeze() // ends all the same
	for _, dir := range []string{sharedPostgres.n.dir, sharedRabbitMQ.n.dir, s.n.dir} {
		_, _ = os.Stdout.WriteString("dir " + dir + "\n")
	}
	_, _ = os.Stdout.WriteString("ready\n")
	select {}
}

func TestRequire(t *testing.T) {
	for _, c := range []struct {
		ci, want string
	}{{"", "skip"}, {"true", "fatal"}} {
		t.Setenv("CI", c.ci)
		spy := &verdict{TB: t}
		require(spy, postgres, errMissing)
		if spy.was != c.want {
			t.Errorf("CI=%q: a missing program means %q, want %q", c.ci, spy.was, c.want)
		}
	}
}

// verdict notes how a test would have ended.
type verdict struct {
	testing.TB
	was string
}

func (v *verdict) Helper()               {}
func (v *verdict) Skipf(string, ...any)  { v.was = "skip" }
func (v *verdict) Fatalf(string, ...any) { v.was = "fatal" }
