// Levada moves business-critical messages through pipelines, streams and proxies, and loses none.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/levada-io/levada/internal/dataplane/function"
)

// version is set by the linker in releases.
var version = "dev"

func main() {
	function.Enter() // in a process that is about to become a function this does not return
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop) // a second signal ends the process at once
	os.Exit(execute(ctx, newRootCommand()))
}

func execute(ctx context.Context, root *cobra.Command) int {
	err := root.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	var exit exitError
	if !errors.As(err, &exit) {
		fmt.Fprintln(root.ErrOrStderr(), "levada:", err)
		return exitProblems
	}
	if exit.err != nil {
		fmt.Fprintln(root.ErrOrStderr(), "levada:", exit.err)
	}
	return exit.code
}

func newRootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:   "levada",
		Short: "Pipelines that keep every message, on a laptop and in a cluster",
		Long: `Levada runs Numaflow pipelines (numaflow.numaproj.io/v1alpha1) and keeps every message: in one process on a laptop, in pods in a cluster.

Every flag can also be given as an environment variable: --data is LEVADA_DATA.`,
		Version: version, SilenceUsage: true, SilenceErrors: true,
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error { return flagsFromEnvironment(cmd.Flags()) },
	}
	root.AddCommand(newRunCommand(), newValidateCommand(), newRenderCommand(), newExplainCommand(), newDeadLettersCommand(), newStreamCommand(), newProxyCommand(), newBrokerCommand(), newBuiltinsCommand())
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return exitError{exitUsage, err} })
	return root
}

// flagsFromEnvironment sets flags that were not given from LEVADA_ variables.
func flagsFromEnvironment(flags *pflag.FlagSet) (err error) {
	flags.VisitAll(func(f *pflag.Flag) {
		name := "LEVADA_" + strings.ToUpper(strings.ReplaceAll(f.Name, "-", "_"))
		value, ok := os.LookupEnv(name)
		if !ok || f.Changed || err != nil {
			return
		}
		if e := flags.Set(f.Name, value); e != nil {
			err = exitError{exitUsage, fmt.Errorf("environment variable %s: %w", name, e)}
		}
	})
	return err
}
