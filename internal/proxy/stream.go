package proxy

import (
	"math/rand/v2"
	"net/http"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/levada-io/levada/internal/proxy/balance"
	"github.com/levada-io/levada/internal/proxy/frame"
	"github.com/levada-io/levada/internal/proxy/header"
	"github.com/levada-io/levada/internal/proxy/wheel"
)

const (
	maxTries   = 3        // endpoints to which connecting may fail before a call does
	keptReplay = 1 << 10  // that a stream's memory keeps for the next stream
	uncounted  = 4 << 10  // that a stream may keep without being counted
	heldLimit  = 16 << 20 // for one caller, above which large messages are passed on as they come
	grownLimit = 8 << 20  // by which the windows of one caller's streams together may be larger than the first
)

// stream is a call. All of it is guarded by its front's lock.
type stream struct {
	front *front
	timer wheel.Timer
	life
}

// life is what a stream's memory holds for one call. There are very many of them, so numbers are as small as they can be, and lie together.
type life struct {
	call    *call
	counted *counters // by which it is counted, although a new configuration may have given it another route
	traffic traffic   // that was counted
	request *header.Set
	reason  string
	span    Span // nil for most

	id      uint32
	code    codes.Code // that the caller has got, once it has
	kind    balance.Kind
	open    bool // in front.streams
	grpc    bool
	tried   uint8 // endpoints that could not be connected to
	replays uint8 // after an endpoint provably did not process it
	// Attempts that count for the route's policy, beside the first.
	attempts uint8

	replayable bool
	inEnd      bool // no more comes from the caller
	inEndSent  bool
	inQueued   bool

	headed    bool // the response's header was passed on
	torn      bool // the beginning of a message was passed on, and not yet its end
	outEnd    bool // no more comes from the endpoint; outTrailers, outEnding or outReset say how it ends
	outQueued bool
	resets    bool
	outReset  frame.Code // if resets

	// In nanoseconds of the wheel. 0 is never.
	armed      int64 // when timer goes off
	started    int64
	deadline   int64 // of the call
	ageEnd     int64
	lastNews   int64 // a message either way; kept up only for routes with an idle timeout
	stallEnd   int64 // by when the caller must have taken something
	stuck      int64 // since when it has taken nothing of what waits for it
	retryAt    int64 // a policy's retry
	tryEnd     int64 // of an attempt without response headers
	waitEnd    int64 // for an endpoint
	firstReply int64
	sentAt     int64 // when the last attempt was given to an endpoint

	// Where it goes.
	cluster   *cluster // of the route's
	chosen    *chosen
	avoid     *chosen // where it has failed
	waiting   *endpoint
	back      *back
	headAt    int64 // where in back's output the HEADERS end
	lastError error // of connecting
	backID    uint32

	// From the caller to the endpoint. in waits to be sent, replay is all that came while the call may be sent once more.
	inWindow   int32 // that the caller may still send; negative after the window of all streams was made smaller
	inOwed     int32 // of it, given back later
	inSize     int32 // that it is kept at
	inFirst    int32 // of it, what every new stream is granted: the rest is in front.grown
	inMessages messages
	in         queue
	replay     []byte
	inTrailers *header.Set
	inSent     int64 // of this attempt
	inCredited int64 // the most that was sent in an attempt
	inLeft     int64 // of content-length; negative if it is not known
	inBytes    int64 // that came
	backWindow int64 // that the endpoint grants, beside what it grants every new stream

	// From the endpoint to the caller. out holds whole messages; hold the beginning of one.
	out         queue
	hold        queue
	outTrailers *header.Set
	outEnding   *ending
	outLeft     int64
	outBytes    int64 // that came
	frontWindow int64 // that the caller grants, beside what it grants every new stream
	outMessages messages
	sent        messages // what of outMessages has been sent to the caller
	outWindow   int32
	outOwed     int32
	outSize     int32
	outFirst    int32
	prepaid     int32 // bytes of hold and out for which credit was given before they left
	unpaid      int32 // bytes of hold for which it was not, because something waited for the caller
	held        int32 // bytes of all that is kept, as they were counted last
}

// ref is a call for those who hold no lock, since a stream's memory is used again.
type ref struct {
	s  *stream
	id uint32
}

// current reports whether the call is still open. The lock of its front is held.
func (r ref) current() bool { return r.s.open && r.s.id == r.id }

// call is what is known of calls with the same headers.
type call struct {
	route  *route
	method *method
	path   string
	sent   *header.Set // what endpoints get of the headers
}

func (s *stream) begin(now int64) {
	r := s.call.route
	s.started, s.lastNews = now, now
	s.inWindow, s.inSize, s.inFirst = s.front.allowed, s.front.allowed, s.front.allowed
	s.outWindow, s.outSize, s.outFirst = firstWindow, firstWindow, firstWindow
	s.inLeft, s.outLeft = -1, -1
	s.replayable = true
	req := s.request.Request()
	s.grpc = req.GRPC || s.request.TooLarge // of which the content type may not have been read
	s.inLeft = req.Length
	if s.kind = balance.Streaming; s.call.method.unary.Load() > 0 {
		s.kind = balance.Unary
	}
	timeout := r.timeout
	if req.Timeout >= 0 && (timeout == 0 || req.Timeout < timeout) {
		timeout = max(req.Timeout, 1)
	}
	if timeout > 0 {
		s.deadline = later(now, timeout)
	}
	if age := r.streamAge; age > 0 {
		jitter := 1 + r.ageJitter*(2*rand.Float64()-1)
		s.ageEnd = later(now, time.Duration(float64(age)*jitter))
	}
	s.arm()
}

func later(now int64, d time.Duration) int64 {
	if at := now + int64(d); at > now {
		return at
	}
	return 1<<63 - 1
}

// arm sets the timer to the next thing that may be due. Timers that would go off too early are left: expire sets them again.
func (s *stream) arm() {
	at := s.stallEnd
	if !s.outEnd { // else all that is left is that the caller takes it
		for _, t := range [...]int64{s.deadline, s.ageEnd, s.retryAt, s.tryEnd, s.waitEnd, s.idleEnd()} {
			if t != 0 && (at == 0 || t < at) {
				at = t
			}
		}
	}
	if at != 0 && (s.armed == 0 || at < s.armed) {
		s.armed = at
		s.front.proxy.wheel.Set(&s.timer, at)
	}
}

func (s *stream) idleEnd() int64 {
	if idle := s.call.route.idleTimeout; idle > 0 {
		return later(s.lastNews, idle)
	}
	return 0
}

// expire is called by the wheel. The stream may have ended, or be another one, meanwhile.
func (s *stream) expire(now int64) {
	var w wakes
	f := s.front
	f.proxy.clock.Store(now)
	f.mu.Lock()
	if s.armed = 0; s.open {
		s.due(now, &w)
		if s.open {
			s.arm()
		}
	}
	f.mu.Unlock()
	w.flush()
}

func (s *stream) due(now int64, w *wakes) {
	passed := func(at int64) bool { return at != 0 && at <= now }
	switch {
	case passed(s.stallEnd):
		s.stallEnd = 0
		s.drop(unavailable(reasonStalled, "the caller has taken nothing for the listener's stallTimeout of %v", s.front.stallTimeout), w)
	case s.outEnd:
	case passed(s.deadline):
		s.deadline = 0
		s.end(s.deadlineEnd(), w)
	case passed(s.ageEnd):
		s.ageEnd = 0
		e := unavailable(reasonAge, "the stream has reached its age of %v: open it again", time.Duration(now-s.started).Round(time.Millisecond))
		e.retry = 0
		s.end(e, w)
	case passed(s.idleEnd()):
		s.end(unavailable(reasonIdle, "no message for %v", s.call.route.idleTimeout), w)
	case passed(s.waitEnd):
		s.place(w)
	case passed(s.tryEnd):
		s.tryEnd = 0
		e := unavailable(reasonDeadline, "no response within the route's perTryTimeout of %v", s.call.route.retry.PerTryTimeout)
		if !s.policyRetry(codes.Unavailable, -1, frame.Cancel, w) {
			s.end(e, w)
		}
	case passed(s.retryAt):
		s.retryAt = 0
		s.cluster, s.tried, s.waitEnd, s.lastError = nil, 0, 0, nil // another backend of the route's may do better
		s.place(w)
	}
}

func (s *stream) deadlineEnd() *ending {
	return failure(codes.DeadlineExceeded, reasonDeadline, http.StatusGatewayTimeout, "the deadline has passed; %s", s.whereabouts())
}

// whereabouts tells people where a call is.
func (s *stream) whereabouts() string {
	switch {
	case s.back != nil && s.headed:
		return "it was being answered by " + s.back.endpoint.address
	case s.back != nil:
		return s.back.endpoint.address + " had not answered"
	case s.waiting != nil:
		return "it was waiting for a connection to " + s.waiting.address
	}
	return "it was waiting for an endpoint"
}

// Placing: choosing an endpoint, and a connection to it.

// place gives the call to an endpoint, or makes it wait for one.
func (s *stream) place(w *wakes) {
	if s.cluster == nil {
		s.cluster = s.call.route.cluster()
	}
	c, full := s.cluster.pick(s.kind, s.avoid)
	for c == nil {
		over := s.waitEnd != 0 && s.waitEnd <= s.front.proxy.now()
		switch {
		case s.reroute():
			// The configuration has changed since the call came.
		case full && (over || !s.cluster.enqueue(s)):
			s.overloaded(w)
			return
		case full:
			s.wait(s.cluster.config().Limits.WaitTimeout)
			if s.cluster.hasRoom() { // that came before the call was in the queue
				w.clusters = append(w.clusters, s.cluster)
			}
			return
		case s.cluster.config().WaitForReady == 0 || over:
			s.unplaced(w)
			return
		case s.cluster.await(s):
			s.wait(s.cluster.config().WaitForReady)
			return
		}
		c, full = s.cluster.pick(s.kind, s.avoid)
	}
	if s.waitEnd != 0 {
		s.cluster.forget(s)
		s.waitEnd = 0 // the time in which an endpoint had to appear, which a connection to it need not keep
	}
	s.chosen = c
	s.sentAt = s.front.proxy.now()
	c.Start(s.kind, s.sentAt)
	c.Of.assign(s, w)
}

// wait sets how long the call waits for an endpoint, unless it waits already: what appeared has gone again.
func (s *stream) wait(d time.Duration) {
	if s.waitEnd == 0 {
		s.waitEnd = later(s.front.proxy.now(), d)
	}
	s.arm()
}

// reroute finds the route of the configuration that is in force now, if that is another one.
func (s *stream) reroute() bool {
	req := s.request.Request()
	r := s.front.proxy.state.Load().route(s.front.listener.config.Name, req.Authority, req.Path)
	if r == s.call.route || r.clusters == nil {
		return false
	}
	s.call = &call{route: r, method: s.call.method, path: s.call.path, sent: s.front.sent(r, s.request)}
	if s.waitEnd != 0 { // it may wait for the new one's endpoints as long as any call
		s.cluster.forget(s)
		s.waitEnd = 0
	}
	s.cluster, s.avoid = r.cluster(), nil
	return true
}

// unplaced ends a call that no endpoint could be found for in time, unless the route's policy says that it is tried again.
func (s *stream) unplaced(w *wakes) {
	if s.lastError != nil && s.policyRetry(codes.Unavailable, -1, frame.NoError, w) {
		return
	}
	e := unavailable(reasonNoBackend, "no endpoint of %s is known", s.cluster.source)
	if found := s.cluster.source.Status(); found.Failing {
		e = unavailable(reasonNoBackend, "no endpoint of %s is known: %v", s.cluster.source, found.LastError)
	}
	if s.lastError != nil {
		e = unavailable(reasonConnectFailed, "no connection to the backend: %v", s.lastError)
	}
	e.unprocessed, e.http = true, http.StatusServiceUnavailable
	s.end(e, w)
}

// placed: a connection has taken the call. What the caller has sent goes out.
func (s *stream) placed(w *wakes) {
	w.add(&s.back.conn)
	s.waiting = nil
	s.inQueued, s.inEndSent, s.backWindow = false, s.back.headEnded(s), 0
	s.outWindow, s.outSize, s.outOwed = s.outFirst, s.outFirst, 0
	if t := s.call.route.retry.PerTryTimeout; t > 0 && s.attemptsLeft() {
		s.tryEnd = later(s.front.proxy.now(), t)
		s.arm()
	}
	s.pushIn(w)
}

// notConnected: no connection to the chosen endpoint could be made, so nobody has seen the call.
func (s *stream) notConnected(err error, w *wakes) {
	s.lastError = err
	s.forget(balance.Ignored, w) // usable tells it already, and an ejection would outlast the reason
	if s.tried++; s.tried < maxTries && (s.reroute() || s.cluster.others(s.avoid)) {
		s.place(w)
		return
	}
	s.unplaced(w)
}

// rewind makes all of the request wait to be sent again.
func (s *stream) rewind() {
	s.in.clear()
	s.in.append(s.replay)
	s.inSent, s.inEndSent = 0, false
}

// forget takes the call from the endpoint that was chosen, without a word to it.
func (s *stream) forget(outcome balance.Outcome, w *wakes) {
	if c := s.chosen; c != nil {
		c.Of.calls.n.Add(-1)
		if x := c.Of.calls.serves.Load(); x.queued.Load() > 0 {
			w.clusters = append(w.clusters, x)
		}
		now := s.front.proxy.now()
		c.Done(s.kind, outcome, time.Duration(now-s.sentAt), now)
		if s.waiting != nil {
			s.waiting.forget(s)
		}
		s.avoid, s.chosen, s.waiting = c, nil, nil
	}
}

// leave is forget, and takes the stream from its connection. With a code it is reset there.
func (s *stream) leave(outcome balance.Outcome, reset bool, code frame.Code, w *wakes) {
	if s.back != nil {
		s.back.remove(s.backID, reset, code, w)
		s.back = nil
	}
	s.tryEnd = 0
	s.forget(outcome, w)
}

// retryUnprocessed sends a call again that an endpoint has not processed, provably, if that is still possible.
func (s *stream) retryUnprocessed(outcome balance.Outcome, w *wakes) bool {
	if s.headed || !s.replayable || s.replays > 0 || s.outEnd {
		return false
	}
	s.replays++
	s.leave(outcome, false, 0, w)
	s.rewind()
	s.call.route.stats.replays.Add(1)
	s.place(w)
	return true
}

func (s *stream) attemptsLeft() bool {
	return !s.headed && s.replayable && int(s.attempts)+1 < s.call.route.retry.Attempts
}

// policyRetry tries a failed call again later, if the route's policy says so.
func (s *stream) policyRetry(code codes.Code, pushback time.Duration, reset frame.Code, w *wakes) bool {
	r := s.call.route
	if !s.attemptsLeft() || s.outEnd || !r.retries(code) {
		return false
	}
	now := s.front.proxy.now()
	if !r.budget.take(now) {
		r.stats.overBudget.Add(1)
		return false
	}
	s.attempts++
	if s.waitEnd != 0 {
		s.cluster.forget(s)
		s.waitEnd = 0
	}
	r.stats.retries.Add(1)
	s.leave(balance.Failure, !s.inEndSent || reset != frame.NoError, reset, w)
	s.rewind()
	if pushback < 0 {
		b := r.retry.Backoff
		pushback = time.Duration(rand.Float64() * float64(min(b.Base<<min(s.attempts-1, 20), b.Max)))
	}
	s.retryAt = later(now, max(pushback, 1))
	s.arm()
	return true
}

// From the caller to the endpoint.

// received takes DATA from the caller.
func (s *stream) received(p []byte, length int, end bool, w *wakes) error {
	if s.inEnd {
		return s.front.resetStream(s, frame.StreamClosed, w)
	}
	if s.inWindow -= int32(length); s.inWindow < 0 {
		return s.front.resetStream(s, frame.FlowControlError, w)
	}
	if s.inLeft >= 0 {
		if s.inLeft -= int64(len(p)); s.inLeft < 0 || end && s.inLeft != 0 {
			return s.front.resetStream(s, frame.ProtocolError, w)
		}
	}
	s.inEnd = end
	s.inBytes += int64(len(p))
	if s.outEnd { // its end waits for the caller to take what comes before
		s.inWindow += int32(length)
		return nil
	}
	s.news()
	if s.grpc {
		limit := int(s.call.route.maxRequest)
		if _, over := s.inMessages.feed(p, limit); over {
			s.end(failure(codes.ResourceExhausted, reasonMessageSize, http.StatusRequestEntityTooLarge,
				"a message of %d bytes, and the route allows %d", s.inMessages.size, limit), w)
			return nil
		}
	}
	if pad := length - len(p); pad > 0 {
		s.creditIn(pad, w)
	}
	if s.replayable {
		if n := len(s.replay) + len(p); n > s.call.route.replayBytes || n > keptReplay && s.front.proxy.pressed() {
			s.fix()
		} else {
			s.replay = append(s.replay, p...)
		}
	}
	if s.back != nil && s.in.size == 0 {
		s.back.mu.Lock()
		n := s.sendIn(p, true, false)
		s.back.mu.Unlock()
		w.add(&s.back.conn)
		s.creditSent(n, w)
		p = p[n:]
	}
	s.in.append(p)
	s.pushIn(w)
	s.account(w)
	return nil
}

// account counts what is kept for the stream. If that of all streams is too much for the process although windows have been made smaller and new calls are
// refused, those pay whose callers take nothing, and only those of connections with more than their share: see Proxy.pressed.
func (s *stream) account(w *wakes) {
	if !s.open { // it has ended meanwhile, and what it held is given back
		return
	}
	n := len(s.replay) + s.in.size + s.out.size + s.hold.size
	if large(s.request) {
		n += s.request.Size
	}
	if s.outTrailers != nil && large(s.outTrailers) {
		n += s.outTrailers.Size
	}
	if n < uncounted {
		n = 0
	}
	more := n - int(s.held)
	if more == 0 {
		return
	}
	f, p := s.front, s.front.proxy
	s.held = int32(n)
	f.held += more
	all := p.held.Add(int64(more))
	if more > 0 && s.tooMuch(all) {
		p.stats.shortOfMemory.Add(1)
		p.warn("stream ended, limits.memory is exceeded", "caller", f.nc.RemoteAddr().String(), "path", s.call.path, "bytes", n, "connectionBytes", f.held, "allBytes", all, "limit", p.memory.Load())
		s.drop(failure(codes.ResourceExhausted, reasonMemory, http.StatusServiceUnavailable, "what waits for the caller is more than limits.memory allows"), w)
	}
}

// fix means that the call cannot be sent again from now on.
func (s *stream) fix() {
	if !s.replayable {
		return
	}
	s.replayable = false
	if cap(s.replay) > keptReplay {
		s.replay = nil
	}
	s.replay = s.replay[:0]
}

// pushIn sends what the endpoint's windows allow.
func (s *stream) pushIn(w *wakes) { s.pushInTurn(false, w) }

// pushInTurn is pushIn, with what the stream waited for on a full connection: its turn has come.
func (s *stream) pushInTurn(turn bool, w *wakes) {
	b := s.back
	if b == nil || s.inEndSent {
		return
	}
	sent := 0
	b.mu.Lock()
	for s.in.size > 0 {
		p := s.in.front()
		n := s.sendIn(p, len(p) == s.in.size, turn)
		s.in.skip(n)
		if sent += n; n < len(p) {
			break
		}
	}
	if s.in.size == 0 && s.inEnd && !s.inEndSent {
		s.inEndSent = true
		if s.inTrailers != nil {
			b.appendBlock(s.backID, s.inTrailers, true)
		} else {
			b.appendData(s.backID, nil, true)
		}
	}
	b.mu.Unlock()
	w.add(&b.conn)
	s.creditSent(sent, w)
}

// creditSent gives the caller credit for n bytes that were sent, unless they were sent before, in an attempt that came to nothing.
func (s *stream) creditSent(n int, w *wakes) {
	s.inSent += int64(n)
	if more := s.inSent - s.inCredited; more > 0 {
		s.inCredited = s.inSent
		s.creditIn(int(more), w)
	}
}

// sendIn sends as much of p as the endpoint's windows allow. The back's lock is held. All: nothing else waits behind p. Turn: others that wait
// for the connection have had theirs.
func (s *stream) sendIn(p []byte, all, turn bool) (sent int) {
	b := s.back
	for len(p) > 0 {
		n := min(len(p), b.peer.maxFrame, int(min(b.peer.window+s.backWindow, b.window)), b.room())
		others := len(b.blocked) > 0 && !turn
		if n <= 0 || others {
			if !s.inQueued && (b.window <= 0 || b.room() <= 0 || others) {
				s.inQueued = true
				b.blocked = append(b.blocked, s)
			}
			break
		}
		last := all && n == len(p) && s.inEnd && s.inTrailers == nil
		b.appendData(s.backID, p[:n], last)
		s.backWindow -= int64(n)
		s.inEndSent = last
		sent += n
		p = p[n:]
	}
	return sent
}

// creditIn lets the caller send n bytes more.
func (s *stream) creditIn(n int, w *wakes) {
	if s.inOwed += int32(n); s.inEnd || s.inOwed < s.inSize/2 {
		return
	}
	s.inOwed += s.growth(&s.inSize, s.in.size == 0)
	s.inWindow += s.inOwed
	f := s.front
	f.out = frame.AppendWindowUpdate(f.out, s.id, int(s.inOwed))
	s.inOwed = 0
	w.add(&f.conn)
}

// growth is by how much a window becomes larger, since what comes through it is passed on at once.
func (s *stream) growth(size *int32, passes bool) int32 {
	more := min(*size, largeWindow-*size)
	if p := s.front.proxy; !passes || more <= 0 || s.front.grown+int(more) > int(min(grownLimit, p.memory.Load()/8)) || p.pressed() {
		return 0
	}
	s.front.grown += int(more)
	*size += more
	return more
}

// news notes that a message went by.
func (s *stream) news() {
	if s.call.route.idleTimeout > 0 {
		s.lastNews = s.front.proxy.now()
	}
}

// From the endpoint to the caller.

// header takes a block from the endpoint.
func (s *stream) header(set *header.Set, end bool, w *wakes) {
	r := set.Response()
	switch {
	case s.outEnd:
		return // the end waits for the caller to take what comes before
	case r.Err != nil:
		s.fault(frame.ProtocolError, failure(codes.Internal, reasonProtocol, http.StatusBadGateway, "the backend sent %v", r.Err), w)
	case set.TooLarge || int64(set.Size) > s.front.peer.list:
		if s.grpc && end && r.HasCode { // how the call ended is worth more than what was said about it
			set = header.Shortened(set, int(min(s.front.peer.list, int64(s.cluster.config().MaxResponseHeaderBytes))))
			s.ended(set, set.Response(), w)
			return
		}
		taken, who := s.front.peer.list, "the caller"
		if set.TooLarge {
			taken, who = int64(s.cluster.config().MaxResponseHeaderBytes), "maxResponseHeaderBytes of the backend"
		}
		s.fault(frame.Cancel, failure(codes.ResourceExhausted, reasonHeaderSize, http.StatusBadGateway,
			"the backend sent a header of %d bytes, more than the %d that %s allows", set.Size, taken, who), w)
	case s.headed:
		s.trailers(set, r, end, w)
	case r.Status < 100:
		s.fault(frame.ProtocolError, failureOfBackend("a header without :status"), w)
	case r.Status < 200:
		if end || r.Status == http.StatusSwitchingProtocols {
			s.fault(frame.ProtocolError, failure(codes.Internal, reasonProtocol, http.StatusBadGateway, "the backend sent :status %d", r.Status), w)
		} else if !s.grpc { // gRPC has no use for it, and some clients take it amiss
			s.front.appendBlock(s.id, s.call.route.response.trailers(set), false)
			w.add(&s.front.conn)
		}
	default:
		s.firstHeader(set, r, end, w)
	}
}

// ended takes the block that ends a gRPC call.
func (s *stream) ended(set *header.Set, r *header.Response, w *wakes) {
	if s.headed {
		s.trailers(set, r, true, w)
	} else {
		s.firstHeader(set, r, true, w)
	}
}

func (s *stream) firstHeader(set *header.Set, r *header.Response, end bool, w *wakes) {
	s.firstReply = s.front.proxy.now()
	s.tryEnd = 0
	s.news()
	if s.grpc && !r.GRPC {
		e := fromHTTP(r.Status, r.ContentType)
		if s.policyRetry(e.code, -1, frame.Cancel, w) {
			return
		}
		s.fault(frame.Cancel, e, w)
		return
	}
	if s.grpc && end {
		if e := badStatus(r); e != nil {
			s.endedByBackend(balance.Failure, w)
			s.end(e, w)
			return
		}
		pushback := time.Duration(-1)
		if r.HasPushback {
			pushback = r.Pushback
		}
		if r.Code != 0 && !(r.HasPushback && r.Pushback < 0) && s.policyRetry(codes.Code(r.Code), pushback, frame.NoError, w) {
			return
		}
	}
	if end && r.Length > 0 && !s.bodiless(r) {
		s.fault(frame.ProtocolError, failureOfBackend("less than its content-length"), w)
		return
	}
	s.headed = true
	s.fix()
	set = s.call.route.response.response(set)
	if !end && s.kind == balance.Streaming && s.chosen != nil {
		s.chosen.Observe(balance.Success, s.firstReply) // its end may be far away
	}
	if !end {
		if large(set) && s.front.room() < -maxOut { // it waits for no window, and the caller does not read
			s.fault(frame.Cancel, failure(codes.ResourceExhausted, reasonMemory, http.StatusServiceUnavailable, "the caller does not read the headers that it gets"), w)
			return
		}
		s.front.appendBlock(s.id, set, false)
		w.add(&s.front.conn)
		if s.outLeft = r.Length; s.bodiless(r) {
			s.outLeft = -1 // it says how long the body would be
		}
		return
	}
	s.outEnd, s.outTrailers = true, set
	s.endedByBackend(verdict(r), w)
	s.pushOut(w)
}

// bodiless reports whether a response has no body, whatever its content-length says: RFC 9110 section 8.6.
func (s *stream) bodiless(r *header.Response) bool {
	return s.request.Request().Method == http.MethodHead || r.Status == http.StatusNotModified || r.Status == http.StatusNoContent
}

// badStatus is how a call ends whose last block has no status that a client could read.
func badStatus(r *header.Response) *ending {
	switch {
	case !r.HasCode:
		return failure(codes.Unknown, reasonNoStatus, http.StatusBadGateway, "the backend ended the call without a grpc-status")
	case r.Code < 0:
		return failure(codes.Unknown, reasonNoStatus, http.StatusBadGateway, "the backend ended the call with the grpc-status %q", r.CodeText)
	}
	return nil
}

// verdict is what a status says of the endpoint that sent it.
func verdict(r *header.Response) balance.Outcome {
	if r.HasCode {
		switch codes.Code(r.Code) {
		case codes.Unknown, codes.Internal, codes.Unavailable, codes.DataLoss:
			return balance.Failure
		}
	}
	if r.Status >= http.StatusInternalServerError {
		return balance.Failure
	}
	return balance.Success
}

func (s *stream) trailers(set *header.Set, r *header.Response, end bool, w *wakes) {
	switch {
	case !end || r.Status != 0:
		s.fault(frame.ProtocolError, failureOfBackend("a second header"), w)
		return
	case s.outLeft > 0:
		s.fault(frame.ProtocolError, failureOfBackend("less than its content-length"), w)
		return
	}
	if s.grpc {
		e := badStatus(r)
		if e == nil && r.Code == 0 && !s.outMessages.between() {
			e = failure(codes.Internal, reasonCutMessage, http.StatusBadGateway, "the backend ended the call in the middle of a message")
		}
		if e != nil {
			s.endedByBackend(balance.Failure, w)
			s.end(e, w)
			return
		}
	}
	s.outEnd, s.outTrailers = true, s.call.route.response.trailers(set)
	s.hold.clear()
	s.endedByBackend(verdict(r), w)
	s.pushOut(w)
}

// endedByBackend: the endpoint has sent its last. It is told if the caller's last will not come.
func (s *stream) endedByBackend(outcome balance.Outcome, w *wakes) {
	s.leave(outcome, !s.inEndSent, frame.Cancel, w)
}

// fault ends the call because of what the endpoint sent.
func (s *stream) fault(code frame.Code, e *ending, w *wakes) {
	s.leave(balance.Failure, true, code, w)
	s.end(e, w)
}

// answered takes DATA from the endpoint.
func (s *stream) answered(p []byte, length int, end bool, w *wakes) {
	if s.outEnd {
		return
	}
	if s.outWindow -= int32(length); s.outWindow < 0 {
		s.fault(frame.FlowControlError, failureOfBackend("more than it was allowed to"), w)
		return
	}
	if !s.headed {
		s.fault(frame.ProtocolError, failureOfBackend("data before a header"), w)
		return
	}
	if s.outLeft >= 0 {
		if s.outLeft -= int64(len(p)); s.outLeft < 0 || end && s.outLeft != 0 {
			s.fault(frame.ProtocolError, failureOfBackend("something else than its content-length"), w)
			return
		}
	}
	s.news()
	s.outBytes += int64(len(p))
	credit := length - len(p)
	if !s.grpc {
		s.deliver(p, w)
		if end {
			s.outEnd = true
			s.endedByBackend(balance.Success, w)
		}
	} else if !s.cut(p, &credit, w) {
		return
	} else if end {
		s.endedByBackend(balance.Failure, w)
		s.end(s.withoutStatus(), w)
		return
	}
	s.pushOut(w)
	if credit > 0 {
		s.creditOut(credit, w)
	}
	s.account(w)
}

func (s *stream) withoutStatus() *ending {
	if s.call.route.unmask {
		return unavailable(reasonHidden, "the stream ended without a status, as proxies end one whose connection was lost")
	}
	return failure(codes.Internal, reasonNoStatus, http.StatusBadGateway, "the backend ended the stream without a status")
}

// cut moves whole messages to out, and holds back the rest, so that the call can be ended well at any time. It reports whether the stream goes on.
func (s *stream) cut(p []byte, credit *int, w *wakes) bool {
	r := s.call.route
	before := s.outMessages.count
	whole, over := s.outMessages.feed(p, int(r.maxResponse))
	if over {
		if whole > 0 {
			s.deliver(p[:whole], w)
		}
		s.hold.clear()
		s.fault(frame.Cancel, failure(codes.ResourceExhausted, reasonMessageSize, http.StatusBadGateway,
			"a message of %d bytes, and the route allows %d", s.outMessages.size, int(r.maxResponse)), w)
		return false
	}
	m := &s.outMessages
	s.torn = m.left > 0 && (int64(m.size) > s.holds() || s.torn && m.count == before)
	if s.torn { // too large to wait for
		whole = len(p)
	}
	if whole > 0 {
		s.deliver(p[:whole], w)
	}
	if rest := p[whole:]; len(rest) > 0 {
		s.hold.append(rest)
		s.unpaid += int32(len(rest))
	}
	if s.out.size == 0 { // the endpoint could not end the message without
		*credit += int(s.unpaid)
		s.prepaid += s.unpaid
		s.unpaid = 0
	}
	return true
}

// holds is the size of messages that are kept until they are whole. While much of the memory is taken already, or much by this caller, it is what a window takes in
// any case.
func (s *stream) holds() int64 {
	if p := s.front.proxy; p.pressed() {
		return min(int64(s.call.route.holdBytes), int64(p.window.Load()))
	} else if s.front.held > heldLimit {
		return min(int64(s.call.route.holdBytes), firstWindow)
	}
	return int64(s.call.route.holdBytes)
}

// deliver sends what was held and p to the caller, or keeps what it does not take now.
func (s *stream) deliver(p []byte, w *wakes) {
	if s.hold.size > 0 {
		s.out.take(&s.hold)
		s.unpaid = 0 // it is paid for when it leaves
		if s.flushOut(w); s.out.size == 0 {
			s.outOwed += s.growth(&s.outSize, true)
		}
	} else {
		s.flushOut(w)
	}
	if s.out.size == 0 {
		p = p[s.sendOut(p, w):]
	}
	s.out.append(p)
}

// flushOut sends what waits for the caller, as much as its windows allow.
func (s *stream) flushOut(w *wakes) {
	for sent := 0; s.out.size > 0; {
		if sent >= 4*turn && len(s.front.blocked) > 0 { // others wait, too
			s.front.queue(s)
			return
		}
		p := s.out.front()
		n := s.sendOut(p, w)
		if s.out.skip(n); n < len(p) {
			return
		}
		sent += n
	}
}

// sendOut sends as much of p as the caller's windows allow.
func (s *stream) sendOut(p []byte, w *wakes) (sent int) {
	f := s.front
	for len(p) > 0 {
		n := min(len(p), f.peer.maxFrame, int(min(f.peer.window+s.frontWindow, f.window)), f.room())
		others := len(f.blocked) > 0 && f.serving != s
		if n <= 0 || others {
			if f.window <= 0 || f.room() <= 0 || others {
				f.queue(s)
			}
			break
		}
		f.appendData(s.id, p[:n], false)
		if s.grpc {
			s.sent.feed(p[:n], 0)
		}
		s.frontWindow -= int64(n)
		sent += n
		p = p[n:]
	}
	if sent > 0 {
		s.stallEnd, s.stuck = 0, 0
		w.add(&f.conn)
		paid := min(sent, int(s.prepaid))
		s.prepaid -= int32(paid)
		s.creditOut(sent-paid, w)
	}
	return sent
}

// pushOut sends what waits for the caller, and after the last the end.
func (s *stream) pushOut(w *wakes) {
	f := s.front
	s.flushOut(w)
	if s.out.size > 0 {
		if s.stuck == 0 {
			s.stall()
		}
		return
	}
	if s.outTrailers != nil && large(s.outTrailers) && f.room() <= 0 { // much that waits for no window: one at a time
		f.queue(s)
		s.account(w)
		return
	}
	s.stallEnd, s.stuck = 0, 0
	if n := s.unpaid; n > 0 {
		s.unpaid = 0
		s.prepaid += n
		s.creditOut(int(n), w)
	}
	if s.held > 0 {
		s.account(w)
	}
	if s.outEnd {
		s.sendEnd(w)
	}
}

// stall gives the caller time to take something.
func (s *stream) stall() {
	s.stuck = s.front.proxy.now()
	if d := s.front.stallTimeout; d > 0 {
		s.stallEnd = later(s.stuck, d)
		s.arm()
	}
}

// creditOut lets the endpoint send n bytes more.
func (s *stream) creditOut(n int, w *wakes) {
	b := s.back
	if b == nil {
		return
	}
	if s.outOwed += int32(n); s.outOwed < s.outSize/2 {
		return
	}
	passes := s.out.size == 0 && s.hold.size == 0
	if !passes && s.outSize > s.outFirst { // the caller is slow now: what it was granted beyond the first window is not granted again
		less := min(s.outOwed, s.outSize-s.outFirst)
		s.outSize -= less
		s.front.grown -= int(less)
		if s.outOwed -= less; s.outOwed == 0 {
			return
		}
	}
	s.outOwed += s.growth(&s.outSize, passes)
	s.outWindow += s.outOwed
	b.mu.Lock()
	if !b.closing && b.err == nil {
		b.out = frame.AppendWindowUpdate(b.out, s.backID, int(s.outOwed))
	}
	b.mu.Unlock()
	s.outOwed = 0
	w.add(&b.conn)
}

// Ends.

// end makes the proxy end the call: after the messages that are whole, with a status that the caller can act on.
func (s *stream) end(e *ending, w *wakes) {
	if !s.open || s.outEnd {
		return
	}
	s.leave(balance.Ignored, true, frame.Cancel, w)
	s.hold.clear()
	s.outEnd, s.outEnding = true, e
	s.pushOut(w)
}

// sendEnd sends how the call ends. All that comes before has been sent.
func (s *stream) sendEnd(w *wakes) {
	f := s.front
	w.add(&f.conn)
	switch e := s.outEnding; {
	case s.resets:
		f.out = frame.AppendReset(f.out, s.id, s.outReset)
		s.inEnd = true // it needs no other reset
	case s.outTrailers != nil:
		r := s.outTrailers.Response()
		code := codes.OK
		if r.HasCode {
			code = codes.Code(r.Code)
		}
		s.outcome(code, endedByBackend)
		f.appendBlock(s.id, s.outTrailers, true)
	case e == nil: // not gRPC, and its end came after its data had been sent
		s.outcome(codes.OK, endedByBackend)
		f.appendData(s.id, nil, true)
	case !s.grpc && !s.headed:
		s.outcome(e.code, e.reason)
		text := []byte(e.text + "\n")
		fits := int64(len(text)) <= min(f.peer.window+s.frontWindow, f.window) && s.request.Request().Method != http.MethodHead
		f.appendFields(s.id, s.call.route.response.own(e.httpFields()), !fits)
		if fits {
			f.appendData(s.id, text, true)
		}
	case !s.grpc:
		s.outcome(e.code, e.reason)
		f.out = frame.AppendReset(f.out, s.id, frame.InternalError)
		s.inEnd = true
	case !s.sent.between() && s.sent.count > 0:
		// Half of a message is out: trailers would make some clients say INTERNAL. After a whole message none of them sends the call again.
		s.outcome(e.code, e.reason)
		f.out = frame.AppendReset(f.out, s.id, frame.RefusedStream)
		s.inEnd = true
	default:
		s.outcome(e.code, e.reason)
		fields := e.fields(!s.headed)
		if !s.headed {
			fields = s.call.route.response.own(fields)
		}
		f.appendFields(s.id, fields, true)
	}
	s.finish(w)
}

// outcome notes how the call has ended for the caller.
func (s *stream) outcome(code codes.Code, reason string) {
	if s.reason == "" {
		s.code, s.reason = code, reason
	}
}

// deadlineSlack is how long before ours the clocks of others may say that the call's deadline has passed.
const deadlineSlack = 25 * time.Millisecond

// late reports whether a cancellation is due to the deadline: callers and endpoints know it, too.
func (s *stream) late(code frame.Code) bool {
	return code == frame.Cancel && s.deadline != 0 && s.front.proxy.now() >= s.deadline-int64(deadlineSlack)
}

// cancelled: the caller does not want the call any more, or is gone.
func (s *stream) cancelled(code frame.Code, reason string, w *wakes) {
	if reason == endedByCaller && s.late(code) {
		s.outcome(codes.DeadlineExceeded, reasonDeadline)
	}
	s.outcome(codes.Canceled, reason)
	s.leave(balance.Ignored, true, code, w)
	s.inEnd = true
	s.finish(w)
}

// drop ends the call without the messages that wait for the caller. Its end waits for no window.
func (s *stream) drop(e *ending, w *wakes) {
	s.leave(balance.Ignored, true, frame.Cancel, w)
	s.out.clear()
	s.hold.clear()
	if !s.outEnd {
		s.outEnd, s.outEnding = true, e
	} else if !s.resets { // the backend's own end does not fit any more: messages before it are missing
		s.outTrailers, s.outEnding = nil, e
	}
	s.sendEnd(w)
}

// finish takes the stream from its front. Its end has been sent.
func (s *stream) finish(w *wakes) {
	f := s.front
	if !s.open {
		return
	}
	if !s.inEnd {
		// The caller's last does not matter any more: RFC 9113 section 8.1.
		f.out = frame.AppendReset(f.out, s.id, frame.NoError)
		f.forgotten.add(s.id, int(max(s.inWindow, 0)))
		w.add(&f.conn)
	}
	if s.back != nil || s.chosen != nil {
		s.leave(balance.Ignored, true, frame.Cancel, w)
	}
	if s.waitEnd != 0 && s.cluster != nil {
		s.cluster.forget(s)
	}
	f.grown -= int(s.inSize - s.inFirst + s.outSize - s.outFirst)
	f.remove(s, w)
}

// lost: the connection to the endpoint is gone.
func (s *stream) lost(b *back, err error, w *wakes) {
	unseen := s.headAt > b.flushedAt
	s.connectionLost(b, err, unseen, w)
}

func (s *stream) connectionLost(b *back, err error, unseen bool, w *wakes) {
	if unseen && s.retryUnprocessed(balance.Failure, w) {
		return
	}
	if !s.headed && s.policyRetry(codes.Unavailable, -1, frame.Cancel, w) {
		return
	}
	e := unavailable(reasonConnectionLost, "the connection to %s was lost: %v", b.endpoint.address, err)
	e.unprocessed = unseen && !s.headed
	s.leave(balance.Failure, false, 0, w)
	s.end(e, w)
}

// resetByBackend: the endpoint has reset the stream.
func (s *stream) resetByBackend(code frame.Code, w *wakes) {
	if s.outEnd {
		return
	}
	if code == frame.RefusedStream {
		// Passed on as it is, it would make some clients send the call again, also after a header.
		address := s.back.endpoint.address
		if s.retryUnprocessed(balance.Ignored, w) {
			return
		}
		e := unavailable(reasonRefused, "%s refused the stream", address)
		e.unprocessed = !s.headed
		s.leave(balance.Ignored, false, 0, w)
		s.end(e, w)
		return
	}
	if s.grpc && s.late(code) {
		e := s.deadlineEnd()
		s.leave(balance.Ignored, false, 0, w)
		s.end(e, w)
		return
	}
	if s.call.route.unmask && s.grpc && (code == frame.InternalError || code == frame.NoError) {
		s.leave(balance.Failure, false, 0, w)
		s.end(unavailable(reasonHidden, "the stream was reset with %v, as proxies do when a connection was lost", code), w)
		return
	}
	outcome := balance.Failure
	if code == frame.Cancel || code == frame.NoError {
		outcome = balance.Ignored
	}
	s.leave(outcome, false, 0, w)
	s.hold.clear()
	s.outEnd, s.resets, s.outReset = true, true, code
	s.outcome(fromReset(code), endedByBackend)
	s.pushOut(w)
}
