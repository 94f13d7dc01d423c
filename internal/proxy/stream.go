package proxy

import (
	"math/rand/v2"
	"net/http"
	"time"

	"github.com/levada-io/levada/internal/h2/frame"
	"github.com/levada-io/levada/internal/h2/header"
	"github.com/levada-io/levada/internal/proxy/balance"
	"github.com/levada-io/levada/internal/proxy/wheel"
	"google.golang.org/grpc/codes"
)

const (
	maxTries   = 3        // endpoints to which connecting may fail before a call does
	keptReplay = 1 << 10  // that a stream's memory keeps for the next stream
	uncounted  = 4 << 10  // that a stream may keep without being counted
	heldLimit  = 16 << 20 // for one client, above which large messages are passed on as they come
	grownLimit = 8 << 20  // by which the windows of one client's streams together may be larger than the first
)

// stream is a call. All of it is guarded by its front's lock.
type stream struct {
	front *front
	timer wheel.Timer // goes off at timers.armed
	streamState
}

// streamState is what a stream's memory holds for one call; front.remove makes it zero for the next one. There are very many of them, so numbers are as small as they can
// be, and lie together.
type streamState struct {
	call    *call
	counted *counters // by which it is counted, although a new configuration may have given it another route
	traffic traffic   // that was counted
	request *header.Set
	span    Span // nil for most

	// How the call ended for the client. Invariant: reason is empty until recordOutcome is called for the first time, which later ones do not change.
	reason string
	id     uint32
	code   codes.Code

	held int32 // bytes of replay, in, out, hold and large headers, as account counted them last; front.held and Proxy.held are the sums
	kind balance.Kind
	open bool // Invariant: open exactly while front.streams has it. A ref with the same id is then this call.
	grpc bool

	routing
	timers
	requestSide
	responseSide
}

// routing is where the call goes.
//
// Invariants, whenever the front's lock is free: chosen is set while the call has a place at an endpoint (endpoint.calls counts it), and then exactly one of waiting and
// back is: it waits for a connection, or has one. Without chosen it waits for an endpoint (waitEnd), for its retry (retryAt) or for nothing, because it has ended or was not dispatched yet. back.streams
// has it under backID exactly while back is set.
type routing struct {
	cluster   *cluster // of the route's; nil before the first dispatch, and between a policy's attempts
	chosen    *chosen
	avoid     *chosen // where it was before
	waiting   *endpoint
	back      *back
	headAt    int64 // where in back's output the HEADERS end: before flushedAt, the endpoint may have seen them
	lastError error // of connecting
	backID    uint32

	tried              uint8 // endpoints that could not be connected to; below maxTries
	transparentRetries uint8 // after an endpoint provably did not process it; at most 1
	attempts           uint8 // that count for the route's policy, beside the first
}

// timers are when something is due, in nanoseconds of the wheel; 0 is never.
//
// Invariant: the stream's timer goes off at armed, which is no later than what is due next. It may be earlier: onTimer finds nothing due then.
type timers struct {
	armed      int64
	started    int64
	deadline   int64 // of the call
	ageEnd     int64
	lastNews   int64 // a message either way; kept up only for routes with an idle timeout
	stallEnd   int64 // by when the client must have taken something
	stuck      int64 // since when it has taken nothing of what waits for it; 0 while nothing waits
	retryAt    int64 // a policy's retry
	tryEnd     int64 // of an attempt without response headers
	waitEnd    int64 // for an endpoint. Invariant: the cluster's awaiting or queue has the call only while it is set
	firstReply int64
	sentAt     int64 // when the last attempt was given to an endpoint
}

// requestSide is what comes from the client and goes to the endpoint.
//
// Invariants: while replayable, replay is all DATA that came, and in is what of it this attempt has not sent; replayable does not become true again. Nothing comes after
// inEnd. Until inEnd or outEnd, inWindow + inOwed + inBytes - inCredited = inSize: a byte is credited when it is sent for the first time, and not again by a replay.
type requestSide struct {
	replayable bool
	inEnd      bool // no more comes from the client
	inEndSent  bool // this attempt has sent it
	inQueued   bool // back.blocked has the stream

	inWindow   int32 // that the client may still send; negative after the window of all streams was made smaller
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
}

// responseSide is what comes from the endpoint and goes to the client. out holds whole messages; hold the beginning of one, which is dropped if the call ends before the
// rest has come.
//
// Invariants: after outEnd nothing more comes, the call has left its endpoint, and one of outTrailers, outEnding, resets, or none of them for a call that is not gRPC, says how
// it ends; that is sent once out is empty. Once headed, the call is not sent again. While the call has a connection,
// outWindow + outOwed + out.size + hold.size - prepaid = outSize.
type responseSide struct {
	headed      bool // the response's header was passed on
	partialSent bool // the beginning of a message was passed on, and not yet its end
	outEnd      bool
	outQueued   bool       // front.blocked has the stream
	resets      bool       // the call ends as the backend's RST_STREAM
	outReset    frame.Code // if resets

	out         queue
	hold        queue
	outTrailers *header.Set
	outEnding   *ending
	outLeft     int64 // of content-length; negative if it is not known
	outBytes    int64 // that came
	frontWindow int64 // that the client grants, beside what it grants every new stream
	outMessages messages
	sent        messages // what of outMessages has been sent to the client
	outWindow   int32    // that the endpoint may still send
	outOwed     int32    // of it, given back later
	outSize     int32    // that it is kept at
	outFirst    int32    // of it, what every new stream is granted: the rest is in front.grown
	prepaid     int32    // bytes of hold and out for which credit was given before they left
	unpaid      int32    // bytes of hold for which it was not, because something waited for the client
}

// ref is a call for those who hold no lock, since a stream's memory is used again.
type ref struct {
	s  *stream
	id uint32
}

// current reports whether the call is still open. The lock of its front is held.
// An id is not given twice on a connection and a stream's memory stays with its front, so open and id identify the call.
func (r ref) current() bool { return r.s.open && r.s.id == r.id }

// call is what is known of calls with the same headers.
type call struct {
	route  *route
	method *method
	path   string
	sent   *header.Set // what endpoints get of the headers
}

// begin sets up the state of a call that its client has just opened. The front's lock is held.
func (s *stream) begin(now int64) {
	r := s.call.route
	s.started, s.lastNews = now, now
	// allowed, and not what was announced last: the client may use its former window until it has acknowledged another one, RFC 9113 section 6.5.3.
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
		// A grpc-timeout of 0 must not become "no deadline", which 0 means here.
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

// account counts what is kept for the stream. If that of all streams is too much for the process although windows have been made smaller and new calls are
// refused, those pay whose clients take nothing, and only those of connections with more than their share: see Proxy.pressed.
func (s *stream) account(w *wakeups) {
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
	// Calls that hold little, which are most, never touch Proxy.held, a counter that all processors share.
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
		p.warn("stream ended, limits.memory is exceeded", "client", f.nc.RemoteAddr().String(), "path", s.call.path, "bytes", n, "connectionBytes", f.held, "allBytes", all, "limit", p.memory.Load())
		s.drop(failure(codes.ResourceExhausted, reasonMemory, http.StatusServiceUnavailable, "what waits for the client is more than limits.memory allows"), w)
	}
}

// finish takes the stream from its front. Its end has been sent.
func (s *stream) finish(w *wakeups) {
	f := s.front
	if !s.open {
		return
	}
	if !s.inEnd {
		// The client's last does not matter any more: RFC 9113 section 8.1.
		f.out = frame.AppendReset(f.out, s.id, frame.NoError)
		// DATA that the client sent before it sees the reset is still to come: no more than its window.
		f.forgotten.add(s.id, int(max(s.inWindow, 0)))
		w.add(&f.conn)
	}
	if s.back != nil || s.chosen != nil {
		s.leave(balance.Ignored, true, frame.Cancel, w)
	}
	if s.waitEnd != 0 && s.cluster != nil {
		s.cluster.forget(s)
	}
	// Before remove, which makes the sizes zero.
	f.grown -= int(s.inSize - s.inFirst + s.outSize - s.outFirst)
	f.remove(s, w)
}
