package flow

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math"
)

// Block is what a buffer stores and acknowledges: messages of one lane for one partition, written together.
//
// A lane is one ordered input of one vertex (a source partition, or a partition of its input buffer), and a position
// orders the messages of a lane. The block covers the positions Lo to Hi: it holds every message that the lane has for this
// partition in that range, and possibly none. Positions depend only on the input, so a vertex that processes its input again
// covers the same positions again, however it groups them, and a reader can tell what it has seen (package identity).
type Block struct {
	Lane   string
	Lo, Hi uint64
	// Cover says which ranges between Lo and Hi the block covers if it is not all of them: messages that are tried again later are left out and come in
	// a block of their own.
	Cover []Span
	// Floor promises that everything of the lane at or before it is durable in every output. Nothing new will come from there.
	Floor uint64
	// Prev is the Hi of the block that this lane wrote to this partition before this one; 0 when the writer does not know.
	// A reader that never sees Prev has found a hole in the buffer.
	Prev uint64
	// Watermark is a lower bound of the event times still to come in the lane, in Unix nanoseconds; NoWatermark if there is none. A block for a watermark alone has no
	// messages, and covers the position that the lane wrote last, or 0: a position that it covered first would be known when its message comes.
	Watermark int64
	// ByID says that the lane's positions mean nothing after a restart of its source: its messages are deduplicated by ID.
	ByID     bool
	Messages []Message
	// Places are the indices that the messages had when the block was stored, if a reader dropped some; nil if they are all there.
	Places []int32
	// Duplicated says that the reader dropped messages of this block because it had seen them.
	Duplicated int
}

// Span is the positions Lo to Hi.
type Span struct{ Lo, Hi uint64 }

// Last is the last position that the block covers.
func (b *Block) Last() uint64 {
	if n := len(b.Cover); n > 0 {
		return b.Cover[n-1].Hi
	}
	return b.Hi
}

// NoWatermark means that nothing is known about event times.
const NoWatermark = math.MinInt64

// Errors that a reader of blocks meets; callers match them with errors.Is.
var (
	// ErrCorrupt means the bytes are not what was written.
	ErrCorrupt = errors.New("block is corrupt")
	// ErrNewer means that a later version of Levada wrote the block.
	ErrNewer = errors.New("block was written by a newer version")
)

// The format of a block, version 1. Integers are uvarints, signed ones zigzag varints.
//
//	'L' 'B' version compression|flags crc32c(all but itself, 4 bytes little endian)
//	lane lo hi-lo spans [lo-lo hi-lo]... floor prev watermark count len(plain body)
//	body, compressed: for each message
//	   flags pos-lo eventTime-base ingested-eventTime id value [keys] [headers] [metadata]
//
// base is the first message's event time, which is stored whole.
const (
	magic0, magic1 = 'L', 'B'
	version        = 1
	headLen        = 8
	flagByID       = 0x80 // in the byte of the compression
)

const (
	hasKeys = 1 << iota
	hasHeaders
	hasMetadata
)

// MaxBlockBytes bounds what Decode will allocate for one block.
const MaxBlockBytes = 256 << 20

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// An Encoder builds one block at a time. The zero value is ready. It is not safe for concurrent use.
type Encoder struct {
	body  []byte // headRoom bytes for the header, and then the messages, so that nothing is moved when the header is known
	out   []byte // of compressed blocks, and of those with a long header
	head  []byte
	base  int64
	lo    uint64
	count int
}

// Reset begins a block that starts at position lo.
func (e *Encoder) Reset(lo uint64) {
	if cap(e.body) < headRoom {
		e.body = make([]byte, headRoom, 4<<10)
	}
	e.body, e.count, e.lo = e.body[:headRoom], 0, lo
}

// headRoom is enough for the header of almost any block.
const headRoom = 256

// Len is the number of body bytes so far.
func (e *Encoder) Len() int { return max(0, len(e.body)-headRoom) }

// Detach gives the memory that holds the block that Finish returned to the caller, and takes other memory for the next block in its place.
func (e *Encoder) Detach(other []byte) (memory []byte) {
	if len(e.out) > 0 {
		memory, e.out = e.out, other[:0]
		return memory
	}
	memory, e.body = e.body, other[:0]
	return memory
}

// Count is the number of messages so far.
func (e *Encoder) Count() int { return e.count }

// Append adds a message. Its position must not be before the block's.
func (e *Encoder) Append(m *Message) { e.AppendAs(m, m.ID, "") }

// AppendAs adds a message under the id parent+suffix, so that a caller need not build the string.
func (e *Encoder) AppendAs(m *Message, parent, suffix string) {
	if e.count == 0 {
		e.base = 0
	}
	var flags byte
	if len(m.Keys) > 0 {
		flags |= hasKeys
	}
	if len(m.Headers) > 0 {
		flags |= hasHeaders
	}
	if len(m.Metadata) > 0 {
		flags |= hasMetadata
	}
	if len(e.body) < headRoom {
		e.Reset(e.lo)
	}
	b := append(e.body, flags)
	b = binary.AppendUvarint(b, m.Pos-e.lo)
	b = binary.AppendVarint(b, m.EventTime-e.base)
	b = binary.AppendVarint(b, m.Ingested-m.EventTime)
	b = binary.AppendUvarint(b, uint64(len(parent)+len(suffix)))
	b = append(b, parent...)
	b = append(b, suffix...)
	b = binary.AppendUvarint(b, uint64(len(m.Value)))
	b = append(b, m.Value...)
	if flags&hasKeys != 0 {
		b = binary.AppendUvarint(b, uint64(len(m.Keys)))
		for _, k := range m.Keys {
			b = binary.AppendUvarint(b, uint64(len(k)))
			b = append(b, k...)
		}
	}
	if flags&hasHeaders != 0 {
		b = binary.AppendUvarint(b, uint64(len(m.Headers)))
		b = append(b, m.Headers...)
	}
	if flags&hasMetadata != 0 {
		b = binary.AppendUvarint(b, uint64(len(m.Metadata)))
		b = append(b, m.Metadata...)
	}
	if e.count == 0 {
		e.base = m.EventTime
	}
	e.body, e.count = b, e.count+1
}

// Finish returns the encoded block, whose header is taken from h (its Messages are not looked at).
// The bytes are valid until the next call of Reset or Finish; see Detach for longer.
func (e *Encoder) Finish(h *Block, c Compression) ([]byte, error) {
	if len(e.body) < headRoom {
		e.Reset(h.Lo)
	}
	kind := byte(c)
	if h.ByID {
		kind |= flagByID
	}
	plain := e.body[headRoom:]
	head := append(e.head[:0], magic0, magic1, version, kind, 0, 0, 0, 0)
	head = binary.AppendUvarint(head, uint64(len(h.Lane)))
	head = append(head, h.Lane...)
	head = binary.AppendUvarint(head, h.Lo)
	head = binary.AppendUvarint(head, h.Hi-h.Lo)
	head = AppendCover(head, h)
	head = binary.AppendUvarint(head, h.Floor)
	head = binary.AppendUvarint(head, h.Prev)
	head = binary.AppendVarint(head, h.Watermark)
	head = binary.AppendUvarint(head, uint64(e.count))
	head = binary.AppendUvarint(head, uint64(len(plain)))
	e.head, e.out = head, e.out[:0]
	var block []byte
	if c == None && len(head) <= headRoom {
		block = e.body[headRoom-len(head):]
		copy(block, head)
	} else {
		out, err := c.compress(append(e.out, head...), plain)
		if err != nil {
			return nil, fmt.Errorf("compress block with %v: %w", c, err)
		}
		e.out, block = out, out
	}
	binary.LittleEndian.PutUint32(block[4:], checksum(block))
	return block, nil
}

// checksum covers the whole block but itself.
func checksum(block []byte) uint32 {
	return crc32.Update(crc32.Checksum(block[:4], castagnoli), castagnoli, block[headLen:])
}

// Encode returns b as bytes.
func Encode(b *Block, c Compression) ([]byte, error) {
	var e Encoder
	e.Reset(b.Lo)
	for i := range b.Messages {
		e.Append(&b.Messages[i])
	}
	return e.Finish(b, c)
}

// Decode reads a block. The messages share data's memory unless the block is compressed.
// Errors are ErrCorrupt, with what was found, or ErrNewer.
func Decode(data []byte) (*Block, error) {
	b, count, body, err := decodeHead(data)
	if err != nil {
		return nil, err
	}
	if err := decodeBody(b, count, body); err != nil {
		return nil, err
	}
	return b, nil
}

// DecodeHead reads all of a block but its messages; it verifies the checksum of the whole. It returns how many messages there are.
func DecodeHead(data []byte) (*Block, int, error) {
	r := reader{b: data}
	b, count, _, err := readHead(&r)
	return b, count, err
}

func decodeHead(data []byte) (*Block, int, []byte, error) {
	r := reader{b: data}
	b, count, plain, err := readHead(&r)
	if err != nil {
		return nil, 0, nil, err
	}
	body, err := Compression(data[3]&^flagByID).decompress(r.b, plain)
	if err != nil {
		return nil, 0, nil, fmt.Errorf("%w: decompress: %w", ErrCorrupt, err)
	}
	if len(body) != plain {
		return nil, 0, nil, fmt.Errorf("%w: body has %d bytes, header says %d", ErrCorrupt, len(body), plain)
	}
	return b, count, body, nil
}

// readHead reads up to the body, which is left in r.
func readHead(r *reader) (b *Block, count, plain int, err error) {
	data := r.b
	if len(data) < headLen || data[0] != magic0 || data[1] != magic1 {
		return nil, 0, 0, fmt.Errorf("%w: no block starts here (%d bytes)", ErrCorrupt, len(data))
	}
	if data[2] > version {
		return nil, 0, 0, fmt.Errorf("%w: version %d, this program knows %d", ErrNewer, data[2], version)
	}
	if got, want := checksum(data), binary.LittleEndian.Uint32(data[4:]); got != want {
		return nil, 0, 0, fmt.Errorf("%w: checksum is %08x, should be %08x", ErrCorrupt, got, want)
	}
	r.b = data[headLen:]
	b = &Block{ByID: data[3]&flagByID != 0, Lane: r.string(), Lo: r.uvarint()}
	b.Hi = b.Lo + r.uvarint()
	b.Cover = r.cover(b.Lo, b.Hi)
	b.Floor, b.Prev, b.Watermark = r.uvarint(), r.uvarint(), r.varint()
	n, p := r.uvarint(), r.uvarint()
	if r.bad || b.Hi < b.Lo || p > MaxBlockBytes || n > p {
		return nil, 0, 0, fmt.Errorf("%w: malformed header", ErrCorrupt)
	}
	return b, int(n), int(p), nil
}

func decodeBody(b *Block, count int, body []byte) error {
	r := reader{b: body}
	// A message takes at least six bytes: no block makes us allocate more than a fixed multiple of what it holds.
	if count > len(body)/6 {
		return fmt.Errorf("%w: %d messages in %d bytes", ErrCorrupt, count, len(body))
	}
	b.Messages = make([]Message, count)
	var keys []string
	base := int64(0)
	for i := range b.Messages {
		m := &b.Messages[i]
		flags := r.byte()
		m.Pos = b.Lo + r.uvarint()
		m.EventTime = base + r.varint()
		m.Ingested = m.EventTime + r.varint()
		if i == 0 {
			base = m.EventTime
		}
		m.ID = r.string()
		m.Value = r.bytes()
		if flags&hasKeys != 0 {
			n := r.uvarint()
			if n > uint64(len(r.b)) {
				return fmt.Errorf("%w: message %d of %d: %d keys in %d bytes", ErrCorrupt, i, count, n, len(r.b))
			}
			if uint64(cap(keys)-len(keys)) < n {
				keys = make([]string, 0, max(int(n), count))
			}
			first := len(keys)
			for range n {
				keys = append(keys, r.string())
			}
			m.Keys = keys[first:len(keys):len(keys)]
		}
		if flags&hasHeaders != 0 {
			m.Headers = r.bytes()
		}
		if flags&hasMetadata != 0 {
			m.Metadata = r.bytes()
		}
		if r.bad || flags&^(hasKeys|hasHeaders|hasMetadata) != 0 || m.Pos < b.Lo || m.Pos > b.Hi {
			return fmt.Errorf("%w: message %d of %d is malformed", ErrCorrupt, i, count)
		}
	}
	if len(r.b) != 0 {
		return fmt.Errorf("%w: %d bytes after the last message", ErrCorrupt, len(r.b))
	}
	return nil
}

// reader takes values off the front of b. After the first failure it is bad and returns zeros.
type reader struct {
	b   []byte
	bad bool
}

func (r *reader) fail() { r.b, r.bad = nil, true }

func (r *reader) byte() byte {
	if len(r.b) == 0 {
		r.fail()
		return 0
	}
	c := r.b[0]
	r.b = r.b[1:]
	return c
}

func (r *reader) uvarint() uint64 {
	v, n := binary.Uvarint(r.b)
	if n <= 0 {
		r.fail()
		return 0
	}
	r.b = r.b[n:]
	return v
}

// AppendCover appends the spans of a block, relative to its Lo.
func AppendCover(out []byte, h *Block) []byte {
	out = binary.AppendUvarint(out, uint64(len(h.Cover)))
	for _, s := range h.Cover {
		out = binary.AppendUvarint(out, s.Lo-h.Lo)
		out = binary.AppendUvarint(out, s.Hi-h.Lo)
	}
	return out
}

// ReadCover reads what AppendCover wrote, and returns the rest.
func ReadCover(b []byte, lo, hi uint64) (spans []Span, rest []byte, err error) {
	r := reader{b: b}
	spans = r.cover(lo, hi)
	if r.bad {
		return nil, nil, fmt.Errorf("%w: malformed spans", ErrCorrupt)
	}
	return spans, r.b, nil
}

// cover reads spans, which must be ascending and within lo..hi.
func (r *reader) cover(lo, hi uint64) (spans []Span) {
	n := r.uvarint()
	if n > uint64(len(r.b)/2) {
		r.fail()
		return nil
	}
	for range n {
		s := Span{lo + r.uvarint(), lo + r.uvarint()}
		if r.bad || s.Lo < lo || s.Hi < s.Lo || s.Hi > hi || len(spans) > 0 && s.Lo <= spans[len(spans)-1].Hi {
			r.fail()
			return nil
		}
		spans = append(spans, s)
	}
	return spans
}

func (r *reader) varint() int64 {
	v, n := binary.Varint(r.b)
	if n <= 0 {
		r.fail()
		return 0
	}
	r.b = r.b[n:]
	return v
}

func (r *reader) bytes() []byte {
	n := r.uvarint()
	if n > uint64(len(r.b)) {
		r.fail()
		return nil
	}
	v := r.b[:n:n]
	r.b = r.b[n:]
	return v
}

func (r *reader) string() string { return stringOf(r.bytes()) }
