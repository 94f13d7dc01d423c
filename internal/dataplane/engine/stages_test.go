package engine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/levada-io/levada/api/v1alpha1"
	"github.com/levada-io/levada/internal/dataplane/buffer"
	"github.com/levada-io/levada/internal/dataplane/buffer/membuffer"
	"github.com/levada-io/levada/internal/dataplane/deadletter"
	"github.com/levada-io/levada/internal/dataplane/forward"
	"github.com/levada-io/levada/internal/dataplane/sink"
	"github.com/levada-io/levada/internal/dataplane/source"
	"github.com/levada-io/levada/internal/dataplane/vertex"
	"github.com/levada-io/levada/internal/flow"
	"github.com/levada-io/levada/internal/metrics"
)

// numbers is a source of the numbers below n, one every millisecond; endless if n is 0.
type numbers struct {
	n, next int
}

func (s *numbers) Read(ctx context.Context, _ int) (*source.Batch, error) {
	if s.n > 0 && s.next >= s.n {
		return nil, io.EOF
	}
	select {
	case <-time.After(time.Millisecond):
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	s.next++
	pos := uint64(s.next)
	return &source.Batch{Partition: "0", Lo: pos, Hi: pos, Messages: []flow.Message{{Pos: pos, Value: []byte(strconv.Itoa(s.next - 1))}}}, nil
}

func (*numbers) Ack(context.Context, *source.Batch) error { return nil }
func (*numbers) Pending(context.Context) (int64, error)   { return 0, nil }
func (*numbers) Close(context.Context) error              { return nil }

// record is what happened, in order.
type record struct {
	mu     sync.Mutex
	events []string
}

func (r *record) add(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.events = append(r.events, fmt.Sprintf(format, args...))
}

func (r *record) all() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.events)
}

// slowSink takes its time for each write; without end if it is below 0.
type slowSink struct {
	*record
	takes time.Duration
}

func (s slowSink) Write(ctx context.Context, b *flow.Block) ([]sink.Result, error) {
	takes := time.After(s.takes)
	if s.takes < 0 {
		takes = nil
	}
	select {
	case <-takes:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	for i := range b.Messages {
		s.add("%s", b.Messages[i].Value)
	}
	return nil, nil
}

func (slowSink) Close(context.Context) error { return nil }

type noLetters struct{}

func (noLetters) Put(context.Context, *flow.Message, *deadletter.Failure) error { return nil }

// keeping is a processor that consumes all messages, and writes their sum once the input has ended.
type keeping struct{}

func (keeping) Start(p *forward.Pipe) forward.Process {
	k := &keepingRun{Pipe: p}
	p.Go(k.end)
	return k
}

type keepingRun struct {
	*forward.Pipe
	mu    sync.Mutex
	works []*forward.Work
}

func (k *keepingRun) Take(_ context.Context, w *forward.Work) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.works = append(k.works, w)
	k.Consume(w, 0, len(w.Messages))
	return nil
}

func (k *keepingRun) end(ctx context.Context) error {
	select {
	case <-k.InputEnded:
	case <-k.Reading.Done():
		return nil
	}
	sum := 0
	for _, w := range k.works {
		for i := range w.Messages {
			n, _ := strconv.Atoi(string(w.Messages[i].Value))
			sum += n
		}
	}
	e := &forward.Emission{Origin: forward.Origin{Lane: "sum#out", IDPrefix: "sum/"}, Lo: 1, Hi: 1, In: []flow.Message{{Pos: 1, Value: []byte(strconv.Itoa(sum))}}, Floor: func() uint64 { return 0 }}
	pending := k.Output.Begin(e)
	if err := errors.Join(pending.Submit(ctx), pending.Wait(ctx)); err != nil {
		return err
	}
	for _, w := range k.works {
		k.Finish(ctx, w, 0, len(w.Messages))
	}
	return nil
}

// failing is a processor that fails on the message of a value.
type failing struct{ on string }

func (f failing) Start(p *forward.Pipe) forward.Process { return &failingRun{f, p} }

type failingRun struct {
	failing
	*forward.Pipe
}

func (f *failingRun) Take(ctx context.Context, w *forward.Work) error {
	for i := range w.Messages {
		if string(w.Messages[i].Value) == f.on {
			return errors.New("the processor failed")
		}
		f.Finish(ctx, w, i, i+1)
	}
	return nil
}

// server is a Broker whose answers a test sets.
type server struct {
	mu            sync.Mutex
	stuck, cannot error
}

func (s *server) set(stuck, cannot error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stuck, s.cannot = stuck, cannot
}

func (s *server) Stuck() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.stuck
}

func (*server) Degraded() []error { return nil }

func (s *server) Usable(context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.cannot
}

// line is the pipeline in -> mid -> out in a Process.
type line struct {
	*Process
	set    *metrics.Set
	source *numbers
	out    *record
	broker *server
	lose   context.CancelCauseFunc // ownership
	stores map[string]*membuffer.Store
}

type lineOptions struct {
	messages  int // of the source; 0: endless
	processor forward.Processor
	sinkTakes time.Duration
	budget    time.Duration
	limit     int
}

func newLine(t *testing.T, opt lineOptions) *line {
	t.Helper()
	owned, lose := context.WithCancelCause(t.Context())
	l := &line{set: metrics.New("test").Namespace("default"), source: &numbers{n: opt.messages}, out: &record{}, broker: &server{}, lose: lose, stores: map[string]*membuffer.Store{}}
	quiet := slog.New(slog.DiscardHandler)
	pl := &Pipeline{Namespace: "default", Name: "p", Kind: "Pipeline"}
	l.Process = &Process{Pipelines: []*Pipeline{pl}, Budget: NewBudget(max(opt.budget, 10*time.Second)), Owned: owned, Broker: l.broker, Logger: quiet}
	if opt.budget > 0 {
		l.Budget = NewBudget(opt.budget)
	}
	l.Services = []func(context.Context) error{func(ctx context.Context) error {
		<-ctx.Done()
		l.out.add("services end")
		return nil
	}}
	parts := map[string]*buffer.Partition{}
	for _, name := range []string{"mid", "out"} {
		l.stores[name] = membuffer.NewStore(1 << 20)
		p, err := buffer.Open(t.Context(), l.stores[name].Open(), buffer.Options{Name: name, MaxLength: max(opt.limit, 100), UsageLimit: 100})
		if err != nil {
			t.Fatal(err)
		}
		parts[name] = p
	}
	add := func(name string, kind v1alpha1.VertexType, input forward.Input, processor forward.Processor, output func(*metrics.Vertex) forward.Output) {
		m := l.set.Vertex(metrics.VertexLabels{Pipeline: "p", Vertex: name, Type: string(kind)}, name, "")
		loop := &forward.Loop{Input: input, Processor: processor, Output: output(m), DeadLetters: noLetters{}, Events: m, Logger: quiet}
		v := &Vertex{Vertex: vertex.New(name, kind, []*forward.Loop{loop}, []*metrics.Vertex{m})}
		v.Finite = kind == v1alpha1.VertexTypeSource && opt.messages > 0
		if p := parts[name]; p != nil {
			v.Inputs = []Input{{Partition: p, Metrics: l.set.Buffer(name)}}
		}
		pl.Add(v)
	}
	to := func(name string) func(*metrics.Vertex) forward.Output {
		return func(m *metrics.Vertex) forward.Output {
			return &forward.Router{Events: m, Edges: []forward.Edge{{To: name, Partitions: []*buffer.Writer{parts[name].Writer}}}}
		}
	}
	add("in", v1alpha1.VertexTypeSource, &forward.SourceInput{Vertex: "in", Reader: l.source, Limit: 10, OnError: func(error) {}, Logger: quiet}, nil, to("mid"))
	add("mid", v1alpha1.VertexTypeMapUDF, &forward.BufferInput{Vertex: "mid", Partition: parts["mid"].Reader, Limit: 10}, opt.processor, to("out"))
	add("out", v1alpha1.VertexTypeSink, &forward.BufferInput{Vertex: "out", Partition: parts["out"].Reader, Limit: 10}, nil, func(m *metrics.Vertex) forward.Output {
		return &forward.Delivery{Primary: slowSink{l.out, opt.sinkTakes}, Events: m, Logger: quiet}
	})
	if err := pl.Whole([]v1alpha1.Edge{{From: "in", To: "mid"}, {From: "mid", To: "out"}}); err != nil {
		t.Fatal(err)
	}
	return l
}

// get asks a route of the process.
func (l *line) get(path string) (int, string) {
	mux := http.NewServeMux()
	l.Routes(mux, l.set)
	w := httptest.NewRecorder()
	mux.ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
	return w.Code, strings.TrimSpace(w.Body.String())
}

// TestProcessEndsOnceAllIsDelivered: its source ends, everything is in the sink, and services end last.
func TestProcessEndsOnceAllIsDelivered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLine(t, lineOptions{messages: 20, sinkTakes: 5 * time.Millisecond})
		err := l.Run(t.Context())
		r := l.Pipelines[0].Result()
		if err != nil || !r.Finished || r.Read != 20 || r.Delivered != 20 || r.Kept() || l.CutShort() || !l.HasStarted() {
			t.Errorf("error %v, result %+v", err, r)
		}
		if got := l.out.all(); len(got) != 21 || got[20] != "services end" {
			t.Errorf("what happened: %v", got)
		}
		if err := l.Pipelines[0].Inject("mid", func() error { return nil }); !errors.Is(err, ErrEnding) {
			t.Errorf("a message is written into a vertex that has ended: %v", err)
		}
	})
}

// TestProcessWithAVertexThatKeepsMessagesEnds: one result comes of 50 messages, after the input of the vertex has ended; more than its buffer may hold are kept until then.
func TestProcessWithAVertexThatKeepsMessagesEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLine(t, lineOptions{messages: 250, processor: keeping{}, limit: 100})
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		err := l.Run(ctx)
		r := l.Pipelines[0].Result()
		if got := l.out.all(); err != nil || !r.Finished || r.Read != 250 || r.Delivered != 1 || r.Kept() || len(got) != 2 || got[0] != "31125" {
			t.Errorf("error %v, result %+v, %v", err, r, got)
		}
		if s := l.Pipelines[0].Vertex("mid").Counts(); s.In != 250 || s.Acked != 250 || s.Out != 1 || s.Consumed != 0 || s.Pending != 0 {
			t.Errorf("counts %+v", s)
		}
	})
}

// TestMessagesThatAreKeptAreCountedWhenTheProcessStops: they are not done, and the next process has them.
func TestMessagesThatAreKeptAreCountedWhenTheProcessStops(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLine(t, lineOptions{processor: keeping{}})
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		err := l.Run(ctx)
		r := l.Pipelines[0].Result()
		s := l.Pipelines[0].Vertex("mid").Counts()
		if err != nil || r.Finished || r.Read == 0 || r.Buffered != r.Read || r.InFlight != 0 || !r.Kept() || s.Consumed == 0 || s.Acked != 0 || s.In != s.Consumed {
			t.Errorf("error %v, result %+v, counts %+v", err, r, s)
		}
	})
}

// TestDrainFinishesWhatWasBegun: at the signal the source stops first, and all that it has read is in a buffer; what the sink has begun is acknowledged, and what it has
// not begun is left to the next process. Services end after that.
func TestDrainFinishesWhatWasBegun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLine(t, lineOptions{sinkTakes: 30 * time.Millisecond})
		ctx, cancel := context.WithCancel(t.Context())
		l.Started = func() { time.AfterFunc(100*time.Millisecond, cancel) }
		err := l.Run(ctx)
		r := l.Pipelines[0].Result()
		got := l.out.all()
		if err != nil || r.Finished || r.Read == 0 || r.InFlight != 0 || l.CutShort() || got[len(got)-1] != "services end" {
			t.Errorf("error %v, result %+v, %v", err, r, got)
		}
		mid, out := l.Pipelines[0].Vertex("mid").Counts(), l.Pipelines[0].Vertex("out").Counts()
		if mid.In != mid.Acked || int(out.Acked) != len(got)-1 || mid.In != r.Read || r.Buffered != r.Read-out.Acked {
			t.Errorf("what was begun is not finished: mid %+v, out %+v, %d are buffered", mid, out, r.Buffered)
		}
	})
}

// TestDrainThatTakesTooLongIsCutShort: a sink that never answers does not keep the process; its messages are left to the next one.
func TestDrainThatTakesTooLongIsCutShort(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLine(t, lineOptions{sinkTakes: -1, budget: 5 * time.Second})
		ctx, cancel := context.WithCancel(t.Context())
		var signal time.Time
		l.Started = func() { time.AfterFunc(100*time.Millisecond, func() { signal = time.Now(); cancel() }) }
		err := l.Run(ctx)
		r := l.Pipelines[0].Result()
		if took := time.Since(signal); err != nil || !l.CutShort() || took > 5*time.Second || took < 3*time.Second || !r.Kept() || r.Buffered != r.Read {
			t.Errorf("error %v after %v, cut short: %t, result %+v", err, took, l.CutShort(), r)
		}
	})
}

// TestVertexThatFailsEndsTheProcessInOrder: the others finish what they have read, and the error says which vertex it was.
func TestVertexThatFailsEndsTheProcessInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLine(t, lineOptions{processor: failing{on: "15"}})
		err := l.Run(t.Context())
		r := l.Pipelines[0].Result()
		if err == nil || !strings.Contains(err.Error(), "vertex mid: the processor failed") || r.Finished || !r.Kept() || r.InFlight != 0 || l.CutShort() {
			t.Errorf("error %v, result %+v", err, r)
		}
		if got := l.out.all(); got[len(got)-1] != "services end" {
			t.Errorf("what happened: %v", got)
		}
	})
}

// TestVertexThatFailsWhileOthersDrainIsReported: the signal came first, and the error must not get lost behind it.
func TestVertexThatFailsWhileOthersDrainIsReported(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLine(t, lineOptions{processor: &failingAtTheEnd{}})
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		err := l.Run(ctx)
		if err == nil || !strings.Contains(err.Error(), "vertex mid: it cannot be saved") || l.CutShort() {
			t.Errorf("error %v", err)
		}
	})
}

// failingAtTheEnd fails once reading has ended, as a processor does that cannot save what it keeps.
type failingAtTheEnd struct{}

func (*failingAtTheEnd) Start(p *forward.Pipe) forward.Process {
	p.Go(func(context.Context) error {
		<-p.Reading.Done()
		return errors.New("it cannot be saved")
	})
	return &keepingRun{Pipe: p}
}

// TestLostOwnershipCutsTheWorkShort: another process does the work now, so nothing is finished here.
func TestLostOwnershipCutsTheWorkShort(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLine(t, lineOptions{sinkTakes: -1, budget: time.Hour})
		lost := errors.New("another process has it")
		l.Started = func() { time.AfterFunc(100*time.Millisecond, func() { l.lose(lost) }) }
		begun := time.Now()
		if err := l.Run(t.Context()); !errors.Is(err, lost) || time.Since(begun) > time.Minute {
			t.Errorf("error %v after %v", err, time.Since(begun))
		}
	})
}

// TestProbesSayWhetherMessagesAreTaken, and why not. A restart does not help where only the store is full, so the process is alive then.
func TestProbesSayWhetherMessagesAreTaken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLine(t, lineOptions{sinkTakes: time.Millisecond})
		check := func(when string, path string, code int, text string) {
			t.Helper()
			if got, body := l.get(path); got != code || !strings.Contains(body, text) {
				t.Errorf("%s: %s is %d %q, want %d %q", when, path, got, body, code, text)
			}
		}
		check("before the start", "/readyz", 503, "starting or stopping")
		check("before the start", "/livez", 204, "")
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- l.Run(ctx) }()
		time.Sleep(50 * time.Millisecond)
		synctest.Wait()
		check("while it runs", "/readyz", 204, "")
		check("while it runs", "/metrics", 200, `forwarder_read_total{`)
		l.broker.set(nil, errors.New("the server has gone"))
		check("without the server", "/readyz", 503, "the server has gone")
		check("without the server", "/livez", 204, "")
		l.broker.set(errors.New("the server hangs"), nil)
		check("when a restart helps", "/livez", 503, "the server hangs")
		check("when a restart helps", "/readyz", 204, "")
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		check("after the end", "/readyz", 503, "starting or stopping")
	})
}
