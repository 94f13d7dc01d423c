package process

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/levada-io/levada/internal/dataplane/function/client"
)

func TestMain(m *testing.M) {
	Enter()
	os.Exit(m.Run())
}

// lines is what a process printed.
type lines struct {
	mu  sync.Mutex
	all []string
}

func (l *lines) add(line string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all = append(l.all, line)
}

// value returns what follows prefix in a line, and waits for that line.
func (l *lines) value(t *testing.T, prefix string) string {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(2 * time.Millisecond) {
		l.mu.Lock()
		at := slices.IndexFunc(l.all, func(line string) bool { return strings.HasPrefix(line, prefix) })
		found := ""
		if at >= 0 {
			found = strings.TrimPrefix(l.all[at], prefix)
		}
		l.mu.Unlock()
		if at >= 0 {
			return found
		}
	}
	t.Fatalf("no line begins with %q: %q", prefix, l.all)
	return ""
}

// shell is the configuration of a function that is a shell script, which no script is in the end: it is never ready.
func shell(t *testing.T, script string) (*Config, *lines) {
	t.Helper()
	root, err := os.MkdirTemp("", "p") // short: Unix sockets allow 107 bytes
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(root) })
	out := &lines{}
	return &Config{
		Role: client.UDF, Command: []string{"/bin/sh", "-c", script}, Env: []string{"PATH=" + defaultPath, "GREETING=hello"}, Dir: root, SocketRoot: root,
		Concurrency: 7, ReadyTimeout: 20 * time.Second, Output: out.add, Logger: slog.New(slog.DiscardHandler),
	}, out
}

// gone waits until the process does not exist.
func gone(t *testing.T, pid string) {
	t.Helper()
	n, err := strconv.Atoi(pid)
	if err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(2 * time.Millisecond) {
		state, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", n))
		if errors.Is(syscall.Kill(n, 0), syscall.ESRCH) || err == nil && strings.Contains(string(state), ") Z ") { // a zombie whose parent is the machine's init
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("process %d still runs: %s", n, state)
		}
	}
}

// nothingLeft fails the test if a socket directory was not removed.
func nothingLeft(t *testing.T, cfg *Config) {
	t.Helper()
	left, err := os.ReadDir(cfg.SocketRoot)
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range left {
		if entry.IsDir() {
			t.Errorf("%s is left of a process that did not become ready", entry.Name())
		}
	}
}

func TestAProcessThatEndsEarlySaysHowAndShowsTheEndOfItsOutput(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, script string
		final        bool // there is no use in another attempt
		says         []string
	}{
		{"an exit code", "echo no database >&2; exit 3", false, []string{"exit code 3", "no database"}},
		{"a signal", "kill -KILL $$", false, []string{`ended by the signal "killed"`}},
		{"a command that does not exist", "exec /no/such/program", true, []string{"could not be run"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			cfg, _ := shell(t, c.script)
			_, err := Start(t.Context(), cfg)
			if err == nil || errors.Is(err, ErrStart) != c.final {
				t.Fatalf("error %v; final must be %v", err, c.final)
			}
			for _, want := range c.says {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%q does not say %q", err, want)
				}
			}
		})
	}
}

func TestAProcessThatIsNeverReadyIsKilledWithItsFiles(t *testing.T) {
	t.Parallel()
	cfg, out := shell(t, "echo pid $$; exec sleep 1000")
	cfg.ReadyTimeout = 500 * time.Millisecond
	_, err := Start(t.Context(), cfg)
	if !errors.Is(err, ErrStart) || !strings.Contains(err.Error(), "not ready within 500ms") || !strings.Contains(err.Error(), "it did not write") {
		t.Errorf("error %v", err)
	}
	gone(t, out.value(t, "pid "))
	nothingLeft(t, cfg)
}

func TestTheEndOfAStartsContextEndsTheProcess(t *testing.T) {
	t.Parallel()
	cfg, out := shell(t, "echo pid $$; exec sleep 1000")
	stopped := errors.New("the run is over")
	ctx, cancel := context.WithCancelCause(t.Context())
	ended := make(chan error, 1)
	go func() {
		_, err := Start(ctx, cfg)
		ended <- err
	}()
	pid := out.value(t, "pid ")
	cancel(stopped)
	if err := <-ended; !errors.Is(err, stopped) {
		t.Errorf("error %v", err)
	}
	gone(t, pid)
	nothingLeft(t, cfg)
}

// TestWhatAProcessStartedEndsWithIt: a launcher's server that lives on would answer on a socket of a function that was replaced.
func TestWhatAProcessStartedEndsWithIt(t *testing.T) {
	t.Parallel()
	cfg, out := shell(t, "sleep 1000 & echo child $!; exit 1")
	if _, err := Start(t.Context(), cfg); err == nil {
		t.Fatal("it is ready")
	}
	gone(t, out.value(t, "child "))
}

func TestAProcessGetsItsOwnEnvironmentOnly(t *testing.T) {
	t.Setenv("BROKER_PASSWORD", "secret")
	cfg, out := shell(t, "env; pwd | sed s/^/dir=/; exit 1")
	if _, err := Start(t.Context(), cfg); err == nil {
		t.Fatal("it is ready")
	}
	for name, want := range map[string]string{"GREETING=": "hello", "LEVADA_CONCURRENCY=": "7", "NUMAFLOW_UD_CONTAINER_TYPE=": "udf"} {
		if got := out.value(t, name); got != want {
			t.Errorf("%s%s, want %s", name, got, want)
		}
	}
	dir := out.value(t, "LEVADA_SOCKET_DIR=")
	if filepath.Dir(dir) != cfg.SocketRoot && dir != sdkDir(t) {
		t.Errorf("its sockets are in %s", dir)
	}
	if got := out.value(t, "LEVADA_ANNOUNCE_FILE="); filepath.Dir(got) != dir {
		t.Errorf("it announces in %s, and its sockets are in %s", got, dir)
	}
	if got, err := filepath.EvalSymlinks(cfg.Dir); err != nil || out.value(t, "dir=") != got {
		t.Errorf("it runs in %s, want %s (%v)", out.value(t, "dir="), got, err)
	}
	out.mu.Lock()
	defer out.mu.Unlock()
	for _, line := range out.all {
		if strings.Contains(line, "secret") || strings.HasPrefix(line, "LEVADA_ENTER") {
			t.Errorf("it got %q of the process that started it", line)
		}
	}
}

// sdkDir is where SDKs look for sockets; a process in a mount namespace of its own has its directory there.
func sdkDir(t *testing.T) string {
	t.Helper()
	if !CanMount() {
		return ""
	}
	return "/var/run/numaflow"
}

func TestTheEndOfTheOutputIsKept(t *testing.T) {
	t.Parallel()
	var kept tail
	for n := range 100_000 {
		fmt.Fprintf(&kept, "line %d\n", n)
	}
	got := kept.String()
	if len(got) > tailSize || !strings.HasSuffix(got, "line 99998\nline 99999") {
		t.Errorf("%d bytes are kept, which end with %q", len(got), got[max(0, len(got)-30):])
	}
	if len(kept.b) > 2*dumpSize {
		t.Errorf("%d bytes are in memory", len(kept.b))
	}
}

func TestOfADumpTheGoroutinesOfTheUsersCodeAreShown(t *testing.T) {
	t.Parallel()
	var dump tail
	fmt.Fprint(&dump, "SIGQUIT: quit\n\ngoroutine 1 [select]:\nmain.main()\n\tmain.go:10\n\ngoroutine 7 [chan receive]:\nmain.lookUp(0x1)\n\tmain.go:42\n\ngoroutine 9 [IO wait]:\ninternal/poll.wait()\n")
	if got := dump.stacks(); !strings.HasPrefix(got, "goroutine 7 ") || strings.Contains(got, "goroutine 9 ") || strings.Contains(got, "goroutine 1 ") {
		t.Errorf("%q", got)
	}
	var other tail
	fmt.Fprint(&other, "Traceback: no Go program")
	if got := other.stacks(); got != "Traceback: no Go program" {
		t.Errorf("%q", got)
	}
}

func TestOnlyNamedVariablesAreInherited(t *testing.T) {
	for name, value := range map[string]string{"AWS_SECRET_ACCESS_KEY": "s", "LEVADA_NATS": "nats://user:password@host", "NUMAFLOW_DEBUG": "true", "APP_COLOR": "blue", "LC_ALL": "C"} {
		t.Setenv(name, value)
	}
	got := Inherited([]string{"APP_*", "LEVADA_*"}, &User{UID: 1000, Name: "fn", Home: "/home/fn"})
	for name, want := range map[string]string{
		"AWS_SECRET_ACCESS_KEY": "", "LEVADA_NATS": "", "NUMAFLOW_DEBUG": "true", "APP_COLOR": "blue", "LC_ALL": "C", "HOME": "/home/fn", "USER": "fn", "LOGNAME": "fn",
	} {
		if got[name] != want {
			t.Errorf("%s is %q, want %q", name, got[name], want)
		}
	}
	if got["PATH"] == "" {
		t.Error("it has no PATH")
	}
}

func TestNamesOfVariablesAreChecked(t *testing.T) {
	t.Parallel()
	for pattern, ok := range map[string]bool{"APP_COLOR": true, "APP_*": true, "_x": true, "*": false, "": false, "A B": false, "A=B": false, "9A": false, "LEVADA_NATS": false, "LEVADA_*": false} {
		if err := CheckVariables([]string{pattern}); (err == nil) != ok {
			t.Errorf("%q: %v", pattern, err)
		}
	}
}

func TestSocketDirectoriesOfDeadProcessesAreRemoved(t *testing.T) {
	base := t.TempDir()
	t.Setenv("TMPDIR", base)
	const noSuchProcess = 1 << 30 // above what Linux gives
	dead, alive, other := filepath.Join(base, fmt.Sprintf("levada-%d-a", noSuchProcess)), filepath.Join(base, fmt.Sprintf("levada-%d-b", os.Getpid())), filepath.Join(base, "levada-data-c")
	for _, dir := range []string{dead, alive, other} {
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	root, err := NewSocketRoot()
	if err != nil {
		t.Fatal(err)
	}
	for dir, want := range map[string]bool{dead: false, alive: true, other: true, root: true} {
		if _, err := os.Stat(dir); (err == nil) != want {
			t.Errorf("%s: %v, want it there: %v", filepath.Base(dir), err, want)
		}
	}
}
