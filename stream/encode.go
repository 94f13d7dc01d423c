package stream

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"math/bits"
	"runtime/debug"
	"strings"

	"google.golang.org/protobuf/encoding/protowire"

	streamv1 "github.com/levada-io/levada/proto/levada/stream/v1"
)

// Field numbers of levada.stream.v1, for the two hot paths that read and write records without generated code.
const (
	fieldFrameBatch, fieldFrameMark, fieldFrameDrain, fieldFrameEnd = 1, 2, 3, 4

	fieldBatchFirstSeq, fieldBatchCount, fieldBatchToken, fieldBatchDigest, fieldBatchRecords = 1, 2, 3, 4, 5

	fieldRecordKey, fieldRecordValue, fieldRecordBad = 1, 2, 3
)

// filling is a batch that is being filled: its records are encoded as they come.
type filling struct {
	raw      []byte // the field "records" of Batch, once for each record
	first    uint64 // number of the first record
	count    int
	position token // after the last record; its key has memory of its own

	bodyLen, valueLen int // how many bytes the last record's lengths took: most records are like the one before
}

func (f *filling) reset(at token) {
	f.raw, f.count, f.first = f.raw[:0], 0, at.seq+1
	key := append(f.position.key[:0], at.key...)
	f.position = at
	f.position.key = key
}

// add encodes the record that the cursor stands on. When its value panics, is refused with Skip or is larger than limit,
// it adds a bad record and returns why in bad. Other errors of the value end up in err, and nothing is added.
func (f *filling) add(c Cursor, key []byte, limit int) (bad, err error) {
	start := len(f.raw)
	f.bodyLen, f.valueLen = clampLen(f.bodyLen), clampLen(f.valueLen)
	keyPart := 1 + sizeVarint(len(key)) + len(key)
	valueAt := start + 1 + f.bodyLen + keyPart + 1 + f.valueLen
	f.raw = grow(f.raw, valueAt)
	raw, err := value(c, f.raw)
	if err == nil && len(raw) < valueAt {
		err = Halt(fmt.Errorf("the cursor's Value returned %d bytes less than it was given: it must append", valueAt-len(raw)))
	}
	size := len(raw) - valueAt
	switch {
	case err != nil && VerdictOf(err) == VerdictSkip:
		bad = err
	case err != nil:
		f.raw = f.raw[:start]
		return nil, err
	case size+keyPart+16 > limit:
		bad = fmt.Errorf("%w: it has %d bytes, and the limit is %d", ErrTooLarge, size, limit)
	}
	if bad != nil {
		f.addBad(start, key, bad)
		return bad, nil
	}
	valueLen := sizeVarint(size)
	body := keyPart + 1 + valueLen + size
	bodyLen := sizeVarint(body)
	if shift := bodyLen + valueLen - f.bodyLen - f.valueLen; shift != 0 {
		raw = grow(raw, max(len(raw), len(raw)+shift))
		copy(raw[valueAt+shift:], raw[valueAt:valueAt+size])
		raw = raw[:valueAt+shift+size]
		valueAt += shift
		f.bodyLen, f.valueLen = bodyLen, valueLen
	}
	head := raw[start:start]
	head = append(head, fieldBatchRecords<<3|byte(protowire.BytesType))
	head = binary.AppendUvarint(head, uint64(body))
	head = append(head, fieldRecordKey<<3|byte(protowire.BytesType))
	head = binary.AppendUvarint(head, uint64(len(key)))
	head = append(head, key...)
	head = append(head, fieldRecordValue<<3|byte(protowire.BytesType))
	binary.AppendUvarint(head, uint64(size))
	f.raw = raw
	f.advance(key, size, crc32.Update(crc32.Update(0, castagnoli, key), castagnoli, raw[valueAt:]))
	return nil, nil
}

func (f *filling) addBad(start int, key []byte, why error) {
	text := why.Error()
	if len(text) > maxBadText {
		text = text[:maxBadText]
	}
	var body []byte
	body = protowire.AppendTag(body, fieldRecordKey, protowire.BytesType)
	body = protowire.AppendBytes(body, key)
	body = protowire.AppendTag(body, fieldRecordBad, protowire.BytesType)
	body = protowire.AppendString(body, validUTF8(text))
	f.raw = protowire.AppendTag(f.raw[:start], fieldBatchRecords, protowire.BytesType)
	f.raw = protowire.AppendBytes(f.raw, body)
	f.advance(key, 0, crc32.Update(0, castagnoli, key))
}

// maxBadText bounds the text that tells why a record is bad; stacks are in the producer's log.
const maxBadText = 1 << 10

func (f *filling) advance(key []byte, size int, sum uint32) {
	f.position.seq++
	f.position.digest.add(f.position.seq, len(key), size, sum)
	f.position.key = append(f.position.key[:0], key...)
	f.count++
}

// frame makes the message to send. Its records go out as they lie in raw: to the generated code they are an unknown field,
// which it copies as it is.
func (f *filling) frame(token []byte) *streamv1.Frame {
	batch := &streamv1.Batch{FirstSeq: f.first, Count: uint32(f.count), Token: token, Digest: f.position.digest[:]}
	batch.ProtoReflect().SetUnknown(f.raw)
	return &streamv1.Frame{Frame: &streamv1.Frame_Batch{Batch: batch}}
}

// value calls the cursor, and makes a panic an error that is the record's fault.
func value(c Cursor, dst []byte) (out []byte, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = Skip(&PanicError{Value: p, Stack: debug.Stack()})
		}
	}()
	return c.Value(dst)
}

// recovered turns a panic into the error of the function that deferred it.
func recovered(err *error) {
	if p := recover(); p != nil {
		*err = &PanicError{Value: p, Stack: debug.Stack()}
	}
}

// PanicError is a panic of a source or a handler, recovered.
type PanicError struct {
	Value any
	Stack []byte
}

func (e *PanicError) Error() string { return fmt.Sprintf("panic: %v", e.Value) }

func (e *PanicError) Unwrap() error {
	err, _ := e.Value.(error)
	return err
}

func sizeVarint(n int) int { return (bits.Len64(uint64(n)|1) + 6) / 7 }

func clampLen(n int) int { return min(max(n, 1), 5) }

// grow returns b with length n.
func grow(b []byte, n int) []byte {
	if n <= cap(b) {
		return b[:n]
	}
	return append(b, make([]byte, n-len(b))...)
}

// validUTF8 makes a text fit for a proto3 string.
func validUTF8(text string) string { return strings.ToValidUTF8(text, "\uFFFD") }
