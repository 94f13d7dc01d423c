//go:build unix

package filesink

import (
	"os"

	"golang.org/x/sys/unix"
)

// lockFile keeps a second sink away until the file is closed or the process dies.
func lockFile(f file) error {
	if real, ok := f.(interface{ Fd() uintptr }); ok {
		return unix.Flock(int(real.Fd()), unix.LOCK_EX|unix.LOCK_NB)
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
