package forward

import (
	"context"
	"sync"
)

// Ack is what became durable of a work: the messages From..To-1, or all of it.
type Ack struct {
	Work     *Work
	From, To int
	// All: every message of the work, and of all works of its lane before it.
	All bool
}

// lane keeps the works of one lane in their order: how far all is done is what the blocks of the lane may promise as their floor, and what an input may
// acknowledge. Nothing waits for anything outside while mu is held.
type lane struct {
	// writing has room for 1: who puts something there submits to the output of the lane. The works of a lane are submitted one at a time.
	writing chan struct{}
	// wake has room for 1: there is something to acknowledge; nil if the input acknowledges nothing. closing is closed when nothing more will be.
	wake    chan struct{}
	closing chan struct{}

	mu    sync.Mutex
	open  []*slot // in order of position
	floor uint64  // all up to here is done, here or by an earlier owner of the input; it never falls
	begun bool
	last  chan struct{} // the turn of the work that came last; closed when it has written
	start chan struct{} // closed when the work that came last is queued for the first stage
	due   []Ack         // not yet given to the acknowledging goroutine
	loose bool          // messages may be acknowledged in any order
}

// slot is the progress of one work.
type slot struct {
	lo, hi uint64
	work   *Work
	left   int    // messages that are not done
	done   []bool // nil while none is
	prefix int    // all messages before it are done
	acked  int    // all messages before it were given out as an Ack
}

func newLane(loose bool) *lane {
	return &lane{writing: make(chan struct{}, 1), closing: make(chan struct{}), loose: loose}
}

// enter adds the next work. It returns what to wait for before writing, and what to close afterwards.
func (l *lane) enter(w *Work) (before <-chan struct{}, mine chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.begun {
		// What came before was done by an earlier process, or this would not be where the input resumes: a buffer.Reader begins at its saved floor and hands over
		// everything after it. That holds only while one process reads a partition.
		l.begun, l.floor = true, w.Lo-1
		l.last, l.start = make(chan struct{}), make(chan struct{})
		close(l.last)
		close(l.start)
	}
	w.slot = &slot{lo: w.Lo, hi: w.Hi, work: w, left: len(w.Messages)}
	l.open = append(l.open, w.slot)
	before, mine = l.last, make(chan struct{})
	l.last = mine
	w.begin, w.begun = l.start, make(chan struct{})
	l.start = w.begun
	if len(w.Messages) == 0 {
		l.advance()
	}
	return before, mine
}

// Floor is the position up to which all is done.
func (l *lane) Floor() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.floor
}

// finish marks the messages from..to-1 of a work as done. Each is done once.
func (l *lane) finish(w *Work, from, to int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := w.slot
	if s.left -= to - from; s.left > 0 {
		if s.done == nil {
			s.done = make([]bool, len(w.Messages))
		}
		for i := from; i < to; i++ {
			s.done[i] = true
		}
		for s.prefix < len(s.done) && s.done[s.prefix] {
			s.prefix++
		}
		if l.loose && l.wake != nil {
			l.due = append(l.due, Ack{Work: w, From: from, To: to})
		}
	}
	l.advance()
}

// advance moves the floor over what is done, and notes what may be acknowledged. mu is held.
func (l *lane) advance() {
	n := 0
	for n < len(l.open) && l.open[n].left == 0 {
		l.floor = l.open[n].hi
		if l.wake != nil {
			l.due = append(l.due, Ack{Work: l.open[n].work, To: len(l.open[n].work.Messages), All: true})
		}
		n++
	}
	if n > 0 {
		l.open = append(l.open[:0], l.open[n:]...)
	}
	if len(l.open) > 0 {
		if s := l.open[0]; s.prefix > s.acked {
			l.floor = s.work.Messages[s.prefix].Pos - 1
			if l.wake != nil && !l.loose {
				l.due = append(l.due, Ack{Work: s.work, From: s.acked, To: s.prefix})
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

// acknowledge gives what is due to the input, in order, until nothing more comes or ctx ends. No lock is held meanwhile: an input whose acknowledgements
// are slow, or fail, stops nobody.
func (l *lane) acknowledge(ctx context.Context, give func(context.Context, []Ack)) {
	for {
		closing := false
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
		if len(due) > 0 {
			give(ctx, due)
		}
		if closing {
			return
		}
	}
}
