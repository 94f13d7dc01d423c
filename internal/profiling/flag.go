package profiling

import (
	"fmt"
	"log/slog"

	"github.com/spf13/cobra"

	"github.com/levada-io/levada/internal/commandline"
)

// ServeAtFlag serves profiles at the address of --pprof, if there is one.
func ServeAtFlag(cmd *cobra.Command, address string, log *slog.Logger) (stop func(), err error) {
	at, stop, err := Serve(address, log)
	if err != nil {
		return nil, commandline.UsageError(fmt.Errorf("%s: %w", commandline.Given(cmd.Flags().Lookup("pprof")), err))
	}
	if at != "" {
		log.Info("profiles served", "url", "http://"+at+"/debug/pprof/")
	}
	return stop, nil
}
