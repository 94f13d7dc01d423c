package proxy

import (
	"encoding/binary"

	"github.com/levada-io/levada/internal/h2/frame"
	"github.com/levada-io/levada/internal/h2/header"
)

// What a connection does with each frame that has come, before its stream is looked for: RFC 9113 section 6.

// onFrame checks what can be said of a frame without its stream: RFC 9113 section 6.
func (c *conn) onFrame(s side, h frame.Header, p []byte) error {
	// No other frame may come between the frames of a header block, of any stream: RFC 9113 section 6.10.
	if c.pieceOf != 0 && (h.Type != frame.Continuation || h.Stream != c.pieceOf) {
		return frame.Error{Code: frame.ProtocolError, Reason: "a frame in the middle of a header block"}
	}
	switch h.Type {
	case frame.Data:
		return c.onData(s, h, p)
	case frame.Headers:
		return c.headers(s, h, p)
	case frame.Continuation:
		return c.onContinuation(s, h, p)
	case frame.Priority:
		return c.onPriority(h, p)
	case frame.Reset:
		if h.Stream == 0 || h.Length != 4 {
			return frameError(h.Length != 4, "RST_STREAM")
		}
		return s.reset(h.Stream, frame.Code(binary.BigEndian.Uint32(p)))
	case frame.Settings:
		return c.settings(s, h, p)
	case frame.PushPromise:
		return s.pushed()
	case frame.Ping:
		return c.onPing(s, h, p)
	case frame.GoAway:
		return c.onGoAway(s, h, p)
	case frame.WindowUpdate:
		return c.onWindowUpdate(s, h, p)
	}
	// RFC 9113 section 5.5 has them ignored. They cost, as a peer could send nothing else.
	return c.spend(1, "frames of unknown types")
}

func (c *conn) onData(s side, h frame.Header, p []byte) error {
	if h.Stream == 0 {
		return frame.Error{Code: frame.ProtocolError, Reason: "DATA on stream 0"}
	}
	// The whole payload counts, padding too (RFC 9113 section 6.1), and before the stream is looked for: DATA of a stream that was reset takes
	// of the connection's window as well (section 5.1). Otherwise both sides would disagree on the window, and the connection would come to a halt.
	if c.granted -= int64(h.Length); c.granted < 0 {
		return frame.Error{Code: frame.FlowControlError, Reason: "more DATA than the connection's window"}
	}
	if c.owed += h.Length; c.owed >= connWindow/2 {
		c.grant()
	}
	content, err := frame.Unpad(h, p)
	if err != nil {
		return err
	}
	// Such a frame takes nothing of a window, so flow control does not bound how many come.
	if len(content) == 0 && !h.Has(frame.EndStream) {
		if err := c.spend(1, "DATA frames without data"); err != nil {
			return err
		}
	}
	c.lastNews.Store(c.now)
	return s.data(h.Stream, content, h.Length, h.Has(frame.EndStream))
}

// onContinuation takes the next part of a header block. Neither a window nor SETTINGS bounds how many there are, so the budget does.
func (c *conn) onContinuation(s side, h frame.Header, p []byte) error {
	if c.pieceOf == 0 {
		return frame.Error{Code: frame.ProtocolError, Reason: "CONTINUATION without HEADERS"}
	}
	if c.pieceLen += len(p); c.pieceLen > c.maxList {
		// It is read on, since the table must be kept right for the other streams, but not without end.
		if err := c.spend(costly, "CONTINUATION frames above the limit"); err != nil {
			return err
		}
	} else if len(p) < smallFrame && !h.Has(frame.EndHeaders) {
		if err := c.spend(costly, "small CONTINUATION frames"); err != nil {
			return err
		}
	}
	if err := c.piece(p); err != nil || !h.Has(frame.EndHeaders) {
		return err
	}
	id := c.pieceOf
	c.pieceOf = 0
	set, err := c.reader.End()
	return c.decoded(s, id, set, err, c.pieceEnd)
}

// onPriority checks a frame that has no effect: RFC 9113 section 5.3.2 has deprecated it. Section 6.3 asks for a stream error where this ends the connection, which section 5.4
// allows.
func (c *conn) onPriority(h frame.Header, p []byte) error {
	if h.Stream == 0 {
		return frame.Error{Code: frame.ProtocolError, Reason: "PRIORITY on stream 0"}
	}
	if h.Length != 5 {
		return frameError(true, "PRIORITY")
	}
	if binary.BigEndian.Uint32(p)&frame.MaxStream == h.Stream {
		return dependsOnItself
	}
	return c.spend(1, "PRIORITY frames")
}

// onPing answers a PING (RFC 9113 section 6.7). An acknowledgment costs as much as a PING, since a peer may send some that answer nothing.
func (c *conn) onPing(s side, h frame.Header, p []byte) error {
	if h.Stream != 0 || h.Length != 8 {
		return frameError(h.Length != 8, "PING")
	}
	if err := c.spend(1, "PING frames"); err != nil {
		return err
	}
	if h.Has(frame.Ack) {
		s.pong(binary.BigEndian.Uint64(p))
		return nil
	}
	return c.reply(func(b []byte) []byte { return frame.AppendPing(b, true, binary.BigEndian.Uint64(p)) })
}

func (c *conn) onGoAway(s side, h frame.Header, p []byte) error {
	if h.Stream != 0 || h.Length < 8 {
		return frameError(h.Length < 8, "GOAWAY")
	}
	if err := c.spend(1, "GOAWAY frames"); err != nil {
		return err
	}
	return s.goAway(binary.BigEndian.Uint32(p)&frame.MaxStream, frame.Code(binary.BigEndian.Uint32(p[4:])), string(p[8:]))
}

func (c *conn) onWindowUpdate(s side, h frame.Header, p []byte) error {
	if h.Length != 4 {
		return frameError(true, "WINDOW_UPDATE")
	}
	if err := c.spend(1, "WINDOW_UPDATE frames"); err != nil {
		return err
	}
	n := int(binary.BigEndian.Uint32(p) & frame.MaxWindow)
	if h.Stream != 0 {
		return s.streamWindow(h.Stream, n)
	}
	if n == 0 {
		return frame.Error{Code: frame.ProtocolError, Reason: "a WINDOW_UPDATE of 0"}
	}
	c.mu.Lock()
	c.window += int64(n)
	// blocked: the window was so small that streams may have stopped at it. Otherwise nothing waits for this frame, and the streams need not be looked at.
	over, blocked := c.window > frame.MaxWindow, c.window == int64(n) || c.window-int64(n) < turn
	c.mu.Unlock()
	if over {
		return frame.Error{Code: frame.FlowControlError, Reason: "a connection window above 2^31-1"}
	}
	// After mu was released, which moreRoom takes.
	if blocked {
		s.moreRoom(&c.woken)
	}
	return nil
}

// frameError is the error for a frame of a wrong length or, without length, for one on the wrong stream: stream 0 instead of another, or the other way round.
func frameError(length bool, name string) error {
	if length {
		return frame.Error{Code: frame.FrameSizeError, Reason: "the length of a " + name + " frame"}
	}
	return frame.Error{Code: frame.ProtocolError, Reason: "the stream of a " + name + " frame"}
}

// headers takes a HEADERS frame: RFC 9113 section 6.2. What is wrong with it apart from its block is reported after the block was decoded, see decoded.
func (c *conn) headers(s side, h frame.Header, p []byte) error {
	if h.Stream == 0 {
		return frame.Error{Code: frame.ProtocolError, Reason: "HEADERS on stream 0"}
	}
	p, err := frame.Unpad(h, p)
	if err != nil {
		return err
	}
	c.pieceBad = nil
	if h.Has(frame.Prioritized) {
		if len(p) < 5 {
			return frameError(true, "HEADERS")
		}
		if binary.BigEndian.Uint32(p)&frame.MaxStream == h.Stream {
			c.pieceBad = dependsOnItself
		}
		p = p[5:]
	}
	c.lastNews.Store(c.now)
	end := h.Has(frame.EndStream)
	if !h.Has(frame.EndHeaders) {
		c.pieceOf, c.pieceEnd, c.pieceLen = h.Stream, end, len(p)
		c.reader.Begin()
		return c.piece(p)
	}
	heavy := len(p) > uncounted && c.heavy != nil
	if heavy {
		c.heavy <- struct{}{}
	}
	set, err := c.reader.Read(p)
	if heavy {
		<-c.heavy
	}
	return c.decoded(s, h.Stream, set, err, end)
}

// piece decodes a part of a header block.
func (c *conn) piece(p []byte) error {
	if c.heavy != nil {
		c.heavy <- struct{}{}
		defer func() { <-c.heavy }()
	}
	if err := c.reader.Piece(p); err != nil {
		return frame.Error{Code: frame.CompressionError, Reason: err.Error()}
	}
	return nil
}

// decoded hands a header block to its stream. An error of HPACK ends the connection in any case, since the table that all streams share is unknown then: RFC 9113 section 4.3.
func (c *conn) decoded(s side, id uint32, set *header.Set, err error, end bool) error {
	if err != nil {
		return frame.Error{Code: frame.CompressionError, Reason: err.Error()}
	}
	if c.pieceBad != nil {
		return c.pieceBad
	}
	return s.block(id, set, end)
}

var dependsOnItself = frame.Error{Code: frame.ProtocolError, Reason: "a stream that depends on itself"}

// settings takes SETTINGS, or the acknowledgment of ours: RFC 9113 section 6.5.
func (c *conn) settings(s side, h frame.Header, p []byte) error {
	if h.Stream != 0 || h.Has(frame.Ack) && h.Length != 0 {
		return frameError(h.Stream == 0, "SETTINGS")
	}
	if h.Has(frame.Ack) {
		if change, ok := c.acknowledged(); ok && change.delta != 0 {
			s.windowChanged(change)
		}
		return c.spend(1, "SETTINGS frames")
	}
	if err := c.spend(c.settingsCost()+len(p)/60, "SETTINGS frames"); err != nil {
		return err
	}
	c.mu.Lock()
	before := c.peer.window
	err := frame.EachSetting(p, func(setting frame.Setting) error {
		switch setting.ID {
		case frame.HeaderTableSize:
			c.encoder.SetTableSize(setting.Value)
		case frame.MaxConcurrentStreams:
			c.peer.streams = setting.Value
		case frame.InitialWindowSize:
			c.peer.window = int64(setting.Value)
		case frame.MaxFrameSize:
			c.peer.maxFrame = min(int(setting.Value), turn)
		case frame.MaxHeaderListSize:
			c.peer.list = int64(setting.Value)
		}
		return nil
	})
	c.peer.known = true
	grown := c.peer.window > before
	c.mu.Unlock()
	if err != nil {
		return err
	}
	// After the values are in force: the peer relies on them once it has the acknowledgment, RFC 9113 section 6.5.3.
	if err := c.reply(frame.AppendSettingsAck); err != nil {
		return err
	}
	return s.settled(grown)
}
