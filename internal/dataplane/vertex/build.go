package vertex

import (
	"context"
	"time"

	"golang.org/x/time/rate"

	"github.com/levada-io/levada/internal/dataplane/buffer"
	"github.com/levada-io/levada/internal/dataplane/forward"
	"github.com/levada-io/levada/internal/metrics"
)

// limits of a vertex that runs.
type limits struct {
	batch, concurrency int           // messages; see Limits
	timeout            time.Duration // of a read
	rate               forward.Rate  // of all loops of the vertex together; nil for no limit
}

func (e *Env) limits(l Limits) limits {
	out := limits{batch: l.Batch, concurrency: l.Concurrency, timeout: l.ReadTimeout}
	switch {
	case l.Rate == 0:
	case e.Rate != nil:
		out.rate = e.Rate(l.Rate)
	default:
		// A second's worth may come at once, so that a limit is reached by batches of any size.
		out.rate = rate.NewLimiter(rate.Limit(l.Rate), int(min(l.Rate, 1<<20)))
	}
	return out
}

// Build builds a vertex from its plan. With an error, what was opened is closed again.
func Build(ctx context.Context, env *Env, p *Plan) (*Vertex, error) {
	v := &Vertex{Name: p.Name, Kind: p.Kind, env: env, logger: env.Logger.With("vertex", p.Name)}
	b := &builder{v: v, env: env, lim: env.limits(p.Limits), name: p.Name, mono: p.Kind == KindMono, volumes: p.Volumes}
	build := b.fromBuffer
	if p.Source != nil {
		build = b.fromSource
	}
	if err := build(ctx, p); err != nil {
		return v, v.failed(ctx, err)
	}
	return v, nil
}

// labels are those of every metric of the vertex.
func (b *builder) labels(p *Plan) metrics.VertexLabels {
	return metrics.VertexLabels{Pipeline: b.env.Pipeline, Vertex: p.Name, Type: string(p.Kind), Mono: b.mono, Replica: b.env.Replica.Number}
}

// fromSource builds the one loop of a vertex with a source.
func (b *builder) fromSource(ctx context.Context, p *Plan) error {
	transformer := p.Name
	if b.mono {
		transformer = monoTransformer
	}
	m := b.env.Metrics.Vertex(b.labels(p), p.Name, transformer)
	m.BatchSize(b.lim.batch)
	b.metrics = m
	input, err := b.source(ctx, p.Source)
	if err != nil {
		return err
	}
	stages, err := b.stages(p)
	if err != nil {
		return err
	}
	if p.SmallBatches {
		// A batch is acknowledged to the source as a whole.
		input.Limit = max(1, min(input.Limit, 16))
	}
	var output forward.Output = b.router(p.Edges, m)
	if p.Sink != nil {
		d, err := b.delivery(ctx, p.Sink)
		if err != nil {
			return err
		}
		d.Events = m
		if by := p.Bypass; by != nil {
			d.BypassPrimary, d.BypassFallback, d.BypassOnSuccess = condition(by.Sink), condition(by.Fallback), condition(by.OnSuccess)
		}
		output = d
	}
	b.add(p, input, stages, output, m)
	return nil
}

// fromBuffer builds a loop for each partition of the vertex's buffer, and each of its shards. They share functions, sinks and limits.
func (b *builder) fromBuffer(ctx context.Context, p *Plan) error {
	var partitions []*buffer.Reader
	first := b.env.Shared
	if first == "" {
		partitions = b.env.Readers(p.Name)
		first = partitions[0].Name()
	}
	shared := b.env.Metrics.Vertex(b.labels(p), first, "")
	b.metrics = shared
	stages, err := b.stages(p)
	if err != nil {
		return err
	}
	var delivery *forward.Delivery
	if p.Sink != nil {
		if delivery, err = b.delivery(ctx, p.Sink); err != nil {
			return err
		}
	}
	newLoop := func(i int, partition *buffer.Reader, m *metrics.Vertex) *forward.Loop {
		input := &forward.BufferInput{Vertex: p.Name, Index: i, Partition: partition, Limit: b.lim.batch, Rate: b.lim.rate}
		var output forward.Output = b.router(p.Edges, m)
		if delivery != nil {
			output = delivery.With(m)
		}
		return b.loop(input, b.processor(p, stages), output, m)
	}
	newMetrics := func(partition *buffer.Reader) *metrics.Vertex {
		m := b.env.Metrics.Vertex(b.labels(p), partition.Name(), "")
		m.BatchSize(b.lim.batch)
		return m
	}
	if b.env.Shared != "" {
		b.v.shared = sharedLoops{make: newLoop, newMetrics: newMetrics, metrics: map[int]*metrics.Vertex{}, open: map[shardOf]*buffer.Reader{}}
		for _, e := range p.Edges {
			b.v.shared.to = append(b.v.shared.to, b.env.Writers(e.To)...)
		}
		return nil
	}
	index, m := -1, shared
	for _, partition := range partitions {
		if n, _ := partition.Shard(); n == 0 {
			// Metrics have the partition as a label. The first one's also count what is of no partition.
			if index++; index > 0 {
				m = newMetrics(partition)
			}
			m.BatchSize(b.lim.batch)
		}
		b.v.add(newLoop(index, partition, m), m)
	}
	return nil
}

// processor is that of one input. Each has its own: retries of one partition do not hold up another.
func (b *builder) processor(p *Plan, stages []forward.Stage) *forward.Map {
	return &forward.Map{Stages: stages, Ordered: p.Ordered}
}

func (b *builder) add(p *Plan, input forward.Input, stages []forward.Stage, output forward.Output, m *metrics.Vertex) {
	b.v.add(b.loop(input, b.processor(p, stages), output, m), m)
}

// stages starts nothing: functions begin with Vertex.RunFunctions.
func (b *builder) stages(p *Plan) (all []forward.Stage, err error) {
	for i := range p.Stages {
		s, err := b.stage(&p.Stages[i])
		if err != nil {
			return nil, err
		}
		all = append(all, s)
	}
	return all, nil
}
