// Package function keeps user code running and calls it: functions, transformers, sinks and sources, in processes that it starts and restarts. It finds
// the messages that end them.
//
// The parts: process starts and ends one process and says how it ended; client calls a server of user code, started by us or not. Function is the
// supervisor above the two: it has one instance at a time, replaces it when it ends, and gives messages that were in it to Isolate.
package function

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/levada-io/levada/internal/dataplane/deadletter"
	"github.com/levada-io/levada/internal/dataplane/function/client"
	"github.com/levada-io/levada/internal/dataplane/function/process"
	"github.com/levada-io/levada/internal/flow"
)

// Config says what to run and within which limits. The zero value of a field is its default.
type Config struct {
	// Name is {vertex}/{role}, for logs and errors.
	Name    string
	Role    Role
	Command []string
	// Env is the whole environment, but for what names sockets; see Environment. Dir is the working directory.
	Env []string
	Dir string
	// Mounts are its volumes. They need CanMount.
	Mounts []Mount
	// User is whom it runs as; nil for the user of this process.
	User *User
	// SocketRoot is where the processes get their socket directories. The path must be short: Unix sockets allow 107 bytes.
	SocketRoot string
	// Concurrency is how many messages may be in the function at a time (limits.concurrency), BatchSize how many make a batch (limits.readBatchSize). Default 500.
	Concurrency int
	BatchSize   int
	// Timeout is how long one message may take before the function counts as hanging. Default 2 minutes.
	Timeout time.Duration
	// ReadyTimeout is how long the process may take to become ready. A function that has never been ready by then is an error. Default 1 minute.
	ReadyTimeout time.Duration
	// MaxMessage is the largest answer, in bytes (NUMAFLOW_GRPC_MAX_MESSAGE_SIZE). Default 64 MiB.
	MaxMessage int
	// Attach is a socket directory in which another program starts the function and restarts it. Nothing is started then: Command, Env, Dir, Mounts, User,
	// SocketRoot and Output are of no use, and the server may appear at any time.
	Attach string
	// NoBlocks keeps to the Numaflow contract with functions that could take blocks.
	NoBlocks bool
	// Output gets what the process prints, by the line. It is called concurrently.
	Output func(line string)
	// Died is called with the reason each time a process of user code exits that should not have.
	Died   func(reason string)
	Logger *slog.Logger
}

func (c Config) withDefaults() Config {
	if c.Concurrency <= 0 {
		c.Concurrency = 500
	}
	if c.BatchSize <= 0 {
		c.BatchSize = 500
	}
	if c.Timeout <= 0 {
		c.Timeout = 2 * time.Minute
	}
	if c.ReadyTimeout <= 0 {
		c.ReadyTimeout = time.Minute
	}
	if c.MaxMessage <= 0 {
		c.MaxMessage = 64 << 20
	}
	if c.Died == nil {
		c.Died = func(string) {}
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	c.Logger = c.Logger.With("function", c.Name)
	return c
}

func (c *Config) process() process.Config {
	return process.Config{
		Role: c.Role, Command: c.Command, Env: c.Env, Dir: c.Dir, Mounts: c.Mounts, User: c.User, SocketRoot: c.SocketRoot,
		Concurrency: c.Concurrency, ReadyTimeout: c.ReadyTimeout, Output: c.Output, Logger: c.Logger,
	}
}

func (c *Config) limits() client.Limits {
	return client.Limits{Concurrency: c.Concurrency, BatchSize: c.BatchSize, MaxMessage: c.MaxMessage, Timeout: c.Timeout, NoBlocks: c.NoBlocks}
}

// Function is user code in a process of its own, kept alive.
//
// Run owns the current instance: it alone sets and replaces it. A caller that finds an instance unusable finishes it, and Run ends it. Isolate owns the isolated
// instance. No lock is held during a call or while a process starts or ends; order: isolating, use, mu.
type Function struct {
	cfg    Config
	strays atomic.Uint64 // see Strays
	// patience is how long the process may take to end, in nanoseconds; see StopWithin.
	patience atomic.Int64
	// replaced counts the messages with strings that protobuf cannot carry.
	replaced atomic.Uint64

	mu sync.Mutex
	// current is the instance that callers get, nil while there is none. failed says why there never will be one again; ctx of Run ended, or ErrStart.
	// Invariant: at most one of the two is set.
	current *worker
	failed  error
	changed chan struct{} // closed and replaced when current or failed changes
	took    time.Duration // what a message takes, about: a moving average over calls

	// use is how calls and trials of suspects share an attached server; see exclusive.
	use *semaphore.Weighted

	// isolating is held for as long as an isolation takes: a second one at the same time would end processes of the first.
	isolating     sync.Mutex
	lastIsolation atomic.Int64 // Unix time of the last begin, in nanoseconds
	isolated      *worker      // guarded by mu; nil if none runs
}

// instance is running user code that is ready to be called.
type instance interface {
	Open(ctx context.Context, l client.Limits, strays *atomic.Uint64) (client.Caller, error)
	// PID is its process id; 0 if that is not known.
	PID() int
	// Exited is closed once it has ended. Ending, Label and LastLine then describe how: for people, for metrics, and as the last line of its stderr.
	Exited() <-chan struct{}
	Ending() string
	Label() string
	LastLine() string
	// InCode follows the calls that it announces.
	InCode() *process.InCode
	// Panicking is closed when it has told of a panic. EndPanicked ends it if it answers nothing since, and reports whether it did.
	Panicking() <-chan struct{}
	EndPanicked(c client.Caller, over <-chan struct{}) bool
	// End gives it patience to end by itself, and ends it then, for the given reason. Dump asks it for stacks first. Stop asks it to end. Kill ends it at
	// once. Stop and Kill remove its files, as Remove does.
	End(patience time.Duration, why process.Kill)
	Dump(why process.Kill)
	Stop(patience time.Duration)
	Kill(why process.Kill)
	Remove()
	// Diagnose ends it, after a call that ended with err while messages were unanswered, and says what is known of why.
	Diagnose(err error, timeout time.Duration) *deadletter.Failure
}

// worker is an instance and the way to call it.
type worker struct {
	instance
	client.Caller
	// over is closed, once, when it must not get another message: it hangs, broke its contract or lost its connection. The process may still run then.
	over chan struct{}
	once sync.Once
}

// Name is {vertex}/{role}.
func (f *Function) Name() string { return f.cfg.Name }

// StopWithin sets how long the process may take to end after Run's ctx has, before it is killed.
func (f *Function) StopWithin(d time.Duration) { f.patience.Store(int64(d)) }

// New returns a function that Run starts.
func New(cfg Config) *Function {
	f := &Function{cfg: cfg.withDefaults(), use: semaphore.NewWeighted(exclusive), changed: make(chan struct{})}
	f.StopWithin(stopPatience)
	return f
}

// Strays is the number of answers so far that nobody asked for: unknown ids and second answers.
func (f *Function) Strays() uint64 { return f.strays.Load() }

// Blocks reports whether the running process takes whole blocks.
func (f *Function) Blocks() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.current == nil {
		return false
	}
	return client.TakesBlocks(f.current.Caller)
}

// PID is the process id of the running process, 0 if there is none.
func (f *Function) PID() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.current == nil {
		return 0
	}
	return f.current.PID()
}

// firstTries is how often a function may fail to start before it has ever been ready, until that is an error.
const firstTries = 3

// Run starts the function and keeps it running until ctx ends, and then stops it. It returns an error only if the function cannot be started
// at all; once it has been ready it is restarted without limit.
func (f *Function) Run(ctx context.Context) error {
	defer f.stopIsolated()
	var r restarts
	defer r.retire(nil)
	for {
		begun := time.Now()
		w, err := f.start(ctx)
		switch {
		case ctx.Err() != nil:
			if w != nil {
				w.Stop(time.Duration(f.patience.Load()))
			}
			f.set(nil, context.Cause(ctx))
			return nil
		case err != nil:
			if err := f.notStarted(&r, err); err != nil {
				f.set(nil, err)
				return err
			}
		default:
			if r.ready {
				f.cfg.Logger.Info("function runs again", f.which(w)...)
			}
			r.ready, r.failures = true, 0
			if ended := f.serve(ctx, w); !ended {
				return nil
			}
			f.replace(&r, w, begun)
		}
		r.pause(ctx)
	}
}

// restarts is what Run knows of the instances before.
type restarts struct {
	ready    bool          // one of them has been ready: from then on no failure to start is final
	failures int           // to start, one after the other
	retired  *worker       // the one that ended last. Its files are kept until the next one has ended, since callers read what it announced
	wait     time.Duration // before the next start
}

// retire removes the files of the instance before w.
func (r *restarts) retire(w *worker) {
	if r.retired != nil {
		r.retired.Remove()
	}
	r.retired = w
}

// pause waits before the next start, from 50 ms to 5 s, twice as long each time. The first restart after an instance that worked is immediate.
func (r *restarts) pause(ctx context.Context) {
	if r.wait > 0 {
		select {
		case <-time.After(r.wait):
		case <-ctx.Done():
		}
	}
	r.wait = min(max(2*r.wait, 50*time.Millisecond), 5*time.Second)
}

// notStarted reports a failure to start. It returns an error if there is no use in another attempt.
func (f *Function) notStarted(r *restarts, err error) error {
	r.failures++
	f.cfg.Died("start")
	f.cfg.Logger.Error("function did not start", "error", err, "attempt", r.failures)
	final := errors.Is(err, ErrStart)
	if r.ready || !final && r.failures < firstTries {
		return nil
	}
	if !final {
		err = fmt.Errorf("%w (%d attempts): %w", ErrStart, r.failures, err)
	}
	return fmt.Errorf("function %s, command %q: %w", f.cfg.Name, strings.Join(f.cfg.Command, " "), err)
}

// serve gives the instance to callers until it ends or ctx does. ended is false in the second case: it has been stopped then.
func (f *Function) serve(ctx context.Context, w *worker) (ended bool) {
	f.set(w, nil)
	select {
	case <-ctx.Done():
		f.set(nil, context.Cause(ctx))
		w.Close()
		w.Stop(time.Duration(f.patience.Load()))
		return false
	case <-w.over:
	case <-w.Exited():
	}
	f.set(nil, nil)
	return true
}

// replace ends the instance for good and reports how it ended, before another one is started.
func (f *Function) replace(r *restarts, w *worker, begun time.Time) {
	w.End(200*time.Millisecond, process.KillFor(nil))
	w.Close()
	f.cfg.Died(w.Label())
	f.logEnd(w, time.Since(begun))
	r.retire(w)
	if w.Progress() > 0 || time.Since(begun) > 5*time.Second {
		r.wait = 0
	}
}

// which names a running function in a log line.
func (f *Function) which(w *worker) []any {
	if f.cfg.Attach != "" {
		return []any{"directory", f.cfg.Attach}
	}
	return []any{"pid", w.PID()}
}

func (f *Function) logEnd(w *worker, after time.Duration) {
	after = after.Round(time.Millisecond)
	if f.cfg.Attach != "" {
		f.cfg.Logger.Warn("function disconnected, reconnecting", "how", w.Ending(), "after", after, "directory", f.cfg.Attach)
		return
	}
	f.cfg.Logger.Warn("function ended, restarting", "how", w.Ending(), "after", after, "output", w.LastLine())
}

const stopPatience = 5 * time.Second

func (f *Function) start(ctx context.Context) (*worker, error) {
	if f.cfg.Attach != "" {
		return f.attach(ctx)
	}
	cfg := f.cfg.process()
	i, err := process.Start(ctx, &cfg)
	if err != nil {
		return nil, err
	}
	// A socket that is there may still refuse for a moment.
	open, cancel := context.WithTimeout(ctx, f.cfg.ReadyTimeout)
	defer cancel()
	c, err := i.Open(open, f.cfg.limits(), &f.strays)
	if err != nil {
		return nil, err
	}
	w := &worker{instance: i, Caller: c, over: make(chan struct{})}
	go f.watch(w) // ends with the process
	return w, nil
}

// watch ends a process that hangs.
func (f *Function) watch(w *worker) {
	tick := time.NewTicker(max(10*time.Millisecond, min(time.Second, f.cfg.Timeout/8)))
	defer tick.Stop()
	calls := w.InCode()
	panicking := w.Panicking()
	for {
		select {
		case <-w.Exited():
			w.finish()
			return
		case <-w.over:
			return
		case <-tick.C:
			now := time.Now()
			if since := client.Earliest(w.Oldest(), calls.Oldest(now)); !since.IsZero() && now.Sub(since) > f.cfg.Timeout {
				what := "process killed"
				if f.cfg.Attach != "" {
					what = "connection ended"
				}
				f.cfg.Logger.Warn("function exceeded its processing timeout, "+what, "timeout", f.cfg.Timeout)
				w.Dump(process.Kill{Label: process.LabelHang, Why: fmt.Sprintf("a call took longer than the processing timeout of %v", f.cfg.Timeout)})
				w.finish()
				return
			}
		case <-panicking:
			if w.EndPanicked(w.Caller, w.over) {
				w.finish()
				return
			}
			panicking = nil
		}
	}
}

func (w *worker) finish() { w.once.Do(func() { close(w.over) }) }

func (w *worker) isOver() bool {
	select {
	case <-w.over:
		return true
	default:
		return false
	}
}

func (f *Function) set(w *worker, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.current, f.failed = w, err
	close(f.changed)
	f.changed = make(chan struct{})
}

// encodable returns in with strings that protobuf can carry; see client.Encodable.
func (f *Function) encodable(in []flow.Message) []flow.Message {
	out, n, first := client.Encodable(in)
	if n > 0 && f.replaced.Add(uint64(n)) == uint64(n) { // once for each function
		f.cfg.Logger.Warn("message has keys or headers that are not valid UTF-8, invalid bytes replaced by U+FFFD", "id", fmt.Sprintf("%q", in[first].ID), "messages", n)
	}
	return out
}

// Replaced is the number of messages so far whose keys, headers or metadata were not valid UTF-8.
func (f *Function) Replaced() uint64 { return f.replaced.Load() }

// SourceClient waits until the user-defined source runs, and returns the way to call it. An error of ErrStart says that it never will.
func (f *Function) SourceClient(ctx context.Context) (*client.Source, error) {
	_, c, err := f.source(ctx)
	return c, err
}

func (f *Function) source(ctx context.Context) (*worker, *client.Source, error) {
	w, err := f.worker(ctx)
	if err != nil {
		return nil, nil, err
	}
	c, ok := w.Caller.(*client.Source)
	if !ok {
		return nil, nil, fmt.Errorf("%w: %s is a %s, not a source", ErrStart, f.cfg.Name, f.cfg.Role)
	}
	return w, c, nil
}

// Source calls the user-defined source. After an error of use the source is ended and replaced, and the error that is returned says what is known of why.
func (f *Function) Source(ctx context.Context, use func(*client.Source) error) error {
	w, c, err := f.source(ctx)
	if err != nil {
		return err
	}
	if err = use(c); err == nil {
		return nil
	}
	if ctx.Err() != nil {
		if c.CannotAck() {
			w.finish()
		}
		return context.Cause(ctx)
	}
	// A stream that broke takes no more acknowledgements, even where the process lives on.
	failure := w.Diagnose(err, f.cfg.Timeout)
	w.finish()
	return errors.New(failure.Error)
}

// Ready waits until the function runs, and returns why it never will.
func (f *Function) Ready(ctx context.Context) error {
	_, err := f.worker(ctx)
	return err
}

func (f *Function) worker(ctx context.Context) (*worker, error) { return f.workerUntil(ctx, nil) }

// workerUntil is worker, but returns nil once part is over.
func (f *Function) workerUntil(ctx context.Context, part *Part) (*worker, error) {
	for {
		f.mu.Lock()
		w, err, changed := f.current, f.failed, f.changed
		f.mu.Unlock()
		if w != nil && err == nil && w.isOver() { // Run is about to replace it
			w = nil
		}
		if w != nil || err != nil {
			return w, err
		}
		select {
		case <-changed:
		case <-part.Done():
			return nil, nil
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// Map gives each message to the function, and again if the process died before it got it. Messages that were in user code when it died are Suspect:
// Isolate is for them. The only errors are that ctx ended or that the function cannot be started.
func (f *Function) Map(ctx context.Context, in []flow.Message) ([]Outcome, error) {
	return f.MapPart(ctx, in, nil)
}

// MapPart is Map for a caller who takes what is done before all of it is, and may end it early; see Part. What was taken is in the result as well.
func (f *Function) MapPart(ctx context.Context, in []flow.Message, part *Part) ([]Outcome, error) {
	begun := time.Now()
	in = f.encodable(in)
	part.Use(nil)
	defer part.NoteQueued()
	out, unsent, err := f.mapOnce(ctx, in, part)
	if len(unsent) == 0 {
		if err == nil && len(in) > 0 {
			f.observe(time.Since(begun) / time.Duration(len(in)))
		}
		return out, endError(ctx, err)
	}
	for len(unsent) > 0 && endError(ctx, err) == nil {
		if part.Over() {
			for _, i := range unsent {
				out[i] = Outcome{Verdict: Unbegun}
			}
			break
		}
		again := make([]flow.Message, len(unsent))
		for k, i := range unsent {
			again[k] = in[i]
		}
		part.Use(unsent)
		var more []Outcome
		var left []int
		more, left, err = f.mapOnce(ctx, again, part)
		if more == nil {
			break
		}
		still := make(map[int]bool, len(left))
		for _, k := range left {
			still[k] = true
		}
		var next []int
		for k, i := range unsent {
			if still[k] {
				next = append(next, i)
			} else {
				out[i] = more[k]
			}
		}
		unsent = next
	}
	return out, endError(ctx, err)
}

func endError(ctx context.Context, err error) error {
	var u client.Unusable
	if errors.As(err, &u) {
		return u.Err
	}
	if ctx.Err() != nil && err != nil {
		return context.Cause(ctx)
	}
	return nil
}

func (f *Function) mapOnce(ctx context.Context, in []flow.Message, part *Part) ([]Outcome, []int, error) {
	w, err := f.workerUntil(ctx, part)
	if err != nil {
		return nil, allOf(in), client.Unusable{Err: err}
	}
	if w == nil {
		return make([]Outcome, len(in)), allOf(in), nil
	}
	release, err := f.share(ctx, part)
	if release == nil {
		return make([]Outcome, len(in)), allOf(in), err
	}
	out, unsent, err := w.Call(ctx, in, part)
	release()
	if err != nil && ctx.Err() == nil {
		failure := w.Diagnose(err, f.cfg.Timeout)
		for i := range out {
			if out[i].Verdict == Suspect && out[i].Failure == nil {
				out[i].Failure = failure
			}
		}
		w.finish()
	}
	return out, unsent, err
}

func allOf(in []flow.Message) []int {
	all := make([]int, len(in))
	for i := range all {
		all[i] = i
	}
	return all
}

// observe keeps a running mean of what a message takes.
func (f *Function) observe(each time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.took += (each - f.took) / 8
}
