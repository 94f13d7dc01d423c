package stream

import (
	"context"
	"errors"
	"fmt"
	"slices"
)

// AtLeastOnce makes a sink of a handler whose effects are outside any transaction, such as calls of other services: each record is
// handled at least once, in order. Without a crash no record is handled again that the handler has finished; after one at most
// WorkerConfig.CommitRecords are. Use Batch.IdempotencyKey so that the other side can tell. offsets keeps checkpoint and quarantine: a store's Sink
// without a handler.
//
// A worker begins with few records, and then passes as many as the handler does in about a second. What is finished is committed under a
// time of its own, and only that commit is repeated when it fails. A handler of [Each] has finished each record for which it returned
// nil; any other handler has finished all of its batch when it returns nil, and nothing of it when it returns an error, so it gets its whole batch
// again then.
//
// The handler must have had its effect when it returns nil. Its context ends when the lease does, since another worker may start
// then. It may run a little longer than the lease if its process is frozen; nothing can fence what is outside.
func AtLeastOnce[H ~func(ctx context.Context, b *Batch) error](offsets ReplaySink, handle H) ReplaySink {
	_, each := any(handle).(EachHandler)
	return &atLeastOnce{offsets, handle, each}
}

type atLeastOnce struct {
	ReplaySink
	handle func(ctx context.Context, b *Batch) error
	each   bool // handle is one of Each, which reports each record
}

// Commit implements Sink for callers other than a worker; a worker calls the handler by itself, and this for what is finished.
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
	// The sink below has no handler; to it, records that this one has quarantined were bad from the start.
	below := *c
	below.Batch = &Batch{Job: c.Batch.Job, Epoch: c.Batch.Epoch, outside: c.next.Seq > c.Prev.Seq}
	below.quarantine = slices.Concat(c.quarantine, c.Batch.skipped)
	err := s.ReplaySink.Commit(ctx, &below)
	c.renewed, c.lost = below.renewed, below.lost
	return err
}

// CommitReplay implements ReplaySink. A worker calls it once the handler has processed the record, until the sink has stored that.
func (s *atLeastOnce) CommitReplay(ctx context.Context, l Lease, b *Batch) error {
	if !b.outside {
		if err := s.replay(ctx, b); err != nil {
			return err
		}
		return s.ReplaySink.CommitReplay(ctx, l, b)
	}
	err := s.ReplaySink.CommitReplay(ctx, l, b)
	if errors.Is(err, ErrConflict) {
		return nil // the record is not marked any more: an attempt before this one took effect
	}
	return err
}

// replay calls the handler with a quarantined record.
func (s *atLeastOnce) replay(ctx context.Context, b *Batch) error {
	b.Reset()
	records := slices.Clone(b.Records)
	err := s.handle(ctx, b)
	b.Records = records // which the handler may have consumed
	if err != nil && b.misused == nil {
		return err
	}
	if skipped := b.Skipped(); len(skipped) > 0 {
		return Skip(fmt.Errorf("refused again: %s", skipped[0].Error))
	}
	b.outside = true
	return nil
}

// Reserve implements ReservingSink, for the commit alone.
func (s *atLeastOnce) Reserve(ctx context.Context) (context.Context, func(), error) {
	if sink, ok := s.ReplaySink.(ReservingSink); ok {
		return sink.Reserve(ctx)
	}
	return ctx, func() {}, nil
}

// Capacity implements ReservingSink.
func (s *atLeastOnce) Capacity() int {
	if sink, ok := s.ReplaySink.(ReservingSink); ok {
		return sink.Capacity()
	}
	return 0
}

// EachHandler is a handler for AtLeastOnce that was made by [Each], [EachJSON] or [EachProto]. A function that calls one is a handler for batches: what it
// does around the call belongs to the batch, so no part of that is finished before the end.
type EachHandler func(ctx context.Context, b *Batch) error

// Each makes a handler for AtLeastOnce of one for single records. A record for which handle returns nil is finished: it must have had its
// effect, and is not handled again because a later one fails. A record that is refused with Skip goes into quarantine; any other error has
// that record and those after it tried again, or halts the job.
func Each(handle func(ctx context.Context, b *Batch, r Record) error) EachHandler {
	return func(ctx context.Context, b *Batch) error {
		if b.pace != nil {
			b.pace.begun = true
		}
		for i, r := range b.Records {
			if i > 0 && b.pace != nil && !b.pace.more(b) {
				return nil
			}
			err := handle(ctx, b, r)
			switch {
			case err == nil:
			case VerdictOf(err) == VerdictSkip:
				b.Skip(r, err)
			default:
				return fmt.Errorf("record %d: %w", r.Seq, err)
			}
			if b.misused != nil {
				return Halt(b.misused)
			}
			if b.pace != nil {
				b.pace.finished = i + 1
			}
		}
		return nil
	}
}

// pace is between a handler of Each and the worker. It is only in batches of a handler that is known to be one.
type pace struct {
	begun    bool                // the handler was called
	finished int                 // how many records of the batch are finished
	more     func(b *Batch) bool // whether another record is to be started
}
