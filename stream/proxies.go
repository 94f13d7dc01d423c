package stream

import (
	"encoding/binary"
	"regexp"
	"strconv"
	"strings"

	"google.golang.org/grpc/status"
)

// What proxies make of a connection that was cut behind them, as grpc-go words it. The texts are matched in small
// letters, anywhere in the message.
var severedTexts = []string{
	"rst_stream", // nginx, nghttpx, Caddy and Go's reverse proxy reset the stream with INTERNAL_ERROR
	"stream terminated by",
	"server closed the stream without sending trailers", // HAProxy ends it with END_STREAM
	"unexpected eof",
	"stream removed", // grpc-core's words, passed on by other clients' gateways
	"goaway",
	"connection reset",
	"closing transport",
	"transport is closing",
	"shutdownnow",
	"connection error",
	"http2:",
	"broken pipe",
}

// severed reports whether an INTERNAL or UNKNOWN status is a cut connection that somebody in the way made another error of.
func severed(s *status.Status) bool {
	text := strings.ToLower(s.Message())
	for _, t := range severedTexts {
		if strings.Contains(text, t) {
			return true
		}
	}
	return fromHTTP(s)
}

// fromHTTP reports whether a status was made by the gRPC client from an HTTP answer that was not gRPC's: a proxy's own page.
func fromHTTP(s *status.Status) bool {
	text := s.Message()
	return strings.Contains(text, "unexpected HTTP status code") || strings.Contains(text, "unexpected content-type") ||
		strings.Contains(text, "malformed header: missing HTTP")
}

var largerThanMax = regexp.MustCompile(`larger than max \((\d+) vs\. \d+\)`)

func tooLarge(s *status.Status) bool { return strings.Contains(s.Message(), "larger than max") }

// lengthOfText reports whether the length that was too large is four characters of text: Apache sends "<!DOCTYPE" in the
// middle of a stream, of which "!DOC" or "<!DO" is read as a length.
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
