package sqlitestore

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/levada-io/levada/stream"
)

// LockWorker makes this process the only one that may work on the jobs of the file, until unlock is called or the process ends, however
// it ends. It returns an error that wraps [stream.ErrLocked] while another has that right. Submitting, listing and changing jobs needs no lock.
func (s *Store) LockWorker() (unlock func() error, err error) {
	// Two names of one file must lead to one lock.
	real, err := filepath.EvalSymlinks(s.path)
	if err != nil {
		return nil, fmt.Errorf("lock %s for a worker: %w", s.path, err)
	}
	name := real + "-worker.lock"
	file, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o666)
	if err != nil {
		return nil, fmt.Errorf("lock %s for a worker: %w", s.path, err)
	}
	if err := lockFile(file); err != nil {
		holder := "another process"
		if text, readErr := io.ReadAll(io.LimitReader(file, 32)); readErr == nil && len(text) > 0 {
			holder = "process " + strings.TrimSpace(string(text))
		}
		file.Close()
		if !errors.Is(err, errHeld) {
			return nil, fmt.Errorf("lock %s for a worker: %w", name, err)
		}
		return nil, fmt.Errorf("%s holds %s: stop it, or give this worker a file of its own; workers that share jobs need Postgres: %w", holder, name, stream.ErrLocked)
	}
	// The number is for the message above; the lock is what counts.
	if err := file.Truncate(0); err == nil {
		_, _ = file.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	}
	// The file stays: if it were removed, one who has it open could lock the old one while another makes a new one.
	return file.Close, nil
}

// errHeld: another process has the lock.
var errHeld = errors.New("the lock is held")
