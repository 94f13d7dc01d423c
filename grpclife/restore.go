package grpclife

import (
	"context"
	"fmt"
	"io"
	"net"
	"sync/atomic"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
)

// A HiddenError is a status that hid a transport failure, as the failure that it was.
type HiddenError struct {
	// Class of the status as it came.
	Class Class
	// Original is the error as it came.
	Original error
	status   *status.Status
}

func newHiddenError(err error, c Class) *HiddenError {
	text := fmt.Sprintf("the transport failed, which a proxy reported as %v: %s", c.Code, status.Convert(err).Message())
	return &HiddenError{c, err, newStatus(codes.Unavailable, ReasonHidden, text, -1, map[string]string{"code": c.Code.String(), "sign": c.Sign})}
}

func (e *HiddenError) Error() string { return e.status.Err().Error() }

// GRPCStatus is UNAVAILABLE, with an ErrorInfo of reason HIDDEN_TRANSPORT_FAILURE, and in its metadata code, the original one, and sign.
func (e *HiddenError) GRPCStatus() *status.Status { return e.status }

// RestoreUnavailable makes UNAVAILABLE, as a [HiddenError], of the statuses by which proxies hide a transport failure: see [Sign]. All others pass
// untouched. It is for those who cannot change the proxy. A server that breaks off a stream by itself in the same way, which none does in
// good health, is taken for a proxy.
//
// Its zero value is off.
type RestoreUnavailable struct {
	// Observer receives StatusRestored. Set it before the first call.
	Observer Observer
	on       atomic.Bool
}

// NewRestoreUnavailable returns one that is on.
func NewRestoreUnavailable(observer Observer) *RestoreUnavailable {
	u := &RestoreUnavailable{Observer: observer}
	u.Switch(true)
	return u
}

// Switch turns it on or off, also for calls that are under way.
func (u *RestoreUnavailable) Switch(on bool) { u.on.Store(on) }

func (u *RestoreUnavailable) restored(ctx context.Context, method string, err error, seen *evidence) error {
	if err == nil || !u.on.Load() {
		return err
	}
	c := ClassifyCall(err, seen.of(ctx))
	if !c.Hidden {
		return err
	}
	u.Observer.see(Event{Kind: StatusRestored, Method: method, Class: c})
	return newHiddenError(err, c)
}

// evidence is where grpc-go puts what it knows when a call has ended.
type evidence struct {
	header, trailer metadata.MD
	peer            peer.Peer
}

// nowhere is a peer's address that grpc-go replaces when it gives a call to a connection, even by nil if the connection has none.
type nowhere struct{}

func (nowhere) Network() string { return "none" }
func (nowhere) String() string  { return "nowhere" }

func newEvidence() *evidence { return &evidence{peer: peer.Peer{Addr: nowhere{}}} }

func (e *evidence) options(opts []grpc.CallOption) []grpc.CallOption {
	// A new slice: opts may be the caller's.
	return append(opts[:len(opts):len(opts)], grpc.Header(&e.header), grpc.Trailer(&e.trailer), grpc.Peer(&e.peer))
}

func (e *evidence) of(ctx context.Context) Evidence {
	return Evidence{Context: ctx, Header: e.header, Trailer: e.trailer, Sent: e.peer.Addr != net.Addr(nowhere{})}
}

// Unary is a [grpc.UnaryClientInterceptor].
func (u *RestoreUnavailable) Unary(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoker grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	seen := newEvidence()
	err := invoker(ctx, method, req, reply, cc, seen.options(opts)...)
	return u.restored(ctx, method, err, seen)
}

// Stream is a [grpc.StreamClientInterceptor].
func (u *RestoreUnavailable) Stream(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, streamer grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	seen := newEvidence()
	s, err := streamer(ctx, desc, cc, method, seen.options(opts)...)
	if err != nil {
		return nil, u.restored(ctx, method, err, seen)
	}
	return &restoringStream{s, u, ctx, method, seen}, nil
}

type restoringStream struct {
	grpc.ClientStream
	restore *RestoreUnavailable
	ctx     context.Context
	method  string
	seen    *evidence
}

func (s *restoringStream) RecvMsg(m any) error {
	err := s.ClientStream.RecvMsg(m)
	if err == nil || err == io.EOF {
		return err
	}
	return s.restore.restored(s.ctx, s.method, err, s.seen)
}
