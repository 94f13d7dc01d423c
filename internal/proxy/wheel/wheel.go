// Package wheel keeps very many timers that are set and stopped far more often than they go off: the ages and deadlines of streams.
//
// It is the hierarchical timing wheel of Varghese and Lauck (1987): setting and stopping cost a few instructions whatever the number. A timer goes off
// up to [Tick] late, never early.
package wheel

import (
	"context"
	"math/bits"
	"sync"
	"time"
)

// Tick is the precision.
const Tick = 4 * time.Millisecond

const (
	slotBits = 6
	slots    = 1 << slotBits
	levels   = 6 // 64^6 ticks of 4 ms: nine years
)

// Timer calls its function once, some time after it was set. The zero value is not usable: give it a function with [Timer.Init].
type Timer struct {
	next, prev *Timer // in its slot; nil if not set
	at         int64  // in ticks since the wheel's start
	slot       int16
	call       func(now int64)
}

// Init sets the function, which is called on the wheel's goroutine with the wheel's time, and must not block.
func (t *Timer) Init(call func(now int64)) { t.call = call }

// Wheel keeps timers. Its functions may be called concurrently, also from a timer's function.
type Wheel struct {
	start time.Time
	wake  chan struct{}

	mu       sync.Mutex
	done     int64 // ticks up to which all timers went off
	sleeping int64 // the tick until which Run sleeps; 0 while it works
	lists    [levels * slots]Timer
	used     [levels]uint64 // a bit for each slot that may hold timers
	count    int

	due []*Timer // Run's
}

// New makes a wheel. Somebody must call Run.
func New() *Wheel {
	w := &Wheel{start: time.Now(), wake: make(chan struct{}, 1)}
	for i := range w.lists {
		w.lists[i].next, w.lists[i].prev = &w.lists[i], &w.lists[i]
	}
	return w
}

// Now is the time in nanoseconds since the wheel was made.
func (w *Wheel) Now() int64 { return int64(time.Since(w.start)) }

// farthest is how many ticks ahead a timer can be set: four years. One that is set for later goes off then.
const farthest = 1 << (slotBits*levels - 1)

// Set makes t go off at the given time of the wheel, in nanoseconds, whether or not it was set before.
func (w *Wheel) Set(t *Timer, at int64) {
	w.mu.Lock()
	w.unlink(t)
	ticks := at / int64(Tick)
	if at%int64(Tick) > 0 {
		ticks++
	}
	t.at = min(max(ticks, w.done+1), w.done+farthest)
	w.link(t)
	wake := w.sleeping > t.at
	if wake {
		w.sleeping = 0
	}
	w.mu.Unlock()
	if wake {
		w.rouse()
	}
}

// Stop keeps t from going off. Its function may be running, or be just about to: it must find out by itself that it comes too late.
func (w *Wheel) Stop(t *Timer) {
	if t.call == nil {
		return
	}
	w.mu.Lock()
	w.unlink(t)
	w.mu.Unlock()
}

// Len is the number of timers that are set.
func (w *Wheel) Len() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.count
}

func (w *Wheel) rouse() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// link puts a timer into the finest level whose slots reach its time.
func (w *Wheel) link(t *Timer) {
	level := min((bits.Len64(uint64(t.at^w.done))-1)/slotBits, levels-1)
	index := int(t.at>>(level*slotBits)) & (slots - 1)
	w.used[level] |= 1 << index
	t.slot = int16(level*slots + index)
	head := &w.lists[t.slot]
	t.prev, t.next = head.prev, head
	t.prev.next, head.prev = t, t
	w.count++
}

func (w *Wheel) unlink(t *Timer) {
	if t.next == nil {
		return
	}
	t.prev.next, t.next.prev = t.next, t.prev
	t.next, t.prev = nil, nil
	w.count--
	if head := &w.lists[t.slot]; head.next == head {
		w.used[int(t.slot)/slots] &^= 1 << (int(t.slot) % slots)
	}
}

// nextTick is the tick at which something has to be done, or -1.
func (w *Wheel) nextTick() int64 {
	for level := range w.used {
		if w.used[level] == 0 {
			continue
		}
		shift := level * slotBits
		// Slots of a level never lie behind its hand, and the hand's own slot has been emptied into finer levels.
		here := int(w.done>>shift) & (slots - 1)
		if ahead := w.used[level] >> here >> 1; ahead != 0 {
			index := here + 1 + bits.TrailingZeros64(ahead)
			return (w.done>>shift&^(slots-1) | int64(index)) << shift
		}
	}
	return -1
}

// advance moves to the tick, and takes the timers that go off until then into due.
func (w *Wheel) advance(to int64) {
	for w.done < to {
		next := w.nextTick()
		if next < 0 || next > to {
			w.done = to
			break
		}
		w.done = next
		// From the coarsest, since a slot's timers go into finer levels.
		for level := levels - 1; level >= 0; level-- {
			shift := level * slotBits
			if level > 0 && next&(1<<shift-1) != 0 {
				continue
			}
			head := &w.lists[level*slots+int(next>>shift)&(slots-1)]
			for t := head.next; t != head; t = head.next {
				w.unlink(t)
				if t.at <= next {
					w.due = append(w.due, t)
				} else {
					w.link(t)
				}
			}
		}
	}
}

// Run calls the functions of timers when their time comes, until ctx ends.
func (w *Wheel) Run(ctx context.Context) {
	sleep := time.NewTimer(time.Hour)
	defer sleep.Stop()
	for ctx.Err() == nil {
		now := w.Now()
		w.mu.Lock()
		w.advance(now / int64(Tick))
		next := w.nextTick()
		w.sleeping = 0
		if len(w.due) == 0 {
			if w.sleeping = next; next < 0 {
				w.sleeping = 1<<63 - 1
			}
		}
		w.mu.Unlock()
		if len(w.due) > 0 {
			for _, t := range w.due {
				t.call(now)
			}
			clear(w.due)
			w.due = w.due[:0]
			continue
		}
		wait := time.Hour
		if next >= 0 {
			wait = time.Duration(next)*Tick - time.Duration(now)
		}
		sleep.Reset(wait)
		select {
		case <-sleep.C:
		case <-w.wake:
		case <-ctx.Done():
		}
	}
}
