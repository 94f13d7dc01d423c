// Package redisstore keeps sessions and leases of shards in Redis.
//
// # Keys
//
// All are in one slot of a cluster, and so at one server, whose writes are in one order. Beside the two keys that are given there are three for each group, with its prefix:
//
//	PLACE              hash: revision is the last one that was given, to whatever key; history see below
//	VALUES             hash: key to "REVISION VALUE"
//	PREFIX:GROUP:order sorted set: the keys of the group, also removed ones, by revision
//	PREFIX:GROUP:times hash: key to when its record expires and its TTL, or when it was removed; and notes of the script, which begin with #
//	PREFIX:GROUP:news  stream of one entry, whose id is the newest revision of the group: watches wait for it
//
// Everything is one script (records.lua), so that a compare-and-set sees every write before it, revisions ascend over all keys, and what a watch is given is a state of the store. No key
// of Redis has a TTL: the script removes the records that have expired, by the clock of the server, and each watch calls it once a second. There are no notifications, which need a setting of the
// server, and no channels, which need a permission of their own.
//
// # What holds when a server loses the end of what was written
//
// Replication is asynchronous, and a file that is synced each second loses its end in a power loss. What is there then is a state that the store has had: what was written before a write
// that is there, is there too. In particular, a lease is never there without the announcement of its owner's session before it, unless that ended. But
// revisions would be given again, and a member would take what it knows for newer than what is there.
//
// So each history of the store has revisions of its own. The script compares the id of the server's replication, which is another one after each failover and restart; revisions then go on 2^24
// higher, all records get new ones in the order that they had, and their whole TTL once more. A member whose session is there goes on: its renewal is refused, it reads its own record, and
// renews over that. A member whose session is lost reads that it had none when this history began: it stops what it reads and comes back under another incarnation. A lease that was lost is free, or
// its former owner's: the member that had it sees that and stops, and for a moment two may read the shard, as with an owner that was frozen. The same epoch may be given a second time then: the
// saved state has the incarnation beside it, and refuses the second (shard.Fence).
package redisstore

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/levada-io/levada/internal/dataplane/redislink"
	"github.com/levada-io/levada/internal/dataplane/shard"
)

// Keys are those that others use too. All of them, and Prefix, have the same hash tag.
type Keys struct {
	Place, Values string
	// Prefix begins the names of the keys of groups.
	Prefix string
}

// Store implements shard.Store.
type Store struct {
	link *redislink.Link
	keys Keys
}

// New returns the store under keys of which Place exists.
func New(link *redislink.Link, keys Keys) *Store { return &Store{link, keys} }

//go:embed records.lua
var recordsLua string

var recordsScript = redis.NewScript(recordsLua)

// Errors of the script begin with a word of their own.
const (
	saysConflict  = "LEVADACONFLICT"
	saysNone      = "LEVADANONE"
	saysForgotten = "LEVADAFORGOTTEN"
)

// group is the part of a key that its group shares: what is before the kind of the record.
func group(key string) string {
	for _, word := range []string{".member.", ".lease."} {
		if at := strings.Index(key, word); at >= 0 {
			return key[:at]
		}
	}
	g, _, _ := strings.Cut(key, ".")
	return g
}

func (s *Store) news(group string) string { return s.keys.Prefix + ":" + group + ":news" }

// run runs the script for a group.
func (s *Store) run(ctx context.Context, group string, args ...any) (any, error) {
	prefix := s.keys.Prefix + ":" + group
	answer, err := recordsScript.Run(ctx, s.link.Client, []string{s.keys.Place, s.keys.Values, prefix + ":order", prefix + ":times", s.news(group)}, args...).Result()
	switch {
	case redis.HasErrorPrefix(err, saysConflict):
		_ = s.link.Note(nil) // the server did answer
		return nil, shard.ErrConflict
	case redis.HasErrorPrefix(err, saysForgotten):
		_ = s.link.Note(nil)
		return nil, errors.New("the watch was interrupted for longer than removed records are remembered")
	case redis.HasErrorPrefix(err, saysNone):
		_ = s.link.Note(nil)
		return nil, fmt.Errorf("key %s is missing: it was there when this process started. Restore the store of Redis from a copy", s.keys.Place)
	}
	return answer, s.link.Note(err)
}

// Write implements shard.Store.
func (s *Store) Write(ctx context.Context, key string, value []byte, expect uint64, ttl time.Duration) (uint64, error) {
	return s.set(ctx, key, "write", key, number(expect), value, ttl.Microseconds())
}

// Remove implements shard.Store.
func (s *Store) Remove(ctx context.Context, key string, expect uint64) (uint64, error) {
	return s.set(ctx, key, "remove", key, number(expect))
}

func (s *Store) set(ctx context.Context, key string, args ...any) (uint64, error) {
	answer, err := s.run(ctx, group(key), args...)
	if err != nil {
		return 0, err
	}
	revision, err := strconv.ParseUint(fmt.Sprint(answer), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("record %s: unexpected answer %v", key, answer)
	}
	return revision, nil
}

// Read implements shard.Store.
func (s *Store) Read(ctx context.Context, key string) (shard.Entry, error) {
	answer, err := s.run(ctx, group(key), "read", key)
	if err != nil {
		return shard.Entry{}, err
	}
	return entryOf(answer)
}

func number(n uint64) string { return strconv.FormatUint(n, 10) }

// entryOf is an entry as the script returns it: key, revision, 1 if there is a record, value.
func entryOf(answer any) (e shard.Entry, err error) {
	said, ok := answer.([]any)
	if !ok || len(said) != 4 {
		return e, fmt.Errorf("unexpected answer %v", answer)
	}
	e.Key = fmt.Sprint(said[0])
	if e.Revision, err = strconv.ParseUint(fmt.Sprint(said[1]), 10, 64); err != nil {
		return e, fmt.Errorf("record %s: its revision is %v", e.Key, said[1])
	}
	if e.Present = said[2] == int64(1); e.Present {
		e.Value = []byte(fmt.Sprint(said[3]))
	}
	return e, nil
}

const (
	// watchEvery is how often a watch looks without news: that is when records expire.
	watchEvery = time.Second
	// watchTimeout bounds a request of a watch.
	watchTimeout = 5 * time.Second
)

// Watch implements shard.Store. The prefix is that of a group.
func (s *Store) Watch(ctx context.Context, prefix string, deliver func(shard.Entry), synced func()) error {
	of := strings.TrimSuffix(prefix, ".")
	for after, first := "0", true; ; first = false {
		entries, last, err := s.since(ctx, of, after)
		if err != nil {
			return err
		}
		for _, e := range entries {
			if strings.HasPrefix(e.Key, prefix) {
				deliver(e)
			}
		}
		if first {
			synced()
		}
		after = last
		select {
		case err := <-s.wait(of, after):
			if err != nil {
				return err
			}
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// since returns the newest entries of a group after a revision, in the order of theirs, and the revision up to which these are all.
func (s *Store) since(ctx context.Context, group, after string) (entries []shard.Entry, last string, err error) {
	ctx, cancel := context.WithTimeout(ctx, watchTimeout)
	defer cancel()
	answer, err := s.run(ctx, group, "watch", after)
	if err != nil {
		return nil, "", err
	}
	said, ok := answer.([]any)
	if !ok || len(said) == 0 {
		return nil, "", fmt.Errorf("unexpected answer %v", answer)
	}
	for _, one := range said[1:] {
		e, err := entryOf(one)
		if err != nil {
			return nil, "", err
		}
		entries = append(entries, e)
	}
	return entries, fmt.Sprint(said[0]), nil
}

// wait waits for news after a revision, for at most watchEvery. The client library does not end a request when a context does, so the caller waits for the result and not for
// the request.
func (s *Store) wait(group, after string) chan error {
	result := make(chan error, 1)
	s.link.Go(func() {
		ctx, cancel := context.WithTimeout(context.Background(), watchEvery+watchTimeout)
		defer cancel()
		err := s.link.Client.XRead(ctx, &redis.XReadArgs{Streams: []string{s.news(group), after + "-0"}, Count: 1, Block: watchEvery}).Err()
		if errors.Is(err, redis.Nil) {
			err = nil
		}
		result <- s.link.Note(err)
	})
	return result
}
