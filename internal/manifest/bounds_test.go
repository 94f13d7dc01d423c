package manifest_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/levada-io/levada/internal/manifest"
)

const pipelineHead = "apiVersion: numaflow.numaproj.io/v1alpha1\nkind: Pipeline\nmetadata: {name: p}\nspec:\n"

// TestBounds: no text costs more than a few seconds, whatever is in it.
func TestBounds(t *testing.T) {
	laughs := "a0: &a0 [x, x]\n"
	for i := 1; i < 60; i++ {
		laughs += fmt.Sprintf("a%d: &a%d [*a%d, *a%d]\n", i, i, i-1, i-1)
	}
	repeated := func(n int, format string) string {
		var b strings.Builder
		for i := range n {
			fmt.Fprintf(&b, format, i)
		}
		return b.String()
	}
	cases := []struct {
		name, text string
		want       manifest.Code
	}{
		{"a file of 33 MiB", strings.Repeat("#", 33<<20), manifest.CodeTooLarge},
		{"a document of 5 MiB", "a: " + strings.Repeat("x", 5<<20), manifest.CodeTooLarge},
		{"a JSON document of 5 MiB", `{"a": "` + strings.Repeat("x", 5<<20) + `"}`, manifest.CodeTooLarge},
		{"many documents", strings.Repeat("---\nkind: X\n", 6000), manifest.CodeTooLarge},
		{"deep YAML", strings.Repeat("[", 5000) + strings.Repeat("]", 5000), manifest.CodeTooDeep},
		{"deep JSON", `{"a":` + strings.Repeat("[", 50000) + strings.Repeat("]", 50000) + "}", ""},
		{"lists in lists", strings.Repeat(`{"kind":"List","items":[`, 20) + strings.Repeat("]}", 20), manifest.CodeTooDeep},
		{"aliases of aliases", laughs, manifest.CodeAliases},
		{"aliases of a long text", "a: &a " + strings.Repeat("x", 1<<20) + "\nb: [" + strings.Repeat("*a, ", 1000) + "]\n", manifest.CodeAliases},
		{"many unknown fields", pipelineHead + repeated(100000, "  vertice%d: 1\n"), manifest.CodeTooManyProblems},
		{"many edges to nowhere", pipelineHead + "  vertices:\n" + repeated(400, "  - {name: v%d}\n") + "  edges:\n" + repeated(20000, "  - {from: w%d, to: x}\n"), manifest.CodeTooManyProblems},
		{"a long chain", pipelineHead + "  vertices:\n" + repeated(20000, "  - {name: v%d, udf: {builtin: {name: cat}}}\n") + "  edges:\n" + repeated(19999, "  - {from: v%d, to: v1}\n"), ""},
		{"a long key around many fields", "? " + strings.Repeat("k", 1<<20) + "\n: {" + repeated(100000, "a%d: 1, ") + "}\n", ""},
		{"a long line of JSON", `{"kind": "Pipeline", "items": [` + strings.Repeat("1,", 500000) + "1]}", ""},
		{"not UTF-8", "a: \xff", manifest.CodeSyntax},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			start := time.Now()
			objects, problems := manifest.Decode("p.yaml", []byte(c.text))
			problems = append(problems, manifest.Validate(objects)...)
			if took := time.Since(start); took > 20*time.Second {
				t.Errorf("took %s", took)
			}
			found := c.want == ""
			for _, p := range problems {
				found = found || p.Code == c.want
			}
			if !found {
				t.Errorf("no %s among %d problems: %.300v", c.want, len(problems), problems)
			}
		})
	}
}
