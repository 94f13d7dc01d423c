//go:build unix

package filelock

import (
	"errors"

	"golang.org/x/sys/unix"
)

func flock(fd uintptr) error { return unix.Flock(int(fd), unix.LOCK_EX|unix.LOCK_NB) }

// held reports whether another process has the lock, or the request was interrupted.
func held(err error) bool { return errors.Is(err, unix.EWOULDBLOCK) || errors.Is(err, unix.EINTR) }

// Hold waits for the lock of an open file for as long as others have it.
func Hold(fd uintptr) error {
	for {
		if err := unix.Flock(int(fd), unix.LOCK_EX); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// Release releases the lock of a file that stays open.
func Release(fd uintptr) error { return unix.Flock(int(fd), unix.LOCK_UN) }
