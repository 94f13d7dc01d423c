// Package filesink appends messages to a file, each exactly once.
//
// Beside the file lies a journal that names what the file holds. A write puts its data at the end of the file and onto the disk, and then a
// record of it into the journal and onto the disk: that moment commits both. After a crash the file is cut back to the last commit, and what
// is written again is recognised by its lane and positions (or ids) and left out. Writes of several lanes share one commit.
//
// Others may rename, remove, truncate or replace the file, or append to it, while the sink runs and while it does not: the sink goes on at the end of the
// file that is there, and logs it. One thing cannot be detected: after a crash, what lies behind the last commit is taken for what the crash left, and
// is cut away. A reader of the file may see, for the moment between data
// and commit, what a crash would take back.
package filesink

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync/atomic"
	"time"

	"github.com/levada-io/levada/internal/dataplane/sink"
	"github.com/levada-io/levada/internal/dataplane/sink/groupcommit"
	"github.com/levada-io/levada/internal/dataplane/sink/render"
	"github.com/levada-io/levada/internal/flow"
)

// Config of a sink. The zero value of a field is its default.
type Config struct {
	// Path of the file. Required. The journal is Path + ".levada-journal".
	Path string
	// Format is render.Raw by default.
	Format render.Format
	// Append keeps what a file without a journal holds and writes after it. By default such a file is refused: either it is
	// somebody else's, or its journal is gone, and then what is written again after a crash could not be distinguished from what is new.
	Append bool
	// Rotate says when a new file is begun. Default: never.
	Rotate Rotation
	// Logger gets what others did to the file. Default: no logger.
	Logger *slog.Logger
	// NoFsync leaves it to the system when the disk is written. The death of the process still loses nothing, a power loss may; the sink then
	// refuses to start if the file is shorter than the journal says.
	NoFsync bool
	// IDWindow and MaxIDs bound the memory of ids of sources without positions, 10 minutes and 100000 by default. They must cover the time from
	// which something may be written again: the longest outage of the sink, and how long senders repeat a request.
	IDWindow time.Duration
	MaxIDs   int
}

func (c Config) withDefaults() Config {
	if c.IDWindow == 0 {
		c.IDWindow = 10 * time.Minute
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.MaxIDs == 0 {
		c.MaxIDs = 100_000
	}
	return c
}

// Suffix is what the journal's name has after the file's.
const Suffix = ".levada-journal"

// compactAt is the size at which the journal is rewritten. A commit takes about 60 bytes, so that is every 70,000 commits.
const compactAt = 4 << 20

// Errors that callers match with errors.Is.
var (
	// ErrShort means that the file is shorter than what was committed to it.
	ErrShort = errors.New("file is shorter than its journal says")
	// ErrForeign means that the file has content and no journal.
	ErrForeign = errors.New("file has content, but no journal")
	// ErrLocked means that another sink writes to the file.
	ErrLocked = errors.New("file is in use by another sink")
	// ErrClosed means that the sink was closed.
	ErrClosed = errors.New("file sink is closed")
)

// Writer is the sink.
type Writer struct {
	cfg Config
	fs  fileSystem

	queue      *groupcommit.Queue
	duplicates atomic.Int64

	// Used by the leader of a group commit only.
	data, journal file
	end           int64 // of the committed data
	journalEnd    int64
	compactAt     int64
	state         *state
	broken        bool // files or state may hold more than was committed
	dirDirty      bool // the journal's new name may not be on the disk
	closed        bool
	rotating      bool
	attempted     int64 // where the last commit ends, if it got that far
	messages      int64 // that were written to the file since it was opened
	out, record   []byte
	scratch       []flow.Message
}

// Duplicates is the number of messages so far that the file held already, and that were not written.
func (w *Writer) Duplicates() int64 { return w.duplicates.Load() }

// New opens the file, after a crash too. Errors name the field and what to do.
func New(cfg Config) (*Writer, error) { return open(cfg, osFiles) }

func open(cfg Config, fs fileSystem) (*Writer, error) {
	cfg = cfg.withDefaults()
	if cfg.Path == "" {
		return nil, errors.New("path: required, the file to append to")
	}
	var err error
	if cfg.Format, err = render.Parse(cfg.Format); err != nil {
		return nil, err
	}
	w := &Writer{cfg: cfg, fs: fs, compactAt: compactAt}
	w.queue = groupcommit.New(w.commitGroup)
	if err := w.load(); err != nil {
		return nil, errors.Join(err, w.release())
	}
	return w, nil
}

// Write implements sink.Writer.
func (w *Writer) Write(ctx context.Context, b *flow.Block) ([]sink.Result, error) {
	return nil, w.queue.Do(ctx, b)
}

func (w *Writer) commitGroup(group []*flow.Block) error {
	if err := w.commit(group); err != nil {
		return fmt.Errorf("%s: %w", w.cfg.Path, err)
	}
	return nil
}

// Close implements sink.Writer.
func (w *Writer) Close(ctx context.Context) error {
	release, err := w.queue.Hold(ctx)
	if err != nil {
		return err
	}
	defer release()
	if w.closed {
		return nil
	}
	w.closed = true
	if !w.broken {
		w.noteClose()
	}
	if w.cfg.NoFsync && !w.broken {
		err = errors.Join(w.data.Sync(), w.journal.Sync())
	}
	return errors.Join(err, w.release())
}

// noteClose says in the journal that nothing of ours lies behind the end of the data. It is a hint: without it, what does is taken for the rest of a crash.
func (w *Writer) noteClose() {
	record := endRecord(appendCommit(beginRecord(nil), w.end, time.Now(), 0), 0)
	if _, err := w.journal.WriteAt(record, w.journalEnd); err == nil {
		_ = w.sync(w.journal)
	}
}

func (w *Writer) release() error {
	var errs []error
	for _, f := range []file{w.data, w.journal} {
		if f != nil {
			errs = append(errs, f.Close())
		}
	}
	return errors.Join(errs...)
}

var _ sink.Writer = (*Writer)(nil)

// file is what the sink needs of a file; tests make it fail.
type file interface {
	WriteAt(b []byte, offset int64) (int, error)
	ReadAt(b []byte, offset int64) (int, error)
	Truncate(size int64) error
	Sync() error
	Close() error
	Stat() (os.FileInfo, error)
}

// fileSystem opens files and changes directories.
type fileSystem struct {
	open    func(path string, flag int) (file, error)
	stat    func(path string) (os.FileInfo, error)
	lock    func(file) error
	rename  func(from, to string) error
	remove  func(path string) error
	syncDir func(dir string) error
}

var osFiles = fileSystem{
	open: func(path string, flag int) (file, error) {
		f, err := os.OpenFile(path, flag, 0o644)
		if err != nil {
			return nil, err // not a nil *os.File in an interface
		}
		return f, nil
	},
	stat:    os.Stat,
	lock:    lockFile,
	rename:  os.Rename,
	remove:  os.Remove,
	syncDir: syncDir,
}
