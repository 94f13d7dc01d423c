//go:build unix

package testserver

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// StartTimeout bounds one start. RabbitMQ needs 5 s on an idle machine, and tests are not alone on theirs.
const StartTimeout = 2 * time.Minute

// Server is a server that belongs to one test, and ends with it. Its methods fail the test when the server does not do what it
// should; so they are called from the test's own goroutine.
type Server struct {
	t testing.TB
	n *node
}

// DSN is where clients find the server: for Postgres the URL of an empty database and its superuser, for RabbitMQ an AMQP URL. It stays the
// same across restarts.
func (s *Server) DSN() string { return s.n.dsn }

// Dir is the server's directory. It stays the same across restarts.
func (s *Server) Dir() string { return s.n.dir }

// Stop stops the server and waits until it is gone.
func (s *Server) Stop(how How) { s.t.Helper(); s.must(s.n.stop(how)) }

// Kill is Stop(Killed).
func (s *Server) Kill() { s.t.Helper(); s.Stop(Killed) }

// Start starts a stopped server, with the data it had, and waits until it takes connections.
func (s *Server) Start() { s.t.Helper(); s.must(s.n.start()) }

// Restart is Stop and Start.
func (s *Server) Restart(how How) { s.t.Helper(); s.Stop(how); s.Start() }

// Freeze stops the server's processes without ending them: connections stay, and nobody answers.
func (s *Server) Freeze() { s.t.Helper(); s.must(s.n.signalAll(syscall.SIGSTOP)) }

// Thaw ends Freeze.
func (s *Server) Thaw() { s.t.Helper(); s.must(s.n.signalAll(syscall.SIGCONT)) }

func (s *Server) must(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatalf("test server: %v", err)
	}
}

// kind is how one sort of server is run.
type kind struct {
	name  string
	owner []string // users to run it as when the tests run as root, the first that exists; none: as we are
	// find returns the server's program.
	find    func() (string, error)
	install string // Debian's package
	// prepare fills the node's directory, and sets its dsn and processes. It is called with new ports until a start succeeds.
	prepare func(n *node, program string) error
	ready   func(ctx context.Context, n *node) error
	// signals end the server, by How.
	signals [3]syscall.Signal
}

// process is one program of a node. The last one is the server itself, the others help it.
type process struct {
	name string
	argv []string
	env  []string
	last string // the signal that ends it without leaving anything behind, by its name
}

// node is a server, running or not.
type node struct {
	kind      *kind
	dir       string
	dsn       string
	owner     *syscall.Credential // nil: as we are
	processes []process
	running   []*child
	watchdog  *exec.Cmd
	leash     io.WriteCloser // the watchdog acts when it is closed
}

// child is a process that we have started and may not have reaped yet; until then its number is not given to another.
type child struct {
	pid    int
	reaped bool
}

// shared holds the servers that a test binary has one of.
type shared struct {
	sync.Mutex
	n    *node
	err  error
	done bool
}

// get starts the server at the first call. Nobody stops it: the watchdog does when the test binary has ended.
func (s *shared) get(k *kind) (*node, error) {
	s.Lock()
	defer s.Unlock()
	if !s.done {
		s.n, s.err = newNode(k)
		s.done = true
	}
	return s.n, s.err
}

func own(t testing.TB, k *kind) *Server {
	t.Helper()
	n, err := newNode(k)
	require(t, k, err)
	t.Cleanup(func() {
		if err := n.close(); err != nil {
			t.Errorf("test server: %v", err)
		}
	})
	return &Server{t: t, n: n}
}

// errMissing: there is no such program, and it cannot be installed.
var errMissing = errors.New("is not installed")

// require ends the test if there is no server. A machine without one is no reason to fail, but for the one whose verdict counts.
func require(t testing.TB, k *kind, err error) {
	t.Helper()
	switch {
	case err == nil:
	case errors.Is(err, errMissing) && os.Getenv("CI") != "true":
		t.Skipf("%s %v: install Debian's package %s, or put the program into PATH", k.name, err, k.install)
	default:
		t.Fatalf("%s: %v", k.name, err)
	}
}

func newNode(k *kind) (*node, error) {
	program, err := k.find()
	if errors.Is(err, errMissing) {
		if err = install(k.install); err == nil {
			program, err = k.find()
		}
	}
	if err != nil {
		return nil, err
	}
	n := &node{kind: k}
	if os.Getuid() == 0 && len(k.owner) > 0 {
		if n.owner, err = credential(k.owner); err != nil {
			return nil, err
		}
	}
	if n.dir, err = n.makeDir(); err != nil {
		return nil, err
	}
	if err := n.guard(); err != nil {
		return nil, errors.Join(err, os.RemoveAll(n.dir))
	}
	for try := 1; ; try++ {
		if err = k.prepare(n, program); err == nil {
			if err = n.start(); err == nil {
				return n, nil
			}
		}
		if try == 3 || !strings.Contains(err.Error(), "in use") { // by somebody who was given the same port
			return nil, errors.Join(err, n.close())
		}
	}
}

func credential(names []string) (*syscall.Credential, error) {
	for _, name := range names {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, err := strconv.ParseUint(u.Uid, 10, 32)
		if err != nil {
			return nil, fmt.Errorf("user %s: %w", name, err)
		}
		gid, err := strconv.ParseUint(u.Gid, 10, 32)
		if err != nil {
			return nil, fmt.Errorf("user %s: %w", name, err)
		}
		return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, nil
	}
	return nil, fmt.Errorf("the server does not run as root, and there is no user %s to run it as", strings.Join(names, " or "))
}

// makeDir makes the node's directory where its owner can reach it: a temporary directory of root's own may be closed to others.
func (n *node) makeDir() (string, error) {
	base := os.TempDir()
	if n.owner != nil && !open(base) {
		base = "/tmp"
	}
	dir, err := os.MkdirTemp(base, "levada-test-")
	if err != nil {
		return "", err
	}
	return dir, n.give(dir)
}

// open reports whether everybody may pass through the directory and those above it.
func open(dir string) bool {
	for {
		info, err := os.Stat(dir)
		if err != nil || info.Mode().Perm()&0o001 == 0 {
			return false
		}
		if filepath.Dir(dir) == dir {
			return true
		}
		dir = filepath.Dir(dir)
	}
}

// give makes the server's user the owner of a file.
func (n *node) give(path string) error {
	if n.owner == nil {
		return nil
	}
	return os.Lchown(path, int(n.owner.Uid), int(n.owner.Gid))
}

// write makes a file in the node's directory.
func (n *node) write(name, content string, mode os.FileMode) error {
	path := filepath.Join(n.dir, name)
	if err := os.WriteFile(path, []byte(content), mode); err != nil {
		return err
	}
	return n.give(path)
}

// watch waits until its input ends, which it does when the test binary does. Then it ends what runs and removes the directory.
// A line on its input means that there is nothing to do any more. A server may have been frozen together with the processes that it had started: they can
// neither end nor notice that it has ended before they continue.
const watch = `
read -r line && exit 0
family() { # prints the process $1 and those that it has started
	echo "$1"
	for stat in /proc/[0-9]*/stat; do
		read -r line <"$stat" || continue
		pid=${line%% *} rest=${line##*) }
		rest=${rest#* }
		[ "${rest%% *}" = "$1" ] && echo "$pid"
	done
}
for pause in 0.1 0.2 0.5 1 1 1 1 1; do
	alive=
	for f in "$1"/*.pid; do
		[ -e "$f" ] && read -r signal pid <"$f" && kill -s "$signal" "$pid" && kill -s CONT $(family "$pid") && alive=yes
	done 2>/dev/null
	[ "$alive" ] || break
	sleep $pause
done
for f in "$1"/*.pid; do
	[ -e "$f" ] && read -r signal pid <"$f" && kill -s KILL $(family "$pid")
done 2>/dev/null
rm -rf "$1"
`

// guard starts the watchdog. It has a session of its own, so that what ends the tests' process group does not end it.
func (n *node) guard() error {
	n.watchdog = exec.Command("/bin/sh", "-c", watch, "watchdog", n.dir)
	n.watchdog.Dir = "/"
	n.watchdog.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	leash, err := n.watchdog.StdinPipe()
	if err != nil {
		return err
	}
	n.leash = leash
	return n.watchdog.Start()
}

// launch leaves the signal and the number of the process for the watchdog before there is anything to end.
const launch = `echo "$1 $$" >"$2" && shift 2 && exec "$@"`

func (n *node) pidFile(p process) string { return filepath.Join(n.dir, p.name+".pid") }

func (n *node) logFile() string { return filepath.Join(n.dir, "output.log") }

func (n *node) command(argv, env []string) *exec.Cmd {
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Dir = n.dir
	cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + n.dir, "LC_ALL=C", "TZ=UTC"}, env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Credential: n.owner}
	return cmd
}

func (n *node) start() error {
	if len(n.running) > 0 {
		return fmt.Errorf("%s runs already", n.kind.name)
	}
	deadline := time.Now().Add(StartTimeout)
	for {
		err := n.startOnce(deadline)
		if err == nil {
			return nil
		}
		// After a kill the processes that the server had started may need a moment to notice.
		if !strings.Contains(err.Error(), "shared memory block") || time.Now().After(deadline) {
			return err
		}
		time.Sleep(100 * time.Millisecond)
	}
}

func (n *node) startOnce(deadline time.Time) error {
	out, err := os.OpenFile(n.logFile(), os.O_CREATE|os.O_WRONLY|os.O_TRUNC|os.O_APPEND, 0o644) // append: processes of a killed server may still write
	if err != nil {
		return err
	}
	defer func() { _ = out.Close() }()
	for _, p := range n.processes {
		cmd := n.command(append([]string{"/bin/sh", "-c", launch, "sh", p.last, n.pidFile(p)}, p.argv...), p.env)
		cmd.Stdout, cmd.Stderr = out, out
		if err := cmd.Start(); err != nil {
			return errors.Join(err, n.stop(Killed))
		}
		n.running = append(n.running, &child{pid: cmd.Process.Pid})
		if err := cmd.Process.Release(); err != nil {
			return errors.Join(err, n.stop(Killed))
		}
	}
	for {
		ctx, cancel := context.WithDeadline(context.Background(), deadline)
		err := n.kind.ready(ctx, n)
		cancel()
		if err == nil {
			return nil
		}
		if gone := n.running[len(n.running)-1].gone(); gone || time.Now().After(deadline) {
			said, _ := os.ReadFile(n.logFile())
			if len(said) > 4000 {
				said = said[len(said)-4000:]
			}
			what := fmt.Sprintf("was not ready within %v (%v)", StartTimeout, err)
			if gone {
				what = "ended at its start"
			}
			return errors.Join(fmt.Errorf("%s %s; stderr:\n%s", n.kind.name, what, said), n.stop(Killed))
		}
		time.Sleep(30 * time.Millisecond)
	}
}

// gone reports whether the process has ended. It asks, rather than wait in a goroutine, which tests would take for a leak.
func (c *child) gone() bool {
	if !c.reaped {
		pid, err := syscall.Wait4(c.pid, nil, syscall.WNOHANG, nil)
		c.reaped = pid == c.pid || errors.Is(err, syscall.ECHILD)
	}
	return c.reaped
}

// signal does nothing when the process is gone.
func (c *child) signal(s syscall.Signal) error {
	if c.gone() {
		return nil
	}
	return syscall.Kill(c.pid, s)
}

func (n *node) stop(how How) error {
	if len(n.running) == 0 {
		return nil
	}
	if err := n.signalAll(syscall.SIGCONT); err != nil { // it may be frozen
		return err
	}
	last := len(n.running) - 1
	for i := last; i >= 0; i-- { // helpers last
		c, signal := n.running[i], syscall.SIGKILL
		if i == last {
			signal = n.kind.signals[how]
		}
		if err := c.signal(signal); err != nil {
			return err
		}
		for patience := time.Now().Add(30 * time.Second); !c.gone(); time.Sleep(5 * time.Millisecond) {
			if time.Now().After(patience) && signal != syscall.SIGKILL {
				return fmt.Errorf("%s did not end within 30 s after %v", n.kind.name, signal)
			}
		}
	}
	n.running = nil
	for _, p := range n.processes {
		if err := os.Remove(n.pidFile(p)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return nil
}

// signalAll reaches the server and the processes that it has started.
func (n *node) signalAll(signal syscall.Signal) error {
	for _, c := range n.running {
		if err := c.signal(signal); err != nil {
			return err
		}
		for _, pid := range children(c.pid) {
			if err := syscall.Kill(pid, signal); err != nil && !errors.Is(err, syscall.ESRCH) {
				return err
			}
		}
	}
	return nil
}

// children are the processes that the process has started itself; none where there is no /proc.
func children(pid int) (found []int) {
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, stat := range stats {
		line, err := os.ReadFile(stat)
		if err != nil {
			continue // it has ended
		}
		_, rest, _ := strings.Cut(string(line), ") ")
		fields := strings.Fields(rest) // state, parent, ...
		if len(fields) < 2 || fields[1] != strconv.Itoa(pid) {
			continue
		}
		if number, err := strconv.Atoi(filepath.Base(filepath.Dir(stat))); err == nil {
			found = append(found, number)
		}
	}
	return found
}

// close ends the server and removes all that it had.
func (n *node) close() error {
	err := n.stop(Immediate)
	if err != nil {
		if killed := n.stop(Killed); killed != nil { // the watchdog may do better
			return errors.Join(err, killed, n.leash.Close(), n.watchdog.Wait())
		}
	}
	var removed error
	for range 50 { // what the server had started may still be writing
		if removed = os.RemoveAll(n.dir); removed == nil {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	_, _ = io.WriteString(n.leash, "done\n")
	return errors.Join(err, removed, n.leash.Close(), n.watchdog.Wait())
}
