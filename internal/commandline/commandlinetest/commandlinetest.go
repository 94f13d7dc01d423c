// Package commandlinetest runs command lines in tests, within the process of the test.
package commandlinetest

import (
	"bytes"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"github.com/levada-io/levada/internal/commandline"
)

// Outcome of a command line: what it printed, and its exit code.
type Outcome struct {
	Stdout, Stderr string
	Code           int
}

// Run executes a command line of root, as a process of the program would, with nothing on standard input. Its context ends with the test.
func Run(t *testing.T, root *cobra.Command, args ...string) Outcome {
	t.Helper()
	var stdout, stderr bytes.Buffer
	root.SetArgs(args)
	root.SetIn(strings.NewReader(""))
	root.SetOut(&stdout)
	root.SetErr(&stderr)
	code := commandline.Execute(t.Context(), root)
	return Outcome{Stdout: stdout.String(), Stderr: stderr.String(), Code: code}
}
