package vertex

import (
	"errors"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/levada-io/levada/api/v1alpha1"
	"github.com/levada-io/levada/internal/dataplane/forward"
	"github.com/levada-io/levada/internal/dataplane/function"
)

// Plan is what one vertex consists of. It is decided from the manifest alone: no clock, no file and no server is asked, so that a run, a check before it and an
// operator come to the same plan.
//
// Invariants: a vertex has a Source or Input.Partitions > 0, never both. It has Edges or a Sink, never both.
type Plan struct {
	Name string
	Kind v1alpha1.VertexType // KindMono for a MonoVertex
	// Source is nil for a vertex that reads a buffer.
	Source *v1alpha1.Source
	// Input is the buffer of a vertex without a source.
	Input InputPlan
	// Stages are applied to each message, in this order. There are none in a source without a transformer, and in a sink.
	Stages []StagePlan
	// Edges are the buffers that the vertex writes to.
	Edges []EdgePlan
	// Sink is nil for a vertex that writes to buffers.
	Sink *v1alpha1.Sink
	// Bypass says which messages of a MonoVertex skip its stages; nil for none.
	Bypass *v1alpha1.Bypass
	Limits Limits
	// Ordered keeps the order of the messages of a partition: one at a time, with retries in place.
	Ordered bool
	// SmallBatches says that what was read is acknowledged in small groups, so that one slow message holds back few.
	SmallBatches bool
	Volumes      []corev1.Volume // that its containers may mount
}

// WritesTo reports whether an edge leads from the vertex to another, or to itself.
func (p *Plan) WritesTo(vertex string) bool {
	return slices.ContainsFunc(p.Edges, func(e EdgePlan) bool { return e.To == vertex })
}

// InputPlan is the buffer that a vertex reads.
type InputPlan struct {
	Partitions int
	// MaxLength is the number of messages that a partition may hold; writers wait above UsageLimit percent of it.
	MaxLength, UsageLimit int
	// Shards is how many shards each partition gets that is created for processes which share the vertex, if the manifest has no number of its own for it: Plan.Shards.
	Shards int
}

// StagePlan is a function, or a transformer.
// Invariant: at most one of Container and Builtin is set in a valid manifest.
type StagePlan struct {
	// Name is the vertex, or "transformer" in a MonoVertex.
	Name string
	Role function.Role
	// Container and Builtin say what it runs. Builtin counts if no command stands in for it.
	Container *v1alpha1.Container
	Builtin   *v1alpha1.Builtin
	Retry     *v1alpha1.RetryStrategy // nil: until it is done
}

// EdgePlan is one edge from the vertex to the buffer of another.
type EdgePlan struct {
	To        string
	Condition *forward.Condition // nil for all messages
	// Partitions of the buffer. ByKey says that messages with the same keys go to the same one.
	Partitions int
	ByKey      bool
	// Discard says that what the buffer has no room for is dropped.
	Discard bool
	// Back says that the edge closes a cycle: it never waits for room.
	Back bool
}

// Limits of a vertex, with all defaults.
type Limits struct {
	// Batch is the number of messages that are read at once, Concurrency that of those that a function has at once.
	Batch, Concurrency int
	// ReadTimeout is how long a read may wait for a full batch.
	ReadTimeout time.Duration
	// Rate is the number of messages a second; 0 for no limit.
	Rate uint64
}

// planLimits takes over limits that have their defaults.
func planLimits(l v1alpha1.Limits) Limits {
	out := Limits{Batch: int(l.ReadBatchSize), Concurrency: int(l.Concurrency), ReadTimeout: l.ReadTimeout}
	if r := l.RateLimit; r != nil && r.Max != nil {
		out.Rate = *r.Max
	}
	return out
}

// PlanPipeline plans the vertices of a pipeline, in the order of the manifest, which has its defaults. An error names what this version cannot run.
func PlanPipeline(p *v1alpha1.PipelineSpec) ([]Plan, error) {
	plans := make([]Plan, len(p.Vertices))
	for i := range p.Vertices {
		var err error
		if plans[i], err = planVertex(p, &p.Vertices[i]); err != nil {
			return nil, fmt.Errorf("vertex %s: %w", p.Vertices[i].Name, err)
		}
	}
	return plans, nil
}

// planVertex plans one vertex of a pipeline. The manifest is valid, so what it has too much of is ignored; the error is about what it lacks.
func planVertex(p *v1alpha1.PipelineSpec, spec *v1alpha1.AbstractVertex) (Plan, error) {
	limits := v1alpha1.EffectiveLimits(p, spec)
	pl := Plan{Name: spec.Name, Kind: spec.Type(), Source: spec.Source, Sink: spec.Sink, Ordered: p.IsOrdered(spec), Limits: planLimits(limits), Volumes: spec.Volumes}
	if spec.Source == nil {
		pl.Input = InputPlan{Partitions: spec.PartitionCount(), MaxLength: int(limits.BufferMaxLength), UsageLimit: int(limits.BufferUsageLimit), Shards: defaultShards(spec, pl.Ordered)}
	}
	switch u := spec.UDF; {
	case spec.Source != nil:
		if t := spec.Source.Transformer; t != nil {
			pl.Stages = append(pl.Stages, transformerStage(spec.Name, t))
		}
	case u != nil && u.GroupBy != nil:
		return pl, errors.New("a reduce cannot run in this version yet")
	case u != nil:
		pl.Stages = append(pl.Stages, udfStage(spec.Name, u))
	case spec.Sink == nil:
		return pl, errors.New("it has no source, no function and no sink")
	}
	if spec.Sink == nil {
		pl.Edges = planEdges(p, spec.Name)
	}
	return pl, nil
}

// planEdges are the edges that lead from a vertex. Partitions and order are those of the vertex that reads: a writer must choose the partition as all others do.
func planEdges(p *v1alpha1.PipelineSpec, from string) (edges []EdgePlan) {
	for i := range p.Edges {
		e := &p.Edges[i]
		if e.From != from {
			continue
		}
		edge := EdgePlan{To: e.To, Condition: condition(e.Conditions), Discard: discards(e), Back: leadsTo(p, e.To, from)}
		for k := range p.Vertices {
			if target := &p.Vertices[k]; target.Name == e.To {
				edge.Partitions, edge.ByKey = target.PartitionCount(), p.IsOrdered(target)
			}
		}
		edges = append(edges, edge)
	}
	return edges
}

// monoTransformer is the name of a MonoVertex's transformer: its function has the name of the vertex.
const monoTransformer = "transformer"

// PlanMono plans a MonoVertex: source, transformer, function and sink in one loop, without a buffer.
func PlanMono(name string, spec *v1alpha1.MonoVertexSpec) (Plan, error) {
	pl := Plan{
		Name: name, Kind: KindMono, Source: spec.Source, Sink: spec.Sink, Bypass: spec.Bypass, Volumes: spec.Volumes,
		Limits: planLimits(v1alpha1.EffectiveMonoVertexLimits(spec)), SmallBatches: spec.Streaming != nil && *spec.Streaming,
	}
	if spec.Source == nil || spec.Sink == nil {
		return pl, errors.New("a MonoVertex needs a source and a sink")
	}
	if t := spec.Source.Transformer; t != nil {
		pl.Stages = append(pl.Stages, transformerStage(monoTransformer, t))
	}
	if u := spec.UDF; u != nil {
		if u.GroupBy != nil {
			return pl, errors.New("a reduce cannot run in this version yet")
		}
		pl.Stages = append(pl.Stages, udfStage(name, u))
	}
	return pl, nil
}

// udfStage is the function of a vertex, under the name that is part of the ids of its results.
func udfStage(name string, u *v1alpha1.UDF) StagePlan {
	return StagePlan{Name: name, Role: function.UDF, Container: u.Container, Builtin: u.Builtin, Retry: u.RetryStrategy}
}

// transformerStage is the transformer of a source.
func transformerStage(name string, t *v1alpha1.UDTransformer) StagePlan {
	return StagePlan{Name: name, Role: function.Transformer, Container: t.Container, Builtin: t.Builtin, Retry: t.RetryStrategy}
}
