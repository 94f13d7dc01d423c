package grpclife_test

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/http2"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/levada-io/levada/grpclife"
)

// client is Retry, with RestoreUnavailable behind it, as users have them.
func client(t *testing.T, options grpclife.RetryOptions) []grpc.DialOption {
	t.Helper()
	retry, err := grpclife.NewRetry(options)
	if err != nil {
		t.Fatal(err)
	}
	restore := grpclife.NewRestoreUnavailable(nil)
	return []grpc.DialOption{grpc.WithChainUnaryInterceptor(retry.Unary, restore.Unary), grpc.WithChainStreamInterceptor(retry.Stream, restore.Stream)}
}

// asking is the header of a status with a RetryInfo.
func asking(t *testing.T, code codes.Code, after time.Duration) []string {
	t.Helper()
	s, err := status.New(code, "busy").WithDetails(&errdetails.RetryInfo{RetryDelay: durationpb.New(after)})
	if err != nil {
		t.Fatal(err)
	}
	b, err := proto.Marshal(s.Proto())
	if err != nil {
		t.Fatal(err)
	}
	return []string{"grpc-status-details-bin", base64.RawStdEncoding.EncodeToString(b)}
}

// What is tried again, and what is not: the script is run until it has failed three times, and answers well from then on.
func TestRetryOnlyWhatMayBe(t *testing.T) {
	const always, idempotent, never = "always", "idempotent", "never"
	for _, c := range []struct {
		name   string
		script func(t *testing.T, s *faultyStream)
		may    string
	}{
		{"cut before any answer", func(_ *testing.T, s *faultyStream) { s.conn.Close() }, idempotent},
		{"reset before any answer", func(_ *testing.T, s *faultyStream) { s.reset(http2.ErrCodeInternal) }, idempotent},
		{"ended without trailers", func(_ *testing.T, s *faultyStream) { s.begin(); s.data("", true) }, idempotent},
		{"refused by the peer", func(_ *testing.T, s *faultyStream) { s.reset(http2.ErrCodeRefusedStream) }, always},
		{"refused after headers", func(_ *testing.T, s *faultyStream) { s.begin(); s.reset(http2.ErrCodeRefusedStream) }, idempotent},
		{"a page with 502", func(_ *testing.T, s *faultyStream) { s.headers(true, ":status", "502") }, idempotent},
		{"UNAVAILABLE", func(_ *testing.T, s *faultyStream) { s.only("14", "") }, idempotent},
		{"UNAVAILABLE in the words of a refusal", func(_ *testing.T, s *faultyStream) {
			s.only("14", "stream terminated by RST_STREAM with error code: REFUSED_STREAM")
		}, idempotent},
		{"UNAVAILABLE with a request not to", func(_ *testing.T, s *faultyStream) { s.only("14", "", "grpc-retry-pushback-ms", "-1") }, never},
		{"UNAVAILABLE with a senseless pushback", func(_ *testing.T, s *faultyStream) { s.only("14", "", "grpc-retry-pushback-ms", "soon") }, never},
		{"RESOURCE_EXHAUSTED", func(_ *testing.T, s *faultyStream) { s.only("8", "") }, never},
		{"RESOURCE_EXHAUSTED with RetryInfo", func(t *testing.T, s *faultyStream) {
			s.only("8", "", asking(t, codes.ResourceExhausted, time.Millisecond)...)
		}, idempotent},
		{"ABORTED, which is named", func(_ *testing.T, s *faultyStream) { s.only("10", "") }, idempotent},
		{"INTERNAL", func(_ *testing.T, s *faultyStream) { s.only("13", "nil pointer") }, never},
		{"INTERNAL that quotes a reset", func(_ *testing.T, s *faultyStream) { s.only("13", "upstream: unexpected EOF") }, never},
		{"the server's deadline", func(_ *testing.T, s *faultyStream) { s.only("4", "context deadline exceeded") }, never},
		{"NOT_FOUND", func(_ *testing.T, s *faultyStream) { s.only("5", "") }, never},
	} {
		for _, declared := range []bool{false, true} {
			for _, kind := range []string{"unary", "stream"} {
				t.Run(fmt.Sprintf("%s, idempotent %v, %s", c.name, declared, kind), func(t *testing.T) {
					synctest.Test(t, func(t *testing.T) {
						f := &faults{script: func(attempt int, s *faultyStream) {
							if attempt <= 3 {
								c.script(t, s)
								return
							}
							s.well()
						}}
						options := grpclife.RetryOptions{Codes: []codes.Code{codes.Aborted}}
						if declared {
							options.Idempotent = []string{"/test.Life/*"}
						}
						conn := f.start(t, client(t, options)...)
						var err error
						if kind == "unary" {
							err = conn.Invoke(t.Context(), callMethod, wrapperspb.String("once"), new(text))
						} else {
							_, err = readAll((&lab{conn: conn}).down(t, t.Context()))
							if err == io.EOF {
								err = nil
							}
						}
						most := 1
						if c.name == "refused after headers" {
							most = 2 // grpc-go itself believes it, and sends the call a second time
						}
						if may := c.may == always || c.may == idempotent && declared; may != (err == nil) || may != (f.count() > most) {
							t.Errorf("%d attempts, ended with %v; want another attempt: %v", f.count(), err, may)
						}
					})
				})
			}
		}
	}
}

func TestRetryFindsAnotherServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		drain, options := newDrain(t, grpclife.DrainOptions{RefuseUnary: true})
		drain.Start()
		never := func(*text, grpc.ServerStream) error { t.Error("a draining server has run a stream"); return nil }
		var calls atomic.Int64
		old := newLab(t, handlers{down: never}, options)
		young := newLab(t, handlers{
			call: func(_ context.Context, m *text) (*text, error) { calls.Add(1); return m, nil },
			down: func(m *text, ss grpc.ServerStream) error { calls.Add(1); return ss.SendMsg(m) },
		}, nil)
		retry, err := grpclife.NewRetry(grpclife.RetryOptions{})
		if err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		attempt := 0
		reply := new(text)
		err = retry.Unary(t.Context(), callMethod, wrapperspb.String("paid"), reply, nil, func(ctx context.Context, method string, req, reply any, _ *grpc.ClientConn, opts ...grpc.CallOption) error {
			if attempt++; attempt == 1 {
				return old.conn.Invoke(ctx, method, req, reply, opts...)
			}
			return young.conn.Invoke(ctx, method, req, reply, opts...)
		})
		if err != nil || reply.GetValue() != "paid" || calls.Load() != 1 {
			t.Errorf("got %q, %v after %d calls", reply.GetValue(), err, calls.Load())
		}
		if took := time.Since(began); took < 50*time.Millisecond || took > 250*time.Millisecond {
			t.Errorf("waited %v, want the 50 to 150 ms asked for and up to 100 ms more", took)
		}
	})
}

func TestRetryWithoutConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var j journal
		conn := dial(t, func() (net.Conn, error) { return nil, errors.New("nobody listens") }, client(t, grpclife.RetryOptions{Observer: j.see})...)
		defer conn.Close()
		err := conn.Invoke(t.Context(), callMethod, wrapperspb.String(""), new(text))
		_, streamErr := conn.NewStream(t.Context(), downDesc, downMethod)
		if status.Code(err) != codes.Unavailable || status.Code(streamErr) != codes.Unavailable {
			t.Errorf("ended with %v and %v", err, streamErr)
		}
		// The first call makes 4 attempts and so takes 4 tokens of 10, the second takes the fifth, and half are gone.
		if n, refused := len(j.of(grpclife.CallRetried)), len(j.of(grpclife.RetryRefused)); n != 3 || refused != 1 {
			t.Errorf("%d retries and %d refused by the budget, want 3 and 1", n, refused)
		}
	})
}

func TestRetryPauses(t *testing.T) {
	for name, c := range map[string]struct {
		script    func(t *testing.T, s *faultyStream)
		low, high time.Duration // of all pauses together
		attempts  int
	}{
		"pushback is exact":             {func(_ *testing.T, s *faultyStream) { s.only("14", "", "grpc-retry-pushback-ms", "1234") }, 3702 * time.Millisecond, 3702 * time.Millisecond, 4},
		"pushback of nothing":           {func(_ *testing.T, s *faultyStream) { s.only("14", "", "grpc-retry-pushback-ms", "0") }, 0, 0, 4},
		"RetryInfo is the least":        {func(t *testing.T, s *faultyStream) { s.only("14", "", asking(t, codes.Unavailable, 2*time.Second)...) }, 6 * time.Second, 6700 * time.Millisecond, 4},
		"backoff":                       {func(_ *testing.T, s *faultyStream) { s.only("14", "") }, 0, 700 * time.Millisecond, 4},
		"asked to wait for an age":      {func(t *testing.T, s *faultyStream) { s.only("14", "", asking(t, codes.Unavailable, 24*time.Hour)...) }, 0, 0, 1},
		"the deadline leaves no time":   {func(_ *testing.T, s *faultyStream) { s.only("14", "", "grpc-retry-pushback-ms", "10000") }, 0, 0, 1},
		"the deadline leaves time once": {func(_ *testing.T, s *faultyStream) { s.only("14", "", "grpc-retry-pushback-ms", "6000") }, 6 * time.Second, 6 * time.Second, 2},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := &faults{script: func(_ int, s *faultyStream) { c.script(t, s) }}
				conn := f.start(t, client(t, grpclife.RetryOptions{Idempotent: []string{"*"}})...)
				ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
				defer cancel()
				began := time.Now()
				err := conn.Invoke(ctx, callMethod, wrapperspb.String(""), new(text))
				took := time.Since(began)
				if status.Code(err) != codes.Unavailable || f.count() != c.attempts || took < c.low || took > c.high {
					t.Errorf("%d attempts in %v, ended with %v; want %d in %v to %v", f.count(), took, err, c.attempts, c.low, c.high)
				}
			})
		})
	}
}

func TestRetryStopsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &faults{script: func(_ int, s *faultyStream) { s.only("14", "", "grpc-retry-pushback-ms", "10000") }}
		conn := f.start(t, client(t, grpclife.RetryOptions{Idempotent: []string{"*"}})...)
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Second, cancel)
		began := time.Now()
		err := conn.Invoke(ctx, callMethod, wrapperspb.String(""), new(text))
		if took := time.Since(began); took != time.Second || f.count() != 1 || err == nil {
			t.Errorf("%d attempts in %v, ended with %v", f.count(), took, err)
		}
	})
}

// A server that fails everything gets little more than each call once.
func TestRetryBudget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var down atomic.Bool
		f := &faults{script: func(_ int, s *faultyStream) {
			if down.Load() {
				s.only("14", "")
				return
			}
			s.well()
		}}
		conn := f.start(t, client(t, grpclife.RetryOptions{Idempotent: []string{"*"}})...)
		call := func() error { return conn.Invoke(t.Context(), callMethod, wrapperspb.String(""), new(text)) }
		down.Store(true)
		for range 100 {
			_ = call()
		}
		if n := f.count(); n < 103 || n > 105 {
			t.Errorf("100 calls made %d attempts, want the 4 that the budget has for retries at most", n)
		}
		down.Store(false)
		for range 100 { // 100 x 0.1 fills it
			if err := call(); err != nil {
				t.Fatal(err)
			}
		}
		down.Store(true)
		before := f.count()
		if _ = call(); f.count()-before != 4 {
			t.Errorf("%d attempts with a full budget, want 4", f.count()-before)
		}
	})
}

// A bidirectional stream is opened again with all that was sent, in order, and goes on.
func TestRetryReplaysWhatWasSent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var (
			mu   sync.Mutex
			runs []string
		)
		l := newLab(t, handlers{both: func(ss grpc.ServerStream) error {
			mu.Lock()
			runs = append(runs, "")
			run := len(runs) - 1
			mu.Unlock()
			for {
				m := new(text)
				if err := ss.RecvMsg(m); err == io.EOF {
					mu.Lock()
					defer mu.Unlock()
					return ss.SendMsg(wrapperspb.String(runs[run]))
				} else if err != nil {
					return err
				}
				mu.Lock()
				runs[run] += m.GetValue()
				mu.Unlock()
				if m.GetValue() == "c" && run < 2 {
					return status.Error(codes.Unavailable, "not yet")
				}
			}
		}}, nil, client(t, grpclife.RetryOptions{Idempotent: []string{bothMethod}})...)
		s := l.both(t, t.Context())
		got := make(chan string, 1)
		go func() {
			m := new(text)
			if err := s.RecvMsg(m); err != nil {
				t.Errorf("ended with %v", err)
			}
			got <- m.GetValue()
		}()
		for c := range strings.SplitSeq("abcdefgh", "") {
			if err := s.SendMsg(wrapperspb.String(c)); err != nil {
				t.Errorf("SendMsg: %v", err)
			}
			time.Sleep(7 * time.Millisecond)
		}
		if err := s.CloseSend(); err != nil {
			t.Error(err)
		}
		if g := <-got; g != "abcdefgh" {
			t.Errorf("the third run saw %q, want all", g)
		}
		if _, err := readAll(s); err != io.EOF {
			t.Errorf("ended with %v", err)
		}
		if len(runs) != 3 || !strings.HasPrefix("abcdefgh", runs[0]) || !strings.HasPrefix("abcdefgh", runs[1]) {
			t.Errorf("runs: %q", runs)
		}
	})
}

func TestStreamIsNotOpenedAgain(t *testing.T) {
	big := strings.Repeat("x", 3000)
	for name, c := range map[string]struct {
		early  bool // the server answers before all was sent
		script func(s *faultyStream)
		use    func(t *testing.T, s grpc.ClientStream) error
	}{
		"after its first message": {false, func(s *faultyStream) { s.begin(); s.message("x"); s.reset(http2.ErrCodeInternal) }, func(t *testing.T, s grpc.ClientStream) error {
			n, err := readAll(s)
			if n != 1 {
				t.Errorf("%d messages, want 1", n)
			}
			return err
		}},
		"after its header was read": {false, func(s *faultyStream) { s.begin(); s.reset(http2.ErrCodeInternal) }, func(t *testing.T, s grpc.ClientStream) error {
			if _, err := s.Header(); err != nil {
				t.Error(err)
			}
			_, err := readAll(s)
			return err
		}},
		"after its context was asked for": {false, func(s *faultyStream) { s.reset(http2.ErrCodeInternal) }, func(_ *testing.T, s grpc.ClientStream) error {
			s.Context()
			_, err := readAll(s)
			return err
		}},
		"after more than is held": {true, func(s *faultyStream) { s.reset(http2.ErrCodeInternal) }, func(_ *testing.T, s grpc.ClientStream) error {
			for range 3 {
				if err := s.SendMsg(wrapperspb.String(big)); err != nil && err != io.EOF {
					return err
				}
			}
			_, err := readAll(s)
			return err
		}},
		"after a message that cannot be sent": {true, func(s *faultyStream) { s.reset(http2.ErrCodeInternal) }, func(t *testing.T, s grpc.ClientStream) error {
			if err := s.SendMsg("no message"); status.Code(err) != codes.Internal {
				t.Errorf("SendMsg returned %v", err)
			}
			_, err := readAll(s)
			return err
		}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var j journal
				f := &faults{early: c.early, script: func(_ int, s *faultyStream) { c.script(s) }}
				conn := f.start(t, client(t, grpclife.RetryOptions{Idempotent: []string{"*"}, BufferBytes: 4000, Observer: j.see})...)
				s, err := conn.NewStream(t.Context(), bothDesc, bothMethod)
				if err != nil {
					t.Fatal(err)
				}
				if err := s.SendMsg(wrapperspb.String("first")); err != nil {
					t.Fatal(err)
				}
				if !c.early {
					if err := s.CloseSend(); err != nil {
						t.Fatal(err)
					}
				}
				if err := c.use(t, s); err == io.EOF || err == nil {
					t.Errorf("ended with %v", err)
				}
				if retried := j.of(grpclife.CallRetried); f.count() > 1 || len(retried) > 0 {
					t.Errorf("%d attempts, %+v", f.count(), retried)
				}
			})
		})
	}
}

// Random faults, many calls: what is not idempotent never runs twice for one call, and every answer belongs to its question.
func TestNothingRunsTwice(t *testing.T) {
	var all atomic.Int64
	for seed := range uint64(20) {
		synctest.Test(t, func(t *testing.T) {
			var mu sync.Mutex
			r := rand.New(rand.NewPCG(seed, 7))
			ran := map[string]int{}
			f := &faults{}
			f.script = func(n int, s *faultyStream) {
				mu.Lock()
				defer mu.Unlock()
				f.mu.Lock()
				id := f.bodies[n-1]
				f.mu.Unlock()
				switch fault := r.IntN(40); fault {
				case 0: // not seen by any handler
					s.reset(http2.ErrCodeRefusedStream)
				case 3: // as it says; grpc-go believes it, we do not
					s.begin()
					s.reset(http2.ErrCodeRefusedStream)
				default:
					ran[id]++
					switch fault {
					case 1:
						s.reset(http2.ErrCodeInternal)
					case 2:
						s.only("14", "stream terminated by RST_STREAM with error code: REFUSED_STREAM")
					case 4:
						s.conn.Close()
					case 5:
						s.begin()
						s.data("", true)
					case 6:
						s.begin()
						s.message(id)
						s.reset(http2.ErrCodeRefusedStream)
					default:
						s.begin()
						s.message(id)
						s.status("0", "")
					}
				}
			}
			conn := f.start(t, client(t, grpclife.RetryOptions{Idempotent: []string{"/test.Other/*"}, Budget: 1000})...)
			var callers sync.WaitGroup
			well := atomic.Int64{}
			for i := range 60 {
				callers.Go(func() {
					id := fmt.Sprintf("%d-%d", seed, i)
					if i%2 == 0 {
						reply := new(text)
						err := conn.Invoke(t.Context(), callMethod, wrapperspb.String(id), reply)
						if err == nil && reply.GetValue() != id {
							t.Errorf("%s was answered with %q", id, reply.GetValue())
						}
						if err == nil {
							well.Add(1)
						}
						return
					}
					s, err := conn.NewStream(t.Context(), downDesc, downMethod)
					if err != nil {
						return
					}
					if s.SendMsg(wrapperspb.String(id)) != nil || s.CloseSend() != nil {
						return
					}
					if n, err := readAll(s); n > 1 || err == io.EOF && n != 1 {
						t.Errorf("%s got %d messages, ended with %v", id, n, err)
					} else if err == io.EOF {
						well.Add(1)
					}
				})
			}
			callers.Wait()
			for id, n := range ran {
				if n > 1 {
					t.Errorf("%s ran %d times", id, n)
				}
			}
			all.Add(well.Load())
		})
	}
	if all.Load() < 100 {
		t.Errorf("only %d of 1200 went well", all.Load())
	}
}

// Sending and receiving at once, while the stream is opened again and again: for the race detector, and for the order.
func TestRetryWhileSending(t *testing.T) {
	const messages = 200
	var fails atomic.Int64
	l := newLab(t, handlers{both: func(ss grpc.ServerStream) error {
		var got []string
		fail := -1
		if n := fails.Add(1); n <= 3 {
			fail = int(n) * 20
		}
		for {
			m := new(text)
			if err := ss.RecvMsg(m); err == io.EOF {
				return ss.SendMsg(wrapperspb.String(strings.Join(got, " ")))
			} else if err != nil {
				return err
			}
			if got = append(got, m.GetValue()); len(got) == fail {
				return status.Error(codes.Unavailable, "not yet")
			}
		}
	}}, nil, client(t, grpclife.RetryOptions{Idempotent: []string{"*"}, MinBackoff: time.Microsecond, MaxBackoff: time.Millisecond, Budget: 1000})...)
	for range 20 {
		fails.Store(0)
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		s := l.both(t, ctx)
		got := make(chan *text, 1)
		go func() {
			m := new(text)
			if err := s.RecvMsg(m); err != nil {
				t.Errorf("ended with %v", err)
			}
			got <- m
		}()
		var want []string
		for i := range messages {
			want = append(want, fmt.Sprint(i))
			if err := s.SendMsg(wrapperspb.String(want[i])); err != nil {
				t.Fatal(err)
			}
		}
		if err := s.CloseSend(); err != nil {
			t.Fatal(err)
		}
		if g := strings.Fields((<-got).GetValue()); !slices.Equal(g, want) {
			t.Fatalf("the last attempt saw %v", g)
		}
		if _, err := readAll(s); err != io.EOF {
			t.Errorf("ended with %v", err)
		}
		cancel()
	}
}

// addressless is a connection that does not say with whom.
type addressless struct{ net.Conn }

func (addressless) RemoteAddr() net.Addr { return nil }
func (addressless) LocalAddr() net.Addr  { return nil }

// That a connection has no address must not be taken for a call that was given to none.
func TestRetryOverAConnectionWithoutAddress(t *testing.T) {
	listener, runs := bufconn.Listen(1<<20), atomic.Int64{}
	server := grpc.NewServer()
	register(server, handlers{call: func(context.Context, *text) (*text, error) {
		runs.Add(1)
		return nil, status.Error(codes.Unavailable, "after the work was done")
	}})
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	defer func() { server.Stop(); <-served }()
	conn := dial(t, func() (net.Conn, error) {
		c, err := listener.Dial()
		return addressless{c}, err
	}, client(t, grpclife.RetryOptions{})...)
	defer conn.Close()
	err := conn.Invoke(t.Context(), callMethod, wrapperspb.String(""), new(text))
	if status.Code(err) != codes.Unavailable || runs.Load() != 1 {
		t.Errorf("ran %d times, ended with %v", runs.Load(), err)
	}
	cut := &faults{script: func(_ int, s *faultyStream) { s.conn.Close() }}
	cut.wrap = func(c net.Conn) net.Conn { return addressless{c} }
	conn = cut.start(t, client(t, grpclife.RetryOptions{})...)
	if err := conn.Invoke(t.Context(), callMethod, wrapperspb.String(""), new(text)); status.Code(err) != codes.Unavailable || cut.count() != 1 {
		t.Errorf("ran %d times, ended with %v", cut.count(), err)
	}
}

// A caller that has seen a stream's header during the pause must not get another stream's messages.
func TestStreamSettledDuringThePause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &faults{script: func(_ int, s *faultyStream) { s.only("14", "", "grpc-retry-pushback-ms", "1000") }}
		conn := f.start(t, client(t, grpclife.RetryOptions{Idempotent: []string{"*"}})...)
		s := (&lab{conn: conn}).down(t, t.Context())
		time.AfterFunc(500*time.Millisecond, func() { _, _ = s.Header() })
		if _, err := readAll(s); status.Code(err) != codes.Unavailable || f.count() != 1 {
			t.Errorf("%d attempts, ended with %v", f.count(), err)
		}
	})
}

// stuckStream is a client's stream of which SendMsg waits until it is let go.
type stuckStream struct {
	grpc.ClientStream
	sending, letGo chan struct{}
	end            error // of RecvMsg
}

func (s *stuckStream) SendMsg(any) error {
	if s.letGo == nil {
		return nil
	}
	close(s.sending)
	<-s.letGo
	return io.EOF
}

func (s *stuckStream) RecvMsg(any) error { return s.end }

// A SendMsg that learns late of its stream's end has been made good by then: the message went out with the next attempt.
func TestSendThatWasOvertaken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		retry, err := grpclife.NewRetry(grpclife.RetryOptions{Idempotent: []string{"*"}})
		if err != nil {
			t.Fatal(err)
		}
		first := &stuckStream{sending: make(chan struct{}), letGo: make(chan struct{}), end: status.Error(codes.Unavailable, "")}
		next := []grpc.ClientStream{first, &stuckStream{}}
		s, err := retry.Stream(t.Context(), bothDesc, nil, bothMethod, func(context.Context, *grpc.StreamDesc, *grpc.ClientConn, string, ...grpc.CallOption) (grpc.ClientStream, error) {
			stream := next[0]
			next = next[1:]
			return stream, nil
		})
		if err != nil {
			t.Fatal(err)
		}
		sent := make(chan error, 1)
		go func() { sent <- s.SendMsg(wrapperspb.String("x")) }()
		<-first.sending
		if err := s.RecvMsg(new(text)); err != nil || len(next) > 0 {
			t.Errorf("received %v, %d attempts left", err, len(next))
		}
		close(first.letGo)
		if err := <-sent; err != nil {
			t.Errorf("SendMsg returned %v for a message that went out", err)
		}
	})
}
