package hostile

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"time"

	"golang.org/x/net/http2"
)

const most = 1<<31 - 1 // largest window, stream, length

// floods are frames that cost their sender nothing. Both sides can send them.
var floods = []Attack{
	{Name: "PING flood", Want: Closed, Step: func(c *Conn) error { return c.WritePing(false, [8]byte{}) }},
	{Name: "PING flood, answers not read", Want: Closed, Unread: true, Step: func(c *Conn) error { return c.WritePing(false, [8]byte{}) }},
	{Name: "answers to no PING", Want: Closed, Step: func(c *Conn) error { return c.WritePing(true, [8]byte{}) }},
	{Name: "SETTINGS flood", Want: Closed, Step: func(c *Conn) error { return c.WriteSettings() }},
	{Name: "SETTINGS flood, answers not read", Want: Closed, Unread: true, Step: func(c *Conn) error { return c.WriteSettings() }},
	{Name: "answers to no SETTINGS", Want: Closed, Step: func(c *Conn) error { return c.WriteSettingsAck() }},
	{Name: "window sizes flip", Want: Closed, Step: func(c *Conn) error {
		c.n++
		return c.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: uint32(c.n%2) * most})
	}},
	{Name: "PRIORITY flood", Want: Closed, Step: func(c *Conn) error {
		return c.WritePriority(max(c.Stream(), 1), http2.PriorityParam{StreamDep: 0, Weight: 1})
	}},
	{Name: "WINDOW_UPDATE flood", Want: Closed, Step: func(c *Conn) error { return c.WriteWindowUpdate(0, 1) }},
	{Name: "frames of an unknown type", Want: Closed, Step: func(c *Conn) error { return c.WriteRawFrame(0xfa, 0, 0, nil) }},
	{Name: "GOAWAY flood", Want: Closed, Step: func(c *Conn) error { return c.WriteGoAway(most, http2.ErrCodeNo, nil) }},
	{Name: "frames larger than allowed", Want: Closed, Step: func(c *Conn) error { return c.WriteRawFrame(0xfa, 0, 0, make([]byte, 1<<20)) }},
	{Name: "frames at random", Want: Refused, Step: atRandom},
	{Name: "a connection window that overflows", Want: Closed, Step: func(c *Conn) error { return c.WriteWindowUpdate(0, most) }},
}

// Front are the attacks of clients.
var Front = slices.Concat(floods, []Attack{
	{Name: "HEADER_TABLE_SIZE flips", Want: Closed, Step: func(c *Conn) error { // CVE-2026-97032
		c.n++
		if err := c.WriteSettings(http2.Setting{ID: http2.SettingHeaderTableSize, Val: uint32(c.n%2) * 4096}); err != nil {
			return err
		}
		return c.Open(echo, true)
	}},
	{Name: "rapid reset", Want: Closed, Step: func(c *Conn) error { // CVE-2023-44487
		if err := c.Open(echo, true); err != nil {
			return err
		}
		return c.WriteRSTStream(c.Stream(), http2.ErrCodeCancel)
	}},
	{Name: "rapid reset, a moment later", Connections: 20, Step: func(c *Conn) error { // each call reaches the backend first, as those of clients that lose interest
		if err := c.Open(echo, false); err != nil {
			return err
		}
		if err := c.Flush(); err != nil {
			return err
		}
		time.Sleep(time.Millisecond)
		return c.WriteRSTStream(c.Stream(), http2.ErrCodeCancel)
	}},
	{Name: "RST_STREAM flood", Want: Closed, Open: open, Step: func(c *Conn) error { return c.WriteRSTStream(c.Stream(), http2.ErrCodeCancel) }},
	// CVE-2025-8671: the proxy is made to send the resets.
	{Name: "made reset: WINDOW_UPDATE of 0", Want: Closed, Step: made(func(c *Conn) error { return c.WriteRawFrame(http2.FrameWindowUpdate, 0, c.Stream(), make([]byte, 4)) })},
	{Name: "made reset: a window that overflows", Want: Closed, Step: made(func(c *Conn) error { return c.WriteWindowUpdate(c.Stream(), most) })},
	{Name: "made reset: PRIORITY on itself", Want: Closed, Step: made(func(c *Conn) error {
		return c.WritePriority(c.Stream(), http2.PriorityParam{StreamDep: c.Stream()})
	})},
	{Name: "made reset: PRIORITY of a wrong size", Want: Closed, Step: made(func(c *Conn) error {
		return c.WriteRawFrame(http2.FramePriority, 0, c.Stream(), make([]byte, 4))
	})},
	{Name: "made reset: DATA after the end", Want: Closed, Step: func(c *Conn) error {
		if err := c.Open(echo, true); err != nil {
			return err
		}
		return c.WriteData(c.Stream(), true, nil)
	}},
	{Name: "made reset: HEADERS that are malformed", Want: Closed, Step: func(c *Conn) error {
		return c.Open(Request("Echo", "Upper-Case", "x"), true)
	}},
	{Name: "CONTINUATION flood", Want: Closed, Mute: true, Open: unended, Step: func(c *Conn) error { return c.WriteContinuation(c.Stream(), false, filler) }},
	{Name: "CONTINUATION flood, empty frames", Want: Closed, Mute: true, Open: unended, Step: func(c *Conn) error { return c.WriteContinuation(c.Stream(), false, nil) }},
	{Name: "HPACK references, 4 KB x 12,000", Want: Refused, Step: func(c *Conn) error { return c.Open(bomb(Request("Echo"), "x-bomb", 4000), true) }},
	{Name: "cookie crumbs, 12,000", Want: Refused, Step: func(c *Conn) error { return c.Open(bomb(Request("Echo"), "cookie", 1), true) }},
	{Name: "list of trailers to come", Step: func(c *Conn) error { // CVE-2026-78659
		if err := c.Open(trailerList, false); err != nil {
			return err
		}
		return c.Head(c.Stream(), manyFields, true)
	}},
	{Name: "headers just small enough, streams kept open", Connections: 20, Slow: halfP99, Step: func(c *Conn) error {
		if c.Stream() > 2*1000 {
			return c.wait()
		}
		return c.Open(Request("Echo", "x-large", strings.Repeat("x", 60_000)), false)
	}},
	{Name: "header of 64 KB", Want: Refused, Pause: time.Millisecond, Step: func(c *Conn) error { return c.Open(largeHeader, true) }},
	{Name: "window of 0, 20 x 100 answers of 1 MB", Want: Refused, Lasts: 3 * Patience, // a busy machine makes 2 GB of answers first
		Connections: 20, Mute: true, Open: hoard,
		Settings: []http2.Setting{{ID: http2.SettingInitialWindowSize, Val: 0}}},
	{Name: "socket never read, 20 x 100 answers of 1 MB", Want: Closed, Connections: 20, Unread: true,
		Settings: []http2.Setting{{ID: http2.SettingInitialWindowSize, Val: most}},
		Open: func(c *Conn) error {
			if err := c.WriteWindowUpdate(0, most-defaultRoom); err != nil {
				return err
			}
			return hoard(c)
		}},
	{Name: "window of a byte now and then, 20 x 100 answers of 1 MB", Connections: 20, Mute: true, Open: hoard, Pause: 10 * time.Millisecond,
		Settings: []http2.Setting{{ID: http2.SettingInitialWindowSize, Val: 0}},
		Step: func(c *Conn) error {
			c.n++
			return c.WriteWindowUpdate(uint32(c.n%100)*2+1, 1)
		}},
	{Name: "5,000 connections that say nothing", Want: Closed, Connections: 5000, Raw: true},
	{Name: "5,000 connections with a preface byte by byte", Want: Closed, Connections: 5000, Raw: true, Pause: 500 * time.Millisecond,
		Step: byteByByte([]byte(http2.ClientPreface))},
	{Name: "500 connections without SETTINGS", Want: Closed, Connections: 500, Raw: true, Open: func(c *Conn) error { return c.Bytes([]byte(http2.ClientPreface)) }},
	{Name: "500 connections with headers byte by byte", Want: Closed, Mute: true, Connections: 500, Pause: 500 * time.Millisecond, Step: byteByByte(slowHeaders)},
	{Name: "500 connections whose headers do not end", Want: Closed, Mute: true, Connections: 500, Open: unended},
	{Name: "1,000 connections with a body byte by byte", Connections: 1000, Pause: 500 * time.Millisecond, Open: open, Step: func(c *Conn) error {
		return c.WriteData(c.Stream(), false, []byte{0})
	}},
	{Name: "connections opened and closed", Raw: true, Step: func(*Conn) error { return errAgain }},
	{Name: "connections dropped with 100 streams open", Connections: 4, Pause: 50 * time.Millisecond, Step: func(c *Conn) error {
		if err := hoard(c); err != nil {
			return err
		}
		return errAgain
	}},
	{Name: "2,000 streams at the same time", Want: Refused, Open: func(c *Conn) error {
		for range 2000 {
			if err := c.Open(echo, false); err != nil {
				return err
			}
		}
		return nil
	}},
	{Name: "message of 2 GB announced", Step: func(c *Conn) error {
		if err := c.Open(echo, false); err != nil {
			return err
		}
		if err := c.Spend(16 << 10); err != nil {
			return err
		}
		return c.WriteData(c.Stream(), false, append(Prefix(most), make([]byte, 16<<10-5)...))
	}, Pause: 5 * time.Millisecond},
	{Name: "messages in DATA of one byte", Open: open, Step: ofOneByte},
	{Name: "messages of 16 KB as fast as they go", Open: open, Step: func(c *Conn) error { // no attack: what the one before is to be compared with
		if err := c.Spend(int64(len(sixteen))); err != nil {
			return err
		}
		return c.WriteData(c.Stream(), false, sixteen)
	}},
	{Name: "empty DATA flood", Want: Closed, Open: open, Step: func(c *Conn) error { return c.WriteData(c.Stream(), false, nil) }},
	{Name: "DATA of padding only", Open: open, Step: paddingOnly},
	{Name: "WINDOW_UPDATE flood on a stream", Want: Closed, Open: open, Step: func(c *Conn) error { return c.WriteWindowUpdate(c.Stream(), 1) }},
	{Name: "DATA beyond the window", Want: Closed, Open: open, Step: func(c *Conn) error { return c.WriteData(c.Stream(), false, make([]byte, 16<<10)) }},
	{Name: "HPACK that cannot be decoded", Want: Closed, Step: func(c *Conn) error { return c.Open([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0x0f}, true) }},
	{Name: "noise instead of HTTP/2", Want: Closed, Raw: true, Step: func(c *Conn) error { return c.Bytes(make([]byte, 4096)) }},
	{Name: "TLS handshakes that are never begun", Want: Closed, TLS: true, Raw: true, Connections: 500},
	{Name: "TLS handshakes that do not go on", Want: Closed, TLS: true, Raw: true, Connections: 500, Open: func(c *Conn) error {
		return c.Bytes([]byte{22, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3}) // the head of a ClientHello of 512 bytes
	}},
	{Name: "every malformed request", Want: Refused, Step: func(c *Conn) error {
		c.n++
		return Malformed[c.n%len(Malformed)].Send(c)
	}},
})

// Back are the attacks of backends.
var Back = slices.Concat(floods, []Attack{
	{Name: "HEADER_TABLE_SIZE flips", Want: Closed, Request: answerOK, Step: func(c *Conn) error {
		c.n++
		return c.WriteSettings(http2.Setting{ID: http2.SettingHeaderTableSize, Val: uint32(c.n%2) * most})
	}},
	{Name: "CONTINUATION flood", Want: Closed, Mute: true, Request: headersUnended, Step: func(c *Conn) error { return c.WriteContinuation(c.Stream(), false, filler) }},
	{Name: "CONTINUATION flood, empty frames", Want: Closed, Mute: true, Request: headersUnended, Step: func(c *Conn) error { return c.WriteContinuation(c.Stream(), false, nil) }},
	{Name: "HPACK references, 4 KB x 12,000", Request: answer(bomb(Response(), "x-bomb", 4000), false)},
	{Name: "HPACK references in trailers", Request: answer(Response(), false, bomb(Fields("grpc-status", "0"), "x-bomb", 4000))},
	{Name: "set-cookie crumbs, 12,000", Apart: true, Request: answer(bomb(Response(), "set-cookie", 1), false)},
	{Name: "headers of 1 MB", Request: answer(Response("x-large", strings.Repeat("x", 1<<20)), true)},
	{Name: "grpc-message of 64 KB", Request: answer(Response("grpc-status", "13", "grpc-message", strings.Repeat("x", 64<<10)), true)},
	{Name: "103 without end", Request: holdOpen, Step: func(c *Conn) error { return c.Head(c.Stream(), Fields(":status", "103", "link", "x"), false) }},
	{Name: "PUSH_PROMISE", Want: Closed, Request: holdOpen, Step: func(c *Conn) error {
		c.n += 2
		return c.WritePushPromise(http2.PushPromiseParam{StreamID: c.Stream(), PromiseID: uint32(c.n), BlockFragment: echo, EndHeaders: true})
	}},
	{Name: "answers before requests", Want: Closed, Open: func(c *Conn) error { return c.Head(1, Response(), false) },
		Step: func(c *Conn) error { c.n += 2; return c.Head(uint32(c.n+1), Response(), true) }},
	{Name: "answers on streams that nobody opened", Want: Closed, Request: holdOpen, Step: func(c *Conn) error {
		c.n += 2
		return c.Head(c.Stream()+uint32(c.n), Response(), true)
	}},
	{Name: "answers on even streams", Want: Closed, Request: holdOpen, Step: func(c *Conn) error { c.n += 2; return c.Head(uint32(c.n), Response(), true) }},
	{Name: "DATA before HEADERS", Request: func(c *Conn, f *http2.MetaHeadersFrame) error {
		return c.do(c.answers.WriteData(f.StreamID, true, Message(nil)))
	}},
	{Name: "DATA after the end", Request: answer(Response("grpc-status", "0"), true), Step: func(c *Conn) error { return c.WriteData(c.Stream(), false, []byte("x")) }},
	{Name: "HEADERS after the end", Request: answer(Response("grpc-status", "0"), true), Step: func(c *Conn) error { return c.Head(c.Stream(), Response(), false) }},
	{Name: "HEADERS again and again", Request: answer(Response(), false), Step: func(c *Conn) error { return c.Head(c.Stream(), Response(), false) }},
	{Name: "RST_STREAM flood", Want: Closed, Request: answer(Response(), false), Step: func(c *Conn) error {
		c.n++
		return c.WriteRSTStream(c.Stream(), http2.ErrCode(c.n%14))
	}},
	{Name: "REFUSED_STREAM each time", Request: func(c *Conn, f *http2.MetaHeadersFrame) error {
		return c.do(c.answers.WriteRSTStream(f.StreamID, http2.ErrCodeRefusedStream))
	}},
	{Name: "GOAWAY each time, nothing was processed", Request: func(c *Conn, f *http2.MetaHeadersFrame) error {
		return c.do(c.answers.WriteGoAway(0, http2.ErrCodeNo, nil))
	}},
	{Name: "GOAWAY and close each time", Request: func(c *Conn, f *http2.MetaHeadersFrame) error {
		if err := c.do(c.answers.WriteGoAway(f.StreamID, http2.ErrCodeNo, nil)); err != nil {
			return err
		}
		return c.Close()
	}},
	{Name: "GOAWAY whose last stream rises", Request: holdOpen, Step: func(c *Conn) error { c.n += 2; return c.WriteGoAway(uint32(c.n+1), http2.ErrCodeEnhanceYourCalm, nil) }},
	{Name: "DATA beyond the window", Want: Closed, Request: answer(Response(), false), Step: func(c *Conn) error { return c.WriteData(c.Stream(), false, make([]byte, 16<<10)) }},
	{Name: "message of 2 GB announced", Request: answer(Response(), false), Step: func(c *Conn) error {
		if err := c.Spend(16 << 10); err != nil {
			return err
		}
		return c.WriteData(c.Stream(), false, append(Prefix(most), make([]byte, 16<<10-5)...))
	}},
	{Name: "messages in DATA of one byte", Request: answer(Response(), false), Step: ofOneByte},
	{Name: "empty DATA flood", Want: Closed, Request: answer(Response(), false), Step: func(c *Conn) error { return c.WriteData(c.Stream(), false, nil) }},
	{Name: "DATA of padding only", Request: answer(Response(), false), Step: paddingOnly},
	{Name: "WINDOW_UPDATE flood on a stream", Want: Closed, Request: holdOpen, Step: func(c *Conn) error { return c.WriteWindowUpdate(c.Stream(), 1) }},
	{Name: "a stream's window that overflows", Request: holdOpen, Step: func(c *Conn) error { return c.WriteWindowUpdate(c.Stream(), most) }, Pause: time.Millisecond},
	{Name: "WINDOW_UPDATE of 0", Request: func(c *Conn, f *http2.MetaHeadersFrame) error {
		return c.do(c.answers.WriteRawFrame(http2.FrameWindowUpdate, 0, f.StreamID, make([]byte, 4)))
	}},
	{Name: "MAX_CONCURRENT_STREAMS 0", Settings: []http2.Setting{{ID: http2.SettingMaxConcurrentStreams, Val: 0}}},
	{Name: "MAX_CONCURRENT_STREAMS 1, no answers", Settings: []http2.Setting{{ID: http2.SettingMaxConcurrentStreams, Val: 1}}, Request: holdOpen},
	{Name: "MAX_FRAME_SIZE 0", Settings: []http2.Setting{{ID: http2.SettingMaxFrameSize, Val: 0}}}, // CVE-2026-33814
	{Name: "INITIAL_WINDOW_SIZE 0", Settings: []http2.Setting{{ID: http2.SettingInitialWindowSize, Val: 0}}, Request: holdOpen},
	{Name: "MAX_HEADER_LIST_SIZE 0", Settings: []http2.Setting{{ID: http2.SettingMaxHeaderListSize, Val: 0}}},
	{Name: "no SETTINGS, no answers", Raw: true},
	{Name: "no answers", Request: holdOpen, Mute: true},
	{Name: "socket never read", Unread: true},
	{Name: "connections closed at once", Raw: true, Step: func(*Conn) error { return errAgain }},
	{Name: "HTTP/1.1 instead of HTTP/2", Raw: true, Step: func(c *Conn) error {
		if err := c.Bytes([]byte("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")); err != nil {
			return err
		}
		return errAgain
	}},
	{Name: "noise instead of HTTP/2", Raw: true, Step: func(c *Conn) error { return c.Bytes(make([]byte, 4096)) }},
	{Name: "HPACK that cannot be decoded", Want: Closed, Request: answer([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0x0f}, true)},
	{Name: "every malformed response", Apart: true, Request: func(c *Conn, f *http2.MetaHeadersFrame) error {
		c.n++
		return MalformedAnswers[c.n%len(MalformedAnswers)].send(c, f)
	}},
})

var (
	echo        = Request("Echo")
	sixteen     = Message(bytes.Repeat([]byte{'x'}, 16<<10-6)) // two x are a field to protobuf
	filler      = Fields("x-filler", strings.Repeat("x", 16<<10-16))
	largeHeader = Request("Echo", "x-large", strings.Repeat("x", 64<<10))
	trailerList = Request("Echo", "trailer", strings.TrimSuffix(strings.Repeat("a,", 7000), ","))
	slowHeaders = slowFrame()
	manyFields  = func() []byte {
		var b []byte
		for i := range 400 {
			b = field(b, 0, fmt.Sprintf("x-%d", i), "x")
		}
		return b
	}()
)
