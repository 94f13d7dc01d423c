package jetstream

import (
	"context"
	"errors"
	"slices"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/levada-io/levada/internal/dataplane/isb"
	"github.com/levada-io/levada/internal/dataplane/isb/jetstream/jetstreambuffer"
)

// state is a bucket; it implements isb.State.
type state struct {
	kv jetstream.KeyValue
	js jetstream.JetStream
}

func (s state) Name() string { return "bucket " + s.kv.Bucket() }

func (s state) MaxValue() int { return maxValue(s.js) }

// headroom is what the subject and the headers of a value take of the broker's max_payload.
const headroom = 4 << 10

// maxValue is the largest value that a connection carries.
func maxValue(js jetstream.JetStream) int { return int(js.Conn().MaxPayload()) - headroom }

func (s state) Get(ctx context.Context, key string) ([]byte, uint64, error) {
	e, err := s.kv.Get(ctx, key)
	if errors.Is(err, jetstream.ErrKeyNotFound) {
		return nil, 0, nil
	}
	if err != nil {
		return nil, 0, err
	}
	return e.Value(), e.Revision(), nil
}

func (s state) Put(ctx context.Context, key string, value []byte) error {
	_, err := s.kv.Put(ctx, key, value)
	return jetstreambuffer.ExplainLimit(err)
}

func (s state) CompareAndSet(ctx context.Context, key string, value []byte, revision uint64) (uint64, error) {
	var err error
	if revision == 0 {
		revision, err = s.kv.Create(ctx, key, value)
	} else {
		revision, err = s.kv.Update(ctx, key, value, revision)
	}
	if errors.Is(err, jetstream.ErrKeyExists) || errors.Is(err, jetstream.ErrKeyRevisionMismatch) {
		return 0, isb.ErrConflict
	}
	return revision, jetstreambuffer.ExplainLimit(err)
}

func (s state) Keys(ctx context.Context) ([]string, error) {
	keys, err := s.kv.Keys(ctx)
	if errors.Is(err, jetstream.ErrNoKeysFound) {
		return nil, nil
	}
	return slices.Clip(keys), err
}
