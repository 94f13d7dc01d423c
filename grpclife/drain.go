package grpclife

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"google.golang.org/grpc"
)

// DrainOptions has a usable zero value.
type DrainOptions struct {
	// Period is how long it takes to end all streams, one after the other in even steps and in no order, so that their clients do not all
	// come back in the same instant. It must leave time for the rest of a shutdown before the process is killed. Default 20 s;
	// negative: all at once.
	Period time.Duration
	// Grace is how long a handler has, after [Aging], to end its stream by itself. It is part of Period. Default 2 s; negative: none.
	Grace time.Duration
	// RetryDelay is the delay that clients are asked to keep before they reconnect, with a jitter of half. Default 100 ms: a reconnect has to find out first
	// that this server is not to be used any more.
	RetryDelay time.Duration
	// RefuseUnary makes a drain refuse new unary calls too. By default they are served as long as they come: they are short, and who
	// sends them has not heard of the drain yet.
	RefuseUnary bool
	// Observer receives StreamAging, StreamEnded, CallRefused, HandlerOverdue and HandlerReturned.
	Observer Observer
}

func (o DrainOptions) withDefaults() DrainOptions {
	if o.Period == 0 {
		o.Period = 20 * time.Second
	}
	if o.Grace == 0 {
		o.Grace = 2 * time.Second
	}
	if o.RetryDelay == 0 {
		o.RetryDelay = 100 * time.Millisecond
	}
	o.Period, o.Grace = max(o.Period, 0), max(o.Grace, 0)
	return o
}

// Drain ends all streams of a server before it stops, as [Age] does, but with reason DRAINING, and refuses new ones with UNAVAILABLE, a
// RetryInfo and the metadata that says that they were not processed. The channel of [Aging] is closed when the stream's turn comes, not before.
//
// [Drain.Shutdown] does all that a server needs at SIGTERM. A Drain serves one drain: it cannot be undone.
type Drain struct {
	options DrainOptions
	order   order

	mu      sync.Mutex
	started bool
	streams map[*guard]*time.Timer // nil before the drain has begun
	calls   int                    // unary calls being served
	idle    chan struct{}          // closed when started and nothing is being served
}

// NewDrain returns an error for options that make no sense.
func NewDrain(options DrainOptions) (*Drain, error) {
	options = options.withDefaults()
	switch {
	case options.Grace > options.Period:
		return nil, fmt.Errorf("grpclife: DrainOptions.Grace is %v, which is longer than Period, %v, of which it is a part", options.Grace, options.Period)
	case options.RetryDelay < 0:
		return nil, fmt.Errorf("grpclife: DrainOptions.RetryDelay is %v: it must not be negative", options.RetryDelay)
	}
	d := &Drain{options: options, streams: map[*guard]*time.Timer{}, idle: make(chan struct{})}
	d.order = order{reason: ReasonDraining, text: "the server is about to stop, open the stream again", grace: options.Grace,
		retry: d.retryDelay, observer: options.Observer}
	return d, nil
}

func (d *Drain) retryDelay() time.Duration { return spread(d.options.RetryDelay, 0.5) }

// Start begins the drain and returns at once. Further calls do nothing.
func (d *Drain) Start() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.started {
		return
	}
	d.started = true
	d.checkIdle()
	step := float64(d.options.Period-d.options.Grace) / float64(max(len(d.streams), 1))
	turns := rand.Perm(len(d.streams))
	for g := range d.streams {
		// Anywhere within its step, so that replicas that drain together do not keep time.
		turn := time.Duration((float64(turns[0]) + rand.Float64()) * step)
		turns = turns[1:]
		d.streams[g] = time.AfterFunc(turn, func() { g.give(&d.order) })
	}
}

// Open returns how many streams and unary calls are being served. One whose handler goes on after its end counts until it returns.
func (d *Drain) Open() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.streams) + d.calls
}

// Wait waits until the drain has begun and all handlers have returned, or returns an error that says how many have not when ctx ends.
// The statuses of the last ones may not be on the wire yet: call [grpc.Server.GracefulStop] next.
func (d *Drain) Wait(ctx context.Context) error {
	select {
	case <-d.idle:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("%d handlers have not returned: %w", d.Open(), context.Cause(ctx))
	}
}

// Shutdown drains and stops a server: clients get GOAWAY at once, streams end one after the
// other, and when ctx ends all that is left is cut, of which the error tells. Give ctx more time than DrainOptions.Period.
func (d *Drain) Shutdown(ctx context.Context, server *grpc.Server) error {
	d.Start()
	stop := context.AfterFunc(ctx, server.Stop)
	defer stop()
	server.GracefulStop()
	return d.Wait(ctx)
}

// Stream is a [grpc.StreamServerInterceptor].
func (d *Drain) Stream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	d.mu.Lock()
	if d.started {
		d.mu.Unlock()
		return d.refuse(info.FullMethod)
	}
	d.calls++ // until the stream is known
	d.mu.Unlock()
	return guarded(srv, ss, info, handler, func(g *guard) func() {
		d.enter(g)
		return func() { d.leave(g) }
	})
}

func (d *Drain) enter(g *guard) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.calls--
	d.streams[g] = nil
	if d.started { // in between
		d.streams[g] = time.AfterFunc(0, func() { g.give(&d.order) })
	}
}

func (d *Drain) leave(g *guard) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if timer := d.streams[g]; timer != nil {
		timer.Stop()
	}
	delete(d.streams, g)
	d.checkIdle()
}

// checkIdle must be called with the lock.
func (d *Drain) checkIdle() {
	if !d.started || len(d.streams)+d.calls > 0 {
		return
	}
	select {
	case <-d.idle: // with unary calls that still come it may be idle more than once
	default:
		close(d.idle)
	}
}

// Unary is a [grpc.UnaryServerInterceptor]: Wait then waits for unary calls too.
func (d *Drain) Unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	d.mu.Lock()
	if d.started && d.options.RefuseUnary {
		d.mu.Unlock()
		return nil, d.refuse(info.FullMethod)
	}
	d.calls++
	d.mu.Unlock()
	defer func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.calls--
		d.checkIdle()
	}()
	return handler(ctx, req)
}

func (d *Drain) refuse(method string) error {
	d.options.Observer.see(Event{Kind: CallRefused, Method: method, Reason: ReasonDraining})
	return newEndError(ReasonDraining, "the server is about to stop, go elsewhere", d.retryDelay(), map[string]string{MetadataUnprocessed: "true"})
}
