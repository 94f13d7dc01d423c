package fakeh2

import (
	"fmt"
	"math"
	"strconv"

	"golang.org/x/net/http2"
)

// Script is an answer to a call.
type Script struct {
	// Name is the last part of the call's :path.
	Name string
	// Messages is how many whole messages the client is sent.
	Messages int
	// Refuses is how many attempts, from the first on, the script declares to be unprocessed, so that they may be sent again. All others are
	// processed: a call with two of them ran twice.
	Refuses int
	// Connection: it is ended or drained, so that other calls on it feel the script.
	Connection bool
	// Early: the answer does not wait for the end of the request.
	Early bool
	play  func(*exchange)
}

const (
	always = math.MaxInt
	// allStreams is the last stream of a GOAWAY that only announces.
	allStreams = 1<<31 - 1
	// bigMessage is more than proxies hold back, and less than the 4 MiB that clients take.
	bigMessage = 3 << 20
)

// well answers as a good server does.
func well(x *exchange) {
	x.begin()
	x.message()
	x.status("0")
}

// mid is what comes before a fault in the middle of a stream: headers and a message, which the peer has read.
func mid(x *exchange) {
	x.begin()
	x.message()
	x.settle()
}

// untilRefused plays refuse for the attempts that are refused, and then answers well.
func untilRefused(refuses int, refuse func(*exchange)) func(*exchange) {
	return func(x *exchange) {
		if x.attempt <= refuses {
			refuse(x)
		} else {
			well(x)
		}
	}
}

// Scripts are all that the server can play, in the order of a table.
func Scripts() []Script {
	var all []Script
	for code := http2.ErrCodeNo; code <= http2.ErrCodeHTTP11Required; code++ {
		all = append(all, Script{Name: "rst-mid-" + strconv.Itoa(int(code)), Messages: 1, play: func(x *exchange) { mid(x); x.rst(code) }})
	}
	for code := http2.ErrCodeNo; code <= http2.ErrCodeHTTP11Required; code++ {
		s := Script{Name: "rst-pre-" + strconv.Itoa(int(code)), play: func(x *exchange) { x.rst(code) }}
		if code == http2.ErrCodeRefusedStream {
			s.Refuses = always
		}
		all = append(all, s)
	}
	all = append(all, refusals...)
	for _, cut := range cuts {
		cut.Connection = true
		all = append(all, cut)
	}
	all = append(all, endings...)
	for _, code := range []int{400, 401, 403, 404, 429, 500, 502, 503, 504, 418} {
		all = append(all, Script{Name: "http-" + strconv.Itoa(code), play: func(x *exchange) {
			x.headers(false, ":status", strconv.Itoa(code), "content-type", "text/html")
			x.data(fmt.Appendf(nil, "<!DOCTYPE html><title>%d</title>", code), true)
		}})
	}
	for _, closes := range closing {
		closes.Connection = true
		all = append(all, closes)
	}
	return all
}

// refusals are GOAWAYs, and calls that were not processed.
var refusals = []Script{
	{Name: "goaway-unprocessed-retry", Connection: true, Messages: 1, Refuses: 1, play: untilRefused(1, func(x *exchange) {
		x.goAway(x.id-min(x.id, 2), http2.ErrCodeNo, "max_age")
		x.fin()
	})},
	{Name: "goaway-unprocessed-noclose-retry", Connection: true, Messages: 1, Refuses: 1, play: untilRefused(1, func(x *exchange) { x.goAway(x.id-min(x.id, 2), http2.ErrCodeNo, "max_age") })},
	{Name: "refused-retry", Messages: 1, Refuses: 1, play: untilRefused(1, func(x *exchange) { x.rst(http2.ErrCodeRefusedStream) })},
	{Name: "refused-after-headers", play: func(x *exchange) {
		x.begin()
		x.settle()
		x.rst(http2.ErrCodeRefusedStream)
	}},
	{Name: "refused-in-first-message", play: func(x *exchange) {
		x.begin()
		x.cut(100, 50)
		x.settle()
		x.rst(http2.ErrCodeRefusedStream)
	}},
	{Name: "goaway-then-finish", Connection: true, Messages: 2, play: func(x *exchange) {
		mid(x)
		x.goAway(x.id, http2.ErrCodeNo, "max_age")
		x.settle()
		x.message()
		x.status("0")
	}},
	{Name: "double-goaway-then-status", Connection: true, Messages: 2, play: func(x *exchange) {
		mid(x)
		x.goAway(allStreams, http2.ErrCodeNo, "max_age")
		x.settle()
		x.goAway(x.id, http2.ErrCodeNo, "max_age")
		x.settle()
		x.message()
		x.status("9")
	}},
	{Name: "goaway-mid-then-fin", Connection: true, Messages: 1, play: func(x *exchange) {
		mid(x)
		x.goAway(x.id, http2.ErrCodeNo, "max_age")
		x.fin()
	}},
	{Name: "goaway-mid-then-rst", Connection: true, Messages: 1, play: func(x *exchange) {
		mid(x)
		x.goAway(x.id, http2.ErrCodeNo, "max_age")
		x.settle()
		x.tcpRST()
	}},
	{Name: "goaway-pre-then-fin", Connection: true, play: func(x *exchange) {
		x.goAway(x.id, http2.ErrCodeNo, "max_age")
		x.fin()
	}},
	{Name: "goaway-calm-mid-fin", Connection: true, Messages: 1, play: func(x *exchange) {
		mid(x)
		x.goAway(x.id, http2.ErrCodeEnhanceYourCalm, "too_many_pings")
		x.fin()
	}},
	{Name: "goaway-internal-mid-fin", Connection: true, Messages: 1, play: func(x *exchange) {
		mid(x)
		x.goAway(x.id, http2.ErrCodeInternal, "")
		x.fin()
	}},
}

// cuts end the connection.
var cuts = []Script{
	{Name: "fin-pre", play: (*exchange).fin},
	{Name: "tcprst-pre", play: (*exchange).tcpRST},
	{Name: "fin-mid", Messages: 1, play: func(x *exchange) { mid(x); x.fin() }},
	{Name: "tcprst-mid", Messages: 1, play: func(x *exchange) { mid(x); x.tcpRST() }},
	{Name: "fin-mid-message", Messages: 1, play: func(x *exchange) {
		mid(x)
		x.cut(100, 50)
		x.settle()
		x.fin()
	}},
	{Name: "fin-mid-big-message", Messages: 1, play: func(x *exchange) {
		mid(x)
		x.cut(bigMessage, bigMessage/2)
		x.settle()
		x.fin()
	}},
	{Name: "fin-after-headers", play: func(x *exchange) {
		x.begin()
		x.settle()
		x.fin()
	}},
	{Name: "badframe-mid", Messages: 1, play: func(x *exchange) {
		mid(x)
		x.write(func(f *http2.Framer) error {
			return f.WriteRawFrame(http2.FrameData, 0, 0, []byte("data belongs to a stream"))
		})
	}},
}

// endings are answers that end, well or not, on a connection that goes on.
var endings = []Script{
	{Name: "eos-no-trailers", Messages: 1, play: func(x *exchange) { mid(x); x.data(nil, true) }},
	{Name: "headers-eos-no-status", play: func(x *exchange) { x.only() }},
	{Name: "trailers-no-status", Messages: 1, play: func(x *exchange) { mid(x); x.headers(true, "other", "value") }},
	{Name: "trailers-status-abc", Messages: 1, play: func(x *exchange) { mid(x); x.status("abc") }},
	{Name: "trailers-status-99", Messages: 1, play: func(x *exchange) { mid(x); x.status("99") }},
	{Name: "truncated-msg-then-ok", Messages: 1, play: func(x *exchange) { mid(x); x.cut(100, 50); x.status("0") }},
	{Name: "truncated-msg-then-14", Messages: 1, play: func(x *exchange) { mid(x); x.cut(100, 50); x.status("14") }},
	{Name: "http200-html", play: func(x *exchange) {
		x.headers(false, ":status", "200", "content-type", "text/html")
		x.data([]byte("<!DOCTYPE html><title>200</title>"), true)
	}},
	{Name: "http200-noct", Messages: 1, play: func(x *exchange) {
		x.headers(false, ":status", "200")
		x.message()
		x.status("0")
	}},
	{Name: "info103", Messages: 1, play: func(x *exchange) {
		x.headers(false, ":status", "103", "link", "</style.css>; rel=preload")
		well(x)
	}},
	{Name: "msg-then-status5", Messages: 1, play: func(x *exchange) { mid(x); x.status("5") }},
	{Name: "trailers-only-14", play: func(x *exchange) { x.only("grpc-status", "14") }},
	{Name: "trailers-only-0", play: func(x *exchange) { x.only("grpc-status", "0") }},
	{Name: "trailers-only-16", play: func(x *exchange) { x.only("grpc-status", "16") }},
	{Name: "early-status-rst", Early: true, play: func(x *exchange) {
		x.only("grpc-status", "8")
		x.rst(http2.ErrCodeNo) // RFC 9113, 8.1: the answer is whole, the rest of the request is not wanted
	}},
}

// closing are whole answers whose connection ends at once: what arrived before the end counts.
var closing = []Script{
	{Name: "msg-then-status5-fin", Messages: 1, play: func(x *exchange) { mid(x); x.status("5"); x.fin() }},
	{Name: "msg-then-status5-tcprst", Messages: 1, play: func(x *exchange) { mid(x); x.status("5"); x.settle(); x.tcpRST() }},
	{Name: "trailers-only-16-fin", play: func(x *exchange) { x.only("grpc-status", "16"); x.fin() }},
	{Name: "goaway-msg-then-status5-fin", Messages: 1, play: func(x *exchange) {
		x.goAway(x.id, http2.ErrCodeNo, "max_age")
		mid(x)
		x.status("5")
		x.fin()
	}},
	{Name: "http-503-fin", play: func(x *exchange) {
		x.headers(false, ":status", "503", "content-type", "text/plain")
		x.data([]byte("no backend"), true)
		x.fin()
	}},
}
