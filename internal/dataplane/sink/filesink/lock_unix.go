//go:build unix

package filesink

import (
	"os"
	"syscall"

	"github.com/levada-io/levada/internal/filelock"
)

// lockFile keeps a second sink away until the file is closed or the process dies.
func lockFile(f file) error {
	if real, ok := f.(interface{ Fd() uintptr }); ok {
		return filelock.Lock(real.Fd())
	}
	return nil
}

// syncDir makes the names in a directory durable.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer func() { _ = d.Close() }()
	return d.Sync()
}

// idOf returns what tells a file from others.
func idOf(f file) (fileID, error) {
	info, err := f.Stat()
	if err != nil {
		return fileID{}, err
	}
	if s, ok := info.Sys().(*syscall.Stat_t); ok {
		return fileID{device: uint64(s.Dev), inode: s.Ino}, nil // its type differs between systems
	}
	return fileID{}, nil
}
