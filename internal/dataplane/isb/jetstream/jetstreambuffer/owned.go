package jetstreambuffer

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/levada-io/levada/internal/dataplane/naming"
)

// Changed is called for a stream that existed with another number of replicas.
type Changed func(stream string, from, to int)

// markerTTL is how long a bucket keeps the marker of a record that has expired.
const markerTTL = time.Minute

// OpenBucket opens the bucket of a tag under that name, and creates it if it does not exist. A bucket of somebody else is refused; one without a
// tag gets it. Records of a new one can have a TTL, where the server can do that: leases of shards use it. replicas is what its stream has afterwards; 0 leaves it as it is.
func OpenBucket(ctx context.Context, js jetstream.JetStream, name string, tag naming.Tag, replicas int, changed Changed) (jetstream.KeyValue, error) {
	kv, err := js.KeyValue(ctx, name)
	if errors.Is(err, jetstream.ErrBucketNotFound) {
		cfg := jetstream.KeyValueConfig{
			Bucket: name, History: 1, Replicas: max(1, replicas), Storage: jetstream.FileStorage, Metadata: tag.In(nil), LimitMarkerTTL: markerTTL,
		}
		kv, err = js.CreateKeyValue(ctx, cfg)
		if errors.Is(err, jetstream.ErrLimitMarkerTTLNotSupported) {
			cfg.LimitMarkerTTL = 0
			kv, err = js.CreateKeyValue(ctx, cfg)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("bucket %s: %w", name, explainReplicas(err, 0, replicas))
	}
	return kv, Own(ctx, js, naming.KVStream(name), tag, replicas, changed)
}

// Own checks that a stream that exists belongs to the owner of the tag, adds the tag if the stream has none, and sets its replicas; 0 leaves them.
func Own(ctx context.Context, js jetstream.JetStream, name string, tag naming.Tag, replicas int, changed Changed) error {
	stream, err := js.Stream(ctx, name)
	if err != nil {
		return fmt.Errorf("stream %s: %w", name, err)
	}
	cfg := stream.CachedInfo().Config
	untagged, err := tag.Check(name, cfg.Metadata)
	if err != nil {
		return err
	}
	had := cfg.Replicas
	if !untagged && (replicas == 0 || had == replicas) {
		return nil
	}
	if untagged {
		cfg.Metadata = tag.In(cfg.Metadata)
	}
	if replicas > 0 {
		cfg.Replicas = replicas
	}
	if _, err := js.UpdateStream(ctx, cfg); err != nil {
		return fmt.Errorf("stream %s: %w", name, explainReplicas(err, had, cfg.Replicas))
	}
	return resized(ctx, js, name, had, cfg.Replicas, changed)
}

// resized waits until the servers of another number of replicas are chosen, and tells of it. Before that the broker takes no consumer with as many.
func resized(ctx context.Context, js jetstream.JetStream, name string, from, to int, changed Changed) error {
	if from == to {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		stream, err := js.Stream(ctx, name)
		if err == nil && has(stream.CachedInfo().Cluster, to) {
			break
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("stream %s: wait for %d replicas instead of %d: %w", name, to, from, errors.Join(context.Cause(ctx), err))
		}
	}
	if changed != nil {
		changed(name, from, to)
	}
	return nil
}

// has reports whether a stream has a leader, and so many replicas. They may still be catching up, which takes as long as there is data.
func has(cluster *jetstream.ClusterInfo, replicas int) bool {
	if cluster == nil {
		return replicas == 1
	}
	return cluster.Leader != "" && len(cluster.Replicas) == replicas-1
}

// ErrReplicas means that the broker cannot keep as many replicas as were asked for.
var ErrReplicas = errors.New("the broker cannot keep that many replicas")

// explainReplicas says what a refusal of more replicas means.
func explainReplicas(err error, from, to int) error {
	if err == nil || from == to || to <= 1 {
		return err
	}
	switch codeOf(err) {
	case codeNotClustered, codeNoPeers, codeNoResources, codeTooManyReplica:
		return fmt.Errorf("%d replicas instead of %d: %w: %w. Give --replicas at most the number of servers with JetStream in the cluster, or add servers", to, from, ErrReplicas, err)
	}
	return err
}
