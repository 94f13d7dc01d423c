package filesource

import (
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// sibling is a file beside the path that a rotation may have left.
type sibling struct {
	name       string
	modified   int64
	number     int // of app.log.1; 0 if there is none
	compressed bool
}

// suffix is a number or a time, as in app.log.1, app.log-20260102, app.log.2026-01-02T15:04:05.000, app-2026-01-02.log, perhaps of a compressed file.
var suffix = regexp.MustCompile(`^[-._]?([0-9][0-9TZ:._+-]*)(\.gz|\.zst|\.bz2|\.xz)?$`)

// siblings are the rotated files of a path, oldest first. A file was appended to last before the next one was, so that the time of modification orders them;
// of those with the same time the highest number is the oldest.
func siblings(path string) (out []sibling) {
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil {
		return nil
	}
	base := filepath.Base(path)
	ext := filepath.Ext(base)
	for _, e := range entries {
		middle, ok := strings.CutPrefix(e.Name(), base)
		if !ok {
			if middle, ok = strings.CutPrefix(e.Name(), strings.TrimSuffix(base, ext)); ok && ext != "" {
				middle = strings.Replace(middle, ext, "", 1)
			}
		}
		parts := suffix.FindStringSubmatch(middle)
		info, err := e.Info()
		if !ok || parts == nil || err != nil || !info.Mode().IsRegular() {
			continue
		}
		s := sibling{name: filepath.Join(filepath.Dir(path), e.Name()), modified: info.ModTime().UnixNano(), compressed: parts[2] != ""}
		if len(parts[1]) < 6 { // longer ones are dates
			s.number, _ = strconv.Atoi(parts[1])
		}
		out = append(out, s)
	}
	slices.SortFunc(out, func(a, b sibling) int {
		return cmp.Or(cmp.Compare(a.modified, b.modified), cmp.Compare(b.number, a.number), cmp.Compare(a.name, b.name))
	})
	return out
}

// following opens the oldest rotated file that is newer than the open one and was not read: there is one if the file was rotated several times. It is nil if
// that is the one at the path. missing names those between that cannot be read.
func (r *Reader) following() (f *os.File, missing []string, err error) {
	open, err := r.file.Stat()
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", r.cfg.Path, err)
	}
	at, _ := os.Stat(r.cfg.Path) // it may not be there yet
	all := siblings(r.cfg.Path)
	from, number := -1, 0 // where the open file is among them
	for i, s := range all {
		if info, err := os.Stat(s.name); err == nil && !r.lost && os.SameFile(info, open) {
			from, number = i, s.number
		}
	}
	after := r.saved.Modified
	if !r.lost {
		after = open.ModTime().UnixNano()
	}
	if from < 0 && (after == 0 || !r.lost && at != nil && os.SameFile(at, open)) {
		return nil, nil, nil // of an earlier version; or truncated, and nothing else was rotated since
	}
	for i, s := range all {
		if from >= 0 && i <= from || from < 0 && s.modified <= after {
			continue
		}
		f, err := os.Open(s.name)
		if err != nil {
			missing = append(missing, s.name)
			continue
		}
		info, err := f.Stat()
		skip := err != nil || slices.Contains(r.past, inode(f)) || os.SameFile(info, open) || at != nil && os.SameFile(info, at)
		if !skip && s.compressed {
			missing = append(missing, s.name)
			skip = true
		}
		if skip {
			_ = f.Close()
			continue
		}
		return f, append(missing, between(all, number, s.number)...), nil
	}
	return nil, append(missing, between(all, number, 0)...), nil
}

// between names the numbers between those of two files that no file has.
func between(all []sibling, older, newer int) (missing []string) {
	for n := older - 1; n > newer; n-- {
		if !slices.ContainsFunc(all, func(s sibling) bool { return s.number == n }) {
			missing = append(missing, "."+strconv.Itoa(n))
		}
	}
	return missing
}
