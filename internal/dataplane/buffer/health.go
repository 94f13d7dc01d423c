package buffer

import (
	"errors"
	"fmt"
	"time"
)

// Trouble of a partition that its readiness shows.
var (
	// ErrStoreFull means that the broker takes no more: the limit of the stream, of the account or of the server is reached, or its disk is full.
	ErrStoreFull = errors.New("the broker's store is full")
	// ErrDamaged means that stored blocks are lost or damaged.
	ErrDamaged = errors.New("the buffer is damaged")
)

// unsavedAfter is how long saving the state may fail before that is trouble.
const unsavedAfter = 10 * time.Second

// Health returns what keeps the partition from taking messages, and does not pass at once; nil if nothing does. A partition that is full because its reader
// is slow is healthy.
func (w *Writer) Health() error {
	if w.tail.gone.Load() {
		return fmt.Errorf("%w: buffer %s: %w", ErrDamaged, w.opt.Name, ErrMissing)
	}
	if lost := w.tail.lostEnd(); lost != nil {
		return fmt.Errorf("%w: buffer %s: %w", ErrDamaged, w.opt.Name, lost)
	}
	return w.refusedRoom()
}

// refusedRoom returns why the last write was refused, if the store has no room.
func (w *Writer) refusedRoom() error {
	if full := w.refused.Load(); full != nil {
		return fmt.Errorf("%w: buffer %s: %w", ErrStoreFull, w.opt.Name, *full)
	}
	return nil
}

// Health returns what keeps the partition from giving messages, and does not pass at once; nil if nothing does.
func (r *Reader) Health() error {
	if r.tail.gone.Load() {
		return fmt.Errorf("%w: buffer %s: %w", ErrDamaged, r.opt.Name, ErrMissing)
	}
	r.mu.Lock()
	failed, since := r.failed, r.unsaved
	r.mu.Unlock()
	if failed != nil {
		return fmt.Errorf("%w: %w", ErrDamaged, failed)
	}
	if !since.IsZero() && time.Since(since) > unsavedAfter {
		return fmt.Errorf("buffer %s: its state has not been saved since %s", r.opt.Name, since.UTC().Format(time.RFC3339))
	}
	return nil
}
