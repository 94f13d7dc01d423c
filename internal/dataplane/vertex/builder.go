package vertex

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	corev1 "k8s.io/api/core/v1"

	"github.com/levada-io/levada/api/v1alpha1"
	"github.com/levada-io/levada/internal/dataplane/catalogue"
	"github.com/levada-io/levada/internal/dataplane/forward"
	"github.com/levada-io/levada/internal/dataplane/function"
	"github.com/levada-io/levada/internal/dataplane/natslink"
	"github.com/levada-io/levada/internal/dataplane/sink"
	"github.com/levada-io/levada/internal/dataplane/source"
	"github.com/levada-io/levada/internal/dataplane/source/generatorsource"
	"github.com/levada-io/levada/internal/dataplane/source/udsource"
	"github.com/levada-io/levada/internal/metrics"
)

// builder gathers what a vertex is made of. Whatever it opens is added to v at once, so that Vertex.Close finds it if a later step fails.
type builder struct {
	v   *Vertex
	env *Env
	// lim holds the rate limiter that all loops share: a limit of the manifest is one of the vertex, not of a partition.
	lim  limits
	name string // of the vertex
	mono bool   // it is a MonoVertex: functions get other variables, metrics other names
	// volumes are those that the containers of the vertex may mount.
	volumes []corev1.Volume
	// metrics are those of the first loop. What is not of one loop, as deaths of a function, is counted there.
	// Invariant: set before anything is opened, since drivers count from the start.
	metrics *metrics.Vertex
}

// loop puts a loop together. Dead letters go to the store of the pipeline, under the name of the vertex.
func (b *builder) loop(input forward.Input, processor forward.Processor, output forward.Output, m *metrics.Vertex) *forward.Loop {
	return &forward.Loop{
		Input: input, Processor: processor, Output: output, Events: m, DeadLetters: b.env.DeadLetters.Of(b.name), Logger: b.v.logger,
	}
}

// says adds to what people see of the vertex in the status; see Vertex.Runs.
func (b *builder) says(what string) {
	if b.v.Runs != "" {
		b.v.Runs += ", "
	}
	b.v.Runs += what
}

// function makes the process for a container, or finds its built-in equivalent. Exactly one of the results is set.
func (b *builder) function(role function.Role, c *v1alpha1.Container) (*function.Function, *catalogue.Program, error) {
	pl, err := b.env.plan(b.name, b.mono, role, c, b.volumes)
	if err != nil {
		return nil, nil, fmt.Errorf("its %s: %w", role, err)
	}
	if pl.command == nil && pl.attach == "" {
		p, err := builtinFor(pl, role, b.name, catalogue.Options{Args: pl.args, Env: pl.values, Vertex: b.name, Logger: b.v.logger, Stdout: b.env.Stdout, Positions: b.env.Positions(b.name)})
		if err != nil {
			return nil, nil, err
		}
		b.says(string(role) + " " + p.Name + " (built in)")
		return nil, p, nil
	}
	if role == function.UDSource {
		// The contract has both in the environment of a source: it is asked for batches of that size, within that time.
		pl.values["NUMAFLOW_READ_BATCH_SIZE"], pl.values["NUMAFLOW_READ_TIMEOUT_MS"] = fmt.Sprint(b.lim.batch), fmt.Sprint(b.lim.timeout.Milliseconds())
	}
	mounts, err := b.env.mounts(b.name, pl.mounts)
	if err != nil {
		return nil, nil, fmt.Errorf("its %s: make the volumes: %w", role, err)
	}
	command, runs := pl.command, strings.Join(pl.command, " ")
	if pl.attach != "" {
		runs = "at " + pl.attach
	}
	timeout := b.env.Timeout
	if d, ok := v1alpha1.ProcessingTimeout(b.env.Meta, b.name); ok {
		timeout = d
	}
	// It is started by RunFunctions: what is built may yet fail, and a process would outlive that.
	f := function.New(function.Config{
		Name: b.name + "/" + string(role), Role: role, Command: command, Attach: pl.attach, Env: b.env.environment(pl.values), Mounts: mounts, User: b.env.FunctionUser, SocketRoot: b.env.SocketRoot,
		Concurrency: b.lim.concurrency, BatchSize: b.lim.batch, Timeout: timeout,
		Output: b.env.Output(b.name, role), Logger: b.v.logger,
		Died: func(reason string) { b.metrics.Crashed(role, reason) },
	})
	b.v.functions = append(b.v.functions, f)
	b.says(string(role) + " " + runs)
	return f, nil, nil
}

// stage is a function or a transformer as a stage of the loop.
func (b *builder) stage(p *StagePlan) (forward.Stage, error) {
	role, c, named := p.Role, p.Container, p.Builtin
	s := forward.Stage{Name: p.Name, Retry: retryStrategy(p.Retry), NeedsIDs: true}
	var program *catalogue.Program
	var err error
	if command, _, _ := b.env.program(b.name, role, c); named != nil && command == nil {
		program, err = catalogue.Named(named.Name, named.Args, named.KWArgs, catalogue.Options{Vertex: b.name, Logger: b.v.logger, Stdout: b.env.Stdout})
		if err == nil {
			b.says(string(role) + " " + program.Name + " (built in)")
		}
	} else {
		var f *function.Function
		if f, program, err = b.function(role, c); f != nil {
			s.Apply, s.ApplyPart, s.Isolate = f.Map, f.MapPart, f.Isolate
			return s, nil
		}
	}
	if err != nil {
		return s, err
	}
	if program.Map == nil {
		return s, fmt.Errorf("its %s is the builtin %s, which is not a map function", role, program.Name)
	}
	s.Apply, s.NeedsIDs = program.Map, false // builtins do not look at ids, and ids cost
	return s, nil
}

// source builds the input of a vertex with a source.
func (b *builder) source(ctx context.Context, s *v1alpha1.Source) (*forward.SourceInput, error) {
	open := func() (source.Reader, error) { return b.reader(ctx, s) }
	if outer := b.env.Source; outer != nil {
		inner := open
		open = func() (source.Reader, error) { return outer(b.name, inner) }
	}
	r, err := open()
	if err != nil {
		return nil, err
	}
	r = source.ValidText(r, b.headerDropped()) // functions get keys and headers as protobuf strings, which must be UTF-8
	b.v.source = r
	// A pipeline whose sources all are finite ends by itself; a file that is followed has no end.
	b.v.Finite = s.File != nil && !s.File.Follow || s.Stdin != nil
	b.v.closers.add(r.Close)
	return &forward.SourceInput{
		Vertex: b.name, Incarnation: b.env.Owner.Incarnation, Reader: r, Replica: b.env.Replica, Limit: b.lim.batch, Rate: b.lim.rate, OnError: b.metrics.ReadError, Logger: b.v.logger,
	}, nil
}

// reader opens the source with the driver of its kind. Exactly one kind is set in a valid manifest.
func (b *builder) reader(ctx context.Context, s *v1alpha1.Source) (source.Reader, error) {
	for _, d := range sourceDrivers {
		if d.set(s) && d.open != nil {
			return d.open(b, ctx, s, b.env.Positions(b.name))
		}
	}
	return nil, errors.New("its source cannot be run by this version")
}

// udSource builds a source that is user code.
func (b *builder) udSource(_ context.Context, s *v1alpha1.Source, _ source.Positions) (source.Reader, error) {
	f, p, err := b.function(function.UDSource, s.UDSource.Container)
	if err != nil {
		return nil, err
	}
	if f != nil {
		return &udsource.Source{Function: f, Timeout: b.lim.timeout}, nil
	}
	if p.Source == nil {
		return nil, fmt.Errorf("its udsource is the builtin %s, which is not a source", p.Name)
	}
	return p.Source, nil
}

// generator builds a source that makes messages. It has positions, so that a restart goes on where it was and repeats nothing.
func (b *builder) generator(ctx context.Context, s *v1alpha1.Source, at source.Positions) (source.Reader, error) {
	g := s.Generator
	cfg := generatorsource.Config{Partition: strconv.Itoa(b.env.Replica.Number), Positions: at, Value: g.Value, Duration: duration(g.Duration), Jitter: duration(g.Jitter)}
	if g.RPU != nil {
		cfg.RPU = *g.RPU
	}
	if g.MsgSize != nil {
		cfg.MsgSize = int(*g.MsgSize)
	}
	if g.KeyCount != nil {
		cfg.KeyCount = int(*g.KeyCount)
	}
	if g.ValueBlob != nil {
		blob, err := base64.StdEncoding.DecodeString(*g.ValueBlob)
		if err != nil {
			return nil, fmt.Errorf("source.generator.valueBlob: %w", err)
		}
		cfg.ValueBlob = blob
	}
	b.says("generator")
	return generatorsource.New(ctx, cfg)
}

// router is the output of a vertex that writes to buffers.
func (b *builder) router(edges []EdgePlan, m *metrics.Vertex) *forward.Router {
	r := &forward.Router{Events: m}
	if n, ok := v1alpha1.BlockBytes(b.env.Meta); ok {
		r.BlockBytes = int(n)
	}
	for _, e := range edges {
		r.Edges = append(r.Edges, forward.Edge{To: e.To, Condition: e.Condition, Partitions: b.env.Writers(e.To), ByKey: e.ByKey, Discard: e.Discard, Back: e.Back})
	}
	return r
}

// leadsTo reports whether there is a way from one vertex to another: an edge to such a vertex closes a cycle.
func leadsTo(p *v1alpha1.PipelineSpec, from, to string) bool {
	seen := map[string]bool{} // so that a cycle elsewhere ends the walk
	var walk func(string) bool
	walk = func(at string) bool {
		if at == to {
			return true
		}
		if seen[at] {
			return false
		}
		seen[at] = true
		for i := range p.Edges {
			if p.Edges[i].From == at && walk(p.Edges[i].To) {
				return true
			}
		}
		return false
	}
	return walk(from)
}

// delivery is the output of a sink. Its Events are set by the caller: the loops of a vertex share the sinks and count apart.
func (b *builder) delivery(ctx context.Context, s *v1alpha1.Sink) (*forward.Delivery, error) {
	d := &forward.Delivery{Retry: retryStrategy(&s.RetryStrategy), Logger: b.v.logger}
	var err error
	if d.Primary, err = b.writer(ctx, function.UDSink, &s.AbstractSink); err != nil {
		return nil, err
	}
	if s.Fallback != nil {
		if d.Fallback, err = b.writer(ctx, function.FallbackSink, s.Fallback); err != nil {
			return nil, err
		}
	}
	if s.OnSuccess != nil {
		if d.OnSuccess, err = b.writer(ctx, function.OnSuccessSink, s.OnSuccess); err != nil {
			return nil, err
		}
	}
	return d, nil
}

// writer opens a sink that Close closes.
func (b *builder) writer(ctx context.Context, role function.Role, s *v1alpha1.AbstractSink) (sink.Writer, error) {
	w, err := b.openWriter(ctx, role, s)
	if err == nil {
		b.v.closers.add(w.Close)
		b.v.sinks = append(b.v.sinks, w)
	}
	return w, err
}

// openWriter opens a sink with the driver of its kind. The role is part of its name at the place that it writes to: see writerName.
func (b *builder) openWriter(ctx context.Context, role function.Role, s *v1alpha1.AbstractSink) (sink.Writer, error) {
	for _, d := range sinkDrivers {
		if d.set(s) && d.open != nil {
			return d.open(b, ctx, role, s)
		}
	}
	return nil, errors.New("its sink cannot be run by this version")
}

// connect connects to a NATS server of the manifest, for as long as the vertex lives.
func (b *builder) connect(ctx context.Context, url string, tls *v1alpha1.TLS, auth *v1alpha1.NatsAuth) (*natslink.Link, error) {
	if url == "" {
		url = nats.DefaultURL
	}
	opts, err := b.env.natsOptions(tls, auth)
	if err != nil {
		return nil, err
	}
	link, err := natslink.Dial(ctx, url, b.v.logger, opts...)
	if err != nil {
		return nil, err
	}
	b.v.closers.add(func(context.Context) error { link.Conn.Close(); return nil })
	return link, nil
}

// openJetStream opens a source or sink once the server can be asked, for at most a minute. What is wrong with the server is said at once.
func openJetStream[T any](ctx context.Context, b *builder, link *natslink.Link, what string, open func(context.Context) (T, error)) (none T, err error) {
	if err := link.CheckJetStream(ctx, b.v.logger, 0); err != nil {
		return none, err
	}
	// A stream without a leader is waited for: an election takes seconds. One that does not exist is an error at once.
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	return natslink.Retry(ctx, link, b.v.logger, what, open)
}
