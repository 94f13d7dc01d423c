package buffer

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"slices"
	"strconv"

	"github.com/levada-io/levada/internal/flow"
)

// A block that is larger than the broker's largest message is stored as several entries, chunks, that the reader puts together:
//
//	'L' 'C' 1 crc32(rest, 4 bytes little endian) index count lo hi-lo spans floor messages len(lane) lane len(id) id data
//
// with uvarints. Chunks of one block follow each other, but those of other lanes may lie between them.
const chunkHead = 7

type chunk struct {
	index, count int
	lo, hi       uint64
	cover        []flow.Span
	floor        uint64
	messages     int
	lane, id     string
	data         []byte
}

// chunked is a block of which some chunks have come.
type chunked struct {
	lane   string
	lo, hi uint64
	parts  [][]byte
	seqs   []uint64
	left   int
}

// minChunk is the least that a chunk holds of its block. With less the names would take more room than the block.
const minChunk = 64

// split returns nil if not even a piece of the block would fit.
func split(id string, h *flow.Block, messages int, data []byte, max int) []part {
	// A writer that begins again promises another floor: its pieces do not fit those that are stored already, and must not be taken for them.
	id = fmt.Sprintf("%s.%08x", id, crc32.ChecksumIEEE(data))
	size := max - chunkHead - len(h.Lane) - len(id) - 64 - 20*len(h.Cover)
	if size < minChunk {
		return nil
	}
	count := (len(data) + size - 1) / size
	parts := make([]part, count)
	for i := range parts {
		b := []byte{'L', 'C', 1, 0, 0, 0, 0}
		b = binary.AppendUvarint(b, uint64(i))
		b = binary.AppendUvarint(b, uint64(count))
		b = binary.AppendUvarint(b, h.Lo)
		b = binary.AppendUvarint(b, h.Hi-h.Lo)
		b = flow.AppendCover(b, h)
		b = binary.AppendUvarint(b, h.Floor)
		n := 0
		if i == count-1 {
			n = messages // so that the sum over the chunks is right
		}
		b = binary.AppendUvarint(b, uint64(n))
		b = binary.AppendUvarint(b, uint64(len(h.Lane)))
		b = append(b, h.Lane...)
		b = binary.AppendUvarint(b, uint64(len(id)))
		b = append(b, id...)
		b = append(b, data[i*size:min(len(data), (i+1)*size)]...)
		binary.LittleEndian.PutUint32(b[3:], crc32.ChecksumIEEE(b[chunkHead:]))
		parts[i] = part{id: id + "#" + strconv.Itoa(i), data: b}
	}
	return parts
}

func isChunk(b []byte) bool { return len(b) >= chunkHead && b[0] == 'L' && b[1] == 'C' }

func decodeChunk(b []byte) (chunk, error) {
	if b[2] != 1 || binary.LittleEndian.Uint32(b[3:]) != crc32.ChecksumIEEE(b[chunkHead:]) {
		return chunk{}, fmt.Errorf("%w: chunk's checksum", flow.ErrCorrupt)
	}
	b = b[chunkHead:]
	bad := false
	next := func() uint64 {
		v, n := binary.Uvarint(b)
		if n <= 0 {
			bad, b = true, nil
			return 0
		}
		b = b[n:]
		return v
	}
	text := func() string {
		n := next()
		if n > uint64(len(b)) {
			bad = true
			return ""
		}
		s := string(b[:n])
		b = b[n:]
		return s
	}
	index, count := next(), next()
	c := chunk{index: int(index), count: int(count), lo: next()}
	c.hi = c.lo + next()
	var err error
	if c.cover, b, err = flow.ReadCover(b, c.lo, c.hi); err != nil {
		return chunk{}, err
	}
	c.floor, c.messages = next(), int(next())
	c.lane, c.id = text(), text()
	c.data = b
	if bad || count == 0 || count > flow.MaxBlockBytes/1024 || index >= count {
		return chunk{}, fmt.Errorf("%w: malformed chunk", flow.ErrCorrupt)
	}
	return c, nil
}

// headOf returns the header of an entry and its number of messages. Of the chunks of a block only the last has them.
func headOf(data []byte) (*flow.Block, int, error) {
	if !isChunk(data) {
		return flow.DecodeHead(data)
	}
	c, err := decodeChunk(data)
	if err != nil || c.index < c.count-1 {
		return nil, 0, err
	}
	return &flow.Block{Lane: c.lane, Lo: c.lo, Hi: c.hi, Cover: c.cover, Floor: c.floor}, c.messages, nil
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
