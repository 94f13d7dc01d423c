// Package jobtext writes jobs and records for people: rates, keys and payloads, short ids, errors in one line. What programs read is JSON and not made here.
package jobtext

import (
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/levada-io/levada/internal/commandline"
)

// Bytes is how people read a key, or other bytes: text as it is, text with control characters, quotes or spaces at its ends quoted with escapes as
// in Go, and bytes that are not UTF-8 in hexadecimal.
func Bytes(b []byte) string {
	switch text := string(b); {
	case !utf8.Valid(b):
		return fmt.Sprintf("%x (hexadecimal)", b)
	case text == "" || text != strings.TrimSpace(text) || strings.Contains(text, "\ufffd") || strconv.Quote(text) != `"`+text+`"`:
		return strconv.Quote(text)
	default:
		return text
	}
}

// Payload is Bytes for what may have several lines, such as JSON.
func Payload(b []byte) string {
	if text := string(b); utf8.Valid(b) && text == commandline.PrintableLines(text) {
		return text
	}
	return Bytes(b)
}

// Shorten cuts text after its first line, and after so many characters.
func Shorten(text string, most int) string {
	text = commandline.FirstLine(text)
	if runes := []rune(text); len(runes) > most {
		return string(runes[:most-3]) + "..."
	}
	return text
}

// ShortID is enough of an id to name a job.
func ShortID(id string) string {
	if len(id) == 36 && id[8] == '-' {
		return id[:8]
	}
	return commandline.Printable(id)
}
