package client

import (
	"errors"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/levada-io/levada/internal/dataplane/deadletter"
	"github.com/levada-io/levada/internal/dataplane/function/wire"
)

// Earliest of two times, of which zero is none.
func Earliest(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}

// DebugInfo finds the stack in an encoded google.rpc.Status: details (3) holds Any{type_url 1, value 2} of google.rpc.DebugInfo{stack_entries 1, detail 2}.
func DebugInfo(status []byte) (stack string) {
	_ = fields(status, func(f protowire.Number, v []byte, _ uint64) error {
		if f != 3 {
			return nil
		}
		var kind string
		var value []byte
		_ = fields(v, func(f protowire.Number, v []byte, _ uint64) error {
			switch f {
			case 1:
				kind = string(v)
			case 2:
				value = v
			}
			return nil
		})
		if !strings.HasSuffix(kind, "google.rpc.DebugInfo") {
			return nil
		}
		return fields(value, func(f protowire.Number, v []byte, _ uint64) error {
			if f == 1 || f == 2 {
				stack += string(v)
			}
			return nil
		})
	})
	return stack
}

// Unusable marks errors after which there is no use in trying again.
type Unusable struct{ Err error }

func (u Unusable) Error() string { return u.Err.Error() }

// Unwrap returns the error that it marks.
func (u Unusable) Unwrap() error { return u.Err }

// Explain completes the failure of a message whose call ended with err, where err says more than that the stream broke. It reports whether it does.
func Explain(err error, failure *deadletter.Failure) bool {
	var status *wire.Status
	var protocol *ProtocolError
	switch {
	case errors.As(err, &protocol):
		failure.Reason, failure.Error = deadletter.Protocol, protocol.Error()
	case errors.As(err, &status) && status.Code == codes.ResourceExhausted:
		failure.Reason, failure.Error = deadletter.Oversize, status.Error()
	case errors.As(err, &status) && strings.Contains(status.Message, "UDF_EXECUTION_ERROR"):
		failure.Reason, failure.Error, failure.Stack = deadletter.Error, status.Message, DebugInfo(status.Details)
		if strings.Contains(failure.Stack, "panic") || strings.Contains(status.Message, "panic") {
			failure.Reason = deadletter.Panic
		}
	default:
		return false
	}
	return true
}
