// Package filelock locks files for one process, with flock(2). On systems without it nothing is locked.
package filelock

import "time"

// patience is how long Lock waits for a lock that another process has. A process that was killed can keep its locks for a moment: a child that it was starting has a copy of
// every open file between fork and exec.
const patience = time.Second

// retryEvery is how often Lock tries meanwhile.
const retryEvery = 10 * time.Millisecond

// Lock takes the lock of an open file until the file is closed or the process ends, and waits for it for a second. The error is that of flock(2) if another process has it.
func Lock(fd uintptr) error {
	for end := time.Now().Add(patience); ; time.Sleep(retryEvery) {
		err := flock(fd)
		if !held(err) || time.Now().After(end) {
			return err
		}
	}
}
