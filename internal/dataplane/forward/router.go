package forward

import (
	"context"
	"errors"
	"strconv"
	"sync"

	"github.com/levada-io/levada/internal/dataplane/buffer"
	"github.com/levada-io/levada/internal/dataplane/deadletter"
	"github.com/levada-io/levada/internal/flow"
)

// Limits of a block that is written. They do not depend on the broker's largest message, so that a block that is written again is divided the same way.
const (
	defaultBlockBytes = 512 << 10
	maxBlockMessages  = 2000
)

// Router writes to the buffers of the next vertices.
//
// Submit may wait for room, in order of the edges; Wait waits until all blocks are durable. Several emissions are under way at the same time.
type Router struct {
	// Edges do not change once the loop runs. A message goes to every edge whose condition it meets; without one it is dropped, and counted.
	Edges  []Edge
	Events Observer
	// BlockBytes is the size in bytes, before compression, at which a block ends; 0 for 512 KiB. What was made of one message stays in one block, so that a
	// block is larger by as much of the last message as goes beyond it. It may differ from one start to the next: readers deduplicate by position.
	BlockBytes int
	pool       sync.Pool // of drafts
}

// draft is an emission being written. It implements PendingWrite.
//
// Drafts are used again, with the memory of their encoders: Begin takes one, and Wait gives it back. One whose Submit or Wait fails is left to the collector.
type draft struct {
	router *Router
	e      *Emission
	// targets has each shard of each partition of each edge, in the order of Router.Edges. Invariant: the same for all drafts of a router.
	targets []target
	writes  []written // blocks whose receipts are out
	refused error     // a block of it can never be stored
}

// target is one shard of a partition of an edge.
type target struct {
	edge  *Edge
	part  *buffer.Writer
	shard int
	enc   flow.Encoder // the current block
	used  bool         // something of the emission goes there. Otherwise enc and lo are of another emission
	lo    uint64       // where its current block begins
	sent  int          // bytes of payload in the current block

	// lostMessages are those that the edge dropped for want of room.
	lostMessages, lostBytes int
	full                    []fullBlock // blocks before the current one, in order
}

// fullBlock is a block that was full before the emission ended.
type fullBlock struct {
	head  flow.Block // without the floor, which is asked for when it is written
	enc   flow.Encoder
	bytes int // of payload
}

// written is a block on its way to the broker.
type written struct {
	write           *buffer.Write
	part            *buffer.Writer
	messages, bytes int
}

// draft returns one for an emission, with nothing in it.
func (r *Router) draft(e *Emission) *draft {
	if d, ok := r.pool.Get().(*draft); ok {
		d.e, d.writes, d.refused = e, d.writes[:0], nil
		for i := range d.targets {
			d.targets[i].used, d.targets[i].full = false, nil
			d.targets[i].lostMessages, d.targets[i].lostBytes = 0, 0
		}
		return d
	}
	d := &draft{router: r, e: e}
	for i := range r.Edges {
		for _, p := range r.Edges[i].Partitions {
			for shard := range p.Shards() {
				d.targets = append(d.targets, target{edge: &r.Edges[i], part: p, shard: shard})
			}
		}
	}
	return d
}

// Begin implements Output.
func (r *Router) Begin(e *Emission) PendingWrite {
	d := r.draft(e)
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
				id, tail = e.IDPrefix, view(strconv.AppendUint(digits[:0], in.Pos, 10))
			}
			d.route(in, id, tail)
		} else {
			d.routeResults(in, e.Out[i].Results, suffix)
		}
		d.divide(in.Pos)
	}
	return d
}

// routeResults puts the results of a message into blocks. Their ids are that of the message and suffix.
func (d *draft) routeResults(in *flow.Message, results []flow.Message, suffix string) {
	id := in.ID
	if id == "" {
		id = d.e.name(in.Pos)
	}
	for j := range results {
		m := &results[j]
		m.Pos = in.Pos
		parent, tail := id, suffix
		if j > 0 {
			tail = suffix + "." + strconv.Itoa(j)
		}
		if len(id)+len(tail) > 190 {
			parent, tail = flow.ChildID(id, d.e.Stage, j), ""
		}
		d.route(m, parent, tail)
	}
}

// route puts a message into the block of each edge that it takes.
func (d *draft) route(m *flow.Message, id, tail string) {
	at, passed, edges := 0, false, d.router.Edges
	for i := range edges {
		edge := &edges[i]
		first := at
		for _, p := range edge.Partitions {
			at += p.Shards()
		}
		if !edge.Condition.Match(m.Tags) {
			continue
		}
		passed = true
		partition, shard := edge.target(&d.e.Origin, m, id)
		for _, p := range edge.Partitions[:partition] {
			first += p.Shards()
		}
		t := &d.targets[first+shard]
		if !t.used {
			t.used, t.lo, t.sent = true, d.e.Lo, 0
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
		d.router.Events.Dropped("", 1, len(m.Value), "forwarding-rules-not-met")
	}
}

// divide ends blocks that are large enough, after all results of the message at pos.
func (d *draft) divide(pos uint64) {
	limit := d.router.BlockBytes
	if limit == 0 {
		limit = defaultBlockBytes
	}
	for i := range d.targets {
		t := &d.targets[i]
		if !t.used || t.enc.Len() < limit && t.enc.Count() < maxBlockMessages {
			continue
		}
		t.full = append(t.full, fullBlock{head: d.e.head(t.lo, pos), enc: t.enc, bytes: t.sent})
		t.enc = flow.Encoder{}
		t.lo, t.sent = pos+1, 0
		t.enc.Reset(t.lo)
	}
}

// Submit implements PendingWrite.
func (d *draft) Submit(ctx context.Context) error {
	floor := d.e.Floor()
	for i := range d.targets {
		t := &d.targets[i]
		if !t.used {
			continue
		}
		if t.lostMessages > 0 {
			d.router.Events.Dropped(t.part.Name(), t.lostMessages, t.lostBytes, "buffer-full")
		}
		for k := range t.full {
			b := &t.full[k]
			if err := d.write(ctx, t, &b.head, &b.enc, b.bytes, floor); err != nil {
				return err
			}
		}
		if t.enc.Count() == 0 {
			continue
		}
		head := d.e.head(t.lo, d.e.Hi)
		if err := d.write(ctx, t, &head, &t.enc, t.sent, floor); err != nil {
			return err
		}
	}
	return nil
}

// write gives a block to its shard, once there is room. An edge that discards has reserved its room message by message; one that leads back never waits.
func (d *draft) write(ctx context.Context, t *target, head *flow.Block, enc *flow.Encoder, bytes int, floor uint64) error {
	if !t.edge.Discard && !t.edge.Back {
		if err := t.part.WaitForRoom(ctx); err != nil {
			return err
		}
	}
	head.Floor = floor
	w, err := t.part.WriteTo(ctx, t.shard, head, enc)
	tooLarge := errors.Is(err, buffer.ErrTooLarge)
	if err != nil && !tooLarge {
		return err
	}
	if t.edge.Discard {
		t.part.Unreserve(enc.Count())
	}
	if tooLarge {
		d.refused = err
		return nil
	}
	d.writes = append(d.writes, written{w, t.part, enc.Count(), bytes})
	return nil
}

// Wait implements PendingWrite.
func (d *draft) Wait(ctx context.Context) error {
	r, e := d.router, d.e
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
	d.e = nil
	r.pool.Put(d)
	if refused != nil {
		return r.oneByOne(ctx, e, refused)
	}
	return nil
}

// oneByOne writes an emission of which a block can never be stored message by message. What was stored already is dropped by its positions downstream; a message that
// cannot even be stored alone is left in e.Later, to be dead-lettered.
func (r *Router) oneByOne(ctx context.Context, e *Emission, refused error) error {
	if len(e.In) == 1 {
		failure := &deadletter.Failure{Reason: deadletter.Oversize, Attempts: 1, Error: "what was made of it can never be stored: " + refused.Error()}
		e.Later = append(e.Later, Later{Message: e.In[0], Attempts: 1, Outcome: brokenOutcome(failure)})
		return nil
	}
	for k := range e.In {
		one := e.single(k)
		d := r.Begin(one)
		if err := d.Submit(ctx); err != nil {
			return err
		}
		if err := d.Wait(ctx); err != nil {
			return err
		}
		e.Later = append(e.Later, one.Later...)
	}
	return nil
}
