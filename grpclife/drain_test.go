package grpclife_test

import (
	"context"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/levada-io/levada/grpclife"
)

func newDrain(t *testing.T, options grpclife.DrainOptions) (*grpclife.Drain, []grpc.ServerOption) {
	t.Helper()
	drain, err := grpclife.NewDrain(options)
	if err != nil {
		t.Fatal(err)
	}
	return drain, []grpc.ServerOption{grpc.ChainStreamInterceptor(drain.Stream), grpc.ChainUnaryInterceptor(drain.Unary)}
}

func TestDrainSpreadsTheEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const streams = 3000
		var j journal
		drain, options := newDrain(t, grpclife.DrainOptions{Period: 32 * time.Second, Grace: 2 * time.Second, Observer: j.see})
		wait := func(ss grpc.ServerStream) error { <-ss.Context().Done(); return ss.Context().Err() }
		l := newLab(t, handlers{down: func(_ *text, ss grpc.ServerStream) error { return wait(ss) }, both: wait}, options)
		var (
			mu      sync.Mutex
			ends    []time.Duration
			began   time.Time
			readers sync.WaitGroup
		)
		for i := range streams {
			open := l.down
			if i%2 == 0 {
				open = l.both
			}
			s := open(t, t.Context())
			readers.Go(func() {
				_, err := readAll(s)
				wantEnd(t, err, grpclife.ReasonDraining)
				mu.Lock()
				defer mu.Unlock()
				ends = append(ends, time.Since(began))
			})
		}
		synctest.Wait()
		if n := drain.Open(); n != streams {
			t.Fatalf("%d are open, want %d", n, streams)
		}
		mu.Lock()
		began = time.Now()
		mu.Unlock()
		drain.Start()
		drain.Start()
		ctx, cancel := context.WithTimeout(t.Context(), 33*time.Second)
		defer cancel()
		if err := drain.Wait(ctx); err != nil {
			t.Fatal(err)
		}
		readers.Wait()
		perSecond := map[int]int{}
		for _, e := range ends {
			if e < 2*time.Second || e > 32*time.Second {
				t.Fatalf("a stream ended after %v, want between 2s and 32s", e)
			}
			perSecond[int(e/time.Second)]++
		}
		for s := 2; s < 32; s++ {
			if n := perSecond[s]; n < streams/30-2 || n > streams/30+2 {
				t.Errorf("%d streams ended in second %d, want about %d", n, s, streams/30)
			}
		}
		if n := len(j.of(grpclife.StreamEnded)); n != streams {
			t.Errorf("%d ends were reported", n)
		}
	})
}

func TestDrainRefusesNewStreams(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var j journal
		drain, options := newDrain(t, grpclife.DrainOptions{RefuseUnary: true, Observer: j.see})
		l := newLab(t, handlers{
			call: func(context.Context, *text) (*text, error) { t.Error("a handler was called"); return nil, nil },
			down: func(*text, grpc.ServerStream) error { t.Error("a handler was called"); return nil },
		}, options)
		drain.Start()
		_, err := readAll(l.down(t, t.Context()))
		unary := l.conn.Invoke(t.Context(), callMethod, wrapperspb.String(""), new(text))
		for _, err := range []error{err, unary} {
			if retry := wantEnd(t, err, grpclife.ReasonDraining); retry < 50*time.Millisecond || retry > 150*time.Millisecond {
				t.Errorf("told to retry after %v, want about 100ms", retry)
			}
			if c := grpclife.Classify(err); !c.Unprocessed || c.Origin != grpclife.OriginServer {
				t.Errorf("%+v, want Unprocessed by the server", c)
			}
		}
		if n := len(j.of(grpclife.CallRefused)); n != 2 {
			t.Errorf("%d refusals reported, want 2", n)
		}
		if err := drain.Wait(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

// A stream that was ended is none that was refused: it was processed.
func TestEndedStreamIsNotUnprocessed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		drain, options := newDrain(t, grpclife.DrainOptions{Period: -1, Grace: -1})
		l := newLab(t, handlers{down: func(_ *text, ss grpc.ServerStream) error { <-ss.Context().Done(); return nil }}, options)
		s := l.down(t, t.Context())
		synctest.Wait()
		drain.Start()
		_, err := readAll(s)
		wantEnd(t, err, grpclife.ReasonDraining)
		if grpclife.Classify(err).Unprocessed {
			t.Error("a stream with a handler was said to be unprocessed")
		}
	})
}

func TestShutdown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		drain, options := newDrain(t, grpclife.DrainOptions{Period: 10 * time.Second})
		call := make(chan struct{})
		l := newLab(t, handlers{
			call: func(context.Context, *text) (*text, error) {
				close(call)
				time.Sleep(15 * time.Second)
				return wrapperspb.String("done"), nil
			},
			down: func(_ *text, ss grpc.ServerStream) error { <-ss.Context().Done(); return nil },
		}, options)
		var readers sync.WaitGroup
		for range 50 {
			s := l.down(t, t.Context())
			readers.Go(func() {
				_, err := readAll(s)
				wantEnd(t, err, grpclife.ReasonDraining)
			})
		}
		readers.Go(func() {
			if err := l.conn.Invoke(t.Context(), callMethod, wrapperspb.String(""), new(text)); err != nil {
				t.Errorf("a call that was under way failed: %v", err)
			}
		})
		<-call
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		began := time.Now()
		if err := drain.Shutdown(ctx, l.server); err != nil {
			t.Error(err)
		}
		if took := time.Since(began); took != 15*time.Second {
			t.Errorf("took %v, want 15s, which is the call's", took)
		}
		readers.Wait()
	})
}

func TestShutdownCutsWhatDoesNotReturn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		drain, options := newDrain(t, grpclife.DrainOptions{Period: 5 * time.Second})
		l := newLab(t, handlers{both: func(grpc.ServerStream) error { time.Sleep(time.Hour); return nil }}, options)
		s := l.both(t, t.Context())
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		err := drain.Shutdown(ctx, l.server)
		if err == nil || !strings.Contains(err.Error(), "1 handlers have not returned") {
			t.Errorf("Shutdown returned %v", err)
		}
		_, err = readAll(s)
		wantEnd(t, err, grpclife.ReasonDraining) // although its handler goes on
		time.Sleep(time.Hour)
	})
}

// Drain and Age watch over one stream: whichever ends first counts, and there is one end only.
func TestDrainAndAgeTogether(t *testing.T) {
	for name, c := range map[string]struct {
		start  time.Duration
		reason string
		end    time.Duration
	}{
		"drain before the age":   {time.Second, grpclife.ReasonDraining, 1500 * time.Millisecond},
		"drain during the grace": {4 * time.Second, grpclife.ReasonDraining, 4500 * time.Millisecond},
		"drain too late":         {4800 * time.Millisecond, grpclife.ReasonStreamAge, 5 * time.Second},
	} {
		for _, both := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, client streams %v", name, both), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					var j journal
					drain, err := grpclife.NewDrain(grpclife.DrainOptions{Period: 500 * time.Millisecond, Grace: 500 * time.Millisecond, Observer: j.see})
					if err != nil {
						t.Fatal(err)
					}
					wait := func(ss grpc.ServerStream) error { <-ss.Context().Done(); return nil }
					recovery := grpclife.NewRecovery(grpclife.RecoveryOptions{})
					l := newLab(t, handlers{down: func(_ *text, ss grpc.ServerStream) error { return wait(ss) }, both: wait},
						[]grpc.ServerOption{grpc.ChainStreamInterceptor(drain.Stream, newAge(t, &j).Stream, recovery.Stream)})
					open := l.down
					if both {
						open = l.both
					}
					began := time.Now()
					s := open(t, t.Context())
					time.AfterFunc(c.start, drain.Start)
					_, err = readAll(s)
					wantEnd(t, err, c.reason)
					if took := time.Since(began); took != c.end {
						t.Errorf("ended after %v, want %v", took, c.end)
					}
					if err := drain.Wait(t.Context()); err != nil {
						t.Error(err)
					}
					time.Sleep(time.Minute)
					if n := len(j.of(grpclife.StreamEnded)); n != 1 {
						t.Errorf("%d ends reported, want 1", n)
					}
				})
			})
		}
	}
}

func TestUnaryCallsAreServedDuringADrain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		drain, options := newDrain(t, grpclife.DrainOptions{})
		l := newLab(t, handlers{call: func(context.Context, *text) (*text, error) { return wrapperspb.String("served"), nil }}, options)
		drain.Start()
		reply := new(text)
		for range 2 {
			if err := l.conn.Invoke(t.Context(), callMethod, wrapperspb.String(""), reply); err != nil || reply.GetValue() != "served" {
				t.Errorf("got %q, %v", reply.GetValue(), err)
			}
		}
	})
}

// Many streams open, send and end while the server drains: for the race detector, and for the counts.
func TestDrainUnderLoad(t *testing.T) {
	var j journal
	drain, err := grpclife.NewDrain(grpclife.DrainOptions{Period: 300 * time.Millisecond, Grace: 10 * time.Millisecond, Observer: j.see})
	if err != nil {
		t.Fatal(err)
	}
	age, err := grpclife.NewAge(grpclife.AgeOptions{Max: 20 * time.Millisecond, Grace: 5 * time.Millisecond, Observer: j.see})
	if err != nil {
		t.Fatal(err)
	}
	var panics sync.Map
	recovery := grpclife.NewRecovery(grpclife.RecoveryOptions{OnPanic: func(_ string, v any, _ []byte) { panics.Store(fmt.Sprint(v), true) }})
	echo := func(ss grpc.ServerStream) error {
		for n := 0; ; n++ {
			m := new(text)
			if err := ss.RecvMsg(m); err != nil {
				return err
			}
			if n == 50 {
				panic("fifty")
			}
			if err := ss.SendMsg(m); err != nil {
				return err
			}
		}
	}
	l := newLab(t, handlers{both: echo, down: func(_ *text, ss grpc.ServerStream) error {
		for {
			if err := ss.SendMsg(wrapperspb.String("x")); err != nil {
				return err
			}
		}
	}}, []grpc.ServerOption{grpc.ChainStreamInterceptor(recovery.Stream, drain.Stream, age.Stream)})
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	var clients sync.WaitGroup
	for i := range 40 {
		clients.Go(func() {
			for ctx.Err() == nil {
				var err error
				if i%2 == 0 {
					_, err = readAll(l.down(t, ctx))
				} else {
					s := l.both(t, ctx)
					for err == nil {
						if err = s.SendMsg(wrapperspb.String("x")); err == nil || err == io.EOF {
							err = s.RecvMsg(new(text))
						}
					}
				}
				c := grpclife.Classify(err)
				switch {
				case c.Reason == grpclife.ReasonPanic && c.Code == codes.Internal, c.Reason == grpclife.ReasonStreamAge:
				case c.Reason == grpclife.ReasonDraining && c.Unprocessed:
					return
				case c.Reason == grpclife.ReasonDraining:
				default:
					t.Errorf("a stream ended with %v (%v)", err, status.Code(err))
					return
				}
			}
		})
	}
	time.AfterFunc(200*time.Millisecond, drain.Start)
	clients.Wait()
	if err := drain.Wait(ctx); err != nil {
		t.Error(err)
	}
	if n := drain.Open(); n != 0 {
		t.Errorf("%d are open after the drain", n)
	}
}
