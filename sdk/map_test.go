package sdk

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/levada-io/levada/proto/numaflow/common"
	mapv1 "github.com/levada-io/levada/proto/numaflow/map/v1"
)

var mapEndpoint = endpoint{"map.sock", mapInfo}

func mapper(f MapFunc) func(context.Context, ...Option) error {
	return func(ctx context.Context, opts ...Option) error { return ServeMap(ctx, f, opts...) }
}

func mapRequest(id string, value string) *mapv1.MapRequest {
	return &mapv1.MapRequest{Id: id, Request: &mapv1.MapRequest_Request{Value: []byte(value)}}
}

type mapStream = grpc.BidiStreamingClient[mapv1.MapRequest, mapv1.MapResponse]

// openMap opens the stream and shakes hands.
func openMap(t testing.TB, conn *grpc.ClientConn) mapStream {
	t.Helper()
	stream := must(mapv1.NewMapClient(conn).MapFn(t.Context()))(t)
	ok(t, stream.Send(&mapv1.MapRequest{Handshake: &mapv1.Handshake{Sot: true}}))
	want := &mapv1.MapResponse{Handshake: &mapv1.Handshake{Sot: true}}
	if diff := cmp.Diff(want, must(stream.Recv())(t), protocmp.Transform()); diff != "" {
		t.Fatal("handshake", diff)
	}
	return stream
}

func TestServerInfo(t *testing.T) {
	t.Setenv(envContainerType, "")
	idle := func(ctx context.Context, m Message) ([]Result, error) { return nil, nil }
	r := start(t, mapEndpoint, mapper(idle))
	content := must(os.ReadFile(filepath.Join(r.dir, mapInfo)))(t)
	want := `{"protocol":"uds","language":"go","minimum_numaflow_version":"1.4.0-z","version":"v0.12.0",` +
		`"metadata":{"LEVADA_BLOCKS":"1","MAP_MODE":"unary-map"}}U+005C__END__`
	if string(content) != want {
		t.Errorf("server info\n got %s\nwant %s", content, want)
	}
	ready := must(mapv1.NewMapClient(r.conn).IsReady(t.Context(), &emptypb.Empty{}))(t)
	if !ready.GetReady() {
		t.Error("not ready")
	}
	r.stop()
	ok(t, r.ended())
	if left := must(os.ReadDir(r.dir))(t); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}

	r = start(t, mapEndpoint, mapper(idle), WithoutBlocks())
	if diff := cmp.Diff(map[string]string{"MAP_MODE": "unary-map"}, r.info.Metadata); diff != "" {
		t.Error(diff)
	}
}

func TestServeRemovesWhatAnEarlierProcessLeft(t *testing.T) {
	dir := must(os.MkdirTemp("", "sdk"))(t)
	defer os.RemoveAll(dir)
	for _, name := range []string{"map.sock", mapInfo} {
		ok(t, os.WriteFile(filepath.Join(dir, name), []byte("stale"), 0o600))
	}
	listener, err := listen(dir, mapEndpoint, nil)
	ok(t, err)
	listener.Close()
	content := must(os.ReadFile(filepath.Join(dir, mapInfo)))(t)
	if !strings.HasSuffix(string(content), `"metadata":null}`+infoEnd) {
		t.Errorf("server info %s", content)
	}
}

func TestMapCarriesEverything(t *testing.T) {
	event, mark := time.Unix(1700000000, 123456789).UTC(), time.Unix(-1, 0).UTC()
	r := start(t, mapEndpoint, mapper(func(_ context.Context, m Message) ([]Result, error) {
		want := Metadata{
			PreviousVertex: "in",
			System:         map[string]map[string][]byte{"tracing": {"a": []byte("b")}},
			User:           map[string]map[string][]byte{"g": {"k": []byte("v")}},
		}
		var wrong []string
		for what, diff := range map[string]string{
			"id":       cmp.Diff("offset-7", m.ID),
			"keys":     cmp.Diff([]string{"a", "b"}, m.Keys),
			"value":    cmp.Diff("value", string(m.Value)),
			"times":    cmp.Diff([]time.Time{event, mark}, []time.Time{m.EventTime, m.Watermark}),
			"headers":  cmp.Diff(map[string]string{"h": "1", "": ""}, m.Headers()),
			"metadata": cmp.Diff(want, m.Metadata()),
			"clone":    cmp.Diff(want, m.Clone().Metadata()),
		} {
			if diff != "" {
				wrong = append(wrong, what+" "+diff)
			}
		}
		return []Result{
			{Keys: []string{"k"}, Value: []byte(strings.Join(wrong, "\n")), Tags: []string{"t", ""}, Metadata: m.Metadata().User},
			NackResult(NackOptions{Reason: "later", MaxDeliveries: 3, Delay: 2 * time.Second, Extra: map[string]string{"x": "y"}}),
			DropResult(),
			{},
		}, nil
	}))
	stream := openMap(t, r.conn)
	request := mapRequest("offset-7", "value")
	request.Request.Keys = []string{"a", "b"}
	request.Request.EventTime, request.Request.Watermark = timestamppb.New(event), timestamppb.New(mark)
	request.Request.Headers = map[string]string{"h": "1", "": ""}
	group := func(k, v string) *common.KeyValueGroup {
		return &common.KeyValueGroup{KeyValue: map[string][]byte{k: []byte(v)}}
	}
	request.Request.Metadata = &common.Metadata{
		PreviousVertex: "in",
		SysMetadata:    map[string]*common.KeyValueGroup{"tracing": group("a", "b")},
		UserMetadata:   map[string]*common.KeyValueGroup{"g": group("k", "v")},
	}
	ok(t, stream.Send(request))
	reason, deliveries, delay := "later", uint32(3), uint64(2000)
	want := &mapv1.MapResponse{Id: "offset-7", Results: []*mapv1.MapResponse_Result{
		{Keys: []string{"k"}, Tags: []string{"t", ""},
			Metadata: &common.Metadata{UserMetadata: map[string]*common.KeyValueGroup{"g": group("k", "v")}}},
		{Tags: []string{"U+005C__NACK__"}, NackOptions: &common.NackOptions{
			Reason: &reason, MaxDeliveries: &deliveries, Delay: &delay, NackMap: map[string]string{"x": "y"}}},
		{Tags: []string{"U+005C__DROP__"}},
		{},
	}}
	if diff := cmp.Diff(want, must(stream.Recv())(t), protocmp.Transform()); diff != "" {
		t.Error(diff)
	}
}

func TestMapAnswersAllIDsAndEndsAfterHalfClose(t *testing.T) {
	r := start(t, mapEndpoint, mapper(func(_ context.Context, m Message) ([]Result, error) {
		switch {
		case string(m.Value) == "none":
			return nil, nil
		case len(m.Value)%7 == 0:
			time.Sleep(time.Millisecond)
		}
		return []Result{{Value: m.Value}}, nil
	}))
	stream := openMap(t, r.conn)
	want := map[string]int{}
	go func() {
		for i := range 2000 {
			if stream.Send(mapRequest(strconv.Itoa(i), strings.Repeat("x", i%20))) != nil {
				return
			}
		}
		_ = stream.Send(mapRequest("filtered", "none"))
		_ = stream.CloseSend()
	}()
	for i := range 2000 {
		want[strconv.Itoa(i)] = 1
	}
	want["filtered"] = 0
	got := map[string]int{}
	for range 2001 {
		response := must(stream.Recv())(t)
		got[response.GetId()] = len(response.GetResults())
	}
	if !maps.Equal(got, want) {
		t.Errorf("%d ids, want %d", len(got), len(want))
	}
	_, err := stream.Recv()
	wantEOF(t, err)
}

func TestMapRefusesAStreamWithoutHandshake(t *testing.T) {
	r := start(t, mapEndpoint, mapper(cat))
	stream := must(mapv1.NewMapClient(r.conn).MapFn(t.Context()))(t)
	ok(t, stream.Send(mapRequest("1", "x")))
	_, err := stream.Recv()
	if st := wantCode(t, err, codes.InvalidArgument); st.Message() != "invalid handshake" {
		t.Errorf("message %q", st.Message())
	}
	openMap(t, r.conn) // the server lives
}

// A failure of user code reaches the platform at once, also while another call is stuck, and ends the process with an error.
func TestMapFailureEndsTheProcess(t *testing.T) {
	for _, c := range []struct{ value, text, detail string }{
		{"error", "UDF_EXECUTION_ERROR(udf): no such account", "no such account"},
		{"panic", "UDF_EXECUTION_ERROR(udf): panic: boom", "map_test.go"},
	} {
		t.Run(c.value, func(t *testing.T) {
			t.Setenv(envContainerType, "udf")
			stuck := make(chan struct{})
			r := start(t, mapEndpoint, mapper(func(ctx context.Context, m Message) ([]Result, error) {
				switch string(m.Value) {
				case "error":
					<-stuck
					return nil, errors.New("no such account")
				case "panic":
					<-stuck
					panic("boom")
				}
				close(stuck)
				<-ctx.Done()
				return nil, nil
			}))
			stream := openMap(t, r.conn)
			ok(t, stream.Send(mapRequest("1", "stuck")))
			ok(t, stream.Send(mapRequest("2", c.value)))
			_, err := stream.Recv()
			st := wantCode(t, err, codes.Internal)
			if st.Message() != c.text {
				t.Errorf("message %q, want %q", st.Message(), c.text)
			}
			if info, isInfo := st.Details()[0].(*errdetails.DebugInfo); !isInfo || !strings.Contains(info.Detail, c.detail) {
				t.Errorf("detail %v, want it to contain %q", st.Details(), c.detail)
			}
			if err := r.ended(); err == nil || !strings.Contains(err.Error(), "user code failed") {
				t.Errorf("serve returned %v", err)
			}
		})
	}
}

// Slow calls run in parallel although quick ones share a goroutine.
func TestMapConcurrency(t *testing.T) {
	const calls = 200
	var inside, most atomic.Int64
	r := start(t, mapEndpoint, mapper(func(_ context.Context, m Message) ([]Result, error) {
		now := inside.Add(1)
		defer inside.Add(-1)
		for {
			if old := most.Load(); now <= old || most.CompareAndSwap(old, now) {
				break
			}
		}
		time.Sleep(20 * time.Millisecond)
		return nil, nil
	}), WithConcurrency(50))
	stream := openMap(t, r.conn)
	began := time.Now()
	for i := range calls {
		ok(t, stream.Send(mapRequest(strconv.Itoa(i), "")))
	}
	for range calls {
		must(stream.Recv())(t)
	}
	if got := most.Load(); got < 25 || got > 50 {
		t.Errorf("%d calls at once, want nearly 50 and no more", got)
	}
	if took := time.Since(began); took > calls*20*time.Millisecond/10 {
		t.Errorf("took %v", took)
	}
}

// A client that sends without reading must not lock up with us, however small the transport's buffers are.
func TestMapReadsWhileItsAnswersAreNotRead(t *testing.T) {
	r := start(t, mapEndpoint, mapper(cat))
	stream := openMap(t, r.conn)
	value := strings.Repeat("x", 10_000)
	for i := range 300 {
		ok(t, stream.Send(mapRequest(strconv.Itoa(i), value)))
	}
	for range 300 {
		must(stream.Recv())(t)
	}
}

func TestMapMessageOf60MiB(t *testing.T) {
	r := start(t, mapEndpoint, mapper(func(_ context.Context, m Message) ([]Result, error) {
		return []Result{{Value: m.Value}}, nil
	}))
	stream := openMap(t, r.conn)
	ok(t, stream.Send(mapRequest("1", strings.Repeat("x", 60<<20))))
	if got := len(must(stream.Recv())(t).GetResults()[0].GetValue()); got != 60<<20 {
		t.Errorf("%d bytes", got)
	}
}

// A stopping function serves open streams until the platform closes them, and takes no new ones.
func TestStopDrains(t *testing.T) {
	entered, release := make(chan struct{}, 1), make(chan struct{})
	r := start(t, mapEndpoint, mapper(func(_ context.Context, m Message) ([]Result, error) {
		entered <- struct{}{}
		<-release
		return []Result{{Value: m.Value}}, nil
	}))
	stream := openMap(t, r.conn)
	ok(t, stream.Send(mapRequest("1", "before")))
	<-entered
	r.stop()
	time.Sleep(20 * time.Millisecond)
	ok(t, stream.Send(mapRequest("2", "after")))
	close(release)
	must(stream.Recv())(t)
	must(stream.Recv())(t)
	ok(t, stream.CloseSend())
	_, err := stream.Recv()
	wantEOF(t, err)
	ok(t, r.ended())
}

func TestStopIsBounded(t *testing.T) {
	r := start(t, mapEndpoint, mapper(func(ctx context.Context, m Message) ([]Result, error) {
		<-ctx.Done()
		return nil, ctx.Err()
	}), WithGrace(50*time.Millisecond))
	stream := openMap(t, r.conn)
	ok(t, stream.Send(mapRequest("1", "")))
	r.stop()
	_, err := stream.Recv()
	wantCode(t, err, codes.Unavailable)
	if err := r.ended(); err != nil && !strings.Contains(err.Error(), "context canceled") {
		t.Errorf("serve returned %v", err)
	}
}

func TestStreamMap(t *testing.T) {
	r := start(t, endpoint{"mapstream.sock", mapInfo}, func(ctx context.Context, opts ...Option) error {
		return ServeStreamMap(ctx, StreamMapFunc(func(_ context.Context, m Message, emit func(Result) error) error {
			for _, part := range strings.Fields(string(m.Value)) {
				if err := emit(Result{Value: []byte(part)}); err != nil {
					return err
				}
			}
			return nil
		}), opts...)
	})
	if r.info.Metadata[metadataMapMode] != "stream-map" || r.info.Metadata[metadataBlocks] != "" {
		t.Errorf("metadata %v", r.info.Metadata)
	}
	stream := openMap(t, r.conn)
	ok(t, stream.Send(mapRequest("1", "a b c")))
	ok(t, stream.Send(mapRequest("2", "")))
	got := map[string]string{}
	for open := 2; open > 0; {
		response := must(stream.Recv())(t)
		for _, result := range response.GetResults() {
			got[response.GetId()] += string(result.GetValue())
		}
		if response.GetStatus().GetEot() {
			open--
			got[response.GetId()] += "."
			if len(response.GetResults()) > 0 {
				t.Error("results beside eot")
			}
		}
	}
	if diff := cmp.Diff(map[string]string{"1": "abc.", "2": "."}, got); diff != "" {
		t.Error(diff)
	}
	ok(t, stream.CloseSend())
	_, err := stream.Recv()
	wantEOF(t, err)
}

func TestBatchMap(t *testing.T) {
	r := start(t, endpoint{"batchmap.sock", mapInfo}, func(ctx context.Context, opts ...Option) error {
		return ServeBatchMap(ctx, BatchMapFunc(func(_ context.Context, batch []Message) ([][]Result, error) {
			results := make([][]Result, len(batch))
			for i, m := range batch {
				if string(m.Value) == "short" {
					return results[:i], nil
				}
				results[i] = []Result{{Value: fmt.Appendf(nil, "%s of %d", m.Value, len(batch))}}
			}
			return results, nil
		}), opts...)
	})
	if r.info.Metadata[metadataMapMode] != "batch-map" {
		t.Errorf("metadata %v", r.info.Metadata)
	}
	stream := openMap(t, r.conn)
	eot := &mapv1.MapRequest{Status: &mapv1.TransmissionStatus{Eot: true}}
	for _, size := range []int{3, 0, 1} {
		for i := range size {
			ok(t, stream.Send(mapRequest(strconv.Itoa(i), "m")))
		}
		ok(t, stream.Send(eot))
		for i := range size {
			response := must(stream.Recv())(t)
			if got, want := string(response.GetResults()[0].GetValue()), fmt.Sprintf("m of %d", size); got != want || response.GetId() != strconv.Itoa(i) {
				t.Errorf("id %s: %s, want %s", response.GetId(), got, want)
			}
		}
		if last := must(stream.Recv())(t); !last.GetStatus().GetEot() || last.GetId() != "" {
			t.Errorf("%v, want eot", last)
		}
	}
	ok(t, stream.Send(mapRequest("1", "short")))
	ok(t, stream.Send(eot))
	_, err := stream.Recv()
	wantCode(t, err, codes.Internal)
	if r.ended() == nil {
		t.Error("serve returned no error")
	}
}

func TestAnnounceUnary(t *testing.T) {
	file := filepath.Join(t.TempDir(), "announce")
	ok(t, os.WriteFile(file, make([]byte, announceFileSize), 0o600))
	t.Setenv(envAnnounceFile, file)
	var once sync.Once
	entered, release := make(chan struct{}), make(chan struct{})
	r := start(t, mapEndpoint, mapper(func(_ context.Context, m Message) ([]Result, error) {
		once.Do(func() { close(entered) })
		<-release
		return nil, nil
	}))
	stream := openMap(t, r.conn)
	ok(t, stream.Send(mapRequest("41", "")))
	<-entered
	if got := announced(t, file); len(got) != 1 || got[0] != announceUnary|42 {
		t.Errorf("announced %x", got)
	}
	close(release)
	must(stream.Recv())(t)
	if got := announced(t, file); len(got) != 0 {
		t.Errorf("announced %x after all calls have returned", got)
	}
}
