package standalone_test

import (
	"strings"
	"testing"

	"github.com/levada-io/levada/internal/manifest"
	"github.com/levada-io/levada/internal/standalone"
)

// TestCheckRefusesTwoSinksOfOneFile: run refuses them, and the check before it reports it with the place.
func TestCheckRefusesTwoSinksOfOneFile(t *testing.T) {
	objects, problems := manifest.Decode("two.yaml", []byte(`apiVersion: numaflow.numaproj.io/v1alpha1
kind: Pipeline
metadata: {name: two}
spec:
  vertices:
  - {name: in, source: {generator: {}}}
  - {name: a, sink: {file: {path: ./out.txt}}}
  - {name: b, sink: {file: {path: out.txt}}}
  edges:
  - {from: in, to: a}
  - {from: in, to: b}
`))
	if problems.HasErrors() {
		t.Fatal(problems)
	}
	found := standalone.Check(standalone.Config{Objects: objects, Dir: t.TempDir()})
	if len(found) != 1 || found[0].Line != 8 || !strings.Contains(found[0].Message, "vertex a") || !strings.Contains(found[0].Message, "vertex b") {
		t.Fatalf("%+v", found)
	}
}
