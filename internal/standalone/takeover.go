package standalone

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/levada-io/levada/api/v1alpha1"
	"github.com/levada-io/levada/internal/dataplane/buffer"
	"github.com/levada-io/levada/internal/dataplane/isb"
	"github.com/levada-io/levada/internal/dataplane/naming"
	"github.com/levada-io/levada/internal/dataplane/ownership"
	"github.com/levada-io/levada/internal/dataplane/topology"
	"github.com/levada-io/levada/internal/dataplane/vertex"
	"github.com/levada-io/levada/internal/manifest"
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

// held is a pipeline that this process has taken over.
type held struct {
	object  manifest.Object
	store   isb.Store
	lease   *ownership.Lease
	shared  bool             // the lease is that of this process among those that share a vertex
	joined  ownership.Joined // what this process is among those
	changes []topology.Change

	stored   *topology.Topology // nil for a store that holds nothing
	wanted   *topology.Topology
	revision uint64 // of the record; 0 if there is none
	settled  isb.Settled

	contents map[string]buffer.Contents // by stream
	read     map[string]bool            // sources that have saved a position
}

func (h *held) of() string { return h.store.Owner().String() }

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

// patient repeats a request of the broker while it is unavailable, for at most a minute.
func patient[T any](ctx context.Context, r *runner, what string, ask func(context.Context) (T, error)) (T, error) {
	open, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	v, err := isb.Retry(open, r.service, r.log, what, ask)
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
	h.store, err = patient(ctx, r, owner.String(), func(ctx context.Context) (isb.Store, error) {
		return r.service.Open(ctx, isb.Request{Owner: owner, Vertices: vertices, Replicas: r.cfg.Replicas, Logger: r.log})
	})
	if err != nil {
		return nil, err
	}
	if h.wanted, err = r.topologyOf(o, h.store.Owner()); err != nil {
		return nil, err
	}
	for i := range h.wanted.Vertices {
		v := &h.wanted.Vertices[i]
		for p := range v.Partitions {
			name, err := patient(ctx, r, owner.String(), func(ctx context.Context) (string, error) { return h.store.Stream(ctx, v.Name, p) })
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

// acquire takes the leases of the pipelines, keeps them, and makes certain that no process runs a vertex of them. owned ends when one is lost.
func (r *runner) acquire(ctx context.Context, lost context.CancelCauseFunc) error {
	self := ownership.Self(cmp.Or(r.cfg.Command, "levada run"), r.cfg.Version)
	var claims errgroup.Group
	for _, h := range r.held {
		claims.Go(func() error {
			return r.claim(ctx, h, self)
		})
	}
	err := claims.Wait()
	r.keepLeases(ctx, lost)
	for _, h := range r.held {
		if err == nil {
			err = r.vacateVertices(ctx, h)
		}
	}
	return err
}

// claim takes the lease of a whole pipeline.
func (r *runner) claim(ctx context.Context, h *held, self ownership.Owner) error {
	lease, err := patient(ctx, r, h.of(), func(context.Context) (*ownership.Lease, error) {
		return ownership.Acquire(ctx, ownership.Config{
			Store: isb.PipelineLease(h.store.State()), Self: self, Sole: r.broker != nil, Logger: r.log,
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
}

// keepLeases renews the leases until everything else is closed, and releases them then. owned ends when one is lost.
func (r *runner) keepLeases(ctx context.Context, lost context.CancelCauseFunc) {
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
		if h.store.Owner().Is(owner) {
			return h.lease
		}
	}
	return nil
}

// topologyOf describes a manifest.
func (r *runner) topologyOf(o manifest.Object, owner naming.Owner) (*topology.Topology, error) {
	t := &topology.Topology{
		Format: topology.Format, Levada: r.cfg.Version, Kind: string(owner.Kind), Namespace: owner.Namespace, Name: owner.Name, Incarnation: owner.Incarnation, Functions: r.cfg.Commands, Replicas: r.cfg.Replicas,
	}
	dir, err := filepath.Abs(r.cfg.Dir)
	if err != nil {
		return nil, err
	}
	t.Dir = dir
	t.Vertices, t.Edges = vertex.Shape(o.Manifest, dir)
	keep := []manifest.Object{o}
	if m, ok := o.Manifest.(*v1alpha1.Pipeline); ok {
		buffers, _, err := r.bufferConfig(m)
		if err != nil {
			return nil, err
		}
		for i := range t.Vertices {
			t.Vertices[i].Memory = t.Vertices[i].Source == nil && buffers.Memory
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
