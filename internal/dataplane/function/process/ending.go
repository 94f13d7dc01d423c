package process

import (
	"errors"
	"fmt"
	"io"
	"regexp"
	"syscall"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/levada-io/levada/internal/dataplane/deadletter"
	"github.com/levada-io/levada/internal/dataplane/function/client"
	"github.com/levada-io/levada/internal/dataplane/function/wire"
)

// Kill says why this program ended a process of user code. A signal that we sent says nothing of the function, so wherever the end of a process is
// reported, this goes before what the kernel says.
type Kill struct {
	// Label is the reason in metrics.
	Label string
	Why   string
}

// The labels of deaths that we cause. Others: exit, signal (the process ended by itself), start (it never became ready), isolated.
const (
	LabelHang     = "hang"
	LabelProtocol = "protocol"
	LabelError    = "error"
	LabelPanic    = "panic"
	LabelStop     = "stop"
)

// note remembers why the process is about to be killed. The first reason counts.
func (i *Instance) note(k Kill) { i.killed.CompareAndSwap(nil, &k) }

// Ending says how the process ended, and by whom.
func (i *Instance) Ending() string {
	if k := i.killed.Load(); k != nil {
		return "killed by levada: " + k.Why
	}
	return describeExit(i.state)
}

// KillFor is the reason to kill a process whose call ended with err while messages were unanswered.
func KillFor(err error) Kill {
	var status *wire.Status
	var protocol *client.ProtocolError
	switch {
	case errors.As(err, &protocol):
		return Kill{LabelProtocol, protocol.Error()}
	case errors.Is(err, io.EOF):
		return Kill{LabelProtocol, "it ended its stream with status OK while messages were unanswered"}
	case errors.As(err, &status) && status.Code != codes.Unavailable && status.Code != codes.Canceled:
		return Kill{LabelError, "its stream ended with " + status.Error()}
	case err == nil:
		return Kill{LabelProtocol, "its stream ended while messages were unanswered"}
	}
	return Kill{LabelProtocol, "its stream broke while messages were unanswered: " + err.Error()}
}

// Panicking is closed when it has told of a panic.
func (i *Instance) Panicking() <-chan struct{} { return i.panicking }

// Label is how it ended, for metrics.
func (i *Instance) Label() string {
	if k := i.killed.Load(); k != nil {
		return k.Label
	}
	if s, ok := i.state.Sys().(syscall.WaitStatus); ok && s.Signaled() {
		return "signal"
	}
	return "exit"
}

// reason is the reason of a dead letter for a label.
func (k Kill) reason() deadletter.Reason {
	switch k.Label {
	case LabelHang:
		return deadletter.Hang
	case LabelPanic:
		return deadletter.Panic
	case LabelError:
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
func (i *Instance) sawLine(line []byte) {
	if len(line) > 0 && i.panicked.Load() == nil && panicLine.Match(line) {
		text := string(line[:min(len(line), 500)])
		if i.panicked.CompareAndSwap(nil, &text) {
			close(i.panicking)
		}
	}
}

// EndPanicked kills a process of which a handler has panicked and that answers nothing since. It reports whether it did.
func (i *Instance) EndPanicked(c client.Caller, over <-chan struct{}) bool {
	var before uint64
	for _, pause := range []time.Duration{panicGrace / 6, panicGrace} { // what was on its way comes within the first
		before = c.Progress()
		t := time.NewTimer(pause)
		defer t.Stop()
		select {
		case <-t.C:
		case <-i.exited:
			return false
		case <-over:
			return false
		}
	}
	waiting := !c.Oldest().IsZero() || client.Settling(c)
	if c.Progress() != before || !waiting {
		i.survived.Store(true) // it only printed such a line
		return false
	}
	why := fmt.Sprintf("a handler panicked and the call did not end within %v", panicGrace)
	i.cfg.Logger.Warn("function panicked without ending its call, process killed", "waited", panicGrace, "output", lastLine(*i.panicked.Load()))
	i.note(Kill{LabelPanic, why})
	i.End(0, Kill{LabelPanic, why})
	return true
}
