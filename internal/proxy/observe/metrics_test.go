package observe_test

import (
	"context"
	"flag"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/prometheus/common/expfmt"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"github.com/levada-io/levada/internal/proxy"
	"github.com/levada-io/levada/internal/proxy/config"
	"github.com/levada-io/levada/internal/proxy/observe"
	"github.com/levada-io/levada/internal/proxy/proxytest"
)

var update = flag.Bool("update", false, "write the golden files")

// Calls of every kind, and the whole of what is exported then but for what depends on time.
func TestMetricsGolden(t *testing.T) {
	backend := proxytest.NewBackend(t)
	p := proxytest.Start(t, proxytest.Config(t, backend.Address, func(c *config.Config) {
		limited := c.Routes[0]
		limited.Match = config.Match{Service: "shop.Orders"}
		limited.Backend, limited.Backends = "gone", nil
		gone := c.Backends[0]
		gone.Name, gone.Target = "gone", "127.0.0.1:1"
		c.Routes, c.Backends = append(c.Routes, limited), append(c.Backends, gone)
	}), proxy.Options{})
	client := p.Client(t)
	ctx := t.Context()
	for range 3 {
		if _, err := client.Check(ctx, &grpc_health_v1.HealthCheckRequest{}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := client.Check(ctx, &grpc_health_v1.HealthCheckRequest{Service: "none"}); status.Code(err) != codes.NotFound {
		t.Fatal(err)
	}
	for range 2 {
		watching, cancel := context.WithCancel(ctx)
		w, err := client.Watch(watching, &grpc_health_v1.HealthCheckRequest{})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Recv(); err != nil {
			t.Fatal(err)
		}
		defer cancel()
		if p.Open() == 2 {
			cancel()
		}
	}
	if err := p.Invoke(t, "/shop.Orders/Get"); status.Code(err) != codes.Unavailable {
		t.Fatal(err)
	}
	waitFor(t, "one stream", func() bool { return p.Open() == 1 })

	registry := prometheus.NewPedanticRegistry()
	m := &observe.Metrics{Proxy: p.Proxy, Tap: observe.NewTap(p.Proxy)}
	registry.MustRegister(m)
	problems, err := testutil.GatherAndLint(registry)
	if err != nil || len(problems) > 0 {
		t.Error(err, problems)
	}
	got := strings.ReplaceAll(text(t, registry), backend.Address, "ENDPOINT")
	golden(t, "testdata/metrics.txt", got)
}

// text is what a registry exports, without numbers that are different each time.
func text(t *testing.T, g prometheus.Gatherer) string {
	t.Helper()
	families, err := g.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for _, f := range families {
		if _, err := expfmt.MetricFamilyToText(&b, f); err != nil {
			t.Fatal(err)
		}
	}
	var kept strings.Builder
	for line := range strings.Lines(b.String()) {
		name, _, _ := strings.Cut(line, "{")
		switch {
		case strings.HasSuffix(name, "_bucket"):
			continue
		case strings.HasSuffix(name, "_sum"), name == "levada_proxy_endpoint_latency_seconds", strings.HasPrefix(line, "levada_proxy_config_loaded_timestamp_seconds "):
			line = line[:strings.LastIndexByte(line, ' ')] + " SECONDS\n"
		}
		kept.WriteString(line)
	}
	return kept.String()
}

func golden(t *testing.T, file, got string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (go test -update rewrites it) -want +got:\n%s", file, diff)
	}
}

// Whatever clients send, it makes no series (S-30 is about what they could send).
func TestMetricsBounded(t *testing.T) {
	backend := proxytest.NewBackend(t)
	p := proxytest.Start(t, proxytest.Config(t, backend.Address, nil), proxy.Options{})
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(&observe.Metrics{Proxy: p.Proxy})
	count := func() int {
		n, err := testutil.GatherAndCount(registry)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	call := func(path string) {
		if err := p.Invoke(t, path); status.Code(err) != codes.Unimplemented {
			t.Fatal(path, err)
		}
	}
	for range 10 { // until all that can be known of the endpoint is
		call("/a.B/c")
	}
	before := count()
	for i := range 4500 {
		call("/a.B/c" + strings.Repeat("x", i%100) + time.Duration(i).String())
	}
	if after := count(); after != before {
		t.Errorf("%d series after one path, %d after 4500", before, after)
	}
	if n := len(p.Methods()); n > 4097 {
		t.Errorf("%d methods are remembered", n)
	}
}

func waitFor(t *testing.T, what string, done func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !done(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("no %s", what)
		}
	}
}
