package balance

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

const second = int64(time.Second)

// seeded makes choices repeatable.
func seeded(seed uint64) func() uint64 { return rand.NewPCG(seed, seed).Uint64 }

func names(n int) []string {
	var all []string
	for i := range n {
		all = append(all, fmt.Sprintf("10.0.0.%d:80", i))
	}
	return all
}

func newSet(o Options, backends int) *Set[int] {
	s := New[int](o)
	s.Update(names(backends), 0, func(string) int { return 0 })
	return s
}

// call runs a call that ends at once.
func call(b *Backend[int], kind Kind, outcome Outcome, latency time.Duration, now int64) {
	b.Start(kind, now)
	b.Done(kind, outcome, latency, now)
}

func addresses(all []*Backend[int]) []string {
	list := []string{}
	for _, b := range all {
		list = append(list, b.Address)
	}
	return list
}

func TestUpdateKeepsThoseThatStay(t *testing.T) {
	s := New[int](Options{})
	made := 0
	number := func(string) int { made++; return made }
	added, removed := s.Update([]string{"a", "b", "a"}, 0, number)
	if diff := cmp.Diff([]string{"a", "b"}, addresses(added)); diff != "" || len(removed) != 0 {
		t.Errorf("first update: added %s, removed %v", diff, addresses(removed))
	}
	b := s.Backends()[1]
	b.Start(Streaming, 0)
	added, removed = s.Update([]string{"c", "b"}, 0, number)
	if diff := cmp.Diff([][]string{{"c"}, {"a"}, {"c", "b"}}, [][]string{addresses(added), addresses(removed), addresses(s.Backends())}); diff != "" {
		t.Error(diff)
	}
	if s.Backends()[1] != b || b.Open() != 1 || b.Of != 2 || added[0].Of != 3 {
		t.Errorf("b was not kept: %+v", b.Info(0))
	}
	if _, removed = s.Update(nil, 0, number); len(removed) != 2 || s.Pick(Unary, 0, nil, nil) != nil || s.Pick(Unary, 0, b, nil) != nil {
		t.Error("an empty set still has a backend")
	}
	b.Done(Streaming, Failure, 0, 0) // the call ends after its backend was removed
	if b.Open() != 0 {
		t.Error("the stream was not counted as ended")
	}
}

func TestPickTakesTheLessLoaded(t *testing.T) {
	s := newSet(Options{}, 2)
	a, b := s.Backends()[0], s.Backends()[1]
	a.Start(Streaming, 0)
	for range 20 {
		if s.Pick(Streaming, 0, nil, nil) != b {
			t.Fatal("a stream went to the backend with more open streams")
		}
	}
	b.Start(Unary, 0)
	b.Start(Unary, 0)
	for range 20 {
		if s.Pick(Streaming, 0, nil, nil) != a {
			t.Fatal("open unary calls do not count for streams")
		}
		if s.Pick(Unary, 0, nil, nil) != a {
			t.Fatal("a unary call went to the backend with more in flight")
		}
	}
}

func TestPickAvoidsAndExcludes(t *testing.T) {
	s := newSet(Options{}, 5)
	all := s.Backends()
	for i, b := range all { // loads that would decide otherwise
		for range 10 - i {
			b.Start(Streaming, 0)
		}
	}
	only := func(allowed ...*Backend[int]) func(*Backend[int]) bool {
		return func(b *Backend[int]) bool { return slices.Contains(allowed, b) }
	}
	for _, kind := range []Kind{Unary, Streaming} {
		for range 50 {
			if b := s.Pick(kind, 0, all[4], nil); b == all[4] {
				t.Fatal("the one to avoid was picked though there are others")
			}
			if b := s.Pick(kind, 0, nil, only(all[0])); b != all[0] {
				t.Fatal("the only usable one was not picked")
			}
			if b := s.Pick(kind, 0, all[0], only(all[0], all[1])); b != all[1] {
				t.Fatal("the only usable one that is not to be avoided was not picked")
			}
			if b := s.Pick(kind, 0, all[0], only(all[0])); b != all[0] {
				t.Fatal("the one to avoid was not picked though there is no other")
			}
			if b := s.Pick(kind, 0, all[0], only()); b != nil {
				t.Fatal("one that is not usable was picked")
			}
		}
	}
	one := newSet(Options{}, 1)
	if b := one.Pick(Unary, 0, nil, nil); b != one.Backends()[0] || one.Pick(Unary, 0, b, nil) != b || one.Pick(Unary, 0, nil, only()) != nil {
		t.Error("a set of one")
	}
	if s.Pick(Unary, 0, one.Backends()[0], only(one.Backends()[0])) != nil {
		t.Error("a backend of another set was picked because it was to be avoided")
	}
}

// With some that are not usable, each pair of the others must have the same chance.
func TestDrawIsFair(t *testing.T) {
	s := newSet(Options{Rand: seeded(1)}, 6)
	all := s.Backends()
	counts := map[*Backend[int]]int{}
	const draws = 40_000
	for range draws {
		counts[s.Pick(Unary, 0, all[5], func(b *Backend[int]) bool { return b != all[1] })]++
	}
	for i, b := range all {
		want := float64(draws) / 4
		if i == 1 || i == 5 {
			want = 0
		}
		if got := float64(counts[b]); math.Abs(got-want) > 5*math.Sqrt(want) {
			t.Errorf("backend %d: %v of %d draws, want %v", i, got, draws, want)
		}
	}
	all[2].Start(Unary, 0) // and each is a pair: the one with the highest load never wins
	for range 1000 {
		if s.Pick(Unary, 0, all[5], func(b *Backend[int]) bool { return b != all[1] }) == all[2] {
			t.Fatal("the most loaded of four was picked")
		}
	}
}

func TestLatency(t *testing.T) {
	s := newSet(Options{Decay: 10 * time.Second}, 2)
	b := s.Backends()[0]
	near := func(when string, now int64, want time.Duration) {
		t.Helper()
		if got := b.Info(now).Latency; math.Abs(float64(got-want)) > 0.01*float64(want) {
			t.Errorf("%s: %v, want %v", when, got, want)
		}
	}
	near("unknown", 0, 0)
	call(b, Unary, Failure, time.Microsecond, 0)
	near("failed fast before the first sample", 0, 0)
	call(b, Unary, Success, 10*time.Millisecond, 0)
	near("first sample", 0, 10*time.Millisecond)
	call(b, Unary, Success, 100*time.Millisecond, 0)
	near("a higher sample counts at once", 0, 100*time.Millisecond)
	call(b, Unary, Failure, 50*time.Millisecond, 5*second)
	near("a failure that was faster is no sample", 5*second, 60653*time.Microsecond)
	call(b, Streaming, Success, time.Hour, 0)
	near("a stream's life is no latency", 0, 100*time.Millisecond)
	near("it decays", 10*second, 36788*time.Microsecond)
	call(b, Unary, Success, 10*time.Millisecond, 10*second)
	near("a lower sample is mixed in", 10*second, 43109*time.Microsecond)
	call(b, Unary, Success, 30*time.Millisecond, 20*second)
	near("a sample above what is left of the old one counts at once", 20*second, 30*time.Millisecond)
	call(b, Unary, Ignored, time.Second, 20*second)
	near("a call that was cancelled took at least as long", 20*second, time.Second)
	call(b, Unary, Success, time.Millisecond, 19*second)
	near("a sample of a clock that was read earlier does not turn time back", 20*second, time.Second)
}

// A new backend must not look slow, nor one that is not new look fast because it fails.
func TestUnknownLatencyCountsAsTheOthers(t *testing.T) {
	s := newSet(Options{Rand: seeded(1)}, 2)
	a, b := s.Backends()[0], s.Backends()[1]
	call(a, Unary, Success, time.Hour, 0)
	count := 0
	for range 1000 {
		if s.Pick(Unary, 0, nil, nil) == b {
			count++
		}
	}
	if count < 400 || count > 600 {
		t.Errorf("the unknown one was picked %d times of 1000", count)
	}
	b.Start(Unary, 0)
	if s.Pick(Unary, 0, nil, nil) != a {
		t.Error("calls in flight do not decide")
	}
}

func TestSlowStart(t *testing.T) {
	share := func(s *Set[int], kind Kind, b *Backend[int], now int64) float64 {
		const picks = 20_000
		count := 0
		for range picks {
			if s.Pick(kind, now, nil, nil) == b {
				count++
			}
		}
		return float64(count) / picks
	}
	for _, kind := range []Kind{Unary, Streaming} {
		for _, old := range []int{1, 4} {
			t.Run(fmt.Sprint(kind, old), func(t *testing.T) {
				s := newSet(Options{SlowStart: 10 * time.Second, Rand: seeded(1)}, old)
				if w := s.Backends()[0].Info(0).Weight; w != 1 {
					t.Errorf("the first backends start with weight %v", w)
				}
				for _, b := range s.Backends() { // so that the new one wins each time that it is drawn
					b.Start(kind, 0)
				}
				added, _ := s.Update(names(old+1), 0, func(string) int { return 0 })
				b := added[0]
				drawn := 2 / float64(old+1)
				for _, at := range []struct{ second, weight float64 }{{0, 0.1}, {5, 0.55}, {9, 0.91}, {10, 1}, {100, 1}} {
					now := int64(at.second * float64(second))
					if w := b.Info(now).Weight; math.Abs(w-at.weight) > 1e-9 {
						t.Errorf("weight after %v s: %v, want %v", at.second, w, at.weight)
					}
					if got, want := share(s, kind, b, now), drawn*at.weight; math.Abs(got-want) > 0.02 {
						t.Errorf("share after %v s: %v, want %v", at.second, got, want)
					}
				}
			})
		}
	}
}

// fail makes a backend reach the limit of consecutive failures.
func fail(b *Backend[int], now int64) {
	for range 5 {
		call(b, Unary, Failure, time.Millisecond, now)
	}
}

func TestEjectionAndReturn(t *testing.T) {
	var events []string
	s := newSet(Options{
		SlowStart: 10 * time.Second,
		OnEject:   func(e Ejection) { events = append(events, fmt.Sprint(e.Address, " ", e.Cause, " ", e.For)) },
		OnReturn:  func(address string) { events = append(events, address+" returned") },
	}, 3)
	b := s.Backends()[1]
	for range 4 {
		call(b, Unary, Failure, 0, 0)
	}
	call(b, Unary, Success, 0, 0)
	for range 4 {
		call(b, Unary, Failure, 0, 0)
	}
	if s.Ejected() != 0 {
		t.Fatal("ejected, though there was a success in between")
	}
	call(b, Unary, Failure, 0, 0)
	if info := b.Info(second); s.Ejected() != 1 || info.EjectedUntil != 10*second || info.Probation || info.Ejections != 1 || info.ConsecutiveFailures != 5 || info.Failures != 9 || info.Results != 10 {
		t.Fatalf("not ejected: %+v", info)
	}
	picked := func(now int64) bool {
		for range 100 {
			if s.Pick(Unary, now, nil, nil) == b {
				return true
			}
		}
		return false
	}
	if picked(10*second - 1) {
		t.Error("picked while ejected")
	}
	call(b, Unary, Success, 0, 9*second) // it was begun before the ejection
	if s.Ejected() != 1 {
		t.Error("a call of before has ended the ejection")
	}
	if s.Pick(Unary, 10*second, s.Backends()[0], nil) == b {
		t.Error("a retry was used as a probe")
	}
	if s.Pick(Unary, 10*second, nil, func(c *Backend[int]) bool { return c != b }) == b {
		t.Error("one that is not usable was probed")
	}
	if !b.Info(10 * second).Probation {
		t.Error("no probation after the ejection")
	}
	if s.Pick(Unary, 10*second, nil, nil) != b {
		t.Fatal("no probe after the ejection")
	}
	if picked(15 * second) {
		t.Error("a second probe while the first is open")
	}
	if s.Pick(Unary, 20*second, nil, nil) != b {
		t.Error("a probe that did not end was not forgotten")
	}
	call(b, Unary, Ignored, 0, 21*second)
	if s.Pick(Unary, 21*second, nil, nil) != b {
		t.Error("no new probe after one that says nothing")
	}
	call(b, Unary, Failure, 0, 22*second)
	if picked(42*second-1) || s.Pick(Unary, 42*second, nil, nil) != b {
		t.Error("the second ejection does not take 20 s")
	}
	b.Observe(Success, 42*second)
	if info := b.Info(42 * second); s.Ejected() != 0 || info.EjectedUntil != 0 || info.Weight >= 1 || info.ConsecutiveFailures != 0 || info.Results != 0 {
		t.Errorf("it has not started over: %+v", info)
	}
	if !picked(60 * second) {
		t.Error("not picked after its return")
	}
	if diff := cmp.Diff([]string{
		b.Address + " consecutive_failures 10s", b.Address + " probe 20s", b.Address + " returned"}, events); diff != "" {
		t.Error(diff)
	}
}

func TestEjectionsDoubleAndAreForgiven(t *testing.T) {
	s := newSet(Options{}, 2)
	b := s.Backends()[0]
	now := int64(0)
	for _, want := range []int{10, 20, 40, 80, 160, 300, 300} {
		fail(b, now)
		if got := (b.Info(now).EjectedUntil - now) / second; got != int64(want) {
			t.Fatalf("ejected for %d s, want %d", got, want)
		}
		now = b.Info(now).EjectedUntil
		b.Observe(Success, now)
	}
	now += 2*int64(time.Minute) + second // two of seven doublings are forgiven, which leaves 320 s
	fail(b, now)
	if got := (b.Info(now).EjectedUntil - now) / second; got != 300 {
		t.Errorf("ejected for %d s, want 300", got)
	}
	now = b.Info(now).EjectedUntil
	b.Observe(Success, now)
	now += 5 * int64(time.Minute) // of six
	fail(b, now)
	if got := (b.Info(now).EjectedUntil - now) / second; got != 20 {
		t.Errorf("ejected for %d s, want 20", got)
	}
	b.Observe(Success, b.Info(now).EjectedUntil)
	now += int64(time.Hour)
	fail(b, now)
	if got := (b.Info(now).EjectedUntil - now) / second; got != 10 {
		t.Errorf("ejected for %d s, want 10", got)
	}
}

func TestEjectionByShare(t *testing.T) {
	mix := func(s *Set[int], shares ...int) { // of ten calls, in turn, for six seconds
		for i := range 60 {
			for j, share := range shares {
				outcome := Success
				if i*share%10 < share { // spread
					outcome = Failure
				}
				call(s.Backends()[j], Unary, outcome, 0, int64(i)*second/10)
			}
		}
	}
	for _, c := range []struct {
		name   string
		shares []int
		want   int
	}{
		{"half fails of one", []int{5, 0, 0}, 1},
		{"less than the share", []int{3, 0, 0}, 0},
		{"the others fail as often", []int{5, 5, 5}, 0},
		{"twice as often as the others", []int{6, 2, 2}, 1},
		{"not twice as often", []int{6, 4, 4}, 0},
		{"two of three: only one may go", []int{5, 5, 0}, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newSet(Options{}, len(c.shares))
			mix(s, c.shares...)
			if s.Ejected() != c.want {
				t.Errorf("%d are ejected, want %d: %+v", s.Ejected(), c.want, s.Backends()[0].Info(6*second))
			}
		})
	}
	s := newSet(Options{MinResults: 61}, 3)
	mix(s, 5, 0, 0)
	if s.Ejected() != 0 {
		t.Error("ejected with too few results")
	}
	s = newSet(Options{}, 3)
	for i := range 40 { // 40 results, but not within ten seconds
		call(s.Backends()[0], Unary, Outcome(i%2), 0, int64(i)*second)
	}
	if s.Ejected() != 0 {
		t.Error("ejected for what is long past")
	}
}

func TestEjectionIsLimited(t *testing.T) {
	for backends, want := range []int{0, 0, 1, 1, 2, 2, 3} {
		s := newSet(Options{}, backends)
		for _, b := range s.Backends() {
			call(b, Unary, Success, 0, 0)
		}
		for _, b := range s.Backends() {
			fail(b, second)
		}
		if s.Ejected() != want {
			t.Errorf("of %d backends %d are ejected, want %d", backends, s.Ejected(), want)
		}
	}
	s := newSet(Options{MaxEjected: -1}, 10)
	fail(s.Backends()[0], 0)
	if s.Ejected() != 0 {
		t.Error("ejected, though it was turned off")
	}
	s = newSet(Options{ConsecutiveFailures: -1, FailureShare: -1}, 10)
	for range 10 {
		fail(s.Backends()[0], 0)
	}
	if s.Ejected() != 0 {
		t.Error("ejected, though the causes were turned off")
	}
}

// When all is down, some are ejected before that is clear; their ejections do not double, so that all are back soon after it works again.
func TestAllDown(t *testing.T) {
	s := newSet(Options{Rand: seeded(1)}, 10)
	now := int64(0)
	run := func(seconds int64, outcome Outcome) {
		for end := now + seconds*second; now < end; now += second / 100 {
			b := s.Pick(Unary, now, nil, nil)
			call(b, Unary, outcome, time.Millisecond, now)
		}
	}
	run(20, Failure)
	if n := s.Ejected(); n != 0 {
		t.Errorf("%d are ejected, though none is better", n)
	}
	run(20, Success)
	run(350, Failure)
	if n := s.Ejected(); n == 0 || n > 5 {
		t.Fatalf("%d are ejected", n)
	}
	before := now
	for s.Ejected() > 0 && now < before+60*second {
		run(1, Success)
	}
	if took := time.Duration(now - before); took > 12*time.Second {
		t.Errorf("all were back after %v", took)
	}
}

// One of three works, and only one of the others may be ejected. The one left has nothing open, since each of its streams fails at once: it must not
// get them all.
func TestFailingFastDoesNotAttract(t *testing.T) {
	for _, kind := range []Kind{Unary, Streaming} {
		s := newSet(Options{Rand: seeded(1)}, 3)
		works := s.Backends()[0]
		for range 1000 {
			works.Start(kind, 0)
		}
		failed := 0
		const calls = 10_000
		for i := range calls {
			now := int64(i) * second / 100
			b := s.Pick(kind, now, nil, nil)
			b.Start(kind, now)
			if b == works {
				b.Observe(Success, now)
				continue
			}
			failed++
			b.Done(kind, Failure, time.Millisecond, now)
		}
		if share := float64(failed) / calls; share > 0.02 {
			t.Errorf("%.1f %% of the calls failed (kind %d)", 100*share, kind)
		}
	}
}

func TestPanic(t *testing.T) {
	s := newSet(Options{MaxEjected: 1, Rand: seeded(1)}, 10)
	for _, b := range s.Backends() {
		call(b, Unary, Success, 0, 0)
	}
	for _, b := range s.Backends()[:5] {
		fail(b, second)
	}
	count := func() map[*Backend[int]]int {
		counts := map[*Backend[int]]int{}
		for range 10_000 {
			counts[s.Pick(Streaming, 2*second, nil, nil)]++
		}
		return counts
	}
	if counts := count(); len(counts) != 5 {
		t.Errorf("with half of them left, %d backends were picked", len(counts))
	}
	for _, b := range s.Backends()[5:8] {
		fail(b, second)
	}
	if s.Ejected() != 8 {
		t.Fatalf("%d are ejected", s.Ejected())
	}
	counts := count()
	if len(counts) != 10 {
		t.Errorf("with a fifth left, %d backends were picked", len(counts))
	}
	if share := counts[s.Backends()[9]]; share < 1500 || share > 2500 {
		t.Errorf("one of the two that are left got %d of 10,000 calls, want a little more than of each pair half", share)
	}
	left := map[*Backend[int]]int{}
	s = newSet(Options{}, 4)
	fail(s.Backends()[0], 0)
	for range 100 { // those that are not ejected cannot be connected to
		left[s.Pick(Unary, second, nil, func(b *Backend[int]) bool { return b == s.Backends()[0] })]++
	}
	if left[s.Backends()[0]] != 100 {
		t.Error("the ejected one was not picked though it is the only usable one")
	}
}

func TestSmallerSetEjectsFewer(t *testing.T) {
	var returned []string
	s := newSet(Options{OnReturn: func(address string) { returned = append(returned, address) }}, 6)
	for i, b := range s.Backends()[:3] {
		fail(b, int64(i)*second)
	}
	_, removed := s.Update(names(3), 5*second, func(string) int { return 0 })
	if s.Ejected() != 1 || len(removed) != 3 {
		t.Errorf("%d of 3 are ejected", s.Ejected())
	}
	if diff := cmp.Diff(names(2), returned); diff != "" {
		t.Error(diff)
	}
	last := s.Backends()[2]
	s.Update(names(2), 6*second, func(string) int { return 0 })
	if s.Ejected() != 0 {
		t.Error("a removed backend counts as ejected")
	}
	last.Observe(Success, 30*second) // its time is over, and it would return
	fail(last, 30*second)
	if s.Ejected() != 0 || s.out != 0 || last.Info(30*second).Ejections != 1 {
		t.Errorf("what a removed backend does counts for the set: %+v", last.Info(30*second))
	}
}

func TestEachEjectedOneIsProbed(t *testing.T) {
	for second, want := range map[int64]string{9: "", 10: names(3)[1], 11: names(3)[2], 12: names(3)[0]} {
		s := newSet(Options{}, 6)
		for i, at := range []int64{2, 0, 1} {
			fail(s.Backends()[i], at*int64(time.Second))
		}
		probed := ""
		for now := int64(3); now <= second; now++ {
			probed = ""
			for range 10 {
				if b := s.Pick(Streaming, now*int64(time.Second), nil, nil); b.Info(0).EjectedUntil != 0 {
					probed += b.Address
				}
			}
		}
		if probed != want {
			t.Errorf("after %d s the probes go to %q, want %q", second, probed, want)
		}
	}
}

// What could not be ejected is only chosen where the alternative is no better, until it works or a second has passed.
func TestShun(t *testing.T) {
	s := newSet(Options{Rand: seeded(1)}, 3)
	ejected, bad, good := s.Backends()[0], s.Backends()[1], s.Backends()[2]
	good.Start(Streaming, 0)
	fail(ejected, 0)
	picks := func(now int64) *Backend[int] { return s.Pick(Streaming, now, nil, nil) }
	if picks(0) != bad {
		t.Fatal("the less loaded is not picked")
	}
	fail(bad, second)
	if s.Ejected() != 1 || picks(second) != good || picks(2*second-1) != good {
		t.Error("one that fails, but may not be ejected, was picked")
	}
	if s.Pick(Streaming, second, good, nil) != bad {
		t.Error("it was not picked though it is the only other one")
	}
	if picks(2*second) != bad {
		t.Error("it was not tried again after a second")
	}
	call(bad, Streaming, Failure, 0, 2*second)
	if picks(2*second) != good {
		t.Error("a further failure has no consequence")
	}
	call(bad, Streaming, Success, 0, 2*second)
	if picks(2*second) != bad {
		t.Error("it was not picked after it worked")
	}
}

func TestWindow(t *testing.T) {
	var w window
	for _, c := range []struct{ now, good, bad int64 }{
		{0, 1, 0}, {5, 1, 1}, {95, 2, 1}, {9, 3, 1}, {100, 2, 0}, {15, 3, 0}, {195, 2, 0}, {99, 4, 0}, {1000, 1, 0},
	} {
		if c.now == 5 {
			w.add(0, 1, c.now, 10)
		} else {
			w.add(1, 0, c.now, 10)
		}
		if good, bad := w.sum(c.now, 10); good != int(c.good) || bad != int(c.bad) {
			t.Errorf("at %d: %d good, %d bad, want %d, %d", c.now, good, bad, c.good, c.bad)
		}
	}
	for now, want := range map[int64]int{1099: 1, 1100: 0} {
		if good, _ := w.sum(now, 10); good != want {
			t.Errorf("at %d: %d good, want %d", now, good, want)
		}
	}
}

func TestConcurrentUse(t *testing.T) {
	s := New[int](Options{SlowStart: time.Millisecond, BaseEjection: time.Millisecond, MaxEjection: 5 * time.Millisecond, ProbeTimeout: time.Millisecond})
	start := time.Now()
	now := func() int64 { return int64(time.Since(start)) }
	s.Update(names(8), now(), func(string) int { return 0 })
	var everybody sync.Map
	var running sync.WaitGroup
	for range 4 {
		running.Go(func() {
			var last *Backend[int]
			for i := range 20_000 {
				kind := Kind(i % 2)
				b := s.Pick(kind, now(), last, nil)
				if b == nil {
					continue
				}
				everybody.Store(b, true)
				b.Start(kind, now())
				b.Done(kind, Outcome(rand.IntN(3)), time.Duration(rand.IntN(1000)), now())
				last = nil
				if i%7 == 0 {
					last = b
				}
				if i%100 == 0 {
					b.Info(now())
				}
			}
		})
	}
	running.Go(func() {
		for range 2000 {
			s.Update(names(rand.IntN(9)), now(), func(string) int { return 0 })
		}
	})
	running.Wait()
	everybody.Range(func(b, _ any) bool {
		if open := b.(*Backend[int]).Open(); open != 0 {
			t.Errorf("%d calls are open after all have ended", open)
		}
		return true
	})
	s.Update(names(4), now(), func(string) int { return 0 })
	if n := s.Ejected(); n > 2 || n != s.out {
		t.Errorf("%d are ejected, counted as %d", n, s.out)
	}
}

func TestNothingIsAllocated(t *testing.T) {
	s := newSet(Options{SlowStart: time.Second}, 10)
	s.Update(names(12), 0, func(string) int { return 0 })
	fail(s.Backends()[0], 0)
	now := int64(0)
	never := func(b *Backend[int]) bool { return b.Of == 0 }
	for _, kind := range []Kind{Unary, Streaming} {
		if n := testing.AllocsPerRun(1000, func() {
			now += second / 1000
			b := s.Pick(kind, now, nil, never)
			b.Start(kind, now)
			b.Done(kind, Success, time.Millisecond, now)
		}); n != 0 {
			t.Errorf("%v allocations for a call of kind %d", n, kind)
		}
	}
}

func BenchmarkCall(b *testing.B) {
	for _, kind := range []Kind{Unary, Streaming} {
		for _, backends := range []int{1, 2, 10, 1000} {
			b.Run(fmt.Sprintf("%s/%d", [...]string{"unary", "streaming"}[kind], backends), func(b *testing.B) {
				s := newSet(Options{}, backends)
				now := int64(0)
				b.ReportAllocs()
				for b.Loop() {
					now += 5000
					c := s.Pick(kind, now, nil, nil)
					c.Start(kind, now)
					c.Done(kind, Success, time.Millisecond, now)
				}
			})
		}
	}
}

func BenchmarkPick(b *testing.B) {
	for _, c := range []struct {
		name  string
		avoid bool
	}{{"", false}, {"avoid", true}} {
		for _, backends := range []int{2, 10, 1000} {
			b.Run(fmt.Sprintf("%s%d", c.name, backends), func(b *testing.B) {
				s := newSet(Options{}, backends)
				for i, c := range s.Backends() {
					call(c, Unary, Success, time.Duration(i)*time.Microsecond, 0)
				}
				var avoid *Backend[int]
				if c.avoid {
					avoid = s.Backends()[0]
				}
				now := int64(0)
				for b.Loop() {
					now += 5000
					s.Pick(Unary, now, avoid, nil)
				}
			})
		}
	}
}

func BenchmarkCallParallel(b *testing.B) {
	s := newSet(Options{}, 10)
	b.RunParallel(func(pb *testing.PB) {
		now := int64(0)
		for pb.Next() {
			now += 5000
			c := s.Pick(Unary, now, nil, nil)
			c.Start(Unary, now)
			c.Done(Unary, Success, time.Millisecond, now)
		}
	})
}
