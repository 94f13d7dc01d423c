package processes

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/levada-io/levada/internal/standalone"
)

// run is one run from start to end.
type run struct {
	cfg       Config
	log       *slog.Logger
	dir       string // where relative paths of the manifests begin
	host      *standalone.Host
	pipelines []*pipeline // does not change once processes run

	started             atomic.Bool
	failed              chan error // has the first error that ends the run
	processes, stopping sync.WaitGroup

	mu   sync.Mutex
	news chan struct{} // closed, and replaced, with each change of what mu protects
}

// pipeline has the processes of a pipeline.
type pipeline struct {
	run      *run
	of       *standalone.HostedPipeline
	groups   []*group // of the vertices, in the order of the manifest
	finished bool     // everything is delivered; the lock of the run protects it
}

// update changes what the lock protects.
func (r *run) update(change func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	change()
	r.changed()
}

// changed wakes those that await something. The lock is held.
func (r *run) changed() {
	close(r.news)
	r.news = make(chan struct{})
}

// await returns when something holds. It is asked with the lock held.
func (r *run) await(ctx context.Context, holds func() bool) error {
	for {
		r.mu.Lock()
		news, done := r.news, holds()
		r.mu.Unlock()
		if done {
			return nil
		}
		select {
		case <-news:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// fail ends the run with an error, unless another has come first.
func (r *run) fail(err error) {
	select {
	case r.failed <- err:
	default:
	}
}

// Run runs everything until ctx ends, all sources have ended and everything is delivered, or something fails that cannot go away by itself; only then it returns an error.
func Run(ctx context.Context, cfg Config) (err error) {
	cfg = cfg.withDefaults()
	r := &run{cfg: cfg, log: cfg.Run.Logger, failed: make(chan error, 1), news: make(chan struct{})}
	if r.dir, err = filepath.Abs(cfg.Run.Dir); err != nil {
		return err
	}
	if r.cfg.Run.DataDir, err = filepath.Abs(cfg.Run.DataDir); err != nil {
		return err
	}
	over := make(chan struct{})
	defer context.AfterFunc(ctx, func() {
		time.AfterFunc(time.Duration(untilKill*float64(cfg.Run.DrainTimeout)), func() { close(over) })
	})()
	type end struct {
		result *standalone.Result
		err    error
	}
	ended := make(chan end, 1)
	go func() { // ends before Run does, unless Run gives up waiting
		result, err := r.main(ctx)
		ended <- end{result, err}
	}()
	var e end
	cut := ""
	select {
	case e = <-ended:
	case <-cfg.Run.Abort:
		cut = "a second signal came"
	case <-over:
		cut = fmt.Sprintf("the time to drain (%v) was over", cfg.Run.DrainTimeout)
	}
	if cut != "" {
		r.killAll()
		select {
		case e = <-ended:
			if e.result != nil {
				e.result.Cut = cut
			}
		case <-time.After(killedWait):
			e.result = r.result(ctx, cut)
		}
	}
	if cfg.Ended != nil && e.result != nil && len(e.result.Pipelines) > 0 {
		cfg.Ended(e.result)
	}
	return e.err
}

// main is all of a run but for the ways in which it is cut short. The result is nil if nothing was opened.
func (r *run) main(ctx context.Context) (result *standalone.Result, err error) {
	host, err := standalone.OpenHost(ctx, r.cfg.Run)
	if err != nil || host == nil {
		return nil, err
	}
	r.host = host
	defer host.Close()
	if err := r.describe(ctx); err != nil {
		return nil, err
	}
	serving, stopServing := context.WithCancel(context.WithoutCancel(ctx))
	var services sync.WaitGroup
	services.Go(func() {
		if err := host.Serve(serving, r.routes()); err != nil {
			r.fail(err)
		}
	})
	defer services.Wait()
	defer stopServing()
	err = r.runProcesses(ctx)
	result = r.result(ctx, "")
	if err == nil && !result.CutShort {
		r.settle(ctx)
	}
	return result, err
}

// describe makes the groups, with the number of processes that each is to have.
func (r *run) describe(ctx context.Context) error {
	var all []*pipeline
	for _, of := range r.host.Pipelines {
		p := &pipeline{run: r, of: of}
		all = append(all, p)
		if of.Paused {
			continue
		}
		if err := p.decide(ctx); err != nil {
			return err
		}
	}
	r.update(func() { r.pipelines = all })
	return nil
}

// decide works out the number of processes of each vertex: what levada scale set, unless the command line says another number than it did then; what the command line says;
// or scale.min of the manifest.
func (p *pipeline) decide(ctx context.Context) error {
	stored, err := p.of.Wanted(ctx)
	if err != nil {
		return err
	}
	entries := maps.Clone(stored)
	for _, v := range p.of.Vertices {
		named, was := p.run.cfg.Named[p.of.Namespace+"/"+p.of.Name+"/"+v.Name], stored[v.Name]
		scaled := was.Processes > 0 && was.Processes != was.CommandLine
		n := v.Min
		switch {
		case scaled && (named == 0 || named == was.CommandLine):
			n = was.Processes
			p.run.log.Info("number of processes is that of the last levada scale", "pipeline", p.of.Name, "vertex", v.Name, "processes", n)
		case named > 0:
			n = named
			entries[v.Name] = standalone.Wanted{Processes: n, CommandLine: named}
		default:
			entries[v.Name] = standalone.Wanted{}
		}
		if n > 1 && v.Alone != "" {
			if named > 1 {
				return fmt.Errorf("pipeline %s: vertex %s cannot run as %d processes: %s. Leave it out of --processes", p.of.Name, v.Name, named, v.Alone)
			}
			p.run.log.Info("vertex runs as one process, whatever scale.min says", "pipeline", p.of.Name, "vertex", v.Name, "scale.min", v.Min, "reason", v.Alone)
			n = 1
		}
		p.groups = append(p.groups, &group{pipeline: p, of: v, wanted: n})
	}
	if err := p.of.SetWanted(ctx, entries); err != nil {
		return err
	}
	return p.publish(ctx, nil)
}

// publish stores how many processes there are, if that is not what last says.
func (p *pipeline) publish(ctx context.Context, last map[string]standalone.Processes) error {
	now := p.processes()
	if maps.Equal(now, last) {
		return nil
	}
	return p.of.Publish(ctx, now)
}

func (p *pipeline) processes() map[string]standalone.Processes {
	p.run.mu.Lock()
	defer p.run.mu.Unlock()
	all := map[string]standalone.Processes{}
	for _, g := range p.groups {
		all[g.of.Name] = g.processes()
	}
	return all
}

// runProcesses starts the processes, and returns when all have ended.
func (r *run) runProcesses(ctx context.Context) error {
	r.update(func() {
		for _, p := range r.pipelines {
			for _, g := range p.groups {
				g.warnOfIdle()
				g.resize()
			}
		}
	})
	following, stop := context.WithCancel(ctx)
	var followers sync.WaitGroup
	followers.Go(func() { r.begin(following) })
	var ends sync.WaitGroup
	done := make(chan struct{})
	for _, p := range r.pipelines {
		if p.of.Paused {
			continue
		}
		followers.Go(func() { p.scale(following) })
		ends.Go(func() {
			if p.follow(following) != nil {
				<-following.Done()
			}
		})
	}
	followers.Go(func() {
		ends.Wait()
		if following.Err() == nil {
			close(done)
		}
	})
	var err error
	select {
	case <-done:
		r.started.Store(true) // a pipeline with nothing to do can be over before all of its processes run
	case <-ctx.Done():
		r.log.Info("processes are stopping, finishing messages in flight", "reason", context.Cause(ctx), "at_most", r.cfg.Run.DrainTimeout)
	case err = <-r.failed:
	case <-r.host.Owned().Done():
		err = context.Cause(r.host.Owned())
		r.killAll()
	}
	stop()
	followers.Wait()
	r.stopAll()
	if err == nil {
		select {
		case err = <-r.failed:
		default:
		}
	}
	if ctx.Err() != nil && !r.started.Load() {
		err = nil // the start was given up
	}
	return err
}

// begin calls Started once every vertex runs.
func (r *run) begin(ctx context.Context) {
	if r.await(ctx, r.allStarted) != nil {
		return
	}
	r.started.Store(true)
	if r.cfg.Started == nil {
		return
	}
	running := &Running{Address: r.host.Address(), Durability: r.host.Durability(), run: r}
	for _, p := range r.pipelines {
		running.Pipelines = append(running.Pipelines, Pipeline{Kind: p.of.Kind, Namespace: p.of.Namespace, Name: p.of.Name, Counts: p.counts})
	}
	r.cfg.Started(running)
}

// allStarted reports whether the processes of each vertex run, or have ended by themselves. The lock is held.
func (r *run) allStarted() bool {
	for _, p := range r.pipelines {
		for _, g := range p.groups {
			if !g.ending && g.running() < g.wanted {
				return false
			}
		}
	}
	return true
}

// scale follows what is wanted of the vertices, until ctx ends.
func (p *pipeline) scale(ctx context.Context) {
	tick := time.NewTicker(scaleEvery)
	defer tick.Stop()
	var published map[string]standalone.Processes
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		wanted, err := p.of.Wanted(ctx)
		if err != nil {
			continue // the broker is unavailable; the next look may be answered
		}
		p.run.update(func() {
			for _, g := range p.groups {
				if n := wanted[g.of.Name].Processes; n > 0 && n != g.wanted && !g.ending && (g.of.Alone == "" || n == 1) {
					p.run.log.Info("number of processes changes", "pipeline", p.of.Name, "vertex", g.of.Name, "from", g.wanted, "to", n)
					g.wanted = n
					g.warnOfIdle()
				}
				g.resize()
			}
		})
		if now := p.processes(); !maps.Equal(now, published) && p.of.Publish(ctx, now) == nil {
			published = now
		}
	}
}

// warnOfIdle says that some of the processes will read nothing.
func (g *group) warnOfIdle() {
	if g.of.Shards > 0 && g.wanted > g.of.Shards {
		g.pipeline.run.log.Warn("vertex has more processes than shards: the others read nothing until one ends", "pipeline", g.pipeline.of.Name, "vertex", g.of.Name,
			"processes", g.wanted, "shards", g.of.Shards)
	}
}

// killAll ends all processes at once. What they had in flight is processed again by the next start.
func (r *run) killAll() {
	r.update(func() {
		for _, p := range r.pipelines {
			for _, g := range p.groups {
				for _, m := range append(g.members[:len(g.members):len(g.members)], g.leaving...) {
					m.killed = true
					m.stop()
					m.signal(syscall.SIGKILL)
				}
				g.ending = true
			}
		}
	})
}

// hangUp sends SIGHUP to all processes.
func (r *run) hangUp() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, p := range r.pipelines {
		for _, g := range p.groups {
			for _, m := range g.members {
				if m.child != nil && m.child.address != "" { // one that starts opens its files anyway
					m.signal(syscall.SIGHUP)
				}
			}
		}
	}
	return nil
}

// settle notes that the run stopped in order.
func (r *run) settle(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	for _, p := range r.pipelines {
		if err := p.of.Settle(ctx); err != nil {
			r.log.Warn("the end of the run is not noted; changes of the pipeline may have to drain it first", "pipeline", p.of.Name, "error", err)
		}
	}
}
