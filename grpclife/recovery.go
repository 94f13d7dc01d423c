package grpclife

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
)

type recoveryKey struct{}

// RecoveryOptions has a usable zero value, but then only the client sees a panic.
type RecoveryOptions struct {
	// OnPanic is called for each panic, with the stack of the goroutine that panicked. The client never sees either.
	OnPanic func(method string, value any, stack []byte)
	// Pass says which panics are not to be caught: they go on, and end the process unless an interceptor further out recovers. Default
	// http.ErrAbortHandler, which is a request to end silently.
	Pass func(value any) bool
	// Observer receives HandlerPanicked.
	Observer Observer
}

// Recovery makes INTERNAL with reason PANIC of a handler's panic. Make it the innermost interceptor.
//
// It catches panics of the handler's own goroutine. Those of goroutines that the handler has started end the process, and so do Go's
// fatal errors, which no program can recover from: concurrent map writes, a stack overflow, out of memory, a deadlock.
type Recovery struct{ options RecoveryOptions }

// NewRecovery returns a Recovery.
func NewRecovery(options RecoveryOptions) *Recovery {
	if options.Pass == nil {
		options.Pass = func(value any) bool {
			err, ok := value.(error)
			return ok && errors.Is(err, http.ErrAbortHandler)
		}
	}
	return &Recovery{options}
}

// Unary is a [grpc.UnaryServerInterceptor].
func (r *Recovery) Unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (resp any, err error) {
	defer func() {
		// A runtime.Goexit is no panic and goes on.
		if v := recover(); v != nil {
			resp, err = nil, r.caught(info.FullMethod, v)
		}
	}()
	return handler(ctx, req)
}

// Stream is a [grpc.StreamServerInterceptor].
func (r *Recovery) Stream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) (err error) {
	defer func() {
		if v := recover(); v != nil {
			err = r.caught(info.FullMethod, v)
		}
	}()
	return handler(srv, &streamWithContext{ss, context.WithValue(ss.Context(), recoveryKey{}, r)})
}

type streamWithContext struct {
	grpc.ServerStream
	ctx context.Context
}

func (s *streamWithContext) Context() context.Context { return s.ctx }

func (r *Recovery) caught(method string, value any) error {
	p := asPanic(value)
	if r.passes(p.Value) {
		panic(value)
	}
	r.report(method, p)
	return newStatus(codes.Internal, ReasonPanic, "the handler panicked", -1, nil).Err()
}

func (r *Recovery) passes(value any) bool { return r.options.Pass(value) }

func (r *Recovery) report(method string, p *PanicError) {
	if r.options.OnPanic != nil {
		r.options.OnPanic(method, p.Value, p.Stack)
	}
	r.options.Observer.see(Event{Kind: HandlerPanicked, Method: method, Value: p.Value, Stack: p.Stack})
}

func panicText(value any) string { return fmt.Sprintf("panic: %v", value) }
