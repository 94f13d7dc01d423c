package proxy

import (
	"net/http"

	"github.com/levada-io/levada/internal/h2/frame"
	"github.com/levada-io/levada/internal/proxy/balance"
	"google.golang.org/grpc/codes"
)

// Ends: every call ends once, by sendEnd or cancelled, and then finish takes it from its front.

// end makes the proxy end the call: after the messages that are whole, with a status that the client can act on.
func (s *stream) end(e *ending, w *wakeups) {
	if !s.open || s.outEnd {
		return
	}
	s.leave(balance.Ignored, true, frame.Cancel, w)
	s.hold.clear()
	s.outEnd, s.outEnding = true, e
	s.pushOut(w)
}

// sendEnd sends how the call ends. All that comes before has been sent.
func (s *stream) sendEnd(w *wakeups) {
	f := s.front
	w.add(&f.conn)
	e := s.outEnding
	form := s.endForm()
	switch {
	case form == endTrailers:
		code := codes.OK
		if r := s.outTrailers.Response(); r.HasCode {
			code = codes.Code(r.Code)
		}
		s.recordOutcome(code, endedByBackend)
	case form == endData:
		s.recordOutcome(codes.OK, endedByBackend)
	case form != endReset: // whose outcome is known since it came
		s.recordOutcome(e.code, e.reason)
	}
	switch form {
	case endReset:
		s.sendReset(s.outReset)
	case endTrailers:
		f.appendBlock(s.id, s.outTrailers, true)
	case endData:
		f.appendData(s.id, nil, true)
	case endHTTP:
		s.sendHTTP(e)
	case endInternal:
		s.sendReset(frame.InternalError)
	case endRefused:
		s.sendReset(frame.RefusedStream)
	case endTrailersOnly:
		f.appendFields(s.id, s.call.route.response.own(e.fields(true)), true)
	case endStatus:
		f.appendFields(s.id, e.fields(false), true)
	}
	s.finish(w)
}

// endForm is the form in which the call ends now.
func (s *stream) endForm() endForm {
	return endFacts{reset: s.resets, trailers: s.outTrailers != nil, own: s.outEnding != nil, grpc: s.grpc, headed: s.headed,
		messages: s.sent.count, partial: !s.sent.between()}.form()
}

// sendReset ends the stream with a RST_STREAM, which is also the answer to what the client has not sent yet.
func (s *stream) sendReset(code frame.Code) {
	// finish sends a RST_STREAM(NO_ERROR) if the request has not ended. inEnd keeps it from sending a second one.
	s.front.out = frame.AppendReset(s.front.out, s.id, code)
	s.inEnd = true
}

// sendHTTP is the whole answer to a call that is not gRPC: a status, and the reason as text if the client's windows take it.
func (s *stream) sendHTTP(e *ending) {
	f := s.front
	text := []byte(e.text + "\n")
	fits := int64(len(text)) <= min(f.peer.window+s.frontWindow, f.window) && s.request.Request().Method != http.MethodHead
	f.appendFields(s.id, s.call.route.response.own(e.httpFields()), !fits)
	if fits {
		f.appendData(s.id, text, true)
	}
}

// recordOutcome notes how the call has ended for the client.
func (s *stream) recordOutcome(code codes.Code, reason string) {
	if s.reason == "" {
		s.code, s.reason = code, reason
	}
}

// cancelled: the client does not want the call any more, or is gone.
func (s *stream) cancelled(code frame.Code, reason string, w *wakeups) {
	// Clients cancel when their deadline passes. The log and the metrics then have DEADLINE_EXCEEDED, which is what the client's code sees.
	if reason == clientCancelled && s.late(code) {
		s.recordOutcome(codes.DeadlineExceeded, reasonDeadline)
	}
	s.recordOutcome(codes.Canceled, reason)
	s.leave(balance.Ignored, true, code, w)
	s.inEnd = true
	s.finish(w)
}

// drop ends the call without the messages that wait for the client. Its end waits for no window.
func (s *stream) drop(e *ending, w *wakeups) {
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
func (s *stream) lost(b *back, err error, w *wakeups) {
	// HEADERS that were not all given to the kernel cannot have been processed.
	unseen := s.headAt > b.flushedAt
	s.connectionLost(b, err, unseen, w)
}

func (s *stream) connectionLost(b *back, err error, unseen bool, w *wakeups) {
	if s.retry(attemptFailure{unprocessed: unseen, code: codes.Unavailable}, balance.Failure, frame.Cancel, w) {
		return
	}
	e := unavailable(reasonConnectionLost, "the connection to %s was lost: %v", b.endpoint.address, err)
	e.unprocessed = unseen && !s.headed
	s.leave(balance.Failure, false, 0, w)
	s.end(e, w)
}

// resetByBackend: the endpoint has reset the stream.
func (s *stream) resetByBackend(code frame.Code, w *wakeups) {
	if s.outEnd {
		return
	}
	switch meaningOfReset(code, s.grpc, s.late(code), s.call.route.restoreUnavailable) {
	case resetRefused:
		e := unavailable(reasonRefused, "%s refused the stream", s.back.endpoint.address)
		e.unprocessed = !s.headed
		if !s.retry(attemptFailure{unprocessed: true, reset: true, code: codes.Unavailable}, balance.Ignored, 0, w) {
			s.leave(balance.Ignored, false, 0, w)
			s.end(e, w)
		}
		return
	case resetDeadline:
		e := s.deadlineEnd()
		s.leave(balance.Ignored, false, 0, w)
		s.end(e, w)
		return
	case resetHidden:
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
