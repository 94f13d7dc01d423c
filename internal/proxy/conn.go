package proxy

import (
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/levada-io/levada/internal/h2/frame"
	"github.com/levada-io/levada/internal/h2/header"
)

const (
	maxOut       = 256 << 10 // of a connection's output; DATA waits with its stream beyond it
	lowOut       = 64 << 10  // below it, streams that wait get their turn
	maxReplies   = 64 << 10  // of output that answers frames of a peer that does not read
	smallOut     = 4 << 10   // that an idle connection may keep
	largeOut     = 64 << 10
	smallRead    = 4 << 10
	largeRead    = 64 << 10
	smallFrame   = 1 << 10   // of a header block: one that is smaller, and does not end the block, carries nothing to speak of
	connWindow   = 16 << 20  // that we grant a peer for a connection; it is given back at once, streams are what is held
	firstWindow  = 64 << 10  // that we grant for a stream
	largeWindow  = 512 << 10 // to which it grows while what comes is passed on at once
	turn         = 16 << 10  // bytes that one stream may send before others get their turn
	turnFrames   = 512       // of one peer that are read before others get their turn
	controlBurst = 10_000    // frames that carry nothing which an endpoint may send at once
	controlRate  = 1000      // more of them a second
	controlEarn  = 4         // more of them for each frame with content that we sent to it
	costly       = 4         // of them for a frame that carries more than it may
	settingsCost = 25        // of them for SETTINGS after the first: each changes how all streams go on, and ordinary peers send a handful in a connection's life
	lastWords    = 500 * time.Millisecond
)

var (
	errClosed = errors.New("the connection is closed")
	errDone   = errors.New("the peer has ended the connection")
)

// side is what differs between a front and a back. Its methods are called by the reading goroutine, without locks. An error that is a frame.Error ends
// the connection with that code.
type side interface {
	block(id uint32, set *header.Set, end bool) error
	data(id uint32, p []byte, length int, end bool) error
	reset(id uint32, code frame.Code) error
	streamWindow(id uint32, n int) error
	goAway(last uint32, code frame.Code, text string) error
	// moreRoom: the peer has granted more, or the socket has taken something.
	moreRoom(w *wakes)
	pushed() error
	pong(data uint64)
	// batch: what came together has been read.
	batch(w *wakes)
	// settled: the peer's settings are in force. With more, windows have grown.
	settled(more bool) error
	// windowChanged: the peer has acknowledged another window for its streams.
	windowChanged(windowSize)
}

// conn is what a front and a back have in common.
type conn struct {
	proxy *Proxy
	heavy chan struct{} // the proxy's, for a front: behind a back's reader others wait
	nc    net.Conn
	wake  chan struct{} // of the writer, when it is parked

	lastRead atomic.Int64 // the wheel's time of the last byte
	lastNews atomic.Int64 // and of the last HEADERS or DATA
	// When the first part came of a header that is not complete yet; 0: there is none.
	slowSince atomic.Int64

	mu        sync.Mutex
	out       []byte
	writing   int   // bytes of the Write that is going on
	writeFrom int64 // since when
	flushed   int64 // bytes written
	parked    bool
	closing   bool // after what is in out
	err       error
	encoder   *header.Writer
	window    int64 // that the peer grants for the connection
	peer      peer
	tail      int          // where in out the last DATA frame begins, which is
	tailOf    uint32       // this stream's; 0: there is none
	replies   int          // bytes in out that answer the peer's frames
	blocks    int          // and of large header blocks
	announced int32        // the window of a new stream, as we have said it last
	unacked   []windowSize // what we have said of it, that the peer has not acknowledged
	earned    atomic.Int32 // frames with content that were sent since the reader looked

	// The reader's.
	reader   *header.Reader
	woken    wakes
	now      int64
	owed     int // of the connection's window
	granted  int64
	pieceOf  uint32 // the stream of a header block that comes in pieces; 0: there is none
	pieceEnd bool
	pieceBad error // what is wrong with the stream's frame, to be said after the block
	pieceLen int   // bytes of the block that have come
	maxList  int   // of a header list that we take
	// The budget for what the peer may send that carries nothing: what is left of it, at most burst. Invariant: it is above -burst, or the connection is
	// being closed. With a burst of 0 there is no limit.
	control   float64
	controlAt int64
	burst     float64
	rate      float64 // that comes back each second
}

// peer is what the other end said in SETTINGS.
type peer struct {
	window   int64 // for a new stream
	maxFrame int
	streams  uint32
	list     int64 // bytes of a header list
	known    bool  // its first SETTINGS came
}

func (c *conn) init(p *Proxy, nc net.Conn, maxList int) {
	c.proxy, c.nc = p, nc
	c.wake = make(chan struct{}, 1)
	c.encoder = header.NewWriter(frame.DefaultTableSize)
	c.reader, c.maxList = header.NewReader(frame.DefaultTableSize, maxList), maxList
	c.window = frame.DefaultWindow
	c.granted = connWindow
	c.peer = peer{window: frame.DefaultWindow, maxFrame: frame.DefaultMaxFrame, streams: 1<<32 - 1, list: 1<<63 - 1}
	c.now = p.wheel.Now()
	c.lastRead.Store(c.now)
	c.lastNews.Store(c.now)
	c.budget(controlBurst, controlRate)
	c.announced, c.unacked = firstWindow, []windowSize{{}}
}

// budget sets what the peer may send that carries nothing.
func (c *conn) budget(burst, rate int) {
	c.burst, c.rate = float64(burst), float64(rate)
	c.control, c.controlAt = c.burst, c.now
}

// wakes collects the connections to which something was appended, and what else is to be done once no lock is held.
type wakes struct {
	conns     []*conn
	endpoints []*endpoint // that may have room for a waiting stream
	clusters  []*cluster  // that may have room for a queued call
}

func (w *wakes) add(c *conn) {
	for _, other := range w.conns {
		if other == c {
			return
		}
	}
	w.conns = append(w.conns, c)
}

func (w *wakes) flush() {
	for len(w.endpoints)+len(w.clusters) > 0 {
		if n := len(w.clusters); n > 0 {
			c := w.clusters[n-1]
			w.clusters = w.clusters[:n-1]
			c.serveQueue(w)
			continue
		}
		e := w.endpoints[len(w.endpoints)-1]
		w.endpoints = w.endpoints[:len(w.endpoints)-1]
		e.serveWaiting(w)
	}
	for i, c := range w.conns {
		c.kick()
		w.conns[i] = nil
	}
	w.conns = w.conns[:0]
}

// kick wakes the writer if it has something to do.
func (c *conn) kick() {
	c.mu.Lock()
	if len(c.out) > 0 || c.closing {
		c.rouse()
	}
	c.mu.Unlock()
}

type buffer struct{ b []byte }

var outBuffers = sync.Pool{New: func() any { return &buffer{make([]byte, 0, largeOut)} }}

// shrunk returns a buffer that is not needed now: an idle connection holds little memory.
func shrunk(b []byte) []byte {
	if cap(b) <= smallOut {
		return b
	}
	if cap(b) <= 2*maxOut {
		outBuffers.Put(&buffer{b[:0]})
	}
	return nil
}

// grow makes room for n bytes of DATA in out, without many steps from small to large. mu is held.
func (c *conn) grow(n int) {
	if cap(c.out)-len(c.out) >= n || len(c.out)+n <= smallOut || cap(c.out) >= largeOut {
		return
	}
	large := outBuffers.Get().(*buffer)
	c.out = append(large.b[:0], c.out...)
}

// write is the writing goroutine. It ends when the connection fails, or when all is written after which it is to be closed: then the peer is told so, and
// has a moment to close its side, so that what was written last is not lost in a reset.
func (c *conn) write(s side) {
	defer func() {
		if half, ok := c.nc.(interface{ CloseWrite() error }); ok {
			_ = half.CloseWrite()
		}
		_ = c.nc.SetReadDeadline(time.Now().Add(lastWords))
	}()
	var w wakes
	var spare []byte
	c.mu.Lock()
	for {
		if len(c.out) == 0 {
			if c.closing || c.err != nil {
				break
			}
			c.parked = true
			c.out, spare = shrunk(c.out), shrunk(spare)
			c.mu.Unlock()
			<-c.wake
			// Other readers that are about to run have more for this connection: one system call instead of several. Not while large headers are
			// worked on: readers of those are in the same queue, and each has a millisecond's work.
			if len(c.proxy.heavy) == 0 {
				runtime.Gosched()
			}
			c.mu.Lock()
			continue
		}
		b := c.out
		c.out, c.replies, c.blocks, c.tailOf = spare[:0], 0, 0, 0
		c.writing, c.writeFrom = len(b), c.proxy.wheel.Now()
		c.mu.Unlock()
		n, err := c.nc.Write(b)
		spare = b
		c.mu.Lock()
		c.writing = 0
		c.flushed += int64(n)
		if err != nil {
			c.fail(err)
			break
		}
		if len(c.out) < lowOut {
			c.mu.Unlock()
			s.moreRoom(&w)
			w.flush()
			c.mu.Lock()
		}
	}
	c.closing = true
	if c.err == nil {
		c.err = errClosed
	}
	c.parked = false
	c.mu.Unlock()
}

// fail makes the connection end with an error. mu is held.
func (c *conn) fail(err error) {
	if c.err == nil {
		c.err = err
	}
	c.out = nil
	_ = c.socket().Close() // which ends the reader, and a Write
	c.rouse()
}

// socket is the connection below TLS, whose Close would write, and wait for a peer that does not read.
func (c *conn) socket() net.Conn {
	if t, ok := c.nc.(*tls.Conn); ok {
		return t.NetConn()
	}
	return c.nc
}

// abort is fail for a peer that takes nothing: what the kernel has for it is dropped, too.
func (c *conn) abort(err error) {
	if t, ok := c.socket().(interface{ SetLinger(seconds int) error }); ok {
		_ = t.SetLinger(0)
	}
	c.fail(err)
}

// rouse wakes the writer. mu is held.
func (c *conn) rouse() {
	if c.parked {
		c.parked = false
		c.wake <- struct{}{}
	}
}

// kill is fail for those without the lock.
func (c *conn) kill(err error) {
	c.mu.Lock()
	c.fail(err)
	c.mu.Unlock()
}

// closeAfterOut says goodbye and ends the connection once that is written. mu is held.
func (c *conn) closeAfterOut(last uint32, code frame.Code, text string) {
	if c.closing || c.err != nil {
		return
	}
	c.out = frame.AppendGoAway(c.out, last, code, text)
	c.closing = true
}

// close closes a connection whose goroutines have ended, or do so now. Of one that was closed because of what the peer sent, the rest is read for a moment.
func (c *conn) close(broken bool) {
	if broken {
		_, _ = io.CopyN(io.Discard, c.nc, 1<<20)
	}
	_ = c.socket().Close()
}

// room is how many bytes of DATA may be appended now. mu is held.
func (c *conn) room() int {
	if c.closing || c.err != nil {
		return 0
	}
	return maxOut - len(c.out)
}

// appendBlock appends a set as a header block. mu is held.
func (c *conn) appendBlock(id uint32, set *header.Set, end bool) {
	before := len(c.out)
	c.out = frame.AppendHeaders(c.out, id, c.encoder.Block(set), end, c.peer.maxFrame)
	if n := len(c.out) - before; n > turn {
		c.blocks += n
	}
	c.earned.Add(1)
}

func (c *conn) appendFields(id uint32, fields []header.Field, end bool) {
	c.out = frame.AppendHeaders(c.out, id, c.encoder.Fields(fields), end, c.peer.maxFrame)
	c.earned.Add(1)
}

func (c *conn) appendData(id uint32, p []byte, end bool) {
	c.window -= int64(len(p))
	if c.extend(id, p, end) {
		return
	}
	c.grow(frame.HeaderLen + len(p))
	c.tail, c.tailOf = len(c.out), id
	c.out = frame.AppendData(c.out, id, p, end)
	c.earned.Add(1)
}

// extend appends to the last DATA frame, if that is the stream's and there is room in it: who sends many small frames makes no work for others.
func (c *conn) extend(id uint32, p []byte, end bool) bool {
	if c.tailOf != id || c.tail >= len(c.out) {
		return false
	}
	h := frame.ParseHeader(c.out[c.tail:])
	if c.tail+frame.HeaderLen+h.Length != len(c.out) || h.Length+len(p) > c.peer.maxFrame || h.Has(frame.EndStream) {
		return false
	}
	c.grow(len(p))
	c.out = append(c.out, p...)
	flags := h.Flags
	if end {
		flags |= frame.EndStream
	}
	frame.AppendHeader(c.out[:c.tail], h.Length+len(p), frame.Data, flags, id)
	return true
}

var smallReads = sync.Pool{New: func() any { return &buffer{make([]byte, smallRead)} }}
var largeReads = sync.Pool{New: func() any { return &buffer{make([]byte, largeRead)} }}

// read is the reading goroutine: it returns why the connection ended.
func (c *conn) read(s side, first []byte) error {
	pool := &smallReads
	buf := pool.Get().(*buffer)
	lend := func() []byte {
		if buf == nil {
			buf = pool.Get().(*buffer)
		}
		return buf.b
	}
	giveBack := func() { pool.Put(buf); buf = nil }
	defer func() {
		if buf != nil {
			giveBack()
		}
	}()
	socket, _ := c.nc.(interface {
		readLent(lend func() []byte, giveBack func()) (int, error)
	})
	w, quiet := copy(buf.b, first), 0
	for {
		r, frames := 0, 0
		for w-r >= frame.HeaderLen {
			h := frame.ParseHeader(buf.b[r:])
			if h.Length > frame.DefaultMaxFrame {
				return frame.Error{Code: frame.FrameSizeError, Reason: fmt.Sprintf("a frame of %d bytes", h.Length)}
			}
			end := r + frame.HeaderLen + h.Length
			if end > w {
				break
			}
			if err := c.dispatch(s, h, buf.b[r+frame.HeaderLen:end]); err != nil {
				c.woken.flush()
				return err
			}
			r = end
			if frames++; frames%turnFrames == 0 {
				s.batch(&c.woken)
				c.woken.flush()
				runtime.Gosched()
			}
		}
		if r > 0 {
			s.batch(&c.woken)
			c.woken.flush()
			if quiet < 0 { // there is more, at once: others get their turn first
				runtime.Gosched()
			}
		}
		w = copy(buf.b, buf.b[r:w])
		c.noteSlow(buf.b[:w])
		// Much traffic is read in large pieces; a connection with little of it holds little memory, and one that waits none, if that can be.
		if pool == &smallReads && (w == len(buf.b) || w >= frame.HeaderLen && frame.ParseHeader(buf.b).Length+frame.HeaderLen > len(buf.b) || quiet < 0) {
			large := largeReads.Get().(*buffer)
			copy(large.b, buf.b[:w])
			pool.Put(buf)
			pool, buf, quiet = &largeReads, large, 0
		} else if pool == &largeReads && quiet > 16 && w < smallRead/2 {
			small := smallReads.Get().(*buffer)
			copy(small.b, buf.b[:w])
			pool.Put(buf)
			pool, buf, quiet = &smallReads, small, 0
		}
		var n int
		var err error
		if socket != nil && w == 0 {
			n, err = socket.readLent(lend, giveBack)
		} else {
			n, err = c.nc.Read(buf.b[w:])
		}
		if n > 0 {
			switch {
			case n == len(buf.b)-w:
				quiet = -1
			case n < smallRead/2:
				quiet = max(quiet, 0) + 1
			default:
				quiet = 0
			}
			w += n
			c.now = c.proxy.tick()
			c.lastRead.Store(c.now)
			c.refillControl()
			continue
		}
		if err == io.EOF || err == nil {
			err = errDone
		}
		return err
	}
}

// noteSlow notes since when a header has been coming. Data may take their time; who sends a header byte by byte wants something else.
func (c *conn) noteSlow(rest []byte) {
	slow := c.pieceOf != 0 || len(rest) > 0 && (len(rest) < frame.HeaderLen || frame.ParseHeader(rest).Type != frame.Data)
	switch since := c.slowSince.Load(); {
	case slow && since == 0:
		c.slowSince.Store(c.now)
	case !slow && since != 0:
		c.slowSince.Store(0)
	}
}

// dispatch checks what can be said of a frame without its stream: RFC 9113 section 6.
func (c *conn) dispatch(s side, h frame.Header, p []byte) error {
	if c.pieceOf != 0 && (h.Type != frame.Continuation || h.Stream != c.pieceOf) {
		return frame.Error{Code: frame.ProtocolError, Reason: "a frame in the middle of a header block"}
	}
	switch h.Type {
	case frame.Data:
		if h.Stream == 0 {
			return frame.Error{Code: frame.ProtocolError, Reason: "DATA on stream 0"}
		}
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
		if len(content) == 0 && !h.Has(frame.EndStream) {
			if err := c.spend(1, "DATA frames without data"); err != nil {
				return err
			}
		}
		c.lastNews.Store(c.now)
		return s.data(h.Stream, content, h.Length, h.Has(frame.EndStream))
	case frame.Headers:
		return c.headers(s, h, p)
	case frame.Continuation:
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
	case frame.Priority:
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
	case frame.GoAway:
		if h.Stream != 0 || h.Length < 8 {
			return frameError(h.Length < 8, "GOAWAY")
		}
		if err := c.spend(1, "GOAWAY frames"); err != nil {
			return err
		}
		return s.goAway(binary.BigEndian.Uint32(p)&frame.MaxStream, frame.Code(binary.BigEndian.Uint32(p[4:])), string(p[8:]))
	case frame.WindowUpdate:
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
		over, blocked := c.window > frame.MaxWindow, c.window == int64(n) || c.window-int64(n) < turn
		c.mu.Unlock()
		if over {
			return frame.Error{Code: frame.FlowControlError, Reason: "a connection window above 2^31-1"}
		}
		if blocked {
			s.moreRoom(&c.woken)
		}
		return nil
	}
	return c.spend(1, "frames of unknown types")
}

func frameError(length bool, name string) error {
	if length {
		return frame.Error{Code: frame.FrameSizeError, Reason: "the length of a " + name + " frame"}
	}
	return frame.Error{Code: frame.ProtocolError, Reason: "the stream of a " + name + " frame"}
}

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
	if err := c.reply(frame.AppendSettingsAck); err != nil {
		return err
	}
	return s.settled(grown)
}

// settingsCost is what SETTINGS take from the budget. Calls that are answered fill it, so a peer that changes its settings with each call would never use it up
// if they cost no more than a PING: the answer of a unary call gives back 3*controlEarn.
func (c *conn) settingsCost() int {
	if !c.peer.known {
		return 1
	}
	return min(settingsCost, 1+int(c.burst)/20) // of a small burst not so much that a handful would use it up
}

// reply appends what answers a frame of the peer. A peer that asks and does not read is not served for ever.
func (c *conn) reply(add func([]byte) []byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closing || c.err != nil {
		return nil
	}
	before := len(c.out)
	c.out = add(c.out)
	if c.replies += len(c.out) - before; c.replies > maxReplies {
		return frame.Error{Code: frame.EnhanceYourCalm, Reason: "too many frames whose answers are not read"}
	}
	c.woken.add(c)
	return nil
}

// grant gives the connection's window back.
func (c *conn) grant() {
	c.mu.Lock()
	if !c.closing && c.err == nil {
		c.out = frame.AppendWindowUpdate(c.out, 0, c.owed)
	}
	c.mu.Unlock()
	c.woken.add(c)
	c.granted += int64(c.owed)
	c.owed = 0
}

// spend takes from the budget for what carries nothing, and returns an error once the peer has used up twice the burst. Until then, who has used it up once
// is only refused new calls: see front.block. It may be called with and without the lock. A peer that is sent much may send much: it acknowledges, measures and
// grants.
func (c *conn) spend(n int, what string) error {
	if c.burst == 0 {
		return nil
	}
	if c.control -= float64(n); !c.overBudget() || c.control > -c.burst {
		return nil
	}
	return frame.Error{Code: frame.EnhanceYourCalm, Reason: "too many " + what}
}

// overBudget reports whether the peer has used up its budget.
func (c *conn) overBudget() bool {
	if c.control >= 0 || c.burst == 0 {
		return false
	}
	c.refillControl()
	c.control = min(c.control+float64(c.earned.Swap(0))*controlEarn, c.burst)
	return c.control < 0
}

func (c *conn) refillControl() {
	if passed := c.now - c.controlAt; passed > int64(100*time.Millisecond) {
		c.control = min(c.burst, c.control+c.rate*time.Duration(passed).Seconds())
		c.controlAt = c.now
	}
}
