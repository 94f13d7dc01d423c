package forward

import (
	"hash/fnv"
	"slices"

	"github.com/levada-io/levada/internal/dataplane/buffer"
	"github.com/levada-io/levada/internal/flow"
)

// Edge is a way out of a vertex.
type Edge struct {
	To string // the vertex that it leads to
	// Condition decides by the tags of a result; nil lets all pass.
	Condition *Condition
	// Partitions are the partitions of the buffer of To, by number. Their readers may be in other processes. Their count must not change while messages of a lane are in
	// flight: the same message would go to another one when it is written again.
	Partitions []*buffer.Writer
	// ByKey sends all messages with the same keys to the same partition and shard, as an ordered or keyed reader needs it.
	ByKey bool
	// Discard drops what does not fit (onFull: discardLatest). Otherwise writers wait.
	Discard bool
	// Back marks an edge that leads back to this vertex or one before it. It never waits: if it did, a full cycle could not empty itself.
	Back bool
}

// Condition is conditions.tags of an edge.
type Condition struct {
	Operator Operator // anything but And and Not is Or
	Values   []string // tags; case matters
}

// Operator of a Condition.
type Operator string

// The operators: any of the values is among the tags, all are, none is.
const (
	Or  Operator = "or"
	And Operator = "and"
	Not Operator = "not"
)

// Match reports whether a message with these tags passes. No condition lets all pass.
func (c *Condition) Match(tags []string) bool {
	if c == nil {
		return true
	}
	has := func(v string) bool { return slices.Contains(tags, v) }
	switch c.Operator {
	case And:
		return !slices.ContainsFunc(c.Values, func(v string) bool { return !has(v) })
	case Not:
		return !slices.ContainsFunc(c.Values, has)
	default:
		return slices.ContainsFunc(c.Values, has)
	}
}

// target chooses a partition and a shard of it by what never changes about a message, so that it goes the same way when it is written again: the one by the rest of a number, the other by
// the rest of what remains of it.
func (edge *Edge) target(from *Origin, m *flow.Message, id string) (partition, shard int) {
	n := uint64(len(edge.Partitions))
	if n == 1 && edge.Partitions[0].Shards() == 1 {
		return 0, 0
	}
	number := edge.number(from, m, id)
	partition = int(number % n)
	return partition, int(number / n % uint64(edge.Partitions[partition].Shards()))
}

// number is what a message has that decides where it goes.
func (edge *Edge) number(from *Origin, m *flow.Message, id string) uint64 {
	switch {
	case edge.ByKey: // the same hash in every version, or keys would change their partition with an upgrade
		h := fnv.New64a()
		for _, k := range m.Keys {
			_, _ = h.Write([]byte(k))
			_, _ = h.Write([]byte{':'})
		}
		return mix(h.Sum64())
	case from.ByID:
		h := fnv.New64a()
		_, _ = h.Write([]byte(id))
		return mix(h.Sum64())
	default:
		return m.Pos / from.Stride
	}
}

// mix spreads the low bits of a hash, which FNV does not do well for short texts (the finalizer of MurmurHash3).
func mix(h uint64) uint64 {
	h ^= h >> 33
	h *= 0xff51afd7ed558ccd
	return h ^ h>>33
}
