package streammetrics_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http/httptest"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"

	"github.com/levada-io/levada/stream"
	"github.com/levada-io/levada/stream/memstore"
	"github.com/levada-io/levada/stream/streammetrics"
)

// scrape returns what Prometheus gets.
func scrape(t *testing.T, registry *prometheus.Registry) (code int, text string) {
	t.Helper()
	w := httptest.NewRecorder()
	promhttp.HandlerFor(registry, promhttp.HandlerOpts{}).ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	b, err := io.ReadAll(w.Result().Body)
	if err != nil {
		t.Fatal(err)
	}
	return w.Code, string(b)
}

func expect(t *testing.T, text string, want ...string) {
	t.Helper()
	for _, line := range want {
		if !strings.Contains(text, line+"\n") {
			t.Errorf("there is no %s in\n%s", line, text)
		}
	}
}

// TestMetricsOfAWorkerAndAServer has a job move records, one of them bad, between a server and a worker of a program's own.
func TestMetricsOfAWorkerAndAServer(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	quiet := slog.New(slog.DiscardHandler)
	registry := prometheus.NewRegistry()
	ofServer := streammetrics.NewServer()
	server, err := stream.NewServer(stream.ServerConfig{Logger: quiet, OnBad: ofServer.OnBad})
	if err != nil {
		t.Fatal(err)
	}
	ofServer.Watch(server)
	if err := server.Handle("users", stream.Slice(stream.Record{Key: []byte("1"), Value: []byte("Ada")}, stream.Record{Key: []byte("2"), Bad: "unreadable"}, stream.Record{Key: []byte("3"), Value: []byte("Joan")})); err != nil {
		t.Fatal(err)
	}
	g, listener := grpc.NewServer(), bufconn.Listen(1<<20)
	server.Register(g)
	served := make(chan struct{})
	go func() { defer close(served); _ = g.Serve(listener) }()
	defer func() { g.Stop(); <-served }()
	connections := stream.NewConnections("passthrough:///producer", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return listener.DialContext(ctx) }))
	defer connections.Close()

	store := memstore.New()
	ofWorker := streammetrics.NewWorker()
	worker, err := stream.NewWorker(stream.WorkerConfig{Store: store, Dial: connections.Dial, Logger: quiet, Observe: ofWorker.Observe})
	if err != nil {
		t.Fatal(err)
	}
	ofWorker.Watch(worker)
	registry.MustRegister(ofServer, ofWorker, streammetrics.NewStore(store))
	entered, finish := make(chan struct{}, 1), make(chan struct{})
	if err := worker.Handle("users", store.Sink(func(ctx context.Context, b *stream.Batch) (func(), error) {
		select {
		case entered <- struct{}{}:
		default:
		}
		select {
		case <-finish:
			return nil, nil
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	})); err != nil {
		t.Fatal(err)
	}
	job, err := store.Submit(ctx, stream.Job{Stream: "users"})
	if err != nil {
		t.Fatal(err)
	}
	running, stop := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- worker.Run(running) }()
	defer func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}()
	select {
	case <-entered:
	case <-ctx.Done():
		t.Fatal("the handler was not called")
	}
	_, text := scrape(t, registry)
	// The counters of alerts begin with 0, so that their first event is an increase.
	expect(t, text, "levada_stream_jobs_running 1", "levada_stream_stuck_handlers 0", `levada_stream_jobs{state="running",stream="users"} 1`,
		`levada_stream_claims_total{reclaimed="false",stream="users"} 1`, `levada_stream_lost_leases_total{stream="users"} 0`, "levada_stream_store_up 1")
	close(finish)
	for {
		if _, text = scrape(t, registry); strings.Contains(text, "levada_stream_jobs_running 0\n") {
			break
		}
		select {
		case <-time.After(10 * time.Millisecond):
		case <-ctx.Done():
			status, err := store.Get(context.WithoutCancel(ctx), job.ID)
			t.Fatalf("the job does not end: %+v, %v\n%s", status, err, text)
		}
	}
	expect(t, text, `levada_stream_records_total{stream="users"} 3`, `levada_stream_quarantined_total{stream="users"} 1`, `levada_stream_released_total{state="completed",stream="users"} 1`,
		`levada_stream_bad_records_total{stream="users"} 1`)
	if !regexp.MustCompile(`(?m)^levada_stream_open_streams \d+$`).MatchString(text) {
		t.Errorf("there is no levada_stream_open_streams in\n%s", text)
	}
}

type failingStore struct{ stream.Store }

func (failingStore) List(context.Context, stream.Filter) ([]stream.Status, error) {
	return nil, errors.New("the database is down")
}

// TestMetricsDuringAnOutageOfTheStore: an error of one collector would cost the whole scrape, just when the metrics are needed.
func TestMetricsDuringAnOutageOfTheStore(t *testing.T) {
	registry, m := prometheus.NewRegistry(), streammetrics.NewWorker()
	registry.MustRegister(m, streammetrics.NewStore(failingStore{memstore.New()}))
	m.Observe(stream.Event{Kind: stream.EventRetry, Reason: stream.ReasonOutage, Job: stream.Job{Stream: "users"}})
	code, text := scrape(t, registry)
	if code != 200 {
		t.Errorf("the scrape fails: %d %s", code, text)
	}
	expect(t, text, "levada_stream_store_up 0", `levada_stream_retries_total{reason="OUTAGE",stream="users"} 1`)
	if strings.Contains(text, "levada_stream_jobs{") {
		t.Errorf("numbers of a store that does not answer:\n%s", text)
	}
}

// TestLabelsThatOthersChoose: reasons come from producers and handlers. Each is a time series, and one that is not UTF-8 would be a panic.
func TestLabelsThatOthersChoose(t *testing.T) {
	registry, m, s := prometheus.NewRegistry(), streammetrics.NewWorker(), streammetrics.NewServer()
	registry.MustRegister(m, s)
	for i := range 1000 {
		m.Observe(stream.Event{Kind: stream.EventDisconnected, Reason: stream.Reason(fmt.Sprintf("REASON_%d", i)), Job: stream.Job{Stream: "users"}})
	}
	m.Observe(stream.Event{Kind: stream.EventDisconnected, Reason: "\xff", Job: stream.Job{Stream: "\xff"}})
	s.OnBad("\xff", 1, nil, nil)
	code, text := scrape(t, registry)
	if n := strings.Count(text, "levada_stream_disconnects_total{"); code != 200 || n > 102 {
		t.Errorf("%d, %d series", code, n)
	}
	expect(t, text, `levada_stream_disconnects_total{reason="OTHER",stream="users"} 900`)
}

// TestDocsListEveryMetric: a metric that docs/metrics.md does not have is found by nobody.
func TestDocsListEveryMetric(t *testing.T) {
	docs, err := os.ReadFile("../../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	described := make(chan *prometheus.Desc, 100)
	for _, c := range []prometheus.Collector{streammetrics.NewWorker(), streammetrics.NewServer(), streammetrics.NewStore(memstore.New())} {
		c.Describe(described)
	}
	close(described)
	n := 0
	for desc := range described {
		n++
		found := regexp.MustCompile(`fqName: "(\w+)"`).FindStringSubmatch(desc.String())
		if found == nil {
			t.Fatalf("no name in %s", desc)
		}
		if !strings.Contains(string(docs), "\n| `"+found[1]+"` |") {
			t.Errorf("docs/metrics.md has no row of %s", found[1])
		}
	}
	if n < 17 {
		t.Errorf("%d metrics are described", n)
	}
}
