package records

import (
	"bytes"
	"encoding/json"
	"errors"
	"unicode/utf8"
)

// nextJSON cuts one line and checks that it is one JSON value.
func nextJSON(buf []byte, eof bool) (int, []byte, error) {
	n := bytes.IndexByte(buf, '\n')
	used := n + 1
	if n < 0 {
		if !eof {
			return 0, nil, nil
		}
		n, used = len(buf), len(buf)
	}
	line := bytes.TrimSpace(buf[:n:n])
	if len(line) == 0 {
		return used, nil, nil
	}
	if !json.Valid(line) {
		var v any
		if err := json.Unmarshal(line, &v); err != nil {
			return used, nil, err // json.Unmarshal knows what is wrong; json.Valid only that something is
		}
		return used, nil, errors.New("no JSON value")
	}
	if !utf8.Valid(line) { // which encoding/json lets pass
		return used, nil, errNotUTF8
	}
	return used, line[:len(line):len(line)], nil
}

const hexDigits = "0123456789abcdef"

// appendString appends s, which must be UTF-8, as a JSON string.
func appendString(b []byte, s []byte) []byte {
	b = append(b, '"')
	from := 0
	for i, c := range s {
		if c >= ' ' && c != '"' && c != '\\' {
			continue
		}
		b = append(b, s[from:i]...)
		from = i + 1
		switch c {
		case '"', '\\':
			b = append(b, '\\', c)
		case '\n':
			b = append(b, '\\', 'n')
		case '\r':
			b = append(b, '\\', 'r')
		case '\t':
			b = append(b, '\\', 't')
		default:
			b = append(b, '\\', 'u', '0', '0', hexDigits[c>>4], hexDigits[c&15])
		}
	}
	b = append(b, s[from:]...)
	return append(b, '"')
}

var errNotUTF8 = errors.New("it is not UTF-8, as JSON must be; convert the file, for instance with iconv -f ISO-8859-1 -t UTF-8")

func validFields(fields [][]byte) error {
	for _, f := range fields {
		if !utf8.Valid(f) {
			return errNotUTF8
		}
	}
	return nil
}
