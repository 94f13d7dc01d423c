// Package jetstream is the inter-step buffer service on NATS JetStream, of a server in this process or elsewhere. All that pipelines keep in JetStream is behind this
// package; sources and sinks that speak to streams of users are other packages, and share natslink with it.
//
// # What is where
//
// The state of a pipeline is a bucket, the root of all. Beside the keys of package isb it has these:
//
//	incarnation           a random name of this lifetime of the store
//	buffer.STREAM.*       what the reader of a buffer knows, and that its stream was created
//	reserve               room for a last value when the store is full
//
// Buffers are streams (package jetstreambuffer). Dead letters are a stream with a subject for each letter, and an object store for payloads that no message carries. All of them
// say in their metadata whose they are (package naming), and one of somebody else is refused.
package jetstream

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/levada-io/levada/internal/dataplane/isb"
	"github.com/levada-io/levada/internal/dataplane/isb/jetstream/jetstreambuffer"
	"github.com/levada-io/levada/internal/dataplane/natslink"
	"github.com/levada-io/levada/internal/redact"
)

// Service implements isb.Service.
type Service struct {
	conn *nats.Conn
	js   jetstream.JetStream
	// Invariant: one of link and server is nil.
	link   *natslink.Link // to a server elsewhere
	server Server         // in this process

	// watch follows the replicas of streams at a server elsewhere, from the first Open on; nil with a server in this process.
	watch      *watch
	startWatch sync.Once
	watching   sync.WaitGroup
	// choice is how many replicas streams get that nobody gave a number for.
	choice jetstreambuffer.Choice
	// closed ends the watch.
	closed context.Context
	close  context.CancelFunc
}

var _ isb.Service = (*Service)(nil)

// Config says which server to connect to.
type Config struct {
	// URL and Options are those of a server elsewhere.
	URL     string
	Options []nats.Option
	// Server is the one in this process, instead of URL.
	Server Server
	// Reconnected, if not nil, is called when the connection was lost and is there again.
	Reconnected func()
	// KeepLeaders leaves the leaders of streams where they are in a cluster. Otherwise they are spread over its servers, and LeaderMoved, if not nil, is called for each move.
	KeepLeaders bool
	LeaderMoved func()
	Logger      *slog.Logger
}

// Server is a NATS server in this process.
type Server interface {
	// Connect connects to it.
	Connect(options ...nats.Option) (*nats.Conn, error)
	// Healthy returns an error if it does not answer, and Stuck one that a restart of this process may help against.
	Healthy(ctx context.Context) error
	Stuck() error
	// Room returns an error if a block must wait for room on the disk.
	Room() error
}

// requestsTimeout bounds a request whose caller has no deadline.
const requestsTimeout = 5 * time.Second

// Connect connects to a server, for at most 30 s, and refuses one that Levada cannot use.
func Connect(ctx context.Context, cfg Config) (s *Service, err error) {
	cfg.Logger = cmp.Or(cfg.Logger, slog.New(slog.DiscardHandler))
	s = &Service{server: cfg.Server}
	s.closed, s.close = context.WithCancel(context.Background())
	if reconnected := cfg.Reconnected; cfg.Server == nil {
		s.watch = newWatch(cfg.Logger)
		if !cfg.KeepLeaders {
			s.watch.balance = &balance{after: balanceAfter, every: balanceEvery, moved: cfg.LeaderMoved}
		}
		cfg.Reconnected = func() {
			s.watch.askNow()
			if reconnected != nil {
				reconnected()
			}
		}
	}
	if cfg.Server != nil {
		err = s.embedded(cfg)
	} else {
		err = s.elsewhere(ctx, cfg)
	}
	if err == nil {
		s.js, err = jetstream.New(s.conn, jetstream.WithDefaultTimeout(requestsTimeout))
	}
	if err != nil {
		s.close()
		if s.conn != nil {
			s.conn.Close()
		}
	}
	return s, err
}

func (cfg *Config) options() []nats.Option {
	return []nats.Option{
		nats.MaxReconnects(-1), nats.ReconnectWait(100 * time.Millisecond), nats.ReconnectJitter(50*time.Millisecond, 50*time.Millisecond),
		nats.ReconnectBufSize(-1), nats.PingInterval(10 * time.Second),
		nats.DisconnectErrHandler(func(_ *nats.Conn, err error) {
			if err != nil {
				cfg.Logger.Warn("broker disconnected, reconnecting", "error", redact.Error(err))
			}
		}),
		nats.ReconnectHandler(func(c *nats.Conn) {
			cfg.Logger.Info("broker reconnected", "url", c.ConnectedUrlRedacted())
			if cfg.Reconnected != nil {
				cfg.Reconnected()
			}
		}),
	}
}

func (s *Service) elsewhere(ctx context.Context, cfg Config) (err error) {
	if s.link, err = natslink.Dial(ctx, cfg.URL, cfg.Logger, append(append(cfg.options(), nats.Name("levada")), cfg.Options...)...); err != nil {
		return err
	}
	s.conn = s.link.Conn
	if err := natslink.CheckVersion(s.link.URL, s.conn.ConnectedServerVersion()); err != nil {
		return err
	}
	return s.link.CheckJetStream(ctx, cfg.Logger, jetstreambuffer.MinPayload)
}

func (s *Service) embedded(cfg Config) (err error) {
	// Pull requests that end are no news; calls that fail say what matters.
	errorHandler := nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) { cfg.Logger.Debug("broker", "error", err) })
	if s.conn, err = cfg.Server.Connect(append(cfg.options(), errorHandler)...); err != nil {
		return fmt.Errorf("connect to the broker: %w", err)
	}
	return nil
}

// Close implements isb.Service.
func (s *Service) Close() {
	s.close()
	s.conn.Close()
	s.watching.Wait()
}

// watchStreams starts the watch.
func (s *Service) watchStreams() {
	if s.watch == nil {
		return
	}
	s.startWatch.Do(func() {
		s.watching.Go(func() {
			warnOfRisks(s.closed, s.conn, s.js, s.link.URL, s.watch.log)
			s.watch.run(s.closed, s.conn, s.js)
		})
	})
}

// Replicas returns how many replicas the stream with the fewest has, of those that this process has opened and that are in a cluster; 0 if none is.
func (s *Service) Replicas() (fewest int) {
	_, fewest = s.watch.fewest()
	return fewest
}

// Final implements isb.Service.
func (s *Service) Final(what string, err error) error { return s.link.Final(what, err) }

// Stuck implements isb.Service.
func (s *Service) Stuck() error {
	if s.server == nil {
		return nil
	}
	return s.server.Stuck()
}

// Usable implements isb.Service.
func (s *Service) Usable(ctx context.Context) error {
	if s.server != nil {
		return errors.Join(s.server.Healthy(ctx), s.server.Room())
	}
	if !s.conn.IsConnected() {
		return errors.New("the broker does not answer, reconnecting")
	}
	stopped, _ := s.watch.problems()
	return errors.Join(stopped...)
}

// Degraded implements isb.Service.
func (s *Service) Degraded() []error {
	_, degraded := s.watch.problems()
	return degraded
}
