package standalone

import (
	"context"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/levada-io/levada/api/v1alpha1"
	"github.com/levada-io/levada/internal/dataplane/vertex"
)

// Result is what is where when a run has ended.
type Result struct {
	// Cut says why the run was ended before it had stopped in order; empty if it had. What was in flight then is not acknowledged, and comes again.
	Cut string
	// Started says that everything ran.
	Started   bool
	Pipelines []PipelineResult
}

// PipelineResult is what is where of a pipeline. Counts of messages are of this run.
type PipelineResult struct {
	Namespace, Name, Kind string
	// Paused says that the manifest pauses the pipeline: nothing of it ran.
	Paused bool
	// Finished says that its sources have ended and that everything they gave is delivered, dropped or dead-lettered. That is proven, not counted.
	Finished bool
	Read     int64 // from the sources
	// Delivered counts what sinks took, once for each sink.
	Delivered, DeadLettered, Dropped, Duplicates int64
	// Buffered are messages in the buffers, InFlight those that were read from sources and are not acknowledged to them.
	Buffered, InFlight int64
	// InMemory are those of Buffered that a restart of the broker loses, since it keeps the buffer in memory. Lost are messages whose buffer was in memory, and is
	// gone: they are in no other count.
	InMemory, Lost int64
	// Unread are the source vertices whose input has an end that was not reached.
	Unread []string
}

// Kept reports whether messages of the pipeline wait for the next run.
func (p *PipelineResult) Kept() bool {
	return !p.Finished && (p.Buffered > 0 || p.InFlight > 0 || len(p.Unread) > 0)
}

func (r *runner) result(cut string) *Result {
	res := &Result{Cut: cut}
	r.mu.Lock()
	pipelines := r.pipelines
	res.Started = r.started
	r.mu.Unlock()
	for _, p := range pipelines {
		res.Pipelines = append(res.Pipelines, p.result())
	}
	return res
}

func (p *Pipeline) result() PipelineResult {
	res := PipelineResult{Namespace: p.Namespace, Name: p.Name, Kind: p.Kind, Paused: p.paused, Finished: p.Finished()}
	for _, v := range p.vertices {
		s := v.Counts()
		res.DeadLettered += s.DeadLetters
		res.Dropped += s.Dropped
		res.Duplicates += s.Duplicates
		if isSource(v) {
			res.Read += s.In
			if !res.Finished {
				res.InFlight += max(0, s.In-s.Acked)
			}
			if v.Finite && !v.Ended() {
				res.Unread = append(res.Unread, v.Name)
			}
		} else if !res.Finished {
			res.Buffered += s.Pending
		}
		for _, part := range p.partitions[v.Name] {
			switch n := int64(part.Pending()); {
			case res.Finished || !part.InMemory():
			case part.Gone():
				res.Lost, res.Buffered = res.Lost+n, max(0, res.Buffered-n)
			default:
				res.InMemory += n
			}
		}
		if v.Kind == v1alpha1.VertexTypeSink || v.Kind == kindMono {
			res.Delivered += s.Delivered
		}
	}
	return res
}

// recount makes the counts of what is left in the buffers exact where that is cheap: where nothing is.
func (r *runner) recount(ctx context.Context, pipelines []*Pipeline) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), min(time.Second, r.budget.functions()))
	defer cancel()
	for _, p := range pipelines {
		for _, parts := range p.partitions {
			for _, part := range parts {
				part.Recount(ctx)
			}
		}
	}
}

// warnOfDuplicates says once for each vertex if most of what came was known already: a source that begins to count again at 0 loses all that it gives.
func (r *runner) warnOfDuplicates(ctx context.Context, pipelines []*Pipeline) {
	warned := map[*vertex.Vertex]bool{}
	check := func(least int64) {
		for _, p := range pipelines {
			for _, v := range p.vertices {
				// What a vertex reads has no duplicates any more, but for what its sink finds.
				s := v.Counts()
				if new := max(0, s.In-s.SinkDuplicates); s.Duplicates >= least && s.Duplicates > new && !warned[v] {
					warned[v] = true
					r.log.Warn("most messages are dropped as duplicates: their ids or positions were seen before", "pipeline", p.Name, "vertex", v.Name,
						"duplicates", s.Duplicates, "new", new, "hint", "after a crash some are expected; a source that counts its offsets from 0 at each start needs ids that never come again")
				}
			}
		}
	}
	tick := time.NewTicker(10 * time.Second)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			check(1000) // fewer can be what a crash left
		case <-ctx.Done():
			check(1)
			return
		}
	}
}

// kindMono is the kind of the only vertex of a MonoVertex.
const kindMono = "MonoVertex"

func isSource(v *vertex.Vertex) bool {
	return v.Kind == v1alpha1.VertexTypeSource || v.Kind == kindMono
}

// abandon ends what would outlive this process. Everything else ends with it, as after a kill, which loses nothing.
func (r *runner) abandon() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, p := range r.pipelines {
		for _, v := range p.vertices {
			for _, f := range v.Functions() {
				if pid := f.PID(); pid > 0 {
					_ = syscall.Kill(-pid, syscall.SIGKILL)
				}
			}
		}
	}
	if r.serving {
		_ = os.Remove(filepath.Join(r.cfg.DataDir, controlFile))
	}
}
