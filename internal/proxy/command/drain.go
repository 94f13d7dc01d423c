package command

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/levada-io/levada/internal/proxy/admin"
)

func newDrain(name string) *cobra.Command {
	var (
		at      adminFlag
		timeout time.Duration
	)
	cmd := &cobra.Command{
		Use:   "drain",
		Short: "Drain a proxy, and wait until that is done",
		Long: `Drain a proxy, and wait until that is done: it is not ready any more, stops to accept connections after the notice, and ends its open streams over the period
of its configuration. It goes on to run, for SIGTERM to end it. This is for the preStop hook of a sidecar, which gets SIGTERM only after the server beside it has gone.

The exit code is 0 when the proxy has drained. A drain that is under way is joined; one that this command does not wait for any more goes on.`,
		Example: examples(name, "drain", "drain --admin 127.0.0.1:9901 --timeout 1m"),
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, err := at.client()
			if err != nil {
				return err
			}
			return drain(cmd.Context(), client, cmd.OutOrStdout(), timeout)
		},
	}
	f := cmd.Flags()
	at.register(f)
	f.DurationVar(&timeout, "timeout", 0, "time to wait; 0 waits as long as it takes")
	return cmd
}

func drain(ctx context.Context, client *admin.Client, out io.Writer, timeout time.Duration) error {
	late := fmt.Errorf("the proxy has not drained within %v (--timeout)", timeout)
	if timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, timeout, late)
		defer cancel()
	}
	streams := -1
	err := client.Drain(ctx, func(d admin.Drain) {
		text := ""
		switch {
		case d.Drained:
			text = "drained"
		case streams < 0:
			text = fmt.Sprintf("draining %s: notice %s, then over %s", plural(d.Streams, "stream"), seconds(d.NoticeSeconds), seconds(d.PeriodSeconds))
		case d.Streams != streams:
			text = plural(d.Streams, "stream") + " left"
		}
		if streams = d.Streams; text != "" {
			// A drain goes on, and is waited for, also when nobody reads about it.
			_, _ = fmt.Fprintln(out, text)
		}
	})
	switch {
	case errors.Is(err, io.ErrUnexpectedEOF):
		return fmt.Errorf("the proxy has ended before it had drained; %s open when it was last heard of", plural(max(streams, 0), "stream"))
	case (errors.Is(err, late) || errors.Is(err, context.Canceled)) && streams >= 0:
		return fmt.Errorf("%w: the drain goes on; %s open", err, plural(streams, "stream"))
	}
	return err
}

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }
