package matrix

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// event is a line that a process of ours writes. All take the time from the same clock, so that those of different processes can be compared.
type event struct {
	At    int64  `json:"at"`    // monotonic, in microseconds
	ID    string `json:"id"`    // of a call or a channel
	Event string `json:"event"` // clients: connected, started, message (the first), end; backends: listening, call, return, stop

	// Of end.
	Code     int    `json:"code"` // of the status; -1 if the client had no number
	Text     string `json:"text,omitempty"`
	Ended    string `json:"ended,omitempty"` // the trailer levada-stream-ended
	Messages int    `json:"messages,omitempty"`
	Wrong    string `json:"wrong,omitempty"` // the first message that was not its own number

	Address string `json:"address,omitempty"` // of listening
}

// now is the time in an event.
func now() int64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		panic(err)
	}
	return ts.Nano() / 1000
}

func micros(at int64) time.Duration { return time.Duration(at) * time.Microsecond }

// process is one that takes and writes lines. It ends when its input does, so it does not outlive the test.
type process struct {
	name  string
	cmd   *exec.Cmd
	said  string // the file with its stderr
	ended chan struct{}

	mu      sync.Mutex
	input   io.WriteCloser
	events  []event
	changed chan struct{} // closed, and replaced, at each event
}

// startProcess runs a program until the test ends.
func startProcess(t *testing.T, name string, cmd *exec.Cmd) *process {
	t.Helper()
	p := &process{name: name, cmd: cmd, said: filepath.Join(t.TempDir(), "stderr"), ended: make(chan struct{}), changed: make(chan struct{})}
	stderr, err := os.Create(p.said)
	if err != nil {
		t.Fatal(err)
	}
	defer stderr.Close()
	cmd.Stderr = stderr
	output, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if p.input, err = cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go p.read(output)
	t.Cleanup(func() { _ = cmd.Process.Kill(); <-p.ended })
	return p
}

func (p *process) read(output io.Reader) {
	defer close(p.ended)
	defer func() { _ = p.cmd.Wait() }()
	for lines := bufio.NewScanner(output); lines.Scan(); {
		var e event
		if json.Unmarshal(lines.Bytes(), &e) != nil {
			continue
		}
		p.mu.Lock()
		p.events = append(p.events, e)
		close(p.changed)
		p.changed = make(chan struct{})
		p.mu.Unlock()
	}
}

// again restarts the process.
func (p *process) again(t *testing.T) *process {
	t.Helper()
	return startProcess(t, p.name, &exec.Cmd{Path: p.cmd.Path, Args: p.cmd.Args, Env: p.cmd.Env})
}

// send writes a line.
func (p *process) send(t *testing.T, line any) {
	t.Helper()
	b, err := json.Marshal(line)
	if err == nil {
		p.mu.Lock()
		_, err = p.input.Write(append(b, '\n'))
		p.mu.Unlock()
	}
	if err != nil {
		t.Fatalf("%s takes no orders any more: %v\n%s", p.name, err, p.stderr())
	}
}

// await returns the first event of this kind with this id, when it comes.
func (p *process) await(t *testing.T, id, kind string, within time.Duration) event {
	t.Helper()
	e, err := p.wait(t.Context(), id, kind, within)
	if err != nil {
		t.Fatalf("%s did not tell the %q of %q: %v\n%s", p.name, kind, id, err, p.stderr())
	}
	return e
}

// errEnded: the process has ended.
var errEnded = errors.New("it has ended")

func (p *process) wait(ctx context.Context, id, kind string, within time.Duration) (event, error) {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	for {
		p.mu.Lock()
		changed := p.changed
		for _, e := range p.events {
			if e.ID == id && e.Event == kind {
				p.mu.Unlock()
				return e, nil
			}
		}
		p.mu.Unlock()
		select {
		case <-changed:
		case <-p.ended:
			return event{}, errEnded
		case <-ctx.Done():
			return event{}, ctx.Err()
		}
	}
}

// first is the time of the first event of this kind with this id, or 0.
func (p *process) first(id, kind string) int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, e := range p.events {
		if e.ID == id && e.Event == kind {
			return e.At
		}
	}
	return 0
}

// count is how many events of this kind with this id there are.
func (p *process) count(id, kind string) (n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, e := range p.events {
		if e.ID == id && e.Event == kind {
			n++
		}
	}
	return n
}

func (p *process) stderr() string { return tail(p.said) }

// tail is the end of a log file.
func tail(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	return string(b[max(0, len(b)-4000):])
}

// role is what this test binary does instead of testing, see TestMain.
const role = "LEVADA_MATRIX_ROLE"

var roles = map[string]func() error{"client": clientMain, "backend": backendMain}

// self is this test binary in a role.
func self(name string, env ...string) *exec.Cmd {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(append(os.Environ(), role+"="+name), env...)
	return cmd
}

var sayMu sync.Mutex

// say writes an event, for a process in a role.
func say(e event) {
	if e.At == 0 {
		e.At = now()
	}
	b, err := json.Marshal(e)
	if err != nil {
		panic(err)
	}
	sayMu.Lock()
	defer sayMu.Unlock()
	fmt.Printf("%s\n", b)
}

// raw is a codec for messages that are only bytes.
type raw struct{}

func (raw) Name() string                    { return "proto" }
func (raw) Marshal(v any) ([]byte, error)   { return *v.(*[]byte), nil }
func (raw) Unmarshal(b []byte, v any) error { *v.(*[]byte) = b; return nil }
