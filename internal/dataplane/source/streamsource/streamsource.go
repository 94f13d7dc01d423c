// Package streamsource reads a resumable gRPC stream of package stream, in order, to its end or for as long as it goes on.
//
// It is exact: the position of a message is the number of its record in the stream, so that after any crash the same messages come again
// under the same positions. What is saved is the stream's checkpoint: the producer's token, the number and the digest, with which the next run
// goes on and still finds a record that is lost, doubled or changed. When the producer says that the stream is another one now, or that the
// records after the position are gone, the source stops with an error, since positions would otherwise name two messages.
package streamsource

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/levada-io/levada/internal/dataplane/deadletter"
	"github.com/levada-io/levada/internal/dataplane/source"
	"github.com/levada-io/levada/internal/dataplane/source/position"
	"github.com/levada-io/levada/internal/flow"
	"github.com/levada-io/levada/stream"
)

// Config of a source. The zero value of a field is its default.
type Config struct {
	// Target says where the producer is, as grpc.NewClient takes it: dns:///producer:50051. Required.
	Target string
	// Stream is the name of the stream at the producer. Required.
	Stream string
	// Query holds the parameters of the stream, for its source at the producer.
	Query []byte
	// Payload says what a record holds. Default Value.
	Payload Payload
	// Name is what the producer knows this reader by; it must be the same after a restart. Required.
	Name string
	// Partition names the stream in positions, message ids and logs. Under another name it is read from its start. Default: Stream.
	Partition string
	// TLS is how the producer is reached. Default: without TLS.
	TLS *tls.Config
	// Dial replaces how connections are made, for tests. Default: by the network.
	Dial []grpc.DialOption
	// Batch is how many messages are taken off the stream at once, at most. Default 1000.
	Batch int
	// MaxInFlight bounds the bytes that were received and not yet read. Default 8 MiB.
	MaxInFlight int
	// Positions remembers the checkpoint. Required.
	Positions source.Positions
	// SaveEvery is how often at most it is saved. Default 100 ms.
	SaveEvery time.Duration
	// Retry is the pause between two attempts to reach the producer. Default 100 ms to 5 s.
	Retry stream.Backoff
	// Logger gets what happens to the stream. Faults that pass are returned by Read as well.
	Logger *slog.Logger
}

// maxRecord is the largest record that is taken, in bytes. It is the largest message that a pipeline makes by itself.
const maxRecord = 64 << 20

func (c Config) withDefaults() Config {
	c.Payload = cmp.Or(c.Payload, Value)
	c.Partition = cmp.Or(c.Partition, c.Stream)
	c.Batch = cmp.Or(c.Batch, 1000)
	c.SaveEvery = cmp.Or(c.SaveEvery, position.Every)
	c.Retry.Min = cmp.Or(c.Retry.Min, 100*time.Millisecond)
	c.Retry.Max = cmp.Or(c.Retry.Max, 5*time.Second)
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return c
}

func (c Config) validate() error {
	switch {
	case c.Target == "":
		return errors.New("target: required, where the producer is, for instance dns:///producer:50051")
	case c.Stream == "":
		return errors.New("stream: required, the name of the stream at the producer")
	case c.Name == "":
		return errors.New("name: required, what the producer knows this reader by")
	case c.Positions == nil:
		return errors.New("positions: required, where to remember how far the stream was read")
	case c.Batch < 0 || c.MaxInFlight < 0:
		return fmt.Errorf("batch %d and maxInFlight %d must not be negative", c.Batch, c.MaxInFlight)
	case c.Payload != Value && c.Payload != Message:
		return fmt.Errorf("payload: %q is not known: use value or message", c.Payload)
	}
	return nil
}

// Reader is the source.
type Reader struct {
	cfg     Config
	conns   *stream.Connections
	stream  *stream.Reader
	saver   *position.Saver
	trouble chan error // the last fault that passes, until Read tells of it

	// Only Read uses these.
	given   stream.Checkpoint // after the batch given last
	waiting *delivery         // what was taken off the stream and not given yet
	ended   bool

	mu    sync.Mutex
	acked stream.Checkpoint
	turns uint64             // how often acked has moved: what the saver counts
	tail  *stream.Checkpoint // a later position without messages after the last batch given; it counts once all is acknowledged

	closing  sync.Once
	closeErr error
}

// delivery is a copy of what the stream gave.
type delivery struct {
	records  []stream.Record
	messages []flow.Message
	broken   map[int]*deadletter.Failure
	done     int // messages given
	after    stream.Checkpoint
}

// New goes on where the last run was. The producer need not be there. Errors name the field and what to do.
func New(ctx context.Context, cfg Config) (*Reader, error) {
	cfg = cfg.withDefaults()
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	saved, err := cfg.Positions.Load(ctx, cfg.Partition)
	if err != nil {
		return nil, fmt.Errorf("load position of stream %s: %w", cfg.Stream, err)
	}
	at, err := cfg.parse(saved)
	if err != nil {
		return nil, err
	}
	transport := insecure.NewCredentials()
	if cfg.TLS != nil {
		transport = credentials.NewTLS(cfg.TLS)
	}
	r := &Reader{
		cfg: cfg, trouble: make(chan error, 1), given: at, acked: at,
		conns: stream.NewConnections(cfg.Target, append([]grpc.DialOption{grpc.WithTransportCredentials(transport)}, cfg.Dial...)...),
	}
	r.saver = &position.Saver{Store: cfg.Positions, Partition: cfg.Partition, Every: cfg.SaveEvery, Encode: r.encode}
	r.stream, err = stream.NewReader(stream.ReaderConfig{
		Dial: r.conns.Dial, Stream: cfg.Stream, Query: cfg.Query, Name: cfg.Name, MaxRecord: maxRecord, MaxRecords: cfg.Batch, MaxInFlight: cfg.MaxInFlight,
		// A pipeline waits for its source for as long as it takes, and logs it.
		NoProgress: -1, Retry: cfg.Retry, Logger: slog.New(slog.DiscardHandler), Observe: r.observe,
	}, at)
	if err != nil {
		return nil, errors.Join(err, r.conns.Close())
	}
	return r, nil
}

// observe keeps the last fault for Read.
func (r *Reader) observe(e stream.Event) {
	switch e.Kind {
	case stream.EventOpened:
		r.cfg.Logger.Debug("stream is open", "stream", r.cfg.Stream, "from", e.From)
	case stream.EventRetry:
		for {
			select {
			case r.trouble <- fmt.Errorf("stream %s at %s: %w", r.cfg.Stream, r.cfg.Target, e.Err):
				return
			default:
			}
			select {
			case <-r.trouble:
			default:
			}
		}
	}
}

// Read implements source.Reader.
func (r *Reader) Read(ctx context.Context, limit int) (*source.Batch, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	for r.waiting == nil || r.waiting.done == len(r.waiting.messages) {
		if r.ended {
			return nil, io.EOF
		}
		if err := r.next(ctx); err != nil {
			return nil, err
		}
	}
	return r.batch(limit), nil
}

// next takes what comes next off the stream.
func (r *Reader) next(ctx context.Context) error {
	select {
	case err := <-r.trouble:
		return err
	default:
	}
	// While nothing comes, the last position is saved, and faults are reported.
	slice, cancel := context.WithTimeout(ctx, max(r.cfg.SaveEvery, time.Millisecond))
	defer cancel()
	d, err := r.stream.Next(slice)
	switch {
	case err == nil:
	case errors.Is(err, io.EOF):
		r.ended = true
		return nil
	case ctx.Err() != nil:
		return ctx.Err()
	case slice.Err() != nil && errors.Is(err, context.DeadlineExceeded):
		if err := r.saver.Idle(ctx); err != nil {
			return fmt.Errorf("save position of stream %s: %w", r.cfg.Stream, err)
		}
		return nil
	default:
		return r.explain(err)
	}
	if len(d.Records) == 0 {
		return r.moved(ctx, d.After)
	}
	r.waiting = r.copyOf(d)
	return nil
}

// explain says of an error that does not pass what to do about it.
func (r *Reader) explain(err error) error {
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	hint := "fix the cause and start again: the source resumes where it was"
	switch {
	case errors.Is(err, stream.ErrQueryChanged), errors.Is(err, stream.ErrGeneration), errors.Is(err, stream.ErrGone), errors.Is(err, stream.ErrBadToken):
		hint = "to read the stream as it is now, from its start, give source.stream.partition a new name"
	case errors.Is(err, stream.ErrUnknownStream):
		hint = "correct source.stream.stream, or have the producer serve it"
	}
	return &source.PermanentError{Err: fmt.Errorf("%s, after record %d: %w; %s", r.cfg.Target, r.given.Seq, err, hint)}
}

// moved notes a position that lies behind the last message. It is saved once that is acknowledged.
func (r *Reader) moved(ctx context.Context, to stream.Checkpoint) error {
	r.mu.Lock()
	r.given, r.tail = to, &to
	turn, moved := r.settle()
	r.mu.Unlock()
	if !moved {
		return nil
	}
	return r.saver.Ack(ctx, turn)
}

// settle takes over the tail if nothing is between.
func (r *Reader) settle() (turn uint64, moved bool) {
	if r.tail == nil || r.tail.Seq != r.acked.Seq {
		return 0, false
	}
	r.acked, r.tail = *r.tail, nil
	r.turns++
	return r.turns, true
}

// copyOf makes messages of records, whose memory is the stream's.
func (r *Reader) copyOf(d *stream.Delivery) *delivery {
	now := time.Now().UnixNano()
	size := 0
	for i := range d.Records {
		size += len(d.Records[i].Key) + len(d.Records[i].Value)
	}
	memory := make([]byte, 0, size)
	keep := func(b []byte) []byte {
		at := len(memory)
		memory = append(memory, b...)
		return memory[at:len(memory):len(memory)]
	}
	c := &delivery{records: make([]stream.Record, len(d.Records)), messages: make([]flow.Message, len(d.Records)), after: d.After}
	for i, record := range d.Records {
		record.Key, record.Value = keep(record.Key), keep(record.Value)
		c.records[i] = record
		m, err := r.cfg.Payload.message(&record)
		m.Pos, m.Ingested = record.Seq, now
		if m.EventTime == 0 {
			m.EventTime = now
		}
		c.messages[i] = m
		if err != nil {
			if c.broken == nil {
				c.broken = map[int]*deadletter.Failure{}
			}
			c.broken[i] = &deadletter.Failure{Reason: deadletter.Source, Error: fmt.Sprintf("record %d of stream %s, key %q: %v", record.Seq, r.cfg.Stream, record.Key, err), Attempts: 1}
		}
	}
	return c
}

// batch gives up to limit of the messages that wait.
func (r *Reader) batch(limit int) *source.Batch {
	d := r.waiting
	from, to := d.done, min(d.done+limit, len(d.messages))
	d.done = to
	token := &taken{before: r.given, records: d.records[from:to:to]}
	b := &source.Batch{Partition: r.cfg.Partition, Lo: r.given.Seq + 1, Messages: d.messages[from:to:to]}
	for i := from; i < to && d.broken != nil; i++ {
		if failure := d.broken[i]; failure != nil {
			if b.Broken == nil {
				b.Broken = map[int]*deadletter.Failure{}
			}
			b.Broken[i-from] = failure
		}
	}
	if to == len(d.messages) {
		r.given = d.after
	} else {
		// In the middle of a delivery: the token is an earlier one, and the number says how many records follow it that we have.
		for i := from; i < to; i++ {
			advance(&r.given, &d.records[i])
		}
	}
	token.after = r.given
	b.Hi, b.Token = r.given.Seq, token
	return b
}

// taken is what a batch was made of: the position before its first record, and after its last one.
type taken struct {
	before, after stream.Checkpoint
	records       []stream.Record
	passed        int // records that before has passed since; see AckPart
}

// advance takes a position over a record.
func advance(c *stream.Checkpoint, record *stream.Record) {
	c.Seq = record.Seq
	c.Bytes += uint64(len(record.Key) + len(record.Value))
	c.Digest.Add(*record)
	if record.Bad != "" {
		c.Bad++
	}
}

// Ack implements source.Reader.
func (r *Reader) Ack(ctx context.Context, b *source.Batch) error {
	return r.ackUpTo(ctx, b.Token.(*taken).after)
}

// AckPart implements source.PartAcker. The token of the position is that before the batch, and its number says how many records follow it that we have.
func (r *Reader) AckPart(ctx context.Context, b *source.Batch, _, to int) error {
	t := b.Token.(*taken)
	for ; t.passed < to; t.passed++ {
		advance(&t.before, &t.records[t.passed])
	}
	return r.ackUpTo(ctx, t.before)
}

var _ source.PartAcker = (*Reader)(nil)

func (r *Reader) ackUpTo(ctx context.Context, position stream.Checkpoint) error {
	r.mu.Lock()
	r.acked = position
	r.turns++
	turn := r.turns
	if later, moved := r.settle(); moved {
		turn = later
	}
	r.mu.Unlock()
	return r.saver.Ack(ctx, turn)
}

// Pending implements source.Reader: what the producer says that the stream has, less what was taken off it; -1 if the producer does not know.
func (r *Reader) Pending(context.Context) (int64, error) {
	p := r.stream.Progress()
	if p.Size == 0 {
		return -1, nil
	}
	return max(0, int64(p.Size)-int64(p.Records)), nil
}

// Close implements source.Reader. It saves the position of what was acknowledged.
func (r *Reader) Close(ctx context.Context) error {
	r.closing.Do(func() {
		r.closeErr = errors.Join(r.stream.Close(), r.saver.Flush(ctx), r.conns.Close())
	})
	return r.closeErr
}

var _ source.Reader = (*Reader)(nil)
