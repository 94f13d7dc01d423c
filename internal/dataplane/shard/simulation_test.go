package shard

import (
	"fmt"
	"os"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// seeds runs many, two at a time, and returns the sum of what happened and the first seed that failed.
func seeds(from, to uint64, b bug, log func(string, ...any)) (sum simStats, failed uint64, failure error) {
	var mu sync.Mutex
	var next atomic.Uint64
	next.Store(from)
	var all sync.WaitGroup
	for range min(2, runtime.GOMAXPROCS(0)) {
		all.Go(func() {
			for {
				seed := next.Add(1) - 1
				mu.Lock()
				over := seed >= to || failure != nil
				mu.Unlock()
				if over {
					return
				}
				stats, err := simulate(seed, b, log)
				mu.Lock()
				if err != nil && (failure == nil || seed < failed) {
					failed, failure = seed, err
				}
				sum.starts += stats.starts
				sum.changes += stats.changes
				sum.faults += stats.faults
				sum.refused += stats.refused
				sum.fenced += stats.fenced
				sum.superseded += stats.superseded
				sum.abandoned += stats.abandoned
				sum.unowned = max(sum.unowned, stats.unowned)
				if stats.converged > 2*time.Second {
					sum.late++
				}
				sum.converged = max(sum.converged, stats.converged)
				mu.Unlock()
			}
		})
	}
	all.Wait()
	return sum, failed, failure
}

// TestSimulation: SHARD_SEEDS is how many seeds run; SHARD_SEED runs one.
func TestSimulation(t *testing.T) {
	n := uint64(300)
	if v, err := strconv.ParseUint(os.Getenv("SHARD_SEEDS"), 10, 64); err == nil {
		n = v
	}
	from := uint64(0)
	var log func(string, ...any)
	if v, err := strconv.ParseUint(os.Getenv("SHARD_SEED"), 10, 64); err == nil {
		from, n, log = v, 1, t.Logf
	}
	began := time.Now()
	sum, seed, err := seeds(from, from+n, noBug, log)
	if err != nil {
		t.Fatalf("SHARD_SEED=%d: %v", seed, err)
	}
	if sum.late > int(n)/100+1 {
		t.Errorf("in %d of %d runs shards still moved 2 s after the last change of the members", sum.late, n)
	}
	if n >= 300 && (sum.fenced == 0 || sum.refused == 0 || sum.abandoned == 0) {
		t.Errorf("nothing goes wrong in the simulation: %+v", sum)
	}
	t.Logf("%d seeds in %v: %+v", n, time.Since(began).Round(time.Millisecond), sum)
}

// TestSimulationFindsMistakes: a simulation that finds nothing may look at nothing. Each mistake in the protocol must be found within some seeds.
func TestSimulationFindsMistakes(t *testing.T) {
	for name, c := range map[string]struct {
		bug    bug
		within uint64
	}{
		"saves without a fence":                           {noFence, 300},
		"a session counts from the answer of its renewal": {clockOfAnswer, 500},
		"a session counts by a clock that steps":          {clockOfWall, 300},
		"shares without a bound":                          {unboundedShare, 50},
		"release before the work is finished":             {earlyRelease, 50},
		"a claim without a compare-and-set":               {blindClaim, 1000},
		"a session that was not seen counts as ended":     {stalePresence, 1000},
		"an epoch is used twice":                          {reusedEpoch, 50},
	} {
		t.Run(name, func(t *testing.T) {
			_, seed, err := seeds(0, c.within, c.bug, nil)
			if err == nil {
				t.Fatalf("not found in %d seeds", c.within)
			}
			t.Logf("found with seed %d: %v", seed, err)
		})
	}
}

// TestSimulationIsRepeatable: a seed that fails is of use only if it fails again.
func TestSimulationIsRepeatable(t *testing.T) {
	for seed := range uint64(30) {
		var traces [2][]string
		for i := range traces {
			_, err := simulate(seed, noBug, func(format string, args ...any) { traces[i] = append(traces[i], fmt.Sprintf(format, args...)) })
			if err != nil {
				t.Fatal(err)
			}
		}
		for i := range traces[0] {
			if i >= len(traces[1]) || traces[0][i] != traces[1][i] {
				t.Fatalf("seed %d: event %d differs: %s", seed, i, traces[0][i])
			}
		}
	}
}
