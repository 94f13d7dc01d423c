// Package jetstreambuffer keeps the blocks of a partition in a NATS JetStream stream, embedded or remote.
//
// The stream has Limits retention: WorkQueue and Interest forget the ids of acknowledged messages when the server restarts.
// It discards new messages when full, never old ones, and has no age limit: what nobody needs any more is trimmed by
// buffer.Reader. See docs/decisions/0002-identity.md.
package jetstreambuffer

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/levada-io/levada/internal/dataplane/buffer"
	"github.com/levada-io/levada/internal/dataplane/naming"
)

// Config says where and how a partition is stored.
type Config struct {
	// Stream is the name of the stream, and of its only subject if the partition is not divided: see package naming.
	Stream string
	// Shards is how many shards a stream gets that is created. One that exists keeps what it has. 0 counts as 1.
	Shards int
	// Feeds, if not nil, is shared by the drivers of a connection, so that they follow each stream with shards once.
	Feeds *Feeds
	// Tag says whose the stream is. One of somebody else is refused, one without a tag gets this one.
	Tag naming.Tag
	// Changed, if not nil, is called for a stream that had another number of replicas.
	Changed Changed
	// State is the bucket that keeps what was seen. It also remembers that the stream was made, so that a stream that vanished is not recreated.
	State jetstream.KeyValue
	// Fence, if not nil, is asked before state is saved or blocks are removed: an error means that another process may read the partition by now.
	Fence func(context.Context) error
	// Replicas of the stream. With 0 a stream that exists keeps its own, and Choice decides for one that is created.
	Replicas int
	// Choice is asked with Replicas 0. Default: 1 replica.
	Choice *Choice
	// Memory stores blocks in the broker's memory: a restart of the broker loses them.
	Memory bool
	// MaxBytes and MaxBlocks bound the stream, behind the limits that are counted in messages; 0 for no bound.
	MaxBytes  int64
	MaxBlocks int64
	// Duplicates is the broker's own deduplication window, a first line only, which costs it some 240 bytes for each block. Default 20 seconds.
	Duplicates time.Duration
	// Room, if not nil, is asked before a block is written: an error means that it must wait for room.
	Room func() error
	// Lost, if not nil, is called instead of Logger when a stream in memory is gone. It may be called again if Open fails and is tried again.
	Lost func(buffer.Loss)
	// Logger gets a warning about replicas that lack blocks which others have. Default: no logger.
	Logger *slog.Logger
}

type driver struct {
	js      jetstream.JetStream
	cfg     Config
	created time.Time
	memory  bool // the stream is in memory, whatever the configuration says now
	shards  int  // of the stream
	// suffix ends the names of the keys for one shard. reads is what the cursor reads.
	suffix string
	reads  reads
	// views are what UsageOf returned, by shard.
	views map[int]*shardDriver

	mu   sync.Mutex
	next uint64 // the sequence that the cursor gives next
	// lastStored is when the last entry was stored that the cursor gave, lastSeq; zero if it has given none
	lastStored time.Time
	lastSeq    uint64
	reader     jetstream.MessagesContext
	fresh      bool // the cursor has given nothing since it was made
	closed     bool
	// reserved is when the reserve was looked at last; see reserve.go
	reserved      time.Time
	reserveFilled bool
}

func (cfg Config) withDefaults() Config {
	if cfg.Duplicates == 0 {
		cfg.Duplicates = 20 * time.Second
	}
	if cfg.Shards == 0 {
		cfg.Shards = 1
	}
	if cfg.Feeds == nil {
		cfg.Feeds = &Feeds{}
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	return cfg
}

// Open opens the stream of a partition, and makes it if it never was.
func Open(ctx context.Context, js jetstream.JetStream, cfg Config) (buffer.Driver, error) {
	d := &driver{js: js, cfg: cfg.withDefaults(), reads: reads{bytes: aheadBytes}}
	ctx, cancel := bounded(ctx)
	defer cancel()
	if err := d.open(ctx); err != nil {
		return nil, fmt.Errorf("stream %s: %w", cfg.Stream, err)
	}
	return d, nil
}

// Attach opens the stream of a partition as it is, whatever its configuration says.
func Attach(ctx context.Context, js jetstream.JetStream, cfg Config) (buffer.Driver, error) {
	ctx, cancel := bounded(ctx)
	defer cancel()
	stream, err := js.Stream(ctx, cfg.Stream)
	if err != nil {
		return nil, fmt.Errorf("stream %s: %w", cfg.Stream, err)
	}
	d := &driver{
		js: js, cfg: cfg.withDefaults(), created: stream.CachedInfo().Created, memory: stream.CachedInfo().Config.Storage == jetstream.MemoryStorage, reads: reads{bytes: aheadBytes},
	}
	d.cfg.Replicas = stream.CachedInfo().Config.Replicas
	if d.shards, err = shardsIn(stream.CachedInfo().Config); err != nil {
		return nil, fmt.Errorf("stream %s: %w", cfg.Stream, err)
	}
	return d, nil
}

func (d *driver) open(ctx context.Context) error {
	if have := d.js.Conn().MaxPayload(); have < MinPayload {
		return fmt.Errorf("the broker takes messages of at most %d bytes, and Levada needs %d: raise max_payload in its configuration", have, MinPayload)
	}
	want := jetstream.StreamConfig{
		Name: d.cfg.Stream, Subjects: subjects(d.cfg.Stream, d.cfg.Shards), Retention: jetstream.LimitsPolicy, Discard: jetstream.DiscardNew,
		MaxBytes: orUnlimited(d.cfg.MaxBytes), MaxMsgs: orUnlimited(d.cfg.MaxBlocks), MaxMsgSize: -1,
		Replicas: d.cfg.Replicas, Duplicates: d.cfg.Duplicates, Storage: jetstream.FileStorage, AllowDirect: true,
	}
	if d.cfg.Memory {
		want.Storage = jetstream.MemoryStorage
	}
	want.Metadata = withShards(d.cfg.Tag.In(nil), d.cfg.Shards)
	d.shards = d.cfg.Shards
	stream, err := d.js.Stream(ctx, d.cfg.Stream)
	var saved map[string]uint64
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		// What is saved beside a stream that is gone is removed before another one is created, and only that: another process may create it meanwhile, and save. So the stream
		// is looked for after what is saved.
		if saved, err = d.savedBeside(ctx); err == nil {
			stream, err = d.js.Stream(ctx, d.cfg.Stream)
		}
	}
	switch {
	case err == nil:
		d.created, d.memory = stream.CachedInfo().Created, stream.CachedInfo().Config.Storage == jetstream.MemoryStorage
		// Whose it is comes first: nothing of another owner's stream is touched.
		untagged, err := d.cfg.Tag.Check(d.cfg.Stream, stream.CachedInfo().Config.Metadata)
		if err != nil {
			return err
		}
		if d.shards, err = shardsIn(stream.CachedInfo().Config); err != nil {
			return err
		}
		// A crash may have come between making the stream and noting that; without the note a stream that vanishes would be recreated silently.
		if _, err := d.cfg.State.Get(ctx, d.key("made")); errors.Is(err, jetstream.ErrKeyNotFound) {
			if err := d.noteMade(ctx); err != nil {
				return err
			}
		} else if err != nil {
			return err
		}
		have := stream.CachedInfo().Config
		want.Replicas = cmp.Or(want.Replicas, have.Replicas)
		if have.Retention != want.Retention || have.Discard != want.Discard || have.MaxAge != 0 {
			return fmt.Errorf("it exists with retention %v, discard %v, max age %v, which can lose messages; levada needs retention limits, discard new and no max age: delete the stream or give the pipeline another name",
				have.Retention, have.Discard, have.MaxAge)
		}
		if have.MaxBytes == want.MaxBytes && have.MaxMsgs == want.MaxMsgs && have.Replicas == want.Replicas && have.Duplicates == want.Duplicates && !untagged {
			return nil
		}
		want.Storage, want.Metadata, want.Subjects = have.Storage, d.cfg.Tag.In(have.Metadata), have.Subjects
		if _, err = d.js.UpdateStream(ctx, want); err != nil {
			return explainReplicas(err, have.Replicas, want.Replicas)
		}
		return resized(ctx, d.js, d.cfg.Stream, have.Replicas, want.Replicas, d.cfg.Changed)
	case !errors.Is(err, jetstream.ErrStreamNotFound):
		return err
	}
	d.memory = d.cfg.Memory
	made, err := d.cfg.State.Get(ctx, d.key("made"))
	switch {
	case err == nil && !d.cfg.Memory && !bytes.HasSuffix(made.Value(), []byte(madeInMemory)):
		return fmt.Errorf("%w, though it was made before: its messages are lost with it unless it is restored from a copy of the store. To go on without them, remove the key %q of the bucket %s",
			buffer.ErrMissing, d.key("made"), d.cfg.State.Bucket())
	case err != nil && !errors.Is(err, jetstream.ErrKeyNotFound):
		return err
	}
	if err == nil {
		d.sayLost(ctx)
	}
	for key, revision := range saved {
		if err := d.cfg.State.Purge(ctx, key, jetstream.LastRevision(revision)); isWrongRevision(err) {
			return d.open(ctx) // another process does the same
		} else if err != nil {
			return err
		}
	}
	err = d.cfg.Choice.Create(ctx, d.cfg.Replicas, func(replicas int) error {
		want.Replicas = replicas
		stream, err = d.js.CreateStream(ctx, want)
		return err
	})
	if errors.Is(err, jetstream.ErrStreamNameAlreadyInUse) {
		return d.open(ctx) // another process has created it, otherwise
	}
	if err != nil {
		return err
	}
	d.created = stream.CachedInfo().Created
	return d.noteMade(ctx)
}

// savedBeside returns the keys that are saved beside the stream, with their revisions.
func (d *driver) savedBeside(ctx context.Context) (map[string]uint64, error) {
	saved := map[string]uint64{}
	keys := []string{d.key("seen"), d.key("pending"), d.key("damage")}
	if d.cfg.Shards > 1 {
		ofShards, err := keysOfShards(ctx, d.cfg.State, d.cfg.Stream)
		if err != nil {
			return nil, err
		}
		keys = append(keys, ofShards...)
	}
	for _, key := range keys {
		entry, err := d.cfg.State.Get(ctx, key)
		if errors.Is(err, jetstream.ErrKeyNotFound) {
			continue
		}
		if err != nil {
			return nil, err
		}
		saved[key] = entry.Revision()
	}
	return saved, nil
}

func orUnlimited(n int64) int64 {
	if n <= 0 {
		return -1
	}
	return n
}

func (d *driver) key(what string) string { return stateKey(d.cfg.Stream, what) + d.suffix }

func stateKey(stream, what string) string { return "buffer." + stream + "." + what }

// StreamOf returns the stream whose creation a key of a state bucket records.
func StreamOf(key string) (stream string, ok bool) {
	rest, buffer := strings.CutPrefix(key, "buffer.")
	stream, made := strings.CutSuffix(rest, ".made")
	return stream, buffer && made
}

// WasMade reports whether the state bucket remembers that a stream was created.
func WasMade(ctx context.Context, state jetstream.KeyValue, stream string) (bool, error) {
	_, err := state.Get(ctx, stateKey(stream, "made"))
	if errors.Is(err, jetstream.ErrKeyNotFound) {
		return false, nil
	}
	return err == nil, err
}

// submitTimeout is how long an attempt waits for the broker. It is not the limit of the write, which is tried again.
const submitTimeout = 5 * time.Second

// baseHeader is the header that has the base of an entry, in base 36.
const baseHeader = "Levada-Base"

func baseIn(h nats.Header) uint64 {
	base, err := strconv.ParseUint(h.Get(baseHeader), 36, 64)
	if err != nil {
		return 0
	}
	return base
}

// afterHeader is the header that has buffer.Entry.After, in base 36.
const afterHeader = "Levada-After"

// messagesHeader is the header that has buffer.Record.Messages. Entries of earlier versions do not have it.
const messagesHeader = "Levada-Messages"

// entryOf is a stored message.
func entryOf(seq uint64, data []byte, h nats.Header, stored time.Time) buffer.Entry {
	e := buffer.Entry{Seq: seq, Data: data, Stored: stored, Base: baseIn(h)}
	if after := h.Get(afterHeader); after != "" {
		e.After, _ = strconv.ParseUint(after, 36, 64) // 0 if it makes no sense
	}
	return e
}

type receipt struct {
	d      *driver
	future jetstream.PubAckFuture
	err    error
}

func (d *driver) Submit(_ context.Context, r buffer.Record) buffer.Receipt {
	if d.cfg.Room != nil {
		if err := d.cfg.Room(); err != nil {
			return &receipt{d, nil, fmt.Errorf("%w: %w", buffer.ErrFull, err)}
		}
	}
	m := &nats.Msg{Subject: subject(d.cfg.Stream, r.Shard, d.shards), Data: r.Data, Header: headerOf(r)}
	future, err := d.js.PublishMsgAsync(m,
		jetstream.WithMsgID(r.ID), jetstream.WithExpectStream(d.cfg.Stream), jetstream.WithStallWait(submitTimeout))
	return &receipt{d, future, err}
}

// headerOf is what is stored beside a record.
func headerOf(r buffer.Record) nats.Header {
	numbers := []string{strconv.FormatUint(r.After, 36), strconv.FormatUint(r.Base, 36), strconv.Itoa(r.Messages)}
	h := nats.Header{afterHeader: numbers[0:1:1], messagesHeader: numbers[2:3:3]}
	if r.Base != 0 {
		h[baseHeader] = numbers[1:2:2]
	}
	return h
}

func (r *receipt) Wait(ctx context.Context) (uint64, bool, error) {
	if r.err != nil {
		return 0, false, r.d.classify(ctx, r.err)
	}
	timeout := time.NewTimer(submitTimeout)
	defer timeout.Stop()
	select {
	case ack := <-r.future.Ok():
		return ack.Sequence, ack.Duplicate, nil
	case err := <-r.future.Err():
		return 0, false, r.d.classify(ctx, err)
	case <-timeout.C:
		return 0, false, fmt.Errorf("no answer from the broker in %v", submitTimeout)
	case <-ctx.Done():
		return 0, false, ctx.Err()
	}
}

// Error codes of the JetStream API that have no name in the client.
const (
	codeFull      = 10077 // maximum messages or bytes exceeded
	codeInProcess = 10158 // the id is being stored: ask again
)

// classify maps an error of the broker to what the caller does about it. What it does not know is tried again.
func (d *driver) classify(ctx context.Context, err error) error {
	var api *jetstream.APIError
	switch {
	case errors.Is(err, nats.ErrMaxPayload):
		return fmt.Errorf("%w: %w", buffer.ErrTooLarge, err)
	case isFull(err):
		return fmt.Errorf("%w: %w", buffer.ErrFull, err)
	case errors.As(err, &api) && api.ErrorCode == codeInProcess:
		return err
	case errors.Is(err, nats.ErrConnectionClosed):
		return fmt.Errorf("%w: %w", buffer.ErrClosed, err)
	case errors.Is(err, jetstream.ErrNoStreamResponse), errors.Is(err, jetstream.ErrStreamNotFound), errors.Is(err, jetstream.ErrConsumerNotFound), errors.Is(err, jetstream.ErrConsumerDeleted):
		// Nobody answers for the stream: the server may be starting, or the stream is gone. Only the server can tell.
		ctx, cancel := bounded(ctx)
		defer cancel()
		if _, err := d.js.Stream(ctx, d.cfg.Stream); errors.Is(err, jetstream.ErrStreamNotFound) {
			return fmt.Errorf("stream %s: %w", d.cfg.Stream, buffer.ErrMissing)
		}
	}
	return err
}

func (d *driver) fence(ctx context.Context) error {
	if d.cfg.Fence == nil {
		return nil
	}
	return d.cfg.Fence(ctx)
}

func (d *driver) Trim(ctx context.Context, seq uint64) error {
	ctx, cancel := bounded(ctx)
	defer cancel()
	if err := d.fence(ctx); err != nil {
		return err
	}
	stream, err := d.js.Stream(ctx, d.cfg.Stream)
	if err != nil {
		return d.classify(ctx, err)
	}
	if last := stream.CachedInfo().State.LastSeq; last+1 < seq {
		// A purge would raise the stream's sequences to there, and remove what was stored since.
		return fmt.Errorf("nothing removed before block %d: the last one there is %d", seq, last)
	}
	return stream.Purge(ctx, jetstream.WithPurgeSequence(seq))
}

func (d *driver) SaveState(ctx context.Context, state []byte) error {
	ctx, cancel := bounded(ctx)
	defer cancel()
	if err := d.fence(ctx); err != nil {
		return err
	}
	return d.putState(ctx, d.key("seen"), state)
}

func (d *driver) LoadState(ctx context.Context) ([]byte, error) {
	state, _, err := d.ReadState(ctx)
	return state, err
}

// ReadState implements buffer.StateRegister.
func (d *driver) ReadState(ctx context.Context) ([]byte, uint64, error) {
	ctx, cancel := bounded(ctx)
	defer cancel()
	entry, err := d.cfg.State.Get(ctx, d.key("seen"))
	if errors.Is(err, jetstream.ErrKeyNotFound) {
		return nil, 0, nil
	}
	if err != nil {
		return nil, 0, err
	}
	return entry.Value(), entry.Revision(), nil
}

// ReplaceState implements buffer.StateRegister.
func (d *driver) ReplaceState(ctx context.Context, state []byte, revision uint64) (next uint64, err error) {
	ctx, cancel := bounded(ctx)
	defer cancel()
	if err := d.fence(ctx); err != nil {
		return 0, err
	}
	err = d.withReserve(ctx, func() (err error) {
		if revision == 0 {
			next, err = d.cfg.State.Create(ctx, d.key("seen"), state)
		} else {
			next, err = d.cfg.State.Update(ctx, d.key("seen"), state, revision)
		}
		return err
	})
	if isWrongRevision(err) {
		return 0, buffer.ErrReplaced
	}
	return next, err
}

func isWrongRevision(err error) bool {
	return errors.Is(err, jetstream.ErrKeyExists) || errors.Is(err, jetstream.ErrKeyRevisionMismatch)
}

func (d *driver) SaveDamage(ctx context.Context, damage []byte) error {
	ctx, cancel := bounded(ctx)
	defer cancel()
	if len(damage) == 0 {
		_, err := d.cfg.State.Get(ctx, d.key("damage"))
		if errors.Is(err, jetstream.ErrKeyNotFound) {
			return nil
		}
		return d.cfg.State.Purge(ctx, d.key("damage"))
	}
	return d.putState(ctx, d.key("damage"), damage)
}

func (d *driver) LoadDamage(ctx context.Context) ([]byte, error) {
	ctx, cancel := bounded(ctx)
	defer cancel()
	entry, err := d.cfg.State.Get(ctx, d.key("damage"))
	if errors.Is(err, jetstream.ErrKeyNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return entry.Value(), nil
}

// maxEntry bounds what is stored in one message, whatever the broker takes: a pull request must have room for it (aheadBytes), or it never comes.
const maxEntry = aheadBytes / 2

// headroom is what an id and the headers take of the broker's max_payload.
const headroom = 2 << 10

// Incarnation is when the stream was created, and in which lifetime of its owner's store: a clock that was set back gives no name twice.
// MinPayload is the smallest max_payload of a broker that blocks can be stored with.
const MinPayload = 16 << 10

func (d *driver) Incarnation() string {
	created := strconv.FormatInt(d.created.UnixNano(), 36)
	if inc := d.cfg.Tag.Owner.Incarnation; inc != "" {
		return created + "." + inc
	}
	return created
}

func (d *driver) MaxEntry() int {
	most := int64(maxEntry)
	if d.shards > 1 {
		most = int64(aheadOfShard(d.shards) / 2)
	}
	return int(min(d.js.Conn().MaxPayload(), most)) - headroom
}

func (d *driver) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.closed = true
	d.dropReader()
	var errs []error
	for _, v := range d.views {
		errs = append(errs, v.Close())
	}
	d.views = nil
	return errors.Join(errs...)
}
