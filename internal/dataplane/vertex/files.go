package vertex

import (
	"fmt"
	"path/filepath"
	"sync"

	"github.com/levada-io/levada/internal/dataplane/function"
	"github.com/levada-io/levada/internal/dataplane/sink/filesink"
)

// Files are the files that the sinks of this process write, by whom. The zero value is ready.
type Files struct {
	mu sync.Mutex
	// owner is the sink of each file and journal, by absolute path without symbolic links. Entries stay: a run opens its sinks once.
	owner map[string]string
}

// claim takes a file, and the journal beside it, for a sink. Two sinks of one file would cut away each other's lines. The lock on the file tells other
// processes; this tells who it is.
func (f *Files) claim(path, sink string) error {
	if f == nil || path == "" {
		return nil
	}
	// Two names of one file are one file. Its directory exists where the file does not yet.
	path, err := filepath.Abs(path)
	if err != nil {
		return err
	}
	if real, err := filepath.EvalSymlinks(path); err == nil {
		path = real
	} else if dir, err := filepath.EvalSymlinks(filepath.Dir(path)); err == nil {
		path = filepath.Join(dir, filepath.Base(path))
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.owner == nil {
		f.owner = map[string]string{}
	}
	names := []string{path, path + filesink.Suffix}
	for _, name := range names {
		if other, taken := f.owner[name]; taken {
			return fmt.Errorf("sink.file.path: %s is the file of two sinks, of %s and of %s: give each sink a file of its own", name, other, sink)
		}
	}
	for _, name := range names {
		f.owner[name] = sink
	}
	return nil
}

// Claim is claim for a check before anything runs. dir is where relative paths begin.
func (f *Files) Claim(dir, path, sink string) error {
	return f.claim((&Env{Dir: dir}).path(path), sink)
}

// claim takes a file for a sink of the vertex.
func (b *builder) claim(role function.Role, path string) error {
	sink := fmt.Sprintf("%v", b.env.Owner)
	if !b.mono {
		sink += ", vertex " + b.name
	}
	if role != function.UDSink {
		sink += " (" + string(role) + ")"
	}
	return b.env.Files.claim(path, sink)
}

// writerName names a sink among all that write to the same place.
func (b *builder) writerName(role function.Role) string {
	if role == function.UDSink {
		role = ""
	}
	return b.env.Owner.Writer(b.name, string(role))
}
