package balance

import (
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// started is a call that is not done.
type started struct {
	b    *Backend[int]
	kind Kind
	at   int64
}

// Whatever happens in whatever order: only backends of the set are picked, counters fit the calls, no more than allowed are ejected, and
// when all works again, every backend is back.
func TestProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		o := Options{
			MaxEjected:          rapid.SampledFrom([]float64{0, 0.1, 0.3, 1}).Draw(t, "max ejected"),
			ConsecutiveFailures: rapid.SampledFrom([]int{0, 1, 3}).Draw(t, "consecutive failures"),
			MinResults:          rapid.SampledFrom([]int{0, 4}).Draw(t, "min results"),
			SlowStart:           rapid.SampledFrom([]time.Duration{0, 30 * time.Second}).Draw(t, "slow start"),
			Rand:                seeded(rapid.Uint64().Draw(t, "seed")),
		}
		s := New[int](o)
		limit := func() int { return int(s.options.MaxEjected * float64(len(s.Backends()))) }
		var now int64
		var open []started
		every := map[*Backend[int]]bool{}
		outcome := rapid.SampledFrom([]Outcome{Success, Failure, Failure, Ignored})
		kinds := rapid.SampledFrom([]Kind{Unary, Streaming})
		t.Repeat(map[string]func(*rapid.T){
			"update": func(t *rapid.T) {
				endpoints := rapid.SliceOfN(rapid.SampledFrom(names(8)), 0, 10).Draw(t, "endpoints")
				before := s.Backends()
				added, removed := s.Update(endpoints, now, func(string) int { return 0 })
				want := map[string]bool{}
				for _, e := range endpoints {
					want[e] = true
				}
				if len(s.Backends()) != len(want) || len(before)+len(added)-len(removed) != len(want) {
					t.Fatalf("%d endpoints: %d before, %d added, %d removed, %d now", len(want), len(before), len(added), len(removed), len(s.Backends()))
				}
				for _, b := range s.Backends() {
					if !want[b.Address] || slices.Contains(before, b) == slices.Contains(added, b) {
						t.Fatalf("%s is in the set, asked for are %v", b.Address, endpoints)
					}
					every[b] = true
				}
			},
			"call": func(t *rapid.T) {
				for range rapid.IntRange(1, 20).Draw(t, "calls") {
					var avoid *Backend[int]
					if len(every) > 0 && rapid.Bool().Draw(t, "retry") && len(open) > 0 {
						avoid = open[len(open)-1].b
					}
					var usable func(*Backend[int]) bool
					if mask := rapid.SampledFrom([]int{0, 0, 1, 2}).Draw(t, "usable"); mask > 0 {
						usable = func(b *Backend[int]) bool { return len(b.Address)*7+int(b.Address[7])%3 != mask }
					}
					kind := kinds.Draw(t, "kind")
					b := s.Pick(kind, now, avoid, usable)
					choice := func(c *Backend[int]) bool { return usable == nil || usable(c) }
					switch {
					case b == nil:
						if slices.ContainsFunc(s.Backends(), choice) {
							t.Fatal("none was picked though there is one")
						}
						continue
					case !slices.Contains(s.Backends(), b):
						t.Fatalf("%s was picked, which is not in the set", b.Address)
					case !choice(b):
						t.Fatalf("%s was picked, which is not usable", b.Address)
					case b == avoid && slices.ContainsFunc(s.Backends(), func(c *Backend[int]) bool { return c != avoid && choice(c) }):
						t.Fatal("the one to avoid was picked though there is another")
					}
					b.Start(kind, now)
					open = append(open, started{b, kind, now})
				}
			},
			"done": func(t *rapid.T) {
				for range min(len(open), rapid.IntRange(1, 20).Draw(t, "calls")) {
					i := rapid.IntRange(0, len(open)-1).Draw(t, "which")
					c := open[i]
					open = slices.Delete(open, i, i+1)
					c.b.Done(c.kind, outcome.Draw(t, "outcome"), time.Duration(now-c.at), now)
				}
			},
			"message": func(t *rapid.T) {
				if len(open) > 0 {
					rapid.SampledFrom(open).Draw(t, "stream").b.Observe(outcome.Draw(t, "outcome"), now)
				}
			},
			"wait": func(t *rapid.T) {
				now += rapid.Int64Range(0, 20*second).Draw(t, "time")
			},
			"": func(t *rapid.T) {
				counts := map[*Backend[int]][2]int{}
				for _, c := range open {
					n := counts[c.b]
					n[c.kind]++
					counts[c.b] = n
				}
				for b := range every {
					info := b.Info(now)
					if n := counts[b]; info.Unary != n[Unary] || info.Streams != n[Streaming] || b.Open() != n[Unary]+n[Streaming] {
						t.Fatalf("%s has %v open calls, counted as %+v", b.Address, n, info)
					}
					if info.Weight < lowest-1e-9 || info.Weight > 1 || info.Latency < 0 || info.Failures < 0 || info.Failures > info.Results {
						t.Fatalf("%+v", info)
					}
				}
				out := 0
				for _, b := range s.Backends() {
					if b.Info(now).EjectedUntil != 0 {
						out++
					}
				}
				if out > limit() || out != s.Ejected() || out != s.out {
					t.Fatalf("%d of %d are ejected, counted as %d and %d, allowed are %d", out, len(s.Backends()), s.Ejected(), s.out, limit())
				}
			},
		})
		for _, c := range open { // all works again
			c.b.Done(c.kind, Ignored, 0, now)
		}
		for end := now + int64(s.options.MaxEjection+2*s.options.ProbeTimeout)*2; now < end; now += second {
			if b := s.Pick(Unary, now, nil, nil); b != nil {
				b.Start(Unary, now)
				b.Done(Unary, Success, time.Millisecond, now)
			}
		}
		if s.Ejected() != 0 {
			t.Fatalf("%d are still ejected long after all works", s.Ejected())
		}
	})
}
