package filesource

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// mark is a saved position: where to go on, and by what to recognise the file. Which evidence decides is in has and is.
type mark struct {
	Offset uint64 `json:"offset"`
	// Head is a hash of the first bytes, Tail of those right before Offset; at most fingerprint of them.
	Head string `json:"head"`
	Tail string `json:"tail"`
	// Gen is the number of the file among those that lay at the path.
	Gen int `json:"gen,omitempty"`
	// Start is a hash of the first Known bytes. It is saved before a message that lies in the first fingerprint bytes is given, so that it covers
	// messages in flight, which Head does not.
	Known uint64 `json:"known,omitempty"`
	Start string `json:"start,omitempty"`
	// Inode is that of the file, and Place tells whether path and directory are still those where it was seen: a copy or a restored backup has other
	// inodes. Both are empty in marks of earlier versions, and where there are none.
	Inode string `json:"inode,omitempty"`
	Place string `json:"place,omitempty"`
	// Size and Modified are those of the file at that time, Modified in nanoseconds.
	Size     int64 `json:"size,omitempty"`
	Modified int64 `json:"modified,omitempty"`
	// Target is where the path led, if it is a symbolic link.
	Target string `json:"target,omitempty"`
	// Malformed says that reading stopped at a record that somebody has to correct. Many editors write another file then.
	Malformed bool `json:"malformed,omitempty"`
	// Past are the inodes of the last files before this one, so that they are not taken for rotated ones that were not read yet.
	Past []string `json:"past,omitempty"`
}

const (
	fingerprint = 1 << 10
	maxPast     = 32
)

// mark makes what is saved of a position.
func (r *Reader) mark(offset uint64) ([]byte, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	info, err := r.file.Stat()
	if err != nil {
		return nil, err
	}
	m := mark{
		Offset: offset, Gen: r.gen, Known: r.known, Inode: inode(r.file), Place: r.place, Size: info.Size(), Modified: info.ModTime().UnixNano(),
		Target: r.target, Malformed: r.malformed, Past: r.past,
	}
	if m.Head, m.Tail, err = r.fingerprints(r.file, offset); err != nil {
		return nil, err
	}
	if m.Start, err = r.hash(r.file, 0, m.Known); err != nil {
		return nil, err
	}
	r.saved = m
	return json.Marshal(m)
}

// know saves an identity that covers the first bytes of what may be given next. Nothing was given of them before it returns.
func (r *Reader) know(ctx context.Context) error {
	known := min(r.split.End(), fingerprint)
	if r.identified.Load() && (r.malformed || known <= r.known) {
		return nil
	}
	before := r.known
	r.mu.Lock()
	r.known = max(known, r.known)
	r.mu.Unlock()
	err := r.saver.Now(ctx)
	if err != nil && !errors.Is(err, ErrTruncated) {
		r.mu.Lock()
		r.known = before
		r.mu.Unlock()
		return fmt.Errorf("save the identity of %s: %w", r.cfg.Path, err)
	}
	r.identified.Store(true)
	return err
}

// exact limits what identifies the file to what was given of it: the rest may be edited.
func (r *Reader) exact() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.known = min(r.known, r.last.Load())
}

// awaitCorrection saves that the file is the same one after a correction of what was not given of it.
func (r *Reader) awaitCorrection(ctx context.Context) {
	if r.malformed {
		return
	}
	r.exact()
	r.mu.Lock()
	r.malformed = true
	r.mu.Unlock()
	if err := r.saver.Now(ctx); err != nil {
		r.cfg.Logger.Warn("position was not saved, a corrected file will be read from its start", "path", r.cfg.Path, "error", err)
	}
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

// has reports whether a file has what was read up to a position, and what was given.
func (r *Reader) has(f *os.File, m mark) bool {
	info, err := f.Stat()
	if err != nil || !info.Mode().IsRegular() || uint64(info.Size()) < max(m.Offset, m.Known) {
		return false
	}
	head, tail, err := r.fingerprints(f, m.Offset)
	if err != nil || head != m.Head || tail != m.Tail {
		return false
	}
	if m.Start == "" {
		return true
	}
	start, err := r.hash(f, 0, m.Known)
	return err == nil && start == m.Start
}

// is reports whether the file at the path is the one of a mark. Content is necessary. Where it was seen the inode must be the same as well: another file may
// begin alike. In another place, as after a restore or cp -a of the file and the data directory, content is enough; in the same one a copy must have
// kept size and time. After a malformed record content is enough, as the file was to be corrected.
func (r *Reader) is(f *os.File, m mark) bool {
	if !r.has(f, m) {
		return false
	}
	now := inode(f)
	if now == m.Inode || now == "" || m.Inode == "" || m.Malformed || m.Place != r.place {
		return true
	}
	info, err := f.Stat()
	return err == nil && info.Size() == m.Size && info.ModTime().UnixNano() == m.Modified && bornAfter(now, info.ModTime())
}

// bornAfter reports whether a file was created well after it was last modified, so that somebody set its time.
func bornAfter(inode string, modified time.Time) bool {
	_, born, _ := strings.Cut(inode, "@")
	seconds, _, ok := strings.Cut(born, ".")
	at, err := strconv.ParseInt(seconds, 10, 64)
	return ok && err == nil && at > modified.Unix()+1
}

// where names the place of a path: its absolute name, and the directory in which its first symbolic link lies, or else the file. What a link leads to may
// change, and the place is the same.
func where(path string) string {
	path, err := filepath.Abs(path)
	if err != nil {
		return ""
	}
	dir := filepath.Dir(path)
	for at := path; at != filepath.Dir(at); at = filepath.Dir(at) {
		if info, err := os.Lstat(at); err == nil && info.Mode()&os.ModeSymlink != 0 {
			dir = filepath.Dir(at)
		}
	}
	d, err := os.Open(dir)
	if err != nil {
		return ""
	}
	defer func() { _ = d.Close() }()
	sum := sha256.Sum256([]byte(strconv.Quote(path) + inode(d)))
	return hex.EncodeToString(sum[:12])
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
