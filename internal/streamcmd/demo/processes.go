package demo

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/dustin/go-humanize"

	"github.com/levada-io/levada/internal/commandline"
)

func (d *demo) child(name string, args ...string) *child {
	c := &child{name: name, args: append([]string{"stream"}, args...), wanted: true}
	d.children = append(d.children, c)
	return c
}

// start starts a child, or starts it again.
func (d *demo) start(c *child) error {
	program, err := os.Executable()
	if err != nil {
		return err
	}
	c.cmd = exec.Command(program, c.args...)
	c.cmd.Env = append(os.Environ(), "POD_NAME="+strings.ReplaceAll(c.name, " ", "-"), "POD_UID="+c.pod, "CONTAINER_NAME=worker")
	stdout, err := c.cmd.StdoutPipe()
	if err != nil {
		return err
	}
	errors := &commandline.Tail{Max: 4 << 10}
	c.cmd.Stderr = errors
	if c.stdin, err = c.cmd.StdinPipe(); err != nil {
		return err
	}
	if err := c.cmd.Start(); err != nil {
		return fmt.Errorf("start the %s: %w", c.name, err)
	}
	c.killed, c.gone = "", make(chan struct{})
	d.follow(c, stdout, errors)
	return nil
}

// follow hands the lines of a child that has started, and later its end, to the goroutine of run.
func (d *demo) follow(c *child, stdout io.Reader, stderr *commandline.Tail) {
	watching, stopWatching := context.WithCancel(d.ctx)
	if slices.Contains(d.workers, c) && !d.memory.put(c.cmd.Process.Pid) {
		process := c.cmd.Process
		d.helpers.Go(func() { d.memory.watch(watching, process) })
	}
	cmd, gone := c.cmd, c.gone
	d.helpers.Go(func() {
		lines := bufio.NewScanner(stdout)
		for lines.Scan() {
			text := lines.Text()
			d.tell(func() { c.line(text) })
		}
		err := cmd.Wait()
		stopWatching()
		close(gone)
		d.tell(func() { d.ended(c, cmd, err, stderr.String()) })
	})
}

// tell hands something to the goroutine of run.
func (d *demo) tell(what func()) {
	select {
	case d.happened <- what:
	case <-d.stopping:
	}
}

// in does something later.
func (d *demo) in(after time.Duration, do func()) {
	d.later = append(d.later, task{time.Now().Add(after), do})
}

// again starts a child that has ended, as Kubernetes would.
func (d *demo) again(c *child, after time.Duration) {
	d.in(after, func() {
		if err := d.start(c); err != nil {
			d.say("%v", err)
		}
	})
}

// ended tells of a process that has ended, and has it started again.
func (d *demo) ended(c *child, cmd *exec.Cmd, err error, output string) {
	if !c.wanted || c.cmd != cmd {
		return
	}
	exit, _ := errors.AsType[*exec.ExitError](err)
	switch {
	case c.killed != "":
		return // the caller that cancelled it goes on
	case err == nil:
		d.say("%s has ended", c.name)
	case exit != nil && exit.Sys().(syscall.WaitStatus).Signaled(), exit != nil && exit.ExitCode() == 137:
		d.deaths++
		if d.deaths == 1 {
			d.say("%s is killed: out of memory, with up to %d users in flight; it is not known yet which of them caused it", c.name, batchSize)
		} else {
			d.say("%s is killed again (%s time)", c.name, humanize.Ordinal(d.deaths))
		}
	default:
		d.say("%s has died: %v: %s", c.name, err, commandline.FirstLine(output))
	}
	d.again(c, 100*time.Millisecond)
}
