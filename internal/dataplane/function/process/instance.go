// Package process starts user code as a child process with its own socket directory and, where the system allows it, mount namespace; ends it; and says
// afterwards how it ended.
//
// A process has one Instance from Start until it has exited. Kill takes the reason, and the first reason counts: a signal that we sent says
// nothing of the function.
package process

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/levada-io/levada/internal/dataplane/function/client"
)

// Instance is one running process of user code. The goroutine of live owns the process: it alone starts it and waits for it. All others signal it and wait for exited.
type Instance struct {
	cfg *Config
	// dir has its sockets and files. It is removed by Kill, Stop or Remove and not when the process exits: what it announced is read afterwards.
	dir  string
	cmd  *exec.Cmd // started before Start returns it
	tail tail      // the end of its standard error
	// exited is closed once the process has exited and its output was read to the end, or a second later if something else keeps its output open.
	exited chan struct{}
	state  *os.ProcessState // written before exited is closed, read after it
	peer   client.Peer      // used by Start and Open, one after the other
	killed atomic.Pointer[Kill]
	// panicked is the line by which it reported a panic, if it did; panicking is closed then, once.
	panicked  atomic.Pointer[string]
	panicking chan struct{}
	survived  atomic.Bool            // it goes on answering: what it printed only looked like the end by a panic
	waitsFor  atomic.Pointer[string] // what keeps it from being ready
	slow      *time.Timer            // reports a slow start, until it is stopped
}

// ErrStart means that trying again will not help: the command cannot be run, or is not the kind of function it should be.
var ErrStart = errors.New("function cannot be started")

// Config says what to run.
type Config struct {
	Role    client.Role
	Command []string
	// Env is the whole environment, but for what names sockets; see Inherited. Dir is the working directory.
	Env []string
	Dir string
	// Mounts are its volumes. They need CanMount.
	Mounts []Mount
	// User is whom it runs as; nil for the user of this process.
	User *User
	// SocketRoot is where the process gets its socket directory. The path must be short: Unix sockets allow 107 bytes.
	SocketRoot string
	// Concurrency is passed to the process in its environment.
	Concurrency int
	// ReadyTimeout is how long the process may take to become ready.
	ReadyTimeout time.Duration
	// Output gets what the process prints, by the line. It is called concurrently; nil: it is not wanted.
	Output func(line string)
	Logger *slog.Logger
}

// Start starts the process and returns once it is ready. The directory is made for it and goes with it.
func Start(ctx context.Context, cfg *Config) (*Instance, error) {
	dir, err := os.MkdirTemp(cfg.SocketRoot, "f")
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrStart, err)
	}
	i := &Instance{cfg: cfg, dir: dir, peer: client.Peer{Role: cfg.Role, Dir: dir}, exited: make(chan struct{}), panicking: make(chan struct{})}
	if err := i.exec(); err != nil {
		_ = os.RemoveAll(dir)
		return nil, err
	}
	i.slow = time.AfterFunc(slowStart, i.sayWaiting)
	ready, cancel := context.WithTimeoutCause(ctx, cfg.ReadyTimeout, errNotReady)
	defer cancel()
	if err := i.waitReady(ready); err != nil {
		i.slow.Stop()
		i.Kill(Kill{LabelStop, "it was not ready"})
		return nil, err
	}
	return i, nil
}

// slowStart is after how long a function that is not ready is reported, once for each start.
const slowStart = 2 * time.Second

var errNotReady = errors.New("the time to become ready is over")

// sayWaiting reports what a start waits for.
func (i *Instance) sayWaiting() {
	reason := "it has not started"
	if r := i.waitsFor.Load(); r != nil {
		reason = *r
	}
	i.cfg.Logger.Warn("function is not ready, waiting", "command", strings.Join(i.cfg.Command, " "), "reason", reason, "at most", i.cfg.ReadyTimeout, "stderr", lastLines(i.tail.String(), 5))
}

// lastLines are the last n lines of s.
func lastLines(s string, n int) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}

func (i *Instance) exec() error {
	if len(i.cfg.Command) == 0 {
		return fmt.Errorf("%w: no command", ErrStart)
	}
	path, err := exec.LookPath(i.cfg.Command[0])
	if err == nil {
		path, err = filepath.Abs(path)
	}
	if err != nil {
		return fmt.Errorf("%w: %w", ErrStart, err)
	}
	if err := client.CreateAnnounceFile(filepath.Join(i.dir, client.AnnounceFile)); err != nil {
		return fmt.Errorf("%w: %w", ErrStart, err)
	}
	if err := i.cfg.User.own(i.cfg.SocketRoot, i.dir); err != nil {
		return fmt.Errorf("%w: give its directory to user %d: %w", ErrStart, i.cfg.User.UID, err)
	}
	i.cmd, err = command(i.cfg, i.dir, append([]string{path}, i.cfg.Command[1:]...), func(socketDir string) []string {
		return append(append([]string(nil), i.cfg.Env...),
			"LEVADA_SOCKET_DIR="+socketDir, "LEVADA_ANNOUNCE_FILE="+filepath.Join(socketDir, client.AnnounceFile),
			fmt.Sprintf("LEVADA_CONCURRENCY=%d", i.cfg.Concurrency), "NUMAFLOW_UD_CONTAINER_TYPE="+string(i.cfg.Role))
	})
	if err != nil {
		return err
	}
	i.cmd.Dir = i.cfg.Dir
	stdout, err1 := i.cmd.StdoutPipe()
	stderr, err2 := i.cmd.StderrPipe()
	if err := errors.Join(err1, err2); err != nil {
		return err
	}
	started := make(chan error)
	go i.live(started, stdout, stderr) // it is its own owner: exited is closed at its end, and kill waits for that
	return <-started
}

// live starts the process and waits for its end, on one thread: the kernel kills the process when the thread that started it ends, and
// with it, when we do.
func (i *Instance) live(started chan<- error, stdout, stderr io.ReadCloser) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := i.cmd.Start(); err != nil {
		started <- fmt.Errorf("%w: %w", ErrStart, err)
		return
	}
	pid := i.cmd.Process.Pid
	started <- nil
	var output sync.WaitGroup
	output.Go(func() { i.copyLines(stdout, io.Discard) })
	output.Go(func() { i.copyLines(stderr, &i.tail) })
	i.state, _ = i.cmd.Process.Wait() // not cmd.Wait, which waits for all that have its output open
	_ = syscall.Kill(-pid, syscall.SIGKILL)
	// What it started is gone with it, or has left its group; in that case it may keep the output open indefinitely.
	late := time.AfterFunc(time.Second, func() {
		_ = stdout.Close()
		_ = stderr.Close()
	})
	output.Wait()
	late.Stop()
	_ = stdout.Close()
	_ = stderr.Close()
	close(i.exited)
}

// copyLines passes on what the process writes, and keeps its end.
func (i *Instance) copyLines(r io.Reader, keep io.Writer) {
	lines := bufio.NewReaderSize(r, 16<<10)
	for {
		line, err := lines.ReadSlice('\n')
		if len(line) > 0 {
			_, _ = keep.Write(line)
			if keep == io.Writer(&i.tail) {
				i.sawLine(line)
			}
			if i.cfg.Output != nil {
				i.cfg.Output(strings.TrimRight(string(line), "\r\n"))
			}
		}
		if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
			return
		}
	}
}

// waitReady waits for the server info, checks it, and waits until the server says that it is ready.
func (i *Instance) waitReady(ctx context.Context) error {
	poll := time.NewTicker(5 * time.Millisecond)
	defer poll.Stop()
	waits := ""
	for {
		ready, reason, err := i.askReady(ctx)
		if err != nil {
			return err
		}
		if ctx.Err() != nil && waits != "" { // the end of the time is no reason
			reason = waits
		}
		if ready {
			reason = "it is ready, but does not answer the handshake on " + i.peer.SocketName()
			i.waitsFor.Store(&reason)
			return nil
		}
		if reason != waits {
			waits = reason
			i.waitsFor.Store(&reason)
		}
		select {
		case <-poll.C:
		case <-i.exited:
			return i.endedEarly()
		case <-ctx.Done():
			if !errors.Is(context.Cause(ctx), errNotReady) {
				return context.Cause(ctx)
			}
			return fmt.Errorf("%w: it was not ready within %v: %s. Start the command by itself to see what it does; it must serve a %s with an SDK of Levada or Numaflow%s", ErrStart, i.cfg.ReadyTimeout, waits, i.peer.Kind(), i.lastWords())
		}
	}
}

// askReady looks for the server and asks it once. An error means that it will never do.
func (i *Instance) askReady(ctx context.Context) (ready bool, reason string, err error) {
	if !i.peer.Found() {
		found, err := i.peer.Find()
		if err != nil {
			return false, "", fmt.Errorf("%w: %w", ErrStart, err)
		}
		if !found {
			return false, fmt.Sprintf("it did not write %s%s", i.peer.InfoFile(), whereToListen()), nil
		}
	}
	ready, reason = i.peer.AskReady(ctx)
	return ready, reason, nil
}

// endedEarly is the error for a process that ended before it was ready. It wraps ErrStart where a second try cannot help.
func (i *Instance) endedEarly() error {
	if b, err := os.ReadFile(filepath.Join(i.dir, enterErrorFile)); err == nil && len(b) > 0 {
		return fmt.Errorf("%w: %s", ErrStart, b)
	}
	words := i.lastWords()
	err := fmt.Errorf("it ended before it was ready: %s%s", i.Ending(), words)
	if strings.Contains(words, "ermission denied") || strings.Contains(words, "ead-only file system") {
		err = fmt.Errorf("%w%s", err, privilegeHint())
	}
	// What shells and the dynamic linker say when a program is not found, not executable or lacks a library.
	if code := i.state.ExitCode(); code == 126 || code == 127 {
		err = fmt.Errorf("%w: the command could not be run: %w", ErrStart, err)
	}
	return err
}

// Open opens the way to call it. strays counts unexpected responses.
func (i *Instance) Open(ctx context.Context, limits client.Limits, strays *atomic.Uint64) (client.Caller, error) {
	defer i.slow.Stop()
	c, err := i.peer.Open(ctx, limits, strays, client.Signs{
		Announced: i.announced,
		Panicked:  func() bool { return i.panicked.Load() != nil && !i.survived.Load() },
	})
	if err != nil {
		words := i.lastWords()
		i.Kill(Kill{LabelStop, "its stream could not be opened"})
		return nil, fmt.Errorf("it answers that it is ready, but its stream cannot be opened: %w%s", err, words)
	}
	return c, nil
}

// PID is its process id.
func (i *Instance) PID() int { return i.cmd.Process.Pid }

// Exited is closed once the process has ended.
func (i *Instance) Exited() <-chan struct{} { return i.exited }

// LastLine is the last line of its standard error, for logs; the whole is evidence.
func (i *Instance) LastLine() string { return lastLine(i.tail.String()) }

// Remove removes its files. What it announced is in one of them.
func (i *Instance) Remove() { _ = os.RemoveAll(i.dir) }

func lastLine(s string) string {
	s = strings.TrimSpace(s)
	return s[strings.LastIndexByte(s, '\n')+1:]
}

// announced makes sure that the process is gone, and returns what it had in user code.
func (i *Instance) announced(ctx context.Context, err error) map[uint64]bool {
	i.End(200*time.Millisecond, KillFor(err))
	select {
	case <-i.exited:
	case <-ctx.Done():
		return nil
	}
	return client.ReadAnnounceFile(filepath.Join(i.dir, client.AnnounceFile))
}

// End ends a process that is of no more use: it gets patience to end by itself, and then it is killed, for the given reason.
func (i *Instance) End(patience time.Duration, why Kill) {
	t := time.NewTimer(patience)
	defer t.Stop()
	select {
	case <-i.exited:
	case <-t.C:
		i.note(why)
		i.signal(syscall.SIGKILL)
		<-i.exited
	}
}

// Kill ends it at once and removes its files.
func (i *Instance) Kill(why Kill) {
	i.End(0, why)
	_ = os.RemoveAll(i.dir)
}

// Stop asks it to end, and kills it if it has not after patience.
func (i *Instance) Stop(patience time.Duration) {
	i.signal(syscall.SIGTERM)
	i.End(patience, Kill{LabelStop, fmt.Sprintf("it did not end within %v of SIGTERM", patience)})
	if k := i.killed.Load(); k != nil && k.Label == LabelStop {
		i.cfg.Logger.Warn("function did not end after SIGTERM, process killed", "waited", patience)
	}
	_ = os.RemoveAll(i.dir)
}

// Dump asks for a stack (Go programs write it to standard error and end), for the evidence, and then ends it.
func (i *Instance) Dump(why Kill) {
	i.note(why)
	i.signal(syscall.SIGQUIT)
	i.End(2*time.Second, why)
}

// signal reaches what the process started as well, where it is a shell or a launcher, say: each function is the head of a process group.
func (i *Instance) signal(s syscall.Signal) {
	select {
	case <-i.exited:
	default:
		_ = syscall.Kill(-i.cmd.Process.Pid, s)
	}
}

// lastWords is the end of its standard error, for an error message.
func (i *Instance) lastWords() string {
	if t := i.tail.String(); t != "" {
		return ". Its standard error ends with:\n" + t
	}
	return ""
}

func describeExit(s *os.ProcessState) string {
	if s == nil {
		return "still running"
	}
	if w, ok := s.Sys().(syscall.WaitStatus); ok && w.Signaled() {
		return "ended by the signal " + strconv.Quote(w.Signal().String())
	}
	return fmt.Sprintf("exit code %d", s.ExitCode())
}

// tail keeps the last bytes written to it: enough for the stacks of all goroutines of a program that hangs.
type tail struct {
	mu sync.Mutex
	b  []byte // at most twice dumpSize, so that it is moved once for each dumpSize that is written
}

const (
	tailSize = 4 << 10   // in errors and dead letters
	dumpSize = 256 << 10 // in memory, for stacks
)

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.b = append(t.b, p...)
	if len(t.b) > 2*dumpSize {
		t.b = append(t.b[:0], t.b[len(t.b)-dumpSize:]...)
	}
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	b := t.b
	if len(b) > tailSize {
		b = b[len(b)-tailSize:]
	}
	return strings.ToValidUTF8(string(bytes.TrimSpace(b)), "?")
}

// stacks finds in a dump of a Go program the goroutines that are in the user's package main, which hang; without any it is the end of the dump.
func (t *tail) stacks() string {
	t.mu.Lock()
	dump := strings.ToValidUTF8(string(t.b), "?")
	t.mu.Unlock()
	var found []string
	for _, g := range strings.Split(dump, "\n\n") {
		if strings.HasPrefix(g, "goroutine ") && strings.Contains(g, "\nmain.") && !strings.Contains(g, "\nmain.main(") {
			found = append(found, g)
		}
	}
	if len(found) == 0 {
		return t.String()
	}
	return strings.Join(found, "\n\n")
}
