//go:build linux

package standalone_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/levada-io/levada/internal/standalone"
)

// TestFullDiskRecoversWithoutARestart fills the disk of the data directory while a pipeline runs, and makes room again after some seconds: streams stayed in "critical
// write error" until levada was restarted.
func TestFullDiskRecoversWithoutARestart(t *testing.T) {
	s := newSite(t)
	s.cfg.DataDir = smallDisk(t, "24m")
	lines := numbered(strings.Repeat("x", 200), 100_000)
	s.write(t, "data.txt", lines...)
	filled := make(chan struct{})
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	started := make(chan struct{})
	s.cfg.Started = func(*standalone.Running) { close(started) }
	go func() {
		defer close(filled)
		select {
		case <-started:
		case <-ctx.Done():
			return
		}
		filler := filepath.Join(s.cfg.DataDir, "filler")
		f, err := os.Create(filler)
		if err != nil {
			t.Error(err)
			return
		}
		for end := time.Now().Add(5 * time.Second); time.Now().Before(end); {
			if _, err := f.Write(make([]byte, 4096)); err != nil {
				<-time.After(10 * time.Millisecond)
			}
		}
		_ = f.Close()
		if err := os.Remove(filler); err != nil {
			t.Error(err)
		}
	}()
	err := s.runUntil(ctx, t, pipelineFile("p", "v"))
	ended := ctx.Err()
	cancel()
	<-filled
	if err != nil || ended != nil {
		t.Fatalf("%v, %v\n%s", err, ended, s.logs)
	}
	if got := s.lines(t, "out.txt"); len(got) != len(lines) {
		t.Errorf("%d lines of %d", len(got), len(lines))
	}
}

// unlessCI skips the test with the reason, which is a failure under CI=true.
func unlessCI(t *testing.T, reason string) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatal(reason)
	}
	t.Skip(reason)
}

// smallDisk mounts a file system in memory of a size.
func smallDisk(t *testing.T, size string) string {
	t.Helper()
	if os.Getuid() != 0 {
		unlessCI(t, "mounting a small disk needs root")
	}
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size="+size); err != nil {
		unlessCI(t, "mounting a small disk: "+err.Error())
	}
	t.Cleanup(func() {
		flags := 0
		if t.Failed() {
			flags = syscall.MNT_DETACH // its files may still be open
		}
		if err := syscall.Unmount(dir, flags); err != nil {
			t.Error(err)
		}
	})
	return dir
}
