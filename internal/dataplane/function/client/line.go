package client

import (
	"context"
	"slices"
)

// line is the order in which calls send their messages: the earliest position first. A slow function so works through its input in order, and what it has
// done when it is stopped is a beginning of the input: a source that is acknowledged by position repeats none of it. The lock of the pipe is held.
type line struct{ calls []*call } // the turn of the first one has come

func (l *line) join(c *call) {
	i := len(l.calls)
	if i == 0 {
		close(c.turn)
	}
	for i > 1 && len(c.in) > 0 && l.calls[i-1].in[0].Pos > c.in[0].Pos {
		i--
	}
	l.calls = slices.Insert(l.calls, i, c)
}

// leave gives the turn to the next.
func (l *line) leave(c *call) {
	first := l.calls[0] == c
	l.calls = slices.DeleteFunc(l.calls, func(o *call) bool { return o == c })
	if first && len(l.calls) > 0 {
		close(l.calls[0].turn)
	}
}

// awaitTurn waits for the turn of a call, or until it has none: ended is closed when the pipe is.
func (c *call) awaitTurn(ctx context.Context, part *Part, ended <-chan struct{}) {
	select {
	case <-c.turn:
	case <-part.Done():
	case <-ended:
	case <-ctx.Done():
	}
}
