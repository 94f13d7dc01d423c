package standalone

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/levada-io/levada/internal/dataplane/buffer"
	"github.com/levada-io/levada/internal/dataplane/engine"
	"github.com/levada-io/levada/internal/dataplane/isb"
	"github.com/levada-io/levada/internal/dataplane/naming"
	"github.com/levada-io/levada/internal/dataplane/ownership"
	"github.com/levada-io/levada/internal/dataplane/shard"
	"github.com/levada-io/levada/internal/metrics"
)

// BufferView is a partition of a vertex's input buffer, as people see it.
type BufferView struct {
	Namespace string `json:"namespace"`
	Pipeline  string `json:"pipeline"`
	Vertex    string `json:"vertex"`
	Partition int    `json:"partition"`
	// Pending are messages that are not known to be done, in Blocks of Bytes. While a process runs they are as of its last saved state.
	Pending int        `json:"pending"`
	Blocks  int        `json:"blocks"`
	Bytes   int64      `json:"bytes"`
	Oldest  *time.Time `json:"oldest,omitempty"`
	// Recorded says that the stored topology has it; a buffer that it does not have is left from an earlier one, and nothing reads it.
	Recorded bool `json:"recorded"`
	// Owner is the process that runs the pipeline or the vertex, or that reads the partition of a vertex which several processes share; empty if none does. Epoch is that of
	// its lease then. Where the partition has several shards, they say who reads them.
	Owner  string      `json:"owner,omitempty"`
	Epoch  uint64      `json:"epoch,omitempty"`
	Shards []ShardView `json:"shards,omitempty"`
	Stream string      `json:"stream"`
	// Replicas and Storage are those of the stream.
	Replicas int    `json:"replicas"`
	Storage  string `json:"storage"`
	Error    string `json:"error,omitempty"`
}

// ShardView is one of several shards of a partition, each of which one process reads.
type ShardView struct {
	Shard string `json:"shard"`
	// Pending are messages that are not known to be done.
	Pending int    `json:"pending"`
	Owner   string `json:"owner,omitempty"`
	Epoch   uint64 `json:"epoch,omitempty"`
}

// Name is how commands name it.
func (v *BufferView) Name() string {
	return fmt.Sprintf("%s/%s/%s/%d", v.Namespace, v.Pipeline, v.Vertex, v.Partition)
}

// Matches reports whether a person means this buffer: by its whole name, or without partition or namespace.
func (v *BufferView) Matches(name string) bool {
	whole := v.Name()
	part := strings.TrimSuffix(whole, "/"+strconv.Itoa(v.Partition))
	return name == whole || name == part || v.Namespace+"/"+name == whole || v.Namespace+"/"+name == part
}

// Buffers are the buffers of all pipelines at a broker.
type Buffers struct {
	service isb.Service // nil with remote
	// sole says that the broker is in this process, and nobody else reaches it.
	sole   bool
	remote *remoteLetters // the run that has the data directory
	close  func()
}

// OpenBuffers opens the broker of a data directory, or one elsewhere. Nothing is created there.
func OpenBuffers(ctx context.Context, dataDir string, at Broker) (*Buffers, error) {
	if !at.embedded() {
		service, err := at.dial(ctx, nil, slog.Default())
		if err != nil {
			return nil, err
		}
		return &Buffers{service: service, close: service.Close}, nil
	}
	d, err := OpenDeadLetters(ctx, dataDir, at)
	if err != nil {
		return nil, err
	}
	switch l := d.(type) {
	case *remoteLetters:
		return &Buffers{remote: l, close: l.Close}, nil
	case *localLetters:
		return &Buffers{service: l.service, sole: true, close: l.Close}, nil
	}
	return nil, errors.New("unknown kind of data directory")
}

// Close disconnects.
func (b *Buffers) Close() { b.close() }

// List returns all buffers, with those that no manifest mentions any more.
func (b *Buffers) List(ctx context.Context) (all []BufferView, err error) {
	if b.remote != nil {
		return all, b.remote.call(ctx, http.MethodGet, "buffers", &all)
	}
	return listBuffers(ctx, b.service)
}

func listBuffers(ctx context.Context, service isb.Service) (all []BufferView, err error) {
	pipelines, err := isb.List(ctx, service)
	if err != nil {
		return nil, err
	}
	for i := range pipelines {
		p := &pipelines[i]
		owner := holder(ctx, isb.PipelineLease(p.State()))
		for _, s := range p.Buffers {
			v := BufferView{Vertex: s.Vertex, Partition: s.Partition, Stream: s.Stream, Owner: owner, Namespace: p.Owner().Namespace, Pipeline: p.Owner().Name}
			if owner == "" {
				v.Owner = holder(ctx, isb.VertexLease(p.State(), s.Vertex))
			}
			v.Recorded = p.Recorded(s)
			if kept, err := p.Describe(ctx, s.Stream); err == nil {
				v.Replicas, v.Storage = kept.Replicas, kept.Kind
			}
			c, err := isb.Inspect(ctx, p, s.Stream)
			switch {
			case ctx.Err() != nil:
				return nil, context.Cause(ctx)
			case err != nil:
				v.Error = err.Error() // one that is damaged does not hide the others
			default:
				v.Pending, v.Blocks, v.Bytes = c.Messages, c.Blocks, c.Bytes
				v.shards(ctx, p.State(), c.Shards)
				if !c.Oldest.IsZero() {
					oldest := c.Oldest.UTC()
					v.Oldest = &oldest
				}
			}
			all = append(all, v)
		}
	}
	slices.SortFunc(all, func(a, b BufferView) int { return strings.Compare(a.Name(), b.Name()) })
	return all, nil
}

// holder is the process that holds a lease; empty if none does.
func holder(ctx context.Context, lease ownership.Store) string {
	last, _, owned, err := ownership.Last(ctx, lease)
	if err != nil || !owned || ownership.Gone(last) {
		return ""
	}
	return last.String()
}

// shards adds who reads the shards of a vertex that several processes share: the partition itself, if it has no others.
func (v *BufferView) shards(ctx context.Context, state isb.State, contents []buffer.Contents) {
	owner := v.Owner // of all of them
	if len(contents) == 0 && owner == "" {
		v.Owner, v.Epoch = shardHolder(ctx, state, v.Vertex, engine.Shard{Partition: v.Partition})
	}
	for i, c := range contents {
		s := engine.Shard{Partition: v.Partition, Shard: i, Of: len(contents)}
		one := ShardView{Shard: s.Name(), Pending: c.Messages, Owner: owner}
		if owner == "" {
			one.Owner, one.Epoch = shardHolder(ctx, state, v.Vertex, s)
		}
		v.Shards = append(v.Shards, one)
	}
}

// shardHolder is the process that reads a shard of a vertex which several processes share, and the epoch of its lease; empty if none does.
func shardHolder(ctx context.Context, state isb.State, vertex string, of engine.Shard) (owner string, epoch uint64) {
	get := func(kind shard.Kind, name string) ([]byte, error) {
		value, _, err := state.Get(ctx, isb.ShardGroup(vertex)+"."+shard.Key{Kind: kind, Name: name}.String())
		return value, err
	}
	lease, err := get(shard.Lease, of.Name())
	if err != nil {
		return "", 0
	}
	name, epoch, ok, err := shard.Holder(lease, func(owner string) ([]byte, error) { return get(shard.Session, owner) })
	if err != nil || !ok {
		return "", 0
	}
	owner = fmt.Sprintf("%s, epoch %d", name, epoch)
	if process := holder(ctx, isb.ProcessLease(state, vertex, name)); process != "" {
		owner += ": " + process
	}
	return owner, epoch
}

// Drop drops for good the messages of a buffer, and returns their number. A pipeline that runs is refused. A buffer that nothing reads any more is removed.
func (b *Buffers) Drop(ctx context.Context, view BufferView) (int, error) {
	if b.remote != nil {
		return 0, fmt.Errorf("the data directory is used by process %d: stop that run first", b.remote.PID)
	}
	pipelines, err := isb.List(ctx, b.service)
	if err != nil {
		return 0, err
	}
	for i := range pipelines {
		p := &pipelines[i]
		at := slices.IndexFunc(p.Buffers, func(s isb.Stream) bool { return s.Stream == view.Stream })
		if at < 0 {
			continue
		}
		return b.dropStream(ctx, p, p.Buffers[at])
	}
	return 0, fmt.Errorf("stream %s is not there any more", view.Stream)
}

// dropStream discards what a stream of a pipeline holds, and removes the stream if the stored topology does not have it. It has the lease of the pipeline meanwhile.
func (b *Buffers) dropStream(ctx context.Context, p *isb.Found, s isb.Stream) (n int, err error) {
	self := ownership.Self("levada buffers drop", "")
	lease, err := ownership.Acquire(ctx, ownership.Config{Store: isb.PipelineLease(p.State()), Self: self, Sole: b.sole})
	if err != nil {
		return 0, err
	}
	if !b.sole {
		err = vacateAll(ctx, p.State(), self)
	}
	if err == nil {
		n, err = isb.Drop(ctx, p, s.Stream)
	}
	if err == nil && p.Record != nil && !p.Recorded(s) {
		err = p.Remove(ctx, s.Stream)
	}
	return n, errors.Join(err, lease.Release(context.WithoutCancel(ctx)))
}

// vacateAll makes certain that no process runs a vertex of a pipeline.
func vacateAll(ctx context.Context, state isb.State, self ownership.Owner) error {
	names, err := isb.LeasedVertices(ctx, state)
	if err != nil {
		return err
	}
	for name := range names {
		cfg := ownership.Config{Store: isb.VertexLease(state, name), Self: self}
		if err := ownership.VacateAll(ctx, cfg, func(process string) ownership.Store { return isb.ProcessLease(state, name, process) }); err != nil {
			return fmt.Errorf("vertex %s: %w", name, err)
		}
	}
	return nil
}

// Drain runs pipelines as they were recorded until nothing is in flight, without new input. wanted selects them. It returns how many were drained.
func Drain(ctx context.Context, cfg Config, wanted func(namespace, name string) bool) (drained int, err error) {
	cfg = cfg.withDefaults()
	cfg.Command = "levada buffers drain"
	r := &runner{cfg: cfg, log: cfg.Logger, metrics: metrics.New(cfg.Version), secrets: newSecrets(cfg), budget: engine.NewBudget(cfg.DrainTimeout)}
	defer r.budget.Stop()
	defer context.AfterFunc(ctx, r.budget.Begin)()
	defer func() {
		for i := len(r.close) - 1; i >= 0; i-- {
			r.close[i]()
		}
	}()
	if err := r.open(ctx); err != nil {
		return 0, err
	}
	owned, lost := context.WithCancelCause(context.WithoutCancel(ctx))
	r.owned = owned
	r.close = append(r.close, func() { lost(nil) })
	pipelines, err := isb.List(ctx, r.service)
	if err != nil {
		return 0, err
	}
	for _, p := range pipelines {
		if p.Record == nil || p.Owner().Kind != naming.Pipeline || !wanted(p.Owner().Namespace, p.Owner().Name) {
			continue
		}
		h := &held{}
		if h.store, err = r.service.Open(ctx, isb.Request{Owner: p.Owner(), Logger: r.log}); err != nil {
			return 0, err
		}
		r.held = append(r.held, h)
	}
	if err := r.acquire(ctx, lost); err != nil {
		return 0, err
	}
	for _, h := range r.held {
		if err := r.load(ctx, h); err != nil {
			return drained, fmt.Errorf("%s: %w", h.of(), err)
		}
		if err := r.drainOne(ctx, h); err != nil {
			return drained, err
		}
		drained++
	}
	return drained, nil
}
