package filesource

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// inode names a file of this machine as long as it exists, under all its names. With the time of its creation, a file that reuses the number of a deleted one
// has another name, and the number of the device, which may change when the machine starts, is not needed. "" if the file system does not tell.
func inode(f *os.File) string {
	var s unix.Statx_t
	if err := unix.Statx(int(f.Fd()), "", unix.AT_EMPTY_PATH, unix.STATX_INO|unix.STATX_BTIME, &s); err != nil || s.Mask&unix.STATX_INO == 0 {
		return ""
	}
	if s.Mask&unix.STATX_BTIME != 0 {
		return fmt.Sprintf("%d@%d.%09d", s.Ino, s.Btime.Sec, s.Btime.Nsec)
	}
	return fmt.Sprintf("%d:%d:%d", s.Dev_major, s.Dev_minor, s.Ino)
}
