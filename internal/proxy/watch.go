package proxy

import (
	"crypto/tls"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
)

// Call is a call that has begun. Its strings are the client's: code that shows them must escape them.
type Call struct {
	// ID is the call's in this process: the number of its connection and that of its stream.
	ID      ID
	Started time.Time
	// Client is the address that it comes from, and TLSPeer the subject of its certificate, if it has shown one.
	Client, TLSPeer string
	Authority, Path string
	UserAgent       string
	// Route that matched; "none" if none did.
	Route string
	GRPC  bool
	// Trace is the id of its trace, if this proxy traces the call.
	Trace string
}

// Ended is a call that has ended.
type Ended struct {
	Call
	Took time.Duration
	// Backend that the call was for, and the endpoint that was tried last; empty if the call was refused before one was chosen, or there was none.
	Backend, Endpoint string
	// Code that the client got; that of a call which is not gRPC says little.
	Code codes.Code
	// Reason says who ended the call, and why: BACKEND, CLIENT_CANCELLED, or one of the proxy's reasons.
	Reason string
	// Reset: the backend ended the call with RST_STREAM, which was passed on.
	Reset                       bool
	Requests, Responses         int   // messages
	RequestBytes, ResponseBytes int64 // of DATA, as they came
	// Attempts of the route's retry policy, from 1; TransparentRetries are those after an endpoint provably had not processed the call.
	Attempts, TransparentRetries int
}

// Watcher receives calls. Its functions are called with the lock of a connection held, by many goroutines at once: they must not block, must not call
// the proxy, and must not keep the pointer. Each may be nil.
type Watcher struct {
	Started func(*Call)
	Ended   func(*Ended)
}

// Tracer makes spans of calls. The rules for Watcher hold for its functions.
type Tracer interface {
	// Sample decides whether a call is traced. Parent is its traceparent, empty without one.
	Sample(parent string) bool
	// Start begins the span of a call for which Sample has said yes. State is its tracestate.
	Start(c *Call, parent, state string) Span
}

// Span is a call that is traced.
type Span interface {
	// Traceparent names the span; the backend gets it in place of the client's.
	Traceparent() string
	// TraceID is the trace's id in hexadecimal digits.
	TraceID() string
	// End is called once.
	End(*Ended)
}

// Watch tells w of all calls that begin and end from now on, until stop is called. When stop returns, calls to w may still be going on.
func (p *Proxy) Watch(w Watcher) (stop func()) {
	one := &w
	p.changeWatchers(func(all []*Watcher) []*Watcher { return append(all, one) })
	return sync.OnceFunc(func() {
		p.changeWatchers(func(all []*Watcher) (rest []*Watcher) {
			for _, other := range all {
				if other != one {
					rest = append(rest, other)
				}
			}
			return rest
		})
	})
}

// changeWatchers publishes a new list; nil when there are none, so that calls without watchers cost one load.
func (p *Proxy) changeWatchers(change func([]*Watcher) []*Watcher) {
	p.mu.Lock()
	defer p.mu.Unlock()
	var all []*Watcher
	if now := p.watchers.Load(); now != nil {
		all = append(all, *now...)
	}
	if all = change(all); len(all) == 0 {
		p.watchers.Store(nil)
		return
	}
	p.watchers.Store(&all)
}

// began counts and tells of a call. The lock of its front is held.
func (p *Proxy) began(s *stream) {
	s.countBegun()
	p.opened()
	tracer, watchers := p.options.Tracer, p.watchers.Load()
	parent := ""
	if tracer != nil {
		if parent, _ = s.request.Get("traceparent"); !tracer.Sample(parent) {
			tracer = nil
		}
	}
	if tracer == nil && watchers == nil {
		return
	}
	c := s.describe(time.Duration(p.wheel.Now() - s.started))
	if tracer != nil {
		state, _ := s.request.Get("tracestate")
		s.span = tracer.Start(&c, parent, state)
		c.Trace = s.span.TraceID()
	}
	if watchers != nil {
		for _, w := range *watchers {
			if w.Started != nil {
				w.Started(&c)
			}
		}
	}
}

// ended counts and tells of a call. The lock of its front is held.
func (p *Proxy) ended(s *stream) {
	took := time.Duration(p.wheel.Now() - s.started)
	s.countEnded(took)
	p.calls.Add(-1)
	if s.reason == endedByBackend || s.reason == clientCancelled {
		s.call.method.saw(s.inMessages.count, s.outMessages.count, took)
	}
	watchers := p.watchers.Load()
	if watchers == nil && s.span == nil {
		return
	}
	e := Ended{
		Call: s.describe(took), Took: took, Code: s.code, Reason: s.reason, Reset: s.resets && s.reason == endedByBackend,
		Requests: int(s.inMessages.count), Responses: int(s.outMessages.count), RequestBytes: s.inBytes, ResponseBytes: s.outBytes, Attempts: int(s.attempts) + 1, TransparentRetries: int(s.transparentRetries),
	}
	if s.cluster != nil {
		e.Backend = s.cluster.name
	}
	if s.avoid != nil {
		e.Endpoint = s.avoid.Address
	}
	if s.span != nil {
		e.Trace = s.span.TraceID()
		s.span.End(&e)
	}
	if watchers != nil {
		for _, w := range *watchers {
			if w.Ended != nil {
				w.Ended(&e)
			}
		}
	}
}

// describe is the call, whose time follows from its age, so that it is the same at its begin and its end.
func (s *stream) describe(age time.Duration) Call {
	who := s.front.who()
	agent, _ := s.request.Get("user-agent")
	return Call{
		ID: ID{s.front.number, s.id}, Started: time.Now().Add(-age), Client: who.address, TLSPeer: who.certificate, Authority: s.request.Request().Authority, Path: s.call.path,
		UserAgent: agent, Route: s.call.route.name, GRPC: s.grpc,
	}
}

// client is who a front belongs to, as text.
type clientIdentity struct{ address, certificate string }

// who is made when somebody wants to know it first. The front's lock is held.
func (f *front) who() *clientIdentity {
	if f.client == nil {
		f.client = &clientIdentity{address: f.nc.RemoteAddr().String()}
		if t, ok := f.nc.(*tls.Conn); ok {
			if chain := t.ConnectionState().PeerCertificates; len(chain) > 0 {
				f.client.certificate = chain[0].Subject.String()
			}
		}
	}
	return f.client
}
