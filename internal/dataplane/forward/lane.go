package forward

import (
	"context"
	"sync"

	"github.com/levada-io/levada/internal/dataplane/ackfloor"
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

	// acked is the position up to which everything is done, whatever process did it; see package ackfloor. It may be called with or without mu held. nil: this
	// process alone reads, and in order.
	acked func() uint64

	mu   sync.Mutex
	done ackfloor.Lane // how far all is done
	open []*Work       // those that done has in open, in the same order
	last turn          // of the work that entered last
	// due are acks for the goroutine of the lane, in the order in which it gives them. Invariant: empty with ackAtOnce. No message is in two of them but for
	// an Ack with All.
	due []dueAck
}

// dueAck is an ack that is to be given, and to which work.
type dueAck struct {
	work *Work
	ack  Ack
}

// turn is the place of a work among those of its lane.
type turn struct {
	// queued is closed when the work is queued for the first stage, and submitted when it has submitted what it had: a slow stage works through the works
	// in order, and they leave in order.
	queued, submitted chan struct{}
	before            *turn // of the work before; its channels are closed in order. nil once that is not needed
}

// newTurn is a place that nobody has taken yet.
func newTurn() turn { return turn{queued: make(chan struct{}), submitted: make(chan struct{})} }

// newLane returns a lane without works. The first one need not wait for any.
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
	w.progress = l.done.Enter(w.Lo, w.Hi, w.Messages)
	l.open = append(l.open, w)
	before := l.last
	w.turn = newTurn()
	w.turn.before = &turn{queued: before.queued, submitted: before.submitted}
	l.last = turn{queued: w.turn.queued, submitted: w.turn.submitted}
}

// Floor is the position up to which all is done: what blocks may promise.
func (l *lane) Floor() uint64 {
	acked := uint64(ackfloor.Unlimited)
	if l.acked != nil {
		acked = l.acked()
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.done.Floor(acked)
}

// finish marks the messages from..to-1 of a work as done. Each is done once, and a work without messages with from and to 0.
func (l *lane) finish(ctx context.Context, w *Work, from, to int) {
	if from >= to && len(w.Messages) > 0 {
		return
	}
	if l.acking == ackAtOnce {
		_ = w.Ack(ctx, Ack{From: from, To: to}) // it waits for nothing, so it cannot fail
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if whole := w.progress.Done(from, to); !whole && l.acking == ackInParts {
		l.due = append(l.due, dueAck{w, Ack{From: from, To: to}})
	}
	l.advance()
}

// advance moves the floor over what is done, and notes what may be acknowledged. mu is held.
func (l *lane) advance() {
	works, from, to := l.done.Advance()
	for _, w := range l.open[:works] {
		if l.acking != ackAtOnce {
			l.due = append(l.due, dueAck{w, Ack{To: len(w.Messages), All: true}})
		}
	}
	if works > 0 {
		rest := copy(l.open, l.open[works:])
		clear(l.open[rest:])
		l.open = l.open[:rest]
	}
	if to > from && l.acking == ackInOrder {
		l.due = append(l.due, dueAck{l.open[0], Ack{From: from, To: to}})
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
