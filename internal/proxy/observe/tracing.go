package observe

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"
	grpccodes "google.golang.org/grpc/codes"

	"github.com/levada-io/levada/internal/proxy"
	"github.com/levada-io/levada/internal/proxy/config"
)

// Tracing makes spans of calls and sends them over OTLP. It is a proxy.Tracer.
type Tracing struct {
	provider *sdktrace.TracerProvider
	tracer   trace.Tracer
	sample   atomic.Uint64 // bits of a float64
}

// NewTracing reads the OTEL_* variables. It returns nil without an error when they do not say where spans are to be sent. Sample is the share of the calls
// without a decision of their client that are traced.
func NewTracing(ctx context.Context, sample float64, logger *slog.Logger, version string) (*Tracing, error) {
	if os.Getenv("OTEL_EXPORTER_OTLP_ENDPOINT") == "" && os.Getenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") == "" ||
		strings.EqualFold(os.Getenv("OTEL_SDK_DISABLED"), "true") || strings.EqualFold(os.Getenv("OTEL_TRACES_EXPORTER"), "none") {
		return nil, nil
	}
	for _, name := range []string{"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"} {
		if protocol := os.Getenv(name); protocol == "grpc" {
			break
		} else if protocol != "" {
			return nil, fmt.Errorf("%s is %q, and spans are sent with grpc only", name, protocol)
		}
	}
	exporter, err := otlptracegrpc.New(ctx)
	if err != nil {
		return nil, fmt.Errorf("send spans: %w", err)
	}
	// What OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES say wins.
	about, err := resource.New(ctx, resource.WithAttributes(semconv.ServiceName("levada-proxy"), semconv.ServiceVersion(version)), resource.WithTelemetrySDK(), resource.WithFromEnv())
	if err != nil && !errors.Is(err, resource.ErrPartialResource) {
		return nil, fmt.Errorf("send spans: %w", err)
	}
	var last atomic.Int64
	otel.SetErrorHandler(otel.ErrorHandlerFunc(func(err error) {
		if now, was := time.Now().Unix(), last.Load(); now-was >= 60 && last.CompareAndSwap(was, now) {
			logger.Warn("spans are lost", "error", err)
		}
	}))
	t := &Tracing{provider: sdktrace.NewTracerProvider(sdktrace.WithBatcher(exporter), sdktrace.WithResource(about), sdktrace.WithSampler(sdktrace.AlwaysSample()))}
	t.tracer = t.provider.Tracer("github.com/levada-io/levada/internal/proxy", trace.WithInstrumentationVersion(version))
	t.SetSample(sample)
	return t, nil
}

// SetSample changes the share of the calls without a decision of their client that are traced.
func (t *Tracing) SetSample(share float64) { t.sample.Store(math.Float64bits(share)) }

// Close sends the spans that have ended, and no more.
func (t *Tracing) Close(ctx context.Context) error { return t.provider.Shutdown(ctx) }

// Sample says yes to a call that its client traces, and to one that nobody has decided on and that is one of the sample.
func (t *Tracing) Sample(parent string) bool {
	const flags = len("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-") // where they are, in every version so far
	if len(parent) >= flags+2 && parent[flags-1] == '-' {
		if bits, err := strconv.ParseUint(parent[flags:flags+2], 16, 8); err == nil {
			return bits&uint64(trace.FlagsSampled) != 0
		}
	}
	return rand.Float64() < math.Float64frombits(t.sample.Load())
}

// Start begins the span of a call. A parent that is not one is as none.
func (t *Tracing) Start(c *proxy.Call, parent, state string) proxy.Span {
	ctx := context.Background()
	if parent != "" {
		ctx = propagation.TraceContext{}.Extract(ctx, propagation.MapCarrier{"traceparent": parent, "tracestate": state})
	}
	name, attributes := strings.TrimPrefix(c.Path, "/"), make([]attribute.KeyValue, 0, 8)
	if c.GRPC {
		attributes = append(attributes, semconv.RPCSystemNameGRPC, semconv.RPCMethod(name))
	}
	attributes = append(attributes, semconv.ServerAddress(c.Authority), semconv.NetworkPeerAddress(c.Client), attribute.String("levada.route", c.Route))
	_, started := t.tracer.Start(ctx, name, trace.WithSpanKind(trace.SpanKindServer), trace.WithTimestamp(c.Started), trace.WithAttributes(attributes...))
	return &span{Span: started, of: started.SpanContext()}
}

type span struct {
	trace.Span
	of trace.SpanContext
}

func (s *span) TraceID() string { return s.of.TraceID().String() }

func (s *span) Traceparent() string {
	return "00-" + s.of.TraceID().String() + "-" + s.of.SpanID().String() + "-01"
}

func (s *span) End(e *proxy.Ended) {
	attributes := append(make([]attribute.KeyValue, 0, 10), attribute.String("levada.reason", e.Reason), attribute.Int("levada.requests", e.Requests),
		attribute.Int("levada.responses", e.Responses))
	if e.GRPC {
		attributes = append(attributes, semconv.RPCResponseStatusCode(config.Code(e.Code).String()))
	}
	if e.Backend != "" {
		attributes = append(attributes, attribute.String("levada.backend", e.Backend))
	}
	if e.Endpoint != "" {
		attributes = append(attributes, attribute.String("levada.endpoint", e.Endpoint))
	}
	if e.Attempts > 1 {
		attributes = append(attributes, attribute.Int("levada.attempts", e.Attempts))
	}
	if e.TransparentRetries > 0 {
		attributes = append(attributes, attribute.Int("levada.transparent_retries", e.TransparentRetries))
	}
	s.SetAttributes(attributes...)
	switch e.Code {
	// Those that are the server's fault, by the conventions for gRPC.
	case grpccodes.Unknown, grpccodes.DeadlineExceeded, grpccodes.Unimplemented, grpccodes.Internal, grpccodes.Unavailable, grpccodes.DataLoss:
		s.SetStatus(codes.Error, e.Reason)
	}
	s.Span.End(trace.WithTimestamp(e.Started.Add(e.Took)))
}
