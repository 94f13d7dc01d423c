package broker

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// TestReserveIsReleasedWhenTheDiskIsFullAndTakenAgainWhenThereIsRoom: something else may fill the disk, and then the store needs space to remove what is done.
func TestReserveIsReleasedWhenTheDiskIsFullAndTakenAgainWhenThereIsRoom(t *testing.T) {
	free, total := uint64(100<<20), uint64(1<<30)
	r := newReserve(t.TempDir(), nil)
	r.space = func() (uint64, uint64, bool) { return free, total, true }
	now := time.Now()
	there := func(want bool, when string) {
		t.Helper()
		info, err := os.Stat(r.path)
		if (err == nil) != want {
			t.Fatalf("%s: %v", when, err)
		}
		if err == nil {
			if taken := info.Sys().(*syscall.Stat_t).Blocks * 512; taken < reserveSize {
				t.Fatalf("%s: the file takes %d bytes of the disk", when, taken)
			}
		}
	}
	r.look(now)
	there(true, "with room")
	free = 10 << 20
	r.look(now)
	there(true, "with little room")
	free = 1 << 20
	r.look(now)
	there(false, "with a full disk")
	free = 9 << 20 // what was released
	r.look(now.Add(time.Hour))
	there(false, "with no more room than it needs itself")
	free = 100 << 20
	r.look(now.Add(time.Second))
	there(false, "right after it was released")
	r.look(now.Add(time.Hour))
	there(true, "with room again")

	small := newReserve(t.TempDir(), nil)
	small.space = func() (uint64, uint64, bool) { return 20 << 20, 24 << 20, true }
	small.look(now)
	info, err := os.Stat(filepath.Clean(small.path))
	if err != nil || info.Size() > 1<<20 {
		t.Fatalf("of a disk of 24 MB: %v, %v", info, err)
	}
}
