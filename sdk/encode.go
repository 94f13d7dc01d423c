package sdk

import (
	"time"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/levada-io/levada/proto/numaflow/common"
)

// Fields of the contract's results. Map and block mode share the first five.
const (
	resultKeys     = 1
	resultValue    = 2
	resultTags     = 3
	resultMetadata = 4
	resultNack     = 5

	transformTime     = 3
	transformTags     = 4
	transformMetadata = 5
	transformNack     = 6
)

// begin opens a length-delimited field and says where its body begins; the caller appends the body and then calls end with
// that place. The length is not known before, so room for two bytes is left (bodies of 128 to 16,383 bytes), and
// the body is moved where that was a wrong guess.
func begin(b []byte, num protowire.Number) ([]byte, int) {
	b = protowire.AppendTag(b, num, protowire.BytesType)
	return append(b, 0, 0), len(b) + 2
}

func end(b []byte, body int) []byte {
	length := len(b) - body
	switch {
	case length < 1<<7:
		copy(b[body-1:], b[body:])
		b[body-2] = byte(length)
		return b[:len(b)-1]
	case length < 1<<14:
		b[body-2], b[body-1] = byte(length)|0x80, byte(length>>7)
		return b
	}
	var prefix [10]byte
	size := len(protowire.AppendVarint(prefix[:0], uint64(length)))
	b = append(b, prefix[:size-2]...)
	copy(b[body+size-2:], b[body:body+length])
	copy(b[body-2:], prefix[:size])
	return b
}

func appendVarint(b []byte, num protowire.Number, value uint64) []byte {
	return protowire.AppendVarint(protowire.AppendTag(b, num, protowire.VarintType), value)
}

func appendHeaders(b []byte, num protowire.Number, headers map[string]string) ([]byte, error) {
	for key, value := range headers {
		if !utf8.ValidString(key) || !utf8.ValidString(value) {
			return b, errOutputUTF8
		}
		var entry int
		b, entry = begin(b, num)
		b = appendString(b, 1, key)
		b = appendString(b, 2, value)
		b = end(b, entry)
	}
	return b, nil
}

func appendBytes(b []byte, num protowire.Number, value []byte) []byte {
	if len(value) == 0 {
		return b
	}
	return protowire.AppendBytes(protowire.AppendTag(b, num, protowire.BytesType), value)
}

func appendString(b []byte, num protowire.Number, value string) []byte {
	if value == "" {
		return b
	}
	return protowire.AppendString(protowire.AppendTag(b, num, protowire.BytesType), value)
}

// appendStrings refuses what is not UTF-8: the other side would have to refuse the whole frame, and with it the stream.
func appendStrings(b []byte, num protowire.Number, values []string) ([]byte, error) {
	for _, value := range values {
		if !utf8.ValidString(value) {
			return b, errOutputUTF8
		}
		b = protowire.AppendString(protowire.AppendTag(b, num, protowire.BytesType), value)
	}
	return b, nil
}

// appendResults appends the results of a map as field 1, where MapResponse and MapOutcome both have them.
func appendResults(b []byte, results []Result) ([]byte, error) {
	for i := range results {
		var body int
		var err error
		b, body = begin(b, 1)
		if b, err = appendResult(b, &results[i]); err != nil {
			return b, err
		}
		b = end(b, body)
	}
	return b, nil
}

func appendResult(b []byte, r *Result) ([]byte, error) {
	b, err := appendStrings(b, resultKeys, r.Keys)
	if err != nil {
		return b, err
	}
	b = appendBytes(b, resultValue, r.Value)
	if b, err = appendStrings(b, resultTags, r.Tags); err != nil {
		return b, err
	}
	if b, err = appendMetadata(b, resultMetadata, r.Metadata); err != nil {
		return b, err
	}
	return appendNack(b, resultNack, r.Nack)
}

func appendEvent(b []byte, e *Event) ([]byte, error) {
	b, err := appendStrings(b, resultKeys, e.Keys)
	if err != nil {
		return b, err
	}
	b = appendBytes(b, resultValue, e.Value)
	b = appendTime(b, transformTime, e.EventTime)
	if b, err = appendStrings(b, transformTags, e.Tags); err != nil {
		return b, err
	}
	if b, err = appendMetadata(b, transformMetadata, e.Metadata); err != nil {
		return b, err
	}
	return appendNack(b, transformNack, e.Nack)
}

func appendTime(b []byte, num protowire.Number, t time.Time) []byte {
	b, body := begin(b, num)
	if seconds := t.Unix(); seconds != 0 {
		b = appendVarint(b, 1, uint64(seconds))
	}
	if nanos := t.Nanosecond(); nanos != 0 {
		b = appendVarint(b, 2, uint64(nanos))
	}
	return end(b, body)
}

func appendFlag(b []byte, num protowire.Number) []byte {
	b, body := begin(b, num)
	b = appendVarint(b, 1, 1)
	return end(b, body)
}

// Metadata and nack options are rare enough to be left to protobuf, which also checks that they are UTF-8.

func appendMetadata(b []byte, num protowire.Number, user map[string]map[string][]byte) ([]byte, error) {
	if user == nil {
		return b, nil
	}
	return appendProto(b, num, userMetadata(user))
}

func appendNack(b []byte, num protowire.Number, options *NackOptions) ([]byte, error) {
	if options == nil {
		return b, nil
	}
	return appendProto(b, num, options.proto())
}

func appendProto(b []byte, num protowire.Number, m proto.Message) ([]byte, error) {
	b, body := begin(b, num)
	b, err := proto.MarshalOptions{}.MarshalAppend(b, m)
	if err != nil {
		return b, errOutputUTF8
	}
	return end(b, body), nil
}

func userMetadata(user map[string]map[string][]byte) *common.Metadata {
	if user == nil {
		return nil
	}
	md := &common.Metadata{UserMetadata: make(map[string]*common.KeyValueGroup, len(user))}
	for name, group := range user {
		md.UserMetadata[name] = &common.KeyValueGroup{KeyValue: group}
	}
	return md
}

func (o *NackOptions) proto() *common.NackOptions {
	encoded := &common.NackOptions{NackMap: o.Extra}
	if o.Reason != "" {
		encoded.Reason = &o.Reason
	}
	if o.MaxDeliveries != 0 {
		encoded.MaxDeliveries = &o.MaxDeliveries
	}
	if o.Delay > 0 {
		ms := uint64(o.Delay.Milliseconds())
		encoded.Delay = &ms
	}
	return encoded
}

func nackOptions(encoded *common.NackOptions) NackOptions {
	return NackOptions{
		Reason:        encoded.GetReason(),
		MaxDeliveries: encoded.GetMaxDeliveries(),
		Delay:         time.Duration(encoded.GetDelay()) * time.Millisecond,
		Extra:         encoded.GetNackMap(),
	}
}
