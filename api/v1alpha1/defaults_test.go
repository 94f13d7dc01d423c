package v1alpha1_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"pgregory.net/rapid"

	"github.com/levada-io/levada/api/v1alpha1"
	"github.com/levada-io/levada/internal/manifest"
)

func ptr[V any](v V) *V { return &v }

func seconds(n int) *metav1.Duration {
	return &metav1.Duration{Duration: time.Duration(n) * time.Second}
}

// maybe draws a pointer that is often nil, as most fields of a manifest are absent.
func maybe[V any](t *rapid.T, name string, g *rapid.Generator[V]) *V {
	if rapid.Bool().Draw(t, name+"?") {
		return nil
	}
	v := g.Draw(t, name)
	return &v
}

func drawRateLimit(t *rapid.T) v1alpha1.RateLimit {
	l := v1alpha1.RateLimit{Max: ptr(rapid.Uint64Range(10, 100).Draw(t, "max")), Min: maybe(t, "min", rapid.Uint64Range(1, 10))}
	switch rapid.IntRange(0, 4).Draw(t, "mode") {
	case 1:
		l.Modes = &v1alpha1.RateLimiterModes{GoBackN: &v1alpha1.GoBackNMode{}}
	case 2:
		l.Modes = &v1alpha1.RateLimiterModes{OnlyIfUsed: &v1alpha1.OnlyIfUsedMode{}}
	case 3:
		l.Modes = &v1alpha1.RateLimiterModes{}
	}
	switch rapid.IntRange(0, 2).Draw(t, "store") {
	case 1:
		l.Store = &v1alpha1.RateLimiterStore{RedisStore: &v1alpha1.RedisStore{URL: "redis:6379"}}
	case 2:
		l.Store = &v1alpha1.RateLimiterStore{}
	}
	return l
}

func drawScale(t *rapid.T, source bool) v1alpha1.Scale {
	s := v1alpha1.Scale{Min: maybe(t, "scale.min", rapid.Int32Range(0, 3)), Max: maybe(t, "scale.max", rapid.Int32Range(3, 70)), ReplicasPerScale: maybe(t, "per", rapid.Uint32Range(1, 5))}
	if source && rapid.Bool().Draw(t, "cron") {
		s.Cron = &v1alpha1.CronScheduling{Schedules: []v1alpha1.CronSchedule{{Start: "0 0 8 * * *", End: "0 0 9 * * *", Min: ptr(int32(0)), Max: ptr(int32(2))}}}
	}
	return s
}

func drawSource(t *rapid.T) *v1alpha1.Source {
	token := &v1alpha1.NatsAuth{}
	return rapid.SampledFrom([]*v1alpha1.Source{
		{Generator: &v1alpha1.GeneratorSource{}},
		{Generator: &v1alpha1.GeneratorSource{ValueBlob: ptr("aGk="), Jitter: seconds(3)}, Transformer: &v1alpha1.UDTransformer{Builtin: &v1alpha1.Builtin{Name: "cat"}, RetryStrategy: &v1alpha1.RetryStrategy{}}},
		{HTTP: &v1alpha1.HTTPSource{}},
		{HTTP: &v1alpha1.HTTPSource{Ports: &v1alpha1.Ports{HTTP: ptr(int32(8090))}}},
		{File: &v1alpha1.FileSource{Path: "/in", Format: v1alpha1.FileFormatCSV}},
		{Stdin: &v1alpha1.StdinSource{}},
		{Stream: &v1alpha1.StreamSource{Target: "dns:///p:50051", Stream: "s", TLS: &v1alpha1.TLS{InsecureSkipVerify: true}}},
		{UDSource: &v1alpha1.UDSource{Container: &v1alpha1.Container{Command: []string{"./read"}}}},
		{JetStream: &v1alpha1.JetStreamSource{URL: "nats", Stream: "s", Auth: token}},
		{Kafka: &v1alpha1.KafkaSource{Brokers: []string{"k:9092"}, Topic: "t"}},
		{Pulsar: &v1alpha1.PulsarSource{ServerAddr: "pulsar://p:6650", Topic: "t", ConsumerName: "c", SubscriptionName: "s"}},
		{Sqs: &v1alpha1.SqsSource{AWSRegion: "r", QueueName: "q", QueueOwnerAWSAccountID: "123456789012", AssumeRole: &v1alpha1.AWSAssumeRole{RoleARN: "arn:aws:iam::123456789012:role/r"}}},
	}).Draw(t, "source").DeepCopy()
}

func drawSink(t *rapid.T) *v1alpha1.Sink {
	return rapid.SampledFrom([]*v1alpha1.Sink{
		{AbstractSink: v1alpha1.AbstractSink{Log: &v1alpha1.Log{}}},
		{AbstractSink: v1alpha1.AbstractSink{File: &v1alpha1.FileSink{Path: "/out"}}},
		{AbstractSink: v1alpha1.AbstractSink{Stdout: &v1alpha1.StdoutSink{Format: v1alpha1.OutputFormatJSON}}},
		{AbstractSink: v1alpha1.AbstractSink{Stream: &v1alpha1.StreamSink{Listen: ":50051", Name: "s", MaxBytes: ptr(resource.MustParse("10Gi")), MaxAge: seconds(60)}}},
		{AbstractSink: v1alpha1.AbstractSink{JetStream: &v1alpha1.JetStreamSink{URL: "nats://n", Subject: "a.b"}}},
		{AbstractSink: v1alpha1.AbstractSink{UDSink: &v1alpha1.UDSink{Container: &v1alpha1.Container{Image: "x"}}}, Fallback: &v1alpha1.AbstractSink{Blackhole: &v1alpha1.Blackhole{}}, RetryStrategy: v1alpha1.RetryStrategy{OnFailure: ptr(v1alpha1.OnFailureFallback), BackOff: &v1alpha1.Backoff{Cap: seconds(1)}}},
	}).Draw(t, "sink").DeepCopy()
}

func drawUDF(t *rapid.T) *v1alpha1.UDF {
	return rapid.SampledFrom([]*v1alpha1.UDF{
		{Builtin: &v1alpha1.Builtin{Name: "cat", KWArgs: map[string]string{"a": "b"}}},
		{Container: &v1alpha1.Container{Image: "x"}, RetryStrategy: &v1alpha1.RetryStrategy{OnFailure: ptr(v1alpha1.OnFailureDrop)}},
		{Container: &v1alpha1.Container{Image: "x"}, GroupBy: &v1alpha1.GroupBy{Window: v1alpha1.Window{Fixed: &v1alpha1.FixedWindow{Length: seconds(60)}}, Keyed: true, Storage: &v1alpha1.PBQStorage{PersistentVolumeClaim: &v1alpha1.PersistenceStrategy{}}}},
	}).Draw(t, "udf").DeepCopy()
}

// drawManifest makes a valid manifest, of which most is left out.
func drawManifest(t *rapid.T) v1alpha1.Manifest {
	meta := metav1.ObjectMeta{Name: "p"}
	switch rapid.IntRange(0, 3).Draw(t, "kind") {
	case 0:
		m := &v1alpha1.MonoVertex{ObjectMeta: meta, Spec: v1alpha1.MonoVertexSpec{
			Source: drawSource(t), Sink: drawSink(t), Scale: drawScale(t, true), Replicas: maybe(t, "replicas", rapid.Int32Range(0, 3)),
			Limits: maybe(t, "limits", rapid.Custom(func(t *rapid.T) v1alpha1.MonoVertexLimits {
				return v1alpha1.MonoVertexLimits{ReadBatchSize: maybe(t, "batch", rapid.Uint64Range(1, 9)), RateLimit: maybe(t, "rate", rapid.Custom(drawRateLimit))}
			})),
		}}
		return m
	case 1:
		return &v1alpha1.InterStepBufferService{ObjectMeta: meta, Spec: v1alpha1.InterStepBufferServiceSpec{JetStream: &v1alpha1.JetStreamBufferService{
			Version: "latest", Persistence: maybe(t, "persistence", rapid.Just(v1alpha1.PersistenceStrategy{})),
		}}}
	case 2:
		return &v1alpha1.ServingPipeline{ObjectMeta: meta, Spec: v1alpha1.ServingPipelineSpec{Pipeline: v1alpha1.PipelineSpec{
			Vertices: []v1alpha1.AbstractVertex{
				{Name: "in", Source: &v1alpha1.Source{Serving: &v1alpha1.ServingSource{}}},
				{Name: "out", Sink: &v1alpha1.Sink{AbstractSink: v1alpha1.AbstractSink{Serve: &v1alpha1.ServeSink{}}}},
			},
			Edges: []v1alpha1.Edge{{From: "in", To: "out"}},
		}}}
	}
	p := &v1alpha1.Pipeline{ObjectMeta: meta}
	p.Spec.Ordered = maybe(t, "ordered", rapid.Just(v1alpha1.Ordered{Enabled: true}))
	p.Spec.Lifecycle.DeleteGracePeriodSeconds = maybe(t, "grace", rapid.Int64Range(0, 90))
	p.Spec.InterStepBuffer = maybe(t, "isb", rapid.Just(v1alpha1.InterStepBuffer{Compression: &v1alpha1.Compression{Type: "ZSTD"}}))
	p.Spec.Limits = maybe(t, "limits", rapid.Custom(func(t *rapid.T) v1alpha1.PipelineLimits {
		return v1alpha1.PipelineLimits{Concurrency: maybe(t, "concurrency", rapid.Uint64Range(1, 9)), RateLimit: maybe(t, "rate", rapid.Custom(drawRateLimit))}
	}))
	p.Spec.Watermark.IdleSource = maybe(t, "idle", rapid.Just(v1alpha1.IdleSource{Threshold: seconds(5), IncrementBy: seconds(3)}))
	p.Spec.Vertices = []v1alpha1.AbstractVertex{{Name: "in", Source: drawSource(t)}}
	for i := range rapid.IntRange(0, 3).Draw(t, "functions") {
		p.Spec.Vertices = append(p.Spec.Vertices, v1alpha1.AbstractVertex{Name: fmt.Sprint("f", i), UDF: drawUDF(t), Partitions: maybe(t, "partitions", rapid.Int32Range(0, 3))})
	}
	p.Spec.Vertices = append(p.Spec.Vertices, v1alpha1.AbstractVertex{Name: "out", Sink: drawSink(t), Limits: maybe(t, "own", rapid.Custom(func(t *rapid.T) v1alpha1.VertexLimits {
		return v1alpha1.VertexLimits{RateLimit: maybe(t, "rate", rapid.Custom(drawRateLimit)), ReadBatchSize: maybe(t, "batch", rapid.Uint64Range(1, 9))}
	}))})
	for i := range p.Spec.Vertices {
		if p.Spec.Ordered == nil {
			p.Spec.Vertices[i].Scale = drawScale(t, i == 0)
		}
		if i > 0 {
			e := v1alpha1.Edge{From: p.Spec.Vertices[i-1].Name, To: p.Spec.Vertices[i].Name}
			e.Conditions = maybe(t, "conditions", rapid.Just(v1alpha1.ForwardConditions{Tags: &v1alpha1.TagConditions{Values: []string{"a"}}})).DeepCopy()
			p.Spec.Edges = append(p.Spec.Edges, e)
		}
	}
	return p
}

// TestDefaultsAreStable: defaults can be set again without a change, keep a manifest valid, and survive being written and read.
func TestDefaultsAreStable(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		o := manifest.NewObject(drawManifest(t))
		if problems := manifest.Validate([]manifest.Object{o}); problems.HasErrors() {
			t.Fatalf("drew a manifest with errors: %v", problems.Err())
		}
		v1alpha1.SetDefaults(o.Manifest)
		once := render(t, o)
		v1alpha1.SetDefaults(o.Manifest)
		if diff := cmp.Diff(once, render(t, o)); diff != "" {
			t.Fatalf("defaults set twice (-once +twice):\n%s", diff)
		}
		objects, problems := manifest.Decode("p.yaml", []byte(once))
		if problems = append(problems, manifest.Validate(objects)...); problems.HasErrors() || len(objects) != 1 {
			t.Fatalf("rendered manifest has errors:\n%s\n%s", problems.Err(), once)
		}
		if diff := cmp.Diff(once, render(t, objects[0])); diff != "" {
			t.Fatalf("written, read and written (-first +second):\n%s", diff)
		}
	})
}

func render(t interface{ Fatal(...any) }, objects ...manifest.Object) string {
	text, err := manifest.Render(objects)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// TestDefaultValues pins the defaults: they are part of the contract with those who write manifests.
func TestDefaultValues(t *testing.T) {
	for _, c := range []struct{ manifest, want string }{
		{
			manifest: "kind: Pipeline\nspec:\n  vertices:\n  - {name: in, source: {generator: {}}}\n  - {name: out, sink: {udsink: {container: {image: x}}}}\n  edges:\n  - {from: in, to: out}\n",
			want: `spec:
  edges:
  - from: in
    onFull: retryUntilSuccess
    to: out
  interStepBufferServiceName: default
  lifecycle:
    deletionGracePeriodSeconds: 30
    desiredPhase: Running
    pauseGracePeriodSeconds: 30
  limits:
    bufferMaxLength: 30000
    bufferUsageLimit: 80
    readBatchSize: 500
    readTimeout: 1s
  vertices:
  - name: in
    partitions: 1
    scale:
      lookbackSeconds: 120
      max: 50
      min: 0
      replicasPerScaleDown: 2
      replicasPerScaleUp: 2
      scaleDownCooldownSeconds: 90
      scaleUpCooldownSeconds: 90
      targetProcessingSeconds: 20
      zeroReplicaSleepSeconds: 120
    source:
      generator:
        duration: 1s
        jitter: 0s
        msgSize: 8
        rpu: 5
    updateStrategy:
      rollingUpdate:
        maxUnavailable: 25%
      type: RollingUpdate
  - name: out
    partitions: 1
    scale:
      lookbackSeconds: 120
      max: 50
      min: 0
      replicasPerScaleDown: 2
      replicasPerScaleUp: 2
      scaleDownCooldownSeconds: 90
      scaleUpCooldownSeconds: 90
      targetBufferAvailability: 50
      targetProcessingSeconds: 20
    sink:
      retryStrategy:
        backoff:
          factor: 1
          interval: 1ms
          jitter: 0
        onFailure: retry
      udsink:
        container:
          image: x
    updateStrategy:
      rollingUpdate:
        maxUnavailable: 25%
      type: RollingUpdate
  watermark:
    maxDelay: 0s
`,
		},
		{
			manifest: "kind: InterStepBufferService\nspec: {jetstream: {version: latest, persistence: {}}}\n",
			want:     "spec:\n  jetstream:\n    persistence:\n      accessMode: ReadWriteOnce\n      volumeSize: 20Gi\n    replicas: 3\n    version: latest\n",
		},
		{
			manifest: "kind: ServingPipeline\nspec: {}\n",
			want: "spec:\n  pipeline:\n    interStepBufferServiceName: default\n    lifecycle:\n      deletionGracePeriodSeconds: 30\n      desiredPhase: Running\n      pauseGracePeriodSeconds: 30\n" +
				"    limits:\n      bufferMaxLength: 30000\n      bufferUsageLimit: 80\n      readBatchSize: 500\n      readTimeout: 1s\n    watermark:\n      maxDelay: 0s\n" +
				"  serving:\n    msgIDHeaderKey: X-Numaflow-Id\n    ports:\n      https: 8443\n    replicas: 1\n    requestTimeoutSeconds: 120\n",
		},
	} {
		objects, problems := manifest.Decode("p.yaml", []byte("apiVersion: numaflow.numaproj.io/v1alpha1\nmetadata: {name: p}\n"+c.manifest))
		if len(problems) > 0 {
			t.Fatal(problems)
		}
		v1alpha1.SetDefaults(objects[0].Manifest)
		_, got, _ := strings.Cut(render(t, objects[0]), "  name: p\n")
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("defaults (-want +got):\n%s", diff)
		}
	}
}

func TestEffectiveLimits(t *testing.T) {
	pipeline := func(text string) *v1alpha1.PipelineSpec {
		objects, problems := manifest.Decode("p.yaml", []byte("apiVersion: numaflow.numaproj.io/v1alpha1\nkind: Pipeline\nmetadata: {name: p}\nspec: "+text+"\n"))
		if len(problems) > 0 {
			t.Fatal(problems)
		}
		return &objects[0].Manifest.(*v1alpha1.Pipeline).Spec
	}
	for _, c := range []struct{ name, spec, want string }{
		{"defaults", `{vertices: [{name: a}]}`, `batch 500 timeout 1s length 30000 usage 80 concurrency 500 rate null`},
		{"the vertex wins, key by key", `{limits: {readBatchSize: 10, bufferUsageLimit: 70, readTimeout: 2s}, vertices: [{name: a, limits: {readBatchSize: 5, bufferMaxLength: 9}}]}`,
			`batch 5 timeout 2s length 9 usage 70 concurrency 5 rate null`},
		{"concurrency follows the batch of the vertex", `{limits: {readBatchSize: 10}, vertices: [{name: a, limits: {readBatchSize: 5}}]}`,
			`batch 5 timeout 1s length 30000 usage 80 concurrency 5 rate null`},
		{"concurrency of the pipeline", `{limits: {concurrency: 7}, vertices: [{name: a}]}`, `batch 500 timeout 1s length 30000 usage 80 concurrency 7 rate null`},
		{"ordered is one by one", `{ordered: {enabled: true}, limits: {concurrency: 7}, vertices: [{name: a}]}`, `batch 500 timeout 1s length 30000 usage 80 concurrency 1 rate null`},
		{"a rate limit on a vertex alone, which makes Numaflow's controller panic", `{vertices: [{name: a, limits: {rateLimit: {max: 9}}}]}`,
			`batch 500 timeout 1s length 30000 usage 80 concurrency 500 rate {"max":9,"min":1,"rampUpDuration":"1s","store":{"inMemoryStore":{}},"modes":{"relaxed":{}},"resumedRampUp":false,"ttl":"3m0s"}`},
		{"rate limits merge key by key", `{limits: {rateLimit: {max: 9, min: 3, ttl: 5s}}, vertices: [{name: a, limits: {rateLimit: {max: 20, modes: {goBackN: {}}}}}]}`,
			`batch 500 timeout 1s length 30000 usage 80 concurrency 500 rate {"max":20,"min":3,"rampUpDuration":"1s","store":{"inMemoryStore":{}},"modes":{"goBackN":{"coolDownPeriod":"5s","rampDownPercentage":50,"thresholdPercentage":50}},"resumedRampUp":false,"ttl":"5s"}`},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := pipeline(c.spec)
			before := p.DeepCopy()
			effective := func(p *v1alpha1.PipelineSpec) string {
				l := v1alpha1.EffectiveLimits(p, &p.Vertices[0])
				rate, _ := json.Marshal(l.RateLimit)
				return fmt.Sprintf("batch %d timeout %s length %d usage %d concurrency %d rate %s", l.ReadBatchSize, l.ReadTimeout, l.BufferMaxLength, l.BufferUsageLimit, l.Concurrency, rate)
			}
			if diff := cmp.Diff(c.want, effective(p)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			if !reflect.DeepEqual(before, p) {
				t.Error("the manifest was changed")
			}
			defaulted := &v1alpha1.Pipeline{Spec: *p}
			v1alpha1.SetDefaults(defaulted)
			if diff := cmp.Diff(c.want, effective(&defaulted.Spec)); diff != "" {
				t.Errorf("after defaults (-want +got):\n%s", diff)
			}
		})
	}
	if l := v1alpha1.EffectiveLimits(nil, &v1alpha1.AbstractVertex{}); l.Concurrency != 500 {
		t.Errorf("without a pipeline: %+v", l)
	}
}

func TestRenderKeepsOtherKinds(t *testing.T) {
	in := "apiVersion: v1\ndata:\n  b: \"1\"\nkind: ConfigMap\nmetadata:\n  name: c\n"
	objects, _ := manifest.Decode("p.yaml", []byte(in))
	if got := render(t, objects...); !bytes.Equal([]byte(in), []byte(got)) {
		t.Error(cmp.Diff(in, got))
	}
}
