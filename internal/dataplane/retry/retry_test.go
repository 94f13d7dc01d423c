package retry_test

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/levada-io/levada/internal/dataplane/retry"
)

var (
	errAway  = errors.New("no answer")
	errFinal = errors.New("it has another format")
)

// final ends a wait at errFinal.
func final(err error) error {
	if errors.Is(err, errFinal) {
		return err
	}
	return nil
}

func TestAnAttemptThatIsNotAnsweredIsMadeAgain(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		began, calls := time.Now(), 0
		answer, err := retry.Until(t.Context(), slog.New(slog.DiscardHandler), "the stream", final, func(ctx context.Context) (int, error) {
			if calls++; calls == 1 {
				<-ctx.Done() // the request vanished with the server that got it
				return 0, ctx.Err()
			}
			return 42, nil
		})
		if answer != 42 || err != nil || calls != 2 {
			t.Errorf("%d, %v after %d calls", answer, err, calls)
		}
		if took := time.Since(began); took < 5*time.Second || took > 7*time.Second {
			t.Errorf("the second attempt was made after %v, want 5s and a pause", took)
		}
	})
}

func TestAFinalErrorEndsTheWaitAtOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		calls := 0
		_, err := retry.Until(t.Context(), slog.New(slog.DiscardHandler), "the stream", final, func(context.Context) (int, error) {
			calls++
			return 0, errFinal
		})
		if !errors.Is(err, errFinal) || calls != 1 {
			t.Errorf("%v after %d calls", err, calls)
		}
	})
}

func TestTheEndOfTheContextSaysWhatWasWaitedFor(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		began, calls := time.Now(), 0
		_, err := retry.Until(ctx, slog.New(slog.DiscardHandler), "the stream", final, func(context.Context) (int, error) {
			calls++
			return 0, errAway
		})
		if err == nil || !strings.Contains(err.Error(), "waited for the stream") {
			t.Errorf("error %v", err)
		}
		if took := time.Since(began); took > time.Minute {
			t.Errorf("it returned after %v", took)
		}
		// Pauses grow from 50 ms to 1 s, so that a server that comes back is found within a second and is not flooded before.
		if calls < 60 || calls > 90 {
			t.Errorf("%d attempts in a minute", calls)
		}
	})
}

func TestALongWaitIsLoggedAndAShortOneIsNot(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		for _, c := range []struct {
			lasts time.Duration
			lines int
		}{{2 * time.Second, 0}, {10 * time.Second, 1}, {50 * time.Second, 2}} {
			var told strings.Builder
			over := time.Now().Add(c.lasts)
			_, err := retry.Until(t.Context(), slog.New(slog.NewTextHandler(&told, nil)), "the bucket", final, func(context.Context) (int, error) {
				if time.Now().Before(over) {
					return 0, errAway
				}
				return 1, nil
			})
			if n := strings.Count(told.String(), `"waiting for"="the bucket"`); err != nil || n != c.lines {
				t.Errorf("a wait of %v: %v, %d lines, want %d:\n%s", c.lasts, err, n, c.lines, &told)
			}
		}
	})
}
