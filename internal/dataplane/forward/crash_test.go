package forward_test

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"log/slog"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/levada-io/levada/internal/dataplane/buffer"
	"github.com/levada-io/levada/internal/dataplane/buffer/membuffer"
	"github.com/levada-io/levada/internal/dataplane/deadletter"
	"github.com/levada-io/levada/internal/dataplane/forward"
	"github.com/levada-io/levada/internal/dataplane/function"
	"github.com/levada-io/levada/internal/dataplane/identity"
	"github.com/levada-io/levada/internal/dataplane/sink"
	"github.com/levada-io/levada/internal/dataplane/source"
	"github.com/levada-io/levada/internal/flow"
)

// errDead is what everything outside a process answers once it is dead.
var errDead = errors.New("the process is dead")

// fuse kills a process: the n-th thing it does to the world outside is its last.
type fuse struct {
	mu   sync.Mutex
	left int // -1: never
	dead bool
	died func()
}

// touch does something to the world outside, unless the process is dead.
func (f *fuse) touch(do func()) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.dead {
		return false
	}
	if do(); f.left > 0 {
		if f.left--; f.left == 0 {
			f.dead = true
			f.died()
		}
	}
	return true
}

// alive fails the test for an error of a process that is not dead.
func (f *fuse) alive(t *rapid.T, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err != nil && !f.dead {
		t.Errorf("while the process lived: %v", err)
	}
}

// driver is a buffer driver whose process can die between any two calls.
type driver struct {
	buffer.Driver
	fuse *fuse
}

type deadReceipt struct{}

func (deadReceipt) Wait(context.Context) (uint64, bool, error) { return 0, false, buffer.ErrClosed }

func (d driver) Submit(ctx context.Context, record buffer.Record) (r buffer.Receipt) {
	r = deadReceipt{}
	d.fuse.touch(func() { r = d.Driver.Submit(ctx, record) })
	return r
}

func (d driver) Trim(ctx context.Context, seq uint64) (err error) {
	if !d.fuse.touch(func() { err = d.Driver.Trim(ctx, seq) }) {
		return errDead
	}
	return err
}

func (d driver) SaveState(ctx context.Context, state []byte) (err error) {
	if !d.fuse.touch(func() { err = d.Driver.SaveState(ctx, state) }) {
		return errDead
	}
	return err
}

// plan is what a message will do to the function.
type plan struct {
	results int
	trouble []function.Verdict // before it is done, or always if broken
	broken  bool
}

// world is what outlives a process, and what should come out.
type world struct {
	batches [][]source.Batch // of each source partition, for a source with positions; regrouped at each start
	byID    bool
	total   int
	plans   map[string]plan

	mu      sync.Mutex
	acked   map[string]uint64 // how far the source was acknowledged
	ackedID map[string]bool
	sinks   map[string]*sinkModel
	dead    map[string]int
}

// sinkModel is a sink with an identity.Seen beside its data, which change in one step.
type sinkModel struct {
	seen *identity.Seen
	got  map[string]int
	lost []uint64
}

type writer struct {
	w    *world
	m    *sinkModel
	fuse *fuse
}

func (s writer) Write(_ context.Context, b *flow.Block) ([]sink.Result, error) {
	alive := s.fuse.touch(func() {
		s.w.mu.Lock()
		defer s.w.mu.Unlock()
		own := *b
		own.Messages = slices.Clone(b.Messages)
		s.m.lost = append(s.m.lost, s.m.seen.Admit(&own, time.Now())...)
		for i := range own.Messages {
			m := &own.Messages[i]
			s.m.got[m.ID+"="+string(m.Value)]++
		}
	})
	if !alive {
		return nil, &sink.PermanentError{Err: errDead}
	}
	return nil, nil
}

func (writer) Close(context.Context) error { return nil }

// reader is a source that begins after what was acknowledged, and groups at random.
type reader struct {
	w    *world
	fuse *fuse
	next []source.Batch
}

func (r *reader) Read(ctx context.Context, limit int) (*source.Batch, error) {
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	if len(r.next) == 0 {
		return nil, io.EOF
	}
	b := r.next[0]
	r.next = r.next[1:]
	b.Messages = slices.Clone(b.Messages)
	return &b, nil
}

func (r *reader) Ack(_ context.Context, b *source.Batch) error {
	r.fuse.touch(func() {
		r.w.mu.Lock()
		defer r.w.mu.Unlock()
		if b.ByID {
			for i := range b.Messages {
				r.w.ackedID[b.Token.([]string)[i]] = true
			}
			return
		}
		r.w.acked[b.Partition] = max(r.w.acked[b.Partition], b.Hi)
	})
	return nil
}

func (r *reader) AckPart(_ context.Context, b *source.Batch, from, to int) error {
	r.fuse.touch(func() {
		r.w.mu.Lock()
		defer r.w.mu.Unlock()
		if !b.ByID {
			r.w.acked[b.Partition] = max(r.w.acked[b.Partition], b.EndOf(to))
			return
		}
		for _, id := range b.Token.([]string)[from:to] {
			r.w.ackedID[id] = true
		}
	})
	return nil
}

func (*reader) Pending(context.Context) (int64, error) { return 0, nil }
func (*reader) Close(context.Context) error            { return nil }

// letters keeps dead letters.
type letters struct {
	w    *world
	fuse *fuse
}

func (l letters) Put(_ context.Context, m *flow.Message, _ *deadletter.Failure) error {
	if !l.fuse.touch(func() {
		l.w.mu.Lock()
		defer l.w.mu.Unlock()
		l.w.dead[m.ID]++
	}) {
		return errDead
	}
	return nil
}

type noEvents struct{}

func (noEvents) Read(int, int, time.Duration)                           {}
func (noEvents) Applied(string, int, int, int, int, time.Duration)      {}
func (noEvents) Acked(int, time.Duration)                               {}
func (noEvents) Nacked(int)                                             {}
func (noEvents) DeadLettered(int, deadletter.Reason)                    {}
func (noEvents) Dropped(string, int, int, string)                       {}
func (noEvents) Processed(time.Duration)                                {}
func (noEvents) Wrote(string, int, int)                                 {}
func (noEvents) Delivered(function.Role, []flow.Message, time.Duration) {}
func (noEvents) Failed(function.Role, int)                              {}

type (
	loopEvents     = noEvents
	routerEvents   = noEvents
	deliveryEvents = noEvents
)

func hash(s string) uint64 {
	h := fnv.New64a()
	_, _ = h.Write([]byte(s))
	return h.Sum64()
}

// tagsOf are the tags of a result; which edges it takes follows from them.
func tagsOf(id string, index int) (tags []string) {
	h := hash(id) + uint64(index)
	for i, t := range []string{"x", "y", "z"} {
		if h>>(i*3)&1 == 1 {
			tags = append(tags, t)
		}
	}
	return tags
}

// misbehaving is a function that does what the plans say; attempts are of one life.
type misbehaving struct {
	w        *world
	mu       sync.Mutex
	attempts map[string]int
}

func (f *misbehaving) outcome(m *flow.Message, isolated bool) function.Outcome {
	f.mu.Lock()
	defer f.mu.Unlock()
	p := f.w.plans[m.ID]
	n := f.attempts[m.ID]
	verdict := function.Done
	switch {
	case n < len(p.trouble):
		verdict = p.trouble[n]
	case p.broken:
		verdict = function.Broken
	}
	f.attempts[m.ID] = n + 1
	switch verdict {
	case function.Suspect:
		if !isolated {
			return function.Outcome{Verdict: function.Suspect, Failure: &deadletter.Failure{Reason: deadletter.Crash}}
		}
		if p.broken {
			return function.Outcome{Verdict: function.Broken, Failure: &deadletter.Failure{Reason: deadletter.Crash}}
		}
	case function.Nacked:
		return function.Outcome{Verdict: function.Nacked, Delay: time.Millisecond}
	case function.Retry:
		return function.Outcome{Verdict: function.Retry}
	case function.Broken:
		return function.Outcome{Verdict: function.Broken, Failure: &deadletter.Failure{Reason: deadletter.Error}}
	}
	o := function.Outcome{}
	for j := range p.results {
		o.Results = append(o.Results, flow.Message{Value: fmt.Appendf(nil, "%s#%d", m.Value, j), Keys: m.Keys, Tags: tagsOf(m.ID, j), EventTime: m.EventTime, Ingested: m.Ingested})
	}
	if p.results == 0 {
		o.Dropped = 1
	}
	return o
}

func (f *misbehaving) apply(isolated bool) func(context.Context, []flow.Message) ([]function.Outcome, error) {
	return func(ctx context.Context, in []flow.Message) ([]function.Outcome, error) {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		out := make([]function.Outcome, len(in))
		for i := range in {
			out[i] = f.outcome(&in[i], isolated)
		}
		return out, nil
	}
}

// bitByBit is the same function, which takes its time for each message.
func (f *misbehaving) bitByBit(ctx context.Context, in []flow.Message, part *function.Part) ([]function.Outcome, error) {
	slow := &slowly{outcome: func(_ context.Context, m *flow.Message) function.Outcome {
		time.Sleep(time.Duration(hash(m.ID)%300) * time.Microsecond)
		return f.outcome(m, false)
	}}
	return slow.apply(ctx, in, part)
}

// network is the same pipeline in every life: source -> fn -> left and right, with conditions.
type network struct {
	stores                map[string][]*membuffer.Store
	left, right           *forward.Condition
	ordered, byKey, small bool
	limit, inFlight       int
	trim                  time.Duration
	slow                  bool // results are taken while others of the same call are made
}

// TestCrashes moves messages through a source, a function and two sinks, over two hops of buffers. The process dies again and again, at any step, and is
// started again with whatever the store still knows. In the end every result of every message is in the sinks that its tags lead to, exactly once, and every
// message that could not be processed is in the dead letters.
func TestCrashes(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w, n := drawWorld(t), drawNetwork(t)
		lives := rapid.IntRange(0, 5).Draw(t, "deaths")
		for range lives {
			n.live(t, w, rapid.IntRange(1, 10+6*w.total).Draw(t, "dies at"))
			for _, name := range slices.Sorted(maps.Keys(n.stores)) {
				for _, s := range n.stores[name] {
					if rapid.Bool().Draw(t, "forget ids") {
						s.ForgetIDs()
					}
				}
			}
		}
		n.live(t, w, -1)
		w.check(t, n)
	})
}

func drawWorld(t *rapid.T) *world {
	w := &world{
		byID: rapid.IntRange(0, 3).Draw(t, "by id") == 0, plans: map[string]plan{}, acked: map[string]uint64{}, ackedID: map[string]bool{},
		sinks: map[string]*sinkModel{}, dead: map[string]int{},
	}
	for _, name := range []string{"left", "right"} {
		w.sinks[name] = &sinkModel{seen: identity.New(time.Hour, 1<<20), got: map[string]int{}}
	}
	verdicts := []function.Verdict{function.Nacked, function.Retry, function.Suspect}
	troubled := rapid.IntRange(0, 60).Draw(t, "percent in trouble")
	for p := range rapid.IntRange(1, 2).Draw(t, "source partitions") {
		name := "p" + strconv.Itoa(p)
		count := rapid.IntRange(0, 40).Draw(t, "messages")
		pos := uint64(0)
		var all []source.Batch
		for i := range count {
			lo := pos + 1
			pos += uint64(rapid.IntRange(1, 3).Draw(t, "gap"))
			m := flow.Message{Pos: pos, Value: fmt.Appendf(nil, "%s-%d-%060d", name, i, i), Keys: []string{"k" + strconv.Itoa(i%5)}, EventTime: 1}
			id := flow.RootID("in/"+name, "") + strconv.FormatUint(pos, 10)
			b := source.Batch{Partition: name, Lo: lo, Hi: pos, Stride: 2}
			if w.byID {
				m.Pos, m.ID = 0, string(m.Value)
				id = flow.RootID("in/"+name, m.ID)
				b = source.Batch{Partition: name, ByID: true}
			}
			b.Messages = []flow.Message{m}
			all = append(all, b)
			pl := plan{results: rapid.SampledFrom([]int{1, 1, 1, 0, 2, 3}).Draw(t, "results")}
			if rapid.IntRange(0, 99).Draw(t, "trouble") < troubled {
				for range rapid.IntRange(0, 3).Draw(t, "troubles") {
					pl.trouble = append(pl.trouble, rapid.SampledFrom(verdicts).Draw(t, "verdict"))
				}
				pl.broken = rapid.IntRange(0, 3).Draw(t, "broken") == 0
			}
			w.plans[id] = pl
			w.total++
		}
		w.batches = append(w.batches, all)
	}
	return w
}

func drawNetwork(t *rapid.T) *network {
	n := &network{
		stores: map[string][]*membuffer.Store{}, limit: rapid.IntRange(1, 20).Draw(t, "batch"), inFlight: rapid.IntRange(1, 8).Draw(t, "in flight"),
		ordered: rapid.IntRange(0, 3).Draw(t, "ordered") == 0, byKey: rapid.Bool().Draw(t, "by key"),
		trim: time.Duration(rapid.SampledFrom([]int{1, 5, 1000}).Draw(t, "trim every")) * time.Millisecond,
	}
	n.slow = rapid.Bool().Draw(t, "slow")
	entry := 1 << 20
	if n.small = rapid.IntRange(0, 2).Draw(t, "small entries") == 0; n.small {
		entry = 1000 // blocks in pieces
	}
	for _, name := range []string{"fn", "left", "right"} {
		for range rapid.IntRange(1, 3).Draw(t, name+" partitions") {
			n.stores[name] = append(n.stores[name], membuffer.NewStore(entry))
		}
	}
	conditions := []*forward.Condition{
		nil, {Operator: forward.Or, Values: []string{"x", "y"}}, {Operator: forward.And, Values: []string{"x", "y"}}, {Operator: forward.Not, Values: []string{"x"}},
	}
	n.left = rapid.SampledFrom(conditions).Draw(t, "left")
	n.right = rapid.SampledFrom(conditions).Draw(t, "right")
	return n
}

// regroup gives what is not acknowledged, in groups of any size.
func (w *world) regroup(t *rapid.T, limit int) (all []source.Batch) {
	for _, single := range w.batches {
		var group *source.Batch
		flush := func() {
			if group != nil {
				all = append(all, *group)
				group = nil
			}
		}
		for _, b := range single {
			if w.byID && w.ackedID[b.Messages[0].ID] || !w.byID && b.Hi <= w.acked[b.Partition] {
				continue
			}
			if group != nil && (len(group.Messages) >= limit || rapid.IntRange(0, 4).Draw(t, "cut") == 0) {
				flush()
			}
			if group == nil {
				own := b
				own.Messages = slices.Clone(b.Messages)
				group = &own
			} else {
				group.Hi = b.Hi
				group.Messages = append(group.Messages, b.Messages...)
			}
		}
		flush()
	}
	for i := range all {
		var ids []string
		for _, m := range all[i].Messages {
			ids = append(ids, m.ID)
		}
		all[i].Token = ids
	}
	return all
}

// live runs the pipeline until it dies (at its steps-th step) or everything has arrived.
func (n *network) live(t *rapid.T, w *world, steps int) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	f := &fuse{left: steps, died: cancel}
	parts := map[string][]*buffer.Partition{}
	var services, loops sync.WaitGroup
	for name, stores := range n.stores {
		for i, s := range stores {
			p, err := buffer.Open(ctx, driver{s.Open(), f}, buffer.Options{Name: fmt.Sprintf("%s-%d", name, i), TrimEvery: n.trim})
			if err != nil {
				if f.dead {
					return // it died while it started
				}
				t.Fatalf("open %s: %v", name, err)
			}
			parts[name] = append(parts[name], p)
			services.Go(func() { f.alive(t, p.Run(ctx)) })
		}
	}
	logger := slog.New(slog.DiscardHandler)
	var mu sync.Mutex
	var failures []error
	run := func(name string, l *forward.Loop) {
		l.Events, l.DeadLetters, l.Logger = loopEvents{}, letters{w, f}, logger
		loops.Go(func() {
			if err := l.Run(ctx, ctx); err != nil {
				mu.Lock()
				defer mu.Unlock()
				failures = append(failures, fmt.Errorf("%s: %w", name, err))
			}
		})
	}
	run("in", &forward.Loop{
		Processor: &forward.Map{InFlight: n.inFlight},
		Input:     &forward.SourceInput{Vertex: "in", Reader: &reader{w, f, w.regroup(t, n.limit)}, Limit: n.limit, OnError: func(error) {}, Logger: logger},
		Output:    &forward.Router{Events: routerEvents{}, Edges: []forward.Edge{{To: "fn", Partitions: writers(parts["fn"]), ByKey: n.byKey}}},
	})
	fn := &misbehaving{w: w, attempts: map[string]int{}}
	input := func(vertex string, i int) forward.Input {
		in := &forward.BufferInput{Vertex: vertex, Index: i, Partition: parts[vertex][i].Reader, Limit: n.limit}
		services.Go(func() { in.Run(ctx) })
		return in
	}
	stage := forward.Stage{Name: "fn", Apply: fn.apply(false), Isolate: fn.apply(true), NeedsIDs: true, Retry: forward.RetryStrategy{Interval: time.Millisecond}}
	if n.slow {
		stage.ApplyPart = fn.bitByBit
	}
	for i := range parts["fn"] {
		run("fn", &forward.Loop{
			Input: input("fn", i),
			Output: &forward.Router{Events: routerEvents{}, Edges: []forward.Edge{
				{To: "left", Condition: n.left, Partitions: writers(parts["left"])}, {To: "right", Condition: n.right, Partitions: writers(parts["right"]), ByKey: n.byKey},
			}},
			Processor: &forward.Map{InFlight: n.inFlight, Ordered: n.ordered, FlushAfter: time.Millisecond, Stages: []forward.Stage{stage}},
		})
	}
	for _, name := range []string{"left", "right"} {
		for i := range parts[name] {
			run(name, &forward.Loop{
				Processor: &forward.Map{InFlight: n.inFlight},
				Input:     input(name, i),
				Output:    &forward.Delivery{Primary: writer{w, w.sinks[name], f}, Events: deliveryEvents{}, Logger: logger},
			})
		}
	}
	if steps < 0 {
		pending := func() (n int) {
			for _, list := range parts {
				for _, p := range list {
					n += p.Pending()
				}
			}
			return n
		}
		quiet := 0
		for deadline := time.Now().Add(4 * time.Second); quiet < 3 && ctx.Err() == nil; time.Sleep(time.Millisecond) {
			if quiet++; !w.complete(n) || pending() != 0 {
				quiet = 0
			}
			mu.Lock()
			failed := len(failures) > 0
			mu.Unlock()
			if failed || time.Now().After(deadline) {
				break
			}
		}
		if quiet < 3 {
			for name, list := range parts {
				for i, p := range list {
					t.Logf("%s-%d: %d pending, floor %d", name, i, p.Pending(), p.Floor())
				}
			}
			t.Errorf("it does not come to an end: %v", failures)
		}
	} else {
		// It may also come to its end alive.
		select {
		case <-ctx.Done():
		case <-time.After(30 * time.Millisecond):
			f.mu.Lock()
			f.dead = true
			f.mu.Unlock()
		}
	}
	cancel()
	loops.Wait()
	services.Wait()
	if steps < 0 {
		for _, list := range parts {
			for _, p := range list {
				if err := p.Close(context.Background()); err != nil {
					t.Errorf("close: %v", err)
				}
			}
		}
	}
}

// want is what must be in a sink.
func (w *world) want(c *forward.Condition) map[string]int {
	all := map[string]int{}
	has := func(tags []string) func(string) bool {
		return func(v string) bool { return slices.Contains(tags, v) }
	}
	for _, single := range w.batches {
		for _, b := range single {
			m := &b.Messages[0]
			id := m.ID
			if !w.byID {
				id = strconv.FormatUint(m.Pos, 10)
			}
			id = flow.RootID("in/"+b.Partition, id)
			p := w.plans[id]
			if p.broken {
				continue
			}
			for j := range p.results {
				tags := tagsOf(id, j)
				passes := c == nil
				if c != nil {
					n := len(slices.DeleteFunc(slices.Clone(c.Values), func(v string) bool { return !has(tags)(v) }))
					passes = c.Operator == forward.Or && n > 0 || c.Operator == forward.And && n == len(c.Values) || c.Operator == forward.Not && n == 0
				}
				if passes {
					all[flow.ChildID(id, "fn", j)+"="+string(m.Value)+"#"+strconv.Itoa(j)] = 1
				}
			}
		}
	}
	return all
}

func (w *world) complete(n *network) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	broken := 0
	for _, p := range w.plans {
		if p.broken {
			broken++
		}
	}
	return len(w.sinks["left"].got) >= len(w.want(n.left)) && len(w.sinks["right"].got) >= len(w.want(n.right)) && len(w.dead) >= broken
}

func (w *world) check(t *rapid.T, n *network) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for name, c := range map[string]*forward.Condition{"left": n.left, "right": n.right} {
		want, got := w.want(c), w.sinks[name].got
		for _, id := range sortedDifference(want, got) {
			t.Errorf("%s: %s is there %d times, want %d", name, id, got[id], want[id])
		}
		if len(w.sinks[name].lost) > 0 {
			t.Errorf("%s: gaps at %v, though nothing is lost", name, w.sinks[name].lost)
		}
	}
	for id, p := range w.plans {
		if p.broken != (w.dead[id] > 0) {
			t.Errorf("%s: broken %v, put aside %d times", id, p.broken, w.dead[id])
		}
	}
	for id := range w.dead {
		if _, ok := w.plans[id]; !ok {
			t.Errorf("%s was put aside and never sent", id)
		}
	}
}

func sortedDifference(a, b map[string]int) (ids []string) {
	for id := range a {
		if a[id] != b[id] {
			ids = append(ids, id)
		}
	}
	for id := range b {
		if _, ok := a[id]; !ok {
			ids = append(ids, id)
		}
	}
	slices.SortFunc(ids, func(x, y string) int { return cmp.Or(cmp.Compare(len(x), len(y)), strings.Compare(x, y)) })
	return slices.Compact(ids)
}
