package stream

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"
	"time"

	"google.golang.org/grpc"
)

// ReaderConfig says what to read, and how. Dial and Stream must be set.
type ReaderConfig struct {
	// Dial returns the connection to the producer, as [WorkerConfig].Dial does; [Connections] has one. The reader does not close it.
	Dial func(ctx context.Context, job Job) (grpc.ClientConnInterface, error)
	// Stream is the name of the stream at its producer.
	Stream string
	// Target says where the producer is, for Dial. Empty: Dial knows.
	Target string
	// Query holds the parameters of the stream, for its source.
	Query []byte
	// Name is what the producer knows the reader by, as the ID of its job: sources that keep something for each job, such as a
	// snapshot, find it again under the same name. Default: a new random one.
	Name string

	// MaxInFlight bounds the bytes that were received and not yet handed out; one batch is always let in. Default 8 MiB.
	MaxInFlight int
	// MaxRecord is the largest record that is taken, in bytes; producers send a bad record instead of a larger one. Default 4 MiB.
	MaxRecord int
	// MaxRecords and MaxBytes bound what Next returns at once. Defaults 1000 and 1 MiB. It never waits for more records to come.
	MaxRecords, MaxBytes int
	// IdleTimeout is how long a stream may be silent before it is reopened. Default 15 s.
	IdleTimeout time.Duration
	// Retry is the pause between attempts. Default 100 ms to 30 s.
	Retry Backoff
	// NoProgress is how long the producer may send invalid frames, or fail for reasons of its own, without one more record before the
	// reader gives up. Attempts that did not reach the producer do not count. Default 24 h; [Never]: it never gives up.
	NoProgress time.Duration
	// DeniedGrace and Refresh are those of [WorkerConfig].
	DeniedGrace time.Duration
	Refresh     func(ctx context.Context, job Job, denied error) error

	// Logger gets what happens to the stream. Default slog.Default.
	Logger *slog.Logger
	// Observe, if set, is called for each event, and must not wait. EventCommitted means handed out.
	Observe func(Event)
}

func (c ReaderConfig) validate() error {
	switch {
	case c.Dial == nil:
		return errors.New("ReaderConfig.Dial is not set: it says how to reach the producer, see Connections")
	case c.Stream == "":
		return errors.New("ReaderConfig.Stream is empty: it is the name of the stream at its producer")
	}
	if err := checkBackoff("ReaderConfig", c.Retry); err != nil {
		return err
	}
	return checkLimits("ReaderConfig", bound{"MaxInFlight", c.MaxInFlight}, bound{"MaxRecord", c.MaxRecord}, bound{"MaxRecords", c.MaxRecords}, bound{"MaxBytes", c.MaxBytes}, bound{"IdleTimeout", c.IdleTimeout})
}

// Reader reads one stream for a program that keeps the checkpoint itself, without a job store. It resumes by itself when the
// stream is cut, as a [Worker] does, and checks the same: numbers, order and digests, and at the end that the stream is complete.
//
// A program that stores the checkpoint together with the effects of the records has each effect exactly once. There is no
// fence: the program must ensure that one process at a time does so.
type Reader struct {
	run   *run
	sink  *readerSink
	close context.CancelCauseFunc
	once  sync.Once

	ended chan struct{} // closed when nothing more comes
	err   error         // why; set before

	holding bool // the caller of Next has records
}

// Delivery is what Next returns.
type Delivery struct {
	// Records follow each other, and those of the delivery before. They include records that the producer could not make, with
	// Bad set. There are none when only the position has moved, and at the stream's end. Records are valid until the next call of
	// Next or Close.
	Records []Record
	// After is the checkpoint after them, to be stored with their effects. After.Done says that the stream is complete.
	After Checkpoint
}

// NewReader reads a stream from a checkpoint on, the zero Checkpoint being the start. The producer is not asked before it
// returns. Close must be called.
func NewReader(config ReaderConfig, after Checkpoint) (*Reader, error) {
	if err := config.validate(); err != nil {
		return nil, err
	}
	job := Job{ID: cmp.Or(config.Name, NewID()), Stream: config.Stream, Target: config.Target, Query: config.Query}
	sink := &readerSink{handed: make(chan *Delivery), back: make(chan struct{}), at: after}
	own, cancel := context.WithCancelCause(context.Background())
	stop, leave := context.WithCancel(own)
	r := &Reader{sink: sink, close: cancel, ended: make(chan struct{})}
	// A reader is a run whose sink hands each commit to Next: that is what makes its streams behave as a worker's.
	c := config.run(job)
	r.run = &run{
		host: readerHost{}, config: c, codec: newFrameCodec(), handlers: newHandlerSlots(1),
		job: job, lease: Lease{Job: job.ID, Owner: c.Owner}, sink: sink, pinned: true, tried: time.Now(), checkpoint: after,
		stopCtx: stop, releaseSoon: leave, leaseCtx: own, loseLease: cancel, shutdownCtx: stop, drainCtx: own,
		log: c.Logger.With("stream", job.Stream, "reader", job.ID),
	}
	r.run.setProgress()
	go r.read() // until Close, which waits for it
	return r, nil
}

// run returns the configuration of the reader's run. It has no lease and no other worker to release the job to, so those limits do not apply.
func (c ReaderConfig) run(job Job) WorkerConfig {
	return WorkerConfig{
		Dial: c.Dial, Owner: Owner{Pod: job.ID}, MaxInFlight: cmp.Or(c.MaxInFlight, 8<<20), MaxRecord: c.MaxRecord,
		CommitRecords: cmp.Or(c.MaxRecords, 1000), CommitBytes: c.MaxBytes, HandlerTimeout: never, IdleTimeout: c.IdleTimeout,
		Retry: c.Retry, NoProgress: c.NoProgress, DeniedGrace: c.DeniedGrace, Refresh: c.Refresh, Logger: c.Logger, Observe: c.Observe,
	}.withDefaults()
}

// readerHost is the host of a Reader's run. There is nothing to keep: what the program has not stored is read again.
type readerHost struct{}

func (readerHost) saveState(context.Context, Lease, CrashState, RetryState) error { return nil }
func (readerHost) keepPatience(string, time.Duration, bool)                       {}
func (readerHost) keepFinished(string, finishedRecords)                           {}
func (readerHost) takeFinished(string) (finishedRecords, bool)                    { return finishedRecords{}, false }

// never is a timeout that does not come: the caller of Next may take any time.
const never = 1 << 62 * time.Nanosecond

func (r *Reader) read() {
	defer close(r.ended)
	err := r.run.run(false)
	switch {
	case err == nil:
		r.err = io.EOF
	case r.run.leaseCtx.Err() != nil:
		r.err = errReaderClosed
	default:
		r.err = fmt.Errorf("stream %q: %w", r.run.job.Stream, err)
	}
}

var errReaderClosed = fmt.Errorf("the reader was closed: %w", net.ErrClosed)

// Next waits for records, or another checkpoint, and releases the records of the call before. It returns io.EOF after the
// stream's end was handed out, the cause of ctx when that ends (nothing is lost then: call it again), and an error that wraps
// one of this package's when an operator has to act: reading continues only with a new Reader. It must not be called concurrently.
func (r *Reader) Next(ctx context.Context) (*Delivery, error) {
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	if r.holding {
		select {
		case r.sink.back <- struct{}{}:
		case <-r.ended:
		}
		r.holding = false
	}
	select {
	case d := <-r.sink.handed:
		r.holding = true
		return d, nil
	case <-r.ended:
		return nil, r.err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// Progress is how far the reader has come, what Next handed out last not counted. It may be called concurrently.
func (r *Reader) Progress() Progress {
	r.run.mu.Lock()
	defer r.run.mu.Unlock()
	return r.run.progress
}

// Close ends the stream. It may be called concurrently, and again; Next then returns an error that wraps net.ErrClosed.
func (r *Reader) Close() error {
	r.once.Do(func() { r.close(errReaderClosed) })
	<-r.ended
	return nil
}

// readerSink is the sink of a reader's run: a commit is what Next returns, and is done when Next is called again.
type readerSink struct {
	handed chan *Delivery
	back   chan struct{}
	at     Checkpoint // only the run uses it
}

// Fence implements Sink: the job has no other owner.
func (h *readerSink) Fence(context.Context, Lease) (Checkpoint, error) { return h.at, nil }

// Commit implements Sink.
func (h *readerSink) Commit(ctx context.Context, c *Commit) error {
	next := c.next
	next.Token = clone(next.Token)
	next.Bad = c.Prev.Bad + uint64(len(c.quarantine))
	select {
	case h.handed <- &Delivery{Records: withBad(c.Batch.Records, c.quarantine), After: next}:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	select {
	case <-h.back:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	h.at = next
	return nil
}

// withBad puts the records that the producer could not make back where they belong.
func withBad(records []Record, aside []Quarantined) []Record {
	if len(aside) == 0 {
		return records
	}
	all := make([]Record, 0, len(records)+len(aside))
	for _, q := range aside {
		for len(records) > 0 && records[0].Seq < q.Seq {
			all, records = append(all, records[0]), records[1:]
		}
		all = append(all, Record{Seq: q.Seq, Key: q.Key, Bad: q.Error})
	}
	return append(all, records...)
}
