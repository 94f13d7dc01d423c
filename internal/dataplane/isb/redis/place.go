package redis

import (
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/redis/go-redis/v9"

	"github.com/levada-io/levada/internal/dataplane/buffer"
	"github.com/levada-io/levada/internal/dataplane/isb"
	"github.com/levada-io/levada/internal/dataplane/isb/redis/redisbuffer"
	"github.com/levada-io/levada/internal/dataplane/naming"
)

// pipelinesKey is the hash of the owners.
const pipelinesKey = "levada:pipelines"

// place is what there is of one pipeline; it implements isb.Place.
type place struct {
	service *Service
	owner   naming.Owner // with its incarnation
}

// placeKeys are the names of what a pipeline has at the server beside its partitions and dead letters.
type placeKeys struct{ place, values, streams, shards string }

func keysOf(o naming.Owner) placeKeys {
	prefix := "levada:{" + o.State() + "}:"
	return placeKeys{prefix + "place", prefix + "values", prefix + "streams", prefix + "shards"}
}

//go:embed open.lua
var openLua string

var openScript = redis.NewScript(openLua)

// Owner implements isb.Place.
func (p *place) Owner() naming.Owner { return p.owner }

// State implements isb.Place.
func (p *place) State() isb.State { return state{p.service, keysOf(p.owner)} }

// open reads the incarnation, having created the place if how is "create". The error is errNone if it does not exist.
func (p *place) open(ctx context.Context, how, incarnation string) error {
	tag := naming.Tag{Owner: p.owner, Role: naming.RoleState}
	text, err := json.Marshal(tag.In(nil))
	if err != nil {
		return err
	}
	key := keysOf(p.owner).place
	answer, err := p.service.run(ctx, openScript, []string{key}, how, text, incarnation)
	if err != nil {
		return fmt.Errorf("key %s: %w", key, err)
	}
	said, ok := answer.([]any)
	if !ok || len(said) != 2 {
		return fmt.Errorf("key %s: unexpected answer %v", key, answer)
	}
	have, err := tagOf(fmt.Sprint(said[0]))
	if err != nil {
		return fmt.Errorf("key %s: %w", key, err)
	}
	if _, err := tag.Check(key, have); err != nil {
		return err
	}
	p.owner.Incarnation = fmt.Sprint(said[1])
	return nil
}

func tagOf(text string) (metadata map[string]string, err error) {
	if err := json.Unmarshal([]byte(text), &metadata); err != nil {
		return nil, fmt.Errorf("its tag %q is damaged: %w", text, err)
	}
	return metadata, nil
}

// owners returns the owners that ever opened a store, without their incarnations.
func (s *Service) owners(ctx context.Context) (all []naming.Owner, err error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	noted, err := s.link.Client.HVals(ctx, pipelinesKey).Result()
	if err = s.note(err); err != nil {
		return nil, fmt.Errorf("key %s: %w", pipelinesKey, err)
	}
	for _, text := range noted {
		metadata, err := tagOf(text)
		if err != nil {
			return nil, fmt.Errorf("key %s: %w", pipelinesKey, err)
		}
		if tag, ok := naming.TagOf(metadata); ok {
			all = append(all, tag.Owner)
		}
	}
	return all, nil
}

// Places implements isb.Service.
func (s *Service) Places(ctx context.Context) (all []isb.Place, err error) {
	owners, err := s.owners(ctx)
	if err != nil {
		return nil, err
	}
	for _, o := range owners {
		p := &place{s, o}
		switch err := p.open(ctx, "attach", ""); {
		case err == nil:
			all = append(all, p)
		case !errors.Is(err, errNone):
			return nil, err
		}
	}
	return all, nil
}

// note is what streams has of a stream.
type note struct {
	Vertex    string `json:"vertex"`
	Partition int    `json:"partition"`
}

// noted returns what streams has of a stream; nil if it was never created, or was removed.
func (p *place) noted(ctx context.Context, stream string) (*note, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	key := keysOf(p.owner).streams
	text, err := p.service.link.Client.HGet(ctx, key, stream).Bytes()
	if err = p.service.note(err); errors.Is(err, redis.Nil) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("key %s: %w", key, err)
	}
	n := &note{}
	if err := json.Unmarshal(text, n); err != nil {
		return nil, fmt.Errorf("key %s, field %s: %w", key, stream, err)
	}
	return n, nil
}

// Streams implements isb.Place.
func (p *place) Streams(ctx context.Context) (all []isb.Stream, err error) {
	bounded, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	key := keysOf(p.owner).streams
	noted, err := p.service.link.Client.HGetAll(bounded, key).Result()
	if err = p.service.note(err); err != nil {
		return nil, fmt.Errorf("key %s: %w", key, err)
	}
	for stream, text := range noted {
		var n note
		if err := json.Unmarshal([]byte(text), &n); err != nil {
			return nil, fmt.Errorf("key %s, field %s: %w", key, stream, err)
		}
		d, err := redisbuffer.Attach(ctx, p.service.link, redisbuffer.Config{Name: stream})
		switch {
		case err == nil:
			_ = d.Close()
			all = append(all, isb.Stream{Vertex: n.Vertex, Partition: n.Partition, Stream: stream})
		case !errors.Is(err, buffer.ErrMissing) && !errors.Is(err, buffer.ErrNotCreated):
			return nil, err
		}
	}
	return all, nil
}

// attach opens a stream as it is. The error is buffer.ErrNotCreated if it was never created, and buffer.ErrMissing if it is lost.
func (p *place) attach(ctx context.Context, stream string, cfg redisbuffer.Config) (buffer.Driver, error) {
	n, err := p.noted(ctx, stream)
	if err != nil {
		return nil, err
	}
	if n == nil {
		return nil, fmt.Errorf("stream %s: %w", stream, buffer.ErrNotCreated)
	}
	cfg.Name = stream
	d, err := redisbuffer.Attach(ctx, p.service.link, cfg)
	if errors.Is(err, buffer.ErrNotCreated) { // it was
		return nil, fmt.Errorf("stream %s: %w", stream, buffer.ErrMissing)
	}
	return d, err
}

// Attach implements isb.Place.
func (p *place) Attach(ctx context.Context, stream string) (buffer.Driver, error) {
	d, err := p.attach(ctx, stream, redisbuffer.Config{})
	if errors.Is(err, buffer.ErrNotCreated) {
		return nil, fmt.Errorf("stream %s: %w", stream, buffer.ErrMissing)
	}
	return d, err
}

// Describe implements isb.Place.
func (p *place) Describe(ctx context.Context, stream string) (isb.Storage, error) {
	d, err := p.Attach(ctx, stream)
	if err != nil {
		return isb.Storage{}, err
	}
	_ = d.Close()
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	kept, err := p.service.link.Kept(ctx, redisbuffer.Config{Name: stream}.LogKey())
	if err != nil {
		return isb.Storage{}, err
	}
	s := isb.Storage{Replicas: 1 + kept.Replicas, Kind: "memory"}
	if kept.File {
		s.Kind = "file"
	}
	return s, nil
}

// Remove implements isb.Place. The note goes last: a crash in between leaves a stream that is reported as lost, and can be removed again.
func (p *place) Remove(ctx context.Context, stream string) error {
	if err := redisbuffer.Remove(ctx, p.service.link, redisbuffer.Config{Name: stream}); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	return p.service.note(p.service.link.Client.HDel(ctx, keysOf(p.owner).streams, stream).Err())
}

// missing is the error for a place that was there and is gone.
func (p *place) missing() error {
	return fmt.Errorf("%v: key %s is missing, and %s says that it was there: the positions of the sources, and what the buffers' readers have seen, are lost with it. "+
		"Restore the store of Redis from a copy. To begin again without the messages of the buffers, remove the keys that begin with levada:{%s, and the field %s of %s",
		p.owner, keysOf(p.owner).place, pipelinesKey, strings.TrimSuffix(p.owner.State(), "STATE"), p.owner.State(), pipelinesKey)
}
