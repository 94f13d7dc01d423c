package grpclife_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/levada-io/levada/grpclife"
)

// endings is what servers, proxies and networks do to a stream on the wire, and what is to come of it in grpc-go's client.
var endings = []struct {
	name   string
	script func(s *faultyStream)
	code   codes.Code // without RestoreUnavailable
	by     grpclife.Origin
	sign   string
	hidden bool
	// later: grpc-go tries a stream again that was refused; then the script has run twice
	attempts int
}{
	{"well", func(s *faultyStream) { s.well() }, codes.OK, grpclife.OriginNone, "", false, 1},

	{"nginx, nghttpx, Caddy, Go: reset after a message", func(s *faultyStream) { s.begin(); s.message("x"); s.reset(http2.ErrCodeInternal) },
		codes.Internal, grpclife.OriginProxy, grpclife.SignReset, true, 1},
	{"nghttpx: reset before any answer", func(s *faultyStream) { s.reset(http2.ErrCodeInternal) }, codes.Internal, grpclife.OriginProxy, grpclife.SignReset, true, 1},
	{"Envoy: RST_STREAM(NO_ERROR)", func(s *faultyStream) { s.begin(); s.message("x"); s.reset(http2.ErrCodeNo) },
		codes.Internal, grpclife.OriginProxy, grpclife.SignReset, true, 1},
	{"HAProxy: the end without trailers", func(s *faultyStream) { s.begin(); s.message("x"); s.data("", true) },
		codes.Internal, grpclife.OriginProxy, grpclife.SignNoTrailers, true, 1},
	{"HAProxy: the end within a message", func(s *faultyStream) { s.begin(); s.data("\x00\x00\x00\x00\x09abc", true) },
		codes.Internal, grpclife.OriginProxy, grpclife.SignCutMessage, true, 1},
	{"Apache: a page in the stream", func(s *faultyStream) {
		s.begin()
		s.message("x")
		s.data("<!DOCTYPE HTML PUBLIC \"-//IETF//DTD HTML 2.0//EN\"><html><head><title>502 Proxy Error</title>", true)
	}, codes.ResourceExhausted, grpclife.OriginProxy, grpclife.SignHTML, true, 1},
	{"a page with 502", func(s *faultyStream) {
		s.headers(false, ":status", "502", "content-type", "text/html")
		s.data("<html>", true)
	},
		codes.Unavailable, grpclife.OriginProxy, grpclife.SignHTTP, false, 1},
	{"a page with 404", func(s *faultyStream) { s.headers(true, ":status", "404") }, codes.Unimplemented, grpclife.OriginProxy, grpclife.SignHTTP, false, 1},

	{"the connection is cut after a message", func(s *faultyStream) { s.begin(); s.message("x"); s.conn.Close() },
		codes.Unavailable, grpclife.OriginTransport, grpclife.SignConnection, false, 1},
	{"the connection is cut before any answer", func(s *faultyStream) { s.conn.Close() }, codes.Unavailable, grpclife.OriginTransport, grpclife.SignConnection, false, 1},
	{"GOAWAY, then cut", func(s *faultyStream) { s.begin(); s.message("x"); s.goAway(s.id); s.conn.Close() },
		codes.Unavailable, grpclife.OriginTransport, grpclife.SignConnection, false, 1},
	{"refused, again and again", func(s *faultyStream) { s.reset(http2.ErrCodeRefusedStream) }, codes.Unavailable, grpclife.OriginTransport, grpclife.SignRefused, false, 2},
	{"refused after a message", func(s *faultyStream) { s.begin(); s.message("x"); s.reset(http2.ErrCodeRefusedStream) },
		codes.Unavailable, grpclife.OriginTransport, grpclife.SignRefused, false, 1},
	{"a quarrel about frames", func(s *faultyStream) { s.begin(); s.reset(http2.ErrCodeProtocol) }, codes.Internal, grpclife.OriginTransport, grpclife.SignReset, false, 1},
	{"reset with CANCEL", func(s *faultyStream) { s.begin(); s.reset(http2.ErrCodeCancel) }, codes.Canceled, grpclife.OriginProxy, grpclife.SignReset, false, 1},

	{"the server's UNAVAILABLE at once", func(s *faultyStream) { s.only("14", "try later") }, codes.Unavailable, grpclife.OriginServer, "", false, 1},
	{"the server's UNAVAILABLE after a message", func(s *faultyStream) { s.begin(); s.message("x"); s.status("14", "try later") },
		codes.Unavailable, grpclife.OriginServer, "", false, 1},
	{"the server's INTERNAL", func(s *faultyStream) { s.begin(); s.status("13", "nil pointer") }, codes.Internal, grpclife.OriginServer, "", false, 1},
	{"a gateway passes a reset on, at once", func(s *faultyStream) { s.only("13", "stream terminated by RST_STREAM with error code: INTERNAL_ERROR") },
		codes.Internal, grpclife.OriginServer, "", false, 1},
	{"a gateway quotes a reset", func(s *faultyStream) { s.begin(); s.status("13", "upstream: stream terminated by RST_STREAM") },
		codes.Internal, grpclife.OriginServer, "", false, 1},
	{"the server's own deadline", func(s *faultyStream) { s.begin(); s.status("4", "context deadline exceeded") }, codes.DeadlineExceeded, grpclife.OriginServer, "", false, 1},
	{"the server was cancelled", func(s *faultyStream) { s.begin(); s.status("1", "context canceled") }, codes.Canceled, grpclife.OriginServer, "", false, 1},
}

func TestHiddenTransportFailuresBecomeUnavailable(t *testing.T) {
	for _, e := range endings {
		for _, kind := range []string{"unary", "stream"} {
			t.Run(e.name+", "+kind, func(t *testing.T) {
				var j journal
				restore := grpclife.NewRestoreUnavailable(j.see)
				f := &faults{script: func(_ int, s *faultyStream) { e.script(s) }}
				conn := f.start(t, grpc.WithChainUnaryInterceptor(restore.Unary), grpc.WithChainStreamInterceptor(restore.Stream))
				ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
				defer cancel()
				call := func() error {
					if kind == "unary" {
						return conn.Invoke(ctx, callMethod, wrapperspb.String(""), new(text))
					}
					_, err := readAll((&lab{conn: conn}).down(t, ctx))
					if err == io.EOF {
						return nil
					}
					return err
				}
				err := call()
				want := e.code
				if e.hidden {
					want = codes.Unavailable
				}
				if status.Code(err) != want {
					t.Fatalf("ended with %v, want %v", err, want)
				}
				if f.count() != e.attempts {
					t.Errorf("%d attempts, want %d", f.count(), e.attempts)
				}
				if seen := j.of(grpclife.StatusRestored); (len(seen) == 1) != e.hidden {
					t.Errorf("restored: %+v", seen)
				} else if e.hidden {
					if c := seen[0].Class; c.Origin != e.by || c.Sign != e.sign || c.Code != e.code {
						t.Errorf("restored %+v, want %v by %v, sign %q", c, e.code, e.by, e.sign)
					}
					hidden, ok := errors.AsType[*grpclife.HiddenError](err)
					if !ok || status.Code(hidden.Original) != e.code {
						t.Errorf("%v does not hold the original", err)
					}
					if c := grpclife.Classify(err); !c.Transient() || c.Unprocessed || c.Origin != e.by {
						t.Errorf("classified as %+v", c)
					}
				}
				restore.Switch(false)
				if err := call(); status.Code(err) != e.code {
					t.Errorf("switched off, it ended with %v, want %v", err, e.code)
				}
			})
		}
	}
}

// What an interceptor can know beside the error makes the difference between a server's words and grpc-go's.
func TestClassifyOnTheWire(t *testing.T) {
	for _, e := range endings {
		t.Run(e.name, func(t *testing.T) {
			var got grpclife.Class
			f := &faults{script: func(_ int, s *faultyStream) { e.script(s) }}
			conn := f.start(t, grpc.WithChainUnaryInterceptor(witness(&got)))
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			err := conn.Invoke(ctx, callMethod, wrapperspb.String(""), new(text))
			if got.Origin != e.by || got.Sign != e.sign || got.Hidden != e.hidden || got.Code != e.code {
				t.Errorf("%v is %+v, want %v by %v, sign %q, hidden %v", err, got, e.code, e.by, e.sign, e.hidden)
			}
			if want := e.name == "refused, again and again"; got.Unprocessed != want {
				t.Errorf("unprocessed is %v, want %v", got.Unprocessed, want)
			}
			if want := strings.HasPrefix(e.name, "a gateway"); got.Quoted != want {
				t.Errorf("quoted is %v, want %v", got.Quoted, want)
			}
		})
	}
}

func TestClassifyOwnEnd(t *testing.T) {
	l := newLab(t, handlers{call: func(ctx context.Context, _ *text) (*text, error) { <-ctx.Done(); return nil, ctx.Err() }}, nil)
	expired, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	cancelled, cancel := context.WithCancel(t.Context())
	time.AfterFunc(50*time.Millisecond, cancel)
	for want, ctx := range map[grpclife.Origin]context.Context{grpclife.OriginDeadline: expired, grpclife.OriginCancel: cancelled} {
		err := l.conn.Invoke(ctx, callMethod, wrapperspb.String(""), new(text))
		if c := grpclife.ClassifyCall(err, grpclife.Evidence{Context: ctx, Sent: true}); c.Origin != want || c.Transient() {
			t.Errorf("%v is %+v, want by %v", err, c, want)
		}
	}
}

func TestClassifyWithoutConnection(t *testing.T) {
	refused := errors.New("nobody listens")
	var got grpclife.Class
	conn := dial(t, func() (net.Conn, error) { return nil, refused }, grpc.WithChainUnaryInterceptor(witness(&got)))
	defer conn.Close()
	err := conn.Invoke(t.Context(), callMethod, wrapperspb.String(""), new(text))
	if got.Origin != grpclife.OriginTransport || !got.Unprocessed || got.Code != codes.Unavailable {
		t.Errorf("%v is %+v, want unprocessed by the transport", err, got)
	}
}

func TestClassify(t *testing.T) {
	detailed := func(code codes.Code, text, domain, reason string, metadata map[string]string, retry time.Duration) error {
		s, err := status.New(code, text).WithDetails(&errdetails.ErrorInfo{Domain: domain, Reason: reason, Metadata: metadata},
			&errdetails.RetryInfo{RetryDelay: durationpb.New(retry)})
		if err != nil {
			t.Fatal(err)
		}
		return s.Err()
	}
	unprocessed := map[string]string{grpclife.MetadataUnprocessed: "true"}
	for name, c := range map[string]struct {
		err  error
		want grpclife.Class
	}{
		"nil": {nil, grpclife.Class{}},
		"EOF": {io.EOF, grpclife.Class{}},
		"a status with details": {detailed(codes.Unavailable, "busy", "shop.example", "BUSY", nil, time.Second),
			grpclife.Class{Origin: grpclife.OriginServer, Code: codes.Unavailable, Domain: "shop.example", Reason: "BUSY", RetryAfter: time.Second, RetryAsked: true}},
		"a refusal": {detailed(codes.Unavailable, "", grpclife.Domain, grpclife.ReasonDraining, unprocessed, 0),
			grpclife.Class{Origin: grpclife.OriginServer, Code: codes.Unavailable, Domain: grpclife.Domain, Reason: grpclife.ReasonDraining, RetryAsked: true, Unprocessed: true}},
		"another's word for unprocessed": {detailed(codes.Unavailable, "", "shop.example", "BUSY", unprocessed, -time.Second),
			grpclife.Class{Origin: grpclife.OriginServer, Code: codes.Unavailable, Domain: "shop.example", Reason: "BUSY", RetryAsked: true}},
		"grpc-go's words with a server's details": {detailed(codes.Internal, "unexpected EOF", "shop.example", "DISK", nil, 0),
			grpclife.Class{Origin: grpclife.OriginServer, Code: codes.Internal, Domain: "shop.example", Reason: "DISK", RetryAsked: true, Quoted: true}},
		"wrapped": {fmt.Errorf("reading: %w", status.Error(codes.Internal, "server closed the stream without sending trailers")),
			grpclife.Class{Origin: grpclife.OriginProxy, Code: codes.Internal, Sign: grpclife.SignNoTrailers, Hidden: true}},
		"a length that is one":   {status.Error(codes.ResourceExhausted, "grpc: received message larger than max (5242880 vs. 4194304)"), grpclife.Class{Origin: grpclife.OriginClient, Code: codes.ResourceExhausted, Sign: grpclife.SignTooLarge}},
		"a length that is text":  {status.Error(codes.ResourceExhausted, "grpc: received message larger than max (558124867 vs. 4194304)"), grpclife.Class{Origin: grpclife.OriginProxy, Code: codes.ResourceExhausted, Sign: grpclife.SignHTML, Hidden: true}},
		"own deadline, plain":    {context.DeadlineExceeded, grpclife.Class{Origin: grpclife.OriginDeadline, Code: codes.DeadlineExceeded}},
		"own cancel, plain":      {fmt.Errorf("waiting: %w", context.Canceled), grpclife.Class{Origin: grpclife.OriginCancel, Code: codes.Canceled}},
		"own deadline":           {status.Error(codes.DeadlineExceeded, "context deadline exceeded"), grpclife.Class{Origin: grpclife.OriginDeadline, Code: codes.DeadlineExceeded, Sign: grpclife.SignDeadline}},
		"the server's deadline":  {status.Error(codes.DeadlineExceeded, "the database took too long"), grpclife.Class{Origin: grpclife.OriginServer, Code: codes.DeadlineExceeded}},
		"own cancel":             {status.Error(codes.Canceled, "context canceled"), grpclife.Class{Origin: grpclife.OriginCancel, Code: codes.Canceled, Sign: grpclife.SignCancel}},
		"own connection closing": {status.Error(codes.Canceled, "grpc: the client connection is closing"), grpclife.Class{Origin: grpclife.OriginClient, Code: codes.Canceled, Sign: grpclife.SignCancel}},
		"cut":                    {io.ErrUnexpectedEOF, grpclife.Class{Origin: grpclife.OriginTransport, Code: codes.Unknown}},
		"something else":         {errors.New("disk full"), grpclife.Class{Origin: grpclife.OriginClient, Code: codes.Unknown}},
		"a quotation":            {status.Error(codes.Unknown, "Stream removed"), grpclife.Class{Origin: grpclife.OriginServer, Code: codes.Unknown, Quoted: true}},
		"words that go on":       {status.Error(codes.Internal, "unexpected EOF in archive 7"), grpclife.Class{Origin: grpclife.OriginServer, Code: codes.Internal, Quoted: true}},
		"refused by its words":   {status.Error(codes.Unavailable, "stream terminated by RST_STREAM with error code: REFUSED_STREAM"), grpclife.Class{Origin: grpclife.OriginTransport, Code: codes.Unavailable, Sign: grpclife.SignRefused}},
	} {
		if got := grpclife.Classify(c.err); got != c.want {
			t.Errorf("%s: %+v, want %+v", name, got, c.want)
		}
	}
}

func FuzzClassify(f *testing.F) {
	for _, sign := range grpclife.Signs() {
		f.Add(uint32(sign.Code), sign.Text, "", false)
	}
	f.Add(uint32(8), "grpc: received message larger than max (558124867 vs. 4194304)", "", false)
	f.Add(uint32(8), "grpc: received message larger than max (99999999999999999999 vs. 1)", "-1", true)
	f.Add(uint32(2), "unexpected HTTP status code received from server: 500 (Internal Server Error)", "7", false)
	f.Fuzz(func(t *testing.T, code uint32, message, pushback string, detailed bool) {
		s := status.New(codes.Code(code), message)
		if detailed && code != 0 {
			if with, err := s.WithDetails(&errdetails.ErrorInfo{Domain: message, Reason: pushback}); err == nil {
				s = with
			}
		}
		c := grpclife.Classify(s.Err())
		switch {
		case (code == 0) != (c.Origin == grpclife.OriginNone):
			t.Errorf("%v ended by %v", s, c.Origin)
		case code != 0 && c.Code != s.Code():
			t.Errorf("%v has become %v", s, c.Code)
		case c.Hidden && (c.Code == codes.Unavailable || c.Origin != grpclife.OriginProxy || !c.Transient() || detailed && len(s.Details()) > 0):
			t.Errorf("%v hidden: %+v", s, c)
		case c.Quoted && (c.Origin != grpclife.OriginServer || c.Hidden):
			t.Errorf("%v quoted: %+v", s, c)
		case c.Unprocessed:
			t.Errorf("%v unprocessed by its words alone", s)
		case c.RetryAsked || c.RetryAfter != 0:
			t.Errorf("%v: %+v", s, c)
		}
		// With trailers of a server's own nothing but an HTTP answer is another's doing, and a pushback is one or the other.
		w := grpclife.ClassifyCall(s.Err(), grpclife.Evidence{Sent: true, Trailer: map[string][]string{"grpc-retry-pushback-ms": {pushback}}})
		if code != 0 && (w.Hidden || w.Unprocessed || w.RetryForbidden == w.Pushback || w.Pushback && w.RetryAfter < 0) {
			t.Errorf("%v with trailers: %+v", s, w)
		}
	})
}
