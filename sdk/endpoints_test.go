package sdk

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/levada-io/levada/proto/numaflow/common"
	sinkv1 "github.com/levada-io/levada/proto/numaflow/sink/v1"
	sourcev1 "github.com/levada-io/levada/proto/numaflow/source/v1"
	sourcetransformv1 "github.com/levada-io/levada/proto/numaflow/sourcetransform/v1"
)

func TestTransform(t *testing.T) {
	event, moved := time.Unix(100, 5).UTC(), time.Unix(50, 0).UTC()
	r := start(t, endpoint{"sourcetransform.sock", "sourcetransformer-server-info"}, func(ctx context.Context, opts ...Option) error {
		return ServeTransform(ctx, TransformFunc(func(_ context.Context, m Message) ([]Event, error) {
			switch string(m.Value) {
			case "none":
				return nil, nil
			case "fail":
				return nil, errors.New("bad")
			}
			return []Event{{Value: []byte(m.ID), EventTime: moved}, {Keys: m.Keys, Tags: []string{m.Headers()["h"]}}}, nil
		}), opts...)
	})
	if r.info.Metadata != nil {
		t.Errorf("metadata %v", r.info.Metadata)
	}
	client := sourcetransformv1.NewSourceTransformClient(r.conn)
	if !must(client.IsReady(t.Context(), &emptypb.Empty{}))(t).GetReady() {
		t.Error("not ready")
	}
	stream := must(client.SourceTransformFn(t.Context()))(t)
	ok(t, stream.Send(&sourcetransformv1.SourceTransformRequest{Handshake: &sourcetransformv1.Handshake{Sot: true}}))
	if !must(stream.Recv())(t).GetHandshake().GetSot() {
		t.Fatal("no handshake")
	}
	send := func(id, value string) {
		ok(t, stream.Send(&sourcetransformv1.SourceTransformRequest{Request: &sourcetransformv1.SourceTransformRequest_Request{
			Id: id, Value: []byte(value), Keys: []string{"k"}, EventTime: timestamppb.New(event), Headers: map[string]string{"h": "tag"},
		}}))
	}
	type result = sourcetransformv1.SourceTransformResponse_Result
	send("7", "x")
	want := &sourcetransformv1.SourceTransformResponse{Id: "7", Results: []*result{
		{Value: []byte("7"), EventTime: timestamppb.New(moved)},
		{Keys: []string{"k"}, Tags: []string{"tag"}, EventTime: timestamppb.New(event)},
	}}
	if diff := cmp.Diff(want, must(stream.Recv())(t), protocmp.Transform()); diff != "" {
		t.Error(diff)
	}
	send("8", "none")
	want = &sourcetransformv1.SourceTransformResponse{Id: "8", Results: []*result{
		{Tags: []string{"U+005C__DROP__"}, EventTime: timestamppb.New(event)},
	}}
	if diff := cmp.Diff(want, must(stream.Recv())(t), protocmp.Transform()); diff != "" {
		t.Error("a dropped message must still have a result with its event time", diff)
	}
	send("9", "fail")
	_, err := stream.Recv()
	if got := wantCode(t, err, codes.Internal).Message(); got != "UDF_EXECUTION_ERROR(transformer): bad" {
		t.Errorf("message %q", got)
	}
	if r.ended() == nil {
		t.Error("serve returned no error")
	}
}

func TestSinkRoles(t *testing.T) {
	for role, at := range map[string]endpoint{
		"":           {"sink.sock", "sinker-server-info"},
		"udsink":     {"sink.sock", "sinker-server-info"},
		"fb-udsink":  {"fb-sink.sock", "fb-sinker-server-info"},
		"ons-udsink": {"ons-sink.sock", "ons-sinker-server-info"},
	} {
		t.Run(role, func(t *testing.T) {
			t.Setenv(envContainerType, role)
			r := start(t, at, func(ctx context.Context, opts ...Option) error {
				return ServeSink(ctx, SinkFunc(func(context.Context, []Message) ([]Written, error) { return nil, nil }), opts...)
			})
			if !must(sinkv1.NewSinkClient(r.conn).IsReady(t.Context(), &emptypb.Empty{}))(t).GetReady() {
				t.Error("not ready")
			}
		})
	}
}

func TestSink(t *testing.T) {
	t.Setenv(envContainerType, "udsink")
	said := map[string]Written{
		"failed":   Failed(errors.New("full")),
		"fallback": Fallback(),
		"serve":    Serve([]byte("payload")),
		"ons":      OnSuccess(&Result{Value: []byte("v"), Keys: []string{"k"}, Metadata: map[string]map[string][]byte{"g": nil}}),
		"ons-self": OnSuccess(nil),
		"nack":     Nack(NackOptions{Reason: "later"}),
	}
	r := start(t, endpoint{"sink.sock", "sinker-server-info"}, func(ctx context.Context, opts ...Option) error {
		return ServeSink(ctx, SinkFunc(func(_ context.Context, batch []Message) ([]Written, error) {
			if len(batch) == 1 && string(batch[0].Value) == "panic" {
				panic("boom")
			}
			if len(batch) == 2 {
				return nil, nil
			}
			var written []Written
			for _, m := range batch {
				written = append(written, said[string(m.Value)])
			}
			return written, nil
		}), opts...)
	})
	stream := must(sinkv1.NewSinkClient(r.conn).SinkFn(t.Context()))(t)
	ok(t, stream.Send(&sinkv1.SinkRequest{Handshake: &sinkv1.Handshake{Sot: true}}))
	if !must(stream.Recv())(t).GetHandshake().GetSot() {
		t.Fatal("no handshake")
	}
	send := func(values ...string) {
		for i, value := range values {
			ok(t, stream.Send(&sinkv1.SinkRequest{Request: &sinkv1.SinkRequest_Request{Id: fmt.Sprint(i), Value: []byte(value)}}))
		}
		ok(t, stream.Send(&sinkv1.SinkRequest{Status: &sinkv1.TransmissionStatus{Eot: true}}))
	}
	batch := func(want ...*sinkv1.SinkResponse_Result) {
		t.Helper()
		var got []*sinkv1.SinkResponse_Result
		for {
			response := must(stream.Recv())(t)
			got = append(got, response.GetResults()...)
			if response.GetStatus().GetEot() {
				break
			}
		}
		if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" {
			t.Error(diff)
		}
	}
	send("failed", "fallback", "serve", "ons", "ons-self", "nack", "written")
	later := "later"
	batch(
		&sinkv1.SinkResponse_Result{Id: "0", Status: sinkv1.Status_FAILURE, ErrMsg: "full"},
		&sinkv1.SinkResponse_Result{Id: "1", Status: sinkv1.Status_FALLBACK},
		&sinkv1.SinkResponse_Result{Id: "2", Status: sinkv1.Status_SERVE, ServeResponse: []byte("payload")},
		&sinkv1.SinkResponse_Result{Id: "3", Status: sinkv1.Status_ON_SUCCESS, OnSuccessMsg: &sinkv1.SinkResponse_Result_Message{
			Value: []byte("v"), Keys: []string{"k"}, Metadata: &common.Metadata{UserMetadata: map[string]*common.KeyValueGroup{"g": {}}}}},
		&sinkv1.SinkResponse_Result{Id: "4", Status: sinkv1.Status_ON_SUCCESS},
		&sinkv1.SinkResponse_Result{Id: "5", Status: sinkv1.Status_NACK, NackOptions: &common.NackOptions{Reason: &later}},
		&sinkv1.SinkResponse_Result{Id: "6"},
	)
	send("a", "b") // the stream serves the next batch; nil means that all were written
	batch(&sinkv1.SinkResponse_Result{Id: "0"}, &sinkv1.SinkResponse_Result{Id: "1"})
	send()
	batch()
	send("panic")
	_, err := stream.Recv()
	if got := wantCode(t, err, codes.Internal).Message(); got != "UDF_EXECUTION_ERROR(udsink): panic: boom" {
		t.Errorf("message %q", got)
	}
	if r.ended() == nil {
		t.Error("serve returned no error")
	}
}

// numbers is a source of 10 messages.
type numbers struct {
	mu     sync.Mutex
	next   int
	acked  []string
	nacked []string
	opened int
}

func (n *numbers) Reopen(context.Context) error { n.opened++; return nil }

func (n *numbers) Read(ctx context.Context, max int) (records []Record, err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for ; n.next < 10 && len(records) < max; n.next++ {
		records = append(records, Record{
			Offset:    Offset{Value: fmt.Append(nil, n.next), Partition: -3},
			Value:     fmt.Append(nil, n.next),
			EventTime: time.Unix(int64(n.next), 0),
			Keys:      []string{"k"}, Headers: map[string]string{"h": "v"},
		})
	}
	if len(records) == 0 {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	return records, nil
}

func (n *numbers) Ack(_ context.Context, offsets []Offset) error {
	for _, o := range offsets {
		n.acked = append(n.acked, fmt.Sprintf("%s/%d", o.Value, o.Partition))
	}
	return nil
}

func (n *numbers) Nack(_ context.Context, offsets []Offset, o NackOptions) error {
	for _, offset := range offsets {
		n.nacked = append(n.nacked, fmt.Sprintf("%s %v", offset.Value, o.Delay))
	}
	return nil
}

func (n *numbers) Pending(context.Context) (int64, error) { return int64(10 - n.next), nil }

func TestSource(t *testing.T) {
	t.Setenv(envReplica, "4")
	source := &numbers{}
	r := start(t, endpoint{"source.sock", "sourcer-server-info"}, func(ctx context.Context, opts ...Option) error {
		return ServeSource(ctx, source, opts...)
	})
	client := sourcev1.NewSourceClient(r.conn)
	read := must(client.ReadFn(t.Context()))(t)
	ok(t, read.Send(&sourcev1.ReadRequest{Handshake: &sourcev1.Handshake{Sot: true}}))
	hello := &sourcev1.ReadResponse{Handshake: &sourcev1.Handshake{Sot: true}, Status: &sourcev1.ReadResponse_Status{}}
	if diff := cmp.Diff(hello, must(read.Recv())(t), protocmp.Transform()); diff != "" {
		t.Error(diff)
	}
	if source.opened != 1 {
		t.Error("the source was not told of the new stream")
	}
	batch := func(first, count int) {
		t.Helper()
		ok(t, read.Send(&sourcev1.ReadRequest{Request: &sourcev1.ReadRequest_Request{NumRecords: 6, TimeoutInMs: 20}}))
		for i := range count {
			text := fmt.Append(nil, first+i)
			want := &sourcev1.ReadResponse{Status: &sourcev1.ReadResponse_Status{}, Result: &sourcev1.ReadResponse_Result{
				Payload: text, Offset: &sourcev1.Offset{Offset: text, PartitionId: -3}, EventTime: &timestamppb.Timestamp{Seconds: int64(first + i)},
				Keys: []string{"k"}, Headers: map[string]string{"h": "v"},
			}}
			if diff := cmp.Diff(want, must(read.Recv())(t), protocmp.Transform()); diff != "" {
				t.Error(diff)
			}
		}
		last := &sourcev1.ReadResponse{Status: &sourcev1.ReadResponse_Status{Eot: true}}
		if diff := cmp.Diff(last, must(read.Recv())(t), protocmp.Transform()); diff != "" {
			t.Error(diff)
		}
	}
	batch(0, 6)
	batch(6, 4)
	batch(10, 0) // time is up, which is not a failure

	ack := must(client.AckFn(t.Context()))(t)
	success := &sourcev1.AckResponse_Result{Success: &emptypb.Empty{}}
	ok(t, ack.Send(&sourcev1.AckRequest{Handshake: &sourcev1.Handshake{Sot: true}}))
	if diff := cmp.Diff(&sourcev1.AckResponse{Handshake: &sourcev1.Handshake{Sot: true}, Result: success}, must(ack.Recv())(t), protocmp.Transform()); diff != "" {
		t.Error(diff)
	}
	ok(t, ack.Send(&sourcev1.AckRequest{Request: &sourcev1.AckRequest_Request{Offsets: []*sourcev1.Offset{
		{Offset: []byte("0"), PartitionId: -3}, {Offset: []byte("1")}}}}))
	if diff := cmp.Diff(&sourcev1.AckResponse{Result: success}, must(ack.Recv())(t), protocmp.Transform()); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{"0/-3", "1/0"}, source.acked); diff != "" {
		t.Error(diff)
	}
	delay := uint64(1500)
	must(client.NackFn(t.Context(), &sourcev1.NackRequest{Request: []*sourcev1.NackRequest_Request{
		{Offsets: []*sourcev1.Offset{{Offset: []byte("2")}}, NackOptions: &common.NackOptions{Delay: &delay}},
		{Offsets: []*sourcev1.Offset{{Offset: []byte("3")}}},
	}}))(t)
	if diff := cmp.Diff([]string{"2 1.5s", "3 0s"}, source.nacked); diff != "" {
		t.Error(diff)
	}
	if got := must(client.PendingFn(t.Context(), &emptypb.Empty{}))(t).GetResult().GetCount(); got != 0 {
		t.Errorf("pending %d", got)
	}
	if got := must(client.PartitionsFn(t.Context(), &emptypb.Empty{}))(t).GetResult(); len(got.GetPartitions()) != 1 || got.GetPartitions()[0] != 4 {
		t.Errorf("partitions %v, want the replica", got)
	}
	ok(t, read.CloseSend())
	_, err := read.Recv()
	wantEOF(t, err)

	bad := must(client.ReadFn(t.Context()))(t)
	ok(t, bad.Send(&sourcev1.ReadRequest{}))
	_, err = bad.Recv()
	wantCode(t, err, codes.InvalidArgument)
}
