package jetstreambuffer

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/levada-io/levada/internal/dataplane/buffer"
)

// Feeds follow streams with shards, each once for all drivers that share the Feeds. The zero value is ready.
type Feeds struct {
	mu   sync.Mutex
	open map[string]*feed
}

// feed knows which shard each entry of a stream is for, and what the readers of the shards have saved. It reads the headers of all entries through one consumer, and one watch.
//
// Invariant: it knows all entries from the first one stored on, as far as it has come, but for those that its cursor did not meet.
type feed struct {
	key  string
	d    *driver // over all shards, headers only
	refs int     // Feeds.mu guards it
	stop context.CancelFunc
	done sync.WaitGroup

	tidyAt int // the size at which tidy asks the broker; only run uses it

	mu sync.Mutex
	// known are the entries from first on; there is none before the feed has started.
	started bool
	first   uint64
	known   []known
	changed chan struct{} // closed and replaced when an entry came, or err was set
	err     error         // why nothing comes, while that is so
	broken  chan struct{} // closed when nothing will come any more

	states      map[int][]byte // what was saved last, by shard
	need        []buffer.Need
	statesKnown bool

	removing sync.Mutex // held while entries are removed; taken before mu
	cut      uint64     // all before it was removed by a driver of this process; removing guards it

	followers map[*follower]bool
	watchers  map[*watcher]bool
}

// known is what is known of an entry.
type known struct {
	base, after uint64
	messages    int
	shard       int // -1 for one that the cursor did not meet
}

// located is a known entry with its place.
type located struct {
	known
	seq uint64
}

// entry is the entry as the reader of another shard sees it.
func (l located) entry() buffer.Entry {
	return buffer.Entry{Seq: l.seq, Foreign: true, Base: l.base, After: l.after}
}

type follower struct {
	shard  int
	stored func(uint64, int)
}

type watcher struct {
	shard   int
	changed func([]byte)
}

// of returns the feed of a stream, and starts it if there is none.
func (fs *Feeds) of(d *driver) *feed {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	key := d.cfg.Stream + " " + strconv.FormatInt(d.created.UnixNano(), 36)
	f := fs.open[key]
	if f == nil {
		ctx, stop := context.WithCancel(context.Background())
		f = &feed{
			key: key, stop: stop, changed: make(chan struct{}), broken: make(chan struct{}), states: map[int][]byte{}, need: make([]buffer.Need, d.shards),
			followers: map[*follower]bool{}, watchers: map[*watcher]bool{}, tidyAt: tidyEvery,
			d: &driver{js: d.js, cfg: d.cfg, created: d.created, memory: d.memory, shards: d.shards, reads: reads{headersOnly: true, bytes: aheadBytes}},
		}
		for i := range f.need {
			f.need[i].From = 1
		}
		if fs.open == nil {
			fs.open = map[string]*feed{}
		}
		fs.open[key] = f
		f.done.Go(func() { f.run(ctx) })
		f.done.Go(func() { f.watch(ctx) })
	}
	f.refs++
	return f
}

// release ends a feed that nobody uses any more.
func (fs *Feeds) release(f *feed) {
	fs.mu.Lock()
	f.refs--
	last := f.refs == 0
	if last {
		delete(fs.open, f.key)
	}
	fs.mu.Unlock()
	if last {
		f.stop()
		_ = f.d.Close()
		f.done.Wait()
	}
}

// feedRetry is the pause after an error of the broker.
const feedRetry = 100 * time.Millisecond

// run follows the stream until ctx ends, or there is nothing to follow any more.
func (f *feed) run(ctx context.Context) {
	for ctx.Err() == nil {
		err := f.start(ctx)
		for err == nil {
			var m message
			if m, err = f.d.nextMessage(ctx); err == nil {
				f.add(m)
				f.tidy(ctx)
			}
		}
		if ctx.Err() != nil {
			return
		}
		f.mu.Lock()
		f.err = err
		f.wake()
		lost := errors.Is(err, buffer.ErrMissing) || errors.Is(err, buffer.ErrClosed)
		if lost {
			close(f.broken)
		}
		f.mu.Unlock()
		if lost || !pause(ctx) {
			return
		}
	}
}

// tidyEvery is how many more entries must be known before the broker is asked which of them were removed.
const tidyEvery = 4096

// tidy forgets what readers in other processes have removed: a process that only writes learns of it in no other way. Only run calls it. If the broker does not answer, it is asked later.
func (f *feed) tidy(ctx context.Context) {
	if f.size() < f.tidyAt {
		return
	}
	if bounds, err := f.d.Bounds(ctx); err == nil {
		f.removed(bounds.First)
	}
	n := f.size()
	f.tidyAt = n + max(n, tidyEvery)
}

// size is how many entries are known.
func (f *feed) size() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.known)
}

// pause waits before the broker is asked again. It reports whether ctx did not end.
func pause(ctx context.Context) bool {
	select {
	case <-time.After(feedRetry):
		return true
	case <-ctx.Done():
		return false
	}
}

// start puts the cursor to the first entry that is stored, once.
func (f *feed) start(ctx context.Context) error {
	f.mu.Lock()
	started := f.started
	f.mu.Unlock()
	if started {
		return nil
	}
	bounds, err := f.d.Bounds(ctx)
	if err != nil {
		return err
	}
	if err := f.d.Resume(ctx, bounds.First-1); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.started, f.first = true, bounds.First
	f.wake()
	return nil
}

// wake wakes all who wait for a change. mu is held.
func (f *feed) wake() {
	close(f.changed)
	f.changed = make(chan struct{})
}

// add takes the next entry that the cursor met.
func (f *feed) add(m message) {
	shard := -1
	if n, ok := strings.CutPrefix(m.subject, f.d.cfg.Stream+"."); ok {
		shard, _ = strconv.Atoi(n) // subjects of a stream are made by us
	}
	messages, _ := strconv.Atoi(m.messages) // 0 without a header, which every entry of a stream with shards has
	f.mu.Lock()
	defer f.mu.Unlock()
	f.err = nil
	end := f.first + uint64(len(f.known))
	if m.Seq < end {
		return // the cursor ascends, so that this is none of it
	}
	for ; end < m.Seq; end++ {
		f.known = append(f.known, known{shard: -1})
	}
	f.known = append(f.known, known{m.Base, m.After, messages, shard})
	for w := range f.followers {
		if w.shard == shard {
			w.stored(m.Seq, messages)
		}
	}
	f.wake()
}

// await waits until the first entry at or after seq is known that the cursor has met.
func (f *feed) await(ctx context.Context, seq uint64) (located, error) {
	for {
		f.mu.Lock()
		at, ok := f.next(seq)
		changed, err := f.changed, f.err
		f.mu.Unlock()
		if ok || err != nil {
			return at, err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return located{}, ctx.Err()
		}
	}
}

// next is the first entry at or after seq that is known. mu is held.
func (f *feed) next(seq uint64) (located, bool) {
	if !f.started {
		return located{}, false
	}
	for seq = max(seq, f.first); seq-f.first < uint64(len(f.known)); seq++ {
		if k := f.known[seq-f.first]; k.shard >= 0 {
			return located{k, seq}, true
		}
	}
	return located{}, false
}

// at is what is known of the entry at seq.
func (f *feed) at(seq uint64) (located, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	at, ok := f.next(seq)
	return at, ok && at.seq == seq
}

// reaches waits until the entries up to last are known. It returns false if the cursor gives no more before that, for as long as a scan waits.
func (f *feed) reaches(ctx context.Context, last uint64) (bool, error) {
	patience := time.NewTimer(scanPatience)
	defer patience.Stop()
	for {
		f.mu.Lock()
		end, started, changed, err := f.first+uint64(len(f.known)), f.started, f.changed, f.err
		f.mu.Unlock()
		switch {
		case started && end > last:
			return true, nil
		case err != nil:
			return false, err
		}
		select {
		case <-changed:
			patience.Reset(scanPatience)
		case <-patience.C:
			if !started {
				return false, fmt.Errorf("no answer from the broker in %v", scanPatience)
			}
			return false, nil
		case <-ctx.Done():
			return false, ctx.Err()
		}
	}
}

// lastOf is the last entry of a shard from lo to hi; 0 if none is known.
func (f *feed) lastOf(shard int, lo, hi uint64) uint64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	for seq := min(hi, f.first+uint64(len(f.known))-1); seq >= max(lo, f.first); seq-- {
		if f.known[seq-f.first].shard == shard {
			return seq
		}
	}
	return 0
}

// reset makes the cursor again.
func (f *feed) reset() { f.d.Reset() }

// removed forgets entries before first, which are not stored any more.
func (f *feed) removed(first uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.started || first <= f.first {
		return
	}
	n := min(first-f.first, uint64(len(f.known)))
	f.known = append([]known(nil), f.known[n:]...)
	f.first += n
}

// needs are what the readers of the shards have saved.
func (f *feed) needs() ([]buffer.Need, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]buffer.Need(nil), f.need...), f.statesKnown
}

// trim removes all before seq, unless a shard of this process has done so.
func (f *feed) trim(seq uint64, remove func() error) error {
	f.removing.Lock()
	defer f.removing.Unlock()
	if seq <= f.cut {
		return nil
	}
	if err := remove(); err != nil {
		return err
	}
	f.cut = seq
	f.removed(seq)
	return nil
}

// follow calls stored for each entry of a shard after seq until ctx ends, or nothing will come any more.
func (f *feed) follow(ctx context.Context, shard int, seq uint64, stored func(uint64, int)) error {
	w := &follower{shard, stored}
	f.mu.Lock()
	for at, ok := f.next(seq + 1); ok; at, ok = f.next(at.seq + 1) {
		if at.shard == shard {
			stored(at.seq, at.messages)
		}
	}
	f.followers[w] = true
	f.mu.Unlock()
	defer func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		delete(f.followers, w)
	}()
	return f.end(ctx)
}

// watchState calls changed with what the reader of a shard has saved, likewise.
func (f *feed) watchState(ctx context.Context, shard int, changed func([]byte)) error {
	w := &watcher{shard, changed}
	f.mu.Lock()
	if state := f.states[shard]; state != nil {
		changed(state)
	}
	f.watchers[w] = true
	f.mu.Unlock()
	defer func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		delete(f.watchers, w)
	}()
	return f.end(ctx)
}

// end waits until ctx ends or nothing will come any more.
func (f *feed) end(ctx context.Context) error {
	select {
	case <-f.broken:
		f.mu.Lock()
		defer f.mu.Unlock()
		return f.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// watch follows what the readers save, until ctx ends.
func (f *feed) watch(ctx context.Context) {
	for ctx.Err() == nil {
		if err := f.watchOnce(ctx); err != nil && ctx.Err() == nil {
			f.d.cfg.Logger.Debug("watch of saved states interrupted, watching again", "stream", f.d.cfg.Stream, "error", err)
		}
		if !pause(ctx) {
			return
		}
	}
}

func (f *feed) watchOnce(ctx context.Context) error {
	prefix := f.d.key("seen") + "."
	watch, err := f.d.cfg.State.Watch(ctx, prefix+"*")
	if err != nil {
		return err
	}
	defer func() { _ = watch.Stop() }()
	for {
		select {
		case entry, ok := <-watch.Updates():
			if !ok {
				return errors.New("the broker ended the watch of the saved states")
			}
			if entry == nil { // all that was saved before has come
				f.mu.Lock()
				f.statesKnown = true
				f.mu.Unlock()
				continue
			}
			if shard, err := strconv.Atoi(strings.TrimPrefix(entry.Key(), prefix)); err == nil && shard >= 0 && shard < len(f.need) {
				f.saved(shard, entry)
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// saved takes what the reader of a shard has saved.
func (f *feed) saved(shard int, entry jetstream.KeyValueEntry) {
	var state []byte
	if entry.Operation() == jetstream.KeyValuePut {
		state = entry.Value()
	}
	need := buffer.NeedOf(state)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.states[shard], f.need[shard] = state, need
	if state == nil {
		return
	}
	for w := range f.watchers {
		if w.shard == shard {
			w.changed(state)
		}
	}
}
