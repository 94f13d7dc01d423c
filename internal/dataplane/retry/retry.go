// Package retry repeats what failed because a server could not answer.
package retry

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/cenkalti/backoff/v5"
)

const (
	attemptTimeout = 5 * time.Second  // of one attempt: a request that vanished with its server costs as much
	tellAfter      = 3 * time.Second  // how long a wait may be before it is logged
	tellEvery      = 30 * time.Second // and how often after that
)

// Delay is the pause between attempts.
func Delay() *backoff.ExponentialBackOff {
	return &backoff.ExponentialBackOff{InitialInterval: 50 * time.Millisecond, Multiplier: 1.5, MaxInterval: time.Second}
}

// Until calls ask until it succeeds, final returns an error, or ctx ends. what says what is waited for. ask must be able to be called twice; each attempt has a
// deadline of its own, because a request can vanish with the server that got it. final returns nil for an error that may go away, and the error to end with for
// any other.
func Until[T any](ctx context.Context, log *slog.Logger, what string, final func(error) error, ask func(ctx context.Context) (T, error)) (T, error) {
	tell := time.Now().Add(tellAfter)
	var last error // that says more than that the time is over
	answer, err := backoff.Retry(ctx, func() (T, error) {
		attempt, cancel := context.WithTimeout(ctx, attemptTimeout)
		defer cancel()
		answer, err := ask(attempt)
		if err == nil {
			return answer, nil
		}
		if over := final(err); over != nil {
			return answer, backoff.Permanent(over)
		}
		if !errors.Is(err, context.DeadlineExceeded) {
			last = err
		}
		if ctx.Err() == nil && time.Now().After(tell) {
			tell = time.Now().Add(tellEvery)
			log.Warn("broker does not answer, retrying", "waiting for", what, "error", err)
		}
		return answer, err
	}, backoff.WithMaxElapsedTime(0), backoff.WithBackOff(Delay()))
	if err != nil && ctx.Err() != nil {
		if last != nil && !errors.Is(err, last) {
			err = fmt.Errorf("%w; the last answer: %w", err, last)
		}
		return answer, fmt.Errorf("waited for %s: %w", what, err)
	}
	return answer, err
}
