package stream

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"time"
)

// FileFormat says how a file is divided into records.
type FileFormat string

const (
	// FileLines: each line is a record, without the newline that ends it. A carriage return before that stays, and an empty line
	// is an empty record. JSON lines are just lines. The default.
	FileLines FileFormat = "lines"
	// FileFixed: all records have the same size.
	FileFixed FileFormat = "fixed"
	// FilePrefixed: before each record stands its size, as 4 bytes, big endian.
	FilePrefixed FileFormat = "prefixed"
)

// FileOptions has a usable zero value.
type FileOptions struct {
	Format FileFormat
	// RecordSize is the size of each record of a FileFixed file, in bytes.
	RecordSize int
	// Follow makes the stream wait at the file's end for more, indefinitely. A last line without a newline is then not yet a record;
	// without Follow it is one. A file that is being written should be followed, or its last line may be served in part.
	Follow bool
	// Poll is how often a followed file is looked at while it does not grow. Default 250 ms.
	Poll time.Duration
	// MaxRecord is the size of the largest record, in bytes. A longer line becomes a bad record; a longer record of a
	// FilePrefixed file ends the stream, since such a size is rather a sign of damage. Default 1 MiB.
	MaxRecord int
	// Identity names this version of the file, in place of its device and inode number, which change when the file is copied to another
	// machine, and on some network file systems at each mount. Change it whenever the file is recreated.
	Identity string
}

func (o FileOptions) withDefaults() FileOptions {
	o.Format = cmp.Or(o.Format, FileLines)
	o.Poll = cmp.Or(o.Poll, 250*time.Millisecond)
	o.MaxRecord = cmp.Or(o.MaxRecord, 1<<20)
	return o
}

func (o FileOptions) check(path string) error {
	switch {
	case o.Format != FileLines && o.Format != FileFixed && o.Format != FilePrefixed:
		return Halt(fmt.Errorf("file %s: format %q is not known; use %q, %q or %q", path, o.Format, FileLines, FileFixed, FilePrefixed))
	case o.MaxRecord < 0 || o.Poll < 0:
		return Halt(fmt.Errorf("file %s: MaxRecord (%d) and Poll (%v) must not be negative", path, o.MaxRecord, o.Poll))
	case o.Format == FileFixed && (o.RecordSize < 1 || o.RecordSize > o.MaxRecord):
		return Halt(fmt.Errorf("file %s: RecordSize is %d, and must be from 1 to MaxRecord (%d)", path, o.RecordSize, o.MaxRecord))
	case o.Format != FileFixed && o.RecordSize != 0:
		return Halt(fmt.Errorf("file %s: RecordSize is only for files of the format %q", path, FileFixed))
	}
	return nil
}

// File makes a Source of a file, which may grow but must not be changed before its end.
//
// The key of a record is the offset of its end (with the newline, if it has one) as 8 bytes, big endian, and a checksum, 4 bytes, of
// the file's first 4 KiB and of the 64 bytes before that offset. So going on in a file that was overwritten in place is an
// [ErrGeneration], as it is in one that took the path of the first; a file that is shorter than the position is an [ErrGone].
//
// A file that is cut between two streams, at or after the position of the first, cannot be distinguished from one that was never longer: the job completes with the
// records that are left. Write to a new file and rename it, rather than cut one in place.
func File(path string, options FileOptions) Source {
	o := options.withDefaults()
	return &fileSource{path: path, o: o, err: o.check(path)}
}

type fileSource struct {
	path string
	o    FileOptions
	err  error
}

// Generation implements the interface of that name.
func (s *fileSource) Generation(context.Context, Query) (string, error) {
	if s.o.Identity != "" {
		return s.o.Identity, nil
	}
	info, err := os.Stat(s.path)
	if err != nil {
		return "", err
	}
	return fileIdentity(info)
}

// Schema implements the interface of that name.
func (s *fileSource) Schema(Query) string {
	return fmt.Sprintf("file 1 %s %d", s.o.Format, s.o.RecordSize)
}

const (
	headSize = 4 << 10 // of the file's beginning, in each key's checksum
	tailSize = 64      // before the position, likewise
	keySize  = 8 + 4

	readSize = 64 << 10
)

func (s *fileSource) Open(ctx context.Context, q Query) (Cursor, error) {
	if s.err != nil {
		return nil, s.err
	}
	if err := ctx.Err(); err != nil {
		return nil, context.Cause(ctx)
	}
	info, err := os.Stat(s.path) // before opening, which would wait in a named pipe
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, Halt(fmt.Errorf("file %s is not a regular file (%v): what was read from it could not be read again", s.path, info.Mode().Type()))
	}
	f, err := os.Open(s.path)
	if err != nil {
		return nil, err
	}
	c := &fileCursor{fileSource: s, f: f, buf: make([]byte, 0, tailSize+readSize)}
	if err := c.start(q.After); err != nil {
		f.Close()
		return nil, err
	}
	return c, nil
}

type fileCursor struct {
	*fileSource
	f    *os.File
	size int64 // the largest that the file was seen to have
	err  error // returned by Next from now on

	// buf holds the bytes of the file from base on; those before next are the end of the record before (for the checksum), those
	// from next on are still to be looked at.
	buf  []byte
	base int64
	next int
	// looked is how far the end of a line that is too long was looked for.
	looked int64

	head   uint32 // checksum of the first min(headLen, headSize) bytes
	headed int64
	key    [keySize]byte
	value  []byte // of the current record, in buf
	bad    error  // why the current record has no value
	ticker *time.Ticker
}

// start goes to the position, and checks that what stands before it is what stood there.
func (c *fileCursor) start(after []byte) error {
	info, err := c.f.Stat()
	if err != nil {
		return err
	}
	c.size = info.Size()
	if len(after) == 0 {
		return nil
	}
	if len(after) != keySize {
		return fmt.Errorf("%w: a key of a file has %d bytes, this one %d", ErrQueryChanged, keySize, len(after))
	}
	offset := int64(binary.BigEndian.Uint64(after))
	if offset <= 0 || c.o.Format == FileFixed && offset%int64(c.o.RecordSize) != 0 {
		return fmt.Errorf("%w: no record of file %s ends at byte %d", ErrQueryChanged, c.path, offset)
	}
	if offset > c.size {
		return fmt.Errorf("file %s has %d bytes, and the position is after byte %d; it was truncated or recreated: %w", c.path, c.size, offset, c.oldest())
	}
	head := make([]byte, min(offset, headSize))
	if _, err := c.f.ReadAt(head, 0); err != nil {
		return err
	}
	c.addHead(head)
	c.base = max(0, offset-tailSize)
	c.next = int(offset - c.base)
	c.buf = c.buf[:c.next]
	if _, err := c.f.ReadAt(c.buf, c.base); err != nil {
		return err
	}
	if !bytes.Equal(c.makeKey(), after) {
		return fmt.Errorf("%w: what stands in file %s before byte %d is not what stood there when the position was given out", ErrGeneration, c.path, offset)
	}
	if c.o.Format == FileLines && c.buf[c.next-1] != '\n' && (offset < c.size || c.o.Follow) {
		return fmt.Errorf("%w: the line of file %s that ended at byte %d, without a newline, has grown since; read a file that is being written with Follow", ErrGeneration, c.path, offset)
	}
	return nil
}

// oldest is the error for a position that the file does not reach. Its records are held from the first on.
func (c *fileCursor) oldest() error {
	if first, err := c.fileSource.Open(context.Background(), Query{}); err == nil {
		defer first.Close()
		c := first.(*fileCursor)
		if ok, err := c.record(); ok && err == nil {
			return &PositionGoneError{Oldest: c.makeKey()}
		}
	}
	return &PositionGoneError{}
}

func (c *fileCursor) offset() int64 { return c.base + int64(c.next) }

// addHead counts the bytes that follow those counted before, as far as they belong to the head.
func (c *fileCursor) addHead(b []byte) {
	b = b[:min(int64(len(b)), headSize-c.headed)]
	c.head = crc32.Update(c.head, castagnoli, b)
	c.headed += int64(len(b))
}

// makeKey is the key of the record that ends at offset.
func (c *fileCursor) makeKey() []byte {
	binary.BigEndian.PutUint64(c.key[:], uint64(c.offset()))
	sum := crc32.Update(c.head, castagnoli, c.buf[max(0, c.next-tailSize):c.next])
	binary.BigEndian.PutUint32(c.key[8:], sum)
	return c.key[:]
}

// checkHead compares the file's first bytes with those that were read: a file that is overwritten while it is read must not go unnoticed.
func (c *fileCursor) checkHead() error {
	head := make([]byte, c.headed)
	if _, err := c.f.ReadAt(head, 0); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if crc32.Checksum(head, castagnoli) != c.head {
		return fmt.Errorf("%w: the beginning of file %s was overwritten while it was read", ErrGeneration, c.path)
	}
	return nil
}

func (c *fileCursor) Next(ctx context.Context) ([]byte, error) {
	if c.err != nil {
		return nil, c.err
	}
	if err := ctx.Err(); err != nil {
		return nil, context.Cause(ctx)
	}
	for {
		ok, err := c.record()
		if err == nil && !ok {
			err = c.end(ctx)
		}
		switch {
		case err != nil && ctx.Err() != nil:
			return nil, err // the cursor stands where it stood
		case err != nil:
			c.err = err
			return nil, err
		case ok:
			return c.makeKey(), nil
		}
	}
}

// record moves over the next record, or reports false when the file does not hold the whole of it.
func (c *fileCursor) record() (ok bool, err error) {
	c.bad = nil
	switch c.o.Format {
	case FileLines:
		return c.line()
	case FileFixed:
		return c.sized(0, c.o.RecordSize)
	default:
		if ok, err := c.fill(4); !ok || err != nil {
			return false, err
		}
		size := binary.BigEndian.Uint32(c.buf[c.next:])
		if int64(size) > int64(c.o.MaxRecord) {
			return false, Halt(fmt.Errorf("%w: the size that stands in file %s at byte %d is %d, and MaxRecord is %d: the file is damaged or of another format, or MaxRecord is too small",
				ErrTooLarge, c.path, c.offset(), size, c.o.MaxRecord))
		}
		return c.sized(4, int(size))
	}
}

// sized moves over a record of known size.
func (c *fileCursor) sized(prefix, size int) (ok bool, err error) {
	if ok, err := c.fill(prefix + size); !ok || err != nil {
		return false, err
	}
	c.value = c.buf[c.next+prefix : c.next+prefix+size]
	c.advance(prefix + size)
	return true, nil
}

func (c *fileCursor) line() (ok bool, err error) {
	searched := 0
	for {
		rest := c.buf[c.next:]
		if i := bytes.IndexByte(rest[searched:], '\n'); i >= 0 {
			c.value = rest[:searched+i]
			if len(c.value) > c.o.MaxRecord {
				c.bad = c.tooLong(c.offset())
			}
			c.advance(searched + i + 1)
			return true, nil
		}
		if searched = len(rest); searched > c.o.MaxRecord {
			return c.longLine(searched)
		}
		ok, err := c.fill(searched + 1)
		switch {
		case err != nil:
			return false, err
		case ok:
		case c.o.Follow || searched == 0:
			return false, nil
		default: // the file's last line has no newline
			if err := c.checkSame(); err != nil {
				return false, err
			}
			if c.size > c.offset()+int64(searched) {
				continue // it has just grown
			}
			c.value = c.buf[c.next:]
			c.advance(searched)
			return true, nil
		}
	}
}

func (c *fileCursor) tooLong(at int64) error {
	return Skip(fmt.Errorf("%w: the line of file %s that begins at byte %d is longer than MaxRecord (%d bytes)", ErrTooLarge, c.path, at, c.o.MaxRecord))
}

// longLine moves to the end of a line that is too long without keeping it; its first bytes, searched of them, hold no newline.
// When the file does not hold the line's end, nothing has moved.
func (c *fileCursor) longLine(searched int) (ok bool, err error) {
	start := c.offset()
	chunk := make([]byte, readSize)
	for at := max(start+int64(searched), c.looked); ; {
		n, err := c.f.ReadAt(chunk, at)
		end := at + int64(n)
		if i := bytes.IndexByte(chunk[:n], '\n'); i >= 0 {
			end = at + int64(i) + 1
		} else if n > 0 {
			at = end
			continue
		} else if !errors.Is(err, io.EOF) {
			return false, err
		} else if c.o.Follow {
			c.looked = at
			return false, nil // its end is still to come
		}
		// The head may reach beyond what is in the buffer.
		if c.headed < headSize {
			head := make([]byte, min(end, headSize)-c.headed)
			if _, err := c.f.ReadAt(head, c.headed); err != nil {
				return false, err
			}
			c.addHead(head)
		}
		c.base = end - tailSize
		if c.base < 0 {
			c.base = 0
		}
		c.next = int(end - c.base)
		c.buf = c.buf[:c.next]
		if _, err := c.f.ReadAt(c.buf, c.base); err != nil {
			return false, err
		}
		c.value, c.bad = nil, c.tooLong(start)
		return true, nil
	}
}

// advance moves over n bytes of the buffer.
func (c *fileCursor) advance(n int) {
	if c.headed < headSize {
		c.addHead(c.buf[c.next : c.next+n])
	}
	c.next += n
}

// fill reads until n bytes from next on are in the buffer. It reports false when the file ends before.
func (c *fileCursor) fill(n int) (ok bool, err error) {
	for len(c.buf)-c.next < n {
		if keep := max(0, c.next-tailSize); keep > 0 { // the record before is not needed any more
			c.buf = c.buf[:copy(c.buf, c.buf[keep:])]
			c.base += int64(keep)
			c.next -= keep
		}
		if room := c.next + max(n, readSize); room > cap(c.buf) {
			c.buf = append(make([]byte, 0, max(room, 2*min(cap(c.buf), c.o.MaxRecord))), c.buf...)
		}
		read, err := c.f.ReadAt(c.buf[len(c.buf):cap(c.buf)], c.base+int64(len(c.buf)))
		c.buf = c.buf[:len(c.buf)+read]
		if read == 0 {
			if errors.Is(err, io.EOF) {
				return false, nil
			}
			return false, err
		}
	}
	return true, nil
}

// end is called where the file does not hold another record. It returns nil to try again.
func (c *fileCursor) end(ctx context.Context) error {
	if c.o.Follow {
		return c.wait(ctx)
	}
	if err := c.checkSame(); err != nil {
		return err
	}
	switch held := c.base + int64(len(c.buf)); {
	case c.size > held:
		return nil // it has just grown
	case held == c.offset():
		return io.EOF
	}
	return fmt.Errorf("file %s ends in the middle of the record that begins at byte %d: %w", c.path, c.offset(), io.ErrUnexpectedEOF)
}

func (c *fileCursor) checkSame() error {
	info, err := c.f.Stat()
	if err != nil {
		return err
	}
	if info.Size() < c.size || info.Size() < c.offset() {
		return fmt.Errorf("file %s was cut while it was read, from %d bytes to %d: %w", c.path, max(c.size, c.offset()), info.Size(), c.oldest())
	}
	c.size = info.Size()
	return c.checkHead()
}

// wait returns nil when the file has grown.
func (c *fileCursor) wait(ctx context.Context) error {
	held := max(c.base+int64(len(c.buf)), c.looked)
	if c.ticker == nil {
		c.ticker = time.NewTicker(c.o.Poll)
	} else {
		c.ticker.Reset(c.o.Poll)
	}
	defer c.ticker.Stop()
	for {
		// The path is asked before the file: what was written to this one before another took its place is still served.
		now, pathErr := os.Stat(c.path)
		if err := c.checkSame(); err != nil {
			return err
		}
		if c.size > held {
			return nil
		}
		if pathErr == nil {
			mine, err := c.f.Stat()
			if err != nil {
				return err
			}
			if !os.SameFile(now, mine) {
				return fmt.Errorf("%w: another file has taken the path %s", ErrGeneration, c.path)
			}
		} else if !errors.Is(pathErr, fs.ErrNotExist) { // one that is missing may be being replaced; this one is still here
			return pathErr
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-c.ticker.C:
		}
	}
}

func (c *fileCursor) Value(dst []byte) ([]byte, error) {
	if c.bad != nil {
		return dst, c.bad
	}
	return append(dst, c.value...), nil
}

func (c *fileCursor) Close() error {
	return c.f.Close()
}
