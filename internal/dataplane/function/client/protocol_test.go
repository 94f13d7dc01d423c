package client

import (
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/levada-io/levada/internal/dataplane/function/wire"
	"github.com/levada-io/levada/internal/flow"
	functionv1 "github.com/levada-io/levada/proto/levada/function/v1"
	"github.com/levada-io/levada/proto/numaflow/common"
	mapv1 "github.com/levada-io/levada/proto/numaflow/map/v1"
	sinkv1 "github.com/levada-io/levada/proto/numaflow/sink/v1"
	sourcetransformv1 "github.com/levada-io/levada/proto/numaflow/sourcetransform/v1"
)

// What is written by hand must be what the generated code reads, and the other way round.

type drawn struct {
	m        flow.Message
	headers  map[string]string
	metadata *common.Metadata
}

func anyMessage(t *rapid.T) drawn {
	text := rapid.StringN(0, 20, 40)
	d := drawn{m: flow.Message{
		ID: rapid.StringN(1, 20, 40).Draw(t, "id"), Keys: rapid.SliceOfN(text, 0, 3).Draw(t, "keys"), Value: rapid.SliceOfN(rapid.Byte(), 0, 400).Draw(t, "value"),
		EventTime: rapid.Int64Range(-1<<62, 1<<62).Draw(t, "event time"),
	}}
	d.headers = rapid.MapOfN(text, text, 0, 3).Draw(t, "headers")
	for k, v := range d.headers {
		d.m.Headers = flow.AppendHeader(d.m.Headers, k, v)
	}
	if rapid.Bool().Draw(t, "has metadata") {
		group := func(v string) map[string]*common.KeyValueGroup {
			return map[string]*common.KeyValueGroup{v: {KeyValue: map[string][]byte{"k": []byte(v)}}}
		}
		d.metadata = &common.Metadata{SysMetadata: group("sys"), UserMetadata: group("user")}
		d.m.Metadata, _ = proto.Marshal(d.metadata)
	}
	return d
}

// read takes one framed message apart.
func read(t *rapid.T, frame []byte, into proto.Message) {
	n := int(frame[1])<<24 | int(frame[2])<<16 | int(frame[3])<<8 | int(frame[4])
	if frame[0] != 0 || n != len(frame)-wire.Prefix {
		t.Fatalf("prefix says %d bytes of %d", n, len(frame)-wire.Prefix)
	}
	if err := proto.Unmarshal(frame[wire.Prefix:], into); err != nil {
		t.Fatal(err)
	}
}

func same(t *rapid.T, want, got proto.Message) {
	if d := cmp.Diff(want, got, protocmp.Transform()); d != "" {
		t.Fatal(d)
	}
}

func TestRequestsAreWhatTheContractSays(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		d := anyMessage(t)
		at, before := timestamppb.New(time.Unix(0, d.m.EventTime)), timestamppb.New(time.UnixMilli(-1))
		var m mapv1.MapRequest
		read(t, appendMapRequest(nil, &d.m, "17"), &m)
		same(t, &mapv1.MapRequest{Id: "17", Request: &mapv1.MapRequest_Request{Keys: d.m.Keys, Value: d.m.Value, EventTime: at, Watermark: before, Headers: d.headers, Metadata: d.metadata}}, &m)

		var s sourcetransformv1.SourceTransformRequest
		read(t, appendInnerRequest(nil, &transformLayout, &d.m, "18"), &s)
		same(t, &sourcetransformv1.SourceTransformRequest{Request: &sourcetransformv1.SourceTransformRequest_Request{Id: "18", Keys: d.m.Keys, Value: d.m.Value, EventTime: at, Watermark: before, Headers: d.headers, Metadata: d.metadata}}, &s)

		var k sinkv1.SinkRequest
		read(t, appendInnerRequest(nil, &sinkLayout, &d.m, d.m.ID), &k)
		same(t, &sinkv1.SinkRequest{Request: &sinkv1.SinkRequest_Request{Id: d.m.ID, Keys: d.m.Keys, Value: d.m.Value, EventTime: at, Watermark: before, Headers: d.headers, Metadata: d.metadata}}, &k)

		var b functionv1.MapBlock
		read(t, appendBlock(nil, 9, []flow.Message{d.m, d.m}), &b)
		one := &functionv1.MapMessage{Id: d.m.ID, Keys: d.m.Keys, Value: d.m.Value, EventTimeNs: d.m.EventTime, WatermarkNs: -int64(time.Millisecond), Headers: d.headers, Metadata: d.metadata}
		same(t, &functionv1.MapBlock{Id: 9, Messages: []*functionv1.MapMessage{one, one}}, &b)
	})
}

func TestResultsAreReadAsTheContractSays(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		d, parent := anyMessage(t), anyMessage(t)
		tags := rapid.SliceOfN(rapid.SampledFrom([]string{"even", "odd", tagDrop, tagNack, tagFail}), 0, 3).Draw(t, "tags")
		delay := uint64(1500)
		answer := &mapv1.MapResponse{Id: "3", Results: []*mapv1.MapResponse_Result{{Keys: d.m.Keys, Value: d.m.Value, Tags: tags, Metadata: d.metadata, NackOptions: &common.NackOptions{Delay: &delay}}}}
		wire, err := proto.Marshal(answer)
		if err != nil {
			t.Fatal(err)
		}
		var r response
		if err := r.decode(wire); err != nil || string(r.id) != "3" || len(r.results) != 1 {
			t.Fatalf("%+v, %v", r, err)
		}
		var out Outcome
		got, err := mapResult.decodeResult(r.results[0], &parent.m, &out, nil)
		if err != nil {
			t.Fatal(err)
		}
		last := ""
		var plain []string
		for _, tag := range tags {
			if tag == tagDrop || tag == tagNack || tag == tagFail {
				last = tag
			} else {
				plain = append(plain, tag)
			}
		}
		switch last {
		case tagDrop:
			if out.Dropped != 1 || len(got) != 0 {
				t.Fatalf("dropped: %+v %v", out, got)
			}
			return
		case tagNack:
			if out.Verdict != Nacked || out.Delay != 1500*time.Millisecond {
				t.Fatalf("nacked: %+v", out)
			}
			return
		case tagFail:
			if out.Verdict != Retry {
				t.Fatalf("failed: %+v", out)
			}
			return
		}
		if len(got) != 1 || string(got[0].Value) != string(d.m.Value) || !cmp.Equal(got[0].Tags, plain) || got[0].EventTime != parent.m.EventTime || string(got[0].Headers) != string(parent.m.Headers) {
			t.Fatalf("%+v", got)
		}
		var metadata common.Metadata
		if err := proto.Unmarshal(got[0].Metadata, &metadata); err != nil {
			t.Fatal(err)
		}
		same(t, &common.Metadata{SysMetadata: parent.metadata.GetSysMetadata(), UserMetadata: d.metadata.GetUserMetadata()}, &metadata)
	})
}

var strayCount atomic.Uint64

// FuzzAnswers feeds the readers of answers anything: they return an error or a result, and nothing else.
func FuzzAnswers(f *testing.F) {
	seed, _ := proto.Marshal(&mapv1.MapResponse{Id: "3", Results: []*mapv1.MapResponse_Result{{Keys: []string{"a"}, Value: []byte("b"), Tags: []string{tagNack}}}})
	f.Add(seed)
	block, _ := proto.Marshal(&functionv1.MapBlockResult{Id: 1, First: 0, Outcomes: []*functionv1.MapOutcome{{Error: "x", Stack: "y"}, {Results: []*functionv1.MapResult{{Value: []byte("v")}}}}})
	f.Add(block)
	f.Fuzz(func(t *testing.T, b []byte) {
		in := []flow.Message{{ID: "a"}, {ID: "b"}}
		var r response
		if r.decode(b) == nil {
			for _, result := range r.results {
				for _, layout := range []resultLayout{mapResult, transformResult} {
					var out Outcome
					_, _ = layout.decodeResult(result, &in[0], &out, nil)
				}
			}
		}
		c := newCall(in)
		_ = c.outcome(0, b)
		_, _, _ = decodeSourced(b)
		_, _ = readStatus(b)
		_ = DebugInfo(b)
		g := group{call: c, byID: func(id []byte) (int, bool) { n, ok := parseID(id); return int(n), ok && n < 2 }, results: make([]SinkResult, 2), strays: &strayCount}
		_, _ = sinkBatch.answer(b, &g)
		_, _ = batchMap.answer(b, &g)
	})
}
