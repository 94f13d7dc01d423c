package vertex

import (
	"context"
	"fmt"
	"slices"
	"sync"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/levada-io/levada/api/v1alpha1"
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

// sharedBy is for how many processes a vertex has shards if the manifest does not say how many there will be.
const sharedBy = 8

// defaultShards is the power of two with which the shards of all partitions are enough for scale.max processes. Order holds within a partition, so that one whose order counts has one shard.
// scale.max is known to be set only if it is not its default.
func defaultShards(spec *v1alpha1.AbstractVertex, ordered bool) int {
	if ordered {
		return 1
	}
	processes, partitions := sharedBy, spec.PartitionCount()
	if most := spec.Scale.Max; most != nil && *most != v1alpha1.DefaultScaleMax {
		processes = int(*most)
	}
	n := 1
	for n*partitions < processes && 2*n*partitions <= v1alpha1.MaxShards {
		n *= 2
	}
	return n
}

// Shards is how many shards each partition of the vertex gets that is created for processes which share it.
func (p *Plan) Shards(meta metav1.Object) int {
	if !p.Shareable() {
		return 1
	}
	if n, ok := v1alpha1.Shards(meta, p.Name); ok {
		return n
	}
	return p.Input.Shards
}

// loopOf makes the loop of a partition.
type loopOf func(index int, partition *buffer.Reader, m *metrics.Vertex) *forward.Loop

// sharedLoops are the loops of a vertex whose partitions come and go.
type sharedLoops struct {
	make       loopOf
	newMetrics func(*buffer.Reader) *metrics.Vertex
	to         []*buffer.Writer // the buffers that the loops write to

	mu sync.Mutex
	// metrics are those of each partition that was read, open the shards that are being read.
	metrics map[int]*metrics.Vertex
	open    map[shardOf]*buffer.Reader
	// duplicates are those that were found in partitions which are not open any more.
	duplicates int64
}

// shardOf is a shard of a partition; 0 for one that has no shards.
type shardOf struct{ partition, shard int }

func shardIn(index int, partition *buffer.Reader) shardOf {
	n, _ := partition.Shard()
	return shardOf{index, n}
}

// begin opens the loop of a partition.
func (s *sharedLoops) begin(index int, partition *buffer.Reader, m func() *metrics.Vertex) *forward.Loop {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.metrics[index] == nil {
		s.metrics[index] = m()
	}
	s.open[shardIn(index, partition)] = partition
	return s.make(index, partition, s.metrics[index])
}

func (s *sharedLoops) end(index int, partition *buffer.Reader) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.duplicates += partition.Duplicates()
	delete(s.open, shardIn(index, partition))
	s.report(index, partition.Name()) // it counts where it is read now
}

// report sets what is pending of a partition in the shards that are read here. mu is held.
func (s *sharedLoops) report(index int, name string) {
	pending := int64(0)
	for of, r := range s.open {
		if of.partition == index {
			pending += int64(r.Pending())
		}
	}
	s.metrics[index].Pending(name, pending)
}

// reportAll does so for all partitions of which something is read here.
func (s *sharedLoops) reportAll() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for of, r := range s.open {
		s.report(of.partition, r.Name())
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

// RunPartition moves the messages of one partition, or of a shard of it, until reading ends, and then finishes what is in flight while ctx lives. It is for a vertex that was built with
// Env.Shared. When it returns, nothing of the partition is in flight.
func (v *Vertex) RunPartition(ctx, reading context.Context, index int, partition *buffer.Reader) error {
	loop := v.shared.begin(index, partition, func() *metrics.Vertex { return v.shared.newMetrics(partition) })
	defer v.shared.end(index, partition)
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
