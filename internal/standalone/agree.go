package standalone

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/levada-io/levada/internal/dataplane/isb"
	"github.com/levada-io/levada/internal/dataplane/ownership"
	"github.com/levada-io/levada/internal/dataplane/topology"
)

// shapeOf identifies a topology: two processes of one pipeline must agree on it.
func shapeOf(t *topology.Topology) string {
	b, err := json.Marshal(struct {
		Vertices []topology.Vertex
		Edges    []topology.Edge
	}{t.Vertices, t.Edges})
	if err != nil {
		panic(err) // plain structs
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:8])
}

// agree makes certain that the stored topology is the one of this process's manifest. The first process of a pipeline records it. A process with another manifest
// is refused as levada run refuses it, and also for as long as processes with the stored topology run.
//
// A process that changes the record holds the lease of the whole pipeline meanwhile, and has looked at the leases of all vertices after taking it. A process that
// compares takes the lease of its vertex first and looks at that of the pipeline then. So either the change is seen by the comparison, or the process by the change.
func (r *runner) agree(ctx context.Context, h *held) error {
	self := r.self(h)
	for {
		if err := r.vacatePipeline(ctx, h, self); err != nil {
			return err
		}
		if err := r.load(ctx, h); err != nil {
			return fmt.Errorf("%s: %w", h.of(), err)
		}
		if h.stored != nil && shapeOf(h.stored) == self.Shape {
			return r.unsettle(ctx, h)
		}
		if done, err := r.recordTopology(ctx, h, self); done || err != nil {
			return err
		}
	}
}

// unsettle notes that messages may be in flight.
func (r *runner) unsettle(ctx context.Context, h *held) error {
	if !h.settled.Settled {
		return nil
	}
	return r.note(ctx, h, isb.Settled{})
}

// recordingFor is how long another process may take to record the topology.
const recordingFor = time.Minute

// vacatePipeline makes certain that no process runs the whole pipeline. It waits for one that records the topology.
func (r *runner) vacatePipeline(ctx context.Context, h *held, self ownership.Owner) error {
	for begun := time.Now(); ; {
		err := r.vacate(ctx, h, isb.PipelineLease(h.store.State()), self)
		owned, ok := errors.AsType[*ownership.OwnedError](err)
		if !ok {
			return err
		}
		if owned.Owner.Shape == "" || time.Since(begun) > recordingFor {
			return &refusal{fmt.Sprintf("%s: %v. A vertex cannot run beside a process of the whole pipeline: they would take each other's messages. "+
				"Stop that process first, or give this pipeline another name; nothing was changed", h.of(), owned)}
		}
		select {
		case <-time.After(vertexPoll):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// recordTopology writes the topology of this process. It returns false if another process has the lease of the pipeline: the caller looks again.
func (r *runner) recordTopology(ctx context.Context, h *held, self ownership.Owner) (done bool, err error) {
	lease, err := patient(ctx, r, h.of(), func(context.Context) (*ownership.Lease, error) {
		return ownership.Acquire(ctx, ownership.Config{Store: isb.PipelineLease(h.store.State()), Self: self, Logger: r.log})
	})
	if errors.Is(err, ownership.ErrOwned) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	renewing, stop := context.WithCancel(context.WithoutCancel(ctx))
	var renewal sync.WaitGroup
	renewal.Go(func() { _ = lease.Run(renewing) }) // what it says is asked below
	defer func() {
		stop()
		renewal.Wait()
		if e := lease.Release(context.WithoutCancel(ctx)); e != nil {
			r.log.Warn("lease not released, it expires", "owner", h.of(), "error", e)
		}
	}()
	if err := r.load(ctx, h); err != nil {
		return false, fmt.Errorf("%s: %w", h.of(), err)
	}
	if h.stored != nil && shapeOf(h.stored) == self.Shape {
		return true, r.unsettle(ctx, h)
	}
	if err := r.compare(ctx, h); err != nil {
		return false, fmt.Errorf("%s: %w", h.of(), err)
	}
	if len(topology.Unsafe(h.changes)) > 0 {
		return false, r.refuse([]*held{h})
	}
	if h.stored != nil {
		if err := r.noOtherShape(ctx, h, self); err != nil {
			return false, err
		}
	}
	if err := lease.Check(ctx); err != nil {
		return false, err
	}
	return true, r.accept(ctx, h)
}

// noOtherShape refuses to change the topology under processes that run with the stored one.
func (r *runner) noOtherShape(ctx context.Context, h *held, self ownership.Owner) error {
	names, err := patient(ctx, r, "keys of "+h.store.State().Name(), func(ctx context.Context) (map[string]bool, error) { return isb.LeasedVertices(ctx, h.store.State()) })
	if err != nil {
		return err
	}
	for _, t := range []*topology.Topology{h.stored, h.wanted} {
		for i := range t.Vertices {
			names[t.Vertices[i].Name] = true
		}
	}
	if !h.shared {
		delete(names, r.cfg.Vertex) // the lease of this process
	}
	for name := range names {
		state := h.store.State()
		last, err := r.sameShape(ctx, h, name, isb.VertexLease(state, name), self)
		if err != nil {
			return err
		}
		for _, process := range last.Processes {
			if h.shared && name == r.cfg.Vertex && process == r.cfg.Name {
				continue
			}
			if _, err := r.sameShape(ctx, h, name, isb.ProcessLease(state, name, process), self); err != nil {
				return err
			}
		}
	}
	return nil
}

// sameShape refuses if a process with another topology holds a lease of a vertex. It returns the record of the lease.
func (r *runner) sameShape(ctx context.Context, h *held, vertex string, store ownership.Store, self ownership.Owner) (last ownership.Owner, err error) {
	last, err = patient(ctx, r, h.of(), func(ctx context.Context) (ownership.Owner, error) {
		last, _, _, err := ownership.Last(ctx, store)
		return last, err
	})
	if err != nil {
		return last, err
	}
	if !last.Released && last.Shape == self.Shape {
		return last, nil // it waits for the same topology
	}
	err = r.vacate(ctx, h, store, self)
	owned, ok := errors.AsType[*ownership.OwnedError](err)
	if ok && owned.Owner.Shape != self.Shape {
		return last, &refusal{fmt.Sprintf("%s: the manifest differs from the stored topology, with which vertex %s is run by %s: %s. All processes of a pipeline need the same manifest. "+
			"Stop all of them before you start the first with a changed one; nothing was changed", h.of(), vertex, owned.Owner, h.changes[0])}
	}
	if ok {
		return last, nil
	}
	return last, err
}
