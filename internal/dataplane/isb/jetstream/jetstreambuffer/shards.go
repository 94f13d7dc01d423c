package jetstreambuffer

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strconv"
	"strings"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/levada-io/levada/internal/dataplane/buffer"
)

// A partition with S shards is one stream with the subjects STREAM.0 to STREAM.S-1: a stream costs a raft group, a subject nothing. One without has the subject STREAM.
//
// The number is fixed when the stream is created. The subjects say it, and the metadata beside them.

// keyShards is the key of the metadata that says how many shards a stream has.
const keyShards = "levada.io/shards"

// subject is where the entries of a shard are published.
func subject(stream string, shard, shards int) string {
	if shards == 1 {
		return stream
	}
	return stream + "." + strconv.Itoa(shard)
}

func subjects(stream string, shards int) (all []string) {
	for n := range shards {
		all = append(all, subject(stream, n, shards))
	}
	return all
}

func withShards(metadata map[string]string, shards int) map[string]string {
	if shards == 1 {
		return metadata
	}
	m := map[string]string{keyShards: strconv.Itoa(shards)}
	maps.Copy(m, metadata)
	return m
}

// shardsIn is how many shards a stream has.
func shardsIn(cfg jetstream.StreamConfig) (int, error) {
	n := len(cfg.Subjects)
	if n > 0 && cfg.Subjects[0] == cfg.Name {
		n = 1
	}
	if said := cfg.Metadata[keyShards]; said != "" && said != strconv.Itoa(n) {
		return 0, fmt.Errorf("its metadata says that it has %s shards, and it has the subjects %s: restore its configuration", said, strings.Join(cfg.Subjects, ", "))
	}
	return max(1, n), nil
}

// keysOfShards are the keys in which something is saved for a shard.
func keysOfShards(ctx context.Context, state jetstream.KeyValue, stream string) (keys []string, err error) {
	list, err := state.ListKeysFiltered(ctx, stateKey(stream, "*")+".*")
	if errors.Is(err, jetstream.ErrNoKeysFound) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("keys of the shards of stream %s: %w", stream, err)
	}
	for key := range list.Keys() {
		keys = append(keys, key)
	}
	return keys, nil
}

// aheadOfShard is how many bytes the cursor of a shard reads ahead. A pull request must have room for the largest entry; all of a connection must stay well below what a server sends to
// a client before it cuts it off, which is 64 MiB.
func aheadOfShard(shards int) int { return max(512<<10, 2*aheadBytes/shards) }

// filter are the subjects that a consumer is for; nil for all.
func (r reads) filter() []string {
	if r.subject == "" {
		return nil
	}
	return []string{r.subject}
}

// show is an entry of a subject as a reader sees it.
func (r reads) show(subject string, e buffer.Entry) buffer.Entry {
	if r.subject == "" || r.subject == subject {
		return e
	}
	return foreign(e)
}

// foreign is an entry of another shard.
func foreign(e buffer.Entry) buffer.Entry {
	return buffer.Entry{Seq: e.Seq, Foreign: true, Base: e.Base, After: e.After}
}

// Shards implements buffer.Sharded.
func (d *driver) Shards() int { return d.shards }

// Shard implements buffer.Sharded.
func (d *driver) Shard(n int) buffer.Driver { return d.shard(n) }

func (d *driver) shard(n int) *shardDriver {
	return &shardDriver{driver: &driver{
		js: d.js, cfg: d.cfg, created: d.created, memory: d.memory, shards: d.shards, suffix: "." + strconv.Itoa(n),
		reads: reads{subject: subject(d.cfg.Stream, n, d.shards), bytes: aheadOfShard(d.shards)},
	}, n: n, feed: d.cfg.Feeds.of(d)}
}

// UsageOf implements buffer.ShardedUsage. What it uses is released by Close of the driver.
func (d *driver) UsageOf(shard int) buffer.Usage {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.views == nil {
		d.views = map[int]*shardDriver{}
	}
	if d.views[shard] == nil {
		d.views[shard] = d.shard(shard)
	}
	return d.views[shard]
}

// shardDriver is the log as the reader of one shard sees it. Which entries are its own is known from the feed; their data comes from a cursor with the shard's subject.
//
// Invariant: what neither of the two knows shows as a jump of Next, so that the reader looks for it in every replica.
type shardDriver struct {
	*driver // of the shard: its next is the sequence that Next gives next
	n       int
	feed    *feed
	// ahead is what the cursor gave and is not due yet; only Next uses it.
	ahead *buffer.Entry
	ended bool // Close was called; mu guards it
}

// Shards is 1: a shard is not divided.
func (s *shardDriver) Shards() int { return 1 }

// Needs implements buffer.Siblings.
func (s *shardDriver) Needs() ([]buffer.Need, bool) { return s.feed.needs() }

// Resume implements buffer.Cursor.
func (s *shardDriver) Resume(ctx context.Context, after uint64) error {
	s.ahead = nil
	return s.driver.Resume(ctx, after)
}

// Next implements buffer.Cursor.
func (s *shardDriver) Next(ctx context.Context) (buffer.Entry, error) {
	for {
		s.mu.Lock()
		next, closed := s.next, s.closed
		s.mu.Unlock()
		if closed {
			return buffer.Entry{}, buffer.ErrClosed
		}
		at, err := s.feed.await(ctx, next)
		if err != nil {
			return buffer.Entry{}, err
		}
		if at.shard == s.n {
			e, again, err := s.own(ctx, at.seq)
			if again {
				continue
			}
			return e, err
		}
		s.mu.Lock()
		s.next = at.seq + 1
		s.mu.Unlock()
		return at.entry(), nil
	}
}

// own is the entry of the shard at seq, from the cursor. If the cursor gave another one instead, it is made again, for once: what it gave may have been lost with a connection. again says
// that the caller must ask the feed again.
func (s *shardDriver) own(ctx context.Context, seq uint64) (e buffer.Entry, again bool, err error) {
	if s.ahead == nil || s.ahead.Seq < seq {
		s.mu.Lock()
		begun := s.fresh || s.reader == nil
		s.next = seq // where a new cursor begins
		s.mu.Unlock()
		m, err := s.nextMessage(ctx)
		if err != nil {
			return e, false, err
		}
		s.ahead = &m.Entry
		s.mu.Lock()
		s.next = seq // nextMessage has moved it to where the cursor is
		if m.Seq > seq && !begun {
			s.dropReader()
			s.ahead = nil
			again = true
		}
		s.mu.Unlock()
		if again || m.Seq < seq {
			return e, true, nil
		}
	}
	e = *s.ahead
	s.ahead = nil
	s.mu.Lock()
	s.next = e.Seq + 1
	s.mu.Unlock()
	return e, false, nil
}

// Reset implements buffer.Cursor.
func (s *shardDriver) Reset() {
	s.driver.Reset()
	s.feed.reset()
}

// Scan implements buffer.Log.
func (s *shardDriver) Scan(ctx context.Context, seq uint64, visit func(buffer.Entry) error) error {
	bounds, err := s.Bounds(ctx)
	if err != nil || bounds.Last < seq || bounds.First > bounds.Last {
		return err
	}
	next := max(seq, bounds.First)
	complete, err := s.feed.reaches(ctx, bounds.Last)
	if err != nil {
		return err
	}
	pass := func(to uint64) error { // visits what is known to be of others
		for ; next <= to; next++ {
			if at, ok := s.feed.at(next); ok && at.shard != s.n {
				if err := visit(at.entry()); err != nil {
					return err
				}
			}
		}
		return nil
	}
	if own := s.feed.lastOf(s.n, next, bounds.Last); own > 0 {
		err := s.scan(ctx, buffer.Bounds{First: bounds.First, Last: own}, next, func(e buffer.Entry) error {
			if e.Seq < next {
				return nil
			}
			if err := pass(e.Seq - 1); err != nil {
				return err
			}
			next = e.Seq + 1
			return visit(e)
		})
		if err != nil {
			return err
		}
	}
	if err := pass(bounds.Last); err != nil {
		return err
	}
	if !complete {
		return fmt.Errorf("%w for %v, and the last one is %d", buffer.ErrStalled, scanPatience, bounds.Last)
	}
	return nil
}

// Bounds implements buffer.Ends.
func (s *shardDriver) Bounds(ctx context.Context) (buffer.Bounds, error) {
	b, err := s.driver.Bounds(ctx)
	if err == nil {
		s.feed.removed(b.First)
	}
	return b, err
}

// Trim implements buffer.Retention. Shards of a process trim to the same place, of which one has an effect.
func (s *shardDriver) Trim(ctx context.Context, seq uint64) error {
	return s.feed.trim(seq, func() error { return s.driver.Trim(ctx, seq) })
}

// Follow implements buffer.Usage, for the entries of the shard.
func (s *shardDriver) Follow(ctx context.Context, seq uint64, stored func(uint64, int)) error {
	return s.feed.follow(ctx, s.n, seq, stored)
}

// WatchState implements buffer.Usage.
func (s *shardDriver) WatchState(ctx context.Context, changed func([]byte)) error {
	return s.feed.watchState(ctx, s.n, changed)
}

// Close lets go of the shard.
func (s *shardDriver) Close() error {
	s.mu.Lock()
	ended := s.ended
	s.ended = true
	s.mu.Unlock()
	if !ended {
		s.cfg.Feeds.release(s.feed)
	}
	return s.driver.Close()
}
