package streamcmd

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/levada-io/levada/internal/commandline"
	"github.com/levada-io/levada/internal/streamcmd/connect"
	"github.com/levada-io/levada/stream"
)

// change is a command that changes jobs: pause, resume, cancel or retry.
type change struct {
	name, done string // the command, and what it prints of a job that was changed
	wakes      bool   // the jobs may be due then: workers are notified
	do         func(d *connect.Database, ctx context.Context, was stream.Status) (stream.Status, error)
	store      connect.StoreFlags
	notifier   connect.NotifierFlags
	out        outputFlag
}

// newChangeCommands makes pause, resume, cancel and retry.
func newChangeCommands() []*cobra.Command {
	pause := &change{name: "pause", done: "paused", do: func(d *connect.Database, ctx context.Context, was stream.Status) (stream.Status, error) {
		return d.Pause(ctx, was.ID)
	}}
	resume := &change{name: "resume", done: "resumed", wakes: true, do: func(d *connect.Database, ctx context.Context, was stream.Status) (stream.Status, error) {
		return d.Resume(ctx, was.ID)
	}}
	cancel := &change{name: "cancel", done: "cancelled", do: func(d *connect.Database, ctx context.Context, was stream.Status) (stream.Status, error) {
		return d.Cancel(ctx, was.ID)
	}}
	retry := &change{name: "retry", done: "retried", wakes: true, do: func(d *connect.Database, ctx context.Context, was stream.Status) (stream.Status, error) {
		if err := nothingToRetry(ctx, d, was); err != nil {
			return was, err
		}
		return d.Retry(ctx, was.ID)
	}}
	return []*cobra.Command{
		pause.command("Stop jobs until they are resumed; records in flight are not committed"),
		resume.command("Resume paused jobs after their last commit"),
		cancel.command("End jobs; what they have committed stays"),
		newRetryCommand(retry),
	}
}

func (c *change) command(short string) *cobra.Command {
	cmd := &cobra.Command{Use: c.name + " ID...", Short: short, Args: jobArguments(1), RunE: c.run}
	c.store.Register(cmd.Flags())
	c.out.register(cmd.Flags())
	if c.wakes {
		c.notifier.Register(cmd.Flags())
	}
	return cmd
}

// run changes the jobs one after the other. One that fails does not keep the others from being changed.
func (c *change) run(cmd *cobra.Command, ids []string) (err error) {
	d, err := c.store.Open(cmd.Context(), false)
	if err != nil {
		return err
	}
	defer d.Closing(&err)
	if err := c.notifier.Check(d); err != nil {
		return err
	}
	var changed []stream.Job
	var failed error
	for _, id := range ids {
		status, err := c.one(cmd.Context(), d, id)
		if err != nil {
			failed = errors.Join(failed, err)
			continue
		}
		changed = append(changed, status.Job)
		if c.out.json() {
			err = commandline.WriteJSON(cmd.OutOrStdout(), false, status)
		} else {
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s %s\n", c.done, status.ID)
		}
		if err != nil {
			return err
		}
	}
	if c.wakes {
		failed = errors.Join(failed, c.notifier.Send(cmd.Context(), d, cmd.ErrOrStderr(), changed...))
	}
	return failed
}

// one changes the job that the id, or its beginning, names.
func (c *change) one(ctx context.Context, d *connect.Database, id string) (stream.Status, error) {
	was, err := d.FindJob(ctx, id)
	if err != nil {
		return was, err
	}
	status, err := c.do(d, ctx, was)
	if errors.Is(err, stream.ErrState) {
		err = fmt.Errorf("%w; next: %s", err, whatNext(&was))
	}
	return status, err
}
