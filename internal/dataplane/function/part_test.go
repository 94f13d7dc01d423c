package function_test

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	"github.com/levada-io/levada/internal/dataplane/deadletter"
	"github.com/levada-io/levada/internal/dataplane/function"
)

// TestProcessingTimeoutIsPerCall: a call that takes longer than the timeout is found while others are answered all the time. It passed, because any
// answer of its block counted as progress of the call.
func TestProcessingTimeoutIsPerCall(t *testing.T) {
	for name, noBlocks := range map[string]bool{"block mode": false, "one by one": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var died atomic.Int64
			f := myself(t, "sleep", function.Config{NoBlocks: noBlocks, Concurrency: 4, Timeout: 300 * time.Millisecond, Died: func(string) { died.Add(1) }})
			in := messages(600, func(i int) string {
				if i == 10 {
					return "30s"
				}
				return "5ms"
			})
			begun := time.Now()
			out, err := f.Map(t.Context(), in)
			if err != nil {
				t.Fatal(err)
			}
			if o := out[10]; o.Verdict != function.Suspect || o.Failure == nil || o.Failure.Reason != deadletter.Hang {
				t.Errorf("the slow call is %+v, failure %+v", o, o.Failure)
			}
			if died.Load() == 0 || time.Since(begun) > 10*time.Second {
				t.Errorf("died %d times, after %v", died.Load(), time.Since(begun))
			}
		})
	}
}

// TestSlowQueueIsNoHang: blocks that wait behind others of a slow function do not hang, however long they wait.
func TestSlowQueueIsNoHang(t *testing.T) {
	var died atomic.Int64
	f := myself(t, "sleep", function.Config{Concurrency: 1, Timeout: 400 * time.Millisecond, Died: func(string) { died.Add(1) }})
	done := make(chan []function.Outcome)
	in := messages(20, func(int) string { return "20ms" })
	for range 4 {
		go func() {
			out, _ := f.Map(t.Context(), in)
			done <- out
		}()
	}
	for range 4 {
		wantEcho(t, in, <-done)
	}
	if died.Load() > 0 {
		t.Error("it was taken for one that hangs")
	}
}

// TestPartGivesWhatIsDone: results can be taken while others of the same call are in user code, and nothing new is begun once the caller asks for that.
func TestPartGivesWhatIsDone(t *testing.T) {
	for name, noBlocks := range map[string]bool{"block mode": false, "one by one": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := myself(t, "sleep", function.Config{NoBlocks: noBlocks, Concurrency: 1})
			if err := f.Ready(t.Context()); err != nil {
				t.Fatal(err)
			}
			until, stop := context.WithCancel(t.Context())
			defer stop()
			part := &function.Part{Until: until}
			in := messages(500, func(int) string { return "20ms" })
			result := make(chan []function.Outcome, 1)
			begun := time.Now()
			go func() {
				out, _ := f.MapPart(t.Context(), in, part)
				result <- out
			}()
			seen := map[int]bool{}
			for len(seen) < 10 {
				if time.Since(begun) > 10*time.Second {
					t.Fatalf("%d results in %v", len(seen), time.Since(begun))
				}
				time.Sleep(5 * time.Millisecond) // as a caller does
				part.Take(func(i int, o *function.Outcome) {
					if seen[i] || o.Verdict != function.Done || len(o.Results) != 1 {
						t.Errorf("message %d, seen %v: %+v", i, seen[i], o)
					}
					seen[i] = true
				})
			}
			stop()
			stopped := time.Now()
			out := <-result
			if took := time.Since(stopped); took > 2*time.Second {
				t.Errorf("it ended %v after it was asked to", took)
			}
			unbegun := 0
			for i := range out {
				if out[i].Verdict == function.Unbegun {
					unbegun++
				} else if out[i].Verdict != function.Done || len(out[i].Results) != 1 {
					t.Errorf("message %d is %+v", i, out[i])
				}
			}
			if unbegun < 400 {
				t.Errorf("%d of 500 were not begun", unbegun)
			}
		})
	}
}
