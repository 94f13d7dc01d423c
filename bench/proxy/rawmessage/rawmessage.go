// Package rawmessage lets grpc-go carry messages as they are, without decoding them: what a proxy made of grpc-go does, and what a load
// generator wants, whose own cost should not hide the proxy's.
package rawmessage

import (
	"fmt"

	"google.golang.org/grpc/mem"
)

// Message is one gRPC message. Sending it gives its buffers away: the receiver of a message may send it once.
type Message struct{ Data mem.BufferSlice }

// New is a message of these bytes, which must not change any more.
func New(b []byte) *Message { return &Message{Data: mem.BufferSlice{mem.SliceBuffer(b)}} }

// Codec is an encoding.CodecV2 for *Message.
type Codec struct{}

// Name is that of protobuf's codec, so that peers see the usual content-type.
func (Codec) Name() string { return "proto" }

// Marshal hands over the message's buffers.
func (Codec) Marshal(v any) (mem.BufferSlice, error) {
	m, ok := v.(*Message)
	if !ok {
		return nil, fmt.Errorf("a raw message was expected, not %T", v)
	}
	return m.Data, nil
}

// Unmarshal keeps the buffers for the message.
func (Codec) Unmarshal(data mem.BufferSlice, v any) error {
	m, ok := v.(*Message)
	if !ok {
		return fmt.Errorf("a raw message was expected, not %T", v)
	}
	data.Ref()
	m.Data = data
	return nil
}
