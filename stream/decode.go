package stream

import (
	"bytes"
	"fmt"
	"hash/crc32"
	"unicode/utf8"

	"google.golang.org/grpc/encoding"
	encodingproto "google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	streamv1 "github.com/levada-io/levada/proto/levada/stream/v1"
)

// frame is a Frame as a reader takes it off the wire: records lie in the buffer that gRPC received, and nothing is
// allocated for them.
type frame struct {
	kind protowire.Number // fieldFrame...; 0 for one that is empty or of a kind that came later
	buf  mem.Buffer       // what the slices below point into
	size int
	err  error // why it could not be read; gRPC would make an anonymous INTERNAL of it

	firstSeq uint64
	token    []byte
	digest   []byte
	records  []Record

	other streamv1.Frame // mark, drain and end
}

// free releases the buffer. The frame's slices are invalid then.
func (f *frame) free() {
	if f.buf != nil {
		f.buf.Free()
		f.buf = nil
	}
}

// frameCodec is the codec "proto" with a fast path for frames. Readers force it per call, so no other code uses it.
type frameCodec struct{ encoding.CodecV2 }

// framePool has a size for each batch that is common, with room for its head: gRPC's own pool would take a megabyte for each.
var framePool = mem.NewTieredBufferPool(4<<10, 16<<10, 72<<10, 144<<10, 288<<10, 576<<10, 1088<<10, 4<<20+64<<10)

func newFrameCodec() frameCodec { return frameCodec{encoding.GetCodecV2(encodingproto.Name)} }

func (c frameCodec) Unmarshal(data mem.BufferSlice, v any) error {
	f, ok := v.(*frame)
	if !ok {
		return c.CodecV2.Unmarshal(data, v)
	}
	f.free()
	f.buf = data.MaterializeToBuffer(framePool)
	f.err = f.parse(f.buf.ReadOnlyData())
	return nil
}

func (f *frame) parse(b []byte) error {
	f.kind, f.size, f.firstSeq, f.token, f.digest = 0, len(b), 0, nil, nil
	f.records = f.records[:0]
	whole := b
	for len(b) > 0 {
		number, kind, n := consumeTag(b)
		if n < 0 {
			return corrupt("frame", protowire.ParseError(n))
		}
		b = b[n:]
		if number == fieldFrameBatch && kind == protowire.BytesType {
			body, n := protowire.ConsumeBytes(b)
			if n < 0 {
				return corrupt("frame", protowire.ParseError(n))
			}
			if f.kind != 0 {
				return corrupt("frame", fmt.Errorf("it holds two"))
			}
			f.kind, b = number, b[n:]
			if err := f.parseBatch(body); err != nil {
				return err
			}
			continue
		}
		n = protowire.ConsumeFieldValue(number, kind, b)
		if n < 0 {
			return corrupt("frame", protowire.ParseError(n))
		}
		if number <= fieldFrameEnd && kind == protowire.BytesType {
			if f.kind != 0 {
				return corrupt("frame", fmt.Errorf("it holds two"))
			}
			f.kind = number
		}
		b = b[n:]
	}
	if f.kind == 0 || f.kind == fieldFrameBatch {
		return nil
	}
	if err := proto.Unmarshal(whole, &f.other); err != nil {
		return corrupt("frame", err)
	}
	return nil
}

func (f *frame) parseBatch(b []byte) error {
	var count uint64
	for len(b) > 0 {
		number, kind, n := consumeTag(b)
		if n < 0 {
			return corrupt("batch", protowire.ParseError(n))
		}
		b = b[n:]
		switch {
		case number == fieldBatchRecords && kind == protowire.BytesType:
			var body []byte
			if body, n = protowire.ConsumeBytes(b); n < 0 {
				return corrupt("batch", protowire.ParseError(n))
			}
			if err := f.parseRecord(body); err != nil {
				return err
			}
		case number == fieldBatchFirstSeq && kind == protowire.VarintType:
			f.firstSeq, n = protowire.ConsumeVarint(b)
		case number == fieldBatchCount && kind == protowire.VarintType:
			count, n = protowire.ConsumeVarint(b)
		case number == fieldBatchToken && kind == protowire.BytesType:
			f.token, n = protowire.ConsumeBytes(b)
		case number == fieldBatchDigest && kind == protowire.BytesType:
			f.digest, n = protowire.ConsumeBytes(b)
		default:
			n = protowire.ConsumeFieldValue(number, kind, b)
		}
		if n < 0 {
			return corrupt("batch", protowire.ParseError(n))
		}
		b = b[n:]
	}
	switch {
	case uint32(count) != uint32(len(f.records)): // as the generated code reads it
		return corrupt("batch", fmt.Errorf("it says %d records and holds %d", count, len(f.records)))
	case f.firstSeq == 0:
		return corrupt("batch", fmt.Errorf("it has no number"))
	case len(f.digest) != len(Digest{}):
		return corrupt("batch", fmt.Errorf("its digest has %d bytes", len(f.digest)))
	case len(f.token) == 0:
		return corrupt("batch", fmt.Errorf("it has no token"))
	}
	for i := range f.records {
		f.records[i].Seq = f.firstSeq + uint64(i)
	}
	return nil
}

func (f *frame) parseRecord(b []byte) error {
	var r Record
	for len(b) > 0 {
		number, kind, n := consumeTag(b)
		if n < 0 {
			return corrupt("record", protowire.ParseError(n))
		}
		b = b[n:]
		switch {
		case number == fieldRecordKey && kind == protowire.BytesType:
			r.Key, n = protowire.ConsumeBytes(b)
		case number == fieldRecordValue && kind == protowire.BytesType:
			r.Value, n = protowire.ConsumeBytes(b)
		case number == fieldRecordBad && kind == protowire.BytesType:
			r.Bad, n = protowire.ConsumeString(b)
		default:
			n = protowire.ConsumeFieldValue(number, kind, b)
		}
		if n < 0 {
			return corrupt("record", protowire.ParseError(n))
		}
		b = b[n:]
	}
	if len(r.Key) == 0 {
		return corrupt("record", fmt.Errorf("it has no key"))
	}
	if !utf8.ValidString(r.Bad) {
		return corrupt("record", fmt.Errorf("the reason why it is bad is not valid UTF-8"))
	}
	if r.Bad != "" && len(r.Value) > 0 {
		return corrupt("record", fmt.Errorf("it is bad, and has a value"))
	}
	r.sum = crc32.Update(crc32.Update(0, castagnoli, r.Key), castagnoli, r.Value)
	f.records = append(f.records, r)
	return nil
}

// check tells whether the batch goes on after a position: its number, its digest, and its keys. It returns the digest after it.
// Keys that do not grow are the source's fault, for good, if the digest is right; else something on the way has damaged one.
func (f *frame) check(next uint64, lastKey []byte, before Digest) (Digest, error) {
	if f.firstSeq != next {
		return before, corrupt("batch", fmt.Errorf("record %d was to come, and %d came", next, f.firstSeq))
	}
	var order error
	for _, r := range f.records {
		if order == nil && bytes.Compare(r.Key, lastKey) <= 0 {
			order = fmt.Errorf("%w: record %d has key %q, after %q", ErrOrder, r.Seq, r.Key, lastKey)
		}
		lastKey = r.Key
		before.add(r.Seq, len(r.Key), len(r.Value), r.sum)
	}
	if !bytes.Equal(before[:], f.digest) {
		return before, corrupt("batch", fmt.Errorf("records %d to %d, with those before, have digest %v, and the producer says %x", f.firstSeq, next+uint64(len(f.records))-1, before, f.digest))
	}
	return before, order
}

func corrupt(what string, err error) error { return fmt.Errorf("%w: %s: %w", ErrCorrupt, what, err) }

// consumeTag is protowire's, which takes numbers that the generated code refuses.
func consumeTag(b []byte) (number protowire.Number, kind protowire.Type, n int) {
	number, kind, n = protowire.ConsumeTag(b)
	if number > protowire.MaxValidNumber {
		n = -1
	}
	return number, kind, n
}
