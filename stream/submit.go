package stream

import (
	"context"
	"log/slog"
	"time"
)

// Submit submits a job and sends a hint, so that a worker claims it at once instead of at its next sweep. The job is submitted once store has
// it: a hint that cannot be sent within 2 s is only logged. A nil hints sends none; a [Store] that notifies by itself, as pgstore's does for
// pghints, needs none.
func Submit(ctx context.Context, store Store, hints Hints, job Job) (Status, error) {
	status, err := store.Submit(ctx, job)
	if err != nil || hints == nil || status.State != Ready || status.NotBefore.After(time.Now()) {
		return status, err
	}
	sending, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	if err := hints.Send(sending, Hint{Stream: status.Stream, Job: status.ID}); err != nil {
		slog.WarnContext(ctx, "hint not sent, the job starts at a worker's next sweep", "job", status.ID, "stream", status.Stream, "error", err)
	}
	return status, nil
}
