package stream

import (
	"context"
	"fmt"
	"slices"
)

// AtLeastOnce makes a sink of a handler whose effects are outside any transaction, such as calls of other services: each record is
// handed over at least once, in order, and after a failure at most what was in hand is handed over again. Use
// Batch.IdempotencyKey so that the other side can tell. offsets keeps checkpoint and quarantine: a store's Sink without a handler.
//
// The handler must have had its effect when it returns nil. It may run a little longer than the lease if its process is
// frozen; nothing can fence what is outside.
func AtLeastOnce(offsets ReplaySink, handle func(ctx context.Context, b *Batch) error) ReplaySink {
	return &atLeastOnce{offsets, handle}
}

type atLeastOnce struct {
	ReplaySink
	handle func(ctx context.Context, b *Batch) error
}

func (s *atLeastOnce) Commit(ctx context.Context, c *Commit) error {
	if len(c.Batch.Records) > 0 {
		c.Batch.Reset()
		if err := s.handle(ctx, c.Batch); err != nil {
			return err
		}
		if err := c.Batch.misused; err != nil {
			return Halt(err)
		}
	}
	// The sink below has no handler; to it, what this one has put aside was so from the start.
	below := *c
	below.Batch = &Batch{Job: c.Batch.Job, Epoch: c.Batch.Epoch}
	below.quarantine = slices.Concat(c.quarantine, c.Batch.skipped)
	return s.ReplaySink.Commit(ctx, &below)
}

func (s *atLeastOnce) CommitReplay(ctx context.Context, l Lease, b *Batch) error {
	b.Reset()
	if err := s.handle(ctx, b); err != nil {
		return err
	}
	if skipped := b.Skipped(); len(skipped) > 0 {
		return Skip(fmt.Errorf("refused again: %s", skipped[0].Error))
	}
	return s.ReplaySink.CommitReplay(ctx, l, b)
}

// Each makes a handler for AtLeastOnce of one for single records. A record that is refused with Skip goes into quarantine; any
// other error has the whole batch tried again, or halts the job.
func Each(handle func(ctx context.Context, b *Batch, r Record) error) func(ctx context.Context, b *Batch) error {
	return func(ctx context.Context, b *Batch) error {
		for _, r := range b.Records {
			err := handle(ctx, b, r)
			switch {
			case err == nil:
			case verdictOf(err) == verdictSkip:
				b.Skip(r, err)
			default:
				return fmt.Errorf("record %d: %w", r.Seq, err)
			}
		}
		return nil
	}
}
