package buffer

import (
	"context"
	"maps"
	"slices"

	"github.com/levada-io/levada/internal/flow"
)

// A block is a unit of storage. What is done of it is remembered message by message, by their places in the block, and saved with the floor: at every
// trim and at Close. After a restart the block is read again from the store, since its sequence is above the floor, and messages that were done are left out.
//
// Three rules make that safe.
//   - A place is saved as done only after everything made of its message is durable elsewhere (DonePart), and state and floor are saved in one step. A
//     state that is too old repeats work, which the next reader drops by its positions; no state can be too new.
//   - Progress belongs to a stored entry, not to a sequence: a store that lost its end may give a sequence again. The time at which the store took the
//     entry tells them apart, and progress of another entry is dropped.
//   - The positions of a message are made of its sequence and its place as stored, so they do not change when others are left out.

// progress is what is done of a block above the floor.
type progress struct {
	stored int64       // when the store took the block's last entry, in nanoseconds
	all    bool        // all of it
	spans  []flow.Span // the places that are done, disjoint and ascending; whatever lies between two of them is not
}

// DonePart says that everything made of the messages from..to-1 of the block is durable elsewhere. Each message is done once, by DonePart or with the
// whole block by Done. The block itself is done with its last message.
func (r *Reader) DonePart(ctx context.Context, d *Delivery, from, to int) {
	if from >= to {
		return
	}
	if from == 0 && to == len(d.Block.Messages) {
		r.Done(ctx, d)
		return
	}
	r.mu.Lock()
	h := r.held[d.Seq]
	if h == nil || h.done {
		r.mu.Unlock()
		return
	}
	span := flow.Span{Hi: uint64(d.Place(to - 1))}
	if from > 0 {
		span.Lo = uint64(d.Place(from-1)) + 1 // places between are of messages that were left out: they are done, too
	}
	h.spans = addSpan(h.spans, span)
	h.parts += to - from
	whole := h.parts >= len(d.Block.Messages)
	freed := 0
	if !whole {
		consumed := within(h.taken, from, to)
		h.consumed, r.consumed = h.consumed-consumed, r.consumed-consumed
		freed = r.forget(d.seqs, to-from-consumed)
		r.passIfConsumed(d, h)
	}
	r.progressed = true
	r.mu.Unlock()
	if whole {
		r.Done(ctx, d)
		return
	}
	r.usage.done(freed)
}

// forget takes n messages off what a block counts as pending. mu is held.
func (r *Reader) forget(seqs []uint64, n int) int {
	for _, s := range seqs {
		if h := r.held[s]; h != nil && h.messages > 0 {
			n = min(n, h.messages)
			h.messages -= n
			return n
		}
	}
	return 0
}

// addSpan adds a range to disjoint, ascending ones, and joins what touches.
func addSpan(spans []flow.Span, s flow.Span) []flow.Span {
	i, _ := slices.BinarySearchFunc(spans, s.Lo, func(a flow.Span, lo uint64) int {
		if a.Hi+1 < lo {
			return -1
		}
		return 1
	})
	j := i
	for j < len(spans) && spans[j].Lo <= s.Hi+1 {
		s.Lo, s.Hi = min(s.Lo, spans[j].Lo), max(s.Hi, spans[j].Hi)
		j++
	}
	return slices.Replace(spans, i, j, s)
}

// doneEarlier is how many of the n messages of a stored entry an earlier reader has done: they are not pending.
func (p *place) doneEarlier(e Entry, n int) int {
	was, ok := p.earlier[e.Seq]
	if !ok || was.stored != e.Stored.UnixNano() {
		return 0
	}
	return was.count(n)
}

// count is how many of n messages are done.
func (pr progress) count(n int) (done int) {
	if pr.all {
		return n
	}
	for _, s := range pr.spans {
		done += int(s.Hi - s.Lo + 1)
	}
	return min(n, done)
}

// takeUp leaves out of a block that was read again what an earlier reader had done of it. It returns how many pending messages that frees. mu is held.
func (r *Reader) takeUp(b *flow.Block, seqs []uint64) (freed int) {
	seq := seqs[len(seqs)-1]
	was, ok := r.earlier[seq]
	if !ok {
		return 0
	}
	delete(r.earlier, seq)
	h := r.held[seq]
	if was.stored != h.stored {
		return 0 // of another block, which the store has lost since
	}
	stored := 0
	for _, s := range seqs {
		stored += r.held[s].messages
	}
	freed = r.forget(seqs, was.count(stored))
	if was.all {
		h.repeated = true
		b.Messages, b.Places = nil, nil
		return freed
	}
	h.spans = was.spans
	kept, places := b.Messages[:0], make([]int32, 0, len(b.Messages))
	for i := range b.Messages {
		place := int32(i)
		if b.Places != nil {
			place = b.Places[i]
		}
		if !inSpans(was.spans, uint64(place)) {
			kept, places = append(kept, b.Messages[i]), append(places, place)
		}
	}
	b.Messages, b.Places = kept, places
	return freed
}

// inSpans reports whether a place is in one of the spans, which ascend.
func inSpans(spans []flow.Span, place uint64) bool {
	i, _ := slices.BinarySearchFunc(spans, place, func(a flow.Span, v uint64) int {
		if a.Hi < v {
			return -1
		}
		return 1
	})
	return i < len(spans) && spans[i].Lo <= place
}

// progressNow is what is done above the floor, of blocks that were read and of those that have not been read again. mu is held.
func (r *Reader) progressNow() map[uint64]progress {
	now := maps.Clone(r.earlier)
	if now == nil {
		now = map[uint64]progress{}
	}
	for seq, h := range r.held {
		if h.header != nil && (h.done || h.repeated || len(h.spans) > 0) {
			now[seq] = progress{stored: h.stored, all: h.done || h.repeated, spans: h.spans}
		}
	}
	return now
}
