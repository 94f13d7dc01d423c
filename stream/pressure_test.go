package stream

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"
)

func TestMemoryPressure(t *testing.T) {
	dir := t.TempDir()
	p := &pressure{usage: filepath.Join(dir, "memory.current"), limit: filepath.Join(dir, "memory.max")}
	write := func(name, content string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	used := func(megabytes, droppable int) {
		t.Helper()
		write("memory.current", fmt.Sprintln(megabytes<<20))
		write("memory.stat", fmt.Sprintf("anon 1\ninactive_file %d\nactive_file 7\n", droppable<<20))
	}
	write("memory.max", fmt.Sprintln(100<<20))
	synctest.Test(t, func(t *testing.T) {
		shed := 0
		used(50, 0)
		ctx := t.Context()
		go p.watch(ctx, slog.New(slog.DiscardHandler), func() bool { shed++; return true })
		for _, step := range []struct {
			used, droppable int
			high            bool
			shed            int
		}{
			{89, 0, false, 0},
			{99, 20, false, 0}, // the kernel drops the rest
			{91, 0, true, 0},
			{85, 0, true, 0}, // until it is free again
			{79, 0, false, 0},
			{96, 0, true, 1},
			{96, 0, true, 2}, // the first was not enough
			{70, 0, false, 2},
		} {
			used(step.used, step.droppable)
			time.Sleep(5*pressureEvery + time.Millisecond)
			synctest.Wait()
			if p.high() != step.high || shed != step.shed {
				t.Errorf("%d MB used, %d of it droppable: high %v, shed %d, want %v, %d", step.used, step.droppable, p.high(), shed, step.high, step.shed)
			}
		}
	})
}
