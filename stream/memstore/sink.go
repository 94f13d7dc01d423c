package memstore

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/levada-io/levada/stream"
)

// Handler processes a batch. Its effects are to be kept in what it returns: keep is called, with the store locked, only when the
// commit takes effect. A nil Handler has no effects.
type Handler func(ctx context.Context, b *stream.Batch) (keep func(), err error)

// Sink returns a sink that keeps checkpoints and quarantine in the store, beside the effects of the handler.
func (s *Store) Sink(handle Handler) *Sink { return &Sink{store: s, handle: handle} }

// Sink is a stream.ReplaySink in memory.
type Sink struct {
	store  *Store
	handle Handler
}

func (k *Sink) Fence(ctx context.Context, l stream.Lease) (stream.Checkpoint, error) {
	if err := ctx.Err(); err != nil {
		return stream.Checkpoint{}, err
	}
	s := k.store
	s.mu.Lock()
	defer s.mu.Unlock()
	at := s.offsets[l.Job]
	if at == nil {
		at = &offset{}
		s.offsets[l.Job] = at
	}
	if at.epoch > l.Epoch {
		return stream.Checkpoint{}, fmt.Errorf("%w: the sink has epoch %d, the lease has %d", stream.ErrFenced, at.epoch, l.Epoch)
	}
	at.epoch = l.Epoch
	return at.checkpoint, nil
}

func (k *Sink) Commit(ctx context.Context, c *stream.Commit) error {
	keep, err := k.process(ctx, c.Batch)
	if err != nil {
		return err
	}
	next, rows, err := c.Result()
	if err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	s := k.store
	s.mu.Lock()
	defer s.mu.Unlock()
	at, err := s.fenced(c.Lease)
	if err != nil {
		return err
	}
	if prev := at.checkpoint; prev.Seq != c.Prev.Seq || !bytes.Equal(prev.Token, c.Prev.Token) || prev.Done != c.Prev.Done {
		return fmt.Errorf("%w: it is at record %d, the commit goes on from %d", stream.ErrConflict, prev.Seq, c.Prev.Seq)
	}
	next.Token = bytes.Clone(next.Token)
	at.checkpoint = next
	for _, row := range rows {
		if s.quarantine[row.Job] == nil {
			s.quarantine[row.Job] = map[uint64]stream.Quarantined{}
		}
		row.State, row.FirstSeen = stream.Waiting, time.Now()
		s.quarantine[row.Job][row.Seq] = row
	}
	keep()
	return nil
}

// fenced returns the offset of a job that this lease may change. s.mu is held.
func (s *Store) fenced(l stream.Lease) (*offset, error) {
	at := s.offsets[l.Job]
	if at == nil || at.epoch != l.Epoch {
		return nil, fmt.Errorf("%w: epoch %d is not the sink's", stream.ErrFenced, l.Epoch)
	}
	if status := s.jobs[l.Job]; status != nil && (status.Epoch != l.Epoch || status.State != stream.Running) {
		return nil, fmt.Errorf("%w: job %s is %s at epoch %d, the lease has %d", stream.ErrFenced, l.Job, status.State, status.Epoch, l.Epoch)
	}
	return at, nil
}

func (k *Sink) process(ctx context.Context, b *stream.Batch) (keep func(), err error) {
	nothing := func() {}
	if len(b.Records) == 0 || k.handle == nil {
		return nothing, nil
	}
	b.Reset()
	keep, err = k.handle(ctx, b)
	if keep == nil {
		keep = nothing
	}
	return keep, err
}

func (k *Sink) CommitReplay(ctx context.Context, l stream.Lease, b *stream.Batch) error {
	keep, err := k.process(ctx, b)
	if err != nil {
		return err
	}
	if skipped := b.Skipped(); len(skipped) > 0 {
		return stream.Skip(fmt.Errorf("refused again: %s", skipped[0].Error))
	}
	s := k.store
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, err := s.fenced(l); err != nil {
		return err
	}
	row, ok := s.quarantine[l.Job][b.Records[0].Seq]
	if !ok || row.State != stream.Replay {
		return fmt.Errorf("%w: record %d is not marked for replay", stream.ErrConflict, b.Records[0].Seq)
	}
	row.State = stream.Replayed
	s.quarantine[l.Job][row.Seq] = row
	keep()
	return nil
}

func (k *Sink) Quarantined(ctx context.Context, job string, limit int, states ...stream.QuarantineState) ([]stream.Quarantined, error) {
	return k.store.Quarantined(ctx, job, limit, states...)
}

func (k *Sink) MarkQuarantined(ctx context.Context, job string, to stream.QuarantineState, seqs ...uint64) (int, error) {
	return k.store.MarkQuarantined(ctx, job, to, seqs...)
}

func (s *Store) Quarantined(ctx context.Context, job string, limit int, states ...stream.QuarantineState) ([]stream.Quarantined, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var rows []stream.Quarantined
	for _, row := range s.quarantine[job] {
		if len(states) == 0 || slices.Contains(states, row.State) {
			rows = append(rows, row)
		}
	}
	slices.SortFunc(rows, func(a, b stream.Quarantined) int { return cmp.Compare(a.Seq, b.Seq) })
	return rows[:min(len(rows), cmp.Or(limit, 1000))], nil
}

func (s *Store) MarkQuarantined(ctx context.Context, job string, to stream.QuarantineState, seqs ...uint64) (int, error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	if to != stream.Waiting && to != stream.Replay && to != stream.Dropped {
		return 0, fmt.Errorf("%w: a record cannot be marked %q", stream.ErrState, to)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for seq, row := range s.quarantine[job] {
		if (row.State == stream.Waiting || row.State == stream.Replay) && (len(seqs) == 0 || slices.Contains(seqs, seq)) {
			row.State = to
			s.quarantine[job][seq] = row
			n++
		}
	}
	return n, nil
}
