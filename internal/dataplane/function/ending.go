package function

import (
	"errors"
	"fmt"
	"io"
	"regexp"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/levada-io/levada/internal/dataplane/deadletter"
	"github.com/levada-io/levada/internal/dataplane/function/wire"
)

// killing says why this program ended a process of user code. A signal that we sent says nothing of the function, so wherever the end of a process is
// reported, this goes before what the kernel says.
type killing struct {
	// label is the reason in metrics.
	label string
	why   string
}

// The labels of deaths that we cause. Others: exit, signal (the process ended by itself), start (it never became ready), isolated.
const (
	diedHang     = "hang"
	diedProtocol = "protocol"
	diedError    = "error"
	diedPanic    = "panic"
	diedStop     = "stop"
)

// note remembers why the process is about to be killed. The first reason counts.
func (i *instance) note(k killing) { i.killed.CompareAndSwap(nil, &k) }

// ending says how the process ended, and by whom.
func (i *instance) ending() string {
	if k := i.killed.Load(); k != nil {
		return "killed by levada: " + k.why
	}
	return describeExit(i.state)
}

// killingFor is the reason to kill a process whose call ended with err while messages were unanswered.
func killingFor(err error) killing {
	var status *wire.Status
	var protocol *protocolError
	switch {
	case errors.As(err, &protocol):
		return killing{diedProtocol, protocol.Error()}
	case errors.Is(err, io.EOF):
		return killing{diedProtocol, "it ended its stream with status OK while messages were unanswered"}
	case errors.As(err, &status) && status.Code != codes.Unavailable && status.Code != codes.Canceled:
		return killing{diedError, "its stream ended with " + status.Error()}
	case err == nil:
		return killing{diedProtocol, "its stream ended while messages were unanswered"}
	}
	return killing{diedProtocol, "its stream broke while messages were unanswered: " + err.Error()}
}

// reason is the reason of a dead letter for a label.
func (k killing) reason() deadletter.Reason {
	switch k.label {
	case diedHang:
		return deadletter.Hang
	case diedPanic:
		return deadletter.Panic
	case diedError:
		return deadletter.Error
	}
	return deadletter.Protocol
}

// A handler that panics ends the whole call by the contract. Numaflow's Go SDK ends it only when all other handlers have returned, and those of a map stream
// may wait for good: their results are not taken any more. What the SDK prints is then the only sign.
var panicLine = regexp.MustCompile(`panic inside .{0,60}handler`)

// panicGrace is how long a process may go on after it printed that a handler panicked. If it answers nothing meanwhile, it is killed.
const panicGrace = 300 * time.Millisecond

// sawLine looks at a line of standard error.
func (i *instance) sawLine(line []byte) {
	if len(line) > 0 && i.panicked.Load() == nil && panicLine.Match(line) {
		text := string(line[:min(len(line), 500)])
		if i.panicked.CompareAndSwap(nil, &text) {
			close(i.panicking)
		}
	}
}

// endPanicked kills a process of which a handler has panicked and that answers nothing since. It reports whether it did.
func (f *Function) endPanicked(w *worker) bool {
	var before uint64
	for _, pause := range []time.Duration{panicGrace / 6, panicGrace} { // what was on its way comes within the first
		before = w.Progress()
		t := time.NewTimer(pause)
		defer t.Stop()
		select {
		case <-t.C:
		case <-w.exited:
			return false
		case <-w.over:
			return false
		}
	}
	waiting := !w.Oldest().IsZero()
	if p, ok := w.caller.(*pipe); ok {
		waiting = waiting || p.unsettled()
	}
	if w.Progress() != before || !waiting {
		w.survived.Store(true) // it only printed such a line
		return false
	}
	why := fmt.Sprintf("a handler panicked and the call did not end within %v", panicGrace)
	f.cfg.Logger.Warn("function panicked without ending its call, process killed", "waited", panicGrace, "output", lastLine(*w.panicked.Load()))
	w.note(killing{diedPanic, why})
	w.end(0, killing{diedPanic, why})
	return true
}
