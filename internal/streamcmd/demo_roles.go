package streamcmd

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/spf13/cobra"

	"github.com/levada-io/levada/internal/broker"
	"github.com/levada-io/levada/internal/commandline"
	"github.com/levada-io/levada/internal/streamtable"
	"github.com/levada-io/levada/stream"
)

// The demo's processes are this program once more. Each ends when its standard input does, so none outlives the demo however that ends.

const (
	demoStream = "users"
	demoTable  = "users"
	demoBatch  = 256 // small enough that the search for a deadly record takes few deaths
)

// What is wrong with a user, as it stands in its record.
const (
	notePanic  = "no country"
	noteMemory = "needs all memory"
)

func newDemoRoles() []*cobra.Command {
	role := func(name string, flags func(*cobra.Command), run func(ctx context.Context, cmd *cobra.Command) error) *cobra.Command {
		cmd := &cobra.Command{
			Use: name, Hidden: true, Args: cobra.NoArgs,
			RunE: func(cmd *cobra.Command, _ []string) error {
				go func() { // ends with the process
					_, _ = io.Copy(io.Discard, os.Stdin)
					os.Exit(commandline.ExitProblems) // the demo is gone
				}()
				return run(cmd.Context(), cmd)
			},
		}
		flags(cmd)
		return cmd
	}
	var listen, data, target, store, notifier string
	var rate, users int
	var bad []string
	var lease time.Duration
	return []*cobra.Command{
		role("demo-producer", func(cmd *cobra.Command) {
			cmd.Flags().StringVar(&listen, "listen", "127.0.0.1:0", "")
			cmd.Flags().IntVar(&users, "users", 1000, "")
			cmd.Flags().IntVar(&rate, "rate", 0, "")
			cmd.Flags().StringSliceVar(&bad, "bad", nil, "")
		}, func(ctx context.Context, cmd *cobra.Command) error {
			table, err := parseDemoUsers(users, bad)
			if err != nil {
				return err
			}
			return demoProducer(ctx, listen, &pacedUsers{users: table, rate: rate}, cmd.OutOrStdout())
		}),
		role("demo-worker", func(cmd *cobra.Command) {
			cmd.Flags().StringVar(&store, "store", "", "")
			cmd.Flags().StringVar(&target, "target", "", "")
			cmd.Flags().StringVar(&notifier, "notifier", "auto", "")
			cmd.Flags().DurationVar(&lease, "lease", 10*time.Second, "")
		}, func(ctx context.Context, cmd *cobra.Command) error {
			return demoWorker(ctx, cmd, &storeFlag{name: store}, &notifierFlag{notifier}, target, lease)
		}),
		role("demo-broker", func(cmd *cobra.Command) {
			cmd.Flags().StringVar(&listen, "listen", "127.0.0.1:0", "")
			cmd.Flags().StringVar(&data, "data", "", "")
		}, func(ctx context.Context, cmd *cobra.Command) error {
			b, err := broker.Start(broker.Config{Dir: data, Listen: listen, SyncInterval: time.Second, Logger: slog.New(slog.DiscardHandler)})
			if err != nil {
				return err
			}
			defer b.Stop()
			fmt.Fprintln(cmd.OutOrStdout(), b.URL())
			<-ctx.Done()
			return nil
		}),
	}
}

// demoUsers is the table that the producing service has: each user follows from its number.
type demoUsers struct {
	count int
	notes map[uint64]string // what is wrong, by number
}

func parseDemoUsers(count int, bad []string) (*demoUsers, error) {
	u := &demoUsers{count: count, notes: map[uint64]string{}}
	for _, b := range bad {
		text, note, ok := strings.Cut(b, "=")
		id, err := strconv.ParseUint(text, 10, 63)
		if !ok || err != nil {
			return nil, commandline.ExitError{Code: commandline.ExitUsage, Err: fmt.Errorf("--bad: expected NUMBER=NOTE, not %q", b)}
		}
		u.notes[id] = note
	}
	return u, nil
}

func (u *demoUsers) key(dst []byte, id uint64) []byte { return binary.BigEndian.AppendUint64(dst, id) }

func (u *demoUsers) value(dst []byte, id uint64) []byte {
	dst = fmt.Appendf(dst, `{"id":%d,"name":"User %d","email":"user%d@example.org","balance":%d`, id, id, id, id*7919%100000)
	if note := u.notes[id]; note != "" {
		dst = fmt.Appendf(dst, `,"note":%q`, note)
	}
	return append(dst, '}')
}

// sums are what a reader of the whole table must come to.
func (u *demoUsers) sums() (s sums) {
	var key, value []byte
	for id := uint64(1); id <= uint64(u.count); id++ {
		key, value = u.key(key[:0], id), u.value(value[:0], id)
		s.add(stream.Record{Seq: id, Key: key, Value: value})
	}
	s.Digest = s.digest.String()
	return s
}

// pacedUsers serves the table slowly enough to watch.
type pacedUsers struct {
	users *demoUsers
	rate  int // records per second; 0: as fast as it goes
}

// Open implements stream.Source.
func (p *pacedUsers) Open(_ context.Context, q stream.Query) (stream.Cursor, error) {
	c := &pacedCursor{pacedUsers: p, begun: time.Now()}
	if len(q.After) == 8 {
		c.id = binary.BigEndian.Uint64(q.After)
	}
	return c, nil
}

// Size implements stream.Sizer.
func (p *pacedUsers) Size(context.Context, stream.Query) (uint64, error) {
	return uint64(p.users.count), nil
}

type pacedCursor struct {
	*pacedUsers
	id    uint64
	begun time.Time
	given int
	buf   []byte
}

// Next implements stream.Cursor.
func (c *pacedCursor) Next(ctx context.Context) ([]byte, error) {
	if c.id >= uint64(c.users.count) {
		return nil, io.EOF
	}
	// In steps of a fiftieth of a second, so that batches stay batches.
	if step := max(c.rate/50, 1); c.rate > 0 && c.given%step == 0 {
		if ahead := time.Duration(c.given)*time.Second/time.Duration(c.rate) - time.Since(c.begun); ahead > 0 {
			select {
			case <-time.After(ahead):
			case <-ctx.Done():
				return nil, context.Cause(ctx)
			}
		} else { // what was held up is not made up for, or there would be nothing to watch
			c.begun, c.given = time.Now(), 0
		}
	}
	c.given++
	c.id++
	c.buf = c.users.key(c.buf[:0], c.id)
	return c.buf, nil
}

// Value implements stream.Cursor.
func (c *pacedCursor) Value(dst []byte) ([]byte, error) { return c.users.value(dst, c.id), nil }

// Close implements stream.Cursor.
func (c *pacedCursor) Close() error { return nil }

func demoProducer(ctx context.Context, listen string, source stream.Source, out io.Writer) error {
	log := slog.New(slog.DiscardHandler)
	server, err := stream.NewServer(stream.ServerConfig{Logger: log})
	if err != nil {
		return err
	}
	server.Handle(demoStream, source)
	g := newServer()
	server.Register(g)
	listener, err := net.Listen("tcp", listen)
	if err != nil {
		return err
	}
	fmt.Fprintln(out, listener.Addr())
	return serveStreams(ctx, g, server, listener, 5*time.Second, log, func() {})
}

// demoEvent is what a worker of the demo reports, a line each.
type demoEvent struct {
	Kind    stream.EventKind `json:"kind"`
	Epoch   uint64           `json:"epoch,omitempty"`
	From    uint64           `json:"from,omitempty"`
	To      uint64           `json:"to,omitempty"`
	Bad     int              `json:"bad,omitempty"`
	State   stream.State     `json:"state,omitempty"`
	Reason  string           `json:"reason,omitempty"`
	Error   string           `json:"error,omitempty"`
	Attempt int              `json:"attempt,omitempty"`
	Died    bool             `json:"died,omitempty"`
}

func demoWorker(ctx context.Context, cmd *cobra.Command, f *storeFlag, h *notifierFlag, target string, lease time.Duration) (err error) {
	// The events say what happens to the job.
	log := slog.New(slog.DiscardHandler)
	store, err := f.open(ctx, true)
	if err != nil {
		return err
	}
	defer store.closing(&err)
	if store.sqlite != nil {
		unlock, err := store.sqlite.LockWorker()
		if err != nil {
			return err
		}
		defer unlock()
	}
	sink, table, err := demoSink(ctx, store)
	if err != nil {
		return err
	}
	defer table.Close()
	client := clientFlags{target: target}
	conns, err := client.connections()
	if err != nil {
		return err
	}
	defer conns.Close()
	notifier, closeNotifier, err := h.open(ctx, store, log)
	if err != nil {
		return err
	}
	defer closeNotifier()
	var mu sync.Mutex
	events := json.NewEncoder(cmd.OutOrStdout())
	worker, err := stream.NewWorker(stream.WorkerConfig{
		Store: store, Notifier: notifier, Dial: conns.Dial, SingleProcess: store.sqlite != nil, Lease: lease, PollInterval: 500 * time.Millisecond, CommitRecords: demoBatch,
		Retry: stream.Backoff{Min: 50 * time.Millisecond, Max: time.Second}, Logger: log,
		Observe: func(e stream.Event) {
			if e.Kind == stream.EventReceived || e.Kind == stream.EventCommitted && e.Bad == 0 {
				return
			}
			text := ""
			if e.Err != nil {
				text = e.Err.Error()
			}
			mu.Lock()
			defer mu.Unlock()
			_ = events.Encode(demoEvent{Kind: e.Kind, Epoch: e.Epoch, From: e.From, To: e.To, Bad: e.Bad, State: e.State, Reason: string(e.Reason), Error: text, Attempt: e.Attempt, Died: e.Reclaimed})
		},
	})
	if err != nil {
		return err
	}
	worker.Handle(demoStream, sink)
	return worker.Run(ctx)
}

// demoSink is the table's, with a handler that some users are too much for.
func demoSink(ctx context.Context, d *database) (stream.ReplaySink, streamtable.Reader, error) {
	if d.postgres != nil {
		t, err := streamtable.CreatePostgres(ctx, d.postgres.Pool(), demoTable)
		if err != nil {
			return nil, nil, err
		}
		return d.postgres.Sink(func(ctx context.Context, tx pgx.Tx, b *stream.Batch) error {
			stumble(b)
			return t.Insert(ctx, tx, b)
		}), t, nil
	}
	t, err := streamtable.CreateSQLite(ctx, d.path, demoTable)
	if err != nil {
		return nil, nil, err
	}
	return d.sqlite.Sink(func(ctx context.Context, tx *sql.Tx, b *stream.Batch) error {
		stumble(b)
		return t.Insert(ctx, tx, b)
	}), t, nil
}

// stumble is the mistake in the handler.
func stumble(b *stream.Batch) {
	for _, r := range b.Records {
		switch {
		case bytes.Contains(r.Value, []byte(`"note":"`+notePanic)):
			panic(fmt.Sprintf("assignment to entry in nil map: user %d has no country", r.Seq))
		case bytes.Contains(r.Value, []byte(`"note":"`+noteMemory)):
			eatMemory()
		}
	}
}

const (
	eatenAtOnce = 4 << 20
	eatenAtMost = 2 << 30 // a machine is not to suffer, whatever becomes of the demo
)

// eatMemory allocates until it is killed.
func eatMemory() {
	var eaten [][]byte
	for len(eaten)*eatenAtOnce < eatenAtMost {
		b := make([]byte, eatenAtOnce)
		for i := 0; i < len(b); i += 4096 {
			b[i] = 1
		}
		eaten = append(eaten, b)
		time.Sleep(2 * time.Millisecond) // slow enough to be watched
	}
	os.Exit(137) // it was not killed in time
}
