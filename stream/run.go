package stream

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"slices"
	"sync"
	"time"
)

// run is one job in the hands of this worker, from claim to release.
type run struct {
	w      *Worker
	config WorkerConfig // the worker's, with the stream's own limits
	job    Job
	lease  Lease
	sink   Sink
	log    *slog.Logger

	before <-chan struct{} // closed when the run ends that had the job before, in this process; nil: there was none
	over   chan struct{}   // closed when this run ends

	stop  context.Context // ended: give the job back soon
	leave context.CancelFunc
	own   context.Context // ended: the job is not ours any more, or the time to shut down is over
	lose  context.CancelCauseFunc
	term  context.Context // ended: the worker shuts down
	drain context.Context // ended: its time to shut down is over
	under context.Context // what ends calls of the sink instead of own; nil: own does

	created time.Time // of the job

	checkpoint Checkpoint // as the sink has it
	journal    Journal    // as the store has it
	condemned  uint64     // the record that has killed its processes; 0: none
	replayed   uint64     // the record that was being replayed when the last owner died; 0: none
	slice      int        // how many records a handler of AtLeastOnce gets at once; 0: it was given none yet
	search     uint64     // slices do not grow up to this record, one of which is bad; 0: none is
	inTime     int        // how many records the handler gets at once, since it was too slow for more; 0: it was not

	stall    Stall         // attempts in a row that failed, of former owners too
	noted    Stall         // as the store has it
	tries    int           // of them, those of this run
	tried    time.Time     // when this attempt began
	last     *leaveError   // why the last one failed; nil after progress
	patience time.Duration // how long records may wait for others that they depend on; negative: without limit
	waited   uint64        // records up to this one have waited for others long enough
	pinned   bool          // there is nobody to give the job to: the run is a Reader's

	mu       sync.Mutex // for the heartbeat
	progress Progress
	leased   time.Time // when the lease was last renewed for certain, by the heartbeat or with a commit
	handed   time.Time // when the sink was called; zero when it is not at work
	holds    int       // hands that are taken, see takeHand
	alone    bool
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

// work has the job as far as it will go, and gives it back.
func (w *Worker) work(term, work context.Context, status Status, since time.Time) {
	own, lose := context.WithCancelCause(work)
	defer lose(nil)
	stop, leave := context.WithCancel(term)
	defer leave()
	r := &run{
		w: w, config: w.configOf(status.Stream), job: status.Job, lease: status.Lease(), sink: w.sinks[status.Stream], stop: stop, leave: leave, own: own, lose: lose, term: term, drain: work, created: status.CreatedAt, over: make(chan struct{}),
		journal: status.Journal, stall: status.Stall, noted: status.Stall, tried: time.Now(), patience: w.configOf(status.Stream).DependencyWait, progress: status.Progress,
		log: w.config.Logger.With("job", status.ID, "stream", status.Stream, "epoch", status.Epoch),
	}
	r.job.MaxBad = cmp.Or(r.job.MaxBad, r.config.MaxBad)
	level := slog.LevelInfo
	if status.Stall.Failures > 1 && !status.Died {
		level = slog.LevelDebug // it waits, which was logged, and is claimed for each attempt
	}
	r.log.Log(own, level, "job claimed", "attempt", status.Attempts, "owner_died", status.Died)
	r.event(Event{Kind: EventClaimed, Attempt: status.Attempts, Died: status.Died})

	w.mu.Lock()
	before := slices.IndexFunc(w.running, func(other *run) bool { return other.job.ID == r.job.ID })
	if before >= 0 {
		r.before = w.running[before].over
	}
	w.running = append(w.running, r)
	if d, ok := w.patience[status.ID]; ok {
		r.patience = d
	}
	w.mu.Unlock()
	defer func() {
		w.mu.Lock()
		w.running = slices.DeleteFunc(w.running, func(other *run) bool { return other == r })
		w.mu.Unlock()
		close(r.over)
	}()

	var heart sync.WaitGroup
	beating, still := context.WithCancel(own)
	r.renewed(since)
	heart.Go(func() { r.beat(beating) })
	err := r.await()
	if err == nil {
		err = r.run(status.Died)
	}
	// The heart beats until the lease is given back: that may take as long as a renewal, and a job that is complete must not run out meanwhile.
	r.release(work, err)
	still()
	heart.Wait()
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
		at, failures := r.checkpoint.Seq, r.stall.Failures
		r.tried = time.Now()
		drained, err := r.session()
		if err == nil {
			break
		}
		if r.stall.Failures == failures && time.Since(r.tried) > healthyAfter {
			// It worked, though no record may have come: a stream that is seldom cut does not add that up for days.
			r.restart()
			r.tried = time.Now()
		}
		if err := r.judge(err, drained && r.checkpoint.Seq > at); err != nil {
			return err
		}
	}
	return nil
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
	cut, ok := errors.AsType[*cutError](err)
	if !ok {
		return r.fail(err, causeOf(err))
	}
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

// readJournal learns from the deaths of former owners. A batch is blamed for a death if it was noted to be in hand, which is
// the case from the first death on: one that nobody could have foreseen starts the search, and each that is blamed halves what
// may be in hand, down to one record. Processes that were killed from outside do so between batches, or are forgotten with
// the next batch that is committed.
func (r *run) readJournal(died bool) error {
	j := r.journal
	if died {
		if j.Hand <= r.checkpoint.Seq {
			r.replayed = j.Hand
		}
		switch {
		case j.Probe == 0:
			j = Journal{Probe: max(r.config.CommitRecords/2, 1), Until: r.checkpoint.Seq + uint64(r.config.CommitRecords)}
		case j.Hand == 0 || j.Hand != r.checkpoint.Seq+1: // between batches, or after a commit
		case j.Probe == 1:
			j.Deaths++
		default:
			j.Until = j.Hand + uint64(j.Probe) - 1
			j.Probe = (j.Probe + 1) / 2
		}
	}
	if j.Probe == 1 && j.Deaths >= r.config.Deaths && j.Hand == r.checkpoint.Seq+1 {
		r.condemned = j.Hand
	} else {
		if j.Hand != r.checkpoint.Seq+1 {
			j.Deaths = 0
		}
		j.Hand = 0
	}
	if j.Until <= r.checkpoint.Seq {
		j = Journal{}
	}
	if j == r.journal {
		return nil
	}
	return r.note(j)
}

// note has the store remember the journal, for which it tries as long as the lease lasts.
func (r *run) note(j Journal) error {
	for {
		ctx, cancel := context.WithTimeout(r.own, r.w.config.Lease/3)
		err := r.w.config.Store.Note(ctx, r.lease, j, r.stall)
		cancel()
		switch {
		case err == nil:
			r.journal, r.noted = j, r.stall
			return nil
		case errors.Is(err, ErrFenced):
			return err
		case r.own.Err() != nil:
			return context.Cause(r.own)
		}
		if err := r.fail(fmt.Errorf("%s: %w", unanswered("the job store", err), err), unreached(err)); err != nil {
			return err
		}
	}
}

// beat renews the lease until ctx ends or the lease is lost. It counts from before the last renewal that worked, and gives up
// when two thirds of the lease are over, so that this process stops before another starts.
func (r *run) beat(ctx context.Context) {
	lease := r.w.config.Lease
	for pause := lease / 3; wait(ctx, pause); {
		if r.hung() {
			buf := make([]byte, 1<<20)
			r.w.stuck.Add(1)
			r.log.Error("the handler does not come back: its job is left to others; end this process", "timeout", r.config.HandlerTimeout, "goroutines", string(buf[:runtime.Stack(buf, true)]))
			r.lose(errors.New("the handler does not come back"))
			r.giveHand()
			return
		}
		start, since := time.Now(), r.sinceRenewal()
		r.mu.Lock()
		progress := r.progress
		r.mu.Unlock()
		asking, cancel := context.WithTimeout(ctx, min(lease/6, max(lease*2/3-start.Sub(since), lease/30)))
		err := r.w.config.Store.Renew(asking, r.lease, progress, lease)
		cancel()
		pause = lease / 3
		switch {
		case err == nil:
			r.renewed(start)
		case ctx.Err() != nil:
			return
		case errors.Is(err, ErrFenced):
			r.lose(err)
			return
		case time.Since(r.sinceRenewal()) >= lease*2/3-lease/30:
			r.lose(fmt.Errorf("%w: %w", errNotRenewed, err))
			return
		default:
			pause = lease / 30
			r.log.Warn("the lease could not be renewed", "error", err)
		}
	}
}

func (r *run) hung() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return !r.handed.IsZero() && time.Since(r.handed) > r.config.HandlerTimeout+r.w.config.Lease
}

// hand notes that the sink is at work, for the watchdog, or that it is back.
func (r *run) hand(at time.Time) {
	r.mu.Lock()
	r.handed = at
	r.mu.Unlock()
}

func (r *run) setProgress() {
	r.mu.Lock()
	r.progress.Records, r.progress.Bytes, r.progress.Bad = r.checkpoint.Seq, r.checkpoint.Bytes, r.checkpoint.Bad
	if r.checkpoint.Done {
		r.progress.Size = r.checkpoint.Seq
	}
	r.mu.Unlock()
}

// release gives the lease back, as the run's end demands.
func (r *run) release(ctx context.Context, err error) {
	release := Release{State: Ready, Stall: r.stall, Progress: r.progress, Journal: r.journal}
	release.Journal.Hand = 0
	failed, isFailure := errors.AsType[*failure](err)
	leave, isLeave := errors.AsType[*leaveError](err)
	switch {
	case err == nil:
		release.State, release.Stall, release.Journal = Completed, Stall{}, Journal{}
		r.log.Info("job complete", "records", r.checkpoint.Seq, "bad", r.checkpoint.Bad, "digest", r.checkpoint.Digest)
	case isFailure:
		release.State, release.Reason, release.LastError = Failed, failed.reason, failed.err.Error()
		r.log.Error("job failed: see it with `levada stream show`, fix the cause, then `levada stream retry`", "reason", failed.reason, "record", r.checkpoint.Seq+1, "error", failed.err)
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
		if errors.Is(err, errNotRenewed) || !errors.Is(err, ErrFenced) && r.own.Err() == nil {
			release.Reason, release.LastError = ReasonOutage, err.Error()
			break
		}
		return
	}
	if release.State.Final() {
		r.setPatience(r.config.DependencyWait)
	}
	// It is tried until the store answers, also when the lease has run out meanwhile: whether another has the job, the store will say, and one
	// that is left running would be claimed as that of a dead owner.
	for failures := 1; ; failures++ {
		asking, cancel := context.WithTimeout(ctx, r.w.config.Lease) // a connection that is dead and does not say so is given up
		err := r.w.config.Store.Release(asking, r.lease, release)
		cancel()
		if err == nil {
			r.event(Event{Kind: EventReleased, State: release.State, Reason: release.Reason})
			break
		}
		if failures == 1 && ctx.Err() == nil && !errors.Is(err, ErrFenced) && !errors.Is(err, ErrNotFound) {
			r.log.Warn("lease not given back yet, the attempt is repeated until the job store answers", "error", err)
		}
		if errors.Is(err, ErrFenced) || errors.Is(err, ErrNotFound) || !wait(ctx, r.config.Retry.after(failures)) {
			r.log.Warn("the lease was not given back: it runs out by itself", "error", err)
			return
		}
	}
	if release.State == Ready && release.After == 0 {
		r.w.hint(context.WithoutCancel(ctx), r.job)
	}
}

func (r *run) event(e Event) {
	e.Time, e.Job, e.Epoch, e.Owner = time.Now(), r.job, r.lease.Epoch, r.lease.Owner
	r.w.observe(e)
}

// process has records committed that follow the checkpoint, in steps. token names the position after the last of them.
func (r *run) process(records []Record, token []byte) error {
	if sink, ok := r.sink.(*atLeastOnce); ok {
		return r.deliver(sink, records, token)
	}
	for len(records) > 0 {
		n := min(len(records), r.config.CommitRecords)
		if r.journal.Probe > 0 {
			n = min(n, r.journal.Probe)
		}
		if r.inTime > 0 {
			n = min(n, r.inTime)
		}
		at := r.checkpoint.Token // it may name an earlier position than the checkpoint's: the number counts
		if n == len(records) {
			at = token
		}
		if err := r.settle(records[:n], at); err != nil {
			return err
		}
		records = records[n:]
	}
	return nil
}

// settle has records accounted for: committed, or in quarantine. It halves them to find the one that is bad.
func (r *run) settle(records []Record, token []byte) error {
	if r.condemned == records[0].Seq {
		why := fmt.Errorf("%d processes crashed with this record alone in flight", r.journal.Deaths)
		err := r.quarantine(records[:1], r.checkpoint.Token, r.journal.Deaths, NewAttempt(ClassDeath, why))
		if err != nil || len(records) == 1 {
			return err
		}
		records = records[1:]
	}
	var failed []Attempt // at this record alone
	for attempts := 1; ; attempts++ {
		begun := time.Now()
		err := r.commit(records, token, nil)
		if err == nil {
			if r.inTime > 0 && time.Since(begun) < r.config.HandlerTimeout/8 {
				r.inTime *= 2
				if r.inTime >= r.config.CommitRecords {
					r.inTime = 0
				}
			}
			return nil
		}
		if tooSlow(err) && len(records) > 1 && r.stop.Err() == nil && !isUnreached(err) {
			// Nobody knows whether these records or the moment are to blame: it is only tried with fewer.
			r.inTime = (len(records) + 1) / 2
			r.log.Warn("handler is too slow, it gets fewer records at once", "reason", ReasonTooSlow, "records", r.inTime, "timeout", r.config.HandlerTimeout, "error", err)
			if err := r.settle(records[:r.inTime], r.checkpoint.Token); err != nil {
				return err
			}
			done := int(r.checkpoint.Seq + 1 - records[0].Seq)
			return r.process(records[done:], token)
		}
		panicked, isPanic := errors.AsType[*PanicError](err)
		bad := isPanic || verdictOf(err) == verdictSkip || verdictOf(err) == verdictLater && !r.patient(records[len(records)-1].Seq)
		if !bad {
			if err := r.afterRefusal(err); err != nil {
				return err
			}
			continue
		}
		if len(records) > 1 {
			half := len(records) / 2
			if err := r.settle(records[:half], r.checkpoint.Token); err != nil {
				return err
			}
			return r.settle(records[half:], token)
		}
		if !isPanic {
			return r.quarantine(records, token, attempts, append(failed, NewAttempt(ClassRefused, err))...)
		}
		failed = append(failed, NewAttempt(ClassPanic, err))
		if attempts > 1 { // a panic may have been bad luck: twice is the record
			r.log.Error("the handler panicked", "record", records[0].Seq, "key", fmt.Sprintf("%q", records[0].Key), "panic", fmt.Sprint(panicked.Value), "stack", string(panicked.Stack))
			return r.quarantine(records, token, attempts, failed...)
		}
	}
}

// quarantine puts one record aside without calling the handler.
func (r *run) quarantine(records []Record, token []byte, attempts int, failed ...Attempt) error {
	bad, last := records[0], failed[len(failed)-1]
	row := Quarantined{Job: r.job.ID, Seq: bad.Seq, Key: clone(bad.Key), Payload: clone(bad.Value), Error: last.Error, Class: last.Class, Attempts: attempts, History: failed, State: Waiting}
	for {
		err := r.commit(records, token, &row)
		if err == nil {
			return nil
		}
		if err := r.afterRefusal(err); err != nil {
			return err
		}
	}
}

// afterRefusal decides what to do when a commit has failed and no record is to blame: nil means to try it again.
func (r *run) afterRefusal(err error) error {
	if e, ok := errors.AsType[*unreachedError](err); ok {
		return r.fail(e.err, unreached(e.err))
	}
	if l, ok := errors.AsType[*leaveError](err); ok {
		return l
	}
	switch {
	case errors.Is(err, ErrFenced), errors.Is(err, errReopen), errors.Is(err, errStopping):
		return err
	case errors.Is(err, ErrTooManyBad):
		return &failure{ReasonTooManyBad, err}
	case verdictOf(err) == verdictHalt:
		return &failure{ReasonHalted, err}
	case r.own.Err() != nil:
		return context.Cause(r.own)
	}
	if _, ok := errors.AsType[*failure](err); ok {
		return err
	}
	if r.stop.Err() != nil {
		return errStopping // one attempt is made at shutdown, not more
	}
	return r.fail(err, causeOf(err))
}

// unreachedError says that a commit failed and the sink cannot be reached, so nothing is known about the records.
type unreachedError struct{ err error }

func (e *unreachedError) Error() string { return e.err.Error() }
func (e *unreachedError) Unwrap() error { return e.err }

func isUnreached(err error) bool {
	_, ok := errors.AsType[*unreachedError](err)
	return ok
}

// commit makes one step. put, if not nil, is the one record, which goes into quarantine.
func (r *run) commit(records []Record, token []byte, put *Quarantined) error {
	next := r.checkpoint
	next.Token = token
	batch := &Batch{Job: r.job, Epoch: r.lease.Epoch, Records: records}
	var aside []Quarantined
	if put != nil {
		batch.Records, aside = nil, []Quarantined{*put}
	}
	bad := 0
	for _, record := range records {
		next.Seq = record.Seq
		next.Bytes += uint64(record.size())
		next.Digest.add(record.Seq, len(record.Key), len(record.Value), record.sum)
		if record.Bad != "" {
			bad++
		}
	}
	if bad > 0 && put == nil {
		batch.Records = nil
		for _, record := range records {
			if record.Bad == "" {
				batch.Records = append(batch.Records, record)
				continue
			}
			attempt := NewAttempt(ClassProducer, errors.New(record.Bad))
			aside = append(aside, Quarantined{Job: r.job.ID, Seq: record.Seq, Key: clone(record.Key), Error: record.Bad, Class: ClassProducer, Attempts: 1, History: []Attempt{attempt}, State: Waiting})
		}
	}
	if len(batch.Records) == 0 {
		return r.step(next, batch, aside)
	}
	if err := r.takeHand(r.journal.Probe > 0); err != nil {
		return err
	}
	defer r.giveHand()
	if r.journal.Probe == 0 {
		return r.step(next, batch, aside)
	}
	// A suspect: from here until the commit a death is blamed on these records.
	j := r.journal
	j.Hand = records[0].Seq // also if that one is not handed over: it is what follows the checkpoint
	if err := r.note(j); err != nil {
		return err
	}
	if err := r.step(next, batch, aside); err != nil {
		j.Hand = 0
		if err := r.note(j); err != nil {
			return err
		}
		return err
	}
	return nil
}

// step calls the sink, and finds out what became of a commit that failed.
func (r *run) step(next Checkpoint, batch *Batch, aside []Quarantined) error {
	prev := r.checkpoint
	start := time.Now()
	r.tried = start
	commit := &Commit{Lease: r.lease, Prev: prev, Batch: batch, next: next, quarantine: aside}
	reserved, release, err := r.reserve(r.sinkContext())
	if err != nil {
		return err
	}
	err = r.call(reserved, func(ctx context.Context) error { return r.sink.Commit(ctx, commit) })
	release()
	took := time.Since(start)
	if err != nil {
		_, isPanic := errors.AsType[*PanicError](err)
		if isPanic || errors.Is(err, ErrFenced) || verdictOf(err) != verdictRetry {
			return err // certain: nothing was stored
		}
		stored, e := r.askSink()
		switch {
		case e != nil && errors.Is(e, ErrFenced):
			return e
		case e != nil:
			return &unreachedError{fmt.Errorf("%w; and then: %w", err, e)}
		case stored.Seq == prev.Seq && bytes.Equal(stored.Token, prev.Token) && stored.Done == prev.Done:
			return err
		case stored.Seq != next.Seq || stored.Digest != next.Digest || stored.Done != next.Done:
			r.checkpoint = stored
			return fmt.Errorf("%w: the sink's checkpoint is record %d, and %d or %d was expected: %w", errReopen, stored.Seq, prev.Seq, next.Seq, err)
		}
		next.Bad = stored.Bad
	} else {
		next.Bad = prev.Bad + uint64(len(aside)+len(batch.skipped))
		r.renewed(commit.renewed)
		if commit.lost {
			r.lose(fmt.Errorf("%w: what was finished is committed", ErrFenced))
		}
	}
	r.logQuarantined(slices.Concat(aside, batch.skipped))
	next.Token = clone(next.Token)
	r.checkpoint = next
	r.setProgress()
	if next.Seq > prev.Seq {
		if r.stall.Dependent > 0 && next.Seq > r.waited {
			r.setPatience(r.config.DependencyWait)
		}
		r.restart()
		r.event(Event{Kind: EventCommitted, From: prev.Seq + 1, To: next.Seq, Bytes: next.Bytes - prev.Bytes, Bad: int(next.Bad - prev.Bad), Took: took, Size: r.progress.Size})
	}
	if r.journal.Probe > 0 && next.Seq > prev.Seq {
		r.condemned, r.journal.Deaths = 0, 0
		if next.Seq >= r.journal.Until {
			return r.note(Journal{})
		}
	}
	if next.Seq > prev.Seq && r.noted != r.stall {
		return r.note(r.journal)
	}
	return nil
}

// logQuarantined logs the records that a commit has put into quarantine: a few of them, and how many more there are. A reader hands them out
// instead.
func (r *run) logQuarantined(rows []Quarantined) {
	if _, ok := r.sink.(*handover); ok {
		return
	}
	for i, q := range rows {
		if i == maxLoggedBad {
			r.log.Warn("more records quarantined in the same commit", "records", len(rows)-i, "last", rows[len(rows)-1].Seq)
			return
		}
		r.log.Warn("record quarantined", "record", q.Seq, "key", fmt.Sprintf("%q", q.Key), "class", q.Class, "attempts", q.Attempts, "error", q.Error)
	}
}

// maxLoggedBad is how many quarantined records of one commit are logged one by one.
const maxLoggedBad = 10

// call calls the sink, within the handler's time and under the watchdog's eye, and makes a panic an error.
func (r *run) call(ctx context.Context, sink func(ctx context.Context) error) (err error) {
	parent := ctx
	ctx, cancel := context.WithTimeout(ctx, r.config.HandlerTimeout)
	defer cancel()
	r.hand(time.Now())
	defer r.hand(time.Time{})
	defer recovered(&err)
	err = sink(ctx)
	if err != nil && errors.Is(ctx.Err(), context.DeadlineExceeded) && parent.Err() == nil {
		switch ReasonOf(err) {
		case ReasonPoolExhausted, ReasonLockWait:
			return err // it was not the handler that took the time
		}
		return &tooSlowError{fmt.Errorf("the handler needs more than its %v (HandlerTimeout): %w", r.config.HandlerTimeout, err)}
	}
	return err
}

// tooSlowError says that a commit was not done when its time was over.
type tooSlowError struct{ err error }

func (e *tooSlowError) Error() string { return e.err.Error() }
func (e *tooSlowError) Unwrap() error { return e.err }
