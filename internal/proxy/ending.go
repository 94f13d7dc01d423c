package proxy

import (
	"encoding/base64"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	spb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/levada-io/levada/grpclife"
	"github.com/levada-io/levada/internal/h2/frame"
	"github.com/levada-io/levada/internal/h2/header"
)

// Reasons for which the proxy ends a stream, beside those of package grpclife. They are what the header levada-stream-ended, the ErrorInfo, the access
// log and the metrics say.
const (
	reasonConnectionLost = "CONNECTION_LOST"        // the connection to the endpoint broke, was closed, or fell silent
	reasonConnectFailed  = "CONNECT_FAILED"         // no connection to an endpoint could be made
	reasonNoBackend      = "NO_BACKEND"             // there is no endpoint
	reasonOverloaded     = "OVERLOADED"             // each endpoint has as many calls as it may
	reasonRefused        = "REFUSED_BY_BACKEND"     // the endpoint refused the stream unseen, twice
	reasonProtocol       = "BACKEND_PROTOCOL_ERROR" // what the endpoint sent is no HTTP/2 or no gRPC
	reasonNoStatus       = "NO_STATUS"              // the endpoint ended the stream without a status
	reasonCutMessage     = "MESSAGE_CUT"            // the endpoint ended the stream in the middle of a message
	reasonNotGRPC        = "NOT_GRPC"               // the endpoint answered a gRPC call with something else
	reasonDeadline       = "DEADLINE"               // the call's time is up
	reasonIdle           = "IDLE_TIMEOUT"           // no message either way for the route's time
	reasonNoRoute        = "NO_ROUTE"               // no route matches
	reasonRateLimit      = "RATE_LIMIT"             // more calls than the route allows
	reasonMessageSize    = "MESSAGE_TOO_LARGE"      // larger than the route allows
	reasonHeaderSize     = "HEADERS_TOO_LARGE"      // larger than the listener, the endpoint or the client takes
	reasonBadRequest     = "BAD_REQUEST"            // not what gRPC allows
	reasonStalled        = "STALLED"                // the client takes nothing
	reasonMemory         = "OUT_OF_MEMORY"          // what the client does not take is more than the proxy keeps
	reasonOverBudget     = "OVER_BUDGET"            // the connection's abuse budget is used up
	reasonHidden         = grpclife.ReasonHidden    // another proxy behind this one hid that a connection was lost
	reasonDraining       = grpclife.ReasonDraining  //
	reasonAge            = grpclife.ReasonStreamAge
)

// And those that are no ending of ours, for the log and the metrics.
const (
	endedByBackend      = "BACKEND"               // with its own status, or its own reset
	clientCancelled     = "CLIENT_CANCELLED"      // it cancelled
	clientDisconnected  = "CLIENT_DISCONNECTED"   // its connection ended
	clientProtocolError = "CLIENT_PROTOCOL_ERROR" // it broke the protocol
	refusedStream       = "TOO_MANY_STREAMS"      // it opened more than its connection may have
)

// ending is how the proxy itself ends a stream.
type ending struct {
	code   codes.Code
	reason string
	text   string
	// retry is when to come back; negative says nothing of it.
	retry time.Duration
	// unprocessed: no handler has seen the call, provably.
	unprocessed bool
	// http is the status for a call that is not gRPC.
	http int
}

func unavailable(reason, format string, args ...any) *ending {
	return &ending{code: codes.Unavailable, reason: reason, text: fmt.Sprintf(format, args...), retry: -1, http: http.StatusBadGateway}
}

func failure(code codes.Code, reason string, status int, format string, args ...any) *ending {
	return &ending{code: code, reason: reason, text: fmt.Sprintf(format, args...), retry: -1, http: status}
}

func failureOfBackend(what string) *ending {
	return failure(codes.Internal, reasonProtocol, http.StatusBadGateway, "the backend sent %s", what)
}

// fields are the trailers, or with only the one block of a Trailers-Only response.
func (e *ending) fields(only bool) []header.Field {
	fields := make([]header.Field, 0, 6)
	if only {
		fields = append(fields, header.Field{Name: ":status", Value: "200"}, header.Field{Name: "content-type", Value: "application/grpc"})
	}
	fields = append(fields, header.Field{Name: "grpc-status", Value: strconv.Itoa(int(e.code))},
		header.Field{Name: "grpc-message", Value: percentEncode(e.text)},
		header.Field{Name: grpclife.TrailerEnded, Value: e.reason})
	if details := e.details(); details != "" {
		fields = append(fields, header.Field{Name: "grpc-status-details-bin", Value: details})
	}
	return fields
}

// httpFields are the header of a response that is not gRPC; its body is the text.
func (e *ending) httpFields() []header.Field {
	return []header.Field{
		{Name: ":status", Value: strconv.Itoa(e.http)}, {Name: "content-type", Value: "text/plain; charset=utf-8"},
		{Name: grpclife.TrailerEnded, Value: e.reason},
	}
}

func (e *ending) details() string {
	info := &errdetails.ErrorInfo{Domain: grpclife.Domain, Reason: e.reason}
	if e.unprocessed {
		info.Metadata = map[string]string{grpclife.MetadataUnprocessed: "true"}
	}
	s := &spb.Status{Code: int32(e.code), Message: e.text}
	add := func(m proto.Message) {
		if a, err := anypb.New(m); err == nil {
			s.Details = append(s.Details, a)
		}
	}
	add(info)
	if e.retry >= 0 {
		add(&errdetails.RetryInfo{RetryDelay: durationpb.New(e.retry)})
	}
	b, err := proto.Marshal(s)
	if err != nil {
		return ""
	}
	return base64.RawStdEncoding.EncodeToString(b)
}

// percentEncode writes a grpc-message.
func percentEncode(s string) string {
	const hex = "0123456789ABCDEF"
	var b strings.Builder
	for i := range len(s) {
		if c := s[i]; c >= ' ' && c <= '~' && c != '%' {
			b.WriteByte(c)
		} else {
			b.Write([]byte{'%', hex[c>>4], hex[c&15]})
		}
	}
	return strings.Trim(b.String(), " ")
}

// fromHTTP maps what answers a gRPC call without being gRPC: "HTTP to gRPC Status Code Mapping" of gRPC's documentation.
func fromHTTP(status int, contentType string) *ending {
	code := codes.Unknown
	switch status {
	case http.StatusBadRequest:
		code = codes.Internal
	case http.StatusUnauthorized:
		code = codes.Unauthenticated
	case http.StatusForbidden:
		code = codes.PermissionDenied
	case http.StatusNotFound:
		code = codes.Unimplemented
	case http.StatusTooManyRequests, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		code = codes.Unavailable
	}
	what := "content type " + strconv.Quote(contentType)
	if contentType == "" {
		what = "no content type"
	}
	return failure(code, reasonNotGRPC, status, "the backend answered with HTTP status %d and %s, which is not gRPC", status, what)
}

// fromReset is the status that a client makes of a RST_STREAM: "HTTP2 Transport Mapping" of gRPC's documentation. It is what the log and the metrics say;
// the client gets the RST_STREAM itself.
func fromReset(code frame.Code) codes.Code {
	switch code {
	case frame.RefusedStream:
		return codes.Unavailable
	case frame.Cancel:
		return codes.Canceled
	case frame.EnhanceYourCalm:
		return codes.ResourceExhausted
	case frame.InadequateSecurity:
		return codes.PermissionDenied
	}
	return codes.Internal
}
