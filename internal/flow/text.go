package flow

import (
	"strings"
	"unicode/utf8"
)

// Ids, keys, header names and header values reach functions as strings of protobuf, which are UTF-8: a function that gets other bytes ends with an error
// of its protobuf library. So no message with other bytes may enter a pipeline.

// EscapeText returns s with each byte that is not UTF-8 as %XX. Where '%' is escaped before, different texts stay different.
func EscapeText(s string) string {
	if utf8.ValidString(s) {
		return s
	}
	const hexDigits = "0123456789ABCDEF"
	var b strings.Builder
	for i := 0; i < len(s); {
		r, n := utf8.DecodeRuneInString(s[i:])
		if r == utf8.RuneError && n == 1 {
			b.WriteByte('%')
			b.WriteByte(hexDigits[s[i]>>4])
			b.WriteByte(hexDigits[s[i]&15])
		} else {
			b.WriteString(s[i : i+n])
		}
		i += n
	}
	return b.String()
}

// ValidText returns the headers without those whose name or value is not UTF-8, and calls dropped with the name of each.
func (h Headers) ValidText(dropped func(name string)) Headers {
	if ascii(h) {
		return h
	}
	valid := true
	for name, value := range h.All {
		valid = valid && utf8.ValidString(name) && utf8.ValidString(value)
	}
	if valid {
		return h
	}
	var kept Headers
	for name, value := range h.All {
		if utf8.ValidString(name) && utf8.ValidString(value) {
			kept = AppendHeader(kept, name, value)
		} else {
			dropped(EscapeText(name))
		}
	}
	return kept
}

// ascii is false also for lengths of 128 and more, which costs a closer look and nothing else.
func ascii(b []byte) bool {
	for _, c := range b {
		if c >= utf8.RuneSelf {
			return false
		}
	}
	return true
}
