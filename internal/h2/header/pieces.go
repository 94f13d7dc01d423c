package header

import "errors"

// cutString is what is left of a string that is longer than the whole list may be. It is longer than the table, so that a field with it does to the table
// what the one with the original does: it empties it.
const cutString = 8 << 10

// notKept begins a string of which nothing could be kept, since Huffman's code cannot be cut anywhere.
const notKept = 0

var errInteger = errors.New("an integer that does not end")

// pieces cuts what comes of a block into whole fields, and strings that are too long out of them. Invariant: rest begins with a field, and holds no
// more than one string of the largest size beyond what Piece was given last.
type pieces struct {
	rest []byte
	need int // how much of rest there must be before its first field can be whole
	skip int // bytes of a string that was cut out, still to come
}

// Begin starts a block that comes in pieces. Piece takes one after the other, and End returns the set. However long the block is, no more of it is
// kept than the list may be large.
func (r *Reader) Begin() {
	r.begin()
	r.pieces = pieces{rest: r.pieces.rest[:0]}
}

// Piece decodes what is whole of the fields that have come. An error means what it means for Read.
func (r *Reader) Piece(p []byte) error {
	c := &r.pieces
	if n := min(c.skip, len(p)); n > 0 {
		c.skip -= n
		p = p[n:]
	}
	if len(p) == 0 {
		return nil
	}
	c.rest = append(c.rest, p...)
	whole := 0
	for len(c.rest)-whole >= max(c.need, 1) {
		f, err := scanField(c.rest[whole:], r.max)
		if err != nil {
			return err
		}
		if f.long > 0 {
			r.set.TooLarge = true
			at := whole + f.at
			after := at + f.head // where the string begins
			there := min(f.long, len(c.rest)-after)
			c.skip = f.long - there
			kept := append(make([]byte, 0, cutString), c.rest[after:after+cutString]...)
			if c.rest[at]&0x80 != 0 {
				clear(kept)
			}
			tail := append([]byte(nil), c.rest[after+there:]...)
			c.rest = append(appendInteger(c.rest[:at], 7, cutString), kept...)
			c.rest, c.need = append(c.rest, tail...), 0
			continue
		}
		if c.need = f.need; f.need > 0 {
			continue
		}
		whole += f.end
	}
	if whole == 0 {
		return nil
	}
	if _, err := r.decoder.Write(c.rest[:whole]); err != nil {
		return err
	}
	c.rest = c.rest[:copy(c.rest, c.rest[whole:])]
	return nil
}

// End ends the block.
func (r *Reader) End() (*Set, error) {
	rest := r.pieces.rest
	if r.pieces.skip > 0 {
		return nil, errInteger
	}
	if _, err := r.decoder.Write(rest); err != nil {
		return nil, err
	}
	if r.pieces = (pieces{rest: rest[:0]}); cap(rest) > keptOut {
		r.pieces.rest = nil
	}
	clear(r.kept)
	return r.end()
}

// scanned is what scanField has found: a field that ends at end; or one of which need bytes must be there before it is worth looking again; or a string
// of long bytes, too many, whose length is written in the head bytes at at.
type scanned struct{ end, need, at, head, long int }

// scanField looks at the first field of b.
func scanField(b []byte, longest int) (scanned, error) {
	first := b[0]
	switch {
	case first&0x80 != 0:
		return scanInteger(b, 7)
	case first&0x40 != 0:
		return scanLiteral(b, 6, longest)
	case first&0x20 != 0:
		return scanInteger(b, 5)
	}
	return scanLiteral(b, 4, longest)
}

func scanInteger(b []byte, prefix uint) (scanned, error) {
	_, n, err := varint(b, prefix)
	if n == 0 {
		return scanned{need: len(b) + 1}, err
	}
	return scanned{end: n}, err
}

func scanLiteral(b []byte, prefix uint, longest int) (scanned, error) {
	index, at, err := varint(b, prefix)
	if at == 0 {
		return scanned{need: len(b) + 1}, err
	}
	strings := 1
	if index == 0 {
		strings = 2
	}
	for ; strings > 0; strings-- {
		if at >= len(b) {
			return scanned{need: at + 1}, nil
		}
		length, n, err := varint(b[at:], 7)
		if n == 0 {
			return scanned{need: len(b) + 1}, err
		}
		if length > max(longest, cutString) {
			if enough := at + n + cutString; len(b) < enough {
				return scanned{need: enough}, nil
			}
			return scanned{at: at, head: n, long: length}, nil
		}
		at += n + length
	}
	if at > len(b) {
		return scanned{need: at}, nil
	}
	return scanned{end: at}, nil
}

// varint reads an integer with a prefix: RFC 7541 section 5.1. n is its length, 0 if it is not whole.
func varint(b []byte, prefix uint) (v, n int, err error) {
	if len(b) == 0 {
		return 0, 0, nil
	}
	mask := 1<<prefix - 1
	if v = int(b[0]) & mask; v < mask {
		return v, 1, nil
	}
	for i, shift := 1, uint(0); i < len(b); i, shift = i+1, shift+7 {
		if shift > 56 {
			return 0, 0, errInteger
		}
		v += int(b[i]&0x7f) << shift
		if b[i]&0x80 == 0 {
			return v, i + 1, nil
		}
	}
	return 0, 0, nil
}

// appendInteger appends an integer whose first byte has no other bits.
func appendInteger(b []byte, prefix uint, v int) []byte {
	mask := 1<<prefix - 1
	if v < mask {
		return append(b, byte(v))
	}
	b = append(b, byte(mask))
	for v -= mask; v >= 0x80; v >>= 7 {
		b = append(b, byte(v)|0x80)
	}
	return append(b, byte(v))
}
