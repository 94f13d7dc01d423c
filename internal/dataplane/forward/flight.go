package forward

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/levada-io/levada/internal/dataplane/function"
	"github.com/levada-io/levada/internal/flow"
)

// flushAfter is the default of Loop.FlushAfter.
const flushAfter = 100 * time.Millisecond

// flight is a work on its way through the stages and out. Results leave as they are done: all together if the stages are quick, and otherwise what is
// done every FlushAfter. Each message is finished on its own: see finish.
type flight struct {
	*run
	w      *Work
	cancel context.CancelCauseFunc
	before <-chan struct{} // closed when the work before has submitted what it had
	late   bool            // before was waited for once, and is waited for no more
	queued func()          // the messages have their place in the first stage
	pass   func()          // the next work may submit

	retries errgroup.Group // they end with the context of the flight

	mu     sync.Mutex
	parked int
	owed   map[int]int // results of a message that wait to be delivered by themselves
	cut    bool        // some messages were not begun
}

// process takes one work through the stages and out. before is closed when the work before it in its lane has submitted; mine is closed when this one has.
func (r *run) process(ctx context.Context, w *Work, before <-chan struct{}, mine chan struct{}) (err error) {
	parent := ctx
	leave := sync.OnceFunc(func() { r.leaveRoom(parent) })
	ctx, cancel := context.WithCancelCause(parent)
	f := &flight{run: r, w: w, cancel: cancel, before: before}
	begun := time.Now()
	pass := sync.OnceFunc(func() { close(mine) })
	queued := sync.OnceFunc(func() { close(w.begun) })
	f.queued, f.pass = queued, pass
	defer queued()
	defer func() {
		if err != nil && !errors.Is(err, errDraining) {
			cancel(err)
		}
		err = errors.Join(err, f.retries.Wait())
		cancel(nil)
		pass()
		leave()
	}()
	if len(w.Messages) == 0 {
		f.finish(ctx, 0, 0)
		return nil
	}
	for _, s := range r.Stages {
		if s.NeedsIDs {
			w.names()
			break
		}
	}
	index, broken := w.sortOut()
	select {
	case <-w.begin:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	switch {
	case r.Ordered:
		err = f.inOrder(ctx, index, broken)
	default:
		err = f.inAnyOrder(ctx, index, broken)
	}
	if err != nil {
		return err
	}
	if !r.Ordered {
		if err := f.awaitTurn(ctx); err != nil { // also if there was nothing to write: the next work waits for those before this one, too
			return err
		}
		pass()
		if n := f.waitingLater(); n > 0 && r.park(n) {
			leave()
			defer r.unpark(n)
		}
	}
	if err := f.retries.Wait(); err != nil {
		return err
	}
	if f.cut {
		return errDraining
	}
	r.Events.Processed(time.Since(begun))
	return nil
}

// inAnyOrder writes what is done as it is done; what is to be tried again goes its own way.
func (f *flight) inAnyOrder(ctx context.Context, index []int, broken []Later) error {
	f.tryLater(ctx, broken)
	if len(index) == 0 {
		return nil
	}
	left := len(index)
	return f.stream(ctx, 0, f.pick(index), f.queued, func(which []int, out []function.Outcome) error {
		at := index
		if which == nil {
			left = 0
		} else {
			left -= len(which)
			at = make([]int, len(which))
			for k, i := range which {
				at[k] = index[i]
			}
		}
		var submitted func()
		if left == 0 {
			submitted = f.pass // what is tried again does not hold up the next work
		}
		later, err := f.settle(ctx, at, f.pick(at), out, nil, submitted)
		f.tryLater(ctx, later)
		return err
	})
}

// pick returns the messages with these indices.
func (f *flight) pick(index []int) []flow.Message {
	if len(index) == len(f.w.Messages) {
		return f.w.Messages
	}
	in := make([]flow.Message, len(index))
	for k, i := range index {
		in[k] = f.w.Messages[i]
	}
	return in
}

// tryLater has messages tried again, beside what goes on.
func (f *flight) tryLater(ctx context.Context, later []Later) {
	if len(later) == 0 {
		return
	}
	f.mu.Lock()
	f.parked += len(later)
	f.mu.Unlock()
	f.retries.Go(func() error {
		err := f.retry(ctx, later)
		f.mu.Lock()
		f.parked -= len(later)
		f.mu.Unlock()
		if err != nil && !errors.Is(err, errDraining) {
			f.cancel(err)
		}
		return err
	})
}

func (f *flight) waitingLater() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.parked
}

// settle writes what is done of some messages, and returns those that are to be tried again. attempts is how often each was tried before; nil for never.
// out is nil if there are no stages. submitted is called when what is done was submitted, before it is durable; nil: nobody asks.
func (f *flight) settle(ctx context.Context, index []int, in []flow.Message, out []function.Outcome, attempts []int, submitted func()) ([]Later, error) {
	var later []Later
	refuseOversize(out)
	for k := range out {
		o := &out[k]
		if o.Verdict == function.Done {
			continue
		}
		if o.Verdict == function.Unbegun {
			f.mu.Lock()
			f.cut = true
			f.mu.Unlock()
			continue
		}
		l := Later{Message: in[k], Outcome: *o, Attempts: 1, index: index[k]}
		if attempts != nil {
			l.Attempts += attempts[k]
		}
		l.Outcome.Results, l.Outcome.Dropped = nil, 0
		f.again(&l, f.strategy())
		if l.Outcome.Verdict == function.Done {
			*o = l.Outcome // it was dropped
			continue
		}
		later = append(later, l)
	}
	e := f.emission(index, in, out)
	if len(e.index) == 0 {
		return later, nil
	}
	if err := f.write(ctx, e, submitted); err != nil {
		return later, err
	}
	left := f.owe(e.Later)
	f.finishAll(ctx, e.index, left)
	return append(later, e.Later...), nil
}

// emission is what is done of some messages.
func (f *flight) emission(index []int, in []flow.Message, out []function.Outcome) *Emission {
	e := &Emission{Work: f.w, Floor: f.w.track.Floor, Until: f.reading, InPlace: f.Ordered}
	if len(f.Stages) > 0 {
		e.Stage = f.Stages[len(f.Stages)-1].Name
	}
	if !slices.ContainsFunc(out, func(o function.Outcome) bool { return o.Verdict != function.Done }) {
		e.index, e.In, e.Out = index, in, out
	} else {
		for k := range out {
			if out[k].Verdict == function.Done {
				e.index, e.In, e.Out = append(e.index, index[k]), append(e.In, in[k]), append(e.Out, out[k])
			}
		}
	}
	if len(e.index) > 0 {
		e.cover(e.index)
	}
	return e
}

// cover sets the positions of an emission to those of messages of its work.
func (e *Emission) cover(index []int) {
	e.Spans = e.Work.spans(index)
	e.Lo, e.Hi = e.Work.Lo, e.Work.Hi
	if len(e.Spans) > 0 {
		e.Lo, e.Hi = e.Spans[0].Lo, e.Spans[len(e.Spans)-1].Hi
	}
	if len(e.Spans) == 1 {
		e.Spans = nil
	}
}

// write hands an emission to the output and waits until it is durable. It waits for the works before it, in an ordered loop as long as they take, and otherwise
// no longer than a result may wait. Works are submitted one after the other, but no work waits until the one before it is durable: that would cost a round trip
// to the broker for each. submitted lets the next one submit; see settle.
func (f *flight) write(ctx context.Context, e *Emission, submitted func()) error {
	f.Output.Begin(e)
	if err := f.awaitTurn(ctx); err != nil {
		return err
	}
	select {
	case f.w.track.writing <- struct{}{}:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	err := f.Output.Submit(ctx, e)
	<-f.w.track.writing
	if err != nil {
		return err
	}
	if submitted != nil {
		submitted()
	}
	if err := f.Output.Wait(ctx, e); err != nil {
		return err
	}
	for i := range e.Later {
		l := &e.Later[i]
		l.index = f.w.indexOf(l.Message.Pos)
		l.Attempts += e.Again[l.Message.ID]
		f.again(l, RetryStrategy{})
	}
	return nil
}

func (f *flight) awaitTurn(ctx context.Context) error {
	f.mu.Lock()
	late := f.late
	f.mu.Unlock()
	select {
	case <-f.before:
		return nil
	default:
	}
	if late {
		return nil
	}
	var enough <-chan time.Time
	if !f.Ordered {
		t := time.NewTimer(f.FlushAfter)
		defer t.Stop()
		enough = t.C
	}
	select {
	case <-f.before:
	case <-enough:
		f.mu.Lock()
		f.late = true
		f.mu.Unlock()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	return nil
}

// owe notes results that are to be delivered by themselves, and returns the indices of their messages, which are not finished before.
func (f *flight) owe(later []Later) map[int]bool {
	if len(later) == 0 {
		return nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.owed == nil {
		f.owed = map[int]int{}
	}
	left := map[int]bool{}
	for i := range later {
		if l := &later[i]; l.Made {
			f.owed[l.index]++
		}
		left[later[i].index] = true
	}
	return left
}

// paid says that n results of a message were delivered by themselves. It reports whether none is left.
func (f *flight) paid(index, n int) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.owed[index] -= n
	if f.owed[index] > 0 {
		return false
	}
	delete(f.owed, index)
	return true
}

// finishAll finishes messages, but for those that are left.
func (f *flight) finishAll(ctx context.Context, index []int, left map[int]bool) {
	if len(left) > 0 {
		index = slices.DeleteFunc(slices.Clone(index), func(i int) bool { return left[i] })
	}
	eachRun(index, func(from, to int) { f.finish(ctx, from, to) })
}

// finish says that everything made of the messages from..to-1 is durable.
func (f *flight) finish(ctx context.Context, from, to int) {
	acking := time.Now()
	f.Input.Finished(ctx, f.w, from, to)
	if to > from {
		f.w.track.finish(f.w, from, to)
	}
	f.Events.Acked(to-from, time.Since(acking))
}

// again decides when a message is tried again, or what becomes of it instead.
func (f *flight) again(l *Later, s RetryStrategy) {
	switch l.Outcome.Verdict {
	case function.Nacked:
		f.Events.Nacked(1)
		f.sites.report(f.Logger, "message nacked, redelivering", 1, "reason", l.Outcome.Reason, "attempt", l.Attempts, "delay", l.Outcome.Delay)
	case function.Retry:
		if l.Made {
			return // the output knows when
		}
	}
	if !f.giveUp(l, &l.Outcome) {
		l.Due = time.Now().Add(delay(&l.Outcome, s, l.Attempts))
	}
}

// sortOut returns the indices of the messages that are to be processed, and those that the input could not give whole.
func (w *Work) sortOut() (index []int, broken []Later) {
	index = allOf(len(w.Messages))
	if len(w.Broken) == 0 {
		return index, nil
	}
	w.names() // by the first message, which may be left out
	index = nil
	for i := range w.Messages {
		if failure := w.Broken[i]; failure != nil {
			broken = append(broken, Later{Message: w.Messages[i], Attempts: failure.Attempts, Outcome: function.Outcome{Verdict: function.Broken, Failure: failure}, index: i})
		} else {
			index = append(index, i)
		}
	}
	return index, broken
}

// numbers are 0, 1, 2, ...: most works need no others.
var numbers = func() []int {
	n := make([]int, 4096)
	for i := range n {
		n[i] = i
	}
	return n
}()

// allOf are the numbers below n. They must not be changed.
func allOf(n int) []int {
	if n <= len(numbers) {
		return numbers[:n:n]
	}
	all := make([]int, n)
	for i := range all {
		all[i] = i
	}
	return all
}

// stream runs the stages from the k-th on, and gives out what is done: which of the messages, nil for all of them, and what became of them. done is called
// by one goroutine at a time, whatever it takes, and its error ends the stream. queued is called once the messages have their place in the k-th stage; nil if
// nobody asks.
func (r *run) stream(ctx context.Context, k int, in []flow.Message, queued func(), done func(which []int, out []function.Outcome) error) error {
	if k == len(r.Stages) {
		if queued != nil {
			queued()
		}
		return done(nil, nil)
	}
	if k == len(r.Stages)-1 {
		return r.streamStage(ctx, &r.Stages[k], in, queued, done)
	}
	// What one stage has done goes through the next while others are still in the first.
	var one sync.Mutex
	rest, restCtx := errgroup.WithContext(ctx)
	err := r.streamStage(restCtx, &r.Stages[k], in, queued, func(which []int, out []function.Outcome) error {
		if which == nil {
			which = allOf(len(in))
		}
		rest.Go(func() error {
			return r.streamRest(restCtx, k, in, which, out, func(which []int, out []function.Outcome) error {
				one.Lock()
				defer one.Unlock()
				return done(which, out)
			})
		})
		return nil
	})
	if restErr := rest.Wait(); restErr != nil {
		return restErr
	}
	return err
}

// streamRest takes what the k-th stage made through the stages after it. A message is done when all its results are.
func (r *run) streamRest(ctx context.Context, k int, in []flow.Message, which []int, out []function.Outcome, done func(which []int, out []function.Outcome) error) error {
	var flat []flow.Message
	var parent []int
	left := make([]int, len(out))
	var ready []int
	for i := range out {
		if out[i].Verdict == function.Done {
			for j := range out[i].Results {
				m := out[i].Results[j]
				m.ID = flow.ChildID(in[which[i]].ID, r.Stages[k].Name, j)
				flat, parent = append(flat, m), append(parent, i)
			}
			left[i] = len(out[i].Results)
			out[i].Results = nil
		}
		if left[i] == 0 {
			ready = append(ready, i)
		}
	}
	give := func(ready []int) error {
		at, o := make([]int, len(ready)), make([]function.Outcome, len(ready))
		slices.Sort(ready)
		for n, i := range ready {
			at[n], o[n] = which[i], out[i]
		}
		return done(at, o)
	}
	if len(ready) > 0 {
		if err := give(ready); err != nil {
			return err
		}
	}
	if len(flat) == 0 {
		return nil
	}
	results := make([][]flow.Message, len(flat))
	begin := make([]int, len(out)) // of the results of each in flat
	for j := len(parent) - 1; j >= 0; j-- {
		begin[parent[j]] = j
	}
	return r.stream(ctx, k+1, flat, nil, func(sub []int, next []function.Outcome) error {
		if sub == nil {
			sub = allOf(len(flat))
		}
		var ready []int
		for n, j := range sub {
			i := parent[j]
			o := &out[i]
			o.Dropped += next[n].Dropped
			results[j] = next[n].Results
			if next[n].Verdict > o.Verdict {
				// The worst of its results decides; it starts again from the first stage.
				dropped := o.Dropped
				*o = next[n]
				o.Dropped, o.Results = dropped, nil
			}
			if left[i]--; left[i] == 0 {
				for c := begin[i]; c < len(parent) && parent[c] == i; c++ {
					o.Results = append(o.Results, results[c]...)
				}
				ready = append(ready, i)
			}
		}
		if len(ready) == 0 {
			return nil
		}
		return give(ready)
	})
}

// streamStage runs one stage, and gives out what is done when all of it is, or every FlushAfter.
func (r *run) streamStage(ctx context.Context, s *Stage, in []flow.Message, queued func(), done func(which []int, out []function.Outcome) error) error {
	begun := time.Now()
	if s.ApplyPart == nil {
		if queued != nil {
			queued()
		}
		out, err := s.Apply(ctx, in)
		if err != nil {
			return err
		}
		r.applied(s, out, time.Since(begun))
		return done(nil, out)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	tick := time.NewTimer(r.FlushAfter)
	defer tick.Stop()
	// The time counts from when the messages are sent: those that wait behind other works of a quick function leave together, too.
	part := &function.Part{Until: r.reading, Queued: queued, Sending: func() { tick.Reset(r.FlushAfter) }}
	type answer struct {
		out []function.Outcome
		err error
	}
	answers := make(chan answer, 1)
	go func() { // ends before this function does
		out, err := s.ApplyPart(ctx, in, part)
		answers <- answer{out, err}
	}()
	var given []bool
	for {
		select {
		case a := <-answers:
			switch {
			case a.err != nil:
				return a.err
			case given == nil:
				r.applied(s, a.out, time.Since(begun))
				return done(nil, a.out)
			}
			var which []int
			var out []function.Outcome
			for i := range a.out {
				if !given[i] {
					which, out = append(which, i), append(out, a.out[i])
				}
			}
			if len(which) == 0 {
				return nil
			}
			r.applied(s, out, time.Since(begun))
			return done(which, out)
		case <-tick.C:
			var which []int
			var out []function.Outcome
			part.Take(func(i int, o *function.Outcome) { which, out = append(which, i), append(out, *o) })
			if len(which) > 0 {
				if !slices.IsSorted(which) {
					which, out = sorted(which, out)
				}
				if given == nil {
					given = make([]bool, len(in))
				}
				for _, i := range which {
					given[i] = true
				}
				r.applied(s, out, time.Since(begun))
				if err := done(which, out); err != nil {
					cancel(err)
					<-answers
					return err
				}
			}
			tick.Reset(r.FlushAfter)
		}
	}
}

func sorted(which []int, out []function.Outcome) ([]int, []function.Outcome) {
	at := make(map[int]int, len(which))
	for k, i := range which {
		at[i] = k
	}
	slices.Sort(which)
	o := make([]function.Outcome, len(out))
	for k, i := range which {
		o[k] = out[at[i]]
	}
	return which, o
}

// inOrder writes what is done in the order of the messages: nothing leaves before all before it has left, or is a dead letter.
func (f *flight) inOrder(ctx context.Context, index []int, broken []Later) error {
	n := len(f.w.Messages)
	out, have, next := make([]function.Outcome, n), make([]bool, n), 0
	dead := map[int]bool{} // letters
	for i := range broken {
		out[broken[i].index], have[broken[i].index] = broken[i].Outcome, true
	}
	waits := func(i int) bool { return have[i] && out[i].Verdict != function.Done }
	advance := func() error {
		for {
			from := next
			for next < n && have[next] && out[next].Verdict == function.Done && !dead[next] {
				next++
			}
			if next > from {
				at := allOf(n)[from:next]
				var o []function.Outcome
				if len(f.Stages) > 0 {
					o = out[from:next]
				}
				later, err := f.settle(ctx, at, f.w.Messages[from:next], o, nil, nil)
				if err != nil {
					return err
				}
				if err := f.retry(ctx, later); err != nil {
					return err
				}
			}
			if next == n || !have[next] {
				return nil
			}
			if dead[next] {
				f.finish(ctx, next, next+1)
				next++
				continue
			}
			if out[next].Verdict == function.Unbegun {
				return errDraining
			}
			// Nothing may overtake it. All that wait are tried again together.
			var later []Later
			for i := next; i < n; i++ {
				if waits(i) && out[i].Verdict != function.Unbegun {
					l := Later{Message: f.w.Messages[i], Outcome: out[i], Attempts: 1, index: i}
					f.again(&l, f.strategy())
					out[i] = l.Outcome
					if l.Outcome.Verdict != function.Done {
						later = append(later, l)
					}
				}
			}
			if err := f.resolve(ctx, later, out, dead); err != nil {
				return err
			}
		}
	}
	if len(index) == 0 {
		return advance()
	}
	return f.stream(ctx, 0, f.pick(index), f.queued, func(which []int, o []function.Outcome) error {
		refuseOversize(o)
		if which == nil {
			which = allOf(len(index))
		}
		for k, i := range which {
			have[index[i]] = true
			if o != nil {
				out[index[i]] = o[k]
			}
		}
		return advance()
	})
}
