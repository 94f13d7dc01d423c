package command

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync"
	"time"
)

// configFile is the file of the configuration, which is looked at once a second. A file that is being written counts once two looks agree. One that cannot be read
// is reported once it has been away for goneAfter, since a file that is replaced may be missing for an instant.
type configFile struct {
	path string // empty when the configuration has no file

	used  fileStamp // of what was loaded last, also if it was refused
	seen  fileStamp // of the look before
	since time.Time // first look at which it could not be read; zero while it can be
	said  bool      // that it cannot be read

	mu   sync.Mutex
	gone error // for others than who looks; nil while the file can be read
	from time.Time
}

// goneAfter is how long a file that is being replaced may be missing.
const goneAfter = 3 * time.Second

type fileStamp struct {
	modified time.Time
	size     int64 // negative: it cannot be read
}

// look returns what the file is now. The error says why it cannot be read.
func (f *configFile) look() (fileStamp, error) {
	none := fileStamp{size: -1}
	info, err := os.Stat(f.path)
	switch {
	case err != nil:
		return none, err
	case info.IsDir():
		return none, errors.New("it is a directory")
	case info.Mode().IsRegular(): // to open a pipe would wait for who writes to it
		open, err := os.Open(f.path)
		if err != nil {
			return none, err
		}
		_ = open.Close()
	}
	return fileStamp{info.ModTime(), info.Size()}, nil
}

// use notes that the file is about to be loaded.
func (f *configFile) use() {
	if f.path != "" {
		f.used, _ = f.look()
		f.seen = f.used
	}
}

// change is what a look has found.
type change int

const (
	unchanged change = iota
	changed          // load it
	goneFile         // it cannot be read any more: said once
	backFile         // it can be read again
)

// check looks at the file.
func (f *configFile) check(now time.Time) (change, error) {
	if f.path == "" {
		return unchanged, nil
	}
	stamp, err := f.look()
	if err != nil {
		f.seen = stamp
		if f.since.IsZero() {
			f.since = now
		}
		if f.said || now.Sub(f.since) < goneAfter {
			return unchanged, nil
		}
		f.said = true
		f.note(reasonOf(err), f.since)
		return goneFile, reasonOf(err)
	}
	f.since = time.Time{}
	if f.said {
		f.said, f.seen = false, stamp
		f.note(nil, time.Time{})
		return backFile, nil
	}
	steady := stamp == f.seen
	f.seen = stamp
	if stamp != f.used && steady {
		f.used = stamp
		return changed, nil
	}
	return unchanged, nil
}

func (f *configFile) note(gone error, from time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.gone, f.from = gone, from
}

// readable reports whether the file can be read; ok is false without a file.
func (f *configFile) readable() (yes, ok bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.gone == nil, f.path != ""
}

// notes are for people who ask whether the proxy is well.
func (f *configFile) notes() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case f.path == "":
		return nil
	case f.gone != nil:
		return []string{fmt.Sprintf("[!] configuration file %s cannot be read since %s: %v; the configuration that was loaded before stays in force",
			f.path, f.from.UTC().Format(time.RFC3339), f.gone)}
	}
	return []string{"[+] configuration file " + f.path}
}

// reasonOf is an error of a file without its path.
func reasonOf(err error) error {
	if e, ok := errors.AsType[*fs.PathError](err); ok {
		return e.Err
	}
	return err
}
