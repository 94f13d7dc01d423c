package proxy

import (
	"context"
	"runtime/metrics"
	"sync"
	"sync/atomic"
	"testing"
)

func TestPercentFor(t *testing.T) {
	const mib = 1 << 20
	for _, c := range []struct{ live, memory, want int64 }{
		{10 * mib, 4 << 30, busyPercent},
		{20 * mib, 64 * mib, 60}, // 12 MiB to half of the memory
		{30 * mib, 64 * mib, calmPercent},
		{90 * mib, 64 * mib, calmPercent},
		{128 * mib, 4 << 30, 50},
		{0, 64 * mib, busyPercent},
	} {
		if got := percentFor(c.live, c.memory); int64(got) != c.want {
			t.Errorf("%d bytes alive of %d: %d %%, want %d", c.live, c.memory, got, c.want)
		}
	}
}

// TestCollectorFollows: GOGC goes up while much is allocated, down afterwards, and is what it was before in the end.
func TestCollectorFollows(t *testing.T) {
	gogc := func() uint64 {
		sample := []metrics.Sample{{Name: "/gc/gogc:percent"}}
		metrics.Read(sample)
		return sample[0].Value.Uint64()
	}
	before := gogc()
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { tuneCollector(ctx, 4<<30) })
	eventually(t, "calm at first", func() bool { return gogc() == calmPercent })
	var over atomic.Bool
	running.Go(func() {
		for keep := make([][]byte, 1000); !over.Load(); {
			for i := range keep {
				keep[i] = make([]byte, 1000)
			}
		}
	})
	eventually(t, "busy", func() bool { return gogc() == busyPercent })
	over.Store(true)
	eventually(t, "calm again", func() bool { return gogc() == calmPercent })
	cancel()
	running.Wait()
	if got := gogc(); got != before {
		t.Errorf("GOGC is %d afterwards, and was %d", got, before)
	}
}
