package main

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"syscall"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/levada-io/levada/internal/commandline"
	"github.com/levada-io/levada/internal/commandline/commandlinetest"
)

// levada runs a command line.
func levada(t *testing.T, args ...string) commandlinetest.Outcome {
	t.Helper()
	return commandlinetest.Run(t, newRootCommand(), args...)
}

func executeForTest(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	o := levada(t, args...)
	return o.Code, o.Stdout, o.Stderr
}

// everyFlag visits the flags of all commands, hidden ones too.
func everyFlag(visit func(path []string, f *pflag.Flag)) {
	var walk func(cmd *cobra.Command, path []string)
	walk = func(cmd *cobra.Command, path []string) {
		cmd.Flags().VisitAll(func(f *pflag.Flag) { visit(path, f) })
		cmd.PersistentFlags().VisitAll(func(f *pflag.Flag) { visit(path, f) })
		for _, c := range cmd.Commands() {
			walk(c, append(path[:len(path):len(path)], c.Name()))
		}
	}
	walk(newRootCommand(), nil)
}

// negativeMeansNever are the flags for which a negative number is documented.
var negativeMeansNever = map[string]bool{"stream serve --max-age": true, "stream submit --priority": true, "stream submit --max-bad": true}

func TestNegativeNumbersAreUsageErrorsThatNameTheFlag(t *testing.T) {
	n := 0
	everyFlag(func(path []string, f *pflag.Flag) {
		bad := map[string]string{"duration": "-1s", "int": "-1", "int32": "-1", "int64": "-1"}[f.Value.Type()]
		name := strings.Join(path, " ") + " --" + f.Name
		if bad == "" || negativeMeansNever[name] {
			return
		}
		n++
		code, _, stderr := executeForTest(t, append(path[:len(path):len(path)], "--"+f.Name+"="+bad)...)
		if code != 2 || !strings.Contains(stderr, "--"+f.Name) || !strings.Contains(stderr, "must ") {
			t.Errorf("%s=%s: exit code %d, %q; expected 2 and an error that names the flag", name, bad, code, stderr)
		}
	})
	if n < 20 {
		t.Fatalf("only %d flags were tried", n)
	}
}

func TestAnErrorOfAVariableNamesIt(t *testing.T) {
	for _, c := range []struct{ variable, value, command string }{
		{"LEVADA_OUTPUT", "tabel", "validate x.yaml"},
		{"LEVADA_OUTPUT", "yaml", "run x.yaml"},
		{"LEVADA_OUTPUT", "table", "deadletters list --data x"},
		{"LEVADA_OUTPUT", "xml", "builtins"},
		{"LEVADA_OUTPUT", "xml", "version"},
		{"LEVADA_OUTPUT", "xml", "stream list"},
		{"LEVADA_OUTPUT", "xml", "proxy validate x.yaml"},
		{"LEVADA_SYNC_INTERVAL", "-1s", "run x.yaml"},
		{"LEVADA_SYNC_INTERVAL", "-1s", "broker"},
		{"LEVADA_REPLICAS", "0", "run x.yaml"},
		{"LEVADA_REPLICAS", "7", "run x.yaml"},
		{"LEVADA_REPLICAS", "3", "run ../../examples/first.yaml"},
		{"LEVADA_INTERVAL", "0s", "run x.yaml"},
		{"LEVADA_DRAIN_TIMEOUT", "soon", "run x.yaml"},
		{"LEVADA_LOG_LEVEL", "loud", "run x.yaml"},
		{"LEVADA_LOG_FORMAT", "xml", "run x.yaml"},
		{"LEVADA_EXCERPT", "maybe", "validate x.yaml"},
		{"LEVADA_MAX_PAYLOAD", "5", "broker"},
	} {
		t.Run(c.variable+"="+c.value+" "+c.command, func(t *testing.T) {
			t.Setenv(c.variable, c.value)
			code, _, stderr := executeForTest(t, strings.Fields(c.command)...)
			if code != 2 || !strings.Contains(stderr, c.variable) || !strings.Contains(stderr, c.value) || strings.Count(stderr, "\n") != 1 {
				t.Fatalf("exit code %d, %q; expected 2 and one line that names the variable and the value", code, stderr)
			}
		})
	}
}

func TestBuiltinsAreATableThatFitsATerminal(t *testing.T) {
	code, stdout, stderr := executeForTest(t, "builtins")
	if code != 0 || !strings.HasPrefix(stdout, "NAME ") {
		t.Fatalf("exit code %d, %q, %q", code, stdout, stderr)
	}
	for line := range strings.Lines(stdout) {
		if len(line) > 111 || strings.Contains(line, "[map[") || strings.HasPrefix(line, "{") {
			t.Errorf("%d characters: %q", len(line), line)
		}
	}
	if _, stdout, _ = executeForTest(t, "builtins", "cat"); !strings.Contains(stdout, "numaflow-go/map-cat") {
		t.Errorf("builtins cat: %q", stdout)
	}
	if code, stdout, _ = executeForTest(t, "builtins", "-o", "json"); code != 0 || !strings.Contains(stdout, `"name": "cat"`) {
		t.Errorf("builtins -o json: %d, %q", code, stdout)
	}
	if code, _, stderr = executeForTest(t, "builtins", "kat"); code != 2 || !strings.Contains(stderr, "kat") {
		t.Errorf("builtins kat: %d, %q", code, stderr)
	}
}

func TestVersionNamesBuildAndContracts(t *testing.T) {
	code, stdout, stderr := executeForTest(t, "version")
	for _, want := range []string{"levada ", "commit ", "go1.", "numaflow.numaproj.io/v1alpha1", "levada.stream.v1"} {
		if !strings.Contains(strings.Join(strings.Fields(stdout), " ")+" ", want) {
			t.Errorf("exit code %d, %q %q: %q is missing", code, stdout, stderr, want)
		}
	}
}

func TestACommandThatASignalEndedHasTheExitCodeOfTheSignal(t *testing.T) {
	for signal, want := range map[syscall.Signal]int{syscall.SIGINT: 130, syscall.SIGTERM: 143} {
		ctx, cancel := context.WithCancelCause(t.Context())
		root := newRootCommand()
		root.AddCommand(&cobra.Command{Use: "wait", RunE: func(cmd *cobra.Command, _ []string) error {
			cancel(commandline.SignalError{Signal: signal})
			<-cmd.Context().Done()
			return fmt.Errorf("drain: %w", context.Cause(cmd.Context()))
		}})
		root.SetArgs([]string{"wait"})
		root.SetErr(&bytes.Buffer{})
		if code := commandline.Execute(ctx, root); code != want {
			t.Errorf("%v: exit code %d, want %d", signal, code, want)
		}
	}
}
