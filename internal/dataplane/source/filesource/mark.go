package filesource

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
)

// mark is a saved position: where to go on, and by what to know the file again. Two files that begin alike, as those with the same CSV
// header do, seldom have the same bytes before the position as well.
type mark struct {
	Offset uint64 `json:"offset"`
	// Head is a hash of the first bytes, Tail of those right before Offset; at most fingerprint of them.
	Head string `json:"head"`
	Tail string `json:"tail"`
	// Gen is the number of the file among those that lay at the path.
	Gen int `json:"gen,omitempty"`
}

const fingerprint = 1 << 10

// mark makes what is saved of a position.
func (r *Reader) mark(offset uint64) ([]byte, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	head, tail, err := r.fingerprints(r.file, offset)
	if err != nil {
		return nil, err
	}
	r.saved = mark{Offset: offset, Head: head, Tail: tail, Gen: r.gen}
	return json.Marshal(r.saved)
}

func (r *Reader) fingerprints(f *os.File, offset uint64) (head, tail string, err error) {
	n := min(offset, fingerprint)
	if head, err = r.hash(f, 0, n); err != nil {
		return "", "", err
	}
	tail, err = r.hash(f, offset-n, n)
	return head, tail, err
}

func (r *Reader) hash(f *os.File, offset, n uint64) (string, error) {
	b := make([]byte, n)
	if _, err := f.ReadAt(b, int64(offset)); errors.Is(err, io.EOF) {
		return "", fmt.Errorf("%s: %w to less than %d bytes", r.cfg.Path, ErrTruncated, offset+n)
	} else if err != nil {
		return "", fmt.Errorf("read %s at byte %d: %w", r.cfg.Path, offset, err)
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:12]), nil
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
