package pipelinecmd

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/levada-io/levada/internal/broker"
	"github.com/levada-io/levada/internal/commandline"
)

func newBrokerCommand() *cobra.Command {
	var cfg broker.Config
	var payload int32
	var log commandline.LogFlags
	cmd := &cobra.Command{
		Use: "broker", Short: "Run the broker as a process of its own, for levada run --nats",
		Long:    `Run a NATS server with JetStream and settings under which nothing that was acknowledged is lost, also at a power loss.`,
		Example: `  levada broker --data /var/lib/levada/broker --listen 127.0.0.1:4222`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			logger, err := log.Logger(cmd.ErrOrStderr())
			if err != nil {
				return err
			}
			cfg.Logger, cfg.MaxPayload = logger, payload
			release, err := broker.LockDir(cfg.Dir)
			if err != nil {
				return err
			}
			defer release()
			b, err := broker.Start(cfg)
			if err != nil {
				return err
			}
			defer b.Stop()
			fmt.Fprintln(cmd.OutOrStdout(), b.URL())
			watchHealth(cmd.Context(), b, func(err error) { logger.Error("broker cannot store any more", "error", err) })
			return nil
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&cfg.Dir, "data", "./levada-broker", "data directory")
	flags.StringVar(&cfg.Listen, "listen", "127.0.0.1:4222", "address for clients")
	flags.DurationVar(&cfg.SyncInterval, "sync-interval", 0, "write through to the disk this often, instead of before each acknowledgement")
	flags.Int32Var(&payload, "max-payload", 8<<20, "largest message in bytes")
	commandline.Between(flags, "max-payload", 4<<10, 64<<20)
	log.Register(flags)
	return cmd
}

// watchHealth tells of a broker that cannot store any more, until ctx ends.
func watchHealth(ctx context.Context, b *broker.Broker, tell func(error)) {
	tick := time.NewTicker(5 * time.Second)
	defer tick.Stop()
	was := ""
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			now := ""
			if err := b.Healthy(ctx); err != nil {
				if now = err.Error(); now != was {
					tell(err)
				}
			}
			was = now
		}
	}
}
