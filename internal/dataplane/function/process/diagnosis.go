package process

import (
	"errors"
	"fmt"
	"strings"
	"syscall"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/levada-io/levada/internal/dataplane/deadletter"
	"github.com/levada-io/levada/internal/dataplane/function/client"
	"github.com/levada-io/levada/internal/dataplane/function/wire"
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
	var status *wire.Status
	var protocol *client.ProtocolError
	switch {
	case killed != nil && killed.Label == LabelHang:
		failure.Reason, failure.Error = deadletter.Hang, fmt.Sprintf("no answer within %v; the process was killed for it", timeout)
		failure.Stack, failure.Output = i.tail.stacks(), ""
	case errors.As(err, &protocol):
		failure.Reason, failure.Error = deadletter.Protocol, protocol.Error()
	case errors.As(err, &status) && status.Code == codes.ResourceExhausted:
		failure.Reason, failure.Error = deadletter.Oversize, status.Error()
	case errors.As(err, &status) && strings.Contains(status.Message, "UDF_EXECUTION_ERROR"):
		failure.Reason, failure.Error, failure.Stack = deadletter.Error, status.Message, client.DebugInfo(status.Details)
		if strings.Contains(failure.Stack, "panic") || strings.Contains(status.Message, "panic") {
			failure.Reason = deadletter.Panic
		}
	case killed != nil && killed.Label == LabelPanic:
		failure.Reason, failure.Error, failure.Stack = deadletter.Panic, lastLine(*i.panicked.Load()), i.tail.String()
	case killed != nil:
		k := KillFor(err)
		failure.Reason, failure.Error = k.reason(), k.Why
	}
	return failure
}
