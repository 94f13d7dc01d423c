package stream

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Wait waits until a job is final, and returns it. The error is nil if the job is completed; it is a [*JobError] if the job failed or was
// cancelled, [ErrNotFound] if there is no such job, and the cause of ctx when that ends. A paused job is waited for, and so is a store that
// does not answer: ctx bounds both.
func Wait(ctx context.Context, store interface {
	Get(ctx context.Context, id string) (Status, error)
}, id string) (Status, error) {
	var last error // of the store
	for pause := 50 * time.Millisecond; ; pause = min(pause*3/2, 2*time.Second) {
		status, err := store.Get(ctx, id)
		switch {
		case err == nil && status.State == Completed:
			return status, nil
		case err == nil && status.State.Final():
			return status, &JobError{Status: status}
		case errors.Is(err, ErrNotFound), errors.Is(err, ErrNewer), errors.Is(err, ErrOlder):
			return status, err
		}
		last = err
		if !wait(ctx, jitter(pause)) {
			err := fmt.Errorf("job %s is not final yet: %w", id, context.Cause(ctx))
			if last != nil {
				err = fmt.Errorf("job %s: the job store does not answer: %w", id, errors.Join(context.Cause(ctx), last))
			}
			return status, err
		}
	}
}

// JobError is the error of a job that ended without being complete.
type JobError struct{ Status Status }

func (e *JobError) Error() string {
	s := e.Status
	if s.State == Cancelled {
		return fmt.Sprintf("job %s was cancelled at record %d", s.ID, s.Progress.Records)
	}
	return fmt.Sprintf("job %s %s at record %d: %s: %s", s.ID, s.State, s.Progress.Records, s.Reason, s.LastError)
}
