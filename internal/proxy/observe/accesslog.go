package observe

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/levada-io/levada/internal/proxy"
)

const (
	logBuffer = 1 << 20         // bytes of lines that wait for the file; a line that does not fit is dropped
	logSoon   = 64 << 10        // so many are written at once
	logEvery  = time.Second     // and fewer after this time
	logEnd    = 2 * time.Second // that the last lines may take when the proxy ends
)

// AccessLog writes a line of JSON for each call that has ended. It never waits for its file.
type AccessLog struct {
	logger *slog.Logger
	stdout io.Writer
	lines  atomic.Int64
	drops  atomic.Int64
	wake   chan struct{}

	mu     sync.Mutex
	buffer []byte
	reopen *string // the path to go on with

	// The writing goroutine's.
	path      string
	file      io.Writer
	torn      bool // the last line was written in part
	failed    bool // what was written last
	lastError time.Time
}

// OpenAccessLog opens a file to append to; - is stdout, and empty is none until Reopen names one. Somebody must call Run.
func OpenAccessLog(path string, stdout io.Writer, logger *slog.Logger) (*AccessLog, error) {
	l := &AccessLog{logger: logger, stdout: stdout, wake: make(chan struct{}, 1)}
	return l, l.open(path)
}

func (l *AccessLog) open(path string) error {
	var next io.Writer
	switch path {
	case "":
	case "-":
		next = l.stdout
	default:
		f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o640)
		if err != nil {
			return fmt.Errorf("access log (--access-log, accessLog.path): %w", err)
		}
		next = f
	}
	l.closeFile()
	l.path, l.file, l.torn = path, next, false
	return nil
}

func (l *AccessLog) closeFile() {
	if f, ok := l.file.(*os.File); ok && l.path != "-" {
		if err := f.Close(); err != nil {
			l.logger.Error("access log", "error", err)
		}
	}
}

// Watcher is what tells the log of calls.
func (l *AccessLog) Watcher() proxy.Watcher { return proxy.Watcher{Ended: l.ended} }

func (l *AccessLog) ended(e *proxy.Ended) {
	l.mu.Lock()
	before := len(l.buffer)
	l.buffer = appendEnded(l.buffer, "", e)
	after := len(l.buffer)
	if after > logBuffer {
		l.buffer = l.buffer[:before]
		l.drops.Add(1)
	}
	l.mu.Unlock()
	if after >= logSoon && before < logSoon {
		l.rouse()
	}
}

func (l *AccessLog) rouse() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// Lines that were written, and Dropped ones.
func (l *AccessLog) Lines() int64 { return l.lines.Load() }

// Dropped is the number of lines that could not be written.
func (l *AccessLog) Dropped() int64 { return l.drops.Load() }

// Reopen makes the log go on in the file with this path, which is reopened even if it is the same: it may have been moved away.
func (l *AccessLog) Reopen(path string) {
	l.mu.Lock()
	l.reopen = &path
	l.mu.Unlock()
	l.rouse()
}

// Run writes until ctx ends, and then what is left, unless the file takes nothing for two seconds.
func (l *AccessLog) Run(ctx context.Context) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		l.work(ctx)
	}()
	<-ctx.Done()
	select {
	case <-done:
	case <-time.After(logEnd):
		l.logger.Error("access log: the last lines could not be written in time")
	}
}

func (l *AccessLog) work(ctx context.Context) {
	ticker := time.NewTicker(logEvery)
	defer ticker.Stop()
	var spare []byte
	for {
		select {
		case <-ctx.Done():
			l.write(l.take(nil))
			l.closeFile()
			return
		case <-ticker.C:
		case <-l.wake:
		}
		lines := l.take(spare)
		l.write(lines)
		spare = lines
	}
}

// take returns the lines that wait, and leaves an empty buffer. If the file is to be reopened, they are those of the old one.
func (l *AccessLog) take(spare []byte) []byte {
	l.mu.Lock()
	lines, reopen := l.buffer, l.reopen
	l.buffer, l.reopen = spare[:0], nil
	l.mu.Unlock()
	if reopen == nil {
		return lines
	}
	l.write(lines)
	if err := l.open(*reopen); err != nil {
		l.logger.Error("the access log goes on in its old file", "error", err)
	}
	return lines[:0]
}

func (l *AccessLog) write(lines []byte) {
	if len(lines) == 0 || l.file == nil {
		return
	}
	if l.torn {
		if _, err := l.file.Write([]byte{'\n'}); err == nil {
			l.torn = false
		}
	}
	n, err := l.file.Write(lines)
	l.lines.Add(int64(bytes.Count(lines[:n], []byte{'\n'})))
	if err == nil {
		if l.failed {
			l.failed = false
			l.logger.Info("the access log can be written again", "path", l.path)
		}
		return
	}
	if n > 0 {
		l.torn = lines[n-1] != '\n'
	}
	l.drops.Add(int64(bytes.Count(lines[n:], []byte{'\n'})))
	if l.failed = true; time.Since(l.lastError) > time.Minute {
		l.lastError = time.Now()
		l.logger.Error("lines of the access log are dropped", "path", l.path, "error", err)
	}
}
