package pipelinecmd

import (
	"strings"
	"testing"

	"github.com/levada-io/levada/internal/manifest"
)

// TestAVertexIsNamedWithoutDoubt: a process that ran the vertex of that name in another pipeline would take its messages.
func TestAVertexIsNamedWithoutDoubt(t *testing.T) {
	objects, problems := manifest.Decode("all.yaml", []byte(`
{apiVersion: numaflow.numaproj.io/v1alpha1, kind: Pipeline, metadata: {name: a}, spec: {vertices: [{name: in, source: {stdin: {}}}, {name: out, sink: {log: {}}}], edges: [{from: in, to: out}]}}
---
{apiVersion: numaflow.numaproj.io/v1alpha1, kind: Pipeline, metadata: {name: b}, spec: {vertices: [{name: in, source: {stdin: {}}}, {name: done, sink: {log: {}}}], edges: [{from: in, to: done}]}}
---
{apiVersion: numaflow.numaproj.io/v1alpha1, kind: MonoVertex, metadata: {name: mono}, spec: {source: {stdin: {}}, sink: {log: {}}}}
---
{apiVersion: v1, kind: Secret, metadata: {name: s}}
`))
	if problems.HasErrors() {
		t.Fatal(problems)
	}
	for name, want := range map[string]string{
		"out": "a", "b/in": "b", "done": "b", "mono": "mono", "a/out": "a",
		"in": "PIPELINE/VERTEX: a/in, b/in", "b/out": "no vertex is called b/out; the vertices are a/in, a/out, b/in, b/done, mono", "a": "no vertex is called a",
	} {
		kept, vertex, err := selectVertex(objects, name)
		if err != nil {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%s: %v, want %q", name, err, want)
			}
			continue
		}
		if len(kept) != 2 || !strings.HasSuffix(name, vertex) {
			t.Errorf("%s: vertex %s of %d objects, want its pipeline and the Secret", name, vertex, len(kept))
			continue
		}
		if got := kept[0].Manifest.GetName(); got != want {
			t.Errorf("%s is of %s, want %s", name, got, want)
		}
	}
}
