package vertex

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/levada-io/levada/api/v1alpha1"
	"github.com/levada-io/levada/internal/dataplane/buffer"
	"github.com/levada-io/levada/internal/dataplane/forward"
	"github.com/levada-io/levada/internal/dataplane/function"
	"github.com/levada-io/levada/internal/dataplane/sink"
	"github.com/levada-io/levada/internal/dataplane/sink/filesink"
	"github.com/levada-io/levada/internal/dataplane/source"
	"github.com/levada-io/levada/internal/metrics"
)

// Vertex is a vertex that is ready to run. What it is made of does not change once Build or New has returned.
//
// Its life: Build, RunFunctions beside Run, Close. Run is called once. Counts, Stats and Ended may be called at any time, concurrently.
type Vertex struct {
	Name string
	Kind v1alpha1.VertexType
	// Runs says in a few words what it does, for people: "file access.log", "./my-function (pid 123)".
	Runs string
	// Finite says that its source has an end.
	Finite bool

	env *Env
	// loops has one loop for a source, and one for each partition or shard otherwise; lanes has the metrics of each.
	// Invariant: the two have the same length, all loops share the functions and the sinks, and those of the shards of a partition follow each other and share its metrics.
	loops []*forward.Loop
	lanes []*metrics.Vertex
	// readers and partitions are the inputs of the loops, in the same order. Invariant: empty for a source.
	readers    []*forward.BufferInput
	partitions []*buffer.Reader
	// shared has the loops of a vertex whose partitions come and go: there are none of the above then.
	shared sharedLoops
	// source is nil for a vertex that reads a buffer. Only Pending is called on it here: its loop reads it.
	source source.Reader
	// sinks are the primary one and, where the manifest has them, the fallback and the on-success sink.
	sinks []sink.Writer
	// functions are processes that have not been started before RunFunctions. A builtin is none.
	functions []*function.Function
	// files are those among sinks that Reopen is for.
	files []*filesink.Writer
	// closers close sources, sinks and connections. Functions and partitions are not among them: their owners end them.
	closers closers
	// ended is set when Run returns, and only if every loop met the end of its input: see Ended.
	ended  atomic.Bool
	logger *slog.Logger
}

// KindMono is the kind of the only vertex of a MonoVertex.
const KindMono v1alpha1.VertexType = "MonoVertex"

// failed is the error of a vertex that cannot be built. What was opened is closed, since nobody else knows of it.
func (v *Vertex) failed(ctx context.Context, err error) error {
	return errors.Join(fmt.Errorf("vertex %s: %w", v.Name, err), v.Close(ctx))
}

// New returns a vertex of loops that are built already, each with its metrics. Build makes one from a plan.
func New(name string, kind v1alpha1.VertexType, loops []*forward.Loop, m []*metrics.Vertex) *Vertex {
	v := &Vertex{Name: name, Kind: kind}
	for i := range loops {
		v.add(loops[i], m[i])
	}
	return v
}

// add adds a loop. A loop that reads a buffer brings the partition along.
func (v *Vertex) add(l *forward.Loop, m *metrics.Vertex) {
	v.loops, v.lanes = append(v.loops, l), append(v.lanes, m)
	if in, ok := l.Input.(*forward.BufferInput); ok {
		v.readers, v.partitions = append(v.readers, in), append(v.partitions, in.Partition)
	}
}

// StopWithin sets how long functions may take to end.
func (v *Vertex) StopWithin(d time.Duration) {
	for _, f := range v.functions {
		f.StopWithin(d)
	}
}

// Functions are the processes of user code, for the status.
func (v *Vertex) Functions() []*function.Function { return v.functions }

// Ready waits until every function is.
func (v *Vertex) Ready(ctx context.Context) error {
	for _, f := range v.functions {
		if err := f.Ready(ctx); err != nil {
			return fmt.Errorf("vertex %s: %w", v.Name, err)
		}
	}
	return nil
}

// Run moves messages until reading ends or the source does, then finishes what is in flight while ctx lives. Functions are not part of it: see RunFunctions.
func (v *Vertex) Run(ctx, reading context.Context) error {
	loops, ctx := errgroup.WithContext(ctx)
	// When one loop fails the others stop reading, and finish what they have.
	reading, stop := context.WithCancel(reading)
	defer stop()
	var ended atomic.Int64 // loops that met the end of their input
	ahead, cancelAhead := context.WithCancel(reading)
	defer cancelAhead()
	// Readers read ahead until all loops have returned: a loop that ends early must not end those of other partitions.
	for _, r := range v.readers {
		loops.Go(func() error { r.Run(ahead); return nil })
	}
	remaining := make(chan struct{}, len(v.loops)) // one for each loop that has returned
	for _, l := range v.loops {
		loops.Go(func() error {
			defer func() { remaining <- struct{}{} }()
			err := l.Run(ctx, reading)
			if err != nil {
				stop()
				return fmt.Errorf("vertex %s: %w", v.Name, err)
			}
			// A loop that was stopped may have left messages for the next start.
			if in, ok := l.Input.(interface{ Ended() bool }); ok && in.Ended() && reading.Err() == nil && ctx.Err() == nil {
				ended.Add(1)
			}
			return nil
		})
	}
	loops.Go(func() error {
		for range v.loops {
			<-remaining
		}
		cancelAhead()
		return nil
	})
	err := loops.Wait()
	v.ended.Store(err == nil && ended.Load() == int64(len(v.loops)))
	return err
}

// Ended reports whether the vertex has ended by itself: Run has returned, each loop had met the end of its input, and all that came of it is durable and
// acknowledged. Such a vertex writes nothing more.
func (v *Vertex) Ended() bool { return v.ended.Load() }

// EndInput tells the loops that their input has ended. See forward.BufferInput.
func (v *Vertex) EndInput() {
	for _, r := range v.readers {
		r.EndInput()
	}
}

// RunFunctions keeps the functions running until ctx ends. An error means that one cannot be started at all.
func (v *Vertex) RunFunctions(ctx context.Context) error {
	functions, ctx := errgroup.WithContext(ctx)
	for _, f := range v.functions {
		functions.Go(func() error { return f.Run(ctx) })
	}
	return functions.Wait()
}

// Close lets go of sources and sinks, having made durable what they know.
func (v *Vertex) Close(ctx context.Context) error { return v.closers.close(ctx) }

// Stats is what the live view shows of a vertex.
type Stats struct {
	Name, Kind, Runs string
	metrics.Counts
	// Duplicates are messages that were known already and dropped: in the buffer, or by the sink (SinkDuplicates).
	Duplicates int64
	Pending    int64 // -1: unknown
	// Consumed are messages that a processor keeps, of a window perhaps. They are not among those that are pending, nor acknowledged.
	Consumed int64
}

// Stats are the counters since the start, and what is pending.
func (v *Vertex) Stats(ctx context.Context) Stats {
	s := v.Counts()
	if v.source != nil {
		n, err := v.source.Pending(ctx)
		if err != nil {
			n = -1 // the place that it reads does not answer; its loop logs that
		}
		s.Pending = n
		v.lanes[0].Pending(v.Name, n)
		return s
	}
	pending := int64(0)
	for i, p := range v.partitions {
		if i > 0 && v.lanes[i] != v.lanes[i-1] {
			pending = 0
		}
		pending += int64(p.Pending())
		v.lanes[i].Pending(p.Name(), pending)
	}
	v.shared.reportAll()
	return s
}

// Counts are the counters since the start, and what is pending in buffers. Nothing outside of the process is asked.
func (v *Vertex) Counts() Stats {
	s := Stats{Name: v.Name, Kind: string(v.Kind), Runs: v.Runs}
	for i, m := range v.lanes {
		if i == 0 || m != v.lanes[i-1] {
			s.Counts.Add(m.Counts())
		}
	}
	v.shared.count(&s)
	for _, p := range v.partitions {
		s.Pending += int64(p.Pending())
		s.Consumed += int64(p.Consumed())
		s.Duplicates += p.Duplicates()
	}
	for _, w := range v.sinks { // those that keep what they have seen beside their data
		if d, ok := w.(interface{ Duplicates() int64 }); ok {
			s.SinkDuplicates += d.Duplicates()
		}
	}
	s.Duplicates += s.SinkDuplicates
	s.Delivered -= min(s.SinkDuplicates, s.Delivered) // the sink took them, and stored nothing
	return s
}

// condition is that of an edge or of a bypass; nil, for all messages, if it names no tags. Without an operator one of the tags is enough.
func condition(c *v1alpha1.ForwardConditions) *forward.Condition {
	if c == nil || c.Tags == nil {
		return nil
	}
	op := forward.Or
	if c.Tags.Operator != nil {
		op = forward.Operator(*c.Tags.Operator)
	}
	return &forward.Condition{Operator: op, Values: c.Tags.Values}
}

// retryStrategy is that of the manifest; zero fields mean the defaults of package forward.
func retryStrategy(r *v1alpha1.RetryStrategy) (s forward.RetryStrategy) {
	if r == nil {
		return s
	}
	if r.OnFailure != nil {
		s.OnFailure = forward.OnFailure(*r.OnFailure)
	}
	b := r.BackOff
	if b == nil {
		return s
	}
	if b.Steps != nil {
		s.Steps = int(*b.Steps)
	}
	if b.Factor != nil {
		s.Factor = *b.Factor
	}
	if b.Jitter != nil {
		s.Jitter = *b.Jitter
	}
	s.Interval, s.Cap = duration(b.Interval), duration(b.Cap)
	return s
}

// duration is 0 for a field that is not set.
func duration(d *metav1.Duration) time.Duration {
	if d == nil {
		return 0
	}
	return d.Duration
}
