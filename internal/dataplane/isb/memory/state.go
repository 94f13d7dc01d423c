package memory

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"

	"github.com/levada-io/levada/internal/dataplane/isb"
)

// values implements isb.State.
type values struct {
	name string

	mu   sync.Mutex
	held map[string]value
	// last is the highest revision given. Invariant: no two values of any keys had the same.
	last uint64
}

type value struct {
	data     []byte
	revision uint64
}

func (v *values) Name() string  { return v.name }
func (v *values) MaxValue() int { return maxEntry }

func (v *values) Get(_ context.Context, key string) ([]byte, uint64, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	return bytes.Clone(v.held[key].data), v.held[key].revision, nil
}

func (v *values) Put(_ context.Context, key string, data []byte) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	_, err := v.set(key, data)
	return err
}

func (v *values) CompareAndSet(_ context.Context, key string, data []byte, revision uint64) (uint64, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.held[key].revision != revision {
		return 0, isb.ErrConflict
	}
	return v.set(key, data)
}

// set sets a value. mu is held.
func (v *values) set(key string, data []byte) (uint64, error) {
	if len(data) > maxEntry {
		return 0, fmt.Errorf("%s: %d bytes, and the largest value has %d", key, len(data), maxEntry)
	}
	v.last++
	v.held[key] = value{bytes.Clone(data), v.last}
	return v.last, nil
}

func (v *values) Keys(context.Context) ([]string, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	return slices.Collect(maps.Keys(v.held)), nil
}
