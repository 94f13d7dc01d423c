// Package redis is the inter-step buffer service on Redis: one server, a Redis Cluster, or the master that Sentinels know. Why it is as it is: decision 11.
//
// # Keys
//
// NAME is one that package naming gives; the part in braces decides which server of a cluster has the key.
//
//	levada:pipelines                  hash: every owner that ever opened a store here, by the name of its state
//	levada:{NAME_STATE}:place         hash: tag, incarnation, and revision, the last one given to a value; history (package redisstore)
//	levada:{NAME_STATE}:values        hash of the State: key to "REVISION VALUE"
//	levada:{NAME_STATE}:shards:...    what the sessions and leases of shards have beside their values (package redisstore)
//	levada:{NAME_STATE}:streams       hash of the streams that were created and not removed, each with the vertex and partition
//	levada:{NAME}:SHARD:...           a partition (package redisbuffer)
//	levada:{NAME_DEADLETTERS}:...     the dead letters (letters.go)
//
// Nothing has a TTL. What must happen together is one script, and a script takes keys of one slot only.
//
// # What holds
//
// A revision is never given twice, also not to another key, so a value that is removed and set again has another one; a master that failed over goes on with higher ones. A stream is noted in streams after it was
// created and before anything is written to it: a stream that is noted and missing is a loss, and one that is there without a note is empty. In the same way an
// owner is noted in levada:pipelines after its place was created: a place that is noted and missing is a loss.
//
// State is written also when the memory limit of the server is reached: leases and positions are what makes room.
package redis

import (
	"cmp"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/levada-io/levada/internal/dataplane/buffer"
	"github.com/levada-io/levada/internal/dataplane/deadletter"
	"github.com/levada-io/levada/internal/dataplane/isb"
	"github.com/levada-io/levada/internal/dataplane/isb/redis/redisbuffer"
	"github.com/levada-io/levada/internal/dataplane/naming"
	"github.com/levada-io/levada/internal/dataplane/redislink"
)

// Service implements isb.Service.
type Service struct {
	link *redislink.Link
	log  *slog.Logger
	// risks are what the servers do not promise; see redislink.Link.Check.
	risks []string
}

var _ isb.Service = (*Service)(nil)

// Config says which Redis to connect to.
type Config struct {
	Link redislink.Config
	// Reconnected, if not nil, is called when Redis answers again after it did not.
	Reconnected func()
}

// Connect connects, for at most 30 s, and refuses servers that Levada cannot use. What they do not promise is logged.
func Connect(ctx context.Context, cfg Config) (*Service, error) {
	cfg.Link.Logger = cmp.Or(cfg.Link.Logger, slog.New(slog.DiscardHandler))
	cfg.Link.Recovered = cfg.Reconnected
	link, err := redislink.Dial(ctx, cfg.Link)
	if err != nil {
		return nil, err
	}
	s := &Service{link: link, log: cfg.Link.Logger}
	if err := s.check(ctx); err != nil {
		_ = link.Close()
		return nil, fmt.Errorf("Redis at %s: %w", link.URL, err)
	}
	return s, nil
}

//go:embed probe.lua
var probeLua string

var probeScript = redis.NewScript(probeLua)

// check asks the servers for their settings, and for the permissions of this user.
func (s *Service) check(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	_, err := redislink.Retry(ctx, s.link, "its settings", func(ctx context.Context) (_ struct{}, err error) {
		if err := probeScript.Run(ctx, s.link.Client, []string{"levada:{probe}:stream", "levada:{probe}:hash", "levada:{probe}:set"}).Err(); err != nil {
			return struct{}{}, redislink.Explain(err)
		}
		s.risks, err = s.link.Check(ctx)
		return struct{}{}, redislink.Explain(err)
	})
	return err
}

// checkTimeout is for how long a server may fail between the first answer and the last question about its settings.
const checkTimeout = 30 * time.Second

// URL names the servers, without credentials.
func (s *Service) URL() string { return s.link.URL }

// Risks are what the servers do not promise, a sentence each; empty if nothing that they acknowledge is lost.
func (s *Service) Risks() []string { return s.risks }

// Close implements isb.Service.
func (s *Service) Close() { _ = s.link.Close() }

// Final implements isb.Service.
func (s *Service) Final(_ string, err error) error {
	if redislink.Unavailable(err) || errors.Is(err, context.DeadlineExceeded) {
		return nil
	}
	return err
}

// usableTimeout bounds the question whether Redis answers.
const usableTimeout = 2 * time.Second

// Degraded implements isb.Service. Replicas are Redis' own matter: Sentinel or the cluster replaces a master.
func (s *Service) Degraded() []error { return nil }

// Usable implements isb.Service.
func (s *Service) Usable(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, usableTimeout)
	defer cancel()
	if cluster, ok := s.link.Client.(*redis.ClusterClient); ok {
		return s.link.Note(cluster.ForEachMaster(ctx, func(ctx context.Context, c *redis.Client) error { return c.Ping(ctx).Err() }))
	}
	return s.link.Note(s.link.Client.Ping(ctx).Err())
}

// Stuck implements isb.Service: a restart of this process does not help Redis.
func (*Service) Stuck() error { return nil }

// requestTimeout bounds a request. The caller retries.
const requestTimeout = 5 * time.Second

// run runs a script.
func (s *Service) run(ctx context.Context, script *redis.Script, keys []string, args ...any) (any, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	answer, err := script.Run(ctx, s.link.Client, keys, args...).Result()
	if errors.Is(err, redis.Nil) {
		err = nil
	}
	return answer, s.note(err)
}

// Errors of the scripts begin with a word of their own: the server did answer.
var answers = map[string]error{
	"LEVADACONFLICT": isb.ErrConflict,
	"LEVADANONE":     errNone,
	"LEVADANOLETTER": deadletter.ErrNotFound,
}

// errNone means that what a script is about does not exist.
var errNone = errors.New("it does not exist")

func (s *Service) note(err error) error {
	for prefix, known := range answers {
		if redis.HasErrorPrefix(err, prefix) {
			_ = s.link.Note(nil)
			return known
		}
	}
	return s.link.Note(err)
}

// AttachVertex implements isb.Service.
func (s *Service) AttachVertex(ctx context.Context, of isb.Letters, vertex string) (buffer.WriterDriver, error) {
	p := &place{service: s, owner: of.Owner}
	d, err := p.attach(ctx, of.Owner.Buffer(vertex, 0), redisbuffer.Config{
		Tag: naming.Tag{Owner: of.Owner, Role: naming.RoleBuffer, Vertex: vertex},
	})
	if errors.Is(err, buffer.ErrNotCreated) {
		return nil, nil
	}
	return d, err
}
