//go:build linux

package standalone_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/levada-io/levada/internal/standalone"
	"github.com/levada-io/levada/internal/testserver"
)

// TestFullDiskRecoversWithoutARestart fills the disk of the data directory while a pipeline runs, and makes room again after some seconds: streams stayed in "critical
// write error" until levada was restarted.
func TestFullDiskRecoversWithoutARestart(t *testing.T) {
	s := newSite(t)
	s.cfg.DataDir = testserver.SmallDisk(t, "24m")
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
