package wheel

import (
	"context"
	"math"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"
)

// run starts the wheel, and returns what stops it.
func run(w *Wheel) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { w.Run(ctx) })
	return func() { cancel(); running.Wait() }
}

// TestModel sets, sets again and stops timers at random, in virtual time, and compares with what a list of times says.
func TestModel(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		type timer struct {
			Timer
			at int64 // 0: not set
		}
		synctest.Test(t, func(*testing.T) {
			w := New()
			stop := run(w)
			defer stop()
			timers := make([]*timer, 20)
			for i := range timers {
				timers[i] = &timer{}
				timers[i].Init(func(now int64) {
					x := timers[i]
					if x.at == 0 {
						r.Errorf("timer %d went off, which was not set", i)
					}
					if late := now - x.at; late < 0 || late > int64(Tick) {
						r.Errorf("timer %d went off %v late", i, time.Duration(late))
					}
					x.at = 0
				})
			}
			for range rapid.IntRange(1, 60).Draw(r, "steps") {
				i := rapid.IntRange(0, len(timers)-1).Draw(r, "timer")
				x := timers[i]
				switch rapid.IntRange(0, 3).Draw(r, "what") {
				case 0, 1:
					in := time.Duration(rapid.Int64Range(1, int64(1)<<rapid.IntRange(1, 46).Draw(r, "scale")).Draw(r, "in"))
					x.at = w.Now() + int64(in)
					w.Set(&x.Timer, x.at)
				case 2:
					x.at = 0
					w.Stop(&x.Timer)
				case 3:
					time.Sleep(time.Duration(rapid.Int64Range(0, int64(1)<<rapid.IntRange(1, 44).Draw(r, "scale")).Draw(r, "sleep")))
					synctest.Wait()
				}
				set := 0
				for i, x := range timers {
					if x.at != 0 {
						set++
						if over := w.Now() - x.at; over > int64(Tick) {
							r.Fatalf("timer %d did not go off: it is %v late", i, time.Duration(over))
						}
					}
				}
				if w.Len() != set {
					r.Fatalf("%d timers are set, the wheel holds %d", set, w.Len())
				}
			}
		})
	})
}

func TestSetFromItsOwnFunction(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := New()
		stop := run(w)
		defer stop()
		fired := 0
		var again Timer
		again.Init(func(now int64) {
			if fired++; fired < 1000 {
				w.Set(&again, now+int64(time.Second))
			}
		})
		w.Set(&again, int64(time.Second))
		time.Sleep(1010 * time.Second)
		synctest.Wait()
		if fired != 1000 {
			t.Fatalf("%d times", fired)
		}
	})
}

func BenchmarkSetStop(b *testing.B) {
	w := New()
	var t Timer
	t.Init(func(int64) {})
	b.ReportAllocs()
	for i := range b.N {
		w.Set(&t, int64(i)+int64(time.Second))
		w.Stop(&t)
	}
}

// TestFarFuture: times that no process lives to see neither go off at once nor at all, and do not disturb others.
func TestFarFuture(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := New()
		stop := run(w)
		defer stop()
		var far [6]Timer
		fired := 0
		for i, at := range []int64{1<<63 - 1, 1<<63 - 2, math.MaxInt64 - int64(Tick), 290 * 365 * 24 * int64(time.Hour), 20 * 365 * 24 * int64(time.Hour), 9 * 365 * 24 * int64(time.Hour)} {
			far[i].Init(func(int64) { fired++ })
			w.Set(&far[i], at)
		}
		for range 40 { // months
			near := false
			var x Timer
			x.Init(func(int64) { near = true })
			w.Set(&x, w.Now()+int64(24*time.Hour))
			time.Sleep(31 * 24 * time.Hour)
			synctest.Wait()
			if !near {
				t.Fatal("another timer does not go off")
			}
		}
		if fired > 0 {
			t.Errorf("%d went off", fired)
		}
		for i := range far {
			w.Stop(&far[i])
		}
		if n := w.Len(); n != 0 {
			t.Errorf("%d timers are left", n)
		}
	})
}
