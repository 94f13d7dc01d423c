package manifest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"unicode/utf8"

	yaml "go.yaml.in/yaml/v3"
)

// jsonDocument is one of the JSON values that a text consists of.
type jsonDocument struct {
	text []byte
	root *yaml.Node
}

// jsonDocuments reads a text of JSON values into nodes with positions. YAML is not quite a superset of JSON (tabs), and its
// positions are all that is needed here, so JSON gets its own reader.
func jsonDocuments(data []byte) ([]jsonDocument, error) {
	r := &jsonReader{data: data, dec: json.NewDecoder(bytes.NewReader(data))}
	r.dec.UseNumber()
	var docs []jsonDocument
	for {
		node, err := r.value(0)
		if errors.Is(err, io.EOF) {
			return docs, nil
		} else if err != nil {
			return nil, err
		}
		end := int(r.dec.InputOffset())
		docs = append(docs, jsonDocument{data[r.start:end], node})
		r.start = end
	}
}

type jsonReader struct {
	data  []byte
	dec   *json.Decoder
	start int // of the current document

	seen, line, column int // how far position has read
}

func (r *jsonReader) value(depth int) (*yaml.Node, error) {
	if depth > maxDepth+1 { // one more, so that the caller sees that it is too deep
		return nil, errTooDeep
	}
	from := int(r.dec.InputOffset())
	token, err := r.dec.Token()
	if err != nil {
		return nil, err
	}
	node := &yaml.Node{}
	node.Line, node.Column = r.position(from)
	switch t := token.(type) {
	case json.Delim:
		node.Kind = yaml.SequenceNode
		if t == '{' {
			node.Kind = yaml.MappingNode
		}
		for r.dec.More() {
			element, err := r.value(depth + 1)
			if err != nil {
				return nil, unexpectedEnd(err)
			}
			node.Content = append(node.Content, element)
		}
		if _, err := r.dec.Token(); err != nil { // the closing bracket
			return nil, unexpectedEnd(err)
		}
	default:
		node.Kind = yaml.ScalarNode
		node.Value = fmt.Sprint(t)
	}
	return node, nil
}

// position of the token that starts at or after an offset. Offsets never go back, so that a long line is read once.
func (r *jsonReader) position(offset int) (line, column int) {
	for offset < len(r.data) && bytes.IndexByte([]byte(" \t\r\n,:"), r.data[offset]) >= 0 {
		offset++
	}
	for ; r.seen < offset; r.seen++ {
		switch c := r.data[r.seen]; {
		case c == '\n':
			r.line, r.column = r.line+1, 0
		case utf8.RuneStart(c):
			r.column++
		}
	}
	return r.line + 1, r.column + 1
}

func unexpectedEnd(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}
