package proxy

import (
	"context"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

// The heap of a proxy is small, and nearly all of it lives as long as the streams do: what waits for the collector is memory per stream (2.0 to 2.4 KB of each that
// is idle at 50 %, 1.4 to 1.8 KB at 25 %), while a cycle costs little. Not so while much is allocated: then the collector would run all the time, and who allocates,
// an ordinary client's connection for one, has to help it.
const (
	calmPercent = 25
	busyPercent = 100
	busyRoom    = 64 << 20              // bytes that may be allocated in between, at most
	busyCycle   = 50 * time.Millisecond // between two cycles of a proxy that allocates much
	calmCycle   = 2 * time.Second       // and of one that does not
)

// tuneCollector sets GOGC to what the proxy does, until ctx ends. What is alive may not double beyond half of the memory in bytes.
func tuneCollector(ctx context.Context, memory int64) {
	defer debug.SetGCPercent(debug.SetGCPercent(calmPercent))
	cycles := make(chan struct{}, 1)
	noteCycles(ctx, cycles)
	live := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	calm := time.NewTimer(calmCycle)
	defer calm.Stop()
	var last time.Time
	percent := calmPercent
	for {
		want := percent
		select {
		case <-ctx.Done():
			return
		case <-calm.C:
			want = calmPercent
		case <-cycles:
			now := time.Now()
			if percent > calmPercent || now.Sub(last) < busyCycle {
				metrics.Read(live)
				want = percentFor(int64(live[0].Value.Uint64()), memory)
			}
			last = now
			calm.Reset(calmCycle)
		}
		if want != percent {
			percent = want
			debug.SetGCPercent(percent)
		}
	}
}

// percentFor is how much a busy proxy may allocate, in percent of what is alive.
func percentFor(live, memory int64) int {
	return int(min(max(min(memory/2-live, busyRoom)*100/max(live, 1), calmPercent), busyPercent))
}

// noteCycles sends after each cycle of the collector, unless nobody has looked since the one before, until ctx ends.
func noteCycles(ctx context.Context, cycles chan<- struct{}) {
	sentinel := &struct{ _ *byte }{}
	runtime.AddCleanup(sentinel, func(cycles chan<- struct{}) {
		select {
		case cycles <- struct{}{}:
		default:
		}
		if ctx.Err() == nil {
			noteCycles(ctx, cycles)
		}
	}, cycles)
}
