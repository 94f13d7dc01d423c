package pipelinecmd

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/levada-io/levada/api/v1alpha1"
	"github.com/levada-io/levada/internal/commandline"
	"github.com/levada-io/levada/internal/dataplane/function"
	"github.com/levada-io/levada/internal/manifest"
	"github.com/levada-io/levada/internal/profiling"
	"github.com/levada-io/levada/internal/standalone"
)

type runFlags struct {
	processFlags
	sync, interval   time.Duration
	quiet            bool
	allowDeadLetters bool
	output           string
	change           changeFlags
	processes        []string
}

func newRunCommand(version string) *cobra.Command {
	f := runFlags{processFlags: processFlags{version: version}}
	cmd := &cobra.Command{
		Use:   "run FILE|DIR|-...",
		Short: "Run pipelines on this machine, in one process or in several",
		Long: `Run the Pipelines and MonoVertices of the files, with broker, buffers and all vertices in this process and functions as child processes.

With --processes, each vertex is a child process, or several that share its partitions: one of a vertex that is not named, or scale.min of the manifest. Processes that
die are started again. levada scale changes the numbers while messages are in flight. See docs/scaling-out.md.

What must survive is in the data directory (--data): after any stop, including SIGKILL and power loss, the same command resumes where it was.
The command exits when all sources have an end and everything is delivered. SIGTERM and Ctrl-C make it stop reading and finish the messages in
flight, for at most --drain-timeout in all; a second one ends it at once. Nothing is lost either way. The last line says where every message is.

Exit codes:
  0    everything that was read is delivered
  1    it failed, or a manifest has errors
  2    the command line is wrong
  3    everything is delivered but for messages that were dead-lettered in this run (see --allow-dead-letters)
  130  it was ended by Ctrl-C (SIGINT), and undelivered messages are kept for the next start
  143  the same, by SIGTERM`,
		Example: `  levada run pipeline.yaml
  levada run pipeline.yaml --function cat=./my-function --function "out/fb-udsink=./sink --flag"
  levada run pipeline.yaml --function cat=./my-function --processes cat=4
  levada run manifests/ --nats nats://127.0.0.1:4222 --nats-creds ~/levada.creds --log-format json`,
		Args: atLeastOneArgument,
		RunE: func(cmd *cobra.Command, args []string) error { return run(cmd, args, &f) },
	}
	flags := cmd.Flags()
	f.register(flags, ".levada/ and the name of the first file, beside it", "URL of a NATS JetStream broker, instead of the one in this process", "replicas of streams, with --nats",
		"address of metrics, probes and the API")
	flags.DurationVar(&f.sync, "sync-interval", 0, "write through to the disk this often, instead of before each acknowledgement: faster, and a power loss costs that much time")
	flags.DurationVar(&f.interval, "interval", 2*time.Second, "time between two lines of progress")
	flags.BoolVar(&f.allowDeadLetters, "allow-dead-letters", false, "exit with 0 also when messages were dead-lettered")
	flags.BoolVarP(&f.quiet, "quiet", "q", false, "no progress, and no last line if all is well")
	commandline.Enum(flags, &f.output, "output", "o", "format of the progress; auto is a table on a terminal, and json with --log-format json", "auto", "table", "text", "json")
	commandline.AtLeast(flags, "interval", 100*time.Millisecond)
	f.change.register(flags)
	flags.StringSliceVar(&f.processes, "processes", nil, "VERTEX=N[,VERTEX=N]: run each vertex as a process of its own, and the named ones as N; also PIPELINE/VERTEX=N. levada scale changes the numbers of a run")
	return cmd
}

func run(cmd *cobra.Command, args []string, f *runFlags) error {
	if err := f.oneFormat(); err != nil {
		return commandline.UsageError(err)
	}
	screen := &commandline.Screen{Out: cmd.ErrOrStderr()}
	log, err := f.log.Logger(screen)
	if err != nil {
		return err
	}
	objects, err := loadRunnable(cmd, args, cmd.ErrOrStderr(), f.jsonLog(log))
	if err != nil {
		return err
	}
	r := pipelineRun{log: log}
	named, err := parseProcesses(f.processes, objects)
	if err != nil {
		return commandline.Usagef("%s: %w", commandline.Given(cmd.Flags().Lookup("processes")), err)
	}
	if err := f.prepare(&r, cmd, args, objects); err != nil {
		return err
	}
	r.view, err = newView(f.output, screen, f.quiet, f.interval, f.jsonLog(log), writesToTerminal(objects, cmd.OutOrStdout()))
	if err != nil {
		return commandline.UsageError(err)
	}
	commandline.WarnOfVisibleCredentials(cmd, func(message string) { log.Warn(message) })
	stopProfiles, err := profiling.ServeAtFlag(cmd, f.pprof, log)
	if err != nil {
		return err
	}
	defer stopProfiles()
	limited, flush := commandline.Limited(log)
	r.cfg.Logger, r.cfg.Output = limited, printLine(screen, f.jsonLog(log))
	if len(named) > 0 {
		r.processes = f.asProcesses(cmd, args, &r, named, screen)
	}
	out := &runEnd{data: r.cfg.DataDir, broker: f.broker.given() || standalone.NamesBroker(r.cfg.Objects), allowDeadLetters: f.allowDeadLetters}
	r.run(cmd.Context(), out, commandline.IsTerminal(cmd.ErrOrStderr()), flush)
	return r.exit(out)
}

// prepare fills in what runs, and refuses what is wrong with command line, manifests and data directory. Nothing is opened yet.
func (f *runFlags) prepare(r *pipelineRun, cmd *cobra.Command, args []string, objects []manifest.Object) (err error) {
	if r.cfg, err = f.config(cmd, args[0], objects); err != nil {
		return err
	}
	if err := f.containers.refuse(&r.cfg, cmd.ErrOrStderr(), f.jsonLog(r.log)); err != nil {
		return err
	}
	if r.record, err = newManifestRecord(args, objects); err != nil {
		return err
	}
	if f.dataDir == "" {
		f.dataDir = defaultDataDir(args[0])
		if !f.broker.given() && !standalone.NamesBroker(objects) { // a broker of its own holds the state
			if err := r.record.checkDefaultDir(f.dataDir, r.log); err != nil {
				return err
			}
		}
	}
	if f.replicas > 1 && !f.broker.given() {
		return commandline.Usagef("%s: %d replicas need a broker of your own (--nats): the one in this process has one", commandline.Given(cmd.Flags().Lookup("replicas")), f.replicas)
	}
	r.cfg.DataDir, r.cfg.SyncInterval = f.dataDir, f.sync
	f.change.apply(&r.cfg, args)
	r.cfg.Broker, err = f.connection(cmd.Flags())
	return err
}

// oneFormat makes logs and progress of one kind: either all that is written to standard error is JSON, or nothing is.
func (f *runFlags) oneFormat() error {
	switch {
	case f.output == "json" && f.log.Format == "auto":
		f.log.Format = "json"
	case f.output == "json" && f.log.Format == "text", f.log.Format == "json" && (f.output == "text" || f.output == "table"):
		return fmt.Errorf("--log-format %s and --output %s: logs and progress go to standard error in one format; leave one of the flags out", f.log.Format, f.output)
	case f.output != "auto" && f.log.Format == "auto":
		f.log.Format = "text"
	}
	return nil
}

// loadRunnable reads manifests, tells what is wrong with them or will be ignored, and fills in defaults. jsonLog gets the problems, if it is not nil.
func loadRunnable(cmd *cobra.Command, args []string, stderr io.Writer, jsonLog *slog.Logger) ([]manifest.Object, error) {
	m := loadManifests(args, cmd.InOrStdin())
	problems := checkManifests(m, true)
	if len(problems) > 0 && jsonLog != nil {
		logProblems(jsonLog, problems)
	} else if len(problems) > 0 {
		page := problemPage{problems: problems, manifests: len(m.objects)}
		if commandline.IsTerminal(stderr) {
			page.lines = m.lines
		}
		if err := writeText(stderr, page); err != nil {
			return nil, err
		}
	}
	if problems.HasErrors() {
		return nil, commandline.Problems()
	}
	for _, o := range m.objects {
		v1alpha1.SetDefaults(o.Manifest)
	}
	return m.objects, nil
}

// logProblems writes a record for each problem.
func logProblems(log *slog.Logger, problems manifest.Problems) {
	levels := map[manifest.Severity]slog.Level{manifest.SeverityError: slog.LevelError, manifest.SeverityWarning: slog.LevelWarn}
	for _, p := range problems {
		args := []any{"event.action", "manifest-problem", "event.code", string(p.Code)}
		for _, a := range [][2]string{{"file.path", p.File}, {"field", p.Path}, {"expected", p.Expected}, {"didYouMean", p.DidYouMean}, {"hint", p.Hint}} {
			if a[1] != "" {
				args = append(args, a[0], a[1])
			}
		}
		if p.Line > 0 {
			args = append(args, "line", p.Line, "column", p.Column)
		}
		log.Log(context.Background(), levels[p.Severity], p.Message, args...) // a note is at the level of information, which is 0
	}
}

// parseFunctions reads --function flags and refuses names that no manifest has.
func parseFunctions(flags []string, objects []manifest.Object) (map[string]string, error) {
	known := map[string]bool{}
	var names []string // in the order of the manifests
	for _, o := range objects {
		vertices, _ := verticesOf(o)
		_, single := o.Manifest.(*v1alpha1.MonoVertex) // which is its own and only vertex
		for _, v := range vertices {
			known[v] = true
			if !single {
				known[o.Manifest.GetName()+"/"+v] = true
			}
		}
		names = append(names, vertices...)
	}
	commands := map[string]string{}
	for _, flag := range flags {
		name, command, ok := strings.Cut(flag, "=")
		if !ok || name == "" || strings.TrimSpace(command) == "" {
			return nil, fmt.Errorf("--function %q: expected VERTEX=COMMAND, for instance --function cat=./my-function", flag)
		}
		vertexName := name
		if !known[vertexName] {
			if head, role, ok := cutLast(name, "/"); ok && isRole(role) {
				vertexName = head
			}
		}
		if !known[vertexName] {
			return nil, fmt.Errorf("--function %q: no vertex is called %s; the vertices are %s", flag, vertexName, strings.Join(names, ", "))
		}
		commands[name] = command
	}
	return commands, nil
}

func cutLast(s, sep string) (before, after string, ok bool) {
	i := strings.LastIndex(s, sep)
	if i < 0 {
		return s, "", false
	}
	return s[:i], s[i+len(sep):], true
}

func isRole(s string) bool {
	switch function.Role(s) {
	case function.UDF, function.Transformer, function.UDSource, function.UDSink, function.FallbackSink, function.OnSuccessSink:
		return true
	}
	return false
}

func defaultDataDir(file string) string {
	if file == "-" {
		return filepath.Join(".levada", "stdin")
	}
	base := filepath.Base(filepath.Clean(file))
	return filepath.Join(filepath.Dir(file), ".levada", strings.TrimSuffix(base, filepath.Ext(base)))
}

// directoryOf is where relative paths of a manifest begin.
func directoryOf(file string) string {
	switch {
	case file == "-":
		return "."
	case isDir(file):
		return file
	}
	return filepath.Dir(file)
}

func isDir(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.IsDir()
}

// writesToTerminal reports whether a sink prints where a table would be drawn.
func writesToTerminal(objects []manifest.Object, stdout io.Writer) bool {
	if !commandline.IsTerminal(stdout) {
		return false
	}
	prints := func(s *v1alpha1.Sink) bool {
		return s != nil && (s.Log != nil || s.Stdout != nil || s.Fallback != nil && (s.Fallback.Log != nil || s.Fallback.Stdout != nil))
	}
	for _, o := range objects {
		switch m := o.Manifest.(type) {
		case *v1alpha1.Pipeline:
			for i := range m.Spec.Vertices {
				if prints(m.Spec.Vertices[i].Sink) {
					return true
				}
			}
		case *v1alpha1.MonoVertex:
			if prints(m.Spec.Sink) {
				return true
			}
		}
	}
	return false
}

// printLine passes on what functions print.
func printLine(stderr io.Writer, jsonLog *slog.Logger) func(pipeline, vertex string, role function.Role, line string) {
	return func(pipeline, vertex string, role function.Role, line string) {
		if jsonLog != nil {
			jsonLog.Info(line, "event.action", "function-output", "pipeline", pipeline, "vertex", vertex, "container", string(role))
			return
		}
		fmt.Fprintf(stderr, "%s | %s\n", vertex, strings.TrimSuffix(commandline.PrintableLines(strings.ReplaceAll(line, "\r", "")), "\n"))
	}
}
