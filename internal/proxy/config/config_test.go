package config_test

import (
	"crypto/tls"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"google.golang.org/grpc/codes"

	"github.com/levada-io/levada/internal/proxy/config"
	"github.com/levada-io/levada/internal/strictyaml"
)

// ignoreText leaves out where the fields were written.
var ignoreText = cmpopts.IgnoreUnexported(config.Config{})

func parse(t testing.TB, text string) *config.Config {
	t.Helper()
	c, err := config.Parse("proxy.yaml", []byte(text))
	if err != nil {
		t.Fatalf("%v in\n%s", err, text)
	}
	return c
}

// TestDefaults writes every default down a second time, so that none changes by accident.
func TestDefaults(t *testing.T) {
	want := &config.Config{
		Listeners: []config.Listener{{
			Address: "127.0.0.1:8080", MaxStreams: 100_000, MaxHeaderBytes: 65536, HandshakeTimeout: 10 * time.Second, IdleTimeout: time.Hour,
			Keepalive: config.Keepalive{Interval: 30 * time.Second, Timeout: 20 * time.Second}, Abuse: config.Abuse{Burst: 10_000, PerSecond: 1000},
			Forwarded: config.Forwarded{Policy: "append", ClientCertificate: "none"}, Mode: 0o660,
		}},
		Admin:   config.Admin{Address: "127.0.0.1:9901"},
		Drain:   config.Drain{Period: 30 * time.Second},
		Metrics: config.Metrics{MaxMethods: 100},
		Tracing: config.Tracing{Sample: 0.01},
		Backends: []config.Backend{{
			Name: "orders", Target: "orders:50051", ConnectTimeout: time.Second, MaxResponseHeaderBytes: 16 << 20, WaitForReady: 3 * time.Second,
			Ping:        config.Ping{Interval: 5 * time.Second, Timeout: 5 * time.Second, Gentle: true},
			Balance:     config.Balance{Decay: 10 * time.Second},
			Limits:      config.CallLimits{WaitTimeout: 3 * time.Second},
			HealthCheck: config.HealthCheck{Timeout: time.Second, UnhealthyThreshold: 3, HealthyThreshold: 2},
			Ejection: config.Ejection{
				ConsecutiveFailures: 5, FailureShare: 0.4, MinRequests: 20, Window: 10 * time.Second, BaseTime: 10 * time.Second,
				MaxTime: 5 * time.Minute, MaxEjected: 0.5, PanicThreshold: 0.5,
			},
		}},
		Routes: []config.Route{{
			Ping:    config.RoutePing{Timeout: 5 * time.Second},
			Backend: "orders", StreamAge: 0, StreamAgeJitter: 0.1, HoldBytes: 4 << 20,
			Retry: config.Retry{
				Attempts: 1, On: []config.Code{config.Code(codes.Unavailable), config.Code(codes.ResourceExhausted)}, BufferBytes: 65536,
				Backoff: config.Backoff{Base: 25 * time.Millisecond, Max: 250 * time.Millisecond},
			},
			RetryBudget: config.RetryBudget{Ratio: 0.2, MinPerSecond: 10},
		}},
	}
	for _, text := range []string{
		"backends: [{name: orders, target: 'orders:50051'}]",
		"backends: [{name: orders, target: 'orders:50051'}]\nroutes: [{}]",
		"backends: [{name: orders, target: 'orders:50051'}]\nroutes: [{backend: orders, match: {}, retry: {backoff: {}}}]\nadmin: {}\ndrain: {}",
	} {
		if diff := cmp.Diff(want, parse(t, text), ignoreText); diff != "" {
			t.Errorf("%s (-want +got):\n%s", text, diff)
		}
	}
	if problems := config.Default().Validate(); len(problems) != 1 || problems[0].Path != "backends" {
		t.Errorf("more is wrong with Default than that it has no backend: %v", problems)
	}
}

// TestZero sets to 0 what is not 0 by itself: it must not become the default again.
func TestZero(t *testing.T) {
	c := parse(t, `
listeners: [{address: ":0", idleTimeout: 0, stallTimeout: 0s, keepalive: {interval: 0}, tls: {certificate: a, key: b}}]
admin: {address: ""}
drain: {period: 0}
tracing: {sample: 0}
backends:
- {name: a, target: "a:1", waitForReady: 0, tls: {}, ping: {interval: 0, gentle: false},
   ejection: {consecutiveFailures: 0, failureShare: 0, maxEjected: 0, panicThreshold: 0, disabled: true}}
routes:
- {backends: [{name: a}], streamAge: 0, streamAgeJitter: 0, retry: {on: [], bufferBytes: 0}, retryBudget: {ratio: 0, minPerSecond: 0}, holdBytes: 0, restoreUnavailable: true,
   rateLimit: {perSecond: 0.5}}
`)
	l, b, r := c.Listeners[0], c.Backends[0], c.Routes[0]
	for name, v := range map[string]any{
		"idleTimeout": l.IdleTimeout, "stallTimeout": l.StallTimeout, "keepalive.interval": l.Keepalive.Interval, "admin": c.Admin, "drain": c.Drain,
		"tracing": c.Tracing, "waitForReady": b.WaitForReady, "ping.interval": b.Ping.Interval, "ping.gentle": b.Ping.Gentle,
		"consecutiveFailures": b.Ejection.ConsecutiveFailures, "failureShare": b.Ejection.FailureShare, "maxEjected": b.Ejection.MaxEjected,
		"panicThreshold": b.Ejection.PanicThreshold, "streamAge": r.StreamAge, "streamAgeJitter": r.StreamAgeJitter, "bufferBytes": r.Retry.BufferBytes,
		"retryBudget": r.RetryBudget, "holdBytes": r.HoldBytes,
	} {
		if !reflect.ValueOf(v).IsZero() {
			t.Errorf("%s is %v", name, v)
		}
	}
	if l.TLS == nil || l.TLS.MinVersion != tls.VersionTLS12 || b.TLS == nil || !b.Ejection.Disabled || !r.RestoreUnavailable || len(r.Retry.On) != 0 {
		t.Errorf("%+v", c)
	}
	if diff := cmp.Diff([]config.Share{{Name: "a", Weight: 1}}, r.Shares()); diff != "" {
		t.Error(diff)
	}
	if r.RateLimit.Burst != 1 {
		t.Errorf("a burst of %d at half a call a second", r.RateLimit.Burst)
	}
}

func TestYAML(t *testing.T) {
	files, err := filepath.Glob("../../../examples/proxy/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	for _, file := range files {
		c := parse(t, exampleText(t, file))
		again := parse(t, string(c.YAML()))
		if diff := cmp.Diff(c, again, ignoreText); diff != "" {
			t.Errorf("%s (-was +is):\n%s\n%s", file, diff, c.YAML())
		}
	}
}

func TestLoad(t *testing.T) {
	missing := filepath.Join(t.TempDir(), "proxy.yaml")
	var problems config.Problems
	if _, err := config.Load(missing); !errors.Is(err, fs.ErrNotExist) || errors.As(err, &problems) || !strings.Contains(err.Error(), missing) {
		t.Errorf("a missing file: %v", err)
	}
	write := func(text string) {
		if err := os.WriteFile(missing, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("backends: [{name: a, target: 'a:1'}]")
	if c, err := config.Load(missing); err != nil || c.Backends[0].Name != "a" {
		t.Errorf("%v, %v", c, err)
	}
	write("backends: [{name: a, target: 'a:1'}]" + strings.Repeat("#", strictyaml.MaxBytes))
	if _, err := config.Load(missing); !errors.As(err, &problems) || !strings.Contains(err.Error(), "at most 1048576") {
		t.Errorf("a large file: %v", err)
	}
}

func TestSimple(t *testing.T) {
	s := config.DefaultSimple()
	s.Backend = "dns:///orders:50051"
	c, err := s.Config()
	if err != nil {
		t.Fatal(err)
	}
	want := parse(t, "backends: [{name: backend, target: 'dns:///orders:50051'}]")
	if diff := cmp.Diff(want, c, ignoreText); diff != "" {
		t.Errorf("flags and file differ in their defaults (-file +flags):\n%s", diff)
	}

	s = config.Simple{
		Listen: ":1", Backend: "a:1,b:1", Admin: "", StreamAge: 0, Drain: time.Second, PingInterval: 0, PingTimeout: 2 * time.Second,
		ConnectTimeout: 3 * time.Second, TLSCert: "c", TLSKey: "k", TLSClientCA: "ca", BackendCA: "bca", BackendCert: "bc", BackendKey: "bk",
		BackendName: "name", AccessLog: "-", RestoreUnavailable: true,
	}
	if c, err = s.Config(); err != nil {
		t.Fatal(err)
	}
	want = parse(t, `
listeners: [{address: ":1", tls: {certificate: c, key: k, clientCA: ca}}]
admin: {address: ""}
drain: {period: 1s}
accessLog: {path: "-"}
backends:
- name: backend
  target: a:1,b:1
  connectTimeout: 3s
  tls: {ca: bca, certificate: bc, key: bk, serverName: name}
  ping: {interval: 0s, timeout: 2s}
routes: [{streamAge: 0s, restoreUnavailable: true}]`)
	if diff := cmp.Diff(want, c, ignoreText); diff != "" {
		t.Errorf("(-file +flags):\n%s", diff)
	}

	_, err = config.Simple{Listen: "here", TLSKey: "k", BackendCert: "c", StreamAge: -1, Drain: -1, PingInterval: -1, Admin: "x"}.Config()
	var problems config.Problems
	if !errors.As(err, &problems) {
		t.Fatal(err)
	}
	var paths []string
	for _, p := range problems {
		paths = append(paths, p.Path)
		if p.File != "" || p.Line != 0 || p.Excerpt() != "" {
			t.Errorf("a place in no file: %+v", p)
		}
	}
	if diff := cmp.Diff([]string{
		"--listen", "--tls-cert", "--admin", "--drain", "--backend", "--backend-key", "--connect-timeout", "--ping-interval", "--ping-timeout", "--stream-age",
	}, paths); diff != "" {
		t.Errorf("flags (-want +got):\n%s\n%v", diff, err)
	}
	s = config.DefaultSimple()
	s.Backend, s.TLSCert, s.TLSKey, s.TLSClientCA, s.BackendCA = "kubernetes:///shop/orders:1", "none.pem", "none.key", "none.ca", "none.bca"
	if c, err = s.Config(); err != nil {
		t.Fatal(err)
	}
	paths = nil
	for _, p := range append(c.CheckFiles(), c.WithoutKubernetes()...) {
		paths = append(paths, p.Path)
	}
	if diff := cmp.Diff([]string{"--tls-cert", "--tls-key", "--tls-client-ca", "--backend-ca", "--backend"}, paths); diff != "" {
		t.Errorf("flags of files (-want +got):\n%s", diff)
	}
	s = config.DefaultSimple()
	s.Listen, s.Admin, s.Backend = "127.0.0.1:1", ":1", "127.0.0.1:1"
	const twice = `--admin: ":1" and "127.0.0.1:1", the address of --listen, have the same port on the same addresses; give each one its own
--backend: "127.0.0.1:1" is this proxy itself, --listen: calls would come again without end`
	if _, err = s.Config(); err == nil || err.Error() != twice {
		t.Errorf("%v, want %s", err, twice)
	}
}

// TestTargets accepts what discovery follows, in a program with and without Kubernetes.
func TestTargets(t *testing.T) {
	for _, target := range []string{
		"a:1", "10.0.0.1:1,[::1]:2", "my_service:1", "dns:///orders.shop.:50051", "dns+srv:///_grpc._tcp.orders", "file:///etc/x", "kubernetes:///shop/orders:grpc",
	} {
		if got := parse(t, "backends: [{name: a, target: '"+target+"'}]").Backends[0].Target; got != target {
			t.Errorf("%s became %s", target, got)
		}
	}
}

func TestAddresses(t *testing.T) {
	for address, ok := range map[string]bool{
		":0": true, ":8080": true, "localhost:80": true, "[::]:80": true, "[fe80::1%eth0]:80": true, "0.0.0.0:65535": true,
		"8080": false, ":": false, ":x": false, ":+1": false, ":-1": false, ":65536": false, "::1:80": false, "a b:80": false, "a..b:80": false, "-a:80": false,
		"http://a:80": false, strings.Repeat("a", 64) + ":80": false, strings.Repeat("a.", 127) + "a:80": false,
	} {
		_, err := config.Parse("", []byte("{listeners: [{address: '"+address+"'}], backends: [{name: a, target: 'a:1'}]}"))
		if (err == nil) != ok {
			t.Errorf("%s: %v", address, err)
		}
	}
}

func TestSizes(t *testing.T) {
	for text, want := range map[string]config.Bytes{
		"0": 0, "512": 512, "64KiB": 65536, "1 MiB": 1 << 20, "2GiB": 2 << 30, "10MB": 10e6, "3kB": 3000, "3KB": 3000, "1GB": 1e9, "7B": 7, "-1": -1,
	} {
		var got config.Bytes
		if err := got.UnmarshalText([]byte(text)); err != nil || got != want {
			t.Errorf("%s is %d, %v", text, got, err)
		}
		var again config.Bytes
		if err := again.UnmarshalText([]byte(got.String())); err != nil || again != got {
			t.Errorf("%s is written %s, which is %d, %v", text, got, again, err)
		}
	}
	for _, text := range []string{"", "KiB", "1.5MiB", "1TiB", "9223372036854775808", "9223372036854775807KiB", "-9007199254740993KiB", "0x10", "1k"} {
		var got config.Bytes
		if err := got.UnmarshalText([]byte(text)); err == nil {
			t.Errorf("%q is %d", text, got)
		}
	}
}

func TestCodes(t *testing.T) {
	for i := codes.OK; i <= codes.Unauthenticated; i++ {
		name := config.Code(i).String()
		var read config.Code
		var grpcs codes.Code
		if err := read.UnmarshalText([]byte(name)); err != nil || codes.Code(read) != i {
			t.Errorf("%s is %d, %v", name, read, err)
		}
		if err := grpcs.UnmarshalJSON([]byte(`"` + name + `"`)); err != nil || grpcs != i {
			t.Errorf("for grpc-go %s is %d, %v", name, grpcs, err)
		}
	}
}
