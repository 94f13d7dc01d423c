package hostile

import (
	"bytes"
	"math/rand/v2"
	"net"
	"strings"

	"golang.org/x/net/http2"
)

// What attacks are made of.

// open opens a call that does not end.
func open(c *Conn) error { return c.Open(echo, false) }

// unended opens a call whose headers do not end.
func unended(c *Conn) error {
	c.use((c.Stream() + 1) | 1)
	return c.WriteHeaders(http2.HeadersFrameParam{StreamID: c.Stream(), BlockFragment: echo})
}

// made opens a call and makes the peer reset it.
func made(reset func(*Conn) error) func(*Conn) error {
	return func(c *Conn) error {
		if err := open(c); err != nil {
			return err
		}
		return reset(c)
	}
}

// hoard asks for 100 answers of 1 MiB.
func hoard(c *Conn) error {
	for range 100 {
		if err := c.Open(large, false); err != nil {
			return err
		}
		if err := c.WriteData(c.Stream(), true, Message(nil)); err != nil {
			return err
		}
	}
	return nil
}

var large = Request("Large")

// wait waits for the connection's end.
func (c *Conn) wait() error {
	if err := c.Flush(); err != nil {
		return err
	}
	<-c.ended
	return net.ErrClosed
}

// bomb appends to a block one field that enters the table, and 12,000 references to it, of a byte each.
func bomb(block []byte, name string, length int) []byte {
	const newest = 0x80 | 62 // the table's first entry after the 61 that are always there
	return append(field(bytes.Clone(block), 0x40, name, strings.Repeat("x", length)), bytes.Repeat([]byte{newest}, 12_000)...)
}

// byteByByte sends a byte a step, and then nothing more.
func byteByByte(p []byte) func(*Conn) error {
	return func(c *Conn) error {
		if c.n == len(p) {
			return c.wait()
		}
		c.n++
		return c.Bytes(p[c.n-1 : c.n])
	}
}

// slowFrame is a call's HEADERS frame.
func slowFrame() []byte {
	var b bytes.Buffer
	if err := head(http2.NewFramer(&b, nil), 1, Request("Echo"), false); err != nil {
		panic(err) // a buffer takes everything
	}
	return b.Bytes()
}

// ofOneByte sends messages of 64 KiB in frames of one byte each.
func ofOneByte(c *Conn) error {
	if err := c.Spend(1); err != nil {
		return err
	}
	at := c.n % (5 + 64<<10)
	c.n++
	if at < 5 {
		return c.WriteData(c.Stream(), false, Prefix(64 << 10)[at:at+1])
	}
	return c.WriteData(c.Stream(), false, []byte{'x'})
}

// atRandom sends a frame of any kind, on one of the first streams; what HPACK reads is right, as it would be over soon otherwise.
func atRandom(c *Conn) error {
	payload := make([]byte, rand.IntN(64))
	for i := range payload {
		payload[i] = byte(rand.Uint32())
	}
	kind, flags := http2.FrameType(rand.IntN(11)), http2.Flags(rand.Uint32())
	stream := uint32(rand.IntN(20))
	switch {
	case kind == http2.FrameHeaders || kind == http2.FrameContinuation || kind == http2.FramePushPromise:
		flags &^= http2.FlagHeadersPadded | http2.FlagHeadersPriority
		if payload = echo; c.server {
			payload = Response("grpc-status", "0")
		}
	case rand.IntN(2) == 0 && sizes[kind] != 0: // and the other half of a wrong size
		payload = append(payload, make([]byte, 8)...)[:sizes[kind]]
	}
	return c.WriteRawFrame(kind, flags, stream, payload)
}

// sizes of the payloads that have one.
var sizes = map[http2.FrameType]int{
	http2.FramePriority: 5, http2.FrameRSTStream: 4, http2.FrameSettings: 6, http2.FramePing: 8, http2.FrameGoAway: 8, http2.FrameWindowUpdate: 4,
}

func paddingOnly(c *Conn) error {
	if err := c.Spend(256); err != nil {
		return err
	}
	return c.WriteDataPadded(c.Stream(), false, nil, make([]byte, 255))
}

// The rest is for backends, where requests come while steps are made: what they are answered goes through a Framer of its own.

// do sends what was written.
func (c *Conn) do(err error) error {
	if err != nil {
		return err
	}
	return c.Flush()
}

// answer answers each request with headers, and trailers if there are any.
func answer(block []byte, end bool, trailers ...[]byte) func(*Conn, *http2.MetaHeadersFrame) error {
	return func(c *Conn, f *http2.MetaHeadersFrame) error {
		err := head(c.answers, f.StreamID, block, end)
		for _, t := range trailers {
			if err == nil {
				err = head(c.answers, f.StreamID, t, true)
			}
		}
		return c.do(err)
	}
}

// answerOK answers with an empty message and OK.
func answerOK(c *Conn, f *http2.MetaHeadersFrame) error {
	err := head(c.answers, f.StreamID, Response(), false)
	if err == nil {
		err = c.answers.WriteData(f.StreamID, false, Message(nil))
	}
	if err == nil {
		err = head(c.answers, f.StreamID, Fields("grpc-status", "0"), true)
	}
	return c.do(err)
}

// holdOpen does not answer.
func holdOpen(*Conn, *http2.MetaHeadersFrame) error { return nil }

// headersUnended answers the first request with headers that do not end, and no other: nothing may come between.
func headersUnended(c *Conn, f *http2.MetaHeadersFrame) error {
	if c.n++; c.n > 1 {
		return nil
	}
	return c.do(c.answers.WriteHeaders(http2.HeadersFrameParam{StreamID: f.StreamID, BlockFragment: Response()}))
}
