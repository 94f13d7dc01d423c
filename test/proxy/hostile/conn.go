package hostile

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/http2"
)

// Conn is one side of an HTTP/2 connection that keeps to no rule: it sends any frame of the caller, and counts what comes back. The Framer's Write
// methods are for one goroutine at a time; they fill a buffer, see Flush.
type Conn struct {
	net.Conn
	*http2.Framer
	// n is for attacks that count.
	n int

	out     *frameWriter
	answers *http2.Framer // reads; and writes what the reader answers, whole frames between those of the attack
	server  bool
	mute    bool // no credit is given for what was read, no SETTINGS are acknowledged
	opened  time.Time
	ended   chan struct{} // closed when nothing more can be read
	request func(*Conn, *http2.MetaHeadersFrame) error
	data    func(*Conn, *http2.DataFrame) error

	mu      sync.Mutex
	saw     map[string]int
	streams map[uint32]*fate
	why     string        // GOAWAY's code, if one came
	begun   chan struct{} // closed with the first request of the peer
	// The stream that was opened last: our own request, or that of the peer. over says that the peer has ended it.
	stream uint32
	over   bool
	// What may be sent on the connection, on stream, and on a new one; more tells who waits.
	room, streamRoom, initialRoom int64
	more                          *sync.Cond
}

// defaultRoom is the flow-control window of HTTP/2.
const defaultRoom = 65535

// fate is what became of a stream.
type fate struct {
	outcome string        // as in Outcome
	data    chan []byte   // what came, as far as there is room
	ended   chan struct{} // closed when it has ended
}

// frameWriter buffers frames of two Framers, each of which writes a frame with one call, and counts them.
type frameWriter struct {
	mu     sync.Mutex
	buf    *bufio.Writer
	frames atomic.Int64
}

func (w *frameWriter) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.frames.Add(1)
	return w.buf.Write(p)
}

// Flush sends what is in the buffer.
func (c *Conn) Flush() error {
	c.out.mu.Lock()
	defer c.out.mu.Unlock()
	return c.out.buf.Flush()
}

// Bytes sends what need not be a frame.
func (c *Conn) Bytes(p []byte) error {
	_, err := c.out.Write(p)
	return err
}

func newConn(c net.Conn, server bool) *Conn {
	out := &frameWriter{buf: bufio.NewWriterSize(c, 8<<10)}
	conn := &Conn{
		Conn: c, Framer: http2.NewFramer(out, nil), out: out, answers: http2.NewFramer(out, bufio.NewReaderSize(c, 8<<10)), server: server,
		opened: time.Now(), ended: make(chan struct{}), begun: make(chan struct{}), saw: map[string]int{}, streams: map[uint32]*fate{},
		room: defaultRoom, streamRoom: defaultRoom, initialRoom: defaultRoom,
	}
	conn.more = sync.NewCond(&conn.mu)
	conn.AllowIllegalWrites = true
	return conn
}

// Dial connects to a server, and does no more.
func Dial(ctx context.Context, addr string) (*Conn, error) {
	c, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	return newConn(c, false), nil
}

// Hello begins HTTP/2: the preface, for a server the one of the peer, and our SETTINGS.
func (c *Conn) Hello(settings ...http2.Setting) error {
	if c.server {
		if _, err := io.ReadFull(c.Conn, make([]byte, len(http2.ClientPreface))); err != nil {
			return err
		}
	} else if _, err := c.out.buf.WriteString(http2.ClientPreface); err != nil {
		return err
	}
	if err := c.WriteSettings(settings...); err != nil {
		return err
	}
	return c.Flush()
}

// Read reads until the connection ends, and answers as a well-behaved peer does unless it is mute.
func (c *Conn) Read() {
	defer close(c.ended)
	c.answers.ReadMetaHeaders = newDecoder()
	c.answers.MaxHeaderListSize = 16 << 20
	c.answers.SetMaxReadFrameSize(1<<24 - 1)
	for {
		f, err := c.answers.ReadFrame()
		if stream, ok := errors.AsType[http2.StreamError](err); ok {
			c.note(fmt.Sprintf("malformed (%v)", stream.Cause))
			continue
		}
		if err == nil {
			err = c.take(f)
		}
		if err != nil {
			c.mu.Lock()
			for _, s := range c.streams {
				s.end(strings.TrimSpace("closed " + c.why))
			}
			c.room = -1 << 62
			c.more.Broadcast()
			c.mu.Unlock()
			return
		}
	}
}

func (c *Conn) take(f http2.Frame) error {
	switch f := f.(type) {
	case *http2.SettingsFrame:
		if initial, ok := f.Value(http2.SettingInitialWindowSize); ok {
			c.mu.Lock()
			c.streamRoom += int64(initial) - c.initialRoom
			c.initialRoom = int64(initial)
			c.more.Broadcast()
			c.mu.Unlock()
		}
		if f.IsAck() || c.mute {
			return nil
		}
		if err := c.answers.WriteSettingsAck(); err != nil {
			return err
		}
		return c.Flush()
	case *http2.PingFrame:
		if f.IsAck() || c.mute {
			return nil
		}
		if err := c.answers.WritePing(true, f.Data); err != nil {
			return err
		}
		return c.Flush()
	case *http2.WindowUpdateFrame:
		c.mu.Lock()
		switch f.StreamID {
		case 0:
			c.room += int64(f.Increment)
		case c.stream:
			c.streamRoom += int64(f.Increment)
		}
		c.more.Broadcast()
		c.mu.Unlock()
	case *http2.GoAwayFrame:
		c.note("GOAWAY " + f.ErrCode.String())
		c.mu.Lock()
		c.why = f.ErrCode.String()
		c.mu.Unlock()
	case *http2.RSTStreamFrame:
		c.note("RST " + f.ErrCode.String())
		c.end(f.StreamID, "RST "+f.ErrCode.String())
	case *http2.MetaHeadersFrame:
		if c.server {
			c.note("request")
			c.use(f.StreamID)
			select {
			case <-c.begun:
			default:
				defer close(c.begun)
			}
			return c.request(c, f)
		}
		c.headers(f)
	case *http2.DataFrame:
		if c.data != nil {
			return c.data(c, f)
		}
		c.mu.Lock()
		if s := c.streams[f.StreamID]; s != nil {
			select {
			case s.data <- append([]byte(nil), f.Data()...):
			default:
			}
		}
		c.mu.Unlock()
		if f.StreamEnded() {
			c.end(f.StreamID, "")
		}
		return c.credit(f)
	}
	return nil
}

// credit gives back what a DATA frame has used up.
func (c *Conn) credit(f *http2.DataFrame) error {
	if c.mute || f.Length == 0 {
		return nil
	}
	if err := c.answers.WriteWindowUpdate(0, f.Length); err != nil {
		return err
	}
	if !f.StreamEnded() {
		if err := c.answers.WriteWindowUpdate(f.StreamID, f.Length); err != nil {
			return err
		}
	}
	return c.Flush()
}

// headers notes a response's status, and gRPC's, wherever it stands.
func (c *Conn) headers(f *http2.MetaHeadersFrame) {
	var said []string
	for _, h := range f.Fields {
		if (h.Name == ":status" && h.Value != "200") || (h.Name == "grpc-status" && (h.Value != "0" || f.StreamEnded())) {
			kind := "http "
			if h.Name != ":status" {
				kind = "grpc "
			}
			said = append(said, kind+h.Value)
		}
	}
	outcome := strings.Join(said, " ")
	if outcome != "" {
		c.note(outcome)
	}
	c.mu.Lock()
	if s := c.streams[f.StreamID]; s != nil && outcome != "" {
		s.outcome = outcome
	}
	c.mu.Unlock()
	if f.StreamEnded() {
		c.end(f.StreamID, "")
	}
}

func (c *Conn) note(what string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.saw) < 100 { // of distinct ones
		c.saw[what]++
	}
}

func (c *Conn) end(stream uint32, outcome string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if stream == c.stream {
		c.over = true
		c.more.Broadcast()
	}
	if s := c.streams[stream]; s != nil {
		s.end(outcome)
	}
}

func (s *fate) end(outcome string) {
	select {
	case <-s.ended:
		return
	default:
	}
	if outcome != "" {
		s.outcome = outcome
	}
	close(s.ended)
}

// use makes a stream the one that steps are about.
func (c *Conn) use(stream uint32) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.stream, c.streamRoom, c.over = stream, c.initialRoom, false
	c.more.Broadcast()
}

// Stream is the one that was opened last: our own request, or that of the peer.
func (c *Conn) Stream() uint32 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.stream
}

// Spend waits until the peer's windows have room for n bytes on Stream, and takes it. For those who do not care there is WriteData alone.
func (c *Conn) Spend(n int64) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	for flushed := false; c.room < n || c.streamRoom < n; {
		switch {
		case c.room < -1<<61:
			return net.ErrClosed
		case c.over && !c.server:
			return errAgain
		case flushed:
			c.more.Wait()
			flushed = false
		default: // and look again, since much may happen meanwhile
			c.mu.Unlock()
			err := c.Flush()
			c.mu.Lock()
			if err != nil {
				return err
			}
			flushed = true
		}
	}
	c.room, c.streamRoom = c.room-n, c.streamRoom-n
	return nil
}

// Open opens a stream with a block of fields.
func (c *Conn) Open(block []byte, end bool) error {
	c.use((c.Stream() + 1) | 1)
	return c.Head(c.Stream(), block, end)
}

// Head sends a block on a stream, in as many frames as it needs.
func (c *Conn) Head(stream uint32, block []byte, end bool) error {
	return head(c.Framer, stream, block, end)
}

func head(to *http2.Framer, stream uint32, block []byte, end bool) error {
	const room = 16 << 10
	first := min(len(block), room)
	err := to.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: block[:first], EndHeaders: first == len(block), EndStream: end})
	for block = block[first:]; err == nil && len(block) > 0; block = block[first:] {
		first = min(len(block), room)
		err = to.WriteContinuation(stream, first == len(block), block[:first])
	}
	return err
}

// Watch has what becomes of the stream with this number kept; to be called before it is opened.
func (c *Conn) Watch(stream uint32) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.streams[stream] = &fate{data: make(chan []byte, 64), ended: make(chan struct{})}
}

// Outcome waits for the end of a watched stream: "RST CODE", "http 400", "grpc 8", "grpc 0", "closed CODE" if the connection ended with that GOAWAY, or
// "nothing" if it does not end in time.
func (c *Conn) Outcome(stream uint32, within time.Duration) string {
	c.mu.Lock()
	s := c.streams[stream]
	c.mu.Unlock()
	select {
	case <-s.ended:
		c.mu.Lock()
		defer c.mu.Unlock()
		return s.outcome
	case <-time.After(within):
		return "nothing"
	}
}

// Await waits for data on a watched stream.
func (c *Conn) Await(stream uint32, n int, within time.Duration) error {
	c.mu.Lock()
	s := c.streams[stream]
	c.mu.Unlock()
	deadline := time.After(within)
	for n > 0 {
		select {
		case p := <-s.data:
			n -= len(p)
		case <-s.ended:
			if len(s.data) > 0 {
				continue
			}
			return fmt.Errorf("stream %d has ended: %s", stream, s.outcome)
		case <-deadline:
			return fmt.Errorf("stream %d: %w", stream, os.ErrDeadlineExceeded)
		}
	}
	return nil
}
