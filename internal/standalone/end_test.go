package standalone

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/levada-io/levada/api/v1alpha1"
	"github.com/levada-io/levada/internal/manifest"
)

// decode reads manifests as the command does.
func decode(t *testing.T, text string) []manifest.Object {
	t.Helper()
	objects, problems := manifest.Decode("pipeline.yaml", []byte(text))
	if problems = append(problems, manifest.Validate(objects)...); problems.HasErrors() {
		t.Fatal(problems)
	}
	for _, o := range objects {
		v1alpha1.SetDefaults(o.Manifest)
	}
	return objects
}

// rerun runs a manifest in dir until it ends by itself.
func rerun(t *testing.T, dir, manifest string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	err := Run(ctx, Config{Objects: decode(t, manifest), DataDir: filepath.Join(dir, "data"), Dir: dir, SyncInterval: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	if ctx.Err() != nil {
		t.Fatal("the run did not end by itself")
	}
}

func writeLines(t *testing.T, path string, from, to int) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	for i := from; i < to; i++ {
		fmt.Fprintf(f, "%d\n", i)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

// wantLines fails unless the file holds each number below n once.
func wantLines(t *testing.T, path string, n int) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	got := strings.Fields(string(data))
	slices.Sort(got)
	if distinct := len(slices.Compact(slices.Clone(got))); len(got) != n || distinct != n {
		t.Fatalf("%s has %d lines, %d of them distinct, want %d", filepath.Base(path), len(got), distinct, n)
	}
}

// The shape has what a termination protocol can get wrong: several hops and partitions, a vertex with two inputs, and a cycle. Each message goes around the
// cycle until its tag changes.
const shortPipeline = `
apiVersion: numaflow.numaproj.io/v1alpha1
kind: Pipeline
metadata: {name: short}
spec:
  vertices:
    - name: in
      source: {file: {path: in.txt}}
    - name: one
      partitions: 3
      udf: {builtin: {name: cat}}
    - name: two
      partitions: 2
      udf: {builtin: {name: cat}}
    - name: out
      partitions: 2
      sink: {file: {path: out.txt}}
    - name: also
      sink: {file: {path: also.txt}}
  edges:
    - {from: in, to: one}
    - {from: one, to: two}
    - {from: two, to: out}
    - {from: in, to: also}
`

// TestShortPipelineEndsWithItsOutputComplete ends a pipeline of a few messages by itself again and again: that is when a wrong idea of the end shows. SHORT_RUNS
// says how often.
func TestShortPipelineEndsWithItsOutputComplete(t *testing.T) {
	runs, err := strconv.Atoi(os.Getenv("SHORT_RUNS"))
	if err != nil {
		runs = 50
	}
	dir := t.TempDir()
	const each = 7
	for run := range runs {
		writeLines(t, filepath.Join(dir, "in.txt"), run*each, (run+1)*each)
		rerun(t, dir, shortPipeline)
		wantLines(t, filepath.Join(dir, "out.txt"), (run+1)*each)
		wantLines(t, filepath.Join(dir, "also.txt"), (run+1)*each)
	}
}

const cyclicPipeline = `
apiVersion: numaflow.numaproj.io/v1alpha1
kind: Pipeline
metadata: {name: cycle}
spec:
  vertices:
    - name: in
      source: {file: {path: in.txt}}
    - name: try
      partitions: 2
      udf: {builtin: {name: retry}}
    - name: again
      udf: {builtin: {name: cat}}
    - name: out
      sink: {file: {path: out.txt}}
  edges:
    - {from: in, to: try}
    - {from: try, to: again, conditions: {tags: {operator: or, values: [retry]}}}
    - {from: again, to: try}
    - {from: try, to: out, conditions: {tags: {operator: not, values: [retry]}}}
`

// TestPipelineWithACycleEndsByItself: no vertex of a cycle ends before the others, and all of them end once nothing goes around any more.
func TestPipelineWithACycleEndsByItself(t *testing.T) {
	dir := t.TempDir()
	for run, n := range []int{3, 10, 3000} {
		writeLines(t, filepath.Join(dir, "in.txt"), []int{0, 3, 10}[run], n)
		rerun(t, dir, cyclicPipeline)
		wantLines(t, filepath.Join(dir, "out.txt"), n)
	}
}
