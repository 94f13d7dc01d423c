package jetstream

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/levada-io/levada/internal/dataplane/buffer"
	"github.com/levada-io/levada/internal/dataplane/isb"
	"github.com/levada-io/levada/internal/dataplane/isb/jetstream/jetstreambuffer"
	"github.com/levada-io/levada/internal/dataplane/naming"
)

// place is what is there of one pipeline; it implements isb.Place.
type place struct {
	js    jetstream.JetStream
	owner naming.Owner // no name for an old store that has not been adopted yet
	kv    jetstream.KeyValue
}

// Owner implements isb.Place.
func (p *place) Owner() naming.Owner { return p.owner }

// State implements isb.Place.
func (p *place) State() isb.State { return state{p.kv, p.js} }

// Places implements isb.Service.
func (s *Service) Places(ctx context.Context) (all []isb.Place, err error) {
	names := s.js.KeyValueStoreNames(ctx)
	var buckets []string
	for name := range names.Name() {
		if strings.HasSuffix(name, "_STATE") {
			buckets = append(buckets, name)
		}
	}
	if err := names.Error(); err != nil {
		return nil, fmt.Errorf("list buckets: %w", err)
	}
	for _, name := range buckets {
		p, err := s.placeOf(ctx, name)
		if err != nil {
			return nil, fmt.Errorf("bucket %s: %w", name, err)
		}
		if p != nil {
			all = append(all, p)
		}
	}
	return all, nil
}

// placeOf opens a bucket. It returns nil for one that is gone, or is no state of a pipeline.
func (s *Service) placeOf(ctx context.Context, bucket string) (*place, error) {
	kv, err := s.js.KeyValue(ctx, bucket)
	if errors.Is(err, jetstream.ErrBucketNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	status, err := kv.Status(ctx)
	if err != nil {
		return nil, err
	}
	tag, tagged := naming.TagOf(status.Metadata())
	if tagged && tag.Role != naming.RoleState {
		return nil, nil
	}
	return &place{s.js, tag.Owner, kv}, nil
}

// Streams implements isb.Place.
func (p *place) Streams(ctx context.Context) (all []isb.Stream, err error) {
	keys, err := p.State().Keys(ctx)
	if err != nil {
		return nil, fmt.Errorf("keys of bucket %s: %w", p.kv.Bucket(), err)
	}
	for _, key := range keys {
		name, ok := jetstreambuffer.StreamOf(key)
		if !ok {
			continue
		}
		found, err := p.identify(ctx, name)
		if err != nil {
			return nil, fmt.Errorf("stream %s: %w", name, err)
		}
		if found != nil {
			all = append(all, *found)
		}
	}
	return all, nil
}

// identify says which partition a stream holds: by its metadata, or for an old stream by its name. It returns nil for one that is gone.
func (p *place) identify(ctx context.Context, name string) (*isb.Stream, error) {
	found, err := p.js.Stream(ctx, name)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if tag, ok := naming.TagOf(found.CachedInfo().Config.Metadata); ok {
		return &isb.Stream{Vertex: tag.Vertex, Partition: tag.Partition, Stream: name}, nil
	}
	rest, ok := strings.CutPrefix(name, p.owner.Namespace+"-"+p.owner.Name+"-")
	at := strings.LastIndexByte(rest, '-')
	var n int
	if _, err := fmt.Sscanf(rest[at+1:], "%d", &n); !ok || at <= 0 || err != nil {
		return &isb.Stream{Vertex: name, Stream: name, Unknown: true}, nil
	}
	return &isb.Stream{Vertex: rest[:at], Partition: n, Stream: name}, nil
}

// Describe implements isb.Place.
func (p *place) Describe(ctx context.Context, stream string) (isb.Storage, error) {
	found, err := p.js.Stream(ctx, stream)
	if err != nil {
		return isb.Storage{}, missing(stream, err)
	}
	cfg := found.CachedInfo().Config
	return isb.Storage{Replicas: cfg.Replicas, Kind: strings.ToLower(cfg.Storage.String())}, nil
}

// Attach implements isb.Place.
func (p *place) Attach(ctx context.Context, stream string) (buffer.Driver, error) {
	d, err := jetstreambuffer.Attach(ctx, p.js, jetstreambuffer.Config{Stream: stream, State: p.kv})
	return d, missing(stream, err)
}

// missing is the error of the seam for a stream that does not exist.
func missing(stream string, err error) error {
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		return fmt.Errorf("stream %s: %w", stream, buffer.ErrMissing)
	}
	return err
}

// Remove implements isb.Place.
func (p *place) Remove(ctx context.Context, stream string) error {
	return jetstreambuffer.Remove(ctx, p.js, p.kv, stream)
}
