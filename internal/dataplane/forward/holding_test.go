package forward_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/levada-io/levada/internal/dataplane/buffer"
	"github.com/levada-io/levada/internal/dataplane/buffer/membuffer"
	"github.com/levada-io/levada/internal/dataplane/forward"
	"github.com/levada-io/levada/internal/dataplane/function"
	"github.com/levada-io/levada/internal/dataplane/identity"
	"github.com/levada-io/levada/internal/dataplane/source"
	"github.com/levada-io/levada/internal/flow"
)

// counting is a processor with windows: it holds messages until a window of size of them is whole, and writes the sum of a window when a tick comes. Window k
// is of the messages whose values are k*size to (k+1)*size-1, and its result has position k+1 in a lane of the processor's own. So it shows what a reduce
// needs of this package: results without a message under whose position they are written, and acknowledgements out of step with reading.
//
// With byBound it writes windows when a watermark has passed their end instead: a bound of n says that all values below n are in the buffer.
type counting struct {
	size    int
	lane    string
	state   *countingState
	tick    <-chan time.Time
	byBound bool
	broken  func(format string, args ...any) // called if a window is not whole when a watermark has passed its end; nil: nobody asks
}

// countingState is what outlives a process: the window that closes next. It is saved after the results are durable, and before messages are finished.
type countingState struct {
	mu   sync.Mutex
	next int
	save func(change func()) bool // false: the process is dead
}

func (s *countingState) load() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.next
}

func (c *counting) Start(p *forward.Pipe) forward.Process {
	r := &countingRun{counting: c, Pipe: p, works: make(chan *forward.Work), open: map[int]*window{}, next: c.state.load()}
	p.Go(r.run)
	return r
}

// TestWindowIsWrittenWhenAWatermarkPassesItsEnd: the watermark comes in a block without messages, on an edge where no message follows. What is read, consumed and done
// is counted apart: the open window takes no room in its input, and holds the floor of it.
func TestWindowIsWrittenWhenAWatermarkPassesItsEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		in, inStores := partitions(t, 1, 1<<20, buffer.Options{})
		out, stores := partitions(t, 1, 1<<20, buffer.Options{})
		write := func(lo, messages int, bound int64) {
			t.Helper()
			var e flow.Encoder
			first, last := uint64(lo)+1, uint64(lo+messages)
			if messages == 0 {
				first = last // a block for a watermark alone covers nothing new
			}
			e.Reset(first)
			for i, m := range values(lo + messages)[lo:] {
				m.Pos = uint64(lo+i) + 1
				e.Append(&m)
			}
			w, err := in[0].Write(t.Context(), &flow.Block{Lane: "in/0", Lo: first, Hi: last, Watermark: bound}, &e)
			if err == nil {
				err = w.Wait(t.Context())
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		input := &forward.BufferInput{Vertex: "sum", Partition: in[0].Reader, Limit: 4}
		reading, drain := context.WithCancel(t.Context())
		defer drain()
		go input.Run(reading)
		l := &forward.Loop{
			Input: input, Events: loopEvents{}, Logger: quiet, DeadLetters: &grave{},
			Output:    &forward.Router{Events: routerEvents{}, Edges: []forward.Edge{{To: "x", Partitions: writers(out)}}},
			Processor: &counting{size: 10, lane: "sum/0#out", state: stateInMemory(), byBound: true, broken: t.Errorf},
		}
		ended := make(chan error, 1)
		go func() { ended <- l.Run(t.Context(), reading) }()
		check := func(when string, results, pending, consumed int, floor uint64) {
			t.Helper()
			synctest.Wait()
			if _, got := stored(t, stores[0]); len(got) != results || in[0].Pending() != pending || in[0].Consumed() != consumed || in[0].Floor() != floor {
				t.Errorf("%s: %d results, %d pending, %d consumed, floor %d; want %d, %d, %d and %d", when, len(got), in[0].Pending(), in[0].Consumed(), in[0].Floor(), results, pending, consumed, floor)
			}
		}
		write(0, 13, 5)
		check("an open window", 0, 0, 13, 0)
		write(13, 0, 9)
		check("a watermark below the end of the window", 0, 0, 13, 0)
		write(13, 0, 10)
		check("a watermark at the end of the window", 1, 0, 3, 0)
		write(13, 7, flow.NoWatermark)
		check("a window that is whole and not passed", 1, 0, 10, 0)
		write(20, 0, 20)
		check("the next watermark", 2, 0, 0, 5)
		if err := in[0].Trim(t.Context()); err != nil || inStores[0].Len() != 0 {
			t.Errorf("%d blocks are left, error %v", inStores[0].Len(), err)
		}
		write(20, 4, flow.NoWatermark)
		check("the last window is not whole", 2, 0, 4, 5)
		drain()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		check("a drain leaves it to the next start", 2, 0, 4, 5)
	})
}

// TestWorkWithoutMessagesIsDoneInItsTurn: works behind one without messages are not submitted before those in front of it, and a plain vertex acknowledges it.
func TestWorkWithoutMessagesIsDoneInItsTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		in, _ := partitions(t, 1, 1<<20, buffer.Options{})
		out, stores := partitions(t, 1, 1<<20, buffer.Options{})
		for pos := uint64(1); pos <= 9; pos++ {
			var e flow.Encoder
			e.Reset(pos)
			if pos%3 != 2 {
				e.Append(&flow.Message{Pos: pos, Value: []byte(strconv.Itoa(int(pos)))})
			}
			w, err := in[0].Write(t.Context(), &flow.Block{Lane: "in/0", Lo: pos, Hi: pos, Watermark: int64(pos)}, &e)
			if err == nil {
				err = w.Wait(t.Context())
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		input := &forward.BufferInput{Vertex: "x", Partition: in[0].Reader, Limit: 1}
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go input.Run(ctx)
		slow := func(ctx context.Context, messages []flow.Message) ([]function.Outcome, error) {
			if n, _ := strconv.Atoi(string(messages[0].Value)); n%3 == 1 {
				time.Sleep(50 * time.Millisecond) // those in front of a block without messages
			}
			return []function.Outcome{echo(&messages[0])}, nil
		}
		l := &forward.Loop{
			Input: input, Processor: &forward.Map{Stages: []forward.Stage{{Name: "x", Apply: slow}}}, Events: loopEvents{}, Logger: quiet, DeadLetters: &grave{},
			Output: &forward.Router{Events: routerEvents{}, Edges: []forward.Edge{{To: "y", Partitions: writers(out)}}},
		}
		ended := make(chan error, 1)
		go func() { ended <- l.Run(ctx, ctx) }()
		time.Sleep(time.Second)
		synctest.Wait()
		var got []string
		_, messages := stored(t, stores[0])
		for _, m := range messages {
			got = append(got, string(m.Value))
		}
		if fmt.Sprint(got) != "[1 3 4 6 7 9]" || in[0].Floor() != 9 || in[0].Pending() != 0 {
			t.Errorf("%v came out, the floor is %d, %d are pending", got, in[0].Floor(), in[0].Pending())
		}
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

type countingRun struct {
	*counting
	*forward.Pipe
	works chan *forward.Work
	open  map[int]*window
	next  int
	bound int
}

type window struct {
	sum  int
	held []heldMessage
}

type heldMessage struct {
	w *forward.Work
	i int
}

func (r *countingRun) Take(ctx context.Context, w *forward.Work) error {
	select {
	case r.works <- w:
		return nil
	case <-r.Reading.Done():
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (r *countingRun) run(ctx context.Context) error {
	for {
		select {
		case w := <-r.works:
			if err := r.add(ctx, w); err != nil {
				return err
			}
		case <-r.tick:
			if err := r.closeWhole(ctx); err != nil {
				return err
			}
		case <-r.InputEnded:
			r.bound = 1 << 30
			return r.closeWhole(ctx)
		case <-r.Reading.Done():
			return nil // what is held is not finished, and is read again
		}
	}
}

func (r *countingRun) add(ctx context.Context, w *forward.Work) error {
	for i := range w.Messages {
		n, _ := strconv.Atoi(string(w.Messages[i].Value))
		k := n / r.size
		if k < r.next {
			r.Finish(ctx, w, i, i+1) // its window is closed: it was read again
			continue
		}
		if r.open[k] == nil {
			r.open[k] = &window{}
		}
		r.open[k].sum += n
		r.open[k].held = append(r.open[k].held, heldMessage{w, i})
		r.Consume(w, i, i+1)
	}
	for _, b := range w.Bounds {
		r.bound = max(r.bound, int(b.Watermark))
	}
	if r.byBound && len(w.Bounds) > 0 {
		if err := r.closeWhole(ctx); err != nil {
			return err
		}
	}
	if len(w.Messages) == 0 {
		r.Finish(ctx, w, 0, 0) // after what it closed is durable
	}
	return nil
}

// due reports whether window k may be written.
func (r *countingRun) due(k int) bool {
	whole := r.open[k] != nil && len(r.open[k].held) == r.size
	if !r.byBound || r.bound == 1<<30 {
		return whole
	}
	passed := r.bound >= (k+1)*r.size
	if passed && !whole && r.broken != nil {
		r.broken("the watermark is %d, and window %d is not whole: %+v", r.bound, k, r.open[k])
	}
	return passed && whole
}

// closeWhole writes the results of the windows that are whole, in order.
func (r *countingRun) closeWhole(ctx context.Context) error {
	var whole []*window
	e := &forward.Emission{Origin: forward.Origin{Lane: r.lane, IDPrefix: r.lane + "/", Stride: 1}, Lo: uint64(r.next) + 1}
	for k := r.next; r.due(k); k++ {
		e.Hi = uint64(k) + 1
		e.In = append(e.In, flow.Message{Pos: e.Hi, Value: fmt.Appendf(nil, "%d: %d", k, r.open[k].sum), EventTime: 1})
		whole = append(whole, r.open[k])
	}
	if len(whole) == 0 {
		return nil
	}
	durable := uint64(r.next)
	e.Floor = func() uint64 { return durable }
	pending := r.Output.Begin(e)
	if err := pending.Submit(ctx); err != nil {
		return err
	}
	if err := pending.Wait(ctx); err != nil {
		return err
	}
	next := r.next + len(whole)
	if !r.state.save(func() { r.state.next = next }) {
		return errDead
	}
	for k, w := range whole {
		delete(r.open, r.next+k)
		for _, h := range w.held {
			r.Finish(ctx, h.w, h.i, h.i+1)
		}
	}
	r.next = next
	return nil
}

func stateInMemory() *countingState {
	s := &countingState{}
	s.save = func(change func()) bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		change()
		return true
	}
	return s
}

// TestProcessorHoldsMessagesAndReadsOn: everything is read although nothing is finished, nothing is acknowledged before a tick, and a drain leaves
// what is held to the next start. A loop that acknowledged with the reading would lose the open window.
func TestProcessorHoldsMessagesAndReadsOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		parts1, stores := partitions(t, 1, 1<<20, buffer.Options{})
		in := &parts{list: list{messages: values(105), batch: 7, waits: true}}
		tick := make(chan time.Time)
		router := &forward.Router{Events: routerEvents{}, Edges: []forward.Edge{{To: "x", Partitions: writers(parts1)}}}
		l := &forward.Loop{
			Input: inputOf(in), Output: router, Events: loopEvents{}, Logger: quiet, DeadLetters: &grave{},
			Processor: &counting{size: 10, lane: "sum/0#out", state: stateInMemory(), tick: tick},
		}
		reading, drain := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- l.Run(t.Context(), reading) }()
		synctest.Wait()
		if _, out := stored(t, stores[0]); len(in.messages) != 0 || in.upTo() != 0 || len(out) != 0 {
			t.Errorf("before a tick %d are left to read, %d are acknowledged, %d results are stored", len(in.messages), in.upTo(), len(out))
		}
		tick <- time.Now()
		synctest.Wait()
		if _, out := stored(t, stores[0]); in.upTo() != 100 || len(out) != 10 || string(out[9].Value) != "9: 945" || out[9].ID != "sum/0#out/10" {
			t.Errorf("after it %d are acknowledged, and the results are %v", in.upTo(), out)
		}
		drain()
		if err := <-ended; err != nil || in.upTo() != 100 {
			t.Errorf("the drain ended with %v, acknowledged up to %d", err, in.upTo())
		}
	})
}

// TestProcessorEndsTheLoop: a processor that fails on a tick ends the loop, although nothing is read at that moment.
func TestProcessorEndsTheLoop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &countingState{save: func(func()) bool { return false }}
		tick := make(chan time.Time)
		l := &forward.Loop{
			Input: inputOf(&list{messages: values(10), waits: true}), Output: &storing{wanted: 1, enough: make(chan struct{})}, Events: loopEvents{}, Logger: quiet, DeadLetters: &grave{},
			Processor: &counting{size: 10, lane: "sum/0#out", state: s, tick: tick},
		}
		ended := make(chan error, 1)
		go func() { ended <- l.Run(t.Context(), t.Context()) }()
		synctest.Wait()
		tick <- time.Now()
		if err := <-ended; !errors.Is(err, errDead) {
			t.Errorf("it ended with %v", err)
		}
	})
}

// TestWindowsAreCountedOnce sends numbers through a buffer, a processor with windows and another buffer into a sink. The process dies again and again, at any
// step: between a result and its state, between the state and the acknowledgements, in the middle of those. Each window reaches the sink once, with all of its messages.
func TestWindowsAreCountedOnce(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		size, windows := rapid.IntRange(1, 12).Draw(t, "size"), rapid.IntRange(1, 8).Draw(t, "windows")
		w := &world{acked: map[string]uint64{}, sinks: map[string]*sinkModel{"out": {seen: identity.New(time.Hour, 1<<20), got: map[string]int{}}}, dead: map[string]int{}, total: size * windows}
		var all []source.Batch
		for i, m := range values(w.total) {
			m.Pos = uint64(i) + 1
			all = append(all, source.Batch{Partition: "p", Lo: m.Pos, Hi: m.Pos, Stride: 4, Messages: []flow.Message{m}})
		}
		w.batches = [][]source.Batch{all}
		n := &windowNetwork{w: w, size: size, windows: windows, limit: rapid.IntRange(1, 20).Draw(t, "batch"), sums: membuffer.NewStore(1 << 20), out: membuffer.NewStore(1 << 20), state: &countingState{}}
		n.byBound, n.broken = rapid.Bool().Draw(t, "watermarks close the windows"), t.Errorf
		for range rapid.IntRange(0, 5).Draw(t, "deaths") {
			n.live(t, rapid.IntRange(1, 10+4*w.total).Draw(t, "dies at"))
		}
		n.live(t, -1)
		n.check(t)
	})
}

// windowNetwork is what outlives a process of the pipeline source -> buffer -> windows -> buffer -> sink.
type windowNetwork struct {
	w                    *world
	size, windows, limit int
	sums, out            *membuffer.Store
	state                *countingState
	byBound              bool
	broken               func(format string, args ...any)
}

// promising is the output of the source. It writes a block without messages behind what is durable, with the watermark that is true of the buffer then.
type promising struct {
	*forward.Router
	to *buffer.Partition

	mu      sync.Mutex
	durable map[uint64]bool // positions of this life
	upTo    uint64          // all positions up to here are durable
}

type promisingWrite struct {
	forward.PendingWrite
	p      *promising
	lo, hi uint64
}

func (p *promising) Begin(e *forward.Emission) forward.PendingWrite {
	return promisingWrite{p.Router.Begin(e), p, e.Lo, e.Hi}
}

func (w promisingWrite) Wait(ctx context.Context) error {
	if err := w.PendingWrite.Wait(ctx); err != nil {
		return err
	}
	w.p.mu.Lock()
	defer w.p.mu.Unlock()
	for pos := w.lo; pos <= w.hi; pos++ {
		w.p.durable[pos] = true
	}
	for w.p.durable[w.p.upTo+1] {
		w.p.upTo++
	}
	return w.p.promise(ctx)
}

// promise writes what is promised. Positions are one above the values.
func (p *promising) promise(ctx context.Context) error {
	var e flow.Encoder
	e.Reset(p.upTo)
	w, err := p.to.Write(ctx, &flow.Block{Lane: "in/p", Lo: p.upTo, Hi: p.upTo, Watermark: int64(p.upTo)}, &e)
	if err == nil {
		err = w.Wait(ctx)
	}
	return err
}

// live runs the pipeline until it dies (at its steps-th step) or everything has arrived.
func (n *windowNetwork) live(t *rapid.T, steps int) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	f := &fuse{left: steps, died: cancel}
	var services, loops sync.WaitGroup
	open := func(name string, s *membuffer.Store) *buffer.Partition {
		p, err := buffer.Open(ctx, driver{s.Open(), f}, buffer.Options{Name: name, TrimEvery: time.Millisecond, SaveEvery: time.Millisecond})
		if err != nil {
			return nil
		}
		services.Go(func() { f.alive(t, p.Run(ctx)) })
		return p
	}
	sums, out := open("sums", n.sums), open("out", n.out)
	defer func() {
		cancel()
		loops.Wait()
		services.Wait()
	}()
	if sums == nil || out == nil {
		if !f.dead {
			t.Fatal("the buffers do not open")
		}
		return
	}
	input := func(vertex string, p *buffer.Partition) forward.Input {
		in := &forward.BufferInput{Vertex: vertex, Partition: p.Reader, Limit: n.limit}
		services.Go(func() { in.Run(ctx) })
		return in
	}
	output := func(to string, p *buffer.Partition) forward.Output {
		return &forward.Router{Events: routerEvents{}, Edges: []forward.Edge{{To: to, Partitions: []*buffer.Writer{p.Writer}}}}
	}
	n.state.save = func(change func()) bool {
		n.state.mu.Lock()
		defer n.state.mu.Unlock()
		return f.touch(change)
	}
	source := output("sums", sums)
	processor := &counting{size: n.size, lane: "sums/0#out", state: n.state, byBound: n.byBound, broken: n.broken}
	if n.byBound {
		n.w.mu.Lock()
		p := &promising{Router: source.(*forward.Router), to: sums, durable: map[uint64]bool{}, upTo: n.w.acked["p"]}
		n.w.mu.Unlock()
		if source = p; p.promise(ctx) != nil {
			return
		}
	} else {
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		processor.tick = tick.C
	}
	for _, l := range []*forward.Loop{
		{Input: &forward.SourceInput{Vertex: "in", Reader: &reader{n.w, f, n.w.regroup(t, n.limit)}, Limit: n.limit, OnError: func(error) {}, Logger: quiet}, Output: source},
		{Input: input("sums", sums), Output: output("out", out), Processor: processor},
		{Input: input("out", out), Output: &forward.Delivery{Primary: writer{n.w, n.w.sinks["out"], f}, Events: deliveryEvents{}, Logger: quiet}},
	} {
		l.Events, l.DeadLetters, l.Logger = loopEvents{}, letters{n.w, f}, quiet
		loops.Go(func() { f.alive(t, l.Run(ctx, ctx)) })
	}
	if steps < 0 {
		n.await(t, ctx, sums, out)
		return
	}
	select {
	case <-ctx.Done():
	case <-time.After(30 * time.Millisecond): // it may also come to its end alive
		f.mu.Lock()
		f.dead = true
		f.mu.Unlock()
	}
}

// await waits until every window is in the sink, and nothing is pending.
func (n *windowNetwork) await(t *rapid.T, ctx context.Context, sums, out *buffer.Partition) {
	for deadline := time.Now().Add(20 * time.Second); ctx.Err() == nil; time.Sleep(time.Millisecond) {
		n.w.mu.Lock()
		got := len(n.w.sinks["out"].got)
		n.w.mu.Unlock()
		if got >= n.windows && sums.Pending() == 0 && out.Pending() == 0 && sums.Consumed() == 0 && sums.Floor() == sums.KnownEnd() {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d of %d windows came, %d and %d messages are pending, %d are consumed, the floor is %d of %d", got, n.windows, sums.Pending(), out.Pending(), sums.Consumed(), sums.Floor(), sums.KnownEnd())
		}
	}
}

func (n *windowNetwork) check(t *rapid.T) {
	n.w.mu.Lock()
	defer n.w.mu.Unlock()
	var values []string
	for id, times := range n.w.sinks["out"].got {
		if times != 1 {
			t.Errorf("%s came %d times", id, times)
		}
		values = append(values, id)
	}
	for k := range n.windows {
		sum := 0
		for i := range n.size {
			sum += k*n.size + i
		}
		if want := fmt.Sprintf("sums/0#out/%d=%d: %d", k+1, k, sum); !slices.Contains(values, want) {
			t.Errorf("%s is missing from %v", want, values)
		}
	}
	if len(values) != n.windows || len(n.w.sinks["out"].lost) > 0 {
		t.Errorf("%d results for %d windows, gaps at %v", len(values), n.windows, n.w.sinks["out"].lost)
	}
}
