// Package filesource reads messages from a file: to its end, or following it as it grows.
//
// It is exact: the position of a message is where its record starts in the file, so that after any crash the same messages come again
// under the same positions. The last line of a file that is not followed counts without its line end; what is appended to the file before a
// later run is read as new lines, not as the rest of that one. When another file lies at the path, or the file was truncated, the rest of the earlier
// one is read if it can be found in the directory, and then the new one from its start, in a partition of its own.
package filesource

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/levada-io/levada/internal/dataplane/source"
	"github.com/levada-io/levada/internal/dataplane/source/position"
	"github.com/levada-io/levada/internal/dataplane/source/records"
)

// Config of a source. The zero value of a field is its default.
type Config struct {
	// Path of the file. Required. It must be a regular file.
	Path string
	// Format is records.Lines by default.
	Format records.Format
	// NoHeader says that the first record of a CSV file does not name the columns: messages are arrays then, not objects.
	NoHeader bool
	// Follow waits for more at the end of the file, and then leaves an unfinished last line alone until it is finished.
	Follow bool
	// Poll is how often a followed file is looked at, at its end. Default 100 ms: nobody notices, and ten calls of fstat a second cost nothing.
	Poll time.Duration
	// Delimiter of CSV fields, and what becomes of malformed records; see records.Config.
	Delimiter   byte
	OnMalformed records.Policy
	// Logger gets what is skipped, and Skipped counts it. Default: no logger.
	Logger  *slog.Logger
	Skipped func(records, bytes int)
	// MaxRecord is the largest line or record in bytes. Default 16 MiB.
	MaxRecord int
	// Partition names the file in positions, message ids and logs. Default: the last element of Path.
	Partition string
	// Positions remembers how far the file was read. Required.
	Positions source.Positions
	// SaveEvery is how often at most the position is saved. Default 100 ms.
	SaveEvery time.Duration
}

func (c Config) withDefaults() Config {
	if c.Poll == 0 {
		c.Poll = 100 * time.Millisecond
	}
	if c.Partition == "" {
		c.Partition = filepath.Base(filepath.Clean(c.Path))
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.SaveEvery == 0 {
		c.SaveEvery = position.Every
	}
	return c
}

// ErrTruncated means that the file became shorter than what was read of it.
var ErrTruncated = errors.New("file was truncated")

// Reader is the source.
type Reader struct {
	cfg   Config
	saver *position.Saver

	file   *os.File
	closed atomic.Bool

	// gen counts the files that lay at the path one after the other. Each has a partition of its own, so that positions of one are never taken for those
	// of another. It is raised once everything of the file before is acknowledged, and saved before anything of the next is given.
	mu    sync.Mutex // for what Ack uses: gen, saver, file
	gen   int
	acked atomic.Uint64
	saved mark // the last one
	// known is how many bytes at the start identify the file, also if they are not acknowledged; see mark.
	known         uint64
	malformed     bool
	place, target string
	past          []string
	// rotated says that the open file lies no longer at the path: it is read to its end, and then the one at the path.
	rotated bool
	lost    bool      // the file that the position was saved for was not found
	missing time.Time // since when there is no file at the path
	said    bool
	quiet   int // how often a replaced file was seen without anything new

	// Only Read uses these.
	split *records.Splitter
	sort  records.Triage
	from  uint64 // where reading began, and the lines before it once they were counted
	lines *uint64
	warn  sync.Once
	last  atomic.Uint64 // Hi of the batch given last
	eof   bool          // nothing will be appended any more
	// identified says that the identity of this file is saved. Nothing is given before that.
	identified atomic.Bool
	tail       []byte // what lies before the end of what was read, to detect that the file was rewritten

	// For Pending: the end of what was read, and the usual size of a record.
	end, average atomic.Int64
}

// stride is how many bytes in a row go to one partition of the next buffer.
const stride = 64 << 10

// New opens the file where it was left. Errors name the field and what to do.
func New(ctx context.Context, cfg Config) (*Reader, error) {
	cfg = cfg.withDefaults()
	if cfg.Path == "" {
		return nil, errors.New("path: required, the file to read")
	}
	if cfg.Positions == nil {
		return nil, errors.New("positions: required, where to remember how far the file was read")
	}
	split, err := records.New(records.Config{Format: cfg.Format, NoHeader: cfg.NoHeader, Delimiter: cfg.Delimiter, OnMalformed: cfg.OnMalformed, MaxRecord: cfg.MaxRecord})
	if err != nil {
		return nil, err
	}
	r := &Reader{cfg: cfg, split: split, sort: records.Triage{Policy: cfg.OnMalformed, Logger: cfg.Logger, Skipped: cfg.Skipped}}
	r.saver = r.newSaver()
	r.place = where(cfg.Path)
	file, err := r.open()
	if err != nil && !(cfg.Follow && errors.Is(err, fs.ErrNotExist)) {
		return nil, err
	}
	r.file = file // nil if Read waits for it
	if err := r.resume(ctx); err != nil {
		if r.file != nil {
			err = errors.Join(err, r.file.Close())
		}
		return nil, err
	}
	return r, nil
}

// open opens the file at the path.
func (r *Reader) open() (*os.File, error) {
	// Before it is opened: opening a pipe would wait for its writer.
	info, err := os.Stat(r.cfg.Path)
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%s is a %s, and only a regular file can be read again after a crash; use the stdin source for a pipe", r.cfg.Path, kind(info.Mode()))
	}
	if err != nil {
		return nil, fmt.Errorf("path: %w", err)
	}
	f, err := os.Open(r.cfg.Path)
	if err != nil {
		return nil, fmt.Errorf("path: %w", err)
	}
	place, target := where(r.cfg.Path), ""
	if to, err := filepath.EvalSymlinks(r.cfg.Path); err == nil && to != filepath.Clean(r.cfg.Path) {
		target = to
	}
	r.mu.Lock()
	r.place, r.target = place, target
	r.mu.Unlock()
	return f, nil
}

// await waits for the file at the path, as tail -F does.
func (r *Reader) await(ctx context.Context) (*os.File, error) {
	tick := time.NewTicker(r.cfg.Poll)
	defer tick.Stop()
	for {
		f, err := r.open()
		if !r.cfg.Follow || !errors.Is(err, fs.ErrNotExist) {
			return f, err
		}
		if r.missing.IsZero() {
			r.missing = time.Now()
		}
		if !r.said && time.Since(r.missing) >= 2*time.Second {
			r.said = true
			r.cfg.Logger.Warn("file does not exist, waiting for it", "path", r.cfg.Path)
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-tick.C:
		}
	}
}

// resume goes to the saved position, if the file is still the one it was saved for.
func (r *Reader) resume(ctx context.Context) error {
	saved, err := r.cfg.Positions.Load(ctx, r.cfg.Partition)
	if err != nil {
		return fmt.Errorf("load position of %s: %w", r.cfg.Path, err)
	}
	if saved == nil {
		return nil
	}
	offset, found, err := r.find(saved) // r.file may be another one now
	if err != nil || r.file == nil {
		return err
	}
	r.acked.Store(offset)
	if !found {
		return r.next(ctx)
	}
	r.saver.From(offset)
	if offset == 0 {
		return nil
	}
	info, err := r.file.Stat()
	if err != nil {
		return err
	}
	for !r.split.HeaderDone() {
		if _, err := r.more(); err != nil && err != io.EOF {
			return fmt.Errorf("read the header of %s: %w", r.cfg.Path, err)
		}
		if _, _, err := r.split.Cut(0, 0, r.split.End() == uint64(info.Size())); err != nil {
			return r.explain(err)
		}
		if r.split.End() == uint64(info.Size()) {
			break
		}
	}
	r.split.Seek(offset)
	r.from = offset
	r.last.Store(offset)
	r.end.Store(int64(offset))
	return nil
}

func kind(m fs.FileMode) string {
	switch {
	case m.IsDir():
		return "directory"
	case m&fs.ModeNamedPipe != 0:
		return "pipe"
	case m&fs.ModeDevice != 0:
		return "device"
	}
	return "special file"
}

// Read implements source.Reader.
func (r *Reader) Read(ctx context.Context, limit int) (*source.Batch, error) {
	for r.file == nil {
		f, err := r.await(ctx)
		if err != nil {
			return nil, err
		}
		r.mu.Lock()
		r.file = f
		r.mu.Unlock()
		if err := r.resume(ctx); err != nil {
			r.mu.Lock()
			_ = r.file.Close()
			r.file = nil
			r.mu.Unlock()
			return nil, err
		}
	}
	for {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if err := r.know(ctx); errors.Is(err, ErrTruncated) {
			if err := r.cutShort(); err != nil {
				return nil, err
			}
		} else if err != nil {
			return nil, err
		}
		messages, bad, err := r.split.Cut(limit, time.Now().UnixNano(), r.eof)
		broken := r.sort.Sort(bad, r.at)
		if len(messages) > 0 {
			b := &source.Batch{Partition: r.partition(), Token: r.gen, Lo: r.last.Load() + 1, Hi: r.split.Offset(), Stride: stride, Messages: messages, Broken: broken}
			r.last.Store(b.Hi)
			r.warn.Do(func() { records.WarnDelimiter(r.cfg.Logger, r.cfg.Path, r.cfg.Delimiter, r.split.Suspect()) })
			return b, nil
		}
		if err != nil {
			r.awaitCorrection(ctx)
			return nil, r.explain(err)
		}
		if len(bad) > 0 {
			continue // what was skipped
		}
		if r.eof {
			r.sort.Close()
			if !r.rotated {
				return nil, io.EOF
			}
			if err := r.allAcked(ctx); err != nil {
				return nil, err
			}
			if err := r.next(ctx); err != nil {
				return nil, err
			}
			continue
		}
		if r.tail != nil { // a followed file must be looked at before more of it is read
			if err := r.wait(ctx); errors.Is(err, ErrTruncated) {
				if err := r.cutShort(); err != nil {
					return nil, err
				}
				continue
			} else if err != nil {
				return nil, err
			}
		}
		if n, err := r.more(); err != nil && err != io.EOF {
			return nil, fmt.Errorf("read %s at byte %d: %w", r.cfg.Path, r.split.End(), err)
		} else if n > 0 {
			continue
		}
		if err := r.atEnd(); errors.Is(err, ErrTruncated) {
			if err := r.cutShort(); err != nil {
				return nil, err
			}
		} else if err != nil {
			return nil, err
		}
	}
}

// more reads the next bytes of the file.
func (r *Reader) more() (int, error) {
	n, err := r.file.ReadAt(r.split.Room(), int64(r.split.End()))
	r.split.Fed(n)
	r.end.Store(int64(r.split.End()))
	r.average.Store(int64(r.split.Average()))
	return n, err
}

// Ack implements source.Reader.
func (r *Reader) Ack(ctx context.Context, b *source.Batch) error {
	return r.ack(ctx, b, b.Hi)
}

func (r *Reader) ack(ctx context.Context, b *source.Batch, position uint64) error {
	r.mu.Lock()
	saver, current := r.saver, b.Token == r.gen
	if current {
		r.acked.Store(max(r.acked.Load(), position))
	}
	r.mu.Unlock()
	if !current {
		return nil // a repetition: all of that file was acknowledged before the next was begun
	}
	err := saver.Ack(ctx, position)
	if errors.Is(err, ErrTruncated) {
		return nil // the position before is kept; Read finds out and goes on with the next file
	}
	return err
}

// Pending implements source.Reader. It is an estimate: the bytes not read yet, in records of the usual size.
func (r *Reader) Pending(context.Context) (int64, error) {
	info, err := os.Stat(r.cfg.Path)
	if r.cfg.Follow && errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return -1, err
	}
	left := info.Size() - r.end.Load()
	if left <= 0 {
		return 0, nil
	}
	return left/max(r.average.Load(), 1) + 1, nil
}

// Close implements source.Reader. It saves the position of what was acknowledged.
func (r *Reader) Close(ctx context.Context) error {
	if r.closed.Swap(true) {
		return nil
	}
	r.mu.Lock()
	file, saver := r.file, r.saver
	r.mu.Unlock()
	if file == nil {
		return nil
	}
	err := saver.Flush(ctx)
	if r.identified.Load() {
		r.exact()
		err = saver.Now(ctx)
	}
	return errors.Join(ignoreTruncated(err), file.Close())
}

var _ source.Reader = (*Reader)(nil)
