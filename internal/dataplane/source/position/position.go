// Package position saves how far a source is, often enough that little comes again after a crash, and seldom enough to cost nothing.
package position

import (
	"context"
	"sync"
	"time"

	"github.com/levada-io/levada/internal/dataplane/source"
)

// Every is how often a position is saved at most. What was acknowledged since the last time comes again after a crash, under the same
// positions, so readers drop it.
const Every = 100 * time.Millisecond

// Saver saves the position of one partition. It is safe for concurrent use.
type Saver struct {
	// Store is where positions are.
	Store source.Positions
	// Partition is the name of the partition.
	Partition string
	// Every is how often at most a position is saved.
	Every time.Duration
	// Encode makes what is stored of a position.
	Encode func(position uint64) ([]byte, error)

	mu           sync.Mutex
	acked, saved uint64
	last         time.Time
}

// Ack says that all up to position is done. It saves that if the last time is long enough ago.
func (s *Saver) Ack(ctx context.Context, position uint64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.acked = max(s.acked, position)
	return s.saveDue(ctx)
}

// Idle saves what is overdue. A source that waits for messages calls it, so that the last position is not held back for want of another.
func (s *Saver) Idle(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.saveDue(ctx)
}

func (s *Saver) saveDue(ctx context.Context) error {
	if time.Since(s.last) < s.Every {
		return nil
	}
	return s.save(ctx)
}

// Flush saves now.
func (s *Saver) Flush(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.save(ctx)
}

func (s *Saver) save(ctx context.Context) error {
	if s.acked <= s.saved {
		return nil
	}
	value, err := s.Encode(s.acked)
	if err != nil {
		return err
	}
	if err := s.Store.Save(ctx, s.Partition, value); err != nil {
		return err
	}
	s.saved, s.last = s.acked, time.Now()
	return nil
}
