package forward

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/levada-io/levada/internal/dataplane/deadletter"
	"github.com/levada-io/levada/internal/dataplane/function"
	"github.com/levada-io/levada/internal/flow"
)

// maxResults is how many messages may be made of one: the place of a message in its block has positionBits, and a block is not divided within the results of one.
const maxResults = 1<<positionBits - 1 - maxBlockMessages

// maxResultBytes is how large they may be together, in bytes: a block that is much larger than others is not read.
const maxResultBytes = flow.MaxBlockBytes / 2

// refuseOversize makes messages Broken of which more was made than a block takes.
func refuseOversize(out []function.Outcome) {
	for i := range out {
		size := 0
		for j := range out[i].Results {
			m := &out[i].Results[j]
			size += len(m.Value) + len(m.Headers) + len(m.Metadata) + 64 // what a message takes in a block beside its content, at most
		}
		if n := len(out[i].Results); n > maxResults || size > maxResultBytes {
			out[i] = brokenOutcome(&deadletter.Failure{
				Reason: deadletter.Oversize, Attempts: 1, Error: fmt.Sprintf("it made %d results of %d bytes; at most %d results and %d bytes can be made of a message", n, size, maxResults, maxResultBytes),
			})
		}
	}
}

// doneFunc gives out what is done: which of the messages, nil for all of them, and what became of them. It is called by one goroutine at a time, whatever it takes,
// and its error ends the stages.
type doneFunc func(which []int, out []function.Outcome) error

// stream runs the stages from the k-th on. queued is called once the messages have their place in the k-th stage; nil if nobody asks.
func (r *run) stream(ctx context.Context, k int, in []flow.Message, queued func(), done doneFunc) error {
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
	serial := func(which []int, out []function.Outcome) error {
		one.Lock()
		defer one.Unlock()
		return done(which, out)
	}
	rest, restCtx := errgroup.WithContext(ctx)
	err := r.streamStage(restCtx, &r.Stages[k], in, queued, func(which []int, out []function.Outcome) error {
		if which == nil {
			which = allOf(len(in))
		}
		rest.Go(func() error { return r.streamRest(restCtx, k, in, which, out, serial) })
		return nil
	})
	if restErr := rest.Wait(); restErr != nil {
		return restErr
	}
	return err
}

// streamRest takes what the k-th stage made through the stages after it. A message is done when all its results are.
func (r *run) streamRest(ctx context.Context, k int, in []flow.Message, which []int, out []function.Outcome, done doneFunc) error {
	j := &join{which: which, out: out, left: make([]int, len(out)), done: done}
	ready := j.expand(in, r.Stages[k].Name)
	if err := j.give(ready); err != nil || len(j.flat) == 0 {
		return err
	}
	return r.stream(ctx, k+1, j.flat, nil, j.take)
}

// join puts what later stages make of the results of a stage together, by the message that the results are of.
//
// A message with several results is given out once, when the last of them is through: its positions are acknowledged together, and the worst of its results
// decides about all.
type join struct {
	// which are the messages, as indices of the caller's, and out what became of each so far. Invariant: which, out, left and begin have the same length.
	which []int
	out   []function.Outcome
	left  []int    // of each message, the results that are not through; it falls to 0 once
	done  doneFunc // is called with the messages that are through

	// flat are the results of all messages, in order; parent is the message of each, as an index in out, and begin the first result of each message.
	// Invariant: parent ascends, so the results of a message are next to each other.
	flat   []flow.Message
	parent []int
	begin  []int
	// results are what later stages made of each of flat; nil until take, and for those that made nothing.
	results [][]flow.Message
}

// expand takes the results out of the outcomes. It returns the messages without any: they are through.
func (j *join) expand(in []flow.Message, stage string) (ready []int) {
	j.begin = make([]int, len(j.out))
	for i := range j.out {
		o := &j.out[i]
		if j.begin[i] = len(j.flat); o.Verdict == function.Done {
			for n := range o.Results {
				m := o.Results[n]
				m.ID = flow.ChildID(in[j.which[i]].ID, stage, n)
				j.flat, j.parent = append(j.flat, m), append(j.parent, i)
			}
			j.left[i] = len(o.Results)
			o.Results = nil
		}
		if j.left[i] == 0 {
			ready = append(ready, i)
		}
	}
	j.results = make([][]flow.Message, len(j.flat))
	return ready
}

// take takes up what later stages made of some of the results.
func (j *join) take(sub []int, next []function.Outcome) error {
	if sub == nil {
		sub = allOf(len(j.flat))
	}
	var ready []int
	for n, at := range sub {
		i := j.parent[at]
		o := &j.out[i]
		o.Dropped += next[n].Dropped
		j.results[at] = next[n].Results
		worsen(o, &next[n])
		if j.left[i]--; j.left[i] == 0 {
			for c := j.begin[i]; c < len(j.parent) && j.parent[c] == i; c++ {
				o.Results = append(o.Results, j.results[c]...)
			}
			ready = append(ready, i)
		}
	}
	return j.give(ready)
}

// give gives out the messages that are through.
func (j *join) give(ready []int) error {
	if len(ready) == 0 {
		return nil
	}
	slices.Sort(ready)
	return j.done(choose(j.which, ready), choose(j.out, ready))
}

// streamStage runs one stage, and gives out what is done when all of it is, or every FlushAfter.
func (r *run) streamStage(ctx context.Context, s *Stage, in []flow.Message, queued func(), done doneFunc) error {
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
	call := &call{run: r, stage: s, done: done, begun: begun, size: len(in)}
	return call.wait(ctx, in, queued)
}

// call is a call of a stage of which parts are given out before it returns.
type call struct {
	*run
	stage *Stage
	done  doneFunc
	begun time.Time
	size  int // messages
	// given says which messages were given out; nil while none is, so that a quick function pays nothing. Invariant: each is given out once.
	given []bool
	part  function.Part // what the function has done so far; concurrent
}

// answer is what the call returned.
type answer struct {
	out []function.Outcome
	err error
}

// wait calls the stage, and gives out what is done until it returns.
func (c *call) wait(ctx context.Context, in []flow.Message, queued func()) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	tick := time.NewTimer(c.FlushAfter)
	defer tick.Stop()
	// The time counts from when the messages are sent: those that wait behind other works of a quick function leave together, too.
	c.part.Until, c.part.Queued, c.part.Sending = c.Reading, queued, func() { tick.Reset(c.FlushAfter) }
	answers := make(chan answer, 1)
	go func() { // ends before this function does
		out, err := c.stage.ApplyPart(ctx, in, &c.part)
		answers <- answer{out, err}
	}()
	for {
		select {
		case a := <-answers:
			if a.err != nil {
				return a.err
			}
			return c.rest(a.out)
		case <-tick.C:
			if err := c.flush(); err != nil {
				cancel(err)
				<-answers // the stage still has the messages until then
				return err
			}
			tick.Reset(c.FlushAfter)
		}
	}
}

// flush gives out what is done so far.
func (c *call) flush() error {
	var which []int
	var out []function.Outcome
	c.part.Take(func(i int, o *function.Outcome) { which, out = append(which, i), append(out, *o) })
	if len(which) == 0 {
		return nil
	}
	if !slices.IsSorted(which) {
		which, out = sorted(which, out)
	}
	if c.given == nil {
		c.given = make([]bool, c.size)
	}
	for _, i := range which {
		c.given[i] = true
	}
	c.applied(c.stage, out, time.Since(c.begun))
	return c.done(which, out)
}

// rest gives out what was not given out before.
func (c *call) rest(all []function.Outcome) error {
	if c.given == nil {
		c.applied(c.stage, all, time.Since(c.begun))
		return c.done(nil, all)
	}
	var which []int
	for i := range all {
		if !c.given[i] {
			which = append(which, i)
		}
	}
	if len(which) == 0 {
		return nil
	}
	out := choose(all, which)
	c.applied(c.stage, out, time.Since(c.begun))
	return c.done(which, out)
}

// sorted puts messages into the order of their indices: what is written says which positions it covers, ascending.
func sorted(which []int, out []function.Outcome) ([]int, []function.Outcome) {
	order := slices.Clone(allOf(len(which)))
	slices.SortFunc(order, func(a, b int) int { return which[a] - which[b] })
	return choose(which, order), choose(out, order)
}

// worsen makes o what became of one of its results if that is worse: the worst of its results decides, and it starts again from the first stage.
func worsen(o, result *function.Outcome) {
	if result.Verdict > o.Verdict {
		dropped := o.Dropped
		*o = *result
		o.Dropped, o.Results = dropped, nil
	}
}

// applyStages runs the stages from the k-th on, one after the other. The outcome of a message is done when all results of all stages are.
func (r *run) applyStages(ctx context.Context, k int, in []flow.Message) ([]function.Outcome, error) {
	out, err := r.applyStage(ctx, &r.Stages[k], in)
	if err != nil || k == len(r.Stages)-1 {
		return out, err
	}
	j := &join{which: allOf(len(out)), out: out, left: make([]int, len(out)), done: func([]int, []function.Outcome) error { return nil }}
	if j.expand(in, r.Stages[k].Name); len(j.flat) == 0 {
		return out, nil
	}
	next, err := r.applyStages(ctx, k+1, j.flat)
	if err != nil {
		return nil, err
	}
	return out, j.take(nil, next)
}

// applyStage runs one stage, all of it at once.
func (r *run) applyStage(ctx context.Context, s *Stage, in []flow.Message) ([]function.Outcome, error) {
	begun := time.Now()
	out, err := s.Apply(ctx, in)
	if err != nil {
		return nil, err
	}
	r.applied(s, out, time.Since(begun))
	return out, nil
}

// applied counts what a stage made of messages.
func (r *run) applied(s *Stage, out []function.Outcome, took time.Duration) {
	results, dropped, failed := 0, 0, 0
	for i := range out {
		results += len(out[i].Results)
		dropped += out[i].Dropped
		if out[i].Verdict == function.Unbegun {
			continue
		}
		if out[i].Verdict != function.Done {
			failed++ // once for each attempt
		} else if len(out[i].Results) == 0 && out[i].Dropped == 0 {
			dropped++
		}
	}
	r.Events.Applied(s.Name, len(out), results, dropped, failed, took)
}
