package pipelinecmd

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra"

	"github.com/levada-io/levada/internal/commandline"
	"github.com/levada-io/levada/internal/commandline/commandlinetest"
)

func invoke(t *testing.T, cmd *cobra.Command, stdin string, args ...string) commandlinetest.Outcome {
	t.Helper()
	var stdout, stderr bytes.Buffer
	root := commandline.Root(&cobra.Command{Use: "levada"}, "dev")
	root.AddCommand(cmd)
	root.SetArgs(append([]string{cmd.Name()}, args...))
	root.SetIn(strings.NewReader(stdin))
	root.SetOut(&stdout)
	root.SetErr(&stderr)
	err := root.Execute()
	out := commandlinetest.Outcome{Stdout: stdout.String(), Stderr: stderr.String()}
	if exit := (commandline.ExitError{}); errors.As(err, &exit) {
		out.Code = exit.Code
		if exit.Err != nil {
			out.Stderr += exit.Err.Error() + "\n"
		}
	} else if err != nil {
		t.Fatalf("an error without an exit code: %v", err)
	}
	return out
}

const (
	warned = `apiVersion: numaflow.numaproj.io/v1alpha1
kind: Pipeline
metadata: {name: p}
spec:
  vertices:
  - {name: in, source: {generator: {}}}
  - {name: out, sink: {log: {}, retryStrategy: {onFailure: drop}}}
  edges:
  - {from: in, to: out}
`
	broken = `apiVersion: numaflow.numaproj.io/v1alpha1
kind: Pipeline
metadata: {name: p}
spec:
  vertices:
  - {name: in, source: {generator: {}}}
  - {name: out, sink: {log: {}, retryStrategy: {onFailure: drop}}}
  edges:
  - {from: in, to: outt}
  - {from: in, to: out}
`
)

func file(t *testing.T, name, text string) string {
	t.Helper()
	t.Chdir(t.TempDir())
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

func TestValidateFormats(t *testing.T) {
	for _, c := range []struct{ format, want string }{
		{"text", `p,1.yaml:7:33: warning LV1017: retryStrategy has no effect on a sink that is not a udsink
    7 |   - {name: out, sink: {log: {}, retryStrategy: {onFailure: drop}}}
      |                                 ^
    hint: built-in sinks try again until they succeed
    more: levada explain LV1017
p,1.yaml:9:20: error LV1203: there is no vertex "outt"
    9 |   - {from: in, to: outt}
      |                    ^
    did you mean: out
    more: levada explain LV1203
1 manifest: 1 error, 1 warning
`},
		{"github", `::warning file=p%2C1.yaml,line=7,col=33,title=LV1017::retryStrategy has no effect on a sink that is not a udsink (built-in sinks try again until they succeed)
::error file=p%2C1.yaml,line=9,col=20,title=LV1203::there is no vertex "outt"; did you mean out?
`},
		{"json", `{
  "manifests": 1,
  "errors": 1,
  "warnings": 1,
  "problems": [
    {
      "severity": "warning",
      "code": "LV1017",
      "file": "p,1.yaml",
      "line": 7,
      "column": 33,
      "path": "spec.vertices[1].sink.retryStrategy",
      "message": "retryStrategy has no effect on a sink that is not a udsink",
      "hint": "built-in sinks try again until they succeed"
    },
    {
      "severity": "error",
      "code": "LV1203",
      "file": "p,1.yaml",
      "line": 9,
      "column": 20,
      "path": "spec.edges[0].to",
      "message": "there is no vertex \"outt\"",
      "didYouMean": "out"
    }
  ]
}
`},
	} {
		t.Run(c.format, func(t *testing.T) {
			got := invoke(t, newValidateCommand(), "", "-o", c.format, "--excerpt", "always", file(t, "p,1.yaml", broken))
			if diff := cmp.Diff(commandlinetest.Outcome{Stdout: c.want, Code: commandline.ExitProblems}, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestValidateSARIF(t *testing.T) {
	got := invoke(t, newValidateCommand(), "", "-o", "sarif", file(t, "p.yaml", broken))
	var log sarifLog
	dec := json.NewDecoder(strings.NewReader(got.Stdout))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&log); err != nil {
		t.Fatal(err)
	}
	run := log.Runs[0]
	if log.Version != "2.1.0" || len(run.Tool.Driver.Rules) != 2 || len(run.Results) != 2 {
		t.Fatal(got.Stdout)
	}
	want := sarifResult{
		RuleID: "LV1203", Level: "error", Message: sarifText{`there is no vertex "outt"; did you mean out?`},
		Locations: []sarifLocation{{
			Physical: sarifPhysical{sarifArtifact{"p.yaml"}, &sarifRegion{9, 20}}, Logical: []sarifLogical{{"spec.edges[0].to"}},
		}},
	}
	if diff := cmp.Diff(want, run.Results[1]); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	empty := invoke(t, newValidateCommand(), warned, "-o", "sarif", "-")
	if !strings.Contains(empty.Stdout, `"results": [`) || empty.Code != 0 {
		t.Error(empty)
	}
}

func TestValidateExitCodes(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{"a.yaml": warned, "sub/b.yml": strings.Replace(broken, "name: p}", "name: q}", 1), ".git/c.yaml": "x: [", "d.txt": "x: ["} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		name  string
		args  []string
		stdin string
		code  int
		says  string
	}{
		{"warnings are not errors", []string{"-"}, warned, 0, "<stdin>:7:33: warning LV1017"},
		{"unless they are made so", []string{"--strict", "-"}, warned, commandline.ExitProblems, "<stdin>:7:33: error LV1017"},
		{"errors", []string{"-"}, broken, commandline.ExitProblems, "1 manifest: 1 error, 1 warning"},
		{"a directory", []string{dir}, "", commandline.ExitProblems, "2 manifests: 1 error, 2 warnings"},
		{"a file twice is read once", []string{filepath.Join(dir, "a.yaml"), filepath.Join(dir, "a.yaml")}, "", 0, "1 manifest: 0 errors, 1 warning"},
		{"no such file", []string{"nowhere.yaml"}, "", commandline.ExitProblems, "nowhere.yaml: error LV1022: cannot be read: no such file or directory"},
		{"an empty file", []string{"-"}, "# nothing\n", 0, "<stdin>: warning LV1021: the file has no manifest"},
		{"no argument", nil, "", commandline.ExitUsage, "validate needs a file, a directory, or -"},
		{"an unknown flag", []string{"--stric", "-"}, "", commandline.ExitUsage, "unknown flag: --stric"},
		{"an unknown format", []string{"-o", "xml", "-"}, "", commandline.ExitUsage, "must be text, json, sarif or github"},
		{"an unknown excerpt", []string{"--excerpt", "yes", "-"}, "", commandline.ExitUsage, "auto, always or never"},
		{"what cannot run is valid", []string{"-"}, strings.Replace(warned, "generator: {}", "kafka: {brokers: ['k:9092'], topic: t, consumerGroup: g}", 1), 0, "0 errors"},
		{"and an error when asked for", []string{"--runnable", "-"}, strings.Replace(warned, "generator: {}", "kafka: {brokers: ['k:9092'], topic: t, consumerGroup: g}", 1), commandline.ExitProblems, "error LV2302"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := invoke(t, newValidateCommand(), c.stdin, c.args...)
			if got.Code != c.code || !strings.Contains(got.Stdout+got.Stderr, c.says) {
				t.Errorf("exit code %d, want %d with %q:\n%s%s", got.Code, c.code, c.says, got.Stdout, got.Stderr)
			}
		})
	}
}

// A manifest cannot write to the terminal what is not text, and a tab or a long line leaves the caret in its place.
func TestExcerpts(t *testing.T) {
	for _, c := range []struct{ name, text, want string }{
		{"a control character", "kind: \"\x1b[31m\"\n", ""},
		{"a tab", "{\n\t\"apiVersion\": 7,\n\t\"kind\": \"Pipeline\"}", "    2 |     \"apiVersion\": 7,\n      |                   ^\n"},
		{"a long line", "# " + strings.Repeat("ü", 300) + "\nkind: {" + strings.Repeat("a: {b: c}, ", 30) + " }\napiVersion: 1\n", ""},
		{"a wide line", "{\"apiVersion\": \"numaflow.numaproj.io/v1alpha1\", \"metadata\": {\"labels\": {\"a\": \"" + strings.Repeat("ü", 300) + "\"}}, \"kind\": \"Pipelin\"}", "^"},
	} {
		got := invoke(t, newValidateCommand(), c.text, "--excerpt", "always", "-")
		if !strings.Contains(got.Stdout, c.want) || strings.ContainsAny(got.Stdout, "\x1b\t") {
			t.Errorf("%s:\n%s", c.name, got.Stdout)
		}
		for _, line := range strings.Split(got.Stdout, "\n") {
			if strings.Contains(line, " | ") && len([]rune(line)) > excerptWidth+20 {
				t.Errorf("%s: a line of %d characters", c.name, len([]rune(line)))
			}
		}
	}
}

func TestRender(t *testing.T) {
	got := invoke(t, newRenderCommand(), warned+"---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: c}\n", "-")
	if got.Code != 0 || !strings.Contains(got.Stdout, "    readBatchSize: 500\n") || !strings.HasSuffix(got.Stdout, "---\napiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: c\n") {
		t.Errorf("%+v", got)
	}
	again := invoke(t, newRenderCommand(), got.Stdout, "-")
	if diff := cmp.Diff(got.Stdout, again.Stdout); diff != "" {
		t.Errorf("rendered again (-once +twice):\n%s", diff)
	}
	if bad := invoke(t, newRenderCommand(), broken, "-"); bad.Code != commandline.ExitProblems || bad.Stdout != "" || !strings.Contains(bad.Stderr, "LV1203") {
		t.Errorf("%+v", bad)
	}
	if bad := invoke(t, newRenderCommand(), ""); bad.Code != commandline.ExitUsage {
		t.Errorf("%+v", bad)
	}
}

func TestExplain(t *testing.T) {
	want := `LV1203 (error): the edge names a vertex that does not exist

from and to are names of vertices of the same pipeline.

Wrong:
    edges:
    - {from: in, to: outt}

Right:
    edges:
    - {from: in, to: out}
`
	if diff := cmp.Diff(want, invoke(t, newExplainCommand(), "", "lv1203").Stdout); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if got := invoke(t, newExplainCommand(), ""); strings.Count(got.Stdout, "\n") < 80 {
		t.Error(got.Stdout)
	}
	if got := invoke(t, newExplainCommand(), "", "LV120"); got.Code != commandline.ExitUsage || !strings.Contains(got.Stderr, "did you mean LV1") {
		t.Errorf("%+v", got)
	}
}
