package notifybus

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

var errLost = errors.New("connection lost")

func never(error) bool { return false }

// TestSendRepeatsUntilThePublishSucceeds: the server may restart meanwhile.
func TestSendRepeatsUntilThePublishSucceeds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var l Lifecycle
		tries := 0
		err := l.Send(t.Context(), 5*time.Second, never, func(context.Context) error {
			if tries++; tries < 4 {
				return errLost
			}
			return nil
		})
		if err != nil || tries != 4 {
			t.Errorf("%d attempts end with %v, want success after 4", tries, err)
		}
	})
}

// TestSendEndsWithTheReason: its caller cannot tell a refusal from an outage otherwise.
func TestSendEndsWithTheReason(t *testing.T) {
	for _, c := range []struct {
		name    string
		refused bool
		end     func(cancel context.CancelCauseFunc, l *Lifecycle) // while publish is called first
		is      []error
		after   time.Duration
	}{
		{"refused", true, func(context.CancelCauseFunc, *Lifecycle) {}, []error{errLost}, 0},
		{"limit", false, func(context.CancelCauseFunc, *Lifecycle) {}, []error{errLost, context.DeadlineExceeded}, 2 * time.Second},
		{"canceled", false, func(cancel context.CancelCauseFunc, _ *Lifecycle) { cancel(errors.ErrUnsupported) }, []error{errLost, errors.ErrUnsupported}, 0},
		{"closed", false, func(_ context.CancelCauseFunc, l *Lifecycle) { go l.Close(); synctest.Wait() }, []error{errLost, ErrClosed}, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var l Lifecycle
				ctx, cancel := context.WithCancelCause(t.Context())
				defer cancel(nil)
				begun := time.Now()
				err := l.Send(ctx, 2*time.Second, func(error) bool { return c.refused }, func(context.Context) error {
					c.end(cancel, &l)
					return errLost
				})
				for _, want := range c.is {
					if !errors.Is(err, want) {
						t.Errorf("the error is %v, want %v in it", err, want)
					}
				}
				if took := time.Since(begun); took != c.after {
					t.Errorf("it took %v, want %v", took, c.after)
				}
			})
		})
	}
}

// TestSessionsAreOpenedAgainAfterGrowingPauses: a server that restarts is not overrun, and one that is back is used at once.
func TestSessionsAreOpenedAgainAfterGrowingPauses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var l Lifecycle
		var logged bytes.Buffer
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		var opened []time.Time
		err := l.Receive(ctx, Sessions{Log: slog.New(slog.NewTextHandler(&logged, nil)), Lost: "link down, reconnecting",
			Listen: func(_ context.Context, listening func()) error {
				opened = append(opened, time.Now())
				switch len(opened) {
				case 10:
					listening()
				case 11:
					cancel()
				}
				return errLost
			}})
		if !errors.Is(err, context.Canceled) {
			t.Fatalf("it ends with %v, want the end of the context", err)
		}
		for i := 1; i < 10; i++ {
			least, most := 50*time.Millisecond<<(i-1), 150*time.Millisecond<<(i-1)
			if pause := opened[i].Sub(opened[i-1]); pause < min(least, 2500*time.Millisecond) || pause > min(most, 7500*time.Millisecond) {
				t.Errorf("pause %d is %v, want %v to %v, or about 5 s", i, pause, least, most)
			}
		}
		if pause := opened[10].Sub(opened[9]); pause > 150*time.Millisecond {
			t.Errorf("the pause after a session that listened is %v, want the shortest", pause)
		}
		if n := strings.Count(logged.String(), "link down, reconnecting"); n != 10 {
			t.Errorf("%d warnings, want one for each of 10 sessions:\n%s", n, &logged)
		}
	})
}

// TestReceiveEnds with Close, with its context, and where no session can work any more.
func TestReceiveEnds(t *testing.T) {
	errFinal := errors.New("not allowed")
	for _, c := range []struct {
		name   string
		listen func(l *Lifecycle, cancel func()) error
		final  bool
		want   error
	}{
		{"closed", func(l *Lifecycle, _ func()) error { l.Close(); return errLost }, false, ErrClosed},
		{"canceled", func(_ *Lifecycle, cancel func()) error { cancel(); return errLost }, true, context.Canceled},
		{"final", func(*Lifecycle, func()) error { return errLost }, true, errFinal},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var l Lifecycle
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				err := l.Receive(ctx, Sessions{Log: slog.New(slog.DiscardHandler),
					Listen: func(context.Context, func()) error { return c.listen(&l, cancel) },
					Final: func(err error) error {
						if c.final && errors.Is(err, errLost) {
							return errFinal
						}
						return nil
					}})
				if !errors.Is(err, c.want) {
					t.Errorf("it ends with %v, want %v", err, c.want)
				}
				l.Close()
				if err := l.Receive(t.Context(), Sessions{}); !errors.Is(err, ErrClosed) {
					t.Errorf("after Close, Receive returns %v", err)
				}
			})
		})
	}
}
