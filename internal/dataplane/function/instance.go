package function

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

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/levada-io/levada/internal/dataplane/function/wire"
)

// instance is one running process of user code.
type instance struct {
	cfg    *Config
	dir    string // its sockets and files
	cmd    *exec.Cmd
	tail   tail
	exited chan struct{}
	state  *os.ProcessState // once exited is closed
	info   *serverInfo
	socket string
	killed atomic.Pointer[killing]
	// panicked is the line by which it told of a panic, if it did; panicking is closed then.
	panicked  atomic.Pointer[string]
	panicking chan struct{}
	survived  atomic.Bool            // it goes on all the same
	waitsFor  atomic.Pointer[string] // what keeps it from being ready
	slow      *time.Timer            // reports a slow start, until it is stopped
}

// ErrStart means that trying again will not help: the command cannot be run, or is not the kind of function it should be.
var ErrStart = errors.New("function cannot be started")

// startInstance starts the process and returns once it is ready. The directory is made for it and goes with it.
func startInstance(ctx context.Context, cfg *Config) (*instance, error) {
	dir, err := os.MkdirTemp(cfg.SocketRoot, "f")
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrStart, err)
	}
	i := &instance{cfg: cfg, dir: dir, exited: make(chan struct{}), panicking: make(chan struct{})}
	if err := i.exec(); err != nil {
		_ = os.RemoveAll(dir)
		return nil, err
	}
	i.slow = time.AfterFunc(slowStart, i.sayWaiting)
	ready, cancel := context.WithTimeoutCause(ctx, cfg.ReadyTimeout, errNotReady)
	defer cancel()
	if err := i.waitReady(ready); err != nil {
		i.slow.Stop()
		i.kill(killing{diedStop, "it was not ready"})
		return nil, err
	}
	return i, nil
}

// slowStart is after how long a function that is not ready is reported, once for each start.
const slowStart = 2 * time.Second

var errNotReady = errors.New("the time to become ready is over")

// sayWaiting reports what a start waits for.
func (i *instance) sayWaiting() {
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

func (i *instance) exec() error {
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
	if err := createAnnounceFile(filepath.Join(i.dir, announceFile)); err != nil {
		return fmt.Errorf("%w: %w", ErrStart, err)
	}
	if err := i.cfg.User.own(i.cfg.SocketRoot, i.dir); err != nil {
		return fmt.Errorf("%w: give its directory to user %d: %w", ErrStart, i.cfg.User.UID, err)
	}
	i.cmd, err = command(i.cfg, i.dir, append([]string{path}, i.cfg.Command[1:]...), func(socketDir string) []string {
		return append(append([]string(nil), i.cfg.Env...),
			"LEVADA_SOCKET_DIR="+socketDir, "LEVADA_ANNOUNCE_FILE="+filepath.Join(socketDir, announceFile),
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
func (i *instance) live(started chan<- error, stdout, stderr io.ReadCloser) {
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
	// What it started is gone with it, or has left its group; in that case it may keep the output open for ever.
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
func (i *instance) copyLines(r io.Reader, keep io.Writer) {
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
func (i *instance) waitReady(ctx context.Context) error {
	at := endpoints[i.cfg.Role]
	poll := time.NewTicker(5 * time.Millisecond)
	defer poll.Stop()
	waits := ""
	for {
		reason := fmt.Sprintf("it did not write %s%s", at.info, whereToListen())
		if i.info == nil {
			info, err := i.findInfo(at)
			if err != nil {
				return err
			}
			i.info = info
		}
		if i.info != nil {
			ready, why := i.askReady(ctx, at)
			if ctx.Err() == nil || waits == "" { // the end of the time is no reason
				reason = why
			} else {
				reason = waits
			}
			if ready {
				reason = "it is ready, but does not answer the handshake on " + filepath.Base(i.socket)
				i.waitsFor.Store(&reason)
				return nil
			}
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
			return fmt.Errorf("%w: it was not ready within %v: %s. Start the command by itself to see what it does; it must serve a %s with an SDK of Levada or Numaflow%s", ErrStart, i.cfg.ReadyTimeout, waits, at.kind, i.lastWords())
		}
	}
}

// askReady asks the server once, and returns why it is not ready.
func (i *instance) askReady(ctx context.Context, at endpoint) (ready bool, reason string) {
	if _, err := os.Stat(i.socket); err != nil {
		return false, "it wrote its server info, but there is no socket " + filepath.Base(i.socket)
	}
	call, cancel := context.WithTimeoutCause(ctx, time.Second, errors.New("no answer within 1s"))
	defer cancel()
	answer, err := wire.Call(call, i.socket, at.ready, nil, 1<<20)
	if err != nil {
		return false, fmt.Sprintf("%s on %s fails: %v", at.ready, filepath.Base(i.socket), err)
	}
	err = fields(answer, func(f protowire.Number, _ []byte, n uint64) error {
		ready = ready || f == 1 && n != 0
		return nil
	})
	if err != nil || !ready {
		return false, at.ready + " answers that it is not ready"
	}
	return true, ""
}

// endedEarly is the error for a process that ended before it was ready. Where a second try cannot help, it says so.
func (i *instance) endedEarly() error {
	if b, err := os.ReadFile(filepath.Join(i.dir, enterErrorFile)); err == nil && len(b) > 0 {
		return fmt.Errorf("%w: %s", ErrStart, b)
	}
	words := i.lastWords()
	err := fmt.Errorf("it ended before it was ready: %s%s", i.ending(), words)
	if strings.Contains(words, "ermission denied") || strings.Contains(words, "ead-only file system") {
		err = fmt.Errorf("%w%s", err, privilegeHint())
	}
	// What shells and the dynamic linker say when a program is not found, not executable or lacks a library.
	if code := i.state.ExitCode(); code == 126 || code == 127 {
		err = fmt.Errorf("%w: the command could not be run: %w", ErrStart, err)
	}
	return err
}

func (i *instance) findInfo(at endpoint) (*serverInfo, error) {
	info, err := readServerInfo(filepath.Join(i.dir, at.info))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrStart, err)
	}
	if info == nil {
		for role, other := range endpoints {
			if other.info == at.info {
				continue
			}
			if found, _ := readServerInfo(filepath.Join(i.dir, other.info)); found != nil {
				return nil, fmt.Errorf("%w: it is a %s (it serves as %s), and a %s is needed here", ErrStart, other.kind, role, at.kind)
			}
		}
		return nil, nil
	}
	if err := info.check(at.kind); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrStart, err)
	}
	socket := at.socket
	if i.cfg.Role == UDF {
		mode := info.Metadata["MAP_MODE"]
		if mode == "" {
			mode = modeUnary
		}
		if socket = modeSocket[mode]; socket == "" {
			return nil, fmt.Errorf("%w: its map mode is %q, expected %s, %s or %s", ErrStart, mode, modeUnary, modeStream, modeBatch)
		}
	}
	i.socket = filepath.Join(i.dir, socket)
	return info, nil
}

// open opens the way to call it that both sides know best.
func (i *instance) open(ctx context.Context, strays *atomic.Uint64) (caller, error) {
	limit, size := i.cfg.Concurrency, i.cfg.MaxMessage
	switch i.cfg.Role {
	case Transformer:
		return openPipe(ctx, i.socket, &transform, limit, size, strays, i.announced)
	case UDSink, FallbackSink, OnSuccessSink:
		b, err := openBatch(ctx, i.socket, &sinkBatch, i.cfg.BatchSize, size, i.cfg.Timeout, strays)
		if err != nil {
			return nil, err
		}
		return sinkPipe{b}, nil
	case UDSource:
		return openSource(ctx, i.socket, size)
	}
	switch i.info.Metadata["MAP_MODE"] {
	case modeBatch:
		return openBatch(ctx, i.socket, &batchMap, i.cfg.BatchSize, size, i.cfg.Timeout, strays)
	case modeStream:
		p, err := openPipe(ctx, i.socket, &streamMap, limit, size, strays, i.announced)
		if err != nil {
			return nil, err
		}
		p.mu.Lock()
		defer p.mu.Unlock()
		p.panicked = func() bool { return i.panicked.Load() != nil && !i.survived.Load() }
		return p, nil
	}
	if i.info.Metadata["LEVADA_BLOCKS"] == "1" && !i.cfg.NoBlocks {
		return openBlocks(ctx, i.socket, limit, size, strays, i.announced)
	}
	return openPipe(ctx, i.socket, &unaryMap, limit, size, strays, i.announced)
}

// announced makes sure that the process is gone, and returns what it had in user code.
func (i *instance) announced(ctx context.Context, err error) map[uint64]bool {
	i.end(200*time.Millisecond, killingFor(err))
	select {
	case <-i.exited:
	case <-ctx.Done():
		return nil
	}
	return readAnnounceFile(filepath.Join(i.dir, announceFile))
}

// end ends a process that is of no more use: it gets patience to end by itself, and then it is killed, for the given reason.
func (i *instance) end(patience time.Duration, why killing) {
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

// kill ends it at once and removes its files.
func (i *instance) kill(why killing) {
	i.end(0, why)
	_ = os.RemoveAll(i.dir)
}

// stop asks it to end, and kills it if it has not after patience.
func (i *instance) stop(patience time.Duration) {
	i.signal(syscall.SIGTERM)
	i.end(patience, killing{diedStop, fmt.Sprintf("it did not end within %v of SIGTERM", patience)})
	if k := i.killed.Load(); k != nil && k.label == diedStop {
		i.cfg.Logger.Warn("function did not end after SIGTERM, process killed", "waited", patience)
	}
	_ = os.RemoveAll(i.dir)
}

// dump asks for a stack (Go programs write it to standard error and end), for the evidence, and then ends it.
func (i *instance) dump(why killing) {
	i.note(why)
	i.signal(syscall.SIGQUIT)
	i.end(2*time.Second, why)
}

// signal reaches what the process started as well, where it is a shell or a launcher, say: each function is the head of a process group.
func (i *instance) signal(s syscall.Signal) {
	select {
	case <-i.exited:
	default:
		_ = syscall.Kill(-i.cmd.Process.Pid, s)
	}
}

// lastWords is the end of its standard error, for an error message.
func (i *instance) lastWords() string {
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
	b  []byte
}

const (
	tailSize = 4 << 10
	dumpSize = 256 << 10
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

func logger(l *slog.Logger) *slog.Logger {
	if l == nil {
		return slog.New(slog.DiscardHandler)
	}
	return l
}
