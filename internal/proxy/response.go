package proxy

import (
	"net/http"

	"github.com/levada-io/levada/internal/h2/frame"
	"github.com/levada-io/levada/internal/h2/header"
	"github.com/levada-io/levada/internal/proxy/balance"
	"google.golang.org/grpc/codes"
)

// The response: header, DATA and trailers of the endpoint on their way to the client.

// header takes a block from the endpoint.
func (s *stream) header(set *header.Set, end bool, w *wakeups) {
	r := set.Response()
	switch {
	case s.outEnd:
		return // the end waits for the client to take what comes before
	case r.Err != nil:
		s.fault(frame.ProtocolError, failure(codes.Internal, reasonProtocol, http.StatusBadGateway, "the backend sent %v", r.Err), w)
	case set.TooLarge || int64(set.Size) > s.front.peer.list:
		if s.grpc && end && r.HasCode { // how the call ended is worth more than what was said about it
			set = header.Shortened(set, int(min(s.front.peer.list, int64(s.cluster.config().MaxResponseHeaderBytes))))
			s.ended(set, set.Response(), w)
			return
		}
		taken, who := s.front.peer.list, "the client"
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
		// RFC 9113 section 8.6 removes 101, and an interim response does not end a stream (section 8.1).
		if end || r.Status == http.StatusSwitchingProtocols {
			s.fault(frame.ProtocolError, failure(codes.Internal, reasonProtocol, http.StatusBadGateway, "the backend sent :status %d", r.Status), w)
		} else if !s.grpc { // gRPC has no use for it, and some clients treat it as an error
			s.front.appendBlock(s.id, s.call.route.response.trailers(set), false)
			w.add(&s.front.conn)
		}
	default:
		s.firstHeader(set, r, end, w)
	}
}

// ended takes the block that ends a gRPC call.
func (s *stream) ended(set *header.Set, r *header.Response, w *wakeups) {
	if s.headed {
		s.trailers(set, r, true, w)
	} else {
		s.firstHeader(set, r, true, w)
	}
}

// firstHeader takes the header of the response or, with end, a response of one block, which is gRPC's Trailers-Only (PROTOCOL-HTTP2, "Responses").
func (s *stream) firstHeader(set *header.Set, r *header.Response, end bool, w *wakeups) {
	s.firstReply = s.front.proxy.now()
	s.tryEnd = 0
	s.touch()
	if s.grpc && s.notPassedOn(r, end, w) {
		return
	}
	if end && r.Length > 0 && !s.bodiless(r) {
		s.fault(frame.ProtocolError, failureOfBackend("less than its content-length"), w)
		return
	}
	// From here the call is committed (gRFC A6): a client that has seen a header must not get the response of another attempt.
	s.headed = true
	s.disableReplay()
	set = s.call.route.response.response(set)
	if !end && s.kind == balance.Streaming && s.chosen != nil {
		s.chosen.Observe(balance.Success, s.firstReply) // its end may be far away
	}
	if !end {
		if large(set) && s.front.room() < -maxOut { // it waits for no window, and the client does not read
			s.fault(frame.Cancel, failure(codes.ResourceExhausted, reasonMemory, http.StatusServiceUnavailable, "the client does not read the headers that it gets"), w)
			return
		}
		s.front.appendBlock(s.id, set, false)
		w.add(&s.front.conn)
		s.releaseHeader(w)
		if s.outLeft = r.Length; s.bodiless(r) {
			s.outLeft = -1 // it says how long the body would be
		}
		return
	}
	s.outEnd, s.outTrailers = true, set
	s.endedByBackend(outcomeFor(r), w)
	s.pushOut(w)
}

// notPassedOn deals with a first header of a gRPC call that the client does not get as it is: no gRPC, no status at its end, or a failure that the route's policy tries again.
func (s *stream) notPassedOn(r *header.Response, end bool, w *wakeups) bool {
	if !r.GRPC {
		if e := fromHTTP(r.Status, r.ContentType); !s.retry(attemptFailure{code: e.code}, balance.Failure, frame.Cancel, w) {
			s.fault(frame.Cancel, e, w)
		}
		return true
	}
	if !end {
		return false
	}
	if e := badStatus(r); e != nil {
		s.endedByBackend(balance.Failure, w)
		s.end(e, w)
		return true
	}
	f := attemptFailure{code: codes.Code(r.Code), pushback: r.Pushback, hasPushback: r.HasPushback}
	return f.code != codes.OK && s.retry(f, balance.Failure, frame.NoError, w)
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

// outcomeFor is what a status says of the endpoint that sent it.
func outcomeFor(r *header.Response) balance.Outcome {
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

func (s *stream) trailers(set *header.Set, r *header.Response, end bool, w *wakeups) {
	switch {
	// Trailers end the stream and have no pseudo-header fields: RFC 9113 section 8.1.
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
	s.endedByBackend(outcomeFor(r), w)
	s.pushOut(w)
}

// endedByBackend: the endpoint has sent its last. It gets a reset if the end of the request will not come.
func (s *stream) endedByBackend(outcome balance.Outcome, w *wakeups) {
	s.leave(outcome, !s.inEndSent, frame.Cancel, w)
}

// fault ends the call because of what the endpoint sent.
func (s *stream) fault(code frame.Code, e *ending, w *wakeups) {
	s.leave(balance.Failure, true, code, w)
	s.end(e, w)
}

// answered takes DATA from the endpoint.
func (s *stream) answered(p []byte, length int, end bool, w *wakeups) {
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
	s.touch()
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
	if s.call.route.restoreUnavailable {
		return unavailable(reasonHidden, "the stream ended without a status, as proxies end one whose connection was lost")
	}
	return failure(codes.Internal, reasonNoStatus, http.StatusBadGateway, "the backend ended the stream without a status")
}

// cut moves whole messages to out, and holds back the rest, so that the call can be ended well at any time. It reports whether the stream goes on.
func (s *stream) cut(p []byte, credit *int, w *wakeups) bool {
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
	s.partialSent = m.left > 0 && (int64(m.size) > s.holds() || s.partialSent && m.count == before)
	if s.partialSent { // too large to wait for
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

// holds is the size of messages that are kept until they are whole. While much of the memory is taken already, or much by this client, it is what a window takes in
// any case.
func (s *stream) holds() int64 {
	if p := s.front.proxy; p.pressed() {
		return min(int64(s.call.route.holdBytes), int64(p.window.Load()))
	} else if s.front.held > heldLimit {
		return min(int64(s.call.route.holdBytes), firstWindow)
	}
	return int64(s.call.route.holdBytes)
}

// deliver sends what was held and p to the client, or keeps what it does not take now.
func (s *stream) deliver(p []byte, w *wakeups) {
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

// flushOut sends what waits for the client, as much as its windows allow.
func (s *stream) flushOut(w *wakeups) {
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

// sendOut sends as much of p as the client's windows allow.
func (s *stream) sendOut(p []byte, w *wakeups) (sent int) {
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

// pushOut sends what waits for the client, and after the last the end.
func (s *stream) pushOut(w *wakeups) {
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

// creditOut lets the endpoint send n bytes more.
func (s *stream) creditOut(n int, w *wakeups) {
	b := s.back
	if b == nil {
		return
	}
	if s.outOwed += int32(n); s.outOwed < s.outSize/2 {
		return
	}
	passes := s.out.size == 0 && s.hold.size == 0
	if !passes && s.outSize > s.outFirst { // the client is slow now: what it was granted beyond the first window is not granted again
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
