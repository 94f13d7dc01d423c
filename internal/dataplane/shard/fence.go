package shard

import (
	"errors"
	"fmt"
)

// ErrFenced means that a later owner of the shard has begun. The error is a *FencedError.
var ErrFenced = errors.New("a later owner of the shard has begun")

// FencedError says under which epoch the saved state was found.
type FencedError struct {
	Shard       string
	Epoch, Seen uint64
}

func (e *FencedError) Error() string {
	return fmt.Sprintf("state of shard %s cannot be saved under epoch %d: it has epoch %d; this process no longer owns the shard and stops reading it", e.Shard, e.Epoch, e.Seen)
}

// Is makes errors.Is(err, ErrFenced) true.
func (e *FencedError) Is(target error) bool { return target == ErrFenced }

// Saved is the saved state of a shard: how far its reader is. Epoch and Incarnation say which start wrote it.
type Saved struct {
	Epoch       uint64 `json:"epoch"`
	Incarnation string `json:"incarnation"`
	Value       []byte `json:"value,omitempty"`
}

// Fence decides what one start of a shard may save. It does no I/O.
//
// A start first reads the saved state and writes it back under its own epoch (Open). From then on the revision that an earlier owner knows is out of date, so that
// each of its compare-and-sets is refused, whatever its clocks say and however long it was frozen. The order is the point: what Open returned must be written before
// the shard is read.
type Fence struct {
	shard       string
	epoch       uint64
	incarnation string
	revision    uint64 // of the state that this start has seen last. Invariant: never decreases
}

// NewFence returns the fence of a start.
func NewFence(shard string, epoch uint64, incarnation string) *Fence {
	return &Fence{shard: shard, epoch: epoch, incarnation: incarnation}
}

// Open takes the state as it was read, and returns it as it must be written if its revision is Expect; opened says that this was done before. If the write is refused
// or its outcome unknown, the state is read and passed to Open again: until it is written, an earlier owner may still save. Revision 0 is a shard that was never read.
func (f *Fence) Open(last Saved, revision uint64) (raised Saved, opened bool, err error) {
	if err := f.check(last, revision); err != nil {
		return Saved{}, false, err
	}
	return f.Next(last.Value), f.own(last), nil
}

// Next is what must be written, if the revision is Expect, to save a value.
func (f *Fence) Next(value []byte) Saved { return Saved{f.epoch, f.incarnation, value} }

// Expect is the revision that the next write must replace.
func (f *Fence) Expect() uint64 { return f.revision }

// Wrote takes the revision of a write that was applied.
func (f *Fence) Wrote(revision uint64) { f.revision = max(f.revision, revision) }

// Refresh takes the state as it was read after a write that was refused, or of which it is unknown whether it was applied. The write may then be repeated. A read that
// is older than what this start wrote changes nothing; the repetition is refused then.
func (f *Fence) Refresh(last Saved, revision uint64) error {
	return f.check(last, revision)
}

func (f *Fence) check(last Saved, revision uint64) error {
	if last.Epoch >= f.epoch && !f.own(last) {
		return &FencedError{f.shard, f.epoch, last.Epoch}
	}
	f.revision = max(f.revision, revision)
	return nil
}

func (f *Fence) own(last Saved) bool {
	return last.Epoch == f.epoch && last.Incarnation == f.incarnation
}
