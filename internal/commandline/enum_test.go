package commandline

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

// program returns a program with one command, and what it writes.
func program(run func() error) (root *cobra.Command, output *string, out *bytes.Buffer) {
	output, out = new(string), &bytes.Buffer{}
	root = Root(&cobra.Command{Use: "prog"}, "v1")
	c := &cobra.Command{Use: "do", Args: cobra.NoArgs, RunE: func(*cobra.Command, []string) error { return run() }}
	Output(c.Flags(), output, "text", "json")
	root.AddCommand(c)
	root.SetOut(out)
	root.SetErr(out)
	return root, output, out
}

// TestAnEnumIsCheckedOnTheCommandLineAndInTheEnvironment: one that is not would be a format that nothing prints.
func TestAnEnumIsCheckedOnTheCommandLineAndInTheEnvironment(t *testing.T) {
	for _, c := range []struct {
		args        []string
		environment string
		want        string // of the flag, or a part of the error
		code        int
	}{
		{[]string{"do"}, "", "text", 0},
		{[]string{"do", "-o", "json"}, "", "json", 0},
		{[]string{"do"}, "json", "json", 0},
		{[]string{"do", "--output", "text"}, "json", "text", 0},
		{[]string{"do", "-o", "yaml"}, "", "must be text or json", ExitUsage},
		{[]string{"do"}, "yaml", "environment variable LEVADA_OUTPUT", ExitUsage},
		{[]string{"do", "-o", ""}, "", "must be text or json", ExitUsage},
	} {
		t.Run(fmt.Sprint(c.args, c.environment), func(t *testing.T) {
			if c.environment != "" {
				t.Setenv("LEVADA_OUTPUT", c.environment)
			}
			root, output, out := program(func() error { return nil })
			root.SetArgs(c.args)
			code := Execute(context.Background(), root)
			if text := *output + out.String(); code != c.code || !strings.Contains(text, c.want) {
				t.Errorf("exit code %d, want %d; %q, want %q", code, c.code, text, c.want)
			}
		})
	}
}

// TestExitCodes: scripts tell a wrong command line from a failure by them.
func TestExitCodes(t *testing.T) {
	for _, c := range []struct {
		err  error
		code int
		text string
	}{
		{nil, 0, ""},
		{errors.New("broken"), ExitProblems, "prog: broken\n"},
		{Problems(), ExitProblems, ""},
		{Usagef("--x %w", errors.New("is wrong")), ExitUsage, "prog: --x is wrong\n"},
		{fmt.Errorf("do: %w", Usagef("wrong")), ExitUsage, "prog: wrong\n"},
		{ExitError{Code: ExitDeadLetters}, ExitDeadLetters, ""},
	} {
		root, _, out := program(func() error { return c.err })
		root.SetArgs([]string{"do"})
		if code := Execute(context.Background(), root); code != c.code || out.String() != c.text {
			t.Errorf("%v: exit code %d, want %d; printed %q, want %q", c.err, code, c.code, out, c.text)
		}
	}
}
