package shard

import (
	"context"
	"strings"
	"sync"
	"time"
)

// Memory is a Store in the memory of one process.
type Memory struct {
	mu       sync.Mutex
	revision uint64
	entries  map[string]Entry
	log      []Entry       // all entries, for watches. Invariant: sorted by revision
	changed  chan struct{} // closed at the next change
}

// NewMemory returns an empty store.
func NewMemory() *Memory { return &Memory{entries: map[string]Entry{}, changed: make(chan struct{})} }

func (m *Memory) set(e Entry) Entry {
	m.revision++
	e.Revision = m.revision
	m.entries[e.Key] = e
	m.log = append(m.log, e)
	close(m.changed)
	m.changed = make(chan struct{})
	return e
}

func (m *Memory) compareAndSet(e Entry, expect uint64) (Entry, error) {
	last := m.entries[e.Key]
	if last.Revision != expect && (expect != 0 || last.Present) {
		return Entry{}, ErrConflict
	}
	return m.set(e), nil
}

// Write implements Store.
func (m *Memory) Write(_ context.Context, key string, value []byte, expect uint64, ttl time.Duration) (uint64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	e, err := m.compareAndSet(Entry{Key: key, Value: value, Present: true}, expect)
	if err == nil && ttl > 0 {
		time.AfterFunc(ttl, func() {
			m.mu.Lock()
			defer m.mu.Unlock()
			if m.entries[key].Revision == e.Revision {
				m.set(Entry{Key: key})
			}
		})
	}
	return e.Revision, err
}

// Remove implements Store.
func (m *Memory) Remove(_ context.Context, key string, expect uint64) (uint64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	e, err := m.compareAndSet(Entry{Key: key}, expect)
	return e.Revision, err
}

// Read implements Store.
func (m *Memory) Read(_ context.Context, key string) (Entry, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.entries[key], nil
}

// Watch implements Store.
func (m *Memory) Watch(ctx context.Context, prefix string, deliver func(Entry), synced func()) error {
	for from, first := 0, true; ; first = false {
		m.mu.Lock()
		changed, news := m.changed, m.log[from:]
		from = len(m.log)
		m.mu.Unlock()
		for _, e := range news {
			if strings.HasPrefix(e.Key, prefix) {
				deliver(e)
			}
		}
		if first {
			synced()
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}
