package proxy

import (
	"net/http"

	"github.com/levada-io/levada/internal/h2/frame"
	"google.golang.org/grpc/codes"
)

// The request: DATA of the client on its way to the endpoint.

// received takes DATA from the client.
func (s *stream) received(p []byte, length int, end bool, w *wakeups) error {
	// Half-closed by the client: RFC 9113 section 5.1.
	if s.inEnd {
		return s.front.resetStream(s, frame.StreamClosed, w)
	}
	// A stream error is enough, the connection's window was checked before: RFC 9113 section 6.9.1.
	if s.inWindow -= int32(length); s.inWindow < 0 {
		return s.front.resetStream(s, frame.FlowControlError, w)
	}
	// More or less DATA than content-length is malformed: RFC 9113 section 8.1.1. Passed on, it would be a way to smuggle requests.
	if s.inLeft >= 0 {
		if s.inLeft -= int64(len(p)); s.inLeft < 0 || end && s.inLeft != 0 {
			return s.front.resetStream(s, frame.ProtocolError, w)
		}
	}
	s.inEnd = end
	s.inBytes += int64(len(p))
	if s.outEnd { // its end waits for the client to take what comes before
		s.inWindow += int32(length)
		return nil
	}
	s.touch()
	if s.grpc {
		limit := int(s.call.route.maxRequest)
		if _, over := s.inMessages.feed(p, limit); over {
			s.end(failure(codes.ResourceExhausted, reasonMessageSize, http.StatusRequestEntityTooLarge,
				"a message of %d bytes, and the route allows %d", s.inMessages.size, limit), w)
			return nil
		}
	}
	// Padding goes no further, so it is given back at once.
	if pad := length - len(p); pad > 0 {
		s.creditIn(pad, w)
	}
	if s.replayable {
		s.keepForReplay(p)
		s.releaseHeader(w)
	}
	// Without a copy where nothing waits before it. What does not fit in the windows is copied into in: p is the reader's buffer, which is used again.
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

// pushIn sends what the endpoint's windows allow.
func (s *stream) pushIn(w *wakeups) { s.pushInTurn(false, w) }

// pushInTurn is pushIn, with what the stream waited for on a full connection: its turn has come.
func (s *stream) pushInTurn(turn bool, w *wakeups) {
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
	// An empty frame, as the end came alone, or after the last DATA had been sent. END_STREAM needs no window.
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

// creditSent gives the client credit for n bytes that were sent, unless they were sent before, in an attempt that came to nothing.
func (s *stream) creditSent(n int, w *wakeups) {
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
		// A stream that comes later must not overtake those that wait for the same connection.
		others := len(b.blocked) > 0 && !turn
		if n <= 0 || others {
			if !s.inQueued && (b.window <= 0 || b.room() <= 0 || others) {
				s.inQueued = true
				b.blocked = append(b.blocked, blockedStream{s, s.backID})
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

// creditIn lets the client send n bytes more.
func (s *stream) creditIn(n int, w *wakeups) {
	// Given back when half of the window is owed: a WINDOW_UPDATE for each frame would double the frames. After the end of the request nobody needs it.
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
