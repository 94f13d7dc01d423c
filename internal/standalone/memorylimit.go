package standalone

import (
	"context"
	"os"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

// The broker in this process keeps buffers of 8 MiB in use for a moment; without a limit the collector lets them pile up to twice what is alive.
// A fixed limit would make it run all the time once more than that is alive, so the limit follows what is.
const (
	smallestLimit = 110 << 20
	limitOfLive   = 1.6
)

// limitMemory keeps the soft memory limit near what is alive, until ctx ends. A GOMEMLIMIT or GOGC of the user's wins.
func limitMemory(ctx context.Context) error {
	if os.Getenv("GOMEMLIMIT") != "" || os.Getenv("GOGC") != "" {
		return nil
	}
	defer debug.SetMemoryLimit(debug.SetMemoryLimit(smallestLimit))
	live := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			metrics.Read(live)
			debug.SetMemoryLimit(max(smallestLimit, int64(limitOfLive*float64(live[0].Value.Uint64()))))
		}
	}
}
