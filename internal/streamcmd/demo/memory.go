package demo

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"
)

// memoryLimit bounds the memory of the demo's workers: by a control group, where the kernel kills, or else by watching.
type memoryLimit struct {
	bytes int64
	group string // directory; empty: by watching
	file  string // of the group's limit
}

// newMemoryLimit makes a control group of version 1 or 2 if it may.
func newMemoryLimit(limit int64) *memoryLimit {
	m := &memoryLimit{bytes: limit}
	own, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return m
	}
	for line := range strings.Lines(string(own)) {
		parts := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(parts) != 3 {
			continue
		}
		switch {
		case parts[0] == "0" && m.try("/sys/fs/cgroup", parts[2], "memory.max", "memory.swap.max", "0"):
			return m
		case parts[1] == "memory" && m.try("/sys/fs/cgroup/memory", parts[2], "memory.limit_in_bytes", "memory.swappiness", "0"):
			return m
		}
	}
	return m
}

// try makes a group below the process's own, or below the root where that is not to be seen, and sets the limit.
func (m *memoryLimit) try(root, own, limit, swap, noSwap string) bool {
	parent := filepath.Join(root, own)
	if _, err := os.Stat(parent); err != nil {
		parent = root
	}
	group := filepath.Join(parent, fmt.Sprintf("levada-demo-%d", os.Getpid()))
	if err := os.Mkdir(group, 0o755); err != nil {
		return false
	}
	if err := os.WriteFile(filepath.Join(group, limit), []byte(strconv.FormatInt(m.bytes, 10)), 0o644); err != nil {
		_ = os.Remove(group)
		return false
	}
	_ = os.WriteFile(filepath.Join(group, swap), []byte(noSwap), 0o644) // not there without swap
	m.group, m.file = group, limit
	return true
}

// put has a process, and what it starts, count against the limit. It returns false if it has to be watched.
func (m *memoryLimit) put(pid int) bool {
	if m.group == "" {
		return false
	}
	return os.WriteFile(filepath.Join(m.group, "cgroup.procs"), []byte(strconv.Itoa(pid)), 0o644) == nil
}

// watch kills a process when it has more memory than the limit, until ctx ends.
func (m *memoryLimit) watch(ctx context.Context, p *os.Process) {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			if residentMemory(ctx, p.Pid) > m.bytes {
				_ = p.Kill()
				return
			}
		}
	}
}

// how says who kills, in words.
func (m *memoryLimit) how() string {
	if m.group != "" {
		return fmt.Sprintf("the kernel kills a worker that takes more than %d MiB (control group)", m.bytes>>20)
	}
	return fmt.Sprintf("a worker that takes more than %d MiB is killed by the demo, which watches it (no control group may be made here)", m.bytes>>20)
}

// remove removes the group once its processes are gone.
func (m *memoryLimit) remove() {
	if m.group == "" {
		return
	}
	for deadline := time.Now().Add(2 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if err := os.Remove(m.group); err == nil || os.IsNotExist(err) || time.Now().After(deadline) {
			return
		}
	}
}

// residentMemory is 0 where it is unknown.
func residentMemory(ctx context.Context, pid int) int64 {
	if runtime.GOOS == "linux" {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
		fields := bytes.Fields(b)
		if err != nil || len(fields) < 2 {
			return 0
		}
		pages, _ := strconv.ParseInt(string(fields[1]), 10, 64)
		return pages * int64(os.Getpagesize())
	}
	b, err := exec.CommandContext(ctx, "ps", "-o", "rss=", "-p", strconv.Itoa(pid)).Output()
	if err != nil {
		return 0
	}
	kib, _ := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
	return kib << 10
}
