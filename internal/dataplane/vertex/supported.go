package vertex

import (
	"github.com/levada-io/levada/api/v1alpha1"
	"github.com/levada-io/levada/internal/manifest"
)

// NotRunnable reports what of an object this version cannot run. Such a manifest is valid, and can be rendered and applied.
func NotRunnable(o manifest.Object) (problems manifest.Problems) {
	// Each problem has the place of the field, so that an editor can show it there.
	add := func(at, field string, code manifest.Code, message string) {
		problems = append(problems, o.ProblemAt(at, manifest.Problem{Code: code, Message: field + ": " + message}))
	}
	for _, v := range manifest.Vertices(o) {
		if v.Vertex.IsReduce() {
			add(v.Path+".udf.groupBy", "groupBy", manifest.CodeNoReduce, "a reduce cannot run in this version yet")
		}
		if s := v.Vertex.Source; s != nil {
			for _, d := range sourceDrivers {
				if d.open == nil && d.set(s) {
					add(v.Path+".source."+d.field, d.field, manifest.CodeNoSource, "a source of this kind cannot run in this version yet")
				}
			}
		}
		s := v.Vertex.Sink
		if s == nil {
			continue
		}
		for _, part := range []struct {
			at   string
			sink *v1alpha1.AbstractSink
		}{{".sink", &s.AbstractSink}, {".sink.fallback", s.Fallback}, {".sink.onSuccess", s.OnSuccess}} {
			for _, d := range sinkDrivers {
				if part.sink != nil && d.open == nil && d.set(part.sink) {
					add(v.Path+part.at+"."+d.field, d.field, manifest.CodeNoSink, "a sink of this kind cannot run in this version yet")
				}
			}
		}
	}
	problems.Sort()
	return problems
}
