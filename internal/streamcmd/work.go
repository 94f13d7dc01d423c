package streamcmd

import (
	"bytes"
	"cmp"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"github.com/levada-io/levada/internal/commandline"
	"github.com/levada-io/levada/internal/profiling"
	"github.com/levada-io/levada/internal/streamtable"
	"github.com/levada-io/levada/stream"
	"github.com/levada-io/levada/stream/streammetrics"
)

type workFlags struct {
	version         string // of the program
	store           storeFlag
	client          clientFlags
	notifier        notifierFlag
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
	flags := cmd.Flags()
	f.store.register(flags)
	f.client.register(flags, "producer of jobs that name none, for instance dns:///orders:50051")
	flags.StringArrayVar(&f.streams, "stream", nil, "NAME or NAME=TABLE: work on the jobs of this stream (required)")
	flags.BoolVar(&f.print, "print", false, "print records instead of storing them")
	flags.StringVar(&f.command, "exec", "", "hand records to this command instead of storing them")
	f.notifier.register(flags)
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
	flags.StringVar(&f.metrics, "metrics-listen", "", "address of metrics and probes; empty: none")
	flags.StringVar(&f.pprof, "pprof", "", "loopback address of Go's profiles; empty: none")
	flags.DurationVar(&f.interval, "interval", 2*time.Second, "time between two looks at the progress; on a terminal it is at most 250ms")
	flags.BoolVarP(&f.quiet, "quiet", "q", false, "no progress")
	flags.StringVarP(&f.output, "output", "o", "auto", "progress as table, text, json; auto is a table on a terminal")
	commandline.OneOf(flags, "output", "auto", "table", "text", "json")
	f.log.Register(flags)
	return cmd
}

func streamWork(cmd *cobra.Command, f *workFlags) (err error) {
	usage := func(text string, args ...any) error {
		return commandline.ExitError{Code: commandline.ExitUsage, Err: fmt.Errorf(text, args...)}
	}
	names, tables, err := named("--stream", "NAME or NAME=TABLE, for instance --stream users=copied_users", f.streams, true)
	switch {
	case err != nil:
		return err
	case len(names) == 0:
		return usage("--stream is missing: name the streams to work on, for instance --stream users")
	case f.print && f.command != "":
		return usage("--print and --exec exclude each other")
	case f.jobs < 1 || f.batch < 1:
		return usage("--jobs (%d) and --batch (%d) must be at least 1", f.jobs, f.batch)
	case f.lease < time.Second:
		return usage("--lease is %v, and must be at least 1s", f.lease)
	}
	for _, name := range names {
		if (f.print || f.command != "") && tables[name] != "" {
			return usage("--stream %s=%s: with --print or --exec there is no table; write --stream %s", name, tables[name], name)
		}
	}
	// Logs go above the table, so through the screen, which is not a terminal.
	stderr, logs := &commandline.Screen{Out: cmd.ErrOrStderr()}, f.log
	jsonLogs := logs.JSON()
	if logs.Format == "auto" && !jsonLogs {
		logs.Format = "text"
	}
	log, err := logs.Logger(stderr)
	if err != nil {
		return err
	}
	slog.SetDefault(log)
	view, err := newWorkView(f.output, stderr, f.quiet, f.interval, jsonLogs, f.print && commandline.IsTerminal(cmd.OutOrStdout()))
	if err != nil {
		return err
	}
	view.log = log
	if view.kind == "table" {
		view.interval = min(view.interval, 250*time.Millisecond)
	}
	conns, err := f.client.connections()
	if err != nil {
		return err
	}
	store, err := f.store.open(cmd.Context(), true)
	if err != nil {
		return err
	}
	defer store.closing(&err) // last: what is deferred below uses it
	if store.sqlite != nil {
		unlock, err := store.sqlite.LockWorker()
		if err != nil {
			return err
		}
		defer unlock()
	}
	defer conns.Close()
	notifier, closeNotifier, err := f.notifier.open(cmd.Context(), store, log)
	if err != nil {
		return err
	}
	defer closeNotifier()

	registry := newRegistry(f.version)
	metrics := streammetrics.NewWorker()
	registry.MustRegister(metrics, streammetrics.NewStore(store.Store))
	idle := make(chan struct{}, 1)
	worker, err := stream.NewWorker(stream.WorkerConfig{
		Store: store, Notifier: notifier, Dial: conns.Dial, Refresh: conns.Refresh, SingleProcess: store.sqlite != nil,
		Lease: f.lease, PollInterval: min(2*time.Second, f.lease/3), MaxJobs: f.jobs, CommitRecords: f.batch, HandlerTimeout: f.handler, NoProgress: f.noProgress.d, DeniedGrace: f.denied.d, DependencyWait: f.depends.d, DrainTimeout: f.drain,
		Logger: log,
		Observe: func(e stream.Event) {
			metrics.Observe(e)
			view.observe(e)
			if e.Kind == stream.EventReleased {
				if e.State == stream.Failed {
					log.Warn("job failed: see it with `levada stream show`, fix the cause, then `levada stream retry`", "job", e.Job.ID, "reason", e.Reason)
				}
				select {
				case idle <- struct{}{}:
				default:
				}
			}
		},
	})
	if err != nil {
		return err
	}
	metrics.Watch(worker)
	for _, name := range names {
		var sink stream.ReplaySink
		switch {
		case f.print:
			sink = stream.AtLeastOnce(store.offsets(), printRecords(cmd.OutOrStdout()))
		case f.command != "":
			sink = stream.AtLeastOnce(store.offsets(), execCommand(f.command, cmd.ErrOrStderr()))
		default:
			table := cmp.Or(tables[name], name)
			made, reader, err := createTableWaiting(cmd.Context(), store, table, log)
			if errors.Is(err, streamtable.ErrUnusable) {
				return usage("--stream %s: %w", name, err)
			}
			if err != nil {
				return fmt.Errorf("--stream %s: %w", name, err)
			}
			defer reader.Close()
			sink = made
		}
		worker.Handle(name, sink)
	}

	ctx, stop := context.WithCancel(cmd.Context())
	defer stop()
	web := probes{registry: registry, log: log,
		live: func(context.Context) error {
			if n := worker.Stuck(); n > 0 {
				return fmt.Errorf("%d handlers do not return", n)
			}
			return nil
		},
		ready: func(asking context.Context) error {
			if ctx.Err() != nil {
				return errors.New("shutting down")
			}
			_, err := store.List(asking, stream.Filter{Limit: 1})
			return err
		}}
	commandline.WarnOfVisibleCredentials(cmd, func(message string) { log.Warn(message) })
	stopProfiles, err := profiling.ServeAtFlag(cmd, f.pprof, log)
	if err != nil {
		return err
	}
	defer stopProfiles()
	address, stopWeb, err := web.serve(f.metrics)
	if err != nil {
		return err
	}
	defer stopWeb()
	log.Info("working", "owner", worker.Owner().String(), "streams", strings.Join(names, ","), "metrics", address)

	var loops sync.WaitGroup
	shown := make(chan struct{})
	if view.kind != "none" {
		loops.Go(func() { view.follow(shown) })
	}
	if f.untilDone {
		loops.Go(func() {
			if untilDone(ctx, store, names, idle, log) {
				stop()
			}
		})
	}
	err = worker.Run(ctx)
	stop()
	close(shown)
	loops.Wait()
	if n := view.failed(); err == nil && f.untilDone && n > 0 {
		return commandline.ExitError{Code: commandline.ExitProblems, Err: fmt.Errorf("%d jobs failed: see them with `levada stream list --state failed`", n)}
	}
	return err
}

// createTableWaiting makes the table of a stream. What passes, such as a full disk or a lock, it waits for, as the jobs do.
func createTableWaiting(ctx context.Context, store *database, table string, log *slog.Logger) (stream.ReplaySink, streamtable.Reader, error) {
	said := false
	for pause := 100 * time.Millisecond; ; pause = min(2*pause, 10*time.Second) {
		sink, reader, err := store.createTable(ctx, table)
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

// recordLine is a record as people and programs read it.
type recordLine struct {
	Job    string `json:"job"`
	Stream string `json:"stream"`
	Seq    uint64 `json:"seq"`
	// ID stays the same when the record is handed over again.
	ID string `json:"id"`
	// Key and Value are always there. Their encodings say what they are, since bytes are not always text.
	Key           string   `json:"key"`
	KeyEncoding   encoding `json:"keyEncoding"`
	Value         string   `json:"value"`
	ValueEncoding encoding `json:"valueEncoding"`
}

// encoding is how bytes stand in a text of JSON.
type encoding string

const (
	encodingText   encoding = "text"   // the bytes are the text, in UTF-8
	encodingBase64 encoding = "base64" // the bytes are not UTF-8
)

func encoded(b []byte) (string, encoding) {
	if utf8.Valid(b) {
		return string(b), encodingText
	}
	return base64.StdEncoding.EncodeToString(b), encodingBase64
}

// jsonLines writes a batch as JSON, a line a record.
func jsonLines(b *stream.Batch) ([]byte, error) {
	var out bytes.Buffer
	e := json.NewEncoder(&out)
	e.SetEscapeHTML(false)
	for _, r := range b.Records {
		line := recordLine{Job: b.Job.ID, Stream: b.Job.Stream, Seq: r.Seq, ID: b.IdempotencyKey(r)}
		line.Key, line.KeyEncoding = encoded(r.Key)
		line.Value, line.ValueEncoding = encoded(r.Value)
		if err := e.Encode(&line); err != nil {
			return nil, err
		}
	}
	return out.Bytes(), nil
}

// printing keeps the batches of several jobs apart.
var printing sync.Mutex

func printRecords(out io.Writer) func(context.Context, *stream.Batch) error {
	return func(_ context.Context, b *stream.Batch) error {
		lines, err := jsonLines(b)
		if err != nil {
			return err
		}
		printing.Lock()
		defer printing.Unlock()
		if _, err := out.Write(lines); err != nil {
			if err = fmt.Errorf("print: %w", err); errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
				return err // there may be room later, and what was written in part is written again
			}
			return stream.Halt(err)
		}
		return nil
	}
}

// exitBadRecord is what a command ends with when a record is bad: EX_DATAERR of sysexits.h.
const exitBadRecord = 65

func execCommand(command string, output io.Writer) func(context.Context, *stream.Batch) error {
	return func(ctx context.Context, b *stream.Batch) error {
		lines, err := jsonLines(b)
		if err != nil {
			return err
		}
		shell := []string{"/bin/sh", "-c"}
		if runtime.GOOS == "windows" {
			shell = []string{"cmd", "/c"}
		}
		c := exec.CommandContext(ctx, shell[0], shell[1], command)
		c.WaitDelay = 5 * time.Second // for a child of the command that keeps the pipes open
		c.Stdin = bytes.NewReader(lines)
		c.Env = append(os.Environ(), "LEVADA_JOB="+b.Job.ID, "LEVADA_STREAM="+b.Job.Stream, fmt.Sprintf("LEVADA_FIRST_SEQ=%d", b.Records[0].Seq))
		tail := &lastBytes{most: 2 << 10}
		c.Stdout, c.Stderr = output, io.MultiWriter(output, tail)
		err = c.Run()
		exit, ok := errors.AsType[*exec.ExitError](err)
		switch {
		case err == nil:
			return nil
		case errors.Is(err, exec.ErrWaitDelay):
			return nil // it ended with 0, and something that it started did not
		case ctx.Err() != nil:
			return fmt.Errorf("--exec was ended: %w", context.Cause(ctx))
		case ok && exit.ExitCode() == exitBadRecord:
			return stream.Skip(fmt.Errorf("--exec ended with exit code %d, the record is bad: %s", exitBadRecord, tail.orNothing()))
		case ok && exit.ExitCode() >= 0:
			return fmt.Errorf("--exec ended with exit code %d: %s", exit.ExitCode(), tail.orNothing())
		}
		return fmt.Errorf("--exec: %w: %s", err, tail.orNothing())
	}
}

// lastBytes keeps the end of what is written to it.
type lastBytes struct {
	most int
	b    []byte
}

func (l *lastBytes) Write(p []byte) (int, error) {
	l.b = append(l.b, p...)
	if over := len(l.b) - l.most; over > 0 {
		l.b = append(l.b[:0], l.b[over:]...)
	}
	return len(p), nil
}

// orNothing writes a line when nothing was written.
func (l *lastBytes) orNothing() string {
	return cmp.Or(l.String(), "it wrote nothing to standard error")
}

func (l *lastBytes) String() string { return strings.TrimSpace(string(l.b)) }
