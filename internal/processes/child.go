package processes

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"time"

	"github.com/levada-io/levada/internal/dataplane/vertex"
	"github.com/levada-io/levada/internal/standalone"
)

// child is one life of a process. What it reported is protected by the lock of the run.
type child struct {
	cmd     *exec.Cmd
	parent  *os.File // its end says to the child that this process has ended
	started time.Time

	address    string // once its vertex runs
	counts     vertex.Stats
	inputEnded bool
	result     *standalone.Result
	failed     string
}

// startChild starts the program and reads what it reports and writes. exited returns when it has ended and all of that was read. The calling goroutine must stay on its
// thread until then: where the kernel ends a child with its parent, the parent is a thread.
func (m *member) startChild() (c *child, exited func() error, err error) {
	r := m.group.pipeline.run
	args, env := r.cfg.Command(m.identity())
	self, err := os.Executable()
	if err != nil {
		return nil, nil, err
	}
	reports, reportsTo, err := os.Pipe()
	if err != nil {
		return nil, nil, err
	}
	parent, parentTo, err := os.Pipe()
	if err != nil {
		return nil, nil, errors.Join(err, reports.Close(), reportsTo.Close())
	}
	lines, linesTo, err := os.Pipe()
	if err != nil {
		return nil, nil, errors.Join(err, reports.Close(), reportsTo.Close(), parent.Close(), parentTo.Close())
	}
	c = &child{cmd: exec.Command(self, args...), parent: parentTo, started: time.Now()}
	c.cmd.Env, c.cmd.ExtraFiles, c.cmd.Stderr, c.cmd.SysProcAttr = env, []*os.File{reportsTo, parent}, linesTo, endsWithParent()
	if m.group.of.Source && r.cfg.Stdin != nil {
		c.cmd.Stdin = r.cfg.Stdin
	}
	if r.cfg.Stdout != nil {
		c.cmd.Stdout = r.cfg.Stdout // not through this process: what a sink has written must not be lost with it
	}
	err = c.cmd.Start()
	for _, f := range []*os.File{reportsTo, parent, linesTo} {
		_ = f.Close() // the child's
	}
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("start process %s: %w", m.label, err), reports.Close(), parentTo.Close(), lines.Close())
	}
	var reading sync.WaitGroup
	reading.Go(func() { m.readReports(c, reports) })
	reading.Go(func() { m.readLines(lines) })
	return c, func() error {
		err := c.cmd.Wait()
		// A process that it left behind may have its standard error.
		late := time.AfterFunc(time.Second, func() { _ = lines.Close(); _ = reports.Close() })
		reading.Wait()
		late.Stop()
		_ = lines.Close()
		_ = reports.Close()
		_ = parentTo.Close()
		return err
	}, nil
}

func (m *member) readReports(c *child, from io.Reader) {
	r := m.group.pipeline.run
	for d := json.NewDecoder(from); ; {
		var line report
		if d.Decode(&line) != nil {
			return // it has ended
		}
		r.update(func() {
			switch {
			case line.Address != "":
				c.address, m.group.started = line.Address, true
			case line.Counts != nil:
				c.counts = *line.Counts
			case line.InputEnded:
				c.inputEnded = true
			default:
				c.result, c.failed = line.Result, line.Failed
			}
		})
	}
}

// maxLine is where a line of standard error is cut.
const maxLine = 64 << 10

func (m *member) readLines(from io.Reader) {
	in := bufio.NewReaderSize(from, maxLine)
	for {
		line, err := in.ReadSlice('\n')
		if text := strings.TrimRight(string(line), "\r\n"); text != "" {
			m.group.pipeline.run.cfg.Line(m.label, text)
		}
		if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
			return
		}
	}
}
