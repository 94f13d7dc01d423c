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
of its configuration. It goes on to run, until SIGTERM ends it or the command undrain makes it serve again. This is for the preStop hook of a sidecar, which
gets SIGTERM only after the server beside it has gone.

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

func newUndrain(name string) *cobra.Command {
	var at adminFlag
	cmd := &cobra.Command{
		Use:   "undrain",
		Short: "Call the drain of a proxy off, or make a proxy that has drained serve again",
		Long: `Call the drain of a proxy off, or make a proxy that has drained serve again: it listens, and is ready. Streams that the drain has ended stay ended.

A proxy that does not drain stays as it is. One that ends because of SIGTERM cannot be undrained: the exit code is 1 then.`,
		Example: examples(name, "undrain", "undrain --admin unix:/run/levada/admin.sock"),
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, err := at.client()
			if err != nil {
				return err
			}
			if err := client.Undrain(cmd.Context()); err != nil {
				return err
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), "the proxy serves")
			return err
		},
	}
	at.register(cmd.Flags())
	return cmd
}

func drain(ctx context.Context, client *admin.Client, out io.Writer, timeout time.Duration) error {
	late := fmt.Errorf("the proxy has not drained within %v (--timeout)", timeout)
	if timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, timeout, late)
		defer cancel()
	}
	streams := -1 // not known
	err := client.Drain(ctx, func(d admin.Drain) {
		text := drainLine(d, streams)
		if streams = d.Streams; text != "" {
			// The drain goes on, and this command waits for it, also when standard output is closed.
			_, _ = fmt.Fprintln(out, text)
		}
	})
	switch {
	case errors.Is(err, admin.ErrUndrained):
		return fmt.Errorf("%w (levada proxy undrain): the proxy serves, with %s open", err, plural(max(streams, 0), "stream"))
	case errors.Is(err, io.ErrUnexpectedEOF):
		return fmt.Errorf("the proxy has ended before it had drained; %s open when it was last heard of", plural(max(streams, 0), "stream"))
	case (errors.Is(err, late) || errors.Is(err, context.Canceled)) && streams >= 0:
		return fmt.Errorf("%w: the drain goes on; %s open", err, plural(streams, "stream"))
	}
	return err
}

// drainLine is the progress of a drain, empty if there is none. before is how many streams were open, -1 at the first event.
func drainLine(d admin.Drain, before int) string {
	switch {
	case d.Drained:
		return "drained"
	case !d.Draining: // called off
	case before < 0:
		return fmt.Sprintf("draining %s: notice %s, then over %s", plural(d.Streams, "stream"), seconds(d.NoticeSeconds), seconds(d.PeriodSeconds))
	case d.Streams != before:
		return plural(d.Streams, "stream") + " left"
	}
	return ""
}

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }
