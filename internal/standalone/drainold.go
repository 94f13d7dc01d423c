package standalone

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/levada-io/levada/api/v1alpha1"
	"github.com/levada-io/levada/internal/dataplane/engine"
	"github.com/levada-io/levada/internal/dataplane/isb"
	"github.com/levada-io/levada/internal/dataplane/source"
	"github.com/levada-io/levada/internal/dataplane/topology"
	"github.com/levada-io/levada/internal/flow"
	"github.com/levada-io/levada/internal/manifest"
	"github.com/levada-io/levada/internal/metrics"
)

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

// drainOne runs one pipeline as it was recorded. What was drained is noted, so that the next start need not do it again.
func (r *runner) drainOne(ctx context.Context, h *held) error {
	old, err := r.asRecorded(h)
	if err != nil {
		return err
	}
	defer old.budget.Stop()
	defer context.AfterFunc(ctx, old.budget.Begin)()
	if err := old.draining.reach(ctx, r, h); err != nil {
		return err
	}
	if h.settled.Settled {
		// The sources stay settled, and what the buffers' readers write is not from here on.
		s := isb.Settled{Settled: true, Except: slices.Clone(h.settled.Except)}
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
	if err := old.runDraining(ctx); err != nil {
		return fmt.Errorf("%s: --drain-old: what is in flight cannot be finished with the stored topology: %w", h.of(), err)
	}
	if ctx.Err() != nil || old.cutShort() {
		return context.Cause(ctx) // it goes on at the next start
	}
	s := isb.Settled{Settled: true}
	for i := range h.stored.Vertices {
		if v := &h.stored.Vertices[i]; v.Source != nil && !old.draining.isSettled(v.Name) {
			s.Except = append(s.Except, v.Name)
		}
	}
	r.log.Info("drained", "owner", h.of(), "took", time.Since(begun).Round(time.Millisecond))
	return r.note(ctx, h, s)
}

// runDraining builds the pipelines, runs them to their end, and closes them.
func (r *runner) runDraining(ctx context.Context) error {
	pipelines, err := r.buildAll(ctx)
	if err == nil {
		watching, stop := context.WithCancel(ctx)
		var watch sync.WaitGroup
		watch.Go(func() { r.sayProgress(watching, pipelines) })
		err = r.run(ctx, pipelines)
		stop()
		watch.Wait()
	}
	return errors.Join(err, r.closeAll(ctx, pipelines))
}

// asRecorded is a runner of a pipeline as it was: the manifest, the directory, the replicas and the functions are those of the record. What the command line says about
// functions wins, since programs may have moved.
func (r *runner) asRecorded(h *held) (*runner, error) {
	if !h.drainable() {
		return nil, &refusal{fmt.Sprintf("%s: --drain-old: the record of the store does not say how the pipeline was run. Run its former manifest once more until nothing is pending", h.of())}
	}
	objects, problems := manifest.Decode("the stored manifest of "+h.of(), []byte(h.stored.Manifest))
	if problems.HasErrors() || len(objects) == 0 {
		return nil, fmt.Errorf("%s: --drain-old: the stored manifest cannot be read: %v", h.of(), problems)
	}
	for _, o := range objects {
		v1alpha1.SetDefaults(o.Manifest)
	}
	old := &runner{
		cfg: r.cfg, log: r.log.With("draining", true), metrics: metrics.New(r.cfg.Version), broker: r.broker, service: r.service, sockets: r.sockets, secrets: r.secrets,
		owned: r.owned, held: []*held{h}, draining: &draining{h: h, settled: map[string]bool{}},
		budget: engine.NewBudget(r.cfg.DrainTimeout), // which begins again for the run after this one
	}
	old.cfg.Objects, old.cfg.Dir, old.cfg.Started, old.cfg.Listen = append(objects, secretsOf(r.cfg.Objects)...), h.stored.Dir, nil, "127.0.0.1:0"
	if r.cfg.Replicas > 0 {
		old.cfg.Replicas = max(r.cfg.Replicas, h.stored.Replicas)
	}
	old.cfg.Commands = maps.Clone(h.stored.Functions)
	if old.cfg.Commands == nil {
		old.cfg.Commands = map[string]string{}
	}
	maps.Copy(old.cfg.Commands, r.cfg.Commands)
	return old, nil
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

// secretsOf are the objects that pipelines refer to: values of today, also for the pipeline as it was.
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
	settled map[string]bool // source vertices that have given all that they gave before; it only grows
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

// done notes that a source has given again all that it gave before.
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
		return endedSource{}, nil // what it redelivers cannot be distinguished from what is new
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
	last   *source.Batch // that was given; nil before the first
}

// reached is how far the next buffers have what the lane of a batch gave. What is above it was given by nobody before.
func (s *settling) reached(b *source.Batch) uint64 {
	return s.d.lanes[flow.SourceLane(s.vertex, b.Partition, s.d.h.store.Owner().Incarnation)]
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

func (endedSource) Read(context.Context, int) (*source.Batch, error) { return nil, io.EOF }
func (endedSource) Ack(context.Context, *source.Batch) error         { return nil }
func (endedSource) Pending(context.Context) (int64, error)           { return 0, nil }
func (endedSource) Close(context.Context) error                      { return nil }
