package manifest

import (
	"fmt"

	"github.com/levada-io/levada/api/v1alpha1"
)

// indexes of the vertices that an edge joins; false when one does not exist.
func (p pipelineView) indexes() map[string]int {
	index := make(map[string]int, len(p.spec.Vertices))
	for i, v := range p.spec.Vertices {
		if _, twice := index[v.Name]; !twice && v.Name != "" {
			index[v.Name] = i
		}
	}
	return index
}

func edgesJoinVertices(r *report, p pipelineView) {
	at := p.at.at("edges")
	if len(p.spec.Edges) == 0 {
		r.missing(at, Problem{Code: CodeNoEdges, Message: "the pipeline has no edges", Expected: "an edge from each vertex to the next"})
		return
	}
	index, names := p.indexes(), p.names()
	for i, e := range p.spec.Edges {
		for _, end := range []struct{ field, name string }{{"from", e.From}, {"to", e.To}} {
			if end.name == "" {
				r.required(at.item(i).at(end.field), "the name of a vertex")
			} else if _, ok := index[end.name]; !ok {
				p := Problem{Code: CodeEdgeToNowhere, Message: fmt.Sprintf("there is no vertex %s", quote(end.name)), DidYouMean: r.suggest(end.name, names)}
				if p.DidYouMean == "" && len(index) <= 12 {
					p.Expected = oneOf(sortedKeys(index))
				}
				r.add(at.item(i).at(end.field), p)
			}
		}
	}
}

func edgesAreUnique(r *report, p pipelineView) {
	type ends struct{ from, to string }
	first := map[ends]int{}
	for i, e := range p.spec.Edges {
		key := ends{e.From, e.To}
		if before, twice := first[key]; twice {
			r.add(p.at.at("edges").item(i), Problem{
				Code: CodeEdgeTwice, Message: fmt.Sprintf("edges[%d] goes from %q to %q too", before, e.From, e.To),
				Hint: "put the tags of both into the conditions of one edge",
			})
			continue
		}
		first[key] = i
	}
}

func edgesGoForward(r *report, p pipelineView) {
	index := p.indexes()
	for i, e := range p.spec.Edges {
		at := p.at.at("edges").item(i)
		if v, ok := index[e.To]; ok && p.spec.Vertices[v].IsSource() {
			r.add(at.at("to"), Problem{Code: CodeEdgeDirection, Message: fmt.Sprintf("%q is a source, and nothing can be sent to it", e.To)})
		}
		if v, ok := index[e.From]; ok && p.spec.Vertices[v].IsSink() {
			r.add(at.at("from"), Problem{Code: CodeEdgeDirection, Message: fmt.Sprintf("%q is a sink, and nothing comes out of it", e.From)})
		}
	}
}

func everyVertexIsReached(r *report, p pipelineView) {
	if len(p.spec.Edges) == 0 {
		return // said already
	}
	// An edge to a mistyped vertex reaches the one that was meant: its name was reported, and that is enough.
	index, names := p.indexes(), p.names()
	meant := func(name string) string {
		if _, ok := index[name]; !ok {
			return r.suggest(name, names)
		}
		return name
	}
	into, out := map[string]bool{}, map[string]bool{}
	for _, e := range p.spec.Edges {
		into[meant(e.To)], out[meant(e.From)] = true, true
	}
	for i := range p.spec.Vertices {
		v := &p.spec.Vertices[i]
		at := p.at.at("vertices").item(i).at("name")
		in, o := into[v.Name], out[v.Name]
		switch {
		case v.Name == "" || v.Type() == "":
		case !in && !o:
			r.add(at, Problem{Code: CodeVertexAlone, Message: fmt.Sprintf("vertex %q is in no edge", v.Name)})
		case !o && !v.IsSink():
			r.add(at, Problem{Code: CodeVertexAlone, Message: fmt.Sprintf("no edge leads from vertex %q to another", v.Name), Hint: "a vertex without readers needs a sink, such as blackhole"})
		case !in && !v.IsSource():
			r.add(at, Problem{Code: CodeVertexAlone, Message: fmt.Sprintf("no edge leads to vertex %q", v.Name)})
		}
	}
}

// graphIsConnected reports each part that has no edge to the part with the first vertex.
func graphIsConnected(r *report, p pipelineView) {
	index := p.indexes()
	group := make([]int, len(p.spec.Vertices)) // a forest; roots point to themselves
	for i := range group {
		group[i] = i
	}
	root := func(i int) int {
		for group[i] != i {
			group[i] = group[group[i]]
			i = group[i]
		}
		return i
	}
	joined := map[int]bool{}
	for _, e := range p.spec.Edges {
		from, ok1 := index[e.From]
		to, ok2 := index[e.To]
		if !ok1 || !ok2 {
			return // an edge to nowhere was reported, and may be the one that is missing
		}
		joined[from], joined[to] = true, true
		a, b := root(from), root(to)
		group[max(a, b)] = min(a, b)
	}
	main := -1
	for i := range p.spec.Vertices {
		switch {
		case !joined[i]: // reported as alone
		case main < 0:
			main = root(i)
		case root(i) != main && root(i) == i:
			r.add(p.at.at("vertices").item(i).at("name"), Problem{
				Code: CodeNotConnected, Message: fmt.Sprintf("no edge joins vertex %q and those behind it with the rest of the pipeline", p.spec.Vertices[i].Name),
				Hint: "make two pipelines of it, or join the parts",
			})
		}
	}
}

// noReduceAfterACycle: in a cycle a message comes back later than its watermark promised, so that windows behind it would
// close too early.
func noReduceAfterACycle(r *report, p pipelineView) {
	index := p.indexes()
	next := make([][]int, len(p.spec.Vertices))
	for _, e := range p.spec.Edges {
		from, ok1 := index[e.From]
		to, ok2 := index[e.To]
		if ok1 && ok2 {
			next[from] = append(next[from], to)
		}
	}
	tainted := make([]bool, len(next))
	var todo []int
	for _, v := range onCycles(next) {
		tainted[v] = true
		todo = append(todo, v)
	}
	for len(todo) > 0 {
		v := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		for _, n := range next[v] {
			if !tainted[n] {
				tainted[n] = true
				todo = append(todo, n)
			}
		}
	}
	for i := range p.spec.Vertices {
		if v := &p.spec.Vertices[i]; tainted[i] && v.IsReduce() {
			r.add(p.at.at("vertices").item(i).at("udf.groupBy"), Problem{
				Code: CodeReduceInCycle, Message: fmt.Sprintf("the reduce %q lies in a cycle, or behind one", v.Name),
				Hint: "messages that go round come later than the watermark promised; put the cycle behind the reduce",
			})
		}
	}
}

// onCycles gives the vertices from which a path leads back to themselves: those in a strongly connected part of several, or
// with an edge to themselves (Tarjan's algorithm, with a stack of its own because a graph may be long).
func onCycles(next [][]int) []int {
	const unseen = -1
	var (
		order, low = make([]int, len(next)), make([]int, len(next))
		onStack    = make([]bool, len(next))
		stack      []int
		count      int
		cyclic     []int
	)
	for i := range order {
		order[i] = unseen
	}
	type frame struct{ v, edge int }
	for start := range next {
		if order[start] != unseen {
			continue
		}
		frames := []frame{{start, 0}}
		for len(frames) > 0 {
			f := &frames[len(frames)-1]
			v := f.v
			if f.edge == 0 {
				order[v], low[v] = count, count
				count++
				stack, onStack[v] = append(stack, v), true
			}
			if f.edge < len(next[v]) {
				n := next[v][f.edge]
				f.edge++
				if order[n] == unseen {
					frames = append(frames, frame{n, 0})
				} else if onStack[n] {
					low[v] = min(low[v], order[n])
				}
				continue
			}
			if low[v] == order[v] {
				first := len(stack) - 1
				for stack[first] != v {
					first--
				}
				part := stack[first:]
				stack = stack[:first]
				for _, w := range part {
					onStack[w] = false
				}
				if len(part) > 1 || hasEdge(next[v], v) {
					cyclic = append(cyclic, part...)
				}
			}
			frames = frames[:len(frames)-1]
			if len(frames) > 0 {
				parent := frames[len(frames)-1].v
				low[parent] = min(low[parent], low[v])
			}
		}
	}
	return cyclic
}

func hasEdge(next []int, to int) bool {
	for _, n := range next {
		if n == to {
			return true
		}
	}
	return false
}

func edgeConditionsAreValid(r *report, p pipelineView) {
	for i, e := range p.spec.Edges {
		if e.Conditions != nil {
			checkConditions(r, e.Conditions, p.at.at("edges").item(i).at("conditions"))
		}
	}
}

func checkConditions(r *report, c *v1alpha1.ForwardConditions, at path) {
	if c.Tags == nil {
		r.required(at.at("tags"), "the tags that choose messages")
		return
	}
	if op := c.Tags.Operator; op != nil {
		enum(r, at.at("tags.operator"), CodeOperator, *op, v1alpha1.LogicOperatorAnd, v1alpha1.LogicOperatorOr, v1alpha1.LogicOperatorNot)
	}
	if len(c.Tags.Values) == 0 {
		r.missing(at.at("tags.values"), Problem{Code: CodeNoTags, Message: "the condition has no values to compare tags with", Expected: "at least one tag"})
	}
	for i, tag := range c.Tags.Values {
		if tag == "" {
			r.add(at.at("tags.values").item(i), Problem{Code: CodeNoTags, Message: "the tag is empty", Expected: "a tag that a function gives to its messages"})
		}
	}
}

func edgesSayWhatFullMeans(r *report, p pipelineView) {
	for i, e := range p.spec.Edges {
		if e.OnFull != nil {
			enum(r, p.at.at("edges").item(i).at("onFull"), CodeOnFull, *e.OnFull, v1alpha1.OnFullRetryUntilSuccess, v1alpha1.OnFullDiscardLatest)
		}
	}
}
