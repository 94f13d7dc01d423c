package grpclife_test

import (
	"context"
	"errors"
	"net/http"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/levada-io/levada/grpclife"
)

func explode(what any) { panic(what) }

func TestPanicsBecomeStatuses(t *testing.T) {
	for _, order := range []string{"recovery inside", "recovery outside"} {
		t.Run(order, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var j journal
				stacks := map[string]string{}
				recovery := grpclife.NewRecovery(grpclife.RecoveryOptions{Observer: j.see, OnPanic: func(method string, value any, stack []byte) {
					stacks[method] = string(stack)
				}})
				chain := []grpc.StreamServerInterceptor{newAge(t, &j).Stream, recovery.Stream}
				if order == "recovery outside" {
					chain[0], chain[1] = chain[1], chain[0]
				}
				l := newLab(t, handlers{
					call: func(context.Context, *text) (*text, error) { explode("secret"); return nil, nil },
					down: func(*text, grpc.ServerStream) error { explode(errors.New("secret")); return nil },
					both: func(grpc.ServerStream) error { explode(nil); return nil },
				}, []grpc.ServerOption{grpc.ChainStreamInterceptor(chain...), grpc.ChainUnaryInterceptor(recovery.Unary)})
				_, down := readAll(l.down(t, t.Context()))
				_, both := readAll(l.both(t, t.Context()))
				for method, err := range map[string]error{
					callMethod: l.conn.Invoke(t.Context(), callMethod, wrapperspb.String(""), new(text)), downMethod: down, bothMethod: both,
				} {
					c := grpclife.Classify(err)
					if c.Code != codes.Internal || c.Reason != grpclife.ReasonPanic || c.Domain != grpclife.Domain || c.Origin != grpclife.OriginServer {
						t.Errorf("%s ended with %v", method, err)
					}
					if strings.Contains(err.Error(), "secret") || strings.Contains(err.Error(), "explode") {
						t.Errorf("the client was told %v", err)
					}
					if !strings.Contains(stacks[method], "explode") {
						t.Errorf("the stack of %s does not show where it panicked:\n%s", method, stacks[method])
					}
				}
				if n := len(j.of(grpclife.HandlerPanicked)); n != 3 {
					t.Errorf("%d panics observed, want 3", n)
				}
			})
		})
	}
}

// The stream has ended, its handler goes on by itself and panics: the outer recovery is called, and the process lives.
func TestPanicAfterTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var j journal
		recovery := grpclife.NewRecovery(grpclife.RecoveryOptions{Observer: j.see})
		l := newLab(t, handlers{both: func(grpc.ServerStream) error { time.Sleep(time.Minute); explode("late"); return nil }},
			[]grpc.ServerOption{grpc.ChainStreamInterceptor(recovery.Stream, newAge(t, &j).Stream)})
		_, err := readAll(l.both(t, t.Context()))
		wantEnd(t, err, grpclife.ReasonStreamAge)
		time.Sleep(time.Hour)
		if e := j.of(grpclife.HandlerPanicked); len(e) != 1 || e[0].Value != "late" || !strings.Contains(string(e[0].Stack), "explode") {
			t.Errorf("observed %+v", e)
		}
	})
}

func TestSomePanicsPass(t *testing.T) {
	recovery := grpclife.NewRecovery(grpclife.RecoveryOptions{OnPanic: func(string, any, []byte) { t.Error("was caught") }})
	defer func() {
		if v := recover(); v != http.ErrAbortHandler {
			t.Errorf("recovered %v", v)
		}
	}()
	_, _ = recovery.Unary(t.Context(), nil, &grpc.UnaryServerInfo{FullMethod: callMethod}, func(context.Context, any) (any, error) { panic(http.ErrAbortHandler) })
	t.Error("did not go on")
}

// Goexit, as of a test's FailNow, is no panic: it goes on in the goroutine that called the interceptor.
func TestGoexitGoesOn(t *testing.T) {
	var j journal
	for _, streams := range []bool{false, true} {
		ended := make(chan bool, 1)
		go func() {
			returned := false
			defer func() { ended <- returned }()
			_ = newAge(t, &j).Stream(nil, stubStream{ctx: t.Context()}, &grpc.StreamServerInfo{FullMethod: bothMethod, IsClientStream: streams},
				func(any, grpc.ServerStream) error { runtime.Goexit(); return nil })
			returned = true
		}()
		if <-ended {
			t.Error("the interceptor returned")
		}
	}
}

func TestRecoveryLeavesErrorsAlone(t *testing.T) {
	want := status.Error(codes.NotFound, "mine")
	recovery := grpclife.NewRecovery(grpclife.RecoveryOptions{})
	if _, err := recovery.Unary(t.Context(), nil, &grpc.UnaryServerInfo{}, func(context.Context, any) (any, error) { return nil, want }); err != want {
		t.Errorf("returned %v", err)
	}
	err := recovery.Stream(nil, stubStream{ctx: t.Context()}, &grpc.StreamServerInfo{}, func(any, grpc.ServerStream) error { return want })
	if err != want {
		t.Errorf("returned %v", err)
	}
}
