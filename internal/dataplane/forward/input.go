package forward

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"github.com/levada-io/levada/internal/dataplane/buffer"
	"github.com/levada-io/levada/internal/dataplane/source"
	"github.com/levada-io/levada/internal/flow"
)

// Input is where a loop reads. Read is called by one goroutine.
type Input interface {
	// Read waits for the next work. It returns io.EOF when there will be none, and otherwise only errors that do not go away, or context.Cause(ctx).
	Read(ctx context.Context) (*Work, error)
	// Finished says that everything made of the messages from..to-1 of a work is durable in every output. Each message is finished once, in any order, and
	// a work without messages with from and to 0. It waits for nothing outside.
	Finished(ctx context.Context, w *Work, from, to int)
}

// Acknowledger is an Input that tells somebody outside what is done.
type Acknowledger interface {
	// Acknowledge is called by one goroutine for each lane. The acks of a lane come in order; where messages have no order (Work.ByID), parts of works
	// come as they are done. It tries again until ctx ends.
	Acknowledge(ctx context.Context, acks []Ack)
}

// SourceInput reads a source.
type SourceInput struct {
	Vertex string
	// Incarnation is that of the pipeline's store. It is part of each lane's name and so of each message's id.
	Incarnation string
	Reader      source.Reader
	// Limit is how many messages make a batch, Rate how many may be read a second; nil for any number.
	Limit int
	Rate  *rate.Limiter
	// OnError is told of errors of the source, which are tried again.
	OnError func(error)
	Logger  *slog.Logger

	lanes map[string]*sourceLane
	ended atomic.Bool
}

type sourceLane struct {
	name, prefix string
	track        *lane
	next         uint64 // position of the next message of a source without positions
}

// Read implements Input.
func (s *SourceInput) Read(ctx context.Context) (*Work, error) {
	if s.lanes == nil {
		s.lanes = map[string]*sourceLane{}
	}
	limit := s.Limit
	if s.Rate != nil {
		limit = min(limit, max(1, s.Rate.Burst()))
	}
	for wait := 100 * time.Millisecond; ; wait = min(2*wait, 5*time.Second) {
		batch, err := s.Reader.Read(ctx, limit)
		switch {
		case err == nil:
			if s.Rate != nil {
				if err := s.Rate.WaitN(ctx, max(1, min(len(batch.Messages), s.Rate.Burst()))); err != nil {
					return nil, context.Cause(ctx) // not acknowledged, so it comes again
				}
			}
			return s.work(batch), nil
		case errors.Is(err, io.EOF):
			s.ended.Store(true)
			return nil, io.EOF
		case ctx.Err() != nil:
			return nil, context.Cause(ctx)
		}
		var p *source.PermanentError
		if errors.As(err, &p) {
			return nil, err
		}
		s.OnError(err)
		s.Logger.Warn("source is read again", "error", err, "in", wait)
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// work gives a batch its place in its lane.
func (s *SourceInput) work(b *source.Batch) *Work {
	l := s.lanes[b.Partition]
	if l == nil {
		name := flow.SourceLane(s.Vertex, b.Partition, s.Incarnation)
		l = &sourceLane{
			name: name, prefix: flow.RootID(name, ""), track: newLane(b.ByID),
			next: uint64(time.Now().UnixNano()), // only to be above what an earlier process used; such lanes are told apart by id
		}
		s.lanes[b.Partition] = l
	}
	w := &Work{Lane: l.name, Lo: b.Lo, Hi: b.Hi, ByID: b.ByID, Messages: b.Messages, IDPrefix: l.prefix, Stride: b.Stride, Broken: b.Broken, token: b, track: l.track, Short: len(b.Messages) < s.Limit}
	if w.Stride == 0 {
		w.Stride = 256
	}
	now := time.Now().UnixNano()
	for i := range w.Messages {
		m := &w.Messages[i]
		m.Ingested = now
		if m.EventTime == 0 {
			m.EventTime = now
		}
		if b.ByID {
			m.Pos = l.next + uint64(i)
			m.ID = flow.RootID(l.name, m.ID)
		}
	}
	if b.ByID {
		w.Lo, w.Hi = l.next, l.next+uint64(max(1, len(b.Messages)))-1
		l.next = w.Hi + 1
	}
	return w
}

// Finished implements Input. Acknowledge acknowledges the source.
func (s *SourceInput) Finished(context.Context, *Work, int, int) {}

// ackPatience is after how long an acknowledgement that fails is logged.
const ackPatience = 3 * time.Second

// Acknowledge implements Acknowledger.
func (s *SourceInput) Acknowledge(ctx context.Context, acks []Ack) {
	parts, inParts := s.Reader.(source.PartAcker)
	for _, a := range acks {
		if !a.All && !inParts {
			continue
		}
		begun, told := time.Now(), false
		for wait := 50 * time.Millisecond; ; wait = min(2*wait, 5*time.Second) {
			b := a.Work.token.(*source.Batch)
			var err error
			if a.All {
				err = s.Reader.Ack(ctx, b)
			} else {
				err = parts.AckPart(ctx, b, a.From, a.To)
			}
			if err == nil {
				break
			}
			if ctx.Err() != nil {
				return
			}
			s.OnError(fmt.Errorf("acknowledge: %w", err))
			if !told && time.Since(begun) > ackPatience {
				told = true
				s.Logger.Warn("source does not take acknowledgements, retrying", "error", err, "since", begun)
			}
			select {
			case <-time.After(wait):
			case <-ctx.Done():
				return
			}
		}
		if told {
			s.Logger.Info("source takes acknowledgements again", "after", time.Since(begun).Round(time.Millisecond))
		}
	}
}

// Ended reports whether the source has come to its end, and Read has said so.
func (s *SourceInput) Ended() bool { return s.ended.Load() }

// BufferInput reads one partition of the vertex's buffer, in pieces: a block is divided into pieces of Limit messages, and small blocks that lie ready
// are taken together.
type BufferInput struct {
	Vertex    string
	Index     int
	Partition *buffer.Reader
	// Limit is how many messages a piece has at the most.
	Limit int
	Rate  *rate.Limiter

	once  sync.Once
	ahead chan readAhead
	rest  cut // what was read and is not taken yet
	track *lane
	name  string
	ended error
	// eof is closed when nothing more comes: all that was stored is done. So there is nothing in ahead then.
	eof chan struct{}
	end sync.Once
	// failed is closed when the buffer cannot be read any more; failure says why then.
	failed  chan struct{}
	failure error
}

type readAhead struct {
	d   *buffer.Delivery
	err error
}

// cut is some of the messages of a block: those from..to-1.
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
		b.track = newLane(false)
		b.name = b.Vertex + "/" + strconv.Itoa(b.Index) + "@" + b.Partition.Incarnation()
	})
}

// Read implements Input.
func (b *BufferInput) Read(ctx context.Context) (*Work, error) {
	b.init()
	if b.rest.d == nil {
		if b.ended != nil {
			return nil, b.ended
		}
		select {
		case r, ok := <-b.ahead:
			if !ok {
				<-ctx.Done() // Run has ended, and so will this: which is told first is chance
				return nil, context.Cause(ctx)
			}
			if r.err != nil {
				return nil, r.err
			}
			b.rest = whole(r.d)
		case <-b.eof:
			return nil, io.EOF
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
	limit := max(1, b.Limit)
	first := b.rest.takeUpTo(limit)
	taken := []cut{first}
	count := first.len()
	short := b.rest.d == nil
gather:
	for short {
		select {
		case r, ok := <-b.ahead:
			if !ok || r.err != nil {
				b.ended = r.err
				break gather
			}
			if count+len(r.d.Block.Messages) > limit {
				b.rest, short = whole(r.d), false
				break gather
			}
			taken = append(taken, whole(r.d))
			count += len(r.d.Block.Messages)
		default:
			break gather
		}
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
	return b.work(taken, count, short), nil
}

// work puts the cuts together. Positions are those of the reader's lane: the block's number, and the message's place in the block as it was stored.
func (b *BufferInput) work(taken []cut, count int, short bool) *Work {
	first, last := taken[0], taken[len(taken)-1]
	w := &Work{
		Lane: b.name, Lo: first.d.Number << positionBits, Hi: (last.d.Number+1)<<positionBits - 1,
		Stride: 1 << positionBits, token: taken, track: b.track, Short: short,
	}
	if first.from > 0 {
		w.Lo = first.d.Number<<positionBits | uint64(first.d.Place(first.from))
	}
	if last.to < len(last.d.Block.Messages) {
		w.Hi = last.d.Number<<positionBits | uint64(last.d.Place(last.to)) - 1
	}
	if len(taken) == 1 {
		w.Messages = first.d.Block.Messages[first.from:first.to:first.to]
	} else {
		w.Messages = make([]flow.Message, 0, count)
	}
	for _, c := range taken {
		messages := c.d.Block.Messages
		for i := c.from; i < c.to; i++ {
			messages[i].Pos = c.d.Number<<positionBits | uint64(c.d.Place(i))
		}
		if len(taken) > 1 {
			w.Messages = append(w.Messages, messages[c.from:c.to]...)
		}
	}
	return w
}

// Finished implements Input.
func (b *BufferInput) Finished(ctx context.Context, w *Work, from, to int) {
	for _, c := range w.token.([]cut) {
		if from < c.len() && to > 0 {
			b.Partition.DonePart(ctx, c.d, c.from+max(0, from), c.from+min(c.len(), to))
		}
		from, to = from-c.len(), to-c.len()
	}
}
