package vertex

import (
	"fmt"
	"strings"
	"testing"

	"github.com/levada-io/levada/api/v1alpha1"
	"github.com/levada-io/levada/internal/casefile"
	"github.com/levada-io/levada/internal/dataplane/forward"
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
		switch {
		case s.Container != nil:
			fmt.Fprintf(&b, " in %s", s.Container.Image)
		case s.Builtin != nil:
			fmt.Fprintf(&b, " builtin %s", s.Builtin.Name)
		}
		if r := retryStrategy(s.Retry); r != (forward.RetryStrategy{}) {
			fmt.Fprintf(&b, " retried %d times, then %s", r.Steps, r.OnFailure)
		}
	}
	for _, e := range p.Edges {
		fmt.Fprintf(&b, ", to %d of %s", e.Partitions, e.To)
		if e.Condition != nil {
			fmt.Fprintf(&b, " if %s %v", e.Condition.Operator, e.Condition.Values)
		}
		for _, way := range []struct {
			name string
			set  bool
		}{{" by key", e.ByKey}, {" or discard", e.Discard}, {" without waiting", e.Back}} {
			if way.set {
				b.WriteString(way.name)
			}
		}
	}
	if p.Sink != nil {
		b.WriteString(", sink")
	}
	if by := p.Bypass; by != nil {
		for _, way := range []struct {
			to   string
			when *v1alpha1.ForwardConditions
		}{{"sink", by.Sink}, {"fallback", by.Fallback}, {"onSuccess", by.OnSuccess}} {
			if c := condition(way.when); c != nil {
				fmt.Fprintf(&b, ", straight to %s if %s %v", way.to, c.Operator, c.Values)
			}
		}
	}
	fmt.Fprintf(&b, ", batches of %d within %v, %d at once", p.Limits.Batch, p.Limits.ReadTimeout, p.Limits.Concurrency)
	if p.Limits.Rate > 0 {
		fmt.Fprintf(&b, ", %d a second", p.Limits.Rate)
	}
	if p.Ordered {
		b.WriteString(", ordered")
	}
	if p.SmallBatches {
		b.WriteString(", small batches")
	}
	for _, v := range p.Volumes {
		b.WriteString(", volume " + v.Name)
	}
	return b.String()
}

// TestPlans: what runs for a manifest, or why nothing does. In the files of testdata a case is a manifest, a line of ----, and the plan; a line of ==== ends it.
func TestPlans(t *testing.T) {
	casefile.Run(t, "*.txt", func(t *testing.T, text string) string {
		var out strings.Builder
		for i, c := range strings.Split(text, "====\n") {
			if i > 0 {
				out.WriteString("====\n")
			}
			spec, _, found := strings.Cut(c, "----\n")
			out.WriteString(spec)
			if found {
				out.WriteString("----\n" + planned(t, spec))
			}
		}
		return out.String()
	})
}

// planned is the plan of a manifest, a vertex a line.
func planned(t *testing.T, spec string) string {
	t.Helper()
	objects, problems := manifest.Decode("p.yaml", []byte("apiVersion: numaflow.numaproj.io/v1alpha1\nmetadata: {name: p}\n"+spec))
	if len(objects) != 1 || len(problems) > 0 {
		t.Fatalf("%d objects and %v in\n%s", len(objects), problems, spec)
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
	if err != nil {
		return "error: " + err.Error() + "\n"
	}
	out := ""
	for i := range plans {
		out += plans[i].describe() + "\n"
	}
	return out
}
