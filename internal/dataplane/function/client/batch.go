package client

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/levada-io/levada/internal/dataplane/function/wire"
	"github.com/levada-io/levada/internal/flow"
)

// batchPipe is a stream on which requests go in groups: all of a group, then the end of transmission; all answers, then the end of
// transmission. One group is under way at a time. Batch map and sinks work so.
type batchPipe struct {
	stream *wire.Stream
	codec  *batchCodec
	strays *atomic.Uint64
	limit  int
	// timeout of one message; a group has a hundredth of it more for each of its messages, which user code may take one after the other
	timeout time.Duration

	turn chan struct{} // holds one token; who has it may use the stream
	out  []byte

	mu       sync.Mutex
	began    time.Time
	progress uint64
	failed   error
}

type batchCodec struct {
	method    string
	handshake []byte
	end       []byte
	request   func(b []byte, m *flow.Message, id string) []byte
	// answer reads one answer of the group; it returns end once the group is over.
	answer func(msg []byte, g *group) (end bool, err error)
}

// group is what the answers of a batch are put into.
type group struct {
	call *call
	// byID finds messages by what they were called in the request.
	byID    func(id []byte) (int, bool)
	strays  *atomic.Uint64
	reply   response
	results []SinkResult // sinks only
}

func (g *group) answered(i int) bool {
	if g.call.state[i] != sent {
		g.strays.Add(1)
		return false
	}
	g.call.state[i] = answered
	g.call.left--
	return true
}

var batchMap = batchCodec{
	method: "/map.v1.Map/MapFn", handshake: mark(3), end: mark(4), request: appendMapRequest,
	answer: func(msg []byte, g *group) (bool, error) {
		if err := g.reply.decode(msg); err != nil {
			return false, err
		}
		i, ok := g.byID(g.reply.id)
		if !ok {
			if !g.reply.end && !g.reply.handshake {
				g.strays.Add(1)
			}
			return g.reply.end, nil
		}
		if !g.answered(i) {
			return g.reply.end, nil
		}
		c := g.call
		start := len(c.arena)
		for _, b := range g.reply.results {
			var err error
			if c.arena, err = mapResult.decodeResult(b, &c.in[i], &c.out[i], c.arena); err != nil {
				return false, err
			}
		}
		c.out[i].Results = c.arena[start:len(c.arena):len(c.arena)]
		return g.reply.end, nil
	},
}

func openBatch(ctx context.Context, address string, c *batchCodec, limit, maxMessage int, timeout time.Duration, strays *atomic.Uint64) (*batchPipe, error) {
	stream, err := openStream(ctx, address, c.method, c.handshake, maxMessage)
	if err != nil {
		return nil, err
	}
	b := &batchPipe{stream: stream, codec: c, strays: strays, limit: limit, timeout: timeout, turn: make(chan struct{}, 1)}
	b.turn <- struct{}{}
	return b, nil
}

func (b *batchPipe) Call(ctx context.Context, in []flow.Message, part *Part) ([]Outcome, []int, error) {
	c := newCall(in)
	err := b.run(ctx, c, part, func(i int) string { return strconv.Itoa(i) }, func(id []byte) (int, bool) {
		n, ok := parseID(id)
		return int(n), ok && n < uint64(len(in))
	}, nil)
	out, notSent := c.finish()
	return out, notSent, err
}

// run sends c in groups of at most limit messages and gathers the answers.
func (b *batchPipe) run(ctx context.Context, c *call, part *Part, name func(int) string, find func([]byte) (int, bool), results []SinkResult) error {
	part.NoteQueued() // those who wait for the turn get it in their order
	select {
	case <-b.turn:
	case <-part.Done():
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	defer func() { b.turn <- struct{}{} }()
	stop := context.AfterFunc(ctx, b.stream.Close)
	defer stop()
	for first := 0; first < len(c.in) && !part.Over(); first += b.limit {
		last := min(first+b.limit, len(c.in))
		if err := b.runGroup(c, first, last, name, &group{call: c, byID: find, strays: b.strays, results: results}); err != nil {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			return err
		}
	}
	return nil
}

func (b *batchPipe) runGroup(c *call, first, last int, name func(int) string, g *group) error {
	b.mu.Lock()
	b.began = time.Now().Add(b.timeout / 100 * time.Duration(last-first-1))
	failed := b.failed
	b.mu.Unlock()
	if failed != nil {
		return failed
	}
	defer func() {
		b.mu.Lock()
		b.began = time.Time{}
		b.progress += uint64(last - first)
		b.mu.Unlock()
	}()
	b.out = b.out[:0]
	for i := first; i < last; i++ {
		b.out = b.codec.request(b.out, &c.in[i], name(i))
		c.state[i] = sent
	}
	b.out = append(b.out, b.codec.end...)
	// The server may answer before it has read all, so somebody has to send and somebody to receive.
	sending := make(chan error, 1)
	go func() { sending <- b.stream.Send(b.out) }()
	err := b.gather(g)
	if err != nil {
		b.stream.Close()
	}
	sendErr := <-sending
	if err == nil {
		err = sendErr
	}
	if err == nil {
		if missing := countSent(c.state[first:last]); missing > 0 {
			b.stream.Close()
			err = &ProtocolError{fmt.Sprintf("the function ended a batch of %d with %d messages unanswered", last-first, missing)}
		}
	}
	if err != nil {
		b.mu.Lock()
		b.failed = err
		b.mu.Unlock()
	}
	return err
}

func countSent(states []sendState) (n int) {
	for _, s := range states {
		if s == sent {
			n++
		}
	}
	return n
}

func (b *batchPipe) gather(g *group) error {
	for {
		msg, err := b.stream.Recv()
		if err != nil {
			return err
		}
		end, err := b.codec.answer(msg, g)
		if err != nil {
			var p *ProtocolError
			if !errors.As(err, &p) {
				err = &ProtocolError{fmt.Sprintf("the function answered against the contract: %v", err)}
			}
			return err
		}
		if end {
			return nil
		}
	}
}

func (b *batchPipe) Oldest() time.Time {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.began
}

func (b *batchPipe) Progress() uint64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.progress
}

func (b *batchPipe) Close() { b.stream.Close() }
