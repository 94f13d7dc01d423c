package streamcmd

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/levada-io/levada/internal/commandline"
	"github.com/levada-io/levada/internal/profiling"
	"github.com/levada-io/levada/internal/streamcmd/connect"
	"github.com/levada-io/levada/internal/streamtable"
	"github.com/levada-io/levada/stream"
	"github.com/levada-io/levada/stream/streammetrics"
)

type workFlags struct {
	version         string // of the program
	store           connect.StoreFlags
	client          connect.ProducerFlags
	notifier        connect.NotifierFlags
	log             commandline.LogFlags
	streams         []string
	print           bool
	command         string
	jobs, batch     int
	lease, drain    time.Duration
	handler         time.Duration
	noProgress      limitFlag
	denied, depends limitFlag
	untilDone       bool
	metrics, output string
	pprof           string
	interval        time.Duration
	quiet           bool
}

func newWorkCommand(version string) *cobra.Command {
	f := workFlags{version: version}
	cmd := &cobra.Command{
		Use: "work", Short: "Work on jobs: read their streams and store the records",
		Long: `Claim jobs and read their streams. Where the records go:

  --stream NAME=TABLE   into a table of the job store's database, with the columns job, seq, key and value: exactly once
  --print               to standard output, one JSON object a line: at least once. Its fields are job, stream, seq, id, key, keyEncoding, value
                        and valueEncoding, each always there; an encoding is text, or base64 for bytes that are not UTF-8
  --exec COMMAND        to a command for each batch, as the lines of --print on its standard input: at least once. Exit code 0 means done,
                        65 that one of the records is bad (it is searched for and put into quarantine), others are tried again.
                        Batches grow from one record to what the command does in about a second. One that ended with 0 is handed
                        over again only after a crash

In a pod, set POD_NAME, POD_UID and CONTAINER_NAME by the downward API: then a restarted container takes over its own jobs at once.`,
		Example: `  levada stream work --stream users --target 127.0.0.1:50051
  levada stream work --store postgres://localhost/shop --stream users=copied_users --metrics-listen :9090
  levada stream work --stream orders --target dns:///orders:50051 --ca ca.crt --tls-cert worker.crt --tls-key worker.key
  levada stream work --stream orders --print --until-done | jq .value`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return streamWork(cmd, &f) },
	}
	f.registerRecords(cmd.Flags())
	f.registerLimits(cmd.Flags())
	f.registerViews(cmd.Flags())
	return cmd
}

// registerRecords adds the flags that say where records come from and go to.
func (f *workFlags) registerRecords(flags *pflag.FlagSet) {
	f.store.Register(flags)
	f.client.Register(flags, "producer of jobs that name none, for instance dns:///orders:50051")
	flags.StringArrayVar(&f.streams, "stream", nil, "NAME or NAME=TABLE: work on the jobs of this stream (required)")
	flags.BoolVar(&f.print, "print", false, "print records instead of storing them")
	flags.StringVar(&f.command, "exec", "", "hand records to this command instead of storing them")
	f.notifier.Register(flags)
}

// registerLimits adds the flags about sizes and times.
func (f *workFlags) registerLimits(flags *pflag.FlagSet) {
	flags.IntVar(&f.jobs, "jobs", 16, "jobs at once")
	flags.IntVar(&f.batch, "batch", 1000, "records in a commit at most")
	flags.DurationVar(&f.lease, "lease", 15*time.Second, "how long a job stays with a worker that is not heard of")
	flags.DurationVar(&f.handler, "handler-timeout", time.Minute, "how long one batch may take")
	f.noProgress, f.denied, f.depends = limitFlag{24 * time.Hour}, limitFlag{5 * time.Minute}, limitFlag{2 * time.Minute}
	flags.Var(&f.noProgress, "no-progress", "how long the attempts at a job may fail before the job does, outages not counted; never: it waits for as long as it takes")
	flags.Var(&f.denied, "denied-grace", "how long a producer may deny a stream, or not know it, before the job fails")
	flags.Var(&f.depends, "dependency-wait", "how long a record is tried again that needs rows which are not there, before it goes into quarantine")
	flags.DurationVar(&f.drain, "drain-timeout", 20*time.Second, "time to commit records in flight and to release jobs after SIGTERM")
	flags.BoolVar(&f.untilDone, "until-done", false, "end when no job of these streams is ready or running; exit code 1 if one failed here. A job that waits for an outage is waited for")
}

// registerViews adds the flags about metrics, progress and logs.
func (f *workFlags) registerViews(flags *pflag.FlagSet) {
	flags.StringVar(&f.metrics, "metrics-listen", "", "address of metrics and probes; empty: none")
	flags.StringVar(&f.pprof, "pprof", "", "loopback address of Go's profiles; empty: none")
	flags.DurationVar(&f.interval, "interval", 2*time.Second, "time between two looks at the progress; on a terminal it is at most 250ms")
	flags.BoolVarP(&f.quiet, "quiet", "q", false, "no progress")
	flags.StringVarP(&f.output, "output", "o", "auto", "progress as table, text, json; auto is a table on a terminal")
	commandline.OneOf(flags, "output", "auto", "table", "text", "json")
	f.log.Register(flags)
}

// working is one run of the command: what it has opened.
type working struct {
	*workFlags
	cmd    *cobra.Command
	names  []string          // of the streams, in the order of the flags
	tables map[string]string // by stream; empty: the table has the stream's name
	log    *slog.Logger
	view   *workView
	store  *connect.Database
	worker *stream.Worker
	// registry and metrics are what --metrics-listen shows.
	registry *prometheus.Registry
	metrics  *streammetrics.Worker
	// idle holds a token when a job has ended since --until-done last looked.
	idle chan struct{}
	// closers end what was opened, the last first. They use the store, so they run before it is closed.
	closers []func()
}

func (w *working) close() {
	for _, c := range slices.Backward(w.closers) {
		c()
	}
}

func streamWork(cmd *cobra.Command, f *workFlags) (err error) {
	w := &working{workFlags: f, cmd: cmd, idle: make(chan struct{}, 1)}
	if err := w.check(); err != nil {
		return err
	}
	if err := w.openLog(); err != nil {
		return err
	}
	conns, err := f.client.Connections()
	if err != nil {
		return err
	}
	if w.store, err = f.store.Open(cmd.Context(), true); err != nil {
		return err
	}
	defer w.store.Closing(&err)
	defer w.close()
	if err := w.openWorker(conns); err != nil {
		return err
	}
	for _, name := range w.names {
		sink, err := w.sink(name)
		if err != nil {
			return err
		}
		w.worker.Handle(name, sink)
	}
	return w.run()
}

// check refuses flags that contradict each other, before anything is opened.
func (w *working) check() (err error) {
	w.names, w.tables, err = named("--stream", "NAME or NAME=TABLE, for instance --stream users=copied_users", w.streams, true)
	switch {
	case err != nil:
		return err
	case len(w.names) == 0:
		return commandline.Usagef("--stream is missing: name the streams to work on, for instance --stream users")
	case w.print && w.command != "":
		return commandline.Usagef("--print and --exec exclude each other")
	case w.jobs < 1 || w.batch < 1:
		return commandline.Usagef("--jobs (%d) and --batch (%d) must be at least 1", w.jobs, w.batch)
	case w.lease < time.Second:
		return commandline.Usagef("--lease is %v, and must be at least 1s", w.lease)
	}
	for _, name := range w.names {
		if (w.print || w.command != "") && w.tables[name] != "" {
			return commandline.Usagef("--stream %s=%s: with --print or --exec there is no table; write --stream %s", name, w.tables[name], name)
		}
	}
	return nil
}

// openLog makes the log and the view of the progress. Logs go above the table, so through the screen, which is not a terminal.
func (w *working) openLog() (err error) {
	stderr, logs := &commandline.Screen{Out: w.cmd.ErrOrStderr()}, w.workFlags.log
	jsonLogs := logs.JSON()
	if logs.Format == "auto" && !jsonLogs {
		logs.Format = "text"
	}
	if w.log, err = logs.Logger(stderr); err != nil {
		return err
	}
	slog.SetDefault(w.log)
	w.view = newWorkView(w.output, stderr, w.quiet, w.interval, jsonLogs, w.print && commandline.IsTerminal(w.cmd.OutOrStdout()))
	w.view.log = w.log
	if w.view.kind == "table" {
		w.view.interval = min(w.view.interval, 250*time.Millisecond)
	}
	return nil
}

// openWorker makes the worker with what it needs. A SQLite file has one worker at a time, in one process.
func (w *working) openWorker(conns *stream.Connections) error {
	if w.store.SQLite != nil {
		unlock, err := w.store.SQLite.LockWorker()
		if err != nil {
			return err
		}
		w.closers = append(w.closers, func() { _ = unlock() })
	}
	w.closers = append(w.closers, func() { _ = conns.Close() })
	notifier, closeNotifier, err := w.notifier.Open(w.cmd.Context(), w.store, w.log)
	if err != nil {
		return err
	}
	w.closers = append(w.closers, closeNotifier)

	w.registry, w.metrics = newRegistry(w.version), streammetrics.NewWorker()
	w.registry.MustRegister(w.metrics, streammetrics.NewStore(w.store.Store))
	w.worker, err = stream.NewWorker(stream.WorkerConfig{
		Store: w.store, Notifier: notifier, Dial: conns.Dial, Refresh: conns.Refresh, SingleProcess: w.store.SQLite != nil,
		Lease: w.lease, PollInterval: min(2*time.Second, w.lease/3), MaxJobs: w.jobs, CommitRecords: w.batch, HandlerTimeout: w.handler,
		NoProgress: w.noProgress.d, DeniedGrace: w.denied.d, DependencyWait: w.depends.d, DrainTimeout: w.drain,
		Logger: w.log, Observe: w.observe,
	})
	if err != nil {
		return err
	}
	w.metrics.Watch(w.worker)
	return nil
}

// observe is for WorkerConfig.Observe.
func (w *working) observe(e stream.Event) {
	w.metrics.Observe(e)
	w.view.observe(e)
	if e.Kind != stream.EventReleased {
		return
	}
	if e.State == stream.Failed {
		w.log.Warn("job failed: see it with `levada stream show`, fix the cause, then `levada stream retry`", "job", e.Job.ID, "reason", e.Reason)
	}
	select {
	case w.idle <- struct{}{}:
	default:
	}
}

// sink is where the records of a stream go.
func (w *working) sink(name string) (stream.ReplaySink, error) {
	switch {
	case w.print:
		return stream.AtLeastOnce(w.store.Offsets(), printRecords(w.cmd.OutOrStdout())), nil
	case w.command != "":
		return stream.AtLeastOnce(w.store.Offsets(), execCommand(w.command, w.cmd.ErrOrStderr())), nil
	}
	sink, reader, err := createTableWaiting(w.cmd.Context(), w.store, cmp.Or(w.tables[name], name), w.log)
	if errors.Is(err, streamtable.ErrUnusable) {
		return nil, commandline.Usagef("--stream %s: %w", name, err)
	}
	if err != nil {
		return nil, fmt.Errorf("--stream %s: %w", name, err)
	}
	w.closers = append(w.closers, func() { reader.Close() })
	return sink, nil
}

// run works until the command is ended, or with --until-done until nothing is left to do.
func (w *working) run() error {
	ctx, stop := context.WithCancel(w.cmd.Context())
	defer stop()
	stopWeb, err := w.serveWeb(ctx)
	if err != nil {
		return err
	}
	defer stopWeb()
	var loops sync.WaitGroup
	shown := make(chan struct{})
	if w.view.kind != "none" {
		loops.Go(func() { w.view.follow(shown) })
	}
	if w.untilDone {
		loops.Go(func() {
			if untilDone(ctx, w.store, w.names, w.idle, w.log) {
				stop()
			}
		})
	}
	err = w.worker.Run(ctx)
	stop()
	close(shown)
	loops.Wait()
	if n := w.view.failed(); err == nil && w.untilDone && n > 0 {
		return fmt.Errorf("%d jobs failed: see them with `levada stream list --state failed`", n)
	}
	return err
}

// serveWeb serves profiles, metrics and probes. The process is ready until ctx ends.
func (w *working) serveWeb(ctx context.Context) (stop func(), err error) {
	commandline.WarnOfVisibleCredentials(w.cmd, func(message string) { w.log.Warn(message) })
	stopProfiles, err := profiling.ServeAtFlag(w.cmd, w.pprof, w.log)
	if err != nil {
		return nil, err
	}
	web := probes{registry: w.registry, log: w.log, live: w.live, ready: func(asking context.Context) error {
		if ctx.Err() != nil {
			return errors.New("shutting down")
		}
		_, err := w.store.List(asking, stream.Filter{Limit: 1})
		return err
	}}
	address, stopWeb, err := web.serve(w.workFlags.metrics)
	if err != nil {
		stopProfiles()
		return nil, err
	}
	w.log.Info("working", "owner", w.worker.Owner().String(), "streams", strings.Join(w.names, ","), "metrics", address)
	return func() { stopWeb(); stopProfiles() }, nil
}

// live fails when handlers do not return: only a restart frees them.
func (w *working) live(context.Context) error {
	if n := w.worker.Stuck(); n > 0 {
		return fmt.Errorf("%d handlers do not return", n)
	}
	return nil
}

// createTableWaiting makes the table of a stream. What passes, such as a full disk or a lock, it waits for, as the jobs do.
func createTableWaiting(ctx context.Context, store *connect.Database, table string, log *slog.Logger) (stream.ReplaySink, streamtable.Reader, error) {
	said := false
	for pause := 100 * time.Millisecond; ; pause = min(2*pause, 10*time.Second) {
		sink, reader, err := store.CreateTable(ctx, table)
		reason := streamtable.Passes(err)
		if err == nil || reason == "" || ctx.Err() != nil {
			return sink, reader, err
		}
		if !said && pause > 2*time.Second {
			said = true
			log.Warn("worker waiting for its table", "table", table, "reason", reason, "error", err)
		}
		select {
		case <-ctx.Done():
			return nil, nil, err
		case <-time.After(pause):
		}
	}
}

// untilDone returns true when no job of the streams is ready or running any more.
func untilDone(ctx context.Context, store stream.Store, names []string, look <-chan struct{}, log *slog.Logger) bool {
	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	for {
		left, err := store.List(ctx, stream.Filter{States: []stream.State{stream.Ready, stream.Running}, Streams: names, Limit: 1})
		if err == nil && len(left) == 0 {
			return true
		}
		if err != nil && ctx.Err() == nil {
			log.Warn("the job store does not answer", "error", err)
		}
		select {
		case <-ctx.Done():
			return false
		case <-look:
		case <-tick.C:
		}
	}
}
