package stream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/protoadapt"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/levada-io/levada/grpclife"
)

// errorDomain is the domain of the google.rpc.ErrorInfo in the statuses of this package.
const errorDomain = "stream.levada.io"

// Reasons in the ErrorInfo of a status, and in Status.Reason of a job.
const (
	ReasonUnknownStream     = "UNKNOWN_STREAM"
	ReasonBadToken          = "BAD_TOKEN"
	ReasonBadRequest        = "BAD_REQUEST"
	ReasonQueryChanged      = "QUERY_CHANGED"
	ReasonGenerationChanged = "GENERATION_CHANGED"
	ReasonPositionGone      = "POSITION_GONE"
	ReasonSourceFailed      = "SOURCE_FAILED"
	ReasonSourceHalted      = "SOURCE_HALTED"
	ReasonSourcePanicked    = "SOURCE_PANICKED"
	ReasonOutOfOrder        = "OUT_OF_ORDER"
	ReasonDraining          = "DRAINING"
	ReasonTooManyStreams    = "TOO_MANY_STREAMS"

	// Only in jobs.
	ReasonHalted     = "HALTED"
	ReasonNoProgress = "NO_PROGRESS"
	ReasonTooManyBad = "TOO_MANY_BAD"
	ReasonIncomplete = "INCOMPLETE"
	ReasonRefused    = "REFUSED"
	ReasonNoHandler  = "NO_HANDLER"
	ReasonShutdown   = "SHUTDOWN"
	ReasonOutage     = "OUTAGE"
	ReasonNewer      = "NEWER_VERSION"
)

// statusOf makes a source's error the status that readers can act on.
func statusOf(err error) error {
	code, reason, retry := codes.Unavailable, ReasonSourceFailed, time.Duration(0)
	_, panicked := errors.AsType[*PanicError](err)
	switch {
	case errors.Is(err, ErrUnknownStream):
		code, reason = codes.NotFound, ReasonUnknownStream
	case errors.Is(err, ErrBadToken):
		code, reason = codes.InvalidArgument, ReasonBadToken
	case errors.Is(err, ErrQueryChanged):
		code, reason = codes.FailedPrecondition, ReasonQueryChanged
	case errors.Is(err, ErrGeneration):
		code, reason = codes.FailedPrecondition, ReasonGenerationChanged
	case errors.Is(err, ErrGone):
		code, reason = codes.OutOfRange, ReasonPositionGone
	case errors.Is(err, ErrOrder):
		code, reason = codes.Internal, ReasonOutOfOrder
	case panicked:
		code, reason, retry = codes.Internal, ReasonSourcePanicked, time.Second
	case verdictOf(err) == verdictHalt:
		code, reason = codes.FailedPrecondition, ReasonSourceHalted
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		// A bare CANCELLED would look to the reader like its own.
	}
	return newStatus(code, reason, err.Error(), retry)
}

func newStatus(code codes.Code, reason, text string, retry time.Duration) error {
	details := []protoadapt.MessageV1{protoadapt.MessageV1Of(&errdetails.ErrorInfo{Domain: errorDomain, Reason: reason})}
	if retry > 0 {
		details = append(details, protoadapt.MessageV1Of(&errdetails.RetryInfo{RetryDelay: durationpb.New(retry)}))
	}
	s, err := status.New(code, validUTF8(text)).WithDetails(details...)
	if err != nil {
		return status.Error(code, text)
	}
	return s.Err()
}

// A Cut says why a stream ended before its End, and what a reader may do about it.
type Cut struct {
	// Fatal: asking again would bring the same answer; a person has to look.
	Fatal bool
	// Transport: the way to the producer broke, or the producer went away. It says nothing about the stream.
	Transport bool
	// Reason is the producer's, from its ErrorInfo, or empty.
	Reason string
	// After is how long the producer asks to wait, or 0.
	After time.Duration
	// Err is the error as it came, wrapping a sentinel of this package where the reason has one.
	Err error
}

// Classify tells what the end of a stream means. It goes by the rule that reading from an offset can be repeated, so everything
// may be tried again but what the producer, or gRPC, has refused for good. Codes alone would not do: nginx, nghttpx, Caddy and Go's
// reverse proxy make INTERNAL of a cut connection, HAProxy ends the stream without trailers, some make UNKNOWN or CANCELLED of
// it, and Apache's HTML is read as a giant length prefix.
func Classify(err error) Cut {
	cut := Cut{Err: err}
	if err == nil || errors.Is(err, io.EOF) {
		// OK without End: a proxy ended the stream politely, or the producer is broken.
		cut.Transport, cut.Err = true, fmt.Errorf("the stream ended without End: %w", io.ErrUnexpectedEOF)
		return cut
	}
	if errors.Is(err, ErrCorrupt) {
		return cut
	}
	if errors.Is(err, ErrOrder) {
		cut.Fatal, cut.Reason = true, ReasonOutOfOrder
		return cut
	}
	s, ok := status.FromError(err)
	if !ok {
		cut.Transport = true
		return cut
	}
	for _, detail := range s.Details() {
		switch d := detail.(type) {
		case *errdetails.ErrorInfo:
			if d.GetDomain() == errorDomain {
				cut.Reason = d.GetReason()
			}
		case *errdetails.RetryInfo:
			cut.After = max(d.GetRetryDelay().AsDuration(), 0)
		}
	}
	if sentinel := sentinels[cut.Reason]; sentinel != nil {
		cut.Err = fmt.Errorf("%w: %w", sentinel, err)
	}
	class := grpclife.Classify(err)
	switch s.Code() {
	case codes.InvalidArgument, codes.Unauthenticated, codes.PermissionDenied, codes.NotFound, codes.AlreadyExists,
		codes.FailedPrecondition, codes.OutOfRange, codes.Unimplemented, codes.DataLoss:
		// A proxy that has no route, or a page of its own, answers with an HTTP status, which gRPC makes one of these codes.
		cut.Fatal = cut.Reason != "" || class.Sign != grpclife.SignHTTP
		cut.Transport = !cut.Fatal
	case codes.ResourceExhausted:
		// Larger than max: either a real frame above our limit, which the producer was told, or HTML read as a length.
		cut.Fatal = cut.Reason == "" && class.Sign == grpclife.SignTooLarge
		cut.Transport = cut.Reason == "" && !cut.Fatal
	case codes.Unavailable, codes.Canceled, codes.DeadlineExceeded:
		cut.Transport = true
	case codes.Internal, codes.Unknown:
		cut.Fatal = cut.Reason == ReasonOutOfOrder // as when the reader has noticed it
		cut.Transport = cut.Reason == "" && (class.By == grpclife.ByTransport || class.By == grpclife.ByProxy || class.Quoted)
	}
	return cut
}

var sentinels = map[string]error{
	ReasonUnknownStream: ErrUnknownStream, ReasonBadToken: ErrBadToken, ReasonQueryChanged: ErrQueryChanged,
	ReasonGenerationChanged: ErrGeneration, ReasonPositionGone: ErrGone, ReasonOutOfOrder: ErrOrder,
}
