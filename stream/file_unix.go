//go:build unix

package stream

import (
	"fmt"
	"io/fs"
	"syscall"
)

func fileIdentity(info fs.FileInfo) (string, error) {
	sys, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return "", fmt.Errorf("the system does not say which file %s is; set FileOptions.Identity", info.Name())
	}
	return fmt.Sprintf("device %d, inode %d", sys.Dev, sys.Ino), nil
}
