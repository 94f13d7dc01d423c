package proxy

import (
	"runtime"
	"sync"
	"time"

	"github.com/levada-io/levada/internal/h2/frame"
	"github.com/levada-io/levada/internal/h2/header"
)

// The output of a connection: what is appended under mu, and the goroutine that writes it.

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

// wakeWriter wakeups the writer if it has something to do.
func (c *conn) wakeWriter() {
	c.mu.Lock()
	if len(c.out) > 0 || c.closing {
		c.wakeWriterLocked()
	}
	c.mu.Unlock()
}

// wakeWriterLocked wakeups the writer. mu is held.
func (c *conn) wakeWriterLocked() {
	if c.parked {
		c.parked = false
		c.wake <- struct{}{}
	}
}

// write is the writing goroutine. It ends when the connection fails, or when all is written after which it is to be closed: then the peer gets the end of the stream of bytes, and
// has a moment to close its side, so that what was written last is not lost in a reset.
func (c *conn) write(s side) {
	defer func() {
		if half, ok := c.nc.(interface{ CloseWrite() error }); ok {
			_ = half.CloseWrite()
		}
		_ = c.nc.SetReadDeadline(time.Now().Add(lingerTime))
	}()
	var w wakeups
	var spare []byte
	c.mu.Lock()
	for {
		if len(c.out) == 0 {
			if c.closing || c.err != nil {
				break
			}
			// Set before mu is released: a reader that appends from here on finds it and sends to wake, so no wakeup is lost.
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
		// tailOf is 0 because the frame that it names is being written, and cannot be extended any more.
		c.out, c.replies, c.blocks, c.tailOf = spare[:0], 0, 0, 0
		c.writing, c.writeFrom = len(b), c.proxy.wheel.Now()
		c.mu.Unlock()
		// Without mu: a reader of another connection that appends here must never wait for this socket.
		n, err := c.nc.Write(b)
		spare = b
		c.mu.Lock()
		c.writing = 0
		c.flushed += int64(n)
		if err != nil {
			c.fail(err)
			break
		}
		// moreRoom takes mu itself, and flush the locks of other connections, so mu is released for both.
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
	c.budget.earned.Add(1)
}

// appendFields is appendBlock for fields that the proxy itself has made. mu is held.
func (c *conn) appendFields(id uint32, fields []header.Field, end bool) {
	c.out = frame.AppendHeaders(c.out, id, c.encoder.Fields(fields), end, c.peer.maxFrame)
	c.budget.earned.Add(1)
}

// appendData appends DATA. mu is held. The caller has made sure that the windows allow it.
// Empty DATA with END_STREAM needs none: RFC 9113 section 6.9.1.
func (c *conn) appendData(id uint32, p []byte, end bool) {
	c.window -= int64(len(p))
	if c.extend(id, p, end) {
		return
	}
	c.grow(frame.HeaderLen + len(p))
	c.tail, c.tailOf = len(c.out), id
	c.out = frame.AppendData(c.out, id, p, end)
	c.budget.earned.Add(1)
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

// reply appends what answers a frame of the peer. A peer that asks and does not read is not served without limit.
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
// Only the reader calls it: granted and owed are its own, and need no lock.
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
