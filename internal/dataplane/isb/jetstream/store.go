package jetstream

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/levada-io/levada/internal/dataplane/buffer"
	"github.com/levada-io/levada/internal/dataplane/deadletter"
	"github.com/levada-io/levada/internal/dataplane/isb"
	"github.com/levada-io/levada/internal/dataplane/isb/jetstream/jetstreambuffer"
	"github.com/levada-io/levada/internal/dataplane/naming"
	"github.com/levada-io/levada/internal/dataplane/natslink"
	"github.com/levada-io/levada/internal/dataplane/shard"
	"github.com/levada-io/levada/internal/dataplane/shard/natsstore"
)

// store is what a Pipeline or MonoVertex keeps at the broker; it implements isb.Store.
type store struct {
	place // with the incarnation of the owner
	// room is Config.Server.Room; nil for a server elsewhere.
	room func() error
	// old says that the store was written before there were incarnations, under names that are ambiguous. It keeps those names.
	old   bool
	watch *watch         // of the service; may be nil
	link  *natslink.Link // of the service; nil for a server in this process
	feeds jetstreambuffer.Feeds
	// writable are the streams that this user was seen to be able to write to, as keys.
	writable sync.Map
	// replicas of all that is opened; 0 to leave what exists, and to ask choice about what is created.
	replicas int
	choice   *jetstreambuffer.Choice
	log      *slog.Logger
	// resized are the streams whose number of replicas was changed since the last LogChanges, from their former number.
	resized []string
	from    int
}

// keyIncarnation is where the state bucket keeps the incarnation of the store.
const keyIncarnation = "incarnation"

// Open implements isb.Service.
func (s *Service) Open(ctx context.Context, r isb.Request) (isb.Store, error) {
	st := &store{place: place{js: s.js, owner: r.Owner}, watch: s.watch, link: s.link, replicas: r.Replicas, choice: &s.choice, log: cmp.Or(r.Logger, slog.New(slog.DiscardHandler))}
	if s.server != nil {
		st.room = s.server.Room
	}
	if err := st.open(ctx, r.Vertices); err != nil {
		return nil, err
	}
	s.watchStreams()
	return st, nil
}

// open opens the state bucket, and creates it if there is none.
func (s *store) open(ctx context.Context, vertices []string) (err error) {
	name, exists := s.owner.State(), true
	if _, err := s.js.KeyValue(ctx, name); errors.Is(err, jetstream.ErrBucketNotFound) {
		if s.old, err = s.adoptable(ctx, vertices); err != nil {
			return err
		}
		if s.old {
			name = s.owner.OldState()
		}
		exists = s.old
	} else if err != nil {
		return fmt.Errorf("bucket %s: %w", name, err)
	}
	if err := s.notOrphaned(ctx, name); err != nil {
		return err
	}
	open := func(replicas int) (err error) {
		s.kv, err = jetstreambuffer.OpenBucket(ctx, s.js, name, naming.Tag{Owner: s.owner, Role: naming.RoleState}, replicas, s.changed)
		return err
	}
	if exists || s.replicas > 0 {
		err = open(s.replicas)
	} else {
		err = s.choice.Create(ctx, 0, open)
	}
	if err != nil {
		return err
	}
	s.watch.add(naming.KVStream(name))
	if !s.old {
		s.owner.Incarnation, err = incarnation(ctx, s.kv)
	}
	return err
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

// Shards implements isb.Sharer.
func (s *store) Shards(ctx context.Context) (shard.Store, error) {
	return natsstore.Open(ctx, s.js, s.kv.Bucket())
}

// Stream implements isb.Store.
func (s *store) Stream(ctx context.Context, vertex string, partition int) (string, error) {
	stream, _, err := s.stream(ctx, vertex, partition)
	return stream, err
}

// streamTimeout bounds the requests that find out what a stream is called.
const streamTimeout = 10 * time.Second

// stream returns the stream of a partition of a vertex, and its tag.
func (s *store) stream(ctx context.Context, vertex string, partition int) (stream string, tag naming.Tag, err error) {
	tag = naming.Tag{Owner: s.owner, Role: naming.RoleBuffer, Vertex: vertex, Partition: partition}
	if !s.old {
		return s.owner.Buffer(vertex, partition), tag, nil
	}
	ctx, cancel := context.WithTimeout(ctx, streamTimeout)
	defer cancel()
	// The state remembers that the stream was created, also when it is lost; a crash may have come between the two.
	old := s.owner.OldBuffer(vertex, partition)
	made, err := jetstreambuffer.WasMade(ctx, s.kv, old)
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

// OpenPartition implements isb.Store.
func (s *store) OpenPartition(ctx context.Context, vertex string, partition int, settings isb.Settings) (buffer.Driver, error) {
	cfg, err := s.config(ctx, vertex, partition, settings)
	if err != nil {
		return nil, err
	}
	d, err := jetstreambuffer.Open(ctx, s.js, cfg)
	if err != nil {
		return nil, err
	}
	s.watch.add(cfg.Stream)
	if err := s.mayWrite(ctx, cfg.Stream, d); err != nil {
		return nil, errors.Join(err, d.Close())
	}
	return d, nil
}

// AttachWriter implements isb.Store.
func (s *store) AttachWriter(ctx context.Context, vertex string, partition int, settings isb.Settings) (buffer.WriterDriver, error) {
	cfg, err := s.config(ctx, vertex, partition, settings)
	if err != nil {
		return nil, err
	}
	d, err := jetstreambuffer.AttachWriter(ctx, s.js, cfg)
	if err != nil {
		return nil, err
	}
	s.watch.add(cfg.Stream)
	if err := s.mayWrite(ctx, cfg.Stream, d); err != nil {
		return nil, errors.Join(err, d.Close())
	}
	return d, nil
}

// mayWrite returns an error if the broker does not answer a write to a stream. It asks once for each.
func (s *store) mayWrite(ctx context.Context, stream string, opened buffer.WriterDriver) error {
	if _, known := s.writable.Load(stream); known || s.link == nil {
		return nil
	}
	if err := jetstreambuffer.MayWrite(ctx, opened); err != nil {
		return err
	}
	s.writable.Store(stream, true)
	return nil
}

func (s *store) config(ctx context.Context, vertex string, partition int, settings isb.Settings) (cfg jetstreambuffer.Config, err error) {
	cfg = jetstreambuffer.Config{
		State: s.kv, Changed: s.changed, Room: s.room, Replicas: s.replicas, Choice: s.choice, Fence: settings.Fence, Memory: settings.Memory, MaxBytes: settings.MaxBytes,
		MaxBlocks: settings.MaxBlocks, Shards: settings.Shards, Feeds: &s.feeds, Duplicates: settings.Duplicates, Lost: settings.Lost, Logger: settings.Logger,
	}
	cfg.Stream, cfg.Tag, err = s.stream(ctx, vertex, partition)
	return cfg, err
}

// DeadLetters implements isb.Store.
func (s *store) DeadLetters(ctx context.Context) (*deadletter.Store, error) {
	stream, tag := s.owner.DeadLetters(), naming.Tag{Owner: s.owner, Role: naming.RoleDeadLetters}
	if s.old {
		stream = s.owner.OldDeadLetters()
	}
	l, err := openLetters(ctx, &letters{js: s.js, stream: stream, tag: tag, replicas: s.replicas, choice: s.choice})
	if err != nil {
		return nil, err
	}
	if err := jetstreambuffer.Own(ctx, s.js, stream, tag, s.replicas, s.changed); err != nil {
		return nil, err
	}
	payloads := naming.ObjectStream(naming.Payloads(stream))
	err = jetstreambuffer.Own(ctx, s.js, payloads, naming.Tag{Owner: s.owner, Role: naming.RolePayloads}, s.replicas, s.changed)
	if err != nil && !errors.Is(err, jetstream.ErrStreamNotFound) { // it is created with the first payload that needs it
		return nil, err
	}
	s.watch.add(stream)
	return deadletter.New(l, s.owner.Name, s.log), nil
}

// changed notes that the replicas of a stream were changed.
func (s *store) changed(stream string, from, _ int) {
	s.resized, s.from = append(s.resized, stream), from
}

// LogChanges implements isb.Store.
func (s *store) LogChanges() {
	if len(s.resized) > 0 {
		s.log.Info("replicas changed", "owner", s.owner.String(), "from", s.from, "to", s.replicas, "streams", strings.Join(s.resized, " "))
	}
	s.resized = nil
	if s.watch != nil {
		s.watch.opened(s.js, s.choice.Why)
	}
}
