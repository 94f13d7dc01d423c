package header

import (
	"hash/maphash"
	"strings"

	"golang.org/x/net/http2/hpack"
)

const (
	keptSets  = 64       // by a Reader and by a Writer: a client calls few methods, over and over
	keptBytes = 256      // longest block that is kept
	keptList  = 4 << 10  // largest list that is: a few bytes can stand for very much, which is work for the receiver
	fieldRoom = 32       // what a field counts beside its bytes: RFC 7541 section 4.1
	minString = 64 << 10 // a single frame may hold a string that is longer than a small list may be
)

// Reader decodes the blocks of one connection, in the order in which they came. It is not safe for concurrent use.
type Reader struct {
	decoder *hpack.Decoder
	max     int
	set     *Set // being decoded
	fields  []Field
	late    []Field          // of a list that is too large, what came after it was
	kept    map[string]*Set  // by their bytes, as long as the table is unchanged
	once    [keptSets]uint64 // hashes of blocks that came once: what comes only once is not kept
	seed    maphash.Seed
	status  bool // see KeepStatus
	pieces  pieces
}

// NewReader makes a reader that takes lists of up to maxList bytes; larger ones come out as TooLarge, and the connection can go on.
func NewReader(tableSize uint32, maxList int) *Reader {
	r := &Reader{max: maxList, kept: map[string]*Set{}, seed: maphash.MakeSeed()}
	r.decoder = hpack.NewDecoder(tableSize, r.field)
	r.decoder.SetMaxStringLength(maxString(maxList))
	return r
}

// maxString is the longest string that is decoded. One that is longer than the list may be is cut by pieces, unless Huffman's code makes it longer only here.
func maxString(maxList int) int { return 2 * max(maxList, minString) }

// KeepStatus has the Reader keep, of lists that are too large, what says how a call ended. It is for responses.
func (r *Reader) KeepStatus() { r.status = true }

func (r *Reader) field(f Field) {
	s := r.set
	s.Size += len(f.Name) + len(f.Value) + fieldRoom
	if s.Size > r.max && !s.TooLarge {
		s.TooLarge = true
	}
	if !s.TooLarge {
		r.fields = append(r.fields, f)
		return
	}
	if !r.status {
		r.decoder.SetEmitEnabled(false) // the table must be kept right, the rest need not be made
	} else if len(r.late) < keptLate {
		r.late = remains(r.late, f)
	}
}

// remains appends a field of a list that is too large, if it is worth knowing: what a request was for, or how a call ended.
func remains(fields []Field, f Field) []Field {
	switch {
	case f.Value != "" && f.Value[0] == notKept:
		return fields
	case f.Name == "grpc-message" && len(f.Value) > keptStatus:
		f.Value = strings.Clone(cutMessage(f.Value, keptStatus))
	case f.Name == "grpc-message" && len(f.Value) == cutString:
		f.Value = cutMessage(f.Value, cutString-1) // it may have been cut anywhere
	case !f.IsPseudo() && !saysStatus(f.Name) || len(f.Value) > keptStatus:
		return fields
	}
	return append(fields, f)
}

const (
	keptStatus = 16 << 10 // longest value that is kept of a list that is too large
	keptLate   = 8
)

// saysStatus reports whether a field of a response says how the call ended.
func saysStatus(name string) bool {
	switch name {
	case ":status", "content-type", "grpc-status", "grpc-message":
		return true
	}
	return false
}

// Read decodes a whole block. An error means that the two sides' tables differ from now on: the connection must end.
func (r *Reader) Read(block []byte) (*Set, error) {
	if s, ok := r.kept[string(block)]; ok {
		return s, nil
	}
	what := scan(block)
	r.begin()
	if _, err := r.decoder.Write(block); err != nil {
		return nil, err
	}
	s, err := r.end()
	if err != nil {
		return nil, err
	}
	if what == changes && len(r.kept) > 0 {
		clear(r.kept)
	}
	if what == leaves && !s.TooLarge && len(block) <= keptBytes && s.Size <= keptList && r.again(block) {
		if len(r.kept) == keptSets {
			clear(r.kept)
		}
		s.cached = true
		r.kept[string(block)] = s
	}
	return s, nil
}

func (r *Reader) begin() {
	r.set, r.fields, r.late = &Set{}, r.fields[:0], nil
	r.decoder.SetEmitEnabled(true)
}

func (r *Reader) end() (*Set, error) {
	if err := r.decoder.Close(); err != nil {
		return nil, err
	}
	s := r.set
	if s.TooLarge {
		for _, f := range r.fields {
			s.Fields = remains(s.Fields, f)
		}
		s.Fields = append(s.Fields, r.late...)
	} else {
		s.Fields = append(make([]Field, 0, len(r.fields)), r.fields...)
	}
	if clear(r.fields); cap(r.fields) > keptFields {
		r.fields = nil
	}
	s.Err = s.check()
	return s, nil
}

// keptFields is the room for fields that a Reader keeps for the next block.
const keptFields = 1 << 10

// again reports whether the block came before, not long ago.
func (r *Reader) again(block []byte) bool {
	h := maphash.Bytes(r.seed, block)
	slot := &r.once[h%keptSets]
	if *slot == h {
		return true
	}
	*slot = h
	return false
}

// effect is what a block does to the table of the side that reads it.
type effect uint8

const (
	changes effect = iota // it adds to the table, or resizes it
	leaves                // it leaves the table as it was, so that as long as that is the same, the same bytes mean the same
)

// scan tells the effect of a block without decoding it: RFC 7541 section 6. What is not a whole block counts as a change.
func scan(b []byte) effect {
	for len(b) > 0 {
		first := b[0]
		switch {
		case first&0x80 != 0: // indexed field
			b = skipInteger(b, 7)
		case first&0x40 != 0, first&0x20 != 0: // literal that is added, resizing
			return changes
		default: // literal that is not added
			named := first&0x0f != 0
			b = skipInteger(b, 4)
			if !named {
				b = skipString(b)
			}
			b = skipString(b)
		}
		if b == nil {
			return changes
		}
	}
	return leaves
}

// skipInteger skips an integer with a prefix of n bits; nil if it is cut short.
func skipInteger(b []byte, n uint) []byte {
	_, length, _ := varint(b, n)
	if length == 0 {
		return nil
	}
	return b[length:]
}

func skipString(b []byte) []byte {
	n, length, _ := varint(b, 7)
	if length == 0 || n > len(b)-length {
		return nil
	}
	return b[length+n:]
}
