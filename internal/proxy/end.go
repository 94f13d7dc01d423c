package proxy

import (
	"net/http"

	"github.com/levada-io/levada/internal/h2/frame"
	"github.com/levada-io/levada/internal/proxy/balance"
	"google.golang.org/grpc/codes"
)

// Ends: every call ends once, by sendEnd or cancelled, and then finish takes it from its front.

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
		s.recordOutcome(code, endedByBackend)
		f.appendBlock(s.id, s.outTrailers, true)
	case e == nil: // not gRPC, and its end came after its data had been sent
		s.recordOutcome(codes.OK, endedByBackend)
		f.appendData(s.id, nil, true)
	case !s.grpc && !s.headed:
		s.recordOutcome(e.code, e.reason)
		s.sendHTTP(e)
	case !s.grpc:
		s.recordOutcome(e.code, e.reason)
		f.out = frame.AppendReset(f.out, s.id, frame.InternalError)
		s.inEnd = true
	case !s.sent.between() && s.sent.count > 0:
		// Half of a message is out: trailers would make some clients say INTERNAL. After a whole message none of them sends the call again.
		s.recordOutcome(e.code, e.reason)
		f.out = frame.AppendReset(f.out, s.id, frame.RefusedStream)
		s.inEnd = true
	default:
		s.recordOutcome(e.code, e.reason)
		fields := e.fields(!s.headed)
		if !s.headed {
			fields = s.call.route.response.own(fields)
		}
		f.appendFields(s.id, fields, true)
	}
	s.finish(w)
}

// sendHTTP is the whole answer to a call that is not gRPC: a status, and the reason as text if the caller's windows take it.
func (s *stream) sendHTTP(e *ending) {
	f := s.front
	text := []byte(e.text + "\n")
	fits := int64(len(text)) <= min(f.peer.window+s.frontWindow, f.window) && s.request.Request().Method != http.MethodHead
	f.appendFields(s.id, s.call.route.response.own(e.httpFields()), !fits)
	if fits {
		f.appendData(s.id, text, true)
	}
}

// recordOutcome notes how the call has ended for the caller.
func (s *stream) recordOutcome(code codes.Code, reason string) {
	if s.reason == "" {
		s.code, s.reason = code, reason
	}
}

// cancelled: the caller does not want the call any more, or is gone.
func (s *stream) cancelled(code frame.Code, reason string, w *wakes) {
	if reason == endedByCaller && s.late(code) {
		s.recordOutcome(codes.DeadlineExceeded, reasonDeadline)
	}
	s.recordOutcome(codes.Canceled, reason)
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
	s.recordOutcome(fromReset(code), endedByBackend)
	s.pushOut(w)
}
