// Package jetstreamsource reads a stream, which must exist, with a durable consumer that pods share.
//
// Delivery is at least once, and a message has the same id each time: its stream, when that was created, its sequence, and when it was stored. A reader drops what it
// has seen by it. The time is there for a server that loses its newest messages, by a power loss or an older copy of its store, and gives their sequences to others. It has no position in the pipeline's sense. Sequences ascend, but a message that was nacked or not acknowledged in time comes behind later ones, and
// several pods each get some of them: no pod could promise that it has all up to a point.
package jetstreamsource

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/levada-io/levada/internal/dataplane/naming"
	"github.com/levada-io/levada/internal/dataplane/source"
	"github.com/levada-io/levada/internal/flow"
)

// Config of a source. The zero value of a field is its default.
type Config struct {
	// Conn is the connection, which the source does not close. Required. It should reconnect indefinitely (nats.MaxReconnects(-1)).
	Conn *nats.Conn
	// Stream to read. Required.
	Stream string
	// Consumer is the durable consumer's name. Required. It is made if it is not there, and never removed: it holds what was acknowledged.
	Consumer string
	// OldConsumer is what an earlier version called the consumer. It is used if it exists, Consumer does not, and it is not tagged as somebody else's.
	OldConsumer string
	// Tag says whose the consumer is; the zero tag leaves that open, for a consumer that a person named.
	Tag naming.Tag
	// OldNames is where a store from before creation times were part of ids remembers which life of the stream has the old ids. Default: none has.
	OldNames source.Positions
	// DeliverPolicy is where a new consumer begins: all (the default), new, last, last_per_subject, "by_start_sequence N" or
	// "by_start_time MILLISECONDS". One that is there goes on where it was.
	DeliverPolicy string
	// FilterSubjects are the subjects to read. Default: all.
	FilterSubjects []string
	// AckWait is how long the server waits for a sign of life before it gives a message to another pod. Default 30 s. Messages in flight are
	// reported to be so every third of it. A consumer that is there keeps its own.
	AckWait time.Duration
	// MaxAckPending is how many messages all pods together may have in flight. Default 25000. A consumer that is there keeps its own.
	MaxAckPending int
	// ReadAhead is how many messages wait here for Read. Default 1000: two blocks.
	ReadAhead int
	// Logger gets a warning when a stream was deleted and recreated.
	Logger *slog.Logger
}

func (c Config) withDefaults() Config {
	c.DeliverPolicy = cmp.Or(c.DeliverPolicy, "all")
	c.AckWait = cmp.Or(c.AckWait, 30*time.Second)
	c.MaxAckPending = cmp.Or(c.MaxAckPending, 25_000)
	c.ReadAhead = cmp.Or(c.ReadAhead, 1000)
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return c
}

// ErrClosed means that the source was closed.
var ErrClosed = errors.New("jetstream source is closed")

// Reader is the source.
type Reader struct {
	cfg  Config
	js   jetstream.JetStream
	acks *acks

	ready   chan *item    // has room for ReadAhead
	taken   chan struct{} // Read took some
	trouble chan error    // the last fault of the pump, until somebody reads it

	spare *item // only Read uses it: the first message of another life than those before it

	mu      sync.Mutex
	life    *opened
	ackWait time.Duration
	inHand  map[place]*item // messages of this life from their arrival to their ack or nack

	stop    context.CancelFunc
	ctx     context.Context // the life of the goroutines
	running sync.WaitGroup
	close   sync.Once
}

// place is where a message stands in its stream. The sequence alone is not enough: see the package comment.
type place struct {
	seq    uint64
	stored int64 // nanoseconds since 1970, by the server's clock
}

// item is a message in flight.
type item struct {
	place
	life    *opened
	message flow.Message
	in      jetstream.Msg // the last delivery of it
	done    bool
}

func (c Config) validate() error {
	switch {
	case c.Conn == nil:
		return errors.New("conn: required, the connection to NATS")
	case c.Stream == "":
		return errors.New("stream: required, the stream to read")
	case c.Consumer == "":
		return errors.New("consumer: required, the name of the durable consumer")
	case c.AckWait < 0 || c.MaxAckPending < 0 || c.ReadAhead < 0:
		return fmt.Errorf("ackWait %v, maxAckPending %d and readAhead %d must not be negative", c.AckWait, c.MaxAckPending, c.ReadAhead)
	}
	return nil
}

// New finds or makes the consumer. Errors name the field and what to do.
func New(ctx context.Context, cfg Config) (*Reader, error) {
	cfg = cfg.withDefaults()
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	js, err := jetstream.New(cfg.Conn)
	if err != nil {
		return nil, fmt.Errorf("conn: %w", err)
	}
	life, err := cfg.open(ctx, js)
	if err != nil {
		return nil, err
	}
	acks, err := newAcks(cfg.Conn)
	if err != nil {
		return nil, fmt.Errorf("subscribe to acknowledgements: %w", err)
	}
	r := &Reader{
		cfg: cfg, js: js, life: life, ackWait: life.consumer.CachedInfo().Config.AckWait, acks: acks,
		ready: make(chan *item, cfg.ReadAhead), taken: make(chan struct{}, 1), trouble: make(chan error, 1), inHand: map[place]*item{},
	}
	r.ctx, r.stop = context.WithCancel(context.Background())
	r.running.Go(r.pump)
	r.running.Go(r.keepAlive)
	return r, nil
}

// everything is the filter that is none.
const everything = ">"

// fits checks what a consumer that was there must agree in.
func fits(have jetstream.ConsumerConfig, cfg Config) error {
	if have.AckPolicy != jetstream.AckExplicitPolicy {
		return fmt.Errorf("consumer: %s has ack policy %v, and only explicit loses nothing; remove it or use another name", cfg.Consumer, have.AckPolicy)
	}
	subjects := have.FilterSubjects
	if have.FilterSubject != "" {
		subjects = []string{have.FilterSubject}
	}
	if slices.Equal(subjects, []string{everything}) {
		subjects = nil
	}
	if a, b := slices.Sorted(slices.Values(subjects)), slices.Sorted(slices.Values(cfg.FilterSubjects)); !slices.Equal(a, b) {
		return fmt.Errorf("filter_subjects: consumer %s was made for %q, not for %q; use another consumer name, or change it with the nats CLI", cfg.Consumer, a, b)
	}
	return nil
}

// deliverPolicy reads the manifest's words.
func deliverPolicy(text string) (c jetstream.ConsumerConfig, err error) {
	word, number, _ := strings.Cut(strings.TrimSpace(text), " ")
	simple := map[string]jetstream.DeliverPolicy{
		"all": jetstream.DeliverAllPolicy, "new": jetstream.DeliverNewPolicy,
		"last": jetstream.DeliverLastPolicy, "last_per_subject": jetstream.DeliverLastPerSubjectPolicy,
	}
	policy, ok := simple[word]
	switch {
	case ok && number == "":
		c.DeliverPolicy = policy
		return c, nil
	case word == "by_start_sequence":
		c.DeliverPolicy = jetstream.DeliverByStartSequencePolicy
		if c.OptStartSeq, err = strconv.ParseUint(strings.TrimSpace(number), 10, 64); err == nil && c.OptStartSeq > 0 {
			return c, nil
		}
	case word == "by_start_time":
		if ms, err := strconv.ParseInt(strings.TrimSpace(number), 10, 64); err == nil {
			at := time.UnixMilli(ms)
			c.DeliverPolicy, c.OptStartTime = jetstream.DeliverByStartTimePolicy, &at
			return c, nil
		}
	}
	return c, fmt.Errorf("deliver_policy: %q is not known: use all, new, last, last_per_subject, by_start_sequence N or by_start_time MILLISECONDS", text)
}

// Read implements source.Reader.
func (r *Reader) Read(ctx context.Context, limit int) (*source.Batch, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	first, err := r.first(ctx)
	if err != nil {
		return nil, err
	}
	n := min(limit, 1+len(r.ready))
	items := append(make([]*item, 0, n), first)
	for len(items) < n {
		it := <-r.ready // nobody else takes from it
		if it.life != first.life {
			r.spare = it
			break
		}
		items = append(items, it)
	}
	select {
	case r.taken <- struct{}{}:
	default:
	}
	b := &source.Batch{Partition: first.life.partition, ByID: true, Messages: make([]flow.Message, len(items)), Token: items}
	for i, it := range items {
		b.Messages[i] = it.message
	}
	return b, nil
}

// first waits for a message. One that is there is returned before an error: the error concerns what comes after it.
func (r *Reader) first(ctx context.Context) (*item, error) {
	if it := r.spare; it != nil {
		r.spare = nil
		return it, nil
	}
	select {
	case it := <-r.ready:
		return it, nil
	default:
	}
	select {
	case it := <-r.ready:
		return it, nil
	case err := <-r.trouble:
		return nil, err
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-r.ctx.Done():
		return nil, ErrClosed
	}
}

// Ack implements source.Reader. It returns when the server has confirmed each acknowledgement.
func (r *Reader) Ack(ctx context.Context, b *source.Batch) error {
	return r.ack(ctx, b.Token.([]*item))
}

func (r *Reader) ack(ctx context.Context, items []*item) error {
	var replies []string
	r.mu.Lock()
	for _, it := range items {
		if !it.done && it.life == r.life { // the sequences of another life would acknowledge other messages
			replies = append(replies, it.in.Reply())
		}
	}
	r.mu.Unlock()
	// Of a stream that was deleted there is nobody to tell.
	gone := func(ctx context.Context) bool {
		other, _ := r.otherLife(ctx, items[0].life)
		return other
	}
	if err := r.acks.confirm(ctx, replies, gone); err != nil {
		return fmt.Errorf("acknowledge to consumer %s of stream %s: %w", r.cfg.Consumer, r.cfg.Stream, err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, it := range items {
		r.letGo(it)
	}
	return nil
}

// letGo forgets a message. The lock is held.
func (r *Reader) letGo(it *item) {
	it.done = true
	if r.inHand[it.place] == it {
		delete(r.inHand, it.place)
	}
}

// Pending implements source.Reader: what the consumer has not delivered to any pod.
func (r *Reader) Pending(ctx context.Context) (int64, error) {
	info, err := r.current().consumer.Info(ctx)
	if err != nil {
		return -1, fmt.Errorf("consumer %s of stream %s: %w", r.cfg.Consumer, r.cfg.Stream, err)
	}
	return int64(info.NumPending), nil
}

// Close implements source.Reader. Messages in flight are nacked, so that they are redelivered at once and not after AckWait.
func (r *Reader) Close(ctx context.Context) error {
	var err error
	r.close.Do(func() {
		r.stop()
		r.running.Wait()
		r.mu.Lock()
		for _, it := range r.inHand {
			_ = it.in.Nak() // a hint; without it the server waits AckWait
			r.letGo(it)
		}
		r.mu.Unlock()
		err = r.acks.close()
		if ctx, cancel := context.WithTimeout(ctx, 5*time.Second); r.cfg.Conn.IsConnected() {
			defer cancel()
			err = errors.Join(err, r.cfg.Conn.FlushWithContext(ctx))
		} else {
			cancel()
		}
	})
	return err
}

var _ source.Reader = (*Reader)(nil)
