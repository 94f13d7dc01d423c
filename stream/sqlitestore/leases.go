package sqlitestore

import (
	"context"
	"database/sql"
	"maps"
	"time"

	"github.com/levada-io/levada/stream"
)

// SQLite has one writer, and a handler has the right to write for as long as it takes; on a slow disk short transactions do, too. A lease cannot be renewed meanwhile, and need not be:
// no other process can write, so none can claim. Such a renewal is kept in memory, and is written by the next claim of this process before it looks
// which leases have run out. A process that writes the file beside the only worker (see [Store.LockWorker]) does not claim.

// renewWait is how long a renewal waits for the right to write.
const renewWait = time.Second

// withinHalf leaves half of the time that ctx has to who must know that the other half is over.
func withinHalf(ctx context.Context, most time.Duration) (context.Context, context.CancelFunc) {
	if end, ok := ctx.Deadline(); ok {
		most = min(most, time.Until(end)/2)
	}
	return context.WithTimeout(ctx, most)
}

// deferRenewal keeps a renewal for the next claim.
func (s *Store) deferRenewal(l stream.Lease, until time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.renewals == nil {
		s.renewals = map[stream.Lease]time.Time{}
	}
	s.renewals[l] = until
}

// renewDeferred writes the renewals that were kept, and returns them.
func (s *Store) renewDeferred(ctx context.Context, tx *sql.Tx) (map[stream.Lease]time.Time, error) {
	s.mu.Lock()
	renewals := maps.Clone(s.renewals)
	s.mu.Unlock()
	for l, until := range renewals {
		// Of a lease that has ended meanwhile there is nothing to renew.
		if _, err := tx.ExecContext(ctx, `update levada_job set lease_until = max(lease_until, ?) where id = ? and epoch = ? and state = 'running'`,
			until.UnixMicro(), l.Job, int64(l.Epoch)); err != nil {
			return nil, err
		}
	}
	return renewals, nil
}

// forgetDeferred ends renewDeferred, once its transaction is committed.
func (s *Store) forgetDeferred(written map[stream.Lease]time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for l, until := range written {
		if s.renewals[l].Equal(until) {
			delete(s.renewals, l)
		}
	}
}

// hold has renewals know that a transaction of ours has the right to write, until done is called.
func (s *Store) hold() (done func()) {
	s.held.Add(1)
	return func() { s.held.Add(-1) }
}

// waits has commits let one of the store's own transactions go first, until it has begun. Those take milliseconds, and have deadlines; a commit
// takes as long as its handler, and would otherwise get the right to write before them as often as not.
func (s *Store) waits() (begun func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.short++; s.calm == nil {
		s.calm = make(chan struct{})
	}
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.short--; s.short == 0 {
			close(s.calm)
			s.calm = nil
		}
	}
}

// letShortGo waits until no transaction of the store's own waits for the right to write. It ends in any case: when another process has that
// right, there is nothing to go first for.
func (s *Store) letShortGo(ctx context.Context) {
	s.mu.Lock()
	calm := s.calm
	s.mu.Unlock()
	if calm == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, renewWait)
	defer cancel()
	select {
	case <-calm:
	case <-ctx.Done():
	}
}
