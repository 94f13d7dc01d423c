package filesource

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/levada-io/levada/internal/dataplane/source/records"
)

// atEnd is called when there are no more bytes.
func (r *Reader) atEnd() error {
	size, err := r.size()
	if err != nil {
		return err
	}
	if size < r.split.End() {
		return r.truncated(size)
	}
	if r.cfg.Follow && !r.rotated {
		return r.remember()
	}
	r.eof = size == r.split.End() // it may have grown since
	return nil
}

// wait returns nil when there may be more to cut.
func (r *Reader) wait(ctx context.Context) error {
	tick := time.NewTicker(r.cfg.Poll)
	defer tick.Stop()
	for {
		if more, err := r.look(); err != nil {
			return err
		} else if more {
			r.tail = nil
			return nil
		}
		if err := r.saver.Idle(ctx); err != nil {
			return fmt.Errorf("save position of %s: %w", r.cfg.Path, err)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}

// look reports whether there is more to cut: new bytes, or the last line of a file that nobody appends to any more.
func (r *Reader) look() (more bool, err error) {
	// The path is looked at first: what the old file still got before it was replaced is then seen below.
	replaced, err := r.replaced()
	if err != nil {
		return false, err
	}
	size, err := r.size()
	if err != nil {
		return false, err
	}
	switch end := r.split.End(); {
	case size < end:
		return false, r.truncated(size)
	case size > end:
		r.quiet = 0
		same, err := r.sameTail()
		if err == nil && !same {
			err = fmt.Errorf("%s: %w and written again", r.cfg.Path, ErrTruncated)
		}
		return err == nil, err
	case replaced:
		// Who writes the file may not have noticed yet, and may append to it a moment longer.
		if r.quiet++; r.quiet < 10 {
			return false, nil
		}
		r.eof, r.rotated = true, true
		return true, nil
	}
	return false, nil
}

func (r *Reader) truncated(size uint64) error {
	return fmt.Errorf("%s: %w to %d bytes after %d had been read", r.cfg.Path, ErrTruncated, size, r.split.End())
}

func (r *Reader) size() (uint64, error) {
	info, err := r.file.Stat()
	if err != nil {
		return 0, fmt.Errorf("%s: %w", r.cfg.Path, err)
	}
	return uint64(info.Size()), nil
}

// replaced reports whether another file lies at the path. A missing file is no sign: the rotation may not be complete yet.
func (r *Reader) replaced() (bool, error) {
	now, err := os.Stat(r.cfg.Path)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("path: %w", err)
	}
	open, err := r.file.Stat()
	if err != nil {
		return false, fmt.Errorf("%s: %w", r.cfg.Path, err)
	}
	return !os.SameFile(now, open), nil
}

// explain adds the file and line to an error of the splitter.
func (r *Reader) explain(err error) error {
	bad, ok := errors.AsType[*records.Error](err)
	if !ok {
		return err
	}
	return records.Fatal(r.at(bad), err)
}

// at says where a record is, for people. The lines before the place where reading began are counted once, when the first one is needed.
func (r *Reader) at(e *records.Error) string {
	if r.lines == nil {
		n, err := r.linesBefore(r.from)
		if err != nil {
			return fmt.Sprintf("%s: record at byte %d", r.cfg.Path, e.Offset)
		}
		r.lines = &n
	}
	return fmt.Sprintf("%s:%d", r.cfg.Path, *r.lines+e.Line+1)
}

// linesBefore counts line ends. It reads the file again, once in a run.
func (r *Reader) linesBefore(offset uint64) (uint64, error) {
	var n uint64
	chunk := make([]byte, 64<<10)
	for from := io.NewSectionReader(r.file, 0, int64(offset)); ; {
		k, err := from.Read(chunk)
		n += uint64(bytes.Count(chunk[:k], []byte{'\n'}))
		if err == io.EOF {
			return n, nil
		}
		if err != nil {
			return 0, err
		}
	}
}
