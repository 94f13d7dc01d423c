package main

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
	"github.com/levada-io/levada/internal/standalone"
)

type runFlags struct {
	dataDir, listen, secretDir     string
	listenHTTP                     hostFlag
	broker                         brokerFlags
	pprof                          string
	functions                      []string
	replicas                       int
	sync, drain, timeout, interval time.Duration
	skipCorrupt, quiet             bool
	log                            commandline.LogFlags
	output                         string
	change                         changeFlags
}

func newRunCommand() *cobra.Command {
	var f runFlags
	cmd := &cobra.Command{
		Use:   "run FILE|DIR|-...",
		Short: "Run pipelines on this machine, with everything in one process",
		Long: `Run the Pipelines and MonoVertices of the files, with broker, buffers and all vertices in this process and functions as child processes.

What must survive is in the data directory (--data): after any stop, also a kill or a power loss, the same command goes on where it was.
The command ends with 0 when all sources are finite and everything is delivered, or after SIGTERM or Ctrl-C, which drain what is in hand.`,
		Example: `  levada run pipeline.yaml
  levada run pipeline.yaml --function cat=./my-function --function "out/fb-udsink=./sink --flag"
  levada run manifests/ --nats nats://127.0.0.1:4222 --nats-creds ~/levada.creds --log-format json`,
		Args: atLeastOneArgument,
		RunE: func(cmd *cobra.Command, args []string) error { return run(cmd, args, &f) },
	}
	flags := cmd.Flags()
	flags.StringVar(&f.dataDir, "data", "", "data directory (default: .levada/ and the name of the first file, beside it)")
	flags.StringArrayVar(&f.functions, "function", nil, "VERTEX=COMMAND: the program in the place of a container; also VERTEX/ROLE=COMMAND and PIPELINE/VERTEX=COMMAND")
	f.broker.register(flags, "URL of a NATS JetStream broker, instead of the one in this process")
	flags.IntVar(&f.replicas, "replicas", 1, "replicas of streams, with --nats")
	flags.DurationVar(&f.sync, "sync-interval", 0, "write through to the disk this often, instead of before each acknowledgement: faster, and a power loss costs that much time")
	flags.DurationVar(&f.drain, "drain-timeout", 30*time.Second, "time to finish what is in hand after SIGTERM")
	flags.DurationVar(&f.timeout, "processing-timeout", 2*time.Minute, "how long a function may take for one message before it counts as hanging")
	flags.StringVar(&f.secretDir, "secret-dir", "", "directory of secrets, a file NAME/KEY each, beside the Secrets of the manifests")
	registerListenHTTP(flags, &f.listenHTTP)
	flags.StringVar(&f.listen, "listen", "127.0.0.1:0", "address of metrics, probes and the API")
	flags.StringVar(&f.pprof, "pprof", "", "loopback address of Go's profiles; empty: none")
	flags.BoolVar(&f.skipCorrupt, "skip-corrupt", false, "go on without stored blocks that are damaged, and keep what is left of them in the data directory")
	flags.DurationVar(&f.interval, "interval", 2*time.Second, "time between two lines of progress")
	flags.BoolVarP(&f.quiet, "quiet", "q", false, "no progress")
	flags.StringVarP(&f.output, "output", "o", "auto", "progress as table, text, json; auto is a table on a terminal")
	commandline.OneOf(flags, "output", "auto", "table", "text", "json")
	commandline.Between(flags, "replicas", 1, 5) // what JetStream allows
	commandline.AtLeast(flags, "interval", 100*time.Millisecond)
	f.change.register(flags)
	f.log.Register(flags)
	return cmd
}

func run(cmd *cobra.Command, args []string, f *runFlags) error {
	stdout, stderr := cmd.OutOrStdout(), cmd.ErrOrStderr()
	log, err := f.log.Logger(stderr)
	if err != nil {
		return err
	}
	objects, err := loadRunnable(cmd, args, stderr)
	if err != nil {
		return err
	}
	commands, err := parseFunctions(f.functions, objects)
	if err != nil {
		return commandline.ExitError{Code: commandline.ExitUsage, Err: err}
	}
	if f.dataDir == "" {
		f.dataDir = defaultDataDir(args[0])
	}
	dir := "."
	if args[0] != "-" {
		if dir = args[0]; !isDir(dir) {
			dir = filepath.Dir(dir)
		}
	}
	view, err := newView(f.output, stderr, f.quiet, f.interval, f.log.JSON(stderr), writesToTerminal(objects, stdout))
	if err != nil {
		return commandline.ExitError{Code: commandline.ExitUsage, Err: err}
	}
	options, err := f.broker.options(cmd.Flags())
	if err != nil {
		return err
	}
	warnOfVisibleCredentials(cmd, func(message string) { log.Warn(message) })
	stopProfiles, err := serveProfiles(cmd, f.pprof, log)
	if err != nil {
		return err
	}
	defer stopProfiles()
	begun := time.Now()
	ctx, cancel := context.WithCancel(cmd.Context())
	defer cancel()
	shown := make(chan struct{})
	cfg := standalone.Config{
		Objects: objects, DataDir: f.dataDir, NATS: f.broker.url, NATSOptions: options, Replicas: f.replicas, SyncInterval: f.sync, Commands: commands, Dir: dir,
		FunctionTimeout: f.timeout, DrainTimeout: f.drain, SecretDir: f.secretDir, SkipCorrupt: f.skipCorrupt, Listen: f.listen, ListenHTTP: string(f.listenHTTP),
		Stdin: cmd.InOrStdin(), Stdout: stdout, Logger: log, Version: version, Output: printLine(stderr, log, f.log.JSON(stderr)),
		Started: func(r *standalone.Running) {
			view.start(r, f.dataDir, time.Since(begun))
			go func() { // ends with ctx; run waits for shown
				defer close(shown)
				view.follow(ctx, r)
			}()
		},
	}
	f.change.apply(&cfg, args)
	started := false
	inner := cfg.Started
	cfg.Started = func(r *standalone.Running) { started = true; inner(r) }
	err = standalone.Run(ctx, cfg)
	cancel()
	if started {
		<-shown
		view.end(time.Since(begun), err)
	}
	return err
}

// loadRunnable reads manifests, tells what is wrong with them or will be ignored, and fills in defaults.
func loadRunnable(cmd *cobra.Command, args []string, stderr io.Writer) ([]v1alpha1.Object, error) {
	m := loadManifests(args, cmd.InOrStdin())
	problems := checkManifests(m, true)
	if len(problems) > 0 {
		page := problemPage{problems: problems, manifests: len(m.objects)}
		if commandline.IsTerminal(stderr) {
			page.lines = m.lines
		}
		if err := writeText(stderr, page); err != nil {
			return nil, err
		}
	}
	if problems.HasErrors() {
		return nil, commandline.ExitError{Code: commandline.ExitProblems}
	}
	for _, o := range m.objects {
		v1alpha1.SetDefaults(o.Manifest)
	}
	return m.objects, nil
}

// parseFunctions reads --function flags and refuses names that no manifest has.
func parseFunctions(flags []string, objects []v1alpha1.Object) (map[string]string, error) {
	known := map[string]bool{}
	var names []string // in the order of the manifests
	for _, o := range objects {
		switch m := o.Manifest.(type) {
		case *v1alpha1.Pipeline:
			for i := range m.Spec.Vertices {
				names = append(names, m.Spec.Vertices[i].Name)
				known[m.Name+"/"+m.Spec.Vertices[i].Name] = true
			}
		case *v1alpha1.MonoVertex:
			names = append(names, m.Name)
		}
	}
	for _, n := range names {
		known[n] = true
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

func isDir(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.IsDir()
}

// writesToTerminal reports whether a sink prints where a table would be drawn.
func writesToTerminal(objects []v1alpha1.Object, stdout io.Writer) bool {
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
func printLine(stderr io.Writer, log *slog.Logger, json bool) func(pipeline, vertex string, role function.Role, line string) {
	return func(pipeline, vertex string, role function.Role, line string) {
		if json {
			log.Info(line, "pipeline", pipeline, "vertex", vertex, "container", string(role))
			return
		}
		fmt.Fprintf(stderr, "%s | %s\n", vertex, strings.TrimSuffix(commandline.PrintableLines(strings.ReplaceAll(line, "\r", "")), "\n"))
	}
}
