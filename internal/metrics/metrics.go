// Package metrics are the Prometheus metrics of the data plane: Numaflow's names and labels, so that dashboards keep working, and ours, which begin with
// levada_.
package metrics

import (
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/levada-io/levada/internal/dataplane/deadletter"
	"github.com/levada-io/levada/internal/dataplane/function"
	"github.com/levada-io/levada/internal/flow"
)

// Set is all metrics of a process.
type Set struct {
	Registry *prometheus.Registry

	counters   map[string]*prometheus.CounterVec
	histograms map[string]*prometheus.HistogramVec
	gauges     map[string]*prometheus.GaugeVec

	mu         sync.Mutex
	namespaces map[string]*Set
	pending    map[pendingKey]*average
}

// Labels of Numaflow's series.
var (
	pipelineLabels = []string{"pipeline", "vertex", "vertex_type", "replica"}
	withPartition  = append(pipelineLabels[:4:4], "partition_name")
	withReason     = append(withPartition[:5:5], "reason")
	monoLabels     = []string{"mvtx_name", "mvtx_replica"}
	bufferLabels   = []string{"buffer"}
)

// micros are the buckets of Numaflow's histograms, in microseconds.
var micros = prometheus.ExponentialBucketsRange(100, 60e6*15, 10)

// New returns a set with all metrics registered.
func New(version string) *Set {
	s := &Set{Registry: prometheus.NewRegistry()}
	s.Registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	build := prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "build_info", Help: "Always 1."}, []string{"component", "component_name", "version", "platform"})
	s.Registry.MustRegister(build)
	build.WithLabelValues("levada", "levada", version, runtime.GOOS+"/"+runtime.GOARCH).Set(1)
	return s
}

// Namespace returns the metrics of the pipelines of a namespace, which is a label of all of them. Numaflow's series get it when Prometheus scrapes their pods.
func (s *Set) Namespace(namespace string) *Set {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.namespaces == nil {
		s.namespaces = map[string]*Set{}
	}
	if s.namespaces[namespace] == nil {
		s.namespaces[namespace] = s.under(namespace)
	}
	return s.namespaces[namespace]
}

func (s *Set) under(namespace string) *Set {
	n := &Set{
		Registry: s.Registry, counters: map[string]*prometheus.CounterVec{}, histograms: map[string]*prometheus.HistogramVec{}, gauges: map[string]*prometheus.GaugeVec{},
	}
	registerer := prometheus.WrapRegistererWith(prometheus.Labels{"namespace": namespace}, s.Registry)
	for _, m := range catalogue {
		switch m.kind {
		case counter:
			v := prometheus.NewCounterVec(prometheus.CounterOpts{Name: m.name, Help: m.help}, m.labels)
			n.counters[m.name] = v
			registerer.MustRegister(v)
		case gauge:
			v := prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: m.name, Help: m.help}, m.labels)
			n.gauges[m.name] = v
			registerer.MustRegister(v)
		case histogram:
			buckets := m.buckets
			if buckets == nil {
				buckets = micros
			}
			v := prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: m.name, Help: m.help, Buckets: buckets}, m.labels)
			n.histograms[m.name] = v
			registerer.MustRegister(v)
		}
	}
	return n
}

// VertexLabels name a vertex, or a MonoVertex when Mono is set.
type VertexLabels struct {
	Pipeline, Vertex, Type string
	Mono                   bool
}

// Vertex are the metrics of one vertex. It implements the events of package forward.
type Vertex struct {
	set  *Set
	l    VertexLabels
	base []string

	read, readBytes, ack, nack     *lazyCounter
	dataRead, dataReadBytes        *lazyCounter
	readTime, ackTime, processTime *lazyObserver
	latency                        *lazyObserver
	stages                         map[string]stageMetrics
	sinkWrite, fallback, onSuccess sinkMetrics

	// What the live view shows.
	In, Out, Errors, Dropped, DeadLetters atomic.Int64
	LatencyNanos, Delivereds              atomic.Int64
	Duplicates, AckedMessages             atomic.Int64
}

type stageMetrics struct {
	read, write, failed, dropped *lazyCounter
	took                         *lazyObserver
}

type sinkMetrics struct {
	write, bytes, failed *lazyCounter
	took                 *lazyObserver
}

// Vertex returns the metrics of a vertex whose input is called input: a partition, or the vertex itself for a source. transformer names the stage that is one.
func (s *Set) Vertex(l VertexLabels, input, transformer string) *Vertex {
	v := &Vertex{set: s, l: l, stages: map[string]stageMetrics{}}
	v.base = []string{l.Pipeline, l.Vertex, l.Type, "0"}
	if l.Mono {
		m := []string{l.Vertex, "0"}
		v.read, v.readBytes, v.ack, v.nack = s.c("monovtx_read_total", m...), s.c("monovtx_read_bytes_total", m...), s.c("monovtx_ack_total", m...), s.c("monovtx_nack_total", m...)
		v.readTime, v.ackTime, v.processTime = s.h("monovtx_read_time", m...), s.h("monovtx_ack_time", m...), s.h("monovtx_processing_time", m...)
		v.stages[transformer] = stageMetrics{dropped: s.c("monovtx_transformer_dropped_total", m...), took: s.h("monovtx_transformer_time", m...)}
		v.stages[""] = stageMetrics{failed: s.c("monovtx_udf_error_total", m...), dropped: s.c("monovtx_udf_drop_total", m...), took: s.h("monovtx_udf_time", m...)}
		v.sinkWrite = sinkMetrics{write: s.c("monovtx_sink_write_total", m...), failed: s.c("monovtx_sink_write_errors_total", m...), took: s.h("monovtx_sink_time", m...)}
		v.fallback = sinkMetrics{write: s.c("monovtx_fallback_sink_write_total", m...), took: s.h("monovtx_fallback_sink_time", m...)}
		v.onSuccess = sinkMetrics{write: s.c("monovtx_onsuccess_sink_write_total", m...), took: s.h("monovtx_onsuccess_sink_time", m...)}
	} else {
		p := append(v.base[:4:4], input)
		v.read, v.readBytes, v.ack, v.nack = s.c("forwarder_read_total", p...), s.c("forwarder_read_bytes_total", p...), s.c("forwarder_ack_total", p...), s.c("forwarder_nack_total", p...)
		v.dataRead, v.dataReadBytes = s.c("forwarder_data_read_total", p...), s.c("forwarder_data_read_bytes_total", p...)
		v.readTime, v.ackTime, v.processTime = s.h("forwarder_read_processing_time", p...), s.h("forwarder_ack_processing_time", p...), s.h("forwarder_processing_time", p...)
		v.stages[transformer] = stageMetrics{
			read: s.c("source_forwarder_transformer_read_total", p...), write: s.c("source_forwarder_transformer_write_total", p...), failed: s.c("source_forwarder_transformer_error_total", p...),
			dropped: s.c("source_forwarder_transformer_drop_total", p...), took: s.h("source_forwarder_transformer_processing_time", p...),
		}
		v.stages[""] = stageMetrics{
			read: s.c("forwarder_udf_read_total", p...), write: s.c("forwarder_udf_write_total", p...), failed: s.c("forwarder_udf_error_total", p...),
			dropped: s.c("forwarder_ud_drop_total", p...), took: s.h("forwarder_udf_processing_time", p...),
		}
		v.sinkWrite = sinkMetrics{write: s.c("forwarder_write_total", p...), bytes: s.c("forwarder_write_bytes_total", p...), failed: s.c("forwarder_write_error_total", p...), took: s.h("forwarder_write_processing_time", p...)}
		v.fallback = sinkMetrics{write: s.c("forwarder_fbsink_write_total", p...), bytes: s.c("forwarder_fbsink_write_bytes_total", p...), failed: s.c("forwarder_fbsink_write_errors_total", p...), took: s.h("forwarder_fbsink_write_processing_time", p...)}
		v.onSuccess = sinkMetrics{write: s.c("forwarder_onsuccess_sink_write_total", p...), bytes: s.c("forwarder_onsuccess_sink_write_bytes_total", p...), failed: s.c("forwarder_onsuccess_sink_write_errors_total", p...), took: s.h("forwarder_onsuccess_sink_write_processing_time", p...)}
	}
	v.latency = s.h("levada_end_to_end_latency_seconds", l.Pipeline, l.Vertex)
	return v
}

// Read implements forward.Events.
func (v *Vertex) Read(messages, bytes int, took time.Duration) {
	add(v.read, messages)
	add(v.dataRead, messages)
	add(v.readBytes, bytes)
	add(v.dataReadBytes, bytes)
	observe(v.readTime, took)
	v.In.Add(int64(messages))
}

// Applied implements forward.Events.
func (v *Vertex) Applied(stage string, in, out, dropped, failed int, took time.Duration) {
	m, ok := v.stages[stage]
	if !ok {
		m = v.stages[""]
	}
	add(m.read, in)
	add(m.write, out)
	add(m.dropped, dropped)
	add(m.failed, failed)
	observe(m.took, took)
	v.Errors.Add(int64(failed))
	v.Dropped.Add(int64(dropped))
}

// Acked implements forward.Events.
func (v *Vertex) Acked(messages int, took time.Duration) {
	add(v.ack, messages)
	v.AckedMessages.Add(int64(messages))
	observe(v.ackTime, took)
}

// Nacked implements forward.Events.
func (v *Vertex) Nacked(messages int) { add(v.nack, messages) }

// Processed implements forward.Events.
func (v *Vertex) Processed(took time.Duration) { observe(v.processTime, took) }

// Dead implements forward.Events.
func (v *Vertex) Dead(messages int, reason deadletter.Reason) {
	v.set.c("levada_dead_letters_total", v.l.Pipeline, v.l.Vertex, string(reason)).Add(float64(messages))
	v.DeadLetters.Add(int64(messages))
}

// Wrote implements forward.RouterEvents.
func (v *Vertex) Wrote(partition string, messages, bytes int) {
	p := append(v.base[:4:4], partition)
	v.set.c("forwarder_write_total", p...).Add(float64(messages))
	v.set.c("forwarder_write_bytes_total", p...).Add(float64(bytes))
	v.Out.Add(int64(messages))
}

// DroppedAt implements the dropping of forward.RouterEvents; see Router.
func (v *Vertex) DroppedAt(partition string, messages, bytes int, reason string) {
	v.Dropped.Add(int64(messages))
	if v.l.Mono {
		v.set.c("monovtx_dropped_total", v.l.Vertex, "0").Add(float64(messages))
		return
	}
	p := append(v.base[:4:4], partition, reason)
	v.set.c("forwarder_drop_total", p...).Add(float64(messages))
	v.set.c("forwarder_drop_bytes_total", p...).Add(float64(bytes))
}

// Delivered implements forward.DeliveryEvents.
func (v *Vertex) Delivered(role function.Role, messages []flow.Message, took time.Duration) {
	m := v.role(role)
	bytes, now := 0, time.Now().UnixNano()
	var sum int64
	for i := range messages {
		bytes += len(messages[i].Value)
		late := now - messages[i].Ingested
		sum += late
		v.latency.get().Observe(float64(late) / 1e9)
	}
	add(m.write, len(messages))
	add(m.bytes, bytes)
	observe(m.took, took)
	v.Out.Add(int64(len(messages)))
	if role != function.OnSuccessSink { // that is one more copy of a message that is delivered
		v.LatencyNanos.Add(sum)
		v.Delivereds.Add(int64(len(messages)))
	}
}

// Failed implements forward.DeliveryEvents.
func (v *Vertex) Failed(role function.Role, messages int) {
	add(v.role(role).failed, messages)
	v.Errors.Add(int64(messages))
}

// SinkDuplicates is called for messages that a sink's store had already when this process wrote them for the first time.
func (v *Vertex) SinkDuplicates(role function.Role, messages int) {
	v.Duplicates.Add(int64(messages))
	v.set.c("levada_sink_duplicates_total", v.l.Pipeline, v.l.Vertex, string(role)).Add(float64(messages))
}

// HeaderDropped is called for a header that the source dropped because it is not UTF-8.
func (v *Vertex) HeaderDropped() {
	v.set.c("levada_source_headers_dropped_total", v.l.Pipeline, v.l.Vertex).Inc()
}

func (v *Vertex) role(role function.Role) *sinkMetrics {
	switch role {
	case function.FallbackSink:
		return &v.fallback
	case function.OnSuccessSink:
		return &v.onSuccess
	}
	return &v.sinkWrite
}

// ReadError is called when the source could not be read.
func (v *Vertex) ReadError(error) {
	if !v.l.Mono {
		v.set.c("forwarder_read_error_total", append(v.base[:4:4], v.l.Vertex)...).Inc()
	}
	v.Errors.Add(1)
}

// Died is called when a process of user code ended that should not have.
func (v *Vertex) Died(role function.Role, reason string) {
	v.set.c("levada_function_deaths_total", v.l.Pipeline, v.l.Vertex, string(role), reason).Inc()
	critical := map[function.Role]string{function.UDSource: "source_runtime_error", function.Transformer: "source_transformer_runtime_error", function.UDF: "map_runtime_error"}[role]
	if critical == "" {
		critical = "sink_runtime_error"
	}
	if v.l.Mono {
		v.set.c("monovtx_critical_error_total", v.l.Vertex, "0", critical).Inc()
	} else {
		v.set.c("forwarder_critical_error_total", append(v.base[:4:4], critical)...).Inc()
	}
	v.Errors.Add(1)
}

// BatchSize says how many messages make a batch.
func (v *Vertex) BatchSize(n int) {
	if v.l.Mono {
		v.set.gauges["monovtx_read_batch_size"].WithLabelValues(v.l.Vertex, "0").Set(float64(n))
		return
	}
	v.set.gauges["forwarder_read_batch_size"].WithLabelValues(v.base...).Set(float64(n))
}

// Router is the vertex as forward.RouterEvents.
func (v *Vertex) Router() RouterView { return RouterView{v} }

// RouterView is a Vertex whose Dropped is a method.
type RouterView struct{ *Vertex }

// Dropped implements forward.RouterEvents.
func (r RouterView) Dropped(partition string, messages, bytes int, reason string) {
	r.DroppedAt(partition, messages, bytes, reason)
}

// Loop is the vertex as forward.Events and forward.DeliveryEvents.
func (v *Vertex) Loop() LoopView { return LoopView{v} }

// sinkRetries is Numaflow's reason for messages that a sink's retry strategy gives up.
const sinkRetries = "Retries exhausted in the Sink"

// LoopView is a Vertex whose Dropped is a method.
type LoopView struct{ *Vertex }

// Dropped implements forward.Events and forward.DeliveryEvents.
func (l LoopView) Dropped(messages, bytes int, reason string) {
	l.DroppedAt("", messages, bytes, reason)
	if l.l.Mono && reason == sinkRetries {
		l.set.c("monovtx_sink_dropped_total", l.l.Vertex, "0").Add(float64(messages))
	}
}

// Buffer are the metrics of one partition. It implements buffer.Metrics.
type Buffer struct {
	set                            *Set
	name                           string
	writeTime, ackTime             *lazyObserver
	full, corrupt, gap, duplicates *lazyCounter
}

// Buffer returns the metrics of a partition.
func (s *Set) Buffer(name string) *Buffer {
	return &Buffer{
		set: s, name: name, writeTime: s.h("isb_jetstream_write_time_total", name), ackTime: s.h("isb_jetstream_ack_time_total", name),
		full: s.c("isb_jetstream_isFull_total", name), corrupt: s.c("levada_buffer_corrupt_total", name), gap: s.c("levada_buffer_gap_total", name),
		duplicates: s.c("levada_buffer_duplicates_total", name),
	}
}

// Wrote implements buffer.Metrics.
func (b *Buffer) Wrote(_ int, took time.Duration) { observe(b.writeTime, took) }

// WriteFailed implements buffer.Metrics.
func (b *Buffer) WriteFailed(error) {
	b.set.c("isb_jetstream_write_error_total", b.name, "retried").Inc()
}

// Full implements buffer.Metrics.
func (b *Buffer) Full() { b.full.Inc() }

// Acked implements buffer.Metrics.
func (b *Buffer) Acked(took time.Duration) { observe(b.ackTime, took) }

// Corrupt implements buffer.Metrics.
func (b *Buffer) Corrupt() { b.corrupt.Inc() }

// Gap implements buffer.Metrics.
func (b *Buffer) Gap(blocks int) { b.gap.Add(float64(blocks)) }

// LostMessages counts messages that were lost with the memory of a broker.
func (b *Buffer) LostMessages(n int) {
	if n > 0 {
		b.set.c("levada_buffer_lost_messages_total", b.name).Add(float64(n))
	}
}

// Duplicates implements buffer.Metrics.
func (b *Buffer) Duplicates(messages int) { b.duplicates.Add(float64(messages)) }

// Usage says how full the partition is: messages that are not acknowledged, those of them that are being processed, and the nominal length.
func (b *Buffer) Usage(pending, inFlight, length int) {
	b.set.gauges["isb_jetstream_buffer_ack_pending"].WithLabelValues(b.name).Set(float64(inFlight))
	b.set.gauges["isb_jetstream_buffer_pending"].WithLabelValues(b.name).Set(float64(pending))
	b.set.gauges["isb_jetstream_buffer_soft_usage"].WithLabelValues(b.name).Set(float64(pending) / float64(length))
	b.set.gauges["isb_jetstream_buffer_solid_usage"].WithLabelValues(b.name).Set(float64(pending) / float64(length))
}
