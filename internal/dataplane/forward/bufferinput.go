package forward

import (
	"context"
	"io"
	"strconv"
	"sync"

	"github.com/levada-io/levada/internal/dataplane/buffer"
	"github.com/levada-io/levada/internal/flow"
)

// BufferInput reads one partition of the vertex's buffer, or one shard of it, in pieces: a block is divided into pieces of Limit messages, and small blocks that lie ready
// are taken together. A block without messages is a work of its own.
type BufferInput struct {
	Vertex    string
	Index     int
	Partition *buffer.Reader
	// Limit is how many messages a piece has at the most.
	Limit int
	Rate  Rate

	once sync.Once // init
	// ahead has what Run has read, in order. An error is the last thing in it.
	ahead chan readAhead
	rest  cut // what was read and is not taken yet; only Read uses it. Invariant: it comes before all in ahead
	track *lane
	name  string // of the lane that this vertex writes to others. It has the incarnation of the partition: sequences of another one mean other blocks
	ended error  // what Read returns once rest is taken
	// eof is closed when nothing more comes: all that was stored is done or consumed. So there is nothing in ahead then.
	eof chan struct{}
	end sync.Once
	// failed is closed when the buffer cannot be read any more; failure says why then.
	failed  chan struct{}
	failure error
}

// readAhead is a block that was read, or why there are no more.
type readAhead struct {
	d   *buffer.Delivery
	err error
}

// cut is some of the messages of a block: those from..to-1. Without d it is nothing; with a d without messages it is the whole block.
type cut struct {
	d        *buffer.Delivery
	from, to int
}

func (c *cut) len() int { return c.to - c.from }

// takeUpTo divides a cut: it returns the first n messages, and keeps the rest.
func (c *cut) takeUpTo(n int) cut {
	if c.len() <= n {
		taken := *c
		*c = cut{}
		return taken
	}
	taken := cut{c.d, c.from, c.from + n}
	c.from += n
	return taken
}

// pos is the position of the i-th message of the block.
func (c *cut) pos(i int) uint64 { return c.d.Number<<positionBits | uint64(c.d.Place(i)) }

// messages share memory with the block. They cannot be appended to.
func (c *cut) messages() []flow.Message { return c.d.Block.Messages[c.from:c.to:c.to] }

// whole is all of a block.
func whole(d *buffer.Delivery) cut { return cut{d, 0, len(d.Block.Messages)} }

// positionBits are what a position within a block takes of a position in the lane of its reader: a lane counts blocks.
const positionBits = 20

// EndInput makes Read return io.EOF. All writers of the partition must have ended, and all that they stored must be done.
func (b *BufferInput) EndInput() {
	b.init()
	b.end.Do(func() { close(b.eof) })
}

// Ended reports whether EndInput was called.
func (b *BufferInput) Ended() bool {
	b.init()
	select {
	case <-b.eof:
		return true
	default:
		return false
	}
}

// Run reads ahead until ctx ends. It must be running for Read to return.
func (b *BufferInput) Run(ctx context.Context) {
	b.init()
	defer close(b.ahead)
	for {
		d, err := b.Partition.Read(ctx)
		if err != nil && ctx.Err() == nil {
			b.failure = err
			close(b.failed)
		}
		select {
		case b.ahead <- readAhead{d, err}:
		case <-ctx.Done():
			return
		}
		if err != nil {
			return
		}
	}
}

// Lane is the name of the lane that the works are of.
func (b *BufferInput) Lane() string {
	b.init()
	return b.name
}

// Failure returns why the buffer cannot be read any more, once the channel is closed.
func (b *BufferInput) Failure() (failed <-chan struct{}, why func() error) {
	b.init()
	return b.failed, func() error { return b.failure }
}

func (b *BufferInput) init() {
	b.once.Do(func() {
		b.ahead = make(chan readAhead, 16)
		b.failed = make(chan struct{})
		b.eof = make(chan struct{})
		b.track = newLane(ackAtOnce)
		b.track.acked = func() uint64 { return (b.Partition.FloorNumber()+1)<<positionBits - 1 }
		b.name = b.Vertex + "/" + strconv.Itoa(b.Index)
		if n, of := b.Partition.Shard(); of > 1 { // another process reads another shard: positions of a lane ascend
			b.name += "." + strconv.Itoa(n)
		}
		b.name += "@" + b.Partition.Incarnation()
	})
}

// Read implements Input.
func (b *BufferInput) Read(ctx context.Context) (*Work, error) {
	b.init()
	if b.rest.d == nil {
		if err := b.next(ctx); err != nil {
			return nil, err
		}
	}
	limit := max(1, b.Limit)
	first := b.rest.takeUpTo(limit)
	cuts, count, short := []cut{first}, first.len(), false
	if b.rest.d == nil && count > 0 {
		cuts, count, short = b.gather(cuts, count, limit)
	}
	if b.Rate != nil {
		for left := count; left > 0; {
			n := min(left, b.Rate.Burst())
			if err := b.Rate.WaitN(ctx, n); err != nil {
				return nil, context.Cause(ctx)
			}
			left -= n
		}
	}
	return b.work(cuts, count, short), nil
}

// next waits for the next block, and puts it into rest.
func (b *BufferInput) next(ctx context.Context) error {
	if b.ended != nil {
		return b.ended
	}
	select {
	case r, ok := <-b.ahead:
		if !ok {
			<-ctx.Done() // Run has ended, and so will this: which is noticed first is chance
			return context.Cause(ctx)
		}
		if r.err != nil {
			return r.err
		}
		b.rest = whole(r.d)
		return nil
	case <-b.eof:
		return io.EOF
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// gather adds blocks that lie ready, up to limit messages. short says that there are no more.
func (b *BufferInput) gather(cuts []cut, count, limit int) (_ []cut, _ int, short bool) {
	for {
		select {
		case r, ok := <-b.ahead:
			if !ok || r.err != nil {
				b.ended = r.err
				return cuts, count, true
			}
			if n := len(r.d.Block.Messages); n == 0 || count+n > limit {
				b.rest = whole(r.d)
				return cuts, count, false
			}
			cuts = append(cuts, whole(r.d))
			count += len(r.d.Block.Messages)
		default:
			return cuts, count, true
		}
	}
}

// work puts the cuts together. Positions are those of the reader's lane: the block's number, and the message's place in the block as it was stored.
func (b *BufferInput) work(cuts []cut, count int, short bool) *Work {
	first, last := cuts[0], cuts[len(cuts)-1]
	w := &Work{
		Origin: Origin{Lane: b.name, Stride: 1 << positionBits},
		Lo:     first.d.Number << positionBits, Hi: (last.d.Number+1)<<positionBits - 1, track: b.track, Short: short,
		Consume: func(from, to int) { eachPart(cuts, from, to, b.Partition.Consume) },
		Ack:     func(ctx context.Context, a Ack) error { b.done(ctx, cuts, a); return nil },
	}
	if first.from > 0 {
		w.Lo = first.pos(first.from)
	}
	if last.to < len(last.d.Block.Messages) {
		w.Hi = last.pos(last.to) - 1
	}
	for _, c := range cuts {
		messages := c.d.Block.Messages
		for i := c.from; i < c.to; i++ {
			messages[i].Pos = c.pos(i)
		}
		if c.to == len(messages) && c.d.Block.Watermark != flow.NoWatermark {
			w.Bounds = append(w.Bounds, Bound{c.d.Block.Lane, c.d.Block.Watermark})
		}
	}
	if len(cuts) == 1 {
		w.Messages = first.messages()
		return w
	}
	w.Messages = make([]flow.Message, 0, count)
	for _, c := range cuts {
		w.Messages = append(w.Messages, c.messages()...)
	}
	return w
}

// done tells the reader which messages are done.
func (b *BufferInput) done(ctx context.Context, cuts []cut, a Ack) {
	if d := cuts[0].d; len(d.Block.Messages) == 0 {
		b.Partition.Done(ctx, d)
		return
	}
	eachPart(cuts, a.From, a.To, func(d *buffer.Delivery, from, to int) { b.Partition.DonePart(ctx, d, from, to) })
}

// eachPart visits the messages from..to-1 of a work, by their indices in the blocks that it was cut from.
func eachPart(cuts []cut, from, to int, visit func(d *buffer.Delivery, from, to int)) {
	for _, c := range cuts {
		if from < c.len() && to > 0 {
			visit(c.d, c.from+max(0, from), c.from+min(c.len(), to))
		}
		from, to = from-c.len(), to-c.len()
	}
}
