package proxy

import (
	"fmt"
	"io"
	"runtime"
	"sync"

	"github.com/levada-io/levada/internal/h2/frame"
)

// The reading goroutine of a connection, and its buffers.

var smallReads = sync.Pool{New: func() any { return &buffer{make([]byte, smallRead)} }}
var largeReads = sync.Pool{New: func() any { return &buffer{make([]byte, largeRead)} }}

// readBuffer is what a connection reads into. Much traffic is read in large pieces; a connection with little of it holds little memory, and one that waits holds none, where
// the socket allows that.
type readBuffer struct {
	pool  *sync.Pool // that buf came from
	buf   *buffer    // nil only while the socket waits without memory, and after release
	n     int        // bytes that were read and not parsed. Invariant: less than a whole frame whenever the reader waits
	quiet int        // reads in a row that brought little; negative: the last one filled the buffer, so there is more
}

func newReadBuffer(first []byte) readBuffer {
	r := readBuffer{pool: &smallReads}
	r.n = copy(r.lend(), first)
	return r
}

func (r *readBuffer) lend() []byte {
	if r.buf == nil {
		r.buf = r.pool.Get().(*buffer)
	}
	return r.buf.b
}

func (r *readBuffer) release() {
	if r.buf != nil {
		r.pool.Put(r.buf)
		r.buf = nil
	}
}

// resize changes between small and large, as the traffic has been.
func (r *readBuffer) resize() {
	b := r.buf.b
	switch {
	case r.pool == &smallReads && (r.n == len(b) || r.n >= frame.HeaderLen && frame.ParseHeader(b).Length+frame.HeaderLen > len(b) || r.quiet < 0):
		r.move(&largeReads)
	case r.pool == &largeReads && r.quiet > 16 && r.n < smallRead/2:
		r.move(&smallReads)
	}
}

func (r *readBuffer) move(to *sync.Pool) {
	next := to.Get().(*buffer)
	copy(next.b, r.buf.b[:r.n])
	r.pool.Put(r.buf)
	r.pool, r.buf, r.quiet = to, next, 0
}

// add notes that a read has brought n bytes.
func (r *readBuffer) add(n int) {
	switch {
	case n == len(r.buf.b)-r.n:
		r.quiet = -1
	case n < smallRead/2:
		r.quiet = max(r.quiet, 0) + 1
	default:
		r.quiet = 0
	}
	r.n += n
}

// read is the reading goroutine: it returns why the connection ended.
func (c *conn) read(s side, first []byte) error {
	r := newReadBuffer(first)
	defer r.release()
	socket, _ := c.nc.(interface {
		readLent(lend func() []byte, giveBack func()) (int, error)
	})
	lend, release := r.lend, r.release
	for {
		if err := c.parse(s, &r); err != nil {
			return err
		}
		c.noteSlow(r.buf.b[:r.n])
		r.resize()
		var n int
		var err error
		if socket != nil && r.n == 0 {
			n, err = socket.readLent(lend, release)
		} else {
			n, err = c.nc.Read(r.buf.b[r.n:])
		}
		if n <= 0 {
			if err == io.EOF || err == nil {
				err = errDone
			}
			return err
		}
		r.add(n)
		c.now = c.proxy.tick()
		c.lastRead.Store(c.now)
		c.budget.refill(c.now)
	}
}

// parse takes the whole frames out of the buffer.
func (c *conn) parse(s side, r *readBuffer) error {
	at, frames := 0, 0
	for r.n-at >= frame.HeaderLen {
		h := frame.ParseHeader(r.buf.b[at:])
		if h.Length > frame.DefaultMaxFrame {
			return frame.Error{Code: frame.FrameSizeError, Reason: fmt.Sprintf("a frame of %d bytes", h.Length)}
		}
		end := at + frame.HeaderLen + h.Length
		if end > r.n {
			break
		}
		if err := c.onFrame(s, h, r.buf.b[at+frame.HeaderLen:end]); err != nil {
			c.woken.flush()
			return err
		}
		at = end
		if frames++; frames%turnFrames == 0 {
			s.batch(&c.woken)
			c.woken.flush()
			runtime.Gosched()
		}
	}
	if at > 0 {
		s.batch(&c.woken)
		c.woken.flush()
		if r.quiet < 0 { // there is more, at once: others get their turn first
			runtime.Gosched()
		}
	}
	r.n = copy(r.buf.b, r.buf.b[at:r.n])
	return nil
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
