package forward_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
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

var quiet = slog.New(slog.DiscardHandler)

// list is a source of a few messages, which then ends, or waits.
type list struct {
	messages []flow.Message
	batch    int
	waits    bool
	pos      uint64
}

func (l *list) Read(ctx context.Context, limit int) (*source.Batch, error) {
	if len(l.messages) == 0 {
		if !l.waits {
			return nil, io.EOF
		}
		<-ctx.Done()
		return nil, ctx.Err()
	}
	n := min(len(l.messages), max(1, l.batch), limit)
	b := &source.Batch{Partition: "0", Lo: l.pos + 1, Hi: l.pos + uint64(n), Messages: l.messages[:n:n]}
	for i := range b.Messages {
		l.pos++
		b.Messages[i].Pos = l.pos
	}
	l.messages = l.messages[n:]
	return b, nil
}

func (*list) Ack(context.Context, *source.Batch) error { return nil }
func (*list) Pending(context.Context) (int64, error)   { return 0, nil }
func (*list) Close(context.Context) error              { return nil }

func values(n int) (m []flow.Message) {
	for i := range n {
		m = append(m, flow.Message{Value: []byte(strconv.Itoa(i)), EventTime: 1})
	}
	return m
}

func sourceOf(l *list) *forward.SourceInput {
	return &forward.SourceInput{Vertex: "in", Reader: l, Limit: 1000, OnError: func(error) {}, Logger: quiet}
}

// grave remembers what was dead-lettered.
type grave struct {
	mu   sync.Mutex
	dead map[string]*deadletter.Failure
}

func (g *grave) Put(_ context.Context, m *flow.Message, f *deadletter.Failure) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.dead == nil {
		g.dead = map[string]*deadletter.Failure{}
	}
	g.dead[m.ID] = f
	return nil
}

// answers is a sink with prepared answers, and remembers what it took.
type answers struct {
	mu     sync.Mutex
	answer func(m *flow.Message, attempt int) sink.Result
	tries  map[string]int
	took   []string
}

func (a *answers) Write(_ context.Context, b *flow.Block) ([]sink.Result, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.tries == nil {
		a.tries = map[string]int{}
	}
	results := make([]sink.Result, len(b.Messages))
	for i := range b.Messages {
		m := &b.Messages[i]
		if m.Pos < b.Lo || m.Pos > b.Hi {
			return nil, &sink.PermanentError{Err: fmt.Errorf("%s at %d in a block of %d-%d", m.ID, m.Pos, b.Lo, b.Hi)}
		}
		if a.tries[m.ID]++; a.answer != nil {
			results[i] = a.answer(m, a.tries[m.ID])
		}
		if s := results[i].Status; s == sink.Delivered || s == sink.OnSuccess || s == sink.Serve {
			a.took = append(a.took, m.ID+"="+string(m.Value))
		}
	}
	return results, nil
}

func (*answers) Close(context.Context) error { return nil }

func runLoop(t *testing.T, l *forward.Loop) error {
	t.Helper()
	if l.Events == nil {
		l.Events = loopEvents{}
	}
	l.Logger = quiet
	if l.DeadLetters == nil {
		l.DeadLetters = &grave{}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	err := l.Run(ctx, ctx)
	if ctx.Err() != nil {
		t.Fatal("the loop did not end")
	}
	return err
}

// TestFailureEndsLoop has an output that fails for good while the input has nothing more: the loop must end, and say why.
func TestFailureEndsLoop(t *testing.T) {
	broken := errors.New("no such table")
	for _, waits := range []bool{false, true} {
		out := &forward.Delivery{Primary: failing{broken}, Events: deliveryEvents{}, Logger: quiet}
		if err := runLoop(t, &forward.Loop{Input: sourceOf(&list{messages: values(1), waits: waits}), Output: out}); !errors.Is(err, broken) {
			t.Errorf("input waits %v: the loop ended with %v", waits, err)
		}
	}
}

type failing struct{ err error }

func (f failing) Write(context.Context, *flow.Block) ([]sink.Result, error) {
	return nil, &sink.PermanentError{Err: f.err}
}
func (failing) Close(context.Context) error { return nil }

// TestAttempts counts how often a message is tried.
func TestAttempts(t *testing.T) {
	for name, c := range map[string]struct {
		outcome function.Outcome
		retry   forward.RetryStrategy
		tries   int
		reason  deadletter.Reason
	}{
		"retry twice, then drop":     {function.Outcome{Verdict: function.Retry}, forward.RetryStrategy{Steps: 2, Interval: time.Millisecond, OnFailure: forward.OnFailureDrop}, 3, ""},
		"retry once, then put aside": {function.Outcome{Verdict: function.Retry}, forward.RetryStrategy{Steps: 1, Interval: time.Millisecond, OnFailure: forward.OnFailureFallback}, 2, deadletter.Retries},
		"nacked, one delivery":       {function.Outcome{Verdict: function.Nacked, Delay: time.Millisecond, MaxDeliveries: 1}, forward.RetryStrategy{}, 1, deadletter.Nack},
		"nacked, three deliveries":   {function.Outcome{Verdict: function.Nacked, Delay: time.Millisecond, MaxDeliveries: 3}, forward.RetryStrategy{}, 3, deadletter.Nack},
		"broken":                     {function.Outcome{Verdict: function.Broken, Failure: &deadletter.Failure{Reason: deadletter.Error}}, forward.RetryStrategy{}, 1, deadletter.Error},
	} {
		for _, ordered := range []bool{false, true} {
			t.Run(fmt.Sprint(name, ", ordered ", ordered), func(t *testing.T) {
				tries, g, out := 0, &grave{}, &answers{}
				apply := func(_ context.Context, in []flow.Message) ([]function.Outcome, error) {
					o := make([]function.Outcome, len(in))
					for i := range in {
						if string(in[i].Value) == "1" {
							tries++
							o[i] = c.outcome
						} else {
							o[i].Results = []flow.Message{{Value: in[i].Value}}
						}
					}
					return o, nil
				}
				err := runLoop(t, &forward.Loop{
					Input: sourceOf(&list{messages: values(3)}), DeadLetters: g,
					Output:    &forward.Delivery{Primary: out, Events: deliveryEvents{}, Logger: quiet},
					Processor: &forward.Map{Stages: []forward.Stage{{Name: "fn", Apply: apply, Retry: c.retry, NeedsIDs: true}}, Ordered: ordered},
				})
				if err != nil {
					t.Fatal(err)
				}
				if tries != c.tries {
					t.Errorf("tried %d times, want %d", tries, c.tries)
				}
				if f := g.dead["in/0/2"]; c.reason == "" && f != nil || c.reason != "" && (f == nil || f.Reason != c.reason) {
					t.Errorf("put aside: %+v, want %q", f, c.reason)
				}
				if want := []string{"in/0/1/fn=0", "in/0/3/fn=2"}; !slices.Equal(out.took, want) {
					t.Errorf("delivered %v, want %v", out.took, want)
				}
			})
		}
	}
}

// TestNackedResultIsMadeOnce has a sink turn results down for now: they come again as they are, and not through the function again.
func TestNackedResultIsMadeOnce(t *testing.T) {
	out := &answers{answer: func(m *flow.Message, attempt int) sink.Result {
		if attempt <= 2 && strings.HasSuffix(string(m.Value), "1b") {
			return sink.Result{Status: sink.Nacked, Delay: time.Millisecond}
		}
		return sink.Result{}
	}}
	apply := func(_ context.Context, in []flow.Message) ([]function.Outcome, error) {
		o := make([]function.Outcome, len(in))
		for i := range in {
			for _, suffix := range []string{"a", "b"} {
				o[i].Results = append(o[i].Results, flow.Message{Value: []byte(string(in[i].Value) + suffix)})
			}
		}
		return o, nil
	}
	stage := forward.Stage{Name: "fn", Apply: apply, NeedsIDs: true}
	err := runLoop(t, &forward.Loop{Input: sourceOf(&list{messages: values(2)}), Output: &forward.Delivery{Primary: out, Events: deliveryEvents{}, Logger: quiet}, Processor: &forward.Map{Stages: []forward.Stage{stage}}})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(out.took)
	if want := []string{"in/0/1/fn.1=0b", "in/0/1/fn=0a", "in/0/2/fn.1=1b", "in/0/2/fn=1a"}; !slices.Equal(out.took, want) {
		t.Errorf("delivered %v, want %v", out.took, want)
	}
}

// TestDelivery sends messages to the primary, the fallback and the on-success sink.
func TestDelivery(t *testing.T) {
	primary := &answers{answer: func(m *flow.Message, attempt int) sink.Result {
		switch n, _ := strconv.Atoi(string(m.Value)); n % 6 {
		case 1:
			return sink.Result{Status: sink.Fallback}
		case 2:
			return sink.Result{Status: sink.OnSuccess, OnSuccess: &flow.Message{Value: []byte("receipt")}}
		case 3:
			if attempt == 1 {
				return sink.Result{Status: sink.Nacked, Delay: time.Millisecond}
			}
		case 4:
			return sink.Result{Status: sink.Failed, Error: "busy"}
		case 5:
			return sink.Result{Status: sink.Broken, Failure: &deadletter.Failure{Reason: deadletter.Crash}}
		}
		return sink.Result{}
	}}
	fallback := &answers{answer: func(_ *flow.Message, attempt int) sink.Result {
		if attempt == 1 {
			return sink.Result{Status: sink.Failed}
		}
		return sink.Result{}
	}}
	success, g := &answers{}, &grave{}
	err := runLoop(t, &forward.Loop{
		Input: sourceOf(&list{messages: values(6)}), DeadLetters: g,
		Output: &forward.Delivery{
			Primary: primary, Fallback: fallback, OnSuccess: success, Events: deliveryEvents{}, Logger: quiet,
			Retry: forward.RetryStrategy{Steps: 2, Interval: time.Millisecond, OnFailure: forward.OnFailureFallback},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct{ got, want []string }{
		"primary":    {primary.took, []string{"in/0/1=0", "in/0/3=2", "in/0/4=3"}},
		"fallback":   {fallback.took, []string{"in/0/2=1", "in/0/5=4"}},
		"on success": {success.took, []string{"in/0/3=receipt"}},
	} {
		if !slices.Equal(c.got, c.want) {
			t.Errorf("%s has %v, want %v", name, c.got, c.want)
		}
	}
	if len(g.dead) != 1 || g.dead["in/0/6"] == nil {
		t.Errorf("put aside: %v", g.dead)
	}
	if primary.tries["in/0/5"] != 3 {
		t.Errorf("what failed was tried %d times, want once and two steps", primary.tries["in/0/5"])
	}
}

// partitions opens partitions of stores in memory.
func partitions(t *testing.T, n, maxEntry int, opt buffer.Options) (parts []*buffer.Partition, stores []*membuffer.Store) {
	t.Helper()
	for i := range n {
		s := membuffer.NewStore(maxEntry)
		opt.Name = strconv.Itoa(i)
		p, err := buffer.Open(t.Context(), s.Open(), opt)
		if err != nil {
			t.Fatal(err)
		}
		parts, stores = append(parts, p), append(stores, s)
	}
	return parts, stores
}

// stored are the messages of the blocks of a store.
// writers are the writing ends of partitions.
func writers(parts []*buffer.Partition) (all []*buffer.Writer) {
	for _, p := range parts {
		all = append(all, p.Writer)
	}
	return all
}

func stored(t *testing.T, s *membuffer.Store) (blocks []*flow.Block, messages []flow.Message) {
	t.Helper()
	s.Edit(func(entries []buffer.Entry) []buffer.Entry {
		for _, e := range entries {
			b, err := flow.Decode(e.Data)
			if err != nil {
				t.Fatal(err)
			}
			blocks, messages = append(blocks, b), append(messages, b.Messages...)
		}
		return entries
	})
	return blocks, messages
}

// TestPartitionByKey pins which partition a key goes to: were that to change with a version, messages that are written again would be there twice.
func TestPartitionByKey(t *testing.T) {
	parts, stores := partitions(t, 4, 1<<20, buffer.Options{})
	var in []flow.Message
	keys := [][]string{nil, {""}, {"a"}, {"b"}, {"a", "b"}, {"ab"}, {"customer-17"}, {"Größe"}}
	for range 3 {
		for _, k := range keys {
			in = append(in, flow.Message{Keys: k, Value: fmt.Appendf(nil, "%q", k)})
		}
	}
	router := &forward.Router{Events: routerEvents{}, Edges: []forward.Edge{{To: "x", Partitions: writers(parts), ByKey: true}}}
	if err := runLoop(t, &forward.Loop{Input: sourceOf(&list{messages: in, batch: 5}), Output: router}); err != nil {
		t.Fatal(err)
	}
	got := map[string]int{}
	for i, s := range stores {
		_, messages := stored(t, s)
		for _, m := range messages {
			if before, ok := got[string(m.Value)]; ok && before != i {
				t.Errorf("%s is in %d and %d", m.Value, before, i)
			}
			got[string(m.Value)] = i
		}
	}
	want := map[string]int{`[]`: 2, `[""]`: 1, `["a"]`: 3, `["b"]`: 2, `["a" "b"]`: 3, `["ab"]`: 2, `["customer-17"]`: 1, `["Größe"]`: 1}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("partitions are %v, want %v", got, want)
	}
}

// TestConditions is conditions.tags of an edge.
func TestConditions(t *testing.T) {
	for _, c := range []struct {
		op     forward.Operator
		values string
		tags   string
		want   bool
	}{
		{"or", "a b", "b", true}, {"or", "a b", "c", false}, {"or", "a b", "", false},
		{"and", "a b", "b a c", true}, {"and", "a b", "a", false}, {"and", "a b", "", false},
		{"not", "a b", "c", true}, {"not", "a b", "", true}, {"not", "a b", "c a", false},
		{"", "a", "a", true}, {"", "a", "b", false},
	} {
		cond := &forward.Condition{Operator: c.op, Values: strings.Fields(c.values)}
		if got := cond.Match(strings.Fields(c.tags)); got != c.want {
			t.Errorf("%s %q of tags %q is %v", c.op, c.values, c.tags, got)
		}
	}
	if !(*forward.Condition)(nil).Match(nil) {
		t.Error("no condition does not let all pass")
	}
}

type countDropped struct {
	routerEvents
	mu       sync.Mutex
	messages map[string]int
}

func (c *countDropped) Dropped(partition string, messages, _ int, reason string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.messages == nil {
		c.messages = map[string]int{}
	}
	c.messages[partition+" "+reason] += messages
}

// TestDiscard fills the buffer of an edge that discards: it holds its limit and the rest is counted, while another edge gets everything.
func TestDiscard(t *testing.T) {
	small, smallStores := partitions(t, 1, 1<<20, buffer.Options{MaxLength: 10, UsageLimit: 100})
	large, largeStores := partitions(t, 1, 1<<20, buffer.Options{})
	dropped := &countDropped{}
	never := &forward.Condition{Operator: forward.And, Values: []string{"never"}}
	router := &forward.Router{Events: dropped, Edges: []forward.Edge{{To: "small", Partitions: writers(small), Discard: true}, {To: "large", Partitions: writers(large)}, {To: "none", Partitions: writers(small), Condition: never}}}
	if err := runLoop(t, &forward.Loop{Input: sourceOf(&list{messages: values(100), batch: 7}), Output: router, Processor: &forward.Map{InFlight: 1}}); err != nil {
		t.Fatal(err)
	}
	_, kept := stored(t, smallStores[0])
	_, all := stored(t, largeStores[0])
	if len(kept) != 10 || len(all) != 100 || dropped.messages["0 buffer-full"] != 90 || len(dropped.messages) != 1 {
		t.Errorf("%d kept, %d in the other, dropped %v", len(kept), len(all), dropped.messages)
	}
}

// TestBlockSize has large messages: blocks are divided, also when they come straight from a source, and cover all positions exactly once.
func TestBlockSize(t *testing.T) {
	for _, stages := range [][]forward.Stage{nil, {{Name: "fn", Apply: func(_ context.Context, in []flow.Message) ([]function.Outcome, error) {
		o := make([]function.Outcome, len(in))
		for i := range in {
			o[i].Results = []flow.Message{{Value: in[i].Value}}
		}
		return o, nil
	}}}} {
		parts, stores := partitions(t, 1, 8<<20, buffer.Options{})
		in := values(40)
		for i := range in {
			in[i].Value = make([]byte, 100<<10)
		}
		router := &forward.Router{Events: routerEvents{}, Edges: []forward.Edge{{To: "x", Partitions: writers(parts)}}}
		if err := runLoop(t, &forward.Loop{Input: sourceOf(&list{messages: in, batch: 40}), Output: router, Processor: &forward.Map{Stages: stages}}); err != nil {
			t.Fatal(err)
		}
		blocks, messages := stored(t, stores[0])
		next := uint64(1)
		for _, b := range blocks {
			if len(b.Messages) > 6 || b.Lo != next || b.Cover != nil {
				t.Errorf("a block of %d messages covers %d-%d, %v", len(b.Messages), b.Lo, b.Hi, b.Cover)
			}
			next = b.Hi + 1
		}
		if len(messages) != 40 || next != 41 {
			t.Errorf("%d messages, covered up to %d", len(messages), next)
		}
	}
}

// TestBlockBytesIsTheSizeAtWhichBlocksEnd: the limit of the manifest decides how blocks are divided, below and above the default. Otherwise the annotation would be
// accepted and have no effect.
func TestBlockBytesIsTheSizeAtWhichBlocksEnd(t *testing.T) {
	for limit, want := range map[int]int{0: 6, 1 << 10: 1, 250 << 10: 3, 1 << 20: 11, 64 << 20: 40} {
		parts, stores := partitions(t, 1, 8<<20, buffer.Options{})
		in := values(40)
		for i := range in {
			in[i].Value = make([]byte, 100<<10)
		}
		router := &forward.Router{BlockBytes: limit, Events: routerEvents{}, Edges: []forward.Edge{{To: "x", Partitions: writers(parts)}}}
		if err := runLoop(t, &forward.Loop{Input: sourceOf(&list{messages: in, batch: 40}), Output: router}); err != nil {
			t.Fatal(err)
		}
		blocks, messages := stored(t, stores[0])
		if len(messages) != 40 || len(blocks[0].Messages) != want {
			t.Errorf("limit %d: %d messages stored, %d of them in the first block, want 40 and %d", limit, len(messages), len(blocks[0].Messages), want)
		}
	}
}

// TestTooManyResults has a function make more of one message than a block can name: it is dead-lettered, and the rest goes on.
func TestTooManyResults(t *testing.T) {
	parts, stores := partitions(t, 1, 8<<20, buffer.Options{MaxLength: 1 << 30})
	apply := func(_ context.Context, in []flow.Message) ([]function.Outcome, error) {
		o := make([]function.Outcome, len(in))
		for i := range in {
			n := 1
			if string(in[i].Value) == "1" {
				n = 1<<20 + 1
			}
			o[i].Results = make([]flow.Message, n)
		}
		return o, nil
	}
	g := &grave{}
	router := &forward.Router{Events: routerEvents{}, Edges: []forward.Edge{{To: "x", Partitions: writers(parts)}}}
	err := runLoop(t, &forward.Loop{Input: sourceOf(&list{messages: values(3)}), DeadLetters: g, Output: router, Processor: &forward.Map{Stages: []forward.Stage{{Name: "fn", Apply: apply, NeedsIDs: true}}}})
	if err != nil {
		t.Fatal(err)
	}
	if _, messages := stored(t, stores[0]); len(messages) != 2 || g.dead["in/0/2"] == nil || g.dead["in/0/2"].Reason != deadletter.Oversize {
		t.Errorf("%d messages, put aside %v", len(messages), g.dead)
	}
}

// TestOrder keeps the order of a partition while messages are nacked, suspect and retried.
func TestOrder(t *testing.T) {
	out := &answers{}
	tries := map[string]int{}
	var mu sync.Mutex
	apply := func(_ context.Context, in []flow.Message) ([]function.Outcome, error) {
		mu.Lock()
		defer mu.Unlock()
		o := make([]function.Outcome, len(in))
		for i := range in {
			n, _ := strconv.Atoi(string(in[i].Value))
			if tries[in[i].ID]++; n%7 == 3 && tries[in[i].ID] <= 2 {
				o[i] = function.Outcome{Verdict: []function.Verdict{function.Nacked, function.Retry, function.Suspect}[n%3], Delay: time.Millisecond}
				continue
			}
			o[i].Results = []flow.Message{{Value: in[i].Value}}
		}
		return o, nil
	}
	err := runLoop(t, &forward.Loop{
		Input:     sourceOf(&list{messages: values(200), batch: 9}),
		Output:    &forward.Delivery{Primary: out, Events: deliveryEvents{}, Logger: quiet},
		Processor: &forward.Map{Ordered: true, Stages: []forward.Stage{{Name: "fn", Apply: apply, Isolate: apply, NeedsIDs: true}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	for i, id := range out.took {
		if want := fmt.Sprintf("in/0/%d/fn=%d", i+1, i); id != want {
			t.Fatalf("%d is %s, want %s", i, id, want)
		}
	}
	if len(out.took) != 200 {
		t.Errorf("%d delivered", len(out.took))
	}
}
