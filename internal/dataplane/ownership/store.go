package ownership

import (
	"context"
	"errors"

	"github.com/nats-io/nats.go/jetstream"
)

// Key is where the record of a process that runs a whole pipeline lies in the pipeline's state bucket.
const Key = "owner"

// VertexKey is where the record of a process that runs one vertex lies.
func VertexKey(vertex string) string { return Key + "." + vertex }

// InBucket keeps the record under a key of a bucket of a NATS broker.
func InBucket(kv jetstream.KeyValue, key string) Store { return bucket{kv, key} }

type bucket struct {
	kv  jetstream.KeyValue
	key string
}

func (b bucket) Get(ctx context.Context) ([]byte, uint64, error) {
	e, err := b.kv.Get(ctx, b.key)
	if errors.Is(err, jetstream.ErrKeyNotFound) {
		return nil, 0, nil
	}
	if err != nil {
		return nil, 0, err
	}
	return e.Value(), e.Revision(), nil
}

// codeWrongSequence is the broker's answer to an update of another revision.
const codeWrongSequence = 10071

func (b bucket) Put(ctx context.Context, value []byte, revision uint64) (uint64, error) {
	var err error
	if revision == 0 {
		revision, err = b.kv.Create(ctx, b.key, value)
	} else {
		revision, err = b.kv.Update(ctx, b.key, value, revision)
	}
	var api *jetstream.APIError
	if errors.Is(err, jetstream.ErrKeyExists) || errors.As(err, &api) && api.ErrorCode == codeWrongSequence {
		return 0, ErrConflict
	}
	return revision, err
}
