package stream

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"time"
)

// host is what a run needs of the program it is in, beyond its configuration: what must outlive the run, or reach the job store. A [Worker] is one. A
// [Reader] is another: it has no job store, and nothing outlives its one run.
type host interface {
	// saveState stores the journal and the stall, as Store.Note does.
	saveState(ctx context.Context, l Lease, j Journal, s Stall) error
	// keepPatience keeps how long records of the job wait for others, for its next run; standard: as long as the configuration says.
	keepPatience(job string, d time.Duration, standard bool)
	// keepFinished keeps what a handler has finished and no sink has stored, and takeFinished returns it to the job's next run.
	keepFinished(job string, f finished)
	takeFinished(job string) (finished, bool)
}

// claim is a job that this worker has claimed: the run that works on it, and the lease that permits it.
//
// Invariant: of two claims of one job in one process, the later one begins its run after the earlier one has ended, or not at all.
type claim struct {
	*run
	w      *Worker
	before <-chan struct{} // closed when the claim of the same job ends that this process had before; nil: there was none
	over   chan struct{}   // closed when this claim ends, after its release
}

// newClaim returns a claim without the contexts of its run.
func (w *Worker) newClaim(status Status) *claim {
	config := w.configOf(status.Stream)
	r := &run{
		host: w, config: config, codec: w.codec, hands: w.hands,
		job: status.Job, lease: status.Lease(), created: status.CreatedAt, sink: w.sinks[status.Stream],
		suspicion: suspicion{Journal: status.Journal}, stall: status.Stall, noted: status.Stall, tried: time.Now(),
		patience: config.DependencyWait, progress: status.Progress,
		log: config.Logger.With("job", status.ID, "stream", status.Stream, "epoch", status.Epoch),
	}
	r.job.MaxBad = cmp.Or(r.job.MaxBad, config.MaxBad)
	return &claim{run: r, w: w, over: make(chan struct{})}
}

// work has the job as far as it will go, and gives it back.
func (w *Worker) work(term, drain context.Context, status Status, since time.Time) {
	c := w.newClaim(status)
	r := c.run
	r.term, r.drain = term, drain
	r.own, r.lose = context.WithCancelCause(drain)
	defer r.lose(nil)
	r.stop, r.leave = context.WithCancel(term)
	defer r.leave()
	c.sayClaimed(status)
	w.addClaim(c)
	defer w.removeClaim(c)

	var heart sync.WaitGroup
	heartbeatCtx, stopHeartbeat := context.WithCancel(r.own)
	r.renewed(since)
	heart.Go(func() { c.beat(heartbeatCtx) })
	err := c.await()
	if err == nil {
		err = r.run(status.Died)
	}
	// The heart beats until the lease is given back: that may take as long as a renewal, and a job that is complete must not run out meanwhile.
	c.release(drain, err)
	stopHeartbeat()
	heart.Wait()
}

// sayClaimed logs the claim, and reports it.
func (c *claim) sayClaimed(status Status) {
	level := slog.LevelInfo
	if status.Stall.Failures > 1 && !status.Died {
		level = slog.LevelDebug // it waits, which was logged, and is claimed for each attempt
	}
	c.log.Log(c.own, level, "job claimed", "attempt", status.Attempts, "owner_died", status.Died)
	c.event(Event{Kind: EventClaimed, Attempt: status.Attempts, Died: status.Died})
}

// addClaim adds the claim to those under way, and has it follow the one of the same job.
func (w *Worker) addClaim(c *claim) {
	w.mu.Lock()
	defer w.mu.Unlock()
	before := slices.IndexFunc(w.running, func(other *claim) bool { return other.job.ID == c.job.ID })
	if before >= 0 {
		c.before = w.running[before].over
	}
	w.running = append(w.running, c)
	if d, ok := w.patience.get(c.job.ID); ok {
		c.patience = d
	}
}

// removeClaim ends addClaim.
func (w *Worker) removeClaim(c *claim) {
	w.mu.Lock()
	w.running = slices.DeleteFunc(w.running, func(other *claim) bool { return other == c })
	w.mu.Unlock()
	close(c.over)
}

// await waits for the run that had the job before in this process, if its lease was lost: it may still be at work, and what it finishes
// must be committed before this run looks at the checkpoint, or its records would be handed over again.
func (c *claim) await() error {
	r := c.run
	if c.before == nil {
		return nil
	}
	patience := time.NewTimer(r.config.HandlerTimeout + r.config.Lease)
	defer patience.Stop()
	select {
	case <-c.before:
		return nil
	case <-r.own.Done():
		return context.Cause(r.own)
	case <-r.stop.Done():
		return errStopping
	case <-patience.C:
		return r.leaveTo(ReasonTooSlow, errors.New("the handler of this process that had the job before does not come back"))
	}
}

// release gives the lease back, as the run's end demands.
func (c *claim) release(ctx context.Context, err error) {
	r := c.run
	release, ours := c.outcome(err)
	if !ours {
		return
	}
	if release.State.Final() {
		r.setPatience(r.config.DependencyWait)
	}
	if c.giveBack(ctx, release) && release.State == Ready && release.After == 0 {
		c.w.hint(context.WithoutCancel(ctx), r.job)
	}
}

// outcome is what the store gets to know of the run's end. ours is false if the lease is another's by now, so that there is nothing to give back.
func (c *claim) outcome(err error) (release Release, ours bool) {
	r := c.run
	release = Release{State: Ready, Stall: r.stall, Progress: r.progress, Journal: r.suspicion.Journal}
	release.Journal.Hand = 0
	failed, isFailure := errors.AsType[*failure](err)
	leave, isLeave := errors.AsType[*leaveError](err)
	switch {
	case err == nil:
		release.State, release.Stall, release.Journal = Completed, Stall{}, Journal{}
		r.log.Info("job complete", "records", r.checkpoint.Seq, "bad", r.checkpoint.Bad, "digest", r.checkpoint.Digest)
	case isFailure:
		release.State, release.Reason, release.LastError = Failed, failed.reason, failed.err.Error()
		r.log.Error("job failed, fix the cause and call Store.Retry", "reason", failed.reason, "record", r.checkpoint.Seq+1, "error", failed.err)
	case errors.Is(err, errStopping):
		release.Reason = ReasonShutdown
	case isLeave:
		release.Reason, release.LastError, release.After = leave.reason, leave.err.Error(), leave.after
		r.log.Debug("job waits, it is given back until its next attempt", "reason", leave.reason, "next_in", leave.after.Round(time.Millisecond))
	default:
		r.event(Event{Kind: EventLost, Err: err})
		r.log.Warn("job lost", "reason", err)
		// A lease that this process could not renew is given back as soon as the store can be reached: that the job is claimed meanwhile,
		// as one of a dead owner, would make its records suspects.
		ours = errors.Is(err, errNotRenewed) || !errors.Is(err, ErrFenced) && r.own.Err() == nil
		release.Reason, release.LastError = ReasonOutage, err.Error()
		return release, ours
	}
	return release, true
}

// giveBack has the store release the lease. It is tried until the store answers, also when the lease has run out meanwhile: whether another has the
// job, the store will say, and one that is left running would be claimed as that of a dead owner. It returns false if the lease was not given back.
func (c *claim) giveBack(ctx context.Context, release Release) bool {
	r := c.run
	for failures := 1; ; failures++ {
		asking, cancel := context.WithTimeout(ctx, r.config.Lease) // a connection that is dead and does not say so is given up
		err := c.w.config.Store.Release(asking, r.lease, release)
		cancel()
		if err == nil {
			r.event(Event{Kind: EventReleased, State: release.State, Reason: release.Reason})
			return true
		}
		if failures == 1 && ctx.Err() == nil && !errors.Is(err, ErrFenced) && !errors.Is(err, ErrNotFound) {
			r.log.Warn("lease not given back yet, the attempt is repeated until the job store answers", "error", err)
		}
		if errors.Is(err, ErrFenced) || errors.Is(err, ErrNotFound) || !wait(ctx, r.config.Retry.after(failures)) {
			r.log.Warn("the lease was not given back: it runs out by itself", "error", err)
			return false
		}
	}
}

func (w *Worker) saveState(ctx context.Context, l Lease, j Journal, s Stall) error {
	ctx, cancel := context.WithTimeout(ctx, w.config.Lease/3)
	defer cancel()
	return w.config.Store.Note(ctx, l, j, s)
}

func (w *Worker) keepPatience(job string, d time.Duration, standard bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if standard {
		w.patience.remove(job)
		return
	}
	w.patience.put(job, d)
}

func (w *Worker) keepFinished(job string, f finished) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.finished.put(job, f)
}

func (w *Worker) takeFinished(job string) (finished, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f, ok := w.finished.get(job)
	w.finished.remove(job)
	return f, ok
}
