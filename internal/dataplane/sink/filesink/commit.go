package filesink

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/levada-io/levada/internal/dataplane/identity"
	"github.com/levada-io/levada/internal/flow"
)

// load opens both files and cuts away what no commit covers.
func (w *Writer) load() error {
	data, err := w.fs.open(w.cfg.Path, os.O_RDWR|os.O_CREATE)
	if err != nil {
		return fmt.Errorf("path: %w", err)
	}
	w.data = data
	if err := w.fs.lock(data); err != nil {
		return fmt.Errorf("path: %s: %w (%w); each pod and each sink needs a file of its own", w.cfg.Path, ErrLocked, err)
	}
	info, err := data.Stat()
	if err != nil {
		return fmt.Errorf("path: %w", err)
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("path: %s is not a regular file, and only a regular file can be truncated after a crash; use the stdout sink for a pipe", w.cfg.Path)
	}
	journal, err := w.fs.open(w.cfg.Path+Suffix, os.O_RDWR)
	if errors.Is(err, os.ErrNotExist) {
		return w.create(info.Size())
	}
	if err != nil {
		return fmt.Errorf("journal: %w", err)
	}
	w.journal = journal
	return w.resume(info.Size())
}

// create begins a journal.
func (w *Writer) create(size int64) error {
	w.state = w.newState()
	if size > 0 {
		if !w.cfg.Append {
			return fmt.Errorf("path: %s: %w; move it away, or say append to keep what it has and write after it", w.cfg.Path, ErrForeign)
		}
		last := make([]byte, 1)
		if _, err := w.data.ReadAt(last, size-1); err != nil {
			return fmt.Errorf("path: %w", err)
		}
		if last[0] != '\n' { // or the first message would become part of somebody else's line
			if _, err := w.data.WriteAt([]byte{'\n'}, size); err != nil {
				return fmt.Errorf("path: %w", err)
			}
			size++
		}
		if err := w.data.Sync(); err != nil {
			return fmt.Errorf("path: %w", err)
		}
	}
	w.end = size
	if err := w.writeJournal(nil); err != nil {
		return fmt.Errorf("journal: %w", err)
	}
	return w.syncName()
}

// resume reads the journal and cuts both files back to it.
func (w *Writer) resume(size int64) error {
	s, valid, err := w.readJournal(false)
	if err != nil {
		return fmt.Errorf("journal %s: %w; the data file is as it was: keep both, and begin with a new path, or remove the journal and say append", w.cfg.Path+Suffix, err)
	}
	w.state, w.end, w.journalEnd = s, s.end, int64(valid)
	id, err := idOf(w.data)
	if err != nil {
		return fmt.Errorf("path: %w", err)
	}
	other := s.id != fileID{} && id != s.id
	switch {
	case other && size != s.end:
		return w.adopt(size, "sink file is another one than before, continuing at its end", "bytes of the earlier file", s.end)
	case size == 0 && s.end > 0:
		return w.adopt(size, "sink file is empty, starting it again", "bytes that were written to it before", s.end)
	case size < s.end:
		return fmt.Errorf("path: %s: %w: it has %d bytes, and %d were committed; bring the file back, or empty it to begin again", w.cfg.Path, ErrShort, size, s.end)
	case size > s.end && s.closed:
		return w.adopt(size, "sink file was appended to by another process, continuing behind that", "foreign bytes", size-s.end)
	case size > s.end:
		w.cfg.Logger.Warn("sink file has data behind the last commit, as a crash leaves it; removing that", "path", w.cfg.Path, "bytes", size-s.end)
	}
	if s.closed {
		w.journalEnd = int64(s.last) // the note of Close must be gone before anything of ours lies behind the end again
	}
	if err := w.cutBack(); err != nil {
		return fmt.Errorf("path: %s: %w", w.cfg.Path, err)
	}
	return nil
}

func (w *Writer) newState() *state {
	return &state{seen: identity.New(w.cfg.IDWindow, w.cfg.MaxIDs)}
}

// readJournal reads what the journal says, and how much of it is valid.
func (w *Writer) readJournal(keepIDs bool) (*state, int, error) {
	info, err := w.journal.Stat()
	if err != nil {
		return nil, 0, err
	}
	b := make([]byte, info.Size())
	if n, err := w.journal.ReadAt(b, 0); err != nil && err != io.EOF || n != len(b) {
		return nil, 0, fmt.Errorf("read %d of %d bytes: %w", n, len(b), err)
	}
	s := w.newState()
	s.keepIDs = keepIDs
	valid, err := s.replay(b)
	return s, valid, err
}

// cutBack removes from both files what was not committed. After a failure that must reach the disk before anything else is written: a
// record that a failed fsync did leave there would otherwise vouch for other data. The journal goes first: if only that is done, the data is merely longer than it says.
func (w *Writer) cutBack() error {
	for _, f := range []struct {
		file
		end int64
	}{{w.journal, w.journalEnd}, {w.data, w.end}} {
		info, err := f.Stat()
		if err != nil {
			return err
		}
		if info.Size() == f.end && !w.broken {
			continue
		}
		if f.file == w.data && (info.Size() < f.end || info.Size() > w.attempted && w.broken) {
			continue // somebody else cut it or appended to it meanwhile; see look
		}
		if err := f.Truncate(f.end); err != nil {
			return err
		}
		if err := w.sync(f); err != nil {
			return err
		}
	}
	return nil
}

// commit writes a group of blocks. If it fails, nothing of them counts.
func (w *Writer) commit(group []*flow.Block) error {
	if w.closed {
		return ErrClosed
	}
	if w.broken {
		if err := w.recover(); err != nil {
			return err
		}
	}
	if err := w.look(); err != nil {
		return err
	}
	if err := w.rotateDue(time.Now()); err != nil {
		return err
	}
	if w.dirDirty {
		if err := w.syncName(); err != nil {
			return err
		}
	}
	// The end stands before the blocks in the record, and the blocks' data must be known for it: so the data first.
	now := time.Now()
	blocks := w.admit(group, now)
	if len(w.out) == 0 {
		return nil // all was there already
	}
	end := w.end + int64(len(w.out))
	record := appendCommit(beginRecord(w.record[:0]), end, now, blocks.count)
	record = endRecord(append(record, blocks.encoded...), 0)
	w.record = record
	w.attempted = end
	if err := w.store(record); err != nil {
		w.broken = true
		_ = w.recover() // gives a full disk its room back; if it fails, the next commit begins with it
		return err
	}
	w.end = end
	w.state.at = now
	w.messages += int64(blocks.messages)
	w.journalEnd += int64(len(record))
	if w.journalEnd > w.compactAt {
		w.compact()
	}
	if cap(w.out) > maxKept {
		w.out = nil
	}
	return nil
}

// maxKept is the largest buffer that is kept for the next commit.
const maxKept = 16 << 20

type admitted struct {
	count, messages int
	encoded         []byte
}

// admit renders what is new into w.out.
func (w *Writer) admit(group []*flow.Block, now time.Time) admitted {
	var a admitted
	w.out = w.out[:0]
	for _, given := range group {
		// Admit deletes from the block; the caller may need its block again.
		b := *given
		w.scratch = append(w.scratch[:0], b.Messages...)
		b.Messages, b.Prev = w.scratch, 0
		w.state.seen.Admit(&b, now)
		w.duplicates.Add(int64(len(given.Messages) - len(b.Messages)))
		if len(b.Messages) == 0 && len(given.Messages) > 0 {
			continue
		}
		for i := range b.Messages {
			w.out = w.cfg.Format.Append(w.out, &b.Messages[i])
		}
		a.encoded = appendBlock(a.encoded, &b)
		a.count++
		a.messages += len(b.Messages)
	}
	clear(w.scratch[:cap(w.scratch)]) // holds no message after Write
	return a
}

// store makes the data durable and then the record that names it.
func (w *Writer) store(record []byte) error {
	if _, err := w.data.WriteAt(w.out, w.end); err != nil {
		return err
	}
	if err := w.sync(w.data); err != nil {
		return err
	}
	if _, err := w.journal.WriteAt(record, w.journalEnd); err != nil {
		return fmt.Errorf("journal: %w", err)
	}
	if err := w.sync(w.journal); err != nil {
		return fmt.Errorf("journal: %w", err)
	}
	return nil
}

func (w *Writer) sync(f file) error {
	if w.cfg.NoFsync {
		return nil
	}
	return f.Sync()
}

// recover goes back to the last commit, in the files and in memory.
func (w *Writer) recover() error {
	if err := w.cutBack(); err != nil {
		return fmt.Errorf("go back to the last commit: %w", err)
	}
	s, valid, err := w.readJournal(false)
	if err == nil && (int64(valid) != w.journalEnd || s.end != w.end) {
		err = fmt.Errorf("%w: it ends at %d and the data at %d, and this process committed up to %d and %d", ErrCorrupt, valid, s.end, w.journalEnd, w.end)
	}
	if err != nil {
		return fmt.Errorf("journal: %w", err)
	}
	w.state, w.broken = s, false
	return nil
}

// compact replaces the journal by a snapshot. If that fails the old one goes on.
func (w *Writer) compact() {
	w.compactAt = w.journalEnd + 1<<20 // when it is tried again
	ids, err := w.recentIDs()
	if err != nil {
		return
	}
	if w.writeJournal(ids) == nil {
		w.compactAt = max(compactAt, 2*w.journalEnd)
		_ = w.syncName() // the last commit is in both journals; the next one waits until the name is durable
	}
}

// recentIDs are the ids that a new journal must know.
func (w *Writer) recentIDs() ([]seenID, error) {
	s, _, err := w.readJournal(true)
	if err != nil {
		return nil, err
	}
	now := time.Now()
	ids := s.ids[max(0, len(s.ids)-w.cfg.MaxIDs):]
	for len(ids) > 0 && now.Sub(ids[0].at) > w.cfg.IDWindow {
		ids = ids[1:]
	}
	return ids, nil
}

// writeJournal puts a new journal, which is one snapshot, in the place of the old.
func (w *Writer) writeJournal(ids []seenID) error {
	path := w.cfg.Path + Suffix
	fresh, err := w.fs.open(path+".new", os.O_RDWR|os.O_CREATE|os.O_TRUNC)
	if err != nil {
		return err
	}
	id, err := idOf(w.data)
	if err != nil {
		return errors.Join(err, fresh.Close(), w.fs.remove(path+".new"))
	}
	snapshot := appendSnapshot(nil, w.end, w.state.seen, ids, id)
	_, err = fresh.WriteAt(snapshot, 0)
	if err == nil {
		err = fresh.Sync() // always: the old journal is about to go
	}
	if err == nil {
		err = w.fs.rename(path+".new", path)
	}
	if err != nil {
		return errors.Join(err, fresh.Close(), w.fs.remove(path+".new"))
	}
	if w.journal != nil {
		_ = w.journal.Close() // nothing of it is needed any more
	}
	w.journal, w.journalEnd, w.dirDirty = fresh, int64(len(snapshot)), true
	return nil
}

// syncName makes the names of both files durable.
func (w *Writer) syncName() error {
	if err := w.fs.syncDir(filepath.Dir(w.cfg.Path)); err != nil {
		return fmt.Errorf("directory: %w", err)
	}
	w.dirDirty = false
	return nil
}
