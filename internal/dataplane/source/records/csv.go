package records

import (
	"bytes"
	"errors"
	"fmt"
)

// csvCutter cuts records as encoding/csv does, quoted line ends and all, and makes JSON of them. It exists beside encoding/csv because
// that one reads ahead from an io.Reader: it can neither wait in the middle of a record nor begin again there.
type csvCutter struct {
	delimiter  byte
	wantHeader bool
	begun      bool     // the first record was read
	suspect    byte     // what seems to separate the fields of the first record, if it is not the delimiter
	names      [][]byte // encoded as the start of a member: {"a": and ,"b":
	fields     [][]byte
	slab       []byte // values are cut from here
}

// faultAt says how far into the record a fault lies, and from where on the end of the line is the end of the record.
type faultAt struct {
	at, from int
	reason   error
}

func (f faultAt) Error() string { return f.reason.Error() }
func (f faultAt) Unwrap() error { return f.reason }

var (
	errBareQuote = errors.New(`a quote in a field that does not begin with one; put the field in quotes and double each quote in it`)
	errQuote     = errors.New(`a quoted field goes on after its closing quote; double each quote in a quoted field`)
	errUnclosed  = errors.New(`a quoted field is not closed at the end of the file`)
)

func (c *csvCutter) next(buf []byte, eof bool) (int, []byte, error) {
	n, err := c.split(buf, eof)
	if at, ok := errors.AsType[faultAt](err); ok {
		if c.wantHeader {
			return 0, nil, c.explainHeader(buf, at)
		}
		end := bytes.IndexByte(buf[at.from:], '\n')
		switch {
		case end >= 0:
			return at.from + end + 1, nil, err
		case eof:
			return len(buf), nil, err
		}
		return 0, nil, nil // the rest of the line is part of it
	}
	if n == 0 || err != nil || len(c.fields) == 0 {
		return n, nil, err
	}
	if err := validFields(c.fields); err != nil {
		return n, nil, err
	}
	if !c.begun {
		c.begun = true
		if len(c.fields) == 1 && buf[0] != '"' {
			c.suspect = otherDelimiter(c.fields[0], c.delimiter)
		}
	}
	if c.wantHeader {
		return n, nil, c.header()
	}
	if c.names != nil && len(c.fields) != len(c.names) {
		return n, nil, fmt.Errorf("it has %d fields, and the header names %d columns", len(c.fields), len(c.names))
	}
	return n, c.json(), nil
}

// delimiters are those in use.
const delimiters = ",;\t|"

// otherDelimiter returns what seems to separate fields in a record that has only one; 0 if nothing does.
func otherDelimiter(field []byte, delimiter byte) byte {
	for _, d := range []byte(delimiters) {
		if d != delimiter && bytes.IndexByte(field, d) >= 0 {
			return d
		}
	}
	return 0
}

// explainHeader names the delimiter where that is the likely cause: a file such as "id";"name" is malformed when it is read with commas.
func (c *csvCutter) explainHeader(buf []byte, at faultAt) error {
	if !errors.Is(at.reason, errQuote) || at.at+1 >= len(buf) {
		return at
	}
	if d := buf[at.at+1]; d != c.delimiter && bytes.IndexByte([]byte(delimiters), d) >= 0 {
		at.reason = fmt.Errorf("%w; its fields seem to be separated by %q: set delimiter", at.reason, d)
	}
	return at
}

// split finds the end of the first record and its fields. A blank line has none.
func (c *csvCutter) split(buf []byte, eof bool) (n int, err error) {
	c.fields = c.fields[:0]
	if n, known := blank(buf, eof); n > 0 || !known {
		return n, nil
	}
	for i := 0; ; {
		var end int
		var done bool
		if i < len(buf) && buf[i] == '"' {
			end, done, err = c.quoted(buf, i, eof)
		} else {
			end, done, err = c.plain(buf, i, eof)
		}
		if end == 0 || err != nil {
			return 0, err
		}
		if done {
			return end, nil
		}
		i = end
	}
}

// blank returns the length of a blank line; known is false if the next byte decides.
func blank(buf []byte, eof bool) (n int, known bool) {
	switch {
	case len(buf) == 0:
		return 0, eof
	case buf[0] == '\n':
		return 1, true
	case buf[0] != '\r':
		return 0, true
	case len(buf) > 1 && buf[1] == '\n':
		return 2, true
	case len(buf) == 1 && eof:
		return 1, true
	}
	return 0, len(buf) > 1
}

// plain reads an unquoted field at i. It returns where the next field or record starts, 0 if that is not known yet.
func (c *csvCutter) plain(buf []byte, i int, eof bool) (end int, done bool, err error) {
	for j := i; j < len(buf); j++ {
		switch buf[j] {
		case c.delimiter:
			c.fields = append(c.fields, buf[i:j])
			return j + 1, false, nil
		case '\n':
			c.fields = append(c.fields, trimCR(buf[i:j]))
			return j + 1, true, nil
		case '"':
			return 0, false, faultAt{j, j, errBareQuote}
		}
	}
	if !eof {
		return 0, false, nil
	}
	c.fields = append(c.fields, trimCR(buf[i:]))
	return len(buf), true, nil
}

func trimCR(b []byte) []byte {
	if n := len(b); n > 0 && b[n-1] == '\r' {
		return b[:n-1]
	}
	return b
}

// quoted reads the field whose opening quote is at i.
func (c *csvCutter) quoted(buf []byte, i int, eof bool) (end int, done bool, err error) {
	start, doubled := i+1, false
	for j := start; ; {
		k := bytes.IndexByte(buf[j:], '"')
		if k < 0 {
			if eof {
				return 0, false, faultAt{i, i, errUnclosed}
			}
			return 0, false, nil
		}
		k += j
		after := buf[k+1:]
		switch {
		case len(after) == 0 && !eof || len(after) == 1 && after[0] == '\r' && !eof:
			return 0, false, nil
		case len(after) > 0 && after[0] == '"':
			doubled = true
			j = k + 2
			continue
		case len(after) == 0 || len(after) == 1 && after[0] == '\r':
			end, done = len(buf), true
		case after[0] == c.delimiter:
			end = k + 2
		case after[0] == '\n':
			end, done = k+2, true
		case after[0] == '\r' && after[1] == '\n':
			end, done = k+3, true
		default:
			if bytes.IndexByte(buf[i:k], '\n') >= 0 {
				// The quote at i was most likely not closed, and this one opens a field of a later record.
				return 0, false, faultAt{i, i, errQuote}
			}
			return 0, false, faultAt{k, k, errQuote}
		}
		c.fields = append(c.fields, unquote(buf[start:k], doubled))
		return end, done, nil
	}
}

// unquote undoubles quotes, and makes "\n" of "\r\n" as encoding/csv does.
func unquote(b []byte, doubled bool) []byte {
	if doubled {
		b = bytes.ReplaceAll(b, []byte(`""`), []byte(`"`))
	}
	if bytes.IndexByte(b, '\r') >= 0 {
		b = bytes.ReplaceAll(b, []byte("\r\n"), []byte("\n"))
	}
	return b
}

func (c *csvCutter) header() error {
	names := make([][]byte, 0, len(c.fields))
	seen := map[string]int{}
	for i, f := range c.fields {
		if first, ok := seen[string(f)]; ok {
			return fmt.Errorf("columns %d and %d of the header are both called %q; give each a name of its own", first+1, i+1, f)
		}
		seen[string(f)] = i
		name := []byte{','}
		if i == 0 {
			name[0] = '{'
		}
		names = append(names, append(appendString(name, f), ':'))
	}
	c.names, c.wantHeader = names, false
	return nil
}

const slabSize = 64 << 10

func (c *csvCutter) json() []byte {
	if cap(c.slab)-len(c.slab) < 1<<10 {
		c.slab = make([]byte, 0, slabSize)
	}
	b, start := c.slab, len(c.slab)
	if c.names == nil {
		for i, f := range c.fields {
			sep := byte(',')
			if i == 0 {
				sep = '['
			}
			b = appendString(append(b, sep), f)
		}
		b = append(b, ']')
	} else {
		for i, f := range c.fields {
			b = appendString(append(b, c.names[i]...), f)
		}
		b = append(b, '}')
	}
	c.slab = b
	return b[start:len(b):len(b)]
}
