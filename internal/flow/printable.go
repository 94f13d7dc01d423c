package flow

import (
	"strconv"
	"unicode"
	"unicode/utf8"
)

// Printable escapes what would break a line or command a terminal.
func Printable(b []byte) []byte {
	for i := 0; i < len(b); {
		r, size := utf8.DecodeRune(b[i:])
		if r == utf8.RuneError && size == 1 || !unicode.IsPrint(r) {
			quoted := strconv.Quote(string(b))
			return []byte(quoted[1 : len(quoted)-1])
		}
		i += size
	}
	return b
}
