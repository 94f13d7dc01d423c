package forward

import (
	"context"
	"errors"
	"hash/fnv"
	"slices"
	"strconv"
	"sync"

	"github.com/levada-io/levada/internal/dataplane/buffer"
	"github.com/levada-io/levada/internal/dataplane/deadletter"
	"github.com/levada-io/levada/internal/dataplane/function"
	"github.com/levada-io/levada/internal/flow"
)

// Edge is a way out of a vertex.
type Edge struct {
	To string
	// Condition decides by the tags of a result; nil lets all pass.
	Condition *Condition
	// Partitions are the partitions of the buffer of To. Their readers may be in other processes.
	Partitions []*buffer.Writer
	// ByKey sends all messages with the same keys to the same partition, as an ordered or keyed reader needs it.
	ByKey bool
	// Discard drops what does not fit (onFull: discardLatest). Otherwise writers wait.
	Discard bool
	// Back marks an edge that leads back to this vertex or one before it. It never waits: if it did, a full cycle could not empty itself.
	Back bool
}

// Condition is conditions.tags of an edge.
type Condition struct {
	Operator Operator
	Values   []string
}

// Operator of a Condition.
type Operator string

// The operators: any of the values is among the tags, all are, none is.
const (
	Or  Operator = "or"
	And Operator = "and"
	Not Operator = "not"
)

// Match reports whether a message with these tags passes. No condition lets all pass.
func (c *Condition) Match(tags []string) bool {
	if c == nil {
		return true
	}
	has := func(v string) bool { return slices.Contains(tags, v) }
	switch c.Operator {
	case And:
		return !slices.ContainsFunc(c.Values, func(v string) bool { return !has(v) })
	case Not:
		return !slices.ContainsFunc(c.Values, has)
	default:
		return slices.ContainsFunc(c.Values, has)
	}
}

// Limits of a block that is written. They do not depend on the broker's largest message, so that a block that is written again is divided the same way.
const (
	defaultBlockBytes = 512 << 10
	maxBlockMessages  = 2000
)

// Router writes to the buffers of the next vertices.
type Router struct {
	Edges  []Edge
	Events Observer
	// BlockBytes is the size in bytes, before compression, at which a block ends; 0 for 512 KiB. What was made of one message stays in one block, so that a
	// block is larger by as much of the last message as goes beyond it. It may differ from one start to the next: readers deduplicate by position.
	BlockBytes int
	pool       sync.Pool
}

// draft is an emission being written.
type draft struct {
	targets []target
	writes  []written
	refused error // a block of it can never be stored
}

type target struct {
	edge *Edge
	part *buffer.Writer
	enc  flow.Encoder
	used bool
	lo   uint64 // where its current block begins
	sent int    // bytes of payload in the current block

	lostMessages, lostBytes int
	full                    []sealed
}

// sealed is a block that was full before the emission ended.
type sealed struct {
	head  flow.Block
	enc   flow.Encoder
	bytes int
}

type written struct {
	write           *buffer.Write
	part            *buffer.Writer
	messages, bytes int
}

func (r *Router) draft() *draft {
	if d, ok := r.pool.Get().(*draft); ok {
		d.writes, d.refused = d.writes[:0], nil
		for i := range d.targets {
			d.targets[i].used, d.targets[i].full = false, nil
			d.targets[i].lostMessages, d.targets[i].lostBytes = 0, 0
		}
		return d
	}
	d := &draft{}
	for i := range r.Edges {
		for _, p := range r.Edges[i].Partitions {
			d.targets = append(d.targets, target{edge: &r.Edges[i], part: p})
		}
	}
	return d
}

// Begin implements Output.
func (r *Router) Begin(e *Emission) {
	d := r.draft()
	e.state = d
	suffix := ""
	if e.Stage != "" {
		suffix = "/" + e.Stage
	}
	var digits [20]byte
	for i := range e.In {
		in := &e.In[i]
		if e.Out == nil {
			id, tail := in.ID, ""
			if id == "" {
				id, tail = e.Work.IDPrefix, view(strconv.AppendUint(digits[:0], in.Pos, 10))
			}
			r.route(d, e, in, id, tail)
			r.divide(d, e, in.Pos)
			continue
		}
		for j := range e.Out[i].Results {
			m := &e.Out[i].Results[j]
			m.Pos = in.Pos
			tail := suffix
			if j > 0 {
				tail = suffix + "." + strconv.Itoa(j)
			}
			id := in.ID
			if id == "" {
				id = e.Work.name(in.Pos)
			}
			if len(id)+len(tail) > 190 {
				id, tail = flow.ChildID(id, e.Stage, j), ""
			}
			r.route(d, e, m, id, tail)
		}
		r.divide(d, e, in.Pos)
	}
}

// route puts a message into the block of each edge that it takes.
func (r *Router) route(d *draft, e *Emission, m *flow.Message, id, tail string) {
	at, passed := 0, false
	for i := range r.Edges {
		edge := &r.Edges[i]
		first := at
		at += len(edge.Partitions)
		if !edge.Condition.Match(m.Tags) {
			continue
		}
		passed = true
		t := &d.targets[first+edge.partition(e.Work, m, id)]
		if !t.used {
			t.used, t.lo, t.sent = true, e.Lo, 0
			t.enc.Reset(t.lo)
		}
		if edge.Discard && !t.part.Reserve() {
			t.lostMessages++
			t.lostBytes += len(m.Value)
			continue
		}
		t.enc.AppendAs(m, id, tail)
		t.sent += len(m.Value)
	}
	if !passed {
		r.Events.Dropped("", 1, len(m.Value), "forwarding-rules-not-met")
	}
}

// partition chooses by what never changes about a message, so that it goes the same way when it is written again.
func (edge *Edge) partition(w *Work, m *flow.Message, id string) int {
	n := uint64(len(edge.Partitions))
	if n == 1 {
		return 0
	}
	switch {
	case edge.ByKey:
		h := fnv.New64a()
		for _, k := range m.Keys {
			_, _ = h.Write([]byte(k))
			_, _ = h.Write([]byte{':'})
		}
		return int(mix(h.Sum64()) % n)
	case w.ByID:
		h := fnv.New64a()
		_, _ = h.Write([]byte(id))
		return int(mix(h.Sum64()) % n)
	default:
		return int(m.Pos / w.Stride % n)
	}
}

// mix spreads the low bits of a hash, which FNV does not do well for short texts (the finalizer of MurmurHash3).
func mix(h uint64) uint64 {
	h ^= h >> 33
	h *= 0xff51afd7ed558ccd
	return h ^ h>>33
}

// divide ends blocks that are large enough, after all results of the message at pos.
func (r *Router) divide(d *draft, e *Emission, pos uint64) {
	limit := r.BlockBytes
	if limit == 0 {
		limit = defaultBlockBytes
	}
	for i := range d.targets {
		t := &d.targets[i]
		if !t.used || t.enc.Len() < limit && t.enc.Count() < maxBlockMessages {
			continue
		}
		t.full = append(t.full, sealed{head: e.head(t.lo, pos), enc: t.enc, bytes: t.sent})
		t.enc = flow.Encoder{}
		t.lo, t.sent = pos+1, 0
		t.enc.Reset(t.lo)
	}
}

// head is the header of a block that covers lo..hi of an emission.
func (e *Emission) head(lo, hi uint64) flow.Block {
	b := flow.Block{Lane: e.Work.Lane, Lo: lo, Hi: hi, ByID: e.Work.ByID, Watermark: flow.NoWatermark}
	for _, s := range e.Spans {
		if s.Hi < lo || s.Lo > hi {
			continue
		}
		b.Cover = append(b.Cover, flow.Span{Lo: max(s.Lo, lo), Hi: min(s.Hi, hi)})
	}
	if len(b.Cover) == 1 && b.Cover[0] == (flow.Span{Lo: lo, Hi: hi}) {
		b.Cover = nil
	}
	return b
}

// Submit implements Output.
func (r *Router) Submit(ctx context.Context, e *Emission) error {
	d := e.state.(*draft)
	floor := e.Floor()
	for i := range d.targets {
		t := &d.targets[i]
		if !t.used {
			continue
		}
		if t.lostMessages > 0 {
			r.Events.Dropped(t.part.Name(), t.lostMessages, t.lostBytes, "buffer-full")
		}
		for k := range t.full {
			s := &t.full[k]
			if err := r.write(ctx, d, t, &s.head, &s.enc, s.bytes, floor); err != nil {
				return err
			}
		}
		if t.enc.Count() == 0 {
			continue
		}
		head := e.head(t.lo, e.Hi)
		if err := r.write(ctx, d, t, &head, &t.enc, t.sent, floor); err != nil {
			return err
		}
	}
	return nil
}

func (r *Router) write(ctx context.Context, d *draft, t *target, head *flow.Block, enc *flow.Encoder, bytes int, floor uint64) error {
	if !t.edge.Discard && !t.edge.Back {
		if err := t.part.WaitForRoom(ctx); err != nil {
			return err
		}
	}
	head.Floor = floor
	w, err := t.part.Write(ctx, head, enc)
	if errors.Is(err, buffer.ErrTooLarge) {
		d.refused = err
		if t.edge.Discard {
			t.part.Unreserve(enc.Count())
		}
		return nil
	}
	if err != nil {
		return err
	}
	if t.edge.Discard {
		t.part.Unreserve(enc.Count())
	}
	d.writes = append(d.writes, written{w, t.part, enc.Count(), bytes})
	return nil
}

// Wait implements Output.
func (r *Router) Wait(ctx context.Context, e *Emission) error {
	d := e.state.(*draft)
	for _, w := range d.writes {
		err := w.write.Wait(ctx)
		if errors.Is(err, buffer.ErrTooLarge) {
			d.refused = err
			continue
		}
		if err != nil {
			return err
		}
		r.Events.Wrote(w.part.Name(), w.messages, w.bytes)
	}
	refused := d.refused
	r.pool.Put(d)
	e.state = nil
	if refused != nil {
		return r.oneByOne(ctx, e, refused)
	}
	return nil
}

// oneByOne writes an emission of which a block can never be stored message by message. What was stored already is dropped by its positions downstream; a message that
// cannot even be stored alone is left in e.Later, to be dead-lettered.
func (r *Router) oneByOne(ctx context.Context, e *Emission, refused error) error {
	if len(e.In) == 1 {
		l := Later{Message: e.In[0], Attempts: 1}
		l.Outcome = function.Outcome{Verdict: function.Broken, Failure: &deadletter.Failure{Reason: deadletter.Oversize, Attempts: 1, Error: "what was made of it can never be stored: " + refused.Error()}}
		e.Later = append(e.Later, l)
		return nil
	}
	for k := range e.In {
		one := &Emission{Work: e.Work, In: e.In[k : k+1], Stage: e.Stage, Floor: e.Floor, index: e.index[k : k+1]}
		if e.Out != nil {
			one.Out = e.Out[k : k+1]
		}
		one.cover(one.index)
		r.Begin(one)
		if err := r.Submit(ctx, one); err != nil {
			return err
		}
		if err := r.Wait(ctx, one); err != nil {
			return err
		}
		e.Later = append(e.Later, one.Later...)
	}
	return nil
}
