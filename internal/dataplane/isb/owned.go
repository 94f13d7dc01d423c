package isb

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/levada-io/levada/internal/dataplane/buffer"
	"github.com/levada-io/levada/internal/dataplane/shard"
)

// Sharer is implemented by stores whose vertices can be run by several processes at once. Their drivers implement buffer.StateRegister.
type Sharer interface {
	// Shards keeps which process reads which shard.
	Shards(ctx context.Context) (shard.Store, error)
}

// owned is the driver of a partition whose state only one start of its reader can save: of those that try, the one with the highest epoch. See package shard.
type owned struct {
	buffer.Driver
	// lost is called once, when another start has the state; nil for nobody.
	lost func(error)

	mu    sync.Mutex // held during a request: the state takes one at a time
	state *shard.State
	err   error // why nothing is saved and removed any more
}

// own makes a start the owner of a partition's state.
func own(ctx context.Context, driver buffer.Driver, name string, o shard.Ownership, lost func(error)) (*owned, error) {
	register, ok := driver.(buffer.StateRegister)
	if !ok {
		return nil, fmt.Errorf("buffer %s: its buffer service cannot replace a saved state by comparison, which several processes of a vertex need", name)
	}
	state, err := shard.OpenRegister(ctx, saved{register, name}, o)
	if err != nil {
		return nil, fmt.Errorf("buffer %s: %w", name, err)
	}
	return &owned{Driver: driver, lost: lost, state: state}, nil
}

// ownAlone makes a process the owner of a partition's state that no other process may read: it has a lease for that. The process that had the state before cannot save any more,
// should it still run. A driver that cannot compare stays as it is.
func ownAlone(ctx context.Context, driver buffer.Driver, name string) (buffer.Driver, error) {
	register, ok := driver.(buffer.StateRegister)
	if !ok {
		return driver, nil
	}
	last, _, err := saved{register, name}.Read(ctx)
	if err != nil {
		return nil, err
	}
	for epoch := last.Epoch + 1; ; {
		o, err := own(ctx, driver, name, shard.Ownership{Shard: name, Epoch: epoch, Incarnation: rand.Text()}, nil)
		fenced, ok := errors.AsType[*shard.FencedError](err)
		if !ok {
			return o, err
		}
		epoch = fenced.Seen + 1 // what was read came from a replica that lags
	}
}

// stateTimeout bounds an attempt to save a state. The reader tries again.
const stateTimeout = 5 * time.Second

// SaveState implements buffer.StateStore.
func (o *owned) SaveState(ctx context.Context, state []byte) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.err != nil {
		return o.err
	}
	return o.save(ctx, state)
}

// save saves a state. mu is held.
func (o *owned) save(ctx context.Context, state []byte) error {
	ctx, cancel := context.WithTimeout(ctx, stateTimeout)
	defer cancel()
	err := o.state.Save(ctx, state)
	if errors.Is(err, shard.ErrFenced) {
		if o.err = err; o.lost != nil {
			o.lost(err)
		}
	}
	return err
}

// LoadState implements buffer.StateStore.
func (o *owned) LoadState(context.Context) ([]byte, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.state.Value(), nil
}

// Trim implements buffer.Retention. What the reader removes is below what it has saved, so that a start which does not know yet that it is fenced removes nothing that
// its successor needs.
func (o *owned) Trim(ctx context.Context, seq uint64) error {
	o.mu.Lock()
	err := o.err
	o.mu.Unlock()
	if err != nil {
		return err
	}
	return o.Driver.Trim(ctx, seq)
}

// Needs implements buffer.Siblings.
func (o *owned) Needs() ([]buffer.Need, bool) {
	if s, ok := o.Driver.(buffer.Siblings); ok {
		return s.Needs()
	}
	return nil, false
}

// check returns a *shard.FencedError if another start has the state. A start that was replaced misses what its successor has removed, and must not take that for damage.
func (o *owned) check(ctx context.Context) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.err == nil && !errors.Is(o.save(ctx, o.state.Value()), shard.ErrFenced) {
		return nil // or it is not known, and nothing is removed because of it
	}
	return o.err
}

// SaveDamage implements buffer.StateStore.
func (o *owned) SaveDamage(ctx context.Context, damage []byte) error {
	if o.check(ctx) != nil {
		return nil
	}
	return o.Driver.SaveDamage(ctx, damage)
}

// asked is Options.OnCorrupt, which is not asked about what another start has removed.
func asked(drivers []buffer.Driver, onCorrupt func(uint64, []byte, error) error) func(uint64, []byte, error) error {
	if _, ok := drivers[0].(*owned); !ok {
		return onCorrupt
	}
	return func(seq uint64, data []byte, why error) error {
		for _, d := range drivers {
			if o, ok := d.(*owned); ok {
				if err := o.check(context.Background()); err != nil { // it has a time limit
					return err
				}
			}
		}
		if onCorrupt == nil {
			return why
		}
		return onCorrupt(seq, data, why)
	}
}

// Volatile implements buffer.Volatile.
func (o *owned) Volatile() bool {
	v, ok := o.Driver.(buffer.Volatile)
	return ok && v.Volatile()
}

// SavePending implements buffer.Volatile.
func (o *owned) SavePending(ctx context.Context, messages int) error {
	if v, ok := o.Driver.(buffer.Volatile); ok {
		return v.SavePending(ctx, messages)
	}
	return nil
}

// saved is the saved state of a partition; it implements shard.Register.
type saved struct {
	register buffer.StateRegister
	name     string
}

func (s saved) Name() string { return "of buffer " + s.name }

func (s saved) Read(ctx context.Context) (shard.Saved, uint64, error) {
	b, revision, err := s.register.ReadState(ctx)
	if err != nil {
		return shard.Saved{}, 0, err
	}
	owner, state, err := buffer.OwnerOf(b)
	return shard.Saved{Epoch: owner.Epoch, Incarnation: owner.Incarnation, Value: state}, revision, err
}

func (s saved) Write(ctx context.Context, next shard.Saved, expect uint64) (uint64, error) {
	revision, err := s.register.ReplaceState(ctx, buffer.StateOwner{Epoch: next.Epoch, Incarnation: next.Incarnation}.Mark(next.Value), expect)
	if errors.Is(err, buffer.ErrReplaced) {
		return 0, shard.ErrConflict
	}
	return revision, err
}
