package notifybus

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/cenkalti/backoff/v5"
)

// Backoff returns the pauses between attempts to reach a server: each is about twice the one before, up to 5 s, and random within half of
// that, so that the listeners of a server that restarts do not all return at once.
func Backoff() *backoff.ExponentialBackOff {
	return &backoff.ExponentialBackOff{InitialInterval: 100 * time.Millisecond, RandomizationFactor: 0.5, Multiplier: 2, MaxInterval: 5 * time.Second}
}

// Sleep pauses, and reports whether ctx has not ended.
func Sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

// Send calls publish until it succeeds, refused says that another attempt cannot, the limit has passed, or the driver is closed. A publish
// whose answer is lost is repeated, so a notification may arrive twice.
func (l *Lifecycle) Send(ctx context.Context, limit time.Duration, refused func(error) bool, publish func(context.Context) error) error {
	ctx, leave, err := l.Sending(ctx, limit)
	if err != nil {
		return err
	}
	defer leave()
	pauses := Backoff()
	for {
		err := publish(ctx)
		if err == nil {
			return nil
		}
		if refused(err) || !Sleep(ctx, pauses.NextBackOff()) {
			if cause := context.Cause(ctx); cause != nil && !errors.Is(err, cause) {
				err = fmt.Errorf("%w: %w", cause, err)
			}
			return fmt.Errorf("notification not sent: %w", err)
		}
	}
}

// Sessions is how a driver receives over connections that fail.
type Sessions struct {
	// Listen receives over one connection until that fails. It calls listening once the server sends notifications over it: the pause
	// after a session that worked is a short one.
	Listen func(ctx context.Context, listening func()) error
	// Final returns the error to give up with, if no session can work after one that ended with err; nil means another attempt.
	// Without Final there is always another.
	Final func(err error) error
	// Log gets a warning with the text Lost for each session that failed.
	Log  *slog.Logger
	Lost string
}

// Run keeps a session until ctx ends, and returns the cause of that end, or a final error.
func (s Sessions) Run(ctx context.Context) error {
	pauses := Backoff()
	for {
		err := s.Listen(ctx, pauses.Reset)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if s.Final != nil {
			if final := s.Final(err); final != nil {
				return final
			}
		}
		pause := pauses.NextBackOff()
		s.Log.Warn(s.Lost, "error", err, "retry_in", pause)
		Sleep(ctx, pause)
	}
}

// Receive runs sessions until ctx ends, the driver is closed, or an error is final.
func (l *Lifecycle) Receive(ctx context.Context, s Sessions) error {
	inner, leave, err := l.Listening(ctx)
	if err != nil {
		return err
	}
	defer leave()
	err = s.Run(inner)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return err
}
