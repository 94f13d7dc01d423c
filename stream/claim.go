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

// host is what a run needs of the program around it, beyond its configuration: state that outlives the run, and the job store. A [Worker] is one. A
// [Reader] is another: it has no job store, and nothing outlives its one run.
type host interface {
	// saveState stores crash and retry state, as Store.SaveState does.
	saveState(ctx context.Context, l Lease, j CrashState, s RetryState) error
	// keepPatience keeps how long records of the job wait for others, for its next run; standard: as long as the configuration says.
	keepPatience(job string, d time.Duration, standard bool)
	// keepFinished keeps what a handler has finished and no sink has stored, and takeFinished returns it to the job's next run.
	keepFinished(job string, f finishedRecords)
	takeFinished(job string) (finishedRecords, bool)
}

// claim is a job that this worker has claimed: the run that works on it, and the lease that permits it.
//
// Invariant: of two claims of one job in one process, the later one begins its run after the earlier one has ended, or not at all.
type claim struct {
	*run
	w        *Worker
	previous <-chan struct{} // closed when the claim of the same job ends that this process had before; nil: there was none
	ended    chan struct{}   // closed when this claim ends, after its release
}

// newClaim returns a claim without the contexts of its run.
func (w *Worker) newClaim(status Status) *claim {
	config := w.configOf(status.Stream)
	r := &run{
		host: w, config: config, codec: w.codec, handlers: w.handlers,
		job: status.Job, lease: status.Lease(), created: status.CreatedAt, sink: w.sinks[status.Stream],
		suspicion: suspicion{CrashState: status.CrashState}, retryState: status.RetryState, savedRetry: status.RetryState, tried: time.Now(),
		patience: config.DependencyWait, progress: status.Progress,
		log: config.Logger.With("job", status.ID, "stream", status.Stream, "epoch", status.Epoch),
	}
	r.job.MaxBad = cmp.Or(r.job.MaxBad, config.MaxBad)
	return &claim{run: r, w: w, ended: make(chan struct{})}
}

// work runs the job until it is complete or cannot go on here, and releases it.
func (w *Worker) work(term, drain context.Context, status Status, since time.Time) {
	c := w.newClaim(status)
	r := c.run
	r.shutdownCtx, r.drainCtx = term, drain
	r.leaseCtx, r.loseLease = context.WithCancelCause(drain)
	defer r.loseLease(nil)
	r.stopCtx, r.releaseSoon = context.WithCancel(term)
	defer r.releaseSoon()
	c.logClaimed(status)
	w.addClaim(c)
	defer w.removeClaim(c)

	var heart sync.WaitGroup
	heartbeatCtx, stopHeartbeat := context.WithCancel(r.leaseCtx)
	r.renewed(since)
	heart.Go(func() { c.renewLease(heartbeatCtx) })
	err := c.await()
	if err == nil {
		err = r.run(status.Reclaimed)
	}
	// The lease is renewed until it is released: that may take as long as a renewal, and the lease of a completed job must not run out meanwhile.
	c.release(drain, err)
	stopHeartbeat()
	heart.Wait()
}

// logClaimed logs the claim, and reports it.
func (c *claim) logClaimed(status Status) {
	level := slog.LevelInfo
	if status.RetryState.Failures > 1 && !status.Reclaimed {
		level = slog.LevelDebug // a job that waits is claimed for each attempt, which was logged
	}
	c.log.Log(c.leaseCtx, level, "job claimed", "attempt", status.Attempts, "reclaimed", status.Reclaimed)
	c.event(Event{Kind: EventClaimed, Attempt: status.Attempts, Reclaimed: status.Reclaimed})
}

// addClaim adds the claim to those under way, and makes it wait for the one of the same job.
func (w *Worker) addClaim(c *claim) {
	w.mu.Lock()
	defer w.mu.Unlock()
	before := slices.IndexFunc(w.running, func(other *claim) bool { return other.job.ID == c.job.ID })
	if before >= 0 {
		c.previous = w.running[before].ended
	}
	w.running = append(w.running, c)
	if d, ok := w.patiences.get(c.job.ID); ok {
		c.patience = d
	}
}

// removeClaim ends addClaim.
func (w *Worker) removeClaim(c *claim) {
	w.mu.Lock()
	w.running = slices.DeleteFunc(w.running, func(other *claim) bool { return other == c })
	w.mu.Unlock()
	close(c.ended)
}

// await waits for this process's earlier run of the job, if its lease was lost: it may still be working, and what it finishes
// must be committed before this run reads the checkpoint, or its records would be handled again.
func (c *claim) await() error {
	r := c.run
	if c.previous == nil {
		return nil
	}
	patience := time.NewTimer(r.config.HandlerTimeout + r.config.Lease)
	defer patience.Stop()
	select {
	case <-c.previous:
		return nil
	case <-r.leaseCtx.Done():
		return context.Cause(r.leaseCtx)
	case <-r.stopCtx.Done():
		return errStopping
	case <-patience.C:
		return r.releaseWith(ReasonTooSlow, errors.New("the handler that had the job before in this process does not return"))
	}
}

// release releases the lease, with the state that the run's end implies.
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
		c.w.notify(context.WithoutCancel(ctx), r.job)
	}
}

// outcome returns what to store at the run's end. ours is false if the lease is another's by now, so that there is nothing to release.
func (c *claim) outcome(err error) (release Release, ours bool) {
	r := c.run
	release = Release{State: Ready, RetryState: r.retryState, Progress: r.progress, CrashState: r.suspicion.CrashState}
	release.CrashState.InFlightSeq = 0
	failed, isFailure := errors.AsType[*failure](err)
	leave, isLeave := errors.AsType[*releaseError](err)
	switch {
	case err == nil:
		release.State, release.RetryState, release.CrashState = Completed, RetryState{}, CrashState{}
		r.log.Info("job completed", "records", r.checkpoint.Seq, "bad", r.checkpoint.Bad, "digest", r.checkpoint.Digest)
	case isFailure:
		release.State, release.Reason, release.LastError = Failed, failed.reason, failed.err.Error()
		r.log.Error("job failed, fix the cause and call Store.Retry", "reason", failed.reason, "record", r.checkpoint.Seq+1, "error", failed.err)
	case errors.Is(err, errStopping):
		release.Reason = ReasonShutdown
	case isLeave:
		release.Reason, release.LastError, release.After = leave.reason, leave.err.Error(), leave.after
		r.log.Debug("job released until its next attempt", "reason", leave.reason, "next_in", leave.after.Round(time.Millisecond))
	default:
		r.event(Event{Kind: EventLost, Err: err})
		r.log.Warn("lease lost, job left to its new owner", "reason", err)
		// A lease that this process could not renew is released as soon as the store can be reached: if the job were claimed as
		// that of a dead owner, its records would be suspects.
		ours = errors.Is(err, errNotRenewed) || !errors.Is(err, ErrFenced) && r.leaseCtx.Err() == nil
		release.Reason, release.LastError = ReasonOutage, err.Error()
		return release, ours
	}
	return release, true
}

// giveBack calls the store until it answers, also when the lease has run out meanwhile: only the store knows whether another worker has the
// job, and a job left running would be claimed as that of a dead owner. It returns false if the lease was not released.
func (c *claim) giveBack(ctx context.Context, release Release) bool {
	r := c.run
	for failures := 1; ; failures++ {
		asking, cancel := context.WithTimeout(ctx, r.config.Lease) // a dead connection that returns no error is given up
		err := c.w.config.Store.Release(asking, r.lease, release)
		cancel()
		if err == nil {
			r.event(Event{Kind: EventReleased, State: release.State, Reason: release.Reason})
			return true
		}
		if failures == 1 && ctx.Err() == nil && !errors.Is(err, ErrFenced) && !errors.Is(err, ErrNotFound) {
			r.log.Warn("lease not released yet, retrying until the job store answers", "error", err)
		}
		if errors.Is(err, ErrFenced) || errors.Is(err, ErrNotFound) || !wait(ctx, r.config.Retry.after(failures)) {
			r.log.Warn("lease not released, it runs out by itself", "error", err)
			return false
		}
	}
}

func (w *Worker) saveState(ctx context.Context, l Lease, j CrashState, s RetryState) error {
	ctx, cancel := context.WithTimeout(ctx, w.config.Lease/3)
	defer cancel()
	return w.config.Store.SaveState(ctx, l, j, s)
}

func (w *Worker) keepPatience(job string, d time.Duration, standard bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if standard {
		w.patiences.remove(job)
		return
	}
	w.patiences.put(job, d)
}

func (w *Worker) keepFinished(job string, f finishedRecords) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.finished.put(job, f)
}

func (w *Worker) takeFinished(job string) (finishedRecords, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f, ok := w.finished.get(job)
	w.finished.remove(job)
	return f, ok
}
