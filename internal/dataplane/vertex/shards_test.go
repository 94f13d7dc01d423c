package vertex

import (
	"testing"

	"github.com/levada-io/levada/api/v1alpha1"
	"github.com/levada-io/levada/internal/manifest"
)

// TestShardsFollowTheManifest: how many shards a partition gets that is created for processes which share its vertex.
func TestShardsFollowTheManifest(t *testing.T) {
	for _, c := range []struct {
		vertex, annotation string
		want               int
	}{
		{"udf: {builtin: {name: cat}}", "", 8},
		{"partitions: 2, udf: {builtin: {name: cat}}", "", 4},
		{"partitions: 3, udf: {builtin: {name: cat}}", "", 4},
		{"partitions: 8, udf: {builtin: {name: cat}}", "", 1},
		{"partitions: 16, udf: {builtin: {name: cat}}", "", 1},
		{"scale: {max: 1}, udf: {builtin: {name: cat}}", "", 1},
		{"scale: {max: 5}, udf: {builtin: {name: cat}}", "", 8},
		{"partitions: 2, scale: {max: 20}, udf: {builtin: {name: cat}}", "", 16},
		{"scale: {max: 1000}, udf: {builtin: {name: cat}}", "", 64},
		{"partitions: 3, scale: {max: 1000}, udf: {builtin: {name: cat}}", "", 16},
		{"scale: {max: 50}, udf: {builtin: {name: cat}}", "", 8}, // the default
		{"ordered: {enabled: true}, udf: {builtin: {name: cat}}", "", 1},
		{"ordered: {enabled: true}, udf: {builtin: {name: cat}}", `, annotations: {levada.io/shards.v: "4"}`, 4},
		{"udf: {builtin: {name: cat}}", `, annotations: {levada.io/shards: "3"}`, 3},
		{"udf: {builtin: {name: cat}}", `, annotations: {levada.io/shards: "3", levada.io/shards.v: "12"}`, 12},
		{"sink: {log: {}}", "", 8},
		{"sink: {file: {path: out.txt}}", "", 1},
		{"sink: {file: {path: out.txt}}", `, annotations: {levada.io/shards: "3"}`, 1},
	} {
		objects, problems := manifest.Decode("p.yaml", []byte("apiVersion: numaflow.numaproj.io/v1alpha1\nkind: Pipeline\nmetadata: {name: p"+c.annotation+"}\nspec:\n  vertices:\n"+
			"  - {name: in, source: {generator: {}}}\n  - {name: v, "+c.vertex+"}\n  edges:\n  - {from: in, to: v}\n"))
		if len(objects) != 1 || len(problems) > 0 {
			t.Fatal(problems)
		}
		v1alpha1.SetDefaults(objects[0].Manifest)
		m := objects[0].Manifest.(*v1alpha1.Pipeline)
		plans, err := PlanPipeline(&m.Spec)
		if err != nil {
			t.Fatal(err)
		}
		if got := plans[1].Shards(m); got != c.want {
			t.Errorf("{%s}%s: %d shards, want %d", c.vertex, c.annotation, got, c.want)
		}
	}
}
