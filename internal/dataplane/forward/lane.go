package forward

import (
	"context"
	"sync"
)

// acking is who calls Work.Ack, and when.
type acking int

const (
	// ackAtOnce: whatever finishes a message acknowledges it, in any order. The ack waits for nothing outside.
	ackAtOnce acking = iota
	// ackInOrder: a goroutine of the lane acknowledges how far all is done, in the order of positions, one ack at a time.
	ackInOrder
	// ackInParts: a goroutine of the lane acknowledges parts of works as they are done, one ack at a time: their messages have no order. The ack of a whole
	// work comes in order.
	ackInParts
)

// lane keeps the works of one lane in their order: how far all is done is what the blocks of the lane may promise as their floor, and what an input may
// acknowledge. Nothing waits for anything outside while mu is held.
type lane struct {
	// writing has room for 1, taken while an emission of the lane is submitted. The works of a lane are submitted one at a time.
	writing chan struct{}
	acking  acking
	// wake has room for 1: due is not empty. closing is closed when nothing more will be due. Used unless acking is ackAtOnce.
	wake    chan struct{}
	closing chan struct{}

	mu sync.Mutex
	// open are the works that are not done, or behind one that is not, in order of position. Invariant: open[0] is not done, while mu is free.
	open []*slot
	// All up to floor is done, here or by an earlier owner of the input. Invariant: floor never falls, and is below the first message of open[0] that is
	// not done.
	floor uint64
	begun bool
	last  turn // of the work that entered last
	// due are acks for the goroutine of the lane, in the order in which it gives them. Invariant: empty with ackAtOnce. No message is in two of them but for
	// an Ack with All.
	due []dueAck
}

type dueAck struct {
	work *Work
	ack  Ack
}

// slot is the progress of one work.
type slot struct {
	work *Work
	left int // messages that are not done
	// done are the messages that are done; nil while none is, and once all are at the same time. Invariant: done[:prefix] are true, done[prefix] is false.
	done   []bool
	prefix int
	acked  int // all messages before it are in an Ack of the lane. Invariant: acked <= prefix.
}

// turn is the place of a work among those of its lane.
type turn struct {
	// queued is closed when the work is queued for the first stage, and submitted when it has submitted what it had: a slow stage works through the works
	// in order, and they leave in order.
	queued, submitted chan struct{}
	before            *turn // of the work before; its channels are closed in order. nil once that is not needed
}

func newTurn() turn { return turn{queued: make(chan struct{}), submitted: make(chan struct{})} }

func newLane(a acking) *lane {
	first := newTurn()
	close(first.queued)
	close(first.submitted)
	return &lane{writing: make(chan struct{}, 1), acking: a, wake: make(chan struct{}, 1), closing: make(chan struct{}), last: first}
}

// enter adds the next work.
func (l *lane) enter(w *Work) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.begun {
		// What came before was done by an earlier process, or this would not be where the input resumes: a buffer.Reader begins at its saved floor and hands over
		// everything after it. That holds only while one process reads a partition.
		l.begun, l.floor = true, w.Lo-1
	}
	w.slot = &slot{work: w, left: len(w.Messages)}
	l.open = append(l.open, w.slot)
	before := l.last
	w.turn = newTurn()
	w.turn.before = &turn{queued: before.queued, submitted: before.submitted}
	l.last = turn{queued: w.turn.queued, submitted: w.turn.submitted}
	if len(w.Messages) == 0 {
		l.advance()
	}
}

// Floor is the position up to which all is done.
func (l *lane) Floor() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.floor
}

// finish marks the messages from..to-1 of a work as done. Each is done once.
func (l *lane) finish(ctx context.Context, w *Work, from, to int) {
	if from >= to {
		return
	}
	if l.acking == ackAtOnce {
		_ = w.Ack(ctx, Ack{From: from, To: to}) // it waits for nothing, so it cannot fail
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	s := w.slot
	if s.left -= to - from; s.left > 0 {
		s.mark(from, to)
		if l.acking == ackInParts {
			l.due = append(l.due, dueAck{w, Ack{From: from, To: to}})
		}
	}
	l.advance()
}

func (s *slot) mark(from, to int) {
	if s.done == nil {
		s.done = make([]bool, len(s.work.Messages))
	}
	for i := from; i < to; i++ {
		s.done[i] = true
	}
	for s.prefix < len(s.done) && s.done[s.prefix] {
		s.prefix++
	}
}

// advance moves the floor over what is done, and notes what may be acknowledged. mu is held.
func (l *lane) advance() {
	n := 0
	for n < len(l.open) && l.open[n].left == 0 {
		w := l.open[n].work
		l.floor = w.Hi
		if l.acking != ackAtOnce {
			l.due = append(l.due, dueAck{w, Ack{To: len(w.Messages), All: true}})
		}
		n++
	}
	if n > 0 {
		rest := copy(l.open, l.open[n:])
		clear(l.open[rest:])
		l.open = l.open[:rest]
	}
	if len(l.open) > 0 {
		if s := l.open[0]; s.prefix > s.acked {
			l.floor = s.work.Messages[s.prefix].Pos - 1
			if l.acking == ackInOrder {
				l.due = append(l.due, dueAck{s.work, Ack{From: s.acked, To: s.prefix}})
			}
			s.acked = s.prefix
		}
	}
	if len(l.due) > 0 {
		select {
		case l.wake <- struct{}{}:
		default:
		}
	}
}

// acknowledge gives what is due to the input, in order, until the lane closes or ctx ends. No lock is held meanwhile: an input whose acknowledgements
// are slow, or fail, stops nobody.
func (l *lane) acknowledge(ctx context.Context) {
	for closing := false; !closing; {
		select {
		case <-l.wake:
		case <-l.closing:
			closing = true
		case <-ctx.Done():
			return
		}
		l.mu.Lock()
		due := l.due
		l.due = nil
		l.mu.Unlock()
		for _, d := range due {
			if d.work.Ack(ctx, d.ack) != nil {
				return // ctx ended
			}
		}
	}
}
