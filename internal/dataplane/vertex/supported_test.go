package vertex

import (
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/levada-io/levada/api/v1alpha1"
	"github.com/levada-io/levada/internal/manifest"
)

// TestWhatCannotRunIsReportedAtItsPlace: each kind of source, sink and vertex that this version cannot run is an error with the path of the field.
func TestWhatCannotRunIsReportedAtItsPlace(t *testing.T) {
	objects, _ := manifest.Decode("p.yaml", []byte(`apiVersion: numaflow.numaproj.io/v1alpha1
kind: Pipeline
metadata: {name: p}
spec:
  vertices:
  - {name: in, source: {kafka: {}}}
  - {name: fine, source: {generator: {}}}
  - {name: sum, udf: {groupBy: {}}}
  - {name: out, sink: {udsink: {}, fallback: {sqs: {}}, onSuccess: {serve: {}}}}
---
apiVersion: numaflow.numaproj.io/v1alpha1
kind: MonoVertex
metadata: {name: m}
spec: {source: {pulsar: {}}, sink: {log: {}}}
`))
	var got []string
	for _, o := range objects {
		for _, p := range NotRunnable(o) {
			got = append(got, p.String()+" at "+p.Path)
		}
	}
	want := []string{
		"p.yaml:6:25: error LV2302: kafka: a source of this kind cannot run in this version yet at spec.vertices[0].source.kafka",
		"p.yaml:8:23: error LV2301: groupBy: a reduce cannot run in this version yet at spec.vertices[2].udf.groupBy",
		"p.yaml:9:47: error LV2303: sqs: a sink of this kind cannot run in this version yet at spec.vertices[3].sink.fallback.sqs",
		"p.yaml:9:69: error LV2303: serve: a sink of this kind cannot run in this version yet at spec.vertices[3].sink.onSuccess.serve",
		"p.yaml:14:17: error LV2302: pulsar: a source of this kind cannot run in this version yet at spec.source.pulsar",
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// TestEveryKindOfSourceAndSinkIsInTheTable: a kind that the types have and the table does not would be reported as runnable, and fail at the start.
func TestEveryKindOfSourceAndSinkIsInTheTable(t *testing.T) {
	kindsOf(t, func(s *v1alpha1.Source) (found []string) {
		for _, d := range sourceDrivers {
			if d.set(s) {
				found = append(found, d.field)
			}
		}
		return found
	}, "transformer")
	kindsOf(t, func(s *v1alpha1.AbstractSink) (found []string) {
		for _, d := range sinkDrivers {
			if d.set(s) {
				found = append(found, d.field)
			}
		}
		return found
	})
}

// kindsOf sets one field of a T after the other, and checks that find returns its name.
func kindsOf[T any](t *testing.T, find func(of *T) []string, others ...string) {
	t.Helper()
	fields := reflect.TypeFor[T]()
	for i := range fields.NumField() {
		name, _, _ := strings.Cut(fields.Field(i).Tag.Get("json"), ",")
		if slices.Contains(others, name) || fields.Field(i).Type.Kind() != reflect.Pointer {
			continue
		}
		var of T
		reflect.ValueOf(&of).Elem().Field(i).Set(reflect.New(fields.Field(i).Type.Elem()))
		if found := find(&of); len(found) != 1 || found[0] != name {
			t.Errorf("%s: %s is found as %v in the table of drivers", fields, name, found)
		}
	}
}
