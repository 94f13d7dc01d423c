package function

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/levada-io/levada/internal/dataplane/deadletter"
	"github.com/levada-io/levada/internal/dataplane/function/client"
	"github.com/levada-io/levada/internal/dataplane/function/process"
)

// attachment is user code that another program started and restarts: a container beside this one, or a program in a debugger. It is one connection to
// the server in a socket directory. Three things differ from a process of ours. It is not known how the server exits, only how its stream ends. It cannot
// be killed: a server that hangs loses its connection. And there is no second one to try suspects in: see Function.exclusive.
type attachment struct {
	cfg  *Config
	peer client.Peer

	// lost is closed when the connection is of no more use. Only end closes it, once.
	lost chan struct{}
	once sync.Once
	// why is the reason for which this program ended the connection; nil if the server did.
	why    atomic.Pointer[process.Kill]
	caller client.Caller // set by Open, before others know the attachment
}

// labelDisconnect is the reason in metrics for a server that ended the connection.
const labelDisconnect = "disconnect"

const (
	maxSocketPath = 107 // what a sockaddr_un holds

	attachPoll = 20 * time.Millisecond // while a server is expected
	attachIdle = 250 * time.Millisecond
	attachLook = time.Second // how often to look whether an idle server still listens
	// slowAttach is after how long a server that is not there is reported, once for each time that it is missing.
	slowAttach = 2 * time.Second
)

// attach waits until a server is in the directory and can be called. It returns an error only if ctx ends.
func (f *Function) attach(ctx context.Context) (*worker, error) {
	reported, begun := "", time.Now()
	for {
		a := &attachment{cfg: &f.cfg, peer: client.Peer{Role: f.cfg.Role, Dir: f.cfg.Attach}, lost: make(chan struct{})}
		w, reason, unfit := f.tryAttach(ctx, a)
		if ctx.Err() != nil {
			if w != nil {
				w.Close()
			}
			return nil, context.Cause(ctx)
		}
		if w != nil {
			return w, nil
		}
		switch waited := time.Since(begun); {
		case unfit && reported != reason:
			f.cfg.Died("start")
			f.cfg.Logger.Error("function cannot be used, waiting for another one", "directory", f.cfg.Attach, "reason", reason)
			reported = reason
		case reported == "" && waited > slowAttach:
			f.cfg.Logger.Warn("function is not ready, waiting", "directory", f.cfg.Attach, "reason", reason)
			reported = reason
		}
		pause := attachPoll
		if time.Since(begun) > slowAttach {
			pause = attachIdle
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// tryAttach looks for a server once, and returns what is in the way if there is none; unfit means that it has to be another one.
func (f *Function) tryAttach(ctx context.Context, a *attachment) (w *worker, reason string, unfit bool) {
	found, err := a.peer.Find()
	switch {
	case err != nil:
		return nil, err.Error(), true
	case !found:
		if _, err := os.Stat(f.cfg.Attach); err != nil {
			return nil, "there is no such directory", false
		}
		return nil, fmt.Sprintf("there is no %s", a.peer.InfoFile()), false
	}
	if socket := filepath.Join(a.peer.Dir, a.peer.SocketName()); len(socket) > maxSocketPath {
		return nil, fmt.Sprintf("the path of its socket has %d bytes, and Unix sockets allow %d: use a shorter directory", len(socket), maxSocketPath), true
	}
	if ready, reason := a.peer.AskReady(ctx); !ready {
		return nil, reason, false
	}
	open, cancel := context.WithTimeout(ctx, f.cfg.ReadyTimeout)
	defer cancel()
	c, err := a.Open(open, f.cfg.limits(), &f.strays)
	if err != nil {
		return nil, "it answers that it is ready, but its stream cannot be opened: " + err.Error(), false
	}
	w = &worker{instance: a, Caller: c, over: make(chan struct{})}
	go a.look()   // ends with the connection
	go f.watch(w) // the same
	return w, "", false
}

// look ends the connection when the server is gone, so that no message is given to one that is not there.
func (a *attachment) look() {
	tick := time.NewTicker(attachLook)
	defer tick.Stop()
	for {
		select {
		case <-a.lost:
			return
		case <-client.Ended(a.caller):
			a.end()
			return
		case <-tick.C:
			// A socket file that was removed says nothing of the connection that there is; one at which nobody listens does.
			conn, err := net.DialTimeout("unix", filepath.Join(a.peer.Dir, a.peer.SocketName()), attachLook)
			if err == nil {
				_ = conn.Close()
			}
			if errors.Is(err, syscall.ECONNREFUSED) {
				a.end()
				return
			}
		}
	}
}

// end ends the connection.
func (a *attachment) end() {
	a.once.Do(func() {
		a.caller.Close()
		close(a.lost)
	})
}

func (a *attachment) Open(ctx context.Context, l client.Limits, strays *atomic.Uint64) (c client.Caller, err error) {
	// What the server announces is not looked at: the file would outlive the process that wrote it, and what an earlier one left there could make a
	// message that ends the function look innocent. So whatever was not answered is suspect.
	c, err = a.peer.Open(ctx, l, strays, client.Signs{})
	a.caller = c
	return c, err
}

func (a *attachment) PID() int                   { return 0 }
func (a *attachment) Exited() <-chan struct{}    { return a.lost }
func (a *attachment) InCode() *process.InCode    { return process.NotAnnounced() }
func (a *attachment) LastLine() string           { return "" }
func (a *attachment) Panicking() <-chan struct{} { return nil }
func (a *attachment) Remove()                    {}
func (a *attachment) Stop(time.Duration)         { a.end() }

func (a *attachment) EndPanicked(client.Caller, <-chan struct{}) bool { return false }

func (a *attachment) Ending() string {
	if why := a.why.Load(); why != nil {
		return "disconnected by levada: " + why.Why
	}
	return "it ended the connection; how its process exited is not known, because another program started it"
}

func (a *attachment) Label() string {
	if why := a.why.Load(); why != nil {
		return why.Label
	}
	return labelDisconnect
}

func (a *attachment) End(_ time.Duration, _ process.Kill) { a.end() }

// Dump ends the connection: there is no process that could be asked for its stacks.
func (a *attachment) Dump(why process.Kill) { a.Kill(why) }

func (a *attachment) Kill(why process.Kill) {
	a.why.CompareAndSwap(nil, &why)
	a.end()
}

func (a *attachment) Diagnose(err error, timeout time.Duration) *deadletter.Failure {
	a.end()
	failure := &deadletter.Failure{Reason: deadletter.Crash, Attempts: 1, Error: fmt.Sprintf("the connection to the function ended: %v; how its process exited is not known, because another program started it", err)}
	if why := a.why.Load(); why != nil && why.Label == process.LabelHang {
		failure.Reason, failure.Error = deadletter.Hang, fmt.Sprintf("no answer within %v; the connection was ended for it", timeout)
		return failure
	}
	client.Explain(err, failure)
	return failure
}

// exclusive is how the one server is shared: each call takes one unit, a trial of suspects all of them. Without that, a server that ends with a suspect in
// it could have ended because of another message. Calls that wait have their turn in order, so neither kind starves.
const exclusive = 1 << 30

// share waits until a call may be made, and returns what to call afterwards; nil if part was over before.
func (f *Function) share(ctx context.Context, part *Part) (release func(), err error) {
	if f.cfg.Attach == "" {
		return func() {}, nil
	}
	wait, cancel := context.WithCancel(ctx)
	defer cancel()
	if part != nil && part.Until != nil {
		defer context.AfterFunc(part.Until, cancel)()
	}
	if f.use.Acquire(wait, 1) != nil {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		return nil, nil
	}
	return func() { f.use.Release(1) }, nil
}
