package grpclife

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// Origin says which side ended a call.
type Origin int

const (
	// OriginNone: the call ended well.
	OriginNone Origin = iota
	// OriginServer: the server sent this status, as far as the error shows.
	OriginServer
	// OriginTransport: the connection broke, or there was none, and the status is gRPC's own for that.
	OriginTransport
	// OriginProxy: something between client and server ended the call in its own way: it reset the stream, left its end out, or answered
	// with an HTTP page. [Class.Hidden] says whether that is a transport failure behind it.
	OriginProxy
	// OriginClient: gRPC on this side refused, as with a message above the limit or without credentials.
	OriginClient
	// OriginDeadline: this side's deadline has passed.
	OriginDeadline
	// OriginCancel: this side's context was cancelled.
	OriginCancel
)

func (o Origin) String() string {
	names := [...]string{"none", "server", "transport", "proxy", "client", "own deadline", "own cancel"}
	if o < 0 || int(o) >= len(names) {
		return fmt.Sprintf("Origin(%d)", int(o))
	}
	return names[o]
}

// A Class says what the end of a call means.
type Class struct {
	// Origin is the side that ended it.
	Origin Origin
	// Code is the status as it came.
	Code codes.Code
	// Sign is how Origin was found, if by grpc-go's words: see [Signs].
	Sign string
	// Hidden: the transport failed, and the code does not show it. UNAVAILABLE would have been accurate.
	Hidden bool
	// Quoted: the status is the server's, INTERNAL or UNKNOWN, but its text quotes a transport failure: a gateway passes on what
	// happened behind it.
	Quoted bool
	// Unprocessed: no handler has seen the call, provably. It can be tried again, whatever it does.
	Unprocessed bool
	// Domain and Reason are those of the first google.rpc.ErrorInfo, or empty.
	Domain, Reason string
	// RetryAfter is how long the server asks to wait, in a google.rpc.RetryInfo or by grpc-retry-pushback-ms, which comes first.
	// It means nothing unless RetryAsked.
	RetryAfter time.Duration
	// RetryAsked: the server has said when to try again.
	RetryAsked bool
	// Pushback: RetryAfter is from grpc-retry-pushback-ms.
	Pushback bool
	// RetryForbidden: a negative or senseless grpc-retry-pushback-ms, which means that the server wants no other attempt.
	RetryForbidden bool
}

// Transient reports whether the end says nothing about the call itself: the transport failed, whatever the code, or the server
// is UNAVAILABLE. That alone does not make it safe to try again what must not happen twice: see Unprocessed.
func (c Class) Transient() bool {
	return c.Origin == OriginTransport || c.Hidden || c.Origin != OriginDeadline && c.Origin != OriginCancel && c.Code == codes.Unavailable
}

// Evidence is what a client knows of a call beside its error.
type Evidence struct {
	// Context is the call's. Nil if not known.
	Context context.Context
	// Header and Trailer are the server's metadata; nil if none came. grpc-go hands out at least the content type of the first
	// frame that comes from a server, so that both are empty only if none came.
	Header, Trailer metadata.MD
	// Sent: the call was given to a connection. False means that it can not have left this process.
	Sent bool
}

// Classify tells who ended a call from its error alone. It never says Unprocessed but for a status with an ErrorInfo that states it, since
// the words of a status may be another's.
func Classify(err error) Class { return classify(err, nil) }

// ClassifyCall is Classify with evidence, which is more certain: interceptors use it. It needs grpc.Header, grpc.Trailer and
// grpc.Peer among the call's options.
func ClassifyCall(err error, seen Evidence) Class { return classify(err, &seen) }

func classify(err error, seen *Evidence) Class {
	s := statusIn(err)
	if err == nil || s == nil && errors.Is(err, io.EOF) {
		return Class{}
	}
	if hidden, ok := errors.AsType[*HiddenError](err); ok {
		return hidden.Class
	}
	if s == nil {
		return classifyPlain(err)
	}
	c := Class{Origin: OriginServer, Code: s.Code()}
	if c.Code == codes.OK {
		return Class{}
	}
	if sign, ok := signOf(s); ok {
		c.Origin, c.Sign, c.Hidden = sign.by, sign.Name, sign.Hidden
	} else {
		c.Quoted = quotes(s)
	}
	unprocessed := false
	for _, detail := range s.Details() {
		switch d := detail.(type) {
		case *errdetails.ErrorInfo:
			if c.Domain == "" && c.Reason == "" {
				c.Domain, c.Reason = d.GetDomain(), d.GetReason()
				unprocessed = c.Domain == Domain && d.GetMetadata()[MetadataUnprocessed] == "true"
			}
		case *errdetails.RetryInfo:
			c.RetryAfter, c.RetryAsked = max(d.GetRetryDelay().AsDuration(), 0), true
		}
	}
	if len(s.Proto().GetDetails()) > 0 {
		// grpc-go makes no details, so these are the server's words, even if they are grpc-go's.
		c.Origin, c.Sign, c.Hidden = OriginServer, "", false
		c.Quoted, c.Unprocessed = quotes(s), unprocessed
	}
	if seen != nil {
		c.weigh(s, seen)
	}
	return c
}

// statusIn returns the status that err is or wraps, or nil. status.FromError would put the wrapping's words before grpc-go's.
func statusIn(err error) *status.Status {
	var s interface{ GRPCStatus() *status.Status }
	if !errors.As(err, &s) {
		return nil
	}
	return s.GRPCStatus()
}

func classifyPlain(err error) Class {
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return Class{Origin: OriginDeadline, Code: codes.DeadlineExceeded}
	case errors.Is(err, context.Canceled):
		return Class{Origin: OriginCancel, Code: codes.Canceled}
	case errors.Is(err, io.ErrUnexpectedEOF):
		return Class{Origin: OriginTransport, Code: codes.Unknown}
	default:
		return Class{Origin: OriginClient, Code: codes.Unknown}
	}
}

// weigh corrects what the words say by what is known.
func (c *Class) weigh(s *status.Status, seen *Evidence) {
	answered := len(seen.Header) > 0 || len(seen.Trailer) > 0
	expired, cancelled := ended(seen.Context)
	switch {
	case seen.Context != nil && !expired && (c.Origin == OriginDeadline || c.Sign == "" && c.Code == codes.DeadlineExceeded),
		seen.Context != nil && !cancelled && c.Origin == OriginCancel:
		c.Origin, c.Sign = OriginServer, "" // its handler's own context
	case expired && (c.Code == codes.DeadlineExceeded || c.Code == codes.Canceled || c.Hidden || c.Origin == OriginTransport):
		c.Origin, c.Hidden = OriginDeadline, false
	case cancelled && (c.Code == codes.Canceled || c.Hidden || c.Origin == OriginTransport):
		c.Origin, c.Hidden = OriginCancel, false
	case len(seen.Trailer) > 0:
		// Only a server's last frame has these; what grpc-go says on its own comes without.
		if c.Sign != SignHTTP {
			c.Origin, c.Sign, c.Hidden = OriginServer, "", false
			c.Quoted = quotes(s)
		}
	case !seen.Sent && !answered && c.Code == codes.Unavailable:
		c.Origin, c.Unprocessed = OriginTransport, true
	case !seen.Sent && !answered && c.Origin == OriginServer:
		c.Origin = OriginClient
	case !answered && c.Code == codes.Unavailable && (c.Sign == SignRefused || c.Sign == SignRejected):
		// RFC 9113, 8.7 and 6.8: the server has not acted on the stream.
		c.Unprocessed = true
	}
	pushback := seen.Trailer.Get("grpc-retry-pushback-ms")
	if len(pushback) == 0 {
		return
	}
	ms, err := strconv.ParseInt(pushback[0], 10, 32)
	if len(pushback) > 1 || err != nil || ms < 0 {
		c.RetryForbidden = true
		return
	}
	c.RetryAfter, c.RetryAsked, c.Pushback = time.Duration(ms)*time.Millisecond, true, true
}

// ended says how a context has. A deadline that has passed counts also if its timer has not fired yet: grpc-go looks at the clock.
func ended(ctx context.Context) (expired, cancelled bool) {
	if ctx == nil {
		return false, false
	}
	if err := ctx.Err(); err != nil {
		expired = errors.Is(err, context.DeadlineExceeded)
		return expired, !expired
	}
	deadline, ok := ctx.Deadline()
	return ok && !time.Now().Before(deadline), false
}
