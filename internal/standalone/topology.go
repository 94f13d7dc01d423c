package standalone

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sync/errgroup"

	"github.com/levada-io/levada/api/v1alpha1"
	"github.com/levada-io/levada/internal/dataplane/buffer"
	"github.com/levada-io/levada/internal/dataplane/buffer/jetstreambuffer"
	"github.com/levada-io/levada/internal/dataplane/engine"
	"github.com/levada-io/levada/internal/dataplane/naming"
	"github.com/levada-io/levada/internal/dataplane/natslink"
	"github.com/levada-io/levada/internal/dataplane/ownership"
	"github.com/levada-io/levada/internal/dataplane/source"
	"github.com/levada-io/levada/internal/dataplane/topology"
	"github.com/levada-io/levada/internal/dataplane/vertex"
	"github.com/levada-io/levada/internal/flow"
	"github.com/levada-io/levada/internal/manifest"
	"github.com/levada-io/levada/internal/metrics"
)

// Before anything is opened for reading, a run takes each pipeline over (package ownership) and compares the manifest with the topology that is stored beside
// the buffers (package topology). The order of the steps makes a crash between any two of them safe:
//
//  1. take the lease
//  2. compare; refuse, or drain and discard what the user asked for, which leaves the record as it is
//  3. note that the store is not settled
//  4. write the new record
//  5. open buffers and sources
//
// The note is taken back when a run has stopped in an orderly way.

// The keys of the state bucket.
const (
	keyTopology = "topology"
	keySettled  = "settled"
)

// held is a pipeline that this process has taken over.
type held struct {
	object  manifest.Object
	store   *store
	lease   *ownership.Lease
	changes []topology.Change

	stored   *topology.Topology // nil for a store that holds nothing
	wanted   *topology.Topology
	revision uint64 // of the record; 0 if there is none
	settled  settled

	contents map[string]buffer.Contents // by stream
	read     map[string]bool            // sources that have saved a position
}

// settled is the note about how the last run ended.
type settled struct {
	// Settled says that everything a vertex began to write was finished.
	Settled bool `json:"settled"`
	// Except are sources for which that does not hold.
	Except []string `json:"except,omitempty"`
}

func (h *held) of() string { return h.store.owner.String() }

// refusal is an error that the user has to decide about. It is one message for all pipelines.
type refusal struct{ text string }

func (e *refusal) Error() string { return e.text }

// takeOver makes this process the owner of all pipelines of the manifests and their topology the stored one. It returns false if ctx ended meanwhile.
func (r *runner) takeOver(ctx context.Context) (bool, error) {
	owned, lost := context.WithCancelCause(context.WithoutCancel(ctx))
	r.owned = owned
	r.close = append(r.close, func() { lost(nil) })
	for _, o := range r.cfg.Objects {
		h, err := r.wanted(ctx, o)
		if err != nil {
			return false, err
		}
		if h != nil {
			r.held = append(r.held, h)
		}
	}
	if err := r.acquire(ctx, lost); err != nil {
		return ctx.Err() == nil, ignoreEnd(ctx, err)
	}
	for _, again := range []bool{false, true} {
		if err := r.compareAll(ctx); err != nil {
			return ctx.Err() == nil, ignoreEnd(ctx, err)
		}
		unsafe := slices.DeleteFunc(slices.Clone(r.held), func(h *held) bool { return len(topology.Unsafe(h.changes)) == 0 })
		if len(unsafe) == 0 {
			break
		}
		if again || !r.cfg.DrainOld && len(r.cfg.Discard) == 0 {
			return false, r.refuse(unsafe)
		}
		if err := r.discard(ctx, unsafe); err != nil {
			return ctx.Err() == nil, ignoreEnd(ctx, err)
		}
		if r.cfg.DrainOld {
			if err := r.drainOld(ctx, unsafe); err != nil {
				return ctx.Err() == nil, ignoreEnd(ctx, err)
			}
		}
	}
	if err := r.renamed(ctx); err != nil {
		return ctx.Err() == nil, ignoreEnd(ctx, err)
	}
	for _, h := range r.held {
		if err := r.accept(ctx, h); err != nil {
			return ctx.Err() == nil, ignoreEnd(ctx, err)
		}
	}
	return true, nil
}

// ignoreEnd drops an error that only says that the run was asked to stop.
func ignoreEnd(ctx context.Context, err error) error {
	if ctx.Err() != nil && (errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)) {
		return nil
	}
	return err
}

// patient repeats a request of the broker while it is away, for at most a minute.
func patient[T any](ctx context.Context, r *runner, what string, ask func(context.Context) (T, error)) (T, error) {
	open, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	v, err := natslink.Retry(open, r.link, r.log, what, ask)
	if err != nil && ctx.Err() == nil {
		err = fmt.Errorf("%s: %w", what, err)
	}
	return v, err
}

// wanted opens the store of a pipeline and works out its topology. It returns nil for what does not run.
func (r *runner) wanted(ctx context.Context, o manifest.Object) (*held, error) {
	h := &held{object: o}
	owner, vertices, ok, err := ownerOf(o)
	if err != nil || !ok {
		return nil, err
	}
	h.store, err = patient(ctx, r, owner.String(), func(ctx context.Context) (*store, error) {
		return openStore(ctx, r.js, owner, vertices, r.cfg.Replicas, r.log)
	})
	if err != nil {
		return nil, err
	}
	if h.wanted, err = r.topologyOf(o, h.store.owner); err != nil {
		return nil, err
	}
	for i := range h.wanted.Vertices {
		v := &h.wanted.Vertices[i]
		for p := range v.Partitions {
			name, err := patient(ctx, r, owner.String(), func(ctx context.Context) (string, error) {
				name, _, err := h.store.buffer(ctx, v.Name, p)
				return name, err
			})
			if err != nil {
				return nil, err
			}
			v.Streams = append(v.Streams, name)
		}
	}
	return h, nil
}

// ownerOf returns the owner of a manifest that runs, with the names of its vertices.
func ownerOf(o manifest.Object) (owner naming.Owner, vertices []string, ok bool, err error) {
	switch m := o.Manifest.(type) {
	case *v1alpha1.Pipeline:
		if m.Spec.Lifecycle.DesiredPhase == v1alpha1.DesiredPaused {
			return owner, nil, false, nil
		}
		for i := range m.Spec.Vertices {
			vertices = append(vertices, m.Spec.Vertices[i].Name)
		}
		owner, err = naming.New(cmp.Or(m.Namespace, "default"), naming.Pipeline, m.Name)
	case *v1alpha1.MonoVertex:
		vertices = []string{m.Name}
		owner, err = naming.New(cmp.Or(m.Namespace, "default"), naming.MonoVertex, m.Name)
	default:
		return owner, nil, false, nil
	}
	for _, v := range vertices {
		err = cmp.Or(err, owner.CheckVertex(v))
	}
	return owner, vertices, true, err
}

// acquire takes the leases and keeps them. owned ends when one is lost.
func (r *runner) acquire(ctx context.Context, lost context.CancelCauseFunc) error {
	self := ownership.Self(cmp.Or(r.cfg.Command, "levada run"), r.cfg.Version)
	var claims errgroup.Group
	for _, h := range r.held {
		claims.Go(func() error {
			lease, err := patient(ctx, r, h.of(), func(context.Context) (*ownership.Lease, error) {
				return ownership.Acquire(ctx, ownership.Config{
					Store: ownership.InBucket(h.store.state), Self: self, Sole: r.broker != nil, Logger: r.log,
					Waiting: func(last ownership.Owner, atMost time.Duration) {
						r.log.Info("waiting for the lease of the last owner to expire", "owner", h.of(), "last", last.String(), "at most", atMost.Round(time.Second))
					},
				})
			})
			if err != nil {
				if owned, ok := errors.AsType[*ownership.OwnedError](err); ok {
					return &refusal{fmt.Sprintf("%s: %v. Two runs of one pipeline would take each other's messages. Stop that process first, or give this pipeline another name; nothing was changed", h.of(), owned)}
				}
				return err
			}
			h.lease = lease
			return nil
		})
	}
	err := claims.Wait()
	renewing, stop := context.WithCancel(context.WithoutCancel(ctx))
	var renewals sync.WaitGroup
	for _, h := range r.held {
		if h.lease == nil {
			continue
		}
		r.leasesMu.Lock()
		r.leases = append(r.leases, h.lease)
		r.leasesMu.Unlock()
		renewals.Go(func() {
			if err := h.lease.Run(renewing); err != nil {
				lost(fmt.Errorf("%s: %w", h.of(), err))
			}
		})
	}
	r.close = append(r.close, func() {
		stop()
		renewals.Wait()
		for _, h := range r.held {
			if h.lease != nil {
				if err := h.lease.Release(context.WithoutCancel(ctx)); err != nil {
					r.log.Warn("lease not released, it expires", "owner", h.of(), "error", err)
				}
			}
		}
	})
	return err
}

// recheck renews the leases at once, as after a reconnect.
func (r *runner) recheck() {
	r.leasesMu.Lock()
	defer r.leasesMu.Unlock()
	for _, l := range r.leases {
		l.Recheck()
	}
}

// leaseOf is the lease of an owner; nil where nothing was taken over.
func (r *runner) leaseOf(owner naming.Owner) *ownership.Lease {
	for _, h := range r.held {
		if h.store.owner.Is(owner) {
			return h.lease
		}
	}
	return nil
}

func (r *runner) compareAll(ctx context.Context) error {
	for _, h := range r.held {
		if err := r.load(ctx, h); err != nil {
			return fmt.Errorf("%s: %w", h.of(), err)
		}
		if err := r.compare(ctx, h); err != nil {
			return fmt.Errorf("%s: %w", h.of(), err)
		}
	}
	return nil
}

// load reads the record, the note, and which buffers and sources the state knows.
func (r *runner) load(ctx context.Context, h *held) error {
	h.stored, h.revision, h.settled, h.contents, h.read = nil, 0, settled{}, map[string]buffer.Contents{}, map[string]bool{}
	record, revision, err := r.getKey(ctx, h.store.state, keyTopology)
	if err != nil {
		return err
	}
	if record != nil {
		if h.stored, err = topology.Decode(record); err != nil {
			return err
		}
		h.revision = revision
	}
	note, _, err := r.getKey(ctx, h.store.state, keySettled)
	if err != nil {
		return err
	}
	if note != nil {
		if err := json.Unmarshal(note, &h.settled); err != nil {
			h.settled = settled{}
		}
	}
	streams, err := r.inventory(ctx, h)
	if err != nil {
		return err
	}
	if h.stored == nil && len(streams) > 0 {
		byVertex := map[string][]string{}
		for _, s := range streams {
			for len(byVertex[s.Vertex]) <= s.Partition {
				byVertex[s.Vertex] = append(byVertex[s.Vertex], "")
			}
			byVertex[s.Vertex][s.Partition] = s.Stream
		}
		h.stored = topology.FromStreams(string(h.store.owner.Kind), h.store.owner.Namespace, h.store.owner.Name, byVertex)
	}
	return nil
}

func (r *runner) getKey(ctx context.Context, kv jetstream.KeyValue, key string) ([]byte, uint64, error) {
	type entry struct {
		value    []byte
		revision uint64
	}
	e, err := patient(ctx, r, "key "+key+" of bucket "+kv.Bucket(), func(ctx context.Context) (entry, error) {
		e, err := kv.Get(ctx, key)
		if errors.Is(err, jetstream.ErrKeyNotFound) {
			return entry{}, nil
		}
		if err != nil {
			return entry{}, err
		}
		return entry{e.Value(), e.Revision()}, nil
	})
	return e.value, e.revision, err
}

// stream is a buffer's partition that exists.
type stream struct {
	Vertex    string
	Partition int
	Stream    string
}

// inventory lists the partitions that the state of a pipeline knows, and its sources.
func (r *runner) inventory(ctx context.Context, h *held) ([]stream, error) {
	keys, err := patient(ctx, r, "keys of bucket "+h.store.state.Bucket(), func(ctx context.Context) ([]string, error) {
		keys, err := h.store.state.Keys(ctx)
		if errors.Is(err, jetstream.ErrNoKeysFound) {
			err = nil
		}
		return keys, err
	})
	if err != nil {
		return nil, err
	}
	var all []stream
	for _, key := range keys {
		if rest, ok := strings.CutPrefix(key, "source."); ok {
			vertex, _, _ := strings.Cut(rest, ".")
			h.read[vertex] = true
		}
		rest, buffer := strings.CutPrefix(key, "buffer.")
		name, made := strings.CutSuffix(rest, ".made")
		if !buffer || !made {
			continue
		}
		s, err := patient(ctx, r, "stream "+name, func(ctx context.Context) (*stream, error) { return identify(ctx, r.js, h.store.owner, name) })
		if err != nil {
			return nil, err
		}
		if s != nil {
			all = append(all, *s)
		}
	}
	slices.SortFunc(all, func(a, b stream) int {
		return cmp.Or(cmp.Compare(a.Vertex, b.Vertex), cmp.Compare(a.Partition, b.Partition))
	})
	return all, nil
}

// identify says which partition a stream holds: by its metadata, or for an old stream by its name. nil: it is gone.
func identify(ctx context.Context, js jetstream.JetStream, owner naming.Owner, name string) (*stream, error) {
	found, err := js.Stream(ctx, name)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if tag, ok := naming.TagOf(found.CachedInfo().Config.Metadata); ok {
		return &stream{tag.Vertex, tag.Partition, name}, nil
	}
	rest, ok := strings.CutPrefix(name, owner.Namespace+"-"+owner.Name+"-")
	at := strings.LastIndexByte(rest, '-')
	var n int
	if _, err := fmt.Sscanf(rest[at+1:], "%d", &n); !ok || at <= 0 || err != nil {
		return nil, nil
	}
	return &stream{rest[:at], n, name}, nil
}

// inspect counts what a stream holds.
func (r *runner) inspect(ctx context.Context, h *held, name string) (buffer.Contents, error) {
	if c, ok := h.contents[name]; ok || name == "" {
		return c, nil
	}
	inspect, cancel := context.WithTimeout(ctx, 10*time.Minute) // it reads what is pending
	defer cancel()
	c, err := natslink.Retry(inspect, r.link, r.log, "buffer "+name, func(context.Context) (buffer.Contents, error) { // each of its requests has a deadline
		c, err := inspectStream(inspect, r.js, h.store.state, name)
		if errors.Is(err, jetstream.ErrStreamNotFound) {
			err = nil // to open it says more
		}
		return c, err
	})
	if err != nil {
		return c, fmt.Errorf("buffer %s: %w", name, err)
	}
	h.contents[name] = c
	return c, nil
}

func inspectStream(ctx context.Context, js jetstream.JetStream, state jetstream.KeyValue, name string) (buffer.Contents, error) {
	driver, err := jetstreambuffer.Attach(ctx, js, jetstreambuffer.Config{Stream: name, State: state})
	if err != nil {
		return buffer.Contents{}, err
	}
	c, err := buffer.Inspect(ctx, driver)
	return c, errors.Join(err, driver.Close())
}

// compare fills in h.changes.
func (r *runner) compare(ctx context.Context, h *held) (err error) {
	h.changes = nil
	if h.stored == nil {
		return nil
	}
	failed := error(nil)
	written := len(h.read) > 0
	contents := func(v string, p int) buffer.Contents {
		sv := h.stored.Vertex(v)
		if sv == nil || p >= len(sv.Streams) || failed != nil {
			return buffer.Contents{}
		}
		c, err := r.inspect(ctx, h, sv.Streams[p])
		failed = cmp.Or(failed, err)
		return c
	}
	h.changes = topology.Compare(h.stored, h.wanted, topology.State{
		Pending: func(v string, p int) int { return contents(v, p).Messages },
		Settled: func(v string) bool {
			if h.settled.Settled {
				return !slices.Contains(h.settled.Except, v)
			}
			// A store into which nothing was ever written has nothing that could be written again.
			for i := range h.stored.Vertices {
				for p := range h.stored.Vertices[i].Partitions {
					written = written || contents(h.stored.Vertices[i].Name, p).Written
				}
			}
			return !written
		},
		HasRead: func(v string) bool {
			sv := h.stored.Vertex(v)
			return h.read[v] || sv != nil && sv.Source != nil && sv.Source.ByID
		},
	})
	if failed != nil {
		return failed
	}
	for i := range h.wanted.Vertices {
		now := &h.wanted.Vertices[i]
		was := h.stored.Vertex(now.Name)
		if was == nil || was.Source == nil || now.Source == nil || was.Source.Type != "file" || now.Source.Type != "file" || was.Source.Of == now.Source.Of ||
			filepath.Base(was.Source.Of) == filepath.Base(now.Source.Of) {
			continue // under the same name it is read on where it was
		}
		moved, err := patient(ctx, r, "position of "+now.Name, func(ctx context.Context) (bool, error) {
			return vertex.FileMoved(ctx, h.store.state, now.Name, was.Source.Of, now.Source.Of)
		})
		if err != nil {
			return err
		}
		if moved {
			h.changes = append(h.changes, topology.Change{
				Class: topology.Refused, Hazard: topology.Twice, Vertex: now.Name, Partition: -1,
				What:   fmt.Sprintf("source %s reads %s, which is %s under a new name", now.Name, now.Source, was.Source),
				Reason: "How far it was read is remembered under the old name. Under the new one it would be read again from its start, and all of it counted twice",
				Way:    "give the file its old name again, or a link of that name, and the path with it",
			})
		}
	}
	// What neither the record nor the manifest speaks of can hold messages, too.
	streams, err := r.inventory(ctx, h)
	if err != nil {
		return err
	}
	for _, s := range streams {
		was, now := h.stored.Vertex(s.Vertex), h.wanted.Vertex(s.Vertex)
		if was != nil && s.Partition < was.Partitions || now != nil && s.Partition < now.Partitions {
			continue
		}
		c, err := r.inspect(ctx, h, s.Stream)
		if err != nil {
			return err
		}
		if c.Messages > 0 {
			h.changes = append(h.changes, topology.Change{
				Class: topology.AfterDrain, Hazard: topology.Lost, Vertex: s.Vertex, Partition: s.Partition, Messages: c.Messages,
				What: fmt.Sprintf("vertex %s has no such partition in the manifest, nor had it when the topology was recorded", s.Vertex), Reason: "Nothing would process its messages",
			})
		}
	}
	return nil
}

// refuse makes one message of all that may not be done.
func (r *runner) refuse(all []*held) error {
	var texts []string
	for _, h := range all {
		texts = append(texts, topology.Explain(h.stored, topology.Unsafe(h.changes), h.drainable()))
	}
	return &refusal{strings.Join(texts, "\n")}
}

func (h *held) drainable() bool {
	return h.stored.Manifest != "" && h.stored.Kind == string(naming.Pipeline)
}

// discard drops the messages that the user named, of buffers that cannot go on otherwise. Buffers that are not concerned are left alone, so that a command line that
// is repeated by a supervisor drops nothing more.
func (r *runner) discard(ctx context.Context, unsafe []*held) error {
	if len(r.cfg.Discard) == 0 {
		return nil
	}
	concerned := map[string]bool{}
	for _, h := range unsafe {
		for _, c := range topology.Unsafe(h.changes) {
			if c.Class == topology.AfterDrain && c.Messages > 0 {
				concerned[c.Vertex] = true
			}
		}
	}
	for _, name := range r.cfg.Discard {
		if name != "all" && !concerned[name] {
			return &refusal{fmt.Sprintf("--discard %s: no buffer of a vertex %s stands in the way of this manifest; those that do are of: %s. Nothing was dropped",
				name, name, cmp.Or(strings.Join(slices.Sorted(maps.Keys(concerned)), ", "), "none"))}
		}
	}
	drop := map[*held][]stream{}
	for _, h := range unsafe {
		streams, err := r.inventory(ctx, h)
		if err != nil {
			return err
		}
		for _, s := range streams {
			if slices.ContainsFunc(topology.Unsafe(h.changes), func(c topology.Change) bool {
				return c.Class == topology.AfterDrain && c.Messages > 0 && (slices.Contains(r.cfg.Discard, c.Vertex) || slices.Contains(r.cfg.Discard, "all")) &&
					s.Vertex == c.Vertex && (c.Partition < 0 || s.Partition == c.Partition)
			}) {
				drop[h] = append(drop[h], s)
			}
		}
	}
	// All or nothing: messages are not dropped for a manifest that is refused without them, too.
	var left []*held
	for _, h := range unsafe {
		for _, s := range drop[h] {
			c, err := r.inspect(ctx, h, s.Stream)
			if err != nil {
				return err
			}
			c.Messages = 0
			h.contents[s.Stream] = c
		}
		if err := r.compare(ctx, h); err != nil {
			return err
		}
		if slices.ContainsFunc(topology.Unsafe(h.changes), func(c topology.Change) bool { return c.Class == topology.Refused || !r.cfg.DrainOld }) {
			left = append(left, h)
		}
	}
	if len(left) > 0 {
		return &refusal{fmt.Sprintf("--discard %s: without these messages the manifest would be refused as well. Nothing was dropped\n%s", strings.Join(r.cfg.Discard, ","), r.refuse(left))}
	}
	for _, h := range unsafe {
		for _, s := range drop[h] {
			n, err := dropStream(ctx, r.js, h.store.state, s.Stream)
			if err != nil {
				return fmt.Errorf("discard %s, partition %d: %w", s.Vertex, s.Partition, err)
			}
			if n > 0 {
				r.log.Warn("messages discarded", "owner", h.of(), "vertex", s.Vertex, "partition", s.Partition, "messages", n)
			}
		}
	}
	return nil
}

// dropStream discards what a stream holds.
func dropStream(ctx context.Context, js jetstream.JetStream, state jetstream.KeyValue, name string) (int, error) {
	driver, err := jetstreambuffer.Attach(ctx, js, jetstreambuffer.Config{Stream: name, State: state})
	if err != nil {
		return 0, err
	}
	n, err := buffer.Discard(ctx, driver)
	return n, errors.Join(err, driver.Close())
}

// accept notes that the store is not settled any more, and writes the record if it differs.
func (r *runner) accept(ctx context.Context, h *held) error {
	for _, c := range h.changes {
		r.log.Info("pipeline changed", "owner", h.of(), "change", c.What)
	}
	if err := r.note(ctx, h, settled{}); err != nil {
		return err
	}
	record, err := h.wanted.Encode()
	if err != nil {
		return err
	}
	if limit := int(r.conn.MaxPayload()) - 4<<10; len(record) > limit {
		// Without it the pipeline runs all the same; --drain-old then says that it cannot.
		h.wanted.Manifest = ""
		if record, err = h.wanted.Encode(); err != nil {
			return err
		}
	}
	if h.revision != 0 && h.stored != nil {
		if before, err := h.stored.Encode(); err == nil && string(before) == string(record) {
			return nil
		}
	}
	_, err = patient(ctx, r, h.of()+": write the topology record", func(ctx context.Context) (uint64, error) {
		var revision uint64
		var err error
		if h.revision == 0 {
			revision, err = h.store.state.Create(ctx, keyTopology, record)
		} else {
			revision, err = h.store.state.Update(ctx, keyTopology, record, h.revision)
		}
		if err == nil {
			return revision, nil
		}
		// An attempt whose answer was lost looks like another process's.
		if e, getErr := h.store.state.Get(ctx, keyTopology); getErr == nil && string(e.Value()) == string(record) {
			return e.Revision(), nil
		}
		return 0, err
	})
	return err
}

// note stores how the run ended, or that it has begun.
func (r *runner) note(ctx context.Context, h *held, s settled) error {
	value, err := json.Marshal(s)
	if err != nil {
		return err
	}
	_, err = patient(ctx, r, h.of()+": note how the run ended", func(ctx context.Context) (uint64, error) { return h.store.state.Put(ctx, keySettled, value) })
	return err
}

// settle notes which pipelines stopped in an orderly way: everything that was begun is finished, and every position is saved. err is what the run ended with.
func (r *runner) settle(ctx context.Context, pipelines []*Pipeline, err error) error {
	end, cancel := context.WithTimeout(context.WithoutCancel(ctx), min(5*time.Second, r.budget.Close()))
	defer cancel()
	for _, h := range r.held {
		s := settled{Settled: err == nil && !r.cutShort()}
		if !s.Settled && h.settled.Settled && !hasRead(end, pipelines, h) {
			s = h.settled // it never got so far
		}
		if !s.Settled || h.lease == nil || h.lease.Check(end) != nil {
			continue
		}
		if e := r.note(end, h, s); e != nil {
			r.log.Warn("the end of the run is not noted; changes of the pipeline may have to drain it first", "owner", h.of(), "error", e)
		}
	}
	return err
}

func hasRead(ctx context.Context, pipelines []*Pipeline, h *held) bool {
	for _, p := range pipelines {
		if p.store == nil || !p.store.owner.Is(h.store.owner) {
			continue
		}
		for _, v := range p.Stats(ctx) {
			if v.In > 0 || v.Out > 0 {
				return true
			}
		}
	}
	return false
}

// renamed refuses a pipeline that reads and writes what another one of this data directory reads and writes, which is in no manifest: it is that one under a new
// name, and would deliver everything once more. Of others that are in no manifest, it says what they hold.
func (r *runner) renamed(ctx context.Context) error {
	if r.broker == nil {
		return nil // at a broker of its own there are others, of which this run knows nothing
	}
	pipelines, err := patient(ctx, r, "list of pipelines", func(ctx context.Context) ([]stateBucket, error) { return stateBuckets(ctx, r.js) })
	if err != nil {
		return err
	}
	for _, b := range pipelines {
		if b.owner == nil || b.record == nil || slices.ContainsFunc(r.cfg.Objects, func(o manifest.Object) bool {
			return (o.Kind() == string(naming.Pipeline) || o.Kind() == string(naming.MonoVertex)) &&
				naming.Owner{Namespace: cmp.Or(o.Manifest.GetNamespace(), "default"), Kind: naming.Kind(o.Kind()), Name: o.Manifest.GetName()}.Is(*b.owner)
		}) {
			continue
		}
		for _, h := range r.held {
			if h.stored != nil {
				continue // it has been here before
			}
			if in, out := topology.Shared(b.record, h.wanted); in != "" && out != "" {
				return &refusal{fmt.Sprintf("%s: %s, which is in no manifest any more, reads %s and writes %s in this data directory already. Under a new name all of it would be read and delivered once more. "+
					"Call it %s again; or, if that is what you want, run it in another data directory (--data). Nothing was changed. See docs/changing-a-pipeline.md", h.of(), b.owner, in, out, b.owner.Name)}
			}
		}
		held := 0
		for _, s := range b.streams {
			c, err := inspectStream(ctx, r.js, b.kv, s.Stream)
			if err != nil && !errors.Is(err, jetstream.ErrStreamNotFound) {
				return fmt.Errorf("buffer %s: %w", s.Stream, err)
			}
			held += c.Messages
		}
		if held > 0 {
			r.log.Warn("a pipeline that is in no manifest holds messages; levada buffers list shows them", "owner", b.owner.String(), "messages", held)
		}
	}
	return nil
}

// drainOld runs pipelines once more as they were recorded, until nothing is in flight. Their sources read nothing new.
func (r *runner) drainOld(ctx context.Context, unsafe []*held) error {
	for _, h := range unsafe {
		if !slices.ContainsFunc(topology.Unsafe(h.changes), func(c topology.Change) bool { return c.Class == topology.AfterDrain }) {
			continue
		}
		if err := r.drainOne(ctx, h); err != nil {
			return err
		}
	}
	return nil
}

func (r *runner) drainOne(ctx context.Context, h *held) (err error) {
	if !h.drainable() {
		return &refusal{fmt.Sprintf("%s: --drain-old: the record of the store does not say how the pipeline was run. Run its former manifest once more until nothing is pending", h.of())}
	}
	objects, problems := manifest.Decode("the stored manifest of "+h.of(), []byte(h.stored.Manifest))
	if problems.HasErrors() || len(objects) == 0 {
		return fmt.Errorf("%s: --drain-old: the stored manifest cannot be read: %v", h.of(), problems)
	}
	for _, o := range objects {
		v1alpha1.SetDefaults(o.Manifest)
	}
	old := &runner{
		cfg: r.cfg, log: r.log.With("draining", true), metrics: metrics.New(r.cfg.Version), broker: r.broker, conn: r.conn, js: r.js, sockets: r.sockets, secrets: r.secrets,
		owned: r.owned, held: []*held{h}, draining: &draining{h: h, settled: map[string]bool{}},
		budget: engine.NewBudget(r.cfg.DrainTimeout), // which begins again for the run after this one
	}
	defer old.budget.Stop()
	defer context.AfterFunc(ctx, old.budget.Begin)()
	old.cfg.Objects, old.cfg.Dir, old.cfg.Started, old.cfg.Listen = append(objects, secretsOf(r.cfg.Objects)...), h.stored.Dir, nil, "127.0.0.1:0"
	old.cfg.Replicas = max(r.cfg.Replicas, h.stored.Replicas)
	old.cfg.Commands = maps.Clone(h.stored.Functions)
	if old.cfg.Commands == nil {
		old.cfg.Commands = map[string]string{}
	}
	maps.Copy(old.cfg.Commands, r.cfg.Commands)
	if err := old.draining.reach(ctx, r, h); err != nil {
		return err
	}
	if h.settled.Settled {
		// The sources stay settled, and what the buffers' readers write is not from here on.
		s := settled{Settled: true, Except: slices.Clone(h.settled.Except)}
		for i := range h.stored.Vertices {
			if v := &h.stored.Vertices[i]; v.Source == nil {
				s.Except = append(s.Except, v.Name)
			}
		}
		if err := r.note(ctx, h, s); err != nil {
			return err
		}
	}
	begun := time.Now()
	r.log.Info("draining with the stored topology", "owner", h.of())
	pipelines, err := old.buildAll(ctx)
	if err == nil {
		watching, stop := context.WithCancel(ctx)
		var watch sync.WaitGroup
		watch.Go(func() { old.sayProgress(watching, pipelines) })
		err = old.run(ctx, pipelines)
		stop()
		watch.Wait()
	}
	err = errors.Join(err, old.closeAll(ctx, pipelines))
	switch {
	case err != nil:
		return fmt.Errorf("%s: --drain-old: what is in flight cannot be finished with the stored topology: %w", h.of(), err)
	case ctx.Err() != nil || old.cutShort():
		return context.Cause(ctx) // it goes on at the next start
	}
	s := settled{Settled: true}
	for i := range h.stored.Vertices {
		if v := &h.stored.Vertices[i]; v.Source != nil && !old.draining.isSettled(v.Name) {
			s.Except = append(s.Except, v.Name)
		}
	}
	r.log.Info("drained", "owner", h.of(), "took", time.Since(begun).Round(time.Millisecond))
	return r.note(ctx, h, s)
}

// sayProgress logs what is left, now and then.
func (r *runner) sayProgress(ctx context.Context, pipelines []*Pipeline) {
	tick := time.NewTicker(5 * time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		for _, p := range pipelines {
			left := 0
			for _, part := range p.Inputs() {
				left += max(0, part.Pending())
			}
			r.log.Info("still draining", "pipeline", p.Name, "pending", left)
		}
	}
}

func secretsOf(objects []manifest.Object) (secrets []manifest.Object) {
	for _, o := range objects {
		switch o.Manifest.(type) {
		case *v1alpha1.Pipeline, *v1alpha1.MonoVertex, *v1alpha1.InterStepBufferService:
		default:
			secrets = append(secrets, o)
		}
	}
	return secrets
}

// draining stands between a source and its vertex while a pipeline is drained: the source gives again what it gave before and did not save, and nothing new.
type draining struct {
	h     *held
	lanes map[string]uint64 // how far the next buffers have what a lane gave

	mu      sync.Mutex
	settled map[string]bool
}

// reach looks up how far the buffers have been written.
func (d *draining) reach(ctx context.Context, r *runner, h *held) error {
	d.lanes = map[string]uint64{}
	for i := range h.stored.Vertices {
		for _, name := range h.stored.Vertices[i].Streams {
			c, err := r.inspect(ctx, h, name)
			if err != nil {
				return err
			}
			for lane, pos := range c.Reached {
				d.lanes[lane] = max(d.lanes[lane], pos)
			}
		}
	}
	return nil
}

func (d *draining) done(vertex string) { d.mu.Lock(); defer d.mu.Unlock(); d.settled[vertex] = true }

func (d *draining) isSettled(vertex string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.settled[vertex]
}

// source is vertex.Env's Source.
func (d *draining) source(vertex string, open func() (source.Reader, error)) (source.Reader, error) {
	v := d.h.stored.Vertex(vertex)
	if d.h.settled.Settled && !slices.Contains(d.h.settled.Except, vertex) {
		d.done(vertex)
		return endedSource{}, nil
	}
	if v == nil || v.Source == nil || v.Source.ByID {
		return endedSource{}, nil // what it redelivers cannot be told from what is new
	}
	left := false
	for lane := range d.lanes {
		left = left || strings.HasPrefix(lane, vertex+"/")
	}
	if !left {
		d.done(vertex)
		return endedSource{}, nil
	}
	in, err := open()
	if err != nil {
		return nil, err
	}
	return &settling{Reader: in, d: d, vertex: vertex, finite: v.Source.Type == "file"}, nil
}

// settling reads a source up to where it was read before.
type settling struct {
	source.Reader
	d      *draining
	vertex string
	// finite says that what is there can be read without waiting for a peer.
	finite bool
	last   *source.Batch
}

func (s *settling) reached(b *source.Batch) uint64 {
	return s.d.lanes[flow.SourceLane(s.vertex, b.Partition, s.d.h.store.owner.Incarnation)]
}

// Read implements source.Reader.
func (s *settling) Read(ctx context.Context, limit int) (*source.Batch, error) {
	if s.last != nil && s.last.Hi >= s.reached(s.last) {
		s.d.done(s.vertex)
		return nil, io.EOF
	}
	wait := 30 * time.Second
	if s.finite {
		wait = 2 * time.Second
	}
	one, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	b, err := s.Reader.Read(one, limit)
	switch {
	case err == nil && (b.ByID || b.Lo > s.reached(b)):
		s.d.done(s.vertex) // all of it is new: it is not acknowledged, and read by the next run
		return nil, io.EOF
	case err == nil:
		s.last = b
	case errors.Is(err, io.EOF), s.finite && ctx.Err() == nil && one.Err() != nil:
		s.d.done(s.vertex)
		return nil, io.EOF
	case ctx.Err() == nil && one.Err() != nil:
		return nil, io.EOF // the peer is silent: it stays unsettled
	}
	return b, err
}

// endedSource has nothing to give.
type endedSource struct{}

func (endedSource) Read(context.Context, int) (*source.Batch, error)             { return nil, io.EOF }
func (endedSource) Ack(context.Context, *source.Batch) error                     { return nil }
func (endedSource) Nack(context.Context, *source.Batch, int, time.Duration) bool { return false }
func (endedSource) Pending(context.Context) (int64, error)                       { return 0, nil }
func (endedSource) Close(context.Context) error                                  { return nil }

// topologyOf describes a manifest.
func (r *runner) topologyOf(o manifest.Object, owner naming.Owner) (*topology.Topology, error) {
	t := &topology.Topology{
		Format: topology.Format, Levada: r.cfg.Version, Kind: string(owner.Kind), Namespace: owner.Namespace, Name: owner.Name, Incarnation: owner.Incarnation, Functions: r.cfg.Commands, Replicas: max(1, r.cfg.Replicas),
	}
	dir, err := filepath.Abs(r.cfg.Dir)
	if err != nil {
		return nil, err
	}
	t.Dir = dir
	keep := []manifest.Object{o}
	switch m := o.Manifest.(type) {
	case *v1alpha1.MonoVertex:
		v := topology.Vertex{Name: m.Name, Kind: "monovertex"}
		if m.Spec.Source != nil {
			v.Source = sourceEndpoint(m.Spec.Source, m.Name, dir)
		}
		if m.Spec.Sink != nil {
			v.Sinks = sinkEndpoints(m.Spec.Sink, m.Name, dir)
		}
		t.Vertices = append(t.Vertices, v)
	case *v1alpha1.Pipeline:
		buffers, _, err := r.bufferConfig(m)
		if err != nil {
			return nil, err
		}
		for i := range m.Spec.Vertices {
			spec := &m.Spec.Vertices[i]
			v := topology.Vertex{Name: spec.Name, Kind: kindText(spec)}
			if spec.Source != nil {
				v.Source = sourceEndpoint(spec.Source, spec.Name, dir)
			} else {
				v.Partitions, v.Ordered, v.Memory = spec.PartitionCount(), m.Spec.IsOrdered(spec), buffers.Memory
			}
			if spec.Sink != nil {
				v.Sinks = sinkEndpoints(spec.Sink, spec.Name, dir)
			}
			t.Vertices = append(t.Vertices, v)
		}
		for i := range m.Spec.Edges {
			e := &m.Spec.Edges[i]
			t.Edges = append(t.Edges, topology.Edge{From: e.From, To: e.To, Condition: conditionText(e.Conditions), Discard: e.OnFull != nil && *e.OnFull == v1alpha1.OnFullDiscardLatest})
		}
		if s := r.bufferService(m); s != nil {
			keep = append(keep, manifest.NewObject(s))
		}
	}
	manifest, err := manifest.Render(keep)
	if err != nil {
		return nil, err
	}
	t.Manifest = string(manifest)
	return t, nil
}

func kindText(v *v1alpha1.AbstractVertex) string {
	switch {
	case v.IsSource():
		return "source"
	case v.IsSink():
		return "sink"
	case v.IsReduce():
		return "reduce"
	}
	return "map"
}

func conditionText(c *v1alpha1.ForwardConditions) string {
	if c == nil || c.Tags == nil {
		return ""
	}
	op := v1alpha1.LogicOperatorOr
	if c.Tags.Operator != nil {
		op = *c.Tags.Operator
	}
	values := slices.Clone(c.Tags.Values)
	slices.Sort(values)
	return string(op) + " " + strings.Join(values, ",")
}

func absolute(dir, path string) string {
	if filepath.IsAbs(path) {
		return filepath.Clean(path)
	}
	return filepath.Join(dir, path)
}

// at names a place at a server without what a URL may hold of credentials.
func at(what, url string) string {
	if i := strings.LastIndexByte(url, '@'); i >= 0 {
		url = url[i+1:]
	}
	if url == "" {
		return what
	}
	return what + " at " + strings.TrimPrefix(url, "nats://")
}

func sourceEndpoint(s *v1alpha1.Source, vertex, dir string) *topology.Endpoint {
	switch {
	case s.File != nil:
		how := string(cmp.Or(s.File.Format, v1alpha1.FileFormatLines))
		if s.File.CSVHeader != nil && !*s.File.CSVHeader {
			how += " without header"
		}
		return &topology.Endpoint{Type: "file", Of: absolute(dir, s.File.Path), Cursor: vertex, How: how}
	case s.Stdin != nil:
		return &topology.Endpoint{Type: "stdin", How: string(s.Stdin.Format)}
	case s.Generator != nil:
		return &topology.Endpoint{Type: "generator"}
	case s.HTTP != nil:
		return &topology.Endpoint{Type: "http", ByID: true}
	case s.Nats != nil:
		return &topology.Endpoint{Type: "nats", Of: at(s.Nats.Subject, s.Nats.URL), ByID: true}
	case s.JetStream != nil:
		return &topology.Endpoint{Type: "jetstream", Of: at(s.JetStream.Stream, s.JetStream.URL), Cursor: cmp.Or(s.JetStream.Consumer, "default of "+vertex), ByID: true}
	case s.Stream != nil:
		partition := cmp.Or(s.Stream.Partition, s.Stream.Stream)
		return &topology.Endpoint{Type: "stream", Of: strings.TrimSpace(s.Stream.Stream + " " + s.Stream.Query + " of " + s.Stream.Target + " as " + partition), Cursor: vertex, How: string(s.Stream.Payload)}
	case s.UDSource != nil:
		return &topology.Endpoint{Type: "udsource", ByID: true}
	}
	return &topology.Endpoint{Type: "other", ByID: true}
}

func sinkEndpoints(s *v1alpha1.Sink, vertex, dir string) map[string]topology.Endpoint {
	all := map[string]topology.Endpoint{"sink": sinkEndpoint(&s.AbstractSink, vertex, dir)}
	if s.Fallback != nil {
		all["fallback"] = sinkEndpoint(s.Fallback, vertex, dir)
	}
	if s.OnSuccess != nil {
		all["onSuccess"] = sinkEndpoint(s.OnSuccess, vertex, dir)
	}
	return all
}

func sinkEndpoint(s *v1alpha1.AbstractSink, vertex, dir string) topology.Endpoint {
	switch {
	case s.File != nil:
		return topology.Endpoint{Type: "file", Of: absolute(dir, s.File.Path)}
	case s.Log != nil:
		return topology.Endpoint{Type: "log"}
	case s.Stdout != nil:
		return topology.Endpoint{Type: "stdout"}
	case s.Blackhole != nil:
		return topology.Endpoint{Type: "blackhole"}
	case s.JetStream != nil:
		return topology.Endpoint{Type: "jetstream", Of: at(s.JetStream.Subject, s.JetStream.URL)}
	case s.Nats != nil:
		return topology.Endpoint{Type: "nats", Of: at(s.Nats.Subject, s.Nats.URL)}
	case s.Stream != nil:
		return topology.Endpoint{Type: "stream", Of: s.Stream.Name, Cursor: vertex}
	case s.UDSink != nil:
		return topology.Endpoint{Type: "udsink"}
	}
	return topology.Endpoint{Type: "other"}
}
