package sdk

import (
	"errors"
	"time"
	"unicode/utf8"
	"unsafe"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/levada-io/levada/proto/numaflow/common"
)

// The messages of all kinds have keys, value, event time and watermark in fields 1 to 4, and differ in the rest.
const (
	fieldKeys      = 1
	fieldValue     = 2
	fieldEventTime = 3
	fieldWatermark = 4
)

// layout is where a message of one kind has its other fields.
type layout struct {
	id, headers, metadata protowire.Number
	// nanoseconds: times are zigzag varints and not Timestamps.
	nanoseconds             bool
	hasHeaders, hasMetadata bool
}

var (
	mapLayout       = layout{headers: 5, metadata: 6} // the id lies outside
	transformLayout = layout{headers: 5, id: 6, metadata: 7}
	sinkLayout      = layout{id: 5, headers: 6, metadata: 7}
	blockLayout     = layout{headers: 5, metadata: 6, id: 7, nanoseconds: true}
)

var errUTF8 = errors.New("string is not UTF-8")

// field is one field of an encoded message: bytes for length-delimited fields, number for varints.
type field struct {
	num    protowire.Number
	typ    protowire.Type
	bytes  []byte
	number uint64
}

// next splits the first field off b.
func next(b []byte) (field, []byte, error) {
	// Most fields are short, with a number below 16: their tag and their length have a byte each.
	if len(b) >= 2 && b[0] >= 1<<3 && b[0] < 0x80 && protowire.Type(b[0]&7) == protowire.BytesType && b[1] < 0x80 {
		if stop := 2 + int(b[1]); stop <= len(b) {
			return field{num: protowire.Number(b[0] >> 3), typ: protowire.BytesType, bytes: b[2:stop]}, b[stop:], nil
		}
	}
	num, typ, n := protowire.ConsumeTag(b)
	if n < 0 {
		return field{}, nil, protowire.ParseError(n)
	}
	b = b[n:]
	f := field{num: num, typ: typ}
	switch typ {
	case protowire.BytesType:
		f.bytes, n = protowire.ConsumeBytes(b)
	case protowire.VarintType:
		f.number, n = protowire.ConsumeVarint(b)
	default:
		n = protowire.ConsumeFieldValue(num, typ, b)
	}
	if n < 0 {
		return field{}, nil, protowire.ParseError(n)
	}
	return f, b[n:], nil
}

// decodeMessage decodes what a function always sees. The message points into raw, which must never change.
func decodeMessage(raw []byte, wire layout) (Message, error) {
	m := Message{raw: raw}
	var event, watermark instant
	for b := raw; len(b) > 0; {
		var f field
		var err error
		if f, b, err = next(b); err != nil {
			return m, err
		}
		if wire.nanoseconds && f.typ == protowire.VarintType {
			switch f.num {
			case fieldEventTime:
				event.nanos = protowire.DecodeZigZag(f.number)
			case fieldWatermark:
				watermark.nanos = protowire.DecodeZigZag(f.number)
			}
			continue
		}
		if f.typ != protowire.BytesType {
			continue // unknown, or known with a type that is not ours: protobuf treats both alike
		}
		switch f.num {
		case fieldKeys:
			key, err := text(f.bytes)
			if err != nil {
				return m, err
			}
			m.Keys = append(m.Keys, key)
		case fieldValue:
			m.Value = f.bytes[:len(f.bytes):len(f.bytes)]
		case fieldEventTime:
			if !wire.nanoseconds {
				err = event.merge(f.bytes)
			}
		case fieldWatermark:
			if !wire.nanoseconds {
				err = watermark.merge(f.bytes)
			}
		case wire.id:
			m.ID, err = text(f.bytes)
		case wire.headers:
			wire.hasHeaders = true
		case wire.metadata:
			wire.hasMetadata = true
		}
		if err != nil {
			return m, err
		}
	}
	m.EventTime, m.Watermark = event.time(), watermark.time()
	m.wire = wire
	return m, nil
}

// text makes a string of bytes that never change, without copying them.
func text(b []byte) (string, error) {
	if !utf8.Valid(b) {
		return "", errUTF8
	}
	return unsafe.String(unsafe.SliceData(b), len(b)), nil
}

// instant is a time on the wire. Absent parts are 0, and so is an absent time: 1970.
type instant struct{ seconds, nanos int64 }

func (i instant) time() time.Time { return time.Unix(i.seconds, i.nanos).UTC() }

// merge reads a google.protobuf.Timestamp. A field that is there several times is merged, as protobuf asks.
func (i *instant) merge(b []byte) error {
	for len(b) > 0 {
		var f field
		var err error
		if f, b, err = next(b); err != nil {
			return err
		}
		if f.typ != protowire.VarintType {
			continue
		}
		switch f.num {
		case 1:
			i.seconds = int64(f.number)
		case 2:
			i.nanos = int64(int32(f.number))
		}
	}
	return nil
}

// decodeHeaders collects map<string, string> entries. A malformed one is left out: only the platform writes them.
func decodeHeaders(raw []byte, num protowire.Number) map[string]string {
	headers := make(map[string]string)
	for b := raw; len(b) > 0; {
		var f field
		var err error
		if f, b, err = next(b); err != nil {
			break // decodeMessage has been here without finding fault
		}
		if f.num != num || f.typ != protowire.BytesType {
			continue
		}
		if key, value, ok := decodeHeader(f.bytes); ok {
			headers[key] = value
		}
	}
	return headers
}

func decodeHeader(entry []byte) (key, value string, ok bool) {
	for len(entry) > 0 {
		var f field
		var err error
		if f, entry, err = next(entry); err != nil {
			return "", "", false
		}
		if f.typ != protowire.BytesType {
			continue
		}
		switch f.num {
		case 1:
			key, err = text(f.bytes)
		case 2:
			value, err = text(f.bytes)
		}
		if err != nil {
			return "", "", false
		}
	}
	return key, value, true
}

// decodeMetadata is rare enough to be left to protobuf. A field that is there several times is merged.
func decodeMetadata(raw []byte, num protowire.Number) Metadata {
	var md common.Metadata
	for b := raw; len(b) > 0; {
		var f field
		var err error
		if f, b, err = next(b); err != nil {
			break
		}
		if f.num != num || f.typ != protowire.BytesType {
			continue
		}
		if err := (proto.UnmarshalOptions{Merge: true}).Unmarshal(f.bytes, &md); err != nil {
			return Metadata{}
		}
	}
	return Metadata{
		PreviousVertex: md.GetPreviousVertex(),
		System:         groups(md.GetSysMetadata()),
		User:           groups(md.GetUserMetadata()),
	}
}

func groups(encoded map[string]*common.KeyValueGroup) map[string]map[string][]byte {
	if len(encoded) == 0 {
		return nil
	}
	decoded := make(map[string]map[string][]byte, len(encoded))
	for name, group := range encoded {
		decoded[name] = group.GetKeyValue()
	}
	return decoded
}
