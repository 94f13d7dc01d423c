package forward_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/levada-io/levada/internal/dataplane/buffer"
	"github.com/levada-io/levada/internal/dataplane/buffer/membuffer"
	"github.com/levada-io/levada/internal/dataplane/deadletter"
	"github.com/levada-io/levada/internal/dataplane/forward"
	"github.com/levada-io/levada/internal/dataplane/function"
	"github.com/levada-io/levada/internal/dataplane/sink"
	"github.com/levada-io/levada/internal/dataplane/source"
	"github.com/levada-io/levada/internal/flow"
)

// slowly is a function that takes its time for each message, one after the other, and gives out what is done meanwhile.
type slowly struct {
	outcome func(ctx context.Context, m *flow.Message) function.Outcome
	mu      sync.Mutex
	begun   int
}

func (s *slowly) apply(ctx context.Context, in []flow.Message, part *function.Part) ([]function.Outcome, error) {
	var mu sync.Mutex
	out := make([]function.Outcome, len(in))
	done, given := make([]bool, len(in)), make([]bool, len(in))
	part.Open(func(visit func(int, *function.Outcome)) {
		mu.Lock()
		defer mu.Unlock()
		for i := range done {
			if done[i] && !given[i] {
				given[i] = true
				visit(i, &out[i])
			}
		}
	})
	defer part.Close()
	if part.Queued != nil {
		part.Queued()
	}
	for i := range in {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		if part.Until != nil && part.Until.Err() != nil {
			out[i] = function.Outcome{Verdict: function.Unbegun}
			continue
		}
		s.mu.Lock()
		s.begun++
		s.mu.Unlock()
		o := s.outcome(ctx, &in[i])
		mu.Lock()
		out[i], done[i] = o, true
		mu.Unlock()
	}
	return out, nil
}

func (s *slowly) stage() forward.Stage {
	return forward.Stage{Name: "fn", ApplyPart: s.apply, NeedsIDs: true, Apply: func(ctx context.Context, in []flow.Message) ([]function.Outcome, error) {
		return s.apply(ctx, in, &function.Part{})
	}}
}

func echo(m *flow.Message) function.Outcome {
	return function.Outcome{Results: []flow.Message{{Value: m.Value}}}
}

// parts is a list that notes up to where it was acknowledged, message by message.
type parts struct {
	list
	mu    sync.Mutex
	acked uint64
	hold  chan struct{} // nil: acknowledgements are taken at once
}

func (p *parts) ack(ctx context.Context, to uint64) error {
	if p.hold != nil {
		select {
		case <-p.hold:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if to < p.acked {
		return fmt.Errorf("acknowledged up to %d, and then up to %d", p.acked, to)
	}
	p.acked = to
	return nil
}

func (p *parts) Ack(ctx context.Context, b *source.Batch) error { return p.ack(ctx, b.Hi) }
func (p *parts) AckPart(ctx context.Context, b *source.Batch, _, to int) error {
	return p.ack(ctx, b.EndOf(to))
}

func (p *parts) upTo() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return int(p.acked)
}

func (a *answers) count() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.took)
}

func inputOf(r source.Reader) *forward.SourceInput {
	return &forward.SourceInput{Vertex: "in", Reader: r, Limit: 1000, OnError: func(error) {}, Logger: quiet}
}

// TestResultsLeaveAsTheyAreDone has a batch of 50 messages before a function that takes 100 ms for one: each result is out, and its position acknowledged, 200 ms later at the most.
func TestResultsLeaveAsTheyAreDone(t *testing.T) {
	for _, ordered := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			fn := &slowly{outcome: func(_ context.Context, m *flow.Message) function.Outcome {
				time.Sleep(100 * time.Millisecond)
				return echo(m)
			}}
			out, in := &answers{}, &parts{list: list{messages: values(50), batch: 50}}
			l := &forward.Loop{
				Input: inputOf(in), Events: loopEvents{}, Logger: quiet, DeadLetters: &grave{},
				Output:    &forward.Delivery{Primary: out, Events: deliveryEvents{}, Logger: quiet},
				Processor: &forward.Map{Stages: []forward.Stage{fn.stage()}, Ordered: ordered},
			}
			ended := make(chan error, 1)
			go func() { ended <- l.Run(t.Context(), t.Context()) }()
			time.Sleep(time.Millisecond)
			for i := 1; i <= 49; i++ {
				time.Sleep(100 * time.Millisecond)
				synctest.Wait()
				if n, acked := out.count(), in.upTo(); n < i-2 || n > i || acked > n || acked < i-2 {
					t.Fatalf("ordered %v: after %d00 ms %d results are out and %d are acknowledged", ordered, i, n, acked)
				}
			}
			if err := <-ended; err != nil || in.upTo() != 50 {
				t.Fatalf("it ended with %v, acknowledged up to %d", err, in.upTo())
			}
			if !slices.IsSortedFunc(out.took, func(a, b string) int { return number(a) - number(b) }) {
				t.Errorf("the order is %v", out.took)
			}
		})
	}
}

func number(taken string) int {
	n, _ := strconv.Atoi(taken[slices.Index([]byte(taken), '=')+1:])
	return n
}

// TestOneSlowMessageHoldsUpNobody has one message of 30 s among quick ones, also in the works behind its own.
func TestOneSlowMessageHoldsUpNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var wait sync.WaitGroup
		fn := &slowly{outcome: func(_ context.Context, m *flow.Message) function.Outcome {
			if string(m.Value) == "3" {
				time.Sleep(30 * time.Second)
			}
			return echo(m)
		}}
		out := &answers{}
		l := &forward.Loop{
			Input: inputOf(&parts{list: list{messages: values(80), batch: 20}}), Events: loopEvents{}, Logger: quiet, DeadLetters: &grave{},
			Output:    &forward.Delivery{Primary: out, Events: deliveryEvents{}, Logger: quiet},
			Processor: &forward.Map{Stages: []forward.Stage{fn.stage()}},
		}
		wait.Go(func() {
			if err := l.Run(t.Context(), t.Context()); err != nil {
				t.Error(err)
			}
		})
		time.Sleep(time.Second)
		if n := out.count(); n != 63 { // 0 to 2, and the three works behind
			t.Errorf("%d results are out after a second", n)
		}
		wait.Wait()
		if n := out.count(); n != 80 {
			t.Errorf("%d results in the end", n)
		}
	})
}

// TestDrainBeginsNothingNew stops the reading while a function has 3 of 50 messages behind it: the call under way is finished, its result comes out and is acknowledged, and no further call begins.
func TestDrainBeginsNothingNew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fn := &slowly{outcome: func(_ context.Context, m *flow.Message) function.Outcome {
			time.Sleep(time.Second)
			return echo(m)
		}}
		out, in := &answers{}, &parts{list: list{messages: values(50), batch: 10, waits: true}}
		reading, stop := context.WithCancel(t.Context())
		time.AfterFunc(3500*time.Millisecond, stop)
		l := &forward.Loop{
			Input: inputOf(in), Events: loopEvents{}, Logger: quiet, DeadLetters: &grave{},
			Output:    &forward.Delivery{Primary: out, Events: deliveryEvents{}, Logger: quiet},
			Processor: &forward.Map{Stages: []forward.Stage{fn.stage()}, InFlight: 1},
		}
		begun := time.Now()
		if err := l.Run(t.Context(), reading); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(begun); took > 5*time.Second || fn.begun != 4 || out.count() != 4 || in.upTo() != 4 {
			t.Errorf("it ended after %v with %d calls, %d results, acknowledged up to %d", took, fn.begun, out.count(), in.upTo())
		}
	})
}

// TestSlowAcknowledgementStopsNobody has a source that takes no acknowledgement for an hour. They were made under the lock that every writer of the lane needs.
func TestSlowAcknowledgementStopsNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		parts2, stores := partitions2(t)
		in := &parts{list: list{messages: values(500), batch: 10}, hold: make(chan struct{})}
		time.AfterFunc(time.Hour, func() { close(in.hold) })
		ended := make(chan error, 1)
		l := &forward.Loop{
			Input: inputOf(in), Events: loopEvents{}, Logger: quiet, DeadLetters: &grave{},
			Output: &forward.Router{Events: routerEvents{}, Edges: []forward.Edge{{To: "x", Partitions: writers(parts2)}}},
		}
		go func() { ended <- l.Run(t.Context(), t.Context()) }()
		time.Sleep(time.Minute)
		if _, messages := stored(t, stores[0]); len(messages) != 500 {
			t.Errorf("%d messages are stored", len(messages))
		}
		if err := <-ended; err != nil || in.upTo() != 500 {
			t.Errorf("it ended with %v, acknowledged up to %d", err, in.upTo())
		}
	})
}

func partitions2(t *testing.T) ([]*buffer.Partition, []*membuffer.Store) {
	return partitions(t, 1, 1<<20, buffer.Options{})
}

// counted counts nacks and failures.
type counted struct {
	deliveryEvents
	mu             sync.Mutex
	nacked, failed int
}

func (c *counted) Nacked(n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.nacked += n
}

func (c *counted) Failed(_ function.Role, n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.failed += n
}

// TestNackIsHonouredEverywhere has every place where a nack can come answer with max_deliveries 3 and a delay: each message is given three times, that long apart, and is a dead letter
// then. It was delivered without end, and nothing was counted. A nack without options backs off.
func TestNackIsHonouredEverywhere(t *testing.T) {
	for _, place := range []string{"function", "primary", "fallback", "on success"} {
		for _, ordered := range []bool{false, true} {
			for _, limit := range []int{3, 0} {
				synctest.Test(t, func(t *testing.T) {
					name := fmt.Sprintf("%s, ordered %v, at most %d", place, ordered, limit)
					var mu sync.Mutex
					var at []time.Time
					delay := 50 * time.Millisecond
					if limit == 0 {
						delay = 0
					}
					nacks := func() bool {
						mu.Lock()
						defer mu.Unlock()
						at = append(at, time.Now())
						return limit > 0 || len(at) < 6
					}
					turnDown := &answers{answer: func(m *flow.Message, _ int) sink.Result {
						if string(m.Value) == "1" && nacks() {
							return sink.Result{Status: sink.Nacked, Delay: delay, MaxDeliveries: limit, Error: "not now"}
						}
						return sink.Result{}
					}}
					d := &forward.Delivery{Primary: &answers{}, Logger: quiet}
					fn := &slowly{outcome: func(_ context.Context, m *flow.Message) function.Outcome {
						if place == "function" && string(m.Value) == "1" && nacks() {
							return function.Outcome{Verdict: function.Nacked, Delay: delay, MaxDeliveries: limit, Reason: "not now"}
						}
						return echo(m)
					}}
					switch place {
					case "primary":
						d.Primary = turnDown
					case "fallback":
						d.Fallback, d.Primary = turnDown, &answers{answer: func(*flow.Message, int) sink.Result { return sink.Result{Status: sink.Fallback} }}
					case "on success":
						d.OnSuccess, d.Primary = turnDown, &answers{answer: func(*flow.Message, int) sink.Result { return sink.Result{Status: sink.OnSuccess} }}
					}
					events, g := &counted{}, &grave{}
					d.Events = events
					in := &parts{list: list{messages: values(5), batch: 5}}
					l := &forward.Loop{Input: inputOf(in), Events: events, Logger: quiet, DeadLetters: g, Output: d, Processor: &forward.Map{Stages: []forward.Stage{fn.stage()}, Ordered: ordered}}
					if err := l.Run(t.Context(), t.Context()); err != nil {
						t.Fatalf("%s: %v", name, err)
					}
					if limit > 0 {
						if len(at) != 3 || at[1].Sub(at[0]) < delay || at[2].Sub(at[1]) < delay || at[2].Sub(at[0]) > 4*delay {
							t.Errorf("%s: given at %v", name, at)
						}
						if len(g.dead) != 1 || events.nacked != 3 {
							t.Errorf("%s: dead letters %v, %d nacks counted", name, g.dead, events.nacked)
						}
						for _, f := range g.dead {
							if f.Reason != deadletter.Nack || f.Attempts != 3 {
								t.Errorf("%s: %+v", name, f)
							}
						}
					} else if len(at) != 6 || at[5].Sub(at[0]) < time.Second || len(g.dead) > 0 {
						t.Errorf("%s: given at %v, dead letters %v", name, at, g.dead)
					}
					if place != "function" && events.failed == 0 {
						t.Errorf("%s: no error is counted", name)
					}
					if in.upTo() != 5 {
						t.Errorf("%s: acknowledged up to %d", name, in.upTo())
					}
				})
			}
		}
	}
}

// TestRefusedMessageIsDeadLetteredAndTheRestGoesOn has a sink that never takes one of the messages: it follows onFailure once, and nothing behind it waits. It was tried again without
// end.
func TestRefusedMessageIsDeadLetteredAndTheRestGoesOn(t *testing.T) {
	for _, c := range []struct {
		status    sink.Result
		onFailure forward.OnFailure
		fallback  bool
		dead      deadletter.Reason
		inOther   int
	}{
		{sink.Result{Status: sink.Failed, Permanent: true, Error: "too large"}, "", false, deadletter.Refused, 0},
		{sink.Result{Status: sink.Failed, Permanent: true}, forward.OnFailureRetry, true, deadletter.Refused, 0},
		{sink.Result{Status: sink.Failed, Permanent: true}, forward.OnFailureFallback, true, "", 1},
		{sink.Result{Status: sink.Failed, Permanent: true}, forward.OnFailureFallback, false, deadletter.Refused, 0},
		{sink.Result{Status: sink.Failed, Permanent: true}, forward.OnFailureDrop, false, "", 0},
		{sink.Result{Status: sink.Fallback}, "", false, deadletter.Refused, 0}, // it ended the pipeline
	} {
		for _, ordered := range []bool{false, true} {
			synctest.Test(t, func(t *testing.T) {
				out := &answers{answer: func(m *flow.Message, _ int) sink.Result {
					if string(m.Value) == "1" {
						return c.status
					}
					return sink.Result{}
				}}
				other, g, in := &answers{}, &grave{}, &parts{list: list{messages: values(40), batch: 4}}
				d := &forward.Delivery{Primary: out, Events: deliveryEvents{}, Logger: quiet, Retry: forward.RetryStrategy{OnFailure: c.onFailure}}
				if c.fallback {
					d.Fallback = other
				}
				l := &forward.Loop{Input: inputOf(in), Events: loopEvents{}, Logger: quiet, DeadLetters: g, Output: d, Processor: &forward.Map{Ordered: ordered}}
				if err := l.Run(t.Context(), t.Context()); err != nil {
					t.Fatalf("%+v: %v", c, err)
				}
				f := g.dead["in/0/2"]
				if c.dead == "" && f != nil || c.dead != "" && (f == nil || f.Reason != c.dead) || out.tries["in/0/2"] != 1 || out.count() != 39 || other.count() != c.inOther || in.upTo() != 40 {
					t.Errorf("%+v: dead letter %+v, tried %d times, %d delivered, %d to the fallback, acknowledged up to %d", c, f, out.tries["in/0/2"], out.count(), other.count(), in.upTo())
				}
			})
		}
	}
}

// TestFailingMessageHoldsUpNobody has a sink that fails one message for a minute: others are delivered meanwhile, and its attempts are counted over all of them.
func TestFailingMessageHoldsUpNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begun := time.Now()
		out := &answers{answer: func(m *flow.Message, _ int) sink.Result {
			if string(m.Value) == "1" && time.Since(begun) < time.Minute {
				return sink.Result{Status: sink.Failed, Error: "busy"}
			}
			return sink.Result{}
		}}
		in := &parts{list: list{messages: values(100), batch: 2}}
		l := &forward.Loop{Input: inputOf(in), Events: loopEvents{}, Logger: quiet, DeadLetters: &grave{}, Output: &forward.Delivery{Primary: out, Events: deliveryEvents{}, Logger: quiet}}
		ended := make(chan error, 1)
		go func() { ended <- l.Run(t.Context(), t.Context()) }()
		time.Sleep(10 * time.Second)
		if n := out.count(); n != 99 {
			t.Errorf("%d delivered after 10 s", n)
		}
		if err := <-ended; err != nil || out.count() != 100 || out.tries["in/0/2"] > 30 {
			t.Errorf("it ended with %v, %d delivered, the one tried %d times", err, out.count(), out.tries["in/0/2"])
		}
	})
}

// TestResultThatCanNeverBeStoredIsDeadLettered: the store's largest message is too small for one result, even in pieces.
func TestResultThatCanNeverBeStoredIsDeadLettered(t *testing.T) {
	stored1, stores := partitions(t, 1, 150, buffer.Options{})
	in := values(20)
	for i := range in {
		if i%7 == 3 {
			in[i].Value = []byte(fmt.Sprintf("%0400d", i))
		}
	}
	g := &grave{}
	router := &forward.Router{Events: routerEvents{}, Edges: []forward.Edge{{To: "x", Partitions: writers(stored1)}}}
	if err := runLoop(t, &forward.Loop{Input: sourceOf(&list{messages: in, batch: 20}), DeadLetters: g, Output: router}); err != nil {
		t.Fatal(err)
	}
	if _, messages := stored(t, stores[0]); len(messages) != 17 || len(g.dead) != 3 || g.dead["in/0/4"] == nil || g.dead["in/0/4"].Reason != deadletter.Oversize || stored1[0].Pending() != 17 {
		t.Errorf("%d messages are stored, %d pending, dead letters %v", len(messages), stored1[0].Pending(), g.dead)
	}
}

// TestBlockIsReadInPiecesOfReadBatchSize: a block of 2,000 messages before a vertex with readBatchSize 64. It was one piece.
func TestBlockIsReadInPiecesOfReadBatchSize(t *testing.T) {
	parts1, _ := partitions(t, 1, 8<<20, buffer.Options{})
	router := &forward.Router{Events: routerEvents{}, Edges: []forward.Edge{{To: "x", Partitions: writers(parts1)}}}
	input := sourceOf(&list{messages: values(2003), batch: 2003})
	input.Limit = 2003
	if err := runLoop(t, &forward.Loop{Input: input, Output: router}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	in := &forward.BufferInput{Vertex: "x", Partition: parts1[0].Reader, Limit: 64}
	go in.Run(ctx) // ends with ctx
	read, last := 0, uint64(0)
	for read < 2003 {
		w, err := in.Read(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if n := len(w.Messages); n == 0 || n > 64 || last != 0 && w.Lo != last+1 {
			t.Fatalf("a piece of %d messages covers %d-%d, after %d", n, w.Lo, w.Hi, last)
		}
		for i := range w.Messages {
			if p := w.Messages[i].Pos; p < w.Lo || p > w.Hi {
				t.Fatalf("a message at %d in a piece that covers %d-%d", p, w.Lo, w.Hi)
			}
		}
		read, last = read+len(w.Messages), w.Hi
		if err := w.Ack(ctx, forward.Ack{To: len(w.Messages)}); err != nil {
			t.Fatal(err)
		}
	}
	if parts1[0].Pending() != 0 || parts1[0].Floor() == 0 {
		t.Errorf("%d pending, floor %d", parts1[0].Pending(), parts1[0].Floor())
	}
	if _, err := in.Read(expired(t)); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("there was more: %v", err)
	}
}

func expired(t *testing.T) context.Context {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	return ctx
}
