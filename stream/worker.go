package stream

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
)

// Never and AtOnce are for times of which zero means the default: no limit, and none to wait for.
const (
	Never  time.Duration = -1
	AtOnce time.Duration = 1
)

// None and Unlimited are for MaxBad, of which zero means the default: the first bad record fails the job, or none does.
const (
	None      int = -1
	Unlimited int = math.MaxInt
)

// WorkerConfig says how a worker works. Store and Dial must be set.
type WorkerConfig struct {
	// Store keeps the jobs.
	Store Store
	// Notifier wakes the worker sooner than its poll does. Nil: it only polls.
	Notifier Notifier
	// Dial returns the connection to a job's producer. It is called for each stream that is opened, so it should return the
	// same connection again; [Connections] does. The worker does not close it. A connection of your own should have keepalive, or
	// one that falls silent is never replaced.
	Dial func(ctx context.Context, job Job) (grpc.ClientConnInterface, error)
	// Owner names this process. Default Self().
	Owner Owner
	// SingleProcess says that no other process has workers of this store. Jobs that are running when it starts, and not by another worker of
	// this process, then have no owner any more, and are claimed at once.
	SingleProcess bool

	// Lease is how long a job stays with a worker that does not renew it. Default 15 s.
	Lease time.Duration
	// PollInterval is the time between two polls of the store for due jobs, give or take a tenth. Default 2 s.
	PollInterval time.Duration
	// MaxJobs is how many jobs are worked on at once. Default 16.
	MaxJobs int
	// MaxInFlight bounds, per job, the bytes that were received and are not committed; one batch is always let in. The HTTP/2 window
	// of the connection comes on top. Default 4 MiB.
	MaxInFlight int
	// MaxRecord is the largest record that is taken, in bytes; producers send a bad record instead of a larger one. Default 4 MiB.
	MaxRecord int
	// CommitRecords and CommitBytes bound a commit. Defaults 4096 and 1 MiB. A commit never waits for more records to come.
	CommitRecords, CommitBytes int
	// HandlerTimeout bounds a commit, the handler's part in it included. Default 1 min. A handler that needs longer is given half as
	// many records, and more again when it is quick. One that is still not back one Lease after its context has ended keeps its
	// lease no longer.
	HandlerTimeout time.Duration
	// IdleTimeout is how long a stream may be silent before it is reopened; producers send a mark every 5 s. Default 15 s.
	IdleTimeout time.Duration
	// Retry is the pause between attempts. Default 100 ms to 30 s.
	Retry Backoff
	// NoProgress is how long a job may come no further before it fails: the time of attempts, by any worker, that failed one after the
	// other for reasons that say nothing of an outage, and of the pauses between them. Default 24 h; [Never] or another negative time: it
	// never fails for that.
	NoProgress time.Duration
	// DeniedGrace is how long a producer may answer UNAUTHENTICATED, PERMISSION_DENIED, UNKNOWN_STREAM or UNIMPLEMENTED before the job
	// fails: a policy or a new release may be on its way to all replicas. Default 5 min; [AtOnce]: none; negative: without limit.
	DeniedGrace time.Duration
	// Refresh, if set, is called once in a row of such answers, before the next attempt, to refresh credentials. See
	// [Connections.Refresh].
	Refresh func(ctx context.Context, job Job, denied error) error
	// DependencyWait is how long records are tried again that depend on rows which are not there, or are still in the way (foreign keys,
	// uniqueness, errors marked with [Later]), before they are bad. Default 2 min; [AtOnce]: they are not tried again; negative: without
	// limit. A wait in vain halves the next.
	DependencyWait time.Duration
	// ReleaseAfterFailures is how many failures in a row make this worker release a job, for any worker to claim after a pause. A pause that is longer
	// than PollInterval releases it at once. Default 8.
	ReleaseAfterFailures int
	// MaxCrashes is how many processes a record may crash while it is alone in flight before it goes into quarantine. Default 2.
	MaxCrashes int
	// MaxBad is how many records of a job may go into quarantine, unless the job says otherwise. Default 100; [None]: the first bad record
	// fails the job; [Unlimited]: it never fails for that.
	MaxBad int
	// DrainTimeout bounds the shutdown, all of it. Default 20 s, which fits Kubernetes' grace of 30 s.
	DrainTimeout time.Duration

	// Logger gets what happens to jobs. Default slog.Default.
	Logger *slog.Logger
	// Observe, if set, is called for each event, from many goroutines, and must not wait.
	Observe func(Event)
}

func (c WorkerConfig) withDefaults() WorkerConfig {
	if c.Owner == (Owner{}) {
		c.Owner = Self()
	}
	c.Lease = cmp.Or(c.Lease, 15*time.Second)
	c.PollInterval = cmp.Or(c.PollInterval, 2*time.Second)
	c.MaxJobs = cmp.Or(c.MaxJobs, 16)
	c.MaxInFlight = cmp.Or(c.MaxInFlight, 4<<20)
	c.MaxRecord = cmp.Or(c.MaxRecord, 4<<20)
	c.CommitRecords = cmp.Or(c.CommitRecords, 4096)
	c.CommitBytes = cmp.Or(c.CommitBytes, 1<<20)
	c.HandlerTimeout = cmp.Or(c.HandlerTimeout, time.Minute)
	c.IdleTimeout = cmp.Or(c.IdleTimeout, 15*time.Second)
	c.Retry.Min = cmp.Or(c.Retry.Min, 100*time.Millisecond)
	c.Retry.Max = cmp.Or(c.Retry.Max, 30*time.Second)
	c.NoProgress = cmp.Or(c.NoProgress, 24*time.Hour)
	c.DeniedGrace = cmp.Or(c.DeniedGrace, 5*time.Minute)
	c.DependencyWait = cmp.Or(c.DependencyWait, 2*time.Minute)
	c.ReleaseAfterFailures = cmp.Or(c.ReleaseAfterFailures, 8)
	c.MaxCrashes = cmp.Or(c.MaxCrashes, 2)
	c.MaxBad = cmp.Or(c.MaxBad, 100)
	c.DrainTimeout = cmp.Or(c.DrainTimeout, 20*time.Second)
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	return c
}

func (c WorkerConfig) validate() error {
	switch {
	case c.Store == nil:
		return errors.New("WorkerConfig.Store is not set: it says where the jobs are, see sqlitestore and pgstore")
	case c.Dial == nil:
		return errors.New("WorkerConfig.Dial is not set: it says how to reach producers, see Connections")
	}
	if err := checkBackoff("WorkerConfig", c.Retry); err != nil {
		return err
	}
	return checkLimits("WorkerConfig", bound{"Lease", c.Lease}, bound{"PollInterval", c.PollInterval}, bound{"MaxJobs", c.MaxJobs}, bound{"MaxInFlight", c.MaxInFlight},
		bound{"MaxRecord", c.MaxRecord}, bound{"CommitRecords", c.CommitRecords}, bound{"CommitBytes", c.CommitBytes}, bound{"HandlerTimeout", c.HandlerTimeout},
		bound{"IdleTimeout", c.IdleTimeout}, bound{"ReleaseAfterFailures", c.ReleaseAfterFailures}, bound{"MaxCrashes", c.MaxCrashes}, bound{"MaxBad", count(c.MaxBad)}, bound{"DrainTimeout", c.DrainTimeout})
}

// Worker claims jobs, reads their streams and has them committed.
type Worker struct {
	config WorkerConfig
	sinks  map[string]Sink
	codec  frameCodec

	misused error // what Handle has refused
	options map[string]HandleOptions
	busy    map[string]int // jobs of a stream that are worked on, or being claimed; under mu

	slots    chan struct{} // holds one for each job that is being worked on
	freed    chan struct{} // a slot came free: poll now
	handlers *handlerSlots
	jobs     sync.WaitGroup
	stuck    atomic.Int64 // handlers that do not return
	pressure *pressure

	mu      sync.Mutex
	running []*claim // the oldest first
	// patience is how long records of a job wait for others, where such a wait was in vain before.
	patiences recent[time.Duration]
	finished  recent[finishedRecords]
}

// NewWorker returns a worker without handlers: add them with Handle, then Run it.
func NewWorker(config WorkerConfig) (*Worker, error) {
	config = config.withDefaults()
	if err := config.validate(); err != nil {
		return nil, err
	}
	return &Worker{
		config: config, sinks: map[string]Sink{}, options: map[string]HandleOptions{}, busy: map[string]int{}, codec: newFrameCodec(),
		slots: make(chan struct{}, config.MaxJobs), freed: make(chan struct{}, 1), handlers: newHandlerSlots(config.MaxJobs),
		pressure: newPressure(),
	}, nil
}

// Handle has the records of the streams of that name committed to a sink. It must not be called after Run. An empty name or a nil sink is an
// error, which Run returns as well.
func (w *Worker) Handle(stream string, sink Sink) error {
	return w.HandleWith(stream, sink, HandleOptions{})
}

// HandleWith is Handle with limits of the stream's own. An option that is negative is an error, as in NewWorker.
func (w *Worker) HandleWith(stream string, sink Sink, options HandleOptions) error {
	err := checkHandle("Worker", "sink", stream, sink)
	if err == nil {
		err = options.validate(stream)
	}
	if err != nil {
		w.misused = errors.Join(w.misused, err)
		return err
	}
	w.sinks[stream] = sink
	w.options[stream] = options
	return nil
}

// Owner returns the name under which the worker claims jobs.
func (w *Worker) Owner() Owner { return w.config.Owner }

// Stuck returns how many handlers did not return long after their time was over. Such a job is worked on elsewhere by then;
// the goroutine is lost, the worker claims no more, and a liveness probe should end the process.
func (w *Worker) Stuck() int { return int(w.stuck.Load()) }

// Running returns how many jobs the worker works on.
func (w *Worker) Running() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.running)
}

// Run works until ctx ends, and then shuts down: it claims no more, interrupts streams, also those that wait in Recv, has what
// is in flight committed, releases the leases and sends a notification for each, all of it within DrainTimeout. Nothing is lost if it
// is killed at any point of that. Afterwards close the notifications, then the stores.
//
// It returns nil after a shutdown that was in time, else an error that says what was left; the leases of that run out by themselves.
func (w *Worker) Run(ctx context.Context) error {
	if w.misused != nil {
		return w.misused
	}
	if len(w.sinks) == 0 {
		return errors.New("the worker has no handler: call Handle for each stream before Run")
	}
	w.warnOfSmallPools()
	leave := live(w.config.Owner.Incarnation)
	if err := w.expireOwnStaleLeases(ctx); err != nil {
		leave()
		return err
	}
	work, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	var loops sync.WaitGroup
	if w.config.Notifier != nil {
		loops.Go(func() { w.listen(ctx, work) })
	}
	loops.Go(func() { w.pressure.watch(ctx, w.config.Logger, w.shed) })
	// Counted from the signal on: a claim that is under way belongs to the shutdown.
	deadline := time.AfterFunc(math.MaxInt64, cancel)
	defer deadline.Stop()
	defer context.AfterFunc(ctx, func() { deadline.Reset(w.config.DrainTimeout) })()
	w.poll(ctx, work)
	w.config.Logger.Info("worker shutting down, no more jobs are claimed", "jobs", len(w.slots))
	loops.Wait()
	done := make(chan struct{})
	go func() { w.jobs.Wait(); close(done) }() // outlives Run only when a handler does not return
	select {
	case <-done:
	case <-work.Done():
		// Handlers that honour their context return at once: the second is for them.
		select {
		case <-done:
		case <-time.After(time.Second):
			return fmt.Errorf("%d jobs were not released within %v: their leases run out by themselves", len(w.slots), w.config.DrainTimeout)
		}
	}
	leave() // not before: a handler that does not return still works on its job
	return nil
}

// expireOwnStaleLeases ends the leases of this container's previous process: one that restarts in its pod needs no watcher.
func (w *Worker) expireOwnStaleLeases(ctx context.Context) error {
	if w.config.Owner.PodUID == "" && !w.config.SingleProcess {
		return nil
	}
	for failures := 1; ; failures++ {
		n, err := w.takeBack(ctx)
		if err == nil {
			if n > 0 {
				w.config.Logger.Info("leases of the previous process in this container ended, its jobs can be claimed", "jobs", n)
			}
			return nil
		}
		if ctx.Err() != nil {
			return nil
		}
		w.config.Logger.Warn(unavailable("the job store", err), "error", err)
		wait(ctx, w.config.Retry.after(failures))
	}
}

// poll claims due jobs every PollInterval, and whenever a slot comes free.
func (w *Worker) poll(ctx, work context.Context) {
	failures := 0
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		case <-w.freed:
		}
		pause := jitter(w.config.PollInterval)
		if free := w.tryTake(); free > 0 {
			if _, err := w.claim(ctx, work, free); err != nil && ctx.Err() == nil {
				failures++
				w.config.Logger.Warn(unavailable("the job store", err), "error", err)
				pause = max(pause, w.config.Retry.after(failures))
			} else {
				failures = 0
			}
		}
		timer.Reset(pause)
	}
}

// listen claims when a notification comes.
func (w *Worker) listen(ctx, work context.Context) {
	for failures := 1; ctx.Err() == nil; failures++ {
		err := w.config.Notifier.Listen(ctx, func(ctx context.Context, h Notification) {
			if h.Stream != "" && w.sinks[h.Stream] == nil || !w.hasRoom(h.Stream) || w.full() {
				return
			}
			select {
			case w.slots <- struct{}{}:
			case <-ctx.Done():
				return
			}
			if _, err := w.claim(ctx, work, 1); err != nil && ctx.Err() == nil {
				w.config.Logger.Warn(unavailable("the job store", err), "error", err)
			}
		})
		if ctx.Err() != nil {
			return
		}
		w.config.Logger.Warn("notifications unavailable, jobs are found by polling", "error", err)
		wait(ctx, w.config.Retry.after(failures))
	}
}

// full reports whether the worker must not claim more, though it may have slots: memory is short, or a handler does not return, and
// would take slot after slot if the worker claimed its job again.
func (w *Worker) full() bool { return w.pressure.high() || w.stuck.Load() > 0 }

// tryTake takes all free slots.
func (w *Worker) tryTake() (n int) {
	if w.full() {
		return 0
	}
	for {
		select {
		case w.slots <- struct{}{}:
			n++
		default:
			return n
		}
	}
}

// claim claims up to as many jobs as slots were taken, starts them, and frees the slots that are left.
func (w *Worker) claim(ctx, work context.Context, slots int) (int, error) {
	total := 0
	defer func() {
		for range slots - total {
			<-w.slots
		}
	}()
	// Streams with a limit of their own bound how many jobs one claim may give, so that none of them gets more than it has room for.
	for total < slots {
		streams, most := w.reserve(slots - total)
		if most == 0 {
			break
		}
		n, err := w.claimOf(ctx, work, streams, most)
		total += n
		if err != nil || n < most {
			return total, err
		}
	}
	return total, nil
}

// claimOf claims jobs of streams that have room for most of them.
func (w *Worker) claimOf(ctx, work context.Context, streams []string, most int) (int, error) {
	since := time.Now()
	// Not under ctx: a claim that is interrupted at shutdown may have taken effect, and its jobs would wait for their leases to run out.
	asking, cancel := context.WithTimeout(work, w.config.Lease/3)
	defer cancel()
	claimed, err := w.config.Store.Claim(asking, Claim{Owner: w.config.Owner, Streams: streams, TTL: w.config.Lease, Max: most})
	w.settleReserved(streams, most, claimed)
	for _, status := range claimed {
		w.jobs.Go(func() {
			defer w.free()
			defer w.leaveStream(status.Stream)
			w.work(ctx, work, status, since)
		})
	}
	return len(claimed), err
}

// shed releases the job that was claimed last, if there is more than one: its work is the least to do again.
func (w *Worker) shed() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.running) < 2 {
		return false
	}
	w.running[len(w.running)-1].releaseSoon()
	return true
}

func (w *Worker) free() {
	<-w.slots
	signal(w.freed)
}

func (w *Worker) streams() []string {
	var names []string
	for name := range w.sinks {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// notify wakes another worker for a job that is due. Nothing depends on it.
func (w *Worker) notify(ctx context.Context, job Job) {
	if w.config.Notifier == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	if err := w.config.Notifier.Send(ctx, Notification{Stream: job.Stream, Job: job.ID}); err != nil {
		w.config.Logger.Warn("notification not sent, the job is found by polling", "job", job.ID, "error", err)
	}
}

// Event is something that happened to a job. It is for metrics, logs and tests: nothing is decided by it.
type Event struct {
	Kind      EventKind
	Time      time.Time
	Job       Job
	Epoch     uint64
	Owner     Owner
	From      uint64        // EventCommitted, EventReceived: the first record
	To        uint64        // EventCommitted, EventReceived, EventFenced: the last record
	Bytes     uint64        // EventCommitted: of keys and values
	Bad       int           // EventCommitted: how many of the records went into quarantine
	Took      time.Duration // EventCommitted
	State     State         // EventReleased
	Reason    Reason        // EventReleased, EventDisconnected, EventRetry
	Err       error         // EventDisconnected, EventRetry, EventLost
	Size      uint64        // EventCommitted: how many records the stream has, if known
	Attempt   int           // EventClaimed
	Reclaimed bool          // EventClaimed
}

// EventKind names what happened.
type EventKind string

const (
	EventClaimed      EventKind = "claimed"
	EventFenced       EventKind = "fenced"       // the sink knows the new epoch; To is the checkpoint
	EventOpened       EventKind = "opened"       // a stream was opened
	EventReceived     EventKind = "received"     // a batch came
	EventCommitted    EventKind = "committed"    // records were committed
	EventDisconnected EventKind = "disconnected" // the stream ended before its End
	EventRetry        EventKind = "retry"        // handler or sink failed
	EventReleased     EventKind = "released"     // the lease was released
	EventLost         EventKind = "lost"         // the lease was lost
)
