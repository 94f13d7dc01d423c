package standalone

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/levada-io/levada/api/v1alpha1"
	"github.com/levada-io/levada/internal/dataplane/engine"
	"github.com/levada-io/levada/internal/dataplane/isb"
	"github.com/levada-io/levada/internal/dataplane/ownership"
	"github.com/levada-io/levada/internal/dataplane/shard"
	"github.com/levada-io/levada/internal/dataplane/vertex"
	"github.com/levada-io/levada/internal/manifest"
)

// vertexMain runs one vertex of a pipeline against a broker elsewhere, alone or beside other processes of the vertex. Each step is safe to be killed after:
//
//  1. Join the processes that share the vertex. A vertex that cannot be shared, as one that reads a file, has a lease: a second process waits for it, and takes over when the
//     first one has ended.
//  2. make certain that no process runs the whole pipeline
//  3. compare the manifest with the stored topology, which is the same for all processes of the pipeline (agree)
//  4. wait for the buffers that the vertex writes to. Those that it reads are opened here, or when a shard of them is taken (engine.Share)
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
	if err := r.takeVertex(ctx, o, h, front, lost); err != nil {
		return ignoreEnd(ctx, err)
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

// takeVertex takes the data directory and the lease: that of this process among those that share the vertex, or that of the vertex. A process that stands by for another leaves
// the data directory to that one.
func (r *runner) takeVertex(ctx context.Context, o manifest.Object, h *held, front *front, lost context.CancelCauseFunc) error {
	shared, err := r.shareable(o, h)
	if err != nil {
		return err
	}
	if shared {
		if err := r.openDirs(); err != nil {
			return err
		}
	}
	front.wait("another process runs the vertex")
	take := r.acquireVertex
	if shared {
		take = r.joinVertex
	}
	if err := take(ctx, h, lost); err != nil {
		return err
	}
	front.wait("starting")
	if shared {
		return nil
	}
	return r.openDirs()
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

// shareable reports whether several processes can run the vertex at once.
func (r *runner) shareable(o manifest.Object, h *held) (bool, error) {
	switch m := o.Manifest.(type) {
	case *v1alpha1.Pipeline:
		plans, err := vertex.PlanPipeline(&m.Spec)
		if err != nil {
			return false, fmt.Errorf("pipeline %s: %w", m.Name, err)
		}
		at := slices.IndexFunc(plans, func(pl vertex.Plan) bool { return pl.Name == r.cfg.Vertex })
		if at < 0 || !plans[at].Shareable() {
			return false, nil
		}
		_, shards := h.store.(isb.Sharer)
		return shards || plans[at].Source != nil, nil
	case *v1alpha1.MonoVertex:
		plan, err := vertex.PlanMono(m.Name, &m.Spec)
		if err != nil {
			return false, fmt.Errorf("MonoVertex %s: %w", m.Name, err)
		}
		return plan.Shareable(), nil
	}
	return false, nil
}

// waitForVertex calls try until it does not find another process in the way, and logs one line if it waits.
func (r *runner) waitForVertex(ctx context.Context, h *held, try func(waiting func(ownership.Owner, time.Duration)) error) error {
	waiting := false
	say := func(owner ownership.Owner, _ time.Duration) {
		if !waiting {
			waiting = true
			r.log.Info("vertex is run by another process, waiting until that ends or its lease expires", "owner", h.of(), "vertex", r.cfg.Vertex, "process", owner.String())
		}
	}
	for {
		err := try(say)
		owned, taken := errors.AsType[*ownership.OwnedError](err)
		if err == nil && waiting {
			r.log.Info("vertex taken over", "owner", h.of(), "vertex", r.cfg.Vertex)
		}
		if !taken {
			return err
		}
		say(owned.Owner, 0)
		select {
		case <-time.After(vertexPoll):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// acquireVertex takes the lease of a vertex for this process alone, and waits for as long as others run it. The lease is kept until everything else is closed.
func (r *runner) acquireVertex(ctx context.Context, h *held, lost context.CancelCauseFunc) error {
	store, self := isb.VertexLease(h.store.State(), r.cfg.Vertex), r.self(h)
	err := r.waitForVertex(ctx, h, func(waiting func(ownership.Owner, time.Duration)) error {
		lease, err := patient(ctx, r, h.of(), func(context.Context) (*ownership.Lease, error) {
			return ownership.Acquire(ctx, ownership.Config{Store: store, Self: self, Logger: r.log, Waiting: waiting})
		})
		if err != nil {
			return err
		}
		for _, process := range lease.Processes() { // with an earlier manifest the vertex was shared
			if err := r.vacate(ctx, h, isb.ProcessLease(h.store.State(), r.cfg.Vertex, process), self); err != nil {
				return errors.Join(err, lease.Release(context.WithoutCancel(ctx)))
			}
		}
		h.lease = lease
		return nil
	})
	if err != nil {
		return err
	}
	r.held = append(r.held, h)
	r.keepLeases(ctx, lost)
	return nil
}

// joinVertex makes this process one of those that share the vertex, and waits while a process has it alone. The lease of its name says to others that it runs, and is kept
// until everything else is closed. A process of the same name that runs is replaced.
func (r *runner) joinVertex(ctx context.Context, h *held, lost context.CancelCauseFunc) error {
	state, self := h.store.State(), r.self(h)
	err := r.waitForVertex(ctx, h, func(waiting func(ownership.Owner, time.Duration)) (err error) {
		h.joined, err = patient(ctx, r, h.of(), func(context.Context) (ownership.Joined, error) {
			return ownership.Join(ctx, ownership.Config{Store: isb.VertexLease(state, r.cfg.Vertex), Self: self, Logger: r.log, Waiting: waiting}, r.cfg.Name,
				func(process string) bool { return released(ctx, isb.ProcessLease(state, r.cfg.Vertex, process)) })
		})
		return err
	})
	if err != nil {
		return err
	}
	h.lease, err = patient(ctx, r, h.of(), func(context.Context) (*ownership.Lease, error) {
		return ownership.Acquire(ctx, ownership.Config{Store: isb.ProcessLease(state, r.cfg.Vertex, r.cfg.Name), Self: self, Force: true, Logger: r.log})
	})
	if err != nil {
		return err
	}
	h.shared = true
	r.log.Info("process runs the vertex beside others", "owner", h.of(), "vertex", r.cfg.Vertex, "name", r.cfg.Name, "number", h.joined.Number, "others", len(h.joined.Others))
	r.held = append(r.held, h)
	r.keepLeases(ctx, lost)
	r.expireOthers(ctx, h)
	return nil
}

// expireOthers releases the leases of processes that have died and not come back, once they have expired: their numbers are free then, for those that join later.
func (r *runner) expireOthers(ctx context.Context, h *held) {
	looking, stop := context.WithCancel(ctx)
	var wait sync.WaitGroup
	for _, process := range h.joined.Others {
		wait.Go(func() {
			store := isb.ProcessLease(h.store.State(), r.cfg.Vertex, process)
			err := ownership.Vacate(looking, ownership.Config{Store: store, Self: r.self(h), Logger: r.log})
			if err != nil && looking.Err() == nil && !errors.Is(err, ownership.ErrOwned) {
				r.log.Debug("lease of another process not examined", "process", process, "error", err)
			}
		})
	}
	r.close = append(r.close, func() {
		stop()
		wait.Wait()
	})
}

// hasOthers reports whether other processes share the vertex. They may have joined after this one.
func (r *runner) hasOthers(ctx context.Context, h *held) bool {
	last, _, _, err := ownership.Last(ctx, isb.VertexLease(h.store.State(), r.cfg.Vertex))
	return err == nil && slices.ContainsFunc(last.Processes, func(name string) bool { return name != r.cfg.Name })
}

// released reports whether the holder of a lease has released it, or is known to have ended. A record that is not there is that of a process which is about to write it.
func released(ctx context.Context, store ownership.Store) bool {
	last, revision, _, err := ownership.Last(ctx, store)
	return err == nil && revision != 0 && ownership.Gone(last)
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
		err := r.vacateVertex(ctx, h, name, ownership.Self(r.cfg.Command, r.cfg.Version))
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
	return r.vacating(ctx, h, func(cfg ownership.Config) error {
		cfg.Store, cfg.Self = lease, self
		return ownership.Vacate(ctx, cfg)
	})
}

// vacateVertex makes certain that no process runs a vertex, alone or beside others.
func (r *runner) vacateVertex(ctx context.Context, h *held, name string, self ownership.Owner) error {
	return r.vacating(ctx, h, func(cfg ownership.Config) error {
		cfg.Store, cfg.Self = isb.VertexLease(h.store.State(), name), self
		return ownership.VacateAll(ctx, cfg, func(process string) ownership.Store { return isb.ProcessLease(h.store.State(), name, process) })
	})
}

func (r *runner) vacating(ctx context.Context, h *held, vacate func(ownership.Config) error) error {
	_, err := patient(ctx, r, h.of(), func(context.Context) (struct{}, error) {
		return struct{}{}, vacate(ownership.Config{
			Logger: r.log,
			Waiting: func(last ownership.Owner, atMost time.Duration) {
				r.log.Info("waiting for the lease of the last owner to expire", "owner", h.of(), "last", last.String(), "at most", atMost.Round(time.Second))
			},
		})
	})
	return err
}

// share is how this process shares a vertex with others.
func (r *runner) share(ctx context.Context, p *Pipeline, plan *vertex.Plan, opened *opening, open func(context.Context, shard.Ownership, engine.Shard, func(error)) (engine.Input, error)) (*engine.Share, error) {
	sharer, ok := p.store.(isb.Sharer)
	if !ok {
		return nil, fmt.Errorf("vertex %s: its buffer service does not let several processes share a vertex", plan.Name)
	}
	store, err := patient(ctx, r, "the leases of shards of "+p.store.Owner().String(), sharer.Shards)
	if err != nil {
		return nil, err
	}
	s := &engine.Share{
		Shards: shard.Config{
			Store: store, Group: isb.ShardGroup(plan.Name), Name: r.cfg.Name, Incarnation: rand.Text(), Timing: shard.Timing{Finish: r.cfg.DrainTimeout},
			Logger: r.log.With("pipeline", p.Name),
		},
		ByName: map[string]engine.Shard{}, Open: open, Logger: r.log.With("pipeline", p.Name),
	}
	for n, of := range opened.shards {
		for i := range of {
			one := engine.Shard{Partition: n, Shard: i, Of: of}
			s.Shards.Shards = append(s.Shards.Shards, one.Name())
			s.ByName[one.Name()] = one
		}
	}
	return s, nil
}
