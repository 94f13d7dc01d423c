// Package flow is the vocabulary of the data plane: messages, positions, lanes and the blocks that carry them.
// It imports nothing of ours.
package flow

import (
	"crypto/sha256"
	"encoding/hex"
	"strconv"
	"strings"
)

// Message is one message on its way through a pipeline.
//
// Byte slices and strings may point into the block or frame they were decoded from. They are never written to after
// decoding, and stay valid for as long as somebody holds them.
type Message struct {
	// ID names the message permanently: where it entered the pipeline, then each vertex that made it from its parent.
	// It is the same after any number of redeliveries. Sinks may use it as an idempotency key.
	ID string
	// Pos is the position of the message in its lane: its identity between two vertices. See Block.
	Pos uint64
	// Keys are the keys that the source or a function gave.
	Keys []string
	// Value is the payload.
	Value []byte
	// EventTime is when the event happened, in Unix nanoseconds.
	EventTime int64
	// Ingested is when the message entered the pipeline, in Unix nanoseconds; latency is measured from here.
	Ingested int64
	// Headers are transport headers, encoded; see Headers.
	Headers Headers
	// Metadata is the protobuf encoding of the metadata's user and system groups, carried without being looked at.
	Metadata []byte
	// Tags are what a function said for routing. They decide which edges a message takes and are not stored.
	Tags []string
}

// Size is the number of bytes that count for byte metrics: the payload.
func (m *Message) Size() int { return len(m.Value) }

// maxID is the length above which an id is replaced by a hash, so that ids stay bounded in a cycle.
const maxID = 200

// SourceLane names one ordered input of a source vertex: the partition of the source, in one incarnation of the pipeline's store. No two triples give
// the same name. Without an incarnation it is the name that stores from before incarnations know.
func SourceLane(vertex, partition, incarnation string) string {
	if incarnation == "" {
		return vertex + "/" + partition
	}
	if strings.ContainsAny(partition, "/@%") {
		partition = strings.NewReplacer("%", "%25", "/", "%2F", "@", "%40").Replace(partition)
	}
	return vertex + "/" + partition + "@" + incarnation
}

// RootID is the id of a message at its source: its lane, and the offset there. Offsets may hold any character; '/', '%' and bytes that are
// not UTF-8 are escaped, so that two different pairs never give the same id.
func RootID(lane, offset string) string {
	if strings.ContainsAny(offset, "/%") {
		offset = strings.NewReplacer("%", "%25", "/", "%2F").Replace(offset)
	}
	return bounded(EscapeText(lane) + "/" + EscapeText(offset))
}

// ChildID is the id of the index-th result that vertex made from the message called parent.
func ChildID(parent, vertex string, index int) string {
	if index == 0 {
		return bounded(parent + "/" + vertex)
	}
	return bounded(parent + "/" + vertex + "." + strconv.Itoa(index))
}

func bounded(id string) string {
	if len(id) <= maxID {
		return id
	}
	sum := sha256.Sum256([]byte(id))
	root, _, _ := strings.Cut(id, "/")
	if len(root) > 64 {
		root = root[:64]
	}
	return root + "/%h" + hex.EncodeToString(sum[:16])
}
