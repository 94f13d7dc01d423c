package function

import "slices"

// line is the order in which calls send their messages: the earliest position first. A slow function so works through its input in order, and what it has
// done when it is stopped is a beginning of the input: a source that is acknowledged by position repeats none of it. The lock of the pipe is held.
type line struct{ calls []*call }

func (l *line) join(c *call) {
	i := len(l.calls)
	for i > 0 && len(c.in) > 0 && l.calls[i-1].in[0].Pos > c.in[0].Pos {
		i--
	}
	l.calls = slices.Insert(l.calls, i, c)
}

func (l *line) first(c *call) bool { return len(l.calls) > 0 && l.calls[0] == c }

// leave reports whether others wait.
func (l *line) leave(c *call) bool {
	l.calls = slices.DeleteFunc(l.calls, func(o *call) bool { return o == c })
	return len(l.calls) > 0
}
