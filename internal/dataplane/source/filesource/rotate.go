package filesource

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"time"

	"github.com/levada-io/levada/internal/dataplane/source/position"
	"github.com/levada-io/levada/internal/dataplane/source/records"
)

// partition names the file that is read. The first one has the plain name, which stores of earlier versions know.
func (r *Reader) partition() string {
	if r.gen == 0 {
		return r.cfg.Partition
	}
	return r.cfg.Partition + "~" + strconv.Itoa(r.gen)
}

func (r *Reader) newSaver() *position.Saver {
	return &position.Saver{Store: r.cfg.Positions, Partition: r.cfg.Partition, Every: r.cfg.SaveEvery, Encode: r.mark}
}

// find looks for the file that a position was saved for: at the path, and under other names beside it. It leaves that one open.
func (r *Reader) find(saved []byte) (offset uint64, found bool, err error) {
	var m mark
	if err := json.Unmarshal(saved, &m); err != nil {
		return 0, false, fmt.Errorf("saved position of %s: %q is none of this source: %w", r.cfg.Path, saved, err)
	}
	r.mu.Lock()
	r.gen, r.saved, r.past, r.known = m.Gen, m, m.Past, m.Known
	r.mu.Unlock()
	if r.file != nil && r.is(r.file, m) {
		return m.Offset, true, nil
	}
	if f := r.beside(m); f != nil {
		r.mu.Lock()
		if r.file != nil {
			_ = r.file.Close()
		}
		r.file, r.rotated = f, true
		r.mu.Unlock()
		r.cfg.Logger.Info("file was rotated, reading the rest of the earlier one first", "path", r.cfg.Path, "earlier", f.Name(), "from", m.Offset)
		return m.Offset, true, nil
	}
	if r.file != nil {
		r.lost = true
	}
	return m.Offset, false, nil
}

// beside finds a rotated file: under its inode, or else a copy that has what was read. nil if there is none.
func (r *Reader) beside(m mark) *os.File {
	var copied *os.File
	names := []string{}
	if m.Target != "" {
		names = append(names, m.Target)
	}
	for _, s := range siblings(r.cfg.Path) {
		names = append(names, s.name)
	}
	for _, name := range names {
		f, err := os.Open(name)
		if err != nil {
			continue
		}
		same := m.Inode != "" && inode(f) == m.Inode
		info, err := f.Stat()
		switch {
		case err != nil || !r.has(f, m):
		case same:
			if copied != nil {
				_ = copied.Close()
			}
			return f
		case copied == nil && max(m.Offset, m.Known) > 0 && info.ModTime().UnixNano() >= m.Modified && !slices.Contains(r.past, inode(f)) && name != m.Target:
			copied = f // go on: the file itself may be there, too
			continue
		}
		_ = f.Close()
	}
	return copied
}

// cutShort goes on after the file was truncated: with the rest in its copy if there is one, as copytruncate of logrotate leaves it.
func (r *Reader) cutShort() error {
	r.mu.Lock()
	m := r.saved
	r.mu.Unlock()
	end := r.split.End()
	r.tail, r.rotated = nil, true
	if f := r.beside(m); f != nil {
		if info, err := f.Stat(); err == nil && uint64(info.Size()) >= end {
			r.mu.Lock()
			_ = r.file.Close()
			r.file = f
			r.mu.Unlock()
			r.cfg.Logger.Info("file was truncated, reading the rest of its copy first", "path", r.cfg.Path, "copy", f.Name(), "from", end)
			return nil
		}
		_ = f.Close()
	}
	r.cfg.Logger.Warn("file was truncated, reading it from its start; what was appended before and not yet read is lost", "path", r.cfg.Path, "after byte", end)
	r.eof = true
	return nil
}

// allAcked waits until everything that was given is acknowledged. Until then the saved position must be that of this file.
func (r *Reader) allAcked(ctx context.Context) error {
	tick := time.NewTicker(min(r.cfg.Poll, 10*time.Millisecond))
	defer tick.Stop()
	for r.acked.Load() < r.last.Load() {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
	return nil
}

// next begins the file after this one: a rotated one that is newer, or else the one that lies at the path now.
func (r *Reader) next(ctx context.Context) error {
	if err := ignoreTruncated(r.saver.Stop(ctx)); err != nil {
		return fmt.Errorf("save position of %s: %w", r.cfg.Path, err)
	}
	f, missing, err := r.following()
	if err != nil {
		return err
	}
	rotated := f != nil
	if f == nil {
		if f, err = r.await(ctx); err != nil {
			return err
		}
	}
	split, err := records.New(records.Config{Format: r.cfg.Format, NoHeader: r.cfg.NoHeader, Delimiter: r.cfg.Delimiter, OnMalformed: r.cfg.OnMalformed, MaxRecord: r.cfg.MaxRecord})
	if err != nil {
		return errors.Join(err, f.Close())
	}
	switch {
	case r.lost:
		r.cfg.Logger.Warn("file is another one than before, and the earlier one is not beside it: what was appended to that later is not read",
			"path", r.cfg.Path, "bytes read of the earlier one", r.saved.Offset, "reading", f.Name(), "not read", missing)
	case len(missing) > 0:
		r.cfg.Logger.Warn("rotated files are missing or compressed, and are not read", "path", r.cfg.Path, "not read", missing, "reading", f.Name())
	}
	if rotated {
		r.cfg.Logger.Info("file was rotated more than once, reading the next one", "path", r.cfg.Path, "earlier", f.Name())
	}
	past := r.past
	for _, id := range []string{inode(r.file), r.saved.Inode} {
		if id != "" && !r.lost && !slices.Contains(past, id) {
			past = append(slices.Clone(past), id)
		}
	}
	// After a truncation the file at the path has the inode of an earlier one, and is not read yet.
	unread := []string{inode(f)}
	if at, err := os.Open(r.cfg.Path); err == nil {
		unread = append(unread, inode(at))
		_ = at.Close()
	}
	past = slices.DeleteFunc(slices.Clone(past), func(id string) bool { return slices.Contains(unread, id) })
	r.mu.Lock()
	r.past = past[max(0, len(past)-maxPast):]
	_ = r.file.Close()
	r.file, r.gen, r.saved, r.known, r.malformed = f, r.gen+1, mark{}, 0, false
	r.saver = r.newSaver()
	r.acked.Store(0)
	r.mu.Unlock()
	r.identified.Store(false) // Read saves it first
	r.last.Store(0)
	r.split, r.eof, r.rotated, r.lost, r.tail, r.from, r.lines, r.quiet, r.missing, r.said = split, false, rotated, false, nil, 0, nil, 0, time.Time{}, false
	r.end.Store(0)
	return nil
}

func ignoreTruncated(err error) error {
	if errors.Is(err, ErrTruncated) {
		return nil
	}
	return err
}
