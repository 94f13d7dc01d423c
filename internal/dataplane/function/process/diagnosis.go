package process

import (
	"fmt"
	"syscall"
	"time"

	"github.com/levada-io/levada/internal/dataplane/deadletter"
	"github.com/levada-io/levada/internal/dataplane/function/client"
)

// Diagnose ends the process, whose call ended with err while messages were unanswered, and says what is known of why. timeout is that of a message.
func (i *Instance) Diagnose(err error, timeout time.Duration) *deadletter.Failure {
	i.End(200*time.Millisecond, KillFor(err))
	failure := &deadletter.Failure{Reason: deadletter.Crash, Error: "the process ended: " + i.Ending(), Attempts: 1, Output: i.tail.String()}
	killed := i.killed.Load()
	if killed == nil {
		failure.ExitCode = i.state.ExitCode()
		if s, ok := i.state.Sys().(syscall.WaitStatus); ok && s.Signaled() {
			failure.Signal = s.Signal().String()
		}
	}
	switch {
	case killed != nil && killed.Label == LabelHang:
		failure.Reason, failure.Error = deadletter.Hang, fmt.Sprintf("no answer within %v; the process was killed for it", timeout)
		failure.Stack, failure.Output = i.tail.stacks(), ""
	case client.Explain(err, failure):
	case killed != nil && killed.Label == LabelPanic:
		failure.Reason, failure.Error, failure.Stack = deadletter.Panic, lastLine(*i.panicked.Load()), i.tail.String()
	case killed != nil:
		k := KillFor(err)
		failure.Reason, failure.Error = k.reason(), k.Why
	}
	return failure
}
