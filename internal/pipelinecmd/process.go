package pipelinecmd

import (
	"log/slog"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/levada-io/levada/internal/commandline"
	"github.com/levada-io/levada/internal/manifest"
	"github.com/levada-io/levada/internal/standalone"
)

// processFlags are those of a process that runs vertices: all of a pipeline, or one.
type processFlags struct {
	version                    string // of the program
	containers                 functionFlags
	dataDir, listen, secretDir string
	listenHTTP                 hostFlag
	broker                     brokerFlags
	pprof                      string
	functions                  []string
	replicas                   int
	keepLeaders                bool
	drain, timeout             time.Duration
	skipCorrupt                bool
	log                        commandline.LogFlags
}

// register adds the flags. The texts are what differs: the default of --data, what --nats is, when --replicas counts, what --listen serves.
func (f *processFlags) register(flags *pflag.FlagSet, data, nats, replicas, listen string) {
	flags.StringVar(&f.dataDir, "data", "", "data directory (default: "+data+")")
	flags.StringArrayVar(&f.functions, "function", nil, "VERTEX=COMMAND: the program in the place of a container, or VERTEX=unix:DIRECTORY, where a program serves that is started elsewhere; also VERTEX/ROLE=COMMAND and PIPELINE/VERTEX=COMMAND")
	f.containers.register(flags)
	f.broker.register(flags, nats)
	flags.IntVar(&f.replicas, "replicas", 0, replicas+" (default: streams that exist keep theirs, others get 3 in a cluster that can keep 3, else 1)")
	flags.BoolVar(&f.keepLeaders, "keep-leaders", false, "leave the leaders of streams where they are in a cluster of NATS servers; otherwise they are spread over the servers, one at a time, while all are healthy")
	flags.DurationVar(&f.drain, "drain-timeout", standalone.DefaultDrainTimeout, "the whole time from SIGTERM or Ctrl-C to the end of the process; a second one ends it at once")
	flags.DurationVar(&f.timeout, "processing-timeout", 2*time.Minute, "how long a function may take for one message before it counts as hanging")
	flags.StringVar(&f.secretDir, "secret-dir", "", "directory of secrets, a file NAME/KEY each, beside the Secrets of the manifests")
	registerListenHTTP(flags, &f.listenHTTP)
	flags.StringVar(&f.listen, "listen", "127.0.0.1:0", listen)
	flags.StringVar(&f.pprof, "pprof", "", "loopback address of Go's profiles; empty: none")
	flags.BoolVar(&f.skipCorrupt, "skip-corrupt", false, "skip stored blocks that are damaged, and keep their bytes in the data directory")
	commandline.Between(flags, "replicas", 1, 5) // what JetStream allows
	f.log.Register(flags)
}

// connection is the broker that the flags name. The error is a usage error.
func (f *processFlags) connection(flags *pflag.FlagSet) (standalone.Broker, error) {
	at, err := f.broker.broker(flags)
	at.KeepLeaders = f.keepLeaders
	if err == nil && at.Redis != nil && f.replicas > 1 {
		err = commandline.Usagef("%s: replicas are of JetStream streams. With --redis the replicas of the Redis servers count: leave --replicas out", commandline.Given(flags.Lookup("replicas")))
	}
	return at, err
}

// jsonLog is the logger if everything is to be JSON, and nil otherwise.
func (f *processFlags) jsonLog(log *slog.Logger) *slog.Logger {
	if f.log.JSON() {
		return log
	}
	return nil
}

// config is what to run of the manifests at path, without the broker's credentials. Containers are not checked yet.
func (f *processFlags) config(cmd *cobra.Command, path string, objects []manifest.Object) (standalone.Config, error) {
	commands, err := parseFunctions(f.functions, objects)
	if err != nil {
		return standalone.Config{}, commandline.UsageError(err)
	}
	return standalone.Config{
		Objects: objects, Commands: commands, Dir: directoryOf(path), Replicas: f.replicas, FunctionTimeout: f.timeout, DrainTimeout: f.drain,
		SecretDir: f.secretDir, SkipCorrupt: f.skipCorrupt, Listen: f.listen, ListenHTTP: string(f.listenHTTP),
		Stdin: cmd.InOrStdin(), Stdout: cmd.OutOrStdout(), Version: f.version, Abort: commandline.SecondSignal(cmd.Context()),
	}, nil
}
