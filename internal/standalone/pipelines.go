package standalone

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/levada-io/levada/api/v1alpha1"
	"github.com/levada-io/levada/internal/dataplane/buffer"
	"github.com/levada-io/levada/internal/dataplane/engine"
	"github.com/levada-io/levada/internal/dataplane/function"
	"github.com/levada-io/levada/internal/dataplane/isb"
	"github.com/levada-io/levada/internal/dataplane/naming"
	"github.com/levada-io/levada/internal/dataplane/ratelimit"
	"github.com/levada-io/levada/internal/dataplane/shard"
	"github.com/levada-io/levada/internal/dataplane/source"
	"github.com/levada-io/levada/internal/dataplane/vertex"
	"github.com/levada-io/levada/internal/flow"
	"github.com/levada-io/levada/internal/manifest"
	"github.com/levada-io/levada/internal/metrics"
)

// buildAll builds all objects. What it returns must be closed, also with an error.
func (r *runner) buildAll(ctx context.Context) (pipelines []*Pipeline, err error) {
	for _, o := range r.cfg.Objects {
		p, err := r.build(ctx, o)
		if p != nil {
			pipelines = append(pipelines, p)
		}
		if err != nil {
			return pipelines, err
		}
	}
	return pipelines, nil
}

func (r *runner) closeAll(ctx context.Context, pipelines []*Pipeline) (err error) {
	end, cancel := context.WithTimeout(context.WithoutCancel(ctx), r.budget.Close())
	defer cancel()
	for _, p := range pipelines {
		err = errors.Join(err, p.close(end))
	}
	return err
}

// build opens the buffers of a pipeline and builds its vertices. It returns nil for objects that are nothing to run.
func (r *runner) build(ctx context.Context, o manifest.Object) (*Pipeline, error) {
	switch m := o.Manifest.(type) {
	case *v1alpha1.Pipeline:
		return r.pipeline(ctx, m)
	case *v1alpha1.MonoVertex:
		return r.mono(ctx, m)
	case *v1alpha1.ServingPipeline, *v1alpha1.Vertex:
		r.log.Warn("this kind is not run by this version", "kind", o.Kind())
	}
	return nil, nil
}

func (r *runner) env(p *Pipeline, meta metav1.Object) *vertex.Env {
	commands := commandsFor(r.cfg.Commands, p.Name)
	env := &vertex.Env{
		Namespace: p.Namespace, Pipeline: p.Name, Owner: p.store.Owner(), Meta: meta, DeadLetters: p.letters, Metrics: r.metrics.Namespace(p.Namespace),
		Readers: p.readers, Writers: p.writers, Positions: func(v string) source.Positions { return isb.PositionsOf(r.service, p.store.State(), v) },
		Logger: r.log.With("pipeline", p.Name), SocketRoot: r.sockets, Dir: r.cfg.Dir, Data: r.cfg.DataDir, Files: &r.files, Commands: commands, Timeout: r.cfg.FunctionTimeout,
		Secret: r.secrets.get, Values: r.secrets.all, FunctionEnv: r.cfg.FunctionEnv, FunctionUser: r.cfg.FunctionUser, Listen: r.cfg.listenAt(), Stdin: r.cfg.Stdin, Stdout: r.cfg.Stdout,
		Output: func(v string, role function.Role) func(string) {
			return func(line string) { r.cfg.Output(p.Name, v, role, line) }
		},
		Announce: func(v, what, address string) {
			r.log.Info("listening", "pipeline", p.Name, "vertex", v, "for", what, "address", address)
		},
	}
	if r.draining != nil {
		env.Source = r.draining.source
	}
	if h := r.sharing(p); h != nil {
		env.Replica = vertex.Replica{Number: h.joined.Number, First: h.joined.Seat.First, Fence: h.lease.Check}
		env.Rate = func(perSecond uint64) vertex.Rate {
			return ratelimit.New(ratelimit.Config{
				Store: isb.RateLimit(p.store.State(), r.cfg.Vertex), Name: r.cfg.Name + "." + rand.Text(), Rate: perSecond, Logger: env.Logger.With("vertex", r.cfg.Vertex),
			})
		}
		env.Listen.Beside = func(ctx context.Context) bool { return r.hasOthers(ctx, h) }
	}
	if r.cfg.Hosted != nil && r.cfg.Hosted.Files != "" {
		env.Data = r.cfg.Hosted.Files
	}
	return env
}

func (r *runner) prepare(ctx context.Context, meta *metav1.ObjectMeta, kind naming.Kind, vertices []string) (*Pipeline, error) {
	p := &Pipeline{
		Pipeline:   &engine.Pipeline{Namespace: cmp.Or(meta.Namespace, "default"), Name: meta.Name, Kind: string(kind)},
		partitions: map[string][]engine.Input{}, outputs: map[string][]*buffer.Writer{},
	}
	owner, err := naming.New(p.Namespace, kind, p.Name)
	if err != nil {
		return nil, err
	}
	for _, v := range vertices {
		if err := owner.CheckVertex(v); err != nil {
			return nil, err
		}
	}
	open, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	p.store, err = isb.Retry(open, r.service, r.log, "the store of "+owner.String(), func(ctx context.Context) (isb.Store, error) {
		return r.service.Open(ctx, isb.Request{Owner: owner, Vertices: vertices, Replicas: r.cfg.Replicas, Logger: r.log})
	})
	if err != nil {
		return nil, err
	}
	p.letters, err = isb.Retry(open, r.service, r.log, "the dead letters of "+owner.String(), p.store.DeadLetters)
	return p, err
}

func (r *runner) mono(ctx context.Context, m *v1alpha1.MonoVertex) (*Pipeline, error) {
	p, err := r.prepare(ctx, &m.ObjectMeta, naming.MonoVertex, []string{m.Name})
	if err != nil {
		return nil, err
	}
	p.store.LogChanges()
	over := engine.Waiting(r.log, "source and sink of MonoVertex", nil, "pipeline", m.Name)
	plan, err := vertex.PlanMono(m.Name, &m.Spec)
	var v *vertex.Vertex
	if err == nil {
		v, err = vertex.Build(ctx, r.env(p, m), &plan)
	}
	over(err)
	if err != nil {
		return nil, fmt.Errorf("MonoVertex %s: %w", m.Name, err)
	}
	p.Add(&engine.Vertex{Vertex: v})
	return p, p.Whole(nil)
}

func (r *runner) pipeline(ctx context.Context, m *v1alpha1.Pipeline) (*Pipeline, error) {
	var names []string
	for i := range m.Spec.Vertices {
		names = append(names, m.Spec.Vertices[i].Name)
	}
	p, err := r.prepare(ctx, &m.ObjectMeta, naming.Pipeline, names)
	if err != nil {
		return nil, err
	}
	if m.Spec.Lifecycle.DesiredPhase == "Paused" {
		r.log.Warn("pipeline is paused by its manifest (lifecycle.desiredPhase) and does not run", "pipeline", m.Name)
		p.Paused = true
		return p, p.Whole(nil)
	}
	plans, err := vertex.PlanPipeline(&m.Spec)
	if err != nil {
		return p, fmt.Errorf("pipeline %s: %w", m.Name, err)
	}
	build, err := r.plansHere(m.Name, plans)
	if err != nil {
		return p, err
	}
	opened, err := r.openBuffers(ctx, p, m, plans, build)
	if err != nil {
		return p, err
	}
	p.store.LogChanges()
	env := r.env(p, m)
	if r.sharing(p) != nil && build[0].Source == nil {
		env.Shared = opened.opener.Name(build[0].Name, 0)
	}
	for i := range build {
		if err := r.addVertex(ctx, p, env, opened, &build[i]); err != nil {
			return p, err
		}
	}
	if r.cfg.Vertex != "" {
		return p, nil // one vertex does not know when the others have ended
	}
	if err := p.Whole(m.Spec.Edges); err != nil {
		return p, fmt.Errorf("pipeline %s: %w", m.Name, err)
	}
	return p, nil
}

// plansHere are the plans of the vertices that this process runs.
func (r *runner) plansHere(pipeline string, plans []vertex.Plan) ([]vertex.Plan, error) {
	if r.cfg.Vertex == "" {
		return plans, nil
	}
	at := slices.IndexFunc(plans, func(pl vertex.Plan) bool { return pl.Name == r.cfg.Vertex })
	if at < 0 {
		return nil, fmt.Errorf("pipeline %s has no vertex %s", pipeline, r.cfg.Vertex)
	}
	return plans[at : at+1], nil
}

// addVertex builds a vertex of the pipeline.
func (r *runner) addVertex(ctx context.Context, p *Pipeline, env *vertex.Env, opened *opening, plan *vertex.Plan) error {
	over := engine.Waiting(r.log, "source or sink of vertex", nil, "pipeline", p.Name, "vertex", plan.Name)
	v, err := vertex.Build(ctx, env, plan)
	over(err)
	if err != nil {
		return fmt.Errorf("pipeline %s: %w", p.Name, err)
	}
	ev := &engine.Vertex{Vertex: v, Inputs: p.partitions[v.Name], Outputs: p.outputsOf(plan)}
	if env.Shared != "" {
		if ev.Share, err = r.share(ctx, p, plan, opened, func(ctx context.Context, o shard.Ownership, s engine.Shard, fenced func(error)) (engine.Input, error) {
			return opened.shard(ctx, plan, s, o, ev.Share.Reading, fenced)
		}); err != nil {
			return errors.Join(err, v.Close(ctx))
		}
	}
	p.Add(ev)
	return nil
}

// readers are the reading ends of a vertex's buffer, one for each partition, or shard of it.
func (p *Pipeline) readers(vertex string) (all []*buffer.Reader) {
	for _, in := range p.partitions[vertex] {
		all = append(all, in.Partition.Reader)
	}
	return all
}

// writers are the writing ends of a vertex's buffer, one for each partition.
func (p *Pipeline) writers(vertex string) (all []*buffer.Writer) {
	for _, in := range p.partitions[vertex] {
		if !slices.Contains(all, in.Partition.Writer) { // shards have one
			all = append(all, in.Partition.Writer)
		}
	}
	return append(all, p.outputs[vertex]...) // one of the two is empty
}

// outputsOf are the partitions that a vertex writes to and that other processes read.
func (p *Pipeline) outputsOf(pl *vertex.Plan) (all []*buffer.Writer) {
	for _, e := range pl.Edges {
		for _, w := range p.outputs[e.To] {
			if !slices.Contains(all, w) { // two edges may lead to one vertex
				all = append(all, w)
			}
		}
	}
	return all
}

// opening is what partitions are opened with.
type opening struct {
	r       *runner
	p       *Pipeline
	opener  *isb.Opener
	options func(vertex.InputPlan) buffer.Options
	// shards are how many shards the partitions have of the vertex that this process shares, by number.
	shards []int
}

// sharing is what this process is among those that share the vertex which it runs; nil if it shares none.
func (r *runner) sharing(p *Pipeline) *held {
	at := slices.IndexFunc(r.held, func(h *held) bool { return h.shared && h.store.Owner().Is(p.store.Owner()) })
	if at < 0 {
		return nil
	}
	return r.held[at]
}

// openBuffers opens the partitions that the vertices in build read, and those that they write to. Of a vertex that this process shares with others, partitions are opened
// when their shards are taken.
func (r *runner) openBuffers(ctx context.Context, p *Pipeline, m *v1alpha1.Pipeline, all, build []vertex.Plan) (*opening, error) {
	store, inFlight, err := r.bufferConfig(m)
	if err != nil {
		return nil, fmt.Errorf("pipeline %s: %w", m.Name, err)
	}
	compression := flow.None
	if b := m.Spec.InterStepBuffer; b != nil && b.Compression != nil {
		if compression, err = flow.ParseCompression(string(b.Compression.Type)); err != nil {
			return nil, fmt.Errorf("pipeline %s: %w", m.Name, err)
		}
	}
	if lease := r.leaseOf(p.store.Owner()); lease != nil {
		store.Fence = lease.Check
	}
	o := &isb.Opener{Service: r.service, Store: p.store, Settings: store, Shards: r.shardsOf(m, all), Sole: r.broker != nil, Logger: r.log}
	options := func(in vertex.InputPlan) buffer.Options {
		return buffer.Options{
			MaxLength: in.MaxLength, UsageLimit: in.UsageLimit, Compression: compression, MaxInFlight: inFlight, Shared: r.cfg.Vertex != "", Logger: r.log,
		}
	}
	opened := &opening{r: r, p: p, opener: o, options: options}
	if r.sharing(p) != nil {
		for n := range build[0].Input.Partitions {
			shards, err := o.Create(ctx, build[0].Name, n, r.loss(p, build[0].Name, r.metrics.Namespace(p.Namespace).Buffer(o.Name(build[0].Name, n))))
			if err != nil {
				return nil, fmt.Errorf("pipeline %s, vertex %s: %w", p.Name, build[0].Name, err)
			}
			opened.shards = append(opened.shards, shards)
		}
		return opened, r.openOutputs(ctx, o, p, all, build, options)
	}
	// Those of the vertices themselves come first: two vertices that write to each other would wait for each other's.
	if err := r.openInputs(ctx, o, p, build, options); err != nil {
		return nil, err
	}
	return opened, r.openOutputs(ctx, o, p, all, build, options)
}

// shardsOf says how many shards a partition gets that this process creates. Only processes of single vertices share partitions.
func (r *runner) shardsOf(m *v1alpha1.Pipeline, plans []vertex.Plan) func(vertex string) int {
	return func(name string) int {
		at := slices.IndexFunc(plans, func(pl vertex.Plan) bool { return pl.Name == name })
		if r.cfg.Vertex == "" || at < 0 {
			return 1
		}
		return plans[at].Shards(m)
	}
}

// openInputs opens the partitions that vertices of this process read.
func (r *runner) openInputs(ctx context.Context, o *isb.Opener, p *Pipeline, build []vertex.Plan, options func(vertex.InputPlan) buffer.Options) error {
	for i := range build {
		name, in := build[i].Name, build[i].Input
		for n := range in.Partitions { // a source has none
			parts, err := r.partition(ctx, o, p, name, n, options(in))
			if err != nil {
				return fmt.Errorf("pipeline %s, vertex %s: %w", p.Name, name, err)
			}
			p.partitions[name] = append(p.partitions[name], parts...)
		}
	}
	return nil
}

// openOutputs opens the partitions that vertices of this process write to and that others read.
func (r *runner) openOutputs(ctx context.Context, o *isb.Opener, p *Pipeline, all, build []vertex.Plan, options func(vertex.InputPlan) buffer.Options) error {
	for i := range all {
		in := all[i].Input
		if len(p.partitions[all[i].Name]) > 0 || !slices.ContainsFunc(build, func(pl vertex.Plan) bool { return pl.WritesTo(all[i].Name) }) {
			continue
		}
		for n := range in.Partitions {
			w, err := r.output(ctx, o, p, all[i].Name, n, options(in))
			if err != nil {
				return fmt.Errorf("pipeline %s: %w", p.Name, err)
			}
			p.outputs[all[i].Name] = append(p.outputs[all[i].Name], w)
		}
	}
	return nil
}

// partition opens a partition that a vertex of this process reads.
func (r *runner) partition(ctx context.Context, o *isb.Opener, p *Pipeline, vertex string, n int, opt buffer.Options) ([]engine.Input, error) {
	shards := 1
	opt.Beside = func() int { return shards }
	return r.input(o, p, vertex, n, opt, func(opt buffer.Options, lost func(buffer.Loss)) ([]*buffer.Partition, error) {
		all, err := o.Partition(ctx, vertex, n, opt, lost)
		shards = len(all) // before any of them runs
		return all, err
	})
}

// shard opens a shard of a partition for a start of it. reading is how many this process reads.
func (o *opening) shard(ctx context.Context, pl *vertex.Plan, s engine.Shard, start shard.Ownership, reading func() int, fenced func(error)) (engine.Input, error) {
	opt := o.options(pl.Input)
	opt.Beside = reading
	in, err := o.r.input(o.opener, o.p, pl.Name, s.Partition, opt, func(opt buffer.Options, lost func(buffer.Loss)) ([]*buffer.Partition, error) {
		p, err := o.opener.Shard(ctx, pl.Name, s.Partition, s.Shard, start, fenced, opt, lost)
		return []*buffer.Partition{p}, err
	})
	if err != nil {
		return engine.Input{}, err
	}
	return in[0], nil
}

func (r *runner) input(o *isb.Opener, p *Pipeline, vertex string, n int, opt buffer.Options, open func(buffer.Options, func(buffer.Loss)) ([]*buffer.Partition, error)) (in []engine.Input, err error) {
	name := o.Name(vertex, n)
	m := r.metrics.Namespace(p.Namespace).Buffer(name)
	opt.Metrics = m
	opt.OnCorrupt = func(seq uint64, data []byte, err error) error { return r.corrupt(name, seq, data, err) }
	parts, err := open(opt, r.loss(p, vertex, m))
	if err != nil {
		return in, err
	}
	for _, part := range parts {
		if part.InMemory() {
			r.inMemory.Store(true)
		}
		in = append(in, engine.Input{Partition: part, Metrics: m})
	}
	return in, nil
}

// loss reports what was lost with a stream in memory.
func (r *runner) loss(p *Pipeline, vertex string, m *metrics.Buffer) func(buffer.Loss) {
	return func(l buffer.Loss) {
		l.Log(r.log.With("pipeline", p.Name, "vertex", vertex))
		m.LostMessages(l.Messages)
	}
}

// output opens a partition that another process reads.
func (r *runner) output(ctx context.Context, o *isb.Opener, p *Pipeline, vertex string, n int, opt buffer.Options) (*buffer.Writer, error) {
	opt.Metrics = r.metrics.Namespace(p.Namespace).Buffer(o.Name(vertex, n))
	return o.Writer(ctx, vertex, n, opt, func(reason error) func(error) {
		return engine.Waiting(r.log, "buffer of a vertex to be opened by the process that runs it", reason.Error, "pipeline", p.Name, "vertex", vertex)
	})
}

// corrupt decides what to do about stored blocks that neither the stream nor any replica of it has as they were written.
func (r *runner) corrupt(name string, seq uint64, data []byte, err error) error {
	if !r.cfg.SkipCorrupt {
		return fmt.Errorf("%w. Nothing was removed. Restore the broker's store from a copy that has these blocks, or start the servers that have them. "+
			"If there is no such copy, --skip-corrupt goes on without them: it skips only what cannot be read anywhere, and keeps damaged bytes in %s",
			err, filepath.Join(r.cfg.DataDir, "corrupt"))
	}
	r.log.Error("stored data is damaged and skipped", "buffer", name, "seq", seq, "error", err)
	if len(data) == 0 {
		return nil
	}
	dir := filepath.Join(r.cfg.DataDir, "corrupt")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, fmt.Sprintf("%s-%d.block", name, seq)), data, 0o600)
}
