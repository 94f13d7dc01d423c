package fakeh2

import (
	"encoding/binary"
	"strconv"
	"strings"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// exchange is a request and what a script answers.
type exchange struct {
	conn    *conn
	id      uint32
	call    string
	script  Script
	attempt int
	sent    int   // messages
	window  int64 // guarded by conn.mu, as is reset
	reset   bool  // by the peer
}

func (x *exchange) play() {
	x.attempt = x.conn.server.begin(x.call)
	x.script.play(x)
}

func (x *exchange) write(frames func(*http2.Framer) error) { x.conn.write(frames) }

// headers sends names and values in turn.
func (x *exchange) headers(end bool, fields ...string) {
	c := x.conn
	x.write(func(f *http2.Framer) error {
		c.block.Reset()
		for i := 0; i < len(fields); i += 2 {
			_ = c.encoder.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1]})
		}
		return f.WriteHeaders(http2.HeadersFrameParam{StreamID: x.id, BlockFragment: []byte(c.block.String()), EndHeaders: true, EndStream: end})
	})
}

// begin sends the headers of a good answer.
func (x *exchange) begin() { x.headers(false, ":status", "200", "content-type", "application/grpc") }

// only sends an answer without messages: headers that end the stream.
func (x *exchange) only(fields ...string) {
	x.headers(true, append([]string{":status", "200", "content-type", "application/grpc"}, fields...)...)
}

// status ends a stream with trailers.
func (x *exchange) status(code string) { x.headers(true, "grpc-status", code) }

// message sends a whole message: its number, the first is 1.
func (x *exchange) message() {
	x.sent++
	text := strconv.Itoa(x.sent)
	x.data(append(prefix(len(text)), text...), false)
}

// prefix is what goes before a message of this size.
func prefix(size int) []byte { return binary.BigEndian.AppendUint32([]byte{0}, uint32(size)) }

// cut sends the beginning of a message: its prefix, which promises size bytes, and the first of them.
func (x *exchange) cut(size, first int) {
	x.data(prefix(size), false)
	x.data([]byte(strings.Repeat("m", first)), false)
}

// data sends bytes as the peer's windows let it, or gives up when the peer does.
func (x *exchange) data(b []byte, end bool) {
	c := x.conn
	c.mu.Lock()
	defer c.mu.Unlock()
	for {
		for len(b) > 0 && min(x.window, c.window) <= 0 && !x.reset && !c.ended {
			c.moved.Wait()
		}
		if x.reset || c.ended {
			return
		}
		n := min(int64(len(b)), 16384, x.window, c.window)
		if len(b) == 0 {
			n = 0
		}
		_ = c.framer.WriteData(x.id, end && n == int64(len(b)), b[:n])
		x.window -= n
		c.window -= n
		if b = b[n:]; len(b) == 0 {
			return
		}
	}
}

// settle waits until the peer has read all that was sent so far, as the answer to a PING shows: what comes next does not overtake it.
func (x *exchange) settle() {
	c := x.conn
	c.mu.Lock()
	c.pings++
	data, ack := [8]byte{'s', 'e', 't', 't', 'l', 'e', 0, c.pings}, make(chan struct{})
	c.acks[data] = ack
	_ = c.framer.WritePing(false, data)
	c.mu.Unlock()
	select {
	case <-ack:
	case <-c.gone:
	case <-time.After(settleTimeout): // a peer that does not answer is a peer, too
	}
}

func (x *exchange) rst(code http2.ErrCode) {
	x.write(func(f *http2.Framer) error { return f.WriteRSTStream(x.id, code) })
}

func (x *exchange) goAway(last uint32, code http2.ErrCode, debug string) {
	x.write(func(f *http2.Framer) error { return f.WriteGoAway(last, code, []byte(debug)) })
}

// fin ends our half of the connection, and lets the peer end its own.
func (x *exchange) fin() { x.write(func(*http2.Framer) error { return x.conn.tcp.CloseWrite() }) }

// tcpRST ends the connection with a TCP RST.
func (x *exchange) tcpRST() {
	x.write(func(*http2.Framer) error {
		_ = x.conn.tcp.SetLinger(0)
		return x.conn.tcp.Close()
	})
}
