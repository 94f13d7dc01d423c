// Package streamcmd has the commands of "levada stream": producers (serve), workers (work), and what shows and changes jobs.
//
// # Files
//
// There is a file for each command. streamcmd.go has what they share: the flags that name the job store, the producers and what wakes workers, and how a job is
// found. The demo (demo*.go) is here because it is made of these commands: it starts them as processes, and reads their stores. That is why the
// folder has more files than others.
package streamcmd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/nats-io/nats.go"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"google.golang.org/grpc"

	"github.com/levada-io/levada/internal/commandline"
	"github.com/levada-io/levada/internal/streamtable"
	"github.com/levada-io/levada/stream"
	"github.com/levada-io/levada/stream/natsnotify"
	"github.com/levada-io/levada/stream/pgnotify"
	"github.com/levada-io/levada/stream/pgstore"
	"github.com/levada-io/levada/stream/rabbitnotify"
	"github.com/levada-io/levada/stream/sqlitestore"
)

// New returns the command "stream" with all that is below it. version is the one of the program, for its metrics.
func New(version string) *cobra.Command {
	cmd := &cobra.Command{
		Use: "stream", Short: "Move records between services over gRPC, exactly once into a database",
		Long: `A producer serves ordered records (serve, or your own program with package stream). A job says that a stream is to be read to its end, once
(submit). Workers claim jobs, and commit records together with the offset (work, or your own program). Whatever dies, the next worker goes on
after the last commit.

Jobs are kept in a SQLite file, for one worker on one machine, or in Postgres, for any number of workers: --store names it.`,
		Example: `  levada stream demo
  levada stream serve --file orders=orders.ndjson
  levada stream submit orders --target 127.0.0.1:50051
  levada stream work --stream orders --until-done`,
	}
	cmd.AddCommand(newServeCommand(version), newWorkCommand(version), newSubmitCommand(), newListCommand(), newShowCommand())
	cmd.AddCommand(newChangeCommands()...)
	cmd.AddCommand(newQuarantineCommand(), newVerifyCommand(), newMigrateCommand(), newPurgeCommand(), newWatchCommand(version), newDemoCommand())
	cmd.AddCommand(newDemoRoles()...)
	return cmd
}

// storeFlag names the job store.
type storeFlag struct{ name, schema string }

func (f *storeFlag) register(flags *pflag.FlagSet) {
	flags.StringVar(&f.name, "store", "./levada-streams.db", "job store: the path of a SQLite file, or a postgres:// URL")
	flags.StringVar(&f.schema, "store-schema", "", "schema of the tables in Postgres (default: the one that search_path names)")
}

const (
	storeSQLite = iota
	storePostgres
)

// place returns what kind of store the flags name, and its path or URL.
func (f *storeFlag) place() (kind int, name string, err error) {
	scheme, rest, ok := strings.Cut(f.name, "://")
	switch {
	case f.name == "":
		return 0, "", commandline.UsageError(errors.New("--store is empty: expected the path of a SQLite file, or a postgres:// URL"))
	case ok && (scheme == "postgres" || scheme == "postgresql"):
		return storePostgres, f.name, nil
	case ok && (rest == "" || scheme != "file"):
		return 0, "", commandline.UsageError(fmt.Errorf("--store %s://...: expected the path of a SQLite file, or a postgres:// URL", scheme))
	case f.schema != "":
		return 0, "", commandline.UsageError(errors.New("--store-schema needs a postgres:// store: a SQLite file has no schemas"))
	}
	return storeSQLite, strings.TrimPrefix(f.name, "file://"), nil
}

func (f *storeFlag) postgresOptions() []pgstore.Option {
	if f.schema == "" {
		return nil
	}
	return []pgstore.Option{pgstore.WithSchema(f.schema)}
}

// database is a job store, and the tables beside it.
type database struct {
	stream.Store
	path     string // of the SQLite file, or empty
	sqlite   *sqlitestore.Store
	postgres *pgstore.Store
}

// open opens the store. create says that its file and its tables may be created or brought up to date. Otherwise nothing is: a name that was
// mistyped would look like an empty store, and a database that is another program's would get tables.
func (f *storeFlag) open(ctx context.Context, create bool) (*database, error) {
	kind, path, err := f.place()
	if err != nil {
		return nil, err
	}
	if kind == storePostgres {
		asking, cancel := context.WithTimeout(ctx, 15*time.Second)
		defer cancel()
		options := f.postgresOptions()
		if !create {
			options = append(options, pgstore.WithoutMigrate())
		}
		s, err := pgstore.Open(asking, path, options...)
		if err != nil {
			return nil, migrateHint(err, "levada stream migrate")
		}
		return &database{Store: s, postgres: s}, nil
	}
	if _, err := os.Stat(path); !create && errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("there is no job store at %s: name it with --store (LEVADA_STORE); `levada stream submit` creates one", path)
	}
	var options []sqlitestore.Option
	if !create {
		options = append(options, sqlitestore.WithoutMigrate())
	}
	s, err := sqlitestore.Open(ctx, path, options...)
	if err != nil {
		return nil, migrateHint(err, "levada stream migrate")
	}
	return &database{Store: s, path: path, sqlite: s}, nil
}

// migrateHint adds the command that brings tables up to date to an error that says they are too old: the stores name their functions only.
func migrateHint(err error, command string) error {
	if errors.Is(err, stream.ErrOlder) {
		return fmt.Errorf("%w: run `%s`", err, command)
	}
	return err
}

// offsets returns a sink without a handler: it keeps checkpoints and quarantine.
func (d *database) offsets() stream.ReplaySink {
	if d.postgres != nil {
		return d.postgres.Sink(nil)
	}
	return d.sqlite.Sink(nil)
}

// createTable returns a sink into a table, which it makes if need be. The table is to be closed before the store.
func (d *database) createTable(ctx context.Context, name string) (stream.ReplaySink, streamtable.Reader, error) {
	if d.postgres != nil {
		t, err := streamtable.CreatePostgres(ctx, d.postgres.Pool(), name)
		if err != nil {
			return nil, nil, err
		}
		return d.postgres.Sink(t.Insert), t, nil
	}
	t, err := streamtable.CreateSQLite(ctx, d.path, name)
	if err != nil {
		return nil, nil, err
	}
	return d.sqlite.Sink(t.Insert), t, nil
}

// openTable opens a table that is there.
func (d *database) openTable(ctx context.Context, name string) (streamtable.Reader, error) {
	if d.postgres != nil {
		return streamtable.OpenPostgres(ctx, d.postgres.Pool(), name)
	}
	return streamtable.OpenSQLite(ctx, d.path, name)
}

// openQuery checks a query on the user's own tables.
func (d *database) openQuery(ctx context.Context, query, job string) (*streamtable.Query, error) {
	if d.postgres != nil {
		return streamtable.OpenPostgresQuery(ctx, d.postgres.Pool(), query, job)
	}
	return streamtable.OpenSQLiteQuery(ctx, d.path, query, job)
}

// closing closes the store at the end of a command, and tells what went wrong if nothing else did.
func (d *database) closing(err *error) {
	if e := d.Close(); e != nil && *err == nil {
		*err = fmt.Errorf("close the job store: %w", e)
	}
}

// clientFlags say how producers are reached.
type clientFlags struct {
	target, ca, cert, key string
	tls                   bool
}

func (f *clientFlags) register(flags *pflag.FlagSet, target string) {
	flags.StringVar(&f.target, "target", "", target)
	flags.BoolVar(&f.tls, "tls", false, "use TLS towards producers")
	flags.StringVar(&f.ca, "ca", "", "file of the certificates that producers are checked with, instead of the system's; implies --tls")
	flags.StringVar(&f.cert, "tls-cert", "", "file of the certificate that is shown to producers, which may demand one (serve --tls-client-ca); implies --tls")
	flags.StringVar(&f.key, "tls-key", "", "file of the certificate's key")
}

func (f *clientFlags) connections() (*stream.Connections, error) {
	transport, err := f.credentials()
	if err != nil {
		return nil, err
	}
	return stream.NewConnections(f.target, grpc.WithTransportCredentials(transport)), nil
}

// hintFlag says how workers are woken.
type notifierFlag struct{ url string }

func (f *notifierFlag) register(flags *pflag.FlagSet) {
	flags.StringVar(&f.url, "notifier", "auto", "what wakes workers: none, notify (Postgres), an amqp:// or a nats:// URL; auto is notify with Postgres and none with SQLite")
}

// check refuses what open would refuse, before anything has happened.
func (f *notifierFlag) check(d *database) error {
	scheme, _, ok := strings.Cut(f.url, "://")
	switch {
	case f.url == "notify" && d.postgres == nil:
		return commandline.ExitError{Code: commandline.ExitUsage, Err: errors.New("--notifier notify needs a Postgres store: with SQLite use none, an amqp:// or a nats:// URL")}
	case f.url == "", f.url == "none", f.url == "auto", f.url == "notify":
		return nil
	case ok && slices.Contains([]string{"amqp", "amqps", "nats", "tls", "ws", "wss"}, scheme):
		return nil
	}
	return commandline.ExitError{Code: commandline.ExitUsage, Err: fmt.Errorf("--notifier: expected none, notify, an amqp:// or a nats:// URL, not %q", commandline.Printable(scheme))}
}

// open returns nil notifications if there are none.
func (f *notifierFlag) open(ctx context.Context, d *database, log *slog.Logger) (h stream.Notifier, closeAll func(), err error) {
	if err := f.check(d); err != nil {
		return nil, nil, err
	}
	switch {
	case f.url == "none", f.url == "auto" && d.postgres == nil, f.url == "":
		return nil, func() {}, nil
	case f.url == "auto", f.url == "notify":
		h, err = pgnotify.FromPool(ctx, d.postgres.Pool(), pgnotify.WithLogger(log))
		if err != nil {
			return nil, nil, fmt.Errorf("--notifier: %w", err)
		}
		return h, func() { _ = h.Close() }, nil
	case strings.HasPrefix(f.url, "amqp"):
		h, err = rabbitnotify.New(ctx, f.url, rabbitnotify.WithLogger(log))
		if err != nil {
			return nil, nil, fmt.Errorf("--notifier: %w", err)
		}
		return h, func() { _ = h.Close() }, nil
	}
	conn, err := nats.Connect(f.url, nats.Name("levada stream"), nats.MaxReconnects(-1), nats.RetryOnFailedConnect(true))
	if err != nil {
		return nil, nil, fmt.Errorf("--notifier: %w", err)
	}
	n, err := natsnotify.New(ctx, conn, natsnotify.WithLogger(log))
	if err != nil {
		conn.Close()
		return nil, nil, fmt.Errorf("--notifier: %w", err)
	}
	return n, func() { _ = n.Close(); conn.Close() }, nil
}

// send wakes workers for jobs that have become due. The Postgres store has told them itself, and failing costs only the time of a poll.
func (f *notifierFlag) send(ctx context.Context, d *database, stderr io.Writer, jobs ...stream.Job) error {
	if f.url == "auto" || f.url == "notify" {
		return nil
	}
	log := slog.New(slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	h, closeAll, err := f.open(ctx, d, log)
	if err != nil || h == nil {
		return err
	}
	defer closeAll()
	for _, job := range jobs {
		if err := h.Send(ctx, stream.Notification{Stream: job.Stream, Job: job.ID}); err != nil {
			fmt.Fprintf(stderr, "levada: no notification was sent, so a worker finds the job with its next poll: %v\n", err)
			return nil
		}
	}
	return nil
}

// outputFlag is -o.
type outputFlag struct{ kind string }

func (f *outputFlag) register(flags *pflag.FlagSet) {
	flags.StringVarP(&f.kind, "output", "o", "text", "text or json")
	commandline.OneOf(flags, "output", "text", "json")
}

func (f *outputFlag) json() bool { return f.kind == "json" }

func encode(w io.Writer, indent bool, v any) error {
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	if indent {
		e.SetIndent("", "  ")
	}
	return e.Encode(v)
}

// named reads NAME=VALUE flags.
func named(flag, expected string, values []string, optional bool) (names []string, value map[string]string, err error) {
	value = map[string]string{}
	for _, v := range values {
		name, rest, ok := strings.Cut(v, "=")
		if name == "" || ok && rest == "" || !ok && !optional {
			return nil, nil, commandline.ExitError{Code: commandline.ExitUsage, Err: fmt.Errorf("%s %q: expected %s", flag, v, expected)}
		}
		if _, twice := value[name]; twice {
			return nil, nil, commandline.ExitError{Code: commandline.ExitUsage, Err: fmt.Errorf("%s: stream %s is given twice", flag, name)}
		}
		names = append(names, name)
		value[name] = rest
	}
	return names, value, nil
}

func jobArguments(least int) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) < least || least == 1 && cmd.Annotations["one"] != "" && len(args) > 1 {
			return commandline.ExitError{Code: commandline.ExitUsage, Err: fmt.Errorf("usage: %s: name the job by its id; `levada stream list` shows them", cmd.UseLine())}
		}
		return nil
	}
}

// withJob opens the store and calls do with the job that the id, or its beginning, names. Tables are not created.
func (f *storeFlag) withJob(ctx context.Context, id string, do func(d *database, job stream.Status) error) (err error) {
	d, err := f.open(ctx, false)
	if err != nil {
		return err
	}
	defer d.closing(&err)
	job, err := findJob(ctx, d, id)
	if err != nil {
		return err
	}
	return do(d, job)
}

// findJob takes an id, or its beginning if that is enough to tell jobs apart.
func findJob(ctx context.Context, d *database, id string) (stream.Status, error) {
	status, err := d.Get(ctx, id)
	if err == nil || !errors.Is(err, stream.ErrNotFound) || id == "" {
		return status, err
	}
	all, listErr := d.List(ctx, stream.Filter{Limit: 10000})
	if listErr != nil {
		return status, listErr
	}
	var found []stream.Status
	for i := range all {
		if strings.HasPrefix(all[i].ID, id) {
			found = append(found, all[i])
		}
	}
	switch len(found) {
	case 0:
		return status, fmt.Errorf("%w; `levada stream list` shows what there is", err)
	case 1:
		if len(id) >= leastPrefix {
			return found[0], nil
		}
		return status, commandline.UsageError(fmt.Errorf("%q is too short for a job's id: write at least %d characters of it; one job begins with it, %s (%s, %s)", id, leastPrefix, found[0].ID, found[0].Stream, found[0].State))
	}
	var some []string
	for i := range found[:min(len(found), 5)] {
		some = append(some, fmt.Sprintf("%s (%s, %s)", found[i].ID, found[i].Stream, found[i].State))
	}
	if len(found) > len(some) {
		some = append(some, "...")
	}
	return status, commandline.UsageError(fmt.Errorf("%d jobs begin with %q, write more of the id: %s", len(found), id, strings.Join(some, ", ")))
}

// leastPrefix is how many characters of an id name a job, so that a slip does not change another one.
const leastPrefix = 4

// postgresIdentifier quotes a column or table that a user names.
func postgresIdentifier(name string) string {
	return pgx.Identifier(strings.SplitN(name, ".", 2)).Sanitize()
}
