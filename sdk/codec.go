package sdk

import (
	"fmt"
	"sync"

	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"
)

// frame is an encoded message that came in. It belongs to the garbage collector rather than to a pool, so that user code
// that keeps a slice of it longer than it should can waste memory, but never reads another message's bytes.
type frame []byte

// reply is an encoded message on its way out. The transport gives its memory back to the pool.
type reply struct{ buffer *[]byte }

// bufferPool keeps buffers of blocks. grpc's own pool clears a whole MiB for each buffer above 32 KiB that it lends,
// which would cost more than all we do with a block.
type bufferPool struct{ pool sync.Pool }

// maxPooled keeps one huge block from holding its memory indefinitely.
const maxPooled = 4 << 20

var buffers bufferPool

func (p *bufferPool) Get(length int) *[]byte {
	if b, ok := p.pool.Get().(*[]byte); ok && cap(*b) >= length {
		*b = (*b)[:length]
		return b
	}
	b := make([]byte, length)
	return &b
}

func (p *bufferPool) Put(b *[]byte) {
	if cap(*b) <= maxPooled {
		p.pool.Put(b)
	}
}

// codec moves frames and replies untouched, and anything else as protobuf, so that hot paths decode and encode by hand.
type codec struct{}

func (codec) Name() string { return "proto" }

func (codec) Marshal(v any) (mem.BufferSlice, error) {
	switch v := v.(type) {
	case reply:
		return mem.BufferSlice{mem.NewBuffer(v.buffer, &buffers)}, nil
	case proto.Message:
		b, err := proto.Marshal(v)
		return mem.BufferSlice{mem.SliceBuffer(b)}, err
	}
	return nil, fmt.Errorf("sdk: cannot encode %T", v)
}

func (codec) Unmarshal(data mem.BufferSlice, v any) error {
	switch v := v.(type) {
	case *frame:
		*v = data.Materialize()
		return nil
	case proto.Message:
		return proto.Unmarshal(data.Materialize(), v)
	}
	return fmt.Errorf("sdk: cannot decode into %T", v)
}
