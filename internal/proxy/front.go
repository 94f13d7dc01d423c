package proxy

import (
	"fmt"
	"net/http"
	"slices"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/levada-io/levada/internal/h2/frame"
	"github.com/levada-io/levada/internal/h2/header"
	"github.com/levada-io/levada/internal/proxy/wheel"
)

const (
	largeHeader = 8 << 10 // of a stream that was opened for nothing, for which it costs one more
	keptCalls   = 256     // whose routes a front remembers
	keptFree    = 32      // streams whose memory waits for the next ones
)

// front is a connection of a client. conn.mu, its lock, guards all of its streams with both of their sides.
type front struct {
	conn

	// Set before the goroutines start.
	listener     *terms
	forwarded    *forwarding // of the listener, for routes that do not say it
	origin       origin
	accepted     int64 // when it came
	stallTimeout time.Duration
	number       uint64 // of the connection, counted from 1

	retired bool // its listener was taken from the configuration; guarded by Proxy.mu

	// Guarded by mu.
	watch  wheel.Timer
	pinged int64           // when the PING was sent that is not answered; 0: none
	client *clientIdentity // nil until the first log line, trace or view needs it
	// Invariant: streams holds the open calls by their number, all at most last and odd. A number is in at most one of streams and forgotten.
	streams map[uint32]*stream
	last    uint32 // the highest stream that was opened; it never falls
	// blocked are the streams with DATA for which there is no room in the connection, in the order of their turns. Invariant: a stream is in it once, exactly while its outQueued is set; one that ends
	// is taken out, so blocked is no longer than streams.
	blocked []*stream
	serving *stream   // whose turn it is of blocked
	free    []*stream // memory of calls that have ended, for the next ones
	grown   int       // sum over streams of inSize-inFirst and outSize-outFirst. Invariant: at most grownLimit
	held    int       // sum of the streams' held
	// goAwaySent: streams above last are ignored from now on, since the client opens them elsewhere.
	goAwaySent bool
	limit      uint32 // of streams; 0 once there shall be no new ones
	allowed    int32  // the window of a new stream, as far as the client has acknowledged it
	full       bool   // the warning about maxStreams was logged
	warned     bool   // the warning about the abuse budget was logged
	forgotten  forgotten

	// The reader's.
	calls   map[*header.Set]*call // of callsOf: emptied when another configuration is in force
	callsOf *state
	pending []pendingDispatch // calls of the frames that are being read; empty whenever the reader waits
}

// forgotten remembers streams that we have reset, whose frames may still come: bytes, as many as we had allowed.
type forgotten struct {
	left  map[uint32]int
	order []uint32 // a ring
	next  int
}

const keptForgotten = 1024

func (r *forgotten) add(id uint32, window int) {
	if r.left == nil {
		r.left = map[uint32]int{}
	}
	if len(r.order) < keptForgotten {
		r.order = append(r.order, id)
	} else {
		// The oldest is forgotten. Its frames then cost of the budget, and do not end the connection by themselves.
		delete(r.left, r.order[r.next])
		r.order[r.next] = id
		r.next = (r.next + 1) % keptForgotten
	}
	r.left[id] = window
}

func (r *forgotten) has(id uint32) bool {
	_, ok := r.left[id]
	return ok
}

// late takes bytes that came for a stream, and reports whether it may have sent them before it knew of its end.
func (r *forgotten) late(id uint32, n int) bool {
	left, ok := r.left[id]
	if ok {
		left -= n
		r.left[id] = left
	}
	return ok && left >= 0
}

// queue makes a stream wait for room on the connection.
func (f *front) queue(s *stream) {
	if !s.outQueued {
		s.outQueued = true
		f.blocked = append(f.blocked, s)
	}
}

func (f *front) moreRoom(w *wakeups) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for n := len(f.blocked); n > 0 && len(f.blocked) > 0 && f.window > 0 && f.room() > 0; n-- {
		s := f.blocked[0]
		f.blocked = f.blocked[1:]
		if len(f.blocked) == 0 {
			f.blocked = nil
		}
		if s.outQueued = false; s.open {
			f.serving = s
			s.pushOut(w)
			f.serving = nil
		}
	}
}

func (f *front) settled(more bool) error {
	if !more {
		return nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, s := range f.streams {
		// A window above 2^31-1 is an error of the connection: RFC 9113 section 6.9.2. frontWindow is relative to what the peer grants every stream, so it stays as it is.
		if f.peer.window+s.frontWindow > frame.MaxWindow {
			return frame.Error{Code: frame.FlowControlError, Reason: "SETTINGS_INITIAL_WINDOW_SIZE makes a window larger than 2^31-1"}
		}
		if s.out.size > 0 {
			s.pushOut(&f.woken)
		}
	}
	return nil
}

func (f *front) block(id uint32, set *header.Set, end bool) error {
	// Streams of a client are odd: RFC 9113 section 5.1.1.
	if id%2 == 0 {
		return frame.Error{Code: frame.ProtocolError, Reason: "a stream with an even number"}
	}
	w := &f.woken
	f.mu.Lock()
	defer f.mu.Unlock()
	if s := f.streams[id]; s != nil {
		return f.trailers(s, set, end, w)
	}
	if id <= f.last {
		if f.forgotten.has(id) {
			return nil
		}
		return frame.Error{Code: frame.StreamClosed, Reason: "HEADERS on a closed stream"}
	}
	// Before the checks: a stream that is refused is closed, too, and no lower number may be opened after it (RFC 9113 section 5.1.1).
	f.last = id
	if f.closing || f.err != nil {
		return nil
	}
	if uint32(len(f.streams)) >= f.limit || len(f.out)-f.blocks > 2*maxOut { // it opens streams and does not read how they end
		f.refuse(id, frame.RefusedStream, end)
		f.proxy.stats.refused.Add(1)
		return f.spend(1, "streams above the limit")
	}
	req := set.Request()
	if !set.TooLarge && req.Err != nil || end && req.Length > 0 {
		f.refuse(id, frame.ProtocolError, end)
		return f.spend(1, "malformed requests")
	}
	if uint32(len(f.streams)+1) == f.limit {
		f.atLimit()
	}
	s := f.take()
	s.id, s.request = id, set
	s.call = f.callOf(set)
	f.streams[id] = s
	s.open = true
	s.inEnd = end
	s.begin(f.now)
	f.proxy.began(s)
	if e := f.refusal(s, set, req); e != nil {
		s.end(e, w)
		return nil
	}
	if f.budget.exceeded(f.now) {
		s.end(f.refusedForAbuse(), w)
		f.budget.earned.Add(-1) // its answer is not what the budget is filled for, and a client that comes again and again must not lose its connection by it
		return nil
	}
	if f.proxy.short(f, set) {
		s.end(f.refusedForMemory(), w)
		return nil
	}
	f.account(s, w)
	f.pending = append(f.pending, pendingDispatch{ref{s, id}, large(set)})
	return nil
}

// large reports whether a header is so large that it counts as memory, and as work that others shall not wait for.
func large(set *header.Set) bool { return set.Size > uncounted }

// pendingDispatch is a call that came with what is being read.
type pendingDispatch struct {
	ref
	large bool
}

// batch places the calls that came. One that was reset again by its client has gone nowhere.
func (f *front) batch(w *wakeups) {
	if len(f.pending) == 0 {
		return
	}
	if slices.ContainsFunc(f.pending, func(u pendingDispatch) bool { return u.large }) {
		f.proxy.heavy <- struct{}{}
		defer func() { <-f.proxy.heavy }()
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for i, u := range f.pending {
		// refs, since one of the frames that were read with it may have ended the call, and given its memory to another.
		if u.current() && !u.s.outEnd {
			u.s.dispatch(w)
		}
		f.pending[i] = pendingDispatch{}
	}
	f.pending = f.pending[:0]
}

// account counts large headers, which a stream keeps while it lives.
func (f *front) account(s *stream, w *wakeups) {
	if s.request.Size > uncounted {
		s.account(w)
	}
}

// refusal is why a call is not even tried.
func (f *front) refusal(s *stream, set *header.Set, req *header.Request) *ending {
	var e *ending
	switch r := s.call.route; {
	case set.TooLarge:
		e = failure(codes.ResourceExhausted, reasonHeaderSize, http.StatusRequestHeaderFieldsTooLarge, "the request has more than %d bytes of headers", f.listener.config.MaxHeaderBytes)
	case req.Method == http.MethodConnect:
		e = failure(codes.Unimplemented, reasonBadRequest, http.StatusNotImplemented, "CONNECT is not served")
	case s.grpc && req.BadTimeout:
		e = failure(codes.Internal, reasonBadRequest, http.StatusBadRequest, "the grpc-timeout %.32q: expected up to 8 digits and one of H, M, S, m, u, n", req.TimeoutText)
	case s.grpc && req.Timeout == 0:
		e = failure(codes.DeadlineExceeded, reasonDeadline, http.StatusGatewayTimeout, "the deadline had passed before the call was made")
	case r.clusters == nil:
		e = failure(codes.Unimplemented, reasonNoRoute, http.StatusNotFound, "no route matches %.128q", req.Path)
	default:
		wait, ok := r.limit()
		if ok {
			return nil
		}
		e = failure(codes.ResourceExhausted, reasonRateLimit, http.StatusTooManyRequests, "more calls than the route %s allows", r.name)
		e.retry = wait
	}
	e.unprocessed = true
	return e
}

func (f *front) trailers(s *stream, set *header.Set, end bool, w *wakeups) error {
	switch {
	case s.inEnd:
		return f.resetStream(s, frame.StreamClosed, w)
	case !end, set.TooLarge, set.Err != nil, len(set.Fields) > 0 && set.Fields[0].IsPseudo(), s.inLeft > 0:
		return f.resetStream(s, frame.ProtocolError, w)
	}
	if s.inEnd = true; !s.grpc { // gRPC has none in this direction, and some servers end the connection over them
		s.inTrailers = f.sentTrailers(s.call.route, set)
	}
	if !s.outEnd {
		s.pushIn(w)
	}
	return nil
}

// refuse resets a stream that was not opened.
func (f *front) refuse(id uint32, code frame.Code, end bool) {
	f.out = frame.AppendReset(f.out, id, code)
	f.woken.add(&f.conn)
	if !end {
		f.forgotten.add(id, firstWindow)
	}
}

// resetStream ends a stream on which the client broke the protocol.
func (f *front) resetStream(s *stream, code frame.Code, w *wakeups) error {
	f.out = frame.AppendReset(f.out, s.id, code)
	f.forgotten.add(s.id, int(max(s.inWindow, 0)))
	w.add(&f.conn)
	s.cancelled(frame.Cancel, clientProtocolError, w)
	return f.spend(1, "streams that break the protocol")
}

// callOf finds the route, which is remembered for headers that come again.
func (f *front) callOf(set *header.Set) *call {
	state := f.proxy.state.Load()
	// A reload has made other routes. The calls of the former ones would keep their clusters.
	if f.callsOf != state {
		f.calls, f.callsOf = map[*header.Set]*call{}, state
	}
	if c := f.calls[set]; c != nil {
		return c
	}
	req := set.Request()
	c := &call{route: state.route(f.listener.config.Name, req.Authority, req.Path), method: f.proxy.methods.of(req.Path), path: req.Path}
	c.sent = f.sent(c.route, set)
	if set.Cached() {
		if len(f.calls) == keptCalls {
			clear(f.calls)
		}
		f.calls[set] = c
	}
	return c
}

// take returns memory for a stream.
func (f *front) take() *stream {
	if n := len(f.free); n > 0 {
		s := f.free[n-1]
		f.free = f.free[:n-1]
		return s
	}
	s := &stream{front: f}
	s.timer.Init(s.expire)
	return s
}

// remove forgets a stream that has ended. lock held.
func (f *front) remove(s *stream, w *wakeups) {
	delete(f.streams, s.id)
	s.open = false
	if s.armed != 0 {
		f.proxy.wheel.Stop(&s.timer)
	}
	f.proxy.ended(s)
	f.held -= int(s.held)
	f.proxy.held.Add(-int64(s.held))
	// The memory is used again. What still has a pointer to it, such as a queue, finds out under the lock that it is not what it was.
	s.in.clear()
	s.out.clear()
	s.hold.clear()
	if s.outQueued {
		f.blocked = slices.DeleteFunc(f.blocked, func(other *stream) bool { return other == s })
	}
	replay := s.replay
	s.streamState = streamState{}
	if len(f.free) < keptFree {
		if cap(replay) <= keptReplay {
			s.replay = replay[:0]
		}
		f.free = append(f.free, s)
	}
	// The last stream of a connection that takes no new ones: what is in out is written, and the connection is closed.
	if len(f.streams) == 0 && f.limit == 0 {
		f.closing = true
		w.add(&f.conn)
	}
}

func (f *front) data(id uint32, p []byte, length int, end bool) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := f.streams[id]
	if s == nil {
		if id > f.last || id%2 == 0 {
			return frame.Error{Code: frame.ProtocolError, Reason: "DATA on a stream that was not opened"}
		}
		if f.forgotten.has(id) {
			if f.forgotten.late(id, length) {
				return nil
			}
			return f.spend(1, "DATA frames on streams that were reset")
		}
		f.refuse(id, frame.StreamClosed, false)
		return f.spend(1, "DATA frames on closed streams")
	}
	return s.received(p, length, end, &f.woken)
}

func (f *front) reset(id uint32, code frame.Code) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := f.streams[id]
	if s == nil {
		if id > f.last || id%2 == 0 {
			return frame.Error{Code: frame.ProtocolError, Reason: "RST_STREAM on a stream that was not opened"}
		}
		return f.spend(1, "RST_STREAM frames on closed streams")
	}
	// A call that was given to an endpoint, or waits for one, is a call like any other, whenever its client loses interest. One that was reset together with
	// its own header, long before its deadline, was opened for nothing.
	idle, cost := s.cluster == nil && s.attempts == 0 && !s.late(code), 1+s.request.Size/largeHeader
	s.cancelled(code, clientCancelled, &f.woken)
	if idle {
		return f.spend(cost, "streams that were reset at once")
	}
	return nil
}

func (f *front) streamWindow(id uint32, n int) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := f.streams[id]
	if s == nil {
		if id > f.last || id%2 == 0 {
			return frame.Error{Code: frame.ProtocolError, Reason: "WINDOW_UPDATE on a stream that was not opened"}
		}
		return nil
	}
	s.frontWindow += int64(n)
	switch {
	case n == 0:
		return f.resetStream(s, frame.ProtocolError, &f.woken)
	case f.peer.window+s.frontWindow > frame.MaxWindow:
		return f.resetStream(s, frame.FlowControlError, &f.woken)
	case s.out.size > 0:
		s.pushOut(&f.woken)
	}
	return nil
}

func (f *front) goAway(uint32, frame.Code, string) error { return nil } // it will open no more streams, or close

func (f *front) pushed() error {
	return frame.Error{Code: frame.ProtocolError, Reason: "PUSH_PROMISE from a client"}
}

// The data of our PINGs.
const (
	pingKeepalive uint64 = 0x6c65766164610001
	pingGoodbye   uint64 = 0x6c65766164610002
)

func (f *front) pong(data uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.pinged = 0
	if data == pingGoodbye && !f.closing {
		// What the client sent before it saw the first GOAWAY has come.
		f.out = frame.AppendGoAway(f.out, f.last, frame.NoError, "draining")
		f.limit = 0
		f.woken.add(&f.conn)
		if len(f.streams) == 0 {
			f.closing = true
		}
	}
}

// sendGoAway makes the client open no more streams on the connection. Those that are open go on.
func (f *front) sendGoAway() {
	f.mu.Lock()
	if !f.goAwaySent && !f.closing && f.err == nil {
		f.goAwaySent = true
		f.out = frame.AppendGoAway(f.out, frame.MaxStream, frame.NoError, "draining")
		f.out = frame.AppendPing(f.out, false, pingGoodbye)
	}
	f.mu.Unlock()
	f.wakeWriter()
}

// checkHealth is called by the wheel from time to time: is the client still there, does it take what it gets, does it want anything?
func (f *front) checkHealth(now int64) {
	var w wakeups
	c := f.listener.config
	f.mu.Lock()
	defer func() { f.mu.Unlock(); w.flush() }()
	if f.closing && f.err == nil && f.writing == 0 && len(f.out) == 0 || f.err != nil {
		return
	}
	quiet := time.Duration(now - f.lastRead.Load())
	switch {
	case f.writing > 0 && f.stallTimeout > 0 && now-f.writeFrom > int64(f.stallTimeout):
		f.abort(fmt.Errorf("the client has taken nothing for %v", f.stallTimeout))
		return
	case f.overdue(now):
		f.fail(fmt.Errorf("the client has not completed a header, or said its SETTINGS, within %v", c.HandshakeTimeout))
		return
	case f.pinged != 0 && now-f.pinged > int64(c.Keepalive.Timeout) && quiet > c.Keepalive.Timeout && f.proxy.silent(f.socket(), c.Keepalive.Timeout):
		f.fail(fmt.Errorf("no answer to a PING within %v", c.Keepalive.Timeout))
		return
	case len(f.streams) == 0 && c.IdleTimeout > 0 && quiet > c.IdleTimeout:
		f.closeAfterOut(f.last, frame.NoError, "idle")
		w.add(&f.conn)
	case f.pinged == 0 && c.Keepalive.Interval > 0 && quiet >= c.Keepalive.Interval && len(f.streams) > 0 && !f.closing:
		f.pinged = now
		f.out = frame.AppendPing(f.out, false, pingKeepalive)
		w.add(&f.conn)
	}
	f.proxy.wheel.Set(&f.watch, now+int64(f.watchEvery()))
}

func (f *front) overdue(now int64) bool {
	since := f.slowSince.Load()
	if !f.peer.known && since == 0 {
		since = f.accepted
	}
	return since != 0 && now-since > int64(f.listener.config.HandshakeTimeout)
}

func (f *front) watchEvery() time.Duration {
	every := 5 * time.Second
	for _, d := range []time.Duration{f.stallTimeout, f.listener.config.Keepalive.Interval, f.listener.config.Keepalive.Timeout, f.listener.config.IdleTimeout, f.listener.config.HandshakeTimeout} {
		if d > 0 {
			every = min(every, max(d/4, 20*time.Millisecond))
		}
	}
	return every
}
