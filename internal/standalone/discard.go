package standalone

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/levada-io/levada/internal/dataplane/isb"
	"github.com/levada-io/levada/internal/dataplane/naming"
	"github.com/levada-io/levada/internal/dataplane/topology"
)

// refuse makes one message of all that may not be done.
func (r *runner) refuse(all []*held) error {
	var texts []string
	for _, h := range all {
		texts = append(texts, topology.Explain(h.stored, topology.Unsafe(h.changes), h.drainable()))
	}
	return &refusal{strings.Join(texts, "\n")}
}

// drainable reports whether the pipeline can be run once more as it was: its manifest is recorded, and it has buffers.
func (h *held) drainable() bool {
	return h.stored.Manifest != "" && h.stored.Kind == string(naming.Pipeline)
}

// discard drops the messages that the user named, of buffers that cannot go on otherwise. Buffers that are not concerned are left alone, so that a command line that
// is repeated by a supervisor drops nothing more.
func (r *runner) discard(ctx context.Context, unsafe []*held) error {
	if len(r.cfg.Discard) == 0 {
		return nil
	}
	if err := r.checkDiscard(unsafe); err != nil {
		return err
	}
	drop, err := r.discardable(ctx, unsafe)
	if err != nil {
		return err
	}
	if err := r.wouldSuffice(ctx, unsafe, drop); err != nil {
		return err
	}
	for _, h := range unsafe {
		for _, s := range drop[h] {
			n, err := isb.Drop(ctx, h.store, s.Stream)
			if err != nil {
				return fmt.Errorf("discard %s, partition %d: %w", s.Vertex, s.Partition, err)
			}
			if n > 0 {
				r.log.Warn("messages discarded", "owner", h.of(), "vertex", s.Vertex, "partition", s.Partition, "messages", n)
			}
		}
	}
	return nil
}

// checkDiscard refuses names of vertices whose messages are not in the way: a name that is mistyped must not pass.
func (r *runner) checkDiscard(unsafe []*held) error {
	concerned := map[string]bool{}
	for _, h := range unsafe {
		for _, c := range topology.Unsafe(h.changes) {
			if c.Class == topology.AfterDrain && c.Messages > 0 {
				concerned[c.Vertex] = true
			}
		}
	}
	for _, name := range r.cfg.Discard {
		if name != "all" && !concerned[name] {
			return &refusal{fmt.Sprintf("--discard %s: no buffer of a vertex %s stands in the way of this manifest; those that do are of: %s. Nothing was dropped",
				name, name, cmp.Or(strings.Join(slices.Sorted(maps.Keys(concerned)), ", "), "none"))}
		}
	}
	return nil
}

// discardable are the partitions that the user named and that are in the way.
func (r *runner) discardable(ctx context.Context, unsafe []*held) (map[*held][]isb.Stream, error) {
	drop := map[*held][]isb.Stream{}
	for _, h := range unsafe {
		streams, err := r.inventory(ctx, h)
		if err != nil {
			return nil, err
		}
		for _, s := range streams {
			if slices.ContainsFunc(topology.Unsafe(h.changes), func(c topology.Change) bool {
				return c.Class == topology.AfterDrain && c.Messages > 0 && (slices.Contains(r.cfg.Discard, c.Vertex) || slices.Contains(r.cfg.Discard, "all")) &&
					s.Vertex == c.Vertex && (c.Partition < 0 || s.Partition == c.Partition)
			}) {
				drop[h] = append(drop[h], s)
			}
		}
	}
	return drop, nil
}

// wouldSuffice compares as if the messages were dropped already. All or nothing: they are not dropped for a manifest that is refused without them, too.
func (r *runner) wouldSuffice(ctx context.Context, unsafe []*held, drop map[*held][]isb.Stream) error {
	var left []*held
	for _, h := range unsafe {
		for _, s := range drop[h] {
			c, err := r.inspect(ctx, h, s.Stream)
			if err != nil {
				return err
			}
			c.Messages = 0
			h.contents[s.Stream] = c
		}
		if err := r.compare(ctx, h); err != nil {
			return err
		}
		if slices.ContainsFunc(topology.Unsafe(h.changes), func(c topology.Change) bool { return c.Class == topology.Refused || !r.cfg.DrainOld }) {
			left = append(left, h)
		}
	}
	if len(left) > 0 {
		return &refusal{fmt.Sprintf("--discard %s: without these messages the manifest would be refused as well. Nothing was dropped\n%s", strings.Join(r.cfg.Discard, ","), r.refuse(left))}
	}
	return nil
}
