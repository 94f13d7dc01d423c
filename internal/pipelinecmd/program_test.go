package pipelinecmd

import (
	"testing"

	"github.com/spf13/cobra"

	"github.com/levada-io/levada/internal/commandline"
	"github.com/levada-io/levada/internal/commandline/commandlinetest"
)

// levada runs a command line of a program with nothing but the commands of this package.
func levada(t *testing.T, args ...string) commandlinetest.Outcome {
	t.Helper()
	root := commandline.Root(&cobra.Command{Use: "levada"}, "dev")
	root.AddCommand(New("dev")...)
	return commandlinetest.Run(t, root, args...)
}
