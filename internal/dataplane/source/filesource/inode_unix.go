//go:build unix && !linux

package filesource

import (
	"fmt"
	"os"
	"syscall"
)

// inode names a file of this machine as long as it exists, under all its names. "" if the file system does not tell.
func inode(f *os.File) string {
	info, err := f.Stat()
	if err != nil {
		return ""
	}
	s, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return ""
	}
	return fmt.Sprintf("%d:%d", s.Dev, s.Ino)
}
