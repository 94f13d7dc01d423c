package isb

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/levada-io/levada/internal/dataplane/naming"
	"github.com/levada-io/levada/internal/dataplane/topology"
)

// Bucket is what is found of one pipeline at a broker.
type Bucket struct {
	KV jetstream.KeyValue
	// Owner is nil for an old store that has not been adopted yet.
	Owner *naming.Owner
	// Record is nil if there is none.
	Record *topology.Topology
	// Streams are the buffers that exist.
	Streams []Stream
}

// List returns all pipelines at a broker, also those that no manifest has.
func List(ctx context.Context, js jetstream.JetStream) (all []Bucket, err error) {
	names := js.KeyValueStoreNames(ctx)
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
		b, err := openBucket(ctx, js, name)
		if err != nil {
			return nil, err
		}
		if b != nil {
			all = append(all, *b)
		}
	}
	return all, nil
}

func openBucket(ctx context.Context, js jetstream.JetStream, name string) (*Bucket, error) {
	kv, err := js.KeyValue(ctx, name)
	if errors.Is(err, jetstream.ErrBucketNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("bucket %s: %w", name, err)
	}
	b := &Bucket{KV: kv}
	status, err := kv.Status(ctx)
	if err != nil {
		return nil, fmt.Errorf("bucket %s: %w", name, err)
	}
	old := naming.Owner{}
	if tag, ok := naming.TagOf(status.Metadata()); ok {
		if tag.Role != naming.RoleState {
			return nil, nil
		}
		b.Owner = &tag.Owner
		old = tag.Owner
	}
	e, err := kv.Get(ctx, KeyTopology)
	if err == nil {
		// A record of a newer Levada, or a damaged one, does not hide the buffers.
		if b.Record, err = topology.Decode(e.Value()); err != nil {
			b.Record = nil
		}
	} else if !errors.Is(err, jetstream.ErrKeyNotFound) {
		return nil, fmt.Errorf("bucket %s: %w", name, err)
	}
	keys, err := kv.Keys(ctx)
	if err != nil && !errors.Is(err, jetstream.ErrNoKeysFound) {
		return nil, fmt.Errorf("bucket %s: %w", name, err)
	}
	for _, key := range keys {
		stored, ok := BufferOf(key)
		if !ok {
			continue
		}
		s, err := Identify(ctx, js, old, stored)
		if err != nil {
			return nil, fmt.Errorf("stream %s: %w", stored, err)
		}
		if s == nil {
			if _, err := js.Stream(ctx, stored); err != nil {
				continue
			}
			s = &Stream{Vertex: stored, Stream: stored} // an old name of which the parts are not known
		}
		b.Streams = append(b.Streams, *s)
	}
	return b, nil
}

// Recorded reports whether the stored topology has a partition.
func (b *Bucket) Recorded(s Stream) bool {
	if b.Record == nil {
		return false
	}
	v := b.Record.Vertex(s.Vertex)
	return v != nil && s.Partition < v.Partitions
}
