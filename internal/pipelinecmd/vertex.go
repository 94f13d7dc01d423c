package pipelinecmd

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/levada-io/levada/api/v1alpha1"
	"github.com/levada-io/levada/internal/commandline"
	"github.com/levada-io/levada/internal/manifest"
	"github.com/levada-io/levada/internal/profiling"
	"github.com/levada-io/levada/internal/standalone"
)

type vertexFlags struct {
	processFlags
	vertex, name string
	hosted       hostedFlag
}

func newVertexCommand(version string) *cobra.Command {
	f := vertexFlags{processFlags: processFlags{version: version}}
	cmd := &cobra.Command{
		Use:   "vertex FILE|DIR|-... --vertex VERTEX --nats URL",
		Short: "Run one vertex of a pipeline, beside processes for its other vertices",
		Long: `Run one vertex of a Pipeline, or a MonoVertex, in this process. The other vertices have processes of their own, on this machine or elsewhere. All of them
share a NATS JetStream or Redis broker (--nats, --redis), which holds the buffers between them, and all need the same manifest.

Several processes of a vertex share its partitions: each partition is read by one of them at a time, and moves when processes come, end or die. Give each
a name and a data directory of its own (--name). A second process of the same name replaces the first. Processes of a source share what it gives, except for the
sources file, stdin and stream: like vertices with a file or stream sink, they are run by one process at a time. The others wait, and one takes over when it
ends or when its lease has expired. See docs/scaling-out.md.

levada run of the same pipeline is refused for as long as a process of one of its vertices runs, and the other way around. The first process records the topology
of the manifest at the broker; a process with a different one is refused. See docs/running.md.

The process of a vertex does not end by itself, since it cannot know when the others have ended; that of a MonoVertex ends with its source. SIGTERM and
Ctrl-C make it stop reading and finish the messages in flight, for at most --drain-timeout in all; a second one ends it at once. Nothing is lost either
way. What must survive is at the broker; a vertex with a stream as its source or sink also keeps files in --data.

Exit codes:
  0    it was asked to end, and finished what it had begun; or the source of a MonoVertex has ended, and everything is delivered
  1    it failed, or the manifest has errors
  2    the command line is wrong
  130  it was ended by Ctrl-C (SIGINT) with messages in flight, which are processed again
  143  the same, by SIGTERM`,
		Example: `  levada vertex pipeline.yaml --vertex in --nats nats://127.0.0.1:4222
  levada vertex pipeline.yaml --vertex cat --nats nats://127.0.0.1:4222 --function cat=./my-function
  levada vertex pipeline.yaml --vertex cat --redis redis://127.0.0.1:6379
  levada vertex pipeline.yaml --vertex cat --nats nats://127.0.0.1:4222 --function cat=./my-function --name second
  LEVADA_VERTEX=out LEVADA_NATS=nats://nats:4222 levada vertex pipeline.yaml --listen :2469 --log-format json`,
		Args: atLeastOneArgument,
		RunE: func(cmd *cobra.Command, args []string) error { return runVertex(cmd, args, &f) },
	}
	flags := cmd.Flags()
	flags.StringVar(&f.vertex, "vertex", "", "VERTEX or PIPELINE/VERTEX: the vertex to run, or the name of a MonoVertex (required)")
	flags.StringVar(&f.name, "name", "", "name of this process among those of the vertex, the same at each start (default: $POD_NAME, or host and data directory)")
	f.hosted.register(flags)
	f.register(flags, "vertices/VERTEX in the one that levada run has", "URL of the NATS JetStream broker that the vertices share (this or --redis is required)",
		"replicas of streams; the same for all vertices", "address of metrics and probes")
	return cmd
}

func runVertex(cmd *cobra.Command, args []string, f *vertexFlags) error {
	stderr := cmd.ErrOrStderr()
	log, err := f.log.Logger(stderr)
	if err != nil {
		return err
	}
	if f.hosted.given() {
		return f.runHosted(cmd, args, log)
	}
	cfg, err := f.config(cmd, args, log)
	if err != nil {
		return err
	}
	commandline.WarnOfVisibleCredentials(cmd, func(message string) { log.Warn(message) })
	stopProfiles, err := profiling.ServeAtFlag(cmd, f.pprof, log)
	if err != nil {
		return err
	}
	defer stopProfiles()
	limited, flush := commandline.Limited(log)
	cfg.Logger, cfg.Output = limited, printLine(stderr, f.jsonLog(log))
	result, err := runOneVertex(cmd.Context(), cfg, log, commandline.IsTerminal(stderr), flush, nil)
	return vertexExit(result, err, context.Cause(cmd.Context()))
}

// runOneVertex runs the vertex until it ends or ctx does, and logs both ends. report, which may be nil, is called once it runs. The result is nil if the start was not complete.
func runOneVertex(ctx context.Context, cfg standalone.Config, log *slog.Logger, terminal bool, flush func(), report func(*standalone.Running)) (result *standalone.Result, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	begun := time.Now()
	hup := &hangups{}
	defer hup.watch(ctx, log, terminal)()
	var running *standalone.Running
	cfg.Started = func(r *standalone.Running) {
		running = r
		hup.started(r)
		if report != nil {
			report(r)
		}
		p := r.Pipelines[0]
		log := log
		if cfg.Hosted == nil {
			log = log.With("process", cfg.Name)
		}
		log.Info("vertex started", "pipeline", p.Namespace+"/"+p.Name, "vertex", cfg.Vertex, "address", r.Address, "took", time.Since(begun).Round(time.Millisecond))
	}
	cfg.Ended = func(r *standalone.Result) { result = r }
	err = standalone.Run(ctx, cfg)
	flush()
	if result != nil && err == nil {
		logVertexEnd(log, result, running, time.Since(begun))
	}
	return result, err
}

// vertexExit is the error with the exit code of the process. cause is why its context ended, nil if it did not.
func vertexExit(result *standalone.Result, err, cause error) error {
	signal, signaled := errors.AsType[commandline.SignalError](cause)
	switch {
	case result == nil && signaled:
		return nil // the start was given up: what failed of it is that
	case err != nil:
		return err
	case result == nil || result.Cut == "" && !result.CutShort:
		return nil
	case signaled:
		return commandline.ExitError{Code: signal.ExitCode()}
	}
	return commandline.Problems()
}

// config is what to run. It refuses what is wrong with command line and manifest.
func (f *vertexFlags) config(cmd *cobra.Command, args []string, log *slog.Logger) (cfg standalone.Config, err error) {
	stderr, jsonLog := cmd.ErrOrStderr(), f.jsonLog(log)
	if f.hosted.given() {
		stderr, jsonLog = io.Discard, nil // the process that has started this one has said what is ignored
	}
	if f.vertex == "" {
		return cfg, commandline.Usagef("--vertex is needed: the name of the vertex that this process runs, for instance --vertex cat")
	}
	objects, err := loadRunnable(cmd, args, stderr, jsonLog)
	if err != nil {
		return cfg, err
	}
	if !f.broker.given() && !standalone.NamesBroker(objects) {
		return cfg, commandline.Usagef("--nats or --redis is needed: the broker that this vertex shares with the other vertices, for instance --nats nats://127.0.0.1:4222")
	}
	if f.hosted.given() {
		f.functions = functionsFor(f.functions, objects)
	}
	if cfg, err = f.processFlags.config(cmd, args[0], objects); err != nil {
		return cfg, err
	}
	if cfg.Objects, cfg.Vertex, err = selectVertex(objects, f.vertex); err != nil {
		return cfg, commandline.Usagef("%s: %w", commandline.Given(cmd.Flags().Lookup("vertex")), err)
	}
	cfg.DataDir = f.dataDir
	cfg.Command = "levada vertex " + strings.Join(args, " ") + " --vertex " + f.vertex
	if cfg.DataDir == "" {
		cfg.DataDir = filepath.Join(defaultDataDir(args[0]), "vertices", cfg.Vertex)
		if f.name != "" {
			cfg.DataDir += "@" + f.name
		}
	}
	if cfg.Name, err = processName(f.name, cfg.DataDir); err != nil {
		return cfg, commandline.Usagef("%s: %w", commandline.Given(cmd.Flags().Lookup("name")), err)
	}
	if err := f.containers.refuse(&cfg, stderr, jsonLog); err != nil {
		return cfg, err
	}
	cfg.Broker, err = f.connection(cmd.Flags())
	return cfg, err
}

// processName is the name of a process among those of its vertex: the given one, that of the pod, or one made of the host and the data directory, which no other process of
// the host has.
func processName(given, dataDir string) (string, error) {
	if given != "" {
		if !names.MatchString(given) {
			return "", fmt.Errorf("%q is not a name: expected 1 to 63 letters, digits, - and _", given)
		}
		return given, nil
	}
	if pod := os.Getenv("POD_NAME"); pod != "" {
		return cut(notInNames.ReplaceAllString(pod, "-"), 63), nil
	}
	host, err := os.Hostname()
	if err != nil {
		host = "unknown"
	}
	if dir, err := filepath.Abs(dataDir); err == nil {
		dataDir = dir
	}
	sum := sha256.Sum256([]byte(dataDir))
	return cut(notInNames.ReplaceAllString(host, "-"), 54) + "-" + hex.EncodeToString(sum[:4]), nil
}

var (
	names      = regexp.MustCompile(`^[A-Za-z0-9_-]{1,63}$`)
	notInNames = regexp.MustCompile(`[^A-Za-z0-9_-]`)
)

func cut(s string, most int) string { return s[:min(len(s), most)] }

// selectVertex finds VERTEX or PIPELINE/VERTEX. It returns the objects without the pipelines that have nothing to do with it.
func selectVertex(objects []manifest.Object, name string) (kept []manifest.Object, vertex string, err error) {
	pipeline, vertex, qualified := strings.Cut(name, "/")
	if !qualified {
		pipeline, vertex = "", name
	}
	var found, known []string
	for _, o := range objects {
		vertices, runs := verticesOf(o)
		if !runs {
			kept = append(kept, o)
		}
		for _, v := range vertices {
			at := v
			if o.Manifest.GetName() != v {
				at = o.Manifest.GetName() + "/" + v
			}
			known = append(known, at)
			if v == vertex && (pipeline == "" || pipeline == o.Manifest.GetName()) {
				kept, found = append(kept, o), append(found, at)
			}
		}
	}
	switch len(found) {
	case 0:
		return nil, "", fmt.Errorf("no vertex is called %s; the vertices are %s", name, strings.Join(known, ", "))
	case 1:
		return kept, vertex, nil
	}
	return nil, "", fmt.Errorf("%d vertices are called %s: say which one as PIPELINE/VERTEX: %s", len(found), name, strings.Join(found, ", "))
}

// verticesOf lists the vertices of a Pipeline or MonoVertex. runs is false for objects that others refer to, such as Secrets.
func verticesOf(o manifest.Object) (names []string, runs bool) {
	switch m := o.Manifest.(type) {
	case *v1alpha1.Pipeline:
		for i := range m.Spec.Vertices {
			names = append(names, m.Spec.Vertices[i].Name)
		}
		return names, true
	case *v1alpha1.MonoVertex:
		return []string{m.Name}, true
	}
	return nil, false
}

// logVertexEnd says what the process did. running is nil if it had not started.
func logVertexEnd(log *slog.Logger, result *standalone.Result, running *standalone.Running, took time.Duration) {
	if running == nil {
		return
	}
	level, message := slog.LevelInfo, "vertex stopped, nothing of it is unfinished"
	var why []any
	if result.Cut != "" || result.CutShort {
		level, message = slog.LevelWarn, "vertex was cut short, what was in flight is processed again by the next process"
	}
	if result.Cut != "" {
		why = []any{"reason", result.Cut}
	}
	for _, p := range running.Pipelines {
		for _, v := range p.Counts() {
			log.Log(context.Background(), level, message, append([]any{"pipeline", p.Namespace + "/" + p.Name, "vertex", v.Name, "in", v.In, "out", v.Out,
				"deadLetters", v.DeadLetters, "dropped", v.Dropped, "pending", v.Pending, "took", took.Round(time.Millisecond)}, why...)...)
		}
	}
}
