package standalone

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/levada-io/levada/internal/dataplane/naming"
	"github.com/levada-io/levada/internal/dataplane/topology"
)

// stateBucket is what a broker keeps of one pipeline.
type stateBucket struct {
	kv      jetstream.KeyValue
	owner   *naming.Owner      // nil for an old store that nobody has adopted yet
	record  *topology.Topology // nil if there is none
	streams []stream
}

// stateBuckets lists all pipelines at a broker, also those that no manifest speaks of.
func stateBuckets(ctx context.Context, js jetstream.JetStream) (all []stateBucket, err error) {
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
		b, err := openStateBucket(ctx, js, name)
		if err != nil {
			return nil, err
		}
		if b != nil {
			all = append(all, *b)
		}
	}
	return all, nil
}

func openStateBucket(ctx context.Context, js jetstream.JetStream, name string) (*stateBucket, error) {
	kv, err := js.KeyValue(ctx, name)
	if errors.Is(err, jetstream.ErrBucketNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("bucket %s: %w", name, err)
	}
	b := &stateBucket{kv: kv}
	status, err := kv.Status(ctx)
	if err != nil {
		return nil, fmt.Errorf("bucket %s: %w", name, err)
	}
	old := naming.Owner{}
	if tag, ok := naming.TagOf(status.Metadata()); ok {
		if tag.Role != naming.RoleState {
			return nil, nil
		}
		b.owner = &tag.Owner
		old = tag.Owner
	}
	e, err := kv.Get(ctx, keyTopology)
	if err == nil {
		// A record of a newer Levada, or a damaged one, does not hide the buffers.
		if b.record, err = topology.Decode(e.Value()); err != nil {
			b.record = nil
		}
	} else if !errors.Is(err, jetstream.ErrKeyNotFound) {
		return nil, fmt.Errorf("bucket %s: %w", name, err)
	}
	keys, err := kv.Keys(ctx)
	if err != nil && !errors.Is(err, jetstream.ErrNoKeysFound) {
		return nil, fmt.Errorf("bucket %s: %w", name, err)
	}
	for _, key := range keys {
		stored, ok := strings.CutPrefix(key, "buffer.")
		if stored, ok = strings.CutSuffix(stored, ".made"); !ok {
			continue
		}
		s, err := identify(ctx, js, old, stored)
		if err != nil {
			return nil, fmt.Errorf("stream %s: %w", stored, err)
		}
		if s == nil {
			if _, err := js.Stream(ctx, stored); err != nil {
				continue
			}
			s = &stream{Vertex: stored, Stream: stored} // an old name of which the parts are not known
		}
		b.streams = append(b.streams, *s)
	}
	return b, nil
}
