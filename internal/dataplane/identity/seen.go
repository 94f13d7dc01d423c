// Package identity decides what a reader has seen before. It is pure: no clock, no broker.
//
// A broker's deduplication is a window of time and forgets. Here nothing is forgotten that could still come back, and nothing is kept
// that cannot: a writer says in each block up to where its outputs are durable (Floor), and it never sends from below that
// again. So for each lane a reader keeps one number and the few ranges above it.
//
// Sources whose messages have names but no order (an HTTP request's id, say) cannot promise a floor. Their lanes are
// deduplicated by id among the most recent messages.
package identity

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"hash/maphash"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/levada-io/levada/internal/flow"
)

// Seen is what a reader of one partition has seen, for each lane that writes to it. It is not safe for concurrent use.
type Seen struct {
	lanes map[string]*lane
	ids   recentIDs
}

type lane struct {
	// floor is the highest Floor of a block so far: everything at or below it counts as seen. It only grows.
	floor uint64
	// spans were seen above floor. Invariant: disjoint, ascending, with a gap between any two, so that covers need look at one of them only.
	spans []span
	// holes are positions that a later block named as its predecessor and that have not been seen. Invariant: none is in spans.
	holes []uint64
}

type span struct{ lo, hi uint64 }

// New returns a Seen that has seen nothing. It remembers the ids of lanes without positions for window of the time that the caller tells it.
func New(window time.Duration, maxIDs int) *Seen {
	return &Seen{lanes: map[string]*lane{}, ids: newRecentIDs(window, maxIDs)}
}

// Admit takes the next block of the partition, in stored order, removes the messages that were seen before, and remembers the rest.
// It returns the positions of blocks that are now known to be missing from the buffer.
func (s *Seen) Admit(b *flow.Block, now time.Time) (lost []uint64) {
	if b.ByID {
		drop(b, func(m *flow.Message) bool { return !s.ids.admit(m.ID, now) })
		return nil
	}
	l := s.lanes[b.Lane]
	if l == nil {
		l = &lane{}
		s.lanes[strings.Clone(b.Lane)] = l
	}
	switch whole := len(b.Cover) == 0; {
	case whole && l.covers(b.Lo, b.Hi):
		drop(b, func(*flow.Message) bool { return true })
	case l.touches(b.Lo, b.Hi):
		drop(b, func(m *flow.Message) bool { return l.covers(m.Pos, m.Pos) })
	}
	l.remember(b)
	if b.Floor > l.floor {
		lost = l.lostBelow(b.Floor)
		l.raise(b.Floor)
	}
	return lost
}

// remember marks the positions of a block as seen, and its predecessor as a hole if that was not seen. A hole that this block fills is none any more: blocks of a
// lane can be stored in another order than the one in which their writer numbered them.
func (l *lane) remember(b *flow.Block) {
	if b.Prev != 0 && b.Prev < b.Lo && !l.covers(b.Prev, b.Prev) && !slices.Contains(l.holes, b.Prev) {
		l.holes = append(l.holes, b.Prev)
	}
	if len(b.Cover) == 0 {
		l.add(b.Lo, b.Hi)
	}
	for _, c := range b.Cover {
		l.add(c.Lo, c.Hi)
	}
	l.holes = slices.DeleteFunc(l.holes, func(p uint64) bool { return p > l.floor && l.covers(p, p) })
}

// lostBelow takes out the holes at or below a new floor. The writer sends nothing from there again, so these blocks were stored once and are gone.
func (l *lane) lostBelow(floor uint64) (lost []uint64) {
	l.holes = slices.DeleteFunc(l.holes, func(p uint64) bool {
		if p <= floor {
			lost = append(lost, p)
		}
		return p <= floor
	})
	return lost
}

// drop removes messages from a block that was not dropped from before, and notes which places the others had.
func drop(b *flow.Block, seen func(*flow.Message) bool) {
	kept := b.Messages[:0]
	for i := range b.Messages {
		if !seen(&b.Messages[i]) {
			kept = append(kept, b.Messages[i])
			if b.Duplicated > 0 {
				b.Places = append(b.Places, int32(i))
			}
			continue
		}
		if b.Duplicated == 0 {
			for k := range i {
				b.Places = append(b.Places, int32(k))
			}
		}
		b.Duplicated++
	}
	b.Messages = kept
}

// covers reports whether all of lo..hi was seen.
func (l *lane) covers(lo, hi uint64) bool {
	if hi <= l.floor {
		return true
	}
	lo = max(lo, l.floor+1)
	i := l.find(lo)
	return i < len(l.spans) && l.spans[i].lo <= lo && hi <= l.spans[i].hi
}

// find returns the first span that does not end before p.
func (l *lane) find(p uint64) int {
	i, _ := slices.BinarySearchFunc(l.spans, p, func(s span, p uint64) int { return cmp.Compare(s.hi, p) })
	return i
}

// touches reports whether some of lo..hi was seen.
func (l *lane) touches(lo, hi uint64) bool {
	if lo <= l.floor {
		return true
	}
	i := l.find(lo)
	return i < len(l.spans) && l.spans[i].lo <= hi
}

// add marks lo..hi as seen and joins the spans that it touches.
func (l *lane) add(lo, hi uint64) {
	if hi <= l.floor {
		return
	}
	lo = max(lo, l.floor+1)
	i := l.find(lo - 1) // a span that ends right before lo joins it; lo > floor >= 0
	j := i
	for j < len(l.spans) && l.spans[j].lo <= hi+1 {
		lo, hi = min(lo, l.spans[j].lo), max(hi, l.spans[j].hi)
		j++
	}
	l.spans = slices.Replace(l.spans, i, j, span{lo, hi})
}

// raise forgets what is at or below the floor.
func (l *lane) raise(floor uint64) {
	l.floor = floor
	i := 0
	for i < len(l.spans) && l.spans[i].hi <= floor {
		i++
	}
	l.spans = slices.Delete(l.spans, 0, i)
	if len(l.spans) > 0 && l.spans[0].lo <= floor {
		l.spans[0].lo = floor + 1
	}
}

// Spans is the number of ranges kept, over all lanes: what a test watches to see that memory stays bounded.
func (s *Seen) Spans() int {
	n := 0
	for _, l := range s.lanes {
		n += len(l.spans)
	}
	return n
}

// IDs is the number of ids kept.
func (s *Seen) IDs() int { return len(s.ids.set) }

// ErrState means a saved state is not what was saved.
var ErrState = errors.New("saved identity state is corrupt")

// Marshal returns the positions seen as bytes, the same for the same state. Ids are not in it: they are read back from the blocks.
func (s *Seen) Marshal() []byte {
	b := []byte{'S', 1, 0, 0, 0, 0}
	b = binary.AppendUvarint(b, uint64(len(s.lanes)))
	for _, name := range slices.Sorted(maps.Keys(s.lanes)) {
		l := s.lanes[name]
		b = binary.AppendUvarint(b, uint64(len(name)))
		b = append(b, name...)
		b = binary.AppendUvarint(b, l.floor)
		b = binary.AppendUvarint(b, uint64(len(l.spans)))
		for _, sp := range l.spans {
			b = binary.AppendUvarint(b, sp.lo)
			b = binary.AppendUvarint(b, sp.hi)
		}
		b = binary.AppendUvarint(b, uint64(len(l.holes)))
		for _, p := range l.holes {
			b = binary.AppendUvarint(b, p)
		}
	}
	binary.LittleEndian.PutUint32(b[2:], crc32.ChecksumIEEE(b[6:]))
	return b
}

// Unmarshal replaces the positions seen with saved ones. The error is ErrState.
func (s *Seen) Unmarshal(b []byte) error {
	if len(b) < 6 || b[0] != 'S' || b[1] != 1 || binary.LittleEndian.Uint32(b[2:]) != crc32.ChecksumIEEE(b[6:]) {
		return fmt.Errorf("%w: %d bytes", ErrState, len(b))
	}
	b = b[6:]
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
	lanes := map[string]*lane{}
	for range next() {
		n := next()
		if bad || n > uint64(len(b)) {
			return ErrState
		}
		name := string(b[:n])
		b = b[n:]
		l := &lane{floor: next()}
		for range next() {
			if bad {
				return ErrState
			}
			l.spans = append(l.spans, span{next(), next()})
		}
		for range next() {
			if bad {
				return ErrState
			}
			l.holes = append(l.holes, next())
		}
		lanes[name] = l
	}
	if bad || len(b) != 0 {
		return ErrState
	}
	s.lanes = lanes
	return nil
}

// recentIDs remembers ids for a while. It keeps 128 bits of each, so that two ids that are taken for one will not be met.
type recentIDs struct {
	seed1, seed2 maphash.Seed // of this process: keys are never stored
	window       time.Duration
	max          int
	// queue has arrivals in order of time; the first head entries are gone. Invariant: set has the keys of queue[head:], at most max.
	set   map[[2]uint64]struct{}
	queue []arrival
	head  int
}

type arrival struct {
	key [2]uint64
	at  time.Time
}

func newRecentIDs(window time.Duration, maxIDs int) recentIDs {
	return recentIDs{seed1: maphash.MakeSeed(), seed2: maphash.MakeSeed(), window: window, max: maxIDs, set: map[[2]uint64]struct{}{}}
}

// admit reports whether the id is new, and remembers it. An id begins with its vertex and partition, so lanes cannot mix.
func (r *recentIDs) admit(id string, now time.Time) bool {
	for r.head < len(r.queue) && (len(r.set) >= r.max || now.Sub(r.queue[r.head].at) > r.window) {
		delete(r.set, r.queue[r.head].key)
		r.head++
	}
	if r.head > 1024 && r.head*2 > len(r.queue) {
		r.queue = append(r.queue[:0], r.queue[r.head:]...)
		r.head = 0
	}
	key := [2]uint64{maphash.String(r.seed1, id), maphash.String(r.seed2, id)}
	if _, ok := r.set[key]; ok {
		return false
	}
	r.set[key] = struct{}{}
	r.queue = append(r.queue, arrival{key, now})
	return true
}
