package redis

import (
	"bytes"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"strconv"

	"github.com/redis/go-redis/v9"

	"github.com/levada-io/levada/internal/dataplane/isb"
)

// state is the values of one pipeline; it implements isb.State.
type state struct {
	service *Service
	keys    placeKeys
}

var _ isb.State = state{}

// maxValue bounds a value: a server does nothing else while it takes one in.
const maxValue = 1 << 20

//go:embed set.lua
var setLua string

var setScript = redis.NewScript(setLua)

func (s state) Name() string { return "key " + s.keys.values }

func (s state) MaxValue() int { return maxValue }

func (s state) Get(ctx context.Context, key string) ([]byte, uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	stored, err := s.service.link.Client.HGet(ctx, s.keys.values, key).Bytes()
	if err = s.service.note(err); errors.Is(err, redis.Nil) {
		return nil, 0, nil
	}
	if err != nil {
		return nil, 0, err
	}
	number, value, ok := bytes.Cut(stored, []byte(" "))
	revision, bad := strconv.ParseUint(string(number), 10, 64)
	if !ok || bad != nil {
		return nil, 0, fmt.Errorf("%s, field %s: it does not begin with a revision: Levada did not write it", s.Name(), key)
	}
	return value, revision, nil
}

func (s state) Put(ctx context.Context, key string, value []byte) error {
	_, err := s.set(ctx, key, value, "any")
	return err
}

func (s state) CompareAndSet(ctx context.Context, key string, value []byte, revision uint64) (uint64, error) {
	return s.set(ctx, key, value, strconv.FormatUint(revision, 10))
}

func (s state) set(ctx context.Context, key string, value []byte, revision string) (uint64, error) {
	if len(value) > maxValue {
		return 0, fmt.Errorf("%s, field %s: %d bytes, and the largest value has %d", s.Name(), key, len(value), maxValue)
	}
	answer, err := s.service.run(ctx, setScript, []string{s.keys.place, s.keys.values}, key, value, revision)
	if errors.Is(err, errNone) {
		return 0, fmt.Errorf("key %s is missing: it was there when this process started. Restore the store of Redis from a copy", s.keys.place)
	}
	if err != nil {
		return 0, err
	}
	given, ok := answer.(int64)
	if !ok || given <= 0 {
		return 0, fmt.Errorf("%s, field %s: unexpected answer %v", s.Name(), key, answer)
	}
	return uint64(given), nil
}

func (s state) Keys(ctx context.Context) ([]string, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	keys, err := s.service.link.Client.HKeys(ctx, s.keys.values).Result()
	return keys, s.service.note(err)
}
