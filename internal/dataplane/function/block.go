package function

import (
	"context"
	"encoding/binary"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/levada-io/levada/internal/dataplane/deadletter"
	"github.com/levada-io/levada/internal/dataplane/function/wire"
	"github.com/levada-io/levada/internal/flow"
)

// blockPipe speaks levada.function.v1: whole blocks, answered in pieces. Functions that can do it say so in their server info.
type blockPipe struct {
	stream    *wire.Stream
	strays    *atomic.Uint64
	announced announcements

	sending sync.Mutex
	out     []byte

	mu       sync.Mutex
	next     uint64
	calls    map[uint64]*blockCall
	progress uint64
	err      error
	ended    chan struct{}
}

type blockCall struct {
	*call
	id    uint64
	touch time.Time // when it was sent or last answered
}

// maxBlock bounds the bytes of one MapBlock: the SDK takes 64 MiB.
const maxBlock = 32 << 20

func openBlocks(ctx context.Context, address string, maxMessage int, strays *atomic.Uint64, announced announcements) (*blockPipe, error) {
	stream, err := openStream(ctx, address, "/levada.function.v1.BlockMap/MapFn", nil, maxMessage)
	if err != nil {
		return nil, err
	}
	b := &blockPipe{stream: stream, strays: strays, announced: announced, calls: map[uint64]*blockCall{}, ended: make(chan struct{})}
	go b.receive() // ends when the stream does; Close waits for it
	return b, nil
}

func (b *blockPipe) Call(ctx context.Context, in []flow.Message) ([]Outcome, []int, error) {
	var out []Outcome
	for first := 0; first < len(in); {
		last, size := first, 0
		for last < len(in) && (last == first || size+len(in[last].Value)+1024 < maxBlock) {
			size += len(in[last].Value) + len(in[last].Headers) + len(in[last].Metadata) + 1024
			last++
		}
		part, notSent, err := b.callOne(ctx, in[first:last])
		if first == 0 && last == len(in) {
			return part, notSent, err
		}
		out = append(out, part...)
		if err != nil {
			for i := range notSent {
				notSent[i] += first
			}
			for i := last; i < len(in); i++ {
				out, notSent = append(out, Outcome{}), append(notSent, i)
			}
			return out, notSent, err
		}
		first = last
	}
	return out, nil, nil
}

func (b *blockPipe) callOne(ctx context.Context, in []flow.Message) ([]Outcome, []int, error) {
	c := &blockCall{call: newCall(in), touch: time.Now()}
	b.mu.Lock()
	if b.err != nil {
		defer b.mu.Unlock()
		_, notSent := c.finish()
		return c.out, notSent, b.err
	}
	b.next++
	c.id = b.next
	b.calls[c.id] = c
	for i := range c.state {
		c.state[i] = sent
	}
	b.mu.Unlock()

	b.sending.Lock()
	b.out = appendBlock(b.out[:0], c.id, in)
	err := b.stream.Send(b.out)
	b.sending.Unlock()
	if err == nil {
		select {
		case <-c.done:
			return c.out, nil, nil
		case <-ctx.Done():
			err = context.Cause(ctx)
		case <-b.ended:
		}
	} else {
		<-b.ended
	}
	var inCode map[uint64]bool
	if ctx.Err() == nil {
		inCode = b.announced(ctx)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.calls, c.id)
	if c.left == 0 {
		return c.out, nil, nil
	}
	if b.err != nil {
		err = b.err
	}
	if inCode != nil {
		for i, s := range c.state {
			if s == sent && !inCode[c.id<<announceIndexBits|uint64(i+1)] {
				c.state[i] = unsent // the process died with it waiting: it is not to blame
			}
		}
	}
	out, notSent := c.finish()
	return out, notSent, err
}

// appendBlock appends a MapBlock with its gRPC prefix.
func appendBlock(b []byte, id uint64, in []flow.Message) []byte {
	b = wire.AppendPrefix(b, 0)
	at := len(b)
	b = binary.AppendUvarint(append(b, 1<<3), id)
	for i := range in {
		m := &in[i]
		n := sizeBlockMessage(m)
		b = appendField(b, 2, n)
		for _, k := range m.Keys {
			b = appendString(b, 1, k)
		}
		b = append(appendField(b, 2, len(m.Value)), m.Value...)
		b = binary.AppendUvarint(append(b, 3<<3), protowire.EncodeZigZag(m.EventTime))
		b = binary.AppendUvarint(append(b, 4<<3), protowire.EncodeZigZag(blockNoWatermark))
		b = appendTail(b, &blockLayout, m, m.ID)
	}
	binary.BigEndian.PutUint32(b[at-4:], uint32(len(b)-at))
	return b
}

const blockNoWatermark = -int64(time.Millisecond)

func sizeBlockMessage(m *flow.Message) int {
	n := 0
	for _, k := range m.Keys {
		n += sizeBytes(len(k))
	}
	n += sizeBytes(len(m.Value)) + 1 + sizeVarint(protowire.EncodeZigZag(m.EventTime)) + 1 + sizeVarint(protowire.EncodeZigZag(blockNoWatermark)) + sizeBytes(len(m.ID))
	for name, value := range m.Headers.All {
		n += sizeBytes(headerEntry(name, value))
	}
	if len(m.Metadata) > 0 {
		n += sizeBytes(len(m.Metadata))
	}
	return n
}

func (b *blockPipe) receive() {
	defer close(b.ended)
	for {
		msg, err := b.stream.Recv()
		if err == nil {
			if err = b.answer(msg); err != nil {
				err = &protocolError{fmt.Sprintf("the function answered against the contract: %v", err)}
			}
		}
		if err != nil {
			b.stream.Close()
			b.mu.Lock()
			b.err = err
			b.mu.Unlock()
			return
		}
	}
}

func (b *blockPipe) answer(msg []byte) error {
	var id, first uint64
	var outcomes [][]byte
	err := fields(msg, func(f protowire.Number, v []byte, n uint64) error {
		switch f {
		case 1:
			id = n
		case 2:
			first = n
		case 3:
			outcomes = append(outcomes, v)
		}
		return nil
	})
	if err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	c := b.calls[id]
	if c == nil || first > uint64(len(c.in)) || uint64(len(outcomes)) > uint64(len(c.in))-first {
		b.strays.Add(uint64(len(outcomes)))
		return nil
	}
	c.touch = time.Now()
	for k, o := range outcomes {
		i := int(first) + k
		if c.state[i] != sent {
			b.strays.Add(1)
			continue
		}
		if err := c.outcome(i, o); err != nil {
			return err
		}
		c.state[i] = answered
		c.left--
		b.progress++
	}
	if c.left == 0 {
		delete(b.calls, id)
		close(c.done)
	}
	return nil
}

func (c *call) outcome(i int, b []byte) error {
	out := &c.out[i]
	start := len(c.arena)
	var failure deadletter.Failure
	err := fields(b, func(f protowire.Number, v []byte, _ uint64) (err error) {
		switch f {
		case 1:
			c.arena, err = mapResult.decodeResult(v, &c.in[i], out, c.arena)
		case 2:
			failure.Error = string(v)
		case 3:
			failure.Stack = string(v)
		}
		return err
	})
	if err != nil {
		return err
	}
	if failure.Error != "" {
		// The function survived it; whether it happens every time, trying it alone will tell.
		failure.Reason = deadletter.Error
		if failure.Stack != "" {
			failure.Reason = deadletter.Panic
		}
		failure.Attempts = 1
		*out = Outcome{Verdict: Suspect, Failure: &failure}
		return nil
	}
	out.Results = c.arena[start:len(c.arena):len(c.arena)]
	return nil
}

func (b *blockPipe) Oldest() (t time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, c := range b.calls {
		if t.IsZero() || c.touch.Before(t) {
			t = c.touch
		}
	}
	return t
}

func (b *blockPipe) Progress() uint64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.progress
}

func (b *blockPipe) Close() {
	b.stream.Close()
	<-b.ended
}
