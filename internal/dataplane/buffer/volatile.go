package buffer

import (
	"context"
	"fmt"
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
