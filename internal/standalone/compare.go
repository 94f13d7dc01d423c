package standalone

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"time"

	"github.com/levada-io/levada/internal/dataplane/buffer"
	"github.com/levada-io/levada/internal/dataplane/isb"
	"github.com/levada-io/levada/internal/dataplane/topology"
	"github.com/levada-io/levada/internal/dataplane/vertex"
)

// compareAll compares what runs with what is recorded, for all pipelines. An error names the pipeline.
func (r *runner) compareAll(ctx context.Context) error {
	for _, h := range r.held {
		if err := r.load(ctx, h); err != nil {
			return fmt.Errorf("%s: %w", h.of(), err)
		}
		if err := r.compare(ctx, h); err != nil {
			return fmt.Errorf("%s: %w", h.of(), err)
		}
	}
	return nil
}

// load reads the record, the note, and which buffers and sources the state knows.
func (r *runner) load(ctx context.Context, h *held) error {
	h.stored, h.revision, h.settled, h.contents, h.read = nil, 0, isb.Settled{}, map[string]buffer.Contents{}, map[string]bool{}
	record, revision, err := r.getKey(ctx, h.store.State(), isb.KeyTopology)
	if err != nil {
		return err
	}
	if record != nil {
		if h.stored, err = topology.Decode(record); err != nil {
			return err
		}
		h.revision = revision
	}
	note, _, err := r.getKey(ctx, h.store.State(), isb.KeySettled)
	if err != nil {
		return err
	}
	if note != nil {
		if err := json.Unmarshal(note, &h.settled); err != nil {
			h.settled = isb.Settled{}
		}
	}
	streams, err := r.inventory(ctx, h)
	if err != nil {
		return err
	}
	if h.stored == nil && len(streams) > 0 {
		byVertex := map[string][]string{}
		for _, s := range streams {
			for len(byVertex[s.Vertex]) <= s.Partition {
				byVertex[s.Vertex] = append(byVertex[s.Vertex], "")
			}
			byVertex[s.Vertex][s.Partition] = s.Stream
		}
		h.stored = topology.FromStreams(string(h.store.Owner().Kind), h.store.Owner().Namespace, h.store.Owner().Name, byVertex)
	}
	return nil
}

// getKey reads a value of the state, for as long as the service takes to answer. It is nil if there is none.
func (r *runner) getKey(ctx context.Context, state isb.State, key string) ([]byte, uint64, error) {
	type entry struct {
		value    []byte
		revision uint64
	}
	e, err := patient(ctx, r, "key "+key+" of "+state.Name(), func(ctx context.Context) (e entry, err error) {
		e.value, e.revision, err = state.Get(ctx, key)
		return e, err
	})
	return e.value, e.revision, err
}

// inventory lists the partitions that the state of a pipeline knows, and its sources.
func (r *runner) inventory(ctx context.Context, h *held) ([]isb.Stream, error) {
	keys, err := patient(ctx, r, "keys of "+h.store.State().Name(), h.store.State().Keys)
	if err != nil {
		return nil, err
	}
	for _, key := range keys {
		if vertex, ok := isb.SourceOf(key); ok {
			h.read[vertex] = true
		}
	}
	all, err := patient(ctx, r, "streams of "+h.of(), h.store.Streams)
	if err != nil {
		return nil, err
	}
	all = slices.DeleteFunc(all, func(s isb.Stream) bool { return s.Unknown })
	slices.SortFunc(all, func(a, b isb.Stream) int {
		return cmp.Or(cmp.Compare(a.Vertex, b.Vertex), cmp.Compare(a.Partition, b.Partition))
	})
	return all, nil
}

// inspect counts what a stream holds.
func (r *runner) inspect(ctx context.Context, h *held, name string) (buffer.Contents, error) {
	if c, ok := h.contents[name]; ok || name == "" {
		return c, nil
	}
	inspect, cancel := context.WithTimeout(ctx, 10*time.Minute) // it reads what is pending
	defer cancel()
	c, err := isb.Retry(inspect, r.service, r.log, "buffer "+name, func(context.Context) (buffer.Contents, error) { // each of its requests has a deadline
		c, err := isb.Inspect(inspect, h.store, name)
		if errors.Is(err, buffer.ErrMissing) {
			err = nil // to open it says more
		}
		return c, err
	})
	if err != nil {
		return c, fmt.Errorf("buffer %s: %w", name, err)
	}
	h.contents[name] = c
	return c, nil
}

// compare fills in h.changes: nothing if nothing is recorded. It may be called again after h.contents has changed.
func (r *runner) compare(ctx context.Context, h *held) (err error) {
	h.changes = nil
	if h.stored == nil {
		return nil
	}
	if err := r.compareTopology(ctx, h); err != nil {
		return err
	}
	if err := r.compareFiles(ctx, h); err != nil {
		return err
	}
	return r.compareRest(ctx, h)
}

// compareTopology adds what changed of vertices and edges.
func (r *runner) compareTopology(ctx context.Context, h *held) error {
	failed := error(nil) // of a buffer that cannot be inspected; the rest of the comparison means nothing then
	written := len(h.read) > 0
	contents := func(v string, p int) buffer.Contents {
		sv := h.stored.Vertex(v)
		if sv == nil || p >= len(sv.Streams) || failed != nil {
			return buffer.Contents{}
		}
		c, err := r.inspect(ctx, h, sv.Streams[p])
		failed = cmp.Or(failed, err)
		return c
	}
	h.changes = topology.Compare(h.stored, h.wanted, topology.State{
		Pending: func(v string, p int) int { return contents(v, p).Messages },
		Settled: func(v string) bool {
			if h.settled.Settled {
				return !slices.Contains(h.settled.Except, v)
			}
			// A store into which nothing was ever written has nothing that could be written again.
			for i := range h.stored.Vertices {
				for p := range h.stored.Vertices[i].Partitions {
					written = written || contents(h.stored.Vertices[i].Name, p).Written
				}
			}
			return !written
		},
		HasRead: func(v string) bool {
			sv := h.stored.Vertex(v)
			return h.read[v] || sv != nil && sv.Source != nil && sv.Source.ByID
		},
	})
	return failed
}

// compareFiles adds sources whose file has another name and is the same: where it was read to is remembered under the name.
func (r *runner) compareFiles(ctx context.Context, h *held) error {
	for i := range h.wanted.Vertices {
		now := &h.wanted.Vertices[i]
		was := h.stored.Vertex(now.Name)
		if was == nil || was.Source == nil || now.Source == nil || was.Source.Type != "file" || now.Source.Type != "file" || was.Source.Of == now.Source.Of ||
			filepath.Base(was.Source.Of) == filepath.Base(now.Source.Of) {
			continue // under the same name it is read on where it was
		}
		moved, err := patient(ctx, r, "position of "+now.Name, func(ctx context.Context) (bool, error) {
			return vertex.FileMoved(ctx, isb.PositionsOf(r.service, h.store.State(), now.Name), was.Source.Of, now.Source.Of)
		})
		if err != nil {
			return err
		}
		if moved {
			h.changes = append(h.changes, topology.Change{
				Class: topology.Refused, Hazard: topology.Twice, Vertex: now.Name, Partition: -1,
				What:   fmt.Sprintf("source %s reads %s, which is %s under a new name", now.Name, now.Source, was.Source),
				Reason: "How far it was read is remembered under the old name. Under the new one it would be read again from its start, and all of it counted twice",
				Way:    "give the file its old name again, or a link of that name, and the path with it",
			})
		}
	}
	return nil
}

// compareRest adds buffers that neither the record nor the manifest mentions: they can hold messages, too.
func (r *runner) compareRest(ctx context.Context, h *held) error {
	streams, err := r.inventory(ctx, h)
	if err != nil {
		return err
	}
	for _, s := range streams {
		was, now := h.stored.Vertex(s.Vertex), h.wanted.Vertex(s.Vertex)
		if was != nil && s.Partition < was.Partitions || now != nil && s.Partition < now.Partitions {
			continue
		}
		c, err := r.inspect(ctx, h, s.Stream)
		if err != nil {
			return err
		}
		if c.Messages > 0 {
			h.changes = append(h.changes, topology.Change{
				Class: topology.AfterDrain, Hazard: topology.Lost, Vertex: s.Vertex, Partition: s.Partition, Messages: c.Messages,
				What: fmt.Sprintf("vertex %s has no such partition in the manifest, nor had it when the topology was recorded", s.Vertex), Reason: "Nothing would process its messages",
			})
		}
	}
	return nil
}
