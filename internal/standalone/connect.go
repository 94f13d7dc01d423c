package standalone

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/levada-io/levada/api/v1alpha1"
	"github.com/levada-io/levada/internal/broker"
	"github.com/levada-io/levada/internal/dataplane/buffer/jetstreambuffer"
	"github.com/levada-io/levada/internal/dataplane/engine"
	"github.com/levada-io/levada/internal/dataplane/function"
	"github.com/levada-io/levada/internal/dataplane/natslink"
	"github.com/levada-io/levada/internal/manifest"
	"github.com/levada-io/levada/internal/redact"
)

// open takes the data directory and connects to the broker.
func (r *runner) open(ctx context.Context) error {
	release, err := broker.LockDir(r.cfg.DataDir)
	if err != nil {
		return err
	}
	r.close = append(r.close, release)
	if err := r.openSockets(); err != nil {
		return err
	}
	return r.connect(ctx)
}

func (r *runner) openSockets() (err error) {
	if r.sockets, err = function.NewSocketRoot(); err != nil {
		return fmt.Errorf("directory for sockets: %w", err)
	}
	r.close = append(r.close, func() { _ = os.RemoveAll(r.sockets) })
	return nil
}

// connect connects to the broker, or starts the one in this process.
func (r *runner) connect(ctx context.Context) (err error) {
	options := []nats.Option{
		nats.MaxReconnects(-1), nats.ReconnectWait(100 * time.Millisecond), nats.ReconnectJitter(50*time.Millisecond, 50*time.Millisecond),
		nats.ReconnectBufSize(-1), nats.PingInterval(10 * time.Second),
		nats.DisconnectErrHandler(func(_ *nats.Conn, err error) {
			if err != nil {
				r.log.Warn("broker disconnected, reconnecting", "error", redact.Error(err))
			}
		}),
		nats.ReconnectHandler(func(c *nats.Conn) {
			r.log.Info("broker reconnected", "url", c.ConnectedUrlRedacted())
			r.recheck()
		}),
	}
	if r.cfg.NATS != "" {
		options = append(append(options, nats.Name("levada")), r.cfg.NATSOptions...)
		if r.link, err = natslink.Dial(ctx, r.cfg.NATS, r.log, options...); err != nil {
			return err
		}
		r.conn = r.link.Conn
		r.close = append(r.close, r.conn.Close)
		if err := natslink.CheckVersion(r.link.URL, r.link.Conn.ConnectedServerVersion()); err != nil {
			return err
		}
		if err := r.link.CheckJetStream(ctx, r.log, jetstreambuffer.MinPayload); err != nil {
			return err
		}
	} else {
		over := engine.Waiting(r.log, "broker in this process to open its store", nil, "data", r.cfg.DataDir)
		r.broker, err = broker.Start(broker.Config{
			Dir: filepath.Join(r.cfg.DataDir, "broker"), MaxPayload: max(minPayload, r.maxPayload()), SyncInterval: r.cfg.SyncInterval, Logger: r.log,
		})
		over(err)
		if err != nil {
			return err
		}
		r.close = append(r.close, r.broker.Stop)
		// Pull requests that end are no news; the calls that fail report what matters.
		options = append(options, nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) { r.log.Debug("broker", "error", err) }))
		if r.conn, err = r.broker.Connect(options...); err != nil {
			return fmt.Errorf("connect to the broker: %w", err)
		}
		r.close = append(r.close, r.conn.Close)
	}
	r.js, err = jetstream.New(r.conn, jetstream.WithDefaultTimeout(10*time.Second))
	return err
}

// minPayload is the largest message of the broker in this process, unless a manifest asks for more. Blocks that are larger are stored in pieces.
const minPayload = 8 << 20

func (r *runner) maxPayload() (n int32) {
	for _, o := range r.cfg.Objects {
		if s, ok := o.Manifest.(*v1alpha1.InterStepBufferService); ok && s.Spec.JetStream != nil {
			settings, _, _ := manifest.ParseServerSettings(s.Spec.JetStream.Settings) // validated
			n = max(n, int32(settings.MaxPayload))
		}
	}
	return n
}

// brokerHealth is the broker of a run, in this process or elsewhere.
type brokerHealth struct{ r *runner }

// Stuck implements engine.Broker.
func (b brokerHealth) Stuck() error {
	if b.r.broker == nil {
		return nil
	}
	return b.r.broker.Stuck()
}

// Usable implements engine.Broker.
func (b brokerHealth) Usable(ctx context.Context) error {
	if own := b.r.broker; own != nil {
		return errors.Join(own.Healthy(ctx), own.Room())
	}
	if !b.r.conn.IsConnected() {
		return errors.New("the broker does not answer, reconnecting")
	}
	return nil
}

func (r *runner) durability() string {
	switch {
	case r.cfg.NATS != "" && r.inMemory.Load():
		return "buffers are in the memory of the broker at " + redact.Text(r.cfg.NATS) + " (bufferConfig storage: 1): its restart loses what is in flight"
	case r.cfg.NATS != "" && r.cfg.Replicas <= 1:
		return "survives any kill of levada; one copy at the broker at " + redact.Text(r.cfg.NATS) + " (a power loss there costs nothing only with sync_interval: always; --replicas 3 survives the loss of a server)"
	case r.cfg.NATS != "":
		return "as the broker at " + redact.Text(r.cfg.NATS) + " is set up (levada needs sync_interval: always to survive a power loss)"
	case r.cfg.SyncInterval > 0:
		return fmt.Sprintf("survives any kill; a power loss may cost the last %v (--sync-interval)", r.cfg.SyncInterval)
	}
	return "survives any kill, and a power loss"
}
