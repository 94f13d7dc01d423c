// Package streamcmd has the commands of "levada stream": producers (serve), workers (work), and what shows and changes jobs.
//
// # Files
//
// There is a file for each command. Package connect opens what flags name: the job store, producers, and what wakes workers. Package jobtext writes jobs
// for people. Package demo is `levada stream demo`, which starts this program as its processes.
package streamcmd

import (
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/spf13/cobra"

	"github.com/levada-io/levada/internal/commandline"
	"github.com/levada-io/levada/internal/streamcmd/demo"
)

// New returns the command "stream" with all that is below it. version is the one of the program, for its metrics.
func New(version string) *cobra.Command {
	cmd := &cobra.Command{
		Use: "stream", Short: "Move records between services over gRPC, exactly once into a database",
		Long: `A producer serves ordered records (serve, or your own program with package stream). A job says that a stream is to be read to its end, once
(submit). Workers claim jobs, and commit records together with the offset (work, or your own program). Whatever dies, the next worker goes on
after the last commit.

Jobs are kept in a SQLite file, for one worker on one machine, or in Postgres, for any number of workers: --store names it.`,
		Example: `  levada stream demo
  levada stream serve --file orders=orders.ndjson
  levada stream submit orders --target 127.0.0.1:50051
  levada stream work --stream orders --until-done`,
	}
	cmd.AddCommand(newServeCommand(version), newWorkCommand(version), newSubmitCommand(), newListCommand(), newShowCommand())
	cmd.AddCommand(newChangeCommands()...)
	cmd.AddCommand(newQuarantineCommand(), newVerifyCommand(), newMigrateCommand(), newPurgeCommand(), newWatchCommand(version), demo.New())
	cmd.AddCommand(demo.Roles()...)
	return cmd
}

func jobArguments(least int) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) < least || least == 1 && cmd.Annotations["one"] != "" && len(args) > 1 {
			return commandline.Usagef("usage: %s: name the job by its id; `levada stream list` shows them", cmd.UseLine())
		}
		return nil
	}
}

// postgresIdentifier quotes a column or table that a user names.
func postgresIdentifier(name string) string {
	return pgx.Identifier(strings.SplitN(name, ".", 2)).Sanitize()
}
