package standalone

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	dto "github.com/prometheus/client_model/go"

	"github.com/levada-io/levada/api/v1alpha1"
	"github.com/levada-io/levada/internal/dataplane/buffer"
	"github.com/levada-io/levada/internal/dataplane/engine"
	"github.com/levada-io/levada/internal/dataplane/isb"
	"github.com/levada-io/levada/internal/dataplane/naming"
	"github.com/levada-io/levada/internal/dataplane/ownership"
	"github.com/levada-io/levada/internal/dataplane/vertex"
	"github.com/levada-io/levada/internal/manifest"
	"github.com/levada-io/levada/internal/metrics"
)

// Hosted says what a process of one vertex shares with the Host that has started it.
type Hosted struct {
	// Dir is where relative paths of the manifest begin.
	Dir string `json:"dir"`
	// Files is where sources and sinks keep files that outlive them; empty for the data directory of this process. It is that of levada run for a vertex that one process at
	// a time runs, so that its files are found whether or not the vertices have processes of their own.
	Files string `json:"files,omitempty"`
	// Embedded says that the broker is in the process of the Host: it ends with that, and keeps no buffer in memory.
	Embedded bool `json:"embedded,omitempty"`
}

// Host is what a run needs besides the processes of its vertices: the data directory, the broker, the lease that says who starts these processes, and what commands ask
// of a run. It moves no messages. Its methods may be called concurrently.
type Host struct {
	r *runner
	// Pipelines are those of the manifests, in their order.
	Pipelines []*HostedPipeline
	api       *api

	// replays is held for reading by those who write dead letters into a buffer; sealed are the vertices of which the buffer is empty for good.
	replays sync.RWMutex
	sealed  map[string]bool // by namespace/pipeline/vertex
}

// HostedPipeline is a Pipeline or MonoVertex whose vertices are processes of their own.
type HostedPipeline struct {
	Namespace, Name, Kind string
	// Paused says that the manifest pauses it: it has no processes.
	Paused   bool
	Vertices []HostedVertex
	Edges    []v1alpha1.Edge

	// Dir has the data directories of its processes, and Manifest is the file with its manifest and what that refers to, as this run has read them: a process that is
	// started again later has the same.
	Dir, Manifest string

	host *Host
	held *held
}

// HostedVertex is a vertex of which several processes may run.
type HostedVertex struct {
	Name string
	// Source says that it reads from outside of the pipeline, Sink that it writes there.
	Source, Sink bool
	// Alone is why one process at a time can run it; empty if several can.
	Alone string
	// Shards are those of all partitions of its buffer, unless that was created with another number: as many processes can read it at once. A source has none.
	Shards int
	// Min is scale.min of the manifest, and at least 1.
	Min int
}

// TokenFile is the file in the data directory with the token for the broker of a Host.
const TokenFile = "broker.token"

// OpenHost takes the data directory, starts or reaches the broker, makes the topology of the manifests the stored one, as Run does, and takes the lease of those who start
// processes. It returns nil if ctx ended meanwhile.
func OpenHost(ctx context.Context, cfg Config) (_ *Host, err error) {
	cfg = cfg.withDefaults()
	if cfg.embedded() {
		if cfg.Broker, err = cfg.brokerOfManifests(newSecrets(cfg).get); err != nil {
			return nil, err
		}
	}
	r := &runner{cfg: cfg, log: cfg.Logger, metrics: metrics.New(cfg.Version), secrets: newSecrets(cfg), budget: engine.NewBudget(cfg.DrainTimeout)}
	h := &Host{r: r, sealed: map[string]bool{}}
	defer func() {
		if err != nil {
			h.Close()
		}
	}()
	if err := r.openDirs(); err != nil {
		return nil, err
	}
	if cfg.embedded() {
		r.token = rand.Text()
		if err := os.WriteFile(filepath.Join(cfg.DataDir, TokenFile), []byte(r.token+"\n"), 0o600); err != nil {
			return nil, fmt.Errorf("token for the broker: %w", err)
		}
		r.close = append(r.close, func() { _ = os.Remove(filepath.Join(cfg.DataDir, TokenFile)) })
	}
	if err := r.connect(ctx); err != nil {
		return nil, err
	}
	kept := len(r.close)
	ok, err := r.takeOver(ctx)
	// The lease of a whole pipeline excludes processes of its vertices.
	r.closeDownTo(kept)
	if err != nil {
		return nil, err
	}
	if !ok || ctx.Err() != nil {
		h.Close()
		return nil, nil
	}
	if err := h.adopt(); err != nil {
		return nil, err
	}
	if h.api, err = r.listen(nil, nil); err != nil {
		return nil, err
	}
	return h, h.take(ctx)
}

// closeDownTo closes what was opened after the first n.
func (r *runner) closeDownTo(n int) {
	for len(r.close) > n {
		last := r.close[len(r.close)-1]
		r.close = r.close[:len(r.close)-1]
		last()
	}
}

// adopt describes the pipelines that were taken over.
func (h *Host) adopt() error {
	for _, o := range h.r.cfg.Objects {
		p, err := h.describe(o)
		if err != nil {
			return err
		}
		if p == nil {
			continue
		}
		if err := h.keepManifest(p, o); err != nil {
			return fmt.Errorf("manifest for the processes: %w", err)
		}
		h.Pipelines = append(h.Pipelines, p)
	}
	if len(h.Pipelines) == 0 {
		return errors.New("there is no Pipeline and no MonoVertex to run in these files")
	}
	return nil
}

// keepManifest writes the manifest of a pipeline for its processes. It may hold secrets.
func (h *Host) keepManifest(p *HostedPipeline, o manifest.Object) error {
	var objects []manifest.Object
	for _, other := range h.r.cfg.Objects {
		switch other.Manifest.(type) {
		case *v1alpha1.Pipeline, *v1alpha1.MonoVertex:
			if other.Manifest != o.Manifest {
				continue
			}
		}
		objects = append(objects, other)
	}
	text, err := manifest.Render(objects)
	if err != nil {
		return err
	}
	p.Dir = filepath.Join(h.r.cfg.DataDir, "vertices", p.Namespace+"."+p.Name)
	if p.Kind == string(naming.MonoVertex) {
		p.Dir = filepath.Join(h.r.cfg.DataDir, "vertices", p.Namespace+".MONO."+p.Name) // MONO cannot be the name of a pipeline
	}
	if err := os.MkdirAll(p.Dir, 0o700); err != nil {
		return err
	}
	p.Manifest = filepath.Join(p.Dir, "manifest.yaml")
	h.r.close = append(h.r.close, func() { _ = os.Remove(p.Manifest) })
	return os.WriteFile(p.Manifest, text, 0o600)
}

func (h *Host) describe(o manifest.Object) (*HostedPipeline, error) {
	p := &HostedPipeline{Name: o.Manifest.GetName(), Namespace: cmp.Or(o.Manifest.GetNamespace(), "default"), Kind: o.Kind(), host: h}
	for _, held := range h.r.held {
		if held.object.Manifest == o.Manifest {
			p.held = held
		}
	}
	switch m := o.Manifest.(type) {
	case *v1alpha1.MonoVertex:
		plan, err := vertex.PlanMono(m.Name, &m.Spec)
		if err != nil {
			return nil, fmt.Errorf("MonoVertex %s: %w", m.Name, err)
		}
		v := HostedVertex{Name: m.Name, Source: true, Sink: true, Min: least(m.Spec.Scale)}
		if !plan.Shareable() {
			v.Alone = "it has a source or a sink that one process at a time can have"
		}
		p.Vertices = []HostedVertex{v}
	case *v1alpha1.Pipeline:
		if p.Paused = m.Spec.Lifecycle.DesiredPhase == v1alpha1.DesiredPaused; p.Paused {
			h.r.log.Warn("pipeline is paused by its manifest (lifecycle.desiredPhase) and does not run", "pipeline", m.Name)
			return p, nil
		}
		plans, err := vertex.PlanPipeline(&m.Spec)
		if err != nil {
			return nil, fmt.Errorf("pipeline %s: %w", m.Name, err)
		}
		p.Edges = m.Spec.Edges
		_, shares := p.held.store.(isb.Sharer)
		for i := range plans {
			pl := &plans[i]
			v := HostedVertex{Name: pl.Name, Source: pl.Source != nil, Sink: pl.Sink != nil, Shards: pl.Input.Partitions * pl.Shards(m), Min: 1}
			at := slices.IndexFunc(m.Spec.Vertices, func(s v1alpha1.AbstractVertex) bool { return s.Name == pl.Name })
			if at >= 0 {
				v.Min = least(m.Spec.Vertices[at].Scale)
			}
			switch {
			case pl.Shareable() && (shares || v.Source):
			case pl.Shareable():
				v.Alone = "its buffer service does not let several processes share a vertex"
			case v.Source:
				v.Alone = "it has a source that one process at a time can read"
			default:
				v.Alone = "it has a sink that one process at a time can write to"
			}
			p.Vertices = append(p.Vertices, v)
		}
	case *v1alpha1.ServingPipeline, *v1alpha1.Vertex:
		h.r.log.Warn("this kind is not run by this version", "kind", o.Kind())
		return nil, nil
	default:
		return nil, nil
	}
	return p, nil
}

func least(s v1alpha1.Scale) int {
	if s.Min == nil {
		return 1
	}
	return max(1, int(*s.Min))
}

// take takes the lease of the process that starts those of the vertices, of each pipeline.
func (h *Host) take(ctx context.Context) error {
	r := h.r
	owned, lost := context.WithCancelCause(context.WithoutCancel(ctx))
	r.owned = owned
	r.close = append(r.close, func() { lost(nil) })
	for _, p := range h.Pipelines {
		if p.held == nil {
			continue
		}
		self := ownership.Self(r.cfg.Command, r.cfg.Version)
		lease, err := patient(ctx, r, p.held.of(), func(context.Context) (*ownership.Lease, error) {
			return ownership.Acquire(ctx, ownership.Config{
				Store: isb.RunLease(p.held.store.State()), Self: self, Sole: r.broker != nil, Logger: r.log,
				Waiting: func(last ownership.Owner, atMost time.Duration) {
					r.log.Info("waiting for the lease of the last run to expire", "owner", p.held.of(), "last", last.String(), "at most", atMost.Round(time.Second))
				},
			})
		})
		if taken, ok := errors.AsType[*ownership.OwnedError](err); ok {
			err = &refusal{fmt.Sprintf("%s: %v. Two runs would start processes of the same names, which replace each other. Stop that run first; nothing was changed", p.held.of(), taken)}
		}
		p.held.lease = lease
		if err != nil {
			return errors.Join(err, h.releaseAll(ctx))
		}
	}
	r.keepLeases(ctx, lost)
	return nil
}

// releaseAll releases the leases that were taken before another one could not be.
func (h *Host) releaseAll(ctx context.Context) (err error) {
	for _, p := range h.Pipelines {
		if p.held != nil && p.held.lease != nil {
			err = errors.Join(err, p.held.lease.Release(context.WithoutCancel(ctx)))
		}
	}
	return err
}

// Close releases everything. The processes of the vertices must have ended.
func (h *Host) Close() {
	h.r.closeDownTo(0)
	h.r.budget.Stop()
}

// Owned ends, with its cause, when another process has taken over one of the pipelines.
func (h *Host) Owned() context.Context { return h.r.owned }

// Address is where metrics, probes and the API are.
func (h *Host) Address() string { return h.api.address }

// Durability says in a few words what a power loss may cost.
func (h *Host) Durability() string { return h.r.durability() }

// Usable returns why messages cannot be stored or read now; nil if they can.
func (h *Host) Usable(ctx context.Context) error { return h.r.service.Usable(ctx) }

// Gather returns the metrics of this process.
func (h *Host) Gather(ctx context.Context) ([]*dto.MetricFamily, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	h.r.metrics.BufferService(h.r.service.Usable(ctx) == nil, len(h.r.service.Degraded()))
	return h.r.metrics.Registry.Gather()
}

// Stuck returns an error only if a restart of this process may help the broker.
func (h *Host) Stuck() error { return h.r.service.Stuck() }

// EmbeddedURL is where processes reach the broker of this process, with the token of TokenFile; empty with a broker elsewhere.
func (h *Host) EmbeddedURL() string {
	if h.r.broker == nil {
		return ""
	}
	u, err := url.Parse(h.r.broker.URL())
	if err != nil {
		return h.r.broker.URL()
	}
	u.User = nil
	return u.String()
}

// Messages counts what the buffers of vertices hold, as of what their readers have saved.
func (p *HostedPipeline) Messages(ctx context.Context, vertices ...string) (int, error) {
	n, _, _, err := p.contents(ctx, vertices)
	return n, err
}

// contents also counts blocks that are damaged, which a reader fails on or skips. reached is the same for two calls between which nothing was written.
func (p *HostedPipeline) contents(ctx context.Context, vertices []string) (messages, damaged int, reached map[string]uint64, err error) {
	reached = map[string]uint64{}
	for i := range p.held.wanted.Vertices {
		v := &p.held.wanted.Vertices[i]
		if !slices.Contains(vertices, v.Name) {
			continue
		}
		for _, stream := range v.Streams {
			c, err := isb.Inspect(ctx, p.held.store, stream)
			if errors.Is(err, buffer.ErrMissing) {
				continue // to open it says more
			}
			if err != nil {
				return 0, 0, nil, fmt.Errorf("buffer %s: %w", stream, err)
			}
			messages, damaged = messages+c.Messages, damaged+c.Damaged
			for lane, at := range c.Reached {
				reached[stream+" "+lane] = at
			}
		}
	}
	return messages, damaged, reached, nil
}

// Empty reports whether the buffers of vertices hold nothing. The vertices that write to them, but for these themselves, must have ended: then nothing comes any more. Two
// looks are needed where the vertices write to each other: a message that moves between two buffers could be missed by one.
func (p *HostedPipeline) Empty(ctx context.Context, vertices ...string) (bool, error) {
	n, damaged, first, err := p.contents(ctx, vertices)
	if err != nil || n+damaged > 0 {
		return false, err
	}
	n, damaged, second, err := p.contents(ctx, vertices)
	return err == nil && n+damaged == 0 && maps.Equal(first, second), err
}

// Seal refuses dead letters that are put back into the buffers of vertices, and waits for those that are being written.
func (p *HostedPipeline) Seal(vertices ...string) { p.seal(true, vertices) }

// Unseal allows them again.
func (p *HostedPipeline) Unseal(vertices ...string) { p.seal(false, vertices) }

func (p *HostedPipeline) seal(sealed bool, vertices []string) {
	p.host.replays.Lock()
	defer p.host.replays.Unlock()
	for _, v := range vertices {
		p.host.sealed[p.Namespace+"/"+p.Name+"/"+v] = sealed
	}
}

// Settle notes that everything which was begun is finished, as at the end of Run. The processes of the vertices must have ended in order.
func (p *HostedPipeline) Settle(ctx context.Context) error {
	if p.held == nil {
		return nil
	}
	if err := p.held.lease.Check(ctx); err != nil {
		return err
	}
	return p.host.r.note(ctx, p.held, isb.Settled{Settled: true})
}
