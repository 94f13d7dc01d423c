package filesource

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// mark is a saved position: where to go on, and by what to know the file again. Two files that begin alike, as those with the same CSV
// header do, seldom have the same bytes before the position as well.
type mark struct {
	Offset uint64 `json:"offset"`
	// Head is a hash of the first bytes, Tail of those right before Offset; at most fingerprint of them.
	Head string `json:"head"`
	Tail string `json:"tail"`
}

const fingerprint = 1 << 10

// mark makes what is saved of a position.
func (r *Reader) mark(offset uint64) ([]byte, error) {
	head, tail, err := r.fingerprints(offset)
	if err != nil {
		return nil, err
	}
	return json.Marshal(mark{Offset: offset, Head: head, Tail: tail})
}

func (r *Reader) fingerprints(offset uint64) (head, tail string, err error) {
	n := min(offset, fingerprint)
	if head, err = r.hash(0, n); err != nil {
		return "", "", err
	}
	tail, err = r.hash(offset-n, n)
	return head, tail, err
}

func (r *Reader) hash(offset, n uint64) (string, error) {
	b := make([]byte, n)
	if _, err := r.file.ReadAt(b, int64(offset)); errors.Is(err, io.EOF) {
		return "", fmt.Errorf("%s: %w to less than %d bytes: %s", r.cfg.Path, ErrTruncated, offset+n, whatToDo)
	} else if err != nil {
		return "", fmt.Errorf("read %s at byte %d: %w", r.cfg.Path, offset, err)
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:12]), nil
}

const whatToDo = "put the file back, or read the new one under a new name or with a new partition name, from its start"

// check returns the offset of a saved position, if the file still is what it was when that was saved.
func (r *Reader) check(saved []byte, size int64) (uint64, error) {
	var m mark
	if err := json.Unmarshal(saved, &m); err != nil {
		return 0, fmt.Errorf("saved position of %s: %q is none of this source: %w", r.cfg.Path, saved, err)
	}
	if m.Offset > uint64(size) {
		return 0, fmt.Errorf("%s: %w: it has %d bytes, and %d were read of it before; %s", r.cfg.Path, ErrTruncated, size, m.Offset, whatToDo)
	}
	head, tail, err := r.fingerprints(m.Offset)
	if err != nil {
		return 0, err
	}
	if head != m.Head {
		return 0, fmt.Errorf("%s: %w: it begins otherwise than the file that was read up to byte %d before; %s", r.cfg.Path, ErrReplaced, m.Offset, whatToDo)
	}
	if tail != m.Tail {
		return 0, fmt.Errorf("%s: %w: before byte %d, where it is to be read on, it has not the bytes that were read; %s", r.cfg.Path, ErrReplaced, m.Offset, whatToDo)
	}
	return m.Offset, nil
}

// remember keeps the bytes before the end of what was read.
func (r *Reader) remember() error {
	end := r.split.End()
	b := make([]byte, min(end, 64))
	if _, err := r.file.ReadAt(b, int64(end)-int64(len(b))); err != nil {
		return fmt.Errorf("read %s at byte %d: %w", r.cfg.Path, end, err)
	}
	r.tail = b
	return nil
}

// sameTail reports whether those bytes are still there. They are not when somebody truncated the file and wrote more than had been read.
func (r *Reader) sameTail() (bool, error) {
	b := make([]byte, len(r.tail))
	if _, err := r.file.ReadAt(b, int64(r.split.End())-int64(len(b))); err != nil && !errors.Is(err, io.EOF) {
		return false, fmt.Errorf("read %s at byte %d: %w", r.cfg.Path, r.split.End(), err)
	}
	return bytes.Equal(b, r.tail), nil
}
