package streamcmd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/levada-io/levada/internal/commandline"
	"github.com/levada-io/levada/internal/profiling"
	"github.com/levada-io/levada/internal/streamcmd/connect"
	"github.com/levada-io/levada/stream"
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
	f.registerSources(cmd.Flags())
	f.registerServer(cmd.Flags())
	return cmd
}

// registerSources adds the flags that say what is served.
func (f *serveFlags) registerSources(flags *pflag.FlagSet) {
	flags.StringArrayVar(&f.files, "file", nil, "NAME=PATH: serve the lines of a file as the stream NAME")
	flags.StringVar(&f.identity, "identity", "", "with --file: a name for this generation of the files, where their device and inode numbers change (network file systems)")
	flags.StringArrayVar(&f.tables, "table", nil, "NAME=TABLE: serve a table's rows as the stream NAME")
	flags.StringSliceVar(&f.key, "key", nil, "columns of the tables' order, together unique (default: the primary key)")
	flags.StringVar(&f.horizon, "horizon", "", "column of type xid8 with the number of the transaction that inserted the row")
	flags.StringVar(&f.value, "value", "", "column that is the record's value (default: the whole row as JSON)")
	flags.BoolVar(&f.snapshot, "snapshot", false, "give each job a copy of the tables, as they are when it begins")
	flags.BoolVar(&f.static, "static", false, "the tables' rows do not change while jobs read")
	flags.BoolVar(&f.follow, "follow", false, "at the end wait for more, indefinitely")
}

// registerServer adds the flags that say how it is served.
func (f *serveFlags) registerServer(flags *pflag.FlagSet) {
	flags.StringVar(&f.listen, "listen", "127.0.0.1:50051", "address of the gRPC server")
	flags.StringVar(&f.postgres, "postgres", "", "URL of the database of --table")
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
	sources, err := f.sources(cmd.Context())
	if err != nil {
		return err
	}
	defer sources.close()

	registry := newRegistry(f.version)
	server, err := f.server(sources, registry, log)
	if err != nil {
		return err
	}
	g := connect.NewServer(transport...)
	server.Register(g)
	checks := health.NewServer()
	healthv1.RegisterHealthServer(g, checks)

	listener, err := net.Listen("tcp", f.listen)
	if err != nil {
		return fmt.Errorf("--listen: %w", err)
	}
	address, stopWeb, err := f.serveWeb(cmd, registry, log)
	if err != nil {
		listener.Close()
		return err
	}
	defer stopWeb()
	if err := f.announce(cmd.OutOrStdout(), sources.names, listener.Addr(), address); err != nil {
		listener.Close()
		return err
	}
	return connect.Serve(cmd.Context(), g, server, listener, f.drain, log, checks.Shutdown)
}

// server makes the producer, with its metrics.
func (f *serveFlags) server(sources *servedSources, registry *prometheus.Registry, log *slog.Logger) (*stream.Server, error) {
	metrics := streammetrics.NewServer()
	registry.MustRegister(metrics)
	server, err := stream.NewServer(stream.ServerConfig{MaxStreamAge: f.maxAge, MaxStreams: f.maxStreams, Logger: log, OnBad: metrics.OnBad})
	if err != nil {
		return nil, commandline.UsageError(err)
	}
	metrics.Watch(server)
	for _, name := range sources.names {
		server.Handle(name, sources.byName[name])
	}
	return server, nil
}

// serveWeb serves profiles, metrics and probes.
func (f *serveFlags) serveWeb(cmd *cobra.Command, registry *prometheus.Registry, log *slog.Logger) (address string, stop func(), err error) {
	commandline.WarnOfVisibleCredentials(cmd, func(message string) { log.Warn(message) })
	stopProfiles, err := profiling.ServeAtFlag(cmd, f.pprof, log)
	if err != nil {
		return "", nil, err
	}
	stopping := cmd.Context()
	web := probes{registry: registry, log: log, ready: func(context.Context) error {
		if stopping.Err() != nil {
			return errors.New("shutting down")
		}
		return nil
	}}
	address, stopWeb, err := web.serve(f.metrics)
	if err != nil {
		stopProfiles()
		return "", nil, err
	}
	return address, func() { stopWeb(); stopProfiles() }, nil
}

// announce prints what is served where.
func (f *serveFlags) announce(out io.Writer, names []string, at net.Addr, metrics string) error {
	if f.out.json() {
		return commandline.WriteJSON(out, false, map[string]any{"event": "serving", "address": at.String(), "streams": names, "metrics": metrics})
	}
	for _, name := range names {
		fmt.Fprintf(out, "serving %s on %s\n", name, at)
	}
	if metrics != "" {
		fmt.Fprintf(out, "metrics on http://%s/metrics\n", metrics)
	}
	return nil
}
