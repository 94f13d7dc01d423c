package header

import (
	"golang.org/x/net/http2/hpack"
)

// Writer encodes the blocks of one connection, in the order in which they are sent. It is not safe for concurrent use.
type Writer struct {
	encoder *hpack.Encoder
	out     sliceWriter
	kept    map[*Set][]byte // as long as the table is unchanged
	table   uint32
}

// keptOut is the most memory that a Writer keeps for its next block.
const keptOut = 64 << 10

type sliceWriter struct{ b []byte }

func (w *sliceWriter) Write(p []byte) (int, error) {
	w.b = append(w.b, p...)
	return len(p), nil
}

// NewWriter makes a writer whose table never grows beyond maxTable bytes, whatever the peer allows.
func NewWriter(maxTable uint32) *Writer {
	w := &Writer{kept: map[*Set][]byte{}, table: maxTable}
	w.encoder = hpack.NewEncoder(&w.out)
	w.encoder.SetMaxDynamicTableSizeLimit(maxTable)
	return w
}

// SetTableSize obeys the peer's SETTINGS_HEADER_TABLE_SIZE. A table that has become smaller stays so: to make it larger again is not asked for, would need two
// updates in a row where a peer goes back and forth, and decoders, such as golang.org/x/net's, refuse the second.
func (w *Writer) SetTableSize(n uint32) {
	if n >= w.table {
		return
	}
	w.table = n
	w.encoder.SetMaxDynamicTableSize(n)
	clear(w.kept) // the next block announces it
}

// Block encodes a set. What it returns is overwritten by the next call.
func (w *Writer) Block(s *Set) []byte {
	if b, ok := w.kept[s]; ok {
		return b
	}
	b := w.Fields(s.Fields)
	if s.cached && len(b) <= keptBytes && scan(b) == leaves {
		if len(w.kept) == keptSets {
			clear(w.kept)
		}
		w.kept[s] = append([]byte(nil), b...)
	}
	return b
}

// Fields encodes fields. What it returns is overwritten by the next call.
func (w *Writer) Fields(fields []Field) []byte {
	if w.out.b = w.out.b[:0]; cap(w.out.b) > keptOut {
		w.out.b = nil
	}
	for _, f := range fields {
		f.Sensitive = f.Sensitive || unrepeated(f.Name)
		_ = w.encoder.WriteField(f) // a sliceWriter does not fail
	}
	if len(w.kept) > 0 && scan(w.out.b) == changes {
		clear(w.kept)
	}
	return w.out.b
}

// unrepeated fields differ from call to call: in a table they would push out what comes again.
func unrepeated(name string) bool {
	switch name {
	case "grpc-timeout", "grpc-message", "grpc-status-details-bin", "grpc-trace-bin", "traceparent", "tracestate", "x-request-id", "b3", "x-b3-traceid",
		"x-b3-spanid", "x-b3-parentspanid", "content-length", "date", "age", "etag", "authorization", "cookie", "set-cookie":
		return true
	}
	return false
}
