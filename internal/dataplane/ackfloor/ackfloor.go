// Package ackfloor decides how far an input is done. It is pure: no clock, no locks, no I/O.
//
// A vertex writes in each block a floor: everything of the lane at or below it is durable in every output, and nothing new comes from there. Readers forget
// by it what they have seen, and drop what comes from below. So a floor that is too high loses messages, without an error anywhere; one that is too low
// only costs memory.
//
// A process knows of two bounds, and may promise the lower one:
//
//   - what it has finished of the works that it read itself, in order (Lane);
//   - the ack floor of whatever gives it the works: a consumer, a reader with its saved state. Only that knows of works that other processes hold.
//
// A process that reads alone resumes behind all that earlier owners have finished, and both bounds are the same but for works that are done in part. With several
// readers of one cursor the first work that a process gets says nothing about what is before it: another process may hold that. The same is true in a
// hand-over, while the old owner still finishes.
//
// # Epochs
//
// A Lane belongs to one assignment of an input to a process. A process that is given the input again begins a new Lane, at the ack floor of that time: works of the old
// one that are still in flight finish in the old one, and move nothing in the new one. The name of a lane in blocks is the same in every assignment, and so
// are the positions: that is what lets readers drop what two owners of an input both wrote. An epoch in that name would make duplicates of it.
//
// testdata has the cases as text.
package ackfloor

import "github.com/levada-io/levada/internal/flow"

// Lane is what is done of the works that a process has read of one input, in one assignment. It is not safe for concurrent use.
type Lane struct {
	begun bool
	// Everything at or below local that this process has read is done. Invariant: local never falls, and is below the first message of open[0] that is not done.
	local uint64
	// open are the works that are not done, or behind one that is not, in order of position. Invariant: open[0] is not done after Advance.
	open []*Work
}

// Work is a piece of the input that was read. It covers positions up to hi.
type Work struct {
	hi       uint64
	messages []flow.Message
	left     int // messages that are not done; of a work without messages 1 until Done(0, 0)
	// done are the messages that are done; nil while none is, and once all are at the same time. Invariant: done[:prefix] are true, done[prefix] is false.
	done   []bool
	prefix int
	given  int // messages before it were returned by Advance. Invariant: given <= prefix
}

// Unlimited is the ack floor of an input that is read by one process, and gives works in order without omissions.
const Unlimited = 1<<64 - 1

// Enter adds the next work, which covers lo to hi. Works come in order of position. Their messages have ascending positions.
func (l *Lane) Enter(lo, hi uint64, messages []flow.Message) *Work {
	if !l.begun {
		l.begun, l.local = true, lo-1
	}
	w := &Work{hi: hi, messages: messages, left: max(1, len(messages))}
	l.open = append(l.open, w)
	return w
}

// Done marks the messages from..to-1 of a work, and reports whether all of it is done. A message is marked once, and a work without messages with from and to 0.
func (w *Work) Done(from, to int) bool {
	if len(w.messages) == 0 {
		w.left = 0
		return true
	}
	if w.left -= to - from; w.left <= 0 {
		return true
	}
	if w.done == nil {
		w.done = make([]bool, len(w.messages))
	}
	for i := from; i < to; i++ {
		w.done[i] = true
	}
	for w.prefix < len(w.done) && w.done[w.prefix] {
		w.prefix++
	}
	return false
}

// Advance takes the works that are done off the front. It returns how many of those there are, and what is newly done at the beginning of the work behind
// them: its messages from..to-1.
func (l *Lane) Advance() (works, from, to int) {
	for works < len(l.open) && l.open[works].left <= 0 {
		l.local = l.open[works].hi
		works++
	}
	if works > 0 {
		rest := copy(l.open, l.open[works:])
		clear(l.open[rest:])
		l.open = l.open[:rest]
	}
	if len(l.open) == 0 {
		return works, 0, 0
	}
	w := l.open[0]
	if from, to = w.given, w.prefix; to > from {
		l.local = w.messages[to].Pos - 1
		w.given = to
	}
	return works, from, to
}

// Floor is what may be promised, if everything up to the position acked is done, whatever process did it.
func (l *Lane) Floor(acked uint64) uint64 { return min(l.local, acked) }
