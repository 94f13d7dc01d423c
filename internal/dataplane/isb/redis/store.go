package redis

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"

	"github.com/levada-io/levada/internal/dataplane/buffer"
	"github.com/levada-io/levada/internal/dataplane/deadletter"
	"github.com/levada-io/levada/internal/dataplane/isb"
	"github.com/levada-io/levada/internal/dataplane/isb/redis/redisbuffer"
	"github.com/levada-io/levada/internal/dataplane/naming"
	"github.com/levada-io/levada/internal/dataplane/shard"
	"github.com/levada-io/levada/internal/dataplane/shard/redisstore"
)

// store is the place of a pipeline whose process may create what is missing; it implements isb.Store.
type store struct {
	place
	log *slog.Logger
}

// Open implements isb.Service.
func (s *Service) Open(ctx context.Context, r isb.Request) (isb.Store, error) {
	st := &store{place{s, r.Owner}, cmp.Or(r.Logger, slog.New(slog.DiscardHandler))}
	err := st.open(ctx, "attach", "")
	if errors.Is(err, errNone) {
		err = st.create(ctx)
	}
	if err != nil {
		return nil, err
	}
	return st, st.register(ctx)
}

// create creates the place, unless it is one that is lost.
func (s *store) create(ctx context.Context) error {
	owners, err := s.service.owners(ctx)
	if err != nil {
		return err
	}
	for _, o := range owners {
		if !o.Is(s.owner) {
			continue
		}
		err := s.open(ctx, "attach", "") // another process may have created it just now
		if errors.Is(err, errNone) {
			return s.missing()
		}
		return err
	}
	return s.open(ctx, "create", strings.ToLower(rand.Text()))
}

// register notes that the owner has a place here. That is done at each start: it may be lost at a server whose other keys are not.
func (s *store) register(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	owner := s.owner
	owner.Incarnation = ""
	tag, err := json.Marshal(naming.Tag{Owner: owner, Role: naming.RoleState}.In(nil))
	if err != nil {
		return err
	}
	if err := s.service.note(s.service.link.Client.HSet(ctx, pipelinesKey, owner.State(), tag).Err()); err != nil {
		return fmt.Errorf("key %s: %w", pipelinesKey, err)
	}
	return nil
}

// Shards implements isb.Sharer. The records are values of the state, under its revisions.
func (s *store) Shards(context.Context) (shard.Store, error) {
	keys := keysOf(s.owner)
	return redisstore.New(s.service.link, redisstore.Keys{Place: keys.place, Values: keys.values, Prefix: keys.shards}), nil
}

// Stream implements isb.Store.
func (s *store) Stream(_ context.Context, vertex string, partition int) (string, error) {
	return s.owner.Buffer(vertex, partition), nil
}

func (s *store) config(vertex string, partition int, settings isb.Settings) redisbuffer.Config {
	return redisbuffer.Config{
		Name: s.owner.Buffer(vertex, partition), Tag: naming.Tag{Owner: s.owner, Role: naming.RoleBuffer, Vertex: vertex, Partition: partition},
		MaxBytes: settings.MaxBytes, MaxBlocks: settings.MaxBlocks, Duplicates: settings.Duplicates, Fence: settings.Fence,
	}
}

// OpenPartition implements isb.Store.
func (s *store) OpenPartition(ctx context.Context, vertex string, partition int, settings isb.Settings) (buffer.Driver, error) {
	cfg := s.config(vertex, partition, settings)
	d, err := s.attach(ctx, cfg.Name, cfg)
	if !errors.Is(err, buffer.ErrNotCreated) {
		return d, err
	}
	if d, err = redisbuffer.Open(ctx, s.service.link, cfg); err != nil {
		return nil, err
	}
	if err := s.created(ctx, cfg.Name, note{vertex, partition}); err != nil {
		return nil, errors.Join(err, d.Close())
	}
	return d, nil
}

// created notes that a stream was created.
func (s *store) created(ctx context.Context, stream string, n note) error {
	text, err := json.Marshal(n)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	key := keysOf(s.owner).streams
	if err := s.service.note(s.service.link.Client.HSet(ctx, key, stream, text).Err()); err != nil {
		return fmt.Errorf("key %s: %w", key, err)
	}
	return nil
}

// AttachWriter implements isb.Store.
func (s *store) AttachWriter(ctx context.Context, vertex string, partition int, settings isb.Settings) (buffer.WriterDriver, error) {
	cfg := s.config(vertex, partition, settings)
	return s.attach(ctx, cfg.Name, cfg)
}

// DeadLetters implements isb.Store.
func (s *store) DeadLetters(ctx context.Context) (*deadletter.Store, error) {
	l := &letters{s.service, s.owner}
	if err := l.open(ctx); err != nil {
		return nil, err
	}
	return deadletter.New(l, s.owner.Name, s.log), nil
}

// LogChanges implements isb.Store.
func (*store) LogChanges() {}
