package jetstream_test

import (
	"context"
	"errors"
	"os/exec"
	"runtime"
	"testing"
	"time"

	"github.com/levada-io/levada/internal/broker"
	"github.com/levada-io/levada/internal/dataplane/isb"
	service "github.com/levada-io/levada/internal/dataplane/isb/jetstream"
	"github.com/levada-io/levada/internal/dataplane/naming"
	"github.com/levada-io/levada/internal/dataplane/ownership"
)

func leaseStore(t *testing.T) ownership.Store {
	t.Helper()
	b, err := broker.Start(broker.Config{Dir: t.TempDir(), SyncInterval: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Stop)
	connected, err := service.Connect(t.Context(), service.Config{Server: b})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(connected.Close)
	store, err := connected.Open(t.Context(), isb.Request{Owner: naming.Owner{Namespace: "default", Kind: naming.Pipeline, Name: "p"}})
	if err != nil {
		t.Fatal(err)
	}
	return isb.PipelineLease(store.State())
}

// Against a real server: a second run is refused with the first one's name while that lives, and takes over at once when the process has ended.
func TestLeaseAtARealBroker(t *testing.T) {
	store := leaseStore(t)
	child := exec.Command("sleep", "1000")
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	ended := false
	end := func() {
		if !ended {
			ended = true
			_ = child.Process.Kill()
			_ = child.Wait()
		}
	}
	defer end()
	first := ownership.Self("levada run a.yaml", "test")
	if first.ProcessStart == "" {
		if runtime.GOOS == "linux" {
			t.Fatal("the start time of this process cannot be read from /proc")
		}
		t.Skip("no /proc here")
	}
	first.PID = child.Process.Pid
	start, err := ownership.StartOf(child.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	first.ProcessStart = start
	lease, err := ownership.Acquire(t.Context(), ownership.Config{Store: store, Self: first})
	if err != nil {
		t.Fatal(err)
	}
	_, err = ownership.Acquire(t.Context(), ownership.Config{Store: store, Self: ownership.Self("levada run a.yaml", "test")})
	owned, ok := errors.AsType[*ownership.OwnedError](err)
	if !ok || owned.Owner.PID != child.Process.Pid {
		t.Fatalf("the second claim: %v", err)
	}
	end()
	began := time.Now()
	second, err := ownership.Acquire(t.Context(), ownership.Config{Store: store, Self: ownership.Self("levada run a.yaml", "test")})
	if err != nil || time.Since(began) > time.Second {
		t.Fatalf("after the end of the first process: %v after %v", err, time.Since(began))
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	lease.Recheck()
	if err := lease.Run(ctx); !errors.Is(err, ownership.ErrLost) {
		t.Errorf("the first lease: %v", err)
	}
	if err := second.Release(ctx); err != nil {
		t.Error(err)
	}
	if _, _, ok, err := ownership.Last(ctx, store); ok || err != nil {
		t.Errorf("after the release: owned %v, %v", ok, err)
	}
}
