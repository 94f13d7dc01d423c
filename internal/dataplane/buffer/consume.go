package buffer

import "github.com/levada-io/levada/internal/flow"

// A message has three states here. It waits in the buffer; it is consumed, when its processor keeps it for long, as a window does; it is done, when
// everything made of it is durable elsewhere. Most messages go from the first state to the last.
//
// Only messages that wait take room: a window of more messages than the buffer may hold would otherwise keep the messages out that end it. Only messages that are
// done move the floor: a message that is consumed is read again after a crash.

// Consume says that the caller keeps the messages from..to-1 of the block, which are not done, and finishes them later with DonePart or Done. Each message is consumed
// once at most. Once every message of a block is consumed or done, the block does not count among those in flight.
func (r *Reader) Consume(d *Delivery, from, to int) {
	if from >= to {
		return
	}
	r.mu.Lock()
	h := r.held[d.Seq]
	if h == nil || h.done {
		r.mu.Unlock()
		return
	}
	h.taken = addSpan(h.taken, flow.Span{Lo: uint64(from), Hi: uint64(to - 1)})
	h.consumed, r.consumed = h.consumed+to-from, r.consumed+to-from
	freed := r.forget(d.seqs, to-from)
	r.passIfConsumed(d, h)
	r.mu.Unlock()
	r.usage.done(freed)
}

// passIfConsumed notes that no message of a delivery waits any more, once that is so because some are consumed. mu is held.
func (r *Reader) passIfConsumed(d *Delivery, h *held) {
	if h.passed || h.consumed == 0 || h.consumed+h.parts < len(d.Block.Messages) {
		return
	}
	for _, seq := range d.seqs {
		r.held[seq].passed = true
	}
	r.land(d)
	r.progressed = true
	r.wakeMoved()
}

// Consumed is the number of messages that are consumed and not done. They are in no other count of what is pending.
func (r *Reader) Consumed() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.consumed
}

// consumedFloor is the sequence up to which no message waits: entries are done or consumed. mu is held.
func (r *Reader) consumedFloor() uint64 {
	if r.consumed == 0 {
		return r.floor
	}
	return r.reach(func(_ uint64, h *held) bool { return h.done || h.passed })
}

// within is how many of the indices from..to-1 are in spans.
func within(spans []flow.Span, from, to int) (n int) {
	for _, s := range spans {
		if lo, hi := max(int(s.Lo), from), min(int(s.Hi)+1, to); lo < hi {
			n += hi - lo
		}
	}
	return n
}
