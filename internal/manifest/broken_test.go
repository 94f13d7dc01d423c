package manifest_test

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/levada-io/levada/api/v1alpha1"
	"github.com/levada-io/levada/internal/manifest"
)

var update = flag.Bool("update", false, "write what was found into testdata")

// TestBroken reads testdata/broken, where manifests stand beside the exact problems that they have.
func TestBroken(t *testing.T) {
	files, err := filepath.Glob("testdata/broken/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatal("no cases", err)
	}
	cases, found := 0, map[manifest.Code]bool{}
	for _, file := range files {
		preamble, broken := readCases(t, file)
		out := bytes.NewBufferString(preamble)
		for _, c := range broken {
			cases++
			got := c
			t.Run(strings.TrimSuffix(filepath.Base(file), ".txt")+"/"+c.title, func(t *testing.T) {
				problems := check(c.manifest)
				for _, p := range problems {
					found[p.Code] = true
				}
				got.problems = describeAll(problems)
				if diff := cmp.Diff(c.problems, got.problems); diff != "" && !*update {
					t.Errorf("problems (-want +got):\n%s", diff)
				}
				beforeAndAfterDefaults(t, c.manifest)
			})
			fmt.Fprintf(out, "\n=== %s\n%s----\n%s", got.title, got.manifest, got.problems)
		}
		if *update {
			if err := os.WriteFile(file, out.Bytes(), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	if cases < 60 {
		t.Errorf("%d cases", cases)
	}
	for _, e := range manifest.Catalogue() {
		if !found[e.Code] && !foundElsewhere[e.Code] {
			t.Errorf("no case has %s (%s)", e.Code, e.Title)
		}
	}
}

// foundElsewhere are codes that no manifest alone can have, or only one too large to print; other tests have them.
var foundElsewhere = map[manifest.Code]bool{
	manifest.CodeNoStart: true, manifest.CodeIgnoresContainer: true, // internal/standalone
	manifest.CodeTooLarge: true, manifest.CodeTooDeep: true, manifest.CodeTooManyProblems: true, // TestBounds
	manifest.CodeNoManifest: true, manifest.CodeUnreadable: true, // internal/pipelinecmd
	manifest.CodeImmutable: true, manifest.CodeImmutableInstance: true, manifest.CodeImmutableVertex: true, // TestValidateUpdate
	manifest.CodeImmutableReduce: true, manifest.CodeImmutableISB: true,
	manifest.CodeIgnoresScale: true, manifest.CodeIgnoresWatermark: true, manifest.CodeIgnoresSideInputs: true, // TestGaps
	manifest.CodeIgnoresUpdateStrategy: true, manifest.CodeIgnoresRedisRateLimit: true, manifest.CodeIgnoresTemplates: true, manifest.CodeIgnoresNativeRedis: true,
	manifest.CodeNoReduce: true, manifest.CodeNoSource: true, manifest.CodeNoSink: true,
}

func check(text string) manifest.Problems {
	objects, problems := manifest.Decode("p.yaml", []byte(text))
	problems = append(problems, manifest.Validate(objects)...)
	problems.Sort()
	return problems
}

func describeAll(problems manifest.Problems) string {
	var b strings.Builder
	for _, p := range problems {
		fmt.Fprintf(&b, "%s\n", p)
		if p.Path != "" {
			fmt.Fprintf(&b, "    at %s\n", p.Path)
		}
		for _, detail := range []struct{ name, text string }{{"expected", p.Expected}, {"did you mean", p.DidYouMean}, {"hint", p.Hint}} {
			if detail.text != "" {
				fmt.Fprintf(&b, "    %s: %s\n", detail.name, detail.text)
			}
		}
	}
	return b.String()
}

// beforeAndAfterDefaults: defaults neither hide an error nor make one.
func beforeAndAfterDefaults(t *testing.T, text string) {
	t.Helper()
	objects, _ := manifest.Decode("p.yaml", []byte(text))
	before := manifest.Validate(objects).HasErrors()
	for _, o := range objects {
		v1alpha1.SetDefaults(o.Manifest)
	}
	if after := manifest.Validate(objects); after.HasErrors() != before {
		t.Errorf("errors before defaults: %v, after:\n%s", before, describeAll(after))
	}
}

type brokenCase struct{ title, manifest, problems string }

func readCases(t *testing.T, file string) (preamble string, cases []brokenCase) {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	parts := strings.Split(string(data), "\n=== ")
	for _, part := range parts[1:] {
		title, rest, _ := strings.Cut(part, "\n")
		manifest, problems, ok := strings.Cut(rest, "----\n")
		if !ok {
			t.Fatalf("%s: case %q has no ----", file, title)
		}
		cases = append(cases, brokenCase{title, manifest, problems})
	}
	for i := range cases { // the newline in front of the next case was cut off with it
		if p := &cases[i].problems; *p != "" && !strings.HasSuffix(*p, "\n") {
			*p += "\n"
		}
	}
	return parts[0] + "\n", cases
}
