package memstore

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"slices"
	"time"

	"github.com/levada-io/levada/stream"
	"github.com/levada-io/levada/stream/internal/jobrule"
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
		return stream.Checkpoint{}, jobrule.Fenced(l, "epoch %d was fenced already", at.epoch)
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
	if err == nil {
		err = jobrule.Commit(c.Lease, c.Prev, next)
	}
	if err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	s := k.store
	s.mu.Lock()
	defer s.mu.Unlock()
	at, owned, err := s.fenced(c.Lease, c.Batch)
	if err != nil {
		return err
	}
	if !equal(at.checkpoint, c.Prev) {
		return jobrule.Conflict(c.Lease, c.Prev.Seq, at.checkpoint.Seq)
	}
	next.Token = bytes.Clone(next.Token)
	at.checkpoint = next
	s.committed(c, next, owned)
	s.quarantineRows(rows)
	keep()
	return nil
}

func equal(a, b stream.Checkpoint) bool {
	return a.Seq == b.Seq && bytes.Equal(a.Token, b.Token) && a.Digest == b.Digest && a.Bytes == b.Bytes && a.Bad == b.Bad && a.Done == b.Done
}

// committed moves the job's progress, and makes the lease last from now on if it is still the committer's. s.mu is held.
func (s *Store) committed(c *stream.Commit, next stream.Checkpoint, owned bool) {
	status, now := s.jobs[c.Lease.Job], time.Now()
	if owned {
		if until := now.Add(s.ttl[status.ID]); until.After(status.LeaseUntil) {
			status.LeaseUntil = until
		}
		c.LeaseRenewed(now)
	} else {
		c.LeaseLost()
	}
	status.Progress.Records, status.Progress.Bytes, status.Progress.Bad, status.UpdatedAt = next.Seq, next.Bytes, next.Bad, now
}

// quarantineRows adds rows. s.mu is held.
func (s *Store) quarantineRows(rows []stream.Quarantined) {
	for _, row := range rows {
		if s.quarantine[row.Job] == nil {
			s.quarantine[row.Job] = map[uint64]stream.Quarantined{}
		}
		row.State, row.FirstSeen = stream.Waiting, time.Now()
		s.quarantine[row.Job][row.Seq] = row
	}
}

// fenced returns the offset of a job that this lease may change. owned is false if the lease is lost, and only effects that have happened are
// accounted for. s.mu is held.
func (s *Store) fenced(l stream.Lease, b *stream.Batch) (at *offset, owned bool, err error) {
	at = s.offsets[l.Job]
	if at == nil || at.epoch != l.Epoch {
		return nil, false, jobrule.Fenced(l, "it is not the epoch that was fenced last")
	}
	_, err = s.owned(l)
	if err != nil && b.EffectsOutside() && s.jobs[l.Job] != nil {
		return at, false, nil
	}
	return at, true, err
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

func (k *Sink) CommitReplay(ctx context.Context, l stream.Lease, b *stream.Batch) (err error) {
	record, err := jobrule.Replay(l, b)
	if err != nil {
		return err
	}
	returned := false
	defer func() {
		if !returned {
			p := recover()
			if p == nil {
				return // runtime.Goexit
			}
			_ = k.refused(l, record.Seq, stream.NewAttempt(stream.ClassPanic, &stream.PanicError{Value: p, Stack: debug.Stack()}))
			panic(p)
		}
	}()
	keep, err := k.process(ctx, b)
	if skipped := b.Skipped(); err == nil && len(skipped) > 0 {
		err = stream.Skip(errors.New(skipped[0].Error))
	}
	returned = true
	if stream.VerdictOf(err) == stream.VerdictSkip {
		_ = k.refused(l, record.Seq, stream.NewAttempt(stream.ClassRefused, err))
	}
	if err := cmp.Or(err, ctx.Err()); err != nil {
		return err
	}
	s := k.store
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, _, err := s.fenced(l, b); err != nil {
		return err
	}
	row, ok := s.quarantine[l.Job][record.Seq]
	if !ok || row.State != stream.Replay {
		return fmt.Errorf("%w: record %d is not marked for replay", stream.ErrConflict, record.Seq)
	}
	row.State = stream.Replayed
	row.Attempts++
	s.quarantine[l.Job][row.Seq] = row
	keep()
	return nil
}

// refused makes a replayed record wait again.
func (k *Sink) refused(l stream.Lease, seq uint64, a stream.Attempt) error {
	s := k.store
	s.mu.Lock()
	defer s.mu.Unlock()
	row, ok := s.quarantine[l.Job][seq]
	if _, _, err := s.fenced(l, &stream.Batch{}); err != nil {
		return err
	}
	if ok && row.State == stream.Replay {
		s.quarantine[l.Job][seq] = row.Refused(a)
	}
	return nil
}

// RefuseReplay implements stream.ReplaySink.
func (k *Sink) RefuseReplay(ctx context.Context, l stream.Lease, seq uint64, a stream.Attempt) error {
	return cmp.Or(ctx.Err(), k.refused(l, seq, a))
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
	if err := cmp.Or(ctx.Err(), jobrule.QuarantineMark(to)); err != nil {
		return 0, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for seq, row := range s.quarantine[job] {
		if (row.State == stream.Waiting || row.State == stream.Replay) && row.State != to && (len(seqs) == 0 || slices.Contains(seqs, seq)) {
			row.State = to
			s.quarantine[job][seq] = row
			n++
		}
	}
	return n, nil
}
