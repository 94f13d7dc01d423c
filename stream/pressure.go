package stream

import (
	"context"
	"log/slog"
	"os"
	"path"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

// pressure watches the memory of the container, so that a worker claims no more jobs, and releases some, shortly before the
// kernel would kill it with all of them.
type pressure struct {
	usage, limit string // files of the cgroup; empty without a limit
	pressed      atomic.Bool
}

// Parts of the limit, of what the kernel counts less what it can drop.
const (
	pressureShed  = 0.95 // from here on jobs are released, one at a time
	pressureHigh  = 0.90 // from here on no more are claimed
	pressureLow   = 0.80 // until here
	pressureEvery = 500 * time.Millisecond
	// shedPause is how long a released job has to free its memory before the next one follows.
	shedPause = 4
)

func newPressure() *pressure {
	for _, files := range [][2]string{
		{"/sys/fs/cgroup/memory.current", "/sys/fs/cgroup/memory.max"},                                 // version 2
		{"/sys/fs/cgroup/memory/memory.usage_in_bytes", "/sys/fs/cgroup/memory/memory.limit_in_bytes"}, // version 1
	} {
		if limit := readNumber(files[1]); limit > 0 && limit < 1<<60 {
			return &pressure{usage: files[0], limit: files[1]}
		}
	}
	return &pressure{}
}

// watch looks at the memory until ctx ends. shed releases one job; it reports whether there was one.
func (p *pressure) watch(ctx context.Context, log *slog.Logger, shed func() bool) {
	if p.usage == "" {
		return
	}
	pause := 0
	for wait(ctx, pressureEvery) {
		used := float64(readNumber(p.usage)-droppable(path.Dir(p.usage))) / float64(max(readNumber(p.limit), 1))
		pause--
		switch {
		case used > pressureShed && pause < 0 && shed():
			p.pressed.Store(true)
			pause = shedPause
			log.Warn("memory nearly used up, releasing a job before the kernel kills the process", "used", used)
		case used > pressureHigh && p.pressed.CompareAndSwap(false, true):
			log.Warn("memory nearly used up, claiming no more jobs until it is free again", "used", used)
		case used < pressureLow:
			p.pressed.Store(false)
		}
	}
}

func (p *pressure) high() bool { return p.pressed.Load() }

// droppable is the page cache that the kernel reclaims before it kills a process.
func droppable(dir string) int64 {
	b, err := os.ReadFile(path.Join(dir, "memory.stat"))
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(b)) {
		if value, ok := strings.CutPrefix(line, "inactive_file "); ok {
			n, _ := strconv.ParseInt(strings.TrimSpace(value), 10, 64)
			return n
		}
	}
	return 0
}

// readNumber returns the number in a file, 0 if there is none ("max").
func readNumber(file string) int64 {
	b, err := os.ReadFile(file)
	if err != nil {
		return 0
	}
	n, _ := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
	return n
}
