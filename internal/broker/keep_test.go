//go:build linux

package broker

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/levada-io/levada/internal/testserver"
)

// TestFailedStoreIsRestartedOnANearlyFullDisk: the removal of what is done may be what waits for the restart. If the restart waited until writers have room again, neither
// would ever happen.
func TestFailedStoreIsRestartedOnANearlyFullDisk(t *testing.T) {
	dir := testserver.SmallDisk(t, "24m")
	b, err := Start(Config{Dir: filepath.Join(dir, "broker")})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Stop()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	nc, err := b.Connect()
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := js.CreateStream(ctx, jetstream.StreamConfig{Name: "s", Subjects: []string{"s"}}); err != nil {
		t.Fatal(err)
	}
	filler, err := os.Create(filepath.Join(dir, "filler"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = filler.Close() }()
	size := int64(0)
	// The reserve is released while the disk is full, so there is more than one try.
	for b.Healthy(ctx) == nil {
		for {
			n, err := filler.Write(make([]byte, 4096))
			size += int64(n)
			if errors.Is(err, syscall.ENOSPC) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		short, cancel := context.WithTimeout(ctx, time.Second)
		_, _ = js.Publish(short, "s", make([]byte, 8192))
		cancel()
		if ctx.Err() != nil {
			t.Fatal("the store did not fail")
		}
	}
	if err := filler.Truncate(size - 3<<20); err != nil {
		t.Fatal(err)
	}
	for {
		short, cancel := context.WithTimeout(ctx, 2*time.Second) // a request that the server had when it went is never answered
		_, err := js.Publish(short, "s", []byte("after"))
		cancel()
		if err == nil && b.Healthy(ctx) == nil {
			break
		}
		if ctx.Err() != nil {
			t.Fatalf("publish: %v; health: %v", err, b.Healthy(t.Context()))
		}
		<-time.After(50 * time.Millisecond)
	}
	if err := b.Room(); !errors.Is(err, ErrNoRoom) {
		t.Errorf("writers are to wait while the disk is nearly full: %v", err)
	}
}
