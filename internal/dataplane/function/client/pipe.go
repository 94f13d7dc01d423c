package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/levada-io/levada/internal/dataplane/deadletter"
	"github.com/levada-io/levada/internal/dataplane/function/wire"
	"github.com/levada-io/levada/internal/flow"
)

// Caller gives messages to one running process, until it dies.
type Caller interface {
	// Call gives each message to user code. It returns one outcome for each; those that were not answered because the process died, or was ended
	// because a deadline passed, are Suspect if they had been sent and unsent otherwise. err says why there are such, or that ctx ended.
	// part may be nil. Once it is over nothing more is sent, and what was not is unsent without an error.
	Call(ctx context.Context, in []flow.Message, part *Part) (out []Outcome, unsent []int, err error)
	// Oldest is when the message was sent that waits for its answer longest; zero if none does.
	Oldest() time.Time
	// Progress counts the answers.
	Progress() uint64
	Close()
}

// ProtocolError is an answer that the contract does not allow.
type ProtocolError struct{ text string }

func (e *ProtocolError) Error() string { return e.text }

// codec is what differs between unary map, stream map and transformers: all send single requests and match answers by id.
type codec struct {
	method        string
	handshake     []byte
	appendRequest func(b []byte, m *flow.Message, id string) []byte
	result        *resultLayout
	// streamed: an id has many answers, the last one says end.
	streamed bool
	// mustAnswer: no result at all is an error, as a transformer has to say drop.
	mustAnswer bool
}

var (
	unaryMap  = codec{method: "/map.v1.Map/MapFn", handshake: mark(3), result: &mapResult, appendRequest: appendMapRequest}
	streamMap = codec{method: "/map.v1.Map/MapFn", handshake: mark(3), result: &mapResult, appendRequest: appendMapRequest, streamed: true}
	transform = codec{method: "/sourcetransformer.v1.SourceTransform/SourceTransformFn", handshake: mark(2), result: &transformResult, mustAnswer: true,
		appendRequest: func(b []byte, m *flow.Message, id string) []byte {
			return appendInnerRequest(b, &transformLayout, m, id)
		}}
)

// pipe is a stream on which up to a number of requests are in flight, answered in any order.
type pipe struct {
	codec  *codec
	stream *wire.Stream
	strays *atomic.Uint64 // unexpected responses
	// announced tells which requests were in user code when the process died
	announced Announcements

	sending sync.Mutex
	out     []byte

	mu       sync.Mutex
	room     sync.Cond
	line     line
	slots    []slot
	free     []int32
	err      error
	progress uint64
	seen     uint64    // the progress that Oldest saw last,
	moved    time.Time // and when it saw it first
	ended    chan struct{}
	// settling are streamed answers that have ended and do not count yet, in the order of their ends.
	settling    []settling
	settleTimer *time.Timer
	// panicked reports whether the function told of a panic.
	panicked func() bool
}

type slot struct {
	call  *call
	index int
	id    uint64 // of the request in this slot; its remainder by the number of slots is the slot
	sent  time.Time
	// after is the progress at which it must be in user code, if that takes messages in about their order: all that can have been in front of it is
	// answered then. due is when that was first seen.
	after uint64
	due   time.Time
	// abandoned says that nobody waits for the answer any more. The slot is free once it has come.
	abandoned bool
}

// call is one Call, waiting for its answers.
type call struct {
	in    []flow.Message
	out   []Outcome
	state []sendState
	left  int
	turn  chan struct{} // closed when it may send; see line
	done  chan struct{}
	arena []flow.Message
}

type sendState uint8

const (
	unsent sendState = iota
	sent
	answered
	taken // answered, and given out by a Part
)

func newCall(in []flow.Message) *call {
	return &call{in: in, out: make([]Outcome, len(in)), state: make([]sendState, len(in)), left: len(in), turn: make(chan struct{}), done: make(chan struct{}), arena: make([]flow.Message, 0, len(in))}
}

// cut gives up sending the last n messages. The lock of the call's pipe is held.
func (c *call) cut(n int) {
	if c.left -= n; c.left == 0 {
		close(c.done)
	}
}

// finish sorts a call out once no more answers can come.
func (c *call) finish() (out []Outcome, notSent []int) {
	for i, s := range c.state {
		switch s {
		case unsent:
			notSent = append(notSent, i)
		case sent:
			c.out[i] = Outcome{Verdict: Suspect}
		}
	}
	return c.out, notSent
}

// openPipe opens the stream and shakes hands. strays is called for unexpected responses.
func openPipe(ctx context.Context, address string, c *codec, limit, maxMessage int, strays *atomic.Uint64, announced Announcements) (*pipe, error) {
	stream, err := openStream(ctx, address, c.method, c.handshake, maxMessage)
	if err != nil {
		return nil, err
	}
	p := &pipe{codec: c, stream: stream, strays: strays, announced: announced, panicked: func() bool { return false }, slots: make([]slot, limit), free: make([]int32, limit), ended: make(chan struct{})}
	p.room.L = &p.mu
	for i := range p.free {
		p.free[i] = int32(limit - 1 - i)
		p.slots[i].id = uint64(i)
	}
	go p.receive() // ends when the stream does; Close waits for it
	return p, nil
}

// openStream dials and shakes hands; handshake is the handshake request, and any answer to it will do.
func openStream(ctx context.Context, address, method string, handshake []byte, maxMessage int) (*wire.Stream, error) {
	stream, err := wire.Dial(ctx, address, method, maxMessage)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, stream.Close)
	defer stop()
	if handshake == nil {
		return stream, nil
	}
	if err := stream.Send(handshake); err != nil {
		return nil, fmt.Errorf("handshake: %w", err)
	}
	if _, err := stream.Recv(); err != nil {
		stream.Close()
		return nil, fmt.Errorf("handshake: %w", err)
	}
	return stream, nil
}

func (p *pipe) Call(ctx context.Context, in []flow.Message, part *Part) ([]Outcome, []int, error) {
	c := newCall(in)
	wake := func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.room.Broadcast()
	}
	defer context.AfterFunc(ctx, wake)()
	defer part.onOver(wake)()
	part.Open(func(visit func(int, *Outcome)) {
		p.mu.Lock()
		defer p.mu.Unlock()
		c.take(visit)
	})
	defer part.Close()
	err := p.send(ctx, c, part)
	if err == nil {
		select {
		case <-c.done:
			out, notSent := c.finish()
			return out, notSent, nil
		case <-p.ended:
		case <-ctx.Done():
			err = context.Cause(ctx)
		}
	}
	var inCode map[uint64]bool
	if ctx.Err() == nil {
		p.mu.Lock()
		ended := p.err
		p.mu.Unlock()
		inCode = p.announced(ctx, ended)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if c.left == 0 {
		out, notSent := c.finish()
		return out, notSent, nil
	}
	if p.err != nil {
		err = p.err
	}
	p.unsettle(c, inCode)
	if c.left == 0 {
		out, notSent := c.finish()
		return out, notSent, nil
	}
	p.abandon(c, inCode)
	out, notSent := c.finish()
	return out, notSent, err
}

// abandon makes late answers to c strays, and tells apart, where the function announces it, what was in user code. mu is held.
func (p *pipe) abandon(c *call, inCode map[uint64]bool) {
	for i := range p.slots {
		s := &p.slots[i]
		if s.call != c {
			continue
		}
		s.call, s.abandoned = nil, true
		if inCode != nil && !inCode[announceUnary|(s.id+1)] {
			c.state[s.index] = unsent
		}
	}
}

// send sends the requests of c, as many at a time as there are slots.
func (p *pipe) send(ctx context.Context, c *call, part *Part) error {
	var ids []uint64
	p.mu.Lock()
	p.line.join(c)
	p.mu.Unlock()
	part.NoteQueued()
	defer func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.line.leave(c)
	}()
	c.awaitTurn(ctx, part, p.ended)
	part.noteSending()
	for next := 0; next < len(c.in); {
		p.mu.Lock()
		// Waking for each free slot would cost a switch for each message: wait for some.
		want := min(len(c.in)-next, max(1, len(p.slots)/4))
		for p.err == nil && ctx.Err() == nil && !part.Over() && len(p.free) < want {
			p.room.Wait()
		}
		if part.Over() && p.err == nil && ctx.Err() == nil {
			defer p.mu.Unlock()
			c.cut(len(c.in) - next)
			return nil
		}
		if p.err != nil || ctx.Err() != nil {
			defer p.mu.Unlock()
			return errors.Join(p.err, context.Cause(ctx))
		}
		n := min(len(p.free), len(c.in)-next)
		now := time.Now()
		ids = ids[:0]
		for i := range n {
			k := p.free[len(p.free)-1]
			p.free = p.free[:len(p.free)-1]
			s := &p.slots[k]
			s.id += uint64(len(p.slots))
			s.call, s.index, s.sent, s.after, s.due = c, next+i, now, p.progress+uint64(len(p.slots)), time.Time{}
			c.state[next+i] = sent
			ids = append(ids, s.id)
		}
		p.mu.Unlock()
		p.sending.Lock()
		p.out = p.out[:0]
		var digits [20]byte
		for i, id := range ids {
			p.out = p.codec.appendRequest(p.out, &c.in[next+i], text(strconv.AppendUint(digits[:0], id, 10)))
		}
		err := p.stream.Send(p.out)
		p.sending.Unlock()
		if err != nil {
			<-p.ended // the receiver knows better why
			return err
		}
		next += n
	}
	return nil
}

func (p *pipe) receive() {
	defer close(p.ended)
	var r response
	for {
		msg, err := p.stream.Recv()
		if err == nil {
			if err = r.decode(msg); err == nil {
				err = p.answer(&r)
			}
			if err != nil {
				err = &ProtocolError{fmt.Sprintf("the function answered against the contract: %v", err)}
			}
		}
		if err != nil {
			p.stream.Close()
			p.mu.Lock()
			if errors.Is(err, io.EOF) { // it ended well, and with it all answers that have ended
				for i := range p.settling {
					p.settling[i].answered()
				}
				p.settling = nil
			}
			p.err = err
			p.room.Broadcast()
			p.mu.Unlock()
			return
		}
	}
}

func (p *pipe) answer(r *response) error {
	id, ok := parseID(r.id)
	p.mu.Lock()
	defer p.mu.Unlock()
	var s *slot
	if ok {
		s = &p.slots[id%uint64(len(p.slots))]
	}
	if s == nil || s.call == nil || s.id != id {
		if s != nil && s.abandoned && s.id == id && (r.end || !p.codec.streamed) {
			s.abandoned = false
			p.release(id)
			return nil
		}
		if !r.handshake {
			p.strays.Add(1) // an unknown id, or a second answer: neither may do harm
		}
		return nil
	}
	c, i := s.call, s.index
	out := &c.out[i]
	start := len(c.arena)
	for _, b := range r.results {
		var err error
		if c.arena, err = p.codec.result.decodeResult(b, &c.in[i], out, c.arena); err != nil {
			return err
		}
	}
	if added := c.arena[start:len(c.arena):len(c.arena)]; len(out.Results) == 0 {
		out.Results = added
	} else {
		out.Results = append(out.Results, added...)
	}
	if p.codec.streamed && !r.end {
		s.sent = time.Now() // it makes progress
		return nil
	}
	if p.codec.mustAnswer && len(out.Results) == 0 && out.Dropped == 0 && out.Verdict == Done {
		*out = Outcome{Verdict: Broken, Failure: &deadletter.Failure{Reason: deadletter.Protocol, Attempts: 1, Error: "the transformer answered with no result; to drop a message it has to answer with the tag " + tagDrop}}
	}
	p.progress++
	s.call = nil
	last := settling{c, i, id, time.Time{}}
	if p.codec.streamed {
		last.ended = time.Now()
		p.settle(last)
	} else {
		last.answered()
	}
	p.release(id)
	return nil
}

// release frees the slot of a request. mu is held.
func (p *pipe) release(id uint64) {
	p.free = append(p.free, int32(id%uint64(len(p.slots))))
	if len(p.free) == cap(p.free) || len(p.free) >= max(1, len(p.slots)/4) {
		p.room.Broadcast()
	}
}

// Oldest does not count the time that a message waits behind others which are being answered: a function that works through its queue does not hang,
// however slow it is.
func (p *pipe) Oldest() (t time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	if p.progress != p.seen {
		p.seen, p.moved = p.progress, now
	}
	for i := range p.slots {
		s := &p.slots[i]
		if s.call == nil {
			continue
		}
		waits := p.moved
		if p.progress >= s.after {
			if s.due.IsZero() {
				s.due = now
			}
			waits = s.due
		}
		if waits.Before(s.sent) {
			waits = s.sent
		}
		if t.IsZero() || waits.Before(t) {
			t = waits
		}
	}
	return t
}

func (p *pipe) Progress() uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.progress
}

func (p *pipe) Close() {
	p.stream.Close()
	<-p.ended
}
