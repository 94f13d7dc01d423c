package standalone

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/nats-io/nats.go"

	"github.com/levada-io/levada/api/v1alpha1"
	"github.com/levada-io/levada/internal/broker"
	"github.com/levada-io/levada/internal/dataplane/engine"
	"github.com/levada-io/levada/internal/dataplane/function"
	"github.com/levada-io/levada/internal/dataplane/isb"
	"github.com/levada-io/levada/internal/dataplane/isb/jetstream"
	"github.com/levada-io/levada/internal/dataplane/isb/redis"
	"github.com/levada-io/levada/internal/dataplane/redislink"
	"github.com/levada-io/levada/internal/manifest"
	"github.com/levada-io/levada/internal/redact"
)

// open takes the data directory and connects to the broker.
func (r *runner) open(ctx context.Context) error {
	if err := r.openDirs(); err != nil {
		return err
	}
	return r.connect(ctx)
}

// openDirs takes the data directory for this process alone, and makes the one for sockets.
func (r *runner) openDirs() error {
	release, err := broker.LockDir(r.cfg.DataDir)
	if err != nil {
		return err
	}
	r.close = append(r.close, release)
	if r.sockets, err = function.NewSocketRoot(); err != nil {
		return fmt.Errorf("directory for sockets: %w", err)
	}
	r.close = append(r.close, func() { _ = os.RemoveAll(r.sockets) })
	return nil
}

// Broker is a buffer service outside of this process. Invariant: NATS or Redis is empty.
type Broker struct {
	// NATS is the URL of a NATS server with JetStream.
	NATS string
	// NATSOptions are for the connection to it: credentials and TLS.
	NATSOptions []nats.Option
	// KeepLeaders leaves the leaders of streams where they are in a cluster of NATS servers; otherwise they are spread over the servers.
	KeepLeaders bool
	// leaderMoved is called for each leader that was moved.
	leaderMoved func()
	// Redis says where Redis is, and who this process is to it.
	Redis *redislink.Config
}

// embedded reports whether the broker is in this process.
func (b Broker) embedded() bool { return b.NATS == "" && b.Redis == nil }

// dial connects to a broker elsewhere. One that Levada cannot use is refused before anything is read or written.
func (b Broker) dial(ctx context.Context, reconnected func(), log *slog.Logger) (isb.Service, error) {
	if b.Redis != nil {
		cfg := *b.Redis
		cfg.Logger = log
		service, err := redis.Connect(ctx, redis.Config{Link: cfg, Reconnected: reconnected})
		if err != nil {
			return nil, err
		}
		return service, nil
	}
	service, err := jetstream.Connect(ctx, jetstream.Config{
		URL: b.NATS, Options: b.NATSOptions, Reconnected: reconnected, KeepLeaders: b.KeepLeaders, LeaderMoved: b.leaderMoved, Logger: log,
	})
	if err != nil {
		return nil, err
	}
	return service, nil
}

// connect connects to the broker, or starts the one in this process.
func (r *runner) connect(ctx context.Context) (err error) {
	if r.cfg.embedded() {
		r.service, err = r.startBroker(ctx)
	} else {
		r.cfg.leaderMoved = r.metrics.LeaderMoved
		r.service, err = r.cfg.dial(ctx, r.recheck, r.log)
	}
	if err != nil {
		return err
	}
	r.close = append(r.close, r.service.Close)
	return nil
}

func (r *runner) startBroker(ctx context.Context) (_ isb.Service, err error) {
	over := engine.Waiting(r.log, "broker in this process to open its store", nil, "data", r.cfg.DataDir)
	cfg := broker.Config{Dir: filepath.Join(r.cfg.DataDir, "broker"), MaxPayload: max(minPayload, r.maxPayload()), SyncInterval: r.cfg.SyncInterval, Logger: r.log}
	if r.token != "" {
		cfg.Listen, cfg.Token = "127.0.0.1:0", r.token
	}
	r.broker, err = broker.Start(cfg)
	over(err)
	if err != nil {
		return nil, err
	}
	r.close = append(r.close, r.broker.Stop)
	service, err := jetstream.Connect(ctx, jetstream.Config{Server: r.broker, Reconnected: r.recheck, Logger: r.log})
	if err != nil {
		return nil, err
	}
	return service, nil
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

func (r *runner) durability() string {
	if s, ok := r.service.(*redis.Service); ok {
		if risks := s.Risks(); len(risks) > 0 {
			return "survives any kill of levada, as far as Redis at " + s.URL() + " keeps what it acknowledged: " + risks[0]
		}
		return "survives any kill of levada and of Redis at " + s.URL() + ", and a power loss there"
	}
	switch {
	case r.cfg.NATS != "" && r.inMemory.Load():
		return "buffers are in the memory of the broker at " + redact.Text(r.cfg.NATS) + " (bufferConfig storage: 1): its restart loses what is in flight"
	case r.cfg.NATS != "":
		return "survives any kill of levada" + r.copies() + " (a power loss costs nothing only with sync_interval: always)"
	case r.cfg.SyncInterval > 0:
		return fmt.Sprintf("survives any kill; a power loss may cost the last %v (--sync-interval)", r.cfg.SyncInterval)
	}
	return "survives any kill, and a power loss"
}

// copies says what the loss of a server costs.
func (r *runner) copies() string {
	at, copies := redact.Text(r.cfg.NATS), 0
	if s, ok := r.service.(*jetstream.Service); ok {
		copies = s.Replicas()
	}
	switch copies {
	case 0:
		return "; one copy at the broker at " + at
	case 1:
		return "; one copy of a stream in the cluster at " + at + ", --replicas 3 survives the loss of a server"
	}
	return fmt.Sprintf(", and the loss of %d of %d servers that keep a stream at %s", (copies-1)/2, copies, at)
}
