package function_test

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/levada-io/levada/internal/dataplane/deadletter"
	"github.com/levada-io/levada/internal/dataplane/function"
	"github.com/levada-io/levada/internal/flow"
)

// lines is a log that tests read while it is written.
type lines struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func (l *lines) logger() *slog.Logger { return slog.New(slog.NewTextHandler(l, nil)) }

// deaths are the reasons for which processes ended.
type deaths struct {
	mu   sync.Mutex
	list []string
}

func (d *deaths) add(reason string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.list = append(d.list, reason)
}

func (d *deaths) all() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.list)
}

// TestPanicVoidsThePartialAnswerOfItsMessage: a map stream whose handler panics after two results, with a deferred close of its channel, has sent two results and
// the end. They counted as the whole answer, and the others in flight waited for the processing timeout.
func TestPanicVoidsThePartialAnswerOfItsMessage(t *testing.T) {
	f := myself(t, "go-stream", function.Config{Timeout: time.Minute, Concurrency: 50})
	in := messages(20, func(i int) string {
		if i == 3 {
			return "panics"
		}
		return number(i)
	})
	begun := time.Now()
	out, err := f.Map(t.Context(), in)
	if err != nil {
		t.Fatal(err)
	}
	if out[3].Verdict != function.Suspect {
		t.Errorf("its answer counts: %+v", out[3])
	}
	settle(t, f, in, out)
	for i := range in {
		if i != 3 && (out[i].Verdict != function.Done || len(out[i].Results) != 1) {
			t.Errorf("message %d: %+v", i, out[i])
		}
	}
	if o := out[3]; o.Verdict != function.Broken || o.Failure.Reason != deadletter.Panic || o.Failure.Signal != "" || len(o.Results) != 0 {
		t.Errorf("the message that panics: %+v, failure %+v", o, o.Failure)
	}
	if took := time.Since(begun); took > 20*time.Second {
		t.Errorf("the others waited %v", took)
	}
}

// TestEndOfTheCallIsNoAnswer: a server that ends its call with status OK has not answered what is in flight.
func TestEndOfTheCallIsNoAnswer(t *testing.T) {
	var d deaths
	var log lines
	f := myself(t, "go-stream", function.Config{Timeout: time.Minute, Died: d.add, Logger: log.logger()})
	in := messages(1, func(int) string { return "ends the call" })
	out, err := f.Map(t.Context(), in)
	if err != nil {
		t.Fatal(err)
	}
	settle(t, f, in, out)
	o := out[0]
	if o.Verdict != function.Broken || o.Failure.Reason != deadletter.Protocol || o.Failure.Signal != "" || o.Failure.ExitCode != 0 || !strings.Contains(o.Failure.Error, "status OK while messages were unanswered") {
		t.Errorf("%+v, failure %+v", o, o.Failure)
	}
	if all := d.all(); !slices.Contains(all, "protocol") || slices.Contains(all, "signal") {
		t.Errorf("deaths: %v", all)
	}
}

// TestOurKillIsNamedAsOurs: the signal that we sent is no reason.
func TestOurKillIsNamedAsOurs(t *testing.T) {
	var d deaths
	var log lines
	f := myself(t, "sleep", function.Config{NoBlocks: true, Timeout: 300 * time.Millisecond, Died: d.add, Logger: log.logger()})
	in := messages(1, func(int) string { return "30s" })
	out, err := f.Map(t.Context(), in)
	if err != nil {
		t.Fatal(err)
	}
	settle(t, f, in, out)
	if o := out[0]; o.Verdict != function.Broken || o.Failure.Reason != deadletter.Hang || o.Failure.Signal != "" || !strings.Contains(o.Failure.Error, "no answer within 300ms") {
		t.Errorf("%+v, failure %+v", o, o.Failure)
	}
	eventually(t, func() bool {
		return strings.Contains(log.String(), "killed by levada: a call took longer than the processing timeout")
	}, log.String)
	if all := d.all(); !slices.Contains(all, "hang") || slices.Contains(all, "signal") || strings.Contains(log.String(), "signal") {
		t.Errorf("deaths: %v; log:\n%s", all, log.String())
	}
}

// TestInvalidUTF8KillsNoFunction: keys, headers and ids that protobuf cannot carry ended the call, and with it the function, three times.
func TestInvalidUTF8KillsNoFunction(t *testing.T) {
	modes(t, func(t *testing.T, cfg function.Config) {
		var died atomic.Int64
		cfg.Command, cfg.Died = []string{example(t, "cat")}, func(string) { died.Add(1) }
		f := run(t, cfg)
		in := messages(10, number)
		in[3].Keys = []string{"M\xfcller"}
		in[4].Headers = flow.AppendHeader(nil, "X-Name", "M\xfcller")
		in[5].Headers = flow.AppendHeader(nil, "X-\xfc", "")
		in[6].ID = "in/\xff/6"
		in[7].Metadata = []byte("\x1a\x05\x0a\x01\xff\x12\x00") // user {"\xff": {}}
		out, err := f.Map(t.Context(), in)
		if err != nil {
			t.Fatal(err)
		}
		for i := range out {
			if out[i].Verdict != function.Done || len(out[i].Results) != 1 || string(out[i].Results[0].Value) != number(i) {
				t.Errorf("message %d: %+v, %+v", i, out[i], out[i].Failure)
			}
		}
		if got := f.Replaced(); got != 5 || died.Load() != 0 || in[3].Keys[0] != "M\xfcller" {
			t.Errorf("%d replaced, want 5; %d deaths; the input has %q", got, died.Load(), in[3].Keys)
		}
	})
}

func eventually(t *testing.T, holds func() bool, seen func() string) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !holds(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("it does not hold. Seen:\n%s", seen())
		}
	}
}

// TestSlowStartIsReported: nothing was said for a minute, and the command gave up after three.
func TestSlowStartIsReported(t *testing.T) {
	var log lines
	f := run(t, function.Config{Command: []string{"/bin/sh", "-c", "echo loading the model >&2; exec sleep 60"}, Logger: log.logger(), ReadyTimeout: 4 * time.Second})
	begun := time.Now()
	eventually(t, func() bool { return strings.Contains(log.String(), "function is not ready, waiting") }, log.String)
	if took := time.Since(begun); took < time.Second || took > 4*time.Second {
		t.Errorf("reported after %v", took)
	}
	for _, want := range []string{"did not write mapper-server-info", "loading the model", "sleep 60"} {
		if !strings.Contains(log.String(), want) {
			t.Errorf("the line does not say %q: %s", want, log.String())
		}
	}
	err := f.Ready(t.Context())
	for _, want := range []string{t.Name(), "sleep 60", "not ready within 4s", "did not write mapper-server-info", "loading the model", "must serve a mapper"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("the error does not say %q: %v", want, err)
		}
	}
	if strings.Count(log.String(), "function is not ready, waiting") != 1 {
		t.Errorf("more than one line:\n%s", log.String())
	}
}

// TestWhatCannotStartFailsAtOnce: no second try helps.
func TestWhatCannotStartFailsAtOnce(t *testing.T) {
	dir := t.TempDir()
	write := func(name, content string, mode os.FileMode) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	// An ELF header of a machine that nobody has.
	foreign := "\x7fELF\x02\x01\x01" + strings.Repeat("\x00", 9) + "\x02\x00\xff\xfe\x01\x00\x00\x00" + strings.Repeat("\x00", 40)
	for name, c := range map[string]struct {
		command []string
		want    string
	}{
		"not executable":     {[]string{write("plain", "#!/bin/sh\n", 0o644)}, "permission denied"},
		"other architecture": {[]string{write("foreign", foreign, 0o755)}, "exec format error"},
		"no interpreter":     {[]string{write("script", "#!/no/such/interpreter\n", 0o755)}, "no such file"},
		"library missing":    {[]string{write("linked", "#!/bin/sh\necho error while loading shared libraries: libx.so.1: cannot open shared object file >&2\nexit 127\n", 0o755)}, "libx.so.1"},
		"not found by shell": {[]string{"/bin/sh", "-c", "no-such-program-at-all"}, "could not be run"},
	} {
		t.Run(name, func(t *testing.T) {
			var d deaths
			f := run(t, function.Config{Command: c.command, Died: d.add})
			err := f.Ready(t.Context())
			if err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), c.command[0]) {
				t.Errorf("got %v, want it to say %q", err, c.want)
			}
			if n := len(d.all()); n != 1 {
				t.Errorf("%d attempts", n)
			}
		})
	}
}

// reachable is this program at a path that any user can execute.
func reachable(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "reachable-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	me, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	from, err := os.Open(me)
	if err != nil {
		t.Fatal(err)
	}
	defer from.Close()
	path := filepath.Join(dir, "program")
	to, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o755)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(to, from); err != nil {
		t.Fatal(err)
	}
	if err := to.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

const unprivilegedTest = "LEVADA_TEST_UNPRIVILEGED"

// TestFunctionsOfNumaflowSDKsRunWithoutRoot: they listen in /var/run/numaflow, which other users than root can neither make nor share.
func TestFunctionsOfNumaflowSDKsRunWithoutRoot(t *testing.T) {
	if os.Geteuid() != 0 || os.Getenv(unprivilegedTest) != "" {
		if !function.CanMount() {
			if os.Getenv("CI") == "true" {
				t.Fatal("user namespaces are not allowed here")
			}
			t.Skip("user namespaces are not allowed here")
		}
		a := myself(t, "go-stream-fixed", function.Config{})
		b := myself(t, "go-stream-fixed", function.Config{Mounts: []function.Mount{{Source: t.TempDir(), Target: "/no/such/place/here"}, {Source: t.TempDir(), Target: "/etc/levada-test", ReadOnly: true}}})
		for _, f := range []*function.Function{a, b} {
			in := messages(5, number)
			out, err := f.Map(t.Context(), in)
			if err != nil {
				t.Fatal(err)
			}
			wantEcho(t, in, out)
		}
		return
	}
	home, err := os.MkdirTemp("", "lv") // short, as sockets want it
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(home)
	if err := os.Chown(home, 65534, 65534); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(reachable(t), "-test.run=^"+t.Name()+"$", "-test.v")
	cmd.Dir = home
	cmd.Env = append(os.Environ(), unprivilegedTest+"=1", "TMPDIR="+home, "HOME="+home)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	out, err := cmd.CombinedOutput()
	t.Logf("as user 65534:\n%s", out)
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(out, []byte("--- SKIP")) {
		t.Skip("user namespaces are not allowed here")
	}
}

// TestFunctionRunsAsAnotherUser: its user is not ours, and it can be called all the same.
func TestFunctionRunsAsAnotherUser(t *testing.T) {
	if os.Geteuid() != 0 {
		if _, err := function.ParseUser("0"); err == nil || !strings.Contains(err.Error(), "only root") {
			t.Errorf("got %v", err)
		}
		if os.Getenv("CI") == "true" {
			t.Fatal("only root can become another user")
		}
		t.Skip("only root can become another user")
	}
	u, err := function.ParseUser("65534:65533")
	if err != nil {
		t.Fatal(err)
	}
	f := myself(t, "whoami", function.Config{Command: []string{reachable(t)}, User: u})
	out, err := f.Map(context.Background(), messages(1, number))
	if err != nil {
		t.Fatal(err)
	}
	if got := string(out[0].Results[0].Value); got != "65534:65533 [65533]" && got != "65534:65533 []" {
		t.Errorf("it is user %s", got)
	}
}

// TestFunctionsDoNotInheritCredentials: of our environment they get what is listed, and what is allowed by name.
func TestFunctionsDoNotInheritCredentials(t *testing.T) {
	for name, value := range map[string]string{
		"LEVADA_NATS_PASSWORD": "1", "AWS_SECRET_ACCESS_KEY": "2", "NATS_URL": "3", "LC_TIME": "C", "TZ": "UTC", "NUMAFLOW_DEBUG": "true", "PROXY_A": "4", "PROXY_B": "5", "OTHER": "6",
	} {
		t.Setenv(name, value)
	}
	env := function.Inherited([]string{"PROXY_*", "OTHER", "LEVADA_*"}, nil)
	for name, want := range map[string]string{
		"LEVADA_NATS_PASSWORD": "", "AWS_SECRET_ACCESS_KEY": "", "NATS_URL": "", "LC_TIME": "C", "TZ": "UTC", "NUMAFLOW_DEBUG": "true", "PROXY_A": "4", "PROXY_B": "5", "OTHER": "6", "PATH": os.Getenv("PATH"),
	} {
		if env[name] != want {
			t.Errorf("%s is %q, want %q", name, env[name], want)
		}
	}
	for _, bad := range []string{"", "A=B", "*", "LEVADA_*", "A B"} {
		if function.CheckVariables([]string{bad}) == nil {
			t.Errorf("%q is accepted", bad)
		}
	}
}
