package broker

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"time"
)

// reserve is a file that takes space of the disk for the moment when there is none left: something else may have filled it. It is removed then, so that the
// store can save its state and remove what is done, and written again when there is room.
type reserve struct {
	path  string
	size  int64
	log   *slog.Logger
	space func() (free, total uint64, ok bool)

	held bool      // the file is there
	next time.Time // not before this is it written again
}

const (
	reserveSize  = 8 << 20
	reserveEvery = 30 * time.Second // between attempts to write it again
)

func newReserve(dir string, log *slog.Logger) *reserve {
	return &reserve{path: filepath.Join(dir, "reserve"), size: reserveSize, log: log, space: func() (uint64, uint64, bool) { return diskSpace(dir) }}
}

// look removes or writes the file, as the disk demands. It is called again and again, by one goroutine.
func (r *reserve) look(now time.Time) {
	free, total, ok := r.space()
	switch size := r.sizeFor(total); {
	case !ok || size == 0:
	case free < size/2 && r.held:
		if err := os.Remove(r.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			r.say(slog.LevelWarn, "reserve cannot be released", "error", err)
			return
		}
		r.held, r.next = false, now.Add(reserveEvery)
		r.say(slog.LevelWarn, "disk full, reserve released to the store", "bytes", size)
	case !r.held && free > 4*size && !now.Before(r.next):
		r.next = now.Add(reserveEvery)
		if err := allocate(r.path, int64(size)); err != nil {
			_ = os.Remove(r.path)
			r.say(slog.LevelDebug, "reserve cannot be allocated", "error", err)
			return
		}
		r.held = true
	}
}

// sizeFor keeps the file away from small disks, of which it would be a large part.
func (r *reserve) sizeFor(total uint64) uint64 {
	return min(uint64(r.size), total/32)
}

func (r *reserve) say(level slog.Level, what string, attrs ...any) {
	if r.log != nil {
		r.log.Log(context.Background(), level, what, append([]any{"file", r.path}, attrs...)...)
	}
}

// allocate writes a file of that size to the disk. It is written, not only made long: a hole takes no space.
func allocate(path string, size int64) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	chunk := make([]byte, 256<<10)
	for left := size; left > 0 && err == nil; left -= int64(len(chunk)) {
		_, err = f.Write(chunk[:min(left, int64(len(chunk)))])
	}
	return errors.Join(err, f.Sync(), f.Close())
}
