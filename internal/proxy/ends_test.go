package proxy

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
)

// TestRequestEnds: the endpoint sees the request's data, trailers and end as the client sent them, whether it comes before a connection is there or after.
func TestRequestEnds(t *testing.T) {
	message := prefixed([]byte("hello"))
	for _, test := range []struct {
		name     string
		play     func(c *wire) uint32
		data     []byte
		trailers bool
	}{
		{"header", func(c *wire) uint32 { return c.begin(true) }, nil, false},
		{"empty data", func(c *wire) uint32 { id := c.begin(false); c.data(id, nil, true); return id }, nil, false},
		{"data", func(c *wire) uint32 { id := c.begin(false); c.data(id, message, true); return id }, message, false},
		{"data and empty data", func(c *wire) uint32 {
			id := c.begin(false)
			c.data(id, message, false)
			c.data(id, nil, true)
			return id
		}, message, false},
		// gRPC has no trailers in this direction: they are taken as the end that they are.
		{"trailers", func(c *wire) uint32 { id := c.begin(false); c.headers(id, true, "after", "all"); return id }, nil, false},
		{"data and trailers", func(c *wire) uint32 {
			id := c.begin(false)
			c.data(id, message, false)
			c.headers(id, true, "after", "all")
			return id
		}, message, false},
		{"data and trailers that are not gRPC", func(c *wire) uint32 {
			c.next += 2
			c.headers(c.next-2, false, request("content-type", "text/plain")...)
			c.data(c.next-2, message, false)
			c.headers(c.next-2, true, "after", "all")
			return c.next - 2
		}, message, true},
		{"padding", func(c *wire) uint32 {
			id := c.begin(false)
			c.send(func(f *http2.Framer) error { return f.WriteDataPadded(id, true, message, make([]byte, 200)) })
			return id
		}, message, false},
	} {
		for _, when := range []string{"cold", "warm"} {
			t.Run(test.name+" "+when, func(t *testing.T) {
				back := listen(t)
				p := start(t, oneBackend(back.addr()))
				c := dial(t, p.addr)
				var e *wire
				if when == "warm" {
					id := c.begin(true)
					e = back.accept()
					e.only(e.takeRequest().id, "0")
					c.end(id)
				}
				id := test.play(c)
				if e == nil {
					e = back.accept()
				}
				r := e.takeRequest()
				if !r.end {
					a := e.end(r.id)
					if !bytes.Equal(a.data, test.data) || (a.trailers.get("after") == "all") != test.trailers {
						t.Errorf("the endpoint got %q and %v", a.data, a.trailers)
					}
				} else if test.data != nil || test.trailers {
					t.Error("the header has ended the request")
				}
				e.only(r.id, "5", "grpc-message", "nothing", "some-bin", "AAEC")
				a := c.end(id)
				if a.status() != "5" || a.trailers.get("grpc-message") != "nothing" || a.trailers.get("some-bin") != "AAEC" || a.reason() != "" {
					t.Errorf("the client got %v", a.trailers)
				}
			})
		}
	}
}

// grpc-go sends a status message with space around it as it is, which HTTP/2 calls malformed. The client gets the status and the whole message.
func TestStatusMessageKeepsSpaceAroundIt(t *testing.T) {
	back := listen(t)
	p := start(t, oneBackend(back.addr()))
	c := dial(t, p.addr)
	id := c.begin(true)
	e := back.accept()
	e.only(e.takeRequest().id, "5", "grpc-message", " no order: ")
	if a := c.end(id); a.status() != "5" || a.trailers.get("grpc-message") != "%20no order:%20" {
		t.Errorf("the client got %v", a.trailers)
	}
}

// TestResponseEnds: what an endpoint says is passed on; where it says nothing that gRPC allows, the client gets a status that tells so.
func TestResponseEnds(t *testing.T) {
	message := prefixed([]byte("hello"))
	for _, test := range []struct {
		name           string
		play           func(e *wire, id uint32)
		status, reason string
		data           []byte
	}{
		{"trailers only", func(e *wire, id uint32) { e.only(id, "3") }, "3", "", nil},
		{"message with space around it", func(e *wire, id uint32) { e.only(id, "5", "grpc-message", " no order: ") }, "5", "", nil},
		{"trailer with space around it", func(e *wire, id uint32) { e.respond(id); e.finish(id, "0", "x-order", "7 ") }, "0", "", nil},
		{"trailers", func(e *wire, id uint32) { e.respond(id); e.finish(id, "0") }, "0", "", nil},
		{"data and trailers", func(e *wire, id uint32) { e.respond(id); e.data(id, message, false); e.finish(id, "7") }, "7", "", message},
		{"empty message", func(e *wire, id uint32) { e.respond(id); e.data(id, prefixed(nil), false); e.finish(id, "0") }, "0", "", prefixed(nil)},
		{"end on data", func(e *wire, id uint32) { e.respond(id); e.data(id, message, true) }, "13", reasonNoStatus, message},
		{"end on empty data", func(e *wire, id uint32) { e.respond(id); e.data(id, nil, true) }, "13", reasonNoStatus, nil},
		{"end in a message", func(e *wire, id uint32) { e.respond(id); e.data(id, message[:7], true) }, "13", reasonNoStatus, nil},
		{"OK in a message", func(e *wire, id uint32) { e.respond(id); e.data(id, message[:7], false); e.finish(id, "0") }, "13", reasonCutMessage, nil},
		{"status in a message", func(e *wire, id uint32) { e.respond(id); e.data(id, message[:7], false); e.finish(id, "9") }, "9", "", nil},
		{"no status", func(e *wire, id uint32) { e.respond(id); e.headers(id, true, "some", "trailer") }, "2", reasonNoStatus, nil},
		{"status that is none", func(e *wire, id uint32) { e.only(id, "OK") }, "2", reasonNoStatus, nil},
		{"unknown status", func(e *wire, id uint32) { e.only(id, "77") }, "77", "", nil},
		{"two headers", func(e *wire, id uint32) { e.respond(id); e.respond(id) }, "13", reasonProtocol, nil},
		{"data before the header", func(e *wire, id uint32) { e.data(id, message, false) }, "13", reasonProtocol, nil},
		{"upper case", func(e *wire, id uint32) { e.respond(id, "Upper", "case") }, "13", reasonProtocol, nil},
		{"connection header", func(e *wire, id uint32) { e.respond(id, "connection", "close") }, "13", reasonProtocol, nil},
		{"no :status", func(e *wire, id uint32) { e.headers(id, false, "content-type", "application/grpc") }, "13", reasonProtocol, nil},
		{"503", func(e *wire, id uint32) { e.headers(id, true, ":status", "503", "content-type", "text/html") }, "14", reasonNotGRPC, nil},
		{"404 with a body", func(e *wire, id uint32) {
			e.headers(id, false, ":status", "404", "content-type", "text/plain")
			e.data(id, []byte("no"), true)
		}, "12", reasonNotGRPC, nil},
		{"200 that is no gRPC", func(e *wire, id uint32) { e.headers(id, false, ":status", "200", "content-type", "text/html") }, "2", reasonNotGRPC, nil},
		{"100 and 103 before", func(e *wire, id uint32) {
			e.headers(id, false, ":status", "100")
			e.headers(id, false, ":status", "103", "link", "x")
			e.only(id, "0")
		}, "0", "", nil},
		{"RST CANCEL", func(e *wire, id uint32) { e.rstStream(id, http2.ErrCodeCancel) }, "CANCEL", "", nil},
		{"RST after a message", func(e *wire, id uint32) {
			e.respond(id)
			e.data(id, message, false)
			e.rstStream(id, http2.ErrCodeEnhanceYourCalm)
		}, "ENHANCE_YOUR_CALM", "", message},
		{"padding", func(e *wire, id uint32) {
			e.respond(id)
			e.send(func(f *http2.Framer) error { return f.WriteDataPadded(id, false, message, make([]byte, 255)) })
			e.finish(id, "0")
		}, "0", "", message},
		{"continuation", func(e *wire, id uint32) { e.respond(id, "large", strings.Repeat("l", 50000)); e.finish(id, "0") }, "0", "", nil},
		{"header that is too large", func(e *wire, id uint32) { e.respond(id, "large", strings.Repeat("l", 70000)) }, "8", reasonHeaderSize, nil},
		{"trailers that are too large", func(e *wire, id uint32) {
			e.respond(id)
			e.data(id, message, false)
			e.finish(id, "0", "large", strings.Repeat("l", 70000))
		}, "0", "", message},
		{"a window update of 0", func(e *wire, id uint32) { e.respond(id); e.grant(id, 0) }, "13", reasonProtocol, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			back := listen(t)
			p := start(t, oneBackend(back.addr(), "backend: maxResponseHeaderBytes: 64KiB"))
			c := dial(t, p.addr)
			other := c.begin(false)
			e := back.accept()
			o := e.takeRequest()
			id := c.begin(true)
			r := e.takeRequest()
			test.play(e, r.id)
			a := c.end(id)
			if a.status() != test.status || a.reason() != test.reason || !bytes.Equal(a.data, test.data) {
				t.Errorf("the client got status %s, reason %s and %q", a.status(), a.reason(), a.data)
			}
			if len(a.info) > 0 {
				t.Errorf("the client got %v", a.info)
			}
			// The connections live on, with their compression and their windows.
			c.data(other, prefixed([]byte("x")), true)
			e.dataOf(o.id, 6)
			e.only(o.id, "0", "some", "value")
			if a := c.end(other); a.status() != "0" || a.trailers.get("some") != "value" {
				t.Errorf("another stream of the connections ended with %v", a.trailers)
			}
		})
	}
}

// TestNotGRPC: other requests pass, with their methods, bodies, informational headers and trailers.
func TestNotGRPC(t *testing.T) {
	get := func(method string, more ...string) []string {
		return append([]string{":method", method, ":scheme", "http", ":path", "/file", ":authority", "test"}, more...)
	}
	for _, test := range []struct {
		name         string
		request      []string
		play         func(e *wire, id uint32)
		status, data string
		info         int
		trailer      string
		reset        string
	}{
		{name: "GET", request: get("GET"), play: func(e *wire, id uint32) {
			e.headers(id, false, ":status", "200", "content-length", "4")
			e.data(id, []byte("body"), true)
		}, status: "200", data: "body"},
		{name: "HEAD", request: get("HEAD"), play: func(e *wire, id uint32) { e.headers(id, true, ":status", "200", "content-length", "4") }, status: "200"},
		{name: "HEAD ended by data", request: get("HEAD"), play: func(e *wire, id uint32) {
			e.headers(id, false, ":status", "200", "content-length", "4")
			e.data(id, nil, true)
		}, status: "200"},
		{name: "304 ended by data", request: get("GET"), play: func(e *wire, id uint32) {
			e.headers(id, false, ":status", "304", "content-length", "4")
			e.data(id, nil, true)
		}, status: "304"},
		{name: "103", request: get("GET"), play: func(e *wire, id uint32) {
			e.headers(id, false, ":status", "103", "link", "x")
			e.headers(id, true, ":status", "204")
		}, status: "204", info: 1},
		{name: "trailers", request: get("GET"), play: func(e *wire, id uint32) {
			e.headers(id, false, ":status", "200")
			e.data(id, []byte("body"), false)
			e.headers(id, true, "checksum", "1")
		}, status: "200", data: "body", trailer: "1"},
		{name: "less than its length", request: get("GET"), play: func(e *wire, id uint32) {
			e.headers(id, false, ":status", "200", "content-length", "5")
			e.data(id, []byte("body"), true)
		}, status: "200", reset: "INTERNAL_ERROR"},
		{name: "grpc-web", request: get("POST", "content-type", "application/grpc-web"), play: func(e *wire, id uint32) {
			e.headers(id, false, ":status", "200", "content-type", "application/grpc-web")
			e.data(id, []byte("body"), true)
		}, status: "200", data: "body"},
	} {
		t.Run(test.name, func(t *testing.T) {
			back := listen(t)
			p := start(t, oneBackend(back.addr()))
			c := dial(t, p.addr)
			c.headers(1, true, test.request...)
			e := back.accept()
			r := e.takeRequest()
			if r.get(":method") != test.request[1] || !r.end {
				t.Errorf("the endpoint got %v", r)
			}
			test.play(e, r.id)
			a := c.end(1)
			if a.head.get(":status") != test.status || len(a.info) != test.info || a.trailers.get("checksum") != test.trailer {
				t.Errorf("the client got %v %v %v", a.info, a.head, a.trailers)
			}
			if test.reset != "" {
				if a.status() != test.reset {
					t.Errorf("ended with %s", a.status())
				}
				return
			}
			if a.reset != nil || a.lost != nil || string(a.data) != test.data {
				t.Errorf("the client got %q, reset %v, lost %v", a.data, a.reset, a.lost)
			}
		})
	}
}

// TestErrorTextKeepsTheWindow: the text of an error for those who are no gRPC clients obeys flow control, too, and HEAD has none.
func TestErrorTextKeepsTheWindow(t *testing.T) {
	for _, method := range []string{"GET", "HEAD"} {
		for _, window := range []uint32{0, 5, 65535} {
			t.Run(fmt.Sprint(method, window), func(t *testing.T) {
				p := start(t, oneBackend(nobody(t)))
				c := dial(t, p.addr, http2.Setting{ID: http2.SettingInitialWindowSize, Val: window})
				c.keep()
				c.headers(1, true, ":method", method, ":scheme", "http", ":path", "/file", ":authority", "test")
				if window < 1000 {
					c.headersOf(1)
					c.settle()
					return // the wire checks the windows
				}
				a := c.end(1)
				if a.head.get(":status") != "503" || method == "HEAD" && len(a.data) > 0 || method == "GET" && len(a.data) == 0 {
					t.Errorf("answered %v with %q", a.head, a.data)
				}
			})
		}
	}
}

// TestHeaderTooLarge: S-25. A request with too much in its header fails by itself, for the listener as for the endpoint.
func TestHeaderTooLarge(t *testing.T) {
	back := listen(t, http2.Setting{ID: http2.SettingMaxHeaderListSize, Val: 8192})
	p := start(t, oneBackend(back.addr(), "listener: maxHeaderBytes: 64KiB"))
	c := dial(t, p.addr)
	other := c.begin(false)
	e := back.accept()
	o := e.takeRequest()
	for _, size := range []int{10000, 60000, 70000, 200000} {
		id := c.begin(true, "large", strings.Repeat("l", size))
		if a := c.end(id); a.status() != "8" || a.reason() != reasonHeaderSize {
			t.Errorf("%d bytes: ended with %s (%s)", size, a.status(), a.reason())
		}
	}
	var many []string
	for i := range 3000 {
		many = append(many, fmt.Sprint("m-", i), "")
	}
	id := c.begin(true, many...)
	if a := c.end(id); a.status() != "8" {
		t.Errorf("3000 fields: ended with %s", a.status())
	}
	e.only(o.id, "0")
	if a := c.end(other); a.status() != "0" {
		t.Errorf("another stream ended with %s", a.status())
	}
	e.settle()
	if n := e.seen(func(e *event) bool { return e.get(":method") != "" }); n > 0 {
		t.Errorf("%d of the requests reached the endpoint", n)
	}
}

// TestResponseHeaderBeyondTheCaller: what the client said it takes is kept to.
func TestResponseHeaderBeyondTheCaller(t *testing.T) {
	back := listen(t)
	p := start(t, oneBackend(back.addr()))
	c := dial(t, p.addr, http2.Setting{ID: http2.SettingMaxHeaderListSize, Val: 4096})
	id := c.begin(true)
	e := back.accept()
	r := e.takeRequest()
	e.respond(r.id, "large", strings.Repeat("l", 5000))
	if a := c.end(id); a.status() != "8" || a.reason() != reasonHeaderSize {
		t.Errorf("ended with %s (%s)", a.status(), a.reason())
	}
}

// TestStreamRules: what RFC 9113 says of frames on streams in states where they must not come.
func TestStreamRules(t *testing.T) {
	for _, test := range []struct {
		name string
		play func(c *wire, open uint32)
		conn http2.ErrCode // of GOAWAY; NO_ERROR: the stream alone ends
		rst  http2.ErrCode
	}{
		{"even number", func(c *wire, _ uint32) { c.headers(2, true, request()...) }, http2.ErrCodeProtocol, 0},
		{"DATA on an idle stream", func(c *wire, _ uint32) { c.data(99, nil, true) }, http2.ErrCodeProtocol, 0},
		{"RST_STREAM on an idle stream", func(c *wire, _ uint32) { c.rstStream(99, http2.ErrCodeCancel) }, http2.ErrCodeProtocol, 0},
		{"WINDOW_UPDATE on an idle stream", func(c *wire, _ uint32) { c.grant(99, 1) }, http2.ErrCodeProtocol, 0},
		{"a lower number", func(c *wire, _ uint32) {
			c.next = 9
			c.begin(true)
			c.headers(5, true, request()...)
		}, http2.ErrCodeStreamClosed, 0},
		{"connection window above 2^31-1", func(c *wire, _ uint32) { c.grant(0, 1<<31-1) }, http2.ErrCodeFlowControl, 0},
		{"stream window above 2^31-1", func(c *wire, id uint32) { c.grant(id, 1<<31-1) }, 0, http2.ErrCodeFlowControl},
		{"WINDOW_UPDATE of 0", func(c *wire, id uint32) {
			c.send(func(f *http2.Framer) error { return f.WriteRawFrame(http2.FrameWindowUpdate, 0, id, make([]byte, 4)) })
		}, 0, http2.ErrCodeProtocol},
		{"more than the window", func(c *wire, id uint32) {
			for range 5 {
				c.data(id, make([]byte, 16384), false)
			}
		}, 0, http2.ErrCodeFlowControl},
		{"trailers without END_STREAM", func(c *wire, id uint32) { c.headers(id, false, "a", "b") }, 0, http2.ErrCodeProtocol},
		{"trailers with a pseudo header", func(c *wire, id uint32) { c.headers(id, true, ":path", "/") }, 0, http2.ErrCodeProtocol},
		{"DATA after the end", func(c *wire, id uint32) { c.data(id, nil, true); c.data(id, nil, true) }, 0, http2.ErrCodeStreamClosed},
		{"PUSH_PROMISE", func(c *wire, id uint32) {
			c.send(func(f *http2.Framer) error {
				return f.WriteRawFrame(http2.FramePushPromise, 4, id, []byte{0, 0, 0, 2, 0x82})
			})
		}, http2.ErrCodeProtocol, 0},
		{"a frame in a header block", func(c *wire, _ uint32) {
			c.send(func(f *http2.Framer) error {
				_ = f.WriteHeaders(http2.HeadersFrameParam{StreamID: 77, BlockFragment: []byte{0x82}})
				return f.WritePing(false, [8]byte{})
			})
		}, http2.ErrCodeProtocol, 0},
		{"a broken header block", func(c *wire, _ uint32) {
			c.send(func(f *http2.Framer) error {
				return f.WriteHeaders(http2.HeadersFrameParam{StreamID: 77, BlockFragment: []byte{0xff, 0xff, 0xff, 0xff, 0xff}, EndHeaders: true})
			})
		}, http2.ErrCodeCompression, 0},
		{"a frame that is too large", func(c *wire, id uint32) {
			c.send(func(f *http2.Framer) error { return f.WriteRawFrame(http2.FrameData, 0, id, make([]byte, 16385)) })
		}, http2.ErrCodeFrameSize, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			back := listen(t, http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0}) // so that DATA stays in the proxy
			p := start(t, oneBackend(back.addr()))
			c := dial(t, p.addr)
			id := c.begin(false)
			e := back.accept()
			r := e.takeRequest()
			test.play(c, id)
			if test.conn != 0 {
				got := c.await("GOAWAY", func(e *event) bool { return e.kind == http2.FrameGoAway })
				if got.code != test.conn {
					t.Errorf("GOAWAY with %v %q", got.code, got.data)
				}
				c.gone()
			} else {
				if got := c.resetOf(id); got != test.rst {
					t.Errorf("RST_STREAM with %v", got)
				}
				c.settle() // the connection lives
			}
			if got := e.resetOf(r.id); got != http2.ErrCodeCancel {
				t.Errorf("the endpoint was told %v", got)
			}
			eventually(t, "the streams are gone", func() bool { return p.Open() == 0 })
		})
	}
}

// TestCallerGone: X-06. The endpoint learns at once that a client has cancelled or is gone.
func TestCallerGone(t *testing.T) {
	for _, how := range []string{"reset", "close", "RST"} {
		t.Run(how, func(t *testing.T) {
			back := listen(t)
			p := start(t, oneBackend(back.addr()))
			c := dial(t, p.addr)
			id := c.begin(false)
			e := back.accept()
			r := e.takeRequest()
			began := time.Now()
			switch how {
			case "reset":
				c.rstStream(id, http2.ErrCodeCancel)
			case "close":
				c.close()
			case "RST":
				c.rst()
			}
			if got := e.resetOf(r.id); got != http2.ErrCodeCancel {
				t.Errorf("the endpoint was told %v", got)
			}
			if took := time.Since(began); took > time.Second {
				t.Errorf("after %v", took)
			}
		})
	}
}
