package stream

import (
	"cmp"
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

// A Reason is a stable word for why a job, or a stream, is where it is. The text beside it is for people.
type Reason string

// Reasons in the ErrorInfo of a producer's status, and in Status.Reason of a job.
const (
	ReasonUnknownStream     Reason = "UNKNOWN_STREAM"
	ReasonBadToken          Reason = "BAD_TOKEN"
	ReasonBadRequest        Reason = "BAD_REQUEST"
	ReasonQueryChanged      Reason = "QUERY_CHANGED"
	ReasonGenerationChanged Reason = "GENERATION_CHANGED"
	ReasonPositionGone      Reason = "POSITION_GONE"
	ReasonSourceFailed      Reason = "SOURCE_FAILED"
	ReasonSourceHalted      Reason = "SOURCE_HALTED"
	ReasonSourcePanicked    Reason = "SOURCE_PANICKED"
	ReasonOutOfOrder        Reason = "OUT_OF_ORDER"
	ReasonDraining          Reason = "DRAINING"
	ReasonTooManyStreams    Reason = "TOO_MANY_STREAMS" // the producer's MaxStreams
)

// Reasons that only jobs have. The first group waits and is tried again, as long as it takes; the second is also tried again, within a
// limit of WorkerConfig; the third is final at once.
const (
	ReasonOutage        Reason = "OUTAGE"         // producer, sink, job store, or what is behind the handler cannot be reached
	ReasonBusy          Reason = "BUSY"           // the producer, or a proxy before it, takes no more calls for now
	ReasonPoolExhausted Reason = "POOL_EXHAUSTED" // no connection of the worker's pool to the database became free in time
	ReasonLockWait      Reason = "LOCK_WAIT"      // another transaction held a lock for too long, or a deadlock or a conflict was resolved against this one
	ReasonStorageFull   Reason = "STORAGE_FULL"   // no space is left
	ReasonOverloaded    Reason = "OVERLOADED"     // the database has no memory, or no connections, left
	ReasonShutdown      Reason = "SHUTDOWN"       // the worker was stopped; another continues the job
	ReasonNewer         Reason = "NEWER_VERSION"  // written by a newer version: a worker of that version will claim the job
	ReasonNoHandler     Reason = "NO_HANDLER"     // this worker has no handler for the stream

	ReasonHandlerFailed    Reason = "HANDLER_FAILED"    // the handler returned an unclassified error: NoProgress
	ReasonTooSlow          Reason = "TOO_SLOW"          // one record alone takes longer than the handler may: NoProgress
	ReasonCorrupt          Reason = "CORRUPT_FRAMES"    // frames contradict each other: NoProgress
	ReasonDependentRows    Reason = "DEPENDENT_ROWS"    // rows that a record refers to, or collides with, are in the way: DependencyWait
	ReasonPrivilege        Reason = "NO_PRIVILEGE"      // the database role of the sink, the store or the handler lacks a privilege: NoProgress
	ReasonSchema           Reason = "SCHEMA_MISMATCH"   // a table or a column that a statement names is missing, or is another: NoProgress
	ReasonUnauthenticated  Reason = "UNAUTHENTICATED"   // DeniedGrace
	ReasonPermissionDenied Reason = "PERMISSION_DENIED" // DeniedGrace
	ReasonUnimplemented    Reason = "UNIMPLEMENTED"     // DeniedGrace: the server that answers does not serve streams

	ReasonHalted     Reason = "HALTED"
	ReasonNoProgress Reason = "NO_PROGRESS"
	ReasonTooManyBad Reason = "TOO_MANY_BAD"
	ReasonIncomplete Reason = "INCOMPLETE"
	ReasonRefused    Reason = "REFUSED"
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
	case VerdictOf(err) == VerdictHalt:
		code, reason = codes.FailedPrecondition, ReasonSourceHalted
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		// A bare CANCELLED would look to the reader like its own.
	}
	return newStatus(code, reason, err.Error(), retry)
}

func newStatus(code codes.Code, reason Reason, text string, retry time.Duration) error {
	details := []protoadapt.MessageV1{protoadapt.MessageV1Of(&errdetails.ErrorInfo{Domain: errorDomain, Reason: string(reason)})}
	if retry > 0 {
		details = append(details, protoadapt.MessageV1Of(&errdetails.RetryInfo{RetryDelay: durationpb.New(retry)}))
	}
	s, err := status.New(code, validUTF8(text)).WithDetails(details...)
	if err != nil {
		return status.Error(code, text)
	}
	return s.Err()
}

// A Disconnect says why a stream ended before its End, and what a reader may do about it.
type Disconnect struct {
	// Fatal: another attempt would get the same answer; an operator has to act.
	Fatal bool
	// Transport: the connection broke, or the producer went away. It says nothing about the stream.
	Transport bool
	// Denied goes with Fatal: the answer depends on a policy or on which replica gave it, both of which may be rolled out just now. A
	// [Worker] asks again for WorkerConfig.DeniedGrace before it takes the answer for final.
	Denied bool
	// Reason is the producer's, from its ErrorInfo, or that of its status code, or empty.
	Reason Reason
	// After is how long the producer asks to wait, or 0.
	After time.Duration
	// Err is the error as it came, wrapping a sentinel of this package where the reason has one.
	Err error
}

// Classify returns what the end of a stream means. Reading from an offset can be repeated, so everything
// may be retried except what the producer, or gRPC, has refused for good. Codes alone do not suffice: nginx, nghttpx, Caddy and Go's
// reverse proxy make INTERNAL of a cut connection, HAProxy ends the stream without trailers, some make UNKNOWN or CANCELLED of
// it, and Apache's HTML is read as a giant length prefix.
func Classify(err error) Disconnect {
	cut := Disconnect{Err: err}
	if err == nil || errors.Is(err, io.EOF) {
		// OK without End: a proxy closed the stream cleanly, or the producer is broken.
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
				cut.Reason = Reason(d.GetReason())
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
		if denied, ok := denials[s.Code()]; ok && cut.Fatal {
			cut.Denied, cut.Reason = true, cmp.Or(cut.Reason, denied)
		}
	case codes.ResourceExhausted:
		// Larger than max: either a real frame above our limit, which the request contained, or HTML read as a length.
		cut.Fatal = cut.Reason == "" && class.Sign == grpclife.SignTooLarge
		cut.Transport = cut.Reason == "" && !cut.Fatal
	case codes.Unavailable, codes.Canceled, codes.DeadlineExceeded:
		cut.Transport = true
	case codes.Internal, codes.Unknown:
		cut.Fatal = cut.Reason == ReasonOutOfOrder // as when the reader has noticed it
		cut.Transport = cut.Reason == "" && (class.Origin == grpclife.OriginTransport || class.Origin == grpclife.OriginProxy || class.Quoted)
	}
	return cut
}

// denials are the codes of answers that a policy gives, or a replica that does not know the stream yet.
var denials = map[codes.Code]Reason{
	codes.Unauthenticated: ReasonUnauthenticated, codes.PermissionDenied: ReasonPermissionDenied,
	codes.NotFound: ReasonUnknownStream, codes.Unimplemented: ReasonUnimplemented,
}

var sentinels = map[Reason]error{
	ReasonUnknownStream: ErrUnknownStream, ReasonBadToken: ErrBadToken, ReasonQueryChanged: ErrQueryChanged,
	ReasonGenerationChanged: ErrGeneration, ReasonPositionGone: ErrGone, ReasonOutOfOrder: ErrOrder,
}
