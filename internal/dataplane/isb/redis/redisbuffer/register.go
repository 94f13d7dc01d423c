package redisbuffer

import (
	"context"
	"errors"
	"strconv"
	"sync"

	"github.com/redis/go-redis/v9"

	"github.com/levada-io/levada/internal/dataplane/buffer"
)

// Where several processes may read the partition one after the other, the saved state is replaced by comparison (buffer.StateRegister).
//
// What is compared is the name of the write that stored the state, and each write has a name of its own. Numbers would not do: a master that failed over, or a file that
// lost its end, gives them again, and a process could replace what it has never seen. The revisions that callers get are numbers of this driver: each write that it finds
// where another one was gets the next. So a state that the server lost, and the older one that is there instead, is a later revision, and its owner saves over it.

// knownState is what this driver knows of the saved state.
type knownState struct {
	mu       sync.Mutex
	revision uint64 // of the state that was seen last; 0 for none
	write    string // its name
	written  uint64 // states that this driver has tried to write
}

// see returns the revision of a write.
func (k *knownState) see(write string) uint64 {
	k.mu.Lock()
	defer k.mu.Unlock()
	if write != k.write {
		k.revision++
		k.write = write
	}
	return k.revision
}

// replacing returns the name of the write that has a revision, and one for the write that replaces it; false if that was another state than the last one that was seen.
func (k *knownState) replacing(revision uint64, reader string) (old, write string, ok bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.written++
	return k.write, reader + "." + strconv.FormatUint(k.written, 10), revision == k.revision || revision == 0 && k.write == ""
}

// ReadState implements buffer.StateRegister. It asks the master.
func (d *driver) ReadState(ctx context.Context) ([]byte, uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	entries, err := d.link.Client.XRevRangeN(ctx, d.keys.state, "+", "-", 1).Result()
	if err = d.classify(err); err != nil {
		return nil, 0, err
	}
	if len(entries) == 0 {
		return nil, d.known.see(""), nil
	}
	return stateOf(entries[0]), d.known.see(writeOf(entries[0])), nil
}

// writeOf is the name of the write of a saved state: its id if SaveState wrote it.
func writeOf(m redis.XMessage) string {
	if w, ok := m.Values["w"].(string); ok {
		return w
	}
	return m.ID
}

// ReplaceState implements buffer.StateRegister. A driver that replaces the state is the reader.
func (d *driver) ReplaceState(ctx context.Context, state []byte, revision uint64) (uint64, error) {
	if d.cfg.Fence != nil {
		if err := d.cfg.Fence(ctx); err != nil {
			return 0, err
		}
	}
	old, write, ok := d.known.replacing(revision, d.reader)
	if !ok {
		return 0, buffer.ErrReplaced
	}
	d.mu.Lock()
	d.compares = true
	d.mu.Unlock()
	if _, err := d.run(ctx, replaceScript, []string{d.keys.state, d.keys.meta}, d.incarnation, d.reader, old, write, state); err != nil {
		return 0, err
	}
	return d.known.see(write), nil
}

// errNotReader means that another process has replaced the saved state. Who finds that out by saving learns by whom.
var errNotReader = errors.New("another process has replaced the saved state: nothing is removed")

// replaced is what a script says to a driver that is not the reader any more.
func (d *driver) replaced() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.compares {
		return errNotReader
	}
	d.fenced = ErrFenced
	return ErrFenced
}
