// Package forward is the loop of a vertex: read, apply, write, and only then acknowledge.
//
// What was read together is a Work (work.go), of a lane (lane.go) that keeps its order and knows how far all is done. It comes from an Input (input.go: a source, or the
// reader of a buffer) and goes through a run (loop.go). flight.go is its life there: stages, emissions, and what is done of it; later.go has the messages of it that are
// tried again. An Output is a Router to buffers (router.go) or a Delivery to sinks (deliver.go).
package forward

import (
	"cmp"
	"slices"
	"strconv"
	"unsafe"

	"github.com/levada-io/levada/internal/dataplane/deadletter"
	"github.com/levada-io/levada/internal/flow"
)

// Work is a piece of the input, of at most readBatchSize messages of one lane, covering its positions Lo to Hi. Its messages are done one by one.
type Work struct {
	Lane   string
	Lo, Hi uint64
	ByID   bool
	// Messages have positions. Those of a lane with positions may have no id: it is IDPrefix and the position.
	Messages []flow.Message
	IDPrefix string
	// Stride is how many positions in a row go to the same partition of the next buffer.
	Stride uint64
	// Short says that the input had no more at that moment.
	Short bool
	// Broken are messages that are put aside instead of being processed, by their index in Messages; nil if there is none.
	Broken map[int]*deadletter.Failure
	token  any
	// track is the lane's, which knows what may be promised; see lane.
	track *lane
	slot  *slot
	// begin is closed when the work before is queued for the first stage, and begun when this one is: a slow stage works through them in order.
	begin, begun chan struct{}
}

// names gives every message its id, for those who need it: functions in block mode, sinks, dead letters.
func (w *Work) names() {
	if len(w.Messages) == 0 || w.Messages[0].ID != "" {
		return
	}
	b := make([]byte, 0, len(w.Messages)*(len(w.IDPrefix)+10))
	for i := range w.Messages {
		at := len(b)
		b = append(b, w.IDPrefix...)
		b = strconv.AppendUint(b, w.Messages[i].Pos, 10)
		if cap(b) < len(w.IDPrefix)+20+len(b) { // before it would move: names given out share this memory
			w.Messages[i].ID = view(b[at:])
			b = make([]byte, 0, (len(w.Messages)-i)*(len(w.IDPrefix)+20))
			continue
		}
		w.Messages[i].ID = view(b[at:])
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

// name is the id of the message at a position, of a lane with positions.
func (w *Work) name(pos uint64) string { return w.IDPrefix + strconv.FormatUint(pos, 10) }

func view(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }
