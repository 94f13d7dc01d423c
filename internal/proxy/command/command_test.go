package command

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/levada-io/levada/grpclife"
	"github.com/levada-io/levada/internal/commandline"
	"github.com/levada-io/levada/internal/proxy"
	"github.com/levada-io/levada/internal/proxy/admin"
	"github.com/levada-io/levada/internal/proxy/observe"
	"github.com/levada-io/levada/internal/proxy/proxytest"
)

// program is the command as a program of its own.
func program(args []string, stdin string, stdout, stderr io.Writer) *cobra.Command {
	cmd := commandline.Root(New(Options{Name: "levada-proxy", Version: "dev"}), "dev")
	cmd.SetArgs(args)
	cmd.SetIn(strings.NewReader(stdin))
	cmd.SetOut(stdout)
	cmd.SetErr(stderr)
	return cmd
}

// outcome of a command: what it printed and how it ended.
type outcome struct {
	stdout, stderr string
	code           int
}

func invoke(t *testing.T, stdin string, args ...string) outcome {
	t.Helper()
	var stdout, stderr bytes.Buffer
	code := commandline.Execute(t.Context(), program(args, stdin, &stdout, &stderr))
	return outcome{stdout.String(), stderr.String(), code}
}

func file(t *testing.T, name, text string) string {
	t.Helper()
	t.Chdir(t.TempDir())
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

// said is what a command that runs has written.
type said struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (s *said) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.Write(b)
}

func (s *said) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.String()
}

// service is a command that runs in the background, at most until the test ends.
type service struct {
	t              *testing.T
	stdout, stderr said
	stop, wait     func() int // both return the exit code; wait does not stop it
}

func start(t *testing.T, args ...string) *service {
	t.Helper()
	s := &service{t: t}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	ended := make(chan int, 1)
	go func() { ended <- commandline.Execute(ctx, program(args, "", &s.stdout, &s.stderr)) }()
	s.wait = sync.OnceValue(func() int { return <-ended })
	s.stop = func() int { cancel(); return s.wait() }
	t.Cleanup(func() {
		s.stop()
		if t.Failed() {
			t.Logf("%v:\n%s", args, &s.stderr)
		}
	})
	return s
}

// eventually waits for what a service does.
func (s *service) eventually(what string, ok func() bool) {
	s.t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			s.t.Fatalf("not within 30 s: %s", what)
		}
	}
}

// runningProxy is a proxy in the background.
type runningProxy struct {
	*service
	address, admin string
}

var listens, shows = regexp.MustCompile(`"listening".*"address":"([^"]+)"`), regexp.MustCompile(`"metrics(?:, probes and the state| and probes)".*"address":"([^"]+)"`)

func proxying(t *testing.T, flags ...string) *runningProxy {
	t.Helper()
	p := &runningProxy{service: start(t, append([]string{"--log-format", "json"}, flags...)...)}
	found := func(what *regexp.Regexp) func() bool {
		return func() bool { return what.MatchString(p.stderr.String()) }
	}
	p.eventually("it shows itself", found(shows))
	p.eventually("it listens", found(listens))
	p.address, p.admin = listens.FindStringSubmatch(p.stderr.String())[1], shows.FindStringSubmatch(p.stderr.String())[1]
	p.eventually("it is ready", func() bool { code, _ := p.get("/readyz"); return code == http.StatusOK })
	return p
}

func (p *runningProxy) get(path string) (code int, text string) {
	p.t.Helper()
	r, err := http.Get("http://" + p.admin + path)
	if err != nil {
		p.t.Fatal(err)
	}
	defer func() { _ = r.Body.Close() }()
	b, err := io.ReadAll(r.Body)
	if err != nil {
		p.t.Fatal(err)
	}
	return r.StatusCode, string(b)
}

func (p *runningProxy) client() healthv1.HealthClient {
	p.t.Helper()
	c, err := grpc.NewClient(p.address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { _ = c.Close() })
	return healthv1.NewHealthClient(c)
}

func (p *runningProxy) check(client healthv1.HealthClient) {
	p.t.Helper()
	if _, err := client.Check(p.t.Context(), &healthv1.HealthCheckRequest{}); err != nil {
		p.t.Fatal(err)
	}
}

// Each bad input has one error, which says what was expected.
func TestBadInput(t *testing.T) {
	dir := t.TempDir()
	broken := filepath.Join(dir, "proxy.yaml")
	if err := os.WriteFile(broken, []byte("listener: []\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args string
		code int
		want string
	}{
		{"", 2, "--backend TARGET, or --config FILE"},
		{"--backend nowhere", 2, "--backend"},
		{"--backend a:1 --listen nowhere", 2, "--listen"},
		{"--backend a:1 --listen 203.0.113.1:1 --admin=", 1, "listen for clients (--listen, listeners[].address): listen tcp 203.0.113.1:1"},
		{"--backend a:1 --drain -1s", 2, "--drain"},
		{"--backend a:1 --tls-cert x", 2, "--tls-key"},
		{"--backend a:1 --tls-cert x --tls-key y", 2, "--tls-cert: x cannot be read"},
		{"--backend a:1 --log-level loud", 2, "debug, info, warn or error"},
		{"--backend a:1 --listen 127.0.0.1:0 --admin 127.0.0.1:0 --access-log " + dir, 1, "access log (--access-log, accessLog.path): open " + dir + ": is a directory"},
		{"--backend a:1 --listen 127.0.0.1:0 --admin 203.0.113.1:1", 1, "(--admin, admin.address)"},
		{"--config -", 2, "standard input:1:1: the file is empty"},
		{"--config " + dir + "/none", 2, "no such file"},
		{"--config " + broken, 2, "did you mean listeners"},
		{"--config " + broken + " --listen :1 --restore-unavailable", 2, "move --listen, --restore-unavailable to the file"},
		{"nothing", 2, "unknown command"},
		{"top --interval 1ms", 2, "100ms or more"},
		{"top x", 2, "unknown command"},
		{"top --count -1", 2, "--count"},
		{"top --rows -1", 2, "--rows"},
		{"top --admin 127.0.0.1:1", 1, "ask the proxy (--admin)"},
		{"top --admin ftp://x", 2, "such as 127.0.0.1:9901"},
		{"tap --admin 127.0.0.1:1", 1, "ask the proxy (--admin)"},
		{"tap --code BROKEN", 2, "such as UNAVAILABLE or 14"},
		{"tap --reason NOPE", 2, "--reason: \"NOPE\" is not a reason; expected one of: BACKEND, "},
		{"tap --path demo.Echo/Say", 2, "--path: \"demo.Echo/Say\": expected /service/method"},
		{"tap --path /demo*x", 2, "--path"},
		{"tap -o yaml", 2, "text or json"},
		{"--backend kubernetes:///shop/orders:8080 --listen 127.0.0.1:0 --admin=", 2, "--backend: this program was built without the client of Kubernetes; use levada proxy"},
		{"drain x", 2, "unknown command"},
		{"undrain x", 2, "unknown command"},
		{"undrain --admin 127.0.0.1:1", 1, "ask the proxy (--admin)"},
		{"undrain --admin unix:" + dir + "/none", 1, "ask the proxy (--admin)"},
		{"undrain --admin unix:", 2, "such as unix:/run/levada/admin.sock"},
		{"top --admin-token-file " + dir + "/none", 2, "--admin-token-file: open"},
		{"--backend a:1 --admin-control :9902", 2, "--admin-control: \":9902\" can be reached from other machines, and there is no token"},
		{"--backend a:1 --admin-control 127.0.0.1:9901", 2, "--admin-control"},
		{"--backend a:1 --admin-control nowhere", 2, "--admin-control"},
		{"--backend a:1 --admin-control unix:", 2, "--admin-control"},
		{"--backend a:1 --admin-token-file " + dir + "/none", 2, "--admin-token-file: " + dir + "/none cannot be read"},
		{"--backend a:1 --admin-token-file " + broken, 2, "less than 16 bytes"},
		{"--backend a:1 --listen 127.0.0.1:0 --admin= --admin-control unix:" + dir + "/none/x", 1, "(--admin-control, admin.control)"},
		{"drain --admin 127.0.0.1:1", 1, "ask the proxy (--admin)"},
		{"drain --timeout -1s", 2, "0 or more"},
		{"validate", 2, "needs a file"},
		{"validate -o yaml " + broken, 2, "text or json"},
		{"validate --excerpt some " + broken, 2, "auto, always or never"},
	} {
		t.Run(c.args, func(t *testing.T) {
			o := invoke(t, "", strings.Fields(c.args)...)
			lines := strings.Count(strings.TrimSpace(o.stderr), "\n") // the log's are not about the input
			if o.code != c.code || !strings.Contains(o.stderr, c.want) || lines > 1 {
				t.Errorf("exit code %d, want %d with a line that says %q:\n%s", o.code, c.code, c.want, o.stderr)
			}
		})
	}
}

const brokenProxy = `listeners:
- address: :8080
backends:
- name: orders
  target: dns:///orders:50051
  conectTimeout: 3s
routes:
- backend: orders
  retry: {on: [UNAVAILABEL]}
`

func TestValidate(t *testing.T) {
	for _, c := range []struct{ format, want string }{
		{"text", `proxy.yaml:6:3: backends[0].conectTimeout: there is no such field
     6 |   conectTimeout: 3s
       |   ^
    did you mean: connectTimeout
proxy.yaml:9:16: routes[0].retry.on[0]: "UNAVAILABEL" does not exist
     9 |   retry: {on: [UNAVAILABEL]}
       |                ^
    expected: a status code of gRPC such as UNAVAILABLE
    did you mean: UNAVAILABLE
1 file: 2 errors
`},
		{"json", `{
  "files": 1,
  "errors": 2,
  "problems": [
    {
      "file": "proxy.yaml",
      "line": 6,
      "column": 3,
      "path": "backends[0].conectTimeout",
      "message": "there is no such field",
      "didYouMean": "connectTimeout"
    },
    {
      "file": "proxy.yaml",
      "line": 9,
      "column": 16,
      "path": "routes[0].retry.on[0]",
      "message": "\"UNAVAILABEL\" does not exist",
      "expected": "a status code of gRPC such as UNAVAILABLE",
      "didYouMean": "UNAVAILABLE"
    }
  ]
}
`},
	} {
		t.Run(c.format, func(t *testing.T) {
			got := invoke(t, "", "validate", "-o", c.format, "--excerpt", "always", file(t, "proxy.yaml", brokenProxy))
			if diff := cmp.Diff(outcome{c.want, "", commandline.ExitProblems}, got, cmp.AllowUnexported(outcome{})); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestValidateExitCodes(t *testing.T) {
	const good = "backends:\n- name: a\n  target: a:1\n  tls: {ca: /nowhere/ca.pem}\n"
	for _, c := range []struct {
		name, stdin string
		args        []string
		want        outcome
	}{
		{"good", "", []string{file(t, "good.yaml", good)}, outcome{"1 file: 0 errors\n", "", 0}},
		{"from the standard input", good, []string{"-"}, outcome{"1 file: 0 errors\n", "", 0}},
		{"two, one of them missing", "", []string{file(t, "good.yaml", good), "none.yaml"},
			outcome{"none.yaml: read the configuration: open none.yaml: no such file or directory\n2 files: 1 error\n", "", commandline.ExitProblems}},
		{"kubernetes", "backends:\n- {name: a, target: 'kubernetes:///shop/a:1'}\n", []string{"-"}, outcome{"standard input:2:21: backends[0].target: " +
			"this program was built without the client of Kubernetes\n    hint: use levada proxy, which has it, or dns:/// with a headless Service\n1 file: 1 error\n",
			"", commandline.ExitProblems}},
		{"files", good, []string{"--files", "-"}, outcome{"standard input:4:13: backends[0].tls.ca: /nowhere/ca.pem cannot be read: no such file or directory\n" +
			"    hint: relative paths begin at the working directory of the proxy\n1 file: 1 error\n", "", commandline.ExitProblems}},
		{"what is not text", "a: \"\x1b[31m\"\n", []string{"--excerpt", "always", "-"}, outcome{"", "", commandline.ExitProblems}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := invoke(t, c.stdin, append([]string{"validate"}, c.args...)...)
			if strings.ContainsRune(got.stdout, 0x1b) {
				t.Errorf("a control character got through: %q", got.stdout)
			}
			if c.want.stdout == "" {
				c.want.stdout = got.stdout
			}
			if diff := cmp.Diff(c.want, got, cmp.AllowUnexported(outcome{})); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// The examples are valid.
func TestValidateExamples(t *testing.T) {
	for _, name := range []string{"simple.yaml", "full.yaml"} {
		if o := invoke(t, "", "validate", "../../../examples/proxy/"+name); o.code != 0 {
			t.Errorf("%s: %s", name, o.stdout)
		}
	}
}

// The whole of it by flags: calls, the log, the tap, top, and the end.
func TestCommand(t *testing.T) {
	backend := proxytest.NewBackend(t)
	p := proxying(t, "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--backend", backend.Address, "--access-log", "-", "--drain", "100ms")
	tap := start(t, "tap", "--admin", p.admin, "--path", "/grpc.*")
	p.eventually("the tap is open", func() bool {
		_, text := p.get("/metrics")
		return strings.Contains(text, "levada_proxy_tap_clients 1\n")
	})
	client := p.client()
	for range 20 {
		p.check(client)
	}
	w, err := client.Watch(t.Context(), &healthv1.HealthCheckRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Recv(); err != nil {
		t.Fatal(err)
	}
	p.eventually("20 calls and a stream's beginning", func() bool { return strings.Count(tap.stdout.String(), "\n") == 41 })
	line := regexp.MustCompile(`^\d\d:\d\d:\d\d\.\d{3}  ended  1\.1 +/grpc\.health\.v1\.Health/Check  OK BACKEND after [0-9.µms]+ at ` + backend.Address + `, messages 1 in 1 out$`)
	if got := strings.Split(tap.stdout.String(), "\n")[1]; !line.MatchString(got) {
		t.Errorf("the tap's second line is %q", got)
	}

	o := invoke(t, "", "top", "--admin", p.admin, "--count", "1")
	for _, want := range []string{
		`(?m)^proxy dev, ready, up \d+s, 1 connection; rates and latencies since its start$`,
		`(?m)^METHOD +KIND +CALLS/S +OPEN +MEAN +P50 +P99 +STATUSES$`,
		`(?m)^/grpc\.health\.v1\.Health/Check +unary +[0-9.]+ +0 +[0-9.µms]+ +[0-9.µms]+ +[0-9.µms]+ +OK 20$`,
		`(?m)^/grpc\.health\.v1\.Health/Watch +streaming +0\.0 +1 +- +- +-`,
		`(?m)^backend +` + backend.Address + ` +ready +1 +0 +1 +[0-9.µms]+ +0 of \d+`,
	} {
		if o.code != 0 || !regexp.MustCompile(want).MatchString(o.stdout) {
			t.Errorf("top does not say %s, but with exit code %d:\n%s%s", want, o.code, o.stdout, o.stderr)
		}
	}
	if code, _ := p.get("/debug/pprof/"); code != http.StatusNotFound {
		t.Errorf("profiles without --pprof: %d", code)
	}

	ended := make(chan error, 1)
	go func() { _, err := w.Recv(); ended <- err }()
	if code := p.stop(); code != 0 {
		t.Errorf("exit code %d", code)
	}
	if err := <-ended; err == nil {
		t.Error("the stream was not ended")
	}
	if code := tap.wait(); code != commandline.ExitProblems || !strings.Contains(tap.stderr.String(), "the proxy has ended the tap") {
		t.Errorf("the tap ends with %d and %q", code, &tap.stderr)
	}
	var reasons []string
	for line := range strings.Lines(p.stdout.String()) {
		var e observe.Event
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Fatal(err)
		}
		reasons = append(reasons, e.Reason)
	}
	if !strings.Contains(p.stderr.String(), "another signal ends the process at once") {
		t.Errorf("no word of a second signal:\n%s", p.stderr.String())
	}
	if !strings.Contains(p.stderr.String(), `"message":"draining","ecs.version":"8.11.0","service.name":"levada","period":"100ms"`) {
		t.Errorf("no period in the log:\n%s", p.stderr.String())
	}
	if len(reasons) != 21 || reasons[0] != "BACKEND" || reasons[20] != "DRAINING" {
		t.Errorf("the log has the reasons %v", reasons)
	}
}

// A changed file is put in force without a signal; a broken one is not. SIGHUP reopens the log.
func TestReload(t *testing.T) {
	first, second := proxytest.NewBackend(t), proxytest.NewBackend(t)
	dir := t.TempDir()
	name, log := filepath.Join(dir, "proxy.yaml"), filepath.Join(dir, "log")
	write := func(text string, args ...any) {
		t.Helper()
		if err := os.WriteFile(name+".new", fmt.Appendf(nil, text, args...), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(name+".new", name); err != nil {
			t.Fatal(err)
		}
	}
	const text = "listeners: [{address: \"127.0.0.1:%d\"}]\nadmin: {address: \"127.0.0.1:0\"}\ndrain: {period: 10ms}\naccessLog: {path: %q}\nbackends: [{name: b, target: %q}]\n"
	write(text, 0, "", first.Address)
	p := proxying(t, "--config", name, "--pprof")
	client := p.client()
	p.check(client)

	write(text, 0, log, second.Address)
	p.eventually("the new target", func() bool { _, text := p.get("/config"); return strings.Contains(text, second.Address) })
	p.check(client)
	if _, text := p.get("/metrics"); !strings.Contains(text, `levada_proxy_calls_ended_total{backend="b",grpc_status="OK",method="other",route="*"} 2`) {
		t.Errorf("a reload set counters back:\n%s", text)
	}

	write("backends: [{name: b}]\n")
	p.eventually("the refusal", func() bool {
		_, text := p.get("/metrics")
		return strings.Contains(text, "levada_proxy_config_reloads_total{result=\"failure\"} 1\n")
	})
	if !strings.Contains(p.stderr.String(), "backends[0].target") {
		t.Error("nothing says what is wrong")
	}
	p.check(client)

	lines := func(path string) int {
		b, err := os.ReadFile(path)
		if err != nil {
			return -1
		}
		return strings.Count(string(b), "\n")
	}
	p.eventually("the log", func() bool { return lines(log) == 2 })
	write(text, 0, log, second.Address)
	p.eventually("the good file again", func() bool {
		_, text := p.get("/metrics")
		return strings.Contains(text, "levada_proxy_config_reloads_total{result=\"success\"} 2\n")
	})
	if err := os.Rename(log, log+".1"); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(os.Getpid(), syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	p.eventually("the new log", func() bool { return lines(log) == 0 })
	p.check(client)
	p.eventually("its line", func() bool { return lines(log) == 1 && lines(log+".1") == 2 })
	if code, _ := p.get("/debug/pprof/symbol"); code != http.StatusOK {
		t.Errorf("profiles with --pprof: %d", code)
	}
	if code := p.stop(); code != 0 {
		t.Errorf("exit code %d", code)
	}
}

// drainable is a proxy with a stream through it, which drains as the configuration says.
func drainable(t *testing.T, notice, period string) (*runningProxy, healthv1.Health_WatchClient) {
	t.Helper()
	backend := proxytest.NewBackend(t)
	name := filepath.Join(t.TempDir(), "proxy.yaml")
	text := fmt.Sprintf("listeners: [{address: \"127.0.0.1:0\"}]\nadmin: {address: \"127.0.0.1:0\"}\ndrain: {notice: %s, period: %s}\nbackends: [{name: b, target: %q}]\n",
		notice, period, backend.Address)
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	p := proxying(t, "--config", name)
	w, err := p.client().Watch(t.Context(), &healthv1.HealthCheckRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Recv(); err != nil {
		t.Fatal(err)
	}
	return p, w
}

// A drain lasts for the notice, in which calls are taken, and until the last stream has ended; the proxy goes on to run.
func TestDrain(t *testing.T) {
	p, w := drainable(t, "2s", "100ms")
	begun := time.Now()
	drain := start(t, "drain", "--admin", p.admin, "--timeout", "1m")
	p.eventually("it drains", func() bool { code, _ := p.get("/readyz"); return code == http.StatusServiceUnavailable })
	p.check(p.client())
	if took := time.Since(begun); took > 2*time.Second {
		t.Errorf("the call in the notice came after %v", took)
	}
	_, err := w.Recv()
	if class := grpclife.Classify(err); class.Reason != grpclife.ReasonDraining {
		t.Errorf("the stream ended with %v", err)
	}
	if code := drain.wait(); code != 0 || time.Since(begun) < 2*time.Second {
		t.Errorf("exit code %d after %v: %s", code, time.Since(begun), &drain.stderr)
	}
	if got := drain.stdout.String(); !regexp.MustCompile(`^draining 1 stream: notice 2s, then over 100ms\n(\d streams? left\n)*drained\n$`).MatchString(got) {
		t.Errorf("it says:\n%s", got)
	}
	if o := invoke(t, "", "drain", "--admin", p.admin); o.code != 0 || !strings.HasSuffix(o.stdout, "drained\n") {
		t.Errorf("the second: %+v", o)
	}
	if code, _ := p.get("/livez"); code != http.StatusOK {
		t.Errorf("the proxy has gone: %d", code)
	}
	if code := p.stop(); code != 0 {
		t.Errorf("exit code %d", code)
	}
}

// The commands that ask a proxy find it at a Unix socket with a token, too; a proxy that was drained serves again.
func TestControlAtASocketWithAToken(t *testing.T) {
	dir := t.TempDir()
	socket, token, wrong := filepath.Join(dir, "admin.sock"), filepath.Join(dir, "token"), filepath.Join(dir, "wrong")
	for name, text := range map[string]string{token: "0123456789abcdef\n", wrong: "fedcba9876543210"} {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	p := proxying(t, "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--admin-control", "unix:"+socket, "--admin-token-file", token,
		"--backend", proxytest.NewBackend(t).Address, "--drain", "100ms")
	p.check(p.client())
	for _, args := range [][]string{{"undrain"}, {"drain"}, {"top", "--count", "1"}, {"tap"}} {
		if o := invoke(t, "", append(args, "--admin", p.admin)...); o.code != commandline.ExitProblems || !strings.Contains(o.stderr, "the rest is at admin.control, unix:"+socket) {
			t.Errorf("%v at the public address: %+v", args, o)
		}
		if o := invoke(t, "", append(args, "--admin", "unix:"+socket)...); o.code != commandline.ExitProblems || !strings.Contains(o.stderr, "--admin-token-file") {
			t.Errorf("%v without the token: %+v", args, o)
		}
		if o := invoke(t, "", append(args, "--admin", "unix:"+socket, "--admin-token-file", wrong)...); o.code != commandline.ExitProblems || !strings.Contains(o.stderr, "401") {
			t.Errorf("%v with another token: %+v", args, o)
		}
	}
	at := []string{"--admin", "unix:" + socket, "--admin-token-file", token}
	for range 2 {
		if o := invoke(t, "", append([]string{"drain"}, at...)...); o.code != 0 || !strings.HasSuffix(o.stdout, "drained\n") {
			t.Errorf("%+v", o)
		}
		if code, text := p.get("/readyz"); code != http.StatusServiceUnavailable || !strings.Contains(text, "levada proxy undrain") {
			t.Errorf("drained: %d %s", code, text)
		}
		if o := invoke(t, "", append([]string{"undrain"}, at...)...); o.code != 0 || o.stdout != "the proxy serves\n" {
			t.Errorf("%+v", o)
		}
		if code, _ := p.get("/readyz"); code != http.StatusOK {
			t.Errorf("undrained: %d", code)
		}
		p.check(p.client())
	}
	if o := invoke(t, "", append([]string{"top", "--count", "1"}, at...)...); o.code != 0 || !strings.Contains(o.stdout, "/grpc.health.v1.Health/Check") {
		t.Errorf("%+v", o)
	}
	if code := p.stop(); code != 0 {
		t.Errorf("exit code %d", code)
	}
	if _, err := os.Lstat(socket); err == nil {
		t.Error("the socket is still there")
	}
}

// SIGTERM in the drain ends the proxy once it has drained, and a client that waits for the drain gets the end of it first.
func TestDrainUntilTheEnd(t *testing.T) {
	p, w := drainable(t, "500ms", "100ms")
	drain := start(t, "drain", "--admin", p.admin)
	p.eventually("it drains", func() bool { return strings.Contains(drain.stdout.String(), "draining 1 stream") })
	if code := p.stop(); code != 0 {
		t.Errorf("exit code %d", code)
	}
	if _, err := w.Recv(); err == nil {
		t.Error("the stream was not ended")
	}
	if code := drain.wait(); code != 0 || !strings.HasSuffix(drain.stdout.String(), "\ndrained\n") {
		t.Errorf("exit code %d:\n%s%s", code, &drain.stdout, &drain.stderr)
	}
	if said := p.stderr.String(); strings.Contains(said, "waiting for SIGTERM") {
		t.Errorf("SIGTERM has come already:\n%s", said)
	}
}

func TestDrainTimeout(t *testing.T) {
	p, _ := drainable(t, "3s", "0s")
	o := invoke(t, "", "drain", "--admin", p.admin, "--timeout", "200ms")
	if o.code != commandline.ExitProblems || !strings.Contains(o.stderr, "not drained within 200ms (--timeout): the drain goes on; 1 stream open") {
		t.Errorf("%+v", o)
	}
	if code, _ := p.get("/readyz"); code != http.StatusServiceUnavailable {
		t.Errorf("the drain does not go on: %d", code)
	}
}

// A proxy that dies in the drain has not drained.
func TestDrainOfAProxyThatDies(t *testing.T) {
	for name, c := range map[string]struct {
		says string
		want string
	}{
		"dead":     {`{"draining":true,"streams":2}` + "\n" + `{"drain`, "the proxy has ended before it had drained; 2 streams open"},
		"no proxy": {"<html>", "is not what a proxy answers"},
	} {
		t.Run(name, func(t *testing.T) {
			s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				_, _ = io.WriteString(w, c.says)
				_ = http.NewResponseController(w).Flush()
				panic(http.ErrAbortHandler) // closes the connection
			}))
			defer s.Close()
			if o := invoke(t, "", "drain", "--admin", s.URL); o.code != commandline.ExitProblems || !strings.Contains(o.stderr, c.want) {
				t.Errorf("%+v, want %q", o, c.want)
			}
		})
	}
}

// Flags are looked up in the environment, of the command itself and of those below it.
func TestEnvironment(t *testing.T) {
	t.Setenv("LEVADA_BACKEND", "nowhere")
	if o := invoke(t, ""); o.code != commandline.ExitUsage || !strings.Contains(o.stderr, "nowhere") {
		t.Errorf("%+v", o)
	}
	t.Setenv("LEVADA_TIMEOUT", "soon")
	t.Setenv("LEVADA_ADMIN", "127.0.0.1:1")
	const both = "move --admin (from the environment variable LEVADA_ADMIN), --backend (from the environment variable LEVADA_BACKEND), --listen to the file"
	if o := invoke(t, "", "--config", "proxy.yaml", "--listen", ":1"); o.code != commandline.ExitUsage || !strings.Contains(o.stderr, both) {
		t.Errorf("%+v", o)
	}
	if o := invoke(t, "", "drain"); o.code != commandline.ExitUsage || !strings.Contains(o.stderr, "environment variable LEVADA_TIMEOUT") {
		t.Errorf("%+v", o)
	}
}

// A configuration can come from the standard input.
func TestConfigFromInput(t *testing.T) {
	var stderr said
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	text := "listeners: [{address: '127.0.0.1:0'}]\nadmin: {address: ''}\nbackends: [{name: a, target: 'a:1'}]\n"
	ended := make(chan int, 1)
	go func() {
		ended <- commandline.Execute(ctx, program([]string{"--log-format", "json", "--config", "-"}, text, io.Discard, &stderr))
	}()
	(&service{t: t}).eventually("it listens", func() bool { return listens.MatchString(stderr.String()) })
	cancel()
	if code := <-ended; code != 0 {
		t.Errorf("exit code %d: %s", code, stderr.String())
	}
}

// The calls of a proxy do not depend on who reads what it writes.
func TestClosedOutput(t *testing.T) {
	if args := os.Getenv("PROXY_OF_TEST_CLOSED_OUTPUT"); args != "" { // in the process below
		os.Exit(commandline.Execute(t.Context(), program(strings.Fields(args), "", os.Stdout, os.Stderr)))
	}
	backend := proxytest.NewBackend(t)
	process := exec.Command(os.Args[0], "-test.run=^TestClosedOutput$")
	process.Env = append(os.Environ(), "PROXY_OF_TEST_CLOSED_OUTPUT=--log-format json --listen 127.0.0.1:0 --admin 127.0.0.1:0 --access-log - --backend "+backend.Address)
	stdout, err := process.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	stderr, err := process.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := process.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = process.Process.Kill()
		_ = process.Wait()
	}()
	p := &runningProxy{service: &service{t: t}}
	for lines := bufio.NewScanner(stderr); p.address == "" && lines.Scan(); {
		if m := listens.FindStringSubmatch(lines.Text()); m != nil {
			p.address = m[1]
		}
		if m := shows.FindStringSubmatch(lines.Text()); m != nil {
			p.admin = m[1]
		}
	}
	if err := errors.Join(stdout.Close(), stderr.Close()); err != nil {
		t.Fatal(err)
	}
	client := p.client()
	p.check(client)
	p.eventually("the line cannot be written", func() bool {
		_, text := p.get("/metrics")
		return strings.Contains(text, "levada_proxy_access_log_dropped_total 1\n")
	})
	p.check(client)
}

// A certificate that has expired is served, with a warning; validate --files has it, too.
func TestExpiredCertificate(t *testing.T) {
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Date(2020, 1, 2, 3, 4, 5, 0, time.UTC)}
	certificate, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	key, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(t.TempDir(), "both.pem")
	both := append(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: certificate}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key})...)
	if err := os.WriteFile(name, both, 0o600); err != nil {
		t.Fatal(err)
	}
	const want = "both.pem has expired: it was valid until 2020-01-02T03:04:05Z"
	p := proxying(t, "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--backend", "a:1", "--tls-cert", name, "--tls-key", name)
	if log := p.stderr.String(); !strings.Contains(log, "--tls-cert: ") || !strings.Contains(log, want) {
		t.Errorf("the log is\n%s", log)
	}
	text := fmt.Sprintf("listeners: [{address: ':1', tls: {certificate: %q, key: %q}}]\nbackends: [{name: a, target: 'a:1'}]\n", name, name)
	if o := invoke(t, text, "validate", "--files", "-"); o.code != 0 || !strings.HasPrefix(o.stderr, "warning: standard input:1:") || !strings.Contains(o.stderr, want) {
		t.Errorf("%+v", o)
	}
	if o := invoke(t, text, "validate", "-"); o.code != 0 || o.stderr != "" {
		t.Errorf("%+v", o)
	}
}

// The help names the program that it is of.
func TestHelp(t *testing.T) {
	for _, command := range []string{"", "validate", "tap", "top", "drain", "undrain"} {
		o := invoke(t, "", strings.Fields(command+" --help")...)
		if want := strings.TrimSpace("\n  levada-proxy " + command); !strings.Contains(o.stdout, want) || strings.Contains(o.stdout, "levada proxy") {
			t.Errorf("%q: %s", command, o.stdout)
		}
	}
	if o := invoke(t, "", "--help"); !strings.Contains(o.stdout, "dns+srv:///name or file:///path\n") || strings.Contains(o.stdout, "kubernetes:///") {
		t.Errorf("the targets of this program: %s", o.stdout)
	}
}

func TestFitTo(t *testing.T) {
	for _, c := range []struct {
		text, want    string
		width, height int
	}{
		{"one\ntwo\n", "one\ntwo\n", 10, 3},
		{"one\ntwo\nthree\n", "one\n...\n", 10, 3},
		{"0123456789\n", "012345678\n", 10, 3},
	} {
		if got := fitTo(c.text, func(int) string { return c.text }, c.width, c.height); got != c.want {
			t.Errorf("%q in %d x %d is %q, want %q", c.text, c.width, c.height, got, c.want)
		}
	}
}

// A low terminal shows fewer methods, so that the endpoints are seen.
func TestFitToShowsEndpoints(t *testing.T) {
	now := &admin.Overview{Now: time.Unix(100, 0), StartedAt: time.Unix(0, 0), BucketsSeconds: []float64{1},
		Backends: []proxy.BackendView{{Name: "b", Endpoints: []proxy.EndpointView{{Address: "10.0.0.1:80"}, {Address: "10.0.0.2:80"}}}}}
	for i := range 50 {
		now.Methods = append(now.Methods, proxy.MethodView{Path: fmt.Sprintf("/a.B/%d", i), Took: []int64{0, 0}})
	}
	withRows := func(rows int) string { return topText(nil, now, rows) }
	for height, methods := range map[int]int{30: 20, 24: 15, 13: 4, 12: 3} {
		got := fitTo(withRows(20), withRows, 200, height)
		if lines := strings.Count(got, "\n"); lines >= height || strings.Count(got, "/a.B/") != methods || !strings.Contains(got, "10.0.0.2:80") {
			t.Errorf("in %d lines, of which %d were taken, and not with %d methods:\n%s", height, lines, methods, got)
		}
	}
	if got := fitTo(withRows(20), withRows, 200, 10); strings.Count(got, "/a.B/") != 3 || !strings.HasSuffix(got, "...\n") {
		t.Errorf("with too few lines for both:\n%s", got)
	}
}

func TestQuantile(t *testing.T) {
	bounds := []float64{1, 2, 4}
	for _, c := range []struct {
		counts []int64
		q      float64
		want   float64
	}{
		{[]int64{10, 0, 0, 0}, 0.5, 0.5},
		{[]int64{0, 10, 0, 0}, 0.5, 1.5},
		{[]int64{5, 5, 0, 0}, 0.99, 1.98},
		{[]int64{0, 0, 10, 0}, 1, 4},
		{[]int64{0, 0, 0, 10}, 0.5, 4}, // above the last bucket
	} {
		if got := quantile(c.counts, bounds, 10, c.q); got < c.want-1e-9 || got > c.want+1e-9 {
			t.Errorf("quantile %v of %v is %v, want %v", c.q, c.counts, got, c.want)
		}
	}
	for seconds, want := range map[float64]string{0: "-", 0.0000123456: "12.3µs", 1.23456: "1.23s", 123.456: "2m3s", 0.5: "500ms"} {
		if got := shortSeconds(seconds); got != want {
			t.Errorf("%v is %s, want %s", seconds, got, want)
		}
	}
}
