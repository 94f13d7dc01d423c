package balance

import (
	"container/heap"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"
)

// events is a heap of what ends when.
type events []event

type event struct {
	at  float64 // seconds
	end func()
}

func (e events) Len() int           { return len(e) }
func (e events) Less(i, j int) bool { return e[i].at < e[j].at }
func (e events) Swap(i, j int)      { e[i], e[j] = e[j], e[i] }
func (e *events) Push(x any)        { *e = append(*e, x.(event)) }
func (e *events) Pop() any {
	last := (*e)[len(*e)-1]
	*e = (*e)[:len(*e)-1]
	return last
}

// simulate lets calls arrive at random, on average rate per second, and their ends happen, in virtual time.
func simulate(random *rand.Rand, rate, until float64, arrive func(now float64, pending *events)) {
	pending := &events{}
	for now := random.ExpFloat64() / rate; now < until; now += random.ExpFloat64() / rate {
		for pending.Len() > 0 && (*pending)[0].at <= now {
			heap.Pop(pending).(event).end()
		}
		arrive(now, pending)
	}
}

func nanoseconds(seconds float64) int64 { return int64(seconds * 1e9) }

// Ten backends, 50 streams a second that live 600 s on average, and two backends more after 900 s. What is to be reached is what
// choosing by open streams reached in the simulation of several policies; one that does not count open streams leaves the new ones at 103 and 903 streams
// at 960 and 1200 s.
func TestLongStreamsSpread(t *testing.T) {
	random := rand.New(rand.NewPCG(4, 4))
	s := newSet(Options{Rand: seeded(5)}, 10)
	looks := []struct {
		at          float64
		maxOverMean float64 // at most; 0: the old ones have too many until their streams end
		newest      float64 // open streams, give or take tolerance
		tolerance   float64
	}{
		{890, 1.1, 0, 0},
		{960, 0, 460, 0.1},
		{1200, 1.1, 1860, 0.05},
		{1790, 1.1, 2364, 0.05},
	}
	t.Logf("%6s %10s %8s %8s %8s", "s", "max/mean", "max", "mean", "newest")
	look := func() {
		sum, most := 0, 0
		all := s.Backends()
		for _, b := range all {
			sum += b.Open()
			most = max(most, b.Open())
		}
		mean := float64(sum) / float64(len(all))
		ratio, newest := float64(most)/mean, float64(all[len(all)-1].Open())
		l := looks[0]
		looks = looks[1:]
		t.Logf("%6.0f %10.3f %8d %8.0f %8.0f", l.at, ratio, most, mean, newest)
		if l.maxOverMean > 0 && ratio > l.maxOverMean {
			t.Errorf("after %v s the most loaded has %.3f times the mean, want at most %v", l.at, ratio, l.maxOverMean)
		}
		if l.newest > 0 && (newest < l.newest*(1-l.tolerance) || newest > l.newest*(1+l.tolerance)) {
			t.Errorf("after %v s the newest has %.0f streams, want %.0f give or take %.0f %%", l.at, newest, l.newest, 100*l.tolerance)
		}
	}
	added := false
	simulate(random, 50, 1800, func(now float64, pending *events) {
		if len(looks) > 0 && now >= looks[0].at {
			look()
		}
		if !added && now >= 900 {
			added = true
			s.Update(names(12), nanoseconds(now), func(string) int { return 0 })
		}
		b := s.Pick(Streaming, nanoseconds(now), nil, nil)
		b.Start(Streaming, nanoseconds(now))
		ends := now + 600*random.ExpFloat64()
		heap.Push(pending, event{ends, func() { b.Done(Streaming, Success, 0, nanoseconds(ends)) }})
	})
	if len(looks) != 0 {
		t.Errorf("%d looks were not made", len(looks))
	}
}

// One of ten backends is ten times as slow. It gets few calls at any load, and again its share once it is as fast as the others.
func TestSlowBackendGetsFewUnaryCalls(t *testing.T) {
	for _, rate := range []float64{50, 1000, 5000} {
		t.Run(fmt.Sprint(rate), func(t *testing.T) {
			random := rand.New(rand.NewPCG(6, 6))
			s := newSet(Options{Rand: seeded(7)}, 10)
			slow := s.Backends()[3]
			var calls, toSlow [2]int
			const recovers, settled, end = 60, 180, 240
			simulate(random, rate, end, func(now float64, pending *events) {
				b := s.Pick(Unary, nanoseconds(now), nil, nil)
				b.Start(Unary, nanoseconds(now))
				latency := 0.001 * (0.5 + random.ExpFloat64()/2)
				if b == slow && now < recovers {
					latency *= 10
				}
				if phase := 0; now < recovers || now > settled {
					if now > settled {
						phase = 1
					}
					calls[phase]++
					if b == slow {
						toSlow[phase]++
					}
				}
				ends := now + latency
				heap.Push(pending, event{ends, func() { b.Done(Unary, Success, time.Duration(nanoseconds(latency)), nanoseconds(ends)) }})
			})
			before, after := float64(toSlow[0])/float64(calls[0]), float64(toSlow[1])/float64(calls[1])
			t.Logf("%.0f calls/s: %.2f %% go to the slow one, %.2f %% after it has recovered", rate, 100*before, 100*after)
			if before > 0.025 {
				t.Errorf("%.2f %% of the calls went to the slow backend, want at most 2.5 %%", 100*before)
			}
			if after < 0.04 || after > 0.2 {
				t.Errorf("%.2f %% of the calls went to the backend that has recovered, want about 10 %%", 100*after)
			}
		})
	}
}

// One of ten fails half of its calls from some moment on: it is ejected within ten seconds, and gets calls again after it works.
func TestErringBackendIsEjectedAndReturns(t *testing.T) {
	random := rand.New(rand.NewPCG(8, 8))
	var ejected, returned []float64
	clock := 0.0
	s := newSet(Options{Rand: seeded(9), SlowStart: 5 * time.Second,
		OnEject: func(Ejection) { ejected = append(ejected, clock) }, OnReturn: func(string) { returned = append(returned, clock) }}, 10)
	erring := s.Backends()[7]
	const begins, works, end = 30, 90, 500
	late, failed := 0, 0
	simulate(random, 200, end, func(now float64, pending *events) {
		clock = now
		b := s.Pick(Unary, nanoseconds(now), nil, nil)
		b.Start(Unary, nanoseconds(now))
		outcome := Success
		if b == erring && now >= begins && now < works && random.IntN(2) == 0 {
			outcome = Failure
			failed++
		}
		if b == erring && now > end-60 {
			late++
		}
		ends := now + 0.001
		heap.Push(pending, event{ends, func() { b.Done(Unary, outcome, time.Millisecond, nanoseconds(ends)) }})
	})
	t.Logf("ejected at %.0f s, returned at %.0f s, %d failures, %d calls in the last minute", ejected, returned, failed, late)
	if len(ejected) == 0 || ejected[0] < begins || ejected[0] > begins+10 {
		t.Fatalf("ejected at %v s, want within 10 s after %d s", ejected, begins)
	}
	if len(returned) == 0 || returned[len(returned)-1] < ejected[len(ejected)-1] {
		t.Errorf("it never came back: ejected at %v, returned at %v s", ejected, returned)
	}
	if want := 200 * 60 / 10; late < want/2 {
		t.Errorf("%d calls in the last minute, want about %d", late, want)
	}
}
