package stream_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/levada-io/levada/stream"
)

// What clients of grpc-go were seen to get through proxies when the connection behind was cut, and what they get from producers that refuse.
func TestClassify(t *testing.T) {
	const transport, fatal, refused = "transport", "fatal", "refused"
	for _, test := range []struct {
		who  string
		err  error
		want string
	}{
		{"an end without End", nil, transport},
		{"an end without End", io.EOF, transport},
		{"no status at all", errors.New("no route to host"), transport},
		{"direct", status.Error(codes.Unavailable, "error reading from server: EOF"), transport},
		{"direct, connection age", status.Error(codes.Unavailable, `closing transport due to: connection error: desc = "error reading from server: EOF", received prior goaway: code: NO_ERROR, debug data: "max_age"`), transport},
		{"nginx, nghttpx, Caddy, Go", status.Error(codes.Internal, "stream terminated by RST_STREAM with error code: INTERNAL_ERROR"), transport},
		{"Envoy", status.Error(codes.Internal, "stream terminated by RST_STREAM with error code: NO_ERROR"), transport},
		{"HAProxy", status.Error(codes.Internal, "server closed the stream without sending trailers"), transport},
		{"cut within a message", status.Error(codes.Internal, "unexpected EOF"), transport},
		{"gRPC core behind a gateway", status.Error(codes.Unknown, "Stream removed"), transport},
		{"Apache, <!DOCTYPE", status.Error(codes.ResourceExhausted, "grpc: received message larger than max (558124867 vs. 5242880)"), transport},
		{"Apache, <html", status.Error(codes.ResourceExhausted, "grpc: received message larger than max (1752460652 vs. 5242880)"), transport},
		{"nginx, 502", status.Error(codes.Unavailable, "unexpected HTTP status code received from server: 502 (Bad Gateway)"), transport},
		{"a page for 404", status.Error(codes.Unimplemented, `unexpected HTTP status code received from server: 404 (Not Found); transport: received unexpected content-type "text/html"`), transport},
		{"a page for 403", status.Error(codes.PermissionDenied, `unexpected HTTP status code received from server: 403 (Forbidden); transport: received unexpected content-type "text/html"`), transport},
		{"somebody's cancel", status.Error(codes.Canceled, "context canceled"), transport},
		{"somebody's deadline", status.Error(codes.DeadlineExceeded, "stream timeout"), transport},
		{"the producer, no such service", status.Error(codes.Unimplemented, "unknown service levada.stream.v1.Stream"), fatal},
		{"the producer, no right", status.Error(codes.PermissionDenied, "not yours"), fatal},
		{"a frame above our limit", status.Error(codes.ResourceExhausted, "grpc: received message larger than max (8388608 vs. 5242880)"), fatal},
		{"an overloaded server", status.Error(codes.ResourceExhausted, "too many requests"), transport},
		{"a handler's plain error", status.Error(codes.Unknown, "sql: no rows in result set"), refused},
		{"a handler's panic", status.Error(codes.Internal, "panic: nil map"), refused},
		{"a frame that is none", fmt.Errorf("%w: batch", stream.ErrCorrupt), refused},
		{"keys that do not grow", fmt.Errorf("%w: a after b", stream.ErrOrder), fatal},
		{"a context", context.DeadlineExceeded, transport},
	} {
		cut := stream.Classify(test.err)
		got := refused
		switch {
		case cut.Fatal && cut.Transport:
			got = "both"
		case cut.Fatal:
			got = fatal
		case cut.Transport:
			got = transport
		}
		if got != test.want || cut.Err == nil {
			t.Errorf("%s: %v is %s, not %s", test.who, test.err, got, test.want)
		}
	}
}
