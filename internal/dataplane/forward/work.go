package forward

import (
	"cmp"
	"context"
	"slices"
	"strconv"
	"unsafe"

	"github.com/levada-io/levada/internal/dataplane/ackfloor"
	"github.com/levada-io/levada/internal/dataplane/deadletter"
	"github.com/levada-io/levada/internal/flow"
)

// Origin is an ordered sequence of messages. What is written from it is identified by its lane and the positions in it.
type Origin struct {
	Lane string
	// ByID says that positions mean nothing after a restart: messages are deduplicated by ID.
	ByID bool
	// IDPrefix followed by the position is the id of a message that has none.
	IDPrefix string
	// Stride is how many positions in a row go to the same partition of the next buffer.
	Stride uint64
}

// Work is a piece of the input, of at most readBatchSize messages of one lane, covering its positions Lo to Hi. Its messages are done one by one. A work without
// messages comes for its positions or its Bounds.
type Work struct {
	Origin
	Lo, Hi uint64
	// Messages have positions, ascending and within Lo..Hi. Those of a lane with positions may have no id.
	Messages []flow.Message
	// Short says that the input had no more at that moment.
	Short bool
	// Broken are messages that are dead-lettered instead of being processed, by their index in Messages; nil if there is none.
	Broken map[int]*deadletter.Failure
	// Bounds are what the writers of the input promise behind this work, in the order of their blocks; nil if nobody promises anything.
	Bounds []Bound
	// Consume tells the input that the processor keeps the messages from..to-1 for longer; see Pipe.Consume. nil: the input need not know.
	Consume func(from, to int)
	// Ack tells the input that messages are done, and retries until ctx ends: then it returns an error. See acking for who calls it, and when.
	Ack func(ctx context.Context, a Ack) error

	// track is the lane's, which knows what may be promised; see lane.
	track    *lane
	progress *ackfloor.Work // which messages are done; set when the work enters its lane, and guarded by the lane
	turn     turn           // likewise set then
}

// Bound is a promise of one writer of a buffer: every message of its lane that is not in this work or in one before has at least this event time, in Unix
// nanoseconds. It is about that lane alone: the watermark of a reader is the least of the bounds of all lanes that can write to it. A bound that is repeated after
// a crash may be lower than one given before.
type Bound struct {
	// Lane shares memory with a block: what keeps it for long clones it.
	Lane      string
	Watermark int64
}

// Ack says that everything made of the messages From..To-1 of a work is durable in every output.
type Ack struct {
	From, To int
	// All: every message of the work is, and of all works of its lane before it.
	All bool
}

// names gives every message its id, for those who need it: functions in block mode, sinks, dead letters.
func (w *Work) names() { nameAll(w.Messages, w.IDPrefix) }

// nameAll gives an id to every message without one: prefix and position.
func nameAll(messages []flow.Message, prefix string) {
	var b []byte
	for i := range messages {
		m := &messages[i]
		if m.ID != "" {
			continue
		}
		if cap(b)-len(b) < len(prefix)+20 { // it never grows: ids given out share this memory
			b = make([]byte, 0, (len(messages)-i)*(len(prefix)+10)+20)
		}
		at := len(b)
		b = strconv.AppendUint(append(b, prefix...), m.Pos, 10)
		m.ID = view(b[at:])
	}
}

// span is the positions that belong to the messages from..to-1: from the first one up to the one after the last. Between two messages there are none that
// the input will ever have.
func (w *Work) span(from, to int) flow.Span {
	s := flow.Span{Lo: w.Lo, Hi: w.Hi}
	if from > 0 {
		s.Lo = w.Messages[from].Pos
	}
	if to < len(w.Messages) {
		s.Hi = w.Messages[to].Pos - 1
	}
	return s
}

// spans are the positions of messages with these indices, which ascend; nil for all of them.
func (w *Work) spans(index []int) (spans []flow.Span) {
	if len(index) == len(w.Messages) {
		return nil
	}
	eachRun(index, func(from, to int) { spans = append(spans, w.span(from, to)) })
	return spans
}

// eachRun visits the runs of consecutive numbers, as from..to-1.
func eachRun(index []int, visit func(from, to int)) {
	for k := 0; k < len(index); {
		end := k + 1
		for end < len(index) && index[end] == index[end-1]+1 {
			end++
		}
		visit(index[k], index[end-1]+1)
		k = end
	}
}

// indexOf is the index of the message at a position.
func (w *Work) indexOf(pos uint64) int {
	i, _ := slices.BinarySearchFunc(w.Messages, pos, func(m flow.Message, pos uint64) int { return cmp.Compare(m.Pos, pos) })
	return i
}

// pick returns the messages with these indices.
func (w *Work) pick(index []int) []flow.Message {
	if len(index) == len(w.Messages) {
		return w.Messages
	}
	in := make([]flow.Message, len(index))
	for k, i := range index {
		in[k] = w.Messages[i]
	}
	return in
}

// sortOut returns the indices of the messages that are to be processed, and those that the input could not give whole.
func (w *Work) sortOut() (index []int, broken []Later) {
	index = allOf(len(w.Messages))
	if len(w.Broken) == 0 {
		return index, nil
	}
	w.names()
	index = nil
	for i := range w.Messages {
		if failure := w.Broken[i]; failure != nil {
			broken = append(broken, Later{Message: w.Messages[i], Attempts: failure.Attempts, Outcome: brokenOutcome(failure), index: i})
		} else {
			index = append(index, i)
		}
	}
	return index, broken
}

// name is the id of the message at a position, of a lane with positions.
func (o *Origin) name(pos uint64) string { return o.IDPrefix + strconv.FormatUint(pos, 10) }

// view is b as text without a copy. b must not change from then on.
func view(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }

// numbers are 0, 1, 2, ...: most works need no others.
var numbers = func() []int {
	n := make([]int, 4096)
	for i := range n {
		n[i] = i
	}
	return n
}()

// allOf are the numbers below n. They must not be changed.
func allOf(n int) []int {
	if n <= len(numbers) {
		return numbers[:n:n]
	}
	all := make([]int, n)
	for i := range all {
		all[i] = i
	}
	return all
}
