package stream

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"
)

// run reads one stream to its end and commits or quarantines its records. A [Worker] has one for each job that it has claimed, see claim; a [Reader] is one.
//
// One goroutine runs it, and owns all fields that change, except those under mu, which the heartbeat uses too. The receiver of a session uses none that
// change. A file for each part: commit.go accounts for records at sinks that store effects, deliver.go at those of AtLeastOnce, suspicion.go finds the
// record that kills its processes, heartbeat.go renews the lease, cause.go counts attempts.
type run struct {
	host     host
	config   WorkerConfig // the host's, with the stream's own limits
	codec    frameCodec
	handlers *handlerSlots // of the process: all runs of a worker share them
	job      Job
	lease    Lease     // of one epoch: the job's next claim is another run, also in this process
	created  time.Time // of the job: another one may have its ID later
	sink     Sink      // nil: this worker has no handler for the stream
	log      *slog.Logger

	// Invariant: shutdownCtx ends before drainCtx, stopCtx no later than shutdownCtx, and leaseCtx no later than drainCtx.
	shutdownCtx context.Context // ends when the worker shuts down
	drainCtx    context.Context // ends with the time to shut down
	stopCtx     context.Context // ends when the job is to be released soon
	releaseSoon context.CancelFunc
	leaseCtx    context.Context // ends with the lease, or with the time to shut down
	loseLease   context.CancelCauseFunc
	sinkCtx     context.Context // bounds calls of the sink instead of leaseCtx; set only while effects that have happened are stored, otherwise nil

	checkpoint Checkpoint // as the sink has it: it is never ahead of what the sink is known to have stored
	suspicion  suspicion
	slice      int    // how many records a handler of AtLeastOnce gets at once, from 1 to CommitRecords; 0: it was given none yet
	search     uint64 // slices do not grow up to this record, one of which is bad; 0: none is
	inTime     int    // how many records the handler gets at once, less than CommitRecords, since it was too slow for more; 0: it was not

	retryState RetryState    // attempts in a row that failed, of former owners too; zero after each record that is committed
	savedRetry RetryState    // as the store has it
	tries      int           // of them, those of this run: at most retryState.Failures
	tried      time.Time     // when this attempt began: time before it is counted already
	last       *releaseError // why the last one failed; nil after progress
	patience   time.Duration // how long records may wait for others that they depend on; negative: without limit
	waited     uint64        // records up to this one have waited for others long enough: it never decreases
	pinned     bool          // no other worker can take the job: the run is a Reader's, or holds effects that are not accounted for

	mu           sync.Mutex // for the heartbeat
	progress     Progress   // written by the run alone
	leased       time.Time  // when the lease was last renewed for certain, by the heartbeat or with a commit: it never decreases
	sinkCalledAt time.Time  // when the sink was called; zero when it is not at work
	heldSlots    int        // slots of the process that are taken: the code that sets it to 0 releases them, so that happens once
	alone        bool       // holds the turn of a suspect as well
}

// Reasons that end a run without failing the job.
var (
	errStopping = errors.New("the worker is shutting down")
	errReopen   = errors.New("the stream is reopened")

	errNotRenewed = errors.New("the lease could not be renewed")
)

// failure fails the job until it is retried by an operator.
type failure struct {
	reason Reason
	err    error
}

func (f *failure) Error() string { return f.err.Error() }
func (f *failure) Unwrap() error { return f.err }

// run returns nil when the job is complete.
func (r *run) run(died bool) error {
	if r.sink == nil {
		return r.releaseWith(ReasonNoHandler, fmt.Errorf("this worker has no handler for stream %q", r.job.Stream))
	}
	if err := r.fence(); err != nil {
		return err
	}
	if err := r.resume(); err != nil {
		return err
	}
	if err := r.readCrashState(died); err != nil {
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
	at, failures := r.checkpoint.Seq, r.retryState.Failures
	r.tried = time.Now()
	drained, err := r.session()
	if err == nil {
		return true, nil
	}
	if r.retryState.Failures == failures && time.Since(r.tried) > healthyAfter {
		// It worked, even if no record came: rare disconnects must not add up over days.
		r.restart()
		r.tried = time.Now()
	}
	return false, r.afterDisconnect(err, drained && r.checkpoint.Seq > at)
}

// afterDisconnect decides what to do after a stream has ended early: nil means to reopen it, after a pause.
func (r *run) afterDisconnect(err error, planned bool) error {
	switch {
	case r.leaseCtx.Err() != nil:
		return context.Cause(r.leaseCtx)
	case r.stopCtx.Err() != nil:
		return errStopping
	case errors.Is(err, errReopen):
		return nil
	case errors.Is(err, ErrFenced):
		return err
	}
	if l, ok := errors.AsType[*releaseError](err); ok {
		return l
	}
	if f, ok := errors.AsType[*failure](err); ok {
		return f
	}
	if cut, ok := errors.AsType[*disconnectError](err); ok {
		return r.afterStreamEnd(cut, planned)
	}
	return r.fail(err, causeOf(err))
}

// afterStreamEnd is afterDisconnect for streams that the producer or the connection has ended.
func (r *run) afterStreamEnd(cut *disconnectError, planned bool) error {
	r.event(Event{Kind: EventDisconnected, Reason: cut.Reason, Err: cut.Err})
	if cut.Fatal && !cut.Denied {
		return &failure{cmp.Or(cut.Reason, ReasonRefused), cut.Err}
	}
	if cut.Denied && r.retryState.Denied == 0 {
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

// healthyAfter is how long a stream must last for its disconnect not to count as a failed attempt.
const healthyAfter = time.Minute

// refresh renews the credentials for the producer, once in a row of refusals.
func (r *run) refresh(err error) {
	if r.config.Refresh == nil {
		return
	}
	ctx, cancel := context.WithTimeout(r.leaseCtx, refreshTimeout)
	defer cancel()
	if failed := r.config.Refresh(ctx, r.job, err); failed != nil {
		r.log.Warn("credentials not refreshed", "error", failed, "denied", err)
		return
	}
	r.log.Info("stream denied, credentials refreshed", "denied", err)
}

const refreshTimeout = 10 * time.Second

// releaseWith releases the job for a reason that only another worker can handle.
func (r *run) releaseWith(reason Reason, err error) error {
	r.retryState.Failures++
	r.last = &releaseError{cause{reason: reason, after: r.config.Retry.after(r.retryState.Failures)}, err}
	return r.last
}

// sleep waits, unless the run ends before.
func (r *run) sleep(d time.Duration) bool {
	ctx, cancel := context.WithCancel(r.leaseCtx)
	defer cancel()
	defer context.AfterFunc(r.stopCtx, cancel)()
	return wait(ctx, d)
}

func (r *run) ended() error {
	if r.leaseCtx.Err() != nil {
		return context.Cause(r.leaseCtx)
	}
	return errStopping
}

// fence stores this epoch in the sink, and reads the job's checkpoint.
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
			return r.releaseWith(ReasonNewer, err)
		}
		if err := r.fail(fmt.Errorf("%s: %w", unavailable("the sink", err), err), unreached(err)); err != nil {
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

// unavailable describes an error of a sink or a store: a refusal is an answer, too.
func unavailable(who string, err error) string {
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

func (r *run) event(e Event) {
	e.Time, e.Job, e.Epoch, e.Owner = time.Now(), r.job, r.lease.Epoch, r.lease.Owner
	if r.config.Observe != nil {
		r.config.Observe(e)
	}
}
