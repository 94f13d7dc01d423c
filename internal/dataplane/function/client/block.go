package client

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
	announced Announcements

	sending sync.Mutex
	out     []byte

	concurrency int

	mu       sync.Mutex
	room     sync.Cond // broadcast when the window may have room, and at the end
	line     line
	last     uint64 // the id given last
	calls    map[uint64]*blockCall
	inHand   int           // messages that are not answered
	pace     time.Duration // what a message takes, about, of all that are under way together; 0: not known
	mark     time.Time     // from when the next sample of pace is measured
	progress uint64
	moved    time.Time // when the last answer came
	// silent: the function announces nothing, so the first block tells whether it hangs; see Oldest. first is since when the one that is first now is.
	silent bool
	first  time.Time
	err    error
	ended  chan struct{}
}

// blockCall is a MapBlock under way: some messages of a call.
type blockCall struct {
	*call
	id                 uint64
	first, count, left int
	sent, moved        time.Time // when it was sent, and when it was last answered
}

// maxBlock bounds the bytes of one MapBlock: the SDK takes 64 MiB.
const maxBlock = 32 << 20

func openBlocks(ctx context.Context, address string, concurrency, maxMessage int, strays *atomic.Uint64, announced Announcements) (*blockPipe, error) {
	stream, err := openStream(ctx, address, "/levada.function.v1.BlockMap/MapFn", nil, maxMessage)
	if err != nil {
		return nil, err
	}
	b := &blockPipe{stream: stream, strays: strays, announced: announced, concurrency: max(1, concurrency), calls: map[uint64]*blockCall{}, ended: make(chan struct{})}
	b.room.L = &b.mu
	go b.receive() // ends when the stream does; Close waits for it
	return b, nil
}

// Call sends the messages in one block, or in several: no more are given to the function at a time than it works through in a short while, so that a slow
// function has little to finish when it is stopped.
func (b *blockPipe) Call(ctx context.Context, in []flow.Message, part *Part) ([]Outcome, []int, error) {
	c := newCall(in)
	part.Open(func(visit func(int, *Outcome)) {
		b.mu.Lock()
		defer b.mu.Unlock()
		c.take(visit)
	})
	defer part.Close()
	err := b.sendAll(ctx, c, part)
	if err == nil {
		select {
		case <-c.done:
			out, notSent := c.finish()
			return out, notSent, nil
		case <-ctx.Done():
			err = context.Cause(ctx)
		case <-b.ended:
		}
	}
	var inCode map[uint64]bool
	if ctx.Err() == nil {
		b.mu.Lock()
		ended := b.err
		b.mu.Unlock()
		inCode = b.announced(ctx, ended)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if c.left == 0 {
		out, notSent := c.finish()
		return out, notSent, nil
	}
	if b.err != nil {
		err = b.err
	}
	for id, k := range b.calls {
		if k.call != c {
			continue
		}
		delete(b.calls, id)
		b.free(k.left)
		for i := range k.count {
			if inCode != nil && c.state[k.first+i] == sent && !inCode[id<<announceIndexBits|uint64(i+1)] {
				c.state[k.first+i] = unsent // the process died with it waiting: it is not to blame
			}
		}
	}
	out, notSent := c.finish()
	return out, notSent, err
}

func (b *blockPipe) sendAll(ctx context.Context, c *call, part *Part) error {
	b.mu.Lock()
	b.line.join(c)
	b.mu.Unlock()
	part.NoteQueued()
	defer func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.line.leave(c)
	}()
	c.awaitTurn(ctx, part, b.ended)
	part.noteSending()
	for next := 0; next < len(c.in); {
		k, err := b.next(ctx, c, next, part)
		if err != nil || k == nil {
			return err
		}
		b.sending.Lock()
		b.out = appendBlock(b.out[:0], k.id, c.in[k.first:k.first+k.count])
		err = b.stream.Send(b.out)
		b.sending.Unlock()
		if err != nil {
			<-b.ended // the receiver knows better why
			return err
		}
		next += k.count
	}
	return nil
}

// blockAhead is how much work a function has at a time, in time that it takes for it.
const blockAhead = 250 * time.Millisecond

// window is how many messages the function may have at a time. mu is held.
func (b *blockPipe) window() int {
	least := 2 * b.concurrency
	if b.pace == 0 {
		return least
	}
	return max(least, int(min(blockAhead/b.pace, 1<<20)))
}

// next waits for room in the window, and registers the next messages of c, from first on. It returns nil if nothing more shall be begun.
func (b *blockPipe) next(ctx context.Context, c *call, first int, part *Part) (*blockCall, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	room := func() bool {
		free := b.window() - b.inHand
		return free > 0 && free >= min(len(c.in)-first, b.window()/4)
	}
	if !room() {
		wake := func() {
			b.mu.Lock()
			defer b.mu.Unlock()
			b.room.Broadcast()
		}
		defer context.AfterFunc(ctx, wake)()
		defer part.onOver(wake)()
	}
	for b.err == nil && ctx.Err() == nil && !part.Over() && !room() {
		b.room.Wait()
	}
	switch {
	case b.err != nil:
		return nil, b.err
	case ctx.Err() != nil:
		return nil, context.Cause(ctx)
	case part.Over():
		c.cut(len(c.in) - first)
		return nil, nil
	}
	last, most, size := first, min(len(c.in), first+b.window()-b.inHand), 0
	for last < most && (last == first || size+len(c.in[last].Value)+1024 < maxBlock) {
		size += len(c.in[last].Value) + len(c.in[last].Headers) + len(c.in[last].Metadata) + 1024
		c.state[last] = sent
		last++
	}
	now := time.Now()
	if b.inHand == 0 {
		b.mark = now
	}
	b.inHand += last - first
	b.last++
	k := &blockCall{call: c, id: b.last, first: first, count: last - first, left: last - first, sent: now}
	b.calls[k.id] = k
	return k, nil
}

// free gives back room for n messages. mu is held.
func (b *blockPipe) free(n int) {
	b.inHand -= n
	b.room.Broadcast()
}

// observe keeps a running mean of what a message takes, of n that were answered now. mu is held.
func (b *blockPipe) observe(now time.Time, n int) {
	each := max(1, now.Sub(b.mark)/time.Duration(n))
	b.mark = now
	if b.pace == 0 {
		b.pace = each
	}
	b.pace = max(1, b.pace+(each-b.pace)/8)
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
				err = &ProtocolError{fmt.Sprintf("the function answered against the contract: %v", err)}
			}
		}
		if err != nil {
			b.stream.Close()
			b.mu.Lock()
			b.err = err
			b.room.Broadcast()
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
	if c == nil || first > uint64(c.count) || uint64(len(outcomes)) > uint64(c.count)-first {
		b.strays.Add(uint64(len(outcomes)))
		return nil
	}
	b.moved = time.Now()
	if len(outcomes) > 0 {
		b.observe(b.moved, len(outcomes))
	}
	before := c.call.left
	for k, o := range outcomes {
		i := c.first + int(first) + k
		if c.state[i] != sent {
			b.strays.Add(1)
			continue
		}
		if err := c.outcome(i, o); err != nil {
			return err
		}
		c.state[i] = answered
		c.call.left--
		b.progress++
	}
	n := before - c.call.left
	if c.left -= n; n > 0 {
		c.moved = b.moved
	}
	b.free(n)
	if c.left == 0 {
		if b.head() == c {
			b.first = b.moved
		}
		delete(b.calls, id)
	}
	if n > 0 && c.call.left == 0 {
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

// head is the block that was sent first of those that are under way; nil if there is none. mu is held.
func (b *blockPipe) head() (first *blockCall) {
	for _, c := range b.calls {
		if first == nil || c.id < first.id {
			first = c
		}
	}
	return first
}

// Oldest is when the function last did something while it had work. A block may wait long behind others; how long single calls take is known from what
// the function announces. Where it announces nothing, it is when the first block last moved: messages enter user code in their order, so that block always
// has one in it, and answers to later blocks would hide that it hangs.
func (b *blockPipe) Oldest() (t time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.silent {
		if c := b.head(); c != nil {
			return latest(c.sent, c.moved, b.first)
		}
		return t
	}
	for _, c := range b.calls {
		t = Earliest(t, c.sent)
	}
	if !t.IsZero() && t.Before(b.moved) {
		t = b.moved
	}
	return t
}

func latest(times ...time.Time) (t time.Time) {
	for _, other := range times {
		if other.After(t) {
			t = other
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
