package sdk

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
)

const (
	// blockTick is how long one worker has a block to itself, and how often more are added then.
	blockTick = time.Millisecond
	// flushEvery is how long an outcome of a slow block may wait for others to share its frame.
	flushEvery = 2 * time.Millisecond
	// flushSize bounds a frame of outcomes that could be split.
	flushSize = 1 << 20
	// blocksInFlight bounds the memory of a stream.
	blocksInFlight = 64
)

// blockStream serves one stream of block mode. Several of its blocks may be under way, and each may have several workers.
type blockStream struct {
	server *server
	mapper Mapper
	ctx    context.Context
	out    sender
	// maxOutcome leaves room in a frame for what is there already.
	flushAt, maxOutcome int
	// ramp is how many workers the next block begins with: slow blocks need not find out again that they are.
	ramp atomic.Int32
	// broken is the first error of sending, after which nothing else is sent.
	broken atomic.Pointer[error]
}

func (s *server) serveBlocks(stream grpc.ServerStream, mapper Mapper) error {
	flushAt := min(flushSize, s.maxMessageSize/4)
	b := &blockStream{
		server:     s,
		mapper:     mapper,
		ctx:        stream.Context(),
		out:        sender{stream: stream},
		flushAt:    flushAt,
		maxOutcome: s.maxMessageSize - flushAt - 64,
	}
	var blocks sync.WaitGroup
	tickets := make(chan struct{}, blocksInFlight)
	for {
		var raw frame
		if err := stream.RecvMsg(&raw); errors.Is(err, io.EOF) {
			blocks.Wait()
			return b.sendError()
		} else if err != nil {
			return err
		}
		block, err := decodeBlock(raw)
		if err != nil {
			return err
		}
		select {
		case tickets <- struct{}{}:
		case <-b.ctx.Done():
			return b.ctx.Err()
		}
		first, err := s.seats.take(b.ctx)
		if err != nil {
			return err
		}
		blocks.Add(1)
		block.start(b, first, func() { <-tickets; blocks.Done() })
	}
}

func (b *blockStream) send(replies []reply) {
	for _, r := range replies {
		if b.broken.Load() != nil {
			r.drop()
			continue
		}
		if err := b.out.sendReply(r); err != nil {
			b.broken.CompareAndSwap(nil, &err)
		}
	}
}

func (b *blockStream) sendError() error {
	if err := b.broken.Load(); err != nil {
		return *err
	}
	return nil
}

// block is a block under way.
type block struct {
	stream *blockStream
	id     uint64
	raw    []byte
	spans  []span
	// claimed counts messages that workers have taken.
	claimed atomic.Int64
	onDone  func()

	mu       sync.Mutex
	workers  int
	answered int
	pending  pending
	// slow: the block has outlived its first tick, and outcomes are sent before all are there.
	slow    bool
	ticking bool
	step    int // workers to add at the next tick
	seen    int // answered at the last tick
	flushed time.Time
	timer   *time.Timer
}

// span is where a message lies in its frame. A frame has less than 4 GiB.
type span struct{ start, end uint32 }

// decodeBlock finds the messages of a block. Each is decoded only by the worker that takes it.
func decodeBlock(raw []byte) (*block, error) {
	b := &block{raw: raw}
	for rest := raw; len(rest) > 0; {
		f, after, err := next(rest)
		if err != nil {
			return nil, errMalformed(err)
		}
		switch {
		case f.num == 1 && f.typ == protowire.VarintType:
			b.id = f.number
		case f.num == 2 && f.typ == protowire.BytesType:
			if b.spans == nil {
				// Messages of a block are alike: guess their number by the first one.
				b.spans = make([]span, 0, min(len(raw)/(len(rest)-len(after))+8, 4096))
			}
			stop := uint32(len(raw) - len(after))
			b.spans = append(b.spans, span{stop - uint32(len(f.bytes)), stop})
		}
		rest = after
	}
	if len(b.spans) > maxBlockMessages {
		return nil, status.Errorf(codes.InvalidArgument, "block %d has %d messages, at most %d are possible", b.id, len(b.spans), maxBlockMessages)
	}
	if b.id > maxBlockID {
		return nil, status.Errorf(codes.InvalidArgument, "block id %d is greater than %d", b.id, uint64(maxBlockID))
	}
	return b, nil
}

// start begins work on the block, on goroutines of its own. It calls onDone once all is answered.
func (b *block) start(stream *blockStream, first seat, onDone func()) {
	b.stream, b.onDone = stream, onDone
	b.step = 1
	b.pending.id = b.id
	b.mu.Lock()
	defer b.mu.Unlock()
	b.ticking = true
	b.timer = time.AfterFunc(blockTick, b.tick)
	b.spawn(first)
	b.grow(int(stream.ramp.Load()) - 1)
}

// spawn adds a worker. The caller holds mu.
func (b *block) spawn(s seat) {
	b.workers++
	b.stream.server.work.Go(func() {
		defer b.leave()
		defer b.stream.server.seats.leave(s)
		b.work(s)
	})
}

// grow adds up to n workers, as far as there are seats and messages for them. The caller holds mu.
func (b *block) grow(n int) {
	for ; n > 0 && b.unclaimed(); n-- {
		s, ok := b.stream.server.seats.try()
		if !ok {
			return
		}
		b.spawn(s)
	}
}

func (b *block) unclaimed() bool { return int(b.claimed.Load()) < len(b.spans) }

func (b *block) work(s seat) {
	for b.stream.ctx.Err() == nil {
		i := int(b.claimed.Add(1)) - 1
		if i >= len(b.spans) {
			return
		}
		results, failed := b.call(s, i)
		b.answer(i, results, failed)
	}
}

func (b *block) call(s seat, i int) ([]Result, *failure) {
	at := b.spans[i]
	m, err := decodeMessage(b.raw[at.start:at.end:at.end], blockLayout)
	if err != nil {
		return nil, &failure{text: fmt.Sprintf("malformed message: %v", err)}
	}
	s.block(b.id, i)
	results, failed := callMap(b.stream.ctx, b.stream.mapper, m)
	s.clear()
	return results, failed
}

// answer keeps an outcome, and sends what is there if it is time.
func (b *block) answer(i int, results []Result, failed *failure) {
	b.mu.Lock()
	b.pending.add(i, results, failed, len(b.raw), b.stream.maxOutcome)
	b.answered++
	var replies []reply
	switch {
	case b.answered == len(b.spans), b.pending.size() >= b.stream.flushAt:
		replies = b.flush()
	case b.slow && !b.ticking:
		if time.Since(b.flushed) >= flushEvery {
			replies = b.flush()
		} else {
			b.ticking = true
			b.timer.Reset(flushEvery)
		}
	}
	b.mu.Unlock()
	b.stream.send(replies)
}

// flush takes what is there. The caller holds mu, and sends after releasing it.
func (b *block) flush() []reply {
	if b.slow {
		b.flushed = time.Now()
	}
	return b.pending.take()
}

// tick looks after a slow block: it adds workers, and sends outcomes that have waited long enough.
func (b *block) tick() {
	b.mu.Lock()
	if b.workers == 0 {
		b.mu.Unlock()
		return
	}
	var replies []reply
	if b.slow && time.Since(b.flushed) >= flushEvery {
		replies = b.flush()
	} else if !b.slow {
		b.slow, b.flushed = true, time.Now().Add(-blockTick) // of which the first tick was a part
	}
	b.addWorkers()
	b.ticking = b.unclaimed() || b.pending.size() > 0
	if b.ticking {
		b.timer.Reset(blockTick)
	}
	if len(replies) > 0 {
		b.workers++ // the block is not done before these are sent
	}
	b.mu.Unlock()
	if len(replies) > 0 {
		b.stream.send(replies)
		b.leave()
	}
}

// addWorkers adds 1, 2, 4, ... workers, tick by tick, if calls are slow. If there are just very many quick calls, more
// workers than processors would only be in each other's way. The caller holds mu.
func (b *block) addWorkers() {
	quick := b.answered-b.seen > b.workers*int(blockTick/slowCall)
	b.seen = b.answered
	if quick {
		b.grow(min(b.step, runtime.GOMAXPROCS(0)-b.workers))
		return
	}
	b.grow(b.step)
	b.step = min(b.step*2, announceSlots)
}

func (b *block) leave() {
	b.mu.Lock()
	b.workers--
	last := b.workers == 0
	var replies []reply
	if last {
		b.timer.Stop()
		if len(b.spans) == 0 {
			b.pending.open(0, 0)
			replies = b.pending.take()
		}
		// step doubled at each slow tick: it is about how many workers the block turned out to need.
		b.stream.ramp.Store(int32(min(b.step/2, len(b.spans))))
	}
	b.mu.Unlock()
	b.stream.send(replies)
	if last {
		b.onDone()
	}
}
