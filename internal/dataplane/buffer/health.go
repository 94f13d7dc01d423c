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

// Health returns what keeps the partition from taking or giving messages, and does not pass at once; nil if nothing does. A partition that is full because its
// reader is slow is well.
func (p *Partition) Health() error {
	p.mu.Lock()
	failed, since := p.failed, p.unsaved
	p.mu.Unlock()
	if p.gone.Load() {
		return fmt.Errorf("%w: buffer %s: %w", ErrDamaged, p.opt.Name, ErrMissing)
	}
	if failed != nil {
		return fmt.Errorf("%w: %w", ErrDamaged, failed)
	}
	if full := p.refused.Load(); full != nil {
		return fmt.Errorf("%w: buffer %s: %w", ErrStoreFull, p.opt.Name, *full)
	}
	if !since.IsZero() && time.Since(since) > unsavedAfter {
		return fmt.Errorf("buffer %s: its state has not been saved since %s", p.opt.Name, since.UTC().Format(time.RFC3339))
	}
	return nil
}
