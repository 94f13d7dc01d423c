package observe_test

import (
	"context"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"

	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	v1 "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"

	"github.com/levada-io/levada/internal/proxy"
	"github.com/levada-io/levada/internal/proxy/observe"
	"github.com/levada-io/levada/internal/proxy/proxytest"
)

// receiver takes spans over OTLP.
type receiver struct {
	collector.UnimplementedTraceServiceServer
	address string

	mu       sync.Mutex
	spans    []*v1.Span
	services map[string]bool
}

func newReceiver(t *testing.T) *receiver {
	t.Helper()
	r := &receiver{services: map[string]bool{}}
	socket, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r.address = socket.Addr().String()
	server := grpc.NewServer()
	collector.RegisterTraceServiceServer(server, r)
	var group sync.WaitGroup
	group.Go(func() { _ = server.Serve(socket) })
	t.Cleanup(func() { server.Stop(); group.Wait() })
	return r
}

func (r *receiver) Export(_ context.Context, request *collector.ExportTraceServiceRequest) (*collector.ExportTraceServiceResponse, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, of := range request.ResourceSpans {
		for _, a := range of.Resource.Attributes {
			if a.Key == "service.name" {
				r.services[a.Value.GetStringValue()] = true
			}
		}
		for _, scope := range of.ScopeSpans {
			r.spans = append(r.spans, scope.Spans...)
		}
	}
	return &collector.ExportTraceServiceResponse{}, nil
}

// received is what a backend got of a trace.
type heard struct {
	mu  sync.Mutex
	all []metadata.MD
}

func (h *heard) option() grpc.ServerOption {
	return grpc.ChainUnaryInterceptor(func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
		md, _ := metadata.FromIncomingContext(ctx)
		h.mu.Lock()
		h.all = append(h.all, md)
		h.mu.Unlock()
		return next(ctx, req)
	})
}

func (h *heard) last() (parent, state string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	md := h.all[len(h.all)-1]
	return strings.Join(md.Get("traceparent"), "|"), strings.Join(md.Get("tracestate"), "|")
}

const (
	traceID = "0af7651916cd43dd8448eb211c80319c"
	spanID  = "b7ad6b7169203331"
)

func TestTracing(t *testing.T) {
	r := newReceiver(t)
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://"+r.address)
	tracing, err := observe.NewTracing(t.Context(), 0, slog.Default(), "test")
	if err != nil {
		t.Fatal(err)
	}
	told := &heard{}
	backend := proxytest.NewBackend(t, told.option())
	p := proxytest.Start(t, proxytest.Config(t, backend.Address, nil), proxy.Options{Tracer: tracing})
	var logged []proxy.Ended
	var mu sync.Mutex
	defer p.Watch(proxy.Watcher{Ended: func(e *proxy.Ended) { mu.Lock(); logged = append(logged, *e); mu.Unlock() }})()
	client := p.Client(t)
	check := func(parent string, service string) (gotParent, gotState string) {
		ctx := t.Context()
		if parent != "" {
			ctx = metadata.AppendToOutgoingContext(ctx, "traceparent", parent, "tracestate", "vendor=1")
		}
		_, err := client.Check(ctx, &grpc_health_v1.HealthCheckRequest{Service: service})
		if err != nil && service == "" {
			t.Fatal(err)
		}
		return told.last()
	}

	if parent, _ := check("", ""); parent != "" {
		t.Errorf("a call that is not of the sample was sent on with %q", parent)
	}
	unsampled := "00-" + traceID + "-" + spanID + "-00"
	if parent, state := check(unsampled, ""); parent != unsampled || state != "vendor=1" {
		t.Errorf("a call that is not traced was sent on with %q and %q", parent, state)
	}
	parent, state := check("00-"+traceID+"-"+spanID+"-01", "none")
	if !strings.HasPrefix(parent, "00-"+traceID+"-") || !strings.HasSuffix(parent, "-01") || strings.Contains(parent, spanID) || state != "vendor=1" {
		t.Errorf("a traced call was sent on with %q and %q", parent, state)
	}
	tracing.SetSample(1)
	own, _ := check("", "")
	if len(own) != len(parent) || strings.Contains(own, traceID) {
		t.Errorf("a call of the sample was sent on with %q", own)
	}
	if broken, _ := check("00-nonsense", ""); len(broken) != len(parent) {
		t.Errorf("a call with a broken parent was sent on with %q", broken)
	}

	if err := tracing.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.spans) != 3 || !r.services["levada-proxy"] {
		t.Fatalf("%d spans of %v", len(r.spans), r.services)
	}
	s := r.spans[0]
	attributes := map[string]string{}
	for _, a := range s.Attributes {
		attributes[a.Key] = a.Value.GetStringValue()
	}
	for key, want := range map[string]string{"rpc.system.name": "grpc", "rpc.method": "grpc.health.v1.Health/Check", "rpc.response.status_code": "NOT_FOUND", "levada.reason": "BACKEND",
		"levada.route": "*", "levada.backend": "backend", "levada.endpoint": backend.Address, "server.address": p.Address} {
		if attributes[key] != want {
			t.Errorf("%s is %q, want %q", key, attributes[key], want)
		}
	}
	if s.Name != "grpc.health.v1.Health/Check" || s.Kind != v1.Span_SPAN_KIND_SERVER || hex(s.TraceId) != traceID || hex(s.ParentSpanId) != spanID ||
		!strings.Contains(parent, hex(s.SpanId)) || s.EndTimeUnixNano <= s.StartTimeUnixNano || s.Status.GetCode() != v1.Status_STATUS_CODE_UNSET {
		t.Errorf("%v", s)
	}
	mu.Lock()
	defer mu.Unlock()
	if len(logged) != 5 || logged[1].Trace != "" || logged[2].Trace != traceID {
		t.Errorf("%+v", logged)
	}
}

func hex(b []byte) string {
	const digits = "0123456789abcdef"
	var s strings.Builder
	for _, c := range b {
		s.WriteByte(digits[c>>4])
		s.WriteByte(digits[c&15])
	}
	return s.String()
}

// A span of a call whose endpoint is gone has that status.
func TestTracingFailure(t *testing.T) {
	r := newReceiver(t)
	t.Setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://"+r.address)
	tracing, err := observe.NewTracing(t.Context(), 1, slog.Default(), "test")
	if err != nil {
		t.Fatal(err)
	}
	p := proxytest.Start(t, proxytest.Config(t, "127.0.0.1:1", nil), proxy.Options{Tracer: tracing})
	if p.Invoke(t, "/a.B/c") == nil {
		t.Fatal("no error")
	}
	if err := tracing.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.spans) != 1 || r.spans[0].Status.GetCode() != v1.Status_STATUS_CODE_ERROR || r.spans[0].Status.Message != "CONNECT_FAILED" {
		t.Errorf("%v", r.spans)
	}
}

func TestTracingOff(t *testing.T) {
	for _, c := range []struct {
		env  map[string]string
		fail string
	}{
		{nil, ""},
		{map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_SDK_DISABLED": "true"}, ""},
		{map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_TRACES_EXPORTER": "none"}, ""},
		{map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}, "grpc only"},
	} {
		for name, value := range c.env {
			t.Setenv(name, value)
		}
		tracing, err := observe.NewTracing(t.Context(), 1, slog.Default(), "test")
		if tracing != nil || (err == nil) != (c.fail == "") || err != nil && !strings.Contains(err.Error(), c.fail) {
			t.Errorf("%v: %v, %v", c.env, tracing, err)
		}
		for name := range c.env {
			t.Setenv(name, "")
		}
	}
}
