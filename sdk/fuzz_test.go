package sdk

import (
	"bytes"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	functionv1 "github.com/levada-io/levada/proto/levada/function/v1"
	"github.com/levada-io/levada/proto/numaflow/common"
	mapv1 "github.com/levada-io/levada/proto/numaflow/map/v1"
	sinkv1 "github.com/levada-io/levada/proto/numaflow/sink/v1"
	sourcetransformv1 "github.com/levada-io/levada/proto/numaflow/sourcetransform/v1"
)

// What protobuf accepts, the decoders written by hand must accept too, and read the same from it. What protobuf refuses they
// may accept only where they decode late: headers and metadata.

func FuzzMapRequest(f *testing.F) {
	seed(f, &mapv1.MapRequest{Id: "1", Request: &mapv1.MapRequest_Request{Keys: []string{"k"}, Value: []byte("v"),
		EventTime: timestamppb.New(time.Unix(1, 2)), Headers: map[string]string{"a": "b"}, Metadata: someMetadata()}})
	seed(f, &mapv1.MapRequest{Handshake: &mapv1.Handshake{Sot: true}, Status: &mapv1.TransmissionStatus{Eot: true}})
	f.Fuzz(func(t *testing.T, raw []byte) {
		var want mapv1.MapRequest
		if proto.Unmarshal(raw, &want) != nil {
			_, _, _ = decodeMapRequest(raw)
			return
		}
		e := must(decodeEnvelope(raw, mapEnvelope))(t)
		if e.id != want.GetId() || e.start != want.GetHandshake().GetSot() || e.end != want.GetStatus().GetEot() {
			t.Errorf("%+v, want %v", e, &want)
		}
		id, got, err := decodeMapRequest(raw)
		ok(t, err)
		r := want.GetRequest()
		same(t, got, id, r, r.GetEventTime(), r.GetWatermark())
	})
}

func FuzzTransformRequest(f *testing.F) {
	seed(f, &sourcetransformv1.SourceTransformRequest{Request: &sourcetransformv1.SourceTransformRequest_Request{
		Id: "1", Keys: []string{"k"}, Value: []byte("v"), Headers: map[string]string{"a": "b"}, Metadata: someMetadata()}})
	f.Fuzz(func(t *testing.T, raw []byte) {
		var want sourcetransformv1.SourceTransformRequest
		if proto.Unmarshal(raw, &want) != nil {
			return
		}
		e := must(decodeEnvelope(raw, transformEnvelope))(t)
		if e.start != want.GetHandshake().GetSot() {
			t.Errorf("%+v, want %v", e, &want)
		}
		r := want.GetRequest()
		same(t, must(decodeMessage(e.message, transformLayout))(t), r.GetId(), r, r.GetEventTime(), r.GetWatermark())
	})
}

func FuzzSinkRequest(f *testing.F) {
	seed(f, &sinkv1.SinkRequest{Request: &sinkv1.SinkRequest_Request{
		Id: "1", Keys: []string{"k"}, Value: []byte("v"), Headers: map[string]string{"a": "b"}, Metadata: someMetadata()}})
	f.Fuzz(func(t *testing.T, raw []byte) {
		var want sinkv1.SinkRequest
		if proto.Unmarshal(raw, &want) != nil {
			return
		}
		e := must(decodeEnvelope(raw, sinkEnvelope))(t)
		if e.start != want.GetHandshake().GetSot() || e.end != want.GetStatus().GetEot() {
			t.Errorf("%+v, want %v", e, &want)
		}
		r := want.GetRequest()
		same(t, must(decodeMessage(e.message, sinkLayout))(t), r.GetId(), r, r.GetEventTime(), r.GetWatermark())
	})
}

func FuzzBlock(f *testing.F) {
	seed(f, &functionv1.MapBlock{Id: 7, Messages: []*functionv1.MapMessage{
		{Id: "1", Keys: []string{"k"}, Value: []byte("v"), EventTimeNs: -5, WatermarkNs: 1700000000123456789},
		{Headers: map[string]string{"a": "b"}, Metadata: someMetadata()}, {},
	}})
	f.Fuzz(func(t *testing.T, raw []byte) {
		var want functionv1.MapBlock
		if proto.Unmarshal(raw, &want) != nil || want.GetId() > maxBlockID {
			if b, err := decodeBlock(raw); err == nil {
				for _, at := range b.spans {
					_, _ = decodeMessage(b.raw[at.start:at.end], blockLayout)
				}
			}
			return
		}
		b := must(decodeBlock(raw))(t)
		if b.id != want.GetId() || len(b.spans) != len(want.GetMessages()) {
			t.Fatalf("block %d of %d messages, want %d of %d", b.id, len(b.spans), want.GetId(), len(want.GetMessages()))
		}
		for i, at := range b.spans {
			m := want.GetMessages()[i]
			same(t, must(decodeMessage(b.raw[at.start:at.end], blockLayout))(t), m.GetId(), m,
				timestamppb.New(time.Unix(0, m.GetEventTimeNs())), timestamppb.New(time.Unix(0, m.GetWatermarkNs())))
		}
	})
}

// FuzzResults encodes by hand and decodes by protobuf, whatever the sizes.
func FuzzResults(f *testing.F) {
	f.Add("key", []byte("value"), "tag", 1, "error", "")
	f.Add("", bytes.Repeat([]byte("x"), 127), "\xff", 3, "", "stack")
	f.Add("k", bytes.Repeat([]byte("x"), 20000), "t", 200, "", "")
	f.Fuzz(func(t *testing.T, key string, value []byte, tag string, count int, text, stack string) {
		if count < 0 || count > 300 || len(value)*count > 1<<22 {
			return
		}
		r := Result{Keys: []string{key}, Value: value, Tags: []string{tag, key}}
		if count%3 == 1 {
			r.Metadata = map[string]map[string][]byte{tag: {key: value}}
			r.Nack = &NackOptions{Reason: tag, Delay: time.Second}
		}
		var failed *failure
		if text != "" {
			failed = userError(&failure{text: text})
			failed.stack = stack
		}
		results := slices.Repeat([]Result{r}, count)
		p := pending{id: 3}
		p.add(5, results, nil, 0, 1<<30)
		p.add(6, nil, failed, 0, 1<<30)
		p.add(4, nil, nil, 0, 1<<30)
		p.add(9, nil, nil, 0, 1<<30)
		replies := p.take()
		if len(replies) != 2 {
			t.Fatalf("%d frames, want 4, 5, 6 and 9 in two", len(replies))
		}
		var got functionv1.MapBlockResult
		err := proto.Unmarshal(*replies[0].buffer, &got)
		if err != nil {
			if failed != nil && stack != "" {
				return // stacks are made UTF-8 where they are taken
			}
			t.Fatal(err)
		}
		if got.GetId() != 3 || got.GetFirst() != 4 || len(got.GetOutcomes()) != 3 {
			t.Fatalf("%d outcomes from %d of block %d", len(got.GetOutcomes()), got.GetFirst(), got.GetId())
		}
		outcome := got.GetOutcomes()[1]
		if outcome.GetError() != "" {
			if outcome.GetError() != errOutputUTF8.Error() || len(outcome.GetResults()) > 0 {
				t.Fatal(outcome.GetError())
			}
			return
		}
		var want []*functionv1.MapResult
		for range results {
			w := &functionv1.MapResult{Keys: r.Keys, Value: r.Value, Tags: r.Tags, Metadata: userMetadata(r.Metadata)}
			if r.Nack != nil {
				w.NackOptions = r.Nack.proto()
			}
			want = append(want, w)
		}
		if !proto.Equal(&functionv1.MapOutcome{Results: want}, outcome) {
			t.Errorf("%d results of %d bytes came back differently", count, len(value))
		}
	})
}

func seed(f *testing.F, m proto.Message) {
	raw, err := proto.Marshal(m)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(raw)
	f.Add(append(raw, raw...))
}

func someMetadata() *common.Metadata {
	return &common.Metadata{PreviousVertex: "in", UserMetadata: map[string]*common.KeyValueGroup{"g": {KeyValue: map[string][]byte{"k": nil}}}}
}

type decoded interface {
	GetKeys() []string
	GetValue() []byte
	GetHeaders() map[string]string
	GetMetadata() *common.Metadata
}

func same(t *testing.T, got Message, id string, want decoded, event, watermark *timestamppb.Timestamp) {
	t.Helper()
	if got.ID != id || !slices.Equal(got.Keys, want.GetKeys()) || !bytes.Equal(got.Value, want.GetValue()) {
		t.Errorf("%q %q %q, want %q %v", got.ID, got.Keys, got.Value, id, want)
	}
	if !got.EventTime.Equal(event.AsTime()) || !got.Watermark.Equal(watermark.AsTime()) {
		t.Errorf("times %v %v, want %v %v", got.EventTime, got.Watermark, event.AsTime(), watermark.AsTime())
	}
	if headers := got.Headers(); len(headers) != len(want.GetHeaders()) || len(headers) > 0 && !cmp.Equal(headers, want.GetHeaders()) {
		t.Errorf("headers %v, want %v", headers, want.GetHeaders())
	}
	md := got.Metadata()
	w := want.GetMetadata()
	if md.PreviousVertex != w.GetPreviousVertex() || !cmp.Equal(md.User, groups(w.GetUserMetadata())) || !cmp.Equal(md.System, groups(w.GetSysMetadata())) {
		t.Errorf("metadata %v, want %v", md, w)
	}
}
