package proxy

import "encoding/binary"

const prefixLen = 5 // of a message: a flag, and the length as four bytes

// messages follows gRPC's length-prefixed messages through a sequence of bytes.
type messages struct {
	count  int    // of whole messages
	size   uint32 // of the message that is coming, once its prefix is there
	left   uint32 // bytes of it that are still to come
	have   uint8  // bytes of its prefix that came
	prefix [prefixLen]byte
}

// between reports whether the bytes so far end with a whole message, or are none.
func (m *messages) between() bool { return m.left == 0 && m.have == 0 }

// feed takes the next bytes, and returns how many of them belong to messages that are now whole. A message whose prefix announces more than limit
// bytes stops it, unless limit is 0.
// The prefix may be cut anywhere by DATA frames, which have nothing to do with messages: PROTOCOL-HTTP2, "Requests".
func (m *messages) feed(p []byte, limit int) (whole int, tooLarge bool) {
	for i := 0; i < len(p); {
		if m.left > 0 {
			n := int(min(int64(m.left), int64(len(p)-i)))
			m.left -= uint32(n)
			if i += n; m.left == 0 {
				m.count++
				whole = i
			}
			continue
		}
		prefix := p[i:]
		if m.have > 0 || len(prefix) < prefixLen {
			n := copy(m.prefix[m.have:], prefix)
			m.have += uint8(n)
			if i += n; m.have < prefixLen {
				break
			}
			prefix = m.prefix[:]
		} else {
			i += prefixLen
		}
		m.have = 0
		m.size = binary.BigEndian.Uint32(prefix[1:])
		// Before any byte of the message is kept, so an announced length costs no memory.
		if limit > 0 && int64(m.size) > int64(limit) {
			return whole, true
		}
		if m.left = m.size; m.left == 0 {
			m.count++
			whole = i
		}
	}
	return whole, false
}
