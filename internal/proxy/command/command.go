// Package command is the command line of the proxy: the proxy itself, the check of its configuration, and what asks a proxy that runs. It is a command of levada,
// and a program of its own.
package command

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/levada-io/levada/internal/commandline"
	"github.com/levada-io/levada/internal/proxy"
	"github.com/levada-io/levada/internal/proxy/admin"
	"github.com/levada-io/levada/internal/proxy/config"
	"github.com/levada-io/levada/internal/proxy/discovery"
	"github.com/levada-io/levada/internal/proxy/observe"
	"github.com/levada-io/levada/internal/strictyaml"
)

// Options of the command.
type Options struct {
	// Name is how it is called: the names of the commands above it, and its own.
	Name    string
	Version string
	// Kubernetes makes the sources of kubernetes:/// targets, as proxy.Options has it. Nil: such targets are refused.
	Kubernetes func(discovery.Service, discovery.Options) (discovery.Source, error)
}

// New makes the command with those below it.
func New(o Options) *cobra.Command {
	targets := discovery.Forms
	if o.Kubernetes == nil {
		targets = discovery.FormsWithoutKubernetes
	}
	simple, file, pprof := config.DefaultSimple(), "", false
	var log commandline.LogFlags
	cmd := &cobra.Command{
		Use:   o.Name[strings.LastIndexByte(o.Name, ' ')+1:],
		Short: "Forward gRPC to backends, and preserve the status of streams",
		Long: `Forward gRPC to backends, and preserve the status of streams.

SIGTERM drains: the listeners close, the open streams are ended one by one over --drain with a status that their clients can act on, and the process
ends; a second one ends it at once. SIGHUP, or a change of the --config file, puts the new configuration in force without touching a stream (a
listener that is removed is drained), and reopens the access log. While the file cannot be read, what was loaded before stays in force.

Every flag can also be given as an environment variable: --listen is LEVADA_LISTEN.
Spans are sent over OTLP (gRPC) when OTEL_EXPORTER_OTLP_ENDPOINT is set. GOGC is 25, or up to 100 while much is allocated, if it is not set.`,
		Example: examples(o.Name, "--listen :8080 --backend dns:///orders:50051", "--config proxy.yaml"),
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			logger, err := log.Logger(cmd.ErrOrStderr())
			if err != nil {
				return err
			}
			r := &run{Options: o, file: configFile{path: file}, pprof: pprof, logger: logger, stdin: cmd.InOrStdin(), stdout: cmd.OutOrStdout()}
			c, err := r.config(cmd.Flags(), simple)
			if err != nil {
				return commandline.UsageError(err)
			}
			return r.run(cmd.Context(), c)
		},
	}
	f := cmd.Flags()
	f.StringVar(&simple.Listen, "listen", simple.Listen, "`ADDRESS` to listen on")
	f.StringVar(&simple.Backend, "backend", "", "`TARGET`: "+targets)
	f.StringVar(&simple.Admin, "admin", simple.Admin, "`ADDRESS` for metrics, probes and the admin API; empty disables it")
	f.StringVar(&simple.Control, "admin-control", "", "`ADDRESS` for the admin API (state, tap, drain) instead of --admin: unix:PATH or host:port")
	f.StringVar(&simple.AdminToken, "admin-token-file", "", "`FILE` with the bearer token that --admin-control requires")
	f.DurationVar(&simple.StreamAge, "stream-age", simple.StreamAge, "end streams that are older, with a jitter of 10%; 0 disables it")
	f.DurationVar(&simple.Drain, "drain", simple.Drain, "period over which open streams are ended after SIGTERM")
	f.DurationVar(&simple.PingInterval, "ping-interval", simple.PingInterval, "ping a backend that has been silent for this long while streams are open; 0 disables it")
	f.DurationVar(&simple.PingTimeout, "ping-timeout", simple.PingTimeout, "close the connection if a ping is not answered within this time")
	f.DurationVar(&simple.ConnectTimeout, "connect-timeout", simple.ConnectTimeout, "timeout for connecting to an endpoint")
	f.StringVar(&simple.TLSCert, "tls-cert", "", "certificate `FILE` of the listener (PEM); reloaded when it changes")
	f.StringVar(&simple.TLSKey, "tls-key", "", "private key `FILE` of the listener")
	f.StringVar(&simple.TLSClientCA, "tls-client-ca", "", "CA bundle `FILE` for client certificates, which become required")
	f.BoolVar(&simple.BackendTLS, "backend-tls", false, "use TLS to the backend")
	f.StringVar(&simple.BackendCA, "backend-ca", "", "CA bundle `FILE` for the backend's certificate; default: the system's")
	f.StringVar(&simple.BackendCert, "backend-cert", "", "client certificate `FILE` for the backend")
	f.StringVar(&simple.BackendKey, "backend-key", "", "private key `FILE` of the client certificate")
	f.StringVar(&simple.BackendName, "backend-name", "", "expected `NAME` in the backend's certificate")
	f.StringVar(&simple.AccessLog, "access-log", "", "write a line of JSON per call to `FILE`; - for standard output")
	f.BoolVar(&simple.RestoreUnavailable, "restore-unavailable", false, "report UNAVAILABLE where other proxies behind this one reset a stream or ended it without a status")
	f.VisitAll(func(one *pflag.Flag) { one.Annotations = map[string][]string{ofSimple: nil} })
	f.StringVar(&file, "config", "", "configuration `FILE`, instead of the other flags; reloaded when it changes. - reads standard input once")
	f.BoolVar(&pprof, "pprof", false, "serve Go profiles at the --admin address, to local clients only")
	log.Register(f)
	cmd.AddCommand(newValidate(o), newTop(o.Name), newTap(o.Name), newDrain(o.Name), newUndrain(o.Name))
	return cmd
}

// examples are command lines of the program.
func examples(name string, all ...string) string {
	for i, arguments := range all {
		all[i] = "  " + strings.TrimSpace(name+" "+arguments)
	}
	return strings.Join(all, "\n")
}

// ofSimple marks the flags that make a configuration.
const ofSimple = "of the simple configuration"

// config is that of the flags or of the file.
func (r *run) config(flags *pflag.FlagSet, simple config.Simple) (*config.Config, error) {
	if r.file.path == "" {
		if simple.Backend == "" {
			return nil, errors.New("say where calls go: --backend TARGET, or --config FILE")
		}
		return r.checked(simple.Config())
	}
	var both []string
	flags.Visit(func(f *pflag.Flag) {
		if _, ok := f.Annotations[ofSimple]; ok {
			both = append(both, commandline.Given(f))
		}
	})
	if len(both) > 0 {
		return nil, fmt.Errorf("--config takes the place of other flags: move %s to the file", strings.Join(both, ", "))
	}
	if r.file.path == "-" {
		r.file.path = ""
		return r.checked(readInput(r.stdin))
	}
	return r.checked(config.Load(r.file.path))
}

// readInput is the configuration that the standard input is.
func readInput(in io.Reader) (*config.Config, error) {
	const name = "standard input"
	text, err := io.ReadAll(io.LimitReader(in, strictyaml.MaxBytes+1)) // one more, so that Parse sees that it is too much
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return config.Parse(name, text)
}

// checked looks at what a proxy that runs needs beyond a valid configuration: the files that it names, and somebody to follow its targets.
func (r *run) checked(c *config.Config, err error) (*config.Config, error) {
	if err != nil {
		return nil, err
	}
	problems := c.CheckFiles()
	if r.Kubernetes == nil {
		problems = append(problems, c.WithoutKubernetes()...)
	}
	if err := problems.Err(); err != nil {
		return nil, err
	}
	for _, p := range c.CheckTimes(time.Now()) {
		r.logger.Warn("a certificate is not valid now", "problem", p.Error())
	}
	return c, nil
}

// run is a proxy with all that is around it.
type run struct {
	Options
	file   configFile // without a path when the configuration came from flags or from the standard input
	pprof  bool
	logger *slog.Logger
	stdin  io.Reader
	stdout io.Writer

	proxy     *proxy.Proxy
	admin     *adminAddresses
	metrics   *observe.Metrics
	log       *observe.AccessLog
	tracing   *observe.Tracing // nil without
	unwatched func()           // ends the telling of the log; nil while it is off
}

func (r *run) run(ctx context.Context, c *config.Config) (err error) {
	hangUp := make(chan os.Signal, 1)
	signal.Notify(hangUp, syscall.SIGHUP)
	defer signal.Stop(hangUp)
	// Who reads the log or the access log may go before the calls do.
	signal.Ignore(syscall.SIGPIPE)
	defer signal.Reset(syscall.SIGPIPE)
	defer context.AfterFunc(ctx, func() { r.logger.Info("about to drain: another signal ends the process at once") })()

	options := proxy.Options{Logger: r.logger, Kubernetes: r.Kubernetes, TuneCollector: os.Getenv("GOGC") == ""}
	if r.tracing, err = observe.NewTracing(ctx, c.Tracing.Sample, r.logger, r.Version); err != nil {
		return commandline.UsageError(err)
	}
	if r.tracing != nil {
		options.Tracer = r.tracing
		defer r.closeTracing()
	}
	if r.proxy, err = proxy.New(c, options); err != nil {
		return err
	}
	if r.log, err = observe.OpenAccessLog(c.AccessLog.Path, r.stdout, r.logger); err != nil {
		return err
	}
	tap := observe.NewTap(r.proxy)
	r.metrics = &observe.Metrics{Proxy: r.proxy, Log: r.log, Tap: tap, File: r.file.readable}

	// What shows the proxy outlasts it: the end of a drain is seen, and logged.
	showing, stop := context.WithCancel(context.WithoutCancel(ctx))
	var group sync.WaitGroup
	defer func() {
		stop()
		group.Wait()
	}()
	group.Go(func() { r.log.Run(showing) })
	r.watchLog(c.AccessLog.Path)
	r.admin = newAdminAddresses(showing, r, tap, &group)
	change, err := r.admin.prepare(c.Admin)
	if err != nil {
		return err
	}
	change.commit()
	reloading, stopReloading := context.WithCancel(ctx)
	var reloader sync.WaitGroup
	reloader.Go(func() { r.reload(reloading, hangUp) })
	err = r.proxy.Run(ctx)
	if failed, ok := errors.AsType[*net.OpError](err); ok && failed.Op == "listen" {
		err = fmt.Errorf("listen for clients (--listen, listeners[].address): %w", err)
	}
	stopReloading()
	reloader.Wait()
	return err
}

func (r *run) closeTracing() {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if err := r.tracing.Close(ctx); err != nil {
		r.logger.Warn("the last spans could not be sent", "error", err)
	}
}

// watchLog makes the proxy tell the log of calls while there is one: without, calls cost no description of themselves.
func (r *run) watchLog(path string) {
	switch {
	case path != "" && r.unwatched == nil:
		r.unwatched = r.proxy.Watch(r.log.Watcher())
	case path == "" && r.unwatched != nil:
		r.unwatched()
		r.unwatched = nil
	}
}

// adminFlag is the address of commands that ask a proxy.
type adminFlag struct{ address, tokenFile string }

func (a *adminFlag) register(flags *pflag.FlagSet) {
	flags.StringVar(&a.address, "admin", config.DefaultSimple().Admin, "administrative `ADDRESS` of the proxy: host:port, or unix:PATH")
	flags.StringVar(&a.tokenFile, "admin-token-file", "", "`FILE` with the token of the address, if it needs one")
}

func (a *adminFlag) client() (*admin.Client, error) {
	token := ""
	if a.tokenFile != "" {
		var err error
		if token, err = admin.ReadToken(a.tokenFile); err != nil {
			return nil, commandline.UsageError(fmt.Errorf("--admin-token-file: %w", err))
		}
	}
	c, err := admin.NewClient(cmp.Or(a.address, config.DefaultSimple().Admin), token)
	if err != nil {
		return nil, commandline.UsageError(err)
	}
	return c, nil
}
