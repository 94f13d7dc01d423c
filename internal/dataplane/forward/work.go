// Package forward is the loop of a vertex: read, apply, write, and only then acknowledge.
package forward

import (
	"strconv"
	"sync"
	"unsafe"

	"github.com/levada-io/levada/internal/dataplane/deadletter"
	"github.com/levada-io/levada/internal/dataplane/function"
	"github.com/levada-io/levada/internal/flow"
)

// Work is what the loop processes at a time: messages of one lane, covering its positions Lo to Hi. All of it is acknowledged when all of it is done.
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

// sortOut separates the messages that are to be processed from those that the input could not give whole.
func (w *Work) sortOut() (in []flow.Message, broken []Later) {
	if len(w.Broken) == 0 {
		return w.Messages, nil
	}
	w.names() // by the first message, which may be left out
	for i := range w.Messages {
		if failure := w.Broken[i]; failure != nil {
			broken = append(broken, Later{Message: w.Messages[i], Attempts: failure.Attempts, Outcome: function.Outcome{Verdict: function.Broken, Failure: failure}})
		} else {
			in = append(in, w.Messages[i])
		}
	}
	return in, broken
}

// name is the id of the message at a position, of a lane with positions.
func (w *Work) name(pos uint64) string { return w.IDPrefix + strconv.FormatUint(pos, 10) }

func view(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }

// lane keeps the works of one lane in their order: how far all is done is what the blocks of the lane may promise as their floor.
type lane struct {
	mu    sync.Mutex
	open  []*slot // in order of position
	floor uint64
	begun bool
	last  chan struct{} // the turn of the work that came last; closed when it has written
}

type slot struct {
	lo, hi uint64
	work   *Work
	done   bool
}

// enter adds the next work. It returns what to wait for before writing, and what to close afterwards.
func (l *lane) enter(w *Work) (before <-chan struct{}, mine chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.begun {
		// What came before was done by an earlier process, or this would not be where the input resumes.
		l.begun, l.floor = true, w.Lo-1
		l.last = make(chan struct{})
		close(l.last)
	}
	w.slot = &slot{lo: w.Lo, hi: w.Hi, work: w}
	l.open = append(l.open, w.slot)
	before, mine = l.last, make(chan struct{})
	l.last = mine
	return before, mine
}

// Floor is the position up to which all is done.
func (l *lane) Floor() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.floor
}

// leave marks a work as done, and returns the works that are now done together with everything before them, in order. settle is called with
// them while no other caller can be, so that it sees all works in order.
func (l *lane) leave(w *Work, settle func([]*Work)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	w.slot.done = true
	n := 0
	var done []*Work
	for n < len(l.open) && l.open[n].done {
		l.floor = l.open[n].hi
		done = append(done, l.open[n].work)
		n++
	}
	l.open = append(l.open[:0], l.open[n:]...)
	if len(done) > 0 {
		settle(done)
	}
}
