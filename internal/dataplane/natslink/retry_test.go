package natslink

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nats-io/nats.go"
)

func TestRetryWaitsForWhatGoesAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		away := fmt.Errorf("stream a-b-0: %w", nats.ErrReconnectBufExceeded)
		var told strings.Builder
		log := slog.New(slog.NewTextHandler(&told, nil))
		calls := 0
		opened, err := Retry(t.Context(), nil, log, "the stream", func(context.Context) (string, error) {
			if calls++; calls < 4 {
				return "", away
			}
			return "open", nil
		})
		if opened != "open" || err != nil || calls != 4 {
			t.Errorf("%q, %v after %d calls", opened, err, calls)
		}

		wrong := errors.New("it exists with another retention")
		calls = 0
		if _, err = Retry(t.Context(), nil, log, "the stream", func(context.Context) (string, error) { calls++; return "", wrong }); !errors.Is(err, wrong) || calls != 1 {
			t.Errorf("%v after %d calls: what is wrong with the stream does not go away", err, calls)
		}

		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		began := time.Now()
		if _, err = Retry(ctx, nil, log, "the stream", func(context.Context) (string, error) { return "", away }); err == nil || time.Since(began) < 58*time.Second {
			t.Errorf("%v after %v", err, time.Since(began))
		}
		if n := strings.Count(told.String(), "waiting for"); n != 2 {
			t.Errorf("a wait of a minute is logged %d times, want 2: %s", n, &told)
		}
	})
}
