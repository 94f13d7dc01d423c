package streamcmd

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/levada-io/levada/internal/commandline"
	"github.com/levada-io/levada/stream"
)

func newPurgeCommand() *cobra.Command {
	var store storeFlag
	var sink sinkFlag
	var out outputFlag
	var retention stream.Retention
	var states []string
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
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			for _, s := range states {
				if !stream.State(s).Final() {
					return commandline.UsageError(fmt.Errorf("--state: expected some of completed, failed, cancelled, not %q", s))
				}
				retention.States = append(retention.States, stream.State(s))
			}
			if retention.OlderThan < time.Minute {
				return commandline.UsageError(fmt.Errorf("--older-than is %v, but must be at least 1m", retention.OlderThan))
			}
			if err := sink.check(); err != nil {
				return err
			}
			d, err := store.open(cmd.Context(), false)
			if err != nil {
				return err
			}
			defer d.closing(&err)
			total := 0
			for {
				n, err := d.purge(cmd.Context(), retention)
				if err != nil {
					return err
				}
				if total += n; n == 0 {
					break
				}
			}
			counts := map[string]int{"jobs": total}
			if sink.name != "" {
				if counts["sink"], err = sink.purge(cmd.Context(), stream.SinkRetention{OlderThan: retention.OlderThan, Jobs: d, WithQuarantine: retention.WithQuarantine}); err != nil {
					return fmt.Errorf("--sink (%d jobs were deleted before): %w", total, err)
				}
			}
			if out.json() {
				return encode(cmd.OutOrStdout(), false, counts)
			}
			if _, err = fmt.Fprintf(cmd.OutOrStdout(), "%d jobs deleted\n", total); err == nil && sink.name != "" {
				_, err = fmt.Fprintf(cmd.OutOrStdout(), "offsets of %d jobs deleted from the sink\n", counts["sink"])
			}
			return err
		},
	}
	store.register(cmd.Flags())
	cmd.Flags().StringVar(&sink.name, "sink", "", "database of a sink apart from the job store: the path of a SQLite file, or a postgres:// URL")
	cmd.Flags().StringVar(&sink.schema, "sink-schema", "", "schema of the sink's tables in Postgres")
	out.register(cmd.Flags())
	cmd.Flags().DurationVar(&retention.OlderThan, "older-than", 30*24*time.Hour, "how long ago a job must have ended")
	cmd.Flags().StringSliceVar(&states, "state", []string{"completed", "cancelled"}, "states of the jobs to delete: completed, failed, cancelled")
	cmd.Flags().BoolVar(&retention.WithQuarantine, "with-quarantine", false, "delete also jobs with quarantined records that are neither replayed nor dropped")
	return cmd
}

func (d *database) purge(ctx context.Context, r stream.Retention) (int, error) {
	if d.postgres != nil {
		return d.postgres.Purge(ctx, r)
	}
	return d.sqlite.Purge(ctx, r)
}
