package flow

import (
	"encoding/binary"
	"unsafe"
)

// Headers are the headers of a message: names and values one after the other, each with its length in front (uvarint).
// Most messages are only passed on, so headers are decoded when somebody asks and not before.
type Headers []byte

// AppendHeader adds a header. The first of two headers with one name counts.
func AppendHeader(h Headers, name, value string) Headers {
	h = binary.AppendUvarint(h, uint64(len(name)))
	h = append(h, name...)
	h = binary.AppendUvarint(h, uint64(len(value)))
	return append(h, value...)
}

// All yields each header. It stops at the first malformed one.
func (h Headers) All(yield func(name, value string) bool) {
	for len(h) > 0 {
		name, rest, ok := cutString(h)
		if !ok {
			return
		}
		value, rest, ok := cutString(rest)
		if !ok || !yield(name, value) {
			return
		}
		h = rest
	}
}

// Get returns the value of the named header.
func (h Headers) Get(name string) (string, bool) {
	for n, v := range h.All {
		if n == name {
			return v, true
		}
	}
	return "", false
}

// cutString takes one length-prefixed string off the front of b. The string shares b's memory.
func cutString(b []byte) (s string, rest []byte, ok bool) {
	n, w := binary.Uvarint(b)
	if w <= 0 || n > uint64(len(b)-w) {
		return "", nil, false
	}
	return stringOf(b[w : w+int(n)]), b[w+int(n):], true
}

// stringOf views b as a string. b must never change again: blocks and frames never do once they are decoded.
func stringOf(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }
