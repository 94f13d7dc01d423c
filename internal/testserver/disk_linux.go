package testserver

import (
	"os"
	"syscall"
	"testing"
)

// SmallDisk mounts an empty file system of that size, such as 24m, until the test ends, and returns its directory. It needs root; without it the test is skipped, or
// fails under CI=true.
func SmallDisk(t testing.TB, size string) string {
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

// unlessCI skips the test with the reason, which is a failure under CI=true.
func unlessCI(t testing.TB, reason string) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatal(reason)
	}
	t.Skip(reason)
}

// GrowDisk gives a file system of SmallDisk another size.
func GrowDisk(t testing.TB, dir, size string) {
	t.Helper()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", syscall.MS_REMOUNT, "size="+size); err != nil {
		t.Fatal(err)
	}
}
