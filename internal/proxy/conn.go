package proxy

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
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
	smallFrame   = 1 << 10                // of a header block: one that is smaller, and does not end the block, carries nothing to speak of
	connWindow   = 16 << 20               // that we grant a peer for a connection; it is given back at once, streams are what is held
	firstWindow  = 64 << 10               // that we grant for a stream
	largeWindow  = 512 << 10              // to which it grows while what comes is passed on at once
	turn         = 16 << 10               // bytes that one stream may send before others get their turn
	turnFrames   = 512                    // of one peer that are read before others get their turn
	controlBurst = 10_000                 // frames that carry nothing which an endpoint may send at once
	controlRate  = 1000                   // more of them a second
	controlEarn  = 4                      // more of them for each frame with content that we sent to it
	costly       = 4                      // of them for a frame that carries more than it may
	settingsCost = 25                     // of them for SETTINGS after the first: each changes how all streams go on, and ordinary peers send a handful in a connection's life
	lingerTime   = 500 * time.Millisecond // for the peer to close its side, after we have closed ours
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
	moreRoom(w *wakeups)
	pushed() error
	pong(data uint64)
	// batch: what came together has been read.
	batch(w *wakeups)
	// settled: the peer's settings are in force. With more, windows have grown.
	settled(more bool) error
	// windowChanged: the peer has acknowledged another window for its streams.
	windowChanged(windowSize)
}

// conn is what a front and a back have in common. One goroutine reads it and one writes it; any may append to its output.
type conn struct {
	// Set before the goroutines start.
	proxy   *Proxy
	nc      net.Conn
	heavy   chan struct{} // the proxy's, for a front: behind a back's reader others wait
	wake    chan struct{} // of the writer, with room for one. Invariant: only wakeWriterLocked sends, after it has set parked to false, so it never blocks
	maxList int           // bytes of a header list that is taken

	// Written by the reader, read by any.
	lastRead  atomic.Int64 // the wheel's time of the last byte
	lastNews  atomic.Int64 // and of the last HEADERS or DATA
	slowSince atomic.Int64 // when the first part came of a header that is not complete yet; 0: there is none

	// mu guards the fields of this block. It is the lock of the front or back that the conn is part of, see doc.go for the order.
	mu sync.Mutex
	// out is what the writer writes next. Invariants: it ends with a whole frame whenever mu is free. A header block is appended in the order in which encoder has encoded it, and
	// always: a block that was encoded and dropped would leave the peer's HPACK table different from ours.
	out       []byte
	writing   int   // bytes of the Write in progress, which the writer makes without mu; 0: none
	writeFrom int64 // when that Write began
	flushed   int64 // bytes written so far
	parked    bool  // the writer waits for wake. Invariant: out is empty, or its frames were appended by one who has yet to call wakeWriter
	closing   bool  // nothing more is appended; the writer ends after out
	err       error // why the connection has failed, once: out is dropped then
	encoder   *header.Writer
	window    int64 // DATA that the peer grants for the connection. Invariant: at most 2^31-1
	peer      peer
	tail      int          // where in out the last DATA frame begins, which is
	tailOf    uint32       // this stream's; 0: there is none
	replies   int          // bytes in out that answer the peer's frames. Invariant: at most maxReplies, or the connection is being closed
	blocks    int          // and of large header blocks
	announced int32        // INITIAL_WINDOW_SIZE as announced last
	unacked   []windowSize // announcements that the peer has not acknowledged, the oldest first

	// What follows belongs to the reader.
	reader   *header.Reader
	budget   frameBudget
	woken    wakeups // of the frames that were read together
	now      int64   // the wheel's time of the last read
	owed     int     // DATA that came and was not granted again yet. Invariant: owed + granted = connWindow
	granted  int64   // that the peer may still send on the connection; never negative
	pieceOf  uint32  // the stream of a header block that comes in pieces; 0: there is none. Invariant: while set, only its CONTINUATION may come
	pieceEnd bool    // that block ends the stream
	pieceBad error   // what is wrong with the stream's frame, reported after the block, which the HPACK table needs
	pieceLen int     // bytes of the block that have come
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
	c.budget.set(controlBurst, controlRate, c.now)
	c.announced, c.unacked = firstWindow, []windowSize{{}}
}

// fail makes the connection end with an error. mu is held.
func (c *conn) fail(err error) {
	if c.err == nil {
		c.err = err
	}
	c.out = nil
	_ = c.socket().Close() // which ends the reader, and a Write
	c.wakeWriterLocked()
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

// kill is fail for those without the lock.
func (c *conn) kill(err error) {
	c.mu.Lock()
	c.fail(err)
	c.mu.Unlock()
}

// closeAfterOut sends GOAWAY and ends the connection once that is written. mu is held.
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
