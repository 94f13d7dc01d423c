package grpclife

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/protoadapt"
	"google.golang.org/protobuf/types/known/durationpb"
)

// Domain is the domain of the google.rpc.ErrorInfo in the statuses of this package.
const Domain = "grpc.levada.io"

// Reasons in the ErrorInfo of the statuses of this package.
const (
	// ReasonStreamAge: the stream has lived long enough. Open it again.
	ReasonStreamAge = "STREAM_AGE"
	// ReasonDraining: the server is about to stop. Open the stream again, elsewhere.
	ReasonDraining = "DRAINING"
	// ReasonPanic: the handler panicked.
	ReasonPanic = "PANIC"
	// ReasonHidden: the transport failed, and a proxy made another status of it. Made by the client, see [RestoreUnavailable].
	ReasonHidden = "HIDDEN_TRANSPORT_FAILURE"
)

// MetadataUnprocessed is a key of an ErrorInfo's metadata. With the value "true" it says that no handler has seen the call, so
// that it can be tried again whatever it does.
const MetadataUnprocessed = "unprocessed"

// Metadata that tells clients of a stream's end without their having to read a status's details.
const (
	// HeaderAge comes with a stream's header: the age in milliseconds at which it will be asked to end.
	HeaderAge = "levada-stream-age-ms"
	// TrailerEnded is the reason for which this package has ended a stream.
	TrailerEnded = "levada-stream-ended"
)

// An EndError is why a stream was ended from outside its handler. It is the cause of the stream's context, what SendMsg and
// RecvMsg return from then on, and the status that the client gets.
type EndError struct {
	Reason string // ReasonStreamAge or ReasonDraining
	status *status.Status
}

func (e *EndError) Error() string { return "the stream was ended: " + e.status.Message() }

// GRPCStatus is UNAVAILABLE, with an ErrorInfo and a RetryInfo.
func (e *EndError) GRPCStatus() *status.Status { return e.status }

func newEndError(reason, text string, retry time.Duration, metadata map[string]string) *EndError {
	return &EndError{reason, newStatus(codes.Unavailable, reason, text, retry, metadata)}
}

// newStatus makes a status with an ErrorInfo and, unless retry is negative, a RetryInfo.
func newStatus(code codes.Code, reason, text string, retry time.Duration, metadata map[string]string) *status.Status {
	details := []protoadapt.MessageV1{protoadapt.MessageV1Of(&errdetails.ErrorInfo{Domain: Domain, Reason: reason, Metadata: metadata})}
	if retry >= 0 {
		details = append(details, protoadapt.MessageV1Of(&errdetails.RetryInfo{RetryDelay: durationpb.New(retry)}))
	}
	s := status.New(code, strings.ToValidUTF8(text, "\uFFFD"))
	if detailed, err := s.WithDetails(details...); err == nil {
		return detailed
	}
	return s
}

// spread returns d, give or take a share of it.
func spread(d time.Duration, share float64) time.Duration {
	width := float64(d) * share
	return max(d+time.Duration((2*rand.Float64()-1)*width), 0)
}

// methodSet matches full method names. An empty one matches all.
type methodSet []string

// newMethodSet checks patterns: "/package.Service/Method", "/package.Service/*" or "*".
func newMethodSet(option string, patterns []string) (methodSet, error) {
	for _, p := range patterns {
		service, method, ok := strings.Cut(strings.TrimPrefix(p, "/"), "/")
		bad := !ok || p[0] != '/' || service == "" || method == "" || strings.ContainsAny(method, "/") ||
			strings.Contains(service, "*") || method != "*" && strings.Contains(method, "*")
		if p != "*" && bad {
			return nil, fmt.Errorf("grpclife: %s holds %q, which is not a method; expected /package.Service/Method, /package.Service/* or *", option, p)
		}
	}
	return methodSet(patterns), nil
}

func (s methodSet) has(method string) bool {
	for _, p := range s {
		if p == method || p == "*" || strings.HasSuffix(p, "/*") && strings.HasPrefix(method, p[:len(p)-1]) {
			return true
		}
	}
	return false
}
