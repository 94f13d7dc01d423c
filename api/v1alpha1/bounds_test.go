package v1alpha1_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/levada-io/levada/api/v1alpha1"
)

const pipelineHead = "apiVersion: numaflow.numaproj.io/v1alpha1\nkind: Pipeline\nmetadata: {name: p}\nspec:\n"

// TestBounds: no text costs more than a few seconds, whoever wrote it.
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
		want       v1alpha1.Code
	}{
		{"a file of 33 MiB", strings.Repeat("#", 33<<20), v1alpha1.CodeTooLarge},
		{"a document of 5 MiB", "a: " + strings.Repeat("x", 5<<20), v1alpha1.CodeTooLarge},
		{"a JSON document of 5 MiB", `{"a": "` + strings.Repeat("x", 5<<20) + `"}`, v1alpha1.CodeTooLarge},
		{"many documents", strings.Repeat("---\nkind: X\n", 6000), v1alpha1.CodeTooLarge},
		{"deep YAML", strings.Repeat("[", 5000) + strings.Repeat("]", 5000), v1alpha1.CodeTooDeep},
		{"deep JSON", `{"a":` + strings.Repeat("[", 50000) + strings.Repeat("]", 50000) + "}", ""},
		{"lists in lists", strings.Repeat(`{"kind":"List","items":[`, 20) + strings.Repeat("]}", 20), v1alpha1.CodeTooDeep},
		{"aliases of aliases", laughs, v1alpha1.CodeAliases},
		{"aliases of a long text", "a: &a " + strings.Repeat("x", 1<<20) + "\nb: [" + strings.Repeat("*a, ", 1000) + "]\n", v1alpha1.CodeAliases},
		{"many unknown fields", pipelineHead + repeated(100000, "  vertice%d: 1\n"), v1alpha1.CodeTooManyProblems},
		{"many edges to nowhere", pipelineHead + "  vertices:\n" + repeated(400, "  - {name: v%d}\n") + "  edges:\n" + repeated(20000, "  - {from: w%d, to: x}\n"), v1alpha1.CodeTooManyProblems},
		{"a long chain", pipelineHead + "  vertices:\n" + repeated(20000, "  - {name: v%d, udf: {builtin: {name: cat}}}\n") + "  edges:\n" + repeated(19999, "  - {from: v%d, to: v1}\n"), ""},
		{"a long key around many fields", "? " + strings.Repeat("k", 1<<20) + "\n: {" + repeated(100000, "a%d: 1, ") + "}\n", ""},
		{"a long line of JSON", `{"kind": "Pipeline", "items": [` + strings.Repeat("1,", 500000) + "1]}", ""},
		{"not UTF-8", "a: \xff", v1alpha1.CodeSyntax},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			start := time.Now()
			objects, problems := v1alpha1.Decode("p.yaml", []byte(c.text))
			problems = append(problems, v1alpha1.Validate(objects)...)
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
