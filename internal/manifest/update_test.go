package manifest_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/levada-io/levada/api/v1alpha1"
	"github.com/levada-io/levada/internal/manifest"
)

// decodeOne reads a manifest that has no problems.
func decodeOne(t *testing.T, text string) manifest.Object {
	t.Helper()
	objects, problems := manifest.Decode("p.yaml", []byte("apiVersion: numaflow.numaproj.io/v1alpha1\n"+text))
	if len(problems) > 0 || len(objects) != 1 {
		t.Fatalf("%d objects, problems:\n%s", len(objects), describeAll(problems))
	}
	return objects[0]
}

func TestValidateUpdate(t *testing.T) {
	const reduce = "udf: {container: {image: x}, groupBy: {keyed: true, window: {fixed: {length: 1s}}, storage: "
	pipeline := func(text string) string { return "kind: Pipeline\nmetadata: {name: p}\nspec:\n" + text }
	isb := func(text string) string {
		return "kind: InterStepBufferService\nmetadata: {name: p}\nspec: {jetstream: {version: latest" + text + "}}\n"
	}
	for _, c := range []struct{ name, old, updated, want string }{
		{
			"what may change", pipeline("  vertices:\n  - {name: a, udf: {}, partitions: 1}\n"),
			pipeline("  interStepBufferServiceName: default\n  vertices:\n  - {name: a, udf: {}, partitions: 3}\n  - {name: b, sink: {log: {}}}\n"), "",
		},
		{
			"the buffer service", pipeline("  interStepBufferServiceName: a\n"), pipeline("  interStepBufferServiceName: b\n"),
			`p.yaml:5:31: error LV2101: interStepBufferServiceName cannot change from "a" to "b"`,
		},
		{
			"the instance", "kind: MonoVertex\nmetadata: {name: m}\nspec: {}\n", "kind: MonoVertex\nmetadata: {name: m, annotations: {numaflow.numaproj.io/instance: b}}\nspec: {}\n",
			`p.yaml:3:66: error LV2102: annotations[numaflow.numaproj.io/instance] cannot change from "" to "b"`,
		},
		{
			"the role of a vertex", pipeline("  vertices: [{name: a, udf: {}}]\n"), pipeline("  vertices: [{name: a, sink: {log: {}}}]\n"),
			`p.yaml:5:21: error LV2103: vertex "a" cannot become a Sink, it is a MapUDF`,
		},
		{
			"partitions and storage of a reduce", pipeline("  vertices: [{name: a, partitions: 2, " + reduce + "{emptyDir: {}}}}}]\n"),
			pipeline("  vertices:\n  - {name: a, partitions: 3, " + reduce + "{no_store: {}}}}}\n"),
			"p.yaml:6:27: error LV2104: the partitions of reduce \"a\" cannot change from 2 to 3\n" +
				"p.yaml:6:113: error LV2104: the storage of reduce \"a\" cannot change",
		},
		{
			"storage with its defaults is the same storage", pipeline("  vertices: [{name: a, " + reduce + "{persistentVolumeClaim: {}}}}}]\n"),
			pipeline("  vertices: [{name: a, " + reduce + "{persistentVolumeClaim: {volumeSize: 20Gi, accessMode: ReadWriteOnce}}}}}]\n"), "",
		},
		{
			"the volume of a buffer service", isb(", persistence: {}"), isb(", persistence: {volumeSize: 40Gi}"),
			"p.yaml:4:37: error LV2105: the persistence of a buffer service cannot change",
		},
		{"its defaults are no change", isb(", persistence: {}"), isb(", persistence: {volumeSize: 20Gi}"), ""},
		{
			"its type", isb(""), "kind: InterStepBufferService\nmetadata: {name: p}\nspec: {}\n",
			"p.yaml:4:1: error LV2105: the type of a buffer service cannot change",
		},
		{
			"the kind", pipeline("  edges: []\n"), "kind: MonoVertex\nmetadata: {name: p}\nspec: {}\n",
			"p.yaml:2:7: error LV2101: a Pipeline cannot become a MonoVertex",
		},
		{
			"a pipeline inside a ServingPipeline", "kind: ServingPipeline\nmetadata: {name: p}\nspec: {}\n",
			"kind: ServingPipeline\nmetadata: {name: p}\nspec: {pipeline: {interStepBufferServiceName: b}}\n",
			`p.yaml:4:47: error LV2101: interStepBufferServiceName cannot change from "default" to "b"`,
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			var lines []string
			for _, p := range manifest.ValidateUpdate(decodeOne(t, c.old), decodeOne(t, c.updated)) {
				lines = append(lines, p.String())
			}
			if diff := cmp.Diff(c.want, strings.Join(lines, "\n")); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestGaps(t *testing.T) {
	o := decodeOne(t, `kind: Pipeline
metadata: {name: p}
spec:
  vertices:
  - {name: in, source: {kafka: {}}, scale: {min: 1}, limits: {rateLimit: {max: 1, store: {redisStore: {}}}}}
  - {name: fixed, udf: {}, scale: {min: 2, max: 2}}
  - {name: idle, udf: {}, scale: {disabled: true, max: 2}}
  - {name: sum, udf: {groupBy: {}}, scale: {max: 7}, updateStrategy: {rollingUpdate: {maxUnavailable: 1}}}
  - {name: out, sink: {udsink: {}, fallback: {sqs: {}}}}
  limits: {rateLimit: {store: {redisStore: {}}}}
  watermark: {disabled: true, maxDelay: 5s, idleSource: {}}
  sideInputs: [{name: a}]
  templates: {vertex: {}}
`)
	got := describeAll(manifest.Unsupported(o))
	want := `p.yaml:6:37: warning LV2201: scale: replicas are not scaled automatically yet (and 1 more)
    at spec.vertices[0].scale
p.yaml:9:54: warning LV2204: updateStrategy: pods are not replaced in steps yet
    at spec.vertices[3].updateStrategy
p.yaml:11:32: warning LV2205: redisStore: processes agree on the rate limit through the buffer service, and this Redis server is not used (and 1 more)
    at spec.limits.rateLimit.store.redisStore
p.yaml:12:25: warning LV2202: disabled: this watermark setting is not used yet (and 2 more)
    at spec.watermark.disabled
p.yaml:13:3: warning LV2203: sideInputs: side inputs are not fetched yet
    at spec.sideInputs
p.yaml:14:3: warning LV2206: templates: templates are not applied yet
    at spec.templates
`
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	native := decodeOne(t, "kind: InterStepBufferService\nmetadata: {name: p}\nspec: {redis: {native: {version: 7.0.15}}}\n")
	if got := describeAll(manifest.Unsupported(native)); !strings.Contains(got, "p.yaml:4:16: warning LV2208") || !strings.Contains(got, "--redis") {
		t.Errorf("a native Redis: %s", got)
	}
	for _, kind := range []string{"MonoVertex", "ServingPipeline", "InterStepBufferService", "Vertex"} {
		empty := decodeOne(t, "kind: "+kind+"\nmetadata: {name: p}\nspec: {}\n")
		if ps := manifest.Unsupported(empty); len(ps) > 0 {
			t.Errorf("an empty %s: %s", kind, describeAll(ps))
		}
	}
}

func TestAnnotations(t *testing.T) {
	o := decodeOne(t, `kind: Pipeline
metadata:
  name: p
  annotations:
    levada.io/function.cat: ./cat --fast
    levada.io/function.in.transformer: ./change
    levada.io/processing-timeout: 30s
    levada.io/processing-timeout.cat: 2s
    levada.io/block-bytes: 512Ki
spec: {}
`).Manifest
	for _, c := range []struct {
		vertex string
		role   v1alpha1.Role
		want   string
	}{
		{"cat", v1alpha1.RoleUDF, "./cat --fast"},
		{"cat", v1alpha1.RoleTransformer, ""},
		{"in", v1alpha1.RoleTransformer, "./change"},
		{"in", v1alpha1.RoleUDSource, ""},
	} {
		if got := v1alpha1.FunctionCommand(o, c.vertex, c.role); got != c.want {
			t.Errorf("%s of %s: %q, want %q", c.role, c.vertex, got, c.want)
		}
	}
	if d, ok := v1alpha1.ProcessingTimeout(o, "cat"); !ok || d.String() != "2s" {
		t.Error("timeout of cat", d, ok)
	}
	if d, ok := v1alpha1.ProcessingTimeout(o, "in"); !ok || d.String() != "30s" {
		t.Error("timeout of in", d, ok)
	}
	if n, ok := v1alpha1.BlockBytes(o); !ok || n != 512<<10 {
		t.Error("block bytes", n, ok)
	}
	none := decodeOne(t, "kind: MonoVertex\nmetadata: {name: m}\nspec: {}\n").Manifest
	if _, ok := v1alpha1.ProcessingTimeout(none, "m"); ok {
		t.Error("a timeout out of nothing")
	}
	if _, ok := v1alpha1.BlockBytes(none); ok {
		t.Error("block bytes out of nothing")
	}
}
