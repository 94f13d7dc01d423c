package proxy

import (
	"context"
	"math"
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"strconv"
	"strings"
	"time"
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

const (
	lookAtMemory = 5 * time.Second
	muchMemory   = 16 << 20
	perFront     = 32 << 10 // bytes that a connection takes, about
)

// returnMemory gives memory back to the system after a burst, until ctx ends. The runtime would do so, too, but only minutes after the last allocation, and a proxy
// that has become idle allocates little. Needed is about how many bytes the connections and what waits in them need.
func returnMemory(ctx context.Context, needed func() int64) {
	ticker := time.NewTicker(lookAtMemory)
	defer ticker.Stop()
	const cycles = 0
	samples := []metrics.Sample{{Name: "/gc/cycles/total:gc-cycles"}, {Name: "/memory/classes/heap/objects:bytes"}, {Name: "/memory/classes/heap/free:bytes"},
		{Name: "/memory/classes/heap/unused:bytes"}, {Name: "/memory/classes/heap/stacks:bytes"}}
	total := func() (n uint64) {
		metrics.Read(samples)
		for _, s := range samples[cycles+1:] {
			n += s.Value.Uint64()
		}
		return n
	}
	var left, seen uint64 // bytes after the last time, and cycles so far
	var then int64        // what was needed at that time
	busy := false         // since the last time
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		n := total()
		quiet := samples[cycles].Value.Uint64() <= seen+1
		// A heap that is hardly collected any more is one that hardly anybody allocates from: what of it is still needed is found out once, and again when much of
		// that has gone.
		if n > muchMemory && (n > 2*left || quiet && (busy || needed() < then/2)) {
			then = needed()
			runtime.GC() // the second one empties the pools
			debug.FreeOSMemory()
			left, busy = total(), !quiet
		} else if !quiet {
			busy = true
		}
		seen = samples[cycles].Value.Uint64()
	}
}
