package grpclife_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/levada-io/levada/grpclife"
)

// newAge ends streams at 3 s, and 5 s if the handler does not.
func newAge(t *testing.T, j *journal) *grpclife.Age {
	t.Helper()
	age, err := grpclife.NewAge(grpclife.AgeOptions{Max: 3 * time.Second, Jitter: -1, Grace: 2 * time.Second, Observer: j.see})
	if err != nil {
		t.Fatal(err)
	}
	return age
}

func withAge(t *testing.T, j *journal) []grpc.ServerOption {
	return []grpc.ServerOption{grpc.ChainStreamInterceptor(newAge(t, j).Stream)}
}

// ticking sends a message every 100 ms, and counts those of which SendMsg said that they went out.
func ticking(sent *atomic.Int64, done func(context.Context) error) func(*text, grpc.ServerStream) error {
	return func(_ *text, ss grpc.ServerStream) error {
		tick := time.NewTicker(100 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-ss.Context().Done():
				return done(ss.Context())
			case <-tick.C:
				if err := ss.SendMsg(wrapperspb.String("x")); err != nil {
					return err
				}
				sent.Add(1)
			}
		}
	}
}

func TestAgeEndsStreamAfterItsGrace(t *testing.T) {
	for name, done := range map[string]func(context.Context) error{
		"nil":           func(context.Context) error { return nil },
		"context error": func(ctx context.Context) error { return ctx.Err() },
		"cause":         context.Cause,
		"canceled":      func(ctx context.Context) error { return status.FromContextError(ctx.Err()).Err() },
		"wrapped":       func(ctx context.Context) error { return fmt.Errorf("on the way: %w", context.Cause(ctx)) },
		"End":           grpclife.End,
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var j journal
				var sent atomic.Int64
				l := newLab(t, handlers{down: ticking(&sent, done)}, withAge(t, &j))
				began := time.Now()
				s := l.down(t, t.Context())
				n, err := readAll(s)
				wantEnd(t, err, grpclife.ReasonStreamAge)
				if took := time.Since(began); took != 5*time.Second {
					t.Errorf("ended after %v, want 5s", took)
				}
				if int64(n) != sent.Load() || n < 48 {
					t.Errorf("%d messages came, %d were sent", n, sent.Load())
				}
				header, _ := s.Header()
				if got := header.Get(grpclife.HeaderAge); len(got) != 1 || got[0] != "3000" {
					t.Errorf("%s is %v, want 3000", grpclife.HeaderAge, got)
				}
				if got := s.Trailer().Get(grpclife.TrailerEnded); len(got) != 1 || got[0] != grpclife.ReasonStreamAge {
					t.Errorf("%s is %v", grpclife.TrailerEnded, got)
				}
				synctest.Wait()
				for kind, after := range map[grpclife.EventKind]time.Duration{grpclife.StreamAging: 3 * time.Second, grpclife.StreamEnded: 5 * time.Second} {
					if e := j.of(kind); len(e) != 1 || e[0].After != after || e[0].Method != downMethod || e[0].Reason != grpclife.ReasonStreamAge {
						t.Errorf("%s: %+v, want one after %v", kind, e, after)
					}
				}
			})
		})
	}
}

func TestHandlerEndsItsStreamWhenAging(t *testing.T) {
	for name, c := range map[string]struct {
		end  func(context.Context) error
		code codes.Code
	}{
		"with End":             {grpclife.End, codes.Unavailable},
		"with all sent":        {func(context.Context) error { return nil }, codes.OK},
		"with its own verdict": {func(context.Context) error { return status.Error(codes.Aborted, "mine") }, codes.Aborted},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var j journal
				l := newLab(t, handlers{down: func(_ *text, ss grpc.ServerStream) error {
					if err := grpclife.End(ss.Context()); err != nil {
						t.Errorf("End of a young stream is %v", err)
					}
					<-grpclife.Aging(ss.Context())
					return c.end(ss.Context())
				}}, withAge(t, &j))
				began := time.Now()
				s := l.down(t, t.Context())
				_, err := readAll(s)
				if ended := s.Trailer().Get(grpclife.TrailerEnded); (len(ended) == 1) != (c.code == codes.Unavailable) {
					t.Errorf("%s is %v", grpclife.TrailerEnded, ended)
				}
				if errors.Is(err, io.EOF) {
					err = nil
				}
				if status.Code(err) != c.code {
					t.Errorf("ended with %v, want %v", err, c.code)
				}
				if c.code == codes.Unavailable {
					wantEnd(t, err, grpclife.ReasonStreamAge)
				}
				if took := time.Since(began); took != 3*time.Second {
					t.Errorf("ended after %v, want 3s", took)
				}
				if e := j.of(grpclife.StreamEnded); len(e) > 0 {
					t.Errorf("reported as ended from outside: %+v", e)
				}
			})
		})
	}
}

func TestOwnStatusAfterTheEndStays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var j journal
		l := newLab(t, handlers{down: func(_ *text, ss grpc.ServerStream) error {
			<-ss.Context().Done()
			return status.Error(codes.DataLoss, "found while cleaning up")
		}}, withAge(t, &j))
		if _, err := readAll(l.down(t, t.Context())); status.Code(err) != codes.DataLoss {
			t.Errorf("ended with %v, want the handler's DATA_LOSS", err)
		}
	})
}

func TestAgeWakesHandlerFromRecv(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var j journal
		returned := make(chan error, 1)
		l := newLab(t, handlers{both: func(ss grpc.ServerStream) error {
			for {
				if err := ss.RecvMsg(new(text)); err != nil {
					returned <- err
					return err
				}
				if err := ss.SendMsg(wrapperspb.String("echo")); err != nil {
					return err
				}
			}
		}}, withAge(t, &j))
		began := time.Now()
		s := l.both(t, t.Context())
		for range 3 {
			if err := s.SendMsg(wrapperspb.String("x")); err != nil {
				t.Fatal(err)
			}
			if err := s.RecvMsg(new(text)); err != nil {
				t.Fatal(err)
			}
		}
		_, err := readAll(s)
		wantEnd(t, err, grpclife.ReasonStreamAge)
		if took := time.Since(began); took != 5*time.Second {
			t.Errorf("ended after %v, want 5s", took)
		}
		if _, ok := errors.AsType[*grpclife.EndError](<-returned); !ok {
			t.Error("RecvMsg did not return an EndError")
		}
	})
}

func TestHandlerThatIgnoresItsContext(t *testing.T) {
	stubborn := func(ss grpc.ServerStream, sendErr *error) error {
		time.Sleep(time.Minute)
		*sendErr = ss.SendMsg(wrapperspb.String("late"))
		return nil
	}
	for _, both := range []bool{false, true} {
		t.Run(fmt.Sprintf("client streams %v", both), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var j journal
				var sendErr error
				l := newLab(t, handlers{
					down: func(_ *text, ss grpc.ServerStream) error { return stubborn(ss, &sendErr) },
					both: func(ss grpc.ServerStream) error { return stubborn(ss, &sendErr) },
				}, withAge(t, &j))
				began, want := time.Now(), time.Minute // nothing else can end it
				open := l.down
				if both {
					open, want = l.both, 5*time.Second
				}
				n, err := readAll(open(t, t.Context()))
				wantEnd(t, err, grpclife.ReasonStreamAge)
				if took := time.Since(began); took != want || n != 0 {
					t.Errorf("ended after %v with %d messages, want %v and none", took, n, want)
				}
				time.Sleep(time.Minute)
				synctest.Wait()
				if _, ok := errors.AsType[*grpclife.EndError](sendErr); !ok {
					t.Errorf("SendMsg after the end returned %v", sendErr)
				}
				if e := j.of(grpclife.HandlerOverdue); len(e) != 1 || e[0].After != 10*time.Second {
					t.Errorf("overdue: %+v, want one at 10s", e)
				}
				if e := j.of(grpclife.HandlerReturned); len(e) != 1 || e[0].After != time.Minute {
					t.Errorf("returned: %+v, want one at 1m", e)
				}
			})
		})
	}
}

// A client that does not read holds up SendMsg. The stream ends only when that message is out, and whole.
func TestAgeDuringSend(t *testing.T) {
	for _, both := range []bool{false, true} {
		t.Run(fmt.Sprintf("client streams %v", both), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var j journal
				var sent atomic.Int64
				flood := func(ss grpc.ServerStream) error {
					for {
						if err := ss.SendMsg(wrapperspb.String(strings.Repeat("x", 50_000))); err != nil {
							return err
						}
						sent.Add(1)
					}
				}
				l := newLab(t, handlers{down: func(_ *text, ss grpc.ServerStream) error { return flood(ss) }, both: flood}, withAge(t, &j))
				open := l.down
				if both {
					open = l.both
				}
				s := open(t, t.Context())
				time.Sleep(8 * time.Second)
				if e := j.of(grpclife.StreamEnded); len(e) > 0 {
					t.Fatal("ended in the middle of a message")
				}
				n, err := readAll(s)
				wantEnd(t, err, grpclife.ReasonStreamAge)
				synctest.Wait()
				if int64(n) != sent.Load() || n == 0 {
					t.Errorf("%d messages came, %d were sent", n, sent.Load())
				}
				if e := j.of(grpclife.StreamEnded); len(e) != 1 || e[0].After != 8*time.Second {
					t.Errorf("ended: %+v, want one after 8s", e)
				}
			})
		})
	}
}

func TestClientGoesAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var j journal
		causes := make(chan error, 2)
		wait := func(ss grpc.ServerStream) error {
			<-ss.Context().Done()
			causes <- context.Cause(ss.Context())
			return ss.Context().Err()
		}
		l := newLab(t, handlers{down: func(_ *text, ss grpc.ServerStream) error { return wait(ss) }, both: wait}, withAge(t, &j))
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		down, both := l.down(t, ctx), l.both(t, ctx)
		for _, s := range []grpc.ClientStream{down, both} {
			if _, err := readAll(s); status.Code(err) != codes.DeadlineExceeded {
				t.Errorf("ended with %v, want DEADLINE_EXCEEDED", err)
			}
			if cause := <-causes; errors.Is(cause, context.Canceled) == errors.Is(cause, context.DeadlineExceeded) {
				t.Errorf("the cause is %v, want the client's", cause)
			}
		}
		time.Sleep(time.Minute)
		if len(j.events) > 0 {
			t.Errorf("events for streams that were gone: %+v", j.events)
		}
	})
}

func TestAgeOnlyOfItsMethods(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		age, err := grpclife.NewAge(grpclife.AgeOptions{Max: time.Second, Methods: []string{"/test.Other/*", bothMethod}})
		if err != nil {
			t.Fatal(err)
		}
		l := newLab(t, handlers{down: func(_ *text, ss grpc.ServerStream) error {
			if grpclife.Aging(ss.Context()) != nil {
				t.Error("a stream without an age has a signal for it")
			}
			time.Sleep(time.Hour)
			return nil
		}}, []grpc.ServerOption{grpc.ChainStreamInterceptor(age.Stream)})
		if _, err := readAll(l.down(t, t.Context())); err != io.EOF {
			t.Errorf("ended with %v", err)
		}
	})
}

func TestAgesDiffer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var j journal
		age, err := grpclife.NewAge(grpclife.AgeOptions{Max: 100 * time.Second, Grace: -1, Observer: j.see})
		if err != nil {
			t.Fatal(err)
		}
		l := newLab(t, handlers{down: func(_ *text, ss grpc.ServerStream) error { <-ss.Context().Done(); return nil }},
			[]grpc.ServerOption{grpc.ChainStreamInterceptor(age.Stream)})
		for range 300 {
			l.down(t, t.Context())
		}
		time.Sleep(111 * time.Second)
		synctest.Wait()
		low, high := time.Hour, time.Duration(0)
		for _, e := range j.of(grpclife.StreamEnded) {
			low, high = min(low, e.After), max(high, e.After)
		}
		if n := len(j.of(grpclife.StreamEnded)); n != 300 || low < 90*time.Second || high > 110*time.Second || high-low < 15*time.Second {
			t.Errorf("%d streams ended between %v and %v, want 300 spread over 90s to 110s", n, low, high)
		}
	})
}

// Whatever handler and client do, and when: the client gets exactly what SendMsg said was sent, in order, and if a
// message was refused or the stream ended, a status with that reason.
func TestNothingSentIsLostAndNothingLostIsCalledSent(t *testing.T) {
	for seed := range uint64(60) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := rand.New(rand.NewPCG(seed, 0))
				var j journal
				var sent, refused atomic.Int64
				handler := func(ss grpc.ServerStream) error {
					for range 200 {
						time.Sleep(time.Duration(r.IntN(60)) * time.Millisecond)
						if err := ss.SendMsg(wrapperspb.String(strings.Repeat("x", r.IntN(20_000)))); err != nil {
							refused.Add(1)
							if r.IntN(2) == 0 {
								return nil // as bad as it gets
							}
							return err
						}
						sent.Add(1)
					}
					return nil
				}
				pauses := rand.New(rand.NewPCG(seed, 1))
				slow := pauses.IntN(80)
				l := newLab(t, handlers{down: func(_ *text, ss grpc.ServerStream) error { return handler(ss) }, both: handler}, withAge(t, &j))
				open := l.down
				if seed%2 == 1 {
					open = l.both
				}
				s := open(t, t.Context())
				n := int64(0)
				for {
					err := s.RecvMsg(new(text))
					if err == nil {
						n++
						time.Sleep(time.Duration(pauses.IntN(slow+1)) * time.Millisecond)
						continue
					}
					if err == io.EOF {
						if sent.Load() != 200 {
							t.Errorf("OK after %d of 200 messages", sent.Load())
						}
					} else {
						wantEnd(t, err, grpclife.ReasonStreamAge)
					}
					break
				}
				time.Sleep(time.Second) // virtual: for a handler that is asleep when its stream ends
				if n != sent.Load() {
					t.Errorf("%d messages came, %d were sent (%d refused)", n, sent.Load(), refused.Load())
				}
			})
		})
	}
}

func TestBadOptions(t *testing.T) {
	for want, make := range map[string]func() error{
		`holds "test.Life/Call", which is not a method`: func() error {
			_, err := grpclife.NewAge(grpclife.AgeOptions{Methods: []string{"test.Life/Call"}})
			return err
		},
		`holds "", which is not a method`: func() error {
			_, err := grpclife.NewAge(grpclife.AgeOptions{Methods: []string{""}})
			return err
		},
		`holds "/a/b*", which is not a method`: func() error {
			_, err := grpclife.NewRetry(grpclife.RetryOptions{Idempotent: []string{"/a/b*"}})
			return err
		},
		"Max is -1s":   func() error { _, err := grpclife.NewAge(grpclife.AgeOptions{Max: -time.Second}); return err },
		"Jitter is 10": func() error { _, err := grpclife.NewAge(grpclife.AgeOptions{Jitter: 10}); return err },
		"Grace is 1m0s, which is longer": func() error {
			_, err := grpclife.NewDrain(grpclife.DrainOptions{Grace: time.Minute})
			return err
		},
		"Attempts is -1": func() error { _, err := grpclife.NewRetry(grpclife.RetryOptions{Attempts: -1}); return err },
		"MinBackoff is 1m0s and MaxBackoff 1s": func() error {
			_, err := grpclife.NewRetry(grpclife.RetryOptions{MinBackoff: time.Minute, MaxBackoff: time.Second})
			return err
		},
		"Codes holds [Canceled]": func() error {
			_, err := grpclife.NewRetry(grpclife.RetryOptions{Codes: []codes.Code{codes.Canceled}})
			return err
		},
	} {
		if err := make(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want an error with %q", err, want)
		}
	}
}

// Metadata calls after the end are refused, and do not reach a transport that may not know the stream any more.
func TestMetadataAfterTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var j journal
		errs := make(chan error, 2)
		l := newLab(t, handlers{both: func(ss grpc.ServerStream) error {
			<-ss.Context().Done()
			time.Sleep(time.Second)
			errs <- ss.SetHeader(metadata.Pairs("a", "b"))
			errs <- ss.SendHeader(metadata.Pairs("a", "b"))
			ss.SetTrailer(metadata.Pairs("a", "b"))
			return nil
		}}, withAge(t, &j))
		_, err := readAll(l.both(t, t.Context()))
		wantEnd(t, err, grpclife.ReasonStreamAge)
		for range 2 {
			if _, ok := errors.AsType[*grpclife.EndError](<-errs); !ok {
				t.Error("not refused")
			}
		}
		synctest.Wait()
	})
}

// An error at once must reach the client as one frame: clients try nothing again of which a header came.
func TestAgeLeavesAnErrorAtOnceInOneFrame(t *testing.T) {
	var j journal
	l := newLab(t, handlers{
		down: func(*text, grpc.ServerStream) error { return status.Error(codes.Unavailable, "busy") },
		both: func(ss grpc.ServerStream) error { return ss.SendHeader(metadata.Pairs("a", "b")) },
	}, withAge(t, &j))
	s := l.down(t, t.Context())
	if _, err := readAll(s); status.Code(err) != codes.Unavailable {
		t.Fatal(err)
	}
	if header, err := s.Header(); len(header) > 0 || len(s.Trailer().Get("content-type")) != 1 {
		t.Errorf("header %v (%v), trailer %v", header, err, s.Trailer())
	}
	both := l.both(t, t.Context())
	if header, err := both.Header(); err != nil || len(header.Get(grpclife.HeaderAge)) != 1 || len(header.Get("a")) != 1 {
		t.Errorf("header %v (%v)", header, err)
	}
	if _, err := readAll(both); err != io.EOF {
		t.Error(err)
	}
}
