//go:build unix

package filelock

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func open(t *testing.T, path string) *os.File {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}

// A lock that is released a moment later is taken: its process was killed, and a child of it has not reached exec yet.
func TestLockThatIsReleasedSoonIsTaken(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	before, now := open(t, path), open(t, path)
	if err := Lock(before.Fd()); err != nil {
		t.Fatal(err)
	}
	taken := make(chan error, 1)
	go func() { taken <- Lock(now.Fd()) }()
	select {
	case err := <-taken:
		t.Fatalf("two have it: %v", err)
	case <-time.After(3 * retryEvery): // it has tried, or tries for the first time after the release
	}
	_ = before.Close()
	if err := <-taken; err != nil {
		t.Errorf("after the release: %v", err)
	}
}

func TestLockOfARunningProcessIsRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	holder, second := open(t, path), open(t, path)
	if err := Lock(holder.Fd()); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	if err := Lock(second.Fd()); !errors.Is(err, unix.EWOULDBLOCK) || time.Since(began) < patience {
		t.Errorf("%v after %v", err, time.Since(began))
	}
}
