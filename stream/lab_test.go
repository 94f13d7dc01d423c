package stream_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/test/bufconn"

	streamv1 "github.com/levada-io/levada/proto/levada/stream/v1"
	"github.com/levada-io/levada/stream"
	"github.com/levada-io/levada/stream/memstore"
)

var quiet = slog.New(slog.DiscardHandler)

// lab is a store, a table and workers, in a bubble with virtual time. The bubble fails the test when a goroutine is left.
type lab struct {
	t      *testing.T
	store  *memstore.Store
	table  *table
	config stream.WorkerConfig

	mu     sync.Mutex
	events []stream.Event
}

// newLab makes a lab whose workers reach a producer through dial.
func newLab(t *testing.T, dial func(context.Context, stream.Job) (grpc.ClientConnInterface, error)) *lab {
	l := &lab{t: t, store: memstore.New(), table: &table{}}
	l.config = stream.WorkerConfig{Store: l.store, Dial: dial, Logger: slog.New(slog.DiscardHandler), Observe: l.observe}
	return l
}

func (l *lab) observe(e stream.Event) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.events = append(l.events, e)
}

// seen returns the events of a kind so far.
func (l *lab) seen(kind stream.EventKind) (some []stream.Event) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, e := range l.events {
		if e.Kind == kind {
			some = append(some, e)
		}
	}
	return some
}

// running is a worker at work.
type running struct {
	*stream.Worker
	stop func() error // ends it, and returns what Run returned
}

func (l *lab) start(name string, sink stream.Sink) *running {
	l.t.Helper()
	worker, err := stream.NewWorker(l.config)
	if err != nil {
		l.t.Fatal(err)
	}
	worker.Handle(name, sink)
	return l.run(worker)
}

func (l *lab) run(worker *stream.Worker) *running {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- worker.Run(ctx) }()
	var once sync.Once
	var result error
	r := &running{Worker: worker, stop: func() error {
		once.Do(func() { cancel(); result = <-done })
		return result
	}}
	l.t.Cleanup(func() { r.stop() })
	return r
}

func (l *lab) submit(job stream.Job) stream.Status {
	l.t.Helper()
	status, err := l.store.Submit(context.Background(), job)
	if err != nil {
		l.t.Fatal(err)
	}
	return status
}

func (l *lab) get(id string) stream.Status {
	l.t.Helper()
	status, err := l.store.Get(context.Background(), id)
	if err != nil {
		l.t.Fatal(err)
	}
	return status
}

// await waits, in virtual time, until the condition holds.
func (l *lab) await(what string, limit time.Duration, ok func() bool) {
	l.t.Helper()
	for end := time.Now().Add(limit); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			l.t.Fatalf("after %v: not %s", limit, what)
		}
	}
}

// end waits until the job is final, and returns it.
func (l *lab) end(id string, limit time.Duration) stream.Status {
	l.t.Helper()
	l.await("final", limit, func() bool { return l.get(id).State.Final() })
	return l.get(id)
}

// is checks how a job stands.
func (l *lab) is(job stream.Status, state stream.State, reason stream.Reason) {
	l.t.Helper()
	if job.State != state || job.Reason != reason {
		l.t.Fatalf("the job is %s %q, not %s %q: %s", job.State, job.Reason, state, reason, job.LastError)
	}
}

func (l *lab) aside(job string) []stream.Quarantined {
	l.t.Helper()
	rows, err := l.store.Quarantined(context.Background(), job, 0)
	if err != nil {
		l.t.Fatal(err)
	}
	return rows
}

// table is what a handler has done, as its sink has committed it.
type table struct {
	mu   sync.Mutex
	rows []stream.Record
	slow map[string]time.Duration // how long a batch of a job takes
}

func (c *table) handle(ctx context.Context, b *stream.Batch) (func(), error) {
	c.mu.Lock()
	d := c.slow[b.Job.ID]
	c.mu.Unlock()
	if d > 0 && !sleep(ctx, d) {
		return nil, ctx.Err()
	}
	rows := copied(b.Records)
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.rows = append(c.rows, rows...)
	}, nil
}

func copied(records []stream.Record) []stream.Record {
	rows := make([]stream.Record, len(records))
	for i, r := range records {
		rows[i] = stream.Record{Seq: r.Seq, Key: slices.Clone(r.Key), Value: slices.Clone(r.Value)}
	}
	return rows
}

// hurry ends the slowness.
func (c *table) hurry() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.slow = nil
}

func (c *table) len() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.rows)
}

// holds checks that the table has the records, in order and once, but for those of the numbers given.
func (c *table) holds(records []stream.Record, without ...uint64) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	next := 0
	for i, want := range records {
		if slices.Contains(without, uint64(i+1)) {
			continue
		}
		if next == len(c.rows) {
			return fmt.Errorf("%d rows; record %d is not there", len(c.rows), i+1)
		}
		got := c.rows[next]
		if got.Seq != uint64(i+1) || string(got.Key) != string(want.Key) || string(got.Value) != string(want.Value) {
			return fmt.Errorf("row %d is record %d %q %q, and not %d %q %q", next, got.Seq, got.Key, got.Value, i+1, want.Key, want.Value)
		}
		next++
	}
	if next != len(c.rows) {
		return fmt.Errorf("%d rows, and %d records", len(c.rows), next)
	}
	return nil
}

// onWire starts a gRPC server of a service that may be anything but well behaved, and returns the way to it.
func onWire(t *testing.T, service streamv1.StreamServer, options ...grpc.ServerOption) *producer {
	t.Helper()
	p := &producer{listener: bufconn.Listen(1 << 20), grpc: grpc.NewServer(options...)}
	streamv1.RegisterStreamServer(p.grpc, service)
	done := make(chan struct{})
	go func() { defer close(done); p.grpc.Serve(p.listener) }()
	t.Cleanup(func() { p.grpc.Stop(); <-done })
	return p
}

// scripted answers Read as it likes.
type scripted struct {
	streamv1.UnimplementedStreamServer
	read func(*streamv1.ReadRequest, grpc.ServerStreamingServer[streamv1.Frame]) error
}

func (s scripted) Read(req *streamv1.ReadRequest, out grpc.ServerStreamingServer[streamv1.Frame]) error {
	return s.read(req, out)
}

// tampered is a real producer's stream, of which frames are changed on their way.
type tampered struct {
	grpc.ServerStreamingServer[streamv1.Frame]
	change func(*streamv1.Frame) *streamv1.Frame // nil: it is lost
}

func (s tampered) Send(f *streamv1.Frame) error { return s.SendMsg(f) }

func (s tampered) SendMsg(m any) error {
	f := s.change(m.(*streamv1.Frame))
	if f == nil {
		return nil
	}
	return s.ServerStreamingServer.SendMsg(f)
}

// cursor is a stream.Cursor made of functions. Those that are nil behave.
type cursor struct {
	next  func(ctx context.Context) ([]byte, error)
	value func(dst []byte) ([]byte, error)
	close func() error
}

func (c cursor) Next(ctx context.Context) ([]byte, error) { return c.next(ctx) }
func (c cursor) Value(dst []byte) ([]byte, error) {
	if c.value == nil {
		return append(dst, "value"...), nil
	}
	return c.value(dst)
}
func (c cursor) Close() error {
	if c.close == nil {
		return nil
	}
	return c.close()
}

// opens is a stream.Source made of a function.
type opens func(ctx context.Context, q stream.Query) (stream.Cursor, error)

func (f opens) Open(ctx context.Context, q stream.Query) (stream.Cursor, error) { return f(ctx, q) }

// counted is a source of n records "00000001" and so on, that counts how many it was asked for, and calls at before each.
type counted struct {
	n     int
	size  int // of each value
	at    func(ctx context.Context, seq int) error
	asked atomic.Int64
}

func (s *counted) Open(_ context.Context, q stream.Query) (stream.Cursor, error) {
	seq := 0
	if len(q.After) > 0 {
		if _, err := fmt.Sscanf(string(q.After), "%d", &seq); err != nil {
			return nil, err
		}
	}
	return cursor{
		next: func(ctx context.Context) ([]byte, error) {
			if err := ctx.Err(); err != nil {
				return nil, err
			}
			if seq == s.n {
				return nil, io.EOF
			}
			seq++
			if s.at != nil {
				if err := s.at(ctx, seq); err != nil {
					return nil, err
				}
			}
			s.asked.Add(1)
			return fmt.Appendf(nil, "%08d", seq), nil
		},
		value: func(dst []byte) ([]byte, error) { return append(dst, make([]byte, s.size)...), nil },
	}, nil
}

// newProcess names a process as stream.Self does in a pod. No socket is there: the other workers of the pod take it for dead.
func newProcess() string {
	id := []byte(stream.NewID())
	id[14] = '8'
	return string(id)
}

// mortal is a process: once it is killed, nothing that its worker does has an effect.
type mortal struct {
	dead atomic.Bool
}

var errKilled = errors.New("the process is dead")

func (m *mortal) alive() error {
	if m.dead.Load() {
		return errKilled
	}
	return nil
}

// store returns the store as the process reaches it.
func (m *mortal) store(s stream.Store) stream.Store {
	return &interceptedStore{Store: s, before: func(context.Context, string) error { return m.alive() }}
}

// interceptedStore calls before with the name of each method that a worker uses, which fails when that does.
type interceptedStore struct {
	stream.Store
	before func(ctx context.Context, method string) error
}

func (s *interceptedStore) Claim(ctx context.Context, c stream.Claim) ([]stream.Status, error) {
	if err := s.before(ctx, "Claim"); err != nil {
		return nil, err
	}
	return s.Store.Claim(ctx, c)
}

func (s *interceptedStore) Renew(ctx context.Context, l stream.Lease, p stream.Progress, ttl time.Duration) error {
	if err := s.before(ctx, "Renew"); err != nil {
		return err
	}
	return s.Store.Renew(ctx, l, p, ttl)
}

func (s *interceptedStore) SaveState(ctx context.Context, l stream.Lease, crash stream.CrashState, retry stream.RetryState) error {
	if err := s.before(ctx, "Note"); err != nil {
		return err
	}
	return s.Store.SaveState(ctx, l, crash, retry)
}

func (s *interceptedStore) Release(ctx context.Context, l stream.Lease, r stream.Release) error {
	if err := s.before(ctx, "Release"); err != nil {
		return err
	}
	return s.Store.Release(ctx, l, r)
}

func (s *interceptedStore) Expire(ctx context.Context, d stream.ExpireFilter) (int, error) {
	if err := s.before(ctx, "Expire"); err != nil {
		return 0, err
	}
	return s.Store.Expire(ctx, d)
}

func (s *interceptedStore) Owners(ctx context.Context) ([]stream.Owner, error) {
	if err := s.before(ctx, "Owners"); err != nil {
		return nil, err
	}
	return s.Store.Owners(ctx)
}

// interceptedSink calls before and after each method of a sink; it fails when one of them does.
type interceptedSink struct {
	stream.ReplaySink
	before, after func(ctx context.Context, method string) error
}

func (s *interceptedSink) around(ctx context.Context, method string, do func() error) error {
	if s.before != nil {
		if err := s.before(ctx, method); err != nil {
			return err
		}
	}
	err := do()
	if err == nil && s.after != nil {
		err = s.after(ctx, method)
	}
	return err
}

func (s *interceptedSink) Fence(ctx context.Context, l stream.Lease) (c stream.Checkpoint, err error) {
	err = s.around(ctx, "Fence", func() (err error) { c, err = s.ReplaySink.Fence(ctx, l); return err })
	return c, err
}

func (s *interceptedSink) Commit(ctx context.Context, c *stream.Commit) error {
	return s.around(ctx, "Commit", func() error { return s.ReplaySink.Commit(ctx, c) })
}

func (s *interceptedSink) CommitReplay(ctx context.Context, l stream.Lease, b *stream.Batch) error {
	return s.around(ctx, "CommitReplay", func() error { return s.ReplaySink.CommitReplay(ctx, l, b) })
}

// movable goes to the producer of the moment, so that it can be away, and come back as another.
type movable struct {
	mu       sync.Mutex
	listener *bufconn.Listener
}

func (m *movable) set(l *bufconn.Listener) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.listener = l
}

func (m *movable) dial(ctx context.Context, _ string) (net.Conn, error) {
	m.mu.Lock()
	l := m.listener
	m.mu.Unlock()
	if l == nil {
		return nil, errors.New("connection refused")
	}
	return l.DialContext(ctx)
}
