// Package standalone runs manifests in one process: broker, buffers and all vertices, with functions as child processes. It is what `levada run` does. It also runs
// one vertex of a pipeline alone, beside processes for the others and a broker elsewhere: what `levada vertex` does.
//
// # Files
//
// One folder, because all of it works on one runner, which owns the broker, the leases and the pipelines of a run; half of the files are tests that start whole runs.
//
//   - A run: standalone.go (start and end), connect.go (broker), pipelines.go and buffers.go (building), isbsvc.go (buffer settings), secrets.go, memorylimit.go, smalldisk.go.
//   - A run whose vertices are processes (package processes starts them): host.go (broker, leases, buffers), hostapi.go, scale.go (how many).
//   - One vertex: vertex.go (start, lease), agree.go (the topology that all processes share), front.go (probes from the start).
//   - What is found in the store, and whether the manifest fits it: takeover.go, record.go, compare.go, renamed.go, drainold.go, discard.go.
//   - What others ask: api.go and reopen.go of a run; offline.go and letters.go of a store without a run; check.go before one.
package standalone

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/levada-io/levada/internal/broker"
	"github.com/levada-io/levada/internal/dataplane/buffer"
	"github.com/levada-io/levada/internal/dataplane/deadletter"
	"github.com/levada-io/levada/internal/dataplane/engine"
	"github.com/levada-io/levada/internal/dataplane/function"
	"github.com/levada-io/levada/internal/dataplane/isb"
	"github.com/levada-io/levada/internal/dataplane/ownership"
	"github.com/levada-io/levada/internal/dataplane/vertex"
	"github.com/levada-io/levada/internal/manifest"
	"github.com/levada-io/levada/internal/metrics"
)

// Config says what to run. The zero value of a field is its default.
type Config struct {
	// Objects are the manifests: decoded, with defaults, valid.
	Objects []manifest.Object
	// Vertex is the one vertex to run, of the one Pipeline or MonoVertex among Objects; empty for all of everything. It needs a Broker elsewhere. See vertexMain.
	Vertex string
	// Name tells this process from the others that run Vertex, and is the same when it is started again. Required with Vertex.
	Name string
	// DataDir keeps everything that must survive. Required.
	DataDir string
	// Hosted, with Vertex, says that a Host has started this process; nil for a process of its own.
	Hosted *Hosted
	// Broker is the buffer service; its zero value stands for a NATS server in this process, in DataDir.
	Broker
	// Replicas of streams at a broker of its own. With 0 streams that exist keep theirs, and others get 3 if the broker is a cluster that can keep 3, else 1.
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
	// Command describes this run in the error of a second one.
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
	*engine.Pipeline

	store   isb.Store
	letters *deadletter.Store
	// partitions are those of each vertex of this process that has a buffer. Invariant: a vertex is in partitions or in outputs, not in both.
	partitions map[string][]engine.Input
	// outputs are those that this process writes to and that another one reads; empty where the whole pipeline runs here.
	outputs map[string][]*buffer.Writer
}

// Result is what is where when a run has ended.
type Result struct {
	// Cut says why the run was ended before it had stopped in order; empty if it had. What was in flight then is not acknowledged, and comes again.
	Cut string
	// CutShort says that messages in flight were not finished in time, and are processed again by the next start.
	CutShort bool
	// Started says that everything ran.
	Started   bool
	Pipelines []PipelineResult
}

// PipelineResult says where the messages of a pipeline are.
type PipelineResult = engine.Result

type runner struct {
	cfg     Config
	log     *slog.Logger
	metrics *metrics.Set
	broker  *broker.Broker // nil with one elsewhere
	token   string         // by which other processes reach broker; empty if none do
	service isb.Service
	sockets string
	files   vertex.Files
	secrets secrets
	budget  *engine.Budget
	close   []func()

	held     []*held     // what was taken over
	inFiles  sync.Once   // says that buffers are in files
	inMemory atomic.Bool // some buffers are in an external broker's memory
	// leases are those that recheck renews: a broker can come back while they are acquired.
	leasesMu sync.Mutex
	leases   []*ownership.Lease
	owned    context.Context // ends with its cause when another process took a pipeline over
	draining *draining       // of a run that only drains

	mu        sync.Mutex
	pipelines []*Pipeline     // once all are built
	process   *engine.Process // which runs them
	serving   bool            // the control file is this run's
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
	if cfg.embedded() {
		if cfg.Broker, err = cfg.brokerOfManifests(newSecrets(cfg).get); err != nil {
			return err
		}
	}
	if cfg.Redis != nil && cfg.Replicas > 1 {
		return fmt.Errorf("--replicas %d: replicas are of JetStream streams. With Redis the replicas of its servers count: leave --replicas out", cfg.Replicas)
	}
	if cfg.embedded() && cfg.Replicas > 1 {
		return fmt.Errorf("--replicas %d: the broker in this process is one server and keeps one copy; name a cluster of brokers with --nats, or leave --replicas out", cfg.Replicas)
	}
	if cfg.embedded() && cfg.Vertex != "" {
		return fmt.Errorf("vertex %s: a vertex alone needs a broker that the other vertices reach, too (--nats or --redis)", cfg.Vertex)
	}
	r := &runner{cfg: cfg, log: cfg.Logger, metrics: metrics.New(cfg.Version), secrets: newSecrets(cfg), budget: engine.NewBudget(cfg.DrainTimeout)}
	defer r.budget.Stop()
	defer context.AfterFunc(ctx, r.budget.Begin)()
	ended := make(chan error, 1)
	main := r.main
	if cfg.Vertex != "" {
		main = r.vertexMain
	}
	go func() { ended <- main(ctx) }() // ends before Run does, unless Run gives up waiting
	cut := ""
	select {
	case err = <-ended:
	case <-cfg.Abort:
		cut = "a second signal came"
	case <-r.budget.Over():
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

// listenAt is where sources listen.
func (cfg Config) listenAt() vertex.Listen {
	const loopback = "127.0.0.1"
	at := vertex.Listen{Host: cmp.Or(cfg.ListenHTTP, loopback), Shared: cfg.Vertex == "" || cfg.Hosted != nil, Address: loopback}
	if ip := net.ParseIP(at.Host); ip != nil && !ip.IsUnspecified() {
		at.Address = at.Host
	}
	return at
}

// DefaultDrainTimeout is the default of Config.DrainTimeout.
const DefaultDrainTimeout = 25 * time.Second

func (r *runner) main(ctx context.Context) error {
	defer r.closeInReverse()
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

func (r *runner) closeInReverse() {
	for i := len(r.close) - 1; i >= 0; i-- {
		r.close[i]()
	}
}

// run runs what was built.
func (r *runner) run(ctx context.Context, pipelines []*Pipeline) error {
	p := r.newProcess(pipelines)
	api, err := r.listen(p, pipelines)
	if err != nil {
		return err
	}
	p.Services = append(p.Services, api.serve)
	return r.runProcess(ctx, p, api.address, pipelines)
}

func (r *runner) newProcess(pipelines []*Pipeline) *engine.Process {
	p := &engine.Process{Budget: r.budget, Owned: r.owned, Broker: r.service, Logger: r.log, Services: []func(context.Context) error{limitMemory}}
	for _, pl := range pipelines {
		p.Pipelines = append(p.Pipelines, pl.Pipeline)
	}
	return p
}

func (r *runner) runProcess(ctx context.Context, p *engine.Process, address string, pipelines []*Pipeline) error {
	p.Started = func() {
		if r.cfg.Started != nil {
			r.cfg.Started(&Running{Address: address, Pipelines: pipelines, Durability: r.durability()})
		}
	}
	r.mu.Lock()
	r.process = p
	r.mu.Unlock()
	return p.Run(ctx)
}

// cutShort reports whether messages in flight were not finished at the end.
func (r *runner) cutShort() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.process != nil && r.process.CutShort()
}

// result says where the messages are. cut is the reason if the run is ended before it has stopped in order.
func (r *runner) result(cut string) *Result {
	res := &Result{Cut: cut}
	r.mu.Lock()
	defer r.mu.Unlock()
	res.Started = r.process != nil && r.process.HasStarted()
	res.CutShort = r.process != nil && r.process.CutShort()
	for _, p := range r.pipelines {
		res.Pipelines = append(res.Pipelines, p.Result())
	}
	return res
}

// abandon ends what would outlive this process.
func (r *runner) abandon() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.process != nil {
		r.process.Abandon()
	}
	if r.serving {
		_ = os.Remove(filepath.Join(r.cfg.DataDir, controlFile))
	}
}

// close saves what is known, in the order of the flow: what vertices know, and then what the partitions know.
func (p *Pipeline) close(ctx context.Context) error {
	err := p.Close(ctx)
	for _, name := range slices.Sorted(maps.Keys(p.partitions)) {
		for _, in := range p.partitions[name] {
			err = errors.Join(err, in.Partition.Close(ctx))
		}
	}
	for _, writers := range p.outputs {
		for _, w := range writers {
			err = errors.Join(err, w.Close())
		}
	}
	return err
}
