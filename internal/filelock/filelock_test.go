//go:build unix

package filelock

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
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
	synctest.Test(t, func(t *testing.T) {
		if err := Lock(before.Fd()); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		taken := make(chan error, 1)
		go func() { taken <- Lock(now.Fd()) }()
		time.Sleep(patience / 2)
		select {
		case err := <-taken:
			t.Fatalf("two have it: %v", err)
		default:
		}
		_ = before.Close()
		if err := <-taken; err != nil || time.Since(began) > patience/2+retryEvery {
			t.Errorf("after the release: %v, %v", err, time.Since(began))
		}
	})
}

func TestLockOfARunningProcessIsRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	holder, second := open(t, path), open(t, path)
	synctest.Test(t, func(t *testing.T) {
		if err := Lock(holder.Fd()); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		if err := Lock(second.Fd()); !errors.Is(err, unix.EWOULDBLOCK) || time.Since(began) < patience || time.Since(began) > patience+retryEvery {
			t.Errorf("%v after %v", err, time.Since(began))
		}
	})
}
