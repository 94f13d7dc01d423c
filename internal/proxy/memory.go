package proxy

import (
	"math"
	"os"
	"runtime/debug"
	"strconv"
	"strings"
)

const unknownMemory = 4 << 30

// processMemory is how much memory the process may use: what GOMEMLIMIT says, its container, or the machine.
func processMemory() int64 {
	least := debug.SetMemoryLimit(-1)
	for _, file := range []string{"/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"} {
		if text, err := os.ReadFile(file); err == nil {
			if n, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64); err == nil && n > 0 {
				least = min(least, n)
			}
		}
	}
	if text, err := os.ReadFile("/proc/meminfo"); err == nil {
		if fields := strings.Fields(string(text)); len(fields) > 1 && fields[0] == "MemTotal:" {
			if kb, err := strconv.ParseInt(fields[1], 10, 64); err == nil {
				least = min(least, kb<<10)
			}
		}
	}
	if least == math.MaxInt64 {
		return unknownMemory
	}
	return least
}
