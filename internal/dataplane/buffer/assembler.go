package buffer

import (
	"bytes"
	"slices"

	"github.com/levada-io/levada/internal/flow"
)

// chunked is a block of which some chunks have come.
type chunked struct {
	lane   string
	lo, hi uint64
	parts  [][]byte
	seqs   []uint64
	left   int
}

// assemble returns the block that an entry is or completes, with all its sequences; nil when more must come.
// From then on the entry is held.
func (p *Partition) assemble(e Entry) (*flow.Block, []uint64, error) {
	if !isChunk(e.Data) {
		b, err := flow.Decode(e.Data)
		if err != nil {
			return nil, nil, err
		}
		p.mu.Lock()
		defer p.mu.Unlock()
		p.held[e.Seq] = &held{messages: len(b.Messages), bytes: len(e.Data), stored: e.Stored.UnixNano(), base: p.baseOf(e)}
		return b, []uint64{e.Seq}, nil
	}
	c, err := decodeChunk(e.Data)
	if err != nil {
		return nil, nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.held[e.Seq] = &held{messages: c.messages, bytes: len(e.Data), stored: e.Stored.UnixNano(), base: p.baseOf(e)}
	k := p.chunks[c.id]
	if k == nil || len(k.parts) != c.count {
		k = &chunked{lane: c.lane, lo: c.lo, hi: c.hi, parts: make([][]byte, c.count), left: c.count}
		p.chunks[c.id] = k
	}
	if k.parts[c.index] == nil {
		k.parts[c.index] = c.data
		k.left--
	}
	k.seqs = append(k.seqs, e.Seq)
	if k.left > 0 {
		return nil, nil, nil
	}
	delete(p.chunks, c.id)
	var whole []byte
	for _, part := range k.parts {
		whole = append(whole, part...)
	}
	b, err := flow.Decode(whole)
	if err != nil {
		return nil, nil, err
	}
	return b, k.seqs, nil
}

// staleChunks gives up blocks that will never be whole: their writer crashed in the middle, and has since written them otherwise.
func (p *Partition) staleChunks(b *flow.Block) (seqs []uint64) {
	for id, k := range p.chunks {
		if k.lane == b.Lane && (k.hi <= b.Floor || len(b.Cover) == 0 && b.Lo <= k.lo && k.hi <= b.Hi) {
			p.tie(k.seqs)
			seqs = append(seqs, k.seqs...)
			delete(p.chunks, id)
		}
	}
	return seqs
}

// tie makes the floor pass these entries together. mu is held.
func (p *Partition) tie(seqs []uint64) {
	last := slices.Max(seqs)
	for _, s := range seqs {
		p.held[s].last = last
	}
}

// pieces puts blocks together for their header, where a whole Partition is not at hand.
type pieces map[string][][]byte

// whole returns the header and the bytes of the block that a chunk completes, or nil.
func (ps pieces) whole(data []byte) (*flow.Block, []byte) {
	c, err := decodeChunk(data)
	if err != nil {
		return nil, nil
	}
	parts := ps[c.id]
	if len(parts) != c.count {
		parts = make([][]byte, c.count)
		ps[c.id] = parts
	}
	parts[c.index] = bytes.Clone(c.data) // data is only valid during the visit
	for _, p := range parts {
		if p == nil {
			return nil, nil
		}
	}
	delete(ps, c.id)
	all := bytes.Join(parts, nil)
	b, _, err := flow.DecodeHead(all)
	if err != nil {
		return nil, nil // Read would have met it
	}
	return b, all
}
