//go:build unix

package filelock

import (
	"errors"

	"golang.org/x/sys/unix"
)

func flock(fd uintptr) error { return unix.Flock(int(fd), unix.LOCK_EX|unix.LOCK_NB) }

// held reports whether another process has the lock, or the request was interrupted.
func held(err error) bool { return errors.Is(err, unix.EWOULDBLOCK) || errors.Is(err, unix.EINTR) }
