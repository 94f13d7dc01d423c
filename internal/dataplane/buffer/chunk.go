package buffer

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"strconv"

	"github.com/levada-io/levada/internal/flow"
)

// A block that is larger than the broker's largest message is stored as several entries, chunks, that the reader puts together:
//
//	'L' 'C' 1 crc32(rest, 4 bytes little endian) index count lo hi-lo spans floor messages len(lane) lane len(id) id data
//
// with uvarints. Chunks of one block follow each other, but those of other lanes may lie between them.
const chunkHead = 7

// chunk is one of the entries of a block. All but index, messages and data is the same in all of them.
type chunk struct {
	index, count int // Invariant: index < count
	// What the block covers, and its floor: a reader that skips the data knows the lane by it.
	lo, hi uint64
	cover  []flow.Span
	floor  uint64
	// messages of the block; 0 in all chunks but the last.
	messages int
	lane, id string // id is that of the block with its checksum: chunks of another attempt have another one
	data     []byte // shares memory with the entry
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
		parts[i] = part{id: id + "#" + strconv.Itoa(i), data: b, messages: n}
	}
	return parts
}

// isChunk tells chunks from blocks by their first bytes.
func isChunk(b []byte) bool { return len(b) >= chunkHead && b[0] == 'L' && b[1] == 'C' }

// decodeChunk reads a chunk. The error is flow.ErrCorrupt.
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
	// The largest block has that many chunks at a store whose largest message is 1 KiB: nothing here allocates more.
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

// MessagesIn is how many messages stored data counts as; 0 if it is damaged.
func MessagesIn(data []byte) int {
	_, n, err := headOf(data)
	if err != nil {
		return 0
	}
	return n
}
