package hostile

import (
	"bytes"
	"slices"
	"strings"

	"golang.org/x/net/http2"
)

// Case is a request that must not reach a backend as it is. Others on its connection must not notice it.
type Case struct {
	Name  string
	Block []byte
	Then  func(*Conn) error // what follows the headers; nil is that they end the stream
	// Clean says that it may also be forwarded, if what the backend gets is well-formed.
	Clean bool
}

// Send sends it on a stream of its own.
func (m Case) Send(c *Conn) error {
	if err := c.Open(m.Block, m.Then == nil); err != nil || m.Then == nil {
		return err
	}
	return m.Then(c)
}

// Malformed are requests that RFC 9113 calls so, and those that a proxy must refuse for their size.
var Malformed = slices.Concat(
	pseudo(),
	extra("upper-case name", "X-Upper", "x"),
	extra("name with a space", "x y", "x"),
	extra("name with a colon", "x:y", "x"),
	extra("name with CR LF", "x\r\ny", "x"),
	extra("name with NUL", "x\x00y", "x"),
	extra("name beyond ASCII", "x\xe4", "x"),
	extra("empty name", "", "x"),
	extra("value with CR LF", "x-value", "a\r\nx-smuggled: b"),
	extra("value with LF", "x-value", "a\nb"),
	extra("value with CR", "x-value", "a\rb"),
	extra("value with NUL", "x-value", "a\x00b"),
	extra("connection", "connection", "keep-alive"),
	extra("keep-alive", "keep-alive", "1"),
	extra("proxy-connection", "proxy-connection", "close"),
	extra("transfer-encoding", "transfer-encoding", "chunked"),
	extra("upgrade", "upgrade", "websocket"),
	extra("te other than trailers", "te", "gzip"),
	extra("content-length without a body", "content-length", "10"),
	extra("content-length twice", "content-length", "0", "content-length", "1"),
	extra("content-length below 0", "content-length", "-1"),
	extra("content-length with a sign", "content-length", "+0"),
	[]Case{
		{Name: "content-length below the body's", Block: Request("Echo", "content-length", "3"), Then: body(Message([]byte("hello")))},
		{Name: "content-length above the body's", Block: Request("Echo", "content-length", "30"), Then: body(Message([]byte("hello")))},
		{Name: "trailers with a pseudo-header", Block: echo, Then: trailers(Fields(":path", "/x"), true)},
		{Name: "trailers with an upper-case name", Block: echo, Then: trailers(Fields("X-Upper", "x"), true)},
		{Name: "trailers that do not end the stream", Block: echo, Then: trailers(Fields("x-trailer", "x"), false)},
		{Name: "value that begins with a space", Block: Request("Echo", "x-value", " a"), Clean: true},
		{Name: "value that ends with a tab", Block: Request("Echo", "x-value", "a\t"), Clean: true},
		{Name: "host that is not :authority", Block: Request("Echo", "host", "elsewhere"), Clean: true},
		{Name: "host twice", Block: Request("Echo", "host", "hostile", "host", "elsewhere"), Clean: true},
		{Name: "header of 64 KB", Block: largeHeader},
		{Name: "header of 200 KB", Block: Request("Echo", "x-large", strings.Repeat("x", 200<<10))},
		{Name: "100,000 fields", Block: append(bomb(echo, "x", 1), bytes.Repeat([]byte{0x80 | 62}, 88_000)...)},
		{Name: "grpc-timeout of 8 KB", Block: Request("Echo", "grpc-timeout", strings.Repeat("9", 8<<10)+"S"), Clean: true},
		{Name: "message of 4 MiB and a byte", Block: echo, Then: data(append(Prefix(4<<20+1), 'x'))},
		{Name: "message of 2 GB", Block: echo, Then: data(append(Prefix(most), 'x'))},
	},
)

// MaxMessage is the size up to which the proxy must let messages pass for the cases above.
const MaxMessage = 4 << 20

// pseudo are what can be wrong with the fields that begin with a colon.
func pseudo() []Case {
	all := []string{":method", "POST", ":scheme", "http", ":path", Honest + "Echo", ":authority", "hostile"}
	rest := []string{"content-type", "application/grpc", "te", "trailers"}
	with := func(name, field string, values ...string) Case {
		i := slices.Index(all, field)
		var v []string
		for _, value := range values {
			v = append(v, field, value)
		}
		return Case{Name: name, Block: Fields(slices.Concat(all[:i], v, all[i+2:], rest)...)}
	}
	anyway := func(c Case) Case { c.Clean = true; return c }
	return []Case{
		with("no :method", ":method"), with("no :scheme", ":scheme"), with("no :path", ":path"), anyway(with("no :authority", ":authority")),
		with("two :method", ":method", "POST", "GET"), with("two :scheme", ":scheme", "http", "https"), with("two :path", ":path", Honest+"Echo", "/other"),
		with("two :authority", ":authority", "hostile", "elsewhere"),
		with("empty :path", ":path", ""), with(":path without a slash", ":path", Honest[1:]+"Echo"), with(":path with CR LF", ":path", Honest+"Echo\r\nx: y"),
		with(":path with a space", ":path", Honest+"Echo HTTP/1.1"), with(":path with NUL", ":path", Honest+"\x00"),
		with(":method with a space", ":method", "POST /x"), with(":authority with CR LF", ":authority", "hostile\r\nx: y"),
		with(":authority with a user", ":authority", "user@hostile"), with("empty :method", ":method", ""),
		{Name: "unknown pseudo-header", Block: Fields(slices.Concat(all, []string{":unknown", "x"}, rest)...)},
		{Name: ":status in a request", Block: Fields(slices.Concat(all, []string{":status", "200"}, rest)...)},
		{Name: "pseudo-header after others", Block: Fields(slices.Concat(all[:4], rest, all[4:])...)},
	}
}

func extra(name string, namesAndValues ...string) []Case {
	return []Case{{Name: name, Block: Request("Echo", namesAndValues...)}}
}

func data(p []byte) func(*Conn) error {
	return func(c *Conn) error { return c.WriteData(c.Stream(), false, p) }
}

func body(p []byte) func(*Conn) error {
	return func(c *Conn) error { return c.WriteData(c.Stream(), true, p) }
}

func trailers(block []byte, end bool) func(*Conn) error {
	return func(c *Conn) error { return c.Head(c.Stream(), block, end) }
}

// Answer is a response that must not reach a client as it is.
type Answer struct {
	Name  string
	Parts [][]byte // headers, or headers and trailers
}

// MalformedAnswers are responses that RFC 9113 or gRPC call so.
var MalformedAnswers = []Answer{
	alone("no :status", Fields("content-type", "application/grpc", "grpc-status", "0")),
	alone("two :status", Fields(":status", "200", ":status", "500", "content-type", "application/grpc", "grpc-status", "0")),
	alone(":status that is no number", Fields(":status", "abc", "content-type", "application/grpc", "grpc-status", "0")),
	alone(":status of two digits", Fields(":status", "99", "content-type", "application/grpc", "grpc-status", "0")),
	alone(":status 101", Fields(":status", "101", "content-type", "application/grpc", "grpc-status", "0")),
	alone("empty :status", Fields(":status", "", "content-type", "application/grpc", "grpc-status", "0")),
	alone(":status after others", Fields("content-type", "application/grpc", ":status", "200", "grpc-status", "0")),
	alone(":path in a response", Response(":path", "/x", "grpc-status", "0")),
	alone("upper-case name", Response("X-Upper", "x", "grpc-status", "0")),
	alone("empty name", Response("", "x", "grpc-status", "0")),
	alone("value with CR LF", Response("x-value", "a\r\nb", "grpc-status", "0")),
	alone("value with NUL", Response("x-value", "a\x00b", "grpc-status", "0")),
	alone("connection", Response("connection", "close", "grpc-status", "0")),
	alone("transfer-encoding", Response("transfer-encoding", "chunked", "grpc-status", "0")),
	alone("content-length without a body", Response("content-length", "10", "grpc-status", "0")),
	alone("content-length that is no number", Response("content-length", "x", "grpc-status", "0")),
	alone("grpc-status that is no number", Response("grpc-status", "abc")),
	alone("grpc-status below 0", Response("grpc-status", "-1")),
	alone("grpc-status twice", Response("grpc-status", "0", "grpc-status", "13")),
	alone("no grpc-status", Response()),
	{Name: ":status in trailers", Parts: [][]byte{Response(), Fields(":status", "200", "grpc-status", "0")}},
	{Name: "upper-case name in trailers", Parts: [][]byte{Response(), Fields("Grpc-Status", "0")}},
	{Name: "CR LF in trailers", Parts: [][]byte{Response(), Fields("grpc-status", "0", "x-value", "a\r\nb")}},
	{Name: "trailers without grpc-status", Parts: [][]byte{Response(), Fields("x-trailer", "x")}},
	{Name: "empty trailers", Parts: [][]byte{Response(), nil}},
	alone("headers of 1 MB", Response("x-large", strings.Repeat("x", 1<<20), "grpc-status", "13")),
	alone("HPACK references, 4 KB x 12,000", bomb(Response("grpc-status", "13"), "x-bomb", 4000)),
	alone("grpc-message of 64 KB", Response("grpc-message", strings.Repeat("x", 64<<10), "grpc-status", "13")),
}

func alone(name string, block []byte) Answer { return Answer{Name: name, Parts: [][]byte{block}} }

// send answers a request with it.
func (a Answer) send(c *Conn, f *http2.MetaHeadersFrame) error {
	return answer(a.Parts[0], len(a.Parts) == 1, a.Parts[1:]...)(c, f)
}

// Smuggled is the path that the second request asks for which hides in those of Smuggling.
const Smuggled = "/hostile.Honest/Smuggled"

// Smuggling are texts of HTTP/1.1 that two servers can understand differently.
var Smuggling = map[string]string{
	"CL.TE":              h1("Content-Length: %d\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n"),
	"TE.CL":              h1("Transfer-Encoding: chunked\r\nContent-Length: 4\r\n", "5c\r\n"),
	"TE.TE":              h1("Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n", "0\r\n\r\n"),
	"TE with a tab":      h1("Transfer-Encoding:\tchunked\r\nContent-Length: 4\r\n", "0\r\n\r\n"),
	"TE before a space":  h1("Transfer-Encoding : chunked\r\nContent-Length: 4\r\n", "0\r\n\r\n"),
	"two Content-Length": h1("Content-Length: 0\r\nContent-Length: 44\r\n", ""),
	"two Host":           h1("Host: elsewhere\r\nContent-Length: 0\r\n", ""),
	"obs-fold":           h1("X: y\r\n Content-Length: 44\r\n", ""),
	"bare LF":            strings.ReplaceAll(h1("Content-Length: 0\r\n", ""), "\r\n", "\n"),
	"HTTP/0.9":           "GET " + Smuggled + "\r\n\r\n",
	"PRI that goes on":   "PRI * HTTP/2.0\r\n\r\nGET " + Smuggled + " HTTP/1.1\r\nHost: hostile\r\n\r\n",
}

func h1(fields, between string) string {
	hidden := between + "GET " + Smuggled + " HTTP/1.1\r\nHost: hostile\r\n\r\n"
	fields = strings.ReplaceAll(fields, "%d", "6")
	return "POST /hostile.Honest/Echo HTTP/1.1\r\nHost: hostile\r\n" + fields + "\r\n" + hidden
}
