package processes

import (
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"time"

	"github.com/levada-io/levada/internal/standalone"
)

// member is a process of a vertex, by its name: it is started again when it dies. The lock of the run protects it, but for what does not change.
type member struct {
	group *group
	// name is unique among those of its vertex, label among all of the run: for logs and metrics.
	name, label string
	number      int
	done        chan struct{} // closed when it has ended for good
	wake        chan struct{} // has room for one: it need not wait any longer before it is started again

	child    *child // nil while none runs
	last     *child // the last one that has ended
	stopping bool   // it was asked to end
	killed   bool   // and not to finish what it had begun
	clean    bool   // it ended in order: nothing that it had begun is unfinished
	finished bool   // it ended by itself, with everything delivered (MonoVertex)
}

// identity is what the command line of the process is made of.
func (m *member) identity() Child {
	p, r := m.group.pipeline.of, m.group.pipeline.run
	c := Child{
		Manifest: p.Manifest, Vertex: m.group.of.Name, Name: m.name, Label: m.label, DataDir: filepath.Join(p.Dir, m.name),
		Hosted: standalone.Hosted{Dir: r.dir},
	}
	if m.group.of.Alone != "" {
		c.Hosted.Files = r.cfg.Run.DataDir
	}
	if url := r.host.EmbeddedURL(); url != "" {
		c.NATS, c.TokenFile, c.Hosted.Embedded = url, filepath.Join(r.cfg.Run.DataDir, standalone.TokenFile), true
	}
	return c
}

// run keeps the process running until it is asked to end.
func (m *member) run() {
	defer close(m.done)
	runtime.LockOSThread() // and not unlocked: the thread ends with the goroutine, when no child has it for a parent any more
	r := m.group.pipeline.run
	refusals, delay := 0, time.Duration(0)
	for {
		c, exited, err := m.start()
		if err != nil {
			r.fail(err)
			return
		}
		if c == nil {
			return // asked to end meanwhile
		}
		err = exited()
		again, wait := m.ended(c, err, &refusals, &delay)
		if !again {
			return
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-m.wake:
			timer.Stop()
		}
	}
}

// start starts the process unless it was asked to end.
func (m *member) start() (c *child, exited func() error, err error) {
	r := m.group.pipeline.run
	r.mu.Lock()
	defer r.mu.Unlock()
	if m.stopping {
		m.clean = true
		return nil, nil, nil
	}
	if c, exited, err = m.startChild(); err == nil {
		m.child = c
	}
	return c, exited, err
}

// ended notes how a life of the process ended, and decides whether there is another, and when.
func (m *member) ended(c *child, err error, refusals *int, delay *time.Duration) (again bool, wait time.Duration) {
	r := m.group.pipeline.run
	r.mu.Lock()
	defer r.mu.Unlock()
	defer r.changed()
	m.child, m.last = nil, c
	m.group.past.add(c)
	switch {
	case m.stopping:
		m.clean = err == nil && (c.result == nil || c.result.Cut == "" && !c.result.CutShort)
		if !m.clean && !m.killed {
			r.log.Warn("process did not end in order, what was in flight is processed again", "process", m.label, "reason", reasonOf(c, err))
		}
		return false, 0
	case err == nil && c.result != nil && len(c.result.Pipelines) > 0 && c.result.Pipelines[0].Finished:
		m.finished, m.clean = true, true
		return false, 0
	}
	m.group.restarts++
	if c.failed != "" && c.address == "" {
		if *refusals++; !m.group.started || *refusals >= maxRefusals {
			r.fail(fmt.Errorf("process %s: %s", m.label, c.failed))
			return false, 0
		}
	} else {
		*refusals = 0
	}
	if time.Since(c.started) > steadyAfter {
		*delay = 0
	}
	wait = *delay
	*delay = min(max(firstDelay, 2*wait), lastDelay)
	r.log.Warn("process ended unexpectedly, starting it again", "process", m.label, "pid", c.cmd.Process.Pid, "reason", reasonOf(c, err), "in", wait)
	return true, wait
}

// reasonOf says how a process ended.
func reasonOf(c *child, err error) string {
	if c.failed != "" {
		return c.failed
	}
	exit, ok := errors.AsType[*exec.ExitError](err)
	if !ok {
		if err == nil {
			return "it ended by itself"
		}
		return err.Error()
	}
	if status, ok := exit.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		return fmt.Sprintf("killed by signal %d (%v)", int(status.Signal()), status.Signal())
	}
	return exit.Error()
}

// stop asks the process to end in order. The lock is held.
func (m *member) stop() {
	m.stopping = true
	m.signal(syscall.SIGTERM)
	select {
	case m.wake <- struct{}{}:
	default:
	}
}

// signal signals the process, if one runs. The lock is held.
func (m *member) signal(s syscall.Signal) {
	if m.child != nil {
		_ = m.child.cmd.Process.Signal(s) // an error means that it has ended
	}
}
