package sourcetest

import (
	"bytes"
	"context"
	"maps"
	"sync"
)

// Positions keeps positions in memory.
type Positions struct {
	mu    sync.Mutex
	saved map[string][]byte
	saves int
	err   error
}

// Load implements source.Positions.
func (p *Positions) Load(_ context.Context, partition string) ([]byte, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return bytes.Clone(p.saved[partition]), p.err
}

// Save implements source.Positions.
func (p *Positions) Save(_ context.Context, partition string, position []byte) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.err != nil {
		return p.err
	}
	if p.saved == nil {
		p.saved = map[string][]byte{}
	}
	p.saved[partition] = bytes.Clone(position)
	p.saves++
	return nil
}

// Fail makes all calls fail with err until it is nil.
func (p *Positions) Fail(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.err = err
}

// Saves is how often something was saved.
func (p *Positions) Saves() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.saves
}

// Snapshot returns what a crash at this moment would leave.
func (p *Positions) Snapshot() *Positions {
	p.mu.Lock()
	defer p.mu.Unlock()
	return &Positions{saved: maps.Clone(p.saved)}
}
