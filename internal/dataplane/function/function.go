package function

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/levada-io/levada/internal/dataplane/deadletter"
	"github.com/levada-io/levada/internal/dataplane/function/wire"
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
	// NoBlocks keeps to the Numaflow contract with functions that could take blocks.
	NoBlocks bool
	// Output gets what the process prints, by the line. It is called concurrently.
	Output func(line string)
	// Died is told each time a process of user code ends that should not have, with why.
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
	c.Logger = logger(c.Logger).With("function", c.Name)
	return c
}

// Function is user code in a process of its own, kept alive.
type Function struct {
	cfg    Config
	strays atomic.Uint64
	// patience is how long the process may take to end, see StopWithin.
	patience atomic.Int64
	// replaced counts the messages with strings that protobuf cannot carry.
	replaced atomic.Uint64

	mu      sync.Mutex
	current *worker
	failed  error
	changed chan struct{} // closed and replaced when current or failed changes
	took    time.Duration // what a message takes, about

	isolating     sync.Mutex // one isolation at a time
	lastIsolation atomic.Int64
	isolated      *worker
}

// worker is a process that is ready, and the way to call it.
type worker struct {
	*instance
	caller
	over chan struct{} // closed when it is of no more use
	once sync.Once
	hung atomic.Bool
}

// Name is {vertex}/{role}.
func (f *Function) Name() string { return f.cfg.Name }

// StopWithin sets how long the process may take to end after Run's ctx has, before it is killed.
func (f *Function) StopWithin(d time.Duration) { f.patience.Store(int64(d)) }

// New returns a function that Run starts.
func New(cfg Config) *Function {
	f := &Function{cfg: cfg.withDefaults(), changed: make(chan struct{})}
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
	_, ok := f.current.caller.(*blockPipe)
	return ok
}

// PID is the process id of the running process, 0 if there is none.
func (f *Function) PID() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.current == nil {
		return 0
	}
	return f.current.cmd.Process.Pid
}

// firstTries is how often a function may fail to start before it has ever been ready, until that is an error.
const firstTries = 3

// Run starts the function and keeps it running until ctx ends, and then stops it. It returns an error only if the function cannot be started
// at all; once it has been ready it is started again for ever.
func (f *Function) Run(ctx context.Context) error {
	defer f.stopIsolated()
	var retired *worker
	retire := func(w *worker) {
		if retired != nil {
			_ = os.RemoveAll(retired.dir)
		}
		retired = w
	}
	defer func() { retire(nil) }()
	wait := time.Duration(0)
	ready, failures := false, 0
	for {
		begun := time.Now()
		w, err := f.start(ctx, &f.cfg)
		if ctx.Err() != nil {
			if w != nil {
				w.stop(time.Duration(f.patience.Load()))
			}
			f.set(nil, context.Cause(ctx))
			return nil
		}
		if err != nil {
			failures++
			f.cfg.Died("start")
			f.cfg.Logger.Error("function did not start", "error", err, "attempt", failures)
			if !ready && (errors.Is(err, ErrStart) || failures >= firstTries) {
				if !errors.Is(err, ErrStart) {
					err = fmt.Errorf("%w (%d attempts): %w", ErrStart, failures, err)
				}
				err = fmt.Errorf("function %s, command %q: %w", f.cfg.Name, strings.Join(f.cfg.Command, " "), err)
				f.set(nil, err)
				return err
			}
		} else {
			if ready {
				f.cfg.Logger.Info("function runs again", "pid", w.cmd.Process.Pid)
			}
			ready, failures = true, 0
			f.set(w, nil)
			select {
			case <-ctx.Done():
				f.set(nil, context.Cause(ctx))
				w.Close()
				w.stop(time.Duration(f.patience.Load()))
				return nil
			case <-w.over:
			case <-w.exited:
			}
			f.set(nil, nil)
			w.end(200*time.Millisecond, killingFor(nil))
			w.Close()
			f.cfg.Died(f.diedOf(w))
			f.cfg.Logger.Warn("function ended, restarting", "how", w.ending(), "after", time.Since(begun).Round(time.Millisecond), "output", lastLine(w.tail.String()))
			// Callers read what it announced; the files of the one before have been read.
			retire(w)
			if w.Progress() > 0 || time.Since(begun) > 5*time.Second {
				wait = 0
			}
		}
		if wait > 0 {
			select {
			case <-time.After(wait):
			case <-ctx.Done():
			}
		}
		wait = min(max(2*wait, 50*time.Millisecond), 5*time.Second)
	}
}

const stopPatience = 5 * time.Second

// lastLine is for logs; the whole is evidence.
func lastLine(s string) string {
	s = strings.TrimSpace(s)
	return s[strings.LastIndexByte(s, '\n')+1:]
}

func (f *Function) diedOf(w *worker) string {
	if w.hung.Load() {
		return diedHang
	}
	if k := w.killed.Load(); k != nil {
		return k.label
	}
	if s, ok := w.state.Sys().(syscall.WaitStatus); ok && s.Signaled() {
		return "signal"
	}
	return "exit"
}

func (f *Function) start(ctx context.Context, cfg *Config) (*worker, error) {
	i, err := startInstance(ctx, cfg)
	if err != nil {
		return nil, err
	}
	// A socket that is there may still refuse for a moment.
	open, cancel := context.WithTimeout(ctx, cfg.ReadyTimeout)
	defer cancel()
	c, err := i.open(open, &f.strays)
	i.slow.Stop()
	if err != nil {
		words := i.lastWords()
		i.kill(killing{diedStop, "its stream could not be opened"})
		return nil, fmt.Errorf("it answers that it is ready, but its stream cannot be opened: %w%s", err, words)
	}
	w := &worker{instance: i, caller: c, over: make(chan struct{})}
	go f.watch(w) // ends with the process
	return w, nil
}

// watch ends a process that hangs.
func (f *Function) watch(w *worker) {
	tick := time.NewTicker(max(10*time.Millisecond, min(time.Second, f.cfg.Timeout/8)))
	defer tick.Stop()
	calls := w.inCode()
	panicking := w.panicking
	for {
		select {
		case <-w.exited:
			w.finish()
			return
		case <-w.over:
			return
		case <-tick.C:
			now := time.Now()
			if since := earliest(w.Oldest(), calls.oldest(now)); !since.IsZero() && now.Sub(since) > f.cfg.Timeout {
				f.cfg.Logger.Warn("function exceeded its processing timeout, process killed", "timeout", f.cfg.Timeout)
				w.hung.Store(true)
				w.dump(killing{diedHang, fmt.Sprintf("a call took longer than the processing timeout of %v", f.cfg.Timeout)})
				w.finish()
				return
			}
		case <-panicking:
			if f.endPanicked(w) {
				w.finish()
				return
			}
			panicking = nil
		}
	}
}

// earliest of two times, of which zero is none.
func earliest(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}

func (w *worker) finish() { w.once.Do(func() { close(w.over) }) }

func (f *Function) set(w *worker, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.current, f.failed = w, err
	close(f.changed)
	f.changed = make(chan struct{})
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
		if w != nil || err != nil {
			return w, err
		}
		select {
		case <-changed:
		case <-part.done():
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
	part.use(nil)
	defer part.queued()
	out, unsent, err := f.mapOnce(ctx, in, part)
	if len(unsent) == 0 {
		if err == nil && len(in) > 0 {
			f.observe(time.Since(begun) / time.Duration(len(in)))
		}
		return out, endError(ctx, err)
	}
	for len(unsent) > 0 && endError(ctx, err) == nil {
		if part.over() {
			for _, i := range unsent {
				out[i] = Outcome{Verdict: Unbegun}
			}
			break
		}
		again := make([]flow.Message, len(unsent))
		for k, i := range unsent {
			again[k] = in[i]
		}
		part.use(unsent)
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

// errUnusable marks errors after which there is no use in trying again.
type unusable struct{ error }

func (u unusable) Unwrap() error { return u.error }

func endError(ctx context.Context, err error) error {
	var u unusable
	if errors.As(err, &u) {
		return u.error
	}
	if ctx.Err() != nil && err != nil {
		return context.Cause(ctx)
	}
	return nil
}

func (f *Function) mapOnce(ctx context.Context, in []flow.Message, part *Part) ([]Outcome, []int, error) {
	w, err := f.workerUntil(ctx, part)
	if err != nil {
		return nil, allOf(in), unusable{err}
	}
	if w == nil {
		return make([]Outcome, len(in)), allOf(in), nil
	}
	out, unsent, err := w.Call(ctx, in, part)
	if err != nil && ctx.Err() == nil {
		failure := f.autopsy(ctx, w, err)
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

// autopsy waits for the end of a process whose stream broke, and says what is known of why.
func (f *Function) autopsy(ctx context.Context, w *worker, err error) *deadletter.Failure {
	w.end(200*time.Millisecond, killingFor(err))
	failure := &deadletter.Failure{Reason: deadletter.Crash, Error: "the process ended: " + w.ending(), Attempts: 1, Output: w.tail.String()}
	killed := w.killed.Load()
	if killed == nil {
		failure.ExitCode = w.state.ExitCode()
		if s, ok := w.state.Sys().(syscall.WaitStatus); ok && s.Signaled() {
			failure.Signal = s.Signal().String()
		}
	}
	var status *wire.Status
	var protocol *protocolError
	switch {
	case w.hung.Load():
		failure.Reason, failure.Error = deadletter.Hang, fmt.Sprintf("no answer within %v; the process was killed for it", f.cfg.Timeout)
		failure.Stack, failure.Output = w.tail.stacks(), ""
	case errors.As(err, &protocol):
		failure.Reason, failure.Error = deadletter.Protocol, protocol.Error()
	case errors.As(err, &status) && status.Code == codes.ResourceExhausted:
		failure.Reason, failure.Error = deadletter.Oversize, status.Error()
	case errors.As(err, &status) && strings.Contains(status.Message, "UDF_EXECUTION_ERROR"):
		failure.Reason, failure.Error, failure.Stack = deadletter.Error, status.Message, debugInfo(status.Details)
		if strings.Contains(failure.Stack, "panic") || strings.Contains(status.Message, "panic") {
			failure.Reason = deadletter.Panic
		}
	case killed != nil && killed.label == diedPanic:
		failure.Reason, failure.Error, failure.Stack = deadletter.Panic, lastLine(*w.panicked.Load()), w.tail.String()
	case killed != nil:
		k := killingFor(err)
		failure.Reason, failure.Error = k.reason(), k.why
	}
	return failure
}

// debugInfo finds the stack in an encoded google.rpc.Status: details (3) holds Any{type_url 1, value 2} of google.rpc.DebugInfo{stack_entries 1, detail 2}.
func debugInfo(status []byte) (stack string) {
	_ = fields(status, func(f protowire.Number, v []byte, _ uint64) error {
		if f != 3 {
			return nil
		}
		var kind string
		var value []byte
		_ = fields(v, func(f protowire.Number, v []byte, _ uint64) error {
			switch f {
			case 1:
				kind = string(v)
			case 2:
				value = v
			}
			return nil
		})
		if !strings.HasSuffix(kind, "google.rpc.DebugInfo") {
			return nil
		}
		return fields(value, func(f protowire.Number, v []byte, _ uint64) error {
			if f == 1 || f == 2 {
				stack += string(v)
			}
			return nil
		})
	})
	return stack
}

// Isolate gives suspects to the function again, each alone, in a process of its own beside the one that goes on with the rest. A message that ends
// that process twice is Broken; the others are innocent, and what was made of them is the outcome.
//
// Trying each alone finds a message that kills in three deaths whatever the size of the batch it came in; where that would take long, because the
// function is slow, groups are tried first and halved.
func (f *Function) Isolate(ctx context.Context, suspects []flow.Message) ([]Outcome, error) {
	f.isolating.Lock()
	defer f.isolating.Unlock()
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
		f.autopsy(ctx, w, err)
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
			failure = f.autopsy(ctx, w, err)
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

// isolatedWorker returns the process beside the main one, which lives until something kills it or the function is stopped.
func (f *Function) isolatedWorker(ctx context.Context) (*worker, error) {
	f.mu.Lock()
	w := f.isolated
	f.mu.Unlock()
	if w != nil {
		select {
		case <-w.over:
			f.stopIsolated()
		case <-w.exited:
			f.stopIsolated()
		default:
			return w, nil
		}
	}
	wait := 20 * time.Millisecond
	for {
		w, err := f.start(ctx, &f.cfg)
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
		w.kill(killing{diedStop, "it is of no more use"})
		w.Close()
	}
}

// NewSocketRoot makes a directory for Config.SocketRoot, and removes those of processes that are gone. Remove it at the end.
func NewSocketRoot() (string, error) {
	base := os.TempDir()
	old, _ := filepath.Glob(filepath.Join(base, "levada-*-*"))
	for _, dir := range old {
		pid, _, _ := strings.Cut(strings.TrimPrefix(filepath.Base(dir), "levada-"), "-")
		if n, err := strconv.Atoi(pid); err == nil && errors.Is(syscall.Kill(n, 0), syscall.ESRCH) {
			_ = os.RemoveAll(dir)
		}
	}
	return os.MkdirTemp(base, fmt.Sprintf("levada-%d-", os.Getpid()))
}
