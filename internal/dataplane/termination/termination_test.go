package termination

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// decider is what is tested: Tracker, and rules that are known to be wrong.
type decider interface {
	Next() Action
	Floor(seq uint64)
	End(seq uint64)
	Closed()
	Moved()
	Ended(vertex string)
}

// entry is a message in a partition of the model.
type entry struct {
	seq  uint64
	hops int // how many more vertices it may go through: cycles end so
	dup  bool
}

// work is an entry that a loop has read. Its writes come one by one, and then it is done.
type work struct {
	entry
	left []int // vertices yet to be written to
	set  bool  // left is decided
}

type partition struct {
	stored []entry // not read yet
	end    uint64
	done   map[uint64]bool
	floor  uint64
	held   []*work
	ended  bool // its loop knows that its input has ended
}

type vertexModel struct {
	Vertex
	unread int // of a source
	held   []*work
	parts  []*partition
	out    []int
	ended  bool
}

// model is a pipeline in which messages move by steps that any order can have.
type model struct {
	vertices []*vertexModel
	index    map[string]int
	edges    []Edge
	replays  int // messages that somebody outside of the pipeline is yet to write
	writing  int // the vertex that such a message is being written to, -1 for none
	refused  map[string]bool
	pick     func(n int) int
}

// pending is what the rule before this one counted.
func (m *model) pending(v, p int) int {
	part := m.vertices[v].parts[p]
	return len(part.stored) + len(part.held)
}

// alive is the number of messages anywhere at or below the vertices given; all for none.
func (m *model) alive(of ...string) (n int) {
	for _, v := range m.vertices {
		if len(of) > 0 && !slices.Contains(of, v.Name) {
			continue
		}
		n += v.unread + len(v.held)
		for _, p := range v.parts {
			n += len(p.stored) + len(p.held)
		}
	}
	return n
}

func (m *model) store(v int, e entry) {
	parts := m.vertices[v].parts
	p := parts[m.pick(len(parts))]
	p.end++
	e.seq = p.end
	p.stored = append(p.stored, e)
}

// moves are the steps that are possible now.
func (m *model) moves() (moves []func()) {
	for _, v := range m.vertices {
		if v.unread > 0 {
			moves = append(moves, func() {
				v.unread--
				v.held = append(v.held, &work{entry: entry{hops: 6}})
			})
		}
		for _, w := range v.held {
			moves = append(moves, func() { m.advance(v, w, func() { v.held = remove(v.held, w) }) })
		}
		if v.Partitions == 0 {
			if v.unread == 0 && len(v.held) == 0 {
				v.ended = true
			}
			continue
		}
		over := true
		for _, p := range v.parts {
			if len(p.stored) > 0 {
				moves = append(moves, func() {
					w := &work{entry: p.stored[0]}
					p.stored = p.stored[1:]
					p.held = append(p.held, w)
				})
			}
			for _, w := range p.held {
				moves = append(moves, func() {
					m.advance(v, w, func() {
						p.held = remove(p.held, w)
						p.done[w.seq] = true
						for p.done[p.floor+1] {
							p.floor++
						}
					})
				})
			}
			over = over && p.ended && len(p.held) == 0
		}
		v.ended = over
	}
	if m.replays > 0 && m.writing < 0 {
		moves = append(moves, func() {
			m.replays--
			to := m.vertices[1+m.pick(len(m.vertices)-1)]
			if to.Partitions > 0 && !m.refused[to.Name] {
				m.writing = m.index[to.Name]
			}
		})
	}
	if m.writing >= 0 {
		moves = append(moves, func() { m.store(m.writing, entry{hops: 3}); m.writing = -1 })
	}
	return moves
}

// advance takes a work one step further: it decides what becomes of it, writes one message, waits for a retry, or is done.
func (m *model) advance(v *vertexModel, w *work, done func()) {
	switch {
	case !w.set && m.pick(4) == 0: // it failed and is retried
	case !w.set:
		w.set = true
		if w.dup || w.hops == 0 || m.pick(6) == 0 {
			return // a duplicate, dropped, or dead-lettered: nothing is written
		}
		for _, to := range v.out {
			for range m.pick(3) { // several results, or none on this edge
				w.left = append(w.left, to)
			}
		}
	case len(w.left) > 0:
		m.store(w.left[0], entry{hops: w.hops - 1, dup: m.pick(8) == 0})
		w.left = w.left[1:]
	default:
		done()
	}
}

func remove(all []*work, w *work) []*work {
	return slices.DeleteFunc(slices.Clone(all), func(o *work) bool { return o == w })
}

// build makes a random pipeline: a source or two, vertices behind each other, edges forward, and some back.
func build(pick func(n int) int) *model {
	m := &model{index: map[string]int{}, pick: pick, writing: -1, refused: map[string]bool{}, replays: pick(3)}
	sources, others := 1+pick(2), 1+pick(4)
	for i := range sources + others {
		v := &vertexModel{Vertex: Vertex{Name: fmt.Sprint("v", i)}}
		if i < sources {
			v.unread = pick(4)
		} else {
			v.Partitions = 1 + pick(2)
			for range v.Partitions {
				v.parts = append(v.parts, &partition{done: map[uint64]bool{}})
			}
		}
		m.index[v.Name] = i
		m.vertices = append(m.vertices, v)
	}
	connect := func(from, to int) {
		e := Edge{m.vertices[from].Name, m.vertices[to].Name}
		if !slices.Contains(m.edges, e) {
			m.edges = append(m.edges, e)
			m.vertices[from].out = append(m.vertices[from].out, to)
		}
	}
	for to := sources; to < sources+others; to++ {
		connect(pick(to), to)
		if pick(2) == 0 {
			connect(pick(to), to)
		}
	}
	for from := range sources {
		connect(from, sources)
	}
	for range pick(3) { // cycles
		to := sources + pick(others)
		connect(to+pick(sources+others-to), to)
	}
	for i := sources; i < len(m.vertices); i++ { // what an earlier run left
		for range pick(3) {
			m.store(i, entry{hops: 3})
		}
	}
	return m
}

// run moves messages and asks the decider, in the order that pick chooses. It returns what the decider got wrong.
func (m *model) run(d decider) string {
	idle := 0
	for step := 0; ; step++ {
		moves := m.moves()
		for _, v := range m.vertices {
			if v.ended {
				d.Ended(v.Name)
			}
		}
		if len(moves) > 0 && m.pick(3) > 0 {
			moves[m.pick(len(moves))]()
			continue
		}
		switch a := d.Next(); a.Do {
		case Wait:
			d.Moved()
			if len(moves) == 0 {
				if idle++; idle > 1000 {
					return "it never ends"
				}
				continue
			}
			moves[m.pick(len(moves))]()
		case ReadFloor:
			d.Floor(m.vertices[m.index[a.Vertex]].parts[a.Partition].floor)
		case ReadEnd:
			d.End(m.vertices[m.index[a.Vertex]].parts[a.Partition].end)
		case Close:
			for _, v := range a.Group {
				m.refused[v] = true
				if m.writing == m.index[v] {
					m.store(m.writing, entry{hops: 3}) // who is writing finishes first
					m.writing = -1
				}
			}
			d.Closed()
		case EndInput:
			if n := m.alive(a.Group...); n > 0 {
				return fmt.Sprintf("the input of %v ends with %d messages in it", a.Group, n)
			}
			for _, v := range a.Group {
				for _, p := range m.vertices[m.index[v]].parts {
					p.ended = true
				}
			}
		case Finished:
			if n := m.alive(); n > 0 {
				return fmt.Sprintf("finished with %d messages", n)
			}
			if m.writing >= 0 {
				return "finished while a message is being written from outside"
			}
			return ""
		}
		idle = 0
	}
}

func (m *model) tracker(t interface{ Fatal(...any) }) *Tracker {
	var vertices []Vertex
	for _, v := range m.vertices {
		vertices = append(vertices, v.Vertex)
	}
	tracker, err := New(vertices, m.edges)
	if err != nil {
		t.Fatal(err)
	}
	return tracker
}

// TestNeverFinishedWhileAMessageIsAnywhere: whatever the pipeline, cycles included, and in whatever order its loops and the tracker take their turns, no input
// ends with a message in it, nor the pipeline with one anywhere; and it always ends.
func TestNeverFinishedWhileAMessageIsAnywhere(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := build(func(n int) int { return rapid.IntRange(0, n-1).Draw(t, "pick") })
		if wrong := m.run(m.tracker(t)); wrong != "" {
			t.Fatalf("%s (edges %v)", wrong, m.edges)
		}
	})
	for seed := range uint64(20_000) {
		m := build(rand.New(rand.NewPCG(seed, 0)).IntN)
		if wrong := m.run(m.tracker(t)); wrong != "" {
			t.Fatalf("seed %d: %s (edges %v)", seed, wrong, m.edges)
		}
	}
}

// pendingRule is the rule that was used before: once all sources have ended, pending messages are summed up over the partitions, one after the other.
type pendingRule struct {
	m       *model
	ended   map[string]bool
	at, sum int
	parts   [][2]int
}

func (r *pendingRule) Next() Action {
	for _, v := range r.m.vertices {
		if v.Partitions == 0 && !r.ended[v.Name] {
			return Action{Do: Wait}
		}
	}
	if r.at == len(r.parts) {
		if r.sum == 0 {
			return Action{Do: Finished}
		}
		r.at, r.sum = 0, 0
		return Action{Do: Wait}
	}
	p := r.parts[r.at]
	r.at++
	r.sum += r.m.pending(p[0], p[1])
	return Action{Do: ReadFloor, Vertex: r.m.vertices[p[0]].Name, Partition: p[1]}
}
func (r *pendingRule) Floor(uint64)   {}
func (r *pendingRule) End(uint64)     {}
func (r *pendingRule) Closed()        {}
func (r *pendingRule) Moved()         {}
func (r *pendingRule) Ended(v string) { r.ended[v] = true }

// endsFirst is a Tracker that reads each end before the floors.
type endsFirst struct {
	*Tracker
	m    *model
	ends map[string]uint64
}

func (r endsFirst) Next() Action {
	a := r.Tracker.Next()
	switch a.Do {
	case ReadFloor:
		if len(r.floors) == 0 {
			for _, p := range r.groups[r.at].partitions {
				r.ends[key(p)] = r.m.vertices[r.m.index[p.Vertex]].parts[p.Partition].end
			}
		}
	case ReadEnd:
		r.End(r.ends[key(a)])
		return r.Next()
	}
	return a
}

func key(a Action) string { return fmt.Sprint(a.Vertex, a.Partition) }

// neverCloses is a Tracker that does not keep others from writing.
type neverCloses struct{ *Tracker }

func (r neverCloses) Next() Action {
	a := r.Tracker.Next()
	if a.Do == Close {
		r.closed = true
		r.at, r.closed, r.moved = r.at+1, false, true
		a.Do = EndInput
	}
	return a
}

// TestModelFindsWrongRules: the model is strong enough to find what is wrong with rules that look right.
func TestModelFindsWrongRules(t *testing.T) {
	for name, rule := range map[string]func(m *model) decider{
		"pending messages summed up one partition after the other": func(m *model) decider {
			r := &pendingRule{m: m, ended: map[string]bool{}}
			for v := range m.vertices {
				for p := range m.vertices[v].parts {
					r.parts = append(r.parts, [2]int{v, p})
				}
			}
			return r
		},
		"ends read before floors":                    func(m *model) decider { return endsFirst{m.tracker(t), m, map[string]uint64{}} },
		"others write when the input has been ended": func(m *model) decider { return neverCloses{m.tracker(t)} },
	} {
		t.Run(name, func(t *testing.T) {
			for seed := range uint64(20_000) {
				m := build(rand.New(rand.NewPCG(seed, 0)).IntN)
				if wrong := m.run(rule(m)); wrong != "" && wrong != "it never ends" {
					t.Logf("found with seed %d: %s", seed, wrong)
					return
				}
			}
			t.Error("the model does not find anything wrong with it")
		})
	}
}

func TestEdgesOfUnknownVerticesAreRefused(t *testing.T) {
	if _, err := New([]Vertex{{Name: "in"}, {Name: "out", Partitions: 1}}, []Edge{{"in", "nowhere"}}); err == nil {
		t.Error("an edge to a vertex that does not exist was accepted")
	}
	if _, err := New([]Vertex{{Name: "in"}, {Name: "out", Partitions: 1}}, []Edge{{"out", "in"}}); err == nil {
		t.Error("an edge to a source was accepted")
	}
}
