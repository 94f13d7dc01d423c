package buffer

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"maps"
	"slices"

	"github.com/levada-io/levada/internal/dataplane/identity"
	"github.com/levada-io/levada/internal/flow"
)

// stateHead is what a saved state has before what was seen: the floor, and the last sequence stored.
const stateHead = 16

// The saved state is
//
//	"LVSTATE\xff" version(1) crc32(rest, 4) floor(8) last(8) base(8) top(8) len(seen) seen count { seq stored(8) spans { lo hi } }
//
// with numbers little endian, or uvarints where no length is given. Sequences are relative to the one before, 0 spans say that all is done, and a span is
// relative to the end of the one before. Version 4 has consumed(8) after top, and is written only where that is above the floor. Version 5 is a state of another version with
// its owner before it (owner.go). Version 6 has consumed(8) keep(8) after top, and is written only for one of several shards. Version 2 has neither base nor top, and before it the state was floor(8) last(8) seen. A version that does not know a form stops: with the
// numbers that it would give to blocks, they would be dropped downstream.
const (
	stateMagic    = "LVSTATE\xff"
	stateVersion  = 3
	stateConsumed = 4
	stateKeep     = 6
	// maxProgress bounds the part for progress, in bytes. What does not fit is repeated after a restart.
	maxProgress = 64 << 10
)

// savedState is what a reader saves. Invariant: floor <= last, and all of it is as of one moment: a floor with the progress or the identities of another moment would lose
// messages or repeat them.
type savedState struct {
	// All entries up to floor are done, and last was stored.
	floor, last uint64
	base        uint64 // of the entry at floor; see number.go
	top         uint64 // no entry up to last has a higher number
	// consumed is how far entries are done or consumed, for writers elsewhere: those take no room. The next reader begins at floor all the same. 0 is floor.
	consumed uint64
	// keep is the first entry that the reader still needs where that is below the floor, for the ids in it; 0 if none is. Only where a partition has several shards.
	keep     uint64
	seen     []byte              // of package identity, as of floor
	progress map[uint64]progress // of entries above floor, by sequence; what of it does not fit is left out
}

// passed is how far entries take no room.
func (s *savedState) passed() uint64 { return max(s.floor, s.consumed) }

// marshal is the state as bytes, the same for the same state.
func (s *savedState) marshal() []byte {
	count, entries, before := 0, []byte(nil), s.floor
	for _, seq := range slices.Sorted(maps.Keys(s.progress)) {
		pr := s.progress[seq]
		if seq <= s.floor || !pr.all && len(pr.spans) == 0 {
			continue
		}
		entry := binary.AppendUvarint(entries, seq-before)
		entry = binary.LittleEndian.AppendUint64(entry, uint64(pr.stored))
		if pr.all {
			entry = binary.AppendUvarint(entry, 0)
		} else {
			entry = binary.AppendUvarint(entry, uint64(len(pr.spans)))
			at := uint64(0)
			for _, sp := range pr.spans {
				entry = binary.AppendUvarint(binary.AppendUvarint(entry, sp.Lo-at), sp.Hi-sp.Lo)
				at = sp.Hi
			}
		}
		if len(entry) > maxProgress {
			break
		}
		entries, before = entry, seq
		count++
	}
	version, numbers := byte(stateVersion), []uint64{s.floor, s.last, s.base, s.top}
	switch {
	case s.keep > 0:
		version, numbers = stateKeep, append(numbers, s.consumed, s.keep)
	case s.consumed > s.floor:
		version, numbers = stateConsumed, append(numbers, s.consumed)
	}
	b := append([]byte(stateMagic), version, 0, 0, 0, 0)
	for _, v := range numbers {
		b = binary.LittleEndian.AppendUint64(b, v)
	}
	b = append(binary.AppendUvarint(b, uint64(len(s.seen))), s.seen...)
	b = append(binary.AppendUvarint(b, uint64(count)), entries...)
	binary.LittleEndian.PutUint32(b[len(stateMagic)+1:], crc32.ChecksumIEEE(b[len(stateMagic)+5:]))
	return b
}

// SavedBounds are the sequences that a saved state knows of: all up to floor was done, and last was stored.
func SavedBounds(state []byte) (floor, last uint64, err error) {
	s, err := readState(state)
	if err != nil || s == nil {
		return 0, 0, err
	}
	return s.floor, s.last, nil
}

// Need is what the reader of a shard may still read, as of a saved state: entries from From on. Base is that of the entry at its floor.
type Need struct{ From, Base uint64 }

// NeedOf returns the Need of a saved state; 1 and 0 if nothing was saved, or if what was cannot be read.
func NeedOf(state []byte) Need {
	s, err := readState(state)
	if err != nil || s == nil {
		return Need{From: 1}
	}
	n := Need{s.floor + 1, s.base}
	if s.keep > 0 {
		n.From = min(n.From, s.keep)
	}
	return n
}

// errStateVersion means that the state was written by a version that knows more.
var errStateVersion = errors.New("saved state has an unknown format")

// unmarshalState reads every form that was ever written. Errors are identity.ErrState, or errStateVersion.
func unmarshalState(b []byte) (*savedState, error) {
	if len(b) < stateHead {
		return nil, fmt.Errorf("%w: %d bytes", identity.ErrState, len(b))
	}
	if string(b[:len(stateMagic)]) != stateMagic {
		last := binary.LittleEndian.Uint64(b[8:])
		return &savedState{floor: binary.LittleEndian.Uint64(b), last: last, top: last, seen: b[stateHead:]}, nil
	}
	b = b[len(stateMagic):]
	version, head := b[0], stateHead
	switch version {
	case 2:
	case stateVersion:
		head += 16
	case stateConsumed:
		head += 24
	case stateKeep:
		head += 32
	default:
		return nil, fmt.Errorf("%w: it has format %d, and this version of Levada reads formats up to %d; run the version that wrote it, or a later one", errStateVersion, b[0], stateKeep)
	}
	if len(b) < 5+head || binary.LittleEndian.Uint32(b[1:]) != crc32.ChecksumIEEE(b[5:]) {
		return nil, fmt.Errorf("%w: %d bytes", identity.ErrState, len(b))
	}
	b = b[5:]
	s := &savedState{floor: binary.LittleEndian.Uint64(b), last: binary.LittleEndian.Uint64(b[8:]), progress: map[uint64]progress{}}
	s.top = s.last
	if version > 2 {
		s.base, s.top = binary.LittleEndian.Uint64(b[16:]), binary.LittleEndian.Uint64(b[24:])
	}
	if version == stateConsumed || version == stateKeep {
		s.consumed = binary.LittleEndian.Uint64(b[32:])
	}
	if version == stateKeep {
		s.keep = binary.LittleEndian.Uint64(b[40:])
	}
	b = b[head:]
	bad := false
	next := func() uint64 {
		v, n := binary.Uvarint(b)
		if n <= 0 {
			bad, b = true, nil
			return 0
		}
		b = b[n:]
		return v
	}
	if n := next(); n <= uint64(len(b)) {
		s.seen, b = b[:n], b[n:]
	} else {
		bad = true
	}
	seq := s.floor
	for range next() {
		seq += next()
		if bad || len(b) < 8 {
			return nil, identity.ErrState
		}
		pr := progress{stored: int64(binary.LittleEndian.Uint64(b))}
		b = b[8:]
		count := next()
		pr.all = count == 0
		at := uint64(0)
		for range count {
			if bad {
				return nil, identity.ErrState
			}
			lo := at + next()
			at = lo + next()
			pr.spans = append(pr.spans, flow.Span{Lo: lo, Hi: at})
		}
		s.progress[seq] = pr
	}
	if bad || len(b) > 0 {
		return nil, identity.ErrState
	}
	return s, nil
}

// stateDivided is the version of what stands in the place of a saved state of a partition that is divided into shards.
const stateDivided = 7

// DividedState is kept where the saved state of a partition without shards would be: a version that knows no shards stops at it.
func DividedState() []byte {
	return append(append([]byte(stateMagic), stateDivided), make([]byte, stateHead)...)
}
