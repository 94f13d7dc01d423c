package standalone

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/levada-io/levada/api/v1alpha1"
	"github.com/levada-io/levada/internal/dataplane/isb"
	"github.com/levada-io/levada/internal/dataplane/ownership"
	"github.com/levada-io/levada/internal/manifest"
)

// vertexMain runs one vertex of a pipeline against a broker elsewhere. Each step is safe to be killed after:
//
//  1. take the lease of the vertex, or wait for it: a second process of the vertex takes over when the first one has ended
//  2. make certain that no process runs the whole pipeline
//  3. compare the manifest with the stored topology, which is the same for all processes of the pipeline (agree)
//  4. open the buffers that the vertex reads, and wait for those that it writes to
//  5. run the vertex
//
// The lease is released last, when everything is closed.
func (r *runner) vertexMain(ctx context.Context) error {
	defer r.closeInReverse()
	front, err := r.openFront("starting")
	if err != nil {
		return err
	}
	if err := r.connect(ctx); err != nil {
		return ignoreEnd(ctx, err)
	}
	owned, lost := context.WithCancelCause(context.WithoutCancel(ctx))
	r.owned = owned
	r.close = append(r.close, func() { lost(nil) })
	o, h, err := r.wantedVertex(ctx)
	if err != nil {
		return ignoreEnd(ctx, err)
	}
	if h == nil {
		front.wait("the pipeline is paused by its manifest")
		r.log.Warn("pipeline is paused by its manifest (lifecycle.desiredPhase), vertex does not run", "pipeline", o.Manifest.GetName(), "vertex", r.cfg.Vertex)
		<-ctx.Done()
		return nil
	}
	front.wait("another process runs the vertex")
	if err := r.acquireVertex(ctx, h, lost); err != nil {
		return ignoreEnd(ctx, err)
	}
	front.wait("starting")
	if err := r.openDirs(); err != nil {
		return err
	}
	if err := r.agree(ctx, h); err != nil {
		return ignoreEnd(ctx, err)
	}
	p, err := r.build(ctx, o)
	if p == nil {
		return ignoreEnd(ctx, err)
	}
	pipelines := []*Pipeline{p}
	if err == nil {
		r.mu.Lock()
		r.pipelines = pipelines
		r.mu.Unlock()
		process := r.newProcess(pipelines)
		front.serve(process)
		err = r.runProcess(ctx, process, front.address, pipelines)
	}
	return errors.Join(ignoreEnd(ctx, err), r.closeAll(ctx, pipelines))
}

// wantedVertex returns the manifest that runs, with what is wanted of it; nil for a pipeline that is paused.
func (r *runner) wantedVertex(ctx context.Context) (o manifest.Object, h *held, err error) {
	for _, o = range r.cfg.Objects {
		switch o.Manifest.(type) {
		case *v1alpha1.Pipeline, *v1alpha1.MonoVertex:
			h, err = r.wanted(ctx, o)
			return o, h, err
		}
	}
	return o, nil, errors.New("there is no Pipeline and no MonoVertex to run in these files")
}

// vertexPoll is how often the lease of a vertex is tried that another process holds.
const vertexPoll = 250 * time.Millisecond

// acquireVertex takes the lease of the vertex, and waits for as long as another process holds it. The lease is kept until everything else is closed.
func (r *runner) acquireVertex(ctx context.Context, h *held, lost context.CancelCauseFunc) error {
	waiting := false
	say := func(owner ownership.Owner) {
		if !waiting {
			waiting = true
			r.log.Info("vertex is run by another process, waiting until that ends or its lease expires", "owner", h.of(), "vertex", r.cfg.Vertex, "process", owner.String())
		}
	}
	for h.lease == nil {
		lease, err := patient(ctx, r, h.of(), func(context.Context) (*ownership.Lease, error) {
			return ownership.Acquire(ctx, ownership.Config{
				Store: isb.VertexLease(h.store.State(), r.cfg.Vertex), Self: r.self(h), Logger: r.log,
				Waiting: func(last ownership.Owner, _ time.Duration) { say(last) },
			})
		})
		owned, taken := errors.AsType[*ownership.OwnedError](err)
		switch {
		case err == nil:
			h.lease = lease
			continue
		case !taken:
			return err
		}
		say(owned.Owner)
		select {
		case <-time.After(vertexPoll):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	if waiting {
		r.log.Info("vertex taken over", "owner", h.of(), "vertex", r.cfg.Vertex)
	}
	r.held = append(r.held, h)
	r.keepLeases(ctx, lost)
	return nil
}

// self is this process as the owner of its vertex.
func (r *runner) self(h *held) ownership.Owner {
	self := ownership.Self(r.cfg.Command, r.cfg.Version)
	self.Shape = shapeOf(h.wanted)
	return self
}

// vacateVertices makes certain that no process runs a single vertex of a pipeline whose lease this process has.
func (r *runner) vacateVertices(ctx context.Context, h *held) error {
	if r.broker != nil {
		return nil // nobody else reaches a broker in this process
	}
	names, err := patient(ctx, r, "keys of "+h.store.State().Name(), func(ctx context.Context) (map[string]bool, error) { return isb.LeasedVertices(ctx, h.store.State()) })
	if err != nil {
		return err
	}
	if h.wanted != nil {
		for i := range h.wanted.Vertices {
			names[h.wanted.Vertices[i].Name] = true
		}
	}
	for name := range names {
		err := r.vacate(ctx, h, isb.VertexLease(h.store.State(), name), ownership.Self(r.cfg.Command, r.cfg.Version))
		if owned, ok := errors.AsType[*ownership.OwnedError](err); ok {
			return &refusal{fmt.Sprintf("%s: vertex %s is run by %s. A whole pipeline cannot run beside processes of its vertices: they would take each other's messages. "+
				"Stop those first, or run the vertices with levada vertex; nothing was changed", h.of(), name, owned.Owner)}
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// vacate makes certain that no process holds a lease.
func (r *runner) vacate(ctx context.Context, h *held, lease ownership.Store, self ownership.Owner) error {
	_, err := patient(ctx, r, h.of(), func(context.Context) (struct{}, error) {
		return struct{}{}, ownership.Vacate(ctx, ownership.Config{
			Store: lease, Self: self, Logger: r.log,
			Waiting: func(last ownership.Owner, atMost time.Duration) {
				r.log.Info("waiting for the lease of the last owner to expire", "owner", h.of(), "last", last.String(), "at most", atMost.Round(time.Second))
			},
		})
	})
	return err
}
