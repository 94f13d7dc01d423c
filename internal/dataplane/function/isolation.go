package function

import (
	"context"
	"time"

	"github.com/levada-io/levada/internal/dataplane/function/process"
	"github.com/levada-io/levada/internal/flow"
)

// Isolate gives suspects to the function again, each alone, in a process of its own beside the one that goes on with the rest. A message that ends
// that process twice is Broken; the others are innocent, and what was made of them is the outcome.
//
// Where another program started the function there is no second process: calls wait until the suspects have been tried, one at a time, in the one there is,
// after it has come back from each of its ends.
//
// Trying each alone finds a message that kills in three deaths whatever the size of the batch it came in; where that would take long, because the
// function is slow, groups are tried first and halved.
func (f *Function) Isolate(ctx context.Context, suspects []flow.Message) ([]Outcome, error) {
	f.isolating.Lock()
	defer f.isolating.Unlock()
	if f.cfg.Attach != "" {
		if f.use.Acquire(ctx, exclusive) != nil {
			return nil, context.Cause(ctx)
		}
		defer f.use.Release(exclusive)
	}
	f.lastIsolation.Store(time.Now().UnixNano())
	// A second process costs memory; it goes when nothing has needed it for a while.
	defer time.AfterFunc(isolatedIdle, func() {
		if time.Since(time.Unix(0, f.lastIsolation.Load())) < isolatedIdle || !f.isolating.TryLock() {
			return
		}
		defer f.isolating.Unlock()
		f.stopIsolated()
	})
	out := make([]Outcome, len(suspects))
	return out, f.isolate(ctx, f.encodable(suspects), out)
}

// isolatedIdle is how long the process for suspects is kept for the next one.
const isolatedIdle = 30 * time.Second

// aloneBudget is how long trying the suspects one after the other may take before they are tried in groups.
const aloneBudget = 5 * time.Second

func (f *Function) isolate(ctx context.Context, in []flow.Message, out []Outcome) error {
	f.mu.Lock()
	took := f.took
	f.mu.Unlock()
	if len(in) == 1 || took*time.Duration(len(in)) < aloneBudget {
		for i := range in {
			if err := f.confirm(ctx, in[i:i+1], &out[i]); err != nil {
				return err
			}
		}
		return nil
	}
	w, err := f.isolatedWorker(ctx)
	if err != nil {
		return err
	}
	part, unsent, err := w.Call(ctx, in, nil)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err != nil {
		w.Diagnose(err, f.cfg.Timeout)
		w.finish()
		f.stopIsolated()
	}
	open := unsent
	for i := range part {
		if part[i].Verdict == Suspect {
			open = append(open, i)
		} else {
			out[i] = part[i]
		}
	}
	return f.isolateHalves(ctx, in, open, out)
}

// isolateHalves tries both halves of the messages in that are still open, given by their places.
func (f *Function) isolateHalves(ctx context.Context, in []flow.Message, open []int, out []Outcome) error {
	for len(open) > 0 {
		half := open[:(len(open)+1)/2]
		open = open[len(half):]
		group, results := make([]flow.Message, len(half)), make([]Outcome, len(half))
		for k, i := range half {
			group[k] = in[i]
		}
		if err := f.isolate(ctx, group, results); err != nil {
			return err
		}
		for k, i := range half {
			out[i] = results[k]
		}
	}
	return nil
}

// deathsToBlame is how often a message has to end a process alone.
const deathsToBlame = 2

func (f *Function) confirm(ctx context.Context, one []flow.Message, out *Outcome) error {
	for deaths := 0; ; {
		w, err := f.isolatedWorker(ctx)
		if err != nil {
			return err
		}
		got, unsent, err := w.Call(ctx, one, nil)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		failure := got[0].Failure
		if err != nil {
			failure = w.Diagnose(err, f.cfg.Timeout)
			w.finish()
			f.stopIsolated()
			f.cfg.Died("isolated")
			if len(unsent) > 0 {
				continue // it died without having had the message
			}
		}
		if got[0].Verdict != Suspect {
			*out = got[0]
			return nil
		}
		if deaths++; deaths < deathsToBlame {
			continue
		}
		failure.Attempts, failure.ConfirmedAlone = deaths+1, deaths
		*out = Outcome{Verdict: Broken, Failure: failure}
		return nil
	}
}

// isolatedWorker returns the process beside the main one, which lives until something kills it or the function is stopped. An attached function has none.
func (f *Function) isolatedWorker(ctx context.Context) (*worker, error) {
	if f.cfg.Attach != "" {
		return f.worker(ctx)
	}
	f.mu.Lock()
	w := f.isolated
	f.mu.Unlock()
	if w != nil {
		select {
		case <-w.over:
			f.stopIsolated()
		case <-w.Exited():
			f.stopIsolated()
		default:
			return w, nil
		}
	}
	return f.startIsolated(ctx)
}

// startIsolated starts the process for suspects. It tries until ctx ends: there may be no memory for a second process now.
func (f *Function) startIsolated(ctx context.Context) (*worker, error) {
	wait := 20 * time.Millisecond
	for {
		w, err := f.start(ctx)
		if err == nil {
			f.mu.Lock()
			f.isolated = w
			f.mu.Unlock()
			return w, nil
		}
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		f.cfg.Logger.Warn("function did not start for a suspect", "error", err)
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
		wait = min(2*wait, 5*time.Second)
	}
}

func (f *Function) stopIsolated() {
	f.mu.Lock()
	w := f.isolated
	f.isolated = nil
	f.mu.Unlock()
	if w != nil {
		w.finish()
		w.Kill(process.Kill{Label: process.LabelStop, Why: "it is of no more use"})
		w.Close()
	}
}
