// Levada-proxy is the command levada proxy as a program of its own, for sidecars: without the rest of Levada and Kubernetes' client it takes a third of the
// memory.
package main

import (
	"github.com/spf13/cobra"

	"github.com/levada-io/levada/internal/commandline"
	"github.com/levada-io/levada/internal/proxy/command"
)

// version is set by the linker in releases.
var version = "dev"

func main() { commandline.Main(newRootCommand()) }

func newRootCommand() *cobra.Command {
	v := commandline.ReadBuild(version).Version
	root := commandline.Root(command.New(command.Options{Name: "levada-proxy", Version: v}), v)
	root.AddCommand(commandline.NewVersionCommand(version, nil))
	return root
}
