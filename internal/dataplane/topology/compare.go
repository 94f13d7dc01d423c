package topology

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Class says what a change demands.
type Class int

// Classes of changes.
const (
	// Safe changes may be made at any time.
	Safe Class = iota
	// AfterDrain changes are safe once what is in flight has been processed with the stored topology.
	AfterDrain
	// Refused changes are not made: draining does not help.
	Refused
)

func (c Class) String() string { return [...]string{"safe", "after drain", "refused"}[c] }

// Hazard says what would become of the messages.
type Hazard int

// Hazards of changes.
const (
	None Hazard = iota
	Lost
	Twice
	Overtaken
)

func (h Hazard) String() string { return [...]string{"", "lost", "twice", "overtaken"}[h] }

// Change is one difference between what is stored and what is wanted.
type Change struct {
	Class  Class
	Hazard Hazard
	// What says what differs; Reason what that means for messages in flight.
	What, Reason string
	// Vertex holds the messages concerned, in one partition or, with -1, in all. Messages is their number; 0 if it is unknown, as with those that a source reads again.
	Vertex    string
	Partition int
	Messages  int
	// Way is a way forward beside those that the class has; empty for none.
	Way string
}

func (c Change) String() string {
	s := c.What
	if c.Reason != "" {
		s += ". " + c.Reason
	}
	return s
}

// State is what is in flight.
type State struct {
	// Pending is the number of messages in a partition that are not known to be done.
	Pending func(vertex string, partition int) int
	// Settled reports whether everything that a vertex began to write was finished: it stopped in an orderly way. A source that is not settled gives some messages
	// again, and some messages of a buffer may be written in part.
	Settled func(vertex string) bool
	// HasRead reports whether a source ever read anything.
	HasRead func(vertex string) bool
}

// Compare lists the differences, the safe ones as well.
func Compare(stored, wanted *Topology, state State) []Change {
	c := comparison{stored: stored, wanted: wanted, state: state}
	for i := range stored.Vertices {
		c.vertex(&stored.Vertices[i])
	}
	for i := range wanted.Vertices {
		// A source has no stream, so that without a record nothing is known about it.
		if v := &wanted.Vertices[i]; stored.Vertex(v.Name) == nil && (v.Source == nil || !stored.Partial) {
			c.safe(v.Name, "vertex %s is new", v.Name)
		}
	}
	if !stored.Partial {
		c.rereads()
		c.leftBehind()
		c.edges()
	}
	return c.changes
}

type comparison struct {
	stored, wanted *Topology
	state          State
	changes        []Change
}

func (c *comparison) add(ch Change) { c.changes = append(c.changes, ch) }

func (c *comparison) safe(vertex, what string, args ...any) {
	c.add(Change{Class: Safe, Vertex: vertex, Partition: -1, What: fmt.Sprintf(what, args...)})
}

// pending is what the buffer of a vertex holds in all partitions, as stored.
func (c *comparison) pending(v *Vertex) (n int) {
	for p := range v.Partitions {
		n += c.state.Pending(v.Name, p)
	}
	return n
}

// busy reports whether a vertex has messages that are not in all of its outputs.
func (c *comparison) busy(v *Vertex) bool {
	return c.isSource(v) && !c.state.Settled(v.Name) || c.pending(v) > 0
}

// partly reports whether some of its messages may be in one of its outputs already.
func (c *comparison) partly(v *Vertex) bool {
	return !c.state.Settled(v.Name) && (c.isSource(v) || c.pending(v) > 0)
}

func (c *comparison) isSource(v *Vertex) bool { return v.Source != nil }

// upstream are the vertices that write to v and did so before.
func (c *comparison) upstream(name string) (all []*Vertex) {
	edges := c.stored.Edges
	if c.stored.Partial {
		edges = c.wanted.Edges
	}
	for _, e := range edges {
		if e.To != name {
			continue
		}
		v := c.stored.Vertex(e.From)
		if v == nil && c.stored.Partial { // a source has no stream
			v = c.wanted.Vertex(e.From)
		}
		if v != nil && !slices.Contains(all, v) {
			all = append(all, v)
		}
	}
	return all
}

func (c *comparison) vertex(was *Vertex) {
	now := c.wanted.Vertex(was.Name)
	if now == nil {
		what := fmt.Sprintf("vertex %s is not in the manifest any more", was.Name)
		if to := c.renamed(was); to != "" {
			what += fmt.Sprintf(" (%s looks like it under a new name)", to)
		}
		c.gone(was, what, "Nothing would process its messages")
		return
	}
	if was.Kind != "" && was.Kind != now.Kind {
		c.gone(was, fmt.Sprintf("vertex %s was a %s and is a %s", was.Name, was.Kind, now.Kind), "Its messages were meant for the former")
		return
	}
	if was.Source != nil && now.Source != nil {
		c.source(was, now)
	}
	c.partitions(was, now)
	c.sinks(was, now)
	if was.Memory != now.Memory && !c.stored.Partial {
		c.safe(was.Name, "the storage of %s is changed: buffers that exist keep the one they have", was.Name)
	}
}

// gone is a vertex that is not there any more as what it was.
func (c *comparison) gone(was *Vertex, what, reason string) {
	if was.Source != nil {
		if c.state.Settled(was.Name) {
			c.safe(was.Name, "%s", what)
			return
		}
		c.add(Change{
			Class: AfterDrain, Hazard: Lost, Vertex: was.Name, Partition: -1, What: what,
			Reason: "It was not stopped in an orderly way: what it read last may have reached only some of its outputs",
		})
		return
	}
	held := false
	for p := range was.Partitions {
		if n := c.state.Pending(was.Name, p); n > 0 {
			held = true
			c.add(Change{Class: AfterDrain, Hazard: Lost, Vertex: was.Name, Partition: p, Messages: n, What: what, Reason: reason})
		}
	}
	if !held {
		c.safe(was.Name, "%s", what)
	}
}

// renamed finds the new vertex that stands where was stood.
func (c *comparison) renamed(was *Vertex) string {
	for i := range c.wanted.Vertices {
		v := &c.wanted.Vertices[i]
		if c.stored.Vertex(v.Name) != nil || was.Kind != "" && v.Kind != was.Kind || c.stored.Partial && v.Source != nil {
			continue
		}
		if c.stored.Partial || slices.Equal(c.around(c.stored, was.Name), c.around(c.wanted, v.Name)) {
			return v.Name
		}
	}
	return ""
}

// around are the neighbours of a vertex. Those that are new or gone count as one, so that two vertices may be renamed at a time.
func (c *comparison) around(t *Topology, name string) (all []string) {
	known := func(v string) string {
		if c.stored.Vertex(v) != nil && c.wanted.Vertex(v) != nil {
			return v
		}
		return "?"
	}
	for _, e := range t.Edges {
		if e.To == name {
			all = append(all, known(e.From)+">")
		}
		if e.From == name {
			all = append(all, ">"+known(e.To))
		}
	}
	slices.Sort(all)
	return all
}

func (c *comparison) source(was, now *Vertex) {
	a, b := *was.Source, *now.Source
	what := ""
	switch {
	case !a.same(b):
		what = fmt.Sprintf("source %s reads %s instead of %s", was.Name, b, a)
	case a.How != b.How:
		what = fmt.Sprintf("source %s divides %s into messages in another way (%s instead of %s)", was.Name, a, b.How, a.How)
	default:
		return
	}
	if c.state.Settled(was.Name) {
		c.safe(was.Name, "%s", what)
		return
	}
	c.add(Change{
		Class: AfterDrain, Hazard: Twice, Vertex: was.Name, Partition: -1, What: what,
		Reason: "It was not stopped in an orderly way: what it read last may have been written in part, and would not be read again in the same way",
	})
}

func (c *comparison) partitions(was, now *Vertex) {
	changed := was.Partitions != now.Partitions
	ordered := !c.stored.Partial && was.Ordered != now.Ordered && max(was.Partitions, now.Partitions) > 1
	if was.Source != nil || !changed && !ordered {
		if was.Ordered != now.Ordered && !c.stored.Partial && !ordered {
			c.safe(was.Name, "vertex %s %s", was.Name, orderedText(now.Ordered))
		}
		return
	}
	what := fmt.Sprintf("vertex %s has %s instead of %d", was.Name, count(now.Partitions, "partition"), was.Partitions)
	if !changed {
		what = fmt.Sprintf("vertex %s %s", was.Name, orderedText(now.Ordered))
	}
	c.repartition(was, now, what)
}

// repartition is a vertex whose messages are divided otherwise from now on.
func (c *comparison) repartition(was, now *Vertex, what string) {
	before := len(c.changes)
	for p := now.Partitions; p < was.Partitions; p++ {
		if n := c.state.Pending(was.Name, p); n > 0 {
			c.add(Change{Class: AfterDrain, Hazard: Lost, Vertex: was.Name, Partition: p, Messages: n, What: what, Reason: "Nothing would read this partition"})
		}
	}
	for _, u := range c.upstream(was.Name) {
		if c.partly(u) {
			c.add(Change{
				Class: AfterDrain, Hazard: Twice, Vertex: u.Name, Partition: -1, Messages: c.pending(u), What: what,
				Reason: fmt.Sprintf("%s was not stopped in an orderly way: what it wrote in part would be written again, to other partitions", u.Name),
			})
		}
	}
	if n := c.pending(was); n > 0 && now.Ordered {
		c.add(Change{
			Class: AfterDrain, Hazard: Overtaken, Vertex: was.Name, Partition: -1, Messages: n, What: what,
			Reason: "The vertex is ordered: messages with the same keys would go to other partitions and overtake those that are waiting",
		})
	}
	if len(c.changes) == before {
		c.safe(was.Name, "%s", what)
	}
}

func orderedText(on bool) string {
	if on {
		return "is ordered now"
	}
	return "is not ordered any more"
}

func (c *comparison) sinks(was, now *Vertex) {
	for _, role := range slices.Sorted(maps.Keys(was.Sinks)) {
		a, b := was.Sinks[role], now.Sinks[role]
		if a.same(b) {
			continue
		}
		what := fmt.Sprintf("%s of %s is %s instead of %s", roleText(role), was.Name, b, a)
		if b.Type == "" {
			what = fmt.Sprintf("%s of %s, %s, is not in the manifest any more", roleText(role), was.Name, a)
		}
		if c.partly(was) {
			c.add(Change{
				Class: AfterDrain, Hazard: Twice, Vertex: was.Name, Partition: -1, Messages: c.pending(was), What: what,
				Reason: "It was not stopped in an orderly way: what the former sink has and did not confirm would be written to the new one as well",
			})
			continue
		}
		c.safe(was.Name, "%s", what)
	}
}

func roleText(role string) string {
	switch role {
	case "fallback":
		return "the fallback sink"
	case "onSuccess":
		return "the on-success sink"
	}
	return "the sink"
}

// rereads finds inputs that would be read again from their start, because what remembers how far they were read has another name now.
func (c *comparison) rereads() {
	for i := range c.wanted.Vertices {
		now := &c.wanted.Vertices[i]
		if now.Source == nil || now.Source.Cursor == "" {
			continue
		}
		for k := range c.stored.Vertices {
			was := &c.stored.Vertices[k]
			if was.Source == nil || !was.Source.same(*now.Source) || was.Source.Cursor == now.Source.Cursor {
				continue
			}
			kept := readBy(c.wanted.Vertices, was.Source)
			known := readBy(c.stored.Vertices, now.Source)
			if !kept && !known && c.state.HasRead(was.Name) { // otherwise it is another reader of the same input, or one that read nothing yet
				c.add(reread(was, now))
			}
		}
	}
}

// readBy reports whether one of the vertices reads what a source does, and remembers how far by the same name.
func readBy(vertices []Vertex, s *Endpoint) bool {
	return slices.ContainsFunc(vertices, func(v Vertex) bool { return v.Source != nil && v.Source.same(*s) && v.Source.Cursor == s.Cursor })
}

// reread is a source whose input would be read again from its start.
func reread(was, now *Vertex) Change {
	ch := Change{
		Class: Refused, Hazard: Twice, Vertex: was.Name, Partition: -1,
		What:   fmt.Sprintf("source %s, which reads %s, is %s now", was.Name, was.Source, now.Name),
		Reason: "How far it was read is remembered under the old name. Under the new one it would be read again from its start, and all of it counted twice",
		Way:    fmt.Sprintf("call the vertex %s again", was.Name),
	}
	if was.Name == now.Name {
		ch.What = fmt.Sprintf("source %s reads %s with the consumer %s instead of %s", now.Name, now.Source, now.Source.Cursor, was.Source.Cursor)
		ch.Reason = "How far it was read is remembered by the consumer. A new one would read messages again, or leave some out"
		ch.Way = fmt.Sprintf("set the consumer to %s again", was.Source.Cursor)
	}
	return ch
}

// leftBehind finds outputs whose records are kept under the name of a vertex that is called otherwise now: who reads them would not find the rest.
func (c *comparison) leftBehind() {
	for i := range c.wanted.Vertices {
		now := &c.wanted.Vertices[i]
		for _, role := range slices.Sorted(maps.Keys(now.Sinks)) {
			b := now.Sinks[role]
			for k := range c.stored.Vertices {
				was := &c.stored.Vertices[k]
				a, had := was.Sinks[role]
				if !had || a.Cursor == "" || was.Name == now.Name || !a.same(b) || c.wanted.Vertex(was.Name) != nil {
					continue
				}
				c.add(Change{
					Class: Refused, Hazard: Lost, Vertex: was.Name, Partition: -1,
					What:   fmt.Sprintf("%s of %s, %s, is that of %s now", roleText(role), was.Name, a, now.Name),
					Reason: "Its records are kept under the old name. Readers that have not read all of them would not find the rest",
					Way:    fmt.Sprintf("call the vertex %s again", was.Name),
				})
			}
		}
	}
}

func (c *comparison) edges() {
	key := func(e Edge) string { return e.From + " -> " + e.To }
	index := func(all []Edge) map[string]Edge {
		m := map[string]Edge{}
		for _, e := range all {
			m[key(e)] = e
		}
		return m
	}
	was, now := index(c.stored.Edges), index(c.wanted.Edges)
	for _, e := range c.stored.Edges {
		from := c.wanted.Vertex(e.From)
		if from == nil {
			continue // its own messages are accounted for
		}
		u := c.stored.Vertex(e.From)
		n, there := now[key(e)]
		switch {
		case !there:
			c.edge(u, Lost, fmt.Sprintf("edge %s is not in the manifest any more", key(e)),
				fmt.Sprintf("Messages that %s has not finished would not reach %s", u.Name, e.To))
		case n.Condition != e.Condition:
			c.edge(u, Twice, fmt.Sprintf("the condition of edge %s is %s instead of %s", key(e), conditionText(n.Condition), conditionText(e.Condition)),
				fmt.Sprintf("Messages that %s has not finished may have taken one way and would take another, or none", u.Name))
		case n.Discard != e.Discard:
			c.safe(e.From, "onFull of edge %s is changed", key(e))
		}
	}
	for _, e := range c.wanted.Edges {
		if _, there := was[key(e)]; !there {
			c.safe(e.From, "edge %s is new", key(e))
		}
	}
}

func (c *comparison) edge(u *Vertex, h Hazard, what, reason string) {
	if !c.busy(u) {
		c.safe(u.Name, "%s", what)
		return
	}
	c.add(Change{Class: AfterDrain, Hazard: h, Vertex: u.Name, Partition: -1, Messages: c.pending(u), What: what, Reason: reason})
}

func conditionText(s string) string {
	if s == "" {
		return "none"
	}
	return s
}

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// Unsafe are the changes that may not be made now.
func Unsafe(changes []Change) (unsafe []Change) {
	for _, c := range changes {
		if c.Class != Safe {
			unsafe = append(unsafe, c)
		}
	}
	return unsafe
}

// Explain is the message of a refusal: each change with its vertex, partition and number of messages, and what can be done. drainable says that the record
// holds what it takes to run the pipeline as it was.
func Explain(stored *Topology, unsafe []Change, drainable bool) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s: the manifest cannot be applied to what is stored, and nothing was changed:\n", stored.Kind, stored.ID())
	var ways []string
	way := func(s string) {
		if s != "" && !slices.Contains(ways, s) {
			ways = append(ways, s)
		}
	}
	// --discard is named only where it is enough.
	drain, enough, held, total := false, true, []string{}, 0
	for _, c := range unsafe {
		where := "vertex " + c.Vertex
		if c.Partition >= 0 {
			where += fmt.Sprintf(", partition %d", c.Partition)
		}
		if c.Messages > 0 {
			where += ", " + count(c.Messages, "message")
		}
		fmt.Fprintf(&b, "  - %s: %s\n", where, c)
		drain = drain || c.Class == AfterDrain
		if c.Class == AfterDrain && c.Hazard == Lost && c.Messages > 0 {
			if !slices.Contains(held, c.Vertex) {
				held = append(held, c.Vertex)
			}
			total += c.Messages
		} else {
			enough = false
		}
		way(c.Way)
	}
	if drain {
		if drainable {
			way("finish what is in flight with the stored topology first, and go on with this manifest then: levada run --drain-old")
		}
		way("run the manifest as it was once more until nothing is pending, and stop it with SIGTERM or Ctrl-C if it does not end by itself")
	}
	if enough {
		way(fmt.Sprintf("drop %s for good: levada run --discard %s", count(total, "message"), strings.Join(held, ",")))
	}
	b.WriteString("What you can do:\n")
	for _, w := range ways {
		fmt.Fprintf(&b, "  - %s\n", w)
	}
	b.WriteString("See docs/changing-a-pipeline.md.")
	return b.String()
}
