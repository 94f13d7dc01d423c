package processes

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/levada-io/levada/internal/dataplane/vertex"
	"github.com/levada-io/levada/internal/standalone"
)

// totals are sums over lives of processes. What a process that was killed had counted after its last report is missing.
type totals struct {
	stats vertex.Stats
	lost  int64
}

// add adds a life that is over: what it had pending is another's now.
func (t *totals) add(c *child) {
	s := c.counts
	s.Pending, s.Consumed = 0, 0
	sum(&t.stats, &s)
	if c.result != nil {
		for i := range c.result.Pipelines {
			t.lost += c.result.Pipelines[i].Lost
		}
	}
}

// sum adds the counts of one process to those of others of its vertex.
func sum(to, s *vertex.Stats) {
	if s.Name != "" {
		to.Name, to.Kind, to.Runs = s.Name, s.Kind, s.Runs
	}
	to.Counts.Add(s.Counts)
	to.Duplicates += s.Duplicates
	to.Consumed += s.Consumed
	if s.Pending < 0 || to.Pending < 0 {
		to.Pending = -1 // not known of one of them
		return
	}
	to.Pending += s.Pending
}

// stats are those of a vertex, over all its processes. The lock is held.
func (g *group) stats() vertex.Stats {
	s := g.past.stats
	s.Pending = 0
	for _, ms := range [][]*member{g.members, g.leaving} {
		for _, m := range ms {
			if m.child != nil {
				sum(&s, &m.child.counts)
			}
		}
	}
	s.Name = g.of.Name
	if g.wanted > 1 {
		s.Runs += fmt.Sprintf(", %d processes", g.wanted)
	}
	return s
}

// counts are those of the vertices of a pipeline.
func (p *pipeline) counts() (all []vertex.Stats) {
	p.run.mu.Lock()
	defer p.run.mu.Unlock()
	for _, g := range p.groups {
		all = append(all, g.stats())
	}
	return all
}

// status is what the API says of all pipelines.
func (r *run) status() (all []standalone.Status) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, p := range r.pipelines {
		s := standalone.Status{Namespace: p.of.Namespace, Name: p.of.Name, Kind: p.of.Kind, Finished: p.finished}
		for _, g := range p.groups {
			v := g.stats()
			vs := standalone.VertexStatus{Name: v.Name, Kind: v.Kind, Runs: v.Runs, Read: v.In, Written: v.Out, Pending: v.Pending, Errors: v.Errors, Dropped: v.Dropped, DeadLetters: v.DeadLetters}
			for _, m := range g.members {
				if m.child != nil {
					vs.PIDs = append(vs.PIDs, m.child.cmd.Process.Pid)
				}
			}
			s.Vertices = append(s.Vertices, vs)
		}
		all = append(all, s)
	}
	return all
}

// inspectTimeout bounds counting what is left in buffers at the end.
const inspectTimeout = 5 * time.Second

// result says where the messages are, when all processes have ended. What is in buffers is counted there, if the broker answers.
func (r *run) result(ctx context.Context, cut string) *standalone.Result {
	res := &standalone.Result{Cut: cut, Started: r.started.Load()}
	for _, p := range r.pipelines {
		res.Pipelines = append(res.Pipelines, p.result(ctx, cut != ""))
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, p := range r.pipelines {
		for _, g := range p.groups {
			res.CutShort = res.CutShort || !g.clean()
		}
	}
	return res
}

func (p *pipeline) result(ctx context.Context, cut bool) standalone.PipelineResult {
	var names []string
	for _, g := range p.groups {
		names = append(names, g.of.Name)
	}
	buffered := int64(-1)
	if !p.of.Paused && !cut {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), inspectTimeout)
		defer cancel()
		if n, err := p.of.Messages(ctx, names...); err == nil {
			buffered = int64(n)
		}
	}
	r := p.run
	r.mu.Lock()
	defer r.mu.Unlock()
	res := standalone.PipelineResult{Namespace: p.of.Namespace, Name: p.of.Name, Kind: p.of.Kind, Paused: p.of.Paused, Finished: p.finished}
	for _, g := range p.groups {
		p.addGroup(&res, g)
	}
	if buffered >= 0 {
		res.Buffered = buffered
	}
	if res.Finished {
		res.Buffered, res.InFlight, res.InMemory = 0, 0, 0
	}
	return res
}

// addGroup adds what the processes of a vertex counted. The lock is held.
func (p *pipeline) addGroup(res *standalone.PipelineResult, g *group) {
	s := g.stats()
	res.DeadLettered += s.DeadLetters
	res.Dropped += s.Dropped
	res.Duplicates += s.Duplicates
	res.Lost += g.past.lost
	if g.of.Source {
		res.Read += s.In
	}
	if g.of.Sink {
		res.Delivered += s.Delivered
	}
	for _, m := range g.members {
		last := m.last
		if last == nil {
			continue
		}
		if g.of.Source {
			res.InFlight += max(0, last.counts.In-last.counts.Acked)
		} else {
			res.Buffered += max(0, last.counts.Pending) + last.counts.Consumed
		}
		if last.result == nil {
			continue
		}
		for i := range last.result.Pipelines {
			of := &last.result.Pipelines[i]
			res.InMemory += of.InMemory
			for _, name := range of.Unread {
				if !slices.Contains(res.Unread, name) {
					res.Unread = append(res.Unread, name)
				}
			}
		}
	}
}
