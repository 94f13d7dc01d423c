package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/levada-io/levada/internal/proxy/observe"
	"github.com/levada-io/levada/internal/proxy/proxytest"
)

// runningProxy is levada proxy in the background.
type runningProxy struct {
	*service
	address, admin string
}

var listens, shows = regexp.MustCompile(`"listening".*"address":"([^"]+)"`), regexp.MustCompile(`"metrics, probes and the state".*"address":"([^"]+)"`)

func proxying(t *testing.T, flags ...string) *runningProxy {
	t.Helper()
	p := &runningProxy{service: start(t, append([]string{"proxy", "--log-format", "json"}, flags...)...)}
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
func TestProxyBadInput(t *testing.T) {
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
		{"--backend a:1 --drain -1s", 2, "--drain"},
		{"--backend a:1 --tls-cert x", 2, "--tls-key"},
		{"--backend a:1 --tls-cert x --tls-key y", 2, "cannot be read"},
		{"--backend a:1 --log-level loud", 2, "debug, info, warn or error"},
		{"--backend a:1 --listen 127.0.0.1:0 --admin 127.0.0.1:0 --access-log " + dir, 1, "is a directory"},
		{"--backend a:1 --listen 127.0.0.1:0 --admin 203.0.113.1:1", 1, "(--admin, admin.address)"},
		{"--config " + dir + "/none", 2, "no such file"},
		{"--config " + broken, 2, "did you mean listeners"},
		{"--config " + broken + " --listen :1 --unmask", 2, "move --listen, --unmask to the file"},
		{"nothing", 1, "unknown command"},
		{"top --interval 1ms", 2, "at least 100ms"},
		{"top x", 1, "unknown command"},
		{"top --admin 127.0.0.1:1", 1, "ask the proxy (--admin)"},
		{"top --admin ftp://x", 2, "such as 127.0.0.1:9901"},
		{"tap --admin 127.0.0.1:1", 1, "ask the proxy (--admin)"},
		{"tap --code BROKEN", 2, "such as UNAVAILABLE or 14"},
		{"tap -o yaml", 2, "text or json"},
		{"validate", 2, "needs a file"},
		{"validate -o yaml " + broken, 2, "text or json"},
		{"validate --excerpt some " + broken, 2, "auto, always or never"},
	} {
		t.Run(c.args, func(t *testing.T) {
			o := levada(t, append([]string{"proxy"}, strings.Fields(c.args)...)...)
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

func TestProxyValidate(t *testing.T) {
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
			got := invoke(t, newProxyValidateCommand(), "", "-o", c.format, "--excerpt", "always", file(t, "proxy.yaml", brokenProxy))
			if diff := cmp.Diff(outcome{c.want, "", exitProblems}, got, cmp.AllowUnexported(outcome{})); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestProxyValidateExitCodes(t *testing.T) {
	const good = "backends:\n- name: a\n  target: a:1\n  tls: {ca: /nowhere/ca.pem}\n"
	for _, c := range []struct {
		name, stdin string
		args        []string
		want        outcome
	}{
		{"good", "", []string{file(t, "good.yaml", good)}, outcome{"1 file: 0 errors\n", "", 0}},
		{"from the standard input", good, []string{"-"}, outcome{"1 file: 0 errors\n", "", 0}},
		{"two, one of them missing", "", []string{file(t, "good.yaml", good), "none.yaml"},
			outcome{"none.yaml: read the configuration: open none.yaml: no such file or directory\n2 files: 1 error\n", "", exitProblems}},
		{"files", good, []string{"--files", "-"}, outcome{"standard input:4:13: backends[0].tls.ca: /nowhere/ca.pem cannot be read: no such file or directory\n" +
			"    hint: relative paths begin at the working directory of the proxy\n1 file: 1 error\n", "", exitProblems}},
		{"what is not text", "a: \"\x1b[31m\"\n", []string{"--excerpt", "always", "-"}, outcome{"", "", exitProblems}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := invoke(t, newProxyValidateCommand(), c.stdin, c.args...)
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
func TestProxyValidateExamples(t *testing.T) {
	for _, name := range []string{"simple.yaml", "full.yaml"} {
		if o := invoke(t, newProxyValidateCommand(), "", "../../examples/proxy/"+name); o.code != 0 {
			t.Errorf("%s: %s", name, o.stdout)
		}
	}
}

// The whole of it by flags: calls, the log, the tap, top, and the end.
func TestProxyCommand(t *testing.T) {
	backend := proxytest.NewBackend(t)
	p := proxying(t, "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--backend", backend.Address, "--access-log", "-", "--drain", "100ms")
	var tapped, complaint said
	tap := newRootCommand()
	tap.SetArgs([]string{"proxy", "tap", "--admin", p.admin, "--path", "/grpc.*"})
	tap.SetOut(&tapped)
	tap.SetErr(&complaint)
	tapEnded := make(chan int, 1)
	go func() { tapEnded <- execute(t.Context(), tap) }()
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
	p.eventually("20 calls and a stream's beginning", func() bool { return strings.Count(tapped.String(), "\n") == 41 })
	line := regexp.MustCompile(`^\d\d:\d\d:\d\d\.\d{3}  ended  1\.1 +/grpc\.health\.v1\.Health/Check  OK BACKEND after [0-9.µms]+ at ` + backend.Address + `, messages 1 in 1 out$`)
	if got := strings.Split(tapped.String(), "\n")[1]; !line.MatchString(got) {
		t.Errorf("the tap's second line is %q", got)
	}

	o := levada(t, "proxy", "top", "--admin", p.admin, "--count", "1")
	for _, want := range []string{
		`(?m)^proxy dev, ready, up \d+s, 1 connection; rates and latencies since its beginning$`,
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
	if code := <-tapEnded; code != exitProblems || !strings.Contains(complaint.String(), "the proxy has ended the tap") {
		t.Errorf("the tap ends with %d and %q", code, &complaint)
	}
	var reasons []string
	for line := range strings.Lines(p.stdout.String()) {
		var e observe.Event
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Fatal(err)
		}
		reasons = append(reasons, e.Reason)
	}
	if len(reasons) != 21 || reasons[0] != "BACKEND" || reasons[20] != "DRAINING" {
		t.Errorf("the log has the reasons %v", reasons)
	}
}

// A changed file is put in force without a signal; a broken one is not, and what needs a restart stays. SIGHUP opens the log anew.
func TestProxyReload(t *testing.T) {
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

	write(text, 1, log, second.Address)
	p.eventually("the new target", func() bool { _, text := p.get("/config"); return strings.Contains(text, second.Address) })
	if _, text := p.get("/config"); !strings.Contains(text, "address: 127.0.0.1:0") {
		t.Errorf("the listeners are said to have changed:\n%s", text)
	}
	if !strings.Contains(p.stderr.String(), `"part":"listeners"`) {
		t.Error("nothing says that listeners need a restart")
	}
	p.check(client)
	if _, text := p.get("/metrics"); !strings.Contains(text, `levada_proxy_calls_ended_total{backend="b",grpc_status="OK",route="*"} 2`) {
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
	if code, _ := p.get("/debug/pprof/cmdline"); code != http.StatusOK {
		t.Errorf("profiles with --pprof: %d", code)
	}
	if code := p.stop(); code != 0 {
		t.Errorf("exit code %d", code)
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
		{[]int64{0, 0, 0, 10}, 0.5, 4}, // above all that is told apart
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
