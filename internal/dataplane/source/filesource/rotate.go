package filesource

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
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
	r.gen, r.saved = m.Gen, m
	if r.is(r.file, m) {
		return m.Offset, true, nil
	}
	if f := r.beside(m); f != nil {
		_ = r.file.Close()
		r.file, r.rotated = f, true
		r.cfg.Logger.Info("file was rotated, reading the rest of the earlier one first", "path", r.cfg.Path, "earlier", f.Name(), "from", m.Offset)
		return m.Offset, true, nil
	}
	r.cfg.Logger.Warn("file is another one than before, reading it from its start", "path", r.cfg.Path, "bytes read of the earlier one", m.Offset)
	return m.Offset, false, nil
}

// is reports whether a file has what was read up to a position.
func (r *Reader) is(f *os.File, m mark) bool {
	info, err := f.Stat()
	if err != nil || !info.Mode().IsRegular() || uint64(info.Size()) < m.Offset {
		return false
	}
	head, tail, err := r.fingerprints(f, m.Offset)
	return err == nil && head == m.Head && tail == m.Tail
}

// beside finds a rotated file: its name begins with that of the path, and it has what was read. nil if there is none.
func (r *Reader) beside(m mark) *os.File {
	if m.Offset == 0 {
		return nil
	}
	entries, err := os.ReadDir(filepath.Dir(r.cfg.Path))
	if err != nil {
		return nil
	}
	base := filepath.Base(r.cfg.Path)
	for _, e := range entries {
		if e.Name() == base || !strings.HasPrefix(e.Name(), base) || !e.Type().IsRegular() {
			continue
		}
		f, err := os.Open(filepath.Join(filepath.Dir(r.cfg.Path), e.Name()))
		if err != nil {
			continue
		}
		if r.is(f, m) {
			return f
		}
		_ = f.Close()
	}
	return nil
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
	for r.acked.Load() < r.last {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
	return nil
}

// next begins the file that lies at the path now.
func (r *Reader) next(ctx context.Context) error {
	f, err := os.Open(r.cfg.Path)
	if err != nil {
		return fmt.Errorf("path: %w", err)
	}
	split, err := records.New(records.Config{Format: r.cfg.Format, NoHeader: r.cfg.NoHeader, Delimiter: r.cfg.Delimiter, OnMalformed: r.cfg.OnMalformed, MaxRecord: r.cfg.MaxRecord})
	if err != nil {
		return errors.Join(err, f.Close())
	}
	first := mark{Gen: r.gen + 1}
	none := &Reader{cfg: r.cfg}
	if first.Head, first.Tail, err = none.fingerprints(f, 0); err != nil {
		return errors.Join(err, f.Close())
	}
	value, err := json.Marshal(first)
	if err != nil {
		return errors.Join(err, f.Close())
	}
	if err := r.cfg.Positions.Save(ctx, r.cfg.Partition, value); err != nil {
		return errors.Join(fmt.Errorf("save position of %s: %w", r.cfg.Path, err), f.Close())
	}
	r.mu.Lock()
	_ = r.file.Close()
	r.file, r.gen, r.saved, r.saver = f, first.Gen, first, r.newSaver()
	r.mu.Unlock()
	r.split, r.last, r.eof, r.rotated, r.tail, r.from, r.lines, r.quiet = split, 0, false, false, nil, 0, nil, 0
	r.acked.Store(0)
	r.end.Store(0)
	return nil
}

func ignoreTruncated(err error) error {
	if errors.Is(err, ErrTruncated) {
		return nil
	}
	return err
}
