package grpclife

import (
	"context"
	"errors"
	"runtime"
	"runtime/debug"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// overdue is how long a handler may take to notice that its stream has ended before it is reported.
const overdue = 5 * time.Second

type guardKey struct{}

// Aging returns a channel that is closed when the stream of ctx should end: it has reached its age, or the server drains. A
// handler that watches it can end the stream at a good moment, with [End]; one that does not is ended when the grace is
// over. Without an [Age] or [Drain] interceptor the channel is nil, and never ready.
func Aging(ctx context.Context) <-chan struct{} {
	if g, ok := ctx.Value(guardKey{}).(*guard); ok {
		return g.aging
	}
	return nil
}

// End is what a handler returns to end its stream after [Aging]: UNAVAILABLE with the reason, which tells the client to open the
// stream again. Where the stream has no reason to end, it is nil; a handler that has sent everything returns nil too.
func End(ctx context.Context) error {
	g, ok := ctx.Value(guardKey{}).(*guard)
	if !ok {
		return nil
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case g.ended != nil:
		return g.ended
	case g.order != nil:
		return g.order.errorOf()
	}
	return nil
}

// An order to end a stream.
type order struct {
	reason, text string
	grace        time.Duration
	retry        func() time.Duration
	observer     Observer
}

func (o *order) errorOf() *EndError { return newEndError(o.reason, o.text, o.retry(), nil) }

// guard is a server's stream that can be ended from outside its handler, between two messages. There is one for each stream,
// however many interceptors of this package it passes.
type guard struct {
	grpc.ServerStream
	method string
	ctx    context.Context
	cancel context.CancelCauseFunc
	opened time.Time
	aging  chan struct{} // closed with the first order
	over   chan struct{} // closed when the stream has ended

	mu       sync.Mutex
	hint     metadata.MD // goes out with the first message, never alone: an error at once must stay a single frame, which clients may retry
	order    *order
	endAt    time.Time   // when the order's grace is over
	timer    *time.Timer // the next of: end of the grace, handler overdue
	sending  int         // calls of SendMsg that have not returned
	due      bool        // the grace is over, but a SendMsg was under way
	ended    *EndError   // once set, no message goes in or out
	refused  bool        // SendMsg or RecvMsg has returned it to the handler
	returned bool        // the handler has returned
	late     bool        // it was reported as overdue
}

func newGuard(ss grpc.ServerStream, method string) *guard {
	g := &guard{ServerStream: ss, method: method, opened: time.Now(), aging: make(chan struct{}), over: make(chan struct{})}
	ctx, cancel := context.WithCancelCause(ss.Context())
	g.ctx, g.cancel = context.WithValue(ctx, guardKey{}, g), cancel
	return g
}

// guarded runs a handler under a guard: a new one, or the one of an interceptor further out. join is called with it, and returns what
// to do once the handler has returned.
func guarded(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler, join func(*guard) (leave func())) error {
	if g, ok := ss.Context().Value(guardKey{}).(*guard); ok {
		defer join(g)()
		return handler(srv, ss)
	}
	g := newGuard(ss, info.FullMethod)
	leave := join(g)
	if !info.IsClientStream {
		defer leave()
		defer g.leave()
		return g.verdict(handler(srv, g))
	}
	return g.apart(srv, handler, leave)
}

// apart runs the handler in a goroutine of its own. A handler that waits in RecvMsg for a silent client sees no context: only
// the end of the RPC wakes it, and the RPC ends when the interceptor returns.
func (g *guard) apart(srv any, handler grpc.StreamHandler, leave func()) error {
	type outcome struct {
		err      error
		panicked *PanicError
		exited   bool // runtime.Goexit
	}
	done := make(chan outcome, 1)
	var (
		handover  sync.Mutex
		abandoned bool
	)
	go func() {
		defer leave()
		out := outcome{exited: true}
		defer func() {
			if out.exited {
				if v := recover(); v != nil {
					out.exited, out.panicked = false, asPanic(v)
				}
			}
			g.leave()
			handover.Lock()
			defer handover.Unlock()
			if !abandoned {
				done <- out
				return
			}
			if out.panicked != nil {
				// No caller waits for the handler any more, so no other code can recover this.
				r, ok := g.ctx.Value(recoveryKey{}).(*Recovery)
				if !ok || r.passes(out.panicked.Value) {
					panic(out.panicked)
				}
				r.report(g.method, out.panicked)
			}
		}()
		out.err = handler(srv, g)
		out.exited = false
	}()
	var out outcome
	select {
	case out = <-done:
	case <-g.over:
		handover.Lock()
		defer handover.Unlock()
		select {
		case out = <-done:
		default:
			abandoned = true
			return g.ended
		}
	}
	switch {
	case out.panicked != nil:
		panic(out.panicked)
	case out.exited:
		runtime.Goexit()
	}
	return g.verdict(out.err)
}

// A PanicError is a panic that was caught in one goroutine and goes on in another, with the stack of the first.
type PanicError struct {
	Value any
	Stack []byte
}

func asPanic(v any) *PanicError {
	if p, ok := v.(*PanicError); ok {
		return p
	}
	return &PanicError{v, debug.Stack()}
}

// Error holds the stack, since it is what the process prints if nobody recovers.
func (p *PanicError) Error() string { return panicText(p.Value) + "\n\n" + string(p.Stack) }

// Unwrap returns the value, if it was an error.
func (p *PanicError) Unwrap() error {
	err, _ := p.Value.(error)
	return err
}

// Context is cancelled when the stream ends, with an [EndError] as cause.
func (g *guard) Context() context.Context { return g.ctx }

// give orders the stream to end after a grace. Of several orders the one that is over first counts.
func (g *guard) give(o *order) {
	g.mu.Lock()
	at := time.Now().Add(o.grace)
	if g.returned || g.ended != nil || g.order != nil && !at.Before(g.endAt) {
		g.mu.Unlock()
		return
	}
	first := g.order == nil
	g.order, g.endAt = o, at
	if first {
		close(g.aging)
	} else {
		g.timer.Stop()
	}
	g.timer = time.AfterFunc(o.grace, g.expire)
	g.mu.Unlock()
	o.observer.see(Event{Kind: StreamAging, Method: g.method, Reason: o.reason, After: time.Since(g.opened)})
}

// expire ends the stream, now or when the message that is being sent has been.
func (g *guard) expire() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.returned || g.ended != nil || time.Now().Before(g.endAt) {
		return
	}
	if g.due = true; g.sending == 0 {
		g.end()
	}
	// The handler may be waiting for a client that does not read: that is worth a report too.
	g.timer = time.AfterFunc(overdue, g.reportOverdue)
}

// end must be called with the lock.
func (g *guard) end() {
	g.ended = g.order.errorOf()
	g.ServerStream.SetTrailer(metadata.Pairs(TrailerEnded, g.ended.Reason))
	g.cancel(g.ended)
	close(g.over)
	// Observers are not called with the lock, nor may the handler's SendMsg wait for one.
	observer, event := g.order.observer, Event{Kind: StreamEnded, Method: g.method, Reason: g.ended.Reason, After: time.Since(g.opened)}
	if observer != nil {
		time.AfterFunc(0, func() { observer(event) })
	}
}

func (g *guard) reportOverdue() {
	g.mu.Lock()
	o := g.order
	if g.returned {
		g.mu.Unlock()
		return
	}
	g.late = true
	g.mu.Unlock()
	o.observer.see(Event{Kind: HandlerOverdue, Method: g.method, Reason: o.reason, After: time.Since(g.opened)})
}

// leave is called when the handler has returned, in whatever way.
func (g *guard) leave() {
	g.mu.Lock()
	g.returned = true
	if g.timer != nil {
		g.timer.Stop()
	}
	o, late := g.order, g.late
	g.mu.Unlock()
	g.cancel(nil)
	if late {
		o.observer.see(Event{Kind: HandlerReturned, Method: g.method, Reason: o.reason, After: time.Since(g.opened)})
	}
}

// verdict is the status of a stream whose handler returned err. After the stream was ended, an OK would be read as "that was
// all", but handlers return nil when they see their context cancelled. A status of the handler's own stays.
func (g *guard) verdict(err error) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.returned = true
	end, asked := errors.AsType[*EndError](err)
	if g.ended == nil {
		if asked {
			g.ServerStream.SetTrailer(metadata.Pairs(TrailerEnded, end.Reason))
		}
		return err
	}
	if err == nil || asked || g.refused || errors.Is(err, context.Canceled) || status.Code(err) == codes.Canceled {
		return g.ended
	}
	return err
}

// SendMsg returns nil only for a message that goes out before the stream's end.
func (g *guard) SendMsg(m any) error {
	g.mu.Lock()
	if g.ended != nil {
		g.refused = true
		g.mu.Unlock()
		return g.ended
	}
	g.sending++
	hint := g.hint
	g.hint = nil
	g.mu.Unlock()
	defer g.sent()
	if hint != nil {
		_ = g.ServerStream.SetHeader(hint) // fails if the header has gone out already
	}
	return g.ServerStream.SendMsg(m)
}

func (g *guard) sent() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.sending--; g.sending == 0 && g.due && g.ended == nil {
		g.end()
	}
}

// RecvMsg returns an [EndError] once the stream has ended.
func (g *guard) RecvMsg(m any) error {
	if err := g.refusal(); err != nil {
		return err
	}
	err := g.ServerStream.RecvMsg(m)
	if err != nil {
		// It may have been woken by the end.
		if refusal := g.refusal(); refusal != nil {
			return refusal
		}
	}
	return err
}

// SetHeader, SendHeader and SetTrailer do nothing after the end, when the transport may not know the stream any more.
func (g *guard) SetHeader(md metadata.MD) error {
	if err := g.refusal(); err != nil {
		return err
	}
	return g.ServerStream.SetHeader(md)
}

func (g *guard) SendHeader(md metadata.MD) error {
	if err := g.refusal(); err != nil {
		return err
	}
	g.mu.Lock()
	hint := g.hint
	g.hint = nil
	g.mu.Unlock()
	return g.ServerStream.SendHeader(metadata.Join(md, hint))
}

func (g *guard) SetTrailer(md metadata.MD) {
	g.mu.Lock()
	over := g.ended != nil
	g.mu.Unlock()
	if !over {
		g.ServerStream.SetTrailer(md)
	}
}

func (g *guard) refusal() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.ended == nil {
		return nil
	}
	g.refused = true
	return g.ended
}
