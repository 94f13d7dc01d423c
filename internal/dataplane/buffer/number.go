package buffer

import "time"

// A reader writes under positions that are made of the numbers of its blocks, and whatever reads that drops what comes under a position that it has seen. So a
// number must never be given to two blocks. A sequence can be: a store that lost its end at a power loss, or was restored from an older copy, gives it again,
// and the copy has the saved state of its time, so that nothing shows it.
//
// So each process adds a base to the sequences that it writes, and stores the base with each entry: the number of an entry is base + sequence. A base is chosen
// such that the process's first number is above all that the store or its saved state know of, and above the clock in units of 100 microseconds. The clock
// is for what they do not know: it is above what was lost as long as a partition does not take more than 10,000 blocks a second in the long run. Without
// a loss the clock decides nothing.
//
// Numbers ascend with sequences. An entry whose writer did not say its base, or a lower one than is stored before it, has the base of the entry before it;
// the saved state keeps the base of the entry at the floor.
//
// A process whose store loses its end while it runs goes on with its base, and is given sequences again. Such entries show it, and have a base of their own: see
// raisedBase and lostend.go.

// numberBits are what a number may have: a position has 20 more.
const numberBits = 44

// numberUnit and numberEpoch say what of the clock is a number: they last until 2080.
const numberUnit = 100 * time.Microsecond

var numberEpoch = time.Date(2025, 1, 1, 0, 0, 0, 0, time.UTC)

// maxBase leaves 2^40 numbers above it. A clock that is beyond it is wrong, and is ignored.
const maxBase = 1<<numberBits - 1<<40

// newBase is the base of a process that finds last as the last sequence stored. No entry has a higher number than top.
func newBase(last, top uint64, now time.Time) uint64 {
	first := max(top, last) + 1
	if clock := now.Sub(numberEpoch) / numberUnit; clock > 0 && uint64(clock) < maxBase {
		first = max(first, uint64(clock))
	}
	return first - (last + 1)
}

// usableBase is the base that an entry says, or 0 if it makes no sense.
func usableBase(base uint64) uint64 {
	if base >= 1<<numberBits-1<<39 {
		return 0
	}
	return base
}

// raisedBase is the base of an entry that took the place of another, which the store lost: its number is above those of all lost ones. It is 0 for other entries.
// What lies before the loss has no higher base than the entry says: the process that wrote it stops at the first such sequence that it is given.
func raisedBase(e Entry) uint64 {
	if e.After < e.Seq || e.After >= 1<<40 {
		return 0
	}
	return usableBase(usableBase(e.Base) + e.After - e.Seq + 1)
}

// entryBase is the base that an entry has by itself.
func entryBase(e Entry) uint64 { return max(usableBase(e.Base), raisedBase(e)) }

// baseOf is the base of the next entry. mu is held, or nobody else reads.
func (p *place) baseOf(e Entry) uint64 { return max(p.readBase, entryBase(e)) }
