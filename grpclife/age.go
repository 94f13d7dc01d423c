package grpclife

import (
	"fmt"
	"strconv"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
)

// AgeOptions has a usable zero value.
type AgeOptions struct {
	// Max is how long a stream lives, plus or minus Jitter, before it is asked to end. Default 30 min: long enough to cost nothing,
	// short enough for a new server to get its share within the hour.
	Max time.Duration
	// Jitter is the share of Max by which lives differ, so that streams that were opened together do not end together. Default 0.1;
	// negative: none.
	Jitter float64
	// Grace is how long a handler has to end the stream by itself after [Aging]. Default 10 s; negative: none.
	Grace time.Duration
	// RetryDelay is the delay before a retry that clients are asked to keep, with a jitter of half. Default 0: at once.
	RetryDelay time.Duration
	// Methods are those whose streams have an age: "/package.Service/Method", "/package.Service/*" or "*". Default all.
	Methods []string
	// Observer receives StreamAging, StreamEnded, HandlerOverdue and HandlerReturned.
	Observer Observer
}

func (o AgeOptions) withDefaults() AgeOptions {
	if o.Max == 0 {
		o.Max = 30 * time.Minute
	}
	if o.Jitter == 0 {
		o.Jitter = 0.1
	}
	if o.Grace == 0 {
		o.Grace = 10 * time.Second
	}
	o.Jitter, o.Grace = max(o.Jitter, 0), max(o.Grace, 0)
	return o
}

// Age ends streams that have lived long enough. Unlike grpc-go's MaxConnectionAge it is fair to young streams on an old connection,
// ends them between two messages, and with a status that no proxy can mistake for an accident.
//
// When a stream reaches its age, [Aging] tells its handler. When the grace is over and the handler has not returned, the stream is
// ended: its context is cancelled with an [EndError] as cause, SendMsg and RecvMsg return it, and the client gets UNAVAILABLE with
// reason STREAM_AGE, also if the handler then returns nil; a status of the handler's own stays. A message whose SendMsg returned
// nil was sent before the end.
//
// Where the client streams, the handler runs in a goroutine of its own, and the RPC ends although the handler may go on: nothing else could wake
// it from RecvMsg. Where it does not, the RPC ends when the handler returns: at once if it watches its context or sends; a handler that
// does neither, or waits in SendMsg for a client that does not read, is reported to the Observer and cannot be stopped.
type Age struct {
	options AgeOptions
	methods methodSet
	order   order
}

// NewAge returns an error for options that make no sense.
func NewAge(options AgeOptions) (*Age, error) {
	options = options.withDefaults()
	methods, err := newMethodSet("AgeOptions.Methods", options.Methods)
	switch {
	case err != nil:
		return nil, err
	case options.Max < 0:
		return nil, fmt.Errorf("grpclife: AgeOptions.Max is %v, which is before the stream begins: leave the interceptor out for streams without a maximum age", options.Max)
	case options.Jitter >= 1:
		return nil, fmt.Errorf("grpclife: AgeOptions.Jitter is %v, but is a share of Max: less than 1, as in 0.1", options.Jitter)
	case options.RetryDelay < 0:
		return nil, fmt.Errorf("grpclife: AgeOptions.RetryDelay is %v: it must not be negative", options.RetryDelay)
	}
	return &Age{options, methods, order{
		reason: ReasonStreamAge, text: "the stream has reached its age, open it again", grace: options.Grace,
		retry: func() time.Duration { return spread(options.RetryDelay, 0.5) }, observer: options.Observer,
	}}, nil
}

// Stream is a [grpc.StreamServerInterceptor]. Unary calls have no age.
func (a *Age) Stream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	if len(a.methods) > 0 && !a.methods.has(info.FullMethod) {
		return handler(srv, ss)
	}
	return guarded(srv, ss, info, handler, func(g *guard) func() {
		life := spread(a.options.Max, a.options.Jitter)
		g.mu.Lock()
		g.hint = metadata.Pairs(HeaderAge, strconv.FormatInt(life.Milliseconds(), 10))
		g.mu.Unlock()
		timer := time.AfterFunc(life, func() { g.give(&a.order) })
		return func() { timer.Stop() }
	})
}
