package observe_test

import (
	"encoding/json"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/levada-io/levada/internal/proxy"
	"github.com/levada-io/levada/internal/proxy/observe"
)

// The documentation has each metric, with its type, labels and meaning, and each reason; and nothing that there is not.
func TestDocumentation(t *testing.T) {
	text, err := os.ReadFile("../../../docs/proxy-observability.md")
	if err != nil {
		t.Fatal(err)
	}
	var want, got []string
	for _, m := range observe.Catalogue() {
		want = append(want, fmt.Sprintf("| `%s` | %s | %s | %s |", m.Name, m.Type, strings.Join(m.Labels, ", "), m.Help))
	}
	for line := range strings.Lines(string(text)) {
		if strings.HasPrefix(line, "| `levada_proxy_") {
			got = append(got, strings.TrimSpace(line))
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("metrics, -exported +documented:\n%s", diff)
	}
	var documented []string
	for _, match := range regexp.MustCompile("(?m)^\\| `([A-Z_]+)` \\|").FindAllStringSubmatch(string(text), -1) {
		documented = append(documented, match[1])
	}
	exist := proxy.Reasons()
	slices.Sort(exist)
	slices.Sort(documented)
	if diff := cmp.Diff(exist, documented); diff != "" {
		t.Errorf("reasons, -existing +documented:\n%s", diff)
	}
	dashboard, err := os.ReadFile("../../../deploy/grafana/proxy.json")
	if err != nil || !json.Valid(dashboard) {
		t.Fatal("the dashboard is no JSON", err)
	}
	for _, name := range regexp.MustCompile(`levada_proxy_[a-z_]+`).FindAllString(string(text)+string(dashboard), -1) {
		if !slices.ContainsFunc(observe.Catalogue(), func(m observe.Metric) bool {
			return name == m.Name || m.Type == "histogram" && name == m.Name+"_bucket"
		}) {
			t.Errorf("there is no metric %s", name)
		}
	}
}
