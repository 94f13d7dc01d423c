package isb

import (
	"context"
	"errors"
	"strings"

	"github.com/levada-io/levada/internal/dataplane/ownership"
	"github.com/levada-io/levada/internal/dataplane/ratelimit"
)

// State keeps the small values of one pipeline, durably. All methods may be called concurrently, and from any number of processes. They have no deadlines of their own.
type State interface {
	// Name is how logs and errors name it.
	Name() string
	// MaxValue is the size of the largest value, in bytes.
	MaxValue() int
	// Get returns a value with its revision; nil and 0 if there is none. It may be answered by a replica that lags behind: CompareAndSet never is.
	Get(ctx context.Context, key string) (value []byte, revision uint64, err error)
	// Put sets a value, whatever is there.
	Put(ctx context.Context, key string, value []byte) error
	// CompareAndSet sets a value if its revision is the given one, 0 for a key without a value, and returns the new revision, which the key never had before. The
	// error is ErrConflict if the revision is another one. After any other error it may have been set or not.
	CompareAndSet(ctx context.Context, key string, value []byte, revision uint64) (uint64, error)
	// Keys returns all keys that have a value, in no order.
	Keys(ctx context.Context) ([]string, error)
}

// ErrConflict means that a value was changed by somebody else.
var ErrConflict = errors.New("the value was changed by another process")

// Keys of the state; see the package comment.
const (
	KeyTopology = "topology"
	KeySettled  = "settled"
	keyOwner    = "owner"
	keySource   = "source."
	keyRate     = "rate."
)

// Settled is the note about how the last run ended.
type Settled struct {
	// Settled says that everything a vertex began to write was finished.
	Settled bool `json:"settled"`
	// Except are sources for which that does not hold.
	Except []string `json:"except,omitempty"`
}

// PipelineLease is the record of the process that runs the whole pipeline.
func PipelineLease(s State) ownership.Store { return lease{s, keyOwner} }

// VertexLease is the record of the process that runs one vertex.
func VertexLease(s State, vertex string) ownership.Store { return lease{s, keyOwner + "." + vertex} }

// ProcessLease is the record of one of several processes that run a vertex.
func ProcessLease(s State, vertex, process string) ownership.Store {
	return lease{s, keyOwner + "." + vertex + "." + process}
}

// ShardGroup is the group of the processes that share a vertex, and the prefix of their keys; see package shard.
func ShardGroup(vertex string) string { return "shards." + vertex }

// LeasedVertices are the vertices for which there is a record of an owner, be it released.
func LeasedVertices(ctx context.Context, s State) (map[string]bool, error) {
	keys, err := s.Keys(ctx)
	if err != nil {
		return nil, err
	}
	names := map[string]bool{}
	for _, key := range keys {
		if name, ok := strings.CutPrefix(key, keyOwner+"."); ok {
			vertex, _, _ := strings.Cut(name, ".")
			names[vertex] = true
		}
	}
	return names, nil
}

// RateLimit is the record of the limit that the processes of a vertex share.
func RateLimit(s State, vertex string) ratelimit.Store { return limit{s, keyRate + vertex} }

// limit implements ratelimit.Store.
type limit struct {
	state State
	key   string
}

func (l limit) Get(ctx context.Context) ([]byte, uint64, error) { return l.state.Get(ctx, l.key) }

func (l limit) CompareAndSet(ctx context.Context, value []byte, revision uint64) (uint64, error) {
	revision, err := l.state.CompareAndSet(ctx, l.key, value, revision)
	if errors.Is(err, ErrConflict) {
		return 0, ratelimit.ErrConflict
	}
	return revision, err
}

// lease implements ownership.Store.
type lease struct {
	state State
	key   string
}

func (l lease) Get(ctx context.Context) ([]byte, uint64, error) { return l.state.Get(ctx, l.key) }

func (l lease) Put(ctx context.Context, value []byte, revision uint64) (uint64, error) {
	revision, err := l.state.CompareAndSet(ctx, l.key, value, revision)
	if errors.Is(err, ErrConflict) {
		return 0, ownership.ErrConflict
	}
	return revision, err
}
