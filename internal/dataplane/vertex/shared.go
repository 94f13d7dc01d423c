package vertex

import (
	"context"
	"fmt"
	"iter"
	"maps"
	"slices"
	"sync"

	"github.com/levada-io/levada/internal/dataplane/buffer"
	"github.com/levada-io/levada/internal/dataplane/forward"
	"github.com/levada-io/levada/internal/metrics"
)

// Where several processes share a vertex, the partitions that this one reads come and go (RunPartition), while functions, sinks and the writing ends of the next buffers
// stay as they are.

// Shareable reports whether several processes may run the vertex at once: no part of it is for one process only, as a file is that a sink writes or a source reads.
func (p *Plan) Shareable() bool {
	if p.Source != nil && !slices.ContainsFunc(sourceDrivers, func(d sourceDriver) bool { return d.shared != nil && d.set(p.Source) && d.shared(p.Source) }) {
		return false
	}
	if p.Sink == nil {
		return true
	}
	for _, d := range sinkDrivers {
		if d.alone && (d.set(&p.Sink.AbstractSink) || p.Sink.Fallback != nil && d.set(p.Sink.Fallback) || p.Sink.OnSuccess != nil && d.set(p.Sink.OnSuccess)) {
			return false
		}
	}
	return true
}

// loopOf makes the loop of a partition.
type loopOf func(index int, partition *buffer.Reader, m *metrics.Vertex) *forward.Loop

// sharedLoops are the loops of a vertex whose partitions come and go.
type sharedLoops struct {
	make       loopOf
	newMetrics func(*buffer.Reader) *metrics.Vertex
	to         []*buffer.Writer // the buffers that the loops write to

	mu sync.Mutex
	// metrics are those of each partition that was read, open the partitions that are being read.
	metrics map[int]*metrics.Vertex
	open    map[int]*buffer.Reader
	// duplicates are those that were found in partitions which are not open any more.
	duplicates int64
}

// begin opens the loop of a partition.
func (s *sharedLoops) begin(index int, partition *buffer.Reader, m func() *metrics.Vertex) *forward.Loop {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.metrics[index] == nil {
		s.metrics[index] = m()
	}
	s.open[index] = partition
	return s.make(index, partition, s.metrics[index])
}

func (s *sharedLoops) end(index int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.duplicates += s.open[index].Duplicates()
	s.metrics[index].Pending(s.open[index].Name(), 0) // it counts where it is read now
	delete(s.open, index)
}

// all are the partitions that are being read, with their metrics.
func (s *sharedLoops) all() iter.Seq2[*buffer.Reader, *metrics.Vertex] {
	s.mu.Lock()
	defer s.mu.Unlock()
	open, of := maps.Clone(s.open), maps.Clone(s.metrics)
	return func(yield func(*buffer.Reader, *metrics.Vertex) bool) {
		for _, i := range slices.Sorted(maps.Keys(open)) {
			if !yield(open[i], of[i]) {
				return
			}
		}
	}
}

func (s *sharedLoops) count(to *Stats) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, m := range s.metrics {
		to.Counts.Add(m.Counts())
	}
	to.Duplicates += s.duplicates
	for _, p := range s.open {
		to.Pending += int64(p.Pending())
		to.Duplicates += p.Duplicates()
	}
}

// RunPartition moves the messages of one partition until reading ends, and then finishes what is in flight while ctx lives. It is for a vertex that was built with
// Env.Shared. When it returns, nothing of the partition is in flight.
func (v *Vertex) RunPartition(ctx, reading context.Context, index int, partition *buffer.Reader) error {
	loop := v.shared.begin(index, partition, func() *metrics.Vertex { return v.shared.newMetrics(partition) })
	defer v.shared.end(index)
	input, ok := loop.Input.(*forward.BufferInput)
	if !ok {
		return fmt.Errorf("vertex %s: partition %d is not read from a buffer", v.Name, index)
	}
	ahead, stop := context.WithCancel(reading)
	defer stop()
	var reader sync.WaitGroup
	reader.Go(func() { input.Run(ahead) })
	err := loop.Run(ctx, reading)
	stop()
	reader.Wait()
	// Another process may go on with the lane, and it may come back.
	for _, w := range v.shared.to {
		w.Forget(input.Lane())
	}
	if err != nil {
		return fmt.Errorf("vertex %s: %w", v.Name, err)
	}
	return nil
}
