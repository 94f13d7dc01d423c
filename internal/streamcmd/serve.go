package streamcmd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"

	"github.com/levada-io/levada/internal/commandline"
	"github.com/levada-io/levada/internal/profiling"
	"github.com/levada-io/levada/stream"
	"github.com/levada-io/levada/stream/pgsource"
	"github.com/levada-io/levada/stream/streammetrics"
)

type serveFlags struct {
	version                   string // of the program
	listen, metrics, postgres string
	pprof                     string
	files, tables, key        []string
	horizon, value, identity  string
	follow, snapshot, static  bool
	cert, keyFile, clientCA   string
	maxAge, drain             time.Duration
	maxStreams                int
	log                       commandline.LogFlags
	out                       outputFlag
}

func newServeCommand(version string) *cobra.Command {
	f := serveFlags{version: version}
	cmd := &cobra.Command{
		Use: "serve", Short: "Serve files and Postgres tables as streams",
		Long: `Serve ordered records over gRPC (levada.stream.v1.Stream). A producer keeps nothing about its readers: any number of replicas may serve
the same rows, and be restarted at any time.

A file's lines are its records, and it must only grow. A table's rows are records as JSON, in the order of its primary key (--key).
Rows that appear while jobs read need --horizon, the column that holds the number of the inserting transaction:

  alter table t add column xid xid8 not null default pg_current_xact_id();
  create index on t (xid, id);

Otherwise say --snapshot, which gives each job a copy of the table as it was when the job began, or --static, if the rows do not change.`,
		Example: `  levada stream serve --file orders=orders.ndjson --follow
  levada stream serve --postgres postgres://localhost/shop --table users=public.users --snapshot
  levada stream serve --postgres postgres://localhost/shop --table events=events --horizon xid --follow --listen :50051`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return streamServe(cmd, &f) },
	}
	flags := cmd.Flags()
	flags.StringVar(&f.listen, "listen", "127.0.0.1:50051", "address of the gRPC server")
	flags.StringArrayVar(&f.files, "file", nil, "NAME=PATH: serve the lines of a file as the stream NAME")
	flags.StringVar(&f.identity, "identity", "", "with --file: a name for this generation of the files, where their device and inode numbers change (network file systems)")
	flags.StringVar(&f.postgres, "postgres", "", "URL of the database of --table")
	flags.StringArrayVar(&f.tables, "table", nil, "NAME=TABLE: serve a table's rows as the stream NAME")
	flags.StringSliceVar(&f.key, "key", nil, "columns of the tables' order, together unique (default: the primary key)")
	flags.StringVar(&f.horizon, "horizon", "", "column of type xid8 with the number of the transaction that inserted the row")
	flags.StringVar(&f.value, "value", "", "column that is the record's value (default: the whole row as JSON)")
	flags.BoolVar(&f.snapshot, "snapshot", false, "give each job a copy of the tables, as they are when it begins")
	flags.BoolVar(&f.static, "static", false, "the tables' rows do not change while jobs read")
	flags.BoolVar(&f.follow, "follow", false, "at the end wait for more, indefinitely")
	flags.StringVar(&f.cert, "tls-cert", "", "file of the server's certificate; without it there is no TLS")
	flags.StringVar(&f.keyFile, "tls-key", "", "file of the certificate's key")
	flags.StringVar(&f.clientCA, "tls-client-ca", "", "CA bundle for verifying client certificates")
	flags.DurationVar(&f.maxAge, "max-age", 30*time.Minute, "when a stream is ended on purpose, so that readers spread over new producers; negative: never")
	commandline.AnyNumber(flags, "max-age")
	flags.IntVar(&f.maxStreams, "max-streams", 1000, "streams at once; further readers are asked to retry later")
	flags.DurationVar(&f.drain, "drain-timeout", 20*time.Second, "time to end streams in good order after SIGTERM")
	flags.StringVar(&f.metrics, "metrics-listen", "", "address of metrics and probes; empty: none")
	flags.StringVar(&f.pprof, "pprof", "", "loopback address of Go's profiles; empty: none")
	f.out.register(flags)
	f.log.Register(flags)
	return cmd
}

func streamServe(cmd *cobra.Command, f *serveFlags) error {
	log, err := f.log.Logger(cmd.ErrOrStderr())
	if err != nil {
		return err
	}
	transport, err := f.credentials()
	if err != nil {
		return err
	}
	sources, names, closeSources, err := f.sources(cmd.Context())
	if err != nil {
		return err
	}
	defer closeSources()

	registry := newRegistry(f.version)
	metrics := streammetrics.NewServer()
	registry.MustRegister(metrics)
	server, err := stream.NewServer(stream.ServerConfig{MaxStreamAge: f.maxAge, MaxStreams: f.maxStreams, Logger: log, OnBad: metrics.OnBad})
	if err != nil {
		return commandline.UsageError(err)
	}
	metrics.Watch(server)
	for _, name := range names {
		server.Handle(name, sources[name])
	}
	g := newServer(transport...)
	server.Register(g)
	checks := health.NewServer()
	healthv1.RegisterHealthServer(g, checks)

	listener, err := net.Listen("tcp", f.listen)
	if err != nil {
		return fmt.Errorf("--listen: %w", err)
	}
	stopping := cmd.Context()
	web := probes{registry: registry, log: log, ready: func(context.Context) error {
		if stopping.Err() != nil {
			return errors.New("shutting down")
		}
		return nil
	}}
	commandline.WarnOfVisibleCredentials(cmd, func(message string) { log.Warn(message) })
	stopProfiles, err := profiling.ServeAtFlag(cmd, f.pprof, log)
	if err != nil {
		listener.Close()
		return err
	}
	defer stopProfiles()
	address, stopWeb, err := web.serve(f.metrics)
	if err != nil {
		listener.Close()
		return err
	}
	defer stopWeb()
	if f.out.json() {
		err = encode(cmd.OutOrStdout(), false, map[string]any{"event": "serving", "address": listener.Addr().String(), "streams": names, "metrics": address})
	} else {
		for _, name := range names {
			fmt.Fprintf(cmd.OutOrStdout(), "serving %s on %s\n", name, listener.Addr())
		}
		if address != "" {
			fmt.Fprintf(cmd.OutOrStdout(), "metrics on http://%s/metrics\n", address)
		}
	}
	if err != nil {
		listener.Close()
		return err
	}
	return serveStreams(cmd.Context(), g, server, listener, f.drain, log, checks.Shutdown)
}

// newServer lets readers ping a silent connection.
func newServer(options ...grpc.ServerOption) *grpc.Server {
	return grpc.NewServer(append(options, grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second, PermitWithoutStream: true}),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: 30 * time.Second, Timeout: 10 * time.Second}))...)
}

// serveStreams serves until ctx ends, and then shuts down in the right order.
func serveStreams(ctx context.Context, g *grpc.Server, server *stream.Server, listener net.Listener, drain time.Duration, log *slog.Logger, notReady func()) error {
	served := make(chan error, 1)
	go func() { served <- g.Serve(listener) }() // ends with Shutdown
	select {
	case err := <-served:
		return fmt.Errorf("serve: %w", err)
	case <-ctx.Done():
	}
	notReady()
	log.Info("shutting down: streams are ended between two batches", "streams", server.Open())
	ending, cancel := context.WithTimeout(context.WithoutCancel(ctx), drain)
	defer cancel()
	if err := stream.Shutdown(ending, g, server); err != nil {
		log.Warn("some streams were cut; their readers go on elsewhere", "error", err)
	}
	<-served
	return nil
}

// sources makes what is to be served. The names are in the order of the flags.
func (f *serveFlags) sources(ctx context.Context) (sources map[string]stream.Source, names []string, closeAll func(), err error) {
	usage := func(text string, args ...any) error {
		return commandline.ExitError{Code: commandline.ExitUsage, Err: fmt.Errorf(text, args...)}
	}
	names, files, err := named("--file", "NAME=PATH, for instance --file orders=orders.ndjson", f.files, false)
	if err != nil {
		return nil, nil, nil, err
	}
	tableNames, tables, err := named("--table", "NAME=TABLE, for instance --table users=public.users", f.tables, false)
	if err != nil {
		return nil, nil, nil, err
	}
	switch {
	case len(tableNames) == 0 && f.postgres != "":
		return nil, nil, nil, usage("--postgres needs --table NAME=TABLE: which tables to serve")
	case len(names)+len(tableNames) == 0:
		return nil, nil, nil, usage("nothing to serve: expected --file NAME=PATH, or --postgres URL with --table NAME=TABLE")
	case len(tableNames) > 0 && f.postgres == "":
		return nil, nil, nil, usage("--table needs --postgres, the URL of the table's database")
	case len(tableNames) == 0 && (f.snapshot || f.static || f.horizon != "" || f.value != "" || len(f.key) > 0):
		return nil, nil, nil, usage("--key, --horizon, --value, --snapshot and --static are for --table")
	}
	sources = map[string]stream.Source{}
	for _, name := range names {
		if err := readableFile(files[name]); err != nil {
			return nil, nil, nil, usage("--file %s: %w", name, err)
		}
		sources[name] = stream.File(files[name], stream.FileOptions{Follow: f.follow, Identity: f.identity})
	}
	if len(tableNames) == 0 {
		return sources, names, func() {}, nil
	}
	kinds := 0
	for _, given := range []bool{f.snapshot, f.static, f.horizon != ""} {
		if given {
			kinds++
		}
	}
	if kinds != 1 {
		return nil, nil, nil, usage("say of the tables exactly one of --horizon COLUMN (rows appear while jobs read), --snapshot (a copy for each job) and --static (rows do not change)")
	}
	if _, err := pgxpool.ParseConfig(f.postgres); err != nil {
		return nil, nil, nil, usage("--postgres: %w", err)
	}
	pool, err := pgsource.Connect(ctx, f.postgres)
	if err != nil {
		return nil, nil, nil, fmt.Errorf("--postgres: %w", err)
	}
	for _, name := range tableNames {
		if _, twice := sources[name]; twice {
			err = usage("stream %s is both a --file and a --table", name)
			break
		}
		if sources[name], err = f.table(ctx, pool, tables[name]); err != nil {
			err = fmt.Errorf("--table %s=%s: %w", name, tables[name], err)
			break
		}
		if err = readableTable(ctx, pool, tables[name], sources[name], f.snapshot); err != nil {
			err = fmt.Errorf("--table %s=%s: %w", name, tables[name], err)
			break
		}
		names = append(names, name)
	}
	if err != nil {
		pool.Close()
		return nil, nil, nil, err
	}
	return sources, names, pool.Close, nil
}

// readableFile finds out before anything is announced what would end each stream of the file.
func readableFile(path string) error {
	info, err := os.Stat(path) // before opening, which would wait in a named pipe
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("%s is not a regular file (%v): expected a file of lines, which can be read again", path, info.Mode().Type())
	}
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	return file.Close()
}

// readableTable does the same for a table: its rows may be read, and its columns are what the flags say.
func readableTable(ctx context.Context, pool *pgxpool.Pool, table string, source stream.Source, snapshot bool) error {
	asking, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	if _, err := pool.Exec(asking, `select from `+postgresIdentifier(table)+` limit 0`); err != nil {
		return fmt.Errorf("read the table as user %q: %w", pool.Config().ConnConfig.User, err)
	}
	if snapshot { // which opening it would make
		return nil
	}
	cursor, err := source.Open(asking, stream.Query{})
	if err != nil {
		return err
	}
	return cursor.Close()
}

func (f *serveFlags) table(ctx context.Context, pool *pgxpool.Pool, table string) (stream.Source, error) {
	q := pgsource.Query{Table: table, Key: f.key, Horizon: f.horizon, Static: f.static, Value: f.value, Follow: f.follow}
	if len(q.Key) == 0 {
		var err error
		if q.Key, err = primaryKey(ctx, pool, table); err != nil {
			return nil, err
		}
	}
	if f.snapshot {
		return pgsource.Snapshot(pool, q)
	}
	return pgsource.Keyset(pool, q)
}

// primaryKey returns the columns of a table's primary key, in its order.
func primaryKey(ctx context.Context, pool *pgxpool.Pool, table string) ([]string, error) {
	asking, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	var there bool
	if err := pool.QueryRow(asking, `select to_regclass($1) is not null`, postgresIdentifier(table)).Scan(&there); err != nil {
		return nil, err
	}
	if !there {
		return nil, errors.New("there is no such table in the database of --postgres")
	}
	rows, err := pool.Query(asking, `select a.attname::text from pg_index i, unnest(i.indkey::int2[]) with ordinality k(attnum, n), pg_attribute a
		where i.indrelid = to_regclass($1) and i.indisprimary and a.attrelid = i.indrelid and a.attnum = k.attnum order by k.n`, postgresIdentifier(table))
	if err != nil {
		return nil, err
	}
	columns, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return nil, err
	}
	if len(columns) == 0 {
		return nil, errors.New("it has no primary key: name the columns of the order with --key, which must be unique together")
	}
	return columns, nil
}
