package streamcmd

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/levada-io/levada/internal/commandline"
	"github.com/levada-io/levada/internal/streamcmd/connect"
	"github.com/levada-io/levada/stream"
)

type purgeFlags struct {
	store     connect.StoreFlags
	sink      sinkFlag
	out       outputFlag
	retention stream.Retention
	states    []string
}

func newPurgeCommand() *cobra.Command {
	var f purgeFlags
	cmd := &cobra.Command{
		Use: "purge", Short: "Delete jobs that ended long ago, with their offsets and quarantined records", Args: cobra.NoArgs,
		Long: `Delete jobs that ended longer ago than --older-than: completed and cancelled ones, unless --state says otherwise. Their offsets and quarantined
records are deleted with them; the rows that handlers wrote stay. A job with quarantined records that are neither replayed nor dropped is kept,
unless --with-quarantine is given. The dedupe key of a deleted job is free again.

Offsets and quarantined records of a sink in another database than the job store (pgstore.NewSink, sqlitestore.NewSink) are deleted with --sink: those
that are older than --older-than, and whose job the job store does not have any more.

Nothing is deleted unless this command, or Purge of the store's package, is run: run it once a day, for instance from a CronJob.`,
		Example: `  levada stream purge --older-than 720h
  levada stream purge --older-than 2160h --state completed,cancelled,failed --with-quarantine
  levada stream purge --store postgres://localhost/jobs --sink postgres://localhost/warehouse`,
		RunE: func(cmd *cobra.Command, _ []string) (err error) { return f.run(cmd) },
	}
	f.store.Register(cmd.Flags())
	cmd.Flags().StringVar(&f.sink.Name, "sink", "", "database of a sink apart from the job store: the path of a SQLite file, or a postgres:// URL")
	cmd.Flags().StringVar(&f.sink.Schema, "sink-schema", "", "schema of the sink's tables in Postgres")
	f.out.register(cmd.Flags())
	cmd.Flags().DurationVar(&f.retention.OlderThan, "older-than", 30*24*time.Hour, "how long ago a job must have ended")
	cmd.Flags().StringSliceVar(&f.states, "state", []string{"completed", "cancelled"}, "states of the jobs to delete: completed, failed, cancelled")
	cmd.Flags().BoolVar(&f.retention.WithQuarantine, "with-quarantine", false, "delete also jobs with quarantined records that are neither replayed nor dropped")
	return cmd
}

// check finds what is wrong with the flags before anything is deleted.
func (f *purgeFlags) check() error {
	for _, s := range f.states {
		if !stream.State(s).Final() {
			return commandline.Usagef("--state: expected some of completed, failed, cancelled, not %q", s)
		}
		f.retention.States = append(f.retention.States, stream.State(s))
	}
	if f.retention.OlderThan < time.Minute {
		return commandline.Usagef("--older-than is %v, but must be at least 1m", f.retention.OlderThan)
	}
	return f.sink.check()
}

// run purges the store first: offsets in another database go once their job has gone.
func (f *purgeFlags) run(cmd *cobra.Command) (err error) {
	if err := f.check(); err != nil {
		return err
	}
	d, err := f.store.Open(cmd.Context(), false)
	if err != nil {
		return err
	}
	defer d.Closing(&err)
	jobs, err := purgeJobs(cmd.Context(), d, f.retention)
	if err != nil {
		return err
	}
	counts := map[string]int{"jobs": jobs}
	if f.sink.Name != "" {
		if counts["sink"], err = f.sink.purge(cmd.Context(), stream.SinkRetention{OlderThan: f.retention.OlderThan, Jobs: d, WithQuarantine: f.retention.WithQuarantine}); err != nil {
			return fmt.Errorf("--sink (%d jobs were deleted before): %w", jobs, err)
		}
	}
	if f.out.json() {
		return commandline.WriteJSON(cmd.OutOrStdout(), false, counts)
	}
	if _, err = fmt.Fprintf(cmd.OutOrStdout(), "%d jobs deleted\n", jobs); err == nil && f.sink.Name != "" {
		_, err = fmt.Fprintf(cmd.OutOrStdout(), "offsets of %d jobs deleted from the sink\n", counts["sink"])
	}
	return err
}

// purgeJobs deletes in steps, each a transaction of its own, until nothing is left to delete.
func purgeJobs(ctx context.Context, d *connect.Database, r stream.Retention) (total int, err error) {
	purge := d.SQLite.Purge
	if d.Postgres != nil {
		purge = d.Postgres.Purge
	}
	for {
		n, err := purge(ctx, r)
		total += n
		if err != nil || n == 0 {
			return total, err
		}
	}
}
