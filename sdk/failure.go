package sdk

import (
	"errors"
	"fmt"
	"runtime/debug"
	"strings"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// failure is what went wrong in user code.
type failure struct {
	text  string
	stack string // empty unless it panicked
}

func (f *failure) Error() string { return f.text }

// userError is a failure for an error that user code returned. An empty text would read as success.
func userError(err error) *failure {
	text := strings.ToValidUTF8(err.Error(), "�")
	if text == "" {
		text = fmt.Sprintf("error of type %T without words", err)
	}
	return &failure{text: text}
}

// recovered turns a panic of user code into a failure. Defer it directly around the call.
func recovered(f **failure) {
	if r := recover(); r != nil {
		*f = panicked(r)
	}
}

// panicked runs user code (the panic value's own method) again, so it may panic itself; fmt contains that.
func panicked(value any) *failure {
	text := strings.ToValidUTF8(fmt.Sprintf("panic: %v", value), "�")
	return &failure{text: text, stack: strings.ToValidUTF8(string(debug.Stack()), "�")}
}

// status is how the Numaflow contract reports a failure: the platform reads the container out of the message.
func (f *failure) status(container string) error {
	failed := status.Newf(codes.Internal, "UDF_EXECUTION_ERROR(%s): %s", container, f.text)
	detail := f.stack
	if detail == "" {
		detail = f.text
	}
	if detailed, err := failed.WithDetails(&errdetails.DebugInfo{Detail: detail}); err == nil {
		failed = detailed
	}
	return failed.Err()
}

// errHandshake is what a client sees whose first message is not a handshake.
var errHandshake = status.Error(codes.InvalidArgument, "invalid handshake")

// errMalformed is what a client sees whose message cannot be decoded.
func errMalformed(err error) error {
	return status.Errorf(codes.InvalidArgument, "malformed message: %v", err)
}

var errOutputUTF8 = errors.New("keys, tags and metadata must be UTF-8")
