package buffer

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"

	"github.com/levada-io/levada/internal/dataplane/identity"
)

// Where several processes may read a partition one after the other, the saved state says which of them wrote it, and is replaced by compare-and-set: a process that
// was frozen and has been replaced cannot save over its successor. Package shard has the protocol, package isb puts the two together.

// StateRegister is implemented by drivers whose saved state can be replaced by compare-and-set.
type StateRegister interface {
	// ReadState returns the saved state with its revision; nil and 0 if there is none. It may be answered by a replica that lags.
	ReadState(ctx context.Context) (state []byte, revision uint64, err error)
	// ReplaceState is SaveState if the revision is the given one, 0 for none, and returns the new revision. The error is ErrReplaced if the revision is another one. After
	// any other error it is unknown whether the state was or will be replaced.
	ReplaceState(ctx context.Context, state []byte, revision uint64) (uint64, error)
}

// ErrReplaced means that the saved state has another revision than the one that was to be replaced.
var ErrReplaced = errors.New("the saved state was replaced by another process")

// StateOwner is the start of a reader that wrote a saved state. The zero value is one that did not say.
type StateOwner struct {
	Epoch       uint64
	Incarnation string
}

// ownedVersion is the version of a saved state that has its owner before it:
//
//	"LVSTATE\xff" version(1) crc32(rest, 4) epoch(8) len(incarnation) incarnation state
const ownedVersion = 5

// Mark returns the state with its owner before it. The state may be empty: nothing was saved yet.
func (o StateOwner) Mark(state []byte) []byte {
	b := append([]byte(stateMagic), ownedVersion, 0, 0, 0, 0)
	b = binary.LittleEndian.AppendUint64(b, o.Epoch)
	b = append(binary.AppendUvarint(b, uint64(len(o.Incarnation))), o.Incarnation...)
	b = append(b, state...)
	binary.LittleEndian.PutUint32(b[len(stateMagic)+1:], crc32.ChecksumIEEE(b[len(stateMagic)+5:]))
	return b
}

// OwnerOf returns the owner of a saved state, and the state without it.
func OwnerOf(b []byte) (o StateOwner, state []byte, err error) {
	if len(b) <= len(stateMagic) || string(b[:len(stateMagic)]) != stateMagic || b[len(stateMagic)] != ownedVersion {
		return o, b, nil
	}
	corrupt := fmt.Errorf("%w: %d bytes with an owner", identity.ErrState, len(b))
	b = b[len(stateMagic)+1:]
	if len(b) < 4+8+1 || binary.LittleEndian.Uint32(b) != crc32.ChecksumIEEE(b[4:]) {
		return o, nil, corrupt
	}
	o.Epoch = binary.LittleEndian.Uint64(b[4:])
	b = b[12:]
	length, n := binary.Uvarint(b)
	if n <= 0 || length > uint64(len(b)-n) {
		return o, nil, corrupt
	}
	o.Incarnation = string(b[n : n+int(length)])
	return o, b[n+int(length):], nil
}

// readState reads a saved state, with or without an owner before it; nil if nothing was saved.
func readState(b []byte) (*savedState, error) {
	_, b, err := OwnerOf(b)
	if err != nil || len(b) == 0 {
		return nil, err
	}
	return unmarshalState(b)
}
