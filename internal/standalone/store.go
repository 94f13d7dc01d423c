package standalone

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"strings"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/levada-io/levada/internal/dataplane/buffer/jetstreambuffer"
	"github.com/levada-io/levada/internal/dataplane/deadletter"
	"github.com/levada-io/levada/internal/dataplane/naming"
)

// store is what a Pipeline or MonoVertex keeps at the broker.
type store struct {
	js jetstream.JetStream
	// owner has the incarnation.
	owner naming.Owner
	// old says that the store was written before there were incarnations, under names that are ambiguous. It keeps those names.
	old   bool
	state jetstream.KeyValue
	// replicas of all that is opened.
	replicas int
	log      *slog.Logger
	// resized are the streams whose replicas were changed.
	resized []string
	from    int
}

// keyIncarnation is where the state bucket keeps the incarnation of the store.
const keyIncarnation = "incarnation"

// openStore opens the state bucket of an owner, and creates it if there is none. vertices are those of the manifest: an old store that knows none of
// them is not the owner's.
func openStore(ctx context.Context, js jetstream.JetStream, owner naming.Owner, vertices []string, replicas int, log *slog.Logger) (*store, error) {
	s := &store{js: js, owner: owner, replicas: max(1, replicas), log: log}
	name := owner.State()
	if _, err := js.KeyValue(ctx, name); errors.Is(err, jetstream.ErrBucketNotFound) {
		if s.old, err = s.adoptable(ctx, vertices); err != nil {
			return nil, err
		}
		if s.old {
			name = owner.OldState()
		}
	} else if err != nil {
		return nil, fmt.Errorf("bucket %s: %w", name, err)
	}
	if err := s.notOrphaned(ctx, name); err != nil {
		return nil, err
	}
	var err error
	if s.state, err = jetstreambuffer.OpenBucket(ctx, js, name, naming.Tag{Owner: owner, Role: naming.RoleState}, s.replicas, s.changed); err != nil {
		return nil, err
	}
	if !s.old {
		s.owner.Incarnation, err = incarnation(ctx, s.state)
	}
	return s, err
}

// incarnation returns what the bucket says, having given it a random one if it says nothing. The creation of a key is atomic: of two openers one creates
// it, and both agree.
func incarnation(ctx context.Context, state jetstream.KeyValue) (string, error) {
	for {
		entry, err := state.Get(ctx, keyIncarnation)
		if err == nil {
			return string(entry.Value()), nil
		}
		if !errors.Is(err, jetstream.ErrKeyNotFound) {
			return "", fmt.Errorf("incarnation in bucket %s: %w", state.Bucket(), err)
		}
		var random [8]byte
		_, _ = rand.Read(random[:]) // never fails
		made := strconv.FormatUint(binary.BigEndian.Uint64(random[:]), 36)
		_, err = state.Create(ctx, keyIncarnation, []byte(made))
		if err == nil {
			return made, nil
		}
		if !errors.Is(err, jetstream.ErrKeyExists) {
			return "", fmt.Errorf("incarnation in bucket %s: %w", state.Bucket(), err)
		}
	}
}

// notOrphaned refuses to create a state bucket beside buffers that need one: they would be read without what is known of them, and the sources from their start.
func (s *store) notOrphaned(ctx context.Context, bucket string) error {
	if _, err := s.js.KeyValue(ctx, bucket); !errors.Is(err, jetstream.ErrBucketNotFound) {
		return err
	}
	var orphans []string
	streams := s.js.ListStreams(ctx)
	for info := range streams.Info() {
		if tag, ok := naming.TagOf(info.Config.Metadata); ok && tag.Owner.Is(s.owner) && tag.Role == naming.RoleBuffer {
			orphans = append(orphans, fmt.Sprintf("%s (%d blocks)", info.Config.Name, info.State.Msgs))
		}
	}
	if err := streams.Err(); err != nil {
		return fmt.Errorf("list streams: %w", err)
	}
	if len(orphans) == 0 {
		return nil
	}
	slices.Sort(orphans)
	return fmt.Errorf("%v: bucket %s is missing, and its buffers are still there: the positions of the sources, and what the buffers' readers have seen, are lost with it. "+
		"Restore it from a copy of the store. To begin again without the messages of the buffers, remove these streams too: %s", s.owner, bucket, strings.Join(orphans, ", "))
}

// adoptable reports whether a store of the old format exists that is the owner's.
func (s *store) adoptable(ctx context.Context, vertices []string) (bool, error) {
	name := s.owner.OldState()
	kv, err := s.js.KeyValue(ctx, name)
	if errors.Is(err, jetstream.ErrBucketNotFound) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("bucket %s: %w", name, err)
	}
	status, err := kv.Status(ctx)
	if err != nil {
		return false, fmt.Errorf("bucket %s: %w", name, err)
	}
	if tag, ok := naming.TagOf(status.Metadata()); ok {
		if !tag.Owner.Is(s.owner) {
			s.log.Warn("store of an earlier version belongs to another owner, creating a new store", "bucket", name, "owner", tag.Owner.String(), "for", s.owner.String())
		}
		return tag.Owner.Is(s.owner), nil
	}
	keys, err := kv.Keys(ctx)
	if err != nil && !errors.Is(err, jetstream.ErrNoKeysFound) {
		return false, fmt.Errorf("keys of bucket %s: %w", name, err)
	}
	wrote := s.owner.OldVertices(keys)
	ours := len(wrote) == 0
	for v := range wrote {
		ours = ours || slices.Contains(vertices, v)
	}
	if !ours {
		return false, fmt.Errorf("%v: bucket %s was written by an earlier version for the vertices %s, none of which is in this manifest: a Pipeline or MonoVertex "+
			"of another namespace and name that read the same may have written it. Run that one first, which makes the bucket its own, or give this one another name", s.owner, name, strings.Join(sorted(wrote), ", "))
	}
	s.log.Info("store of an earlier version found, adopting it under its old names", "bucket", name, "owner", s.owner.String())
	return true, nil
}

func sorted(set map[string]bool) []string {
	var list []string
	for name := range set {
		list = append(list, name)
	}
	slices.Sort(list)
	return list
}

// buffer returns the stream of a partition of a vertex, and its tag.
func (s *store) buffer(ctx context.Context, vertex string, partition int) (stream string, tag naming.Tag, err error) {
	tag = naming.Tag{Owner: s.owner, Role: naming.RoleBuffer, Vertex: vertex, Partition: partition}
	if !s.old {
		return s.owner.Buffer(vertex, partition), tag, nil
	}
	// The state remembers that the stream was created, also when it is lost; a crash may have come between the two.
	old := s.owner.OldBuffer(vertex, partition)
	made, err := jetstreambuffer.WasMade(ctx, s.state, old)
	if err != nil || made {
		return old, tag, err
	}
	found, err := s.js.Stream(ctx, old)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		return s.owner.Buffer(vertex, partition), tag, nil
	}
	if err != nil {
		return "", tag, fmt.Errorf("stream %s: %w", old, err)
	}
	if _, err := tag.Check(old, found.CachedInfo().Config.Metadata); err != nil {
		return s.owner.Buffer(vertex, partition), tag, nil // the name reads the same, and never was ours
	}
	return old, tag, nil
}

// deadLetters opens the dead letters.
func (s *store) deadLetters(ctx context.Context) (*deadletter.Store, error) {
	cfg := deadletter.Config{Stream: s.owner.DeadLetters(), Pipeline: s.owner.Name, Tag: naming.Tag{Owner: s.owner, Role: naming.RoleDeadLetters}, Replicas: s.replicas, Logger: s.log}
	if s.old {
		cfg.Stream = s.owner.OldDeadLetters()
	}
	letters, err := deadletter.Open(ctx, s.js, cfg)
	if err != nil {
		return nil, err
	}
	if err := jetstreambuffer.Own(ctx, s.js, cfg.Stream, cfg.Tag, s.replicas, s.changed); err != nil {
		return nil, err
	}
	payloads := naming.ObjectStream(naming.Payloads(cfg.Stream))
	err = jetstreambuffer.Own(ctx, s.js, payloads, naming.Tag{Owner: s.owner, Role: naming.RolePayloads}, s.replicas, s.changed)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		err = nil // it is created with the first payload that needs it
	}
	return letters, err
}

// changed notes that the replicas of a stream were changed.
func (s *store) changed(stream string, from, _ int) {
	s.resized, s.from = append(s.resized, stream), from
}

// opened says in one line what was changed while everything was opened.
func (s *store) opened() {
	if len(s.resized) > 0 {
		s.log.Info("replicas changed", "owner", s.owner.String(), "from", s.from, "to", s.replicas, "streams", strings.Join(s.resized, " "))
	}
	s.resized = nil
}
