package streamcmd

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/levada-io/levada/stream"
)

// newChangeCommands makes pause, resume, cancel and retry.
func newChangeCommands() []*cobra.Command {
	change := func(name, short, done string, due bool, do func(*database, context.Context, string) (stream.Status, error)) *cobra.Command {
		var store storeFlag
		var notifier notifierFlag
		var out outputFlag
		cmd := &cobra.Command{
			Use: name + " ID...", Short: short, Args: jobArguments(1),
			RunE: func(cmd *cobra.Command, args []string) (err error) {
				d, err := store.open(cmd.Context(), false)
				if err != nil {
					return err
				}
				defer d.closing(&err)
				if err := notifier.check(d); err != nil {
					return err
				}
				var changed []stream.Job
				var failed error
				for _, id := range args {
					was, err := findJob(cmd.Context(), d, id)
					var status stream.Status
					if err == nil && name == "retry" {
						err = nothingToRetry(cmd.Context(), d, was)
					}
					if err == nil {
						status, err = do(d, cmd.Context(), was.ID)
					}
					if errors.Is(err, stream.ErrState) {
						err = fmt.Errorf("%w; next: %s", err, whatNext(&was))
					}
					if err != nil {
						failed = errors.Join(failed, err)
						continue
					}
					changed = append(changed, status.Job)
					if out.json() {
						err = encode(cmd.OutOrStdout(), false, status)
					} else {
						_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s %s\n", done, status.ID)
					}
					if err != nil {
						return err
					}
				}
				if due {
					failed = errors.Join(failed, notifier.send(cmd.Context(), d, cmd.ErrOrStderr(), changed...))
				}
				return failed
			},
		}
		store.register(cmd.Flags())
		out.register(cmd.Flags())
		if due {
			notifier.register(cmd.Flags())
		}
		return cmd
	}
	return []*cobra.Command{
		change("pause", "Stop jobs until they are resumed; records in flight are not committed", "paused", false, func(d *database, ctx context.Context, id string) (stream.Status, error) { return d.Pause(ctx, id) }),
		change("resume", "Resume paused jobs after their last commit", "resumed", true, func(d *database, ctx context.Context, id string) (stream.Status, error) { return d.Resume(ctx, id) }),
		change("cancel", "End jobs; what they have committed stays", "cancelled", false, func(d *database, ctx context.Context, id string) (stream.Status, error) { return d.Cancel(ctx, id) }),
		newRetryCommand(change("retry", "Resume failed or cancelled jobs after their last commit", "retried", true, func(d *database, ctx context.Context, id string) (stream.Status, error) { return d.Retry(ctx, id) })),
	}
}
