package streamcmd

import (
	"testing"

	"github.com/spf13/cobra"

	"github.com/levada-io/levada/internal/commandline"
	"github.com/levada-io/levada/internal/commandline/commandlinetest"
)

// newProgram returns a program with nothing but the commands of this package.
func newProgram() *cobra.Command {
	root := commandline.Root(&cobra.Command{Use: "levada"}, "dev")
	root.AddCommand(New("dev"))
	return root
}

// levada runs a command line.
func levada(t *testing.T, args ...string) commandlinetest.Outcome {
	t.Helper()
	return commandlinetest.Run(t, newProgram(), args...)
}
