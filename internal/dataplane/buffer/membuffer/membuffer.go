// Package membuffer is a buffer driver in memory, for tests: it forgets nothing but what a test tells it to.
package membuffer

import (
	"bytes"
	"context"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/levada-io/levada/internal/dataplane/buffer"
)

// Store is the log, which outlives its drivers as a broker outlives its clients.
type Store struct {
	mu      sync.Mutex
	entries []buffer.Entry // ascending
	last    uint64
	ids     map[string]uint64 // where what was stored under an id is
	counts  map[uint64]int    // the messages of each entry, as the writer counted them
	hidden  map[uint64]bool
	of      map[uint64]int // the shard of each entry
	// beside is what is kept for each shard; there is one for a partition that is not divided.
	beside  []beside
	changed chan struct{} // closed and replaced when an entry is added, or a driver is closed
	saved   chan struct{} // closed and replaced when a state is saved
	max     int
}

// beside is what is saved beside the log for the reader of a shard.
type beside struct {
	state []byte
	// revision is that of state. It rises with each save.
	revision uint64
	damage   []byte
}

// NewStore returns an empty log whose entries hold up to maxEntry bytes.
func NewStore(maxEntry int) *Store {
	return &Store{
		ids: map[string]uint64{}, counts: map[uint64]int{}, hidden: map[uint64]bool{}, of: map[uint64]int{}, beside: make([]beside, 1), changed: make(chan struct{}), saved: make(chan struct{}), max: maxEntry,
	}
}

// Divide gives the partition shards, unless something was written.
func (s *Store) Divide(shards int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.last == 0 {
		s.beside = make([]beside, shards)
	}
}

// ForgetIDs makes the store forget which ids it stored, as a broker does after its deduplication window.
func (s *Store) ForgetIDs() {
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.ids)
}

// Hide keeps entries from cursors, as a damaged replica does; Find still has them.
func (s *Store) Hide(seqs ...uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, seq := range seqs {
		s.hidden[seq] = true
	}
}

// Reveal ends Hide.
func (s *Store) Reveal() {
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.hidden)
}

// Edit lets a test damage what is stored.
func (s *Store) Edit(change func([]buffer.Entry) []buffer.Entry) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.entries = change(s.entries)
}

// Copy is the store as it is now: one that is put in its place later has lost its end.
func (s *Store) Copy() *Store {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := NewStore(s.max)
	c.entries, c.last, c.beside = slices.Clone(s.entries), s.last, slices.Clone(s.beside)
	maps.Copy(c.of, s.of)
	maps.Copy(c.ids, s.ids)
	maps.Copy(c.counts, s.counts)
	return c
}

// LoseEnd removes all after seq from under the drivers that are open, and gives its sequences again, as a broker does that has not synced.
func (s *Store) LoseEnd(seq uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.entries = slices.DeleteFunc(s.entries, func(e buffer.Entry) bool { return e.Seq > seq })
	s.last = min(s.last, seq)
	clear(s.ids)
}

// TakeState takes over what another store has saved beside its log.
func (s *Store) TakeState(from *Store) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range s.beside {
		s.beside[i].state = bytes.Clone(from.beside[i].state)
	}
}

// Len is the number of entries stored.
func (s *Store) Len() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.entries)
}

// Open returns a driver on the store.
func (s *Store) Open() buffer.Driver { return &driver{Store: s} }

type driver struct {
	*Store
	next   uint64
	closed bool
	// shard is the one that it shows, if ofShard.
	shard   int
	ofShard bool
}

// ofOneShard is the driver of a shard.
type ofOneShard struct{ *driver }

// Shards implements buffer.Sharded.
func (d *driver) Shards() int { return len(d.beside) }

// Shard implements buffer.Sharded.
func (d *driver) Shard(n int) buffer.Driver {
	return ofOneShard{&driver{Store: d.Store, shard: n, ofShard: true}}
}

// UsageOf implements buffer.ShardedUsage.
func (d *driver) UsageOf(shard int) buffer.Usage { return d.Shard(shard) }

// Shards is 1: a shard is not divided.
func (d ofOneShard) Shards() int { return 1 }

// Needs implements buffer.Siblings.
func (d ofOneShard) Needs() (needs []buffer.Need, ok bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for i := range d.beside {
		needs = append(needs, buffer.NeedOf(d.beside[i].state))
	}
	return needs, true
}

// view is an entry as the driver shows it. mu is held.
func (d *driver) view(e buffer.Entry) buffer.Entry {
	if d.ofShard && d.of[e.Seq] != d.shard {
		return buffer.Entry{Seq: e.Seq, Foreign: true, Base: e.Base, After: e.After}
	}
	return e
}

type receipt struct {
	seq uint64
	dup bool
	err error
}

func (r receipt) Wait(context.Context) (uint64, bool, error) { return r.seq, r.dup, r.err }

func (d *driver) Submit(_ context.Context, r buffer.Record) buffer.Receipt {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch at, known := d.ids[r.ID]; {
	case d.closed:
		return receipt{err: buffer.ErrClosed}
	case len(r.Data) > d.max:
		return receipt{err: buffer.ErrTooLarge}
	case known:
		return receipt{seq: at, dup: true}
	}
	d.last++
	d.ids[r.ID], d.counts[d.last], d.of[d.last] = d.last, r.Messages, r.Shard
	// The caller's memory is the caller's.
	d.entries = append(d.entries, buffer.Entry{Seq: d.last, Data: bytes.Clone(r.Data), Stored: time.Now(), Base: r.Base, After: r.After})
	wake(&d.changed)
	return receipt{seq: d.last}
}

// wake wakes all who wait for a change. mu is held.
func wake(changed *chan struct{}) {
	close(*changed)
	*changed = make(chan struct{})
}

// Follow implements buffer.Usage.
func (d *driver) Follow(ctx context.Context, seq uint64, stored func(uint64, int)) error {
	for {
		d.mu.Lock()
		if d.closed {
			d.mu.Unlock()
			return buffer.ErrClosed
		}
		var news []uint64
		for _, e := range d.entries {
			if e.Seq > seq && !d.view(e).Foreign {
				news = append(news, e.Seq)
			}
		}
		counts, changed := make([]int, len(news)), d.changed
		for i, n := range news {
			counts[i] = d.counts[n]
		}
		d.mu.Unlock()
		for i, n := range news {
			stored(n, counts[i])
			seq = n
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// WatchState implements buffer.Usage.
func (d *driver) WatchState(ctx context.Context, changed func([]byte)) error {
	for {
		d.mu.Lock()
		state, saved := bytes.Clone(d.beside[d.shard].state), d.saved
		d.mu.Unlock()
		changed(state)
		select {
		case <-saved:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Reset implements buffer.Cursor. This cursor cannot be lost.
func (d *driver) Reset() {}

func (d *driver) Resume(_ context.Context, after uint64) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.next = after + 1
	return nil
}

func (d *driver) Next(ctx context.Context) (buffer.Entry, error) {
	for {
		d.mu.Lock()
		if d.closed {
			d.mu.Unlock()
			return buffer.Entry{}, buffer.ErrClosed
		}
		for _, e := range d.entries {
			if e.Seq >= d.next && !d.hidden[e.Seq] {
				d.next = e.Seq + 1
				e = d.view(e)
				d.mu.Unlock()
				return e, nil
			}
		}
		changed := d.changed
		d.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			return buffer.Entry{}, ctx.Err()
		}
	}
}

func (d *driver) Find(_ context.Context, lo, hi uint64, good func(buffer.Entry) bool) (found []buffer.Entry, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, e := range d.entries {
		if e = d.view(e); lo <= e.Seq && e.Seq <= hi && good(e) {
			found = append(found, e)
		}
	}
	return found, nil
}

func (d *driver) Bounds(context.Context) (buffer.Bounds, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	b := buffer.Bounds{First: d.last + 1, Last: d.last}
	if len(d.entries) > 0 {
		b.First = d.entries[0].Seq
	}
	return b, nil
}

func (d *driver) Scan(_ context.Context, seq uint64, visit func(buffer.Entry) error) error {
	d.mu.Lock()
	entries := append([]buffer.Entry(nil), d.entries...)
	for i := range entries {
		entries[i] = d.view(entries[i])
	}
	d.mu.Unlock()
	for _, e := range entries {
		if e.Seq >= seq && !d.hidden[e.Seq] {
			if err := visit(e); err != nil {
				return err
			}
		}
	}
	return nil
}

func (d *driver) Trim(_ context.Context, seq uint64) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	i := 0
	for i < len(d.entries) && d.entries[i].Seq < seq {
		i++
	}
	d.entries = d.entries[i:]
	return nil
}

func (d *driver) SaveState(_ context.Context, state []byte) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.save(state)
	return nil
}

// save replaces the state. mu is held.
func (d *driver) save(state []byte) {
	d.beside[d.shard].state = bytes.Clone(state)
	d.beside[d.shard].revision++
	wake(&d.saved)
}

// ReadState implements buffer.StateRegister.
func (d *driver) ReadState(context.Context) ([]byte, uint64, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return bytes.Clone(d.beside[d.shard].state), d.beside[d.shard].revision, nil
}

// ReplaceState implements buffer.StateRegister.
func (d *driver) ReplaceState(_ context.Context, state []byte, revision uint64) (uint64, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.beside[d.shard].revision != revision {
		return 0, buffer.ErrReplaced
	}
	d.save(state)
	return d.beside[d.shard].revision, nil
}

func (d *driver) LoadState(context.Context) ([]byte, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return append([]byte(nil), d.beside[d.shard].state...), nil
}

func (d *driver) SaveDamage(_ context.Context, damage []byte) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.beside[d.shard].damage = bytes.Clone(damage)
	return nil
}

func (d *driver) LoadDamage(context.Context) ([]byte, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return bytes.Clone(d.beside[d.shard].damage), nil
}

func (d *driver) Incarnation() string { return "m" }

func (d *driver) MaxEntry() int { return d.max }

func (d *driver) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.closed = true
	wake(&d.changed)
	return nil
}
