package stream_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/levada-io/levada/stream"
	"github.com/levada-io/levada/stream/memstore"
)

// presenceHelper has the test binary be a process of a pod: it says its owner's name, and lives until its input ends.
const presenceHelper = "LEVADA_TEST_PRESENCE"

func init() {
	if os.Getenv(presenceHelper) != "" {
		fmt.Println(stream.Self().Incarnation)
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}
}

// onlyLinux: pods are Linux, and so is what their processes know each other by.
func onlyLinux(t *testing.T) {
	t.Helper()
	if runtime.GOOS != "linux" {
		t.Skip("pods run on Linux")
	}
}

// Two workers of one process, as they are needed for different limits, have the same POD_UID. Neither ends the other's leases when it starts: what is
// being processed is handed over once.
func TestWorkersOfOneProcessLeaveEachOtherTheirLeases(t *testing.T) {
	for name, change := range map[string]func(*stream.WorkerConfig){
		"in a pod": func(*stream.WorkerConfig) {},
		"sole":     func(c *stream.WorkerConfig) { c.SingleProcess = true },
	} {
		t.Run(name, func(t *testing.T) {
			t.Setenv("POD_UID", stream.NewID())
			t.Setenv("CONTAINER_NAME", "worker")
			p := startProducer(t, stream.ServerConfig{}, "s", stream.Slice(numbers(40)...))
			conns := p.connections(t)
			store := memstore.New()
			var mu sync.Mutex
			handed, lost := map[string]int{}, 0
			start := func() (stop func()) {
				config := stream.WorkerConfig{Store: store, Dial: conns.Dial, CommitRecords: 5, MaxJobs: 2, PollInterval: 10 * time.Millisecond, Logger: quiet,
					Observe: func(e stream.Event) {
						if e.Kind == stream.EventLost {
							mu.Lock()
							defer mu.Unlock()
							lost++
						}
					}}
				change(&config)
				w, err := stream.NewWorker(config)
				must(t, err)
				w.Handle("s", stream.AtLeastOnce(store.Sink(nil), func(ctx context.Context, b *stream.Batch) error {
					mu.Lock()
					defer mu.Unlock()
					for _, r := range b.Records {
						handed[b.IdempotencyKey(r)]++
					}
					time.Sleep(5 * time.Millisecond)
					return nil
				}))
				ctx, cancel := context.WithCancel(context.Background())
				done := make(chan error, 1)
				go func() { done <- w.Run(ctx) }()
				return func() { cancel(); must(t, <-done) }
			}
			for i := range 6 {
				_, err := store.Submit(t.Context(), stream.Job{ID: fmt.Sprint("j", i), Stream: "s"})
				must(t, err)
			}
			for range 3 {
				defer start()()
				time.Sleep(20 * time.Millisecond) // so that the one before is at work, or not: it must hold in both cases
			}
			eventually(t, "all jobs are complete", func() bool {
				jobs, err := store.List(t.Context(), stream.Filter{States: []stream.State{stream.Completed}})
				return err == nil && len(jobs) == 6
			})
			mu.Lock()
			defer mu.Unlock()
			if len(handed) != 6*40 || lost > 0 {
				t.Errorf("%d records were handed over, and %d leases were lost", len(handed), lost)
			}
			for key, n := range handed {
				if n != 1 {
					t.Errorf("record %s was handed over %d times", key, n)
				}
			}
		})
	}
}

// Processes with the same POD_UID, as those of the containers of a pod have it, leave each other their leases while they live. The leases of
// one that was killed are ended by the next that starts, whatever container that is in.
func TestAProcessOfThePodTakesOverOnlyFromTheDead(t *testing.T) {
	onlyLinux(t)
	uid := stream.NewID()
	t.Setenv("POD_UID", uid)
	other := exec.Command(os.Args[0], "-test.run=^$")
	other.Env = append(os.Environ(), presenceHelper+"=1")
	in, err := other.StdinPipe()
	must(t, err)
	defer in.Close()
	out, err := other.StdoutPipe()
	must(t, err)
	must(t, other.Start())
	defer other.Wait()
	defer other.Process.Kill()
	line, err := bufio.NewReader(out).ReadString('\n')
	must(t, err)
	owner := stream.Owner{Pod: "p", PodUID: uid, Incarnation: strings.TrimSpace(line)}
	byHand := stream.Owner{Pod: "p", PodUID: uid, Incarnation: stream.NewID()} // nobody can tell whether that process lives

	store := memstore.New()
	for _, o := range []stream.Owner{owner, byHand, {Pod: "q", PodUID: "another pod", Incarnation: newProcess()}} {
		_, err := store.Submit(t.Context(), stream.Job{Stream: "s"})
		must(t, err)
		claimed, err := store.Claim(t.Context(), stream.Claim{Owner: o, TTL: time.Hour, Max: 1})
		must(t, err)
		if len(claimed) != 1 {
			t.Fatal("not claimed")
		}
	}
	running := func() (owners []string) {
		jobs, err := store.List(t.Context(), stream.Filter{States: []stream.State{stream.Running}})
		must(t, err)
		for _, j := range jobs {
			if j.LeaseUntil.After(time.Now()) {
				owners = append(owners, j.Owner.Incarnation)
			}
		}
		return owners
	}
	p := startProducer(t, stream.ServerConfig{}, "s", stream.Slice(numbers(10)...))
	work := func(until func() bool, what string) {
		t.Helper()
		w, err := stream.NewWorker(stream.WorkerConfig{Store: store, Dial: p.connections(t).Dial, PollInterval: 10 * time.Millisecond, Logger: quiet})
		must(t, err)
		w.Handle("s", store.Sink(nil))
		w.Handle("t", store.Sink(nil))
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- w.Run(ctx) }()
		eventually(t, what, until)
		cancel()
		must(t, <-done)
	}
	sign, err := store.Submit(t.Context(), stream.Job{Stream: "t"}) // is claimed only after the worker has ended what leases it ends
	must(t, err)
	work(func() bool { s, err := store.Get(t.Context(), sign.ID); return err == nil && s.Attempts > 0 }, "the worker works")
	if got := running(); len(got) != 3 {
		t.Fatalf("leases of living processes were ended: %d of 3 are left", len(got))
	}
	must(t, other.Process.Kill())
	other.Wait()
	work(func() bool { return len(running()) == 2 }, "the job of the dead process was taken over")
	if got := running(); len(got) != 2 {
		t.Errorf("%d leases are left, and 2 owners may live", len(got))
	}
}
