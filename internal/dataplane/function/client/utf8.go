package client

import (
	"fmt"
	"strings"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/levada-io/levada/internal/flow"
)

// A string of protobuf is valid UTF-8: a server refuses a request with any other, and ends the call with all that is in flight. Keys, headers and names of
// metadata come from outside and can be anything, so what we send is made valid before it is encoded: invalid bytes become U+FFFD, as Numaflow
// makes it of keys and headers of Kafka.

// Encodable returns in with strings that protobuf can carry, how many messages had others, and the first of those. in itself is not changed; it is
// returned as it is if all of it is valid.
func Encodable(in []flow.Message) (out []flow.Message, replaced, first int) {
	for i := range in {
		if validStrings(&in[i]) {
			continue
		}
		if out == nil {
			out, first = append([]flow.Message(nil), in...), i
		}
		makeValid(&out[i])
		replaced++
	}
	if out == nil {
		out = in
	}
	return out, replaced, first
}

func validStrings(m *flow.Message) bool {
	if !utf8.ValidString(m.ID) {
		return false
	}
	for _, k := range m.Keys {
		if !utf8.ValidString(k) {
			return false
		}
	}
	for name, value := range m.Headers.All {
		if !utf8.ValidString(name) || !utf8.ValidString(value) {
			return false
		}
	}
	return len(m.Metadata) == 0 || validMetadata(m.Metadata)
}

const replacement = "\uFFFD"

func makeValid(m *flow.Message) {
	m.ID = escaped(m.ID)
	keys := make([]string, len(m.Keys))
	for i, k := range m.Keys {
		keys[i] = strings.ToValidUTF8(k, replacement)
	}
	m.Keys = keys
	var headers flow.Headers
	for name, value := range m.Headers.All {
		headers = flow.AppendHeader(headers, strings.ToValidUTF8(name, replacement), strings.ToValidUTF8(value, replacement))
	}
	m.Headers = headers
	if len(m.Metadata) > 0 && !validMetadata(m.Metadata) {
		m.Metadata = keepValid(m.Metadata)
	}
}

// validMetadata reports whether a Metadata message (system 2 and user 3 are map<string, KeyValueGroup>, a group has map<string, bytes> 1) can be read.
func validMetadata(b []byte) bool {
	return fields(b, func(f protowire.Number, v []byte, _ uint64) error {
		if f != 2 && f != 3 {
			return nil
		}
		return checkEntry(v)
	}) == nil
}

// checkEntry returns an error if an entry of Metadata has a name that is not valid UTF-8, or cannot be read.
func checkEntry(b []byte) error {
	return fields(b, func(f protowire.Number, v []byte, _ uint64) error {
		switch f {
		case 1:
			return checkName(v)
		case 2:
			return fields(v, func(f protowire.Number, v []byte, _ uint64) error {
				if f != 1 {
					return nil
				}
				return fields(v, func(f protowire.Number, v []byte, _ uint64) error {
					if f == 1 {
						return checkName(v)
					}
					return nil
				})
			})
		}
		return nil
	})
}

func checkName(b []byte) error {
	if !utf8.Valid(b) {
		return errMalformed
	}
	return nil
}

// keepValid leaves out the groups of metadata that cannot be read.
func keepValid(b []byte) (kept []byte) {
	_ = fields(b, func(f protowire.Number, v []byte, _ uint64) error {
		if (f == 2 || f == 3) && checkEntry(v) == nil {
			kept = append(appendField(kept, byte(f), len(v)), v...)
		}
		return nil
	})
	return kept
}

// escaped writes each invalid byte of an id as \xNN, so that ids stay different.
func escaped(id string) string {
	var b strings.Builder
	for rest := id; rest != ""; {
		r, n := utf8.DecodeRuneInString(rest)
		if r == utf8.RuneError && n == 1 {
			fmt.Fprintf(&b, `\x%02x`, rest[0])
		} else {
			b.WriteString(rest[:n])
		}
		rest = rest[n:]
	}
	return b.String()
}
