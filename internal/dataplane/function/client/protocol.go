package client

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"math/bits"
	"time"
	"unsafe"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/levada-io/levada/internal/dataplane/function/wire"
	"github.com/levada-io/levada/internal/flow"
)

// The messages of the wire contract (proto/numaflow/*) are written and read by hand here: they are the most frequent thing that happens. The tests compare
// with the generated code.

// layout is where a request has the fields that differ between the kinds. keys, value, event time and watermark are 1 to 4 in all.
type layout struct {
	id, headers, metadata byte // inside Request; id 0: outside
}

var (
	mapLayout       = layout{headers: 5, metadata: 6}
	transformLayout = layout{headers: 5, id: 6, metadata: 7}
	sinkLayout      = layout{id: 5, headers: 6, metadata: 7}
	blockLayout     = layout{headers: 5, metadata: 6, id: 7}
)

// noWatermark is the Timestamp that Numaflow sends where there are no watermarks: one millisecond before 1970.
var noWatermark = appendTimestamp(nil, -int64(time.Millisecond))

func sizeVarint(v uint64) int { return int(9*uint32(bits.Len64(v|1))+64) / 64 }

func sizeBytes(n int) int { return 1 + sizeVarint(uint64(n)) + n }

func appendField(b []byte, field byte, n int) []byte {
	return binary.AppendUvarint(append(b, field<<3|2), uint64(n))
}

func appendString(b []byte, field byte, s string) []byte {
	return append(appendField(b, field, len(s)), s...)
}

// appendTimestamp appends the content of a google.protobuf.Timestamp.
func appendTimestamp(b []byte, ns int64) []byte {
	seconds, nanos := ns/int64(time.Second), ns%int64(time.Second)
	if nanos < 0 {
		seconds, nanos = seconds-1, nanos+int64(time.Second)
	}
	if seconds != 0 {
		b = binary.AppendUvarint(append(b, 1<<3), uint64(seconds))
	}
	if nanos != 0 {
		b = binary.AppendUvarint(append(b, 2<<3), uint64(nanos))
	}
	return b
}

func headerEntry(name, value string) int { return sizeBytes(len(name)) + sizeBytes(len(value)) }

// appendRequest appends the content of a Request message of the kind l.
func appendRequest(b []byte, l *layout, m *flow.Message, id string) []byte {
	for _, k := range m.Keys {
		b = appendString(b, 1, k)
	}
	b = append(appendField(b, 2, len(m.Value)), m.Value...)
	b = append(b, 3<<3|2, 0)
	at := len(b)
	b = appendTimestamp(b, m.EventTime)
	b[at-1] = byte(len(b) - at) // at most 17
	b = append(appendField(b, 4, len(noWatermark)), noWatermark...)
	return appendTail(b, l, m, id)
}

func appendTail(b []byte, l *layout, m *flow.Message, id string) []byte {
	if len(m.Headers) > 0 {
		for name, value := range m.Headers.All {
			b = appendField(b, l.headers, headerEntry(name, value))
			b = appendString(b, 1, name)
			b = appendString(b, 2, value)
		}
	}
	if l.id != 0 {
		b = appendString(b, l.id, id)
	}
	if len(m.Metadata) > 0 {
		b = append(appendField(b, l.metadata, len(m.Metadata)), m.Metadata...)
	}
	return b
}

func sizeRequest(l *layout, m *flow.Message, id string) int {
	n := 0
	for _, k := range m.Keys {
		n += sizeBytes(len(k))
	}
	n += sizeBytes(len(m.Value)) + sizeBytes(len(noWatermark)) + sizeBytes(sizeTimestamp(m.EventTime))
	for name, value := range m.Headers.All {
		n += sizeBytes(headerEntry(name, value))
	}
	if l.id != 0 {
		n += sizeBytes(len(id))
	}
	if len(m.Metadata) > 0 {
		n += sizeBytes(len(m.Metadata))
	}
	return n
}

func sizeTimestamp(ns int64) int {
	var b [32]byte
	return len(appendTimestamp(b[:0], ns))
}

// appendMapRequest appends a whole MapRequest with its gRPC prefix.
func appendMapRequest(b []byte, m *flow.Message, id string) []byte {
	n := sizeRequest(&mapLayout, m, "")
	b = wire.AppendPrefix(b, sizeBytes(n)+sizeBytes(len(id)))
	b = appendField(b, 1, n)
	b = appendRequest(b, &mapLayout, m, "")
	return appendString(b, 2, id)
}

// appendInnerRequest appends a request whose only field is Request: transformers and sinks.
func appendInnerRequest(b []byte, l *layout, m *flow.Message, id string) []byte {
	n := sizeRequest(l, m, id)
	b = wire.AppendPrefix(b, sizeBytes(n))
	b = appendField(b, 1, n)
	return appendRequest(b, l, m, id)
}

// mark is a message with one field that holds {true}: a handshake or the end of a transmission.
func mark(field byte) []byte {
	return append(wire.AppendPrefix(nil, 4), field<<3|2, 2, 1<<3, 1)
}

var errMalformed = errors.New("malformed protobuf message")

// fields calls visit for every field of a message; v holds the bytes of length-delimited fields, n the value of varints.
func fields(b []byte, visit func(field protowire.Number, v []byte, n uint64) error) error {
	for len(b) > 0 {
		var field protowire.Number
		var kind protowire.Type
		if b[0] < 0x80 { // almost always: one byte
			field, kind, b = protowire.Number(b[0]>>3), protowire.Type(b[0]&7), b[1:]
			if field == 0 {
				return errMalformed
			}
		} else {
			f, k, n := protowire.ConsumeTag(b)
			if n < 0 {
				return errMalformed
			}
			field, kind, b = f, k, b[n:]
		}
		var v []byte
		var u uint64
		switch kind {
		case protowire.BytesType:
			l, w := binary.Uvarint(b)
			if w <= 0 || l > uint64(len(b)-w) {
				return errMalformed
			}
			v, b = b[w:w+int(l):w+int(l)], b[w+int(l):]
		case protowire.VarintType:
			l, w := binary.Uvarint(b)
			if w <= 0 {
				return errMalformed
			}
			u, b = l, b[w:]
		default:
			n := protowire.ConsumeFieldValue(field, kind, b)
			if n < 0 {
				return errMalformed
			}
			b = b[n:]
			continue
		}
		if err := visit(field, v, u); err != nil {
			return err
		}
	}
	return nil
}

// text views b, which never changes again, as a string.
func text(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }

// resultLayout is where a result has its fields: keys and value are 1 and 2 in all.
type resultLayout struct {
	eventTime, tags, metadata, nack protowire.Number
}

var (
	mapResult       = resultLayout{tags: 3, metadata: 4, nack: 5}
	transformResult = resultLayout{eventTime: 3, tags: 4, metadata: 5, nack: 6}
)

// decodeResult reads one result of parent into out.
func (l *resultLayout) decodeResult(b []byte, parent *flow.Message, out *Outcome, arena []flow.Message) ([]flow.Message, error) {
	m := flow.Message{Pos: parent.Pos, EventTime: parent.EventTime, Ingested: parent.Ingested, Headers: parent.Headers}
	if len(parent.Metadata) > 0 {
		m.Metadata = systemMetadata(parent.Metadata)
	}
	var special string
	var nack []byte
	err := fields(b, func(f protowire.Number, v []byte, _ uint64) error {
		switch f {
		case 1:
			m.Keys = append(m.Keys, text(v))
		case 2:
			m.Value = v
		case l.tags:
			if t := text(v); t == tagDrop || t == tagNack || t == tagFail {
				special = t
			} else {
				m.Tags = append(m.Tags, t)
			}
		case l.metadata:
			user, err := userMetadata(v)
			m.Metadata = append(m.Metadata[:len(m.Metadata):len(m.Metadata)], user...)
			return err
		case l.nack:
			nack = v
		case l.eventTime:
			var err error
			m.EventTime, err = decodeTimestamp(v)
			return err
		}
		return nil
	})
	if err != nil {
		return arena, err
	}
	switch special {
	case tagDrop:
		out.Dropped++
		return arena, nil
	case tagFail:
		out.Verdict = Retry
		return arena, nil
	case tagNack:
		out.Verdict = Nacked
		return arena, out.decodeNack(nack)
	}
	return append(arena, m), nil
}

// decodeNack reads NackOptions.
func (o *Outcome) decodeNack(b []byte) error {
	return fields(b, func(f protowire.Number, v []byte, n uint64) error {
		switch f {
		case 1:
			o.Reason = text(v)
		case 2:
			o.MaxDeliveries = int(min(n, math.MaxInt32)) // a negative number is a large one
		case 3:
			o.Delay = time.Duration(min(n, uint64(24*time.Hour/time.Millisecond))) * time.Millisecond
		}
		return nil
	})
}

func decodeTimestamp(b []byte) (ns int64, err error) {
	var seconds, nanos int64
	err = fields(b, func(f protowire.Number, _ []byte, n uint64) error {
		switch f {
		case 1:
			seconds = int64(n)
		case 2:
			nanos = int64(n)
		}
		return nil
	})
	const limit = int64(1<<63-1) / int64(time.Second)
	if seconds > limit-1 || seconds < -limit+1 || nanos < 0 || nanos >= int64(time.Second) {
		return 0, fmt.Errorf("event time of %d s and %d ns is out of range", seconds, nanos)
	}
	return seconds*int64(time.Second) + nanos, err
}

// Metadata has two groups, each a map: system (field 2) and user (3). A function's user metadata replaces the message's, its system metadata is not taken.
func userMetadata(b []byte) ([]byte, error) { return pickFields(b, 3) }
func systemMetadata(b []byte) []byte        { kept, _ := pickFields(b, 2); return kept }

func pickFields(b []byte, want byte) ([]byte, error) {
	var kept []byte
	err := fields(b, func(f protowire.Number, v []byte, _ uint64) error {
		if f == protowire.Number(want) {
			kept = append(appendField(kept, want, len(v)), v...)
		}
		return nil
	})
	return kept, err
}

// response is a MapResponse or a SourceTransformResponse, taken apart.
type response struct {
	id        []byte
	results   [][]byte
	handshake bool
	end       bool
}

func (r *response) decode(b []byte) error {
	*r = response{results: r.results[:0]}
	return fields(b, func(f protowire.Number, v []byte, _ uint64) error {
		switch f {
		case 1:
			if v == nil {
				return errMalformed // a number where a result should be
			}
			r.results = append(r.results, v)
		case 2:
			r.id = v
		case 3:
			r.handshake = true
		case 4:
			return fields(v, func(f protowire.Number, _ []byte, n uint64) error {
				r.end = r.end || f == 1 && n != 0
				return nil
			})
		}
		return nil
	})
}

// parseID reads a decimal number without going through a string.
func parseID(b []byte) (uint64, bool) {
	if len(b) == 0 || len(b) > 19 {
		return 0, false
	}
	var n uint64
	for _, c := range b {
		if c < '0' || c > '9' {
			return 0, false
		}
		n = n*10 + uint64(c-'0')
	}
	return n, true
}
