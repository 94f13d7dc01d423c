package ownership

import (
	"context"
	"errors"

	"github.com/nats-io/nats.go/jetstream"
)

// Key is where the record lies in the state bucket of a pipeline.
const Key = "owner"

// InBucket keeps the record in a bucket of a NATS broker.
func InBucket(kv jetstream.KeyValue) Store { return bucket{kv} }

type bucket struct{ kv jetstream.KeyValue }

func (b bucket) Get(ctx context.Context) ([]byte, uint64, error) {
	e, err := b.kv.Get(ctx, Key)
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
		revision, err = b.kv.Create(ctx, Key, value)
	} else {
		revision, err = b.kv.Update(ctx, Key, value, revision)
	}
	var api *jetstream.APIError
	if errors.Is(err, jetstream.ErrKeyExists) || errors.As(err, &api) && api.ErrorCode == codeWrongSequence {
		return 0, ErrConflict
	}
	return revision, err
}
