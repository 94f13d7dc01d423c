package buffer

import (
	"bytes"

	"github.com/levada-io/levada/internal/flow"
)

// assembler puts blocks together from the entries that they are stored in.
//
// Its methods are called with the mu of its reader held. What it keeps is bounded by the writers: each has few blocks of a lane under way, or crashed there.
type assembler struct {
	// open are the blocks of which some pieces have come, by the id that their pieces share.
	open map[string]*openBlock
}

// openBlock is a block of which some pieces have come. Invariant: 0 < left < len(parts).
type openBlock struct {
	lane   string
	lo, hi uint64   // what it covers; says when it is stale
	parts  [][]byte // nil for those that have not come
	seqs   []uint64 // of the entries that came, as they came
	left   int      // parts that have not come
}

// assembled is what an entry makes.
type assembled struct {
	messages int         // those that the entry counts as
	block    *flow.Block // the block that it is or completes; nil if more must come
	seqs     []uint64    // of all entries of the block, also if it turns out to be damaged
}

// add takes the next entry. The error is that of a damaged one.
func (a *assembler) add(e Entry) (assembled, error) {
	if !isChunk(e.Data) {
		b, err := flow.Decode(e.Data)
		if err != nil {
			return assembled{}, err
		}
		return assembled{messages: len(b.Messages), block: b, seqs: []uint64{e.Seq}}, nil
	}
	c, err := decodeChunk(e.Data)
	if err != nil {
		return assembled{}, err
	}
	k := a.open[c.id]
	if k == nil || len(k.parts) != c.count {
		k = &openBlock{lane: c.lane, lo: c.lo, hi: c.hi, parts: make([][]byte, c.count), left: c.count}
		a.open[c.id] = k
	}
	if k.parts[c.index] == nil {
		k.parts[c.index] = c.data
		k.left--
	}
	k.seqs = append(k.seqs, e.Seq)
	if k.left > 0 {
		return assembled{messages: c.messages}, nil
	}
	delete(a.open, c.id)
	b, err := flow.Decode(bytes.Join(k.parts, nil))
	return assembled{messages: c.messages, block: b, seqs: k.seqs}, err
}

// stale returns the entries of each block that will never be whole, and forgets them: its writer crashed in the middle, and has since written b.
func (a *assembler) stale(b *flow.Block) (groups [][]uint64) {
	for id, k := range a.open {
		if k.lane == b.Lane && (k.hi <= b.Floor || len(b.Cover) == 0 && b.Lo <= k.lo && k.hi <= b.Hi) {
			groups = append(groups, k.seqs)
			delete(a.open, id)
		}
	}
	return groups
}

// rest returns the entries of each block that is not whole, and forgets them.
func (a *assembler) rest() (groups [][]uint64) {
	for _, k := range a.open {
		groups = append(groups, k.seqs)
	}
	clear(a.open)
	return groups
}

// waiting are the entries of blocks that are not whole.
func (a *assembler) waiting() map[uint64]bool {
	seqs := map[uint64]bool{}
	for _, k := range a.open {
		for _, seq := range k.seqs {
			seqs[seq] = true
		}
	}
	return seqs
}

// pieces puts blocks together for their header, where entries are looked at and not read.
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
