// Package standalone runs manifests in one process: broker, buffers and all vertices, with functions as child processes. It is what `levada run` does.
package standalone

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sync/errgroup"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/levada-io/levada/api/v1alpha1"
	"github.com/levada-io/levada/internal/broker"
	"github.com/levada-io/levada/internal/dataplane/buffer"
	"github.com/levada-io/levada/internal/dataplane/buffer/jetstreambuffer"
	"github.com/levada-io/levada/internal/dataplane/deadletter"
	"github.com/levada-io/levada/internal/dataplane/function"
	"github.com/levada-io/levada/internal/dataplane/naming"
	"github.com/levada-io/levada/internal/dataplane/natslink"
	"github.com/levada-io/levada/internal/dataplane/ownership"
	"github.com/levada-io/levada/internal/dataplane/vertex"
	"github.com/levada-io/levada/internal/flow"
	"github.com/levada-io/levada/internal/manifest"
	"github.com/levada-io/levada/internal/metrics"
	"github.com/levada-io/levada/internal/redact"
)

// Config says what to run. The zero value of a field is its default.
type Config struct {
	// Objects are the manifests: decoded, with defaults, valid.
	Objects []manifest.Object
	// DataDir keeps everything that must survive. Required.
	DataDir string
	// NATS is the URL of a broker of its own; empty for one in this process, in DataDir.
	NATS string
	// NATSOptions are for the connection to it: credentials and TLS.
	NATSOptions []nats.Option
	// Replicas of streams at a broker of its own. Default 1.
	Replicas int
	// SyncInterval is how often the broker in this process writes through to the disk; 0 before each acknowledgement.
	SyncInterval time.Duration
	// Commands are programs in the place of containers: by vertex or vertex/role, or with the pipeline's name before: pipeline/vertex.
	Commands map[string]string
	// Dir is where relative paths of the manifests begin.
	Dir string
	// FunctionTimeout is how long a function may take for one message, where the manifest does not say. Default 2 minutes.
	FunctionTimeout time.Duration
	// DrainTimeout is the whole time from the end of ctx until Run returns, the end of functions included. Default 25 s, which leaves some of the 30 s that
	// Kubernetes gives a pod.
	DrainTimeout time.Duration
	// Abort makes Run return at once when it is closed. Then, and when DrainTimeout is over, something may still run: the process must end.
	Abort <-chan struct{}
	// Ended is called before Run returns, with what is where. It is not called if Run could not take the data directory or reach the broker.
	Ended func(*Result)
	// FunctionEnv names variables of this process that functions get beside the few that all get; see function.Inherited.
	FunctionEnv []string
	// FunctionUser is whom functions run as; nil for the user of this process.
	FunctionUser *function.User
	// SecretDir holds secrets as files, {name}/{key}, beside those of the manifests.
	SecretDir string
	// DrainOld first finishes what is in flight with the stored topology, where the manifest cannot be applied before. Discard names vertices of which the messages
	// that stand in the way are dropped instead; "all" for all of them.
	DrainOld bool
	Discard  []string
	// Command is what a second run is told about this one.
	Command string
	// SkipCorrupt goes on when stored blocks are damaged or missing, having kept what is left of them in DataDir/corrupt.
	SkipCorrupt bool
	// Output gets the lines that functions print.
	Output func(pipeline, vertex string, role function.Role, line string)
	// Listen is the address of metrics, probes and the API. Default: any free port of the loopback interface.
	Listen string
	// ListenHTTP is the host or address on which HTTP sources listen, at the ports of their manifests. Default: the loopback interface.
	ListenHTTP string
	// Started is called once everything runs, with what there is to see.
	Started func(*Running)
	Stdin   io.Reader
	Stdout  io.Writer
	Logger  *slog.Logger
	Version string
}

// Running is a run that has started.
type Running struct {
	// Address is where metrics, probes and the API are.
	Address string
	// Pipelines run, in the order of the manifests.
	Pipelines []*Pipeline
	// Durability says in a few words what a power loss may cost.
	Durability string
}

// Pipeline is a running Pipeline or MonoVertex.
type Pipeline struct {
	Namespace, Name, Kind string

	store      *store
	vertices   []*vertex.Vertex
	partitions map[string][]*buffer.Partition
	letters    *deadletter.Store
	metrics    []bufferMetrics
	finished   atomic.Bool
	ending     *ending
	paused     bool // by its manifest: nothing of it runs
}

type bufferMetrics struct {
	p *buffer.Partition
	m *metrics.Buffer
}

// Stats are the counters of the vertices, in the order of the manifest.
func (p *Pipeline) Stats(ctx context.Context) []vertex.Stats {
	stats := make([]vertex.Stats, len(p.vertices))
	for i, v := range p.vertices {
		stats[i] = v.Stats(ctx)
	}
	for _, b := range p.metrics {
		b.m.Usage(b.p.Pending(), b.p.InFlight(), b.p.MaxLength())
	}
	return stats
}

// Counts are the counters of the vertices, without asking anybody outside.
func (p *Pipeline) Counts() []vertex.Stats {
	stats := make([]vertex.Stats, len(p.vertices))
	for i, v := range p.vertices {
		stats[i] = v.Counts()
	}
	return stats
}

// Finished reports whether all its sources have ended and all that they gave is delivered, dropped or dead-lettered: nothing is left in its buffers.
func (p *Pipeline) Finished() bool { return p.finished.Load() }

type runner struct {
	cfg     Config
	log     *slog.Logger
	metrics *metrics.Set
	broker  *broker.Broker
	conn    *nats.Conn
	link    *natslink.Link // nil with the broker in this process
	js      jetstream.JetStream
	sockets string
	files   vertex.Files
	secrets secrets
	budget  *budget
	close   []func()

	held     []*held     // what was taken over
	inFiles  sync.Once   // says that buffers are in files
	inMemory atomic.Bool // some buffers are in an external broker's memory
	// leases are those that recheck renews: a broker can come back while they are acquired.
	leasesMu sync.Mutex
	leases   []*ownership.Lease
	owned    context.Context //nolint:containedctx // ends with its cause when another process took a pipeline over
	draining *draining       // of a run that only drains
	cutShort atomic.Bool     // the drain at the end was not finished

	mu        sync.Mutex
	pipelines []*Pipeline // once all are built
	serving   bool        // the control file is this run's
	started   bool        // all vertices run
}

func (cfg Config) withDefaults() Config {
	if cfg.DrainTimeout <= 0 {
		cfg.DrainTimeout = DefaultDrainTimeout
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Output == nil {
		cfg.Output = func(string, string, function.Role, string) {}
	}
	if cfg.Stdout == nil {
		cfg.Stdout = io.Discard
	}
	if cfg.Listen == "" {
		cfg.Listen = "127.0.0.1:0"
	}
	return cfg
}

// Run runs everything until ctx ends, all finite sources are drained, or something fails that cannot go away by itself; only then it returns an error.
func Run(ctx context.Context, cfg Config) (err error) {
	cfg = cfg.withDefaults()
	if cfg.NATS == "" && cfg.Replicas > 1 {
		return fmt.Errorf("--replicas %d: the broker in this process is one server and keeps one copy; name a cluster of brokers with --nats, or leave --replicas out", cfg.Replicas)
	}
	r := &runner{cfg: cfg, log: cfg.Logger, metrics: metrics.New(cfg.Version), secrets: newSecrets(cfg), budget: newBudget(cfg.DrainTimeout)}
	defer r.budget.stop()
	defer context.AfterFunc(ctx, r.budget.begin)()
	ended := make(chan error, 1)
	go func() { ended <- r.main(ctx) }() // ends before Run does, unless Run gives up waiting
	cut := ""
	select {
	case err = <-ended:
	case <-cfg.Abort:
		cut = "a second signal came"
	case <-r.budget.over:
		cut = fmt.Sprintf("the time to drain (%v) was over", cfg.DrainTimeout)
	}
	res := r.result(cut)
	if cut != "" {
		r.abandon()
	}
	if cfg.Ended != nil && len(res.Pipelines) > 0 {
		cfg.Ended(res)
	}
	return err
}

// DefaultDrainTimeout is the default of Config.DrainTimeout.
const DefaultDrainTimeout = 25 * time.Second

func (r *runner) main(ctx context.Context) error {
	defer func() {
		for i := len(r.close) - 1; i >= 0; i-- {
			r.close[i]()
		}
	}()
	if err := r.open(ctx); err != nil {
		return err
	}
	if ok, err := r.takeOver(ctx); err != nil || !ok {
		return err
	}
	// What a pipeline has opened is closed whether or not the rest comes up. The broker must live until then.
	pipelines, err := r.buildAll(ctx)
	if err == nil && len(pipelines) == 0 {
		return errors.New("there is no Pipeline and no MonoVertex to run in these files")
	}
	if err == nil {
		r.mu.Lock()
		r.pipelines = pipelines
		r.mu.Unlock()
		r.warnOfSmallDisk(pipelines)
		err = r.run(ctx, pipelines)
	}
	return r.settle(ctx, pipelines, errors.Join(err, r.closeAll(ctx, pipelines)))
}

// open takes the data directory and connects to the broker.
func (r *runner) open(ctx context.Context) error {
	release, err := broker.LockDir(r.cfg.DataDir)
	if err != nil {
		return err
	}
	r.close = append(r.close, release)
	if r.sockets, err = function.NewSocketRoot(); err != nil {
		return fmt.Errorf("directory for sockets: %w", err)
	}
	r.close = append(r.close, func() { _ = os.RemoveAll(r.sockets) })
	options := []nats.Option{
		nats.MaxReconnects(-1), nats.ReconnectWait(100 * time.Millisecond), nats.ReconnectJitter(50*time.Millisecond, 50*time.Millisecond),
		nats.ReconnectBufSize(-1), nats.PingInterval(10 * time.Second),
		nats.DisconnectErrHandler(func(_ *nats.Conn, err error) {
			if err != nil {
				r.log.Warn("broker disconnected, reconnecting", "error", redact.Error(err))
			}
		}),
		nats.ReconnectHandler(func(c *nats.Conn) {
			r.log.Info("broker reconnected", "url", c.ConnectedUrlRedacted())
			r.recheck()
		}),
	}
	if r.cfg.NATS != "" {
		options = append(append(options, nats.Name("levada")), r.cfg.NATSOptions...)
		if r.link, err = natslink.Dial(ctx, r.cfg.NATS, r.log, options...); err != nil {
			return err
		}
		r.conn = r.link.Conn
		r.close = append(r.close, r.conn.Close)
		if err := natslink.CheckVersion(r.link.URL, r.link.Conn.ConnectedServerVersion()); err != nil {
			return err
		}
		if err := r.link.CheckJetStream(ctx, r.log, jetstreambuffer.MinPayload); err != nil {
			return err
		}
	} else {
		over := waiting(r.log, "broker in this process to open its store", nil, "data", r.cfg.DataDir)
		r.broker, err = broker.Start(broker.Config{
			Dir: filepath.Join(r.cfg.DataDir, "broker"), MaxPayload: max(minPayload, r.maxPayload()), SyncInterval: r.cfg.SyncInterval, Logger: r.log,
		})
		over(err)
		if err != nil {
			return err
		}
		r.close = append(r.close, r.broker.Stop)
		// Pull requests that end are no news; what matters is told by the calls that fail.
		options = append(options, nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) { r.log.Debug("broker", "error", err) }))
		if r.conn, err = r.broker.Connect(options...); err != nil {
			return fmt.Errorf("connect to the broker: %w", err)
		}
		r.close = append(r.close, r.conn.Close)
	}
	r.js, err = jetstream.New(r.conn, jetstream.WithDefaultTimeout(10*time.Second))
	return err
}

// minPayload is the largest message of the broker in this process, unless a manifest asks for more. Blocks that are larger are stored in pieces.
const minPayload = 8 << 20

func (r *runner) maxPayload() (n int32) {
	for _, o := range r.cfg.Objects {
		if s, ok := o.Manifest.(*v1alpha1.InterStepBufferService); ok && s.Spec.JetStream != nil {
			n = max(n, maxPayloadOf(s.Spec.JetStream.Settings))
		}
	}
	return min(n, 64<<20)
}

// build opens the buffers of a pipeline and builds its vertices. It returns nil for objects that are nothing to run.
func (r *runner) build(ctx context.Context, o manifest.Object) (*Pipeline, error) {
	switch m := o.Manifest.(type) {
	case *v1alpha1.Pipeline:
		return r.pipeline(ctx, m)
	case *v1alpha1.MonoVertex:
		return r.mono(ctx, m)
	case *v1alpha1.ServingPipeline, *v1alpha1.Vertex:
		r.log.Warn("this kind is not run by this version", "kind", o.Kind())
	}
	return nil, nil
}

func (r *runner) env(p *Pipeline, meta metav1.Object) *vertex.Env {
	commands := commandsFor(r.cfg.Commands, p.Name)
	env := &vertex.Env{
		Namespace: p.Namespace, Pipeline: p.Name, Owner: p.store.owner, Meta: meta, State: p.store.state, DeadLetters: p.letters, Metrics: r.metrics.Namespace(p.Namespace),
		Partitions: func(v string) []*buffer.Partition { return p.partitions[v] },
		Logger:     r.log.With("pipeline", p.Name), SocketRoot: r.sockets, Dir: r.cfg.Dir, Data: r.cfg.DataDir, Files: &r.files, Commands: commands, Timeout: r.cfg.FunctionTimeout,
		Secret: r.secrets.get, Values: r.secrets.all, FunctionEnv: r.cfg.FunctionEnv, FunctionUser: r.cfg.FunctionUser, ListenHTTP: r.cfg.ListenHTTP, Stdin: r.cfg.Stdin, Stdout: r.cfg.Stdout,
		Output: func(v string, role function.Role) func(string) {
			return func(line string) { r.cfg.Output(p.Name, v, role, line) }
		},
		Announce: func(v, what, address string) {
			r.log.Info("listening", "pipeline", p.Name, "vertex", v, "for", what, "address", address)
		},
	}
	if r.draining != nil {
		env.Source = r.draining.source
	}
	return env
}

func (r *runner) prepare(ctx context.Context, meta *metav1.ObjectMeta, kind naming.Kind, vertices []string) (*Pipeline, error) {
	p := &Pipeline{Namespace: cmp.Or(meta.Namespace, "default"), Name: meta.Name, Kind: string(kind), partitions: map[string][]*buffer.Partition{}}
	owner, err := naming.New(p.Namespace, kind, p.Name)
	if err != nil {
		return nil, err
	}
	for _, v := range vertices {
		if err := owner.CheckVertex(v); err != nil {
			return nil, err
		}
	}
	open, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	p.store, err = natslink.Retry(open, r.link, r.log, "the store of "+owner.String(), func(ctx context.Context) (*store, error) {
		return openStore(ctx, r.js, owner, vertices, r.cfg.Replicas, r.log)
	})
	if err != nil {
		return nil, err
	}
	p.letters, err = natslink.Retry(open, r.link, r.log, "the dead letters of "+owner.String(), p.store.deadLetters)
	return p, err
}

func (r *runner) mono(ctx context.Context, m *v1alpha1.MonoVertex) (*Pipeline, error) {
	p, err := r.prepare(ctx, &m.ObjectMeta, naming.MonoVertex, []string{m.Name})
	if err != nil {
		return nil, err
	}
	p.store.opened()
	over := waiting(r.log, "source and sink of MonoVertex", nil, "pipeline", m.Name)
	v, err := vertex.Mono(ctx, r.env(p, m), m.Name, &m.Spec)
	over(err)
	if err != nil {
		return nil, fmt.Errorf("MonoVertex %s: %w", m.Name, err)
	}
	p.vertices = append(p.vertices, v)
	p.ending, err = newEnding(nil, p.vertices, nil)
	return p, err
}

func (r *runner) pipeline(ctx context.Context, m *v1alpha1.Pipeline) (*Pipeline, error) {
	var names []string
	for i := range m.Spec.Vertices {
		names = append(names, m.Spec.Vertices[i].Name)
	}
	p, err := r.prepare(ctx, &m.ObjectMeta, naming.Pipeline, names)
	if err != nil {
		return nil, err
	}
	if m.Spec.Lifecycle.DesiredPhase == "Paused" {
		r.log.Warn("pipeline is paused by its manifest (lifecycle.desiredPhase) and does not run", "pipeline", m.Name)
		p.paused = true
		p.ending, err = newEnding(nil, nil, nil)
		return p, err
	}
	store, inFlight, err := r.bufferConfig(m)
	if err != nil {
		return p, err
	}
	compression := flow.None
	if b := m.Spec.InterStepBuffer; b != nil && b.Compression != nil {
		if compression, err = flow.ParseCompression(string(b.Compression.Type)); err != nil {
			return p, err
		}
	}
	for i := range m.Spec.Vertices {
		spec := &m.Spec.Vertices[i]
		if spec.IsSource() {
			continue
		}
		limits := v1alpha1.EffectiveLimits(&m.Spec, spec)
		for n := range spec.PartitionCount() {
			part, err := r.partition(ctx, spec.Name, n, store, buffer.Options{
				MaxLength: int(limits.BufferMaxLength), UsageLimit: int(limits.BufferUsageLimit), Compression: compression, MaxInFlight: inFlight,
			}, p)
			if err != nil {
				return p, fmt.Errorf("pipeline %s, vertex %s: %w", m.Name, spec.Name, err)
			}
			p.partitions[spec.Name] = append(p.partitions[spec.Name], part)
		}
	}
	p.store.opened()
	env := r.env(p, m)
	for i := range m.Spec.Vertices {
		over := waiting(r.log, "source or sink of vertex", nil, "pipeline", m.Name, "vertex", m.Spec.Vertices[i].Name)
		v, err := vertex.Pipeline(ctx, env, &m.Spec, &m.Spec.Vertices[i])
		over(err)
		if err != nil {
			return p, fmt.Errorf("pipeline %s: %w", m.Name, err)
		}
		p.vertices = append(p.vertices, v)
	}
	if p.ending, err = newEnding(m.Spec.Edges, p.vertices, p.partitions); err != nil {
		return p, fmt.Errorf("pipeline %s: %w", m.Name, err)
	}
	return p, nil
}

func (r *runner) partition(ctx context.Context, vertex string, n int, store jetstreambuffer.Config, opt buffer.Options, p *Pipeline) (*buffer.Partition, error) {
	open, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	name := p.store.owner.OldBuffer(vertex, n) // of metrics and logs, whatever the stream is called
	store.State, store.Changed = p.store.state, p.store.changed
	if lease := r.leaseOf(p.store.owner); lease != nil {
		store.Fence = lease.Check
	}
	m := r.metrics.Namespace(p.Namespace).Buffer(name)
	opt.Name, opt.Metrics, opt.Logger = name, m, r.log
	opt.OnCorrupt = func(seq uint64, data []byte, err error) error { return r.corrupt(name, seq, data, err) }
	var lost sync.Once // an attempt that fails after it is tried again
	store.Lost = func(l jetstreambuffer.Loss) {
		lost.Do(func() {
			l.Log(r.log.With("pipeline", p.Name, "vertex", vertex))
			m.LostMessages(l.Messages)
		})
	}
	part, err := natslink.Retry(open, r.link, r.log, "buffer "+name, func(attempt context.Context) (_ *buffer.Partition, err error) {
		if store.Stream, store.Tag, err = p.store.buffer(attempt, vertex, n); err != nil {
			return nil, err
		}
		driver, err := jetstreambuffer.Open(open, r.js, store)
		if err != nil {
			return nil, err
		}
		part, err := buffer.Open(open, driver, opt)
		if err != nil {
			return nil, errors.Join(err, driver.Close())
		}
		return part, nil
	})
	if err != nil {
		return nil, err
	}
	p.metrics = append(p.metrics, bufferMetrics{part, m})
	if part.InMemory() {
		r.inMemory.Store(true)
	}
	return part, nil
}

// corrupt decides what to do about stored blocks that neither the stream nor any replica of it has as they were written.
func (r *runner) corrupt(name string, seq uint64, data []byte, err error) error {
	if !r.cfg.SkipCorrupt {
		return fmt.Errorf("%w. Nothing was removed. Restore the broker's store from a copy that has these blocks, or start the servers that have them. "+
			"If there is no such copy, --skip-corrupt goes on without them: it skips only what cannot be read anywhere, and keeps damaged bytes in %s",
			err, filepath.Join(r.cfg.DataDir, "corrupt"))
	}
	r.log.Error("stored data is damaged and skipped", "buffer", name, "seq", seq, "error", err)
	if len(data) == 0 {
		return nil
	}
	dir := filepath.Join(r.cfg.DataDir, "corrupt")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, fmt.Sprintf("%s-%d.block", name, seq)), data, 0o600)
}

// run runs what was built. The order of its end is the point: first sources stop reading, then what is in hand is finished, then functions end.
func (r *runner) run(ctx context.Context, pipelines []*Pipeline) error {
	working, stopWorking := context.WithCancelCause(context.WithoutCancel(ctx))
	defer stopWorking(nil)
	serving, stopServing := context.WithCancel(context.WithoutCancel(ctx))
	defer stopServing()
	sourcing, stopSourcing := context.WithCancel(ctx)
	defer stopSourcing()
	reading, stopReading := context.WithCancel(context.WithoutCancel(ctx))
	defer stopReading()
	// Once another process owns a pipeline, everything here is cut short: what this process still did would be done twice.
	defer context.AfterFunc(r.owned, func() {
		stopWorking(context.Cause(r.owned))
		stopSourcing()
	})()

	// Functions and the care of buffers go on until everything else has ended.
	var services errgroup.Group
	failed := make(chan error, 1)
	fail := func(err error) {
		if err != nil {
			select {
			case failed <- err:
			default:
			}
		}
	}
	for _, p := range pipelines {
		for _, v := range p.vertices {
			services.Go(func() error { fail(v.RunFunctions(serving)); return nil })
		}
		for _, parts := range p.partitions {
			for _, part := range parts {
				services.Go(func() error { return part.Run(serving) })
			}
		}
	}
	services.Go(func() error { limitMemory(serving); return nil })
	services.Go(func() error { r.warnOfDuplicates(serving, pipelines); return nil })
	api, err := r.serve(serving, &services, pipelines)
	if err != nil {
		stopServing()
		return errors.Join(err, services.Wait())
	}

	var sources, others, unfinished sync.WaitGroup
	start := func() error {
		for _, p := range pipelines {
			for _, v := range p.vertices {
				if err := r.ready(sourcing, p, v); err != nil {
					return fmt.Errorf("vertex %s: %w", v.Name, err)
				}
			}
		}
		for _, p := range pipelines {
			for _, v := range p.vertices {
				if isSource(v) {
					sources.Go(func() {
						fail(v.Run(working, sourcing))
						p.tellEnded(v)
					})
				} else {
					others.Go(func() {
						fail(v.Run(working, reading))
						p.tellEnded(v)
					})
				}
			}
			unfinished.Go(func() {
				// Only an error or the end of sourcing is told here: then the run ends, and not because everything is delivered.
				if err := p.follow(sourcing, r.log); err == nil {
					p.finished.Store(true)
				} else if sourcing.Err() == nil {
					fail(fmt.Errorf("%s %s: %w", p.Kind, p.Name, err))
					<-sourcing.Done()
				}
			})
		}
		return nil
	}
	err = start()
	done := make(chan struct{})
	if err == nil {
		api.ready.Store(true)
		r.mu.Lock()
		r.started = true
		r.mu.Unlock()
		if r.cfg.Started != nil {
			r.cfg.Started(&Running{Address: api.address, Pipelines: pipelines, Durability: r.durability()})
		}
		go func() { // ends with the pipelines, at the latest with sourcing
			unfinished.Wait()
			if !slices.ContainsFunc(pipelines, func(p *Pipeline) bool { return !p.Finished() }) {
				close(done)
			}
		}()
		select {
		case <-done:
		case <-ctx.Done():
			r.log.Info("run is stopping, finishing messages in flight", "reason", context.Cause(ctx), "at_most", r.cfg.DrainTimeout)
		case err = <-failed:
		case <-r.owned.Done():
		}
	} else if ctx.Err() != nil {
		err = nil
	} else {
		select { // a function that cannot be started says more of itself
		case err = <-failed:
		default:
		}
	}
	api.ready.Store(false)

	deadline := time.AfterFunc(r.budget.work(), func() {
		r.log.Warn("messages in flight are not finished in time and are left for the next start")
		r.cutShort.Store(true)
		stopWorking(errors.New("the time to drain is over"))
	})
	defer deadline.Stop()
	stopSourcing()
	unfinished.Wait()
	sources.Wait()
	stopReading()
	others.Wait()
	stopWorking(nil)
	r.recount(ctx, pipelines)
	patience := r.budget.functions()
	for _, p := range pipelines {
		for _, v := range p.vertices {
			v.StopWithin(patience)
		}
	}
	stopServing()
	if e := services.Wait(); e != nil && err == nil {
		err = e
	}
	if r.owned.Err() != nil {
		return context.Cause(r.owned)
	}
	return err
}

// close saves what is known, in the order of the flow.
func (p *Pipeline) close(ctx context.Context) (err error) {
	for _, v := range p.vertices {
		err = errors.Join(err, v.Close(ctx))
	}
	for _, name := range slices.Sorted(maps.Keys(p.partitions)) {
		for _, part := range p.partitions[name] {
			err = errors.Join(err, part.Close(ctx))
		}
	}
	return err
}

func (r *runner) durability() string {
	switch {
	case r.cfg.NATS != "" && r.inMemory.Load():
		return "buffers are in the memory of the broker at " + redact.Text(r.cfg.NATS) + " (bufferConfig storage: 1): its restart loses what is in flight"
	case r.cfg.NATS != "" && r.cfg.Replicas <= 1:
		return "survives any kill of levada; one copy at the broker at " + redact.Text(r.cfg.NATS) + " (a power loss there costs nothing only with sync_interval: always; --replicas 3 survives the loss of a server)"
	case r.cfg.NATS != "":
		return "as the broker at " + redact.Text(r.cfg.NATS) + " is set up (levada needs sync_interval: always to survive a power loss)"
	case r.cfg.SyncInterval > 0:
		return fmt.Sprintf("survives any kill; a power loss may cost the last %v (--sync-interval)", r.cfg.SyncInterval)
	}
	return "survives any kill, and a power loss"
}

func cutPrefix(s, prefix string) (string, bool) {
	if len(s) > len(prefix) && s[:len(prefix)] == prefix {
		return s[len(prefix):], true
	}
	return s, false
}
