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
	p := proxyFlags{Options: o, simple: config.DefaultSimple()}
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
		RunE:    func(cmd *cobra.Command, _ []string) error { return p.run(cmd) },
	}
	p.register(cmd.Flags())
	cmd.AddCommand(newValidate(o), newTop(o.Name), newTap(o.Name), newDrain(o.Name), newUndrain(o.Name))
	return cmd
}

// proxyFlags are those of the proxy itself.
type proxyFlags struct {
	Options
	simple config.Simple // the configuration that flags describe; only without file
	file   string        // of --config
	pprof  bool
	log    commandline.LogFlags
}

func (p *proxyFlags) register(f *pflag.FlagSet) {
	p.registerSimple(f)
	f.VisitAll(func(one *pflag.Flag) { one.Annotations = map[string][]string{ofSimple: nil} })
	f.StringVar(&p.file, "config", "", "configuration `FILE`, instead of the other flags; reloaded when it changes. - reads standard input once")
	f.BoolVar(&p.pprof, "pprof", false, "serve Go profiles at the --admin address, to local clients only")
	p.log.Register(f)
}

// registerSimple adds the flags that make a configuration.
func (p *proxyFlags) registerSimple(f *pflag.FlagSet) {
	targets := discovery.Forms
	if p.Kubernetes == nil {
		targets = discovery.FormsWithoutKubernetes
	}
	c := &p.simple
	f.StringVar(&c.Listen, "listen", c.Listen, "`ADDRESS` to listen on")
	f.StringVar(&c.Backend, "backend", "", "`TARGET`: "+targets)
	f.StringVar(&c.Admin, "admin", c.Admin, "`ADDRESS` for metrics, probes and the admin API; empty disables it")
	f.StringVar(&c.Control, "admin-control", "", "`ADDRESS` for the admin API (state, tap, drain) instead of --admin: unix:PATH or host:port")
	f.StringVar(&c.AdminToken, "admin-token-file", "", "`FILE` with the bearer token that --admin-control requires")
	f.DurationVar(&c.StreamAge, "stream-age", c.StreamAge, "end streams that are older, with a jitter of 10%; 0 disables it")
	f.DurationVar(&c.Drain, "drain", c.Drain, "period over which open streams are ended after SIGTERM")
	f.DurationVar(&c.PingInterval, "ping-interval", c.PingInterval, "ping a backend that has been silent for this long while streams are open; 0 disables it")
	f.DurationVar(&c.PingTimeout, "ping-timeout", c.PingTimeout, "close the connection if a ping is not answered within this time")
	f.DurationVar(&c.ConnectTimeout, "connect-timeout", c.ConnectTimeout, "timeout for connecting to an endpoint")
	f.StringVar(&c.TLSCert, "tls-cert", "", "certificate `FILE` of the listener (PEM); reloaded when it changes")
	f.StringVar(&c.TLSKey, "tls-key", "", "private key `FILE` of the listener")
	f.StringVar(&c.TLSClientCA, "tls-client-ca", "", "CA bundle `FILE` for client certificates, which become required")
	f.BoolVar(&c.BackendTLS, "backend-tls", false, "use TLS to the backend")
	f.StringVar(&c.BackendCA, "backend-ca", "", "CA bundle `FILE` for the backend's certificate; default: the system's")
	f.StringVar(&c.BackendCert, "backend-cert", "", "client certificate `FILE` for the backend")
	f.StringVar(&c.BackendKey, "backend-key", "", "private key `FILE` of the client certificate")
	f.StringVar(&c.BackendName, "backend-name", "", "expected `NAME` in the backend's certificate")
	f.StringVar(&c.AccessLog, "access-log", "", "write a line of JSON per call to `FILE`; - for standard output")
	f.BoolVar(&c.RestoreUnavailable, "restore-unavailable", false, "report UNAVAILABLE where other proxies behind this one reset a stream or ended it without a status")
}

func (p *proxyFlags) run(cmd *cobra.Command) error {
	logger, err := p.log.Logger(cmd.ErrOrStderr())
	if err != nil {
		return err
	}
	r := &run{Options: p.Options, file: configFile{path: p.file}, pprof: p.pprof, logger: logger, stdin: cmd.InOrStdin(), stdout: cmd.OutOrStdout()}
	c, err := r.config(cmd.Flags(), p.simple)
	if err != nil {
		return commandline.UsageError(err)
	}
	return r.run(cmd.Context(), c)
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

// checked looks at what a proxy that runs needs beyond a valid configuration: the files that it names, and a source for each of its targets.
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

// run is a proxy with all that is around it. run.open makes the parts from proxy on; they live until run.run returns. reload changes them from a goroutine of its own,
// which ends before they are closed.
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
	log       *observe.AccessLog // always open; it writes nothing while the configuration names no file
	tap       *observe.Tap
	tracing   *observe.Tracing // nil without
	unwatched func()           // detaches the log from the proxy; nil while there is no log
}

func (r *run) run(ctx context.Context, c *config.Config) (err error) {
	hangUp := make(chan os.Signal, 1)
	signal.Notify(hangUp, syscall.SIGHUP)
	defer signal.Stop(hangUp)
	// A reader of the log or the access log may end before the calls do.
	signal.Ignore(syscall.SIGPIPE)
	defer signal.Reset(syscall.SIGPIPE)
	defer context.AfterFunc(ctx, func() { r.logger.Info("about to drain: another signal ends the process at once") })()

	if r.tracing, err = observe.NewTracing(ctx, c.Tracing.Sample, r.logger, r.Version); err != nil {
		return commandline.UsageError(err)
	}
	if r.tracing != nil {
		defer r.closeTracing()
	}
	if err := r.open(c); err != nil {
		return err
	}
	// Log, metrics and admin addresses outlast the proxy: the end of a drain is seen, and logged.
	showing, stop := context.WithCancel(context.WithoutCancel(ctx))
	var group sync.WaitGroup
	defer func() {
		stop()
		group.Wait()
	}()
	group.Go(func() { r.log.Run(showing) })
	r.watchLog(c.AccessLog.Path)
	r.admin = newAdminAddresses(showing, r, r.tap, &group)
	change, err := r.admin.prepare(c.Admin)
	if err != nil {
		return err
	}
	change.commit()
	return r.serve(ctx, hangUp)
}

// open makes the proxy, its access log and its metrics. Nothing listens yet.
func (r *run) open(c *config.Config) (err error) {
	options := proxy.Options{Logger: r.logger, Kubernetes: r.Kubernetes, TuneCollector: os.Getenv("GOGC") == ""}
	if r.tracing != nil {
		options.Tracer = r.tracing
	}
	if r.proxy, err = proxy.New(c, options); err != nil {
		return err
	}
	if r.log, err = observe.OpenAccessLog(c.AccessLog.Path, r.stdout, r.logger); err != nil {
		return err
	}
	r.tap = observe.NewTap(r.proxy)
	r.metrics = &observe.Metrics{Proxy: r.proxy, Log: r.log, Tap: r.tap, File: r.file.readable}
	return nil
}

// serve serves calls until ctx ends and the proxy has drained. The configuration is reloaded until then.
func (r *run) serve(ctx context.Context, hangUp <-chan os.Signal) error {
	reloading, stopReloading := context.WithCancel(ctx)
	var reloader sync.WaitGroup
	reloader.Go(func() { r.reload(reloading, hangUp) })
	err := r.proxy.Run(ctx)
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
			return nil, commandline.Usagef("--admin-token-file: %w", err)
		}
	}
	c, err := admin.NewClient(cmp.Or(a.address, config.DefaultSimple().Admin), token)
	if err != nil {
		return nil, commandline.UsageError(err)
	}
	return c, nil
}
