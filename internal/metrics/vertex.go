package metrics

import (
	"strconv"
	"time"

	"github.com/levada-io/levada/internal/dataplane/deadletter"
	"github.com/levada-io/levada/internal/dataplane/forward"
	"github.com/levada-io/levada/internal/dataplane/function"
	"github.com/levada-io/levada/internal/flow"
)

// VertexLabels name a vertex, or a MonoVertex when Mono is set.
type VertexLabels struct {
	Pipeline, Vertex, Type string
	Mono                   bool
	// Replica is the number of this process among those that run the vertex, from 0.
	Replica int
}

// base are the labels that every series of the vertex begins with.
func (l VertexLabels) base() []string {
	if l.Mono {
		return []string{l.Vertex, strconv.Itoa(l.Replica)}
	}
	return []string{l.Pipeline, l.Vertex, l.Type, strconv.Itoa(l.Replica)}
}

// at are the labels of a series about a partition. A MonoVertex has none.
func (l VertexLabels) at(partition string) []string {
	if l.Mono {
		return l.base()
	}
	return append(l.base(), partition)
}

// Vertex are the metrics of one input of a vertex. It observes the loop that reads the input, and counts what the live view shows.
//
// Invariants: names is ofMono exactly if labels.Mono; a series that the kind of vertex does not have is nil; stages has the transformer under its name and the
// function under "".
type Vertex struct {
	set    *Set
	labels VertexLabels
	names  *family
	counts counts

	read, readBytes, dataRead, dataReadBytes *lazyCounter
	ack, nack                                *lazyCounter
	readTime, ackTime, processTime, latency  *lazyObserver
	stages                                   map[string]stageSeries
	sink, fallback, onSuccess                sinkSeries
}

var _ forward.Observer = (*Vertex)(nil)

type stageSeries struct {
	read, write, failed, dropped *lazyCounter
	took                         *lazyObserver
}

type sinkSeries struct {
	write, bytes, failed *lazyCounter
	took                 *lazyObserver
}

// Vertex returns the metrics of a vertex whose input is called input: a partition, or the vertex itself for a source. transformer is the name of the stage that
// is the transformer; empty if there is none.
func (s *Set) Vertex(l VertexLabels, input, transformer string) *Vertex {
	names := &ofPipeline
	if l.Mono {
		names = &ofMono
	}
	at := l.at(input)
	stage := func(f stageFamily) stageSeries {
		return stageSeries{s.c(f.read, at...), s.c(f.write, at...), s.c(f.failed, at...), s.c(f.dropped, at...), s.h(f.took, at...)}
	}
	sink := func(f sinkFamily) sinkSeries {
		return sinkSeries{s.c(f.write, at...), s.c(f.bytes, at...), s.c(f.failed, at...), s.h(f.took, at...)}
	}
	return &Vertex{
		set: s, labels: l, names: names,
		read: s.c(names.read, at...), readBytes: s.c(names.readBytes, at...), dataRead: s.c(names.dataRead, at...), dataReadBytes: s.c(names.dataReadBytes, at...),
		ack: s.c(names.ack, at...), nack: s.c(names.nack, at...),
		readTime: s.h(names.readTime, at...), ackTime: s.h(names.ackTime, at...), processTime: s.h(names.processTime, at...),
		latency: s.h("levada_end_to_end_latency_seconds", l.Pipeline, l.Vertex),
		// A vertex without a transformer has "" for it, and the function's series win.
		stages: stages(transformer, stage(names.transformer), stage(names.function)),
		sink:   sink(names.sink), fallback: sink(names.fallback), onSuccess: sink(names.onSuccess),
	}
}

func stages(transformer string, transforms, function stageSeries) map[string]stageSeries {
	all := map[string]stageSeries{transformer: transforms}
	all[""] = function
	return all
}

// own returns a counter of Levada's own, whose labels are the pipeline, the vertex and more.
func (v *Vertex) own(name string, more ...string) *lazyCounter {
	return v.set.c(name, append([]string{v.labels.Pipeline, v.labels.Vertex}, more...)...)
}

// Read implements forward.Observer.
func (v *Vertex) Read(messages, bytes int, took time.Duration) {
	v.read.add(messages)
	v.dataRead.add(messages)
	v.readBytes.add(bytes)
	v.dataReadBytes.add(bytes)
	v.readTime.observe(took)
	v.counts.in.Add(int64(messages))
}

// Applied implements forward.Observer.
func (v *Vertex) Applied(stage string, in, out, dropped, failed int, took time.Duration) {
	s, ok := v.stages[stage]
	if !ok {
		s = v.stages[""]
	}
	s.read.add(in)
	s.write.add(out)
	s.dropped.add(dropped)
	s.failed.add(failed)
	s.took.observe(took)
	v.counts.errors.Add(int64(failed))
	v.counts.dropped.Add(int64(dropped))
}

// Acked implements forward.Observer.
func (v *Vertex) Acked(messages int, took time.Duration) {
	v.ack.add(messages)
	v.counts.acked.Add(int64(messages))
	v.ackTime.observe(took)
}

// Nacked implements forward.Observer.
func (v *Vertex) Nacked(messages int) { v.nack.add(messages) }

// Processed implements forward.Observer.
func (v *Vertex) Processed(took time.Duration) { v.processTime.observe(took) }

// DeadLettered implements forward.Observer.
func (v *Vertex) DeadLettered(messages int, reason deadletter.Reason) {
	v.own("levada_dead_letters_total", string(reason)).add(messages)
	v.counts.deadLetters.Add(int64(messages))
}

// Wrote implements forward.Observer. A MonoVertex writes to no buffer.
func (v *Vertex) Wrote(partition string, messages, bytes int) {
	at := v.labels.at(partition)
	v.set.c(v.names.sink.write, at...).add(messages)
	v.set.c(v.names.sink.bytes, at...).add(bytes)
	v.counts.out.Add(int64(messages))
}

// Dropped implements forward.Observer.
func (v *Vertex) Dropped(partition string, messages, bytes int, reason string) {
	v.counts.dropped.Add(int64(messages))
	at := v.labels.at(partition)
	if !v.labels.Mono {
		at = append(at, reason)
	}
	v.set.c(v.names.dropped, at...).add(messages)
	v.set.c(v.names.droppedBytes, at...).add(bytes)
	if reason == forward.SinkRetriesExhausted {
		v.set.c(v.names.droppedBySink, at...).add(messages)
	}
}

// Delivered implements forward.Observer.
func (v *Vertex) Delivered(role function.Role, messages []flow.Message, took time.Duration) {
	s := v.role(role)
	bytes, now := 0, time.Now().UnixNano()
	var sum int64
	for i := range messages { // one observation for each message: latencies within a block differ by as much as it waited to fill
		bytes += len(messages[i].Value)
		late := now - messages[i].Ingested
		sum += late
		v.latency.get().Observe(float64(late) / 1e9)
	}
	s.write.add(len(messages))
	s.bytes.add(bytes)
	s.took.observe(took)
	v.counts.out.Add(int64(len(messages)))
	if role != function.OnSuccessSink { // a second copy of a message that is delivered
		v.counts.latency.Add(sum)
		v.counts.delivered.Add(int64(len(messages)))
	}
}

// Failed implements forward.Observer.
func (v *Vertex) Failed(role function.Role, messages int) {
	v.role(role).failed.add(messages)
	v.counts.errors.Add(int64(messages))
}

func (v *Vertex) role(role function.Role) *sinkSeries {
	switch role {
	case function.FallbackSink:
		return &v.fallback
	case function.OnSuccessSink:
		return &v.onSuccess
	}
	return &v.sink
}

// SinkDuplicates counts messages that a sink's store already had when this process wrote them for the first time.
func (v *Vertex) SinkDuplicates(role function.Role, messages int) {
	v.counts.sinkDuplicates.Add(int64(messages))
	v.own("levada_sink_duplicates_total", string(role)).add(messages)
}

// HeaderDropped counts a header that the source dropped because it is not UTF-8.
func (v *Vertex) HeaderDropped() { v.own("levada_source_headers_dropped_total").add(1) }

// ReadError counts a failed attempt to read the source.
func (v *Vertex) ReadError(error) {
	v.set.c(v.names.readErrors, v.labels.at(v.labels.Vertex)...).add(1)
	v.counts.errors.Add(1)
}

// Crashed counts a process of user code that exited when it should not have.
func (v *Vertex) Crashed(role function.Role, reason string) {
	v.own("levada_function_crashes_total", string(role), reason).add(1)
	critical := map[function.Role]string{function.UDSource: "source_runtime_error", function.Transformer: "source_transformer_runtime_error", function.UDF: "map_runtime_error"}[role]
	if critical == "" {
		critical = "sink_runtime_error"
	}
	v.set.c(v.names.critical, append(v.labels.base(), critical)...).add(1)
	v.counts.errors.Add(1)
}

// BatchSize sets how many messages a batch has at most.
func (v *Vertex) BatchSize(n int) {
	v.set.gauges[v.names.batchSize].WithLabelValues(v.labels.base()...).Set(float64(n))
}
