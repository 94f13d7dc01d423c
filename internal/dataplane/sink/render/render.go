// Package render writes messages as lines of text.
package render

import (
	"encoding/base64"
	"fmt"
	"time"
	"unicode/utf8"

	"github.com/levada-io/levada/internal/flow"
)

// Format says how a message is written. The names are those of the manifest.
type Format string

// The formats.
const (
	// Raw is the payload and "\n". A payload that has line ends itself makes several lines.
	Raw Format = "raw"
	// JSON is an object and "\n": id, keys, eventTime (RFC 3339), headers, and value, or valueBase64 for what is not UTF-8.
	JSON Format = "json"
)

// Parse returns the format, Raw if the name is empty.
func Parse(name Format) (Format, error) {
	switch name {
	case "":
		return Raw, nil
	case Raw, JSON:
		return name, nil
	}
	return "", fmt.Errorf("format: %q is not known: use raw or json", name)
}

// Append appends the message and its line end.
func (f Format) Append(b []byte, m *flow.Message) []byte {
	if f == Raw {
		b = append(b, m.Value...)
		return append(b, '\n')
	}
	b = appendString(append(b, `{"id":`...), m.ID)
	b = appendKeys(append(b, `,"keys":`...), m.Keys)
	b = append(b, `,"eventTime":"`...)
	b = time.Unix(0, m.EventTime).UTC().AppendFormat(b, time.RFC3339Nano)
	b = appendHeaders(append(b, `","headers":`...), m.Headers)
	if utf8.Valid(m.Value) {
		b = appendString(append(b, `,"value":`...), m.Value)
	} else {
		b = append(b, `,"valueBase64":"`...)
		b = append(base64.StdEncoding.AppendEncode(b, m.Value), '"')
	}
	return append(b, "}\n"...)
}

func appendKeys(b []byte, keys []string) []byte {
	b = append(b, '[')
	for i, k := range keys {
		if i > 0 {
			b = append(b, ',')
		}
		b = appendString(b, k)
	}
	return append(b, ']')
}

func appendHeaders(b []byte, headers flow.Headers) []byte {
	b = append(b, '{')
	first := true
	for name, value := range firsts(headers) {
		if !first {
			b = append(b, ',')
		}
		first = false
		b = append(appendString(b, name), ':')
		b = appendString(b, value)
	}
	return append(b, '}')
}

// firsts yields each header whose name has not come before: the first of two counts.
func firsts(h flow.Headers) func(yield func(name, value string) bool) {
	return func(yield func(name, value string) bool) {
		n := 0
		for name, value := range h.All {
			known := 0
			for earlier := range h.All {
				if known == n || earlier == name {
					break
				}
				known++
			}
			if known == n && !yield(name, value) {
				return
			}
			n++
		}
	}
}

const hexDigits = "0123456789abcdef"

// appendEscape appends a byte that JSON does not allow in a string as it is.
func appendEscape(b []byte, c byte) []byte {
	switch c {
	case '"', '\\':
		return append(b, '\\', c)
	case '\n':
		return append(b, '\\', 'n')
	case '\r':
		return append(b, '\\', 'r')
	case '\t':
		return append(b, '\\', 't')
	}
	return append(b, '\\', 'u', '0', '0', hexDigits[c>>4], hexDigits[c&15])
}

// appendString appends s as a JSON string. What is not UTF-8 becomes U+FFFD.
func appendString[T string | []byte](b []byte, s T) []byte {
	b = append(b, '"')
	from := 0
	for i := 0; i < len(s); {
		c := s[i]
		if c < utf8.RuneSelf {
			if c >= ' ' && c != '"' && c != '\\' {
				i++
				continue
			}
			b = appendEscape(append(b, s[from:i]...), c)
			i++
			from = i
			continue
		}
		r, size := utf8.DecodeRuneInString(string(s[i:min(len(s), i+utf8.UTFMax)]))
		if r == utf8.RuneError && size == 1 {
			b = append(append(b, s[from:i]...), "\ufffd"...)
			from = i + 1
		}
		i += size
	}
	b = append(b, s[from:]...)
	return append(b, '"')
}
