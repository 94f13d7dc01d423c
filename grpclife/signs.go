package grpclife

import (
	"encoding/binary"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Names of [Signs].
const (
	SignReset      = "reset"       // RST_STREAM without a status
	SignNoTrailers = "no-trailers" // the stream ended without a status
	SignCutMessage = "cut-message" // the stream ended within a message
	SignHTML       = "html"        // text where a message should be
	SignHTTP       = "http"        // an HTTP answer that is not gRPC's
	SignRefused    = "refused"     // RST_STREAM(REFUSED_STREAM)
	SignRejected   = "rejected"    // a stream that came too late for a connection that is being closed
	SignConnection = "connection"  // the connection broke, or could not be made
	SignTooLarge   = "too-large"   // a message above a limit
	SignDeadline   = "deadline"
	SignCancel     = "cancel"
)

// A Sign is a status that grpc-go's client makes by itself, and so tells who ended the call.
type Sign struct {
	Name string
	// Code of the status.
	Code codes.Code
	// Text is how grpc-go's message begins.
	Text string
	// Hidden: it stands for a transport failure that the code does not name.
	Hidden bool
	// From is which proxies are known to do so to a stream that was cut behind them.
	From string

	by    Origin
	whole bool                        // Text is the whole message
	also  func(s *status.Status) bool // must hold too
}

// What resets a stream when a connection behind it is lost. Others, as FLOW_CONTROL_ERROR, are a peer's quarrel with our frames.
const rst = "stream terminated by RST_STREAM with error code: "

var signs = []Sign{
	{Name: SignReset, Code: codes.Internal, Text: rst + "INTERNAL_ERROR", Hidden: true, by: OriginProxy, whole: true,
		From: "nginx, nghttpx, Caddy, Go's ReverseProxy, hyper"},
	{Name: SignReset, Code: codes.Internal, Text: rst + "NO_ERROR", Hidden: true, by: OriginProxy, whole: true, From: "Envoy"},
	{Name: SignReset, Code: codes.Internal, Text: rst + "CONNECT_ERROR", Hidden: true, by: OriginProxy, whole: true, From: "Envoy"},
	{Name: SignReset, Code: codes.Internal, Text: rst + "STREAM_CLOSED", Hidden: true, by: OriginProxy, whole: true},
	{Name: SignReset, Code: codes.Internal, Text: rst, by: OriginTransport},
	{Name: SignNoTrailers, Code: codes.Internal, Text: "server closed the stream without sending trailers", Hidden: true, by: OriginProxy, whole: true,
		From: "HAProxy"},
	{Name: SignCutMessage, Code: codes.Internal, Text: "unexpected EOF", Hidden: true, by: OriginProxy, whole: true, From: "HAProxy"},
	{Name: SignHTML, Code: codes.ResourceExhausted, Text: "grpc: received message larger than max", Hidden: true, by: OriginProxy, also: lengthOfText,
		From: "Apache"},
	{Name: SignHTML, Code: codes.Internal, Text: "grpc: received unexpected payload format 60", Hidden: true, by: OriginProxy, whole: true, From: "Apache"},

	{Name: SignRefused, Code: codes.Unavailable, Text: rst + "REFUSED_STREAM", by: OriginTransport, whole: true},
	{Name: SignRejected, Code: codes.Unavailable, Text: "the stream is rejected because server is draining the connection", by: OriginTransport, whole: true},
	{Name: SignRejected, Code: codes.Unavailable, Text: "the connection is draining", by: OriginTransport, whole: true},
	{Name: SignConnection, Code: codes.Unavailable, Text: "closing transport due to: ", by: OriginTransport},
	{Name: SignConnection, Code: codes.Unavailable, Text: "connection error: ", by: OriginTransport},
	{Name: SignConnection, Code: codes.Unavailable, Text: "last connection error: ", by: OriginTransport},
	{Name: SignConnection, Code: codes.Unavailable, Text: "error reading from server: ", by: OriginTransport},
	{Name: SignConnection, Code: codes.Unavailable, Text: "keepalive ping failed to receive ACK within timeout", by: OriginTransport, whole: true},
	{Name: SignConnection, Code: codes.Unavailable, Text: "transport is closing", by: OriginTransport, whole: true},
	{Name: SignConnection, Code: codes.Unavailable, Text: "name resolver error: ", by: OriginTransport},
	{Name: SignReset, Code: codes.Unavailable, Text: rst, by: OriginTransport},

	{Name: SignTooLarge, Code: codes.ResourceExhausted, Text: "grpc: received message larger than max", by: OriginClient},
	{Name: SignTooLarge, Code: codes.ResourceExhausted, Text: "grpc: received message after decompression larger than max", by: OriginClient},
	{Name: SignTooLarge, Code: codes.ResourceExhausted, Text: "grpc: message after decompression larger than max", by: OriginClient},
	{Name: SignTooLarge, Code: codes.ResourceExhausted, Text: "trying to send message larger than max", by: OriginClient},
	{Name: SignTooLarge, Code: codes.ResourceExhausted, Text: "grpc: message too large", by: OriginClient},

	{Name: SignReset, Code: codes.Canceled, Text: rst + "CANCEL", by: OriginProxy, whole: true},
	{Name: SignDeadline, Code: codes.DeadlineExceeded, Text: "context deadline exceeded", by: OriginDeadline},
	{Name: SignDeadline, Code: codes.DeadlineExceeded, Text: "latest balancer error: ", by: OriginDeadline},
	{Name: SignDeadline, Code: codes.DeadlineExceeded, Text: rst, by: OriginDeadline},
	{Name: SignCancel, Code: codes.Canceled, Text: "context canceled", by: OriginCancel},
	{Name: SignCancel, Code: codes.Canceled, Text: "latest balancer error: ", by: OriginCancel},
	{Name: SignCancel, Code: codes.Canceled, Text: "grpc: the client connection is closing", by: OriginClient, whole: true},
}

// Signs returns what [Classify] knows, in the order in which it looks. HTTP answers are recognised by their text under any code.
func Signs() []Sign { return slices.Clone(signs) }

func signOf(s *status.Status) (Sign, bool) {
	text := s.Message()
	if fromHTTP(text) {
		return Sign{Name: SignHTTP, Code: s.Code(), by: OriginProxy}, true
	}
	for _, sign := range signs {
		if sign.Code == s.Code() && strings.HasPrefix(text, sign.Text) && (!sign.whole || text == sign.Text) && (sign.also == nil || sign.also(s)) {
			return sign, true
		}
	}
	return Sign{}, false
}

// fromHTTP reports whether gRPC made a status of an HTTP answer that was not gRPC's: a proxy's own page, or no gRPC server at all.
func fromHTTP(text string) bool {
	return strings.HasPrefix(text, "unexpected HTTP status code received from server: ") || strings.HasPrefix(text, "malformed header: missing HTTP ") ||
		strings.HasPrefix(text, "transport: malformed http-status: ") || strings.HasPrefix(text, "transport: received unexpected content-type ")
}

// Words for a cut connection in the messages of gateways, of several languages and HTTP libraries. Small letters.
var quotable = []string{
	"rst_stream",
	"stream terminated by",
	"server closed the stream without sending trailers",
	"unexpected eof",
	"stream removed", // grpc-core
	"goaway",
	"connection reset",
	"closing transport",
	"transport is closing",
	"shutdownnow", // grpc-java
	"connection error",
	"http2:",
	"broken pipe",
	"unexpected http status code",
	"unexpected content-type",
	"malformed header: missing http",
}

func quotes(s *status.Status) bool {
	if s.Code() != codes.Internal && s.Code() != codes.Unknown {
		return false
	}
	text := strings.ToLower(s.Message())
	return slices.ContainsFunc(quotable, func(q string) bool { return strings.Contains(text, q) })
}

var largerThanMax = regexp.MustCompile(`larger than max \((\d+) vs\. \d+\)`)

// lengthOfText reports whether the length that was too large is four characters of text: Apache sends an HTML page in the middle of a
// stream, of which "!DOC" or "<!DO" is read as a length.
func lengthOfText(s *status.Status) bool {
	m := largerThanMax.FindStringSubmatch(s.Message())
	if m == nil {
		return false
	}
	n, err := strconv.ParseUint(m[1], 10, 32)
	if err != nil {
		return false
	}
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], uint32(n))
	for _, c := range b {
		if (c < ' ' || c > '~') && c != '\r' && c != '\n' && c != '\t' {
			return false
		}
	}
	return true
}
