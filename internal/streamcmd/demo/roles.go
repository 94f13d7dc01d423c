package demo

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/spf13/cobra"

	"github.com/levada-io/levada/internal/broker"
	"github.com/levada-io/levada/internal/commandline"
	"github.com/levada-io/levada/internal/streamcmd/connect"
	"github.com/levada-io/levada/internal/streamtable"
	"github.com/levada-io/levada/stream"
)

// The demo's processes are this program once more. Each ends when its standard input does, so none outlives the demo however that ends.

const (
	streamName = "users"
	tableName  = "users"
	batchSize  = 256 // small enough that the search for a deadly record takes few deaths
)

// What is wrong with a user, as it stands in its record.
const (
	notePanic  = "no country"
	noteMemory = "needs all memory"
)

// Roles returns the hidden commands that the demo starts as processes.
func Roles() []*cobra.Command {
	return []*cobra.Command{newProducerRole(), newWorkerRole(), newBrokerRole()}
}

// role is a command that ends with its standard input.
func role(name string, run func(cmd *cobra.Command) error) *cobra.Command {
	return &cobra.Command{
		Use: name, Hidden: true, Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			go func() { // ends with the process
				_, _ = io.Copy(io.Discard, os.Stdin)
				os.Exit(commandline.ExitProblems) // the demo is gone
			}()
			return run(cmd)
		},
	}
}

func newProducerRole() *cobra.Command {
	var listen string
	var rate, users int
	var bad []string
	cmd := role("demo-producer", func(cmd *cobra.Command) error {
		table, err := parseUsers(users, bad)
		if err != nil {
			return err
		}
		return serveUsers(cmd.Context(), listen, &pacedUsers{users: table, rate: rate}, cmd.OutOrStdout())
	})
	cmd.Flags().StringVar(&listen, "listen", "127.0.0.1:0", "")
	cmd.Flags().IntVar(&users, "users", 1000, "")
	cmd.Flags().IntVar(&rate, "rate", 0, "")
	cmd.Flags().StringSliceVar(&bad, "bad", nil, "")
	return cmd
}

func newWorkerRole() *cobra.Command {
	var w copying
	cmd := role("demo-worker", func(cmd *cobra.Command) error { return w.run(cmd.Context(), cmd.OutOrStdout()) })
	cmd.Flags().StringVar(&w.store.Name, "store", "", "")
	cmd.Flags().StringVar(&w.client.Target, "target", "", "")
	cmd.Flags().StringVar(&w.notifier.URL, "notifier", "auto", "")
	cmd.Flags().DurationVar(&w.lease, "lease", 10*time.Second, "")
	return cmd
}

func newBrokerRole() *cobra.Command {
	var listen, data string
	cmd := role("demo-broker", func(cmd *cobra.Command) error {
		b, err := broker.Start(broker.Config{Dir: data, Listen: listen, SyncInterval: time.Second, Logger: slog.New(slog.DiscardHandler)})
		if err != nil {
			return err
		}
		defer b.Stop()
		fmt.Fprintln(cmd.OutOrStdout(), b.URL())
		<-cmd.Context().Done()
		return nil
	})
	cmd.Flags().StringVar(&listen, "listen", "127.0.0.1:0", "")
	cmd.Flags().StringVar(&data, "data", "", "")
	return cmd
}

func serveUsers(ctx context.Context, listen string, source stream.Source, out io.Writer) error {
	log := slog.New(slog.DiscardHandler)
	server, err := stream.NewServer(stream.ServerConfig{Logger: log})
	if err != nil {
		return err
	}
	server.Handle(streamName, source)
	g := connect.NewServer()
	server.Register(g)
	listener, err := net.Listen("tcp", listen)
	if err != nil {
		return err
	}
	fmt.Fprintln(out, listener.Addr())
	return connect.Serve(ctx, g, server, listener, 5*time.Second, log, func() {})
}

// workerEvent is what a worker of the demo reports, a line each.
type workerEvent struct {
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

// copying is the worker.
type copying struct {
	store    connect.StoreFlags
	client   connect.ProducerFlags
	notifier connect.NotifierFlags
	lease    time.Duration
}

func (c *copying) run(ctx context.Context, out io.Writer) (err error) {
	store, err := c.store.Open(ctx, true)
	if err != nil {
		return err
	}
	defer store.Closing(&err)
	if store.SQLite != nil {
		unlock, err := store.SQLite.LockWorker()
		if err != nil {
			return err
		}
		defer unlock()
	}
	sink, table, err := faultySink(ctx, store)
	if err != nil {
		return err
	}
	defer table.Close()
	conns, err := c.client.Connections()
	if err != nil {
		return err
	}
	defer conns.Close()
	log := slog.New(slog.DiscardHandler) // the events say what happens to the job
	notifier, closeNotifier, err := c.notifier.Open(ctx, store, log)
	if err != nil {
		return err
	}
	defer closeNotifier()
	worker, err := stream.NewWorker(stream.WorkerConfig{
		Store: store, Notifier: notifier, Dial: conns.Dial, SingleProcess: store.SQLite != nil, Lease: c.lease, PollInterval: 500 * time.Millisecond, CommitRecords: batchSize,
		Retry: stream.Backoff{Min: 50 * time.Millisecond, Max: time.Second}, Logger: log, Observe: printEvents(out),
	})
	if err != nil {
		return err
	}
	worker.Handle(streamName, sink)
	return worker.Run(ctx)
}

// printEvents prints those events that the demo tells of, a line each.
func printEvents(out io.Writer) func(stream.Event) {
	var mu sync.Mutex
	events := json.NewEncoder(out)
	return func(e stream.Event) {
		if e.Kind == stream.EventReceived || e.Kind == stream.EventCommitted && e.Bad == 0 {
			return
		}
		text := ""
		if e.Err != nil {
			text = e.Err.Error()
		}
		mu.Lock()
		defer mu.Unlock()
		_ = events.Encode(workerEvent{Kind: e.Kind, Epoch: e.Epoch, From: e.From, To: e.To, Bad: e.Bad, State: e.State, Reason: string(e.Reason), Error: text, Attempt: e.Attempt, Died: e.Reclaimed})
	}
}

// faultySink is the table's, with a handler that some users are too much for.
func faultySink(ctx context.Context, d *connect.Database) (stream.ReplaySink, streamtable.Reader, error) {
	if d.Postgres != nil {
		t, err := streamtable.CreatePostgres(ctx, d.Postgres.Pool(), tableName)
		if err != nil {
			return nil, nil, err
		}
		return d.Postgres.Sink(func(ctx context.Context, tx pgx.Tx, b *stream.Batch) error {
			stumble(b)
			return t.Insert(ctx, tx, b)
		}), t, nil
	}
	t, err := streamtable.CreateSQLite(ctx, d.Path, tableName)
	if err != nil {
		return nil, nil, err
	}
	return d.SQLite.Sink(func(ctx context.Context, tx *sql.Tx, b *stream.Batch) error {
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
