package engine

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/levada-io/levada/api/v1alpha1"
	"github.com/levada-io/levada/internal/dataplane/buffer"
	"github.com/levada-io/levada/internal/dataplane/termination"
)

// ending brings a pipeline to its end once its sources have ended. See package termination for the rule.
type ending struct {
	tracker *termination.Tracker // used by follow alone
	ended   chan string          // vertices that have ended, once each; it has room for all of them, so that nobody waits to send

	// writers is held for reading by those who write into a buffer from outside of the pipeline; closed are the vertices that they may not write to any more.
	writers sync.RWMutex
	closed  map[string]bool
}

// newEnding follows the vertices and edges of a whole pipeline. The error is about edges that fit no vertex.
func newEnding(edges []v1alpha1.Edge, vertices []*Vertex) (*ending, error) {
	e := &ending{ended: make(chan string, len(vertices)), closed: map[string]bool{}}
	var nodes []termination.Vertex
	for _, v := range vertices {
		nodes = append(nodes, termination.Vertex{Name: v.Name, Partitions: len(v.Inputs)})
	}
	var ways []termination.Edge
	for _, w := range edges {
		ways = append(ways, termination.Edge{From: w.From, To: w.To})
	}
	var err error
	e.tracker, err = termination.New(nodes, ways)
	return e, err
}

// ErrEnding refuses to write into a buffer that has been found empty for good.
var ErrEnding = errors.New("the run is ending: its sources have ended and this vertex has finished")

// vertexEnded is called when Run of a vertex has returned.
func (p *Pipeline) vertexEnded(v *Vertex) {
	if p.ending != nil && v.Ended() {
		p.ending.ended <- v.Name // there is room for all
	}
}

// Inject writes into a vertex's buffer from outside of the pipeline. It returns ErrEnding once nothing may be written there any more.
func (p *Pipeline) Inject(vertex string, write func() error) error {
	if p.ending == nil {
		return write()
	}
	return p.ending.inject(vertex, write)
}

// inject holds the lock while it writes: what closes a vertex waits for that, and looks at the buffer again.
func (e *ending) inject(vertex string, write func() error) error {
	e.writers.RLock()
	defer e.writers.RUnlock()
	if e.closed[vertex] {
		return ErrEnding
	}
	return write()
}

// endRetry is how long to wait before a store is asked again that did not answer; lostEndAfter how long it may say that it ends before what it acknowledged,
// as a replica can that has just become the leader.
const (
	endRetry     = 50 * time.Millisecond
	lostEndAfter = 10 * time.Second
)

// follow returns nil once all that the sources gave is delivered: every vertex has ended. It returns context.Cause(ctx) when ctx ends before.
func (p *Pipeline) follow(ctx context.Context, log *slog.Logger) error {
	e := p.ending
	floors := map[*buffer.Partition]uint64{}
	for {
		a := e.tracker.Next()
		switch a.Do {
		case termination.Finished:
			return nil
		case termination.Wait:
			if err := p.wait(ctx, a, floors); err != nil {
				return err
			}
		case termination.ReadFloor:
			part := p.Vertex(a.Vertex).Inputs[a.Partition].Partition
			floors[part] = floor(part, a.Cycle)
			e.tracker.Floor(floors[part])
		case termination.ReadEnd:
			part := p.Vertex(a.Vertex).Inputs[a.Partition].Partition
			end := part.KnownEnd() // the store need not be asked where even this is not reached
			if !p.behind(a.Group, floors) {
				var err error
				if end, err = readEnd(ctx, part, log); err != nil {
					return err
				}
			}
			e.tracker.End(end)
		case termination.Close:
			e.writers.Lock()
			for _, name := range a.Group {
				e.closed[name] = true
			}
			e.writers.Unlock()
			e.tracker.Closed()
		case termination.EndInput:
			for _, name := range a.Group {
				for _, in := range p.Vertex(name).Inputs {
					in.Partition.GiveUpPieces(ctx)
				}
				p.Vertex(name).EndInput()
			}
		}
	}
}

// floor is that of a partition as package termination asks for it.
func floor(part *buffer.Partition, cycle bool) uint64 {
	if cycle {
		return part.ReadFloor()
	}
	return part.ConsumedFloor()
}

// behind reports whether a partition is known to hold more than what is done: then the store need not be asked.
func (p *Pipeline) behind(group []string, floors map[*buffer.Partition]uint64) bool {
	for _, name := range group {
		for _, in := range p.Vertex(name).Inputs {
			if floors[in.Partition] < in.Partition.KnownEnd() {
				return true
			}
		}
	}
	return false
}

// wait returns when a vertex has ended or a floor of the group may have moved.
func (p *Pipeline) wait(ctx context.Context, a termination.Action, floors map[*buffer.Partition]uint64) error {
	// One partition that is behind is enough: until it has moved the group is not empty.
	var moved <-chan struct{}
	var timer <-chan time.Time
	for _, name := range a.Group {
		for _, in := range p.Vertex(name).Inputs {
			part := in.Partition
			was, read := floors[part]
			if !read {
				continue // the writers have not ended yet
			}
			if timer == nil {
				// For a partition that is at its end as far as this process knows, and for pieces of blocks, which move no floor.
				again := time.NewTimer(20 * time.Millisecond)
				defer again.Stop()
				timer = again.C
			}
			if was >= part.KnownEnd() || moved != nil {
				continue
			}
			moved = part.FloorMoved()
			if floor(part, a.Cycle) != was {
				p.ending.tracker.Moved()
				return nil
			}
		}
	}
	select {
	case name := <-p.ending.ended:
		p.ending.tracker.Ended(name)
	case <-moved:
	case <-timer:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	p.ending.tracker.Moved()
	return nil
}

// readEnd asks until the store answers.
func readEnd(ctx context.Context, part *buffer.Partition, log *slog.Logger) (uint64, error) {
	var lost time.Time
	told := false
	for begun := time.Now(); ; {
		ask, cancel := context.WithTimeout(ctx, 5*time.Second)
		end, err := part.ReadEnd(ask)
		cancel()
		switch {
		case err == nil:
			return end, nil
		case ctx.Err() != nil:
			return 0, context.Cause(ctx)
		case errors.Is(err, buffer.ErrMissing), errors.Is(err, buffer.ErrClosed):
			return 0, fmt.Errorf("buffer %s: %w", part.Name(), err)
		case !errors.Is(err, buffer.ErrGap):
			lost = time.Time{}
		case lost.IsZero():
			lost = time.Now()
		case time.Since(lost) > lostEndAfter:
			return 0, err
		}
		if !told && time.Since(begun) > waitingAfter {
			told = true
			log.Warn("waiting for the broker to say where the buffer ends", "buffer", part.Name(), "reason", err)
		}
		select {
		case <-time.After(endRetry):
		case <-ctx.Done():
			return 0, context.Cause(ctx)
		}
	}
}
