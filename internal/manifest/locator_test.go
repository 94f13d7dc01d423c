package manifest_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/levada-io/levada/api/v1alpha1"
	"github.com/levada-io/levada/internal/manifest"
)

// TestPositions: in each text the field at path is where the mark is; the mark itself is taken out before decoding.
func TestPositions(t *testing.T) {
	const (
		mark = "@@"
		yaml = "apiVersion: numaflow.numaproj.io/v1alpha1\nkind: Pipeline\nmetadata: {name: p}\n"
	)
	for _, c := range []struct{ name, path, text string }{
		{"a block value", "spec.vertices[1].name", yaml + "spec:\n  vertices:\n  - name: a\n  - name: @@b\n"},
		{"a flow value", "spec.vertices[1].name", yaml + "spec: {vertices: [{name: a}, {name: @@b}]}\n"},
		{"a quoted value", "spec.vertices[0].name", yaml + "spec: {vertices: [{name: @@'a'}]}\n"},
		{"a list is at its name", "spec.vertices", yaml + "spec:\n  @@vertices:\n  - name: a\n"},
		{"an object is at its name", "spec.vertices[0].source", yaml + "spec:\n  vertices:\n  - name: a\n    @@source: {}\n"},
		{"an element is at its first field", "spec.vertices[1]", yaml + "spec:\n  vertices:\n  - name: a\n  - @@name: b\n"},
		{"a missing field is at its parent", "spec.vertices[0].source.file.path", yaml + "spec:\n  vertices:\n  - name: a\n    source:\n      @@file:\n        follow: true\n"},
		{"a missing element is at its list", "spec.vertices[7].name", yaml + "spec:\n  @@vertices:\n  - name: a\n"},
		{"a missing section is at the document", "status.phase", "# comment\n\n@@" + yaml + "spec: {}\n"},
		{"columns count characters", "spec.vertices[0].name", yaml + "spec: {vertices: [{sideInputs: [üüü], name: @@b}]}\n"},
		{"a key with dots", "metadata.annotations[a.b/c]", "apiVersion: numaflow.numaproj.io/v1alpha1\nkind: Pipeline\nmetadata:\n  name: p\n  annotations:\n    a.b/c: @@x\nspec: {}\n"},
		{"an alias is where it is written", "spec.vertices[1].scale.min", yaml + "spec:\n  vertices:\n  - {name: a, scale: &s {min: @@1}}\n  - {name: b, scale: *s}\n"},
		{"a merged field is where it is written", "spec.vertices[1].partitions", yaml + "spec:\n  vertices:\n  - &v {name: a, partitions: @@2}\n  - {<<: *v, name: b}\n"},
		{"a field wins over a merged one", "spec.vertices[1].name", yaml + "spec:\n  vertices:\n  - &v {name: a}\n  - {<<: *v, name: @@b}\n"},
		{"a later document", "spec.interStepBufferServiceName", "a: b\n--- # two\n\n" + yaml + "spec:\n  interStepBufferServiceName: @@x\n---\n"},
		{"after the end of a document", "spec.interStepBufferServiceName", "a: b\n...\n" + yaml + "spec:\n  interStepBufferServiceName: @@x\n"},
		{"CRLF", "spec.interStepBufferServiceName", strings.ReplaceAll(yaml+"spec:\n  interStepBufferServiceName: @@x\n", "\n", "\r\n")},
		{"a byte order mark", "kind", "\ufeff" + strings.Replace(yaml, "Pipeline", "@@Pipeline", 1) + "spec: {}\n"},
		{"an item of a list", "spec.interStepBufferServiceName", "apiVersion: v1\nkind: List\nitems:\n- " + strings.ReplaceAll(yaml, "\n", "\n  ") + "spec: {interStepBufferServiceName: @@x}\n"},
		{"JSON with tabs", "spec.vertices[1].name", "{\n\t\"apiVersion\": \"numaflow.numaproj.io/v1alpha1\", \"kind\": \"Pipeline\",\n\t\"spec\": {\"vertices\": [{\"name\": \"ü\"}, {\"name\":\n\t @@\"b\"}]}}\n"},
		{"JSON, an object", "spec.vertices[0].source", "{\"apiVersion\": \"numaflow.numaproj.io/v1alpha1\", \"kind\": \"Pipeline\", \"spec\": {\"vertices\": [{\"name\": \"ü\", @@\"source\": {}}]}}"},
		{"the second JSON value", "spec.interStepBufferServiceName", "{\"kind\": \"X\"}\n{\"apiVersion\": \"numaflow.numaproj.io/v1alpha1\", \"kind\": \"Pipeline\", \"spec\": {\"interStepBufferServiceName\": @@\"x\"}}"},
	} {
		t.Run(c.name, func(t *testing.T) {
			before, _, ok := strings.Cut(c.text, mark)
			if !ok {
				t.Fatal("no mark")
			}
			wantLine := strings.Count(before, "\n") + 1
			wantColumn := len([]rune(strings.TrimPrefix(before[strings.LastIndexByte(before, '\n')+1:], "\ufeff"))) + 1
			objects, problems := manifest.Decode("p.yaml", []byte(strings.Replace(c.text, mark, "", 1)))
			for _, o := range objects {
				if o.Kind() != v1alpha1.KindPipeline {
					continue
				}
				file, line, column := o.Position(c.path)
				if diff := cmp.Diff([]any{"p.yaml", wantLine, wantColumn}, []any{file, line, column}); diff != "" {
					t.Errorf("position of %s (-want +got):\n%s", c.path, diff)
				}
				return
			}
			t.Fatalf("no pipeline: %s", describeAll(problems))
		})
	}
}

func TestPositionOfObjectInMemory(t *testing.T) {
	o := manifest.NewObject(&v1alpha1.MonoVertex{})
	if file, line, column := o.Position("spec.source"); file != "" || line != 0 || column != 0 {
		t.Error(file, line, column)
	}
	problems := manifest.Validate([]manifest.Object{o})
	if got := problems.Err(); got == nil || !strings.Contains(got.Error(), "spec.sink: error LV2001: a MonoVertex needs a sink") {
		t.Error(got)
	}
}
