// Package conformance holds the proxy against the suites that others wrote: h2spec for HTTP/2, the interoperability tests of gRPC for what is in it.
// See package target for how to run it against other proxies.
package conformance

import (
	"context"
	"encoding/xml"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/levada-io/levada/test/proxy/hostile/target"
)

func TestMain(m *testing.M) { target.Run(m) }

// h2spec 2.2.1 has this many cases without --strict.
const h2specCases = 145

func TestH2spec(t *testing.T) {
	backend := answers(t)
	h2spec := tool(t, "github.com/summerwind/h2spec/cmd/h2spec")
	for _, mode := range []struct {
		name string
		tls  bool
		args []string
	}{{"h2c", false, nil}, {"tls", true, []string{"-t", "-k"}}} {
		t.Run(mode.name, func(t *testing.T) {
			proxy := target.Start(t, target.Options{Backend: backend, TLS: mode.tls})
			host, port, err := net.SplitHostPort(proxy.Addr)
			if err != nil {
				t.Fatal(err)
			}
			report := filepath.Join(t.TempDir(), "report.xml")
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
			defer cancel()
			cmd := exec.CommandContext(ctx, h2spec, append(mode.args, "-h", host, "-p", port, "-o", "3", "-j", report)...)
			out, runErr := cmd.CombinedOutput() // an error also says that a case has failed; the report says which
			text, err := os.ReadFile(report)
			if err != nil {
				t.Fatalf("h2spec wrote no report: %v\n%s\nproxy:\n%s", runErr, out, proxy.Log())
			}
			failed, passed, skipped := readReport(t, text)
			for _, f := range failed {
				t.Error(f)
			}
			t.Logf("%s: %d passed, %d skipped, %d failed", proxy.Name, passed, skipped, len(failed))
			if all := passed + skipped + len(failed); all != h2specCases || skipped > 0 {
				t.Errorf("of %d cases %d ran, and %d were skipped", h2specCases, all, skipped)
			}
			if !proxy.Alive() {
				t.Errorf("the proxy has ended:\n%s", proxy.Log())
			}
		})
	}
}

// readReport reads h2spec's report in JUnit's format. A failure carries its section, what the case is about, and what came instead.
func readReport(t *testing.T, text []byte) (failed []string, passed, skipped int) {
	t.Helper()
	var report struct {
		Suites []struct {
			Package string `xml:"package,attr"` // http2/5.1
			Name    string `xml:"name,attr"`
			Cases   []struct {
				Name    string    `xml:"classname,attr"`
				Failure *string   `xml:"failure"`
				Error   *string   `xml:"error"`
				Skipped *struct{} `xml:"skipped"`
			} `xml:"testcase"`
		} `xml:"testsuite"`
	}
	if err := xml.Unmarshal(text, &report); err != nil {
		t.Fatalf("h2spec's report: %v", err)
	}
	for _, suite := range report.Suites {
		for i, c := range suite.Cases {
			why := c.Failure
			if why == nil {
				why = c.Error
			}
			switch {
			case c.Skipped != nil:
				skipped++
			case why != nil:
				failed = append(failed, fmt.Sprintf("%s/%d %s: %s: %s", suite.Package, i+1, suite.Name, c.Name, strings.Join(strings.Fields(*why), " ")))
			default:
				passed++
			}
		}
	}
	return failed, passed, skipped
}

// answers is a backend that says enough for h2spec: a body and a trailer, whatever the method.
func answers(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", target.Backend())
	if err != nil {
		t.Fatal(err)
	}
	h2c := new(http.Protocols)
	h2c.SetUnencryptedHTTP2(true)
	server := &http.Server{Protocols: h2c, ErrorLog: log.New(io.Discard, "", 0), Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body) // a client that gives up is h2spec's business
		w.Header().Set("Trailer", "X-End")
		_, _ = io.WriteString(w, "the quick brown fox jumps over the lazy dog\n")
		w.Header().Set("X-End", "yes")
	})}
	go func() { _ = server.Serve(l) }()
	t.Cleanup(func() { _ = server.Close() })
	return l.Addr().String()
}

func TestInterop(t *testing.T) {
	backend := interopServer(t)
	client := tool(t, "google.golang.org/grpc/interop/client")
	for _, mode := range []struct {
		name string
		tls  bool
	}{{"h2c", false}, {"tls", true}} {
		t.Run(mode.name, func(t *testing.T) {
			proxy := target.Start(t, target.Options{Backend: backend, TLS: mode.tls})
			host, port, err := net.SplitHostPort(proxy.Addr)
			if err != nil {
				t.Fatal(err)
			}
			args := []string{"-server_host=" + host, "-server_port=" + port}
			if mode.tls {
				args = append(args, "-use_tls", "-use_test_ca", "-ca_file="+proxy.Cert, "-server_host_override=localhost")
			}
			for _, c := range interopCases {
				t.Run(c.name, func(t *testing.T) {
					ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
					defer cancel()
					cmd := exec.CommandContext(ctx, client, append(append(args, "-test_case="+c.name), c.args...)...)
					if out, err := cmd.CombinedOutput(); err != nil {
						t.Errorf("%v\n%s\nproxy:\n%s", err, out, proxy.Log())
					}
				})
			}
		})
	}
}

// Those of gRPC's cases that need neither a cloud nor a server with an identity of its own.
var interopCases = []struct {
	name string
	args []string
}{
	{"empty_unary", nil},
	{"large_unary", nil},
	{"client_streaming", nil},
	{"server_streaming", nil},
	{"ping_pong", nil},
	{"empty_stream", nil},
	{"timeout_on_sleeping_server", nil},
	{"cancel_after_begin", nil},
	{"cancel_after_first_response", nil},
	{"status_code_and_message", nil},
	{"special_status_message", nil},
	{"custom_metadata", nil},
	{"unimplemented_method", nil},
	{"unimplemented_service", nil},
	{"orca_per_rpc", []string{`-service_config_json={"loadBalancingConfig":[{"test_backend_metrics_load_balancer":{}}]}`}},
	{"rpc_soak", []string{"-soak_num_threads=4", "-soak_iterations=100", "-soak_overall_timeout_seconds=50", "-soak_per_iteration_max_acceptable_latency_ms=5000"}},
	{"channel_soak", []string{"-soak_num_threads=4", "-soak_iterations=100", "-soak_overall_timeout_seconds=50", "-soak_per_iteration_max_acceptable_latency_ms=5000"}},
}

// interopServer starts gRPC's server of these cases.
func interopServer(t *testing.T) string {
	t.Helper()
	addr := target.Backend()
	if strings.HasSuffix(addr, ":0") {
		l, err := net.Listen("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		addr = l.Addr().String()
		_ = l.Close()
	}
	_, port, _ := net.SplitHostPort(addr)
	cmd := exec.Command(tool(t, "google.golang.org/grpc/interop/server"), "-port="+port)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		c, err := net.DialTimeout("tcp", "127.0.0.1:"+port, time.Second)
		if err == nil {
			_ = c.Close()
			return "127.0.0.1:" + port
		}
		if time.Now().After(end) {
			t.Fatalf("the interop server does not listen on port %s: %v", port, err)
		}
	}
}

// tool builds a tool of tools/go.mod and returns its file.
func tool(t *testing.T, name string) string {
	t.Helper()
	cmd := exec.Command("go", "tool", "-modfile="+filepath.Join("..", "..", "..", "tools", "go.mod"), "-n", name)
	cmd.Env = append(os.Environ(), "GOWORK=off") // the workspace has other versions than the tools
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go tool %s: %v", name, err)
	}
	return strings.TrimSpace(string(out))
}
