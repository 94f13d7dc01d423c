package engine

import (
	"context"
	"errors"
	"log/slog"
	"sync/atomic"

	"github.com/levada-io/levada/api/v1alpha1"
	"github.com/levada-io/levada/internal/dataplane/buffer"
	"github.com/levada-io/levada/internal/dataplane/vertex"
)

// Pipeline holds the vertices of a Pipeline or MonoVertex that run in this process.
type Pipeline struct {
	Namespace, Name, Kind string // Kind is Pipeline or MonoVertex
	// Paused says that the manifest pauses the pipeline: it has no vertices here.
	Paused bool

	// vertices in the order of the manifest. They do not change once the process runs.
	vertices []*Vertex
	// ending is nil where only some of the vertices run here: one process cannot know that all of a pipeline has ended.
	ending *ending
	// finished is set once, and only when every vertex has ended: nothing is left in the buffers then.
	finished atomic.Bool
}

// Add adds a vertex. Call it before the pipeline runs.
func (p *Pipeline) Add(v *Vertex) { p.vertices = append(p.vertices, v) }

// Whole says that all vertices have been added, so that the pipeline can end by itself when its sources have.
func (p *Pipeline) Whole(edges []v1alpha1.Edge) (err error) {
	p.ending, err = newEnding(edges, p.vertices)
	return err
}

// Vertices are those that run here, in the order of the manifest.
func (p *Pipeline) Vertices() []*Vertex { return p.vertices }

// Vertex returns the vertex of a name; nil if it does not run here.
func (p *Pipeline) Vertex(name string) *Vertex {
	for _, v := range p.vertices {
		if v.Name == name {
			return v
		}
	}
	return nil
}

// Inputs are the partitions that are read here.
func (p *Pipeline) Inputs() (all []*buffer.Partition) {
	for _, v := range p.vertices {
		for _, in := range v.reads() {
			all = append(all, in.Partition)
		}
	}
	return all
}

// Finished reports whether all its sources have ended and all that they gave is delivered, dropped or dead-lettered: nothing is left in its buffers.
func (p *Pipeline) Finished() bool { return p.finished.Load() }

// Stats are the counters of the vertices, in the order of the manifest. The gauges of their metrics are set on the way.
func (p *Pipeline) Stats(ctx context.Context) []vertex.Stats {
	stats := make([]vertex.Stats, len(p.vertices))
	for i, v := range p.vertices {
		stats[i] = v.Stats(ctx)
	}
	return stats
}

// Counts are the counters of the vertices. Nothing outside of the process is asked.
func (p *Pipeline) Counts() []vertex.Stats {
	stats := make([]vertex.Stats, len(p.vertices))
	for i, v := range p.vertices {
		stats[i] = v.Counts()
	}
	return stats
}

// Reopen makes file sinks look at their files now: where one was renamed, a new one is begun.
func (p *Pipeline) Reopen(ctx context.Context) error {
	var errs []error
	for _, v := range p.vertices {
		errs = append(errs, v.Reopen(ctx))
	}
	return errors.Join(errs...)
}

// Close closes the sources and sinks of the vertices, in the order of the flow. The caller closes the partitions afterwards.
func (p *Pipeline) Close(ctx context.Context) (err error) {
	for _, v := range p.vertices {
		err = errors.Join(err, v.Close(ctx))
	}
	return err
}

// end waits until the pipeline has ended by itself. It returns context.Cause(ctx) when ctx ends before.
func (p *Pipeline) end(ctx context.Context, log *slog.Logger) error {
	if p.ending == nil {
		<-ctx.Done()
		return context.Cause(ctx)
	}
	err := p.follow(ctx, log) // nil is the proof
	p.finished.Store(err == nil)
	return err
}

// health is what keeps messages from being taken or delivered.
func (p *Pipeline) health() error {
	var errs []error
	for _, v := range p.vertices {
		errs = append(errs, v.Health())
	}
	return errors.Join(errs...)
}
