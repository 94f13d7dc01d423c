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
	stopped      bool
}

// From says that all up to position was done before. It is called before anything else.
func (s *Saver) From(position uint64) { s.acked, s.saved = position, position }

// Now saves also if the position is the same: for what Encode stores beside it.
func (s *Saver) Now(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopped {
		return nil
	}
	return s.store(ctx)
}

// Stop saves what is not saved. Once it has succeeded nothing else is saved, whatever is acknowledged.
func (s *Saver) Stop(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.save(ctx); err != nil {
		return err
	}
	s.stopped = true
	return nil
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
	if s.acked <= s.saved || s.stopped {
		return nil
	}
	if err := s.store(ctx); err != nil {
		return err
	}
	s.last = time.Now()
	return nil
}

func (s *Saver) store(ctx context.Context) error {
	value, err := s.Encode(s.acked)
	if err != nil {
		return err
	}
	if err := s.Store.Save(ctx, s.Partition, value); err != nil {
		return err
	}
	s.saved = s.acked
	return nil
}
