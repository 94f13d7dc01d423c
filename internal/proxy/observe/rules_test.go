package observe_test

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	yaml "go.yaml.in/yaml/v3"
	"google.golang.org/grpc/health/grpc_health_v1"

	"github.com/levada-io/levada/internal/proxy"
	"github.com/levada-io/levada/internal/proxy/config"
	"github.com/levada-io/levada/internal/proxy/observe"
	"github.com/levada-io/levada/internal/proxy/proxytest"
	"github.com/levada-io/levada/internal/testserver"
)

const deploy = "../../../deploy/"

func promtool(t *testing.T, args ...string) {
	t.Helper()
	if out, err := exec.CommandContext(t.Context(), testserver.Program(t, "promtool", "prometheus"), args...).CombinedOutput(); err != nil {
		t.Errorf("promtool %v: %v\n%.8000s", args, err, out)
	}
}

// The alerts are valid for Prometheus, and go off when they shall.
func TestAlertRules(t *testing.T) {
	promtool(t, "check", "rules", deploy+"prometheus/proxy-rules.yaml")
	promtool(t, "test", "rules", deploy+"prometheus/proxy-rules-test.yaml")
}

// expressions of the alerts and of the dashboard, by where they are.
func expressions(t *testing.T) map[string]string {
	t.Helper()
	all := map[string]string{}
	var rules struct {
		Groups []struct {
			Rules []struct {
				Alert, Expr string
				Labels      map[string]string
				Annotations map[string]string
			}
		}
	}
	text, err := os.ReadFile(deploy + "prometheus/proxy-rules.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if err := yaml.Unmarshal(text, &rules); err != nil {
		t.Fatal(err)
	}
	for _, r := range rules.Groups[0].Rules {
		all["alert "+r.Alert] = r.Expr
		if r.Labels["severity"] == "" || r.Annotations["summary"] == "" || r.Annotations["description"] == "" {
			t.Errorf("%s has no severity, summary or description", r.Alert)
		}
	}
	var dashboard struct {
		Panels []struct {
			Title   string
			Targets []struct{ RefID, Expr string }
		}
	}
	if text, err = os.ReadFile(deploy + "grafana/proxy.json"); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(text, &dashboard); err != nil {
		t.Fatal(err)
	}
	for _, p := range dashboard.Panels {
		for _, q := range p.Targets {
			all["panel "+p.Title+" "+q.RefID] = q.Expr
		}
	}
	return all
}

// A rule or a panel for a metric or a label that does not exist shows nothing, indefinitely.
func TestRulesAndPanelsUseMetricsThatExist(t *testing.T) {
	labels := map[string][]string{}
	for _, m := range observe.Catalogue() {
		labels[m.Name] = m.Labels
		if m.Type == "histogram" {
			labels[m.Name+"_bucket"] = append([]string{"le"}, m.Labels...)
		}
	}
	metric := regexp.MustCompile(`(levada_proxy_[a-z_]+)(\{[^}]*\})?`)
	matcher := regexp.MustCompile(`([a-z_]+)(=~|!~|!=|=)"([^"]*)"`)
	by := regexp.MustCompile(`by \(([^)]*)\)`)
	for at, expr := range expressions(t) {
		found := metric.FindAllStringSubmatch(expr, -1)
		if len(found) == 0 {
			t.Errorf("%s has no metric of ours: %s", at, expr)
		}
		var known []string
		for _, m := range found {
			if labels[m[1]] == nil && !slices.ContainsFunc(observe.Catalogue(), func(c observe.Metric) bool { return c.Name == m[1] }) {
				t.Errorf("%s: there is no metric %s", at, m[1])
			}
			known = append(known, labels[m[1]]...)
			for _, l := range matcher.FindAllStringSubmatch(m[2], -1) {
				if !slices.Contains(labels[m[1]], l[1]) {
					t.Errorf("%s: %s has no label %s", at, m[1], l[1])
				}
				if l[1] == "reason" {
					for _, reason := range strings.Split(l[3], "|") {
						if !slices.Contains(proxy.Reasons(), reason) {
							t.Errorf("%s: there is no reason %s", at, reason)
						}
					}
				}
			}
		}
		for _, list := range by.FindAllStringSubmatch(expr, -1) {
			for _, label := range strings.Split(list[1], ",") {
				if label = strings.TrimSpace(label); label != "job" && label != "instance" && !slices.Contains(known, label) {
					t.Errorf("%s: nothing has the label %s: %s", at, label, expr)
				}
			}
		}
	}
}

// Each panel of the dashboard shows something of a proxy that has served calls of every kind.
func TestDashboardShowsRealSeries(t *testing.T) {
	backend := proxytest.NewBackend(t)
	p := proxytest.Start(t, proxytest.Config(t, backend.Address, func(c *config.Config) {
		c.Backends[0].HealthCheck.Interval = 1e9
		lost, gone := c.Routes[0], c.Backends[0]
		gone.Name, gone.Target = "gone", "127.0.0.1:1"
		lost.Match, lost.Backend = config.Match{Service: "shop.Orders"}, "gone"
		c.Routes, c.Backends = append(c.Routes, lost), append(c.Backends, gone)
		c.Metrics.Methods = []string{strings.TrimPrefix(proxytest.Method, "/")}
	}), proxy.Options{})
	client := p.Client(t)
	for _, service := range []string{"", "none"} {
		_, _ = client.Check(t.Context(), &grpc_health_v1.HealthCheckRequest{Service: service})
	}
	ctx, cancel := context.WithCancel(t.Context())
	w, err := client.Watch(ctx, &grpc_health_v1.HealthCheckRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Recv(); err != nil {
		t.Fatal(err)
	}
	cancel()
	waitFor(t, "no stream", func() bool { return p.Open() == 0 })
	_ = p.Invoke(t, "/shop.Orders/Get") // whose backend does not answer
	log, err := observe.OpenAccessLog(filepath.Join(t.TempDir(), "log"), nil, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	logging, stop := context.WithCancel(t.Context())
	var writing sync.WaitGroup
	writing.Go(func() { log.Run(logging) })
	defer func() { stop(); writing.Wait() }()
	registry := prometheus.NewRegistry()
	registry.MustRegister(&observe.Metrics{Proxy: p.Proxy, Log: log, Tap: observe.NewTap(p.Proxy)})
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	type input struct{ Series, Values string }
	var inputs []input
	add := func(name string, value float64, labels []*dto.LabelPair, more ...string) {
		var all []string
		for _, l := range labels {
			all = append(all, fmt.Sprintf("%s=%q", l.GetName(), l.GetValue()))
		}
		// Counters and gauges alike go up from what they are.
		inputs = append(inputs, input{fmt.Sprintf("%s{%s}", name, strings.Join(append(all, more...), ",")), fmt.Sprintf("%g+1x10", value)})
	}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			switch {
			case m.GetHistogram() != nil:
				for _, b := range m.GetHistogram().GetBucket() {
					add(f.GetName()+"_bucket", float64(b.GetCumulativeCount()), m.GetLabel(), fmt.Sprintf("le=%q", fmt.Sprint(b.GetUpperBound())))
				}
				add(f.GetName()+"_bucket", float64(m.GetHistogram().GetSampleCount()), m.GetLabel(), `le="+Inf"`)
			case m.GetCounter() != nil:
				add(f.GetName(), m.GetCounter().GetValue(), m.GetLabel())
			default:
				add(f.GetName(), m.GetGauge().GetValue(), m.GetLabel())
			}
		}
	}
	type sample struct {
		Labels string
		Value  float64
	}
	type query struct {
		Expr       string
		EvalTime   string   `yaml:"eval_time"`
		ExpSamples []sample `yaml:"exp_samples"`
	}
	var queries []query
	for at, expr := range expressions(t) {
		if strings.HasPrefix(at, "panel ") {
			expr = strings.NewReplacer("$__rate_interval", "5m", "$route", ".*").Replace(expr)
			queries = append(queries, query{"count(" + expr + ") > bool 0", "6m", []sample{{"{}", 1}}})
		}
	}
	text, err := yaml.Marshal(map[string]any{"evaluation_interval": "1m", "tests": []any{map[string]any{"interval": "1m", "input_series": inputs, "promql_expr_test": queries}}})
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "dashboard.yaml")
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
	promtool(t, "test", "rules", file)
}
