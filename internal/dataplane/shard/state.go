package shard

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"
)

// State is the saved state of a shard, opened by one start of it. Its methods must not be called concurrently.
type State struct {
	register Register
	fence    *Fence
	value    []byte
}

// Register is where the saved state of one shard is kept.
type Register interface {
	// Name is how errors name it.
	Name() string
	// Read returns the state and its revision, 0 if nothing was ever saved. It may be an older one.
	Read(ctx context.Context) (Saved, uint64, error)
	// Write replaces the state if its revision is expect, and returns the new one. The error is ErrConflict if the revision is another one. After any other error it is
	// unknown whether the state was or will be replaced.
	Write(ctx context.Context, next Saved, expect uint64) (uint64, error)
}

// OpenState reads the saved state and makes it impossible for all earlier owners to save. It must have returned before the shard is read. It retries until ctx ends;
// the error is a *FencedError if a later owner has begun.
func OpenState(ctx context.Context, store Store, key string, o Ownership) (*State, error) {
	return OpenRegister(ctx, record{store, key}, o)
}

// OpenRegister is OpenState for a state that is kept elsewhere.
func OpenRegister(ctx context.Context, register Register, o Ownership) (*State, error) {
	s := &State{register: register, fence: NewFence(o.Shard, o.Epoch, o.Incarnation)}
	return s, s.retry(ctx, func(ctx context.Context) error {
		last, revision, err := s.register.Read(ctx)
		if err != nil {
			return err
		}
		raised, opened, err := s.fence.Open(last, revision)
		s.value = last.Value
		if err != nil || opened {
			return err
		}
		return s.write(ctx, raised)
	})
}

// Value is what was saved last.
func (s *State) Value() []byte { return s.value }

// Save replaces the value. It retries until ctx ends; the error is a *FencedError if a later owner has begun, and nothing was saved then. After any other error the
// value may have been saved.
func (s *State) Save(ctx context.Context, value []byte) error {
	failed := false
	err := s.retry(ctx, func(ctx context.Context) error {
		if failed {
			last, revision, err := s.register.Read(ctx)
			if err == nil {
				err = s.fence.Refresh(last, revision)
			}
			if err != nil {
				return err
			}
		}
		failed = true
		return s.write(ctx, s.fence.Next(value))
	})
	if err == nil {
		s.value = value
	}
	return err
}

const (
	stateRequest = 2 * time.Second
	statePause   = 100 * time.Millisecond
)

func (s *State) retry(ctx context.Context, do func(context.Context) error) error {
	for {
		request, cancel := context.WithTimeout(ctx, stateRequest)
		err := do(request)
		cancel()
		if err == nil || errors.Is(err, ErrFenced) {
			return err
		}
		select {
		case <-time.After(statePause):
		case <-ctx.Done():
			return fmt.Errorf("saved state %s: %w (%w)", s.register.Name(), context.Cause(ctx), err)
		}
	}
}

func (s *State) write(ctx context.Context, next Saved) error {
	revision, err := s.register.Write(ctx, next, s.fence.Expect())
	if err == nil {
		s.fence.Wrote(revision)
	}
	return err
}

// record is a Register under a key of a Store.
type record struct {
	store Store
	key   string
}

func (r record) Name() string { return r.key }

func (r record) Read(ctx context.Context) (Saved, uint64, error) {
	e, err := r.store.Read(ctx, r.key)
	if err != nil || !e.Present {
		return Saved{}, e.Revision, err
	}
	var last Saved
	if err := json.Unmarshal(e.Value, &last); err != nil {
		return Saved{}, 0, fmt.Errorf("saved state %s is damaged: %w", r.key, err)
	}
	return last, e.Revision, nil
}

func (r record) Write(ctx context.Context, next Saved, expect uint64) (uint64, error) {
	value, err := json.Marshal(next)
	if err != nil {
		return 0, err
	}
	return r.store.Write(ctx, r.key, value, expect, 0)
}
