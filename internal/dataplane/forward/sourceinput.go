package forward

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/levada-io/levada/internal/dataplane/source"
	"github.com/levada-io/levada/internal/flow"
)

// SourceInput reads a source.
type SourceInput struct {
	Vertex string
	// Incarnation is that of the pipeline's store. It is part of each lane's name and so of each message's id.
	Incarnation string
	Reader      source.Reader
	// Replica is set where other processes read the source at the same time.
	Replica Replica
	// Limit is how many messages make a batch, Rate how many may be read a second; nil for any number.
	Limit int
	Rate  Rate
	// OnError is called with errors of the source, which are retried.
	OnError func(error)
	Logger  *slog.Logger

	// lanes are those of the partitions that have given something, by their names. Only Read uses it. A partition that is gone stays: it may come back, and goes on in
	// its lane.
	lanes map[string]*sourceLane
	ended atomic.Bool // Read has returned io.EOF
}

// Rate is a limit of messages in a time, for all loops of a vertex together. It may be used concurrently. A *rate.Limiter is one.
type Rate interface {
	// Burst is how many messages WaitN takes at once, at least 1.
	Burst() int
	// WaitN waits until n messages may pass. The error says that ctx has ended.
	WaitN(ctx context.Context, n int) error
}

// Replica is one of several processes that read a source at the same time. Sources with positions give each a partition of its own. What other sources give has the same id
// whichever process it comes to, so ids say nothing of the process; but positions are made by it, and need a lane for each.
type Replica struct {
	// Number is that of the process. No other has it at the same time.
	Number int
	// First is a position of lanes that are deduplicated by id. It is above all positions that earlier processes of the number have used. 0: the time in Unix nanoseconds.
	First uint64
	// Fence, if not nil, returns an error if another process may have the number by now. Nothing is acknowledged then: what was written may have been given up by its
	// reader, as a part of a block is which never became whole.
	Fence func(context.Context) error
}

// sourceLane is one partition of the source.
type sourceLane struct {
	name string // of the lane
	// ids and prefix are the lane in ids of messages, which is the same in all processes that read the partition.
	ids, prefix string
	track       *lane
	// next is the position of the next message of a source without positions. Invariant: above all that this process has given.
	next uint64
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
		var permanent *source.PermanentError
		switch {
		case err == nil:
			return s.admit(ctx, batch)
		case errors.Is(err, io.EOF):
			s.ended.Store(true)
			return nil, io.EOF
		case ctx.Err() != nil:
			return nil, context.Cause(ctx)
		case errors.As(err, &permanent):
			return nil, err
		}
		s.OnError(err)
		s.Logger.Warn("source read failed, retrying", "error", err, "in", wait)
		if ok, err := pause(ctx, nil, wait); !ok {
			return nil, err
		}
	}
}

// admit waits until the rate allows for a batch.
func (s *SourceInput) admit(ctx context.Context, b *source.Batch) (*Work, error) {
	if s.Rate != nil {
		if err := s.Rate.WaitN(ctx, max(1, min(len(b.Messages), s.Rate.Burst()))); err != nil {
			return nil, context.Cause(ctx) // not acknowledged, so it comes again
		}
	}
	return s.work(b), nil
}

// lane is that of a partition of the source.
func (s *SourceInput) lane(b *source.Batch) *sourceLane {
	l := s.lanes[b.Partition]
	if l == nil {
		order := ackInOrder
		if b.ByID {
			order = ackInParts
		}
		name := flow.SourceLane(s.Vertex, b.Partition, s.Incarnation)
		l = &sourceLane{name: name, ids: name, prefix: flow.RootID(name, ""), track: newLane(order), next: s.Replica.First}
		if l.next == 0 {
			l.next = uint64(time.Now().UnixNano()) // only to be above what an earlier process used; such lanes are deduplicated by id
		}
		if b.ByID && s.Replica.Number > 0 {
			l.name += "#" + strconv.Itoa(s.Replica.Number)
		}
		s.lanes[b.Partition] = l
	}
	return l
}

// work gives a batch its place in its lane.
func (s *SourceInput) work(b *source.Batch) *Work {
	l := s.lane(b)
	w := &Work{
		Origin: Origin{Lane: l.name, ByID: b.ByID, IDPrefix: l.prefix, Stride: b.Stride},
		Lo:     b.Lo, Hi: b.Hi, Messages: b.Messages, Broken: b.Broken, Short: len(b.Messages) < s.Limit, track: l.track,
		Ack: func(ctx context.Context, a Ack) error { return s.acknowledge(ctx, b, a) },
	}
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
			m.ID = flow.RootID(l.ids, m.ID)
		}
	}
	if b.ByID {
		w.Lo, w.Hi = l.next, l.next+uint64(max(1, len(b.Messages)))-1
		l.next = w.Hi + 1
	}
	return w
}

// ackPatience is after how long an acknowledgement that fails is logged.
const ackPatience = 3 * time.Second

// acknowledge acknowledges messages of a batch to the source, and retries until ctx ends.
func (s *SourceInput) acknowledge(ctx context.Context, b *source.Batch, a Ack) error {
	parts, inParts := s.Reader.(source.PartAcker)
	if !a.All && !inParts {
		return nil
	}
	begun, told := time.Now(), false
	for wait := 50 * time.Millisecond; ; wait = min(2*wait, 5*time.Second) {
		var err error
		if s.Replica.Fence != nil {
			err = s.Replica.Fence(ctx)
		}
		switch {
		case err != nil:
		case a.All:
			err = s.Reader.Ack(ctx, b)
		default:
			err = parts.AckPart(ctx, b, a.From, a.To)
		}
		if err == nil {
			break
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		s.OnError(fmt.Errorf("acknowledge: %w", err))
		if !told && time.Since(begun) > ackPatience {
			told = true
			s.Logger.Warn("source does not take acknowledgements, retrying", "error", err, "since", begun)
		}
		if ok, err := pause(ctx, nil, wait); !ok {
			return err
		}
	}
	if told {
		s.Logger.Info("source takes acknowledgements again", "after", time.Since(begun).Round(time.Millisecond))
	}
	return nil
}

// Ended reports whether the source has come to its end, and Read has said so.
func (s *SourceInput) Ended() bool { return s.ended.Load() }
