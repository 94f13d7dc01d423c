package grpclife

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"
)

// RetryOptions has a usable zero value.
type RetryOptions struct {
	// Idempotent are methods that may run more than once for one call: "/package.Service/Method", "/package.Service/*" or "*". Default
	// none: then only what provably no handler has seen is tried again.
	Idempotent []string
	// Codes are those that an idempotent method is tried again after, beside UNAVAILABLE and what hides it. A RetryInfo
	// or a pushback counts as one of them.
	Codes []codes.Code
	// Attempts is how often a call is tried in all. Default 4.
	Attempts int
	// MinBackoff and MaxBackoff bound the pause: a random time up to MinBackoff, doubled at each failure, up to MaxBackoff. What a server asks
	// for comes on top of it, and a pushback instead of it. Default 100 ms and 5 s.
	MinBackoff, MaxBackoff time.Duration
	// BufferBytes is how much a stream may have sent, in bytes of messages, and still be opened again. Default 64 KiB.
	BufferBytes int
	// MaxAsked is the longest that a server may ask to wait. If it asks for more, the caller gets the error instead. Default 1 min.
	MaxAsked time.Duration
	// Budget is the number of tokens in the bucket of gRFC A6, of which each failure takes one and each success gives back
	// BudgetRatio. Nothing is tried again unless more than half are there. Default 10 and 0.1.
	Budget      int
	BudgetRatio float64
	// Observer receives CallRetried and RetryRefused.
	Observer Observer
}

func (o RetryOptions) withDefaults() RetryOptions {
	if o.Attempts == 0 {
		o.Attempts = 4
	}
	if o.MinBackoff == 0 {
		o.MinBackoff = 100 * time.Millisecond
	}
	if o.MaxBackoff == 0 {
		o.MaxBackoff = max(5*time.Second, o.MinBackoff)
	}
	if o.MaxAsked == 0 {
		o.MaxAsked = time.Minute
	}
	if o.BufferBytes == 0 {
		o.BufferBytes = 64 << 10
	}
	if o.Budget == 0 {
		o.Budget = 10
	}
	if o.BudgetRatio == 0 {
		o.BudgetRatio = 0.1
	}
	return o
}

// Retry tries calls again that failed for no fault of their own, and never so that something happens or arrives twice that must not:
//
//   - A call that provably no handler has seen is tried again, whatever it does: it was given to no connection, the server refused the stream on
//     the level of HTTP/2 before any answer, or said so in its status.
//   - A call of a method that is declared idempotent is tried again also if the transport failed, openly or hidden by a proxy, or the server
//     was UNAVAILABLE or asked for it.
//   - A stream is opened again only before its first response message was received and its header or context were asked for, and while all
//     that was sent is still held and can be sent again. As gRPC demands, a message must not be changed after SendMsg. What came of
//     the error of a failed SendMsg comes from RecvMsg.
//
// The server's word counts: grpc-retry-pushback-ms, and RetryInfo. No attempt is begun that the deadline leaves no time for.
//
// Use one Retry for each server, since its budget is shared by all calls through it, as the outermost of the interceptors that may
// repeat a call (those further in must pass its options on), and not together with a retryPolicy in the service config for the same methods: those attempts cannot be seen from here.
type Retry struct {
	options    RetryOptions
	idempotent methodSet
	budget     *budget
}

// NewRetry returns an error for options that make no sense.
func NewRetry(options RetryOptions) (*Retry, error) {
	options = options.withDefaults()
	methods, err := newMethodSet("RetryOptions.Idempotent", options.Idempotent)
	switch {
	case err != nil:
		return nil, err
	case options.Attempts < 1:
		return nil, fmt.Errorf("grpclife: RetryOptions.Attempts is %d: it counts the first attempt, so give 1 or more", options.Attempts)
	case options.MinBackoff < 0, options.MaxBackoff < options.MinBackoff:
		return nil, fmt.Errorf("grpclife: RetryOptions.MinBackoff is %v and MaxBackoff %v: give positive times, the second not the smaller", options.MinBackoff, options.MaxBackoff)
	case options.MaxAsked < 0:
		return nil, fmt.Errorf("grpclife: RetryOptions.MaxAsked is %v: it must not be negative", options.MaxAsked)
	case options.BufferBytes < 0:
		return nil, fmt.Errorf("grpclife: RetryOptions.BufferBytes is %d: it must not be negative", options.BufferBytes)
	case options.Budget < 0, options.BudgetRatio < 0:
		return nil, fmt.Errorf("grpclife: RetryOptions.Budget is %d and BudgetRatio %v: they must not be negative", options.Budget, options.BudgetRatio)
	case slices.Contains(options.Codes, codes.OK), slices.Contains(options.Codes, codes.Canceled):
		return nil, fmt.Errorf("grpclife: RetryOptions.Codes holds %v: a call that went well, or that was cancelled, is not tried again", options.Codes)
	}
	return &Retry{options, methods, newBudget(float64(options.Budget), options.BudgetRatio)}, nil
}

// again decides, and waits, before another attempt. attempt counts those that have failed.
func (r *Retry) again(ctx context.Context, method string, attempt int, c Class) bool {
	if c.Origin == OriginCancel || c.Origin == OriginDeadline || ctx.Err() != nil {
		return false
	}
	// OUT_OF_RANGE and the like are answers, not failures of the server: they neither use the budget up nor fill it.
	worth := c.Unprocessed || r.idempotent.has(method) && (c.Transient() || c.RetryAsked || slices.Contains(r.options.Codes, c.Code))
	if !c.Transient() && !worth && !c.RetryForbidden {
		return false
	}
	allowed := r.budget.failed()
	switch {
	case c.RetryForbidden, !worth, attempt >= r.options.Attempts, c.RetryAsked && c.RetryAfter > r.options.MaxAsked:
		return false
	case !allowed:
		r.options.Observer.see(Event{Kind: RetryRefused, Method: method, Attempt: attempt, Class: c})
		return false
	}
	pause := r.pause(attempt, c)
	if deadline, ok := ctx.Deadline(); ok && time.Until(deadline) <= pause {
		return false
	}
	r.options.Observer.see(Event{Kind: CallRetried, Method: method, After: pause, Attempt: attempt, Class: c})
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

func (r *Retry) pause(attempt int, c Class) time.Duration {
	if c.Pushback {
		return c.RetryAfter
	}
	limit := r.options.MaxBackoff
	if shift := min(attempt-1, 30); r.options.MinBackoff<<shift < limit && r.options.MinBackoff<<shift > 0 {
		limit = r.options.MinBackoff << shift
	}
	// "Full jitter": Brooker, Exponential Backoff And Jitter, 2015.
	pause := rand.N(limit + 1)
	if c.RetryAsked {
		pause += c.RetryAfter
	}
	return pause
}

// Unary is a [grpc.UnaryClientInterceptor].
func (r *Retry) Unary(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoker grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	for attempt := 1; ; attempt++ {
		seen := newEvidence() // a new one, so that nothing of an attempt is taken for the next one's
		err := invoker(ctx, method, req, reply, cc, seen.options(opts)...)
		if err == nil {
			r.budget.succeeded()
			return nil
		}
		if !r.again(ctx, method, attempt, ClassifyCall(err, seen.of(ctx))) {
			return err
		}
	}
}

// Stream is a [grpc.StreamClientInterceptor].
func (r *Retry) Stream(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, streamer grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	s := &retriedStream{retry: r, ctx: ctx, method: method}
	s.open = func() (grpc.ClientStream, *evidence, error) {
		seen := newEvidence()
		stream, err := streamer(ctx, desc, cc, method, seen.options(opts)...)
		return stream, seen, err
	}
	for {
		stream, seen, err := s.open()
		if err == nil {
			s.current, s.seen, s.attempt = stream, seen, s.attempt+1
			return s, nil
		}
		s.attempt++
		if !r.again(ctx, method, s.attempt, ClassifyCall(err, seen.of(ctx))) {
			return nil, err
		}
	}
}

// retriedStream holds what was sent until the stream is settled: from then on it is the underlying stream.
type retriedStream struct {
	retry  *Retry
	ctx    context.Context
	method string
	open   func() (grpc.ClientStream, *evidence, error)

	// mu is held while a stream is opened again, and all that was sent is sent again, so that nothing overtakes it.
	mu      sync.Mutex
	current grpc.ClientStream
	seen    *evidence
	attempt int // attempts so far, this one included
	settled bool
	counted bool // the budget knows the end
	held    []proto.Message
	bytes   int
	closed  bool // CloseSend was called
}

func (s *retriedStream) settle() grpc.ClientStream {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.settled, s.held = true, nil
	return s.current
}

func (s *retriedStream) Header() (md metadata.MD, err error) { return s.settle().Header() }
func (s *retriedStream) Context() context.Context            { return s.settle().Context() }

func (s *retriedStream) Trailer() metadata.MD {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.current.Trailer()
}

func (s *retriedStream) CloseSend() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	return s.current.CloseSend()
}

// hold keeps a message for another attempt, or settles the stream if it cannot. It returns the stream to send it on.
func (s *retriedStream) hold(m any) grpc.ClientStream {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.settled {
		return s.current
	}
	message, ok := m.(proto.Message)
	if ok {
		s.bytes += proto.Size(message)
	}
	if !ok || s.bytes > s.retry.options.BufferBytes || len(s.held) >= maxHeld {
		s.settled, s.held = true, nil
		return s.current
	}
	s.held = append(s.held, message)
	return s.current
}

// maxHeld bounds the number of messages held, since empty ones have no bytes.
const maxHeld = 1024

func (s *retriedStream) SendMsg(m any) error {
	stream := s.hold(m)
	err := stream.SendMsg(m)
	if err == nil {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if stream != s.current {
		return nil // opened again in the meantime, and this message with it
	}
	if err != io.EOF {
		s.settled, s.held = true, nil // the message itself is bad, and the stream with it
		return err
	}
	if !s.settled {
		return nil // The stream has ended; RecvMsg finds out why, and sends this again or tells.
	}
	return err
}

func (s *retriedStream) RecvMsg(m any) error {
	for {
		s.mu.Lock()
		stream, seen := s.current, s.seen
		s.mu.Unlock()
		err := stream.RecvMsg(m)
		if err == nil {
			s.end(true)
			return nil
		}
		if err == io.EOF {
			s.end(true)
			return err
		}
		if !s.reopen(ClassifyCall(err, seen.of(s.ctx))) {
			return err
		}
	}
}

// end settles the stream and counts its end once.
func (s *retriedStream) end(well bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.settled, s.held = true, nil
	if !s.counted && well {
		s.retry.budget.succeeded()
	}
	s.counted = true
}

// reopen makes the next attempt, if there may be one.
func (s *retriedStream) reopen(c Class) bool {
	for {
		s.mu.Lock()
		settled, attempt := s.settled, s.attempt
		s.mu.Unlock()
		if settled || !s.retry.again(s.ctx, s.method, attempt, c) {
			s.end(false)
			return false
		}
		again, failed := s.replay()
		if failed == nil {
			return again
		}
		c = *failed
	}
}

// replay opens the stream again and sends what was sent. It returns false if the stream was settled during the pause, and the class of the
// failure if it could not be opened.
func (s *retriedStream) replay() (again bool, failed *Class) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.settled {
		return false, nil
	}
	s.attempt++
	stream, seen, err := s.open()
	if err != nil {
		c := ClassifyCall(err, seen.of(s.ctx))
		return false, &c
	}
	s.current, s.seen = stream, seen
	for _, m := range s.held {
		if stream.SendMsg(m) != nil {
			return true, nil // RecvMsg finds out why
		}
	}
	if s.closed {
		_ = stream.CloseSend() // always nil, by its contract
	}
	return true, nil
}
