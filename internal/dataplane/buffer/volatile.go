package buffer

import (
	"context"
	"fmt"
	"log/slog"
)

// InMemory reports whether what is stored is lost when the store restarts.
func (r *Reader) InMemory() bool {
	v, ok := r.driver.(Volatile)
	return ok && v.Volatile()
}

// Gone reports whether the log was found to be missing while it was in use. What was pending is lost then if it was in memory.
func (r *Reader) Gone() bool { return r.tail.gone.Load() }

// savePending saves how much would be lost with a log in memory.
func (r *Reader) savePending(ctx context.Context) error {
	v, ok := r.driver.(Volatile)
	if !ok || !v.Volatile() {
		return nil
	}
	if err := v.SavePending(ctx, r.Pending()); err != nil {
		return fmt.Errorf("save the number of messages in memory: %w", err)
	}
	return nil
}

// Loss is what is known of a log in memory that is gone.
type Loss struct {
	Stream string
	// Messages is how many were not done when that was saved last: at the end of a run, or up to 2 s before a kill. -1 if it is not known.
	Messages int
	// Blocks is at least how many were lost.
	Blocks uint64
	// Err is not nil if the saved state cannot be read.
	Err error
}

// Log logs the loss in one line.
func (l Loss) Log(log *slog.Logger) {
	switch {
	case l.Err != nil:
		log.Error("stream in memory lost, its saved state cannot be read, starting empty", "stream", l.Stream, "error", l.Err)
	case l.Messages == 0 && l.Blocks == 0:
		log.Warn("stream in memory is gone, nothing was in it, starting empty", "stream", l.Stream)
	case l.Messages < 0:
		log.Error("stream in memory lost, starting empty: messages in flight at the restart of the broker are lost", "stream", l.Stream, "blocks_lost_at_least", l.Blocks)
	default:
		log.Error("stream in memory lost, starting empty: messages in flight at the restart of the broker are lost", "stream", l.Stream,
			"messages_lost", l.Messages, "blocks_lost_at_least", l.Blocks)
	}
}
