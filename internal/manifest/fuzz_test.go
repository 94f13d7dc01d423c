package manifest_test

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/levada-io/levada/api/v1alpha1"
	"github.com/levada-io/levada/internal/manifest"
)

// FuzzManifest reads any text as a manifest. Nothing panics, every problem has a place inside the text, defaults are stable
// and neither hide errors nor make them, and what is rendered reads as what it was.
func FuzzManifest(f *testing.F) {
	files, _ := filepath.Glob("testdata/broken/*.txt")
	for _, file := range files {
		t := &testing.T{}
		_, cases := readCases(t, file)
		for _, c := range cases {
			f.Add([]byte(c.manifest))
		}
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) > 1<<16 {
			t.Skip("bounds have a test of their own")
		}
		objects, decoding := manifest.Decode("p.yaml", data)
		problems := append(decoding, manifest.Validate(objects)...)
		for _, o := range objects {
			problems = append(problems, manifest.Unsupported(o)...)
			manifest.ValidateUpdate(o, objects[0])
		}
		lines := 1
		for _, r := range string(data) {
			if strings.ContainsRune("\n\r\u0085\u2028\u2029", r) { // what YAML takes for the end of a line
				lines++
			}
		}
		for _, p := range problems {
			if _, ok := manifest.Explain(p.Code); !ok || p.Severity == "" || p.Message == "" {
				t.Errorf("incomplete problem %+v", p)
			}
			if strings.Contains(p.Message, "the manifest cannot be decoded") {
				t.Errorf("the decoder knows more than the check of types: %s", p)
			}
			if p.File != "p.yaml" || p.Line < 1 || p.Line > lines+1 || p.Column < 1 {
				t.Errorf("no place in %d lines: %s (%+v)", lines, p, p)
			}
		}
		if decoding.HasErrors() {
			return
		}
		before := manifest.Validate(objects)
		for _, o := range objects {
			v1alpha1.SetDefaults(o.Manifest)
		}
		if after := manifest.Validate(objects); before.HasErrors() != after.HasErrors() {
			t.Errorf("errors before defaults:\n%s\nafter:\n%s", describeAll(before), describeAll(after))
		}
		once := render(t, objects)
		again, problems := manifest.Decode("p.yaml", []byte(once))
		if problems.HasErrors() || len(again) != len(objects) {
			t.Fatalf("what was rendered cannot be read: %s\n%s", describeAll(problems), once)
		}
		for _, o := range again {
			v1alpha1.SetDefaults(o.Manifest)
		}
		if twice := render(t, again); once != twice {
			t.Errorf("rendered once:\n%s\ntwice:\n%s", once, twice)
		}
	})
}

func render(t *testing.T, objects []manifest.Object) string {
	t.Helper()
	text, err := manifest.Render(objects)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}
