package v1alpha1

import (
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// The defaults, which are Numaflow's.
const (
	DefaultISBName               = "default"
	DefaultISBReplicas           = 3
	defaultVolumeSize            = "20Gi"
	defaultReadBatchSize         = 500
	defaultReadTimeout           = time.Second
	defaultBufferMaxLength       = 30000
	defaultBufferUsageLimit      = 80 // percent
	defaultGracePeriodSeconds    = 30
	defaultScaleMin              = 0
	DefaultScaleMax              = 50
	defaultLookbackSeconds       = 120
	defaultZeroReplicaSleep      = 120
	defaultTargetSeconds         = 20
	defaultTargetAvailability    = 50 // percent
	defaultReplicasPerScale      = 2
	defaultCooldownSeconds       = 90
	defaultMaxUnavailable        = "25%"
	DefaultBackoffInterval       = time.Millisecond
	DefaultRateMin               = 1
	defaultRampUp                = time.Second
	defaultRateTTL               = 180 * time.Second
	defaultRatePercentage        = 50
	defaultCoolDown              = 5 * time.Second
	defaultHTTPSPort             = 8443
	defaultMaxUnack              = 1000
	defaultSqsVisibility         = 30 // seconds
	defaultSqsMessages           = 10
	defaultAssumeRoleSeconds     = 3600
	defaultMsgIDHeader           = "X-Numaflow-Id"
	defaultRequestTimeoutSeconds = 120
	defaultJobTTLSeconds         = 30
	defaultJobBackoffLimit       = 20
	defaultGeneratorRPU          = 5
	defaultGeneratorMsgSize      = 8
	defaultGeneratorDuration     = time.Second
	defaultTimezone              = "UTC"
)

// SetDefaults fills in what a manifest leaves out. It can be repeated, and never makes a valid manifest invalid.
//
// The limits of a vertex stay as they are, because what is absent there comes from the pipeline: see EffectiveLimits.
func SetDefaults(m Manifest) {
	switch m := m.(type) {
	case *Pipeline:
		defaultPipeline(&m.Spec)
	case *MonoVertex:
		defaultMonoVertex(&m.Spec)
	case *InterStepBufferService:
		defaultBufferService(&m.Spec)
	case *ServingPipeline:
		defaultServing(&m.Spec.Serving)
		defaultPipeline(&m.Spec.Pipeline)
	case *Vertex:
		defaultVertexObject(&m.Spec)
	}
}

// orDefault sets a pointer that is nil.
func orDefault[V any](p **V, value V) {
	if *p == nil {
		*p = &value
	}
}

func orDuration(p **metav1.Duration, value time.Duration) {
	orDefault(p, metav1.Duration{Duration: value})
}

func orValue[V comparable](p *V, value V) {
	var zero V
	if *p == zero {
		*p = value
	}
}

func defaultPipeline(p *PipelineSpec) {
	orValue(&p.InterStepBufferServiceName, DefaultISBName)
	l := &p.Lifecycle
	orValue(&l.DesiredPhase, DesiredRunning)
	if l.DeletionGracePeriodSeconds == nil {
		l.DeletionGracePeriodSeconds = l.DeleteGracePeriodSeconds
	}
	l.DeleteGracePeriodSeconds = nil // by now it is said in the new spelling
	orDefault(&l.DeletionGracePeriodSeconds, defaultGracePeriodSeconds)
	orDefault(&l.PauseGracePeriodSeconds, defaultGracePeriodSeconds)
	defaultPipelineLimits(p)
	defaultWatermark(&p.Watermark)
	if p.Templates != nil && p.Templates.Job != nil {
		orDefault(&p.Templates.Job.TTLSecondsAfterFinished, defaultJobTTLSeconds)
		orDefault(&p.Templates.Job.BackoffLimit, defaultJobBackoffLimit)
	}
	for i := range p.SideInputs {
		if t := p.SideInputs[i].Trigger; t != nil {
			orDefault(&t.Timezone, defaultTimezone)
		}
	}
	defaultCompression(p.InterStepBuffer)
	for i := range p.Vertices {
		defaultVertex(&p.Vertices[i], p.IsOrdered(&p.Vertices[i]))
	}
	for i := range p.Edges {
		defaultEdge(&p.Edges[i])
	}
}

func defaultPipelineLimits(p *PipelineSpec) {
	orDefault(&p.Limits, PipelineLimits{})
	l := p.Limits
	orDefault(&l.ReadBatchSize, defaultReadBatchSize)
	orDuration(&l.ReadTimeout, defaultReadTimeout)
	orDefault(&l.BufferMaxLength, defaultBufferMaxLength)
	orDefault(&l.BufferUsageLimit, defaultBufferUsageLimit)
	defaultRateLimit(l.RateLimit)
	// Concurrency follows the ReadBatchSize of each vertex, so that it has no default here.
}

func defaultRateLimit(l *RateLimit) {
	if l == nil {
		return
	}
	orDefault(&l.Min, DefaultRateMin)
	orDuration(&l.RampUpDuration, defaultRampUp)
	orDefault(&l.ResumedRampUp, false)
	orDuration(&l.TTL, defaultRateTTL)
	orDefault(&l.Store, RateLimiterStore{InMemoryStore: &InMemoryStore{}})
	if s := l.Store; s.RedisStore == nil {
		orDefault(&s.InMemoryStore, InMemoryStore{})
	} else {
		orValue(&s.RedisStore.Mode, RedisModeSingle)
		orDefault(&s.RedisStore.DB, 0)
	}
	orDefault(&l.Modes, RateLimiterModes{Relaxed: &RelaxedMode{}})
	m := l.Modes
	if m.Scheduled == nil && m.OnlyIfUsed == nil && m.GoBackN == nil {
		orDefault(&m.Relaxed, RelaxedMode{})
	}
	if m.OnlyIfUsed != nil {
		orDefault(&m.OnlyIfUsed.ThresholdPercentage, defaultRatePercentage)
	}
	if g := m.GoBackN; g != nil {
		orDuration(&g.CoolDownPeriod, defaultCoolDown)
		orDefault(&g.RampDownPercentage, defaultRatePercentage)
		orDefault(&g.ThresholdPercentage, defaultRatePercentage)
	}
}

func defaultWatermark(w *Watermark) {
	orDuration(&w.MaxDelay, 0)
	if w.IdleSource != nil {
		orDuration(&w.IdleSource.StepInterval, 0)
	}
}

func defaultCompression(b *InterStepBuffer) {
	if b != nil && b.Compression != nil {
		orValue(&b.Compression.Type, CompressionNone)
		b.Compression.Type = CompressionType(strings.ToLower(string(b.Compression.Type)))
	}
}

func defaultEdge(e *Edge) {
	orDefault(&e.OnFull, OnFullRetryUntilSuccess)
	defaultConditions(e.Conditions)
}

func defaultConditions(c *ForwardConditions) {
	if c != nil && c.Tags != nil {
		orDefault(&c.Tags.Operator, LogicOperatorOr)
	}
}

func defaultVertex(v *AbstractVertex, ordered bool) {
	if v.Source != nil {
		defaultSource(v.Source)
	}
	if v.Sink != nil {
		defaultSink(v.Sink)
	}
	if v.UDF != nil {
		defaultUDF(v.UDF)
	}
	orDefault(&v.Partitions, 1)
	// Reduce and ordered vertices have as many replicas as partitions, whatever their scale says.
	if !ordered && !v.IsReduce() {
		defaultScale(&v.Scale, v.IsSource())
	}
	defaultUpdateStrategy(&v.UpdateStrategy)
}

func defaultScale(s *Scale, source bool) {
	// A default never lies on the wrong side of what the user gave.
	if s.Max == nil {
		high := int32(DefaultScaleMax)
		if s.Min != nil {
			high = max(high, *s.Min)
		}
		s.Max = &high
	}
	orDefault(&s.Min, min(defaultScaleMin, max(0, *s.Max)))
	orDefault(&s.LookbackSeconds, defaultLookbackSeconds)
	if source {
		orDefault(&s.ZeroReplicaSleepSeconds, defaultZeroReplicaSleep)
	} else {
		orDefault(&s.TargetBufferAvailability, defaultTargetAvailability)
	}
	orDefault(&s.TargetProcessingSeconds, defaultTargetSeconds)
	step := uint32(defaultReplicasPerScale)
	if s.ReplicasPerScale != nil && *s.ReplicasPerScale > 0 {
		step = *s.ReplicasPerScale
	}
	orDefault(&s.ReplicasPerScaleUp, step)
	orDefault(&s.ReplicasPerScaleDown, step)
	s.ReplicasPerScale = nil // by now it is said in the new spelling
	orDefault(&s.ScaleUpCooldownSeconds, defaultCooldownSeconds)
	orDefault(&s.ScaleDownCooldownSeconds, defaultCooldownSeconds)
	if s.Cron != nil {
		orValue(&s.Cron.Timezone, defaultTimezone)
	}
}

func defaultUpdateStrategy(u *UpdateStrategy) {
	orValue(&u.Type, RollingUpdate)
	orDefault(&u.RollingUpdate, RollingUpdateStrategy{})
	orDefault(&u.RollingUpdate.MaxUnavailable, intstr.FromString(defaultMaxUnavailable))
}

func defaultSource(s *Source) {
	if g := s.Generator; g != nil {
		orDefault(&g.RPU, defaultGeneratorRPU)
		orDuration(&g.Duration, defaultGeneratorDuration)
		orDefault(&g.MsgSize, defaultGeneratorMsgSize)
		orDuration(&g.Jitter, 0)
	}
	if h := s.HTTP; h != nil {
		defaultPorts(&h.Ports)
	}
	if s.JetStream != nil {
		orValue(&s.JetStream.DeliverPolicy, "all")
	}
	if s.Pulsar != nil {
		orValue(&s.Pulsar.MaxUnack, defaultMaxUnack)
	}
	if q := s.Sqs; q != nil {
		orDefault(&q.VisibilityTimeout, defaultSqsVisibility)
		orDefault(&q.MaxNumberOfMessages, defaultSqsMessages)
		orDefault(&q.WaitTimeSeconds, 0)
		defaultAssumeRole(q.AssumeRole)
	}
	if f := s.File; f != nil {
		defaultRecords(&f.Format, &f.CSVHeader, &f.Delimiter, &f.OnMalformed)
	}
	if f := s.Stdin; f != nil {
		defaultRecords(&f.Format, &f.CSVHeader, &f.Delimiter, &f.OnMalformed)
	}
	if s.Stream != nil {
		orValue(&s.Stream.Payload, StreamPayloadValue)
		orValue(&s.Stream.Partition, s.Stream.Stream)
	}
	if s.Transformer != nil && s.Transformer.RetryStrategy != nil {
		defaultRetry(s.Transformer.RetryStrategy)
	}
}

func defaultRecords(format *FileFormat, header **bool, delimiter *string, malformed *MalformedPolicy) {
	orValue(format, FileFormatLines)
	orValue(malformed, MalformedDeadLetter)
	if *format == FileFormatCSV {
		orDefault(header, true)
		orValue(delimiter, ",")
	}
}

func defaultPorts(p **Ports) {
	orDefault(p, Ports{})
	// Where http has the port already, a default would only make two problems of one.
	if (*p).HTTP == nil || *(*p).HTTP != defaultHTTPSPort {
		orDefault(&(*p).HTTPS, defaultHTTPSPort)
	}
}

func defaultAssumeRole(a *AWSAssumeRole) {
	if a != nil {
		orDefault(&a.DurationSeconds, defaultAssumeRoleSeconds)
	}
}

func defaultSink(s *Sink) {
	for _, a := range []*AbstractSink{&s.AbstractSink, s.Fallback, s.OnSuccess} {
		if a != nil {
			defaultAbstractSink(a)
		}
	}
	if s.UDSink != nil {
		defaultRetry(&s.RetryStrategy)
	}
}

func defaultAbstractSink(s *AbstractSink) {
	if s.Sqs != nil {
		defaultAssumeRole(s.Sqs.AssumeRole)
	}
	if s.File != nil {
		orValue(&s.File.Format, OutputFormatRaw)
	}
	if s.Stdout != nil {
		orValue(&s.Stdout.Format, OutputFormatRaw)
	}
	if s.Stream != nil {
		orValue(&s.Stream.Payload, StreamPayloadValue)
	}
}

func defaultRetry(retry *RetryStrategy) {
	orDefault(&retry.OnFailure, OnFailureRetry)
	orDefault(&retry.BackOff, Backoff{})
	b := retry.BackOff
	orDuration(&b.Interval, DefaultBackoffInterval)
	orDefault(&b.Factor, 1)
	orDefault(&b.Jitter, 0)
}

func defaultUDF(f *UDF) {
	if f.RetryStrategy != nil {
		defaultRetry(f.RetryStrategy)
	}
	if g := f.GroupBy; g != nil {
		orDuration(&g.AllowedLateness, 0)
		if g.Storage != nil && g.Storage.PersistentVolumeClaim != nil {
			SetPersistenceDefaults(g.Storage.PersistentVolumeClaim)
		}
	}
}

// SetPersistenceDefaults fills in access mode and size.
func SetPersistenceDefaults(p *PersistenceStrategy) {
	orDefault(&p.AccessMode, corev1.ReadWriteOnce)
	orDefault(&p.VolumeSize, resource.MustParse(defaultVolumeSize))
}

func defaultMonoVertex(m *MonoVertexSpec) {
	orDefault(&m.Replicas, 1)
	if m.Source != nil {
		defaultSource(m.Source)
	}
	if m.UDF != nil {
		defaultUDF(m.UDF)
	}
	if m.Sink != nil {
		defaultSink(m.Sink)
	}
	orDefault(&m.Limits, MonoVertexLimits{})
	orDefault(&m.Limits.ReadBatchSize, defaultReadBatchSize)
	orDuration(&m.Limits.ReadTimeout, defaultReadTimeout)
	orDefault(&m.Limits.Concurrency, *m.Limits.ReadBatchSize)
	defaultRateLimit(m.Limits.RateLimit)
	defaultScale(&m.Scale, true)
	defaultUpdateStrategy(&m.UpdateStrategy)
	orValue(&m.Lifecycle.DesiredPhase, DesiredRunning)
	orDefault(&m.Streaming, false)
	if m.Bypass != nil {
		defaultConditions(m.Bypass.Sink)
		defaultConditions(m.Bypass.Fallback)
		defaultConditions(m.Bypass.OnSuccess)
	}
}

func defaultBufferService(s *InterStepBufferServiceSpec) {
	if s.Redis != nil && s.Redis.Native != nil {
		orDefault(&s.Redis.Native.Replicas, DefaultISBReplicas)
		if s.Redis.Native.Persistence != nil {
			SetPersistenceDefaults(s.Redis.Native.Persistence)
		}
	}
	if s.JetStream == nil {
		return
	}
	orDefault(&s.JetStream.Replicas, DefaultISBReplicas)
	if s.JetStream.Persistence != nil {
		SetPersistenceDefaults(s.JetStream.Persistence)
	}
}

func defaultServing(s *ServingSpec) {
	defaultPorts(&s.Ports)
	orDefault(&s.MsgIDHeaderKey, defaultMsgIDHeader)
	orDefault(&s.RequestTimeoutSeconds, defaultRequestTimeoutSeconds)
	orDefault(&s.Replicas, 1)
}

func defaultVertexObject(v *VertexSpec) {
	orDefault(&v.Replicas, 1)
	orValue(&v.InterStepBufferServiceName, DefaultISBName)
	orValue(&v.Lifecycle.DesiredPhase, DesiredRunning)
	defaultWatermark(&v.Watermark)
	defaultCompression(v.InterStepBuffer)
	defaultVertex(&v.AbstractVertex, v.Ordered != nil && v.Ordered.Enabled)
	for i := range v.FromEdges {
		defaultEdge(&v.FromEdges[i].Edge)
	}
	for i := range v.ToEdges {
		defaultEdge(&v.ToEdges[i].Edge)
	}
}
