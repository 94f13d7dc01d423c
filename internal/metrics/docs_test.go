package metrics

import (
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write the table of docs/metrics.md")

// TestDocsListEveryMetric compares the table of docs/metrics.md with the catalogue; `go test ./internal/metrics -update` writes it.
func TestDocsListEveryMetric(t *testing.T) {
	const file, begin = "../../docs/metrics.md", "<!-- The table is written by go test ./internal/metrics -update -->\n"
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	head, table, ok := strings.Cut(string(text), begin)
	if !ok {
		t.Fatalf("%s has no line %q", file, begin)
	}
	var b strings.Builder
	b.WriteString("\n| metric | type | labels besides `namespace` | meaning |\n|---|---|---|---|\n")
	for _, m := range catalogue {
		kind := [...]string{counter: "counter", gauge: "gauge", histogram: "histogram"}[m.kind]
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", m.name, kind, strings.Join(m.labels, ", "), m.help)
	}
	if b.String() == table {
		return
	}
	if !*update {
		t.Fatalf("the table of %s is not that of the catalogue: run go test ./internal/metrics -update", file)
	}
	if err := os.WriteFile(file, []byte(head+begin+b.String()), 0o644); err != nil {
		t.Fatal(err)
	}
}
