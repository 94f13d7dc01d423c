// Package redisbuffer keeps the blocks of a partition in Redis.
//
// # Keys
//
// All keys of a partition have its name as their hash tag, so that they are in one slot of a Redis Cluster and scripts can use them together:
//
//	levada:{NAME}:SHARD:log    stream of blocks: id 0-N has the sequence N; fields h (header, see headOf) and d (data)
//	levada:{NAME}:SHARD:heads  stream with the same ids and without data: fields m (messages) and s (bytes)
//	levada:{NAME}:SHARD:state  stream of one entry, the saved state: id EPOCH-COUNT, fields s and w (see register.go)
//	levada:{NAME}:SHARD:meta   hash: incarnation, tag, epoch, reader, bytes, damage, ids and rotated (see append.lua)
//	levada:{NAME}:SHARD:ids:0  hash of ids that were stored lately, with their sequences, and :1 for those before
//
// Nothing has a TTL, so that only the policies that evict any key (allkeys-*) could remove something; redislink.Check refuses these.
//
// # What holds
//
// Sequences are dense: a script adds to the log under the next id, and the stream itself remembers the last one, also when it is empty. An append is a
// script too: it looks whether the id is known, and adds to both streams and to the ids, or to none of them. There is one reader: meta has its name,
// which scripts that save, trim or note damage compare, so that a reader which was frozen and replaced changes nothing any more. A driver becomes the reader under the next
// epoch, or by replacing the saved state (register.go). The saved state is numbered within an epoch: a save that was delayed on its way never replaces a later one.
//
// The log is read with XREAD from our own floor: there is no consumer group, and nothing at the server that could step over an entry.
//
// What a server does not promise is said by redislink.Check: a log that lost its end, after a power loss or a failover, is found out as with any
// driver (see buffer/lostend.go).
package redisbuffer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/levada-io/levada/internal/dataplane/buffer"
	"github.com/levada-io/levada/internal/dataplane/naming"
	"github.com/levada-io/levada/internal/dataplane/redislink"
)

// Config says where and how a partition is stored.
type Config struct {
	// Name is the name of the partition's keys: see package naming.
	Name string
	// Shard is the part of the partition.
	Shard int
	// Tag says whose the partition is. One of somebody else is refused.
	Tag naming.Tag
	// Epoch, if not 0, is that of the lease under which the partition is read: readers with a lower one cannot save or trim any more. With 0 a reader takes the next.
	Epoch uint64
	// MaxBytes and MaxBlocks bound the log, behind the limits that are counted in messages; 0 for no bound.
	MaxBytes  int64
	MaxBlocks int64
	// Duplicates is for how long at least ids of blocks are remembered, a first line of deduplication only. Default 20 seconds.
	Duplicates time.Duration
	// Fence, if not nil, is asked before this process becomes the reader, saves or trims: an error means that another process may read the partition by now.
	Fence func(context.Context) error
	// Room, if not nil, is asked before a block is written: an error means that it must wait for room.
	Room func() error
}

// ErrFenced means that another reader has taken the partition over.
var ErrFenced = fmt.Errorf("%w: another process reads the partition now", buffer.ErrClosed)

// keys are the names of what a partition has at the server.
type keys struct{ log, heads, state, meta, ids0, ids1 string }

func (cfg Config) keys() keys {
	prefix := "levada:{" + cfg.Name + "}:" + strconv.Itoa(cfg.Shard) + ":"
	return keys{prefix + "log", prefix + "heads", prefix + "state", prefix + "meta", prefix + "ids:0", prefix + "ids:1"}
}

// LogKey is the key of the stream of blocks.
func (cfg Config) LogKey() string { return cfg.keys().log }

func (k keys) all() []string { return []string{k.log, k.heads, k.state, k.meta, k.ids0, k.ids1} }

type driver struct {
	link        *redislink.Link
	cfg         Config
	keys        keys
	incarnation string
	reader      string // the name of this driver as the reader; no other one has it

	sender sender
	cursor cursor
	known  knownState

	mu       sync.Mutex
	closed   bool
	epoch    uint64 // under which this driver reads; 0 before it claimed one
	fenced   error  // not nil once another reader has a higher epoch
	saves    uint64 // states saved under the epoch
	compares bool   // the driver is the reader by ReplaceState, and claims no epoch
}

// Open opens a partition, and creates it if it never was.
func Open(ctx context.Context, link *redislink.Link, cfg Config) (buffer.Driver, error) {
	return open(ctx, link, cfg, "create")
}

// Attach opens a partition that exists. The error is buffer.ErrNotCreated if it does not, and nothing says that it did.
func Attach(ctx context.Context, link *redislink.Link, cfg Config) (buffer.Driver, error) {
	return open(ctx, link, cfg, "attach")
}

func open(ctx context.Context, link *redislink.Link, cfg Config, how string) (buffer.Driver, error) {
	if cfg.Duplicates <= 0 {
		cfg.Duplicates = 20 * time.Second
	}
	d := &driver{link: link, cfg: cfg, keys: cfg.keys(), reader: newIncarnation()}
	d.sender.d = d
	if err := d.open(ctx, how); err != nil {
		return nil, fmt.Errorf("Redis stream %s: %w", d.keys.log, err)
	}
	return d, nil
}

func (d *driver) open(ctx context.Context, how string) error {
	tag, err := json.Marshal(d.cfg.Tag.In(map[string]string{}))
	if err != nil {
		return err
	}
	answer, err := d.run(ctx, openScript, []string{d.keys.log, d.keys.heads, d.keys.meta}, how, newIncarnation(), tag)
	if err != nil {
		return err
	}
	said, ok := answer.([]any)
	if !ok || len(said) != 2 {
		return fmt.Errorf("unexpected answer %v", answer)
	}
	d.incarnation = fmt.Sprint(said[0])
	var have map[string]string
	if err := json.Unmarshal([]byte(fmt.Sprint(said[1])), &have); err != nil {
		return fmt.Errorf("tag of key %s: %w", d.keys.meta, err)
	}
	_, err = d.cfg.Tag.Check(d.keys.log, have)
	return err
}

// newIncarnation is a name that nothing else has.
func newIncarnation() string {
	return strconv.FormatInt(time.Now().UnixNano(), 36) + "r" + strconv.FormatUint(random(), 36)
}

// Incarnation implements buffer.Log.
func (d *driver) Incarnation() string {
	if inc := d.cfg.Tag.Owner.Incarnation; inc != "" {
		return d.incarnation + "." + inc
	}
	return d.incarnation
}

// requestTimeout bounds what one call asks of the server. The caller retries.
const requestTimeout = 5 * time.Second

// maxEntry bounds what is stored in one entry: a server does nothing else while it takes one in.
const maxEntry = 1 << 20

// MaxEntry implements buffer.Appender.
func (d *driver) MaxEntry() int { return maxEntry }

// run runs a script. The error is one that package buffer knows.
func (d *driver) run(ctx context.Context, s *redis.Script, keys []string, args ...any) (any, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	answer, err := s.Run(ctx, d.link.Client, keys, args...).Result()
	if errors.Is(err, redis.Nil) {
		err = nil
	}
	return answer, d.classify(err)
}

// classify maps an error to what the caller does about it. What it does not know is tried again.
func (d *driver) classify(err error) error {
	if err == nil {
		return d.link.Note(nil)
	}
	if known := d.answered(err); known != nil {
		_ = d.link.Note(nil) // the server did answer
		return known
	}
	err = d.link.Note(err)
	switch {
	case errors.Is(err, redislink.ErrFull):
		return fmt.Errorf("%w: %w", buffer.ErrFull, err)
	case errors.Is(err, redis.ErrClosed):
		return fmt.Errorf("%w: %w", buffer.ErrClosed, err)
	}
	return err
}

// Errors of the scripts begin with a word of their own.
const (
	saysMissing = "LEVADAMISSING"
	saysForeign = "LEVADAFOREIGN"
	saysFenced  = "LEVADAFENCED"
	saysNone    = "LEVADANONE"
	saysFull    = "LEVADAFULL"
	saysOther   = "LEVADAREPLACED"
)

// answered returns what an error of a script means, or nil for another error.
func (d *driver) answered(err error) error {
	switch {
	case redis.HasErrorPrefix(err, saysMissing):
		return fmt.Errorf("key %s: %w", d.keys.log, buffer.ErrMissing)
	case redis.HasErrorPrefix(err, saysFenced):
		return d.replaced()
	case redis.HasErrorPrefix(err, saysOther):
		return buffer.ErrReplaced
	case redis.HasErrorPrefix(err, saysNone):
		return buffer.ErrNotCreated
	case redis.HasErrorPrefix(err, saysFull):
		return fmt.Errorf("%w: key %s holds as much as it may", buffer.ErrFull, d.keys.log)
	case redis.HasErrorPrefix(err, saysForeign):
		return fmt.Errorf("it exists, and Levada did not create it, or its key %s was removed: restore that, or remove %s to begin without its messages", d.keys.meta, d.keys.log)
	}
	return nil
}

// Close implements buffer.Driver. What is being written is still written; the link waits for it.
func (d *driver) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.closed = true
	d.cursor.close()
	return nil
}

// alive returns an error once the driver is closed, or reads no more.
func (d *driver) alive() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return buffer.ErrClosed
	}
	return d.fenced
}

// Remove deletes a partition for good.
func Remove(ctx context.Context, link *redislink.Link, cfg Config) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	return link.Note(link.Client.Unlink(ctx, cfg.keys().all()...).Err())
}
