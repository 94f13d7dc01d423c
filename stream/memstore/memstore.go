// Package memstore keeps jobs and checkpoints in memory. It is for tests, of this package's users too: it keeps every promise of a store
// but durability, and its clock is that of package time, so it works in a testing/synctest bubble.
package memstore

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/levada-io/levada/stream"
	"github.com/levada-io/levada/stream/internal/jobrule"
)

// Store is a stream.Store in memory; Sink makes sinks that keep their checkpoints in it.
type Store struct {
	// mu is the transaction: what is read and changed while it is held is one step for everybody else. Handlers run without it.
	mu   sync.Mutex
	jobs map[string]*stream.Status // by id
	// order has the ids of jobs, the oldest first. Invariant: the same ids as in jobs.
	order []string
	ttl   map[string]time.Duration // of each job's last claim or renewal; a commit makes the lease last for as long again
	// offsets has what the sink knows, by job. A job is added by its first Fence.
	offsets    map[string]*offset
	quarantine map[string]map[uint64]stream.Quarantined // by job and record
}

// offset is how far a job has come in the sink.
type offset struct {
	// epoch is that of the last Fence. It never shrinks, and only commits of that epoch are taken: it is the fence.
	epoch      uint64
	checkpoint stream.Checkpoint
}

// New returns an empty store.
func New() *Store {
	return &Store{jobs: map[string]*stream.Status{}, ttl: map[string]time.Duration{}, offsets: map[string]*offset{}, quarantine: map[string]map[uint64]stream.Quarantined{}}
}

// Close does nothing: a closed store can still be used, as a database could be opened again.
func (s *Store) Close() error { return nil }

func (s *Store) Submit(ctx context.Context, job stream.Job) (stream.Status, error) {
	if err := ctx.Err(); err != nil {
		return stream.Status{}, err
	}
	job, err := jobrule.Job(job)
	if err != nil {
		return stream.Status{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	existing := s.jobs[job.ID]
	if existing == nil && job.DedupeKey != "" {
		existing = s.keyed(job.Stream, job.DedupeKey)
	}
	if existing != nil {
		if err := jobrule.Same(job, existing.Job); err != nil {
			return stream.Status{}, fmt.Errorf("submit: %w", err)
		}
		status := *existing
		status.Existed = true
		return status, nil
	}
	now := time.Now()
	if job.NotBefore.IsZero() {
		job.NotBefore = now
	}
	job.Query = bytes.Clone(job.Query)
	status := &stream.Status{Job: job, State: stream.Ready, CreatedAt: now, UpdatedAt: now}
	s.jobs[job.ID] = status
	s.order = append(s.order, job.ID)
	return *status, nil
}

// keyed returns the job that has a key, or nil. s.mu is held.
func (s *Store) keyed(name, key string) *stream.Status {
	for _, id := range s.order {
		if status := s.jobs[id]; status.Stream == name && status.DedupeKey == key && status.State != stream.Cancelled {
			return status
		}
	}
	return nil
}

func (s *Store) Claim(ctx context.Context, c stream.Claim) ([]stream.Status, error) {
	if err := cmp.Or(ctx.Err(), jobrule.Claim(c)); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	due := s.due(c, now)
	var claimed []stream.Status
	for _, status := range due[:min(max(c.Max, 0), len(due))] {
		died := status.State == stream.Running && (status.Owner.Incarnation == "" || status.Owner.Incarnation != c.Owner.Incarnation)
		status.State, status.Owner = stream.Running, c.Owner
		status.Epoch++
		status.Attempts++
		status.LeaseUntil, status.ClaimedAt, status.UpdatedAt = now.Add(c.TTL), now, now
		s.ttl[status.ID] = c.TTL
		if status.StartedAt.IsZero() {
			status.StartedAt = now
		}
		given := *status
		given.Reclaimed = died
		claimed = append(claimed, given)
	}
	return claimed, nil
}

// due returns what a claim may take, the most urgent first. s.mu is held.
func (s *Store) due(c stream.Claim, now time.Time) (due []*stream.Status) {
	for _, id := range s.order {
		status := s.jobs[id]
		if c.Streams != nil && !slices.Contains(c.Streams, status.Stream) {
			continue
		}
		if status.State == stream.Ready && !status.NotBefore.After(now) || status.State == stream.Running && !status.LeaseUntil.After(now) {
			due = append(due, status)
		}
	}
	slices.SortStableFunc(due, func(a, b *stream.Status) int {
		return cmp.Or(cmp.Compare(b.Priority, a.Priority), dueSince(a).Compare(dueSince(b)))
	})
	return due
}

func dueSince(s *stream.Status) time.Time {
	if s.State == stream.Running {
		return s.LeaseUntil
	}
	return s.NotBefore
}

// owned returns the job that the lease is for. s.mu is held.
func (s *Store) owned(l stream.Lease) (*stream.Status, error) {
	status := s.jobs[l.Job]
	if status == nil {
		return nil, jobrule.Fenced(l, "there is no such job")
	}
	if status.Epoch != l.Epoch || status.State != stream.Running {
		return nil, jobrule.Fenced(l, "the job is %s in epoch %d", status.State, status.Epoch)
	}
	return status, nil
}

func (s *Store) Renew(ctx context.Context, l stream.Lease, p stream.Progress, ttl time.Duration) error {
	if err := jobrule.TTL("renew", ttl); err != nil {
		return err
	}
	return s.change(ctx, l, func(status *stream.Status, now time.Time) {
		status.LeaseUntil, status.Progress = now.Add(ttl), p
		s.ttl[status.ID] = ttl
	})
}

func (s *Store) SaveState(ctx context.Context, l stream.Lease, crash stream.CrashState, retry stream.RetryState) error {
	return s.change(ctx, l, func(status *stream.Status, _ time.Time) {
		status.CrashState, status.RetryState = crash, retry
		if retry == (stream.RetryState{}) {
			status.Reason, status.LastError = "", ""
		}
	})
}

func (s *Store) Release(ctx context.Context, l stream.Lease, r stream.Release) error {
	if err := jobrule.Release(l, r); err != nil {
		return err
	}
	s.mu.Lock()
	if status := s.jobs[l.Job]; status != nil && status.Epoch == l.Epoch && status.State == r.State && r.State.Final() {
		s.mu.Unlock()
		return nil
	}
	s.mu.Unlock()
	return s.change(ctx, l, func(status *stream.Status, now time.Time) {
		status.State, status.RetryState, status.Progress = r.State, r.RetryState, r.Progress
		status.Reason, status.LastError, status.CrashState = r.Reason, r.LastError, r.CrashState
		status.LeaseUntil = time.Time{}
		if r.State == stream.Ready {
			status.NotBefore = now.Add(r.After)
		} else {
			status.FinishedAt = now
		}
	})
}

func (s *Store) change(ctx context.Context, l stream.Lease, do func(*stream.Status, time.Time)) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	status, err := s.owned(l)
	if err != nil {
		return err
	}
	now := time.Now()
	do(status, now)
	status.UpdatedAt = now
	return nil
}

func (s *Store) Expire(ctx context.Context, dead stream.ExpireFilter) (int, error) {
	if err := cmp.Or(ctx.Err(), jobrule.CheckExpire(dead)); err != nil {
		return 0, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	now, n := time.Now(), 0
	for _, status := range s.jobs {
		o := status.Owner
		if status.State != stream.Running || !status.LeaseUntil.After(now) ||
			dead.PodUID != "" && o.PodUID != dead.PodUID || dead.Incarnation != "" && o.Incarnation != dead.Incarnation ||
			dead.Container != "" && o.Container != "" && o.Container != dead.Container ||
			dead.ExceptIncarnation != "" && o.Incarnation == dead.ExceptIncarnation ||
			!dead.ClaimedBefore.IsZero() && !status.ClaimedAt.Before(dead.ClaimedBefore) {
			continue
		}
		status.LeaseUntil, status.UpdatedAt = now, now
		n++
	}
	return n, nil
}

func (s *Store) Get(ctx context.Context, id string) (stream.Status, error) {
	if err := ctx.Err(); err != nil {
		return stream.Status{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if status := s.jobs[id]; status != nil {
		return *status, nil
	}
	return stream.Status{}, fmt.Errorf("%w: %s", stream.ErrNotFound, id)
}

func (s *Store) List(ctx context.Context, f stream.Filter) ([]stream.Status, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var list []stream.Status
	for _, id := range slices.Backward(s.order) {
		status := s.jobs[id]
		if f.States != nil && !slices.Contains(f.States, status.State) || f.Streams != nil && !slices.Contains(f.Streams, status.Stream) {
			continue
		}
		if list = append(list, *status); len(list) == cmp.Or(f.Limit, 1000) {
			break
		}
	}
	return list, nil
}

func (s *Store) Cancel(ctx context.Context, id string) (stream.Status, error) {
	return s.steer(ctx, id, func(status *stream.Status, now time.Time) bool {
		if status.State.Final() {
			return false
		}
		status.State, status.FinishedAt = stream.Cancelled, now
		status.Epoch++
		return true
	})
}

func (s *Store) Pause(ctx context.Context, id string) (stream.Status, error) {
	return s.steer(ctx, id, func(status *stream.Status, _ time.Time) bool {
		if status.State.Final() || status.State == stream.Paused {
			return false
		}
		status.State = stream.Paused
		status.Epoch++
		return true
	})
}

func (s *Store) Resume(ctx context.Context, id string) (stream.Status, error) {
	return s.steer(ctx, id, func(status *stream.Status, _ time.Time) bool {
		if status.State != stream.Paused {
			return false
		}
		status.State = stream.Ready
		return true
	})
}

func (s *Store) Retry(ctx context.Context, id string) (stream.Status, error) {
	return s.steer(ctx, id, func(status *stream.Status, _ time.Time) bool {
		if !status.State.Final() {
			return false
		}
		status.State, status.FinishedAt = stream.Ready, time.Time{}
		status.Epoch++
		status.RetryState, status.CrashState, status.Reason, status.LastError = stream.RetryState{}, stream.CrashState{}, "", ""
		return true
	})
}

func (s *Store) steer(ctx context.Context, id string, do func(*stream.Status, time.Time) bool) (stream.Status, error) {
	if err := ctx.Err(); err != nil {
		return stream.Status{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	status := s.jobs[id]
	if status == nil {
		return stream.Status{}, fmt.Errorf("%w: %s", stream.ErrNotFound, id)
	}
	now := time.Now()
	if status.State == stream.Cancelled && status.DedupeKey != "" && s.keyed(status.Stream, status.DedupeKey) != nil {
		return *status, jobrule.KeyTaken(id)
	}
	if !do(status, now) {
		return *status, fmt.Errorf("%w: job %s is %s", stream.ErrState, id, status.State)
	}
	status.LeaseUntil, status.UpdatedAt = time.Time{}, now
	return *status, nil
}

func (s *Store) Owners(ctx context.Context) ([]stream.Owner, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var owners []stream.Owner
	for _, id := range s.order {
		if status := s.jobs[id]; status.State == stream.Running && !slices.Contains(owners, status.Owner) {
			owners = append(owners, status.Owner)
		}
	}
	return owners, nil
}

// Orphans returns how many jobs will never be due though they are not final and not paused. There should be none.
func (s *Store) Orphans(context.Context) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for _, status := range s.jobs {
		if status.State == stream.Running && status.LeaseUntil.IsZero() || status.State == stream.Ready && status.NotBefore.IsZero() {
			n++
		}
	}
	return n, nil
}
