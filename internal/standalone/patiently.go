package standalone

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/cenkalti/backoff/v5"

	"github.com/levada-io/levada/internal/dataplane/buffer/jetstreambuffer"
)

const (
	attemptTimeout = 10 * time.Second
	tellAfter      = 3 * time.Second  // how long a wait may be before it is logged
	tellEvery      = 30 * time.Second // and how often after that
)

// patiently retries what failed because the broker could not answer, until ctx ends. All that is opened so can be opened twice, and each attempt has a
// deadline of its own: a request can vanish with the server that got it. what says what is waited for.
func patiently[T any](ctx context.Context, log *slog.Logger, what string, open func(ctx context.Context) (T, error)) (T, error) {
	tell := time.Now().Add(tellAfter)
	opened, err := backoff.Retry(ctx, func() (T, error) {
		attempt, cancel := context.WithTimeout(ctx, attemptTimeout)
		defer cancel()
		opened, err := open(attempt)
		switch {
		case err == nil:
		case !jetstreambuffer.Transient(err):
			err = backoff.Permanent(err)
		case ctx.Err() == nil && time.Now().After(tell):
			tell = time.Now().Add(tellEvery)
			log.Warn("broker does not answer, retrying", "waiting for", what, "error", err)
		}
		return opened, err
	}, backoff.WithMaxElapsedTime(0), backoff.WithBackOff(&backoff.ExponentialBackOff{InitialInterval: 50 * time.Millisecond, Multiplier: 1.5, MaxInterval: time.Second}))
	if err != nil && ctx.Err() != nil {
		return opened, fmt.Errorf("waited for %s: %w", what, err)
	}
	return opened, err
}
