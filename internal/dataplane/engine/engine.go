// Package engine runs vertices, wherever that is: all of a pipeline in one process, or one of them.
//
// A Vertex has the parts of one vertex that must run together: its functions, the upkeep of the partitions that it reads, and its loops. A Pipeline holds the
// vertices of one pipeline that run in this process. A Process runs pipelines, answers probes, and ends everything in order.
//
// # The order of the end
//
// A process ends in four stages. Each begins when the one before is over, and all of them share one Budget of time:
//
//  1. Sources stop reading. What they have read is processed, written and acknowledged.
//  2. The other vertices stop reading. What they have begun is processed, written and acknowledged. No source writes any more, so this comes to an end. What
//     they have read and not begun, and what they keep for windows, is left unacknowledged.
//  3. Work ends: what is not finished by then, because time was short, is left unacknowledged, and is processed by the next process.
//  4. Functions, the upkeep of partitions and the server of metrics end. Functions come last because messages in flight need them until they are finished.
//
// A vertex that fails ends the process in the same order. Its error is returned, also if it comes during the end.
//
// A vertex that is alone in its process goes through the same stages; the first or the second of them is empty.
package engine

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"golang.org/x/sync/errgroup"

	"github.com/levada-io/levada/api/v1alpha1"
	"github.com/levada-io/levada/internal/dataplane/buffer"
	"github.com/levada-io/levada/internal/dataplane/drain"
	"github.com/levada-io/levada/internal/dataplane/vertex"
	"github.com/levada-io/levada/internal/metrics"
)

// Input is a partition that a vertex reads, or a shard of one, with the metrics of the partition.
type Input struct {
	Partition *buffer.Partition
	Metrics   *metrics.Buffer
}

// Vertex runs one vertex.
type Vertex struct {
	*vertex.Vertex
	// Inputs are the partitions that the vertex reads, by number, and the shards of each. This process is the only reader of each; a source has none.
	Inputs []Input
	// Share, if not nil, says how this process shares the partitions with others. There are no Inputs then.
	Share *Share
	// Outputs are the partitions that the vertex writes to and that another process reads. The caller that opened them closes them.
	Outputs []*buffer.Writer
}

// IsSource reports whether the vertex reads from outside of the pipeline.
func (v *Vertex) IsSource() bool {
	return v.Kind == v1alpha1.VertexTypeSource || v.Kind == vertex.KindMono
}

// IsSink reports whether the vertex writes to outside of the pipeline.
func (v *Vertex) IsSink() bool { return v.Kind == v1alpha1.VertexTypeSink || v.Kind == vertex.KindMono }

// Serve keeps functions and the upkeep of the inputs and outputs going until ctx ends. It must outlive Run. An error means that a function cannot be started at all.
func (v *Vertex) Serve(ctx context.Context) error {
	var services errgroup.Group
	services.Go(func() error { return v.RunFunctions(ctx) })
	for _, in := range v.Inputs {
		services.Go(func() error { return in.Partition.Run(ctx) })
	}
	for _, out := range v.Outputs {
		services.Go(func() error { return out.Run(ctx) })
	}
	return services.Wait()
}

// Ready waits until all functions are, and logs a line for each that keeps the vertex from starting.
func (v *Vertex) Ready(ctx context.Context, log *slog.Logger) error {
	for _, f := range v.Functions() {
		var reason func() string
		if w, ok := any(f).(interface{ Waiting() string }); ok {
			reason = w.Waiting
		}
		over := Waiting(log, "function", reason, "vertex", v.Name, "function", f.Name())
		err := f.Ready(ctx)
		over(err)
		if err != nil {
			return fmt.Errorf("vertex %s: %w", v.Name, err)
		}
	}
	return nil
}

// Run moves messages until intake ends or the input does, and then finishes what is in flight.
func (v *Vertex) Run(d drain.Context) error {
	if v.Share != nil {
		return v.Share.run(d, v)
	}
	return v.Vertex.Run(d.Work, d.Intake)
}

// reads are the partitions that are read here now.
func (v *Vertex) reads() []Input {
	if v.Share != nil {
		return v.Share.inputs()
	}
	return v.Inputs
}

// Health returns what keeps the inputs from taking or giving messages, or the outputs from taking them; nil if nothing does.
func (v *Vertex) Health() error {
	var errs []error
	for _, in := range v.reads() {
		errs = append(errs, in.Partition.Health())
	}
	for _, out := range v.Outputs {
		errs = append(errs, out.Health())
	}
	return errors.Join(errs...)
}

// Stats are the counters of the vertex. The gauges of its metrics are set on the way.
func (v *Vertex) Stats(ctx context.Context) vertex.Stats {
	reads := v.reads()
	for len(reads) > 0 {
		// Shards of a partition follow each other, and the user sees the partition.
		of, pending, inFlight := reads[0], 0, 0
		for len(reads) > 0 && reads[0].Partition.Reader.Name() == of.Partition.Reader.Name() {
			pending, inFlight = pending+reads[0].Partition.Pending(), inFlight+reads[0].Partition.InFlight()
			reads = reads[1:]
		}
		of.Metrics.Usage(pending, inFlight, of.Partition.MaxLength())
	}
	return v.Vertex.Stats(ctx)
}

// recount makes the counts of what is pending exact where that is cheap: where nothing is.
func (v *Vertex) recount(ctx context.Context) {
	for _, in := range v.reads() {
		in.Partition.Recount(ctx)
	}
}
