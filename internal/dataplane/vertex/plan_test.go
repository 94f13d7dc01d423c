package vertex

import (
	"fmt"
	"strings"
	"testing"

	"github.com/levada-io/levada/api/v1alpha1"
	"github.com/levada-io/levada/internal/manifest"
)

// describe writes a plan as a line of text.
func (p *Plan) describe() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s:", p.Kind, p.Name)
	if p.Source != nil {
		b.WriteString(" source")
	} else {
		fmt.Fprintf(&b, " %d partitions of %d up to %d%%", p.Input.Partitions, p.Input.MaxLength, p.Input.UsageLimit)
	}
	for _, s := range p.Stages {
		fmt.Fprintf(&b, ", %s as %s", s.Role, s.Name)
	}
	for _, e := range p.Edges {
		fmt.Fprintf(&b, ", to %d of %s", e.Partitions, e.To)
		if e.Condition != nil {
			fmt.Fprintf(&b, " if %s %v", e.Condition.Operator, e.Condition.Values)
		}
		for name, set := range map[string]bool{" by key": e.ByKey, " or discard": e.Discard, " without waiting": e.Back} {
			if set {
				b.WriteString(name)
			}
		}
	}
	if p.Sink != nil {
		b.WriteString(", sink")
	}
	fmt.Fprintf(&b, ", batches of %d, %d at once", p.Limits.Batch, p.Limits.Concurrency)
	if p.Limits.Rate > 0 {
		fmt.Fprintf(&b, ", %d a second", p.Limits.Rate)
	}
	if p.Ordered {
		b.WriteString(", ordered")
	}
	if p.SmallBatches {
		b.WriteString(", small batches")
	}
	return b.String()
}

// TestPlans: what runs for a manifest, or why nothing does.
func TestPlans(t *testing.T) {
	for _, c := range []struct{ name, spec, want string }{
		{"a pipeline with its defaults", `kind: Pipeline
spec:
  vertices: [{name: in, source: {generator: {}, transformer: {builtin: {name: filter}}}}, {name: cat, udf: {builtin: {name: cat}}}, {name: out, sink: {log: {}}}]
  edges: [{from: in, to: cat}, {from: cat, to: out}]`, `
Source in: source, transformer as in, to 1 of cat, batches of 500, 500 at once
MapUDF cat: 1 partitions of 30000 up to 80%, udf as cat, to 1 of out, batches of 500, 500 at once
Sink out: 1 partitions of 30000 up to 80%, sink, batches of 500, 500 at once`},
		{"limits of the pipeline and of a vertex", `kind: Pipeline
spec:
  limits: {readBatchSize: 100, bufferMaxLength: 1000, rateLimit: {max: 9}}
  vertices: [{name: in, source: {generator: {}}}, {name: out, partitions: 3, limits: {bufferUsageLimit: 50, rateLimit: {max: 7}}, sink: {log: {}}}]
  edges: [{from: in, to: out, onFull: discardLatest, conditions: {tags: {values: [a, b]}}}]`, `
Source in: source, to 3 of out if or [a b] or discard, batches of 100, 100 at once, 9 a second
Sink out: 3 partitions of 1000 up to 50%, sink, batches of 100, 100 at once, 7 a second`},
		{"an ordered vertex has one message at once, and is written to by key", `kind: Pipeline
spec:
  vertices: [{name: in, source: {generator: {}}}, {name: out, ordered: {enabled: true}, partitions: 2, sink: {log: {}}}]
  edges: [{from: in, to: out}]`, `
Source in: source, to 2 of out by key, batches of 500, 500 at once
Sink out: 2 partitions of 30000 up to 80%, sink, batches of 500, 1 at once, ordered`},
		{"an edge that closes a cycle does not wait", `kind: Pipeline
spec:
  vertices: [{name: in, source: {generator: {}}}, {name: again, udf: {builtin: {name: cat}}}, {name: out, sink: {log: {}}}]
  edges: [{from: in, to: again}, {from: again, to: again}, {from: again, to: out}]`, `
Source in: source, to 1 of again, batches of 500, 500 at once
MapUDF again: 1 partitions of 30000 up to 80%, udf as again, to 1 of again without waiting, to 1 of out, batches of 500, 500 at once
Sink out: 1 partitions of 30000 up to 80%, sink, batches of 500, 500 at once`},
		{"a MonoVertex", `kind: MonoVertex
spec: {streaming: true, source: {generator: {}, transformer: {builtin: {name: filter}}}, udf: {builtin: {name: cat}}, sink: {log: {}}}`, `
MonoVertex p: source, transformer as transformer, udf as p, sink, batches of 500, 500 at once, small batches`},
		{"a reduce", `kind: Pipeline
spec:
  vertices: [{name: in, source: {generator: {}}}, {name: sum, udf: {groupBy: {}}}]
  edges: [{from: in, to: sum}]`, `
vertex sum: a reduce cannot run in this version yet`},
	} {
		t.Run(c.name, func(t *testing.T) {
			objects, _ := manifest.Decode("p.yaml", []byte("apiVersion: numaflow.numaproj.io/v1alpha1\nmetadata: {name: p}\n"+c.spec))
			if len(objects) != 1 {
				t.Fatalf("%d objects", len(objects))
			}
			v1alpha1.SetDefaults(objects[0].Manifest)
			var plans []Plan
			var err error
			switch m := objects[0].Manifest.(type) {
			case *v1alpha1.Pipeline:
				plans, err = PlanPipeline(&m.Spec)
			case *v1alpha1.MonoVertex:
				plans = make([]Plan, 1)
				plans[0], err = PlanMono(m.Name, &m.Spec)
			}
			got := ""
			for i := range plans {
				got += "\n" + plans[i].describe()
			}
			if err != nil {
				got = "\n" + err.Error()
			}
			if got != c.want {
				t.Errorf("got%s\n\nwant%s", got, c.want)
			}
		})
	}
}
