package metrics

import (
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	dto "github.com/prometheus/client_model/go"

	"github.com/levada-io/levada/internal/dataplane/forward"
	"github.com/levada-io/levada/internal/dataplane/function"
	"github.com/levada-io/levada/internal/flow"
)

// gathered returns the series that are exported, as name{label="value",...}, with their values.
func gathered(t *testing.T, s *Set) map[string]float64 {
	t.Helper()
	families, err := s.Registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	series := map[string]float64{}
	for _, f := range families {
		for _, m := range f.Metric {
			var labels []string
			for _, l := range m.Label {
				labels = append(labels, l.GetName()+`="`+l.GetValue()+`"`)
			}
			slices.Sort(labels)
			value := m.GetCounter().GetValue() + m.GetGauge().GetValue()
			if f.GetType() == dto.MetricType_HISTOGRAM {
				value = float64(m.Histogram.GetSampleCount())
			}
			series[f.GetName()+"{"+strings.Join(labels, ",")+"}"] = value
		}
	}
	return series
}

func ours(name string) bool {
	return !strings.HasPrefix(name, "go_") && !strings.HasPrefix(name, "process_") && !strings.HasPrefix(name, "build_info")
}

func TestEverySeriesOfAPipelineHasItsNamespaceAndNoneIsEmpty(t *testing.T) {
	s := New("v1")
	for _, namespace := range []string{"default", "team-a", "default"} {
		n := s.Namespace(namespace)
		v := n.Vertex(VertexLabels{Pipeline: "p", Vertex: "out", Type: "Sink"}, namespace+"-p-out-0", "")
		v.Read(5, 50, time.Millisecond)
		v.Delivered(function.UDSink, []flow.Message{{Value: []byte("x")}}, time.Millisecond)
		m := n.Vertex(VertexLabels{Pipeline: "m", Vertex: "m", Type: "MonoVertex", Mono: true}, "m", "transformer")
		m.Dropped("", 2, 10, forward.SinkRetriesExhausted)
		b := n.Buffer(namespace + "-p-out-0")
		b.Full()
		b.Usage(7, 3, 100)
	}
	found := gathered(t, s)
	for name, value := range found {
		if !ours(name) {
			continue
		}
		if !strings.Contains(name, `namespace="default"`) && !strings.Contains(name, `namespace="team-a"`) {
			t.Errorf("%s has no namespace", name)
		}
		if value == 0 {
			t.Errorf("%s is empty", name)
		}
	}
	for _, want := range []string{
		`forwarder_read_total{namespace="team-a",partition_name="team-a-p-out-0",pipeline="p",replica="0",vertex="out",vertex_type="Sink"}`,
		`isb_jetstream_buffer_ack_pending{buffer="default-p-out-0",namespace="default"}`,
		`monovtx_sink_dropped_total{mvtx_name="m",mvtx_replica="0",namespace="default"}`,
	} {
		if found[want] == 0 {
			t.Errorf("%s is missing", want)
		}
	}
	for name := range found {
		if strings.Contains(name, "fbsink") || strings.Contains(name, "transformer") {
			t.Errorf("%s: the vertex has no such thing", name)
		}
	}
}

func TestPendingIsAveragedOverPeriods(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New("v1")
		v := s.Namespace("default").Vertex(VertexLabels{Pipeline: "p", Vertex: "out", Type: "Sink"}, "part", "")
		for range 24 { // 2 minutes of 100
			v.Pending("part", 100)
			time.Sleep(SampleEvery)
		}
		for range 12 { // then a minute of 40, looked at more often than a sample counts
			v.Pending("part", 40)
			time.Sleep(time.Second)
			v.Pending("part", 40)
			time.Sleep(SampleEvery - time.Second)
		}
		v.Pending("part", -1) // nobody knows: nothing changes
		found := gathered(t, s)
		at := func(period string) float64 {
			return found[`vertex_pending_messages{namespace="default",partition_name="part",period="`+period+`",pipeline="p",vertex="out",vertex_type="Sink"}`]
		}
		if at("1m") != 40 || at("default") != 70 || at("5m") != 80 || at("15m") != 80 {
			t.Errorf("1m %v, default %v, 5m %v, 15m %v", at("1m"), at("default"), at("5m"), at("15m"))
		}
	})
}

func TestDuplicatesThatASinksStreamHadAreInTheProgress(t *testing.T) {
	v := New("v1").Namespace("default").Vertex(VertexLabels{Pipeline: "p", Vertex: "out", Type: "Sink"}, "part", "")
	v.SinkDuplicates(function.UDSink, 3)
	if v.Counts().SinkDuplicates != 3 {
		t.Fatalf("the progress has %d duplicates of 3", v.Counts().SinkDuplicates)
	}
}

// TestReplicasHaveSeriesOfTheirOwn: two processes of a vertex that are scraped into one Prometheus must not overwrite each other's series.
func TestReplicasHaveSeriesOfTheirOwn(t *testing.T) {
	t.Parallel()
	s := New("v1").Namespace("default")
	for replica := range 2 {
		n := replica + 1
		v := s.Vertex(VertexLabels{Pipeline: "p", Vertex: "out", Type: "Sink", Replica: replica}, "part", "")
		m := s.Vertex(VertexLabels{Pipeline: "m", Vertex: "m", Mono: true, Replica: replica}, "m", "transformer")
		for _, o := range []*Vertex{v, m} {
			o.Read(n, 10, time.Millisecond)
			o.Pending("part", int64(n))
			o.BatchSize(n)
			o.Dropped("", n, 1, "malformed")
			for range n {
				o.Crashed(function.UDF, "exit status 1")
			}
		}
	}
	found := gathered(t, s)
	for _, name := range []string{
		`forwarder_read_total{namespace="default",partition_name="part",pipeline="p",replica="%d",vertex="out",vertex_type="Sink"}`,
		`forwarder_drop_total{namespace="default",partition_name="",pipeline="p",reason="malformed",replica="%d",vertex="out",vertex_type="Sink"}`,
		`forwarder_critical_error_total{namespace="default",pipeline="p",reason="map_runtime_error",replica="%d",vertex="out",vertex_type="Sink"}`,
		`vertex_pending_messages_raw{namespace="default",partition_name="part",pipeline="p",replica="%d",vertex="out",vertex_type="Sink"}`,
		`monovtx_read_total{mvtx_name="m",mvtx_replica="%d",namespace="default"}`,
		`monovtx_dropped_total{mvtx_name="m",mvtx_replica="%d",namespace="default"}`,
		`monovtx_read_batch_size{mvtx_name="m",mvtx_replica="%d",namespace="default"}`,
		`monovtx_pending_raw{mvtx_name="m",mvtx_replica="%d",namespace="default"}`,
	} {
		for replica := range 2 {
			if series := fmt.Sprintf(name, replica); found[series] != float64(replica+1) {
				t.Errorf("%s is %v, want %d", series, found[series], replica+1)
			}
		}
	}
}

// TestEveryNameOfAFamilyIsInTheCatalogue: a name that is not would panic when the first message is counted.
func TestEveryNameOfAFamilyIsInTheCatalogue(t *testing.T) {
	t.Parallel()
	kinds := map[string]kind{}
	for _, m := range catalogue {
		kinds[m.name] = m.kind
	}
	for _, f := range []family{ofPipeline, ofMono} {
		var walk func(v reflect.Value)
		walk = func(v reflect.Value) {
			for i := range v.NumField() {
				if f := v.Field(i); f.Kind() == reflect.Struct {
					walk(f)
				} else if name := f.String(); name != "" {
					if _, ok := kinds[name]; !ok {
						t.Errorf("%s is not in the catalogue", name)
					}
				}
			}
		}
		walk(reflect.ValueOf(f))
	}
}

// TestALoopIsCountedOnce: what the live view and the result of a run show is what the loop observed.
func TestALoopIsCountedOnce(t *testing.T) {
	t.Parallel()
	v := New("v1").Namespace("default").Vertex(VertexLabels{Pipeline: "p", Vertex: "out", Type: "Sink"}, "part", "")
	m := []flow.Message{{Value: []byte("a")}, {Value: []byte("b")}}
	v.Read(5, 50, time.Millisecond)
	v.Applied("", 5, 3, 1, 1, time.Millisecond)
	v.Delivered(function.UDSink, m, time.Millisecond)
	v.Delivered(function.OnSuccessSink, m[:1], time.Millisecond)
	v.Failed(function.UDSink, 1)
	v.Dropped("part", 1, 1, forward.SinkRetriesExhausted)
	v.DeadLettered(1, "poison")
	v.ReadError(nil)
	v.Acked(5, time.Millisecond)
	got := v.Counts()
	got.LatencyNanos = 0
	want := Counts{In: 5, Out: 3, Acked: 5, Errors: 3, Dropped: 2, DeadLetters: 1, Delivered: 2}
	if got != want {
		t.Errorf("counts %+v, want %+v", got, want)
	}
	got.Add(want)
	if got.In != 10 || got.Delivered != 4 {
		t.Errorf("the sum is %+v", got)
	}
}
