package filesink

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// The file and its journal lie where others can reach them. Each commit looks at both names first:
//
//	file removed, renamed, replaced   go on in the file that is there now, or a new one
//	file shorter than committed       it was truncated: go on at its end
//	file longer than committed        somebody appended to it: go on behind that
//	journal removed or replaced       write it again
//
// What was delivered stays delivered: the journal's memory of it goes on with the next file.

// look finds out what others did to the files since the last commit.
func (w *Writer) look() error {
	if err := w.lookJournal(); err != nil {
		return err
	}
	open, err := w.data.Stat()
	if err != nil {
		return err
	}
	at, err := w.fs.stat(w.cfg.Path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return w.begin("sink file was removed or renamed, continuing in a new one")
	case err != nil:
		return err
	case !os.SameFile(at, open):
		return w.begin("sink file was replaced, continuing in the one that is there now")
	case at.Size() > w.end:
		return w.adopt(at.Size(), "sink file was appended to by another process, continuing behind that", "foreign bytes", at.Size()-w.end)
	case at.Size() < w.end:
		return w.adopt(at.Size(), "sink file was truncated, continuing at its end", "bytes that were removed", w.end-at.Size())
	}
	return nil
}

// lookJournal writes the journal again if its name no longer leads to it: commits to a journal without a name would be forgotten at the next start.
func (w *Writer) lookJournal() error {
	open, err := w.journal.Stat()
	if err != nil {
		return err
	}
	at, err := w.fs.stat(w.cfg.Path + Suffix)
	if err == nil && os.SameFile(at, open) {
		return nil
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := w.newJournal(); err != nil {
		return err
	}
	w.cfg.Logger.Warn("journal of the sink file was removed or replaced, written again", "path", w.cfg.Path+Suffix)
	return nil
}

// newJournal writes a snapshot for the end that the data has now.
func (w *Writer) newJournal() error {
	ids, err := w.recentIDs()
	if err != nil {
		return fmt.Errorf("journal: %w", err)
	}
	if err := w.writeJournal(ids); err != nil {
		return fmt.Errorf("journal: %w", err)
	}
	return nil // its name is made durable before the next commit
}

// begin goes on in the file that is at the path now, or in a new one.
func (w *Writer) begin(why string) error {
	fresh, err := w.fs.open(w.cfg.Path, os.O_RDWR|os.O_CREATE)
	if err != nil {
		return err
	}
	refuse := func(err error) error { return errors.Join(err, fresh.Close()) }
	if err := w.fs.lock(fresh); err != nil {
		return refuse(fmt.Errorf("%w (%w); each pod and each sink needs a file of its own", ErrLocked, err))
	}
	info, err := fresh.Stat()
	switch {
	case err != nil:
		return refuse(err)
	case !info.Mode().IsRegular():
		return refuse(errors.New("it was replaced by something that is not a regular file; remove that"))
	case info.Size() > 0 && !w.cfg.Append:
		return refuse(fmt.Errorf("%w; move it away", ErrForeign))
	}
	before, end, messages := w.data, w.end, w.messages
	w.data = fresh
	if err := w.adopt(info.Size(), why, "bytes in the earlier file", end); err != nil {
		w.data = before // the next commit tries again
		return refuse(err)
	}
	w.messages = 0
	if messages > 0 {
		w.cfg.Logger.Info("sink file has begun", "path", w.cfg.Path, "messages that this process wrote to the earlier file", messages)
	}
	_ = before.Close()
	return nil
}

// adopt takes size as the end of the data, whatever lies before it, and logs it.
func (w *Writer) adopt(size int64, why, what string, bytes int64) error {
	before := w.end
	if size > 0 {
		last := make([]byte, 1)
		if _, err := w.data.ReadAt(last, size-1); err != nil {
			return err
		}
		if last[0] != '\n' { // or the next message would become part of somebody else's line
			if _, err := w.data.WriteAt([]byte{'\n'}, size); err != nil {
				return err
			}
			size++
		}
	}
	if err := w.sync(w.data); err != nil {
		return err
	}
	w.end = size
	if err := w.newJournal(); err != nil {
		w.end = before
		return err
	}
	if w.rotating {
		return nil
	}
	w.cfg.Logger.Warn(why, "path", w.cfg.Path, what, bytes, "at", size)
	return nil
}

// Reopen looks at the file now, as the next commit would: after it was renamed a new one is there.
func (w *Writer) Reopen(ctx context.Context) error {
	release, err := w.queue.Hold(ctx)
	if err != nil {
		return err
	}
	defer release()
	if w.closed || w.broken {
		return nil
	}
	return w.look()
}

// Rotation says when a file is renamed and a new one begun.
type Rotation struct {
	// Size is how large a file may become; 0 for any size. The commit that reaches it is the last one of a file.
	Size int64
	// Every begins a new file with the first message after each multiple of it since 1970 (UTC); 0 for never.
	Every time.Duration
	// Keep is how many earlier files are kept; 0 for all.
	Keep int
}

// rotatedName is what the name of an earlier file has after the path: the time at which it ended.
const rotatedName = ".20060102T150405.000"

// rotateDue renames the file if its time has come.
func (w *Writer) rotateDue(now time.Time) error {
	r := w.cfg.Rotate
	full := r.Size > 0 && w.end >= r.Size
	old := r.Every > 0 && !w.state.at.IsZero() && now.Truncate(r.Every).After(w.state.at.Truncate(r.Every))
	if w.end == 0 || !full && !old {
		return nil
	}
	name := w.cfg.Path + now.UTC().Format(rotatedName)
	for {
		if _, err := w.fs.stat(name); errors.Is(err, os.ErrNotExist) {
			break
		}
		now = now.Add(time.Millisecond)
		name = w.cfg.Path + now.UTC().Format(rotatedName)
	}
	if err := w.fs.rename(w.cfg.Path, name); err != nil {
		return fmt.Errorf("rotate: %w", err)
	}
	w.rotating = true
	err := w.begin("")
	w.rotating = false
	if err != nil {
		return fmt.Errorf("rotate: %w", err) // look finds a file without a name, and goes on from there
	}
	w.cfg.Logger.Info("sink file rotated", "path", w.cfg.Path, "to", filepath.Base(name))
	w.removeOld()
	return nil
}

// removeOld removes the oldest of the earlier files.
func (w *Writer) removeOld() {
	if w.cfg.Rotate.Keep == 0 {
		return
	}
	names, err := filepath.Glob(escapeGlob(w.cfg.Path) + ".*")
	if err != nil {
		return
	}
	names = slices.DeleteFunc(names, func(name string) bool {
		_, err := time.Parse(rotatedName, strings.TrimPrefix(name, w.cfg.Path))
		return err != nil
	})
	slices.Sort(names)
	for len(names) > w.cfg.Rotate.Keep {
		if err := w.fs.remove(names[0]); err != nil {
			w.cfg.Logger.Warn("earlier sink file was not removed", "path", names[0], "error", err)
		}
		names = names[1:]
	}
}

func escapeGlob(path string) string {
	return strings.NewReplacer(`\`, `\\`, "*", `\*`, "?", `\?`, "[", `\[`).Replace(path)
}
