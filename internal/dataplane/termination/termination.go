// Package termination decides when a pipeline whose sources have ended has delivered everything.
//
// It is a pure core: it returns what to look at next and takes what was seen, and has no clock and no I/O. The caller (package engine) carries out what
// Next asks for.
//
// # The rule
//
// Vertices end from the sources to the sinks. A vertex has ended when each of its loops has met the end of its input and has finished all that it read:
// what the loop wrote is durable, what failed was retried to its end, dropped or dead-lettered, and the input is acknowledged. A vertex that has ended
// writes nothing more.
//
// A partition stores entries under ascending sequences. Its end is the last sequence stored, its floor the sequence up to which all entries are done. An
// entry is done only after everything that was made of it is durable in the next partitions, or settled otherwise. So a message that is still on its way is
// always, at every instant, an entry above the floor of some partition.
//
// Vertices of a cycle write into each other, so none of them ends first. They form one group; a vertex outside of a cycle is a group of its own. When all
// vertices that write into a group from outside have ended, its partitions are empty for good at the first instant at which every one of them has its floor
// at its end. That instant cannot be seen, since partitions are looked at one after the other, but it can be proven: read all floors, and after the last of
// them read all ends. Both only grow. If each floor is at least its end, then at the instant between the last floor and the first end every floor was at
// least what was read, and every end at most what was read: all partitions were empty then, and nothing is left that could fill them. In the other order, or
// with one partition after the other, a message can be moved from a partition that is yet to be read into one that has been read, and be missed.
//
// A vertex with windows consumes messages and keeps them until time passes, or until its input ends. What it keeps is not done, so its floor would never reach the end
// of its input, and the input would never be ended. Outside of a cycle it is enough that all is consumed: nothing is left to be read, and what the vertex makes of it
// is written before the vertex ends. In a cycle that would not do, since it is written into partitions of the group itself. So a vertex that keeps messages in a cycle
// keeps the pipeline from ending.
//
// Counts of pending messages play no part: they are estimates after retries of a write.
package termination

import (
	"fmt"
	"slices"
)

// Vertex is a vertex of the pipeline.
type Vertex struct {
	Name string
	// Partitions of its buffer; 0 for a source.
	Partitions int
}

// Edge leads from one vertex to another.
type Edge struct{ From, To string }

// Do is what an Action asks for.
type Do int

// What can be asked for.
const (
	// Wait until a vertex has ended, or a partition of the Action's group has moved its floor; then ask Next again.
	Wait Do = iota
	// ReadFloor asks for the floor of a partition: tell it to Floor.
	ReadFloor
	// ReadEnd asks for the end of a partition, as the store knows it after the request was made: tell it to End.
	ReadEnd
	// Close asks that no process outside of the pipeline write into the group's partitions from now on, and that those who are writing have ended: tell it to Closed.
	Close
	// EndInput asks the caller to end the input of the loops of the group's vertices.
	EndInput
	// Finished says that every vertex has ended: everything is delivered.
	Finished
)

// Action is what the caller is to do.
type Action struct {
	Do Do
	// Group are the vertices concerned, Vertex and Partition the partition of ReadFloor and ReadEnd.
	Group     []string
	Vertex    string
	Partition int
	// Cycle says that vertices of the group write into it. The floor of ReadFloor counts what is done then. Otherwise it may also count what a vertex has consumed and
	// keeps until its input ends.
	Cycle bool
}

// Tracker follows one pipeline to its end. It is used by one goroutine.
type Tracker struct {
	groups []group
	ended  map[string]bool
	// at is the group that is followed: the input of all groups before it has been ended.
	at int
	// floors and ends are what was read in this pass over the partitions of the group, in their order. Invariant: no end is read before all floors are.
	floors, ends []uint64
	// moved says that a pass is to be made: a floor may have moved since the last one. Without it the pass would find what the last one found.
	moved bool
	// closed says that no process outside of the pipeline writes into the group. Invariant: EndInput is asked for only after a whole pass with closed set.
	closed bool
}

// group is a set of vertices that end together.
type group struct {
	vertices   []string
	writers    []string // the vertices outside that write into it
	partitions []Action // one ReadFloor each
	cycle      bool     // its vertices write into it
}

// New returns a tracker of a pipeline.
func New(vertices []Vertex, edges []Edge) (*Tracker, error) {
	t := &Tracker{ended: map[string]bool{}, moved: true}
	out, err := targets(vertices, edges)
	if err != nil {
		return nil, err
	}
	reach := map[string]map[string]bool{}
	for _, v := range vertices {
		reach[v.Name] = reachable(out, v.Name)
	}
	placed := map[string]bool{}
	for _, v := range vertices {
		if placed[v.Name] {
			continue
		}
		g := groupOf(v.Name, vertices, edges, reach)
		for _, name := range g.vertices {
			placed[name] = true
		}
		t.groups = append(t.groups, g)
	}
	t.sort()
	return t, nil
}

// targets are the vertices that each vertex writes to.
func targets(vertices []Vertex, edges []Edge) (map[string][]string, error) {
	partitions := map[string]int{}
	for _, v := range vertices {
		partitions[v.Name] = v.Partitions
	}
	out := map[string][]string{}
	for _, e := range edges {
		for _, name := range []string{e.From, e.To} {
			if _, ok := partitions[name]; !ok {
				return nil, fmt.Errorf("an edge from %s to %s: there is no vertex %s", e.From, e.To, name)
			}
		}
		if partitions[e.To] == 0 {
			return nil, fmt.Errorf("an edge from %s to %s, which has no buffer", e.From, e.To)
		}
		out[e.From] = append(out[e.From], e.To)
	}
	return out, nil
}

// reachable are the vertices to which one edge or more lead from another. A vertex reaches itself only in a cycle.
func reachable(out map[string][]string, from string) map[string]bool {
	seen := map[string]bool{}
	for todo := slices.Clone(out[from]); len(todo) > 0; {
		next := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		if !seen[next] {
			seen[next] = true
			todo = append(todo, out[next]...)
		}
	}
	return seen
}

// groupOf is the group of a vertex: itself, and those that it reaches and that reach it.
func groupOf(name string, vertices []Vertex, edges []Edge, reach map[string]map[string]bool) group {
	g := group{cycle: reach[name][name]}
	for _, o := range vertices {
		if o.Name != name && !(reach[name][o.Name] && reach[o.Name][name]) {
			continue
		}
		g.vertices = append(g.vertices, o.Name)
		for n := range o.Partitions {
			g.partitions = append(g.partitions, Action{Do: ReadFloor, Vertex: o.Name, Partition: n})
		}
	}
	for _, e := range edges {
		if slices.Contains(g.vertices, e.To) && !slices.Contains(g.vertices, e.From) && !slices.Contains(g.writers, e.From) {
			g.writers = append(g.writers, e.From)
		}
	}
	for i := range g.partitions {
		g.partitions[i].Group, g.partitions[i].Cycle = g.vertices, g.cycle
	}
	return g
}

// sort puts each group after those that write into it.
func (t *Tracker) sort() {
	sorted, placed := make([]group, 0, len(t.groups)), map[string]bool{}
	for len(sorted) < len(t.groups) { // each round places one at least: the groups have no cycle
		for _, g := range t.groups {
			if placed[g.vertices[0]] || slices.ContainsFunc(g.writers, func(w string) bool { return !placed[w] }) {
				continue
			}
			for _, v := range g.vertices {
				placed[v] = true
			}
			sorted = append(sorted, g)
		}
	}
	t.groups = sorted
}

// Ended says that a vertex has ended. See the package comment for what that means.
func (t *Tracker) Ended(vertex string) { t.ended[vertex] = true }

// Moved says that floors may have moved since Next returned Wait.
func (t *Tracker) Moved() { t.moved = true }

// Floor answers ReadFloor.
func (t *Tracker) Floor(seq uint64) { t.floors = append(t.floors, seq) }

// End answers ReadEnd.
func (t *Tracker) End(seq uint64) { t.ends = append(t.ends, seq) }

// Closed answers Close.
func (t *Tracker) Closed() {
	t.closed, t.moved = true, true
	t.floors, t.ends = t.floors[:0], t.ends[:0]
}

// Next returns what to do.
func (t *Tracker) Next() Action {
	for t.at < len(t.groups) {
		g := &t.groups[t.at]
		if len(g.partitions) == 0 {
			t.at++ // a source has no input to end
			continue
		}
		if !t.allEnded(g.writers) || !t.moved {
			return Action{Do: Wait, Group: g.vertices, Cycle: g.cycle}
		}
		if n := len(t.floors); n < len(g.partitions) {
			return g.partitions[n]
		}
		if n := len(t.ends); n < len(g.partitions) {
			ask := g.partitions[n]
			ask.Do = ReadEnd
			return ask
		}
		switch empty := t.finishPass(); {
		case !empty:
			t.moved = false
		case !t.closed:
			return Action{Do: Close, Group: g.vertices}
		default:
			t.at, t.closed, t.moved = t.at+1, false, true
			return Action{Do: EndInput, Group: g.vertices}
		}
	}
	for i := range t.groups {
		if !t.allEnded(t.groups[i].vertices) {
			return Action{Do: Wait}
		}
	}
	return Action{Do: Finished}
}

func (t *Tracker) allEnded(vertices []string) bool {
	return !slices.ContainsFunc(vertices, func(v string) bool { return !t.ended[v] })
}

// finishPass reports whether the pass that is complete proves all partitions of the group empty, and begins another.
func (t *Tracker) finishPass() (empty bool) {
	empty = true
	for i := range t.floors {
		empty = empty && t.floors[i] >= t.ends[i]
	}
	t.floors, t.ends = t.floors[:0], t.ends[:0]
	return empty
}
