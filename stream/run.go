package stream

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"
)

// run is one job held by this worker, from claim to release.
//
// One goroutine runs it, and owns all fields that change, except those under mu, which the heartbeat uses too. The receiver of a session uses none that
// change. A file for each part: commit.go accounts for records at sinks that store effects, deliver.go at those of AtLeastOnce, suspicion.go finds the
// record that kills its processes, heartbeat.go renews the lease, cause.go counts attempts.
type run struct {
	w       *Worker
	config  WorkerConfig // the worker's, with the stream's own limits
	job     Job
	lease   Lease     // of one epoch: the job's next claim is another run, also in this process
	created time.Time // of the job: another one may have its ID later
	sink    Sink      // nil: this worker has no handler for the stream
	log     *slog.Logger

	before <-chan struct{} // closed when the run ends that had the job before, in this process; nil: there was none
	over   chan struct{}   // closed when this run ends, after its release

	// term ends before drain does, stop no later than term, and own no later than drain.
	term  context.Context // ended: the worker shuts down
	drain context.Context // ended: its time to shut down is over
	stop  context.Context // ended: give the job back soon
	leave context.CancelFunc
	own   context.Context // ended: the job is not ours any more, or the time to shut down is over
	lose  context.CancelCauseFunc
	under context.Context // ends calls of the sink instead of own; set only while effects that have happened are stored, otherwise nil

	checkpoint Checkpoint // as the sink has it: it is never ahead of what the sink is known to have stored
	journal    Journal    // as the store has it, but for Deaths, which a commit resets here first
	condemned  uint64     // the record that has killed its processes, which is the one after the checkpoint; 0: none, as after each commit
	replayed   uint64     // the record that was being replayed when the last owner died, at or before the checkpoint; 0: none
	slice      int        // how many records a handler of AtLeastOnce gets at once, from 1 to CommitRecords; 0: it was given none yet
	search     uint64     // slices do not grow up to this record, one of which is bad; 0: none is
	inTime     int        // how many records the handler gets at once, less than CommitRecords, since it was too slow for more; 0: it was not

	stall    Stall         // attempts in a row that failed, of former owners too; zero after each record that is committed
	noted    Stall         // as the store has it
	tries    int           // of them, those of this run: at most stall.Failures
	tried    time.Time     // when this attempt began: time before it is counted already
	last     *leaveError   // why the last one failed; nil after progress
	patience time.Duration // how long records may wait for others that they depend on; negative: without limit
	waited   uint64        // records up to this one have waited for others long enough: it never decreases
	pinned   bool          // no other worker can take the job: the run is a Reader's, or holds effects that are not accounted for

	mu       sync.Mutex // for the heartbeat
	progress Progress   // written by the run alone
	leased   time.Time  // when the lease was last renewed for certain, by the heartbeat or with a commit: it never decreases
	handed   time.Time  // when the sink was called; zero when it is not at work
	holds    int        // places in Worker.hands that are taken: what sets it to 0 gives them back, so that happens once
	alone    bool       // with them, the place of a suspect
}

// What ends a run, beside an error that is the job's.
var (
	errStopping = errors.New("the worker is shutting down")
	errReopen   = errors.New("the stream is reopened")

	errNotRenewed = errors.New("the lease could not be renewed")
)

// failure ends a job until a person looks at it.
type failure struct {
	reason Reason
	err    error
}

func (f *failure) Error() string { return f.err.Error() }
func (f *failure) Unwrap() error { return f.err }

// newRun returns a run of a job that was claimed, without its contexts.
func (w *Worker) newRun(status Status) *run {
	config := w.configOf(status.Stream)
	r := &run{
		w: w, config: config, job: status.Job, lease: status.Lease(), created: status.CreatedAt, sink: w.sinks[status.Stream],
		over: make(chan struct{}), journal: status.Journal, stall: status.Stall, noted: status.Stall, tried: time.Now(),
		patience: config.DependencyWait, progress: status.Progress,
		log: w.config.Logger.With("job", status.ID, "stream", status.Stream, "epoch", status.Epoch),
	}
	r.job.MaxBad = cmp.Or(r.job.MaxBad, r.config.MaxBad)
	return r
}

// work has the job as far as it will go, and gives it back.
func (w *Worker) work(term, drain context.Context, status Status, since time.Time) {
	r := w.newRun(status)
	r.term, r.drain = term, drain
	r.own, r.lose = context.WithCancelCause(drain)
	defer r.lose(nil)
	r.stop, r.leave = context.WithCancel(term)
	defer r.leave()
	r.sayClaimed(status)
	w.addRun(r)
	defer w.removeRun(r)

	var heart sync.WaitGroup
	heartbeatCtx, stopHeartbeat := context.WithCancel(r.own)
	r.renewed(since)
	heart.Go(func() { r.beat(heartbeatCtx) })
	err := r.await()
	if err == nil {
		err = r.run(status.Died)
	}
	// The heart beats until the lease is given back: that may take as long as a renewal, and a job that is complete must not run out meanwhile.
	r.release(drain, err)
	stopHeartbeat()
	heart.Wait()
}

// sayClaimed logs the claim, and reports it.
func (r *run) sayClaimed(status Status) {
	level := slog.LevelInfo
	if status.Stall.Failures > 1 && !status.Died {
		level = slog.LevelDebug // it waits, which was logged, and is claimed for each attempt
	}
	r.log.Log(r.own, level, "job claimed", "attempt", status.Attempts, "owner_died", status.Died)
	r.event(Event{Kind: EventClaimed, Attempt: status.Attempts, Died: status.Died})
}

// addRun adds the run to those under way, and has it follow the one that has the same job.
func (w *Worker) addRun(r *run) {
	w.mu.Lock()
	defer w.mu.Unlock()
	before := slices.IndexFunc(w.running, func(other *run) bool { return other.job.ID == r.job.ID })
	if before >= 0 {
		r.before = w.running[before].over
	}
	w.running = append(w.running, r)
	if d, ok := w.patience[r.job.ID]; ok {
		r.patience = d
	}
}

// removeRun ends addRun.
func (w *Worker) removeRun(r *run) {
	w.mu.Lock()
	w.running = slices.DeleteFunc(w.running, func(other *run) bool { return other == r })
	w.mu.Unlock()
	close(r.over)
}

// await waits for the run that had the job before in this process, if its lease was lost: it may still be at work, and what it finishes
// must be committed before this run looks at the checkpoint, or its records would be handed over again.
func (r *run) await() error {
	if r.before == nil {
		return nil
	}
	patience := time.NewTimer(r.config.HandlerTimeout + r.w.config.Lease)
	defer patience.Stop()
	select {
	case <-r.before:
		return nil
	case <-r.own.Done():
		return context.Cause(r.own)
	case <-r.stop.Done():
		return errStopping
	case <-patience.C:
		return r.leaveTo(ReasonTooSlow, errors.New("the handler of this process that had the job before does not come back"))
	}
}

// run returns nil when the job is complete.
func (r *run) run(died bool) error {
	if r.sink == nil {
		return r.leaveTo(ReasonNoHandler, fmt.Errorf("this worker has no handler for stream %q", r.job.Stream))
	}
	if err := r.fence(); err != nil {
		return err
	}
	if err := r.resume(); err != nil {
		return err
	}
	if err := r.readJournal(died); err != nil {
		return err
	}
	if err := r.replay(); err != nil {
		return err
	}
	for !r.checkpoint.Done {
		if complete, err := r.attempt(); complete || err != nil {
			return err
		}
	}
	return nil
}

// attempt reads one stream from the producer. complete: up to the end of its records. An error ends the run; otherwise there is another attempt.
func (r *run) attempt() (complete bool, err error) {
	at, failures := r.checkpoint.Seq, r.stall.Failures
	r.tried = time.Now()
	drained, err := r.session()
	if err == nil {
		return true, nil
	}
	if r.stall.Failures == failures && time.Since(r.tried) > healthyAfter {
		// It worked, though no record may have come: a stream that is seldom cut does not add that up for days.
		r.restart()
		r.tried = time.Now()
	}
	return false, r.judge(err, drained && r.checkpoint.Seq > at)
}

// judge decides what to do after a stream has ended early: nil means to open it again, after a pause.
func (r *run) judge(err error, planned bool) error {
	switch {
	case r.own.Err() != nil:
		return context.Cause(r.own)
	case r.stop.Err() != nil:
		return errStopping
	case errors.Is(err, errReopen):
		return nil
	case errors.Is(err, ErrFenced):
		return err
	}
	if l, ok := errors.AsType[*leaveError](err); ok {
		return l
	}
	if f, ok := errors.AsType[*failure](err); ok {
		return f
	}
	if cut, ok := errors.AsType[*cutError](err); ok {
		return r.judgeCut(cut, planned)
	}
	return r.fail(err, causeOf(err))
}

// judgeCut is judge for streams that the producer or the connection has ended.
func (r *run) judgeCut(cut *cutError, planned bool) error {
	r.event(Event{Kind: EventCut, Reason: cut.Reason, Err: cut.Err})
	if cut.Fatal && !cut.Denied {
		return &failure{cmp.Or(cut.Reason, ReasonRefused), cut.Err}
	}
	if cut.Denied && r.stall.Denied == 0 {
		r.refresh(cut.Err)
	}
	if planned {
		r.log.Info("stream ended by the producer on purpose, reopening", "after", cut.After)
		if !r.sleep(cut.After) {
			return r.ended()
		}
		return nil
	}
	return r.fail(cut.Err, cut.cause())
}

// healthyAfter is how long a stream lasts that is not counted as a failed attempt when it is cut.
const healthyAfter = time.Minute

// refresh has the credentials read anew with which the producer is asked, once in a row of refusals.
func (r *run) refresh(err error) {
	if r.w.config.Refresh == nil {
		return
	}
	ctx, cancel := context.WithTimeout(r.own, refreshTimeout)
	defer cancel()
	if failed := r.w.config.Refresh(ctx, r.job, err); failed != nil {
		r.log.Warn("credentials could not be refreshed", "error", failed, "denied", err)
		return
	}
	r.log.Info("stream was denied, credentials are refreshed", "denied", err)
}

const refreshTimeout = 10 * time.Second

// leaveTo gives the job back for a reason that only another worker can do something about.
func (r *run) leaveTo(reason Reason, err error) error {
	r.stall.Failures++
	r.last = &leaveError{cause{reason: reason, after: r.config.Retry.after(r.stall.Failures)}, err}
	return r.last
}

// sleep waits, unless the run ends before.
func (r *run) sleep(d time.Duration) bool {
	ctx, cancel := context.WithCancel(r.own)
	defer cancel()
	defer context.AfterFunc(r.stop, cancel)()
	return wait(ctx, d)
}

func (r *run) ended() error {
	if r.own.Err() != nil {
		return context.Cause(r.own)
	}
	return errStopping
}

// fence tells the sink that this epoch is the job's, and learns how far the job has come.
func (r *run) fence() error {
	for {
		checkpoint, err := r.askSink()
		switch {
		case err == nil:
			r.checkpoint = checkpoint
			r.setProgress()
			r.event(Event{Kind: EventFenced, To: checkpoint.Seq})
			return nil
		case errors.Is(err, ErrFenced):
			return err
		case errors.Is(err, ErrNewer):
			return r.leaveTo(ReasonNewer, err)
		}
		if err := r.fail(fmt.Errorf("%s: %w", unanswered("the sink", err), err), unreached(err)); err != nil {
			return err
		}
	}
}

// unreached is the cause of a failure of the sink or the store about which nothing more is known than that it did not do its work.
func unreached(err error) cause {
	if reason := correctable(err); reason != "" {
		return cause{reason: reason, limit: noProgress}
	}
	reason := outageOf(err)
	if reason == "" || reason == ReasonTooSlow {
		reason = ReasonOutage
	}
	return cause{reason: reason}
}

// unanswered says of a sink or a store what its error means: a refusal is an answer.
func unanswered(who string, err error) string {
	switch correctable(err) {
	case ReasonPrivilege:
		return who + " refuses this worker"
	case ReasonSchema:
		return who + " has other tables than this worker needs"
	}
	return who + " does not answer"
}

func (r *run) askSink() (Checkpoint, error) {
	ctx, cancel := context.WithTimeout(r.sinkContext(), r.config.HandlerTimeout)
	defer cancel()
	return r.sink.Fence(ctx, r.lease)
}

// release gives the lease back, as the run's end demands.
func (r *run) release(ctx context.Context, err error) {
	release, ours := r.outcome(err)
	if !ours {
		return
	}
	if release.State.Final() {
		r.setPatience(r.config.DependencyWait)
	}
	if r.giveBack(ctx, release) && release.State == Ready && release.After == 0 {
		r.w.hint(context.WithoutCancel(ctx), r.job)
	}
}

// outcome is what the store gets to know of the run's end. ours is false if the lease is another's by now, so that there is nothing to give back.
func (r *run) outcome(err error) (release Release, ours bool) {
	release = Release{State: Ready, Stall: r.stall, Progress: r.progress, Journal: r.journal}
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
func (r *run) giveBack(ctx context.Context, release Release) bool {
	for failures := 1; ; failures++ {
		asking, cancel := context.WithTimeout(ctx, r.w.config.Lease) // a connection that is dead and does not say so is given up
		err := r.w.config.Store.Release(asking, r.lease, release)
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

func (r *run) event(e Event) {
	e.Time, e.Job, e.Epoch, e.Owner = time.Now(), r.job, r.lease.Epoch, r.lease.Owner
	r.w.observe(e)
}
