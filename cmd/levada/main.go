// Levada moves business-critical messages through pipelines, streams and proxies, and loses none.
package main

import (
	"github.com/spf13/cobra"

	"github.com/levada-io/levada/api/v1alpha1"
	"github.com/levada-io/levada/internal/commandline"
	"github.com/levada-io/levada/internal/dataplane/function"
	"github.com/levada-io/levada/internal/pipelinecmd"
	"github.com/levada-io/levada/internal/streamcmd"
)

// version is set by the linker in releases.
var version = "dev"

func main() {
	function.Enter() // in a process that is about to become a function this does not return
	commandline.Main(newRootCommand())
}

// contracts are the interfaces to other programs that this version speaks.
func contracts() []commandline.Contract {
	return []commandline.Contract{
		{Name: "manifests", Version: v1alpha1.APIVersion},
		{Name: "functions", Version: "Numaflow " + function.Platform},
		{Name: "blocks of functions", Version: "levada.function.v1"},
		{Name: "streams", Version: "levada.stream.v1"},
	}
}

func newRootCommand() *cobra.Command {
	root := commandline.Root(&cobra.Command{
		Use:   "levada",
		Short: "Pipelines, streams and proxies that keep every message",
		Long: `Levada runs Numaflow pipelines (numaflow.numaproj.io/v1alpha1) and keeps every message: in one process on a laptop, and not yet in a cluster. It moves
records from services into databases (levada stream), and passes gRPC on (levada proxy), on machines and in pods.

Every flag can also be given as an environment variable: --data is LEVADA_DATA.`,
	}, commandline.ReadBuild(version).Version)
	root.AddCommand(pipelinecmd.New(version)...)
	root.AddCommand(streamcmd.New(version), newProxyCommand(), commandline.NewVersionCommand(version, contracts()))
	return root
}
