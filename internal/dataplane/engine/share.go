package engine

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/levada-io/levada/internal/dataplane/buffer"
	"github.com/levada-io/levada/internal/dataplane/drain"
	"github.com/levada-io/levada/internal/dataplane/shard"
)

// Share is the part of a process in a vertex that several processes run: which of its partitions are read here comes and goes (package shard). Functions, sinks and the
// writing ends of the next buffers stay. The exported fields are set before Run and not changed from then on.
type Share struct {
	// Shards says who takes part. Read is filled in here.
	Shards shard.Config
	// ByName are the shards, as package shard knows them.
	ByName map[string]Shard
	// Open opens a shard for a start of it. The error is a *shard.FencedError if a later owner has begun; fenced is called if that is found out afterwards.
	Open   func(ctx context.Context, o shard.Ownership, s Shard, fenced func(error)) (Input, error)
	Logger *slog.Logger

	mu   sync.Mutex
	open map[Shard]Input
}

// Shard is a shard of a partition that has so many.
type Shard struct{ Partition, Shard, Of int }

// Name is how leases and logs name the shard: p0, or p0.3 where the partition has several.
func (s Shard) Name() string {
	if s.Of <= 1 {
		return fmt.Sprintf("p%d", s.Partition)
	}
	return fmt.Sprintf("p%d.%d", s.Partition, s.Shard)
}

// compare orders shards as their partitions, and then as they are.
func (s Shard) compare(o Shard) int {
	return cmp.Or(cmp.Compare(s.Partition, o.Partition), cmp.Compare(s.Shard, o.Shard))
}

// Reading is how many shards are read here now.
func (s *Share) Reading() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.open)
}

func (s *Share) run(d drain.Context, v *Vertex) error {
	cfg := s.Shards
	cfg.Read = func(d drain.Context, o shard.Ownership) error { return s.read(d, o, v) }
	err := shard.Run(d, cfg)
	if d.Work.Err() != nil {
		return nil // what is left expires
	}
	if err != nil {
		return fmt.Errorf("vertex %s: %w", v.Name, err)
	}
	return nil
}

// inputs are the shards that are read here, in order.
func (s *Share) inputs() (all []Input) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, n := range slices.SortedFunc(maps.Keys(s.open), Shard.compare) {
		all = append(all, s.open[n])
	}
	return all
}

func (s *Share) note(of Shard, in Input, epoch uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.open == nil {
		s.open = map[Shard]Input{}
	}
	s.open[of] = in
	in.Metrics.Owned(of.Shard, epoch)
}

func (s *Share) drop(of Shard) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.open[of].Metrics.Owned(of.Shard, 0)
	delete(s.open, of)
}

// closeTimeout bounds saving what was done at the end of a shard. The next owner waits for it.
const closeTimeout = 5 * time.Second

// read is one start of a shard: it opens the partition, moves messages until it is asked to stop, finishes what is in flight, and saves.
func (s *Share) read(d drain.Context, o shard.Ownership, v *Vertex) error {
	n := s.ByName[o.Shard]
	work, end := context.WithCancelCause(d.Work)
	defer end(nil)
	begun := time.Now()
	in, err := s.Open(work, o, n, end)
	if err != nil {
		return s.ended(d, work, err)
	}
	log := s.Logger.With("vertex", v.Name, "partition", in.Partition.Name(), "shard", o.Shard, "epoch", o.Epoch)
	log.Info("partition taken", "pending", in.Partition.Pending(), "took", time.Since(begun).Round(time.Millisecond))
	s.note(n, in, o.Epoch)
	upkeep, stop := context.WithCancel(work)
	var keeping sync.WaitGroup
	keeping.Go(func() {
		if err := in.Partition.Run(upkeep); err != nil {
			end(err)
		}
	})
	err = v.RunPartition(work, d.Intake, n.Partition, in.Partition.Reader)
	stopping := time.Now()
	stop()
	keeping.Wait()
	err = cmp.Or(err, s.close(work, in.Partition))
	s.drop(n)
	err = s.ended(d, work, err)
	if d.Intake.Err() != nil && d.Work.Err() == nil && err == nil {
		log.Info("partition released", "reason", context.Cause(d.Intake), "saved_in", time.Since(stopping).Round(time.Millisecond), "held", time.Since(begun).Round(time.Millisecond))
	} else {
		log.Warn("partition lost, what was in flight is processed again by its next owner", "reason", cmp.Or(err, context.Cause(work)), "held", time.Since(begun).Round(time.Millisecond))
	}
	return err
}

// close saves how far the partition is, unless this process does not own it any more.
func (s *Share) close(work context.Context, p *buffer.Partition) error {
	ctx, cancel := context.WithTimeout(work, closeTimeout)
	defer cancel()
	err := p.Close(ctx)
	if work.Err() != nil {
		return nil
	}
	return err
}

// ended is what a start of a shard ends with: the reason that is known best.
func (s *Share) ended(d drain.Context, work context.Context, err error) error {
	cause := context.Cause(work)
	switch {
	case errors.Is(err, shard.ErrFenced):
		return err
	case d.Work.Err() != nil:
		return nil // it was asked to give up
	case work.Err() != nil:
		return cause
	}
	return err
}
