package processes

import (
	"context"
	"time"

	"github.com/levada-io/levada/api/v1alpha1"
)

// stagesOf divides vertices into stages: each vertex comes after those that write to it. Vertices that write to each other, in a cycle, are one stage.
func stagesOf(vertices []string, edges []v1alpha1.Edge) (stages [][]string) {
	reach := map[string]map[string]bool{} // which vertices messages of one can get to
	for _, v := range vertices {
		reach[v] = map[string]bool{}
	}
	for _, e := range edges {
		reach[e.From][e.To] = true
	}
	for _, via := range vertices {
		for _, from := range vertices {
			if reach[from][via] {
				for to := range reach[via] {
					reach[from][to] = true
				}
			}
		}
	}
	placed := map[string]bool{}
	for len(placed) < len(vertices) {
		for _, v := range vertices {
			if placed[v] {
				continue
			}
			var stage []string
			ready := true
			for _, u := range vertices {
				switch {
				case u == v || reach[u][v] && reach[v][u]:
					stage = append(stage, u)
				case reach[u][v] && !placed[u]:
					ready = false
				}
			}
			if ready {
				for _, u := range stage {
					placed[u] = true
				}
				stages = append(stages, stage)
			}
		}
	}
	return stages
}

// inStages are the groups of a pipeline in the order in which they end: sources first.
func (p *pipeline) inStages() (stages [][]*group) {
	var names []string
	byName := map[string]*group{}
	for _, source := range []bool{true, false} {
		for _, g := range p.groups {
			if g.of.Source == source {
				names, byName[g.of.Name] = append(names, g.of.Name), g
			}
		}
	}
	for _, stage := range stagesOf(names, p.of.Edges) {
		var groups []*group
		for _, name := range stage {
			groups = append(groups, byName[name])
		}
		stages = append(stages, groups)
	}
	return stages
}

// follow ends the pipeline once its sources have ended: stage by stage, each when everything that was written to it is done. It returns nil when all is delivered, and the
// cause of ctx when that ends before.
func (p *pipeline) follow(ctx context.Context) error {
	for _, stage := range p.inStages() {
		if err := p.endStage(ctx, stage); err != nil {
			return err
		}
	}
	p.run.update(func() { p.finished = true })
	return nil
}

// endStage waits until a stage has done all that it will ever get, and ends its processes. If one of them did not end in order, all are started again.
func (p *pipeline) endStage(ctx context.Context, stage []*group) error {
	r := p.run
	var names []string
	for _, g := range stage {
		names = append(names, g.of.Name)
	}
	for {
		if stage[0].of.Source {
			if err := r.await(ctx, stage[0].inputEnded); err != nil {
				return err
			}
		} else if err := p.awaitEmpty(ctx, names); err != nil {
			return err
		}
		p.of.Seal(names...)
		if !stage[0].of.Source { // a dead letter may have been put back before
			if empty, err := p.of.Empty(ctx, names...); err != nil || !empty {
				p.of.Unseal(names...)
				if err := pause(ctx, emptyEvery); err != nil {
					return err
				}
				continue
			}
		}
		if err := r.stopStage(ctx, stage); err != nil {
			return err
		}
		if p.isOver(ctx, stage, names) {
			return nil
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		p.of.Unseal(names...)
		r.update(func() {
			for _, g := range stage {
				g.resume()
			}
		})
	}
}

// isOver reports whether all processes of a stage have ended in order, with nothing left to do.
func (p *pipeline) isOver(ctx context.Context, stage []*group, names []string) bool {
	p.run.mu.Lock()
	for _, g := range stage {
		if !g.clean() {
			p.run.mu.Unlock()
			return false
		}
	}
	p.run.mu.Unlock()
	if stage[0].of.Source {
		return true
	}
	empty, err := p.of.Empty(ctx, names...)
	return err == nil && empty
}

// awaitEmpty returns when the buffers of vertices are empty. A broker that does not answer is asked again.
func (p *pipeline) awaitEmpty(ctx context.Context, names []string) error {
	var said time.Time
	for {
		empty, err := p.of.Empty(ctx, names...)
		if err == nil && empty {
			return nil
		}
		if err != nil && ctx.Err() == nil && time.Since(said) > time.Minute {
			said = time.Now()
			p.run.log.Warn("buffers cannot be looked at, trying again", "pipeline", p.of.Name, "vertices", names, "error", err)
		}
		if err := pause(ctx, emptyEvery); err != nil {
			return err
		}
	}
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// stopStage asks the processes of a stage to end, and waits for them.
func (r *run) stopStage(ctx context.Context, stage []*group) error {
	r.update(func() {
		for _, g := range stage {
			g.stop()
		}
	})
	for _, g := range stage {
		for _, ended := range g.ended() {
			select {
			case <-ended:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
	}
	return nil
}

// Shares of the time to drain. Each process gets the second when it is asked to end, and all have been asked after the first. What is left is for the broker.
const (
	inOrder    = 0.3
	ofChild    = 0.6
	untilKill  = inOrder + ofChild + 0.02
	killedWait = 2 * time.Second
)

// ChildDrain is the time that a process has to finish what it has begun, of the total for all.
func ChildDrain(total time.Duration) time.Duration { return time.Duration(ofChild * float64(total)) }

// stopAll ends all processes in order: sources first, and each vertex after those that write to it. When a part of the time is over, all that still run are asked at once.
func (r *run) stopAll() {
	all := time.AfterFunc(time.Duration(inOrder*float64(r.cfg.Run.DrainTimeout)), func() {
		r.update(func() {
			for _, p := range r.pipelines {
				for _, g := range p.groups {
					g.stop()
				}
			}
		})
	})
	defer all.Stop()
	for _, p := range r.pipelines {
		r.stopping.Go(func() {
			for _, stage := range p.inStages() {
				_ = r.stopStage(context.Background(), stage) // which does not end
			}
		})
	}
	r.stopping.Wait()
	r.processes.Wait()
}
