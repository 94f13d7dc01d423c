//go:build darwin || dragonfly || freebsd || illumos || linux || netbsd || openbsd

package sqlitestore

import (
	"errors"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// lockPatience is how long a lock is waited for that another process has. A process that was killed can keep its locks for a moment: a child that it was starting has a copy
// of every open file between fork and exec.
const lockPatience = time.Second

func lockFile(f *os.File) error {
	for end := time.Now().Add(lockPatience); ; time.Sleep(10 * time.Millisecond) {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		switch held := errors.Is(err, unix.EWOULDBLOCK); {
		case held && time.Now().After(end):
			return errHeld
		case !held && !errors.Is(err, unix.EINTR):
			return err
		}
	}
}
