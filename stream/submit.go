package stream

import (
	"context"
	"log/slog"
	"time"
)

// Submit submits a job and sends a notification, so that a worker claims it at once instead of at its next poll. The job is submitted once store has
// it: a notification that cannot be sent within 2 s is only logged. A nil notifier sends none; a [Store] that notifies by itself, as pgstore's does for
// pgnotify, needs none.
func Submit(ctx context.Context, store Store, notifier Notifier, job Job) (Status, error) {
	status, err := store.Submit(ctx, job)
	if err != nil || notifier == nil || status.State != Ready || status.NotBefore.After(time.Now()) {
		return status, err
	}
	sending, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	if err := notifier.Send(sending, Notification{Stream: status.Stream, Job: status.ID}); err != nil {
		slog.WarnContext(ctx, "notification not sent, the job starts at a worker's next poll", "job", status.ID, "stream", status.Stream, "error", err)
	}
	return status, nil
}
