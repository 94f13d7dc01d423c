// Package isb knows what pipelines keep at their inter-step buffer service, a NATS server with JetStream: the streams of their buffers, the bucket of their
// state, their dead letters and the record of their topology; and how all of it is named and found again.
//
// The state bucket of a pipeline is the root. These are its keys:
//
//	incarnation           a random name of this lifetime of the store
//	owner                 the lease of the process that runs the whole pipeline (package ownership)
//	owner.VERTEX          the lease of the process that runs one vertex
//	topology              the record of its shape (package topology)
//	settled               how the last process ended
//	source.VERTEX.*       how far the partitions of a source were read
//	buffer.STREAM.*       what the reader of a buffer knows, and that its stream was created
//
// A stream that the bucket says was created and that is missing is a loss, and is reported. So the bucket is never created beside streams that need one.
package isb

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

// Store is what a Pipeline or MonoVertex keeps at the broker.
type Store struct {
	js jetstream.JetStream
	// Owner has the incarnation.
	Owner naming.Owner
	// State is the state bucket.
	State jetstream.KeyValue
	// old says that the store was written before there were incarnations, under names that are ambiguous. It keeps those names.
	old bool
	// replicas of all that is opened.
	replicas int
	log      *slog.Logger
	// resized are the streams whose number of replicas was changed since the last LogChanges, from their former number.
	resized []string
	from    int
}

// keyIncarnation is where the state bucket keeps the incarnation of the store.
const keyIncarnation = "incarnation"

// Open opens the state bucket of an owner, and creates it if there is none. vertices are those of the manifest: an old store that knows none of
// them is not the owner's.
func Open(ctx context.Context, js jetstream.JetStream, owner naming.Owner, vertices []string, replicas int, log *slog.Logger) (*Store, error) {
	s := &Store{js: js, Owner: owner, replicas: max(1, replicas), log: log}
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
	if s.State, err = jetstreambuffer.OpenBucket(ctx, js, name, naming.Tag{Owner: owner, Role: naming.RoleState}, s.replicas, s.Changed); err != nil {
		return nil, err
	}
	if !s.old {
		s.Owner.Incarnation, err = incarnation(ctx, s.State)
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
func (s *Store) notOrphaned(ctx context.Context, bucket string) error {
	if _, err := s.js.KeyValue(ctx, bucket); !errors.Is(err, jetstream.ErrBucketNotFound) {
		return err
	}
	var orphans []string
	streams := s.js.ListStreams(ctx)
	for info := range streams.Info() {
		if tag, ok := naming.TagOf(info.Config.Metadata); ok && tag.Owner.Is(s.Owner) && tag.Role == naming.RoleBuffer {
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
		"Restore it from a copy of the store. To begin again without the messages of the buffers, remove these streams too: %s", s.Owner, bucket, strings.Join(orphans, ", "))
}

// adoptable reports whether a store of the old format exists that is the owner's.
func (s *Store) adoptable(ctx context.Context, vertices []string) (bool, error) {
	name := s.Owner.OldState()
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
		if !tag.Owner.Is(s.Owner) {
			s.log.Warn("store of an earlier version belongs to another owner, creating a new store", "bucket", name, "owner", tag.Owner.String(), "for", s.Owner.String())
		}
		return tag.Owner.Is(s.Owner), nil
	}
	keys, err := kv.Keys(ctx)
	if err != nil && !errors.Is(err, jetstream.ErrNoKeysFound) {
		return false, fmt.Errorf("keys of bucket %s: %w", name, err)
	}
	wrote := s.Owner.OldVertices(keys)
	ours := len(wrote) == 0
	for v := range wrote {
		ours = ours || slices.Contains(vertices, v)
	}
	if !ours {
		return false, fmt.Errorf("%v: bucket %s was written by an earlier version for the vertices %s, none of which is in this manifest: a Pipeline or MonoVertex "+
			"of another namespace and name that read the same may have written it. Run that one first, which makes the bucket its own, or give this one another name", s.Owner, name, strings.Join(sorted(wrote), ", "))
	}
	s.log.Info("store of an earlier version found, adopting it under its old names", "bucket", name, "owner", s.Owner.String())
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

// Buffer returns the stream of a partition of a vertex, and its tag.
func (s *Store) Buffer(ctx context.Context, vertex string, partition int) (stream string, tag naming.Tag, err error) {
	tag = naming.Tag{Owner: s.Owner, Role: naming.RoleBuffer, Vertex: vertex, Partition: partition}
	if !s.old {
		return s.Owner.Buffer(vertex, partition), tag, nil
	}
	// The state remembers that the stream was created, also when it is lost; a crash may have come between the two.
	old := s.Owner.OldBuffer(vertex, partition)
	made, err := jetstreambuffer.WasMade(ctx, s.State, old)
	if err != nil || made {
		return old, tag, err
	}
	found, err := s.js.Stream(ctx, old)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		return s.Owner.Buffer(vertex, partition), tag, nil
	}
	if err != nil {
		return "", tag, fmt.Errorf("stream %s: %w", old, err)
	}
	if _, err := tag.Check(old, found.CachedInfo().Config.Metadata); err != nil {
		return s.Owner.Buffer(vertex, partition), tag, nil // the name reads the same, and never was ours
	}
	return old, tag, nil
}

// DeadLetters opens the dead letters.
func (s *Store) DeadLetters(ctx context.Context) (*deadletter.Store, error) {
	cfg := deadletter.Config{Stream: s.Owner.DeadLetters(), Pipeline: s.Owner.Name, Tag: naming.Tag{Owner: s.Owner, Role: naming.RoleDeadLetters}, Replicas: s.replicas, Logger: s.log}
	if s.old {
		cfg.Stream = s.Owner.OldDeadLetters()
	}
	letters, err := deadletter.Open(ctx, s.js, cfg)
	if err != nil {
		return nil, err
	}
	if err := jetstreambuffer.Own(ctx, s.js, cfg.Stream, cfg.Tag, s.replicas, s.Changed); err != nil {
		return nil, err
	}
	payloads := naming.ObjectStream(naming.Payloads(cfg.Stream))
	err = jetstreambuffer.Own(ctx, s.js, payloads, naming.Tag{Owner: s.Owner, Role: naming.RolePayloads}, s.replicas, s.Changed)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		err = nil // it is created with the first payload that needs it
	}
	return letters, err
}

// Changed notes that the replicas of a stream were changed.
func (s *Store) Changed(stream string, from, _ int) {
	s.resized, s.from = append(s.resized, stream), from
}

// LogChanges logs one line about what was changed while everything was opened.
func (s *Store) LogChanges() {
	if len(s.resized) > 0 {
		s.log.Info("replicas changed", "owner", s.Owner.String(), "from", s.from, "to", s.replicas, "streams", strings.Join(s.resized, " "))
	}
	s.resized = nil
}
