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

// flight is a work on its way through the stages and out. Results leave as they are done: all together if the stages are quick, and otherwise what is
// done every FlushAfter. Each message is finished on its own: see Pipe.Finish.
type flight struct {
	*run
	w      *Work
	cancel context.CancelCauseFunc // ends all of the flight with the first error
	// The rest is called once or more, and counts once. Invariant: all three are called before the flight has ended, or works behind it would wait.
	leave     func() // the work leaves the room
	queued    func() // the messages have their place in the first stage
	submitted func() // the next work may submit

	retries errgroup.Group // beside what goes on; they end with the context of the flight

	mu     sync.Mutex
	waited bool        // for the work before to submit; that is done once
	parked int         // messages that are retried beside what goes on
	owed   map[int]int // results that wait to be delivered by themselves, by the index of their message. Invariant: values are above 0
	cut    bool        // some messages were not begun
}

// process takes one work through the stages and out.
func (r *run) process(parent context.Context, w *Work) (err error) {
	begun := time.Now()
	ctx, cancel := context.WithCancelCause(parent)
	f := &flight{run: r, w: w, cancel: cancel, leave: sync.OnceFunc(func() { r.leaveRoom(parent) })}
	f.queued, f.submitted = sync.OnceFunc(func() { close(w.turn.queued) }), sync.OnceFunc(func() { close(w.turn.submitted) })
	defer func() { err = f.end(err) }()
	if r.needsIDs() {
		w.names()
	}
	if err := await(ctx, w.turn.before.queued); err != nil {
		return err
	}
	if len(w.Messages) == 0 {
		return f.empty(ctx)
	}
	unpark, err := f.apply(ctx)
	defer unpark()
	if err == nil {
		err = f.retries.Wait()
	}
	switch {
	case err != nil:
		return err
	case f.cut:
		return errDraining
	}
	r.Events.Processed(time.Since(begun))
	return nil
}

// empty finishes a work without messages, in its turn: the works behind it wait for those before it too.
func (f *flight) empty(ctx context.Context) error {
	f.queued()
	if err := f.awaitTurn(ctx); err != nil {
		return err
	}
	f.Finish(ctx, f.w, 0, 0)
	return nil
}

// await waits for a channel to be closed.
func await(ctx context.Context, c <-chan struct{}) error {
	select {
	case <-c:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// apply returns once all is done, or waits only for retries. The function that it returns is called when those have ended.
func (f *flight) apply(ctx context.Context) (unpark func(), err error) {
	unpark = func() {}
	index, broken := f.w.sortOut()
	if f.Ordered {
		return unpark, f.inOrder(ctx, index, broken)
	}
	if err := f.inAnyOrder(ctx, index, broken); err != nil {
		return unpark, err
	}
	if err := f.awaitTurn(ctx); err != nil { // also if there was nothing to write: the next work waits for those before this one, too
		return unpark, err
	}
	f.submitted()
	if n := f.waitingLater(); n > 0 && f.park(n) {
		f.leave()
		unpark = func() { f.unpark(n) }
	}
	return unpark, nil
}

// end waits for what was begun, and lets go of everything.
func (f *flight) end(err error) error {
	if err != nil && !errors.Is(err, errDraining) {
		f.cancel(err)
	}
	f.queued()
	err = errors.Join(err, f.retries.Wait())
	f.cancel(nil)
	f.submitted()
	f.leave()
	return err
}

// inAnyOrder writes what is done as it is done; what is to be tried again goes its own way.
func (f *flight) inAnyOrder(ctx context.Context, index []int, broken []Later) error {
	f.tryLater(ctx, broken)
	if len(index) == 0 {
		return nil
	}
	left := len(index)
	return f.stream(ctx, 0, f.w.pick(index), f.queued, func(which []int, out []function.Outcome) error {
		at := index
		if which == nil {
			left = 0
		} else {
			left -= len(which)
			at = choose(index, which)
		}
		var submitted func()
		if left == 0 {
			submitted = f.submitted // what is tried again does not hold up the next work
		}
		later, err := f.settle(ctx, at, f.w.pick(at), out, nil, submitted)
		f.tryLater(ctx, later)
		return err
	})
}

// choose returns from[which[0]], from[which[1]] and so on.
func choose[T any](from []T, which []int) []T {
	chosen := make([]T, len(which))
	for k, i := range which {
		chosen[k] = from[i]
	}
	return chosen
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

// waitingLater is how many messages of the work only wait for a retry.
func (f *flight) waitingLater() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.parked
}

// settle writes what is done of some messages, and returns those that are to be tried again. attempts is how often each was tried before; nil for never.
// out is nil if there are no stages. submitted is called when what is done was submitted, before it is durable; nil: nobody asks.
func (f *flight) settle(ctx context.Context, index []int, in []flow.Message, out []function.Outcome, attempts []int, submitted func()) ([]Later, error) {
	refuseOversize(out)
	later := f.undone(index, in, out, attempts)
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

// undone are the messages that are to be tried again. Those that are dropped instead are done, in out.
func (f *flight) undone(index []int, in []flow.Message, out []function.Outcome, attempts []int) (later []Later) {
	for k := range out {
		o := &out[k]
		switch o.Verdict {
		case function.Done:
			continue
		case function.Unbegun:
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
	return later
}

// emission is what is done of some messages.
func (f *flight) emission(index []int, in []flow.Message, out []function.Outcome) *Emission {
	e := &Emission{Origin: f.w.Origin, work: f.w, Floor: f.w.track.Floor, Until: f.Reading, InPlace: f.Ordered}
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
		e.cover()
	}
	return e
}

// write hands an emission to the output and waits until it is durable. It waits for the works before it, in an ordered loop as long as they take, and otherwise
// no longer than a result may wait. Works are submitted one after the other, but no work waits until the one before it is durable: that would cost a round trip
// to the broker for each. submitted lets the next one submit; see settle.
func (f *flight) write(ctx context.Context, e *Emission, submitted func()) error {
	pending := f.Output.Begin(e)
	if err := f.awaitTurn(ctx); err != nil {
		return err
	}
	select {
	case f.w.track.writing <- struct{}{}:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	err := pending.Submit(ctx)
	<-f.w.track.writing
	if err != nil {
		return err
	}
	if submitted != nil {
		submitted()
	}
	if err := pending.Wait(ctx); err != nil {
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

// awaitTurn waits for the work before to submit; see write.
func (f *flight) awaitTurn(ctx context.Context) error {
	f.mu.Lock()
	waited := f.waited
	f.mu.Unlock()
	select {
	case <-f.w.turn.before.submitted:
		return nil
	default:
	}
	if waited {
		return nil
	}
	var enough <-chan time.Time
	if !f.Ordered {
		t := time.NewTimer(f.FlushAfter)
		defer t.Stop()
		enough = t.C
	}
	select {
	case <-f.w.turn.before.submitted:
	case <-enough:
		f.mu.Lock()
		f.waited = true
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
	eachRun(index, func(from, to int) { f.Finish(ctx, f.w, from, to) })
}
