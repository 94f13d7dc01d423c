package grpclife_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os/signal"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/levada-io/levada/grpclife"
)

// A server whose streams end by themselves, and one by one at SIGTERM.
func Example() {
	age, err := grpclife.NewAge(grpclife.AgeOptions{Max: 30 * time.Minute})
	if err != nil {
		panic(err)
	}
	drain, err := grpclife.NewDrain(grpclife.DrainOptions{Period: 20 * time.Second})
	if err != nil {
		panic(err)
	}
	recovery := grpclife.NewRecovery(grpclife.RecoveryOptions{OnPanic: func(method string, value any, stack []byte) {
		slog.Error("a handler panicked", "method", method, "panic", value, "stack", string(stack))
	}})
	server := grpc.NewServer(
		grpc.ChainUnaryInterceptor(drain.Unary, recovery.Unary),
		grpc.ChainStreamInterceptor(drain.Stream, age.Stream, recovery.Stream),
	)
	// Register services, then: go server.Serve(listener)

	stopped, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	stop() // here <-stopped.Done() would wait for the signal
	<-stopped.Done()
	ctx, cancel := context.WithTimeout(context.Background(), 25*time.Second)
	defer cancel()
	fmt.Println(drain.Shutdown(ctx, server))
	// Output: <nil>
}

// A handler that ends its stream at a good moment.
func ExampleAging() {
	_ = func(stream grpc.ServerStream, records <-chan *wrapperspb.StringValue) error {
		for {
			select {
			case <-grpclife.Aging(stream.Context()):
				return grpclife.End(stream.Context())
			case r, ok := <-records:
				if !ok {
					return nil
				}
				if err := stream.SendMsg(r); err != nil {
					return err
				}
			}
		}
	}
}

func ExampleAge() {
	age, err := grpclife.NewAge(grpclife.AgeOptions{
		Max:     10 * time.Minute,
		Methods: []string{"/shop.Orders/Watch", "/shop.Feed/*"},
		Observer: func(e grpclife.Event) {
			if e.Kind == grpclife.HandlerOverdue {
				slog.Warn("a handler ignores that its stream has ended", "method", e.Method, "age", e.After)
			}
		},
	})
	if err != nil {
		panic(err)
	}
	_ = grpc.NewServer(grpc.ChainStreamInterceptor(age.Stream))
}

func ExampleDrain() {
	drain, err := grpclife.NewDrain(grpclife.DrainOptions{Period: 10 * time.Second, Grace: time.Second})
	if err != nil {
		panic(err)
	}
	drain.Start()
	fmt.Println(drain.Wait(context.Background()), drain.Open())
	// Output: <nil> 0
}

func ExampleRecovery() {
	recovery := grpclife.NewRecovery(grpclife.RecoveryOptions{OnPanic: func(method string, value any, _ []byte) {
		fmt.Println(method, "panicked:", value)
	}})
	_, err := recovery.Unary(context.Background(), nil, &grpc.UnaryServerInfo{FullMethod: "/shop.Orders/Get"},
		func(context.Context, any) (any, error) { panic("no such shelf") })
	fmt.Println(status.Code(err), grpclife.Classify(err).Reason)
	// Output:
	// /shop.Orders/Get panicked: no such shelf
	// Internal PANIC
}

func ExampleClassify() {
	for _, err := range []error{
		status.Error(codes.Internal, "stream terminated by RST_STREAM with error code: INTERNAL_ERROR"),
		status.Error(codes.Internal, "index out of range"),
	} {
		c := grpclife.Classify(err)
		fmt.Println(c.Origin, c.Hidden, c.Transient())
	}
	// Output:
	// proxy true true
	// server false false
}

func ExampleRestoreUnavailable() {
	restore := grpclife.NewRestoreUnavailable(func(e grpclife.Event) {
		slog.Info("a proxy hid a lost connection", "method", e.Method, "as", e.Class.Code)
	})
	conn, err := grpc.NewClient("dns:///orders:443", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithChainUnaryInterceptor(restore.Unary), grpc.WithChainStreamInterceptor(restore.Stream))
	if err != nil {
		panic(err)
	}
	defer conn.Close()
}

func ExampleRetry() {
	retry, err := grpclife.NewRetry(grpclife.RetryOptions{Idempotent: []string{"/shop.Orders/Get", "/shop.Feed/*"}})
	if err != nil {
		panic(err)
	}
	restore := grpclife.NewRestoreUnavailable(nil)
	conn, err := grpc.NewClient("dns:///orders:443", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithChainUnaryInterceptor(retry.Unary, restore.Unary), grpc.WithChainStreamInterceptor(retry.Stream, restore.Stream))
	if err != nil {
		panic(err)
	}
	defer conn.Close()
}

func ExampleEndError() {
	_ = func(stream grpc.ServerStream) {
		<-stream.Context().Done()
		if end, ok := errors.AsType[*grpclife.EndError](context.Cause(stream.Context())); ok {
			slog.Info("the stream was ended", "reason", end.Reason)
		} else {
			slog.Info("the client has gone")
		}
	}
}

func ExampleHiddenError() {
	_ = func(err error) {
		if hidden, ok := errors.AsType[*grpclife.HiddenError](err); ok {
			slog.Info("the connection was lost behind a proxy", "came as", hidden.Original)
		}
	}
}

func ExampleObserver() {
	counts := map[grpclife.EventKind]int{}
	var observer grpclife.Observer = func(e grpclife.Event) { counts[e.Kind]++ } // with a lock, or a metrics library
	observer(grpclife.Event{Kind: grpclife.StreamEnded})
	fmt.Println(counts[grpclife.StreamEnded])
	// Output: 1
}

func ExampleSigns() {
	for _, s := range grpclife.Signs() {
		if s.Hidden && s.From == "HAProxy" {
			fmt.Printf("%s: %v %q\n", s.From, s.Code, s.Text)
		}
	}
	// Output:
	// HAProxy: Internal "server closed the stream without sending trailers"
	// HAProxy: Internal "unexpected EOF"
}
