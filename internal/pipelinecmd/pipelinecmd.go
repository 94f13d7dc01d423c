// Package pipelinecmd has the commands of pipelines: run, vertex and scale, what reads manifests without running them (validate, render, explain), what shows and changes the data
// of a pipeline (buffers, deadletters), its broker, and the list of built-in functions.
//
// # Files
//
// One folder, because run shares its flags and its reading of manifests with the others. There is a file for each command, run_*.go and view.go
// belong to run, problems.go and manifests.go to all that read manifests. What the commands do is in internal/standalone and internal/manifest; here are flags, texts and exit codes.
package pipelinecmd

import "github.com/spf13/cobra"

// New returns the commands. version is the one of the program, which a run tells in its logs and metrics.
func New(version string) []*cobra.Command {
	return []*cobra.Command{
		newRunCommand(version), newVertexCommand(version), newScaleCommand(), newValidateCommand(), newRenderCommand(), newExplainCommand(), newDeadLettersCommand(), newBuffersCommand(version), newBrokerCommand(), newBuiltinsCommand(),
	}
}
