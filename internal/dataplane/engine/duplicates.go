package engine

import (
	"context"
	"time"
)

// warnOfDuplicates warns once for each vertex if most of what came was known already: a source that begins to count at 0 again loses all that it gives.
func (p *Process) warnOfDuplicates(ctx context.Context) {
	warned := map[*Vertex]bool{} // once is enough: what causes it does not change while the process runs
	tick := time.NewTicker(10 * time.Second)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			p.checkDuplicates(warned, 1000) // fewer can be what a crash left
		case <-ctx.Done():
			p.checkDuplicates(warned, 1)
			return
		}
	}
}

// checkDuplicates looks at vertices with at least so many duplicates.
func (p *Process) checkDuplicates(warned map[*Vertex]bool, least int64) {
	for _, pl := range p.Pipelines {
		for _, v := range pl.vertices {
			// What a vertex reads has no duplicates any more, but for what its sink finds.
			s := v.Counts()
			fresh := max(0, s.In-s.SinkDuplicates)
			if s.Duplicates < least || s.Duplicates <= fresh || warned[v] {
				continue
			}
			warned[v] = true
			p.Logger.Warn("most messages are dropped as duplicates: their ids or positions were seen before", "pipeline", pl.Name, "vertex", v.Name,
				"duplicates", s.Duplicates, "new", fresh, "hint", "after a crash some are expected; a source that counts its offsets from 0 at each start needs ids that never come again")
		}
	}
}
